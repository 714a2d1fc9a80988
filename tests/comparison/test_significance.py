"""Intervals, paired tests and Holm's correction: worked by hand, and held against scipy.stats."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from typing import Any

import pytest

from mtlcli.comparison import significance
from mtlcli.comparison.significance import compare, holm, judge, paired_t, seeds_needed, summary, wilcoxon


def seeds(*values: float | None) -> dict[int, float | None]:
    return dict(enumerate(values))


def named(*values: float) -> dict[str, float]:
    return {str(seed): value for seed, value in enumerate(values)}


# -- spread ------------------------------------------------------------------------------------------------------------


def test_a_summary_by_hand() -> None:
    """1, 2, 3: standard error 1 / sqrt(3), and t(0.975, 2) = 4.302653."""
    found = summary(seeds(3.0, 1.0, 2.0))
    assert (found["mean"], found["std"], found["n"]) == (2.0, 1.0, 3)
    assert found["interval"] == pytest.approx([2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)], abs=1e-6)
    assert found["values"] == {"0": 3.0, "1": 1.0, "2": 2.0}


def test_a_summary_of_little() -> None:
    assert summary(seeds(None, 0.5)) == {"mean": 0.5, "std": None, "n": 1, "interval": None, "values": {"1": 0.5}}
    assert summary(seeds(None)) == {"mean": None, "std": None, "n": 0, "interval": None, "values": {}}
    assert summary(seeds(0.5, 0.5))["interval"] == [0.5, 0.5]
    assert list(summary({10: 1.0, 9: 2.0})["values"]) == ["9", "10"]


# -- one test ----------------------------------------------------------------------------------------------------------


def test_wilcoxon_by_hand() -> None:
    """Of 2^6 choices of signs, the sums 0 and 21 are the most extreme: 2 / 64. With -1 among them, 0, 1, 20, 21."""
    assert wilcoxon([1, 2, 3, 4, 5, 6]) == 2 / 64
    assert wilcoxon([-1, 2, 3, 4, 5, 6]) == 4 / 64
    assert wilcoxon([1, -2, 3, 0, 0]) == 6 / 8  # ranks 1, 2, 3: sums as far from 3 as 4 is: 0, 1, 2, 4, 5, 6
    assert wilcoxon([1, 1, -1, 1]) == pytest.approx(10 / 16)  # all of rank 2.5: no or one, three or four positive


def test_the_tests_are_those_of_scipy() -> None:
    from scipy import stats

    draw = random.Random(0)
    for _ in range(40):
        differences = [draw.gauss(0.5, 1) for _ in range(draw.randint(2, 12))]
        assert wilcoxon(differences) == pytest.approx(stats.wilcoxon(differences, method="exact").pvalue)
        assert paired_t(differences) == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)
        found = summary(seeds(*differences))
        low, high = stats.t.interval(0.95, len(differences) - 1, found["mean"], stats.sem(differences))
        assert found["interval"] == pytest.approx([low, high])
    for _ in range(5):  # ties, which scipy has by going through every choice of signs
        differences = [draw.choice([-2.0, -1.0, 1.0, 2.0, 3.0]) for _ in range(draw.randint(3, 8))]
        every = stats.PermutationMethod(n_resamples=2 ** len(differences) + 1)
        assert wilcoxon(differences) == pytest.approx(stats.wilcoxon(differences, method=every).pvalue)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 10, 31, 500])
def test_students_distribution_is_that_of_scipy(n: int) -> None:
    """Also far out, where 1 - (nearly 1) would have no digits left, and near zero. scipy's quantiles have ten digits
    before version 1.17."""
    from scipy import stats

    low, high = significance.interval(1.0, 2.0, n)
    assert [low, high] == pytest.approx(stats.t.interval(0.95, n - 1, 1, 2 / math.sqrt(n)), rel=1e-9)
    draw = random.Random(n)
    for shift in (0.0, 1e-6, 0.1, 1.0, 10.0, 1e4):
        differences = [shift + draw.gauss(0, 1) for _ in range(n)]
        assert paired_t(differences) == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, rel=1e-9)


def test_students_quantiles_in_closed_form() -> None:
    """tan(pi (p - 1/2)) with one degree of freedom, (2p - 1) / sqrt(2 p (1 - p)) with two; p = 0.975."""
    for n, quantile in ((2, math.tan(0.475 * math.pi)), (3, 0.95 / math.sqrt(2 * 0.975 * 0.025))):
        low, high = significance.interval(0.0, math.sqrt(n), n)
        assert [-low, high] == pytest.approx([quantile, quantile], rel=1e-13)


def test_differences_that_are_equal_but_for_the_arithmetic_share_a_rank() -> None:
    """By hand: five differences of 0.1, one of them against the rest, and one of 0.2: ranks 3 and 6."""
    ours = [0.2, 0.3, 0.4, 0.8, 0.6, 0.9]
    theirs = [0.1, 0.2, 0.3, 0.7, 0.7, 0.7]
    differences = [x - y for x, y in zip(ours, theirs, strict=True)]
    assert len({abs(d) for d in differences}) > 2
    paired = compare(named(*ours), named(*theirs))
    assert paired is not None
    # Sums of positive ranks as far from 10.5 as 18: none, one of the five; and all, all but one of the five.
    assert (paired.test, paired.p) == (significance.WILCOXON, 12 / 64)


def test_five_seeds_have_a_t_test_and_six_have_wilcoxons() -> None:
    """With five, no values whatever give Wilcoxon's test a p below 0.05."""
    ours, theirs = (0.1, 0.3, 0.2, 0.5, 0.4), (0.0, 0.0, 0.0, 0.0, 0.0)
    five, six = compare(named(*ours), named(*theirs)), compare(named(*ours, 0.9), named(*theirs, 0.0))
    assert five is not None
    assert six is not None
    # Mean 0.3, standard deviation sqrt(0.025): t = 4.2426 with 4 degrees of freedom.
    assert (five.test, five.p) == ("paired t", pytest.approx(0.013236, abs=1e-6))
    assert (six.test, six.p) == ("wilcoxon", 2 / 64)


def test_two_seeds() -> None:
    """t = mean / (std / sqrt 2) = 3 with one degree of freedom: p = 1 - 2 atan(3) / pi."""
    found = compare(named(1.1, 1.2), named(1.0, 1.0))
    assert found is not None
    assert found.test == "paired t"
    assert found.p == pytest.approx(1 - 2 * math.atan(3) / math.pi)


def test_equal_values_differ_by_nothing() -> None:
    for n in (2, 5, 6, 9):
        found = compare(named(*range(n)), named(*range(n)))
        assert found is not None
        assert (found.p, found.difference) == (1.0, 0.0)


@pytest.mark.parametrize(("n", "p"), [(2, 0.5), (3, 0.25), (5, 1 / 16), (6, 1 / 32)])
def test_a_difference_without_variance_is_not_certain(n: int, p: float) -> None:
    """The t statistic is infinite; p is that of Wilcoxon's test, for all signs alike. 0.3 - 0.2 is not 0.1 exactly."""
    found = compare(named(*(0.1 * i + 0.1 for i in range(n))), named(*(0.1 * i for i in range(n))))
    assert found is not None
    assert (found.test, found.p) == ("wilcoxon", p)


def test_a_difference_without_variance_but_for_float32_is_not_certain() -> None:
    """Both seeds differ by 11 / 180, of which AUROC in single precision keeps seven digits."""
    found = compare(named(0.888888955, 0.977777719), named(0.827777803, 0.916666746))
    assert found is not None
    assert (found.test, found.p) == ("wilcoxon", 0.5)


def test_zeros_do_not_make_six() -> None:
    """One of six differences is zero: Wilcoxon's test would have five ranks."""
    found = compare(named(1, 2, 3, 4, 5, 7), named(1, 1, 1, 1, 1, 1))
    assert found is not None
    assert found.test == "paired t"


def test_seeds_that_only_one_has_are_left_out() -> None:
    found = compare({"0": 1.0, "1": 2.0, "5": 9.0}, {"1": 1.5, "0": 1.0, "7": -9.0})
    assert found == (pytest.approx(0.5), "paired t", 0.25, pytest.approx(math.sqrt(0.5)), 2)
    assert compare({"0": 1.0, "1": 2.0}, {"1": 1.0, "2": 1.0}) is None
    assert compare({}, {"1": 1.0}) is None


# -- several methods ---------------------------------------------------------------------------------------------------


def test_holm_by_hand() -> None:
    """0.01 x 4, then 0.02 x 3, then 0.04 x 2, and 0.03 x 2 is not less than what came before."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


def judged(values: dict[str, tuple[float, ...]], reference: str | None, higher: bool) -> dict[str, dict[str, Any]]:
    found = {method: summary(seeds(*each)) for method, each in values.items()}
    judge(found, reference, higher)
    return found


@pytest.mark.parametrize(("higher", "verdicts"), [(True, ("better", "worse")), (False, ("worse", "better"))])
def test_verdicts(higher: bool, verdicts: tuple[str, str]) -> None:
    found = judged(
        {
            "reference": (1.0, 2.0, 3.0),
            "up": (1.5, 2.5001, 3.5),
            "down": (0.5, 1.5001, 2.5),
            "near": (1.1, 1.9, 3.1),
            "far": (3.0, 3.5, 6.0),
        },
        "reference",
        higher,
    )
    assert [found[method]["versus"] for method in ("up", "down")] == list(verdicts)
    assert found["near"]["versus"] == "within spread"
    assert found["far"]["versus"] is None  # differences of 2, 1.5 and 3 with p = 0.046, doubled by the correction
    assert found["far"]["p"] == pytest.approx(2 * paired_t([2, 1.5, 3]))
    assert found["reference"]["p"] is None


def test_nothing_is_tested_without_a_reference_or_seeds() -> None:
    for found in (
        judged({"a": (1.0, 2.0), "b": (3.0, 4.5)}, None, True),
        judged({"a": (1.0,), "b": (3.0,)}, "a", True),
    ):
        assert all(each["p"] is each["test"] is each["versus"] is None for each in found.values())


def test_seeds_needed() -> None:
    """2 m / 2^n < 0.05."""
    for methods in range(1, 40):
        n = seeds_needed(methods)
        assert methods * wilcoxon(range(1, n + 1)) < 0.05
        assert n == significance.LEAST_FOR_WILCOXON or methods * wilcoxon(range(1, n)) >= 0.05


def test_the_module_is_quick() -> None:
    script = """import sys, mtlcli.comparison.significance
assert not {'numpy', 'scipy'} & set(sys.modules)"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
