"""The dataset `table` in memory: columns, labels, splits, what new files need, leaks, and what is wrong with a file."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from tables import TASKS, Y, csv, customers, dataset, lines, load, problems

from mtlcli.data.tables.kinds import Held, calendar, hold
from mtlcli.errors import MtlError, OptionError
from mtlcli.tasks import Task

ALL = ("train", "val", "test")


def uses(data: Any) -> dict[str, str]:
    return {use.column: use.used_as for use in data.columns}


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same rows in every format."""
    folder, frame = tmp_path_factory.mktemp("customers"), customers()
    frame.write_csv(folder / "t.csv")
    frame.write_csv(folder / "t.tsv", separator="\t")
    frame.write_csv(folder / "semicolons.csv", separator=";")
    frame.write_parquet(folder / "t.parquet")
    frame.write_ipc(folder / "t.arrow")
    frame.write_ipc(folder / "t.feather", compression="zstd")
    (folder / "parts").mkdir()
    for number, part in enumerate(frame.iter_slices(150)):
        part.write_parquet(folder / "parts" / f"{number}.parquet")
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["t.tsv", "semicolons.csv", "t.parquet", "t.arrow", "t.feather", "parts"])
def test_every_format_gives_the_same_data(files: dict[str, Path], name: str) -> None:
    first, other = load(files["t.csv"]), load(files[name])
    assert other.fingerprint == first.fingerprint
    assert (other.tasks, other.features) == (first.tasks, first.features)


def test_a_pattern_and_a_list_are_files_too(files: dict[str, Path]) -> None:
    parts = files["parts"]
    whole = load(parts).fingerprint
    assert load(parts / "*.parquet").fingerprint == whole
    assert load([str(parts / f"{n}.parquet") for n in range(3)]).fingerprint == whole


def test_loading_twice_gives_the_same(files: dict[str, Path]) -> None:
    one, two = load(files["t.csv"]), load(files["t.csv"])
    assert (one.fingerprint, one.fitted, one.notes) == (two.fingerprint, two.fitted, two.notes)


def test_the_columns_are_what_they_are(files: dict[str, Path]) -> None:
    assert uses(load(files["t.csv"], split={"by": "user"})) == {
        "user": "key",
        "age": "numeric",
        "city": "categorical",
        "since": "date",
        "score": "numeric",
        "vip": "boolean",
        "churn": "label",
        "segment": "label",
        "spend": "label",
    }


# -- columns, by hand --------------------------------------------------------------------------------------------------

HAND = """\
n,c,d,b,y,part
1,red,2024-01-01,yes,0,train
3,,2024-01-02,no,1,train
,blue,2024-01-03,,1,train
8,red,2024-01-04,no,0,train
100,green,2024-01-05,yes,1,val
,,,yes,0,test
5,red,2024-01-08,no,,test
"""


@pytest.fixture
def by_hand(tmp_path: Path) -> Any:
    return load(csv(tmp_path, HAND), tasks=Y, split={"column": "part"})


def test_numbers_are_standardised_by_the_training_rows_and_imputed(by_hand: Any) -> None:
    names = list(by_hand.features.numeric)
    assert names == ["n", "d", "b", "n.missing", "b.missing"]
    mean, deviation = 4.0, math.sqrt((9 + 1 + 16) / 3)  # of 1, 3, 8; their median is 3
    expected = [(value - mean) / deviation for value in (1, 3, 3, 8)]
    train = by_hand.splits["train"].inputs["numeric"]
    assert train[:, 0].tolist() == pytest.approx(expected, rel=1e-6)
    assert train[:, 3].tolist() == [0, 0, 1, 0]
    assert by_hand.splits["val"].inputs["numeric"][0, 0].item() == pytest.approx((100 - mean) / deviation)
    assert by_hand.splits["test"].inputs["numeric"][0, [0, 3]].tolist() == pytest.approx([(3 - mean) / deviation, 1])


def test_dates_become_days_and_weekdays(by_hand: Any) -> None:
    days = by_hand.splits["train"].inputs["numeric"][:, 1]
    assert days.tolist() == pytest.approx([v / math.sqrt(1.25) for v in (-1.5, -0.5, 0.5, 1.5)], rel=1e-6)
    assert dict(by_hand.features.categorical) == {"c": 4, "d.weekday": 5}  # null, blue, red; Monday to Thursday
    weekdays = {split: by_hand.splits[split].inputs["categorical"][:, 1].tolist() for split in ALL}
    assert weekdays == {"train": [1, 2, 3, 4], "val": [0], "test": [0, 1]}  # a Friday is new, a missing day is none


def test_texts_become_categories_with_one_for_missing_and_none_for_new(by_hand: Any) -> None:
    codes = {split: by_hand.splits[split].inputs["categorical"][:, 0].tolist() for split in ALL}
    assert codes == {"train": [3, 1, 2, 3], "val": [0], "test": [1, 3]}


def test_truth_values_are_numbers(by_hand: Any) -> None:
    column = by_hand.splits["train"].inputs["numeric"][:, 2]
    mean, deviation = 1 / 3, math.sqrt(2) / 3  # of 1, 0, 0; their median is 0
    expected = [(v - mean) / deviation for v in (1, 0, 0, 0)]
    assert column.tolist() == pytest.approx(expected, rel=1e-6)


def test_a_missing_label_is_masked(by_hand: Any) -> None:
    assert by_hand.splits["test"].targets["y"].tolist() == [0, -1]
    assert by_hand.splits["test"].labelled(by_hand.tasks[0]) == 1


@pytest.mark.parametrize(
    ("values", "held"),
    [
        (["1", "2.5", "1e3", ""], Held("numeric")),
        (["Yes", "no", "NO"], Held("boolean")),
        (["2024-01-31", "2023-12-01"], Held("date", "%Y-%m-%d")),
        (["2024-01-31 10:00:00", "2023-12-01 11:30:05"], Held("date", "%Y-%m-%d %H:%M:%S%.f")),
        (["31/01/2024", "01/02/2024"], Held("date", "%d/%m/%Y")),
        (["02/01/2024", "01/02/2024"], Held("text")),  # day or month first: nobody knows
        (["00501", "10115"], Held("text")),  # postal codes
        (["a", "b", "1"], Held("text")),
        (["1", "2", "x"], Held("numeric")),  # with a mistake
        (["", "NA"], "empty"),
    ],
    ids=str,
)
def test_what_a_column_of_text_holds(values: list[str], held: Any) -> None:
    assert hold(pl.Series(values), ["", "NA"]) == held


def test_the_calendar() -> None:
    found = calendar(np.array([0.0, 19723.75, np.nan]))  # a Thursday, and 2024-01-01 18:00, a Monday
    assert {name: values.tolist() for name, values in found.items()} == {
        "weekday": [4, 1, 0],
        "month": [1, 1, 0],
        "hour": [1, 19, 0],
    }


def test_names_of_rows_are_dropped_unless_asked_for(tmp_path: Path) -> None:
    text = "customer_id,row,name,x,same,y\n" + "".join(
        f"{(i * 37) % 1000},{i},n{i},{i % 9},7,{i % 2}\n" for i in range(100)
    )
    data = load(csv(tmp_path, text), tasks=Y)
    assert uses(data) == dict.fromkeys(("customer_id", "row", "name", "same"), "dropped") | {
        "x": "numeric",
        "y": "label",
    }
    assert sum("'customer_id' is left out" in note for note in data.notes) == 1
    asked = load(csv(tmp_path, text), tasks=Y, columns={"name": "categorical", "row": "numeric"})
    assert uses(asked) | {"name": "categorical", "row": "numeric"} == uses(asked)
    chosen = load(csv(tmp_path, text), tasks=Y, features=["x"])
    assert list(chosen.features.numeric) == ["x"]
    assert not any("left out" in note for note in chosen.notes)


def test_a_column_without_a_name_is_taken_for_the_numbers_of_the_rows(tmp_path: Path) -> None:
    data = load(csv(tmp_path, ",x,y\n" + "".join(f"{i},{i % 7},{i % 2}\n" for i in range(60))), tasks=Y)
    assert uses(data) == {"unnamed_1": "dropped", "x": "numeric", "y": "label"}


def test_a_number_can_be_a_category(tmp_path: Path) -> None:
    text = "zip,x,y\n" + "".join(f"{i % 4 + 10},{i * 1.5},{i % 2}\n" for i in range(40))
    data = load(csv(tmp_path, text), tasks=Y, columns={"zip": "categorical"})
    assert dict(data.features.categorical) == {"zip": 5}
    assert data.fitted["columns"][0]["categories"] == ["10", "11", "12", "13"]


# -- labels ------------------------------------------------------------------------------------------------------------


def test_classes_and_their_order(tmp_path: Path) -> None:
    text = "x,stays,grade,level\n" + "".join(
        f"{i},{'no' if i % 3 else 'yes'},{'CAB'[i % 3]},{i % 4 * 5}\n" for i in range(60)
    )
    tasks = {
        "stays": {"kind": "binary"},
        "leaves": {"kind": "binary", "column": "stays", "positive": "no"},
        "grade": {"kind": "multiclass"},
        "level": {"kind": "multiclass"},
    }
    data = load(csv(tmp_path, text), tasks=tasks)
    assert {task.name: task.classes for task in data.tasks} == {
        "stays": ("no", "yes"),
        "leaves": ("yes", "no"),
        "grade": ("A", "B", "C"),
        "level": ("0", "5", "10", "15"),
    }
    train = data.splits["train"].targets
    assert torch.equal(train["stays"], 1 - train["leaves"])
    assert torch.equal(data.select(("leaves",)).splits["train"].targets["leaves"], train["leaves"])


def test_regression_labels_come_back_in_their_unit(files: dict[str, Path]) -> None:
    data, frame = load(files["t.parquet"]), customers()
    task = data.tasks[2]
    assert (task.transform, task.unit) == ("log1p", "dollars")
    labels = torch.cat([data.splits[split].targets["spend"] for split in ALL])
    assert int(labels.isnan().sum()) == frame["spend"].null_count()
    back = task.in_unit(labels[~labels.isnan()]).sort().values
    assert torch.allclose(back, torch.tensor(frame["spend"].drop_nulls().sort().to_list()).double(), rtol=1e-5)
    train = data.splits["train"].targets["spend"]
    train = train[~train.isnan()].double()
    assert train.mean().item() == pytest.approx(0, abs=1e-6)
    assert train.std(correction=0).item() == pytest.approx(1, abs=1e-6)


def test_weights_of_classes(tmp_path: Path) -> None:
    text = "x,y,z,part\n" + "".join(
        f"{i},{int(i % 4 == 0)},{'aab'[i % 3] if i % 6 else 'c'},{'train' if i < 48 else 'val' if i < 54 else 'test'}\n"
        for i in range(60)
    )
    tasks = {
        "y": {"kind": "binary", "positive_weight": "balanced"},
        "y3": {"kind": "binary", "column": "y", "positive_weight": 3},
        "z": {"kind": "multiclass", "class_weights": "balanced"},
        "z3": {"kind": "multiclass", "column": "z", "class_weights": [1, 2.5, 0]},
    }
    weights = {
        task.name: task.class_weights for task in load(csv(tmp_path, text), tasks=tasks, split={"column": "part"}).tasks
    }
    assert weights["y"] == (1.0, 3.0)  # 36 against 12 of the training rows
    assert weights["y3"] == (1.0, 3.0)
    assert weights["z"] == pytest.approx((48 / (3 * 24), 48 / (3 * 16), 48 / (3 * 8)))
    assert weights["z3"] == (1.0, 2.5, 0.0)


def test_truth_values_are_the_same_classes_however_they_are_written(tmp_path: Path) -> None:
    text = "x,y\n" + "".join(f"{i},{bool(i % 2)}\n" for i in range(60))
    told = dataset(csv(tmp_path, text), tasks={"y": {"kind": "binary", "positive": False}})
    data = told.load()
    assert data.tasks[0].classes == ("true", "false")
    pl.DataFrame({"x": [1, 2], "y": [True, False]}).write_parquet(tmp_path / "new.parquet")
    assert told.read(tmp_path / "new.parquet", data.fitted).split.targets["y"].tolist() == [0, 1]


def test_binary_labels_of_every_type(tmp_path: Path) -> None:
    x = [float(i) for i in range(60)]
    for values, classes in (
        ([True, False] * 30, ("false", "true")),
        ([0.0, 1.0] * 30, ("0", "1")),
        ([1, 2] * 30, ("1", "2")),
        (["b", "a"] * 30, ("a", "b")),
    ):
        pl.DataFrame({"x": x, "y": values}).write_parquet(tmp_path / "t.parquet")
        data = load(tmp_path / "t.parquet", tasks=Y)
        assert data.tasks == (Task("y", "binary", classes=classes),)
        assert any("counts as 1" in note for note in data.notes) == (classes in (("1", "2"), ("a", "b")))


# -- splits ------------------------------------------------------------------------------------------------------------


def test_shares_hold_exactly_and_follow_the_seed(tmp_path: Path) -> None:
    path = csv(tmp_path, lines(1000))
    data = load(path, tasks=Y, split={"val": 0.15, "test": 0.25})
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 600, "val": 150, "test": 250}
    assert load(path, tasks=Y, split={"val": 0.15, "test": 0.25, "seed": 1}).fingerprint != data.fingerprint
    values = torch.cat([data.splits[s].inputs["numeric"][:, 0] for s in ALL])
    assert len(values.unique()) == 1000  # every row once


def test_a_key_stays_in_one_split_whatever_the_order_of_rows(tmp_path: Path) -> None:
    frame = customers(800).with_columns(pl.col("user").alias("twin"))
    frame.write_parquet(tmp_path / "a.parquet")
    frame.sample(fraction=1, shuffle=True, seed=5).write_parquet(tmp_path / "b.parquet")
    found = []
    for name in ("a", "b"):
        data = load(tmp_path / f"{name}.parquet", split={"by": "user"})
        column = data.fitted["columns"][[c["name"] for c in data.fitted["columns"]].index("twin")]
        place = list(data.features.numeric).index("twin")
        users = {
            split: set(
                (data.splits[split].inputs["numeric"][:, place].double() * column["scale"] + column["mean"])
                .round()
                .tolist()
            )
            for split in ALL
        }
        assert users["train"].isdisjoint(users["val"] | users["test"])
        assert users["val"].isdisjoint(users["test"])
        assert len(data.splits["test"]) == pytest.approx(160, abs=10)
        found.append(users)
    assert found[0] == found[1]


def test_a_column_says_where_rows_belong(tmp_path: Path) -> None:
    words = ["train", "Train", "training", "dev", "valid", "validation", "val", "test", "testing", "TEST"]
    text = "x,y,part\n" + "".join(f"{i},{(i // 10) % 2},{words[i % 10]}\n" for i in range(100))
    data = load(csv(tmp_path, text), tasks=Y, split={"column": "part"})
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 30, "val": 40, "test": 30}
    without = text.replace("dev", "train").replace("valid,", "train").replace("validation", "train")
    without = without.replace(",valid\n", ",train\n").replace(",val\n", ",train\n")
    data = load(csv(tmp_path, without), tasks=Y, split={"column": "part", "val": 0.5})
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 35, "val": 35, "test": 30}


def test_test_rows_in_a_file_of_their_own(tmp_path: Path) -> None:
    train, test = csv(tmp_path, lines(100), "train.csv"), csv(tmp_path, lines(30).replace("abc", "x"), "test.csv")
    data = load(train, tasks=Y, split={"test_path": str(test), "val": 0.2})
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 80, "val": 20, "test": 30}
    test.write_text(test.read_text().replace("x,c,y", "x,d,y"))
    with pytest.raises(MtlError, match=r"test\.csv: lacks the column c"):
        load(train, tasks=Y, split={"test_path": str(test)})


@pytest.mark.parametrize("rows", [3, 5, 10])
def test_few_rows_still_fill_every_split(tmp_path: Path, rows: int) -> None:
    text = "x,y\n" + "".join(f"{i},{i % 2}\n" for i in range(rows))
    sizes = {}
    for seed in range(20):  # a split of so few rows may have one class only
        try:
            data = load(csv(tmp_path, text), tasks=Y, split={"seed": seed})
        except OptionError as error:
            if "every training row has the label" in str(error) or "no column is left" in str(error):
                continue
            raise
        sizes = {name: len(split) for name, split in data.splits.items()}
        assert min(sizes.values()) >= 1
        assert sum(sizes.values()) == rows


# -- new files ---------------------------------------------------------------------------------------------------------


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
        (lambda f: f.with_columns(age=pl.lit("x")), r"row 1: column 'age' should hold a finite number.*found 'x'"),
        (lambda f: f.with_columns(since=pl.lit(3)), r"column 'since' should hold a date.*its type is Int32"),
        (lambda f: f.with_columns(segment=pl.lit("D")), r"label of task 'segment'.*one of its classes A, B, C.*'D'"),
        (lambda f: f.with_columns(spend=pl.lit(-2.0)), r"'spend'.*at least 0, as `transform: log1p` needs.*-2\.0"),
        (lambda f: f.head(0), r"new\.parquet: has no rows"),
    ],
    ids=["missing", "misspelt", "text", "type", "class", "range", "empty"],
)
def test_a_new_file_that_does_not_fit(tmp_path: Path, change: Any, message: str) -> None:
    frame = customers(100)
    frame.write_parquet(tmp_path / "t.parquet")
    told = dataset(tmp_path / "t.parquet")
    fitted = told.load().fitted
    change(frame).write_parquet(tmp_path / "new.parquet")
    with pytest.raises(MtlError, match=message):
        told.read(tmp_path / "new.parquet", fitted)


def test_damaged_preprocessing(tmp_path: Path) -> None:
    told = dataset(csv(tmp_path, lines()), tasks=Y)
    fitted = dict(told.load().fitted)
    with pytest.raises(MtlError, match=r"preprocessing.json is damaged"):
        told.restore({**fitted, "columns": [{"name": 3}]})


# -- leaks -------------------------------------------------------------------------------------------------------------


def leaking(tmp_path: Path, **columns: Any) -> tuple[str, ...]:
    frame = customers(2000, seed=3).drop("user")
    frame = frame.with_columns(**{name: make(frame) for name, make in columns.items()})
    frame.write_parquet(tmp_path / "t.parquet")
    return load(tmp_path / "t.parquet").notes


def test_sound_features_are_not_suspected(tmp_path: Path) -> None:
    assert leaking(tmp_path) == ()
    assert leaking(tmp_path, noise=lambda f: pl.Series(np.random.default_rng(0).standard_normal(len(f)))) == ()


@pytest.mark.parametrize(
    ("column", "task"),
    [
        (lambda f: f["spend"], "spend"),
        (lambda f: f["spend"].log() * -3 + 1, "spend"),
        (lambda f: (f["churn"] == "yes").cast(pl.Float64) * 5 + 2, "churn"),
        (lambda f: f["churn"].replace({"yes": "gone", "no": "here"}), "churn"),
        (lambda f: f["segment"].replace_strict({"A": 2.0, "B": 0.0, "C": 1.0}), "segment"),
        (lambda f: f["segment"] + "-" + (f["vip"].cast(pl.String)), "segment"),
        (lambda f: pl.Series([1.0 if s == "yes" else None for s in f["churn"]]), "churn"),
    ],
    ids=["copy", "monotone", "numeric", "renamed", "codes", "finer", "missing"],
)
def test_a_feature_that_gives_a_label_away_is_named(tmp_path: Path, column: Any, task: str) -> None:
    notes = leaking(tmp_path, leak=column)
    assert any(f"'leak' gives task '{task}' away" in note for note in notes)


def test_names_of_rows_do_not_look_like_leaks(tmp_path: Path) -> None:
    frame = customers(1000).drop("user").with_columns(name=pl.Series([f"n{i}" for i in range(1000)]))
    frame.write_parquet(tmp_path / "t.parquet")
    notes = load(tmp_path / "t.parquet", columns={"name": "categorical"}).notes
    assert not any("gives" in note for note in notes)


def test_rows_and_keys_in_two_splits_are_counted(tmp_path: Path) -> None:
    frame = customers(300).with_columns(part=pl.Series(["train"] * 200 + ["val"] * 40 + ["test"] * 60))
    frame = pl.concat([frame, frame.head(7).with_columns(part=pl.lit("test"))])
    frame.write_parquet(tmp_path / "t.parquet")
    notes = load(tmp_path / "t.parquet", split={"column": "part", "by": "user"}).notes
    assert any(note.startswith("7 rows of test also stand in train") for note in notes)
    shared = len(set(frame.filter(part="train")["user"]) & set(frame.filter(part="test")["user"]))
    assert any(note.startswith(f"{shared} keys of 'user' have rows in train and in test") for note in notes)


def test_what_looks_like_a_key_is_suggested(tmp_path: Path) -> None:
    frame = customers(600).rename({"user": "user_id"})
    frame.write_parquet(tmp_path / "t.parquet")
    assert any("data.split.by: user_id" in note for note in load(tmp_path / "t.parquet").notes)
    assert not any("user_id" in note for note in load(tmp_path / "t.parquet", split={"by": "user_id"}).notes)


# -- what is wrong -----------------------------------------------------------------------------------------------------

WRONG: list[tuple[str, dict[str, Any], str]] = [
    (lines(r5="1,a,0,9"), {}, r"t\.csv, row 5 \(line 6\): should have 3 fields; found 4"),
    (lines(r5="1,a"), {}, r"t\.csv, row 5 \(line 6\): should have 3 fields; found 2"),
    (lines(r5="one,a,0"), {}, r"row 5 \(line 6\): column 'x' should hold a finite number.*found 'one'.*categorical"),
    (lines(r5="inf,a,0"), {}, r"row 5 .*column 'x' should hold a finite number.*found inf"),
    (lines(r5="1,a,2"), {}, r"row 5 .*label of task 'y', should hold one of its classes 0, 1.*found '2'"),
    (lines(r5="1,a,maybe"), {}, r"row 5 .*should hold one of its classes 0, 1.*found 'maybe'"),
    (lines(r5="-1,a,1"), {"tasks": {"x": {"kind": "regression", "transform": "log1p"}}}, r"row 5 .*at least 0"),
    (lines(), {"tasks": {"c": {"kind": "multiclass", "classes": ["a", "b"]}}}, r"row 3 .*classes a, b.*found 'c'"),
    (lines(), {"tasks": {"c": {"kind": "regression"}}}, r"tasks\.c: a regression needs numbers.*'a'"),
    (lines(), {"tasks": {"z": {"kind": "binary", "column": "yy"}}}, r"tasks\.z\.column.*did you mean 'y'"),
    (lines(), {"tasks": {"type": {"kind": "binary", "column": "y"}}}, r"tasks\.type: the name 'type' means something"),
    (lines(), {"tasks": {"a.b": {"kind": "binary", "column": "y"}}}, r"tasks\.a\.b: the name 'a\.b' has a point"),
    (lines(), {"drop": ["cc"]}, r"drop: .*no column 'cc'; did you mean 'c'"),
    (lines(), {"features": ["y"]}, r"features: the column 'y' is the label of task 'y'"),
    (lines(), {"split": {"by": "user"}}, r"split\.by: .*no column 'user'"),
    (lines(), {"split": {"column": "c"}}, r"row 1 .*column 'c' should say train, val .* or test; found 'a'"),
    (lines(), {"tasks": {"c": {"kind": "multiclass", "class_weights": [1, 2]}}}, r"3 numbers, for the classes a, b, c"),
    (lines(), {"tasks": {"y": {"kind": "binary", "positive": "yes"}}}, r"no row of the column 'y' holds 'yes'"),
    ("x,y\n" + "1,0\n2,0\n" * 30, {}, r"every training row has the label '0'"),
    ("x,y\n1,\n2,\n3,\n4,\n5,\n6,\n", {}, r"the column 'y' holds no label: it is empty"),
    ("x,y\n" + "1,7\n2,7\n" * 30, {"tasks": {"y": {"kind": "regression"}}}, r"every training row has the label 7"),
    ("y\n" + "0\n1\n" * 20, {}, r"no column is left to predict from"),
    ("x,x,y\n1,2,0\n", {}, r"t\.csv: has two columns 'x'"),
    ("", {}, r"t\.csv: is empty"),
    ("x,c,y\n", {}, r"t\.csv: has no rows"),
    ("x,c,y\n1,a,0\n2,b,1\n", {}, r"split: leaves the split 'train' without rows"),
]


@pytest.mark.parametrize(("text", "options", "message"), WRONG, ids=[wrong[2][:40] for wrong in WRONG])
@pytest.mark.parametrize("stream", [False, True], ids=["resident", "stream"])
def test_a_mistake_has_one_clear_message(
    tmp_path: Path, text: str, options: dict[str, Any], message: str, stream: bool
) -> None:
    if stream and "leaves the split" in message:
        pytest.skip("shares hold on average")
    with pytest.raises(MtlError, match=message) as caught:
        load(csv(tmp_path, text), **{"tasks": Y, "stream": stream, **options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("stream", [False, True], ids=["resident", "stream"])
def test_bad_rows_can_be_left_out_and_are_counted(tmp_path: Path, stream: bool) -> None:
    text = lines(200, r5="1,a,0,9", r9="1,a", r20="one,b,1", r33="3,c,maybe", r34="4,c,7")
    data = load(csv(tmp_path, text), tasks=Y, on_error="skip", stream=stream)
    assert sum(map(len, data.splits.values())) == 195
    (note,) = (note for note in data.notes if "bad rows" in note)
    assert note.startswith("5 bad rows were left out (data.on_error: skip): ")
    assert "row 5 (line 6): should have 3 fields; found 4" in note or "row 9" in note


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": {"y": {"kind": "binay"}}}, "data.tasks.y.kind: should be one of binary, multiclass, regression"),
        ({"tasks": {"y": {"kind": "binary", "transform": "log1p"}}}, "`transform` is for regression tasks"),
        ({"tasks": {"y": {"kind": "binary", "class_weights": [1, 2], "positive_weight": 2}}}, "give one of them"),
        ({"tasks": {"y": {"kind": "binary", "classes": [1, 2, 3]}}}, "a binary task has 2 `classes`; found 3"),
        ({"tasks": ["y"]}, "data.tasks: should be a map of names"),
        ({"tasks": {}}, "data.tasks: should"),
        ({"split": {"val": 0.5, "test": 0.5}}, "nothing is left to train on"),
        ({"split": {"column": "a", "test_path": "b"}}, "give one of them"),
        ({"split": {"column": "a", "test": 0.2}}, "leave `test` out"),
        ({"split": {"bye": "a"}}, "did you mean 'by'"),
        ({"on_error": "ignore"}, "should be one of stop, skip"),
    ],
    ids=str,
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    assert message in problems(**{"path": "t.csv", "tasks": Y, **options})


def test_paths_that_cannot_be(tmp_path: Path) -> None:
    csv(tmp_path, lines())
    for name, message in (
        ("tt.csv", r"tt\.csv: no such file; did you mean 't\.csv'"),
        ("no/t.csv", r"no such file; there is no folder"),
        ("*.parquet", r"\*\.parquet: matches no file"),
        ("t.xlsx", r"the extension '\.xlsx' is none that can be read"),
    ):
        if name == "t.xlsx":
            (tmp_path / name).touch()
        with pytest.raises(MtlError, match=message):
            load(tmp_path / name, tasks=Y)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MtlError, match="holds no file that can be read"):
        load(tmp_path / "empty", tasks=Y)


def test_files_of_other_kinds_and_pickles_are_refused(tmp_path: Path) -> None:
    for name, content in (
        ("p.parquet", pickle.dumps({"x": [1]})),
        ("p.arrow", pickle.dumps({"x": [1]})),
        ("short.parquet", b"PAR1"),
        ("latin.csv", lines().replace("a", "\xe9").encode("latin1")),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(MtlError, match=rf"{name}.*(cannot be read as|should be text in UTF-8)"):
            load(tmp_path / name, tasks=Y)


def test_links_do_not_lead_out_of_a_folder(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside, outside):
        folder.mkdir()
        csv(folder, lines())
    (inside / "link.csv").symlink_to(outside / "t.csv")
    for path in (inside, inside / "*.csv"):
        with pytest.raises(MtlError, match=r"link\.csv: is a link to .*outside"):
            load(path, tasks=Y)
    assert len(load(inside / "link.csv", tasks=Y).splits["train"]) == 28  # named by a person
    (inside / "link.csv").unlink()
    (inside / "folder").symlink_to(outside)
    with pytest.raises(MtlError, match="is a link to"):
        load(inside, tasks=Y)


def test_odd_texts_are_read(tmp_path: Path) -> None:
    first = load(csv(tmp_path, lines()), tasks=Y).fingerprint
    for text in (
        lines().replace("\n", "\r\n"),
        "\ufeff" + lines(),
        lines().rstrip("\n"),
        lines().replace(",a,", ',"a",'),
        lines().replace(",", ";"),
        lines().replace(",", " , ").replace("x , c , y", "x,c,y"),
    ):
        assert load(csv(tmp_path, text), tasks=Y).fingerprint == first
    assert len(load(csv(tmp_path, lines().replace("\n", "\n\n")), tasks=Y).splits["train"]) == 28
    quoted = "x,c,y\n" + "".join(f'{i % 9}.5,"a, ""b""\nc{i % 2}",{i * 7 % 10 // 5}\n' for i in range(40))
    data = load(csv(tmp_path, quoted), tasks=Y)
    assert data.fitted["columns"][1]["categories"] == ['a, "b"\nc0', 'a, "b"\nc1']
    with pytest.raises(MtlError, match=r"row 41: column 'x'"):
        load(csv(tmp_path, quoted + "one,a,0\n"), tasks=Y)


def test_the_tasks_of_a_recipe(files: dict[str, Path]) -> None:
    data = load(files["t.csv"])
    assert [task.name for task in data.tasks] == list(TASKS)
    with pytest.raises(OptionError, match="only: no task 'chrun'; did you mean 'churn'"):
        data.select(("chrun",), "only")
