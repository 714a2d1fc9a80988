"""Whether one column of numbers is nearly a function of another, of whatever form."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

OPEN = 0.001  # share of a variance that a function may leave open
OPEN_RANKS = 0.01  # the same of ranks, which a few values far out do not rule
FEWEST = 30  # rows beyond one for every value, below which nothing is said
FEWEST_CHANGED = 5  # rows with another value than the most frequent one
PER_VALUE = 5  # rows, from which on those with the same value are compared
PER_STEP = 10  # the same, from which on values are looked at as steps
FEWEST_FOR_STEPS = 200
AROUND = 5  # rows on each side of a step
CLEAN = 0.9  # share of the steps
DENSE = 0.5  # the same, where the rows around them are as dense as elsewhere
WIDER = 2.0  # times as far apart as before and after
FURTHEST = 3.0  # times as far apart as usual, at one step at least
GAP = 0.5  # share of the way from the first of these rows to the last

Numbers = NDArray[np.float64]


def follows(cause: Numbers, effect: Numbers) -> bool:
    """Whether `effect` (N,) is nearly a function of `cause` (N,): among rows with the same value of `cause`, where it
    has few; else between neighbours in its order, be it that `effect` changes slowly there, or in steps."""
    if len(np.unique(cause)) * PER_VALUE <= len(cause):
        return _same_within(cause, effect)
    if len(np.unique(effect)) * PER_STEP <= len(effect):
        return steps(cause, effect)
    return _slowly(cause, effect)


def _same_within(cause: Numbers, effect: Numbers) -> bool:
    """Whether `effect` varies next to nothing among rows with the same value of `cause`."""
    _, codes, counts = np.unique(cause, return_inverse=True, return_counts=True)
    several = counts[codes] >= PER_VALUE
    if 2 * several.sum() < len(cause):
        return False
    effect = effect[several]
    values, codes, counts = np.unique(cause[several], return_inverse=True, return_counts=True)
    free = len(effect) - len(values)
    changed = len(effect) - np.unique(effect, return_counts=True)[1].max()
    if free < FEWEST or len(values) < 2 or changed < FEWEST_CHANGED:
        return False

    def left_open(numbers: Numbers) -> float:
        within = numbers - (np.bincount(codes, numbers) / counts)[codes]
        return float(within @ within) / free / float(numbers.var())

    return left_open(effect) < OPEN and left_open(_ranks(effect)) < OPEN_RANKS


def _slowly(cause: Numbers, effect: Numbers) -> bool:
    """Whether `effect`, by its ranks, hardly changes from a row to the next in the order of `cause` (Rice 1984)."""
    ranks = _ranks(effect[np.argsort(cause, kind="stable")])
    spread = float(ranks.var())
    return spread > 0 and float((np.diff(ranks) ** 2).mean()) / 2 / spread < OPEN


def steps(cause: Numbers, effect: Numbers | NDArray[np.int64]) -> bool:
    """Whether each of the few values of `effect` (N,) has stretches of `cause` (N,) of its own.

    Groups that lie apart have so, too, and nothing is wrong with them. So steps must be where rows are dense, in the
    midst of a group.
    """
    order = np.argsort(cause, kind="stable")
    cause, codes = cause[order], np.unique(effect[order], return_inverse=True)[1]
    values = int(codes.max()) + 1
    if len(codes) < FEWEST_FOR_STEPS or values < 2 or values * PER_STEP > len(codes):
        return False
    changes = np.flatnonzero(np.diff(codes)) + 1
    if len(changes) > 3 * values + len(codes) // 100:
        return False
    clean, sharp, dense, usual = 0, 0, 0, False
    spans = cause[2 * AROUND :] - cause[: -2 * AROUND]
    for at in changes:
        around = codes[max(0, at - AROUND) : at + AROUND]
        clean += 1 + int((np.diff(around) != 0).sum()) == len(np.unique(around))  # no value comes back
        low, high = at - 3 * AROUND, at + 3 * AROUND
        if (
            low >= 0
            and high < len(codes)
            and len(set(codes[at - AROUND : at])) == len(set(codes[at : at + AROUND])) == 1
        ):
            sharp += 1
            dense += _as_dense(cause, int(at))
            usual |= bool(spans[at - AROUND] <= FURTHEST * np.median(spans))
    return usual and clean >= CLEAN * len(changes) and dense >= DENSE * sharp


def _as_dense(cause: Numbers, at: int) -> bool:
    """Whether rows around the step at `at` lie no further apart than those before and after."""
    before, here, after = np.diff(cause[at + AROUND * np.array([-3, -1, 1, 3])])
    gap = cause[at] - cause[at - 1]
    return bool(here <= WIDER * (before + after) / 2 and gap <= GAP * here)


def _ranks(values: Numbers) -> Numbers:
    """Equal values share the mean of their ranks."""
    _, codes, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends: Numbers = (np.cumsum(counts) - (counts - 1) / 2)[codes]
    return ends
