"""The dataset `table`: which rows become train, val and test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from tables import Y, csv, customers, lines, load

from mtlcli.errors import MtlError, OptionError

ALL = ("train", "val", "test")


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


@pytest.mark.parametrize("seed", range(8))
def test_a_key_with_most_of_the_rows_is_for_training(tmp_path: Path, seed: int) -> None:
    user = pl.Series([*range(20), *[99] * 180])
    customers(200).with_columns(user=user).write_parquet(tmp_path / "t.parquet")
    data = load(tmp_path / "t.parquet", split={"by": "user", "seed": seed})
    assert len(data.splits["train"]) >= 180
    assert min(map(len, data.splits.values())) >= 1


@pytest.mark.parametrize("stream", [False, True], ids=["resident", "stream"])
def test_a_key_is_held_out_as_a_whole(tmp_path: Path, stream: bool) -> None:
    customers(800).with_columns(twin="u" + pl.col("user").cast(pl.String)).write_parquet(tmp_path / "t.parquet")
    data = load(tmp_path / "t.parquet", split={"by": "user"}, stream=stream)
    place = list(data.features.categorical).index("twin")
    parts = data.splits["train"].hold_out(0.3, seed=1)
    kept, given = ([b.inputs["categorical"][:, place] for b in part.batches(1000)] for part in parts)
    assert set(torch.cat(kept).tolist()).isdisjoint(torch.cat(given).tolist())
    share = sum(map(len, given)) / len(data.splits["train"])
    assert share == pytest.approx(0.3, abs=0.1 if stream else 0.01)


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


def test_what_a_key_decides_is_said_as_it_is(tmp_path: Path) -> None:
    text = "uid,s,x,y\n" + "".join(f"u{i % 9},{['train', 'test', 'val'][i % 3]},{i},{i % 2}\n" for i in range(90))
    no_val = text.replace(",val,", ",test,")

    def key(text: str, **split: Any) -> str:
        data = load(csv(tmp_path, text), tasks=Y, split={"by": "uid", **split})
        return next(use.detail for use in data.columns if use.used_as == "key")

    assert key(text) == "all rows of a key come into the same split"
    assert key(text, column="s") == "the column 's' says which split a row is in"
    assert key(no_val, column="s").endswith("; between train and val, all rows of a key stay together")
    csv(tmp_path, text, "test.csv")
    own = key(text, test_path=str(tmp_path / "test.csv"))
    assert own == "between train and val, all rows of a key stay together"
