"""Generated data, held against the answers that are known of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import mtlcli
from mtlcli import recipe as recipes
from mtlcli.data.base import MultiTaskData
from mtlcli.data.synthetic.objectives import pareto_front, valley_loss
from mtlcli.engine.events import EpochDone, Finished
from mtlcli.engine.fit import Fit
from mtlcli.engine.prepare import prepare
from mtlcli.engine.ranks import Ranks
from mtlcli.errors import MtlError, OptionError
from mtlcli.runs import Run

CPU = torch.device("cpu")


def load(**options: Any) -> MultiTaskData:
    cls = mtlcli.datasets.get("synthetic")
    return cls(cls.Options(**options)).load()


def labels(data: MultiTaskData, split: str = "train") -> torch.Tensor:
    rows = next(data.splits[split].batches(10**6))
    return torch.stack([rows.targets[task.name].double() for task in data.tasks])


def test_the_same_options_give_the_same_rows() -> None:
    one, again, other = (load(rows=50, seed=seed) for seed in (3, 3, 4))
    assert one.fingerprint == again.fingerprint != other.fingerprint
    assert labels(one).equal(labels(again))


@pytest.mark.parametrize("relatedness", [0.0, 0.5, 0.9])
def test_signals_correlate_as_asked(relatedness: float) -> None:
    found = labels(load(rows=40_000, noise=0, relatedness=relatedness, num_tasks=4))
    expected = torch.full((4, 4), relatedness, dtype=torch.float64).fill_diagonal_(1)
    torch.testing.assert_close(torch.corrcoef(found), expected, atol=0.03, rtol=0)
    torch.testing.assert_close(found.var(1), torch.ones(4, dtype=torch.float64), atol=0.05, rtol=0)


def test_noise_and_scales() -> None:
    found = labels(load(rows=40_000, noise=1.0, scale_ratio=100, num_tasks=3))
    torch.testing.assert_close(found.std(1) / 2**0.5, torch.tensor([1.0, 10, 100]).double(), rtol=0.03, atol=0)


def test_two_hundred_tasks() -> None:
    data = load(num_tasks=200, rows=300)
    assert len(data.tasks) == 200
    assert labels(data).isfinite().all()
    values = {"data": {"name": "synthetic", "num_tasks": 201}}
    with pytest.raises(MtlError, match=r"num_tasks: should be a whole number.*<= 200"):
        recipes.from_values(values, "r")


def test_wrong_labels_are_as_many_as_asked_and_never_in_test() -> None:
    options: dict[str, Any] = {"problem": "label_noise", "rows": 20_000, "num_tasks": 3, "noisy_tasks": 1}
    clean, noisy = (load(**options, wrong=share) for share in (0.0, 0.4))
    differ = (labels(clean) != labels(noisy)).double().mean(1)
    torch.testing.assert_close(differ, torch.tensor([0, 0, 0.2]).double(), atol=0.01, rtol=0)  # half are right by luck
    assert labels(clean, "test").equal(labels(noisy, "test"))


def test_the_auxiliary_drifts_from_signal_to_noise() -> None:
    data = load(problem="drift", rows=8000, noise=1.0, drift_epochs=4)
    loader = data.splits["train"].loader(8000, seed=0)

    def correlation(epoch: int) -> float:
        batch = next(iter(loader.epoch(epoch)))
        return float(torch.corrcoef(torch.stack([batch.targets["main"], batch.targets["auxiliary"]]))[0, 1])

    # `main` correlates with its own signal by 1 / sqrt(2).
    for epoch, right in ((0, 1.0), (1, 0.75), (2, 0.5), (4, 0.0), (9, 0.0)):
        assert correlation(epoch) == pytest.approx(right / 2**0.5, abs=0.04)
    middle = list(data.splits["train"].loader(4000, seed=0).epoch(1))[1]
    again = next(iter(data.splits["train"].loader(4000, seed=0).epoch(1, first_step=1)))
    assert middle.targets["auxiliary"].equal(again.targets["auxiliary"])


def test_the_auxiliary_is_right_where_the_first_feature_is_positive() -> None:
    data = load(problem="sample_relevance", rows=8000, noise=0.0)
    rows = next(data.splits["train"].batches(8000))
    positive = rows.inputs["numeric"][:, 0] > 0
    main, auxiliary = rows.targets["main"], rows.targets["auxiliary"]
    assert main[positive].equal(auxiliary[positive])
    assert abs(float(torch.corrcoef(torch.stack([main, auxiliary])[:, ~positive])[0, 1])) < 0.05


def test_quadratics_have_the_gramian_asked_for() -> None:
    gramian = torch.tensor([[2.0, -1.0, 0.5], [-1.0, 1.0, 0.0], [0.5, 0.0, 3.0]], dtype=torch.float64)
    data = load(problem="quadratics", gramian=gramian.tolist())
    point = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    rows = [torch.autograd.grad(task.objective(point).sum(), point)[0][0] for task in data.tasks if task.objective]
    torch.testing.assert_close(torch.stack(rows) @ torch.stack(rows).T, gramian)


@pytest.mark.parametrize(
    ("gramian", "why"),
    [([[1.0, 2.0]], "square"), ([[1.0, 2.0], [0.0, 1.0]], "symmetric"), ([[1.0, 2.0], [2.0, 1.0]], "eigenvalue")],
)
def test_what_is_no_gramian_is_refused(gramian: list[list[float]], why: str) -> None:
    with pytest.raises(OptionError, match=why):
        load(problem="quadratics", gramian=gramian)


def test_no_point_near_the_front_is_better_in_both_losses() -> None:
    front = pareto_front(29)[1:-1]
    here = torch.stack([valley_loss(front, k) for k in (0, 1)], 1)
    around = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for point, losses in zip(front, here, strict=True):
        for reach in (1e-3, 0.1, 1.0):
            there = torch.stack([valley_loss(point + reach * around, k) for k in (0, 1)], 1)
            assert not (there < losses - 1e-9).all(1).any()
    gradients = []
    for k in (0, 1):
        at = front.clone().requires_grad_()
        gradients.append(torch.autograd.grad(valley_loss(at, k).sum(), at)[0])
    share = ((front[:, 0] + 7) / 14)[:, None]
    torch.testing.assert_close(
        share * gradients[0] + (1 - share) * gradients[1], torch.zeros_like(front), atol=1e-9, rtol=0
    )


def recipe_of(start: list[float], weighting: dict[str, Any], epochs: int = 4, **data: Any) -> recipes.Recipe:
    values = {
        "data": {
            "name": "synthetic",
            "problem": "two_objectives",
            "start": start,
            "rows": 500,
            "batch_size": 1,
            **data,
        },
        "model": {"encoder": "point"},
        "weighting": weighting,
        "optimizer": {"name": "adam", "lr": 0.1},
        "train": {"epochs": 3, "select_by": "last"},
    }
    return recipes.from_values(values, "two objectives")


@pytest.mark.parametrize("start", [[-8.5, 7.5], [9.0, 9.0]])
def test_training_on_two_objectives_ends_on_the_front(start: list[float], tmp_path: Path) -> None:
    training = Fit(prepare(recipe_of(start, {"gradient": "nash_mtl"}), CPU), Run(tmp_path), Ranks())
    last = list(training.events())[-1]
    assert isinstance(last, Finished)
    (point,) = training.model.parameters()
    distance = (pareto_front(1001) - point.detach().double()).norm(dim=1).min()
    assert distance < 0.3
    losses = [float(valley_loss(point.detach()[None], k, (0.1, 1.0)[k])) for k in (0, 1)]
    found = last.result["tasks"]
    assert [found[f"loss{k}"]["metrics"]["value"]["value"] for k in (1, 2)] == pytest.approx(losses, rel=1e-5)


def test_tables_are_refused_by_the_encoder_of_points() -> None:
    values = {"data": {"name": "synthetic"}, "model": {"encoder": "point"}}
    with pytest.raises(MtlError, match=r"'point' reads PointFeatures, and these data give TableFeatures"):
        prepare(recipes.from_values(values, "r"), CPU)


def test_the_main_task_s_gain_tells_when_the_auxiliary_turns_into_noise(tmp_path: Path) -> None:
    values = {
        "data": {"name": "synthetic", "problem": "drift", "drift_epochs": 2, "rows": 4000, "batch_size": 128},
        "model": {"encoder": {"name": "mlp", "widths": [32, 16]}},
        "weighting": {"loss": {"name": "hydalearn", "main": "main"}},
        "optimizer": {"name": "adam", "lr": 0.003},
        "train": {"epochs": 4},
    }
    training = Fit(prepare(recipes.from_values(values, "drift"), CPU), Run(tmp_path), Ranks())
    weights = [event.weights["auxiliary"] for event in training.events() if isinstance(event, EpochDone)]
    assert weights[0] > 0.1
    assert max(weights[2:]) < 0.05
