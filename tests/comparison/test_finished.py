"""Runs that cannot stand in one table, and results that cannot be read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from fake_runs import fake
from test_report import SINGLE

from mtlcli.comparison.finished import read_runs
from mtlcli.comparison.report import report
from mtlcli.errors import MtlError


def test_one_run_given_twice(tmp_path: Path) -> None:
    one = fake(tmp_path / "one", "ew", 0, SINGLE)
    other = fake(tmp_path / "other", "ew", 0, SINGLE, train__log_every_steps=5)
    with pytest.raises(MtlError, match=rf"'ew' with seed 0 is given twice, .*\n  {one}\n  {other}"):
        report(read_runs([one, other]), None)
    a, again = (fake(tmp_path / name, "ew", 0, {"a": SINGLE["a"]}) for name in ("a", "again"))
    with pytest.raises(MtlError, match="the single task 'a' with seed 0 is given twice"):
        report(read_runs([one, a, again]), None)


def test_other_data(tmp_path: Path) -> None:
    one = fake(tmp_path / "one", "ew", 0, SINGLE)
    other = fake(tmp_path / "other", "uw", 0, SINGLE, fingerprint="sha256:bb")
    with pytest.raises(MtlError, match=r"different data(.|\n)*one: made_up, sha256:aa\n.*other: made_up, sha256:bb"):
        report(read_runs([one, other]), None)


def test_other_tasks_and_metrics(tmp_path: Path) -> None:
    one = fake(tmp_path / "one", "ew", 0, SINGLE)
    for name, values in [("c", {"c": {"mae": 1.0}}), ("ac", {"a": {"auroc": 0.1}, "c": {"mae": 1.0}})]:
        other = fake(tmp_path / name, "uw", 0, values)  # type: ignore[arg-type]
        with pytest.raises(MtlError, match=rf"different tasks(.|\n)*one: a, b\n  .*{name}: "):
            report(read_runs([one, other]), None)
    other = fake(tmp_path / "metrics", "uw", 0, {"a": {"auroc": 0.1, "mae": 0.1}, "b": SINGLE["b"]})  # type: ignore[dict-item]
    with pytest.raises(MtlError, match=r"different metrics for 'a'(.|\n)*one: auroc\n  .*metrics: auroc, mae"):
        report(read_runs([one, other]), None)


def damaged(**changes: Any) -> str:
    """A result whose one metric is not as it should be."""
    metric = {"value": 1.0, "unit": "", "higher_is_better": True, **changes}
    about = {"method": "ew", "seed": 0, "dataset": "made_up", "fingerprint": "sha256:aa", "cost": {}}
    return json.dumps({"schema_version": 1, "tasks": {"a": {"metrics": {"auroc": metric}}}, **about})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "result.json: is damaged, line 1"),
        ("[]", "result.json: should hold a JSON object; found list"),
        ('{"schema_version": 2}', "result.json: has schema version 2; this version of mtl reads 1"),
        ('{"schema_version": 1}', "result.json: was not written by mtl, or is damaged"),
        ('{"schema_version": 1, "tasks": {"a": 3}}', "result.json: was not written by mtl, or is damaged"),
        (damaged(value=1.0).replace('"seed": 0', '"seed": "0"'), "damaged (TypeError(\"seed is '0'\"))"),
        (damaged(value="high"), "result.json: was not written by mtl, or is damaged (TypeError"),
        (damaged(value=math.nan), "result.json: was not written by mtl, or is damaged (ValueError('a.auroc is nan'))"),
    ],
)
def test_a_damaged_result(tmp_path: Path, content: str, words: str) -> None:
    path = fake(tmp_path / "one", "ew", 0, SINGLE)
    (path / "result.json").write_text(content)
    with pytest.raises(MtlError) as raised:
        read_runs([path])
    assert words in str(raised.value)
    (path / "result.json").unlink()
    with pytest.raises(MtlError, match=r"one: has no result yet \(finished\); finish it with: mtl train .*recipe.yaml"):
        read_runs([path])
