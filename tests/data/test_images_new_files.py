"""The dataset `images`: a run reads new pictures, from a table that names them or from a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from PIL import Image

from mtlcli import recipe as recipes
from mtlcli.data.images import Images
from mtlcli.engine.inspect import evaluate_file, evaluate_run
from mtlcli.engine.predict import predict_file
from mtlcli.engine.train import train
from mtlcli.errors import MtlError
from mtlcli.options import check
from mtlcli.runs import Run

COUNT = 24
OPTIONS: dict[str, Any] = {
    "tasks": {"kind": {"kind": "multiclass"}, "bright": {"kind": "binary"}, "level": {"kind": "regression"}},
    "size": [8, 10],
    "split": {"column": "part"},
    "workers": 0,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Picture n is grey, of brightness 10 n."""
    (tmp_path / "pictures" / "sub").mkdir(parents=True)
    names = [f"sub/{n:02d}.png" for n in range(COUNT)]
    for n, name in enumerate(names):
        Image.new("L", (20, 12), 10 * n).save(tmp_path / "pictures" / name)
    labels = {
        "file": names,
        "kind": [("cat", "dog", "owl")[n % 3] for n in range(COUNT)],
        "bright": [n >= COUNT // 2 for n in range(COUNT)],
        "level": [float(n) for n in range(COUNT)],
        "part": [("train", "train", "val", "test")[n % 4] for n in range(COUNT)],
    }
    pl.DataFrame(labels).write_csv(tmp_path / "labels.csv")
    return tmp_path


def dataset(folder: Path, **options: Any) -> Images:
    given = {"path": str(folder / "pictures"), "labels": str(folder / "labels.csv"), **OPTIONS, **options}
    built, problems = check(Images.Options, given)
    assert not problems
    return Images(built)


@pytest.fixture
def fitted(folder: Path) -> dict[str, Any]:
    """What a run keeps."""
    return json.loads(json.dumps(dataset(folder).load().fitted))


def test_tasks_and_features_come_back_without_the_data(folder: Path, fitted: dict[str, Any]) -> None:
    data = dataset(folder).load()
    (folder / "labels.csv").unlink()
    restored = dataset(folder).restore(fitted)
    assert (restored.tasks, restored.features, restored.fingerprint) == (data.tasks, data.features, data.fingerprint)


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_a_table_names_new_pictures(folder: Path, fitted: dict[str, Any], cache: str) -> None:
    new = folder / "new.csv"
    pl.DataFrame({"level": [3.0, None], "file": ["sub/17.png", "sub/03.png"], "more": [1, 2]}).write_csv(new)
    read = dataset(folder, cache=cache).read(new, fitted)
    (batch,) = read.split.batches(10)
    assert batch.inputs["image"].shape == (2, 3, 8, 10)
    assert batch.inputs["image"][:, 0, 0, 0].tolist() == [170, 30]
    assert read.carried == {"file": ["sub/17.png", "sub/03.png"]}
    assert (read.labels, list(read.rows), read.left_out) == (("level",), [1, 2], 0)
    level = next(label for label in fitted["labels"] if label["name"] == "level")
    assert batch.targets["level"][0].item() == pytest.approx((3 - level["mean"]) / level["scale"])
    assert batch.targets["level"][1].isnan()
    assert batch.targets["kind"].tolist() == batch.targets["bright"].tolist() == [-1, -1]
    # Where nobody asks for labels, what stands in their place is not a mistake.
    pl.DataFrame({"level": ["?"], "file": ["sub/17.png"]}).write_csv(new)
    assert dataset(folder).read(new, fitted, labels=False).labels == ()
    with pytest.raises(MtlError, match=r"new\.csv, row 1 .*should hold a finite number"):
        dataset(folder).read(new, fitted)


def test_a_folder_is_read_as_a_whole(folder: Path, fitted: dict[str, Any]) -> None:
    other = folder / "other"
    (other / "deep").mkdir(parents=True)
    for name, grey in (("b.JPG", 40), ("deep/a.png", 80), ("a.png", 120)):
        Image.new("RGB", (30, 30), (grey,) * 3).save(other / name)
    (other / "notes.txt").write_text("no picture")
    (other / "._a.png").write_bytes(b"\0\5\x16\7")
    (folder / "pictures").rename(folder / "gone")
    read = dataset(folder).read(other, fitted, labels=False)
    assert read.carried == {"file": ["a.png", "b.JPG", "deep/a.png"]}
    (batch,) = read.split.batches(10)
    assert batch.inputs["image"][:, 0, 0, 0].tolist() == [120, 40, 80]
    assert (batch.targets["kind"] == -1).all()


def test_what_cannot_be_used_is_told(folder: Path, fitted: dict[str, Any]) -> None:
    other, new = folder / "other", folder / "new.csv"
    other.mkdir()
    with pytest.raises(MtlError, match="other: has no picture that can be used"):
        dataset(folder).read(other, fitted)
    (other / "bad.png").write_bytes(b"\x89PNG")
    Image.new("L", (4, 4), 70).save(other / "good.png")
    with pytest.raises(MtlError, match=r"other, file 1: .*bad\.png: cannot be read: .*--on-error skip"):
        dataset(folder).read(other, fitted)
    read = dataset(folder).read(other, fitted, on_error="skip")
    assert (read.carried, list(read.rows), read.left_out) == ({"file": ["good.png"]}, [2], 1)
    assert "1 row without a usable picture was left out (--on-error skip)" in read.notes[0]
    (other / "out.png").symlink_to(folder / "pictures" / "sub" / "01.png")
    with pytest.raises(MtlError, match=r"out\.png is a link to .*outside of .*other"):
        dataset(folder).read(other, fitted, on_error="skip")
    for name, message in (
        ("../labels.csv", "should name a file below"),
        ("/etc/passwd", "should name a file below"),
        ("sub/99.png", r"new\.csv, row 1 \(line 2\): there is no file .*99\.png"),
    ):
        pl.DataFrame({"file": [name]}).write_csv(new)
        with pytest.raises(MtlError, match=message):
            dataset(folder).read(new, fitted)
    pl.DataFrame({"files": ["sub/01.png"]}).write_csv(new)
    with pytest.raises(MtlError, match=r"lacks the column file, .*did you mean 'files'"):
        dataset(folder).read(new, fitted)
    pl.DataFrame({"file": ["sub/01.png"]}).write_csv(new)
    (folder / "pictures").rename(folder / "gone")
    with pytest.raises(MtlError, match=r"names pictures below .*pictures \(data\.path\), which is no longer there"):
        dataset(folder).read(new, fitted)


def test_a_run_scores_and_predicts_new_pictures(folder: Path) -> None:
    """As the split that the same pictures made in training."""
    data = {"name": "images", "path": str(folder / "pictures"), "labels": str(folder / "labels.csv"), **OPTIONS}
    encoder = {"name": "cnn", "channels": [4, 8], "hidden": 8, "grid": 1}
    values = {"data": {**data, "batch_size": 6}, "model": {"encoder": encoder}, "train": {"epochs": 2}}
    train(recipes.from_values(values, "recipe"), "recipe", out=folder / "run", device="cpu")
    run, of_test = Run.open(folder / "run"), folder / "test.csv"
    pl.read_csv(folder / "labels.csv").filter(pl.col("part") == "test").write_csv(of_test)
    found = evaluate_file(run, of_test, "best", "cpu")
    assert found["tasks"] == evaluate_run(run, "test", "best", "cpu")["tasks"]
    told = predict_file(run, of_test, folder / "out.csv", "best", "cpu")
    frame = pl.read_csv(folder / "out.csv")
    assert frame["file"].to_list() == pl.read_csv(of_test)["file"].to_list()
    assert told["rows"] == COUNT // 4
    assert frame["bright.class"].dtype == pl.Boolean
    assert {"kind.class", "kind.probability.owl", "bright.probability", "level.prediction"} <= set(frame.columns)
    error = (frame["level.prediction"] - pl.read_csv(of_test)["level"]).abs().mean()
    assert error == pytest.approx(found["tasks"]["level"]["metrics"]["mae"]["value"], rel=1e-4)
    assert torch.isfinite(torch.tensor(frame["kind.probability.owl"].to_list())).all()
