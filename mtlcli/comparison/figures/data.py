"""What the figures show of a report: numbers only, so that the files and the page draw the same ones."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mtlcli.comparison import significance
from mtlcli.comparison.improvement import gain, ranked
from mtlcli.comparison.report import SINGLE_TASK

Report = Mapping[str, Any]


class Gain(NamedTuple):
    """How much better a task is than the baseline's, in percent: the mean over its metrics; positive is better."""

    mean: float
    interval: tuple[float, float] | None  # 95 %, over seeds; None where there is one seed


class Point(NamedTuple):
    """One method's cost and quality; both lower is better."""

    method: str
    cost: float  # milliseconds per step
    quality: float  # delta_m in percent, or the mean rank
    interval: tuple[float, float] | None  # of the quality, 95 %
    front: bool  # no other method is at least as good and as cheap


def rows(report: Report) -> dict[str, Mapping[str, Any]]:
    """The rows that have results, by method."""
    return {row["method"]: row for row in report["rows"] if row["seeds"]}


def order(report: Report) -> list[str]:
    """Methods with results, best first: by delta_m, or the mean rank where there is no baseline."""

    def key(method: str) -> tuple[float, float]:
        row = known[method]
        return _or_inf(mean(row.get("delta_m"))), _or_inf(row.get("mean_rank"))

    known = rows(report)
    return sorted(known, key=key)


def mean(summary: Mapping[str, Any] | None) -> float | None:
    """The mean of `{"mean", ...}`, or None where there is none."""
    return summary["mean"] if summary else None


def interval(summary: Mapping[str, Any] | None) -> tuple[float, float] | None:
    """The 95 % interval of `{"mean", "interval", ...}`; None where it is not known."""
    found = summary.get("interval") if summary else None
    return (found[0], found[1]) if found and None not in found else None


def gains(report: Report) -> dict[str, dict[str, Gain]]:
    """Improvement over the baseline by task and method; empty without a baseline.

    The intervals are those of the method's seeds around the baseline's mean: the baseline's own spread is its own row.
    """
    known = rows(report)
    base = known.get(report.get("baseline") or "")
    found: dict[str, dict[str, Gain]] = {}
    if base is None:
        return found
    for task, metrics in report["metrics"].items():
        by_method = {method: _gain(row, base, task, metrics) for method, row in known.items()}
        found[task] = {method: each for method, each in by_method.items() if each is not None}
    return {task: by_method for task, by_method in found.items() if by_method}


def _gain(
    row: Mapping[str, Any], base: Mapping[str, Any], task: str, metrics: Mapping[str, Mapping[str, Any]]
) -> Gain | None:
    means, by_seed = [], []
    for name, about in metrics.items():
        reference = mean(base["tasks"].get(task, {}).get(name))
        if not reference:  # undefined, or zero, which nothing can be divided by
            continue
        summary = row["tasks"].get(task, {}).get(name)
        value = mean(summary)
        if value is None or summary is None:
            return None
        values, higher = summary.get("values") or {}, about["higher_is_better"]
        means.append(gain(value, reference, higher))
        by_seed.append({seed: gain(v, reference, higher) for seed, v in values.items()})
    if not means:
        return None
    seeds = sorted(set.intersection(*(set(each) for each in by_seed)))
    over_seeds = significance.summary({int(s): statistics.fmean(each[s] for each in by_seed) for s in seeds})
    return Gain(statistics.fmean(means), interval(over_seeds))


def ranks(report: Report) -> dict[str, dict[tuple[str, str], float]]:
    """Rank of each method's mean by (task, metric): 1 is best, ties averaged. The single-task networks do not compete.

    A metric that a method has no value for is absent there.
    """
    competing = {method: row for method, row in rows(report).items() if method != SINGLE_TASK}
    found: dict[str, dict[tuple[str, str], float]] = {method: {} for method in competing}
    for task, metrics in report["metrics"].items():
        for name, about in metrics.items():
            sign = -1 if about["higher_is_better"] else 1
            means = {
                method: sign * value
                for method, row in competing.items()
                if (value := mean(row["tasks"].get(task, {}).get(name))) is not None
            }
            for method, place in ranked(means).items():
                found[method][task, name] = place
    return {method: by_metric for method, by_metric in found.items() if by_metric}


def trade_off(report: Report) -> list[Point]:
    """Quality against cost, cheapest first. The quality is delta_m; without a baseline it is the mean rank."""
    found: list[Point] = []
    for method, row in rows(report).items():
        summary = row.get("delta_m") if report.get("baseline") else {"mean": row.get("mean_rank")}
        quality, cost = mean(summary), row["cost"].get("step_ms_median")
        if quality is not None and cost is not None:
            found.append(Point(method, cost, quality, interval(summary), False))
    found.sort(key=lambda point: (point.cost, point.quality))
    best = math.inf
    for number, point in enumerate(found):
        if point.quality < best:
            best = point.quality
            found[number] = point._replace(front=True)
    return found


def limits(values: Sequence[float]) -> tuple[float, float]:
    """The range that shows most of `values` well: what lies three times the middle half away from it is left out.

    One diverged method must not squeeze all others into a line.
    """
    ordered = sorted(values)
    if len(ordered) < 4:
        return ordered[0], ordered[-1]
    lower, _, upper = statistics.quantiles(ordered, n=4)
    room = 3 * (upper - lower)
    inside = [value for value in ordered if lower - room <= value <= upper + room]
    return inside[0], inside[-1]


def _or_inf(value: float | None) -> float:
    return math.inf if value is None else value
