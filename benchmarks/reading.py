"""Rows per second that a table of one's own gives to training: held in memory, and streamed from a file.

    python benchmarks/reading.py [--rows 1000000] [--columns 40] [--batch 1024] [--rounds 5] [--json]

The table has `--columns` numeric columns and two labels. It is written to a temporary folder, in row groups of 262,144
rows, and as text. Each way reads one epoch of shuffled batches a round, and all take turns, so that they see the same
machine:

resident      the dataset `table` with `stream: false`
parquet       the dataset `table` with `stream: true`, which reads the file anew every epoch
csv           the same from a CSV file
dataloader    torch's DataLoader over the same tensors, without workers, a batch a time from a shuffled sampler
collated      torch's DataLoader as it is mostly used: rows one by one, put together by its default collation

Shown are medians over rounds. The machine's load says whether anything else ran.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from mtlcli.data.table import OwnTable
from mtlcli.options import parse


def write(folder: Path, rows: int, columns: int) -> dict[str, Path]:
    """Files, by kind, with a table of standard normal columns with a binary and a regression label."""
    rng = np.random.default_rng(0)
    frame = pl.DataFrame({f"x{j}": rng.standard_normal(rows, np.float32) for j in range(columns)})
    labels = {"yes": (frame["x0"] > 1).cast(pl.Int8), "amount": frame["x1"] + rng.standard_normal(rows, np.float32)}
    frame, files = frame.with_columns(**labels), {kind: folder / f"table.{kind}" for kind in ("parquet", "csv")}
    frame.write_parquet(files["parquet"], row_group_size=262_144)
    frame.write_csv(files["csv"])
    return files


def load(path: Path, stream: bool) -> Any:
    """The training split, with nearly all rows."""
    options = {
        "path": str(path),
        "tasks": {"yes": {"kind": "binary"}, "amount": {"kind": "regression"}},
        "split": {"val": 0.01, "test": 0.01},
        "stream": stream,
    }
    return OwnTable(parse(OwnTable.Options, options, "benchmark")).load().splits["train"]


def ways(files: dict[str, Path], batch: int) -> dict[str, Callable[[int], Iterator[int]]]:
    """Name -> an epoch as the sizes of its batches."""
    resident = load(files["parquet"], False)
    tensors = TensorDataset(resident.inputs["numeric"], *resident.targets.values())

    def ours(split: Any) -> Callable[[int], Iterator[int]]:
        loader = split.loader(batch, seed=0)
        return lambda epoch: (len(rows.inputs["numeric"]) for rows in loader.epoch(epoch))

    def theirs(epoch: int) -> Iterator[int]:
        sampler = BatchSampler(RandomSampler(tensors), batch, drop_last=False)
        return (len(rows[0]) for rows in DataLoader(tensors, sampler=sampler, batch_size=None))

    def collated(epoch: int) -> Iterator[int]:
        return (len(rows[0]) for rows in DataLoader(tensors, batch, shuffle=True))

    streamed = {kind: ours(load(file, True)) for kind, file in files.items()}
    return {"resident": ours(resident), **streamed, "dataloader": theirs, "collated": collated}


def measure(files: dict[str, Path], batch: int, rounds: int) -> dict[str, int]:
    """Median rows per second of every way."""
    each = ways(files, batch)
    seconds: dict[str, list[float]] = {name: [] for name in each}
    counted = dict.fromkeys(each, 0)
    for epoch in range(rounds + 1):  # the first is not counted
        for name, way in each.items():
            begun = time.perf_counter()
            counted[name] = sum(way(epoch))
            if epoch:
                seconds[name].append(time.perf_counter() - begun)
    return {name: round(counted[name] / statistics.median(seconds[name])) for name in each}


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--columns", type=int, default=40)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(write(Path(folder), given.rows, given.columns), given.batch, given.rounds)
    about = {
        "rows": given.rows,
        "columns": given.columns,
        "batch": given.batch,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": [round(value, 2) for value in os.getloadavg()],
    }
    if given.json:
        json.dump({**about, "rows_per_second": found}, sys.stdout, indent=2)
        print()
        return
    table = Table(title=", ".join(f"{name} {value}" for name, value in about.items()))
    for heading in ("way", "rows per second", "against dataloader"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    for name, speed in found.items():
        table.add_row(name, f"{speed:,}", f"{speed / found['dataloader']:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
