"""Small tables for tests: files of rows, and the dataset on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from mtlcli.data.base import MultiTaskData
from mtlcli.options import check, parse
from mtlcli.registry import datasets


def customers(rows: int = 400, seed: int = 0) -> pl.DataFrame:
    """Columns of every kind, some values and labels missing."""
    rng = np.random.default_rng(seed)
    score = rng.standard_normal(rows)
    age = pl.Series(rng.integers(18, 80, rows)).set(pl.Series(rng.random(rows) < 0.1), None)
    city = pl.Series(rng.choice(["Bern", "Lima", "Oslo"], rows)).set(pl.Series(rng.random(rows) < 0.1), None)
    churn = pl.Series(np.where(score + rng.standard_normal(rows) > 0, "yes", "no"))
    segment = pl.Series(np.array(["A", "B", "C"])[np.clip(score + rng.standard_normal(rows) + 1.5, 0, 2).astype(int)])
    spend = pl.Series(np.exp(score + 0.5 * rng.standard_normal(rows) + 2).round(2))
    return pl.DataFrame(
        {
            "user": rng.integers(0, rows // 4, rows),
            "age": age,
            "city": city,
            "since": pl.Series(np.datetime64("2020-01-01") + rng.integers(0, 900, rows)).cast(pl.Date),
            "score": score,
            "vip": rng.random(rows) < 0.3,
            "churn": churn.set(pl.Series(rng.random(rows) < 0.1), None),
            "segment": segment,
            "spend": spend.set(pl.Series(rng.random(rows) < 0.1), None),
        }
    )


TASKS: dict[str, Any] = {
    "churn": {"kind": "binary"},
    "segment": {"kind": "multiclass"},
    "spend": {"kind": "regression", "transform": "log1p", "unit": "dollars"},
}


def dataset(path: Path | list[str], **options: Any) -> Any:
    """The dataset on the files at `path`."""
    cls: Any = datasets.get("table")
    return cls(
        parse(cls.Options, {"path": path if isinstance(path, list) else str(path), "tasks": TASKS, **options}, "test")
    )


def load(path: Path | list[str], **options: Any) -> MultiTaskData:
    """Its rows."""
    data: MultiTaskData = dataset(path, **options).load()
    return data


def problems(**options: Any) -> str:
    """What is wrong with options that cannot be."""
    cls: Any = datasets.get("table")
    return "\n".join(f"{p.path}: {p.message}" for p in check(cls.Options, options, "data")[1])


def csv(folder: Path, text: str, name: str = "t.csv") -> Path:
    """A file with this text."""
    path = folder / name
    path.write_text(text)
    return path


def lines(rows: int = 40, **changed: str) -> str:
    """`x,c,y`: a number, one of three texts, 0 or 1; `r5="..."` writes another row 5 (from 1)."""
    written = [f"{i + 0.5},{'abc'[i % 3]},{i * 7 % 10 // 5}" for i in range(rows)]
    for key, text in changed.items():
        written[int(key[1:]) - 1] = text
    return "x,c,y\n" + "\n".join(written) + "\n"


Y: dict[str, Any] = {"y": {"kind": "binary"}}
