"""A table beside pictures: each source has an encoder of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from PIL import Image
from test_joint import CPU, fit

import mtlcli
from mtlcli import recipe as recipes
from mtlcli.engine.events import Finished
from mtlcli.engine.prepare import prepare
from mtlcli.engine.train import train
from mtlcli.errors import MtlError
from mtlcli.recipe import Recipe


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of customers, and pictures that are bright or dark."""
    folder = tmp_path_factory.mktemp("shop")
    rows = "".join(f"{n % 7},{'abc'[n % 3]},{int(n % 7 > 3)}\n" for n in range(80))
    (folder / "customers.csv").write_text("visits,town,churn\n" + rows)
    (folder / "pictures").mkdir()
    for n in range(60):
        Image.new("RGB", (12, 12), (4 * n,) * 3).save(folder / "pictures" / f"{n}.png")
    rows = "".join(f"{n}.png,{int(n % 60 > 30)}\n" for n in range(60))
    (folder / "labels.csv").write_text("file,bright\n" + rows)
    return folder


CUSTOMERS = {"name": "table", "path": "customers.csv", "tasks": {"churn": {"kind": "binary"}}}
PICTURES = {
    "name": "images",
    "path": "pictures",
    "labels": "labels.csv",
    "tasks": {"bright": {"kind": "binary"}},
    "size": [12, 12],
    "workers": 0,
}
ENCODERS = {
    "churn": {"name": "mlp", "widths": [8]},
    "pic": {"name": "cnn", "channels": [4], "hidden": 8, "grid": 1},
}
PER_SOURCE = {"name": "per_source", "width": 8, "shared": [8, 6], "sources": ENCODERS}


def mixed(shop: Path, encoder: dict[str, Any], **sections: Any) -> Recipe:
    data = {"name": "joint", "batch_size": 16, "sources": {"churn": CUSTOMERS, "pic": PICTURES}}
    values = {"data": data, "model": {"encoder": encoder}, "train": {"epochs": 2}} | sections
    values["data"] = data | sections.get("data", {})
    return recipes.from_values(values, "mixed.yaml", folder=shop)


@pytest.mark.parametrize(
    ("loss", "gradient"),
    [
        ("ew", "sum"),
        ("uw", "sum"),
        ("igb_v1", "sum"),
        ("igb_v2", "sum"),
        ("hydalearn", "sum"),
        ("ew", "emtl"),
        ("ew", "nash_mtl"),
        ("igb_v1", "nash_mtl"),
    ],
)
def test_a_table_and_pictures_train_together(shop: Path, loss: str, gradient: str, tmp_path: Path) -> None:
    events, training = fit(mixed(shop, PER_SOURCE, **toy.weighting(loss, gradient)), tmp_path / "run")
    assert isinstance(events[-1], Finished)
    assert list(events[-1].result["tasks"]) == ["churn", "pic"]
    assert all(p.isfinite().all() for p in training.model.parameters())


def test_what_a_source_says_of_its_keys_is_said_of_where_they_stand(shop: Path, tmp_path: Path) -> None:
    for name in ("customers.csv", "labels.csv"):
        (tmp_path / name).write_text((shop / name).read_text())
    (tmp_path / "pictures").symlink_to(shop / "pictures")
    with (tmp_path / "customers.csv").open("a") as table:
        table.write("1,a,7\n1,a,maybe\n")
    with pytest.raises(MtlError, match=r"leave such rows out with data\.sources\.churn\.on_error: skip"):
        prepare(mixed(tmp_path, PER_SOURCE), CPU)
    sources = {"churn": CUSTOMERS | {"on_error": "skip"}, "pic": PICTURES}
    (tmp_path / "labels.csv").write_text((shop / "labels.csv").read_text() + "gone.png,1\n")
    with pytest.raises(MtlError, match=r"gone\.png; .*data\.sources\.pic\.on_error: skip"):
        prepare(mixed(tmp_path, PER_SOURCE, data={"sources": sources}), CPU)
    sources["pic"] = PICTURES | {"on_error": "skip"}
    notes = prepare(mixed(tmp_path, PER_SOURCE, data={"sources": sources}), CPU).data.notes
    assert any(n.startswith("churn: 2 bad rows were left out (data.sources.churn.on_error: skip)") for n in notes)
    assert any("left out (data.sources.pic.on_error: skip)" in note for note in notes)


def test_a_table_and_pictures_learn(shop: Path, tmp_path: Path) -> None:
    events, _ = fit(mixed(shop, PER_SOURCE, train={"epochs": 40}, optimizer={"lr": 0.01}), tmp_path / "run")
    assert isinstance(events[-1], Finished)
    found = {task: scores["metrics"]["auroc"]["value"] for task, scores in events[-1].result["tasks"].items()}
    assert min(found.values()) > 0.9


@pytest.mark.parametrize("trunk", mtlcli.trunks.names())
def test_what_a_source_has_to_itself_belongs_to_its_task(shop: Path, trunk: str) -> None:
    made = mixed(shop, PER_SOURCE, model={"encoder": PER_SOURCE, "trunk": {"name": trunk}})
    prepared = prepare(made, CPU)
    model = prepared.model
    batch = next(prepared.data.splits["train"].loader(16, 0).epoch(0))
    everything = list(model.parameters())
    reached = {}
    for part in batch.parts:
        predictions, _ = model(part.inputs, tuple(part.targets))
        ((task, prediction),) = predictions.items()
        found = torch.autograd.grad(prediction.sum(), everything, allow_unused=True)
        reached[task] = {id(p) for p, g in zip(everything, found, strict=True) if g is not None}
    own = {task: {id(p) for p in parameters} for task, parameters in model.task_parameters().items()}
    shared = {id(p) for p in model.shared_parameters()}
    assert own["churn"] == reached["churn"] - reached["pic"]
    assert own["pic"] == reached["pic"] - reached["churn"]
    assert shared == reached["churn"] & reached["pic"]
    assert shared
    assert {id(p) for p in model.trunk.last_shared_parameters()} <= shared


def test_one_task_alone_has_no_encoder_of_another_source(shop: Path, tmp_path: Path) -> None:
    made = mixed(shop, PER_SOURCE, data={"only": ["pic"]})
    model = prepare(made, CPU).model
    assert not any("churn" in name for name, _ in model.named_parameters())
    events, _ = fit(made, tmp_path / "run")
    assert isinstance(events[-1], Finished)


def test_a_table_and_pictures_are_repeated_from_their_run(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paths of weights are taken from the recipe's folder, and every option is written down."""
    monkeypatch.chdir(tmp_path)
    run, result = train(mixed(shop, PER_SOURCE), "mixed", device="cpu")
    _, again = train(recipes.load(run.recipe_file), "again", device="cpu")
    assert again["tasks"] == result["tasks"]
    written = recipes.load(run.recipe_file).as_dict()["model"]["encoder"]["sources"]
    assert written["pic"]["norm"] == "batch"
    weights = {"churn": ENCODERS["churn"], "pic": {"name": "resnet18", "weights": "none.pth"}}
    with pytest.raises(MtlError, match=rf"model\.encoder\.sources\.pic\.weights: no such file: {shop}/none\.pth"):
        prepare(mixed(shop, PER_SOURCE | {"sources": weights}), CPU)


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (
            {"name": "mlp"},
            r"encoder\.name: 'mlp' reads TableFeatures, .*'churn' gives TableFeatures, 'pic' gives ImageFeatures; "
            r".*\{name: per_source, sources: \{churn: \{name: mlp\}, pic: \{name: cnn\}\}\}",
        ),
        (
            {"name": "cnn"},
            r"model\.encoder\.name: 'cnn' reads ImageFeatures, .*'churn' gives .*'pic' gives .*per_source",
        ),
        (PER_SOURCE | {"sources": {}}, r"model\.encoder\.sources: should name .* every source; 'churn' has none"),
        (
            PER_SOURCE | {"sources": ENCODERS | {"pics": {"name": "cnn"}}},
            r"model\.encoder\.sources\.pics: no source 'pics'; did you mean 'pic'\?",
        ),
        (
            PER_SOURCE | {"sources": ENCODERS | {"pic": {"name": "mlp"}}},
            r"model\.encoder\.sources\.pic\.name: 'mlp' reads TableFeatures, .*ImageFeatures; .*cnn",
        ),
        (
            PER_SOURCE | {"sources": ENCODERS | {"pic": {"name": "cnn", "channels": [4] * 5}}},
            r"model\.encoder\.sources\.pic\.channels: 5 blocks halve",
        ),
        (
            PER_SOURCE | {"sources": ENCODERS | {"pic": {"name": "cnm"}}},
            r"model\.encoder\.sources: should name encoders; pic: no encoder 'cnm'; did you mean 'cnn'\?",
        ),
        (
            PER_SOURCE | {"sources": ENCODERS | {"pic": {"name": "cnn", "hiden": 3}}},
            r"model\.encoder\.sources: should hold what each encoder takes; pic\.hiden: unknown key; did you mean",
        ),
        (PER_SOURCE | {"shared": []}, r"model\.encoder\.shared: should be a list \(at least 1"),
    ],
)
def test_an_encoder_that_does_not_fit_the_sources_is_refused(shop: Path, encoder: dict[str, Any], message: str) -> None:
    with pytest.raises(MtlError, match=message):
        prepare(mixed(shop, encoder), CPU)
