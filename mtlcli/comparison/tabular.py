"""A report as columns of text: what the terminal, Markdown and TeX show, each in its own way."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtlcli.comparison import significance
from mtlcli.comparison.improvement import alike
from mtlcli.search import words
from mtlcli.yamlfile import show

Rows = Sequence[Mapping[str, Any]]
MARKS = {significance.BETTER: "+", significance.WORSE: "-", significance.WITHIN_SPREAD: "~"}
ALL_TASKS, COST = "all tasks", "cost"  # groups of columns beside those of the tasks


@dataclass(frozen=True)
class Cell:
    """One value."""

    value: str = "-"  # `-` where it is not known
    spread: str = ""  # standard deviation over seeds; empty where it is not known
    mark: str = ""  # one of MARKS
    place: int = 0  # 1 for the best of the column, 2 for the second best, else 0


@dataclass(frozen=True)
class Column:
    """One metric, or what sums methods up, for every row."""

    group: str  # a task, ALL_TASKS or COST
    name: str
    unit: str
    better: str  # up, down, or empty where neither is better
    cells: tuple[Cell, ...]
    optional: bool = False  # left out where there is no room


def rows(report: Mapping[str, Any]) -> Rows:
    """The rows that have values."""
    return [row for row in report["rows"] if row["seeds"]]


def columns(report: Mapping[str, Any]) -> list[Column]:
    """Every column of the report: metrics by task, what sums them up, cost."""
    shown = rows(report)
    published = {row["method"]: row for row in (report.get("published") or {}).get("rows", ())}
    found = []
    for task, metrics in report["metrics"].items():
        for name, about in metrics.items():
            summaries = [row["tasks"][task][name] for row in shown]
            better, unit = _better(about["higher_is_better"]), about["unit"]
            unit = "" if unit == "fraction" else unit
            found.append(Column(task, name, unit, better, _summaries(summaries, better)))
            theirs = [published.get(row["method"], {}).get("tasks", {}).get(task, {}).get(name) for row in shown]
            found += _published(task, theirs, about["unit"])
    found += _deltas(report, shown, published) if report["baseline"] else []
    ranks = [{"mean": row["mean_rank"]} for row in shown]
    found.append(Column(ALL_TASKS, "mean rank", "", "down", _summaries(ranks, "down", digits=2)))
    return [*found, *_costs(shown)]


def seeds(report: Mapping[str, Any]) -> Column:
    """How many seeds every row has."""
    return Column(ALL_TASKS, "seeds", "", "", tuple(Cell(str(len(row["seeds"]))) for row in rows(report)))


def legend(report: Mapping[str, Any]) -> list[str]:
    """What the table's numbers and marks mean, in sentences."""
    reference, shown = report.get("reference"), rows(report)
    lines = []
    if any(len(row["seeds"]) > 1 for row in shown):
        lines.append("Mean ± standard deviation over seeds.")
    else:
        lines.append("One seed each: no spread is known, so no difference can be told from chance.")
    tests = {s["test"] for s in _all_summaries(shown) if s.get("test")}
    if tests:
        lines.append(
            f"+ better and - worse than {reference}: p < {significance.ALPHA} in a paired test over seeds "
            f"({_named(tests)}), after Holm's correction over methods; ~ the difference is within the spread; no mark: "
            "undecided."
        )
    if report["baseline"]:
        lines.append(
            "delta_m: mean change for the worse over all metrics, lower is better. "
            "delta_p: mean improvement over tasks, higher is better."
        )
    return lines


def notes(report: Mapping[str, Any]) -> list[str]:
    """The report's notes, what was tuned, how often solvers fell back, and where published values come from."""
    found = [*report["notes"], *tuned(report)]
    for row in rows(report):
        for event, times in row["counts"].items():
            found.append(f"{row['method']}: {event}: {times:,} times in {len(row['seeds'])} runs")
    published = report.get("published")
    if published:
        sources = dict.fromkeys(row["source"] for row in published["rows"])
        found.append(
            f"paper: {published['title']} ({'; '.join(sources) or 'none of these methods is in it'}); gap: ours minus "
            "the paper's, in the paper's unit"
        )
        baselines = dict.fromkeys(row["delta"]["baseline"] for row in published["rows"] if row["delta"])
        if baselines:
            found.append(f"the gap in {published['convention']} is measured against {', '.join(baselines)}")
        found += [f"{row['method']}: {row['note']}" for row in published["rows"] if row["note"]]
        found += published["notes"]
    return found


def tuned(report: Mapping[str, Any]) -> list[str]:
    """What tuning found, a line for each method and single task."""
    lines = []
    for name, study in (report.get("tuning") or {}).items():
        failed = f", {study['failed']} of them failed" if study["failed"] else ""
        if study["val_delta_m"] is None:
            lines.append(f"tuned {name}: none of {study['trials']} trials has a score{failed}")
            continue
        values = (f"{key}={show(value)} ({words(study['searched'][key])})" for key, value in study["values"].items())
        lines.append(
            f"tuned {name}: {', '.join(values)}; the best of {study['trials']} trials{failed}: delta_m "
            f"{study['val_delta_m']:+z.2f} % on val against its first"
        )
    return lines


def _deltas(report: Mapping[str, Any], shown: Rows, published: Mapping[str, Mapping[str, Any]]) -> list[Column]:
    found = []
    # The baseline is what deltas are measured against: it takes no place among them.
    aside = [row["method"] == report["baseline"] for row in shown]
    for key, better in (("delta_m", "down"), ("delta_p", "up")):
        summaries = [row[key] for row in shown]
        found.append(Column(ALL_TASKS, key, "%", better, _summaries(summaries, better, 2, "+", aside)))
        if key == "delta_m" and any(summary["interval"] for summary in summaries):
            intervals = tuple(Cell(_interval(summary)) for summary in summaries)
            found.append(Column(ALL_TASKS, "95 % interval", "of delta_m", "", intervals, optional=True))
        if published and key == report["published"]["convention"]:
            deltas = [published.get(row["method"], {}).get("delta") for row in shown]
            found += _published(ALL_TASKS, deltas, "percent", digits=2)
    return found


def _costs(shown: Rows) -> list[Column]:
    found = []
    for key, name, unit, digits in (
        ("step_ms_median", "ms", "per step", 2),
        ("seconds", "seconds", "", 1),
        ("peak_mib", "peak", "MiB", 0),
        ("backward_passes_per_step", "passes", "per step", 1),
    ):
        values = [row["cost"].get(key) for row in shown]
        whole = all(value is None or value == round(value) for value in values)
        cells = tuple(Cell("-" if v is None else f"{v:,.{0 if whole else digits}f}") for v in values)
        found.append(Column(COST, name, unit, "", cells))
    fallbacks = tuple(Cell(f"{sum(row['counts'].values()):,}") for row in shown)
    return [*found, Column(COST, "fallbacks", "", "", fallbacks)]


def _published(group: str, entries: Sequence[Any], ours: str, digits: int | None = None) -> list[Column]:
    """Two columns, or none where nothing was published."""
    known = [entry for entry in entries if entry]
    if not known:
        return []
    unit = known[0].get("unit", ours)
    digits = _digits(entry["published"] for entry in known) if digits is None else digits
    paper = tuple(Cell(f"{entry['published']:.{digits}f}") if entry else Cell() for entry in entries)
    gap = tuple(Cell(f"{entry['gap']:+z.{digits}f}") if entry else Cell() for entry in entries)
    shown = "" if unit == ours else unit
    return [Column(group, "paper", shown, "", paper), Column(group, "gap", shown, "", gap)]


def _summaries(
    summaries: Sequence[Mapping[str, Any]],
    better: str,
    digits: int | None = None,
    sign: str = "",
    aside: Sequence[bool] | None = None,
) -> tuple[Cell, ...]:
    """Means with their spread; those `aside` take no place."""
    means = [summary["mean"] for summary in summaries]
    taking_part = [mean for mean, out in zip(means, aside or [False] * len(means), strict=True) if not out]
    order: list[float] = []  # what differs, best first
    for mean in sorted((mean for mean in taking_part if mean is not None), reverse=better == "up"):
        if not order or not alike(mean, order[-1]):
            order.append(mean)
    digits = _digits(mean for mean in means if mean is not None) if digits is None else digits
    named = order[:-1][:2]  # the last is neither best nor second
    cells = []
    for i, (summary, mean) in enumerate(zip(summaries, means, strict=True)):
        if mean is None:
            cells.append(Cell())
            continue
        std, mark = summary.get("std"), MARKS.get(summary.get("versus") or "", "")
        spread = "" if std is None else f"{std:.{digits}f}"
        place = next((place for place, other in enumerate(named, 1) if alike(mean, other)), 0)
        cells.append(Cell(f"{mean:{sign}z.{digits}f}", spread, mark, 0 if aside and aside[i] else place))
    return tuple(cells)


def _interval(summary: Mapping[str, Any]) -> str:
    ends = summary["interval"]
    return f"{ends[0]:+z.2f} to {ends[1]:+z.2f}" if ends else "-"


def _digits(values: Iterable[float]) -> int:
    """Decimals of a column: at least four significant digits of its largest value, two from 10 on."""
    largest = max((abs(value) for value in values), default=1.0)
    if largest >= 10:
        return 2
    return 4 if largest >= 0.1 or largest == 0 else min(12, 3 - math.floor(math.log10(largest)))


def _better(higher_is_better: bool) -> str:
    return "up" if higher_is_better else "down"


def _all_summaries(shown: Rows) -> list[Mapping[str, Any]]:
    found = [metric for row in shown for task in row["tasks"].values() for metric in task.values()]
    return found + [row[key] for row in shown for key in ("delta_m", "delta_p") if row[key]]


def _named(tests: set[str]) -> str:
    names = {significance.PAIRED_T: "paired t test", significance.WILCOXON: "Wilcoxon's signed-rank test"}
    return " or ".join(name for test, name in names.items() if test in tests)
