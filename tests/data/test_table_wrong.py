"""What the dataset `table` warns of and refuses: leaks, and what is wrong with files and options."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from tables import Y, csv, customers, lines, load, problems

from mtlcli.errors import MtlError, OptionError

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
    (
        lines(r5="-,a,0"),
        {},
        r"found '-'; correct it, say .* a missing value \(data\.missing: \[.*, '-'\]\), say",
    ),
    (lines(r5="unk,a,0", r9="unk,b,1"), {}, r"found 'unk' \(and 1 more.*data\.missing: \[.*, unk\]\), say what"),
    (lines(r5="one,a,0", r9="two,a,0"), {}, r"found 'one' \(and 1 more row near it\); correct it, say what the column"),
    (lines(r5="1,a,??"), {}, r"should hold one of its classes 0, 1.*found '\?\?'; .*data\.missing: \[.*, '\?\?'\]"),
    (lines(r5="1,a,2", r9="1,a,2"), {}, r"found '2' \(and 1 more row near it\); correct it, or leave such rows out"),
    (lines(r5="inf,a,0"), {}, r"row 5 .*column 'x' should hold a finite number.*found inf"),
    (lines(r5="-1e300,a,0"), {}, r"row 5 .*column 'x' should hold a finite number below 1e\+100.*found -1e\+?300"),
    (lines(r5="1,a,1e300"), {"tasks": {"y": {"kind": "regression"}}}, r"row 5 .*'y'.*a finite number below 1e\+100"),
    (lines().replace("c,y", "*,y", 1), {}, r"t\.csv: has a column '\*', which polars takes for a pattern; rename it"),
    (lines().replace("x,", "^x$,", 1), {}, r"t\.csv: has a column '\^x\$', which polars takes for a pattern"),
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
    (lines(), {"columns": {"y": "categorical"}}, r"columns\.y: is the label of task 'y', whose `kind` says"),
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
        ({"path": []}, "data.path: should be text or a list (at least 1 in number"),
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
        ("t.xlsx", r"the extension '\.xlsx' cannot be read"),
    ):
        if name == "t.xlsx":
            (tmp_path / name).touch()
        with pytest.raises(MtlError, match=message):
            load(tmp_path / name, tasks=Y)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MtlError, match="holds no file that can be read"):
        load(tmp_path / "empty", tasks=Y)


@pytest.mark.parametrize("stream", [False, True], ids=["resident", "stream"])
def test_types_that_do_not_go_together_are_told(tmp_path: Path, stream: bool) -> None:
    frame = customers(60)
    frame.write_parquet(tmp_path / "a.parquet")
    frame.with_columns(age=pl.col("age").cast(pl.Float32)).write_parquet(tmp_path / "b.parquet")
    assert sum(map(len, load(tmp_path, stream=stream).splits.values())) == 120
    frame.with_columns(since=pl.lit([1])).write_parquet(tmp_path / "c.parquet")
    with pytest.raises(MtlError, match=r"the column 'since' is of type List.*, and of Date in .*a\.parquet"):
        load(tmp_path, stream=stream)


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


def test_a_file_that_is_not_there_is_named_with_its_option(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"none\.csv: no such file") as caught:
        load(tmp_path / "none.csv", tasks=Y)
    assert caught.value.option == "path"
    with pytest.raises(OptionError, match=r"none\.csv: no such file") as caught:
        load(csv(tmp_path, lines()), tasks=Y, split={"test_path": tmp_path / "none.csv"})
    assert caught.value.option == "split.test_path"
