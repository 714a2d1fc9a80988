"""Statistics of the training rows, gathered block by block: moments, vocabularies, labels, and a sample of rows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mtlcli.data.base import ColumnUse
from mtlcli.data.tables.fitted import Column, label_column
from mtlcli.data.tables.kinds import Held, calendar
from mtlcli.data.tables.reader import INDEX, Target
from mtlcli.data.tables.splits import TRAIN, Codes, row_hashes

if TYPE_CHECKING:
    import polars as pl

DISTINCT = 200_000  # texts of one column that are told apart; beyond, it names rows
CATEGORIES = 10_000  # of one column; rarer ones are not known
FEWEST = 20  # distinct values from which on a column may be suspected to name rows
IDENTIFIER = re.compile(r"(^|[^a-z])(id|ids|uuid|guid|key|index|row|rownum|row_number|unnamed.*)$", re.IGNORECASE)
CAMEL = re.compile(r"[a-z](Id|ID|Key|UUID)$")


@dataclass
class Moments:
    """Of one numeric column over the training rows; `mean` and `squares` (sum of squared deviations) without missing
    values."""

    rows: int = 0
    known: int = 0
    mean: float = 0.0
    squares: float = 0.0
    low: float = float("inf")
    high: float = float("-inf")

    def add(self, rows: int, known: int, mean: float, variance: float, low: float, high: float) -> None:
        """Another block (Chan, Golub and LeVeque 1983)."""
        self.rows += rows
        if not known:
            return
        total = self.known + known
        apart = mean - self.mean
        self.squares += variance * known + apart**2 * self.known * known / total
        self.mean += apart * known / total
        self.known, self.low, self.high = total, min(self.low, low), max(self.high, high)

    @property
    def deviation(self) -> float:
        """Standard deviation, with 1 for that of a constant so that dividing by it is harmless."""
        if not self.known or self.low == self.high:
            return 1.0
        return float(np.sqrt(self.squares / self.known)) or 1.0


class Profile:
    """What is learned from one pass over the rows.

    Args:
        columns: the features and what they hold.
        targets: the label columns.
        sample: how many training rows to keep, drawn by a hash of their number; None keeps all.
    """

    def __init__(
        self, columns: Mapping[str, Held], targets: Sequence[Target], sample: int | None, seed: int = 0
    ) -> None:
        import polars as pl

        self.columns, self.targets, self.limit, self.seed = columns, targets, sample, seed
        self.moments = {name: Moments() for name, held in columns.items() if held.kind != "text"}
        self.label_moments = {t.task: Moments() for t in targets if t.kind == "regression"}
        empty = pl.DataFrame(schema={"value": pl.String, "count": pl.Int64})
        self.texts: dict[str, pl.DataFrame | None] = {n: empty for n, held in columns.items() if held.kind == "text"}
        self.parts: dict[str, dict[str, set[int]]] = {}
        self.labels: dict[str, pl.DataFrame] = {}  # of classes: value, split, count
        self.labelled = {t.task: np.zeros(3, np.int64) for t in targets}
        self.rows = np.zeros(3, np.int64)
        self._sample: pl.DataFrame | None = None

    def add(self, frame: pl.DataFrame, codes: Codes) -> None:
        """Take in rows and their splits."""
        import polars as pl

        self.rows += np.bincount(codes, minlength=3)
        train = frame.filter(pl.Series(codes == TRAIN))
        self._add_numbers(train)
        for name, known in self.texts.items():
            if known is not None and len(train):
                counts = train[name].value_counts(name="count").rename({name: "value"}).cast({"count": pl.Int64})
                merged = pl.concat([known, counts]).group_by("value").agg(pl.col("count").sum())
                self.texts[name] = merged if len(merged) <= DISTINCT or self.limit is None else None
        for target in self.targets:
            self._add_labels(target, frame[label_column(target.task)], codes)
        self._add_sample(train)

    @property
    def sample(self) -> pl.DataFrame:
        """Training rows."""
        assert self._sample is not None
        return self._sample

    def _add_numbers(self, train: pl.DataFrame) -> None:
        if not self.moments or not len(train):
            return
        for name, about in _moments(train, list(self.moments)).items():
            self.moments[name].add(*about)
        for name, held in self.columns.items():
            if held.kind == "date":
                days = calendar(train[name].fill_null(float("nan")).to_numpy())
                seen = self.parts.setdefault(name, {part: set() for part in days})
                for part, values in days.items():
                    seen[part] |= set(np.unique(values).tolist())

    def _add_labels(self, target: Target, labels: pl.Series, codes: Codes) -> None:
        import polars as pl

        known = labels.is_not_null().to_numpy()
        self.labelled[target.task] += np.bincount(codes[known], minlength=3)
        if target.kind == "regression":
            values = labels.to_numpy()[known & (codes == TRAIN)]
            values = np.log1p(values) if target.least is not None else values
            about = _moments(pl.DataFrame({"label": values.astype(np.float64)}), ["label"])
            self.label_moments[target.task].add(*about["label"])
            return
        counts = (
            pl.DataFrame({"value": labels, "split": codes})
            .drop_nulls()
            .group_by("value", "split")
            .agg(pl.len().cast(pl.Int64).alias("count"))
        )
        both = pl.concat([self.labels[target.task], counts]) if target.task in self.labels else counts
        self.labels[target.task] = both.group_by("value", "split").agg(pl.col("count").sum())

    def _add_sample(self, train: pl.DataFrame) -> None:
        import polars as pl

        if self.limit is None:
            self._sample = train if self._sample is None else pl.concat([self._sample, train])
            return
        hashes = pl.Series("\0hash", row_hashes(train[INDEX].to_numpy(), self.seed + 1))
        both = train.with_columns(hashes)
        both = both if self._sample is None else pl.concat([self._sample, both])
        self._sample = both.bottom_k(self.limit, by="\0hash") if len(both) > self.limit else both

    # -- what follows --------------------------------------------------------------------------------------------------

    def column(self, name: str, chosen: bool) -> tuple[Column | None, ColumnUse, str | None]:
        """A column as it enters the network (None: not at all), what becomes of it, and what to tell a person.

        `chosen`: a person named it as a feature, so that it stays even if it looks like a name of rows.
        """
        held = self.columns[name]
        reason = None if chosen else self._names_rows(name)
        if reason is not None:
            note = (
                f"the column '{name}' is left out: {reason}. To use it, say what it holds in data.columns; to keep "
                "rows together that share it, name it in data.split.by; to say that it is of no use, in data.drop"
            )
            return None, ColumnUse(name, "dropped", reason), note
        return (*(self._text(name) if held.kind == "text" else self._number(name, held)), None)

    def _names_rows(self, name: str) -> str | None:
        """Why a column is a name of rows, and no property of them."""
        if name in self.texts:
            counts = self.texts[name]
            if counts is None:
                return f"more than {DISTINCT:,} different texts name rows and say nothing of others"
            counts = counts.drop_nulls("value")
            total = int(counts["count"].sum())
            if len(counts) >= FEWEST and len(counts) > total / 2:
                return f"{len(counts):,} different texts in {total:,} training rows name rows and say nothing of others"
            return None
        named = IDENTIFIER.search(name) or CAMEL.search(name)
        values = self.sample[name].drop_nulls()
        if not named or self.columns[name].kind != "numeric" or len(values) < FEWEST:
            return None
        if (values == values.round()).all() and values.n_unique() == len(values):
            return "by its name, and with a different whole number in every row, it names rows"
        return None

    def _number(self, name: str, held: Held) -> tuple[Column | None, ColumnUse]:
        about = self.moments[name]
        absent = about.rows - about.known
        if not about.known:
            return None, ColumnUse(name, "dropped", "empty in every training row")
        if about.low == about.high and not absent:
            return None, ColumnUse(name, "dropped", f"the same in every training row: {about.low:g}")
        parts = {}
        if held.kind == "date":
            seen = {part: sorted(values - {0}) for part, values in self.parts[name].items()}
            year = about.high - about.low >= 365  # below, the month says no more than the day
            parts = {p: v for p, v in seen.items() if len(v) > 1 and (p != "month" or year)}
        fill = float(self.sample[name].median() or 0.0)  # type: ignore[arg-type]
        detail = f"mean {about.mean:.4g}, deviation {about.deviation:.4g}"
        if held.kind == "date":
            first, last = (np.datetime64(int(np.floor(day)), "D") for day in (about.low, about.high))
            detail = f"days from {first} to {last}" + (f", and {', '.join(parts)}" if parts else "")
        if absent:
            detail += f"; {absent / about.rows:.1%} missing, median {fill:.4g} instead"
        column = Column(
            name=name,
            kind=held.kind,
            format=held.format,
            mean=about.mean,
            scale=about.deviation,
            fill=fill,
            indicator=absent > 0,
            parts=parts,
        )
        return column, ColumnUse(name, held.kind, detail)

    def _text(self, name: str) -> tuple[Column | None, ColumnUse]:
        counts = self.texts[name]
        if counts is None:
            return None, ColumnUse(name, "dropped", f"more than {DISTINCT:,} different texts")
        if len(counts) < 2:
            value = counts["value"][0] if len(counts) else None
            same = "empty in every training row" if value is None else f"the same in every training row: {value}"
            return None, ColumnUse(name, "dropped", same)
        kept = counts.sort(["count", "value"], descending=[True, False]).head(CATEGORIES)
        missing = kept["value"].is_null().any()
        categories = [None] * missing + sorted(kept["value"].drop_nulls().to_list())
        detail = f"{len(categories):,} categories" + (", one of them for missing values" if missing else "")
        if len(counts) > len(kept):
            detail += f"; {len(counts) - len(kept):,} rarer ones count as unknown"
        return Column(name=name, kind="text", categories=categories), ColumnUse(name, "categorical", detail)


def _moments(frame: pl.DataFrame, names: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """Of every column: rows, known values, mean, variance, smallest, largest."""
    import polars as pl

    if not len(frame):
        return dict.fromkeys(names, (0, 0, 0.0, 0.0, 0.0, 0.0))
    of = (pl.col(n) for n in names)
    row = frame.select(
        pl.concat_list(c.count().cast(pl.Float64), c.mean(), c.var(ddof=0), c.min(), c.max()) for c in of
    ).row(0)
    return {name: (len(frame), int(about[0]), *about[1:]) for name, about in zip(names, row, strict=True)}
