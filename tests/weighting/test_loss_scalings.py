"""GLS, IMTL-L, STCH, CoV, DWA's windows, GO4Align and LDC-MTL: numbers worked out by hand, and torchjd as an oracle."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from weighting_toys import ScriptedStep

from mtlcli import loss_weightings
from mtlcli.weighting.losses.go4align import group_means

LOSSES = torch.tensor([0.3, 2.0, 17.0])


def slopes(output: Tensor, step: ScriptedStep) -> Tensor:
    """The weight (K,) that each loss's own gradient received."""
    return torch.autograd.grad(output.sum(), step.sample_losses)[0][:, 0]


def slopes_of(objective, losses: Tensor) -> Tensor:
    """The same for a scalar function of all losses."""
    leaf = losses.clone().requires_grad_()
    return torch.autograd.grad(objective(leaf), leaf)[0]


def test_gls_by_hand() -> None:
    step = ScriptedStep(torch.tensor([1.0, 4.0]))
    output = loss_weightings.build("gls", tasks=2)(step)
    torch.testing.assert_close(output.sum(), torch.tensor(2.0))  # the root of 1 * 4
    torch.testing.assert_close(slopes(output, step), torch.tensor([1.0, 0.25]))  # 2 / (2 * 1), 2 / (2 * 4)


def test_gls_against_torchjd() -> None:
    oracle = pytest.importorskip("torchjd.scalarization").GeometricMean()
    step = ScriptedStep(LOSSES)
    output = loss_weightings.build("gls", tasks=3)(step)
    torch.testing.assert_close(output.sum(), oracle(LOSSES))
    torch.testing.assert_close(slopes(output, step), slopes_of(oracle, LOSSES))


def test_gls_with_a_loss_of_zero() -> None:
    method = loss_weightings.build("gls", tasks=3)
    for nothing, counted in ((0.0, 0), (-1.0, 1)):
        step = ScriptedStep(torch.tensor([nothing, 1.0, 1.0]))
        torch.testing.assert_close(slopes(method(step), step), torch.tensor([0.0, 0.5, 0.5]))
        assert sum(method.events.values()) == counted


def test_imtl_l_against_torchjd() -> None:
    oracle = pytest.importorskip("torchjd.scalarization").IMTLL(3)
    method = loss_weightings.build("imtl_l", tasks=3)
    assert method(ScriptedStep(LOSSES)).tolist() == LOSSES.tolist()  # s starts at 0
    with torch.no_grad():
        method.log_scales.copy_(torch.tensor([0.5, -1.0, 0.1]))
        oracle.log_scale.copy_(method.log_scales)
    step = ScriptedStep(LOSSES)
    output = method(step)
    torch.testing.assert_close(output.sum(), oracle(LOSSES))
    torch.testing.assert_close(slopes(method(step), step), slopes_of(oracle, LOSSES))
    output.sum().backward()
    oracle(LOSSES).backward()
    torch.testing.assert_close(method.log_scales.grad, oracle.log_scale.grad)


def test_imtl_l_brings_losses_to_one() -> None:
    method = loss_weightings.build("imtl_l", tasks=3)
    optimizer = torch.optim.SGD(method.learnable(), lr=0.05)
    for _ in range(1000):
        optimizer.zero_grad()
        method(ScriptedStep(LOSSES)).sum().backward()
        optimizer.step()
    torch.testing.assert_close(method.log_scales.detach().exp() * LOSSES, torch.ones(3))


def warmed_up(mu: float):
    method = loss_weightings.build("stch", tasks=3, mu=mu, warmup_epochs=1)
    for epoch, row in ((0, [5.0, 5.0, 5.0]), (1, [1.0, 4.0, 10.0]), (1, [1.0, 8.0, 30.0])):
        step = ScriptedStep(torch.tensor(row), epoch)
        output = method(step)
        torch.testing.assert_close(output, torch.tensor(row).log())
        torch.testing.assert_close(slopes(output, step), 1 / torch.tensor(row))
    return method


@pytest.mark.parametrize("mu", [0.1, 1.0, 10.0])
def test_stch_against_torchjd(mu: float) -> None:
    oracle = pytest.importorskip("torchjd.scalarization").STCH(mu, weights=torch.ones(3))
    method = warmed_up(mu)
    step = ScriptedStep(LOSSES, 2)
    nadir = torch.tensor([1.0, 6.0, 20.0])
    torch.testing.assert_close(
        slopes(method(step), step), 3 * slopes_of(lambda leaf: oracle((leaf / nadir).log()), LOSSES)
    )


def test_stch_by_hand() -> None:
    step = ScriptedStep(torch.tensor([1.0, 6.0, 40.0]), 2)  # relative to the base: 1, 1, 2
    torch.testing.assert_close(slopes(warmed_up(1.0)(step), step), 3 * torch.tensor([1 / 4, 1 / 24, 2 / 160]))


def test_stch_trains_the_worst_task_when_mu_is_small() -> None:
    step = ScriptedStep(torch.tensor([1.0, 6.0, 40.0]), 2)
    torch.testing.assert_close(slopes(warmed_up(1e-3)(step), step), torch.tensor([0.0, 0.0, 3 / 40]))


def test_stch_leaves_non_finite_steps_out_of_the_base() -> None:
    method = loss_weightings.build("stch", tasks=3, warmup_epochs=1)
    for row in ([1.0, 4.0, 10.0], [math.nan, 50.0, 50.0], [50.0, 50.0, math.inf], [1.0, 8.0, 30.0]):
        method(ScriptedStep(torch.tensor(row), 1))
    expected, step = ScriptedStep(LOSSES, 2), ScriptedStep(LOSSES, 2)
    torch.testing.assert_close(slopes(method(step), step), slopes(warmed_up(1.0)(expected), expected))


@pytest.mark.parametrize("decay", [None, 0.9])
def test_cov_against_its_published_loop(decay: float | None) -> None:
    """A second transcription of the published update, in float64."""
    rng = torch.Generator().manual_seed(0)
    method = loss_weightings.build("cov", tasks=3, decay=decay).double()
    mean_loss = mean_ratio = squares = torch.zeros(3, dtype=torch.float64)
    deviation = None
    for t in range(30):
        losses = (0.2 + torch.rand(3, generator=rng) * torch.tensor([1.0, 0.1, 30.0])).double()
        step = ScriptedStep(losses)
        weights = slopes(method(step), step)
        ratio = losses / (losses if t == 0 else mean_loss)
        expected = torch.ones(3, dtype=torch.float64) / 3
        if t > 1:
            expected = deviation / mean_ratio / (deviation / mean_ratio).sum()
        torch.testing.assert_close(weights, 3 * expected)
        keep = 0.0 if t == 0 else decay if decay is not None else 1 - 1 / (t + 1)
        new_mean = keep * mean_ratio + (1 - keep) * ratio
        squares = squares + (ratio - mean_ratio) * (ratio - new_mean)
        mean_ratio = new_mean
        deviation = (squares / (t + 1) + 1e-8).sqrt()
        mean_loss = keep * mean_loss + (1 - keep) * losses


def test_cov_by_hand() -> None:
    method = loss_weightings.build("cov", tasks=2)
    for row in ([1.0, 4.0], [1.0, 2.0]):  # ratios 1, 1 and 1, 1/2
        step = ScriptedStep(torch.tensor(row))
        torch.testing.assert_close(slopes(method(step), step), torch.ones(2))
    step = ScriptedStep(torch.tensor([1.0, 1.0]))
    still = math.sqrt(1e-8)  # task 0 never moved
    moved = math.sqrt(1 / 16 + 1e-8) / 0.75  # mean 3/4, squared distances 1/16 each
    torch.testing.assert_close(slopes(method(step), step), 2 * torch.tensor([still, moved]) / (still + moved))


def test_cov_leaves_non_finite_steps_out() -> None:
    method = loss_weightings.build("cov", tasks=2)
    for row in ([1.0, 4.0], [1.0, 2.0], [1.0, 1.0]):
        method(ScriptedStep(torch.tensor(row)))
    before = method.statistics.state_dict()
    method(ScriptedStep(torch.tensor([math.nan, 1.0])))
    assert method.statistics.state_dict() == before
    assert sum(method.events.values()) == 1


def test_dwa_with_windows_of_steps() -> None:
    method = loss_weightings.build("dwa", tasks=2, window="iterations", length=2)
    rows = [(5.0, 1.0), (3.0, 3.0), (2.0, 1.0), (2.0, 3.0), (2.0, 9.0)]
    for row in rows[:3]:
        step = ScriptedStep(torch.tensor(row))
        torch.testing.assert_close(slopes(method(step), step), torch.ones(2))
    step = ScriptedStep(torch.tensor(rows[3]))  # means 4, 2 and 2, 2: 2 softmax([0.5, 1] / 2)
    torch.testing.assert_close(slopes(method(step), step), torch.tensor([0.8756470, 1.1243530]))
    step = ScriptedStep(torch.tensor([math.nan, 1.0]))  # takes no place in the windows
    torch.testing.assert_close(slopes(method(step), step), torch.tensor([0.8756470, 1.1243530]))
    step = ScriptedStep(torch.tensor(rows[4]))  # means 2.5, 2 and 2, 6: 2 softmax([0.8, 3] / 2)
    torch.testing.assert_close(slopes(method(step), step), 2 * torch.tensor([0.4, 1.5]).softmax(0))


def brute_force_groups(values: list[float], groups: int) -> list[float]:
    """Means of the best grouping among all of them."""
    best, means = math.inf, values
    for labels in itertools.product(range(groups), repeat=len(values)):
        found = [
            sum(v for v, mine in zip(values, labels, strict=True) if mine == label) / labels.count(label)
            for label in labels
        ]
        spread = sum((v - m) ** 2 for v, m in zip(values, found, strict=True))
        if spread < best - 1e-12:
            best, means = spread, found
    return means


@pytest.mark.parametrize("groups", [1, 2, 3, 7])
def test_groups_are_the_best_ones(groups: int) -> None:
    rng = torch.Generator().manual_seed(groups)
    for size in (1, 2, 5):
        values = torch.rand(size, generator=rng).tolist()
        assert group_means(values, groups) == pytest.approx(brute_force_groups(values, min(groups, size)))


def test_go4align_against_its_published_loop() -> None:
    rng = torch.Generator().manual_seed(0)
    method = loss_weightings.build("go4align", tasks=3, groups=2, step_size=0.1).double()
    probabilities = torch.ones(3, dtype=torch.float64) / 3
    for _ in range(20):
        losses = (0.2 + torch.rand(3, generator=rng) * torch.tensor([1.0, 0.1, 3.0])).double()
        step = ScriptedStep(losses)
        probabilities = probabilities * torch.exp(-0.1 * losses)
        probabilities = probabilities / probabilities.sum()
        wanted = losses.sum() / losses * probabilities
        expected = torch.tensor(brute_force_groups(wanted.tolist(), 2), dtype=torch.float64)
        torch.testing.assert_close(slopes(method(step), step), expected, rtol=1e-6, atol=1e-6)


def test_go4align_leaves_non_finite_steps_out() -> None:
    method = loss_weightings.build("go4align", tasks=2)
    method(ScriptedStep(torch.tensor([1.0, 3.0])))
    weights = method.weights.clone()
    method(ScriptedStep(torch.tensor([math.nan, 3.0])))
    assert torch.equal(method.weights, weights)
    assert sum(method.events.values()) == 1


def test_go4align_leaves_tasks_out_whose_losses_are_not_positive() -> None:
    """Divided by its loss, such a task's weight would dwarf those of its whole group."""
    two = loss_weightings.build("go4align", tasks=2, groups=1)
    three = loss_weightings.build("go4align", tasks=3, groups=1)
    two(ScriptedStep(torch.tensor([1.0, 3.0])))
    for nothing, counted in ((0.0, 0), (-1e-3, 1)):
        step = ScriptedStep(torch.tensor([1.0, nothing, 3.0]))
        found = slopes(three(step), step)
        assert found[1] == 0
        torch.testing.assert_close(found[[0, 2]], two.weights, rtol=1e-3, atol=0)
        assert sum(three.events.values()) == counted


@pytest.mark.parametrize("normalise", ["ratio", "log", "none"])
def test_ldc_mtl_against_its_published_objective(normalise: str) -> None:
    method = loss_weightings.build("ldc_mtl", tasks=3, normalise=normalise, penalty=0.3).double()
    first = torch.tensor([0.5, 4.0, 10.0], dtype=torch.float64)
    method(ScriptedStep(first))
    with torch.no_grad():
        method.numbers.copy_(torch.tensor([0.3, -1.0, 2.0]))
    step = ScriptedStep(LOSSES.double())
    output = method(step)

    losses = LOSSES.double().requires_grad_()
    numbers = method.numbers.detach().clone().requires_grad_()
    weights = numbers.sigmoid()
    relative = {"ratio": losses / (first / first.min()), "log": (losses / first).log(), "none": losses}[normalise]
    weighted = weights * relative
    gaps = (weighted[:-1] - weighted[1:]).abs().sum()
    objective = weighted.sum() / weights.sum().detach() + 0.3 * gaps
    torch.testing.assert_close(output.sum(), objective)
    expected = torch.autograd.grad(objective, [losses, numbers])
    found = torch.autograd.grad(output.sum(), [step.sample_losses, method.numbers])
    torch.testing.assert_close(found[0][:, 0], expected[0])
    torch.testing.assert_close(found[1], expected[1])
    assert method.learnable() == [method.numbers]


@pytest.mark.parametrize("late", [0.0, math.nan])
@pytest.mark.parametrize("normalise", ["ratio", "log"])
def test_ldc_mtl_takes_each_base_from_the_first_positive_loss(normalise: str, late: float) -> None:
    """A task without labels in the first batch would otherwise stop all others for good."""
    first, second, at_once = (loss_weightings.build("ldc_mtl", tasks=3, normalise=normalise) for _ in range(3))
    first(ScriptedStep(torch.tensor([0.5, late, 10.0])))
    first(ScriptedStep(torch.tensor([0.7, 4.0, 20.0])))
    at_once(ScriptedStep(torch.tensor([0.5, 4.0, 10.0])))
    step, same = ScriptedStep(LOSSES), ScriptedStep(LOSSES)
    torch.testing.assert_close(slopes(first(step), step), slopes(at_once(same), same))
    step = ScriptedStep(torch.tensor([0.5, 0.0, 10.0]))
    assert slopes(second(step), step)[0] > 0.1


def test_ldc_mtl_with_a_network() -> None:
    first: Any = loss_weightings.build("ldc_mtl", tasks=3, router="network", seed=4)
    second: Any = loss_weightings.build("ldc_mtl", tasks=3, router="network", seed=4)
    for _ in range(3):
        outputs = [method(ScriptedStep(LOSSES)) for method in (first, second)]
        assert torch.equal(*outputs)
        for method, output in zip((first, second), outputs, strict=True):
            optimizer = torch.optim.SGD(method.learnable(), lr=0.1)
            optimizer.zero_grad()
            output.sum().backward()
            assert all(p.grad is not None and p.grad.isfinite().all() for p in method.learnable())
            optimizer.step()
