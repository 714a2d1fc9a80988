"""What a few seeds can tell: spread, confidence interval, paired tests against one method, Holm's correction.

Student's distribution is worked out here, because importing scipy, with numpy, takes longer than a whole comparison
does otherwise. The tests hold everything here against `scipy.stats`.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from mtlcli.comparison.improvement import ROUNDING

CONFIDENCE = 0.95  # of intervals; a difference counts as found where its corrected p is below 1 - CONFIDENCE
ALPHA = 0.05
LEAST_FOR_WILCOXON = 6  # seeds: 2 / 2^6 = 0.03; with fewer, no outcome of the signed-rank test is below 0.05
WILCOXON, PAIRED_T = "wilcoxon", "paired t"
BETTER, WORSE, WITHIN_SPREAD = "better", "worse", "within spread"

# What a report says of the test itself.
TEST = {
    "confidence": CONFIDENCE,
    "alpha": ALPHA,
    "sides": 2,
    "correction": "holm",
    "family": "methods, per metric",
    "wilcoxon_from_seeds": LEAST_FOR_WILCOXON,
}


class Paired(NamedTuple):
    """A paired test over the seeds that two methods share."""

    p: float  # two-sided, not corrected
    test: str  # WILCOXON or PAIRED_T
    difference: float  # mean of ours - theirs
    spread: float  # the larger of the two standard deviations over the shared seeds
    seeds: int  # how many are shared


def summary(values: Mapping[int, float | None]) -> dict[str, Any]:
    """Mean, standard deviation (n - 1) and interval of the mean over seeds; seeds without a value are left out.

    Returns:
        `mean` (None without a value), `std` and `interval` (None with fewer than two), `n`, `values` by seed as text.
    """
    known = {seed: value for seed, value in sorted(values.items()) if value is not None}
    mean = statistics.fmean(known.values()) if known else None
    std = statistics.stdev(known.values()) if len(known) > 1 else None
    return {
        "mean": mean,
        "std": std,
        "n": len(known),
        "interval": None if mean is None or std is None else interval(mean, std, len(known)),
        "values": {str(seed): value for seed, value in known.items()},
    }


def interval(mean: float, std: float, n: int) -> list[float]:
    """Student's t interval of a mean of `n` >= 2 values, as [low, high]."""
    half = _quantile(n - 1) * std / math.sqrt(n)
    return [mean - half, mean + half]


def judge(by_method: Mapping[str, dict[str, Any]], reference: str | None, higher_is_better: bool) -> None:
    """Test every method against the reference on one metric, and write the verdict into its summary.

    Args:
        by_method: what `summary` returned, by method; changed in place: `p` (after Holm's correction over these
            methods), `test` and `versus`: `better` or `worse` where p < 0.05, else `within spread` where the
            difference is no larger than the larger of both standard deviations, else None. All three are None for
            the reference itself, and where fewer than two seeds are shared.
        reference: a key of `by_method`, or None to test nothing.
        higher_is_better: of the metric.
    """
    found: dict[str, Paired] = {}
    for method, own in by_method.items():
        own |= {"p": None, "test": None, "versus": None}
        if reference is not None and method != reference:
            paired = compare(own["values"], by_method[reference]["values"])
            if paired is not None:
                found[method] = paired
    for (method, paired), p in zip(found.items(), holm([each.p for each in found.values()]), strict=True):
        versus = None
        if p < ALPHA:
            versus = BETTER if (paired.difference > 0) == higher_is_better else WORSE
        elif abs(paired.difference) <= paired.spread:
            versus = WITHIN_SPREAD
        by_method[method] |= {"p": p, "test": paired.test, "versus": versus}


def compare(ours: Mapping[str, float], theirs: Mapping[str, float]) -> Paired | None:
    """The paired test of two methods, values by seed; None where they share fewer than two seeds.

    Wilcoxon's signed-rank test where at least six seeds differ, because it asks nothing of the distribution; with
    fewer it could not reach 0.05 whatever the values, so the paired t test, which trusts the differences to be normal.
    Where all differences are the same the t statistic has no spread to divide by. p = 0 from, say, two seeds of a
    rounded metric would be absurd: Wilcoxon's exact p, 2 / 2^n, is the honest one, and 1 where nothing differs at all.
    """
    shared = [seed for seed in ours if seed in theirs]
    if len(shared) < 2:
        return None
    a, b = [ours[seed] for seed in shared], [theirs[seed] for seed in shared]
    noise = ROUNDING * max(abs(value) for value in (*a, *b))
    differences = _without_noise([x - y for x, y in zip(a, b, strict=True)], noise)
    if len(set(differences)) == 1 or sum(d != 0 for d in differences) >= LEAST_FOR_WILCOXON:
        p, test = wilcoxon(differences), WILCOXON
    else:
        p, test = paired_t(differences), PAIRED_T
    spread = max(statistics.stdev(a), statistics.stdev(b))
    return Paired(p, test, statistics.fmean(differences), spread, len(shared))


def _without_noise(differences: Sequence[float], noise: float) -> list[float]:
    """With one size for sizes that are equal but for `noise`, and 0 for those below it: 0.3 - 0.2 is not smaller than
    0.2 - 0.1, and ranks must not say so."""
    sizes = {}
    last = 0.0
    for size in sorted(abs(d) for d in differences):
        last = sizes[size] = size if size - last > noise else last
    return [math.copysign(sizes[abs(d)], d) for d in differences]


def wilcoxon(differences: Sequence[float]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test: exact, also with ties (mid-ranks); zeros are left out.

    The sum of the ranks of positive differences is held against its distribution over all 2^n choices of signs.
    """
    sizes = sorted(abs(d) for d in differences if d)
    # Twice the mid-rank, a whole number: first and last position (from 1) of a size among all.
    doubled = {size: 2 * sizes.index(size) + 1 + sizes.count(size) for size in sizes}
    ways = Counter({0: 1})  # sum of doubled ranks -> choices of signs that give it
    for size in sizes:
        more: Counter[int] = Counter()
        for total, count in ways.items():
            more[total] += count
            more[total + doubled[size]] += count
        ways = more
    centre = sum(doubled[size] for size in sizes) / 2
    distance = abs(sum(doubled[d] for d in differences if d > 0) - centre)
    extreme = sum(count for total, count in ways.items() if abs(total - centre) >= distance)
    return extreme / (1 << len(sizes))


def paired_t(differences: Sequence[float]) -> float:
    """Two-sided p of the t test that the mean of `differences` (n >= 2, not all the same) is zero."""
    n = len(differences)
    t = statistics.fmean(differences) / (statistics.stdev(differences) / math.sqrt(n))
    return _two_sided(t, n - 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction, in the order given: the smallest p times m, the next times m - 1, ...; at most 1."""
    corrected = [0.0] * len(p_values)
    least = 0.0
    for position, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        least = max(least, min(1.0, (len(p_values) - position) * p_values[index]))
        corrected[index] = least
    return corrected


def seeds_needed(methods: int) -> int:
    """The fewest seeds with which Wilcoxon's test of `methods` methods can be below 0.05 after the correction."""
    return max(LEAST_FOR_WILCOXON, math.floor(math.log2(2 * methods / ALPHA)) + 1)


@lru_cache
def _quantile(degrees: int) -> float:
    """What Student's t stays below in size with probability CONFIDENCE, by bisection."""
    low, high = 0.0, 1.0
    while _two_sided(high, degrees) > 1 - CONFIDENCE:
        low, high = high, 2 * high
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if _two_sided(middle, degrees) > 1 - CONFIDENCE else (low, middle)
    return high


def _two_sided(t: float, degrees: int) -> float:
    """Probability that Student's t is at least as far from zero: the incomplete beta function of both shares below."""
    inside, beyond = t * t / (degrees + t * t), degrees / (degrees + t * t)
    if t * t < 1:  # where the other fraction converges fast
        return 1 - _incomplete_beta(0.5, degrees / 2, inside, beyond)
    return _incomplete_beta(degrees / 2, 0.5, beyond, inside)


def _incomplete_beta(a: float, b: float, x: float, rest: float) -> float:
    """I_x(a, b), regularized, with `rest` = 1 - x, by its continued fraction (DLMF 8.17.22), evaluated from the front
    by Lentz's method."""
    if x == 0:
        return 0.0
    logarithm = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(rest)
    value = above = 1.0
    below = 0.0
    for m in range(1, 1000):
        k, odd = divmod(m, 2)
        if odd:
            part = -(a + k) * (a + b + k) * x / ((a + 2 * k) * (a + 2 * k + 1))
        else:
            part = k * (b - k) * x / ((a + 2 * k - 1) * (a + 2 * k))
        below, above = 1 / (1 + part * below), 1 + part / above
        value *= above * below
        if abs(above * below - 1) < 1e-16:
            break
    return math.exp(logarithm) / a / value
