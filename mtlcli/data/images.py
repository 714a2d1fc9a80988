"""Pictures of one's own: a folder of files and a table of labels."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import Field, field_validator

from mtlcli.data import imagefiles
from mtlcli.data.augment import DESCRIPTION, Change, augmentation
from mtlcli.data.base import Dataset, ImageFeatures, MultiTaskData, NewRows
from mtlcli.data.imagefiles import Cache, OnError, Scanned, Shape, Skipped
from mtlcli.data.tables import labels
from mtlcli.data.tables.fitted import Fitted
from mtlcli.data.tables.gather import Gathered, Table, Wanted
from mtlcli.data.tables.kinds import Held
from mtlcli.data.tables.labels import fitted_target
from mtlcli.data.tables.options import MISSING, SPLITS, SplitOptions, TaskOptions
from mtlcli.data.tables.profile import Profile
from mtlcli.data.tables.reader import INDEX, KEY, OF_NEW_FILES, Faults, Reader, Target, where
from mtlcli.data.tables.source import ROW, Source
from mtlcli.data.tables.splits import Codes, check_sizes, key_hashes
from mtlcli.errors import MtlError, OptionError, about
from mtlcli.options import Options as AnyOptions
from mtlcli.registry import datasets

if TYPE_CHECKING:
    import polars as pl

Place = Callable[[int], str]  # where the row with a number is, for messages


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

    `mtl predict` and `mtl eval --data` take a table like that of the labels, with names below `path`; `mtl predict`
    also takes any folder, and reads all pictures in it.

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
        on_error: OnError = Field("stop", description="at a bad row; skip leaves it out, and counts")

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
        with about("labels"):
            source = Source.at(options.labels, MISSING)
        found, frame, codes = self._table(source)
        skipped = Skipped(options.on_error)
        place = partial(_where, source)
        paths = self._paths(options.path, frame, place, skipped)
        features = self._features()
        sound = [row for row in range(len(frame)) if row not in skipped.rows]
        scanned = self._scan(paths, sound, frame[ROW], place, skipped)
        # Rows of a split lie together, so that each is a stretch of the pictures in memory.
        rows = {
            name: torch.tensor(
                [place for place, row in enumerate(sound) if codes[row] == code and place not in scanned.faults]
            )
            for code, name in enumerate(SPLITS)
        }
        check_sizes(options.split, {name: len(index) for name, index in rows.items()})
        kept = [row for row in range(len(frame)) if row not in skipped.rows]
        fitted, notes = self._labels(found, frame[kept], np.array([codes[row] for row in kept], np.int8))
        encoded = fitted.encode(frame[sound]).targets
        targets = {name: {task: values[index] for task, values in encoded.items()} for name, index in rows.items()}
        keys = None
        if options.split.by is not None:
            own = frame[sound][rows["train"].tolist()]
            hashes = key_hashes(own[KEY], own[INDEX].to_numpy(), options.split.seed)
            keys = torch.from_numpy(hashes.view(np.int64))
        meaning = {
            "dataset": self.name,
            "tasks": [asdict(task) for task in fitted.tasks],
            "features": asdict(features),
        }
        digest = imagefiles.digest(meaning, scanned, rows, targets)
        return MultiTaskData(
            fitted.tasks,
            features,
            imagefiles.splits([paths[row] for row in sound], scanned, rows, targets, features, options.workers, keys),
            digest,
            augment=augmentation(options.augment) if options.augment else None,
            fitted=fitted.model_copy(update={"fingerprint": digest}).model_dump(mode="json"),
            notes=(*notes, *([skipped.note] if skipped.note else [])),
        )

    def restore(self, fitted: Mapping[str, Any]) -> MultiTaskData:
        """Tasks as they were fitted."""
        known = Fitted.of(fitted)
        return MultiTaskData(known.tasks, self._features(), {}, known.fingerprint, fitted=fitted)

    def read(
        self,
        path: Path,
        fitted: Mapping[str, Any],
        labels: bool = True,
        on_error: str | None = None,
    ) -> NewRows:
        """All pictures in the folder `path`, by name; or those that the table `path` names, in its order."""
        import polars as pl

        known, column = Fitted.of(fitted), self.options.file_column
        skip = (on_error or self.options.on_error) == "skip"
        faults, skipped = Faults(skip, OF_NEW_FILES), Skipped("skip" if skip else "stop", OF_NEW_FILES)
        targets: list[Target] = []
        files: tuple[Path, ...] = (path,)
        if path.is_dir():
            folder = path
            frame = pl.DataFrame({column: imagefiles.names(path)}, {column: pl.String}).with_row_index(ROW)
            place: Place = partial(_which, path)
        else:
            folder, source = self.options.path, Source.at(path, known.missing)
            files = source.files
            if not folder.is_dir():
                raise MtlError(
                    f"{path}: names pictures below {folder} (data.path), which is no longer there; mtl predict also "
                    "takes a folder of pictures"
                )
            source.require([column], "the table of labels")
            targets = [fitted_target(label) for label in known.labels if labels and label.column in source.types]
            reader = Reader(source, {column: Held("text")}, targets)
            frame = pl.concat([reader.read(block, faults) for block in source.blocks])
            place = partial(_where, source)
        paths = self._paths(folder, frame, place, skipped)
        sound = [row for row in range(len(frame)) if row not in skipped.rows]
        scanned = self._scan(paths, sound, frame[ROW], place, skipped)
        kept = [row for row in range(len(frame)) if row not in skipped.rows]
        notes = tuple(note for note in (faults.note, skipped.note) if note)
        if not kept:
            raise MtlError(f"{path}: has no picture that can be used{f': {notes[0]}' if notes else ''}")
        index = {"new": torch.tensor([at for at in range(len(sound)) if at not in scanned.faults])}
        labelled = {"new": known.encode(frame[kept]).targets}
        given = [paths[row] for row in sound]
        split = imagefiles.splits(given, scanned, index, labelled, self._features(), self.options.workers)["new"]
        return NewRows(
            files=files,
            split=split,
            rows=(frame[kept][ROW] + 1).to_list(),
            left_out=faults.count + len(skipped.rows),
            labels=tuple(target.task for target in targets),
            carried={column: frame[kept][column].to_list()},
            notes=notes,
            classes={label.name: label.values for label in known.labels},
        )

    def _features(self) -> ImageFeatures:
        mean, std = imagefiles.IMAGENET[self.options.channels]
        return ImageFeatures(self.options.channels, *self.options.size, mean, std)

    def _scan(
        self, paths: Sequence[str], sound: Sequence[int], numbers: pl.Series, place: Place, skipped: Skipped
    ) -> Scanned:
        """Look into the files of the rows `sound`."""
        options = self.options
        shape = Shape(options.channels, *options.size)
        scanned = imagefiles.scan([paths[row] for row in sound], shape, options.cache, options.workers)
        for at, fault in scanned.faults.items():
            row = sound[at]
            skipped.add(row, f"{place(numbers[row])}: {paths[row]}: {fault}")
        return scanned

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

    def _paths(self, folder: Path, frame: pl.DataFrame, place: Place, skipped: Skipped) -> list[str]:
        """Of every row. Raises MtlError for one that leads out of `folder`."""
        inside = os.path.realpath(folder)
        first: dict[str, int] = {}
        paths = []
        for row, (name, number) in enumerate(zip(frame[self.options.file_column], frame[ROW], strict=True)):
            path = folder / (name or "")
            paths.append(str(path))
            if name is None:
                fault: str | None = f"names no file in the column '{self.options.file_column}'"
            elif not imagefiles.below(name):
                raise MtlError(f"{place(number)}: should name a file below {folder}; found {name!r}")
            elif (real := imagefiles.outside(str(path), inside)) is not None:
                raise MtlError(
                    f"{place(number)}: {path} is a link to {real}, outside of {folder}; copy the file into the folder"
                )
            elif (key := str(PurePosixPath(name))) in first:
                fault = f"{path} already stands in row {first[key] + 1}"
            else:
                fault = _fault(path)
            if fault is not None:
                skipped.add(row, f"{place(number)}: {fault}")
            else:
                first[key] = number
        return paths

    def _labels(self, found: Gathered, kept: pl.DataFrame, codes: Codes) -> tuple[Fitted, list[str]]:
        """The tasks, by the rows with a picture and their splits; what a person should know of them and of bad rows."""
        profile = Profile({}, found.targets, sample=None)
        profile.add(kept, codes)
        fitted, notes = labels.fit(found.targets, self.options.tasks, profile)
        faults = [found.faults.note] if found.faults.note else []
        return Fitted(columns=[], labels=fitted, missing=MISSING), [*faults, *notes]


def _where(source: Source, number: int) -> str:
    """A row of the table, by its number."""
    return where(next(b for b in source.blocks if b.start <= number < b.start + b.rows), number)


def _which(folder: Path, number: int) -> str:
    """A picture of a folder, by its number, from 0."""
    return f"{folder}, file {number + 1}"


def _fault(path: Path) -> str | None:
    """Why there is nothing to read at `path`, if so."""
    try:
        found = stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        found = False
    except OSError as error:  # a name that is too long, links in a circle
        return f"{path} cannot be read: {error.strerror}"
    return None if found else f"there is no file {path}"
