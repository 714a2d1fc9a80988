"""What was fitted on the training rows, as plain values, and rows encoded with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from mtlcli.data.base import Batch, TableFeatures
from mtlcli.data.tables.kinds import Held, Kind, calendar
from mtlcli.data.tables.options import LabelKind
from mtlcli.errors import MtlError
from mtlcli.tasks import Task

if TYPE_CHECKING:
    import polars as pl

FURTHEST = 1e6  # deviations from the mean, which no row of less than 1e12 has that was among those they are taken of
MISSING = "missing"  # of a numeric column: the name of the input that says so, behind a point


def label_column(task: str) -> str:
    """What the column with the labels of `task` is called once it is read: several tasks may share one of the file."""
    return f"\0{task}"


class _Plain(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Column(_Plain):
    """One input column: `(value - mean) / scale` with `fill` for a missing value, or codes 1..n of `categories`."""

    name: str
    kind: Kind
    format: str | None = None  # of dates that are text
    mean: float = 0.0  # dates are days since 1970
    scale: float = 1.0
    fill: float = 0.0
    indicator: bool = False  # whether another input says where the value is missing
    parts: dict[str, list[int]] = {}  # of dates: weekday, month and hour as categories
    categories: list[str | None] = []  # of text; null where a missing value is a category of its own

    @property
    def held(self) -> Held:
        """What the column holds."""
        return Held(self.kind, self.format)


def _is_whole(text: str) -> bool:
    """Whether `text` is how a whole number is written, and no code such as 007."""
    try:
        return str(int(text)) == text
    except ValueError:
        return False


class Label(_Plain):
    """One task and its column: `classes` as they are written, or the moments of the training labels."""

    name: str
    kind: LabelKind
    column: str
    holds: Kind  # of classes, numeric, boolean or text
    classes: list[str] = []
    mean: float = 0.0
    scale: float = 1.0
    transform: Literal["none", "log1p"] = "none"
    unit: str = ""
    class_weights: list[float] | None = None

    @property
    def held(self) -> Held:
        """What the column holds."""
        return Held(self.holds)

    @property
    def least(self) -> float | None:
        """The smallest value that can be learned."""
        return 0.0 if self.transform == "log1p" else None

    @property
    def values(self) -> Sequence[bool | int | float | str]:
        """The classes as the training files hold them: numbers and truth values where these are such."""
        if self.holds == "boolean" and set(self.classes) == {"true", "false"}:
            return [name == "true" for name in self.classes]
        if all(_is_whole(name) for name in self.classes):
            return [int(name) for name in self.classes]
        return [float(name) for name in self.classes] if self.holds == "numeric" else self.classes

    @property
    def task(self) -> Task:
        """As the engine sees it."""
        return Task(
            self.name,
            self.kind,
            num_classes=len(self.classes) or 2,
            unit=self.unit,
            mean=self.mean,
            scale=self.scale,
            classes=tuple(self.classes),
            transform=self.transform,
            class_weights=None if self.class_weights is None else tuple(self.class_weights),
        )


class Fitted(_Plain):
    """All that new rows need."""

    version: Literal[1] = 1
    columns: list[Column]
    labels: list[Label]
    key: str | None = None  # the column that is carried into predictions
    ignored: list[str] = []  # other columns of the training files
    decimal_commas: list[str] = []  # columns whose numbers had a decimal comma in the training files
    missing: list[str]
    fingerprint: str = ""  # of the data that it was fitted on

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Fitted:
        """From plain values. Raises MtlError where they do not describe such columns."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise MtlError(
                f"the run's preprocessing.json is damaged, or of another version: {where}: {first['msg']}"
            ) from None

    @property
    def numeric(self) -> list[Column]:
        """Columns that enter as numbers."""
        return [column for column in self.columns if column.kind != "text"]

    @property
    def features(self) -> TableFeatures:
        """As the encoder sees them: numbers, then indicators; texts, then parts of dates."""
        numbers = [column.name for column in self.numeric]
        numbers += [f"{column.name}.{MISSING}" for column in self.numeric if column.indicator]
        texts = {column.name: len(column.categories) + 1 for column in self.columns if column.kind == "text"}
        parts = {f"{c.name}.{part}": len(known) + 1 for c in self.columns for part, known in c.parts.items()}
        # A column of the file may be called like a part of a date.
        renamed = {f"{name} of the date" if name in texts else name: size for name, size in parts.items()}
        return TableFeatures(tuple(numbers), {**texts, **renamed})

    @property
    def tasks(self) -> tuple[Task, ...]:
        """All tasks, in the recipe's order."""
        return tuple(label.task for label in self.labels)

    def encode(self, frame: pl.DataFrame) -> Batch:
        """Rows held to their kinds (numbers as float64, text) -> inputs, and labels where `frame` has them."""
        inputs = {}
        if self.numeric:
            inputs["numeric"] = self._numbers(frame)
        texts = [self._codes(frame[c.name], c.categories) for c in self.columns if c.kind == "text"]
        for column in self.columns:
            if column.parts:
                found = calendar(frame[column.name].fill_null(float("nan")).to_numpy())
                for part, known in column.parts.items():
                    table = np.zeros(32, np.int32)
                    table[known] = np.arange(1, len(known) + 1)
                    texts.append(table[found[part]])
        if texts:
            inputs["categorical"] = torch.from_numpy(np.stack(texts, axis=1))
        return Batch(inputs, {label.name: self._labels(frame, label) for label in self.labels})

    def unseen(self, frame: pl.DataFrame, batch: Batch) -> dict[str, tuple[int, str | None]]:
        """Columns in which rows of `frame` hold what training did not: how many rows, and an example.

        `batch`: the rows encoded. The example is None where training rows always had a value, and these have none.
        """
        found: dict[str, tuple[int, str | None]] = {
            column.name: (absent, None)
            for column in self.numeric
            if not column.indicator and (absent := frame[column.name].null_count())
        }
        for place, column in enumerate(column for column in self.columns if column.kind == "text"):
            new = (batch.inputs["categorical"][:, place] == 0).numpy()
            if new.any():
                values = frame[column.name].filter(new)
                found[column.name] = int(new.sum()), next(iter(values.drop_nulls()), None)
        return found

    def _numbers(self, frame: pl.DataFrame) -> Tensor:
        import polars as pl

        values = [
            ((pl.col(c.name).fill_null(c.fill) - c.mean) / c.scale)
            # A number that float32 does not hold would make NaN of every prediction.
            .clip(-FURTHEST, FURTHEST)
            .cast(pl.Float32)
            .alias(f"{c.name}")
            for c in self.numeric
        ]
        absent = [
            pl.col(c.name).is_null().cast(pl.Float32).alias(f"{c.name}.\0{MISSING}")
            for c in self.numeric
            if c.indicator
        ]
        array: np.ndarray[Any, Any] = frame.select(*values, *absent).to_numpy(order="c", writable=True)
        return torch.from_numpy(array)

    def _codes(self, column: pl.Series, categories: list[str | None]) -> np.ndarray[Any, Any]:
        import polars as pl

        known = pl.Series(categories, dtype=pl.String)
        codes = range(1, len(categories) + 1)
        found = column.replace_strict(known, pl.Series(codes, dtype=pl.Int32), default=0, return_dtype=pl.Int32)
        array: np.ndarray[Any, Any] = found.to_numpy()
        return array

    def _labels(self, frame: pl.DataFrame, label: Label) -> Tensor:
        import polars as pl

        small = pl.Int8 if len(label.classes) < 128 else pl.Int32
        if label_column(label.name) not in frame.columns:
            missing = torch.nan if label.kind == "regression" else -1
            kind = torch.float32 if label.kind == "regression" else torch.int8 if small == pl.Int8 else torch.int32
            return torch.full((len(frame),), missing, dtype=kind)
        column = frame[label_column(label.name)]
        if label.kind == "regression":
            values = column.cast(pl.Float64).fill_null(float("nan")).to_numpy()
            values = np.log1p(values) if label.transform == "log1p" else values
            return torch.from_numpy(((values - label.mean) / label.scale).astype(np.float32))
        codes = pl.Series(range(len(label.classes)), dtype=small)
        known = pl.Series(label.classes, dtype=pl.String)
        found = column.replace_strict(known, codes, default=-1, return_dtype=small)
        return torch.from_numpy(found.to_numpy(writable=True))
