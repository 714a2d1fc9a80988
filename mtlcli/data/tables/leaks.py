"""What looks too good: features that give a label away, and rows or keys that more than one split holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mtlcli.data.tables import functions
from mtlcli.data.tables.fitted import Column, Label, label_column
from mtlcli.data.tables.splits import TRAIN, Codes
from mtlcli.errors import how_many

if TYPE_CHECKING:
    import polars as pl

ROWS = 20_000  # training rows that are looked at
FEWEST = 30  # rows with both values, below which nothing is said
FEWEST_OF_A_CLASS = 5
NEARLY = 0.999  # rank correlation, area under the ROC curve, or share of variance
SAME_ORDER = 0.95  # rank correlation, where another one is more than NEARLY
RECALL = 0.99  # mean over classes, where a category names the class
ROWS_PER_BIN = 20
MOST_VARIED = 2  # columns
MOSTLY_DIFFERENT = 0.9  # share of different rows
CLEARLY = 2.0  # times as many as by chance
HELD = 2_000_000  # hashes that are kept

Numbers = NDArray[np.float64]


def given_away(sample: pl.DataFrame, columns: Sequence[Column], labels: Sequence[Label]) -> list[str]:
    """A message for every feature that nearly determines a label on the training rows in `sample`."""
    # A row that stands there twice would say of every column that its value goes with the label.
    rows = sample.head(ROWS).unique(
        [*(column.name for column in columns), *(label_column(label.name) for label in labels)], maintain_order=True
    )
    found = []
    for label in labels:
        values = rows[label_column(label.name)]
        for column in columns:
            how = _how(rows[column.name], column, values, label)
            if how is not None:
                found.append(
                    f"the column '{column.name}' gives task '{label.name}' away: {how}. If it is not known before the "
                    "label is, name it in data.drop"
                )
    return found


def _how(feature: pl.Series, column: Column, values: pl.Series, label: Label) -> str | None:
    """How a feature determines a label, if it does."""
    known = values.is_not_null()
    feature, values = feature.filter(known), values.filter(known)
    if label.kind == "regression":
        return _how_regression(feature, column, values.to_numpy().astype(np.float64))
    both = feature.is_not_null()
    classes = _codes(values)
    if column.kind != "text" and both.sum() >= FEWEST:
        chosen, ranks = classes[both.to_numpy()], _ranks(feature.filter(both).to_numpy())
        if len(np.unique(chosen)) == 2 and np.unique(chosen, return_counts=True)[1].min() >= FEWEST_OF_A_CLASS:
            area = _area(ranks, chosen == chosen.max())
            if max(area, 1 - area) > NEARLY:
                return f"by it alone the area under the ROC curve is {area:.4f}"
    codes = _codes(feature) if column.kind == "text" else _bins(feature)
    recall = _recall(codes, classes)
    if recall is None or recall < RECALL:
        return None
    return f"on rows set aside, the class that goes with its value is right for {recall:.2%} (mean over classes)"


def _how_regression(feature: pl.Series, column: Column, target: Numbers) -> str | None:
    """The same for a label (N,) that is a number."""
    if column.kind == "text":
        share = _explained(_codes(feature), target)
        if share is not None and share >= NEARLY:
            return f"its categories explain {share:.2%} of the label's variance"
        return "its categories are stretches of the label" if functions.steps(target, _codes(feature)) else None
    both = feature.is_not_null().to_numpy()
    if both.sum() < FEWEST:
        return None
    numbers, target = feature.drop_nulls().to_numpy().astype(np.float64), target[both]
    own, its = _varied(numbers, target)
    if len(own) >= FEWEST:
        rank, line = _correlation(_ranks(own), _ranks(its)), _correlation(_within(own), _within(its))
        if abs(rank) > NEARLY:
            return f"their rank correlation is {rank:.4f}"
        if abs(line) > NEARLY and abs(rank) > SAME_ORDER:  # groups far apart could make a line of anything
            return f"their correlation is {line:.4f}"
    # What changes slowly with time is not a function of a date that anyone would call a leak.
    if column.kind != "date" and functions.follows(numbers, target):
        return "the label is nearly a function of it"
    return "it is nearly a function of the label" if functions.follows(target, numbers) else None


def _codes(values: pl.Series) -> NDArray[np.int64]:
    """A number for every different value, and one for a missing one."""
    return np.unique(values.fill_null("\0").to_numpy().astype(str), return_inverse=True)[1]


def _bins(values: pl.Series) -> NDArray[np.int64]:
    """Quantiles of numbers, and a bin for missing ones."""
    numbers = values.fill_null(float("nan")).to_numpy()
    known = numbers[~np.isnan(numbers)]
    distinct = np.unique(known)
    bins = max(2, len(known) // ROWS_PER_BIN)
    edges = distinct if len(distinct) <= bins else np.unique(np.quantile(known, np.linspace(0, 1, bins + 1)[1:-1]))
    found = np.searchsorted(edges, numbers)
    return np.where(np.isnan(numbers), len(edges) + 1, found)


def _halves(rows: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    first = np.random.default_rng(0).random(rows) < 0.5
    return first, ~first


def _recall(codes: NDArray[np.int64], classes: NDArray[np.int64]) -> float | None:
    """Mean recall over classes, on one half of the rows, of the class that most rows with the same code have in the
    other half. A code that is new there goes with the most frequent class, so that names of rows say nothing."""
    learn, judge = _halves(len(codes))
    sizes = np.unique(classes[judge], return_counts=True)[1]
    if learn.sum() < FEWEST or len(sizes) < 2 or np.sort(sizes)[-2] < FEWEST_OF_A_CLASS:
        return None
    width = int(classes.max()) + 1
    counts = np.zeros((int(codes.max()) + 1, width))
    np.add.at(counts, (codes[learn], classes[learn]), 1)
    usual = int(counts.sum(0).argmax())
    guess = np.where(counts.sum(1) > 0, counts.argmax(1), usual)[codes[judge]]
    right = guess == classes[judge]
    return float(np.mean([right[classes[judge] == c].mean() for c in np.unique(classes[judge])]))


def _explained(codes: NDArray[np.int64], target: Numbers) -> float | None:
    """Share of the variance on one half of the rows that the means by code of the other half explain."""
    learn, judge = _halves(len(codes))
    if learn.sum() < FEWEST or judge.sum() < FEWEST:
        return None
    spread = float(((target[judge] - target[judge].mean()) ** 2).sum())
    counts = np.bincount(codes[learn], minlength=int(codes.max()) + 1)
    sums = np.bincount(codes[learn], target[learn], minlength=len(counts))
    guess = np.where(counts > 0, sums / np.maximum(counts, 1), target[learn].mean())[codes[judge]]
    return 1 - float(((target[judge] - guess) ** 2).sum()) / spread if spread > 0 else None


def _ranks(values: Numbers) -> Numbers:
    """From 1; equal values share the mean of their ranks."""
    import polars as pl

    ranks: Numbers = pl.Series(values).rank("average").to_numpy()
    return ranks


def _correlation(a: Numbers, b: Numbers) -> float:
    a, b = a - a.mean(), b - b.mean()
    lengths = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / lengths if lengths > 0 else 0.0


def _varied(a: Numbers, b: Numbers) -> tuple[Numbers, Numbers]:
    """Without the rows where both have their most frequent value, such as 0, if there is some variety beside these."""
    usual = np.ones(len(a), np.bool_)
    for numbers in (a, b):
        values, counts = np.unique(numbers, return_counts=True)
        usual &= numbers == values[counts.argmax()]
    few = min(len(np.unique(a[~usual])), len(np.unique(b[~usual]))) <= 2
    return (a, b) if few else (a[~usual], b[~usual])


def _within(values: Numbers) -> Numbers:
    """Values brought within their 5th and 95th percentile, since a few far out could make a line of anything."""
    low, high = np.quantile(values, [0.05, 0.95])
    return np.clip(values, low, high)


def _area(ranks: Numbers, positive: NDArray[np.bool_]) -> float:
    """Area under the ROC curve, from the ranks (Mann and Whitney)."""
    count = int(positive.sum())
    return float(ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(ranks) - count))


class Overlap:
    """Whether the same thing, by its hash, occurs in training and in another split.

    Beyond HELD hashes it keeps those below a threshold: all occurrences of a share of the things.
    """

    def __init__(self) -> None:
        self._threshold = np.uint64(2**64 - 1)
        self._hashes = np.empty(0, np.uint64)
        self._codes = np.empty(0, np.int8)

    def add(self, hashes: NDArray[np.uint64], codes: Codes) -> None:
        """Take in the hashes (N,) of some rows with their splits."""
        kept = hashes <= self._threshold
        self._hashes = np.concatenate([self._hashes, hashes[kept]])
        self._codes = np.concatenate([self._codes, codes[kept]])
        while len(self._hashes) > HELD and self._threshold > 0:
            self._threshold >>= np.uint64(1)
            kept = self._hashes <= self._threshold
            self._hashes, self._codes = self._hashes[kept], self._codes[kept]

    @property
    def whole(self) -> bool:
        """Whether every thing was kept."""
        return bool(self._threshold == np.uint64(2**64 - 1))

    @property
    def distinct(self) -> int:
        """Different things among those kept."""
        import polars as pl

        return pl.Series(self._hashes).n_unique()

    @property
    def size(self) -> int:
        """Occurrences that were kept."""
        return len(self._hashes)

    def count(self, split: int) -> int:
        """Occurrences in `split`, as many as were kept."""
        return int((self._codes == split).sum())

    def shared(self, split: int) -> tuple[int, int]:
        """How many things `split` and the training rows share, and how many rows of `split` these are."""
        import polars as pl

        kept = pl.DataFrame({"hash": self._hashes, "code": self._codes})
        train, other = (kept.filter(pl.col("code") == code).select("hash") for code in (TRAIN, split))
        same = other.join(train.unique(), on="hash", how="semi")
        return same["hash"].n_unique(), len(same)


def chance(sample: pl.DataFrame) -> Chance:
    """How likely two different rows agree in all columns by chance, judged by the training rows in `sample`."""
    size = max(2, len(sample))
    same = []
    for column in sample:
        counts = column.value_counts()["count"].to_numpy().astype(np.float64)
        same.append(float((counts * (counts - 1)).sum()) / (size * (size - 1)))
    return Chance(float(np.prod(sorted(same)[:MOST_VARIED])), float(np.prod(same)))


class Chance(NamedTuple):
    """Probabilities that two rows agree, as if columns had nothing to do with one another."""

    two: float  # in the MOST_VARIED columns, which is fair where others follow from these
    all: float  # in every column

    def shared(self, rows: Overlap) -> float:
        """Share of the rows of a split that the training rows should hold as well by chance."""
        each = self.all if rows.distinct >= MOSTLY_DIFFERENT * rows.size else self.two
        return 1 - math.exp(-each * rows.count(TRAIN))


def overlap_notes(
    rows: Overlap, key: Overlap | None, by: str | None, suspects: dict[str, Overlap], chance: Chance
) -> list[str]:
    """Messages about rows and keys that validation or test share with the training rows.

    Of rows only where clearly more are shared than by `chance`: with few columns of few values all rows are old ones.
    """
    found = []
    for split, code in (("val", 1), ("test", 2)):
        at_least = "" if rows.whole else "at least "
        _, same = rows.shared(code)
        if same > CLEARLY * chance.shared(rows) * rows.count(code):
            stand, them = ("also stands", "it") if same == 1 else ("also stand", "them")
            found.append(
                f"{at_least}{how_many(same, 'row')} of {split} {stand} in train, value for value: scores on {them} "
                "flatter"
            )
        if key is not None and (keys := key.shared(code)[0]):
            at_least = "" if key.whole else "at least "
            have, them = ("has", "it") if keys == 1 else ("have", "them")
            found.append(
                f"{at_least}{how_many(keys, 'key')} of '{by}' {have} rows in train and in {split}: scores on {them} "
                "flatter"
            )
    for name, suspect in suspects.items():
        keys, count = suspect.shared(2)
        if keys:
            have = "has" if keys == 1 else "have"
            found.append(
                f"the column '{name}' looks like a key, and {keys:,} of its values {have} rows in train and in test "
                f"({how_many(count, 'test row')}): scores may flatter; data.split.by: {name} keeps their rows together"
            )
    return found


def hashes(frame: pl.DataFrame) -> NDArray[np.uint64]:
    """Hashes (N,) of whole rows, for comparisons within this process."""
    found: NDArray[Any] = frame.hash_rows(seed=0).to_numpy()
    return found
