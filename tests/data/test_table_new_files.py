"""The dataset `table`: what is kept of the training files is enough to read new ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from tables import Y, csv, customers, dataset, lines

from mtlcli.errors import MtlError

ALL = ("train", "val", "test")


def test_what_is_stored_is_enough_for_new_rows(tmp_path: Path) -> None:
    frame = customers()
    frame.write_parquet(tmp_path / "t.parquet")
    told = dataset(tmp_path / "t.parquet", split={"by": "user"})
    data = told.load()
    stored = json.loads(json.dumps(data.fitted))
    (tmp_path / "t.parquet").unlink()
    restored = told.restore(stored)
    assert (restored.tasks, restored.features, restored.fingerprint) == (data.tasks, data.features, data.fingerprint)
    frame.with_columns(extra=pl.lit(1)).write_csv(tmp_path / "new.csv")
    rows = told.read(tmp_path / "new.csv", stored)
    assert rows.labels == ("churn", "segment", "spend")
    assert rows.carried == {"user": [str(user) for user in frame["user"]]}
    assert rows.notes == ("columns that training did not have are passed over: extra",)
    assert list(rows.rows) == list(range(1, 401))
    everything = {
        name: torch.cat([data.splits[split].inputs[name] for split in ALL]) for name in ("numeric", "categorical")
    }
    for name, tensor in everything.items():
        assert torch.equal(rows.split.inputs[name].sort(0).values, tensor.sort(0).values)
    frame.drop("churn", "spend").write_parquet(tmp_path / "unlabelled.parquet")
    rows = told.read(tmp_path / "unlabelled.parquet", stored)
    assert rows.labels == ("segment",)
    assert (rows.split.targets["churn"] == -1).all()
    assert rows.split.targets["spend"].isnan().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop("age", "city"), r"new\.parquet: lacks the columns age, city, which the training data has"),
        (lambda f: f.rename({"age": "agge"}), r"lacks the column age.*did you mean 'agge'"),
        (lambda f: f.rename({"age": "AGE"}), r"lacks the column age.*did you mean 'AGE'"),
        (lambda f: f.with_columns(age=pl.lit("x")), r"row 1: column 'age' should hold a finite number.*found 'x'"),
        (lambda f: f.with_columns(since=pl.lit(3)), r"column 'since' should hold a date.*its type is Int32"),
        (lambda f: f.with_columns(segment=pl.lit("D")), r"label of task 'segment'.*one of its classes A, B, C.*'D'"),
        (lambda f: f.with_columns(spend=pl.lit(-2.0)), r"'spend'.*at least 0, as `transform: log1p` needs.*-2\.0"),
        (lambda f: f.head(0), r"new\.parquet: has no rows"),
    ],
    ids=["missing", "misspelt", "case", "text", "type", "class", "range", "empty"],
)
def test_a_new_file_that_does_not_fit(tmp_path: Path, change: Any, message: str) -> None:
    frame = customers(100)
    frame.write_parquet(tmp_path / "t.parquet")
    told = dataset(tmp_path / "t.parquet")
    fitted = told.load().fitted
    change(frame).write_parquet(tmp_path / "new.parquet")
    with pytest.raises(MtlError, match=message):
        told.read(tmp_path / "new.parquet", fitted)


def test_categories_that_training_did_not_have_are_told(tmp_path: Path) -> None:
    told = dataset(csv(tmp_path, lines(90)), tasks=Y)
    fitted = told.load().fitted
    for text, column, note in (
        (
            lines(30, r3="1,zebra,0", r9="1,yak,1"),
            "c",
            "2 of 30 rows hold values that training did not have (such as 'zebra')",
        ),
        (lines(30, r3="1,zebra,0"), "c", "1 of 30 rows holds a value that training did not have (such as 'zebra')"),
        (lines(30, r3="1,,0"), "c", "1 of 30 rows holds no value, where every training row had one"),
        (lines(30, r3=",a,0", r4=",b,0"), "x", "2 of 30 rows hold no value, where every training row had one"),
    ):
        notes = told.read(csv(tmp_path, text, "new.csv"), fitted).notes
        assert notes == (f"column '{column}': {note}",)
    assert told.read(csv(tmp_path, lines(30), "new.csv"), fitted).notes == ()


def test_bad_rows_of_a_new_file(tmp_path: Path) -> None:
    told = dataset(csv(tmp_path, lines(90)), tasks=Y)
    fitted = told.load().fitted
    new = csv(tmp_path, lines(30, r3="oops,a,0", r9="1,b", r12="4,c,?"), "new.csv")
    for labels in (True, False):
        with pytest.raises(MtlError, match="correct it, or leave such rows out with --on-error skip") as caught:
            told.read(new, fitted, labels)
        assert "data." not in str(caught.value)
    rows = told.read(new, fitted, on_error="skip")
    assert (rows.left_out, len(rows.rows)) == (3, 27)
    assert rows.notes[0].startswith("3 bad rows were left out (--on-error skip): ")
    skipping = dataset(csv(tmp_path, lines(90)), tasks=Y, on_error="skip")
    assert skipping.read(new, fitted, labels=False).left_out == 2
    with pytest.raises(MtlError, match=r"new\.csv, row 9"):
        skipping.read(new, fitted, on_error="stop")


def test_damaged_preprocessing(tmp_path: Path) -> None:
    told = dataset(csv(tmp_path, lines()), tasks=Y)
    fitted = dict(told.load().fitted)
    with pytest.raises(MtlError, match=r"preprocessing.json is damaged"):
        told.restore({**fitted, "columns": [{"name": 3}]})


def test_keys_may_be_numbers_of_other_types_in_other_files(tmp_path: Path) -> None:
    frame = customers(100)
    told = dataset(tmp_path, split={"by": "user"})
    for name, kind in (("a", pl.Int32), ("b", pl.Int64)):
        frame.with_columns(pl.col("user").cast(kind)).write_parquet(tmp_path / f"{name}.parquet")
    rows = told.read(tmp_path, told.load().fitted)
    assert rows.carried == {"user": 2 * frame["user"].to_list()}


def test_a_number_far_beyond_those_of_training_is_still_one(tmp_path: Path) -> None:
    told = dataset(csv(tmp_path, lines()), tasks=Y)
    rows = told.read(csv(tmp_path, lines(r1="1e99,a,0", r2="-1e99,a,0"), "new.csv"), told.load().fitted)
    assert rows.split.rows(slice(0, 2)).inputs["numeric"].flatten().tolist() == [1e6, -1e6]
