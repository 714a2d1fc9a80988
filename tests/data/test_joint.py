"""Tasks with inputs of their own: how lengths meet, what a step is, and that every weighting works on them."""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
import toy

import mtlcli
from mtlcli import recipe as recipes
from mtlcli import yamlfile
from mtlcli.data.base import BaseSplit, Split
from mtlcli.data.sources import JointLoader, JointSplit, Source
from mtlcli.engine.events import Event, Finished
from mtlcli.engine.fit import Fit
from mtlcli.engine.inspect import check
from mtlcli.engine.prepare import prepare
from mtlcli.engine.ranks import Ranks
from mtlcli.engine.train import train
from mtlcli.errors import MtlError
from mtlcli.recipe import Recipe
from mtlcli.runs import Run
from mtlcli.tasks import Task

CPU = torch.device("cpu")
LONG, SHORT = 96, 40  # training rows of the two sources
NAMES = [f"{source}_{task}" for source in ("north", "south") for task in ("yes", "which", "amount")]


def joint(**data: Any) -> dict[str, Any]:
    sources = {"north": {"name": "toy", "rows": LONG}, "south": {"name": "toy", "rows": SHORT, "missing": 0.1}}
    return {"name": "joint", "sources": sources, "batch_size": 16, **data}


def build(**sections: Any) -> Recipe:
    values = toy.values(**sections)
    values["data"] = joint(**sections.get("data", {}))
    return recipes.from_values(values, "joint.yaml")


def fit(made: Recipe, folder: Path) -> tuple[list[Event], Fit]:
    folder.mkdir(exist_ok=True)
    training = Fit(prepare(made, CPU), Run(folder), Ranks())
    return list(training.events()), training


def split_of(**rows: int) -> JointSplit:
    task = Task("t", "binary")
    return split_with({name: Split({"x": torch.arange(n)}, {"t": torch.zeros(n)}) for name, n in rows.items()}, task)


def split_with(rows: dict[str, BaseSplit], task: Task, policy: Any = "cycle", temperature: float = 2.0) -> JointSplit:
    sources = {name: Source(part, {"t": name}, {"t": task}) for name, part in rows.items()}
    return JointSplit(sources, policy, temperature)


@pytest.mark.parametrize(
    ("policy", "temperature", "steps", "sizes"),
    [
        ("cycle", 2.0, 10, (8, 8)),
        ("shortest", 2.0, 2, (8, 8)),
        ("proportional", 2.0, 7, (13, 3)),  # 16 rows a step, 80 to 16
        ("temperature", 2.0, 6, (11, 5)),  # sqrt(80) to sqrt(16)
        ("temperature", 1.0, 6, (13, 3)),
        ("temperature", 1e6, 6, (8, 8)),
    ],
)
def test_policies(policy: str, temperature: float, steps: int, sizes: tuple[int, int]) -> None:
    rows = {name: Split({"x": torch.arange(n)}, {"t": torch.zeros(n)}) for name, n in (("a", 80), ("b", 16))}
    loader = JointLoader(split_with(rows, Task("t", "binary"), policy, temperature), 8, seed=0)
    batches = list(loader.epoch(0))
    assert len(batches) == len(loader) == steps
    assert tuple(len(part.targets[name]) for part, name in zip(batches[0].parts, "ab", strict=True)) == sizes


def test_short_sources_begin_again_reshuffled() -> None:
    loader = JointLoader(split_of(a=20, b=6), 4, seed=0)
    seen = [[batch.parts[i].inputs[f"{'ab'[i]}/x"].tolist() for batch in loader.epoch(0)] for i in (0, 1)]
    assert sorted(chain(*seen[0])) == list(range(20))
    passes = [sorted(chain(*seen[1][n : n + 2])) for n in (0, 2)]
    assert passes == [list(range(6))] * 2
    assert seen[1][:2] != seen[1][2:4]
    assert [b.parts[1].inputs["b/x"].tolist() for b in loader.epoch(0, 3)] == seen[1][3:]


def test_one_source_trains_exactly_as_by_itself(tmp_path: Path) -> None:
    alone = recipes.from_values(toy.values(), "toy.yaml")
    values = toy.values()
    values["data"] = {"name": "joint", "sources": {"only": {"name": "toy"}}, "batch_size": 32}
    (_, one), (_, other) = fit(alone, tmp_path / "a"), fit(recipes.from_values(values, "j.yaml"), tmp_path / "b")
    for mine, theirs in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert mine.equal(theirs)


def test_a_step_is_the_sum_over_sources(tmp_path: Path) -> None:
    """Each source passes by itself: with normalisation over the batch, the mixed batch would give another gradient."""
    made = build(model={"encoder": {"name": "mlp", "widths": [8], "norm": "batch"}}, train={"epochs": 1})
    prepared = prepare(made, CPU)
    batch = next(prepared.data.splits["train"].loader(16, 0).epoch(0))
    model = prepared.model
    expected = None
    for part in batch.parts:
        predictions, _ = model(part.inputs, tuple(part.targets))
        tasks = [task for task in prepared.data.tasks if task.name in part.targets]
        total = sum(task.loss(predictions[task.name], part.targets[task.name]).mean() for task in tasks)
        expected = total if expected is None else expected + total
    grads = torch.autograd.grad(expected, model.shared_parameters())
    training = Fit(prepare(made, CPU), Run(tmp_path), Ranks())
    training.optimizer.step = lambda *a, **k: None  # type: ignore[method-assign]
    training._train_step(batch, 0)
    for gradient, parameter in zip(grads, training.model.shared_parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.parametrize(("norm", "batch_size", "policy", "able"), [
    ("batch", 13, "cycle", "14"),  # 40 = 3 * 13 + 1
    ("batch", 19, "cycle", "20"),  # 96 = 5 * 19 + 1
    ("batch", 2, "proportional", "3"),  # 3 of 96 and 1 of 40
    ("batch", 16, "cycle", None),
    ("layer", 13, "cycle", None),
])  # fmt: skip
def test_a_single_row_of_a_source(norm: str, batch_size: int, policy: str, able: str | None, tmp_path: Path) -> None:
    """Sources pass by themselves, so that a normalisation over rows needs two of each."""
    encoder = {"name": "mlp", "widths": [8], "norm": norm}
    made = build(model={"encoder": encoder}, data={"batch_size": batch_size, "policy": policy}, train={"epochs": 1})
    if able is None:
        assert isinstance(fit(made, tmp_path / "run")[0][-1], Finished)
        return
    with pytest.raises(MtlError, match=rf"rows of (south|north) at a time leaves a single one.*; {able} would do"):
        fit(made, tmp_path / "run")
    other = {"batch_size": int(able), "policy": policy}
    fit(build(model={"encoder": encoder}, data=other, train={"epochs": 1}), tmp_path / "other")


@pytest.mark.parametrize("loss", mtlcli.loss_weightings.names())
def test_every_loss_weighting(loss: str, tmp_path: Path) -> None:
    sections = toy.weighting(loss)
    if loss == "constant":
        sections["weighting"]["loss"]["weights"] = dict.fromkeys(NAMES, 1.0)
    events, training = fit(build(**sections, train={"epochs": 2}), tmp_path / "run")
    assert isinstance(events[-1], Finished)
    assert list(events[-1].result["tasks"]) == NAMES
    assert all(p.isfinite().all() for p in training.model.parameters())


@pytest.mark.parametrize("gradient", mtlcli.gradient_weightings.names())
def test_every_gradient_weighting(gradient: str, tmp_path: Path) -> None:
    events, training = fit(build(**toy.weighting("ew", gradient), train={"epochs": 2}), tmp_path / "run")
    assert isinstance(events[-1], Finished)
    assert all(p.isfinite().all() for p in training.model.parameters())


@pytest.mark.parametrize("trunk", mtlcli.trunks.names())
def test_sources_that_differ_have_a_first_stage_of_their_own(trunk: str, tmp_path: Path) -> None:
    values = toy.values(model={"encoder": {"name": "mlp", "widths": [12, 8]}, "trunk": {"name": trunk}})
    values["data"] = joint()
    values["data"]["sources"]["people"] = {"name": "census", "rows": 64, "subsample": "all"}
    made = recipes.from_values(values, "joint.yaml")
    prepared = prepare(made, CPU)
    batch = next(prepared.data.splits["train"].loader(16, 0).epoch(0))
    shared = prepared.model.shared_parameters()
    for part in batch.parts:
        predictions, _ = prepared.model(part.inputs, tuple(part.targets))
        reached = torch.autograd.grad(sum(p.sum() for p in predictions.values()), shared, allow_unused=True)
        assert 0 < sum(g is not None for g in reached) < len(shared)
    events, _ = fit(made, tmp_path / "run")
    assert isinstance(events[-1], Finished)


def test_a_source_with_one_task_owns_its_stage() -> None:
    values = toy.values()
    values["data"] = joint(tasks=["north_yes", "south_amount"])
    one = prepare(recipes.from_values(values, "joint.yaml"), CPU)
    assert [task.name for task in one.data.tasks] == ["north_yes", "south_amount"]
    assert {name for batch in one.data.splits["val"].batches(8) for part in batch.parts for name in part.targets} == {
        "north_yes",
        "south_amount",
    }


def test_a_recipe_of_tables_is_checked_and_repeated_from_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are taken from the recipe's folder; columns may differ."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "a.csv").write_text("u,v,churn\n" + "".join(f"{n % 7},{n % 5},{int(n % 7 > 3)}\n" for n in range(80)))
    (folder / "b.csv").write_text("p,spend\n" + "".join(f"{n % 9},{3 * (n % 9)}\n" for n in range(50)))
    recipe = folder / "joint.yaml"
    recipe.write_text(
        "data:\n  name: joint\n  batch_size: 16\n  sources:\n"
        "    customers: {name: table, path: a.csv, tasks: {churn: {kind: binary}}}\n"
        "    orders: {name: table, path: b.csv, tasks: {spend: {kind: regression}}}\n"
        "model: {encoder: {name: mlp, widths: [8]}}\ntrain: {epochs: 1}\n"
    )
    described = check(recipes.load(recipe))
    assert list(described["tasks"]) == ["customers", "orders"]
    found = {column["column"]: column["used_as"] for column in described["columns"]}
    assert (found["customers/u"], found["customers/churn"], found["orders/p"]) == ("numeric", "label", "numeric")
    (tmp_path / "elsewhere").mkdir()
    run, result = train(recipes.load(recipe), "joint", device="cpu")
    monkeypatch.chdir(tmp_path / "elsewhere")
    _, again = train(recipes.load(tmp_path / run.recipe_file), "again", device="cpu")
    assert again["tasks"] == result["tasks"]


def test_the_recipes_of_the_readme_are_recipes(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```yaml\n(data:\n  name: joint\n.*?)^```$", text, re.DOTALL | re.MULTILINE)
    made = [
        recipes.from_values(yamlfile.parse(block, "README.md").values, "README.md", folder=tmp_path) for block in blocks
    ]
    assert [recipe.encoder.name for recipe in made] == ["mlp", "per_source"]


def test_a_task_that_is_the_only_one_of_its_source_owns_its_stage() -> None:
    """Also where the source has others that are not trained."""
    values = toy.values()
    values["data"] = joint(tasks=["north_yes", "people_income"])
    values["data"]["sources"]["people"] = {"name": "census", "rows": 64, "subsample": "all"}
    model = prepare(recipes.from_values(values, "joint.yaml"), CPU).model
    own = {id(p) for p in model.task_parameters()["north_yes"]}
    assert any(id(p) in own for name, p in model.named_parameters() if "stages.north" in name)


def test_what_cannot_be_is_refused() -> None:
    def refused(match: str, **data: Any) -> None:
        values = toy.values()
        values["data"] = joint(**data)
        with pytest.raises(MtlError, match=match):
            prepare(recipes.from_values(values, "joint.yaml"), CPU)

    refused(r"data\.sources: .*; a: no dataset 'tyo'; did you mean 'toy'\?", sources={"a": {"name": "tyo"}})
    refused(r"data\.sources: .*; a\.rows: should be a whole number", sources={"a": {"name": "toy", "rows": "x"}})
    refused(r"by letters", sources={"a b": {"name": "toy"}})
    refused(r"data\.sources: the name 'type' means something else to PyTorch", sources={"type": {"name": "toy"}})
    refused(r"data\.sources: should name at least one source", sources={})
    refused(r"data\.sources\.a\.rows: should be at most", sources={"a": {"name": "census", "rows": 10**7}})
    values = toy.values(weighting={"gradient": {"name": "pcgrad", "wrt": "representation"}})
    values["data"] = joint()
    from mtlcli.engine.prepare import step_for

    prepared = prepare(recipes.from_values(values, "joint.yaml"), CPU)
    with pytest.raises(MtlError, match=r"weighting\.gradient\.wrt: tasks with inputs of their own"):
        step_for(prepared, *prepared.weightings())
