"""`mtl init`: a recipe that runs at once, for a table of one's own or for the packaged data."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from harness import Mtl

from mtlcli import yamlfile


@pytest.fixture(autouse=True)
def _own_table() -> None:
    rng = np.random.default_rng(0)
    n = 300
    x = rng.standard_normal(n)
    pl.DataFrame(
        {
            "order_id": [f"o{i}" for i in range(n)],
            "client_id": rng.integers(0, 60, n),
            "when": pl.Series(np.datetime64("2023-01-01") + rng.integers(0, 500, n)).cast(pl.Date),
            "city": rng.choice(["Bern", "Lima: south", "#3"], n),
            "x": x,
            "churn": (x + rng.standard_normal(n) > 1.6).astype(int),
            "type": rng.choice(["a", "b", "c"], n),
            "spend": np.exp(2 * x).round(2),
        }
    ).write_csv("my.csv")


TASKS = ("--task", "churn:binary", "--task", "spend:regression")


def test_the_four_commands(mtl: Mtl) -> None:
    done = mtl("init", "--from", "my.csv", *TASKS, "recipe.yaml")
    assert done.code == 0, done.err
    assert "next: mtl check recipe.yaml" in done.out
    assert mtl("check", "recipe.yaml").code == 0
    small = ("--set", "train.epochs=1")
    done = mtl("compare", "recipe.yaml", "--methods", "ew,uw", "--seeds", "0,1", "--out", "cmp", *small)
    assert done.code == 0, done.err
    report = json.loads(Path("cmp/report.json").read_text())
    assert {row["method"] for row in report["rows"]} == {"single_task", "ew", "uw"}
    pl.read_csv("my.csv").drop("churn", "spend").head(9).write_csv("new.csv")
    assert mtl("predict", "cmp/uw/seed-1", "new.csv", "--out", "pred.csv").code == 0
    columns = ["client_id", "churn.probability", "churn.class", "spend.prediction"]
    assert pl.read_csv("pred.csv").columns == columns
    assert len(pl.read_csv("pred.csv")) == 9


def test_what_it_proposes(mtl: Mtl) -> None:
    values = json.loads(mtl("init", "--from", "my.csv", *TASKS, "recipe.yaml", "--json").out)
    assert values["recipe"] == "recipe.yaml"
    assert values["tasks"]["spend"] == {"kind": "regression", "transform": "log1p"}
    text = Path("recipe.yaml").read_text()
    data = yamlfile.parse(text, "recipe.yaml").values["data"]
    assert data["path"] == "my.csv"
    assert data["drop"] == ["order_id"]
    assert data["split"] == {"val": 0.1, "test": 0.2, "by": "client_id", "seed": 0}
    assert data["tasks"]["churn"]["kind"] == "binary"
    for words in ("# ", "when ", "date ", "order_id", "dropped", "epochs", "widths"):
        assert words in text
    every = [line for line in text.splitlines() if line.strip() and not line.rstrip().endswith(":")]
    assert sum("#" in line for line in every) > 0.75 * len(every)
    assert max(map(len, text.splitlines())) <= 140


def test_a_split_column_and_a_name_that_torch_takes(mtl: Mtl) -> None:
    frame = pl.read_csv("my.csv").with_columns(fold=pl.Series(["train", "val", "test"] * 100))
    frame.write_parquet("my.parquet")
    assert mtl("init", "--from", "my.parquet", "--task", "type:multiclass", "r.yaml").code == 0
    data = yamlfile.parse(Path("r.yaml").read_text(), "").values["data"]
    assert data["tasks"] == {"type_label": {"kind": "multiclass", "column": "type"}}
    assert data["split"] == {"column": "fold"}
    assert json.loads(mtl("check", "r.yaml", "--json").out)["rows"] == {"train": 100, "val": 100, "test": 100}


def test_columns_that_decide_the_split_are_no_features(mtl: Mtl) -> None:
    assert mtl("init", "--from", "my.csv", *TASKS, "r.yaml").code == 0
    about = [line.split() for line in Path("r.yaml").read_text().splitlines() if line.startswith("  #   ")]
    kinds = {words[1]: words[2] for words in about if len(words) > 2}
    assert kinds["client_id"] == "key"
    assert (kinds["city"], kinds["x"], kinds["churn"]) == ("categorical", "numeric", "label")
    pl.read_csv("my.csv").with_columns(fold=pl.Series(["train", "val", "test"] * 100)).write_csv("my.csv")
    assert mtl("init", "--from", "my.csv", *TASKS, "r.yaml", "--force").code == 0
    (line,) = (line for line in Path("r.yaml").read_text().splitlines() if line.split()[:2] == ["#", "fold"])
    assert line.split()[2:] == ["split", "says", "train,", "val", "or", "test"]


@pytest.mark.parametrize("words", [["dev", "test"], ["train", "val"], ["train", None, "test"]], ids=str)
def test_a_column_that_leaves_train_or_test_empty_is_no_split(mtl: Mtl, words: list[str]) -> None:
    frame = pl.read_csv("my.csv")
    frame.with_columns(stage=pl.Series((words * 150)[: len(frame)]), lists=pl.lit([1])).write_parquet("my.parquet")
    assert mtl("init", "--from", "my.parquet", *TASKS, "r.yaml").code == 0
    assert yamlfile.parse(Path("r.yaml").read_text(), "").values["data"]["split"]["by"] == "client_id"
    assert mtl("check", "r.yaml").code == 0


def test_names_and_values_with_line_breaks_stay_within_comments(mtl: Mtl) -> None:
    frame = pl.read_csv("my.csv").rename({"x": "x\nname: y", "churn": "churn\n?"})
    frame.with_columns(same=pl.lit("a\nb: \x07")).write_parquet("my\n.parquet")
    assert mtl("init", "--from", "my\n.parquet", "--task", "churn\n?:binary", "r.yaml").code == 0
    assert yamlfile.parse(Path("r.yaml").read_text(), "").values["data"]["tasks"] == {"churn\n?": {"kind": "binary"}}
    assert mtl("check", "r.yaml").code == 0


def test_a_decimal_comma_is_seen(mtl: Mtl) -> None:
    text = pl.read_csv("my.csv").select("x", "churn", "spend").write_csv(separator=";").replace(".", ",")
    Path("euro.csv").write_text(text)
    assert mtl("init", "--from", "euro.csv", *TASKS, "r.yaml").code == 0
    (line,) = (line for line in Path("r.yaml").read_text().splitlines() if line.split()[:2] == ["#", "x"])
    assert line.split()[2] == "numeric"
    assert line.endswith("; decimal commas")
    assert {"column": "spend", "used_as": "label", "detail": "of spend; decimal commas"} in json.loads(
        mtl("check", "r.yaml", "--json").out
    )["columns"]


def test_paths_are_taken_from_the_recipe(mtl: Mtl) -> None:
    assert mtl("init", "--from", "my.csv", *TASKS, "recipes/mine/recipe.yaml").code == 0
    assert "path: ../../my.csv" in Path("recipes/mine/recipe.yaml").read_text()
    assert mtl("check", "recipes/mine/recipe.yaml").code == 0


def test_a_recipe_that_cannot_be_trained_is_written_and_told_at_once(mtl: Mtl) -> None:
    Path("alone.csv").write_text("y\n" + "0\n1\n" * 40)
    done = mtl("init", "--from", "alone.csv", "--task", "y:binary", "my own.yaml")
    assert done.code == 0
    why, after = done.out.splitlines()[1:]
    assert why.startswith("it cannot be trained yet: my own.yaml, line ")
    assert why.endswith("no column is left to predict from")
    assert after == "after that: mtl check 'my own.yaml'"
    assert Path("my own.yaml").exists()
    rows = "".join(f"{'-' if i % 10 == 3 else i},{i * 7 % 13},{i % 2}\n" for i in range(200))
    Path("dash.csv").write_text("x,z,y\n" + rows)
    values = json.loads(mtl("init", "--from", "dash.csv", "--task", "y:binary", "r.yaml", "--json").out)
    remedy = values["problem"].partition("data.missing: ")[2].partition(")")[0]
    assert mtl("check", "r.yaml").code == 2
    assert mtl("check", "r.yaml", "--set", f"data.missing={remedy}").code == 0


def test_the_packaged_data(mtl: Mtl) -> None:
    assert mtl("init", "recipe.yaml").code == 0
    about = json.loads(mtl("check", "recipe.yaml", "--set", "data.rows=2000", "--json").out)
    assert about["rows"]["train"] == 2000
    assert Path("recipe.yaml").read_text().count("#") > 15


def test_nothing_is_written_over(mtl: Mtl) -> None:
    Path("recipe.yaml").write_text("mine")
    done = mtl("init", "recipe.yaml")
    assert done.code == 2
    assert "recipe.yaml: is there already; --force writes over it" in done.err
    assert Path("recipe.yaml").read_text() == "mine"
    assert mtl("init", "recipe.yaml", "--force").code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "my.csv"], "name what to predict with --task NAME:KIND"),
        (["--from", "my.csv", "--task", "chrun:binary"], "my.csv has no column 'chrun'; did you mean 'churn'?"),
        (["--from", "my.csv", "--task", "churn:binry"], "with binary, multiclass, regression for KIND; did you mean"),
        (["--from", "my.csv", "--task", "churn"], "should be NAME:KIND"),
        (["--from", "my.csv", "--task", "type:binary"], "a binary task has two values; the column 'type' holds 3"),
        (["--from", "my.csv", "--task", "city:regression"], "a regression needs numbers"),
        (["--from", "my.csv", "--task", "order_id:multiclass"], "different values in 300 rows, too many to be classes"),
        (
            ["--from", "constant.csv", "--task", "y:binary"],
            "every label in the column 'y' is the same",
        ),
        (["--from", "my.csv", *TASKS, *TASKS], "'churn' is given twice"),
        (["--from", "mine.csv", *TASKS], "mine.csv: no such file; did you mean 'my.csv'?"),
        ([*TASKS], "--task names a column of the table given with --from"),
        (["--from", "my.csv", *TASKS, "--force", "/proc/no.yaml"], "error: /proc/no.yaml: cannot be written: "),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes(mtl: Mtl, arguments: list[str], message: str) -> None:
    Path("constant.csv").write_text("x,y\n" + "1,1\n2,1\n" * 20)
    done = mtl("init", *arguments, *(() if arguments[-1].endswith("yaml") else ("recipe.yaml",)))
    assert done.code == 2
    assert message in done.err
    assert done.err.count("\n") == 1
    assert not Path("recipe.yaml").exists()


def test_at_a_terminal_it_asks() -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "mtlcli", "init", "--from", "my.csv", "recipe.yaml"]
    process = subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    os.close(theirs)
    os.write(ours, b"chrun:binary\nchurn:binary\ny\nspend:regression\nn\n")
    out, _ = process.communicate(timeout=120)
    os.close(ours)
    assert process.returncode == 0, out.decode()
    assert "did you mean 'churn'" in out.decode()
    assert list(yamlfile.parse(Path("recipe.yaml").read_text(), "").values["data"]["tasks"]) == ["churn", "spend"]
