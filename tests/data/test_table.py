"""The dataset `table` in memory: columns and labels."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from tables import TASKS, Y, csv, customers, dataset, load

from mtlcli.data.tables.kinds import Held, calendar, hold
from mtlcli.errors import OptionError
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


@pytest.mark.parametrize(
    ("values", "classes", "told"),
    [
        (["Yes", "no"], ("no", "Yes"), False),
        (["Y", "n", "Y", "y"], ("n", "Y"), False),
        (["NO", "No", "no", "yes", "NO"], ("NO", "yes"), False),
        (["TRUE", "False"], ("false", "true"), False),
        (["T", "f"], ("f", "T"), False),
        (["Yes", "Maybe"], ("Maybe", "Yes"), True),
        (["f", "m"], ("f", "m"), True),  # not false
    ],
    ids=str,
)
def test_words_for_true_and_false_are_two_classes(
    tmp_path: Path, values: list[str], classes: tuple[str, ...], told: bool
) -> None:
    y = [values[i * 7 % 11 % len(values)] for i in range(110)]
    pl.DataFrame({"x": [float(i) for i in range(110)], "y": y}).write_parquet(tmp_path / "t.parquet")
    table = dataset(tmp_path / "t.parquet", tasks=Y)
    data = table.load()
    assert data.tasks[0].classes == classes
    assert any("counts as 1" in note for note in data.notes) == told
    new = table.read(tmp_path / "t.parquet", json.loads(json.dumps(data.fitted))).split.targets["y"]
    assert new.tolist() == [int(value.lower() == classes[1].lower()) for value in y]


def test_other_spellings_of_truth_in_new_files(tmp_path: Path) -> None:
    text = "x,y\n" + "".join(f"{i},{'Yes' if i % 3 else 'No'}\n" for i in range(60))
    told = dataset(csv(tmp_path, text), tasks={"y": {"kind": "binary", "positive": "no"}})
    data = told.load()
    assert data.tasks[0].classes == ("Yes", "No")
    for values in (["yes", "NO"], [True, False], [1, 0]):
        pl.DataFrame({"x": [1, 2], "y": values}).write_parquet(tmp_path / "new.parquet")
        assert told.read(tmp_path / "new.parquet", data.fitted).split.targets["y"].tolist() == [0, 1]
    named = load(csv(tmp_path, text), tasks={"y": {"kind": "binary", "classes": ["YES", "NO"]}})
    assert named.tasks[0].classes == ("YES", "NO")
    with pytest.raises(OptionError, match="no row of the column 'y' holds 'maybe'; there are: No, Yes"):
        load(csv(tmp_path, text), tasks={"y": {"kind": "binary", "positive": "maybe"}})


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_whole_numbers_as_classes_are_told_apart_however_large(tmp_path: Path, suffix: str) -> None:
    largest = [2**60, 2**60 + 1, 2**60 + 2, 7]
    frame = pl.DataFrame({"x": [float(i) for i in range(80)], "y": [largest[i % 4] for i in range(80)]})
    path = tmp_path / f"t.{suffix}"
    frame.write_csv(path) if suffix == "csv" else frame.write_parquet(path)
    told = dataset(path, tasks={"y": {"kind": "multiclass"}})
    data = told.load()
    assert data.tasks[0].classes == ("7", str(2**60), str(2**60 + 1), str(2**60 + 2))
    assert told.read(path, data.fitted).split.targets["y"].tolist() == [1, 2, 3, 0] * 20


def test_the_tasks_of_a_recipe(files: dict[str, Path]) -> None:
    data = load(files["t.csv"])
    assert [task.name for task in data.tasks] == list(TASKS)
    with pytest.raises(OptionError, match="only: no task 'chrun'; did you mean 'churn'"):
        data.select(("chrun",), "only")


def test_a_column_may_be_called_like_a_part_of_a_date(tmp_path: Path) -> None:
    customers().rename({"city": "since.weekday"}).write_parquet(tmp_path / "t.parquet")
    data = load(tmp_path / "t.parquet")
    assert data.features.categorical == {
        "since.weekday": 5,
        "since.weekday of the date": 8,
        "since.month": 13,
    }
    assert data.splits["train"].inputs["categorical"].shape[1] == 3


@pytest.mark.parametrize("stream", [False, True], ids=["resident", "stream"])
def test_a_split_without_any_label_of_a_task_is_told(tmp_path: Path, stream: bool) -> None:
    frame = customers(100).with_columns(part=pl.Series(["train", "train", "val", "test"] * 25))
    spend = pl.when(part="train").then("spend")
    frame.with_columns(spend=spend, churn=pl.when(pl.col("part") != "val").then("churn")).write_csv(tmp_path / "t.csv")
    notes = load(tmp_path / "t.csv", split={"column": "part"}, stream=stream).notes
    assert "task 'spend': no row of val and of test has a label, so that it is not scored there" in notes
    assert "task 'churn': no row of val has a label, so that it is not scored there" in notes
    assert not any("segment" in note for note in notes)
