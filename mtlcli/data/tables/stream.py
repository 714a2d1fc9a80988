"""Splits of a table that is larger than memory: blocks are read as they are needed, and let go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from mtlcli.data.base import BaseSplit, Batch, Loader
from mtlcli.data.loader import EPOCHS
from mtlcli.data.tables.fitted import Fitted
from mtlcli.data.tables.gather import Gathered, Table
from mtlcli.data.tables.options import SPLITS
from mtlcli.data.tables.reader import INDEX, KEY, Faults, Reader
from mtlcli.data.tables.source import Block
from mtlcli.data.tables.splits import drawn, key_hashes, row_hashes
from mtlcli.errors import OptionError
from mtlcli.tasks import Task

HELD_OUT = 2**20  # added to a seed: rows held out do not follow from the split


@dataclass(frozen=True)
class Stretch:
    """A block with some rows of the split."""

    reader: Reader
    test: bool  # whether the file holds test rows alone
    block: Block
    rows: int


@dataclass(frozen=True)
class Part:
    """A share of a split: the rows whose hash is below `fraction`, or all others."""

    fraction: float
    seed: int
    below: bool


@dataclass(frozen=True)
class StreamSplit(BaseSplit):
    """Rows of one split, in files."""

    table: Table
    fitted: Fitted
    code: int  # of SPLITS
    stretches: tuple[Stretch, ...]
    counts: dict[str, int]  # labelled rows by task
    tasks: tuple[str, ...]
    shuffle_rows: int
    part: Part | None = None
    device: torch.device | None = None  # None: where the rows are read

    def __len__(self) -> int:
        return sum(stretch.rows for stretch in self.stretches)

    def loader(self, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> Loader:
        """Blocks in a new order every epoch, shuffled within `shuffle_rows` rows; every rank reads all blocks."""
        return StreamLoader(self, batch_size, seed, rank, world)

    def batches(self, size: int) -> Iterator[Batch]:
        """Block after block; the last batch of each may be smaller."""
        for stretch in self.stretches:
            rows = self.encoded(stretch)
            for start in range(0, stretch.rows, size):
                yield self.placed(_rows(rows, slice(start, start + size)))

    def labelled(self, task: Task) -> int:
        """As it was counted when the statistics were."""
        return self.counts[task.name]

    def select(self, tasks: Sequence[str]) -> StreamSplit:
        """The same rows; other labels are not kept."""
        return replace(self, tasks=tuple(tasks))

    def to(self, device: torch.device) -> StreamSplit:
        """The same files; every batch is moved by itself."""
        return replace(self, device=device)

    def hold_out(self, fraction: float, seed: int) -> tuple[StreamSplit, StreamSplit]:
        """By a hash of every row's number, or key; reads all rows once, to count them."""
        parts = []
        for below in (False, True):
            part = replace(self, part=Part(fraction, seed, below))
            stretches, counts = [], dict.fromkeys(self.counts, 0)
            for stretch in self.stretches:
                rows = part.encoded(stretch)
                size = len(next(iter(rows.inputs.values())))
                stretches += [replace(stretch, rows=size)] if size else []
                for task in self.fitted.tasks:
                    if task.name in rows.targets:
                        counts[task.name] += int(task.present(rows.targets[task.name]).sum())
            if not stretches:
                raise OptionError(
                    "held_out", f"{fraction} of {len(self)} training rows leaves one of the two parts empty"
                )
            parts.append(replace(part, stretches=tuple(stretches), counts=counts))
        return parts[0], parts[1]

    def placed(self, batch: Batch) -> Batch:
        """`batch` on the device that `to` was asked for."""
        return batch if self.device is None else batch.to(self.device)

    def encoded(self, stretch: Stretch) -> Batch:
        """The rows of the split in one block."""
        import polars as pl

        # Bad rows were reported, or counted, by the pass that gathered the statistics.
        frame = stretch.reader.read(stretch.block, Faults(self.table.wanted.skip))
        wanted = self.table.codes(frame, stretch.test, drawn) == self.code
        if self.part is not None:
            index, by = frame[INDEX].to_numpy(), self.table.wanted.split.by
            seed = self.part.seed + HELD_OUT
            hashes = row_hashes(index, seed) if by is None else key_hashes(frame[KEY], index, seed)
            wanted &= (hashes.astype(np.float64) / 2.0**64 < self.part.fraction) == self.part.below
        batch = self.fitted.encode(frame.filter(pl.Series(wanted)))
        return Batch(batch.inputs, {name: batch.targets[name] for name in self.tasks})


class StreamLoader:
    """Shuffled batches of a stream.

    Rows pass in the order of the blocks, which is drawn for every epoch, through a window of `shuffle_rows` rows (as
    many whole batches as fit). A window is shuffled as a whole. Both orders follow from `seed` and the epoch alone, and
    since the rows of every block are known, an epoch can begin at any step without reading what lies before its window.
    """

    def __init__(self, split: StreamSplit, batch_size: int, seed: int, rank: int, world: int) -> None:
        self.split, self.batch_size, self.seed, self.rank, self.world = split, batch_size, seed, rank, world
        self.steps_per_window = max(1, split.shuffle_rows // batch_size)
        self._endless: Iterator[Batch] = iter(())
        self._latest: tuple[int, Batch | None] = (-1, None)  # step and batch of `endless`

    def __len__(self) -> int:
        """Steps an epoch; the last batch may be smaller."""
        return -(-len(self.split) // self.batch_size)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of `epoch`, starting at its step `first_step`."""
        first, skipped = divmod(first_step, self.steps_per_window)
        for window, rows in enumerate(self._windows(epoch, first), first):
            size = len(next(iter(rows.inputs.values())))
            order = torch.randperm(size, generator=self._generator(epoch, window + 1))
            for start in range(skipped * self.batch_size, size, self.batch_size):
                index = order[start : start + self.batch_size]
                yield self.split.placed(_rows(rows, index if self.world == 1 else index[self.rank :: self.world]))
            skipped = 0

    def endless(self, step: int) -> Batch:
        """Batch number `step` of a stream that reshuffles whenever the rows are used up."""
        latest, batch = self._latest
        if step == latest and batch is not None:
            return batch
        if step <= latest or batch is None or step - latest > self.steps_per_window:
            self._endless, latest = self._from(step), step - 1
        batch = next(islice(self._endless, step - latest - 1, None))
        self._latest = step, batch
        return batch

    def _from(self, step: int) -> Iterator[Batch]:
        epoch, first = divmod(step, len(self))
        while True:
            yield from self.epoch(epoch, first)
            epoch, first = epoch + 1, 0

    def _windows(self, epoch: int, first: int) -> Iterator[Batch]:
        """Consecutive rows, a window at a time, from window `first` on. Each window overwrites the one before."""
        size = self.steps_per_window * self.batch_size
        skip, left = first * size, len(self.split) - first * size
        window: Batch | None = None
        filled = 0
        order = torch.randperm(len(self.split.stretches), generator=self._generator(epoch, 0))
        stretches = [self.split.stretches[i] for i in order.tolist()]
        while stretches and skip >= stretches[0].rows:
            skip -= stretches.pop(0).rows
        for stretch, rows in self._read_ahead(stretches):
            at, skip = skip, 0
            while at < stretch.rows:
                if window is None:
                    window = _empty_like(rows, min(size, left))
                count = min(stretch.rows - at, min(size, left) - filled)
                _copy(rows, slice(at, at + count), window, slice(filled, filled + count))
                at, filled = at + count, filled + count
                if filled == min(size, left):
                    yield _rows(window, slice(0, filled))
                    left, filled = left - filled, 0

    def _read_ahead(self, stretches: Sequence[Stretch]) -> Iterator[tuple[Stretch, Batch]]:
        """Every stretch with its rows; the next is read while this one is used."""
        with ThreadPoolExecutor(1, "mtl-reader") as reader:
            coming = [reader.submit(self.split.encoded, stretch) for stretch in stretches[:1]]
            for number, stretch in enumerate(stretches):
                rows = coming.pop().result()
                coming += [reader.submit(self.split.encoded, each) for each in stretches[number + 1 : number + 2]]
                yield stretch, rows

    def _generator(self, epoch: int, number: int) -> torch.Generator:
        return torch.Generator().manual_seed(((self.seed * EPOCHS + epoch) * EPOCHS + number) % 2**63)


def streamed(table: Table, found: Gathered, fitted: Fitted, shuffle_rows: int) -> dict[str, StreamSplit]:
    """The splits of a table whose rows were counted but not kept."""
    readers = {id(reader.source): (reader, test) for reader, test in table.readers(found.targets)}
    splits = {}
    for code, name in enumerate(SPLITS):
        stretches = tuple(
            Stretch(*readers[id(source)], block, int(rows[code])) for source, block, rows in found.counts if rows[code]
        )
        counts = {task: int(each[code]) for task, each in found.profile.labelled.items()}
        splits[name] = StreamSplit(table, fitted, code, stretches, counts, tuple(counts), shuffle_rows)
    return splits


def _rows(batch: Batch, index: Tensor | slice) -> Batch:
    inputs, targets = ({n: t[index] for n, t in held.items()} for held in (batch.inputs, batch.targets))
    return Batch(inputs, targets)


def _empty_like(batch: Batch, rows: int) -> Batch:
    inputs, targets = (
        {n: t.new_empty((rows, *t.shape[1:])) for n, t in held.items()} for held in (batch.inputs, batch.targets)
    )
    return Batch(inputs, targets)


def _copy(source: Batch, where: slice, target: Batch, place: slice) -> None:
    for given, taken in ((source.inputs, target.inputs), (source.targets, target.targets)):
        for name, tensor in given.items():
            taken[name][place] = tensor[where]
