"""What gives the label of a regression away, and what only predicts it well; rows that two splits share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from tables import load

from mtlcli.data.tables.functions import follows, steps

Make = Callable[[np.random.Generator, np.ndarray], Any]
PRICE: dict[str, Any] = {"price": {"kind": "regression"}}


def notes(folder: Path, label: np.ndarray, feature: Any, **options: Any) -> list[str]:
    """What is said of `feature` beside another, useless one."""
    rng = np.random.default_rng(99)
    frame = pl.DataFrame({"f": feature, "other": rng.standard_normal(len(label)), "price": label})
    frame.write_parquet(folder / "t.parquet")
    return [note for note in load(folder / "t.parquet", tasks=PRICE, **options).notes if "'f'" in note]


def deciles(values: np.ndarray) -> np.ndarray:
    return np.searchsorted(np.quantile(values, np.linspace(0, 1, 11)[1:-1]), values)


def codes_of(rng: np.random.Generator, label: np.ndarray) -> np.ndarray:
    """A code for every different value, in no order."""
    values, codes = np.unique(label, return_inverse=True)
    return rng.permutation(len(values))[codes]


LEAKS: dict[str, Make] = {
    "noisy copy": lambda rng, y: y + rng.normal(0, 0.02 * y.std(), len(y)),
    "noisy copy, turned round": lambda rng, y: 3 - 7 * (y + rng.normal(0, 0.015 * y.std(), len(y))),
    "steps": lambda rng, y: np.floor(y / 40),
    "deciles": lambda rng, y: deciles(y),
    "deciles in no order": lambda rng, y: rng.permutation(10)[deciles(y)],
    "above the median": lambda rng, y: y > np.median(y),
    "named stretches": lambda rng, y: np.array(["low", "middle", "high"])[np.digitize(y, np.quantile(y, [0.3, 0.6]))],
}


@pytest.mark.parametrize("make", LEAKS.values(), ids=LEAKS)
@pytest.mark.parametrize("skewed", [False, True], ids=["normal", "skewed"])
def test_near_copies_and_functions_of_a_label_are_named(tmp_path: Path, make: Make, skewed: bool) -> None:
    rng = np.random.default_rng(7)
    label = rng.normal(300, 90, 1100)
    label = np.exp(label / 90) * 5 if skewed else label
    assert any("gives task 'price' away" in note for note in notes(tmp_path, label, make(rng, label)))


@pytest.mark.parametrize("power", [2, 4])
def test_a_function_that_does_not_keep_the_order_is_named(tmp_path: Path, power: int) -> None:
    label = np.random.default_rng(3).normal(0, 60, 1100)
    assert any("nearly a function of the label" in note for note in notes(tmp_path, label, label**power))


def test_a_label_that_is_a_function_of_a_feature_is_named(tmp_path: Path) -> None:
    x = np.random.default_rng(3).uniform(-2, 2, 1100)
    assert any("the label is nearly a function of it" in note for note in notes(tmp_path, np.cos(3 * x), x))


@pytest.mark.parametrize("noise", [0.0, 0.001])
def test_a_code_that_determines_the_label_is_named(tmp_path: Path, noise: float) -> None:
    rng = np.random.default_rng(5)
    label = rng.normal(size=40)[rng.integers(0, 40, 1100)]
    feature = codes_of(rng, label)
    label = label + noise * rng.normal(size=1100)
    assert any("the label is nearly a function of it" in note for note in notes(tmp_path, label, feature))


HONEST: dict[str, Callable[[np.random.Generator, int], tuple[Any, Any]]] = {
    "strong": lambda rng, n: (x := rng.normal(size=n), x + 0.33 * rng.normal(size=n)),
    "strong and skewed": lambda rng, n: (x := rng.normal(size=n), np.exp(x + 0.33 * rng.normal(size=n))),
    "strong and wavy": lambda rng, n: (x := rng.uniform(-2, 2, n), np.sin(4 * x) + 0.2 * rng.normal(size=n)),
    "noise": lambda rng, n: (rng.normal(size=n), rng.normal(size=n)),
    "identifier": lambda rng, n: (rng.permutation(n) * 1.5, rng.normal(size=n)),
    "identifier of pairs": lambda rng, n: (np.arange(n) // 2 * 1.5, rng.normal(size=n)),
    "two values": lambda rng, n: (b := rng.integers(0, 2, n), 2.0 * b + 0.33 * rng.normal(size=n)),
    "three values": lambda rng, n: (b := rng.integers(0, 3, n), 1.2 * b + 0.33 * rng.normal(size=n)),
    "five names": lambda rng, n: (
        np.array(list("abcde"))[b := rng.integers(0, 5, n)],
        1.2 * b + 0.5 * rng.normal(size=n),
    ),
    "far groups": lambda rng, n: (b := rng.integers(0, 3, n), 10.0 * b + rng.normal(size=n)),
    "rare": lambda rng, n: (rng.random(n) < 0.02, rng.normal(size=n)),
    "mostly zero": lambda rng, n: (
        np.where((x := rng.normal(size=n)) > 1, x, 0),
        np.where(x > 1, x + 0.3 * rng.normal(size=n), 0),
    ),
    "counts": lambda rng, n: (c := rng.poisson(3, n), c + rng.poisson(1, n)),
    "one far out": lambda rng, n: (
        np.append(x := rng.normal(size=n - 1), 1e4),
        np.append(x + rng.normal(size=n - 1), 1e4),
    ),
}


@pytest.mark.parametrize("make", HONEST.values(), ids=HONEST)
@pytest.mark.parametrize("rows", [60, 300, 1500])
def test_honest_features_are_not_suspected(tmp_path: Path, make: Any, rows: int) -> None:
    for seed in range(3):
        feature, label = make(np.random.default_rng(seed), rows)
        said = notes(tmp_path, np.asarray(label, np.float64), feature)
        assert not any("away" in note for note in said)


def test_rows_that_stand_there_twice_do_not_make_features_suspect(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=120)
    feature, label = np.tile(x, 8), np.tile(x + rng.normal(size=120), 8)
    frame = pl.DataFrame({"f": feature, "other": np.tile(rng.normal(size=120), 8), "price": label})
    frame.write_parquet(tmp_path / "t.parquet")
    said = load(tmp_path / "t.parquet", tasks=PRICE).notes
    assert not any("away" in note for note in said)
    assert any("rows of test also stand in train" in note for note in said)  # which is what is wrong


def test_functions_of_few_rows_are_not_judged() -> None:
    values = np.arange(20.0)
    assert not follows(values % 4, values % 4)
    assert not steps(values, values > 10)
    assert follows(np.arange(300.0) % 10, np.arange(300.0) % 10)


# -- rows that two splits share ----------------------------------------------------------------------------------------


def shared(folder: Path, frame: pl.DataFrame, **options: Any) -> list[str]:
    frame.write_parquet(folder / "t.parquet")
    found = load(folder / "t.parquet", tasks={"y": {"kind": "binary"}}, **options).notes
    return [note for note in found if "value for value" in note]


@pytest.mark.parametrize("values", [4, 9])
def test_old_rows_are_no_news_in_a_table_of_few_different_ones(tmp_path: Path, values: int) -> None:
    rng = np.random.default_rng(1)
    frame = pl.DataFrame(
        {"a": rng.integers(0, values, 900), "b": rng.integers(0, values, 900), "y": rng.integers(0, 2, 900)}
    )
    assert shared(tmp_path, frame) == []


def test_a_row_that_is_the_same_by_chance_is_no_news(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    columns = {name: rng.integers(0, 8, 900) for name in "abcd"}
    assert shared(tmp_path, pl.DataFrame({**columns, "y": rng.integers(0, 2, 900)})) == []


@pytest.mark.parametrize(("copies", "said"), [(11, "11 rows of test also stand"), (1, "1 row of test also stands")])
def test_copies_among_rows_that_are_all_different_are_counted(tmp_path: Path, copies: int, said: str) -> None:
    rng = np.random.default_rng(3)
    frame = pl.DataFrame({name: rng.integers(0, 12, 600) for name in "abcdef"})
    frame = frame.with_columns(y=pl.Series(rng.integers(0, 2, 600)))
    parts = pl.Series("part", ["train"] * 450 + ["val"] * 100 + ["test"] * (50 + copies))
    found = shared(tmp_path, pl.concat([frame, frame.head(copies)]).with_columns(parts), split={"column": "part"})
    assert len(found) == 1
    assert found[0].startswith(f"{said} in train, value for value: scores on {'it' if copies == 1 else 'them'} flatter")


def test_a_table_whose_rows_all_stand_there_twice_is_told_of(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    frame = pl.DataFrame({"a": rng.normal(size=300), "b": rng.normal(size=300), "y": rng.integers(0, 2, 300)})
    assert len(shared(tmp_path, pl.concat([frame, frame]))) == 2
