"""The benchmarks run and say what they should; how fast anything is depends on the machine and is not tested."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SMALL_LOOP = ["--steps", "20", "--rounds", "2", "--batch-size", "16", "--rows", "400"]
METHODS = ["uw", "igb_v2", "upgrad", "graddrop", "nash_mtl"]
SMALL_STEPS = ["--quick", "--shapes", "2,8,4", "--rounds", "1", "--seconds", "0"]


def run(script: str, arguments: list[str], patch: pytest.MonkeyPatch) -> None:
    patch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    patch.syspath_prepend(BENCHMARKS)
    patch.setattr(sys, "argv", [script, *arguments])
    runpy.run_path(str(BENCHMARKS / script), run_name="__main__")


def test_loop_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("loop.py", [*SMALL_LOOP, "--json"], monkeypatch)
    values = json.loads(capsys.readouterr().out)
    assert (values["device"], values["batch_size"], values["steps"], values["rounds"]) == ("cpu", 16, 20, 2)
    assert list(values["loops"]) == ["mtl", "plain", "dataloader"]
    for loop in values["loops"].values():
        assert 0 < loop["step_ms_fastest"] <= loop["step_ms"] <= loop["step_ms_slowest"]
        assert loop["rows_per_second"] > 0
    assert values["mtl_step_time_over_plain"] > 0
    assert values["mtl_rows_per_second_over_dataloader"] > 0


def test_loop_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("loop.py", SMALL_LOOP, monkeypatch)
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("mtl", "plain", "dataloader", "rows per second", "mtl / plain"))


def test_reading_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("reading.py", ["--rows", "2000", "--columns", "3", "--rounds", "1", "--json"], monkeypatch)
    speeds = json.loads(capsys.readouterr().out)["rows_per_second"]
    assert list(speeds) == ["resident", "parquet", "csv", "dataloader", "collated"]
    assert all(speed > 0 for speed in speeds.values())


def test_step_cost_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("step_cost.py", [*SMALL_STEPS, "--methods", *METHODS, "--json"], monkeypatch)
    values = json.loads(capsys.readouterr().out)
    rows = {(row["method"], row["way"]): row for row in values["shapes"]["2,8,4"]}
    assert list(rows) == [
        ("uw", ""),
        ("igb_v2", ""),
        ("igb_v2", "memory full"),
        ("upgrad", "params"),
        ("upgrad", "representation"),
        ("upgrad", "every 10"),
        ("graddrop", "params"),
        ("graddrop", "representation"),
        ("nash_mtl", "params"),
        ("nash_mtl", "representation"),
        ("nash_mtl", "every 10"),
        ("nash_mtl", "K passes"),
    ]
    assert all(row["ms"] > 0 and row["plain_ms"] > 0 and row["times_plain"] > 0 for row in rows.values())
    assert [way for _, way in rows if "times_torchjd" in rows[_, way]] == [
        "params",
        "params",
        "params",
        "K passes",
    ]
    assert [key for key, row in rows.items() if "times_libmtl" in row] == [("uw", ""), ("graddrop", "representation")]
    assert [(row["method"], row["K=40"] > 0) for row in values["solvers"]] == [("upgrad", True), ("nash_mtl", True)]
    assert rows["uw", ""]["targets"] == {"times_plain": 1.05}


def test_step_cost_counts_memory(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The gradients of five tasks and of one of them again; a batch of one, so that activations hardly count."""
    run("step_cost.py", [*SMALL_STEPS, "--shapes", "5,64,1", "--methods", "pcgrad", "--json"], monkeypatch)
    rows = json.loads(capsys.readouterr().out)["shapes"]["5,64,1"]
    (row,) = (row for row in rows if row["way"] == "params")
    assert row["memory"] == pytest.approx(6, abs=0.1)
    assert row["plain_memory"] == pytest.approx(1, abs=0.1)
    assert row["memory"] <= row["targets"]["memory"]


def test_step_cost_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("step_cost.py", [*SMALL_STEPS, "--methods", "ew", "mgda"], monkeypatch)
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("2,8,4 on cpu", "x plain", "representation", "every 10", "solver alone"))
    assert all(word in printed for word in ("x TorchJD", "x LibMTL"))


def test_step_cost_says_what_a_peer_cannot_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("step_cost.py", [*SMALL_STEPS, "--methods", "cagrad"], monkeypatch)
    printed = capsys.readouterr().out
    assert "cagrad, libmtl: ValueError: cannot reshape" in printed  # LibMTL's has three tasks written into it
    assert "params" in printed


def test_libmtl_trains_the_same_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    from contestants import plain, problem
    from libmtl import libmtl_step

    def trained(make: Callable[[Any], Callable[[], None]]) -> list[Tensor]:
        made = problem("3,8,4", torch.device("cpu"))
        step = make(made)
        for _ in range(3):
            step()
        return [p.detach() for p in made.parameters()]

    before = trained(lambda made: lambda: None)
    expected = trained(plain)
    torch.testing.assert_close(trained(lambda made: libmtl_step(made, "ew")), expected)
    for method in ("pcgrad", "graddrop"):
        found = trained(lambda made, method=method: libmtl_step(made, method))
        assert all(not torch.equal(one, other) for one, other in zip(before, found, strict=True))
