"""`mtl predict` and `mtl eval --data`: new files, with what the run keeps and nothing else."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from harness import Done, Mtl

from mtlcli.cli import run as run_mtl

RECIPE = """\
data:
  name: table
  path: train.csv
  tasks:
    churn: {kind: binary}
    segment: {kind: multiclass}
    spend: {kind: regression, transform: log1p, unit: dollars}
  split: {by: user, val: 0.2, test_path: test.csv}
  batch_size: 64
model: {encoder: {name: mlp, widths: [16]}}
train: {epochs: 2}
"""


def table(rows: int, seed: int) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(rows)
    return pl.DataFrame(
        {
            "user": rng.integers(0, 10**6, rows),
            "x": x,
            "city": rng.choice(["Bern", "Lima"], rows),
            "churn": np.where(x + rng.standard_normal(rows) > 0, "yes", "no"),
            "segment": np.array(["A", "B", "C"])[np.digitize(x + rng.standard_normal(rows), [-0.5, 0.5])],
            "spend": np.exp(x + 2).round(2),
        }
    ).with_columns(x=pl.when(pl.Series(rng.random(rows) < 0.1)).then(None).otherwise(pl.col("x")))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose training file is gone."""
    folder = tmp_path_factory.mktemp("trained")
    table(400, 0).write_csv(folder / "train.csv")
    table(100, 1).write_csv(folder / "test.csv")
    (folder / "recipe.yaml").write_text(RECIPE)
    assert run_mtl(["train", str(folder / "recipe.yaml"), "--out", str(folder / "run"), "--quiet"]) == 0
    (folder / "train.csv").unlink()
    return folder


@pytest.fixture
def at(trained: Path, tmp_path: Path) -> Path:
    """The working folder, with the run and a new file in it."""
    shutil.copytree(trained / "run", "run")
    table(50, 2).write_csv("new.csv")
    return tmp_path


READ: dict[str, Callable[[Path], pl.DataFrame]] = {
    "csv": pl.read_csv,
    "parquet": pl.read_parquet,
    "arrow": pl.read_ipc,
    "jsonl": pl.read_ndjson,
}
COLUMNS = [
    "user",
    "churn.probability",
    "churn.class",
    "segment.class",
    *(f"segment.probability.{name}" for name in "ABC"),
    "spend.prediction",
]


@pytest.mark.usefixtures("at")
def test_predictions_in_every_format(mtl: Mtl) -> None:
    found = {}
    for suffix, read in READ.items():
        done = mtl("predict", "run", "new.csv", "--out", f"pred.{suffix}")
        assert done.code == 0, done.err
        assert "50 rows of new.csv" in done.out
        found[suffix] = read(Path(f"pred.{suffix}"))
        assert found[suffix].columns == COLUMNS
        assert found[suffix]["user"].cast(pl.String).to_list() == table(50, 2)["user"].cast(pl.String).to_list()
    for frame in found.values():
        assert frame["spend.prediction"].to_list() == pytest.approx(found["parquet"]["spend.prediction"].to_list())
    frame = found["parquet"]
    assert ((frame["churn.probability"] > 0.5) == (frame["churn.class"] == "yes")).all()
    shares = frame.select(pl.sum_horizontal("segment.probability.A", "segment.probability.B", "segment.probability.C"))
    assert shares.to_series().to_list() == pytest.approx([1.0] * 50)
    likeliest = np.array(list("ABC"))[frame.select(pl.col("^segment.probability.*$")).to_numpy().argmax(1)]
    assert frame["segment.class"].to_list() == likeliest.tolist()


@pytest.mark.usefixtures("at")
def test_values_are_in_the_unit_of_the_labels(mtl: Mtl) -> None:
    """A model whose last layer is zero but for its bias predicts expm1(bias * scale + mean), as the labels were."""
    import torch

    state = torch.load("run/best.pt", weights_only=True)
    for name, tensor in state["model"].items():
        if name.startswith("heads."):
            tensor.zero_()
            if name.startswith("heads.spend") and name.endswith("bias"):
                tensor.fill_(0.5)
    torch.save(state, "run/best.pt")
    assert mtl("predict", "run", "new.csv", "--out", "p.csv").code == 0
    fitted = json.loads(Path("run/preprocessing.json").read_text())
    label = next(label for label in fitted["labels"] if label["name"] == "spend")
    frame = pl.read_csv("p.csv")
    assert frame["spend.prediction"].to_list() == pytest.approx([math.expm1(0.5 * label["scale"] + label["mean"])] * 50)
    assert frame["churn.probability"].to_list() == [0.5] * 50
    assert frame["segment.probability.B"].to_list() == pytest.approx([1 / 3] * 50)


@pytest.mark.usefixtures("at")
def test_new_columns_are_passed_over_and_labels_are_not_needed(mtl: Mtl) -> None:
    table(50, 2).drop("churn", "segment", "spend").with_columns(more=pl.lit(1)).write_parquet("new.parquet")
    assert mtl("predict", "run", "new.csv", "--out", "a.csv").code == 0
    done = mtl("predict", "run", "new.parquet", "--out", "b.csv", "--json")
    assert done.code == 0
    values = json.loads(done.out)
    assert values["notes"] == ["columns that training did not have are passed over: more"]
    assert (values["rows"], values["left_out"], values["columns"]) == (50, 0, COLUMNS)
    assert values["tasks"]["spend"] == {"kind": "regression", "unit": "dollars", "columns": ["spend.prediction"]}
    assert pl.read_csv("a.csv").equals(pl.read_csv("b.csv"))
    table(50, 2).with_columns(churn=pl.lit("?"), segment=pl.lit("?"), spend=pl.lit("?")).write_csv("open.csv")
    assert mtl("predict", "run", "open.csv", "--out", "c.csv").code == 0
    assert pl.read_csv("a.csv").equals(pl.read_csv("c.csv"))
    done = mtl("eval", "run", "--data", "open.csv")
    assert done.code == 2
    assert (
        "row 1 (line 2): column 'churn', the label of task 'churn', should hold one of its classes no, yes" in done.err
    )


@pytest.mark.usefixtures("at")
def test_checkpoints_differ(mtl: Mtl) -> None:
    import torch

    state = torch.load("run/last.pt", weights_only=True)
    state["model"]["heads.spend.0.bias" if "heads.spend.0.bias" in state["model"] else "heads.spend.bias"] += 1
    torch.save(state, "run/last.pt")
    steps = {}
    for name in ("best", "last"):
        done = mtl(
            "predict", "run", "new.csv", "--out", f"{name}.csv", "--checkpoint", name, "--json", "--device", "cpu"
        )
        steps[name] = json.loads(done.out)["checkpoint"]
    assert steps == {"best": "best", "last": "last"}
    assert not pl.read_csv("best.csv").equals(pl.read_csv("last.csv"))


@pytest.mark.usefixtures("at")
def test_the_same_rows_score_the_same_by_either_way(mtl: Mtl, trained: Path) -> None:
    result = json.loads(Path("run/result.json").read_text())
    done = mtl("eval", "run", "--data", trained / "test.csv", "--json")
    assert done.code == 0, done.err
    values = json.loads(done.out)
    for task, scores in result["tasks"].items():
        assert values["tasks"][task]["loss"] == pytest.approx(scores["loss"], rel=1e-5)
        for name, metric in scores["metrics"].items():
            assert values["tasks"][task]["metrics"][name]["value"] == pytest.approx(metric["value"], rel=1e-5)
    assert (values["rows"], values["fingerprint"]) == (100, result["fingerprint"])
    assert "run on" not in mtl("eval", "run", "--data", trained / "test.csv").err


@pytest.mark.usefixtures("at")
def test_scores_need_labels(mtl: Mtl) -> None:
    table(50, 2).drop("churn").write_csv("some.csv")
    done = mtl("eval", "run", "--data", "some.csv", "--json")
    values = json.loads(done.out)
    assert "task 'churn': the file has no column with its labels" in values["notes"]
    assert values["tasks"]["churn"]["metrics"]["auroc"]["undefined"] == "no labelled rows"
    table(50, 2).drop("churn", "segment", "spend").write_csv("none.csv")
    done = mtl("eval", "run", "--data", "none.csv")
    assert done.code == 2
    assert "none.csv: has no column with labels" in done.err
    done = mtl("eval", "run", "--data", "new.csv", "--split", "test")
    assert done.code == 2
    assert "give one of them" in done.err


def wrong(change: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    change(table(50, 2)).write_parquet("wrong.parquet")


@pytest.mark.parametrize(
    ("arguments", "prepare", "message"),
    [
        (["new.csv", "--out", "new.csv"], None, "--out new.csv: is the file that is read; name another one"),
        (["new.csv", "--out", "p.xlsx"], None, "--out p.xlsx: should end in one of .parquet, .csv, .arrow, .jsonl"),
        (["new.csv", "--out", "run"], None, "--out run: should end in one of"),
        (["nwe.csv", "--out", "p.csv"], None, "nwe.csv: no such file; did you mean 'new.csv'?"),
        (["wrong.parquet", "--out", "p.csv"], lambda f: f.drop("x", "city"), "lacks the columns x, city"),
        (["wrong.parquet", "--out", "p.csv"], lambda f: f.with_columns(x=pl.lit("a")), "row 1: column 'x' should hold"),
        (["wrong.parquet", "--out", "p.csv"], lambda f: f.with_columns(x=pl.lit([1])), "its type is List"),
        (["wrong.parquet", "--out", "p.csv"], lambda f: f.head(0), "has no rows"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.usefixtures("at")
def test_mistakes(mtl: Mtl, arguments: list[str], prepare: Any, message: str) -> None:
    before = Path("new.csv").read_bytes()
    if prepare is not None:
        wrong(prepare)
    done = mtl("predict", "run", *arguments)
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err
    assert Path("new.csv").read_bytes() == before
    assert not Path("p.csv").exists()


@pytest.mark.usefixtures("at")
def test_an_input_is_not_written_over_under_another_name(mtl: Mtl) -> None:
    Path("same.csv").symlink_to("new.csv")
    assert "is the file that is read" in mtl("predict", "run", "new.csv", "--out", "same.csv").err


@pytest.mark.usefixtures("at")
def test_bad_rows_that_are_left_out_are_told_apart(mtl: Mtl) -> None:
    recipe = Path("run/recipe.yaml")
    recipe.write_text(recipe.read_text().replace("on_error: stop", "on_error: skip"))
    lines = Path("new.csv").read_text().splitlines()
    lines[7] = "1,abc,Bern,yes,A,3"
    lines[9] = "1,2"
    Path("new.csv").write_text("\n".join(lines))
    values = json.loads(mtl("predict", "run", "new.csv", "--out", "p.csv", "--json").out)
    assert (values["rows"], values["left_out"]) == (48, 2)
    assert values["notes"][0].startswith("2 bad rows were left out")
    assert pl.read_csv("p.csv")["row"].to_list() == [row for row in range(1, 51) if row not in (7, 9)]


@pytest.mark.usefixtures("at")
def test_a_key_called_row_stays_beside_the_numbers_of_rows(mtl: Mtl) -> None:
    fitted = Path("run/preprocessing.json")
    fitted.write_text(json.dumps({**json.loads(fitted.read_text()), "key": "row"}))
    frame = pl.read_csv("new.csv").with_columns(row=pl.int_range(100, 150))
    lines = frame.write_csv().splitlines()
    Path("new.csv").write_text("\n".join([lines[0], "bad", *lines[2:]]))
    assert mtl("predict", "run", "new.csv", "--out", "p.csv", "--on-error", "skip").code == 0
    found = pl.read_csv("p.csv")
    assert found["row"].to_list() == list(range(101, 150))
    assert found["row number"].to_list() == list(range(2, 51))


@pytest.mark.usefixtures("at")
def test_bad_rows_can_be_left_out_of_a_finished_run(mtl: Mtl) -> None:
    lines = Path("new.csv").read_text().splitlines()
    lines[4] = "1,abc,Bern,yes,A,3"
    lines[11] = "1,0.5,Rome,maybe,A,3"
    Path("new.csv").write_text("\n".join(lines))
    for command in (["predict", "run", "new.csv", "--out", "p.csv"], ["eval", "run", "--data", "new.csv"]):
        done = mtl(*command)
        assert done.code == 2
        assert "row 4 (line 5)" in done.err
        assert "correct it, or leave such rows out with --on-error skip" in done.err
        assert "data." not in done.err
    done = mtl("predict", "run", "new.csv", "--out", "p.csv", "--on-error", "skip")
    assert done.code == 0, done.err
    said = " ".join(done.out.split())  # lines are folded
    assert "1 bad row was left out (--on-error skip)" in said
    assert "column 'city': 1 of 49 rows holds a value that training did not have (such as 'Rome')" in said
    assert pl.read_csv("p.csv")["row"].to_list() == [row for row in range(1, 51) if row != 4]
    done = mtl("eval", "run", "--data", "new.csv", "--on-error", "skip")
    assert "2 bad rows were left out" in " ".join(done.out.split())
    values = json.loads(mtl("eval", "run", "--data", "new.csv", "--on-error", "skip", "--json").out)
    assert (values["rows"], values["left_out"]) == (48, 2)
    assert "one with --data" in mtl("eval", "run", "--on-error", "skip").err


CLASSES: dict[str, tuple[str, list[Any], str]] = {
    "codes": ("multiclass", ["01", "1", "0010"], "parquet"),
    "codes of a csv": ("multiclass", ["03", "04", "11"], "csv"),
    "numbers": ("multiclass", [3, -1, 2**60 + 1], "parquet"),
    "fractions": ("multiclass", [0.5, 1.0, 2.5], "parquet"),
    "truth": ("binary", [True, False], "parquet"),
    "truth of several": ("multiclass", [True, False], "parquet"),
    "words": ("binary", ["No", "Yes"], "parquet"),
    "zero and one": ("binary", [0, 1], "csv"),
}


@pytest.mark.parametrize("case", CLASSES)
def test_classes_come_back_as_they_stood(mtl: Mtl, case: str) -> None:
    """So that predictions can be set beside labels."""
    kind, values, suffix = CLASSES[case]
    rng = np.random.default_rng(0)
    place = rng.integers(0, len(values), 240)
    frame = pl.DataFrame({"x": place + 0.01 * rng.standard_normal(240), "z": pl.Series([values[i] for i in place])})
    frame.write_csv("t.csv") if suffix == "csv" else frame.write_parquet("t.parquet")
    Path("r.yaml").write_text(
        f"data: {{name: table, path: t.{suffix}, tasks: {{z: {{kind: {kind}}}}}, batch_size: 16}}\n"
        "model: {encoder: {name: mlp, widths: [16]}}\ntrain: {epochs: 1}\n"
    )
    assert mtl("train", "r.yaml", "--out", "run", "--quiet").code == 0
    assert mtl("predict", "run", f"t.{suffix}", "--out", "p.parquet").code == 0
    found = pl.read_parquet("p.parquet")["z.class"]
    assert set(found.to_list()) <= set(values)
    assert {type(value) for value in found} == {type(values[0])}
    if suffix == "parquet":
        assert found.dtype == frame["z"].dtype


def test_runs_on_other_data_cannot_read_new_files(mtl: Mtl) -> None:
    assert mtl("train", "toy.yaml", "--out", "toy").code == 0
    assert not Path("toy/preprocessing.json").exists()
    done: Done = mtl("predict", "toy", "x.csv", "--out", "p.csv")
    assert done.code == 2
    assert done.err == "error: dataset 'toy' cannot read new files; these can: images, table\n"


@pytest.mark.usefixtures("at")
def test_a_single_task_is_predicted_alone(mtl: Mtl) -> None:
    table(300, 0).write_csv("train.csv")
    table(60, 1).write_csv("test.csv")
    Path("r.yaml").write_text(RECIPE)
    assert mtl("train", "r.yaml", "--set", "data.only=[spend]", "--out", "one", "--quiet").code == 0
    assert mtl("predict", "one", "new.csv", "--out", "p.csv").code == 0
    assert pl.read_csv("p.csv").columns == ["user", "spend.prediction"]
    done = mtl("train", "r.yaml", "--set", "data.only=[spnd]", "--out", "none")
    assert done.code == 2
    assert "data.only: no task 'spnd'; did you mean 'spend'?" in done.err


def test_what_is_suspicious_is_said_when_training_starts(mtl: Mtl) -> None:
    table(300, 0).with_columns(bill=pl.col("spend") * 1.19).write_csv("train.csv")
    table(60, 1).with_columns(bill=pl.col("spend") * 1.19).write_csv("test.csv")
    Path("r.yaml").write_text(RECIPE)
    done = mtl("train", "r.yaml", "--out", "run", "--set", "train.epochs=1")
    assert "warning: the column 'bill' gives task 'spend' away: their rank correlation is 1.0000" in done.out
    events = [json.loads(line) for line in Path("run/events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events[:2]] == ["Started", "Warned"]
    checked = json.loads(mtl("check", "r.yaml", "--json").out)
    assert any("'bill' gives task 'spend' away" in warning for warning in checked["warnings"])
    assert {"column": "city", "used_as": "categorical", "detail": "2 categories"} in checked["columns"]
    assert "used as" in mtl("check", "r.yaml").out


def test_a_run_finds_its_data_from_anywhere(mtl: Mtl, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("project").mkdir()
    table(300, 0).write_csv("project/train.csv")
    table(60, 1).write_csv("project/test.csv")
    Path("project/r.yaml").write_text(RECIPE)
    assert mtl("train", "project/r.yaml", "--out", "run", "--quiet").code == 0
    there = str(Path("run").resolve())
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert mtl("eval", there).code == 0
    assert mtl("train", f"{there}/recipe.yaml", "--out", "again", "--quiet").code == 0
    assert (
        json.loads(Path("again/result.json").read_text())["fingerprint"]
        == json.loads(Path(there, "result.json").read_text())["fingerprint"]
    )
