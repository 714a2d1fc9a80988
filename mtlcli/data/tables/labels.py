"""Label columns -> tasks: which values are classes, how they are ordered and weighed, what cannot be learned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING

import numpy as np

from mtlcli.data.tables.fitted import Label
from mtlcli.data.tables.kinds import MOSTLY, TRUTH, WORDS, Held, conform, hold, shown, texts
from mtlcli.data.tables.options import SPLITS, TaskOptions
from mtlcli.data.tables.profile import Moments, Profile
from mtlcli.data.tables.reader import Target
from mtlcli.data.tables.splits import TRAIN
from mtlcli.errors import OptionError, did_you_mean
from mtlcli.tasks import unusable

if TYPE_CHECKING:
    import polars as pl

CLASSES = 1000  # more than these are not classes


def check_names(names: Sequence[str]) -> None:
    """Raise OptionError for a task that a network cannot have a head for."""
    for name in names:
        if why := unusable(name):
            raise OptionError(
                f"tasks.{name}", f"the name '{name}' {why}; choose another one, and give `column: {name}`"
            )


def target(name: str, options: TaskOptions, column: pl.Series, missing: Sequence[str]) -> Target:
    """What the labels of a task are, judged by the values of its column.

    Raises OptionError for a column whose type never fits the kind of task.
    """
    import polars as pl

    source = column.name
    held = hold(column, missing)
    if held == "empty":
        raise OptionError(f"tasks.{name}", f"the column '{source}' holds no label: it is empty in every row")
    if held == "unsupported" or (held.kind == "date" and options.kind == "regression"):
        raise OptionError(f"tasks.{name}", f"the column '{source}' holds {column.dtype}, which cannot be a label")
    if options.kind == "regression":
        if held.kind in ("text", "boolean") and not column.dtype.is_numeric():
            kinds = "binary or multiclass"
            found = next(iter(column.drop_nulls()), "")
            raise OptionError(
                f"tasks.{name}",
                f"a regression needs numbers; the column '{source}' holds {held.kind} values such as '{found}'; "
                f"is it {kinds}?",
            )
        least = 0.0 if options.transform == "log1p" else None
        return Target(name, options.kind, source, Held("numeric"), least=least)
    names = _truth_names(column, missing) if options.kind == "binary" or column.dtype == pl.Boolean else None
    if names is not None and (told := _told(name, options, source, names)) is not None:
        return Target(name, options.kind, source, Held("boolean"), told)
    if held.kind == "numeric":
        numbers = conform(column, held, missing)
        held = Held("text" if numbers is None or numbers.wrong is not None else "numeric")
    else:
        held = Held("text")
    return Target(name, options.kind, source, held, _named(name, options))


def fitted_target(label: Label) -> Target:
    """What the labels of a task are in a new file."""
    return Target(label.name, label.kind, label.column, label.held, tuple(label.classes) or None, label.least)


def _named(task: str, options: TaskOptions) -> tuple[str, ...] | None:
    """The classes that a person names."""
    if options.classes is None:
        return None
    named = tuple(shown(value) for value in options.classes)
    if len(set(named)) < len(named):
        raise OptionError(f"tasks.{task}.classes", f"each class once; found {', '.join(named)}")
    return named


def _truth_names(column: pl.Series, missing: Sequence[str]) -> tuple[str, str] | None:
    """What false and true are called in most rows of a column of truth values; None where it holds others.

    A few values may be mistakes. `true` is written in small letters, since programs write True and true for the same.
    """
    import polars as pl

    if column.dtype == pl.Boolean:
        return "false", "true"
    if column.dtype not in (pl.String, pl.Categorical, pl.Enum):
        return None
    values = texts(column, missing).drop_nulls().value_counts().rows()
    words = sorted((-count, word) for word, count in values if word.lower() in WORDS)
    if -sum(count for count, _ in words) <= MOSTLY * sum(count for _, count in values):
        return None
    found = {WORDS[word.lower()]: word for _, word in reversed(words)}
    return (shown(found[0.0]), shown(found[1.0])) if len(found) == 2 else None


def _told(task: str, options: TaskOptions, source: str, names: tuple[str, str]) -> tuple[str, ...] | None:
    """The classes of a column of truth values, in order; None where a person names others.

    Raises OptionError for a positive value that is not a truth value.
    """
    named = _named(task, options)
    if named is not None:
        truths = [WORDS.get(name.lower()) for name in named]
        return named if None not in truths and len(set(truths)) == len(truths) == 2 else None
    if options.positive is None:
        return names
    truth = TRUTH.get(shown(options.positive).lower())
    if truth is None:
        raise OptionError(
            f"tasks.{task}.positive",
            f"no row of the column '{source}' holds '{shown(options.positive)}'; there are: {', '.join(names)}",
        )
    return names if truth else (names[1], names[0])


def classes(of: Target, options: TaskOptions, counts: pl.DataFrame) -> tuple[str, ...]:
    """The classes of a task, in order, by how often each value occurs in any split (`value`, `split`, `count`).

    Binary: 0 and 1 where both occur, else the two most frequent values; whatever else occurs is a mistake in its row.
    Raises OptionError for a positive value that never occurs, or where there are too many classes.
    """
    if of.classes is not None:
        return of.classes
    totals: dict[str, int] = {}
    for value, count in counts.select("value", "count").iter_rows():
        totals[value] = totals.get(value, 0) + count
    if of.kind == "multiclass":
        check_number(of, len(totals), sum(totals.values()))
        return tuple(_sorted(totals, of.held))
    frequent = sorted(totals, key=lambda value: (-totals[value], value))
    two = ["0", "1"] if set(totals) <= {"0", "1"} or {"0", "1"} <= set(totals) else _sorted(frequent[:2], of.held)
    if options.positive is None:
        return tuple(two)
    positive = shown(options.positive)
    if positive not in totals:
        near = did_you_mean(positive, totals)
        raise OptionError(
            f"tasks.{of.task}.positive",
            f"no row of the column '{of.column}' holds '{positive}'{near}; there are: {', '.join(frequent[:8])}",
        )
    negative = next((value for value in (*two, *frequent) if value != positive), f"not {positive}")
    return negative, positive


def check_number(of: Target, values: int, rows: int) -> None:
    """Raise OptionError where the `values` of so many rows are too many to be classes."""
    if values > CLASSES or (values > 20 and values > rows / 2):
        raise OptionError(
            f"tasks.{of.task}",
            f"the column '{of.column}' holds {values:,} different values in {rows:,} rows, too many to be classes; is "
            "it a regression?",
        )


def label(of: Target, options: TaskOptions, counts: Mapping[str, int], moments: Moments | None) -> Label:
    """The task as it is fitted: `counts` of training rows by class, or the `moments` of its training labels.

    Raises OptionError where there is nothing to learn.
    """
    option = f"tasks.{of.task}"
    if moments is not None:
        if not moments.known:
            raise OptionError(option, f"no training row has a label in the column '{of.column}'")
        if moments.low == moments.high:
            same = np.expm1(moments.low) if of.least is not None else moments.low
            raise OptionError(
                option, f"every training row has the label {same:g} (column '{of.column}'); nothing to learn"
            )
        return Label(
            name=of.task,
            kind=of.kind,
            column=of.column,
            holds="numeric",
            mean=moments.mean,
            scale=moments.deviation,
            transform=options.transform,
            unit=options.unit,
        )
    assert of.classes is not None
    present = [name for name in of.classes if counts.get(name)]
    if not present:
        raise OptionError(option, f"no training row has a label in the column '{of.column}'")
    if len(present) < 2:
        raise OptionError(
            option, f"every training row has the label '{present[0]}' (column '{of.column}'); nothing to learn"
        )
    return Label(
        name=of.task,
        kind=of.kind,
        column=of.column,
        holds=of.held.kind,
        classes=list(of.classes),
        class_weights=_weights(of, options, counts),
    )


def notes(of: Target, options: TaskOptions, counts: Mapping[str, int]) -> list[str]:
    """What a person should know of the classes of a task."""
    assert of.classes is not None
    found = []
    order = [TRUTH.get(name.lower()) for name in of.classes]
    plain = order == [0.0, 1.0]  # as anyone would expect
    if of.kind == "binary" and not plain and options.positive is None and options.classes is None:
        found.append(
            f"task '{of.task}': '{of.classes[1]}' counts as 1 and '{of.classes[0]}' as 0; "
            f"data.tasks.{of.task}.positive says so, or turns it round"
        )
    never = [name for name in of.classes if not counts.get(name)]
    if never:
        found.append(f"task '{of.task}': no training row has the class {', '.join(never)}, so it cannot be learned")
    return found


def fit(
    targets: Sequence[Target], options: Mapping[str, TaskOptions], profile: Profile
) -> tuple[list[Label], list[str]]:
    """Every task as it is fitted, and what a person should know of their labels.

    Raises OptionError where there is nothing to learn.
    """
    fitted, told = [], []
    for of in targets:
        chosen, counts = options[of.task], {}
        if of.kind != "regression":
            of_train = profile.labels[of.task].filter(split=TRAIN)
            counts = dict(zip(of_train["value"].to_list(), of_train["count"].to_list(), strict=True))
        fitted.append(label(of, chosen, counts, profile.label_moments.get(of.task)))
        told += unlabelled(of, profile.labelled[of.task])
        if of.kind != "regression":
            told += notes(of, chosen, counts)
    return fitted, told


def unlabelled(of: Target, counts: Iterable[int]) -> list[str]:
    """What to tell of splits in which no row has a label, by how many have one in each."""
    without = [name for name, count in zip(SPLITS, counts, strict=True) if not count]
    where = " and of ".join(without)
    return [f"task '{of.task}': no row of {where} has a label, so that it is not scored there"] if without else []


def _weights(of: Target, options: TaskOptions, counts: Mapping[str, int]) -> list[float] | None:
    assert of.classes is not None
    each = [counts.get(name, 0) for name in of.classes]
    if options.class_weights == "balanced":
        # As scikit-learn has it: a class that never occurs is given the weight of one that occurs once.
        return [sum(each) / (len(each) * max(1, count)) for count in each]
    if options.class_weights is not None:
        if len(options.class_weights) != len(of.classes):
            raise OptionError(
                f"tasks.{of.task}.class_weights",
                f"should be {len(of.classes)} numbers, for the classes {', '.join(of.classes)}; "
                f"found {len(options.class_weights)}",
            )
        return list(options.class_weights)
    if options.positive_weight is None:
        return None
    return [1.0, each[0] / each[1] if options.positive_weight == "balanced" else options.positive_weight]


def _sorted(values: Sequence[str] | Mapping[str, int], held: Held) -> list[str]:
    return sorted(values, key=Decimal) if held.kind == "numeric" else sorted(values)
