"""The live view of a comparison: whatever runs at once, it stays within the terminal."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from mtlcli.render import SweepView

TASKS = ("income", "never_married", "college", "weeks_worked")


def progress(running: int, waiting: int = 0) -> list[Any]:
    """Runs as the sweep tells of them; one of them has a very long name."""
    found = []
    for n in range(running + waiting):
        label = "constant(" + ", ".join(f"{task}=0.25" for task in TASKS) + ")" if n == 0 else f"igb_v{n}+nash_mtl"
        planned = SimpleNamespace(label=label, seed=n % 3, path=str(n))
        status = "running" if n < running else "waiting"
        losses = dict.fromkeys(TASKS, 0.123456)
        found.append(SimpleNamespace(planned=planned, status=status, step=n, steps=100, losses=losses))
        found[-1].said = found[-1].error = found[-1].note = None
    return found


def drawn(progress: list[Any], width: int, height: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    console.print(SweepView(console)._draw(progress))
    return [line.rstrip() for line in console.file.getvalue().splitlines() if line.strip()]  # type: ignore[attr-defined]


def test_lines_are_numbered_as_they_are_printed() -> None:
    console = Console(file=io.StringIO(), width=200)
    view, runs = SweepView(console), progress(1, waiting=6)

    def end(*numbers: int, said: str | None = "finished", note: str | None = None) -> None:
        for n in numbers:
            runs[n].status, runs[n].said, runs[n].note = said or "finished", said, note

    end(2, 5, 6, said=None)
    view.show(runs)
    end(1, 4)
    view.show(runs)
    end(3, said="failed")
    end(0, said=None, note="taken from the store")
    view.show(runs)
    view.show(runs)
    first, *lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert first.startswith("3 runs were finished already: igb_v2+nash_mtl seed 2; igb_v5+nash_mtl seed 2; igb_v6")
    assert [line.split()[0] for line in lines] == ["[4/7]", "[5/7]", "[6/7]", "[7/7]"]
    assert lines[2].endswith("seed 0: finished: taken from the store")
    assert lines[3].endswith("seed 0: failed")


@pytest.mark.parametrize(("width", "height"), [(60, 12), (80, 24), (120, 50)])
def test_forty_runs_at_once_stay_within_the_terminal(width: int, height: int) -> None:
    lines = drawn(progress(40, waiting=7), width, height)
    assert lines[0] == "0 of 47 runs finished, 40 running"
    assert len(lines) < height
    assert all(len(line) <= width for line in lines)
    shown = sum("seed" in line for line in lines)
    assert shown == min(40, height - 4)
    assert (lines[-1].split() == ["and", str(40 - shown), "more"]) == (shown < 40)


def test_a_few_runs_are_all_shown() -> None:
    lines = drawn(progress(3), 160, 24)
    assert [line.split()[0] for line in lines[2:]] == ["igb_v1+nash_mtl", "igb_v2+nash_mtl"]
    assert "seed 1         1%  income 0.1235" in lines[2]
    assert lines[2].rstrip().endswith("weeks_worked 0.1235")
    assert not any("more" in line for line in lines)
