"""Pictures of one's own: a folder of files and a table of labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field, field_validator

from mtlcli.data import imagefiles
from mtlcli.data.augment import DESCRIPTION, Change, augmentation
from mtlcli.data.base import Dataset, ImageFeatures, MultiTaskData
from mtlcli.data.imagefiles import Cache, Shape
from mtlcli.data.tables import labels
from mtlcli.data.tables.fitted import Fitted, Label
from mtlcli.data.tables.gather import Gathered, Table, Wanted
from mtlcli.data.tables.options import SPLITS, SplitOptions, TaskOptions
from mtlcli.data.tables.reader import where
from mtlcli.data.tables.source import ROW, Source
from mtlcli.data.tables.splits import check_sizes
from mtlcli.errors import MtlError, OptionError
from mtlcli.options import Options as AnyOptions
from mtlcli.registry import datasets

if TYPE_CHECKING:
    import polars as pl

MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None")
IMAGENET = {3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), 1: ((0.449,), (0.226,))}
SHOWN = 3


@datasets.register("images")
class Images(Dataset):
    """Pictures of one's own: a folder of files, and a table that names them and holds a column for every label.

    The table is a CSV, TSV, Parquet or Arrow file; `file_column` holds names below the folder `path`, and a column for
    every task its labels, empty where they are not known. `tasks` and `split` are those of tables: kinds binary,
    multiclass and regression; random splits, by key, or as a column says. Other columns are passed over.

    Every format that Pillow reads will do, with 8 bits a channel. Pictures are turned upright as their EXIF says,
    brought to `channels`, and resized to `size`, the aspect ratio not kept. Networks read them normalised by ImageNet's
    mean and deviation. Before training every file is decoded once, by worker processes; where the pictures take at most
    half of the memory that is available they stay there, else the workers decode them anew for every batch.

    `augment` changes training pictures at random, on the device, each picture by its own draw but for `trivial`.

    A name never leads out of the folder: absolute names, `..` and links to the outside are refused, always. A file that
    is absent or no image, a name that stands twice or is missing, and a bad label end it with the row and the file;
    `on_error: skip` leaves these rows out, of a repeated name all but the first, and counts them.

    Raises MtlError with row and file, OptionError for an option that does not fit.
    """

    class Options(AnyOptions):
        """Where pictures and labels are, and what becomes of them."""

        path: Path = Field(description="the folder of the pictures")
        labels: Path = Field(description="the table of labels")
        file_column: str = Field("file", description="the column with the names of the files, below `path`")
        tasks: dict[str, TaskOptions] = Field(min_length=1, description="what to predict, by name")
        size: tuple[int, int] = Field(description="height and width that pictures are resized to")
        channels: Literal[1, 3] = Field(3, description="3: colour; 1: grey")
        augment: list[Change] | None = Field(None, description=DESCRIPTION)
        split: SplitOptions = Field(SplitOptions.model_validate({}), description="how rows become train, val and test")
        cache: Cache = Field("auto", description="pictures in memory, or decoded for every batch; auto: where they fit")
        workers: int | None = Field(None, ge=0, description="processes that decode; null: one a core, up to 8")
        on_error: Literal["stop", "skip"] = Field("stop", description="at a bad row; skip leaves it out, and counts")

        @field_validator("size")
        @classmethod
        def _positive(cls, size: tuple[int, int]) -> tuple[int, int]:
            if min(size) < 1:
                raise ValueError(f"should be two numbers of at least 1, height and width; found {list(size)}")
            return size

    options: Options

    def load(self) -> MultiTaskData:
        """One pass over the table, one over the files."""
        options = self.options
        if options.split.test_path is not None:
            raise OptionError("split.test_path", "is for tables; let `split.column` say which rows are for the test")
        if not options.path.is_dir():
            raise OptionError("path", f"should be a folder; found none at {options.path}")
        source = Source.at(options.labels, MISSING)
        found, frame, codes = self._table(source)
        skipped = _Skipped(options.on_error == "skip", source)
        paths = self._paths(frame, skipped)
        shape = Shape(options.channels, *options.size)
        sound = [row for row in range(len(frame)) if row not in skipped.rows]
        scanned = imagefiles.scan([paths[row] for row in sound], shape, options.cache, options.workers)
        for place, fault in scanned.faults.items():
            skipped.add(sound[place], int(frame[ROW][sound[place]]), f"{paths[sound[place]]}: {fault}")
        # Rows of a split lie together, so that each is a stretch of the pictures in memory.
        rows = {
            name: torch.tensor(
                [place for place, row in enumerate(sound) if codes[row] == code and place not in scanned.faults]
            )
            for code, name in enumerate(SPLITS)
        }
        check_sizes(options.split, {name: len(index) for name, index in rows.items()})
        fitted, notes = self._labels(found)
        encoded = fitted.encode(frame[sound]).targets
        targets = {name: {task: values[index] for task, values in encoded.items()} for name, index in rows.items()}
        mean, std = IMAGENET[options.channels]
        features = ImageFeatures(*shape, mean, std)
        meaning = {
            "dataset": self.name,
            "tasks": [asdict(task) for task in fitted.tasks],
            "features": asdict(features),
        }
        kept = [paths[row] for row in sound]
        return MultiTaskData(
            fitted.tasks,
            features,
            imagefiles.splits(kept, scanned, rows, targets, features, options.workers),
            imagefiles.digest(meaning, scanned, rows, targets),
            augment=augmentation(options.augment) if options.augment else None,
            notes=(*notes, *([skipped.note] if skipped.note else [])),
        )

    def _table(self, source: Source) -> tuple[Gathered, pl.DataFrame, Sequence[int]]:
        """What one pass over the table found; its rows, ordered by split, and the split of each."""
        import polars as pl

        options = self.options
        if len(source.files) > 1:
            raise OptionError("labels", f"should be one file; found {len(source.files)} at {options.labels}")
        column = options.file_column
        if column in {task.column or name for name, task in options.tasks.items()}:
            raise OptionError(
                "file_column", f"the column '{column}' is the label of a task; name the one with the files"
            )
        wanted = Wanted(
            tasks=options.tasks,
            features=[column],
            drop=[],
            columns={column: "categorical"},
            split=options.split,
            skip=options.on_error == "skip",
            sample=None,
        )
        try:
            found = Table.judge(wanted, source, None).gather(keep=True)
        except OptionError as error:
            # A table names its inputs under other keys.
            option = "file_column" if error.option in ("features", "columns") else error.option
            raise OptionError(option, error.message) from None
        frame, codes = found.frames[0]
        ordered = frame.with_columns(pl.Series("\0code", codes)).sort("\0code", maintain_order=True)
        return found, ordered.drop("\0code"), ordered["\0code"].to_list()

    def _paths(self, frame: pl.DataFrame, skipped: _Skipped) -> list[str]:
        """Of every row. Raises MtlError for one that leads out of the folder."""
        inside = self.options.path.resolve()
        first: dict[str, int] = {}
        paths = []
        for row, (name, number) in enumerate(zip(frame[self.options.file_column], frame[ROW], strict=True)):
            path = self.options.path / (name or "")
            paths.append(str(path))
            if name is None:
                skipped.add(row, number, f"names no file in the column '{self.options.file_column}'")
            elif PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\0" in name:
                raise MtlError(f"{skipped.where(number)}: should name a file below {self.options.path}; found {name!r}")
            elif not path.resolve().is_relative_to(inside):
                raise MtlError(
                    f"{skipped.where(number)}: {path} is a link to {path.resolve()}, outside of {self.options.path}; "
                    "copy the file into the folder"
                )
            elif (key := str(PurePosixPath(name))) in first:
                skipped.add(row, number, f"{path} already stands in row {first[key] + 1}")
            elif not path.is_file():
                skipped.add(row, number, f"there is no file {path}")
            else:
                first[key] = number
        return paths

    def _labels(self, found: Gathered) -> tuple[Fitted, list[str]]:
        """The tasks, and what a person should know of them and of rows with bad labels."""
        fitted: list[Label] = []
        notes = [found.faults.note] if found.faults.note else []
        for target in found.targets:
            options, counts = self.options.tasks[target.task], {}
            if target.kind != "regression":
                of_train = found.profile.labels[target.task].filter(split=0)
                counts = dict(zip(of_train["value"].to_list(), of_train["count"].to_list(), strict=True))
                notes += labels.notes(target, options, counts)
            fitted.append(labels.label(target, options, counts, found.profile.label_moments.get(target.task)))
        return Fitted(columns=[], labels=fitted, missing=list(MISSING)), notes


class _Skipped:
    """Rows without a picture: the first one ends it, or all are counted."""

    def __init__(self, skip: bool, source: Source) -> None:
        self.skip, self.source = skip, source
        self.rows: set[int] = set()
        self.examples: list[str] = []

    def where(self, number: int) -> str:
        """A row of the table, by its number."""
        return where(next(b for b in self.source.blocks if b.start <= number < b.start + b.rows), number)

    def add(self, row: int, number: int, message: str) -> None:
        """`row` of those that were read, which is `number` in the table. Raises MtlError unless rows are left out."""
        if not self.skip:
            raise MtlError(
                f"{self.where(number)}: {message}; correct it, or leave such rows out with data.on_error: skip"
            )
        self.rows.add(row)
        self.examples.append(f"{self.where(number)}: {message}")

    @property
    def note(self) -> str | None:
        """What to tell about the rows that were left out."""
        if not self.rows:
            return None
        more = "; ..." if len(self.examples) > SHOWN else ""
        return (
            f"{len(self.rows):,} rows without a usable picture were left out (data.on_error: skip): "
            f"{'; '.join(self.examples[:SHOWN])}{more}"
        )
