"""What the report says of differences over seeds, against tests worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from test_report import SINGLE, row, some, table

from mtlcli.errors import MtlError


def many(**methods: list[float]) -> dict[str, list[dict[str, dict[str, float | None]]]]:
    """One task, one error (lower is better), one seed for each value."""
    return {method: [{"a": {"mae": value}} for value in values] for method, values in methods.items()}


def test_methods_are_tested_against_equal_weights(tmp_path: Path) -> None:
    """Six seeds: all lower, the least of them lower and five higher, no difference. Holm: 3/32, 2 x 2/32, 1."""
    ew = [3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    made = table(
        tmp_path,
        many(
            ew=ew,
            uw=[e - 0.1 * (i + 1) for i, e in enumerate(ew)],
            dwa=[e + 0.1 * (i + 1) * (1 if i else -1) for i, e in enumerate(ew)],
            si=ew,
        ),
        baseline="ew",
    )
    assert made["reference"] == "ew"
    assert made["test"]["confidence"] == 0.95
    assert made["test"]["correction"] == "holm"
    verdicts = {r["method"]: some(r["tasks"]["a"]["mae"], "p", "test", "versus") for r in made["rows"]}
    assert verdicts == {
        "ew": [None, None, None],
        "uw": [pytest.approx(3 / 32), "wilcoxon", "within spread"],
        "dwa": [pytest.approx(4 / 32), "wilcoxon", "within spread"],
        "si": [1.0, "wilcoxon", "within spread"],
    }
    assert any(note.startswith("6 seeds are too few for Wilcoxon's test") for note in made["notes"])
    assert "no metric differs from ew by more than the spread over seeds: uw, dwa, si" in made["notes"]
    alone = table(tmp_path / "2", many(ew=ew, uw=[e - 0.1 * (i + 1) for i, e in enumerate(ew)]), baseline="ew")
    assert some(row(alone, "uw")["tasks"]["a"]["mae"], "p", "versus") == [1 / 32, "better"]
    assert some(row(alone, "uw")["delta_m"], "p", "versus") == [1 / 32, "better"]
    assert some(row(alone, "uw")["delta_p"], "p", "versus") == [1 / 32, "better"]


def test_the_reference_can_be_chosen(tmp_path: Path) -> None:
    values = many(uw=[1.0, 2.0], dwa=[1.0, 2.5])
    assert table(tmp_path / "1", values)["reference"] == "uw"
    chosen = table(tmp_path / "2", values, reference="dwa")
    assert row(chosen, "dwa")["tasks"]["a"]["mae"]["p"] is None
    assert row(chosen, "uw")["tasks"]["a"]["mae"]["p"] == pytest.approx(0.5)
    assert table(tmp_path / "3", many(**{"uw": [1.0], "ew+pcgrad": [1.0]}), reference="+pcgrad")["reference"] == (
        "ew+pcgrad"
    )
    assert table(tmp_path / "4", many(uw=[1.0, 2.0]))["reference"] is None
    assert table(tmp_path / "5", {"single_task": [SINGLE], "uw": [SINGLE]})["reference"] == "uw"
    with pytest.raises(
        MtlError, match=r"--reference dwaa: is not in the table; did you mean 'dwa'\?; there are: uw, dwa"
    ):
        table(tmp_path / "6", values, reference="dwaa")


def test_a_reference_that_failed_tests_nothing(tmp_path: Path) -> None:
    failures = [{"method": "dwa", "seed": 0, "error": "boom"}]
    made = table(tmp_path, many(uw=[1.0, 2.0], si=[1.0, 2.0]), failures=failures, reference="dwa")
    assert made["reference"] is None
    assert "the reference dwa did not finish, so no method is tested against it" in made["notes"]
    assert row(made, "si")["tasks"]["a"]["mae"]["p"] is None


def test_tests_pair_the_seeds_that_both_have(tmp_path: Path) -> None:
    """Seed 1 has no value for uw: seeds 0 and 2 are paired, with differences of 1 and 2; t = 3."""
    made = table(tmp_path, many(ew=[1.0, 5.0, 2.0], uw=[2.0, None, 4.0]))  # type: ignore[list-item]
    found = row(made, "uw")["tasks"]["a"]["mae"]
    assert some(found, "n", "mean", "test") == [2, 3.0, "paired t"]
    assert found["p"] == pytest.approx(1 - 2 * math.atan(3) / math.pi)
