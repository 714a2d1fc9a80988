"""What a column holds: numbers, truth values, dates or text; found out once, and every value held to it after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import polars as pl

Kind = Literal["numeric", "boolean", "date", "text"]
As = Literal["numeric", "categorical", "boolean", "date"]  # as a recipe says it
Unusable = Literal["empty", "unsupported"]

WORDS = {"true": 1.0, "yes": 1.0, "t": 1.0, "y": 1.0, "false": 0.0, "no": 0.0, "f": 0.0, "n": 0.0}
TRUTH: Mapping[str, float] = {**WORDS, "1": 1.0, "0": 0.0, "1.0": 1.0, "0.0": 0.0}
MOSTLY = 0.5  # a column of text is one of numbers, with mistakes, where a larger share than this are numbers
# ISO first: `%d/%m` and `%m/%d` are told apart by a day beyond the twelfth, or not at all.
FORMATS = (
    "%Y-%m-%d",
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%dT%H:%M",
    "%Y-%m-%dT%H:%M:%S%.f%#z",
    "%Y-%m-%d %H:%M:%S%.f%#z",
    "%Y/%m/%d",
    "%d.%m.%Y",
    "%d/%m/%Y",
    "%m/%d/%Y",
)
DAY = 86_400_000_000  # microseconds
LARGEST = 1e100  # of a number: its square, summed over all rows, has to be one, too


class Held(NamedTuple):
    """What a column holds."""

    kind: Kind
    format: str | None = None  # of dates that are text


class Conformed(NamedTuple):
    """A column held to its kind: numbers (dates: days since 1970, truth values: 0 and 1) or text, null where missing.

    `wrong` (N,) of bool: values that do not fit; None where all do.
    """

    values: pl.Series
    wrong: pl.Series | None


EXPECTED = {
    "numeric": f"a finite number below {LARGEST:g}",
    "boolean": "true or false (or yes and no, or 1 and 0)",
    "date": "a date",
    "text": "text",
}


def hold(column: pl.Series, missing: Sequence[str]) -> Held | Unusable:
    """What `column` holds, judged by all of its values."""
    import polars as pl

    kind = column.dtype
    if kind.is_numeric():
        return Held("numeric")
    if kind == pl.Boolean:
        return Held("boolean")
    if kind in (pl.Date, pl.Datetime):
        return Held("date")
    if kind == pl.Null:
        return "empty"
    if kind not in (pl.String, pl.Categorical, pl.Enum):
        return "unsupported"
    if kind != pl.String:
        return Held("text")
    values = texts(column, missing).drop_nulls()
    if not len(values):
        return "empty"
    distinct = values.unique()
    if distinct.str.to_lowercase().is_in(list(WORDS)).all():
        return Held("boolean")
    # A leading zero is not an accident: 00501 is a postal code.
    if not distinct.str.contains(r"^0\d").any():
        numbers = values.cast(pl.Float64, strict=False)
        if numbers.count() > MOSTLY * len(values):
            return Held("numeric")
    fitting = {fmt: share for fmt in FORMATS if (share := _dates(distinct, fmt).count() / len(distinct)) > MOSTLY}
    best = [fmt for fmt, share in fitting.items() if share == max(fitting.values())]
    return Held("date", best[0]) if len(best) == 1 else Held("text")


def declared(column: pl.Series, kind: As) -> Held:
    """What a person says that `column` holds; of dates that are text, with the format that most of them fit."""
    import polars as pl

    if kind == "date" and column.dtype == pl.String:
        written = column.drop_nulls().str.strip_chars()
        return Held("date", max(FORMATS, key=lambda fmt: _dates(written, fmt).count()))
    return Held("text" if kind == "categorical" else kind)


def conform(column: pl.Series, held: Held, missing: Sequence[str]) -> Conformed | None:
    """`column` as what it should hold; None where its type could never hold that."""
    import polars as pl

    kind = column.dtype
    if held.kind == "text":
        return Conformed(texts(_spelled(column), missing), None) if _scalar(kind) else None
    if kind in (pl.Date, pl.Datetime) or held.kind == "date":
        return _conform_date(column, held, missing)
    if kind.is_numeric() or kind == pl.Boolean:
        values = column.cast(pl.Float64)
        if held.kind == "numeric" and values.is_between(-LARGEST, LARGEST).all():  # nearly always, and much cheaper
            return Conformed(values, None)
        values = values.fill_nan(None)
        wrong = ~values.is_in([0.0, 1.0]) if held.kind == "boolean" else values.abs() > LARGEST
        return _found(values, wrong)
    if kind in (pl.String, pl.Categorical, pl.Enum, pl.Null):
        written = texts(column, missing)
        lower = written.str.to_lowercase()
        if held.kind == "boolean":
            values = lower.replace_strict(TRUTH, default=None, return_dtype=pl.Float64)
            return _found(values, values.is_null() & written.is_not_null())
        values = written.cast(pl.Float64, strict=False).fill_nan(None)
        unread = values.is_null() & written.is_not_null() & (lower != "nan")
        return _found(values, (values.abs() > LARGEST).fill_null(False) | unread)
    return None


def _conform_date(column: pl.Series, held: Held, missing: Sequence[str]) -> Conformed | None:
    import polars as pl

    kind = column.dtype
    if held.kind != "date":
        return None
    if kind in (pl.Date, pl.Datetime):
        return Conformed(_days(column), None)
    if kind in (pl.String, pl.Null):
        written = texts(column, missing)
        for fmt in (held.format,) if held.format else FORMATS:
            found = _dates(written, fmt)
            if held.format or found.count() == written.count():
                break
        days = _days(found)
        return _found(days, days.is_null() & written.is_not_null())
    return None


def number_text(value: float) -> str:
    """A number as a class or a key is written: `3`, not `3.0`."""
    return str(int(value)) if float(value).is_integer() and abs(value) < 2**53 else repr(float(value))


def whole_texts(column: pl.Series, missing: Sequence[str]) -> pl.Series:
    """The whole numbers of a column of numbers as text, exactly, however large they are; null for all else."""
    import polars as pl

    if column.dtype.is_integer():
        return column.cast(pl.String)
    if column.dtype == pl.String:
        return texts(column, missing).cast(pl.Int128, strict=False).cast(pl.String)
    return pl.Series(column.name, [None] * len(column), dtype=pl.String)


def shown(value: object) -> str:
    """A value from a recipe as text like that of a column: `true`, `3`, `A`."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value) if isinstance(value, int) else number_text(value)
    text = str(value).strip()
    return text.lower() if text.lower() in ("true", "false") else text


def calendar(days: NDArray[np.float64]) -> dict[str, NDArray[np.int64]]:
    """Weekday (1 is Monday), month and hour of days (N,) since 1970; 0 where a day is missing."""
    known = np.isfinite(days)
    whole = np.floor(np.where(known, days, 0.0))
    hour = np.floor(np.round((np.where(known, days, 0.0) - whole) * 24, 6)).astype(np.int64)
    dates = whole.astype("datetime64[D]")
    month = dates.astype("datetime64[M]").astype(np.int64) % 12 + 1
    parts = {"weekday": (whole.astype(np.int64) + 3) % 7 + 1, "month": month, "hour": hour + 1}
    return {name: np.where(known, values, 0) for name, values in parts.items()}


def _scalar(kind: pl.DataType) -> bool:
    import polars as pl

    return kind.is_numeric() or kind in (
        pl.String,
        pl.Categorical,
        pl.Enum,
        pl.Boolean,
        pl.Date,
        pl.Datetime,
        pl.Null,
    )


def _spelled(column: pl.Series) -> pl.Series:
    """Any column as text; whole numbers without a point."""
    import polars as pl

    if column.dtype.is_float() or column.dtype.is_decimal():
        values = column.cast(pl.Float64).fill_nan(None)
        distinct = values.drop_nulls().unique()
        spelled = pl.Series([number_text(value) for value in distinct], dtype=pl.String)
        return values.replace_strict(distinct, spelled, return_dtype=pl.String)
    return column.cast(pl.String)


def texts(column: pl.Series, missing: Sequence[str]) -> pl.Series:
    """A column as text without blanks around it, null where it is missing."""
    import polars as pl

    stripped = column.cast(pl.String).str.strip_chars()
    return stripped.set(stripped.is_in(["", *missing]), None)


def _dates(written: pl.Series, fmt: str) -> pl.Series:
    found = written.str.to_datetime(fmt, time_unit="us", strict=False)
    return found.dt.convert_time_zone("UTC").dt.replace_time_zone(None) if "z" in fmt else found


def _days(column: pl.Series) -> pl.Series:
    """Dates or times -> days since 1970, in UTC where they have a zone."""
    import polars as pl

    if column.dtype == pl.Date:
        return column.cast(pl.Int32).cast(pl.Float64)
    zone = getattr(column.dtype, "time_zone", None)
    moments = column.dt.convert_time_zone("UTC").dt.replace_time_zone(None) if zone else column
    return moments.cast(pl.Datetime("us")).cast(pl.Int64).cast(pl.Float64) / DAY


def _found(values: pl.Series, wrong: pl.Series) -> Conformed:
    return Conformed(values, wrong.fill_null(False) if wrong.any() else None)
