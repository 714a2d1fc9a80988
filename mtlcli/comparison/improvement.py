"""Improvement over a baseline, and mean rank: the two numbers that sum all metrics up."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

ROUNDING = 1e-6  # relative: differences below it come from the arithmetic of scores, which is float32 in part
Metric = tuple[str, str]  # task, metric
Values = Mapping[Metric, float | None]  # of one method with one seed; None where a metric is undefined
About = Mapping[Metric, Mapping[str, Any]]  # `higher_is_better` by metric


def baseline_means(baseline: Sequence[Values], about: About) -> tuple[dict[Metric, float], list[str]]:
    """The baseline's mean over seeds of every metric, and notes on those left out.

    A mean that is undefined or zero cannot be divided by.
    """
    means: dict[Metric, float] = {}
    notes = []
    for metric in about:
        known = [value for values in baseline if (value := values.get(metric)) is not None]
        mean = statistics.fmean(known) if known else None
        if mean:
            means[metric] = mean
        else:
            notes.append(
                f"{'.'.join(metric)} is {'zero' if known else 'undefined'} for the baseline, so it is left out of "
                "delta_m and delta_p"
            )
    return means, notes


def delta_m(values: Values, base: Mapping[Metric, float], about: About) -> float | None:
    """Mean over all metrics of the change for the worse in percent: lower is better (Nash-MTL's convention)."""
    gains = _gains(values, base, about)
    return None if gains is None else -statistics.fmean(gains.values())


def delta_p(values: Values, base: Mapping[Metric, float], about: About) -> float | None:
    """Mean over tasks of the mean over the task's metrics of the improvement in percent (LibMTL's convention)."""
    gains = _gains(values, base, about)
    if gains is None:
        return None
    by_task: dict[str, list[float]] = {}
    for (task, _), gain in gains.items():
        by_task.setdefault(task, []).append(gain)
    return statistics.fmean(statistics.fmean(found) for found in by_task.values())


def mean_ranks(by_method: Mapping[str, Sequence[Values]], about: About) -> dict[str, float | None]:
    """Rank of each method's mean on every metric, 1 is best, ties averaged; then the mean over metrics.

    A metric that no method has a value for is passed over; a method that lacks one which others have gets no mean rank.
    """
    ranks: dict[str, list[float]] = {method: [] for method in by_method}
    lacking = set()
    for metric, meta in about.items():
        means = {}
        for method, seeds in by_method.items():
            known = [value for values in seeds if (value := values.get(metric)) is not None]
            if known:
                means[method] = statistics.fmean(known) * (-1 if meta["higher_is_better"] else 1)
        lacking |= by_method.keys() - means.keys() if means else set()
        for method, place in ranked(means).items():
            ranks[method].append(place)
    return {m: statistics.fmean(found) if found and m not in lacking else None for m, found in ranks.items()}


def ranked(means: Mapping[str, float]) -> dict[str, float]:
    """Rank of each mean, 1 is the lowest, ties averaged."""
    places = {}
    for method, mean in means.items():
        tied = sum(alike(other, mean) for other in means.values())
        below = sum(other < mean and not alike(other, mean) for other in means.values())
        places[method] = below + (tied + 1) / 2
    return places


def alike(one: float, other: float) -> bool:
    """Whether two means are the same: 0.7, 0.8, 0.9 and three times 0.8 differ in the last bit by the arithmetic."""
    return math.isclose(one, other, rel_tol=ROUNDING)


def gain(value: float, base: float, higher_is_better: bool) -> float:
    """Improvement over the baseline in percent, positive is better.

    The size of the baseline is the unit, whatever its sign: from an R2 of -0.5, an R2 of -0.25 is 50 % better.
    """
    return (1 if higher_is_better else -1) * (value - base) / abs(base) * 100


def _gains(values: Values, base: Mapping[Metric, float], about: About) -> dict[Metric, float] | None:
    """Every metric's gain; None where one has no value, because a mean over the others would not compare."""
    gains = {}
    for metric, mean in base.items():
        value = values.get(metric)
        if value is None:
            return None
        gains[metric] = gain(value, mean, about[metric]["higher_is_better"])
    return gains or None
