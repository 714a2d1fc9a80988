"""A table of one's own: CSV, Parquet or Arrow files whose columns are features and labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field

from mtlcli.data.base import Batch, Dataset, MultiTaskData, NewRows, Split, fingerprint
from mtlcli.data.memory import available_mib
from mtlcli.data.tables.fitted import Fitted
from mtlcli.data.tables.gather import Gathered, Table, Wanted
from mtlcli.data.tables.kinds import As
from mtlcli.data.tables.labels import fitted_target
from mtlcli.data.tables.options import MISSING, SPLITS, SplitOptions, TaskOptions
from mtlcli.data.tables.reader import INDEX, KEY, OF_NEW_FILES, Faults, Reader
from mtlcli.data.tables.source import ROW, Source
from mtlcli.data.tables.splits import TRAIN, check_sizes, key_hashes
from mtlcli.data.tables.stream import streamed
from mtlcli.errors import MtlError, about, how_many
from mtlcli.options import Options as AnyOptions
from mtlcli.registry import datasets

SAMPLE = 100_000  # training rows of a stream that medians are taken from
SAMPLED_VALUES = 2**21


@datasets.register("table")
class OwnTable(Dataset):
    """A table of one's own: CSV, TSV, Parquet or Arrow files, with a column for every label.

    Columns: numbers are standardised; a missing one is replaced by the median, and a further input says so. Truth
    values are numbers, 0 and 1. Dates become days, besides weekday, month and hour where these differ. Texts become
    categories: a missing one is a category of its own, and one that training rows do not have gets code 0. Dropped are
    texts that are nearly all different, whole numbers that are all different in a column called like an identifier, and
    columns that never change. `mtl check` shows what becomes of every column; `columns` corrects it. What a column of a
    CSV file holds is judged by up to 100,000 rows spread over the file. Where fields are separated by another mark than
    the comma, numbers may have a decimal comma, and points between thousands; `1,234` is 1.234 then, unless whole
    numbers stand in the same column. All statistics come from the training rows alone.

    Labels: what is empty is not known, and counts for nothing. Two values of a binary task are 0 and 1 in their order,
    unless `positive` names the second; words such as No and yes are 0 and 1 by their meaning, however they are spelled.

    Splits: random by `seed`, whole keys with `by`, as a `column` says, or with test rows in files of their own
    (`test_path`).

    Streams: a table whose rows take more than `memory_mib` is read block by block in every epoch, in an order drawn
    anew, and shuffled within `shuffle_rows` rows; `stream` decides otherwise. Which split a row belongs to then follows
    from a hash of the seed and its number or key, so that shares hold on average, and medians come from a sample of
    100,000 training rows.
    In memory at a time, never all rows: two blocks, each of 65,536 rows or 2,097,152 values at most (or 1,024 rows; of
    text, 16 MiB), besides what it takes to decode one, for Parquet its row groups; and the rows that are shuffled,
    `shuffle_rows` x (4 bytes an input, 1 to 4 a label).

    Raises MtlError with file and row for a bad value, OptionError for an option that does not fit.
    """

    class Options(AnyOptions):
        """Where the files are, and what their columns mean."""

        path: Path | Annotated[list[Path], Field(min_length=1)] = Field(
            description="a file, a folder, a pattern such as parts/*.parquet, or several"
        )
        tasks: dict[str, TaskOptions] = Field(min_length=1, description="what to predict, by name")
        features: Literal["auto"] | list[str] = Field("auto", description="columns to predict from; auto: all others")
        drop: list[str] = Field([], description="columns to leave out")
        columns: dict[str, As] = Field({}, description="what a column holds, where it is not seen rightly")
        split: SplitOptions = Field(SplitOptions(), description="how rows become train, val and test")
        missing: list[str] = Field(MISSING, description="texts that stand for a missing value")
        on_error: Literal["stop", "skip"] = Field("stop", description="at a bad row; skip leaves it out, and counts")
        stream: Literal["auto"] | bool = Field("auto", description="read blocks, instead of holding all rows")
        # Not what is free at the moment: a stream has other splits, and a run must find its own again.
        memory_mib: int = Field(4096, ge=1, description="rows that take more are streamed, with stream: auto")
        shuffle_rows: int = Field(131_072, ge=1, description="rows that a stream shuffles at a time")

    options: Options

    def load(self) -> MultiTaskData:
        """One pass over the rows; a stream reads them again in every epoch."""
        options, split = self.options, self.options.split
        with about("path"):
            source = Source.at(options.path, options.missing)
        test = None
        if split.test_path is not None:
            with about("split.test_path"):
                test = Source.at(split.test_path, options.missing, list(source.decimal_commas))
        stream = source.decoded_mib > options.memory_mib if options.stream == "auto" else options.stream
        wanted = Wanted(
            tasks=options.tasks,
            features=None if options.features == "auto" else options.features,
            drop=options.drop,
            columns=options.columns,
            split=split,
            skip=options.on_error == "skip",
            sample=min(SAMPLE, max(1024, SAMPLED_VALUES // max(1, len(source.types)))),
        )
        table = Table.judge(wanted, source, test)
        found = table.gather(keep=not stream)
        check_sizes(split, dict(zip(SPLITS, found.profile.rows.tolist(), strict=True)))
        fitted, uses, notes = table.fit(found)
        if not stream and source.decoded_mib > available_mib() / 2:
            notes = [*notes, _too_large(source.decoded_mib)]
        splits: Mapping[str, Any] = _resident(found, fitted, split)
        if stream:
            splits = streamed(table, found, fitted, options.shuffle_rows)
        meaning = {
            "dataset": self.name,
            "tasks": [asdict(task) for task in fitted.tasks],
            "features": asdict(fitted.features),
        }
        if stream:
            content = [each.digest() for each in (source, test) if each is not None]
            meaning |= {"content": content, "split": split.definition(), "fitted": fitted.model_dump(mode="json")}
            digest = fingerprint(meaning, {})
        else:
            digest = fingerprint(meaning, splits)
        fitted = fitted.model_copy(update={"fingerprint": digest})
        return MultiTaskData(
            fitted.tasks,
            fitted.features,
            splits,
            digest,
            fitted=fitted.model_dump(mode="json"),
            notes=tuple(notes),
            columns=tuple(uses),
        )

    def restore(self, fitted: Mapping[str, Any]) -> MultiTaskData:
        """Tasks and features as they were fitted."""
        known = Fitted.of(fitted)
        return MultiTaskData(known.tasks, known.features, {}, known.fingerprint, fitted=fitted)

    def read(
        self,
        path: Path,
        fitted: Mapping[str, Any],
        labels: bool = True,
        on_error: str | None = None,
    ) -> NewRows:
        """All rows of the files at `path`, in order. Other columns than in training are passed over with a note."""
        import polars as pl

        known = Fitted.of(fitted)
        source = Source.at(path, known.missing, known.decimal_commas)
        source.require([column.name for column in known.columns], "the training data")
        targets = [fitted_target(label) for label in known.labels if labels and label.column in source.types]
        reader = Reader(source, {column.name: column.held for column in known.columns}, targets)
        faults = Faults((on_error or self.options.on_error) == "skip", OF_NEW_FILES)
        key = known.key if known.key in source.types else None
        parts, rows, carried = [], [], []
        unseen: dict[str, tuple[int, str | None]] = {}
        for block in source.blocks:
            frame = reader.read(block, faults)
            parts.append(known.encode(frame))
            for name, (count, example) in known.unseen(frame, parts[-1]).items():
                before, first = unseen.get(name, (0, None))
                unseen[name] = before + count, first or example
            rows += (frame[ROW] + 1).to_list()
            if key is not None:
                whole = source.read(block, [key])
                carried.append(whole.filter(pl.col(ROW).is_in(frame[ROW].implode())).select(key))
        if not rows:
            raise MtlError(f"{source.files[0]}: has no row that can be used{f': {faults.note}' if faults.note else ''}")
        used = {column.name for column in known.columns} | {label.column for label in known.labels} | {*known.ignored}
        extra = [name for name in source.types if name not in used and name != known.key]
        notes = [f"columns that training did not have are passed over: {', '.join(extra)}"] if extra else []
        notes += [faults.note] if faults.note else []
        notes += [_unseen(name, count, len(rows), example) for name, (count, example) in unseen.items()]
        return NewRows(
            files=source.files,
            split=_split(parts),
            rows=rows,
            left_out=faults.count,
            labels=tuple(target.task for target in targets),
            # The same numbers may be of other types in other files.
            carried={} if key is None else {key: pl.concat(carried, how="vertical_relaxed")[key].to_list()},
            notes=tuple(notes),
            classes={label.name: label.values for label in known.labels},
        )


def _unseen(column: str, count: int, rows: int, example: str | None) -> str:
    """What to tell of rows with categories that are new, or without a value that was always there."""
    hold, values = ("holds", "a value") if count == 1 else ("hold", "values")
    what = f"{values} that training did not have (such as '{example}')"
    if example is None:
        what = "no value, where every training row had one"
    return f"column '{column}': {count:,} of {how_many(rows, 'row')} {hold} {what}"


def _too_large(mib: float) -> str:
    return (
        f"the rows take about {mib:,.0f} MiB, more than half of what is available; data.stream: true reads them block "
        "by block instead (its splits are other ones)"
    )


def _resident(found: Gathered, fitted: Fitted, options: SplitOptions) -> dict[str, Split]:
    """All rows as tensors."""
    import polars as pl

    splits = {}
    for code, name in enumerate(SPLITS):
        frames = [frame.filter(pl.Series(codes == code)) for frame, codes in found.frames]
        if not frames:
            continue
        splits[name] = _split([fitted.encode(frame) for frame in frames])
        if options.by is not None and code == TRAIN:  # of these alone rows are held out
            keys = [key_hashes(frame[KEY], frame[INDEX].to_numpy(), options.seed) for frame in frames]
            splits[name] = replace(splits[name], keys=torch.from_numpy(np.concatenate(keys).view(np.int64)))
    return splits


def _split(parts: list[Batch]) -> Split:
    def joined(side: str) -> dict[str, torch.Tensor]:
        names = getattr(parts[0], side)
        return {name: torch.cat([getattr(part, side)[name] for part in parts]) for name in names}

    return Split(joined("inputs"), joined("targets"))
