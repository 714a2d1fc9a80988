"""Events, results and reports -> the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import groupby
from textwrap import fill
from typing import Any

from rich import box
from rich.console import Group
from rich.live import Live
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from mtlcli.comparison import tabular
from mtlcli.errors import how_many
from mtlcli.terminal import Terminal

LINES_AROUND = 4  # of a sweep's live view: all but the runs


class TrainView:
    """Live progress on a terminal; without one, a plain line an epoch."""

    def __init__(self, target: Terminal) -> None:
        self.console = target
        target.outlived = True
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=target,
            expand=True,
        )
        self._bar = self._progress.add_task("starting", total=None)
        self._step: Mapping[str, Any] = {}
        self._epoch: Mapping[str, Any] = {}
        self._epochs = 0
        self._live: Live | None = None

    @property
    def trained(self) -> bool:
        """Whether there was anything to train."""
        return self._epochs > 0

    def __enter__(self) -> TrainView:
        if self.console.is_terminal and not self.console.quiet:
            self._live = Live(self._draw(), console=self.console, refresh_per_second=8, transient=True)
            self._live.__enter__()
        return self

    def __exit__(self, *about: Any) -> None:
        if self._live is not None:
            self._live.__exit__(*about)
            self._live = None

    def show(self, event: Mapping[str, Any]) -> None:
        """Take in one event, as in events.jsonl."""
        kind = event["event"]
        if kind == "Started":
            self._epochs = event["epochs"]
            total = event["epochs"] * event["steps_per_epoch"]
            self._progress.update(self._bar, total=total, completed=event["step"], description=event["method"])
            words = f"resuming at step {event['step']}" if event["resumed"] else "training"
            self.console.print(
                Text.assemble(
                    f"{words}: ",
                    (event["method"], "bold"),
                    f" on {', '.join(event['tasks'])} "
                    f"({event['device']}, {event['epochs']} epochs of {event['steps_per_epoch']} steps)",
                ),
                soft_wrap=True,
            )
        elif kind == "Warned":
            self.console.print(Text.assemble(("warning: ", "bold yellow"), event["message"]), soft_wrap=True)
        elif kind == "StepDone":
            self._step = event
            self._progress.update(self._bar, completed=event["step"] + 1)
        elif kind == "EpochDone":
            self._epoch = event
            self._progress.update(self._bar, completed=event["step"])
            self.console.print(self._line(event), soft_wrap=True)
        if self._live is not None:
            self._live.update(self._draw())

    def _line(self, event: Mapping[str, Any]) -> Text:
        parts = [f"epoch {event['epoch'] + 1}/{self._epochs}"]
        for task, scores in event["val"].items():
            name, metric = next(iter(scores["metrics"].items()), ("", None))
            parts.append(
                f"{task} loss {_number(event['losses'][task])}" + (f" {name} {_value(metric)}" if metric else "")
            )
        parts.append(f"{event['seconds']:.1f} s")
        return Text("  ".join(parts) + ("  * best so far" if event["best"] else ""))

    def _draw(self) -> Group:
        table = Table(box=box.SIMPLE, pad_edge=False)
        for heading in ("task", "loss", "weight", "val"):
            number = heading in ("loss", "weight")
            table.add_column(heading, justify="right" if heading != "task" else "left", no_wrap=number, overflow="fold")
        for task, loss in self._step.get("losses", {}).items():
            val = self._epoch.get("val", {}).get(task, {}).get("metrics", {})
            shown = ", ".join(f"{name} {_value(metric)}" for name, metric in val.items())
            table.add_row(task, _number(loss), _number(self._step["weights"][task]), shown or "-")
        return Group(self._progress, *([Padding(table, (0, 0, 0, 2))] if self._step else []))


def result(values: Mapping[str, Any], title: str) -> Group:
    """A table of every task's metrics, and what cannot be scored with the reason."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for heading in ("task", "metric"):
        table.add_column(heading, overflow="fold")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("unit", overflow="fold")
    notes = []
    for task, scores in values["tasks"].items():
        for number, (name, metric) in enumerate(scores["metrics"].items()):
            arrow = "up" if metric["higher_is_better"] else "down"
            table.add_row(task if not number else "", f"{name} {_arrow(arrow)}", _value(metric), metric["unit"])
            if metric["value"] is None:
                notes.append(Text(f"{task}.{name} is undefined: {metric['undefined']}", style="yellow"))
        table.add_row("" if scores["metrics"] else task, f"loss {_arrow('down')}", _number(scores["loss"]), "")
    cost = values.get("cost")
    if cost:
        notes.append(Text(_cost_line(values, cost), style="dim"))
    for what, times in values.get("counts", {}).items():
        notes.append(Text(f"{what}: {times} time{'s' * (times != 1)}", style="yellow"))
    return Group(table, *notes, *(Text(note, style="yellow") for note in values.get("notes", ())))


def report(values: Mapping[str, Any], width: int) -> Group:
    """The comparison, in tables no wider than `width`: what every method reaches per task, then all tasks and the cost.

    Best values are bold and starred.
    """
    methods = [row["method"] for row in tabular.rows(values)]
    columns = [tabular.seeds(values), *tabular.columns(values)]
    sums = [column for column in columns if column.group in (tabular.ALL_TASKS, tabular.COST)]
    tasks = [column for column in columns if column not in sums]
    room = width - 2 - _method_width(methods, width)
    if sum(_width(column) for column in sums) > room:
        sums = [column for column in sums if not column.optional]
    parts: list[Any] = [_table(methods, part, width) for part in _packed(tasks, room)]
    words = f"improvement over {values['baseline']}" if values["baseline"] else "no baseline"
    titles = [f"{values['dataset']}, all tasks: {words}"]
    for part in _packed(sums, room):
        parts.append(_table(methods, part, width, titles.pop() if titles else None))
    parts += [Text(_spelled(f"* the best of a column. {' '.join(tabular.legend(values))}"), style="dim")]
    parts += [Text(f"note: {note}", style="yellow") for note in tabular.notes(values)]
    for row in values["rows"]:
        for failed in row.get("failed", ()):
            what = f"failed: {row['method']}, seed {failed['seed']}: "
            parts.append(Text.assemble((what, "bold red"), failed["error"]))
    return Group(*parts)


def _packed(columns: Sequence[tabular.Column], room: int) -> list[list[tabular.Column]]:
    """Columns in tables that fit beside the methods' names; a group stays together where it can."""
    tables: list[list[tabular.Column]] = [[]]
    for _, group in groupby(columns, key=lambda column: column.group):
        together = list(group)
        if tables[-1] and sum(map(_width, (*tables[-1], *together))) > room:
            tables.append([])
        for column in together:
            if tables[-1] and sum(map(_width, tables[-1])) + _width(column) > room:
                tables.append([])
            tables[-1].append(column)
    return tables


def _table(methods: Sequence[str], columns: Sequence[tabular.Column], width: int, title: str | None = None) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("method", overflow="fold", max_width=_method_width(methods, width))
    for column in columns:
        table.add_column(_heading(column), justify="right", no_wrap=True)
    drawn = [[_drawn(cell, _tail(column)) for cell in column.cells] for column in columns]
    for method, *cells in zip(methods, *drawn, strict=True):
        table.add_row(method, *cells)
    return table


def _heading(column: tabular.Column) -> str:
    below = " ".join(part for part in (column.unit, _arrow(column.better)) if part)
    if column.group in (tabular.ALL_TASKS, tabular.COST):
        return f"{column.name}\n{below}"
    return f"{column.group}\n{column.name} {below}".rstrip()


def _method_width(methods: Sequence[str], width: int) -> int:
    """A long name, such as one that lists options, is folded."""
    return min(max(map(len, ("method", *methods))), max(20, width // 3))


def _width(column: tabular.Column) -> int:
    """Characters that a column takes, with the gap before it."""
    cells = (len(_drawn(cell, _tail(column)).plain) for cell in column.cells)
    return max(*map(len, _heading(column).split("\n")), *cells, 0) + 2


def _tail(column: tabular.Column) -> int:
    """The room behind the numbers of a column for stars and marks, so that its digits stand below each other."""
    return max((len(_marks(cell)) for cell in column.cells), default=0)


def _marks(cell: tabular.Cell) -> str:
    marks = ("*" if cell.place == 1 else "") + cell.mark
    return f" {marks}" if marks else ""


def _drawn(cell: tabular.Cell, tail: int) -> Text:
    spread = _spelled(f" ±{cell.spread}") if cell.spread else ""
    return Text(f"{cell.value}{spread}{_marks(cell):<{tail}}", style="bold green" if cell.place == 1 else "")


_ARROWS = {"up": "\u2191", "down": "\u2193"}
_SPELLED = {"\u2191": "(max)", "\u2193": "(min)", "±": "+-"}  # for a terminal without these signs


def _arrow(better: str) -> str:
    return _spelled(_ARROWS.get(better, ""))


def _spelled(text: str) -> str:
    """`text` without the signs that the stdout of the moment cannot carry: as question marks they would say nothing."""
    return text.translate(_lacking(getattr(sys.stdout, "encoding", None) or "utf-8"))


@cache
def _lacking(encoding: str) -> dict[int, str]:
    return {ord(sign): words for sign, words in _SPELLED.items() if not sign.encode(encoding, "ignore")}


class SweepView:
    """Live view of all runs of a comparison; without a terminal, a plain line for each that ends."""

    def __init__(self, target: Terminal) -> None:
        self.console = target
        target.outlived = True
        self.total: int | None = None  # how many runs there will be, where not all are known from the beginning
        self._said: set[str] = set()
        self._live: Live | None = None

    @contextmanager
    def running(self) -> Iterator[SweepView]:
        """Draw while the sweep goes on."""
        if self.console.is_terminal and not self.console.quiet:
            with Live(console=self.console, refresh_per_second=4, transient=True) as self._live:
                yield self
            self._live = None
        else:
            yield self

    def show(self, progress: Sequence[Any]) -> None:
        """Take in the state of every run (`Progress`)."""
        ended = [p for p in progress if p.status in ("finished", "failed") and str(p.planned.path) not in self._said]
        self._said |= {str(item.planned.path) for item in ended}
        before = [item for item in ended if item.status == "finished" and not item.said and not item.note]
        now = [item for item in ended if item not in before]
        if before:
            self.console.print(_already(before), soft_wrap=True)
        for number, item in enumerate(now, len(self._said) - len(now) + 1):
            words = f"[{number}/{self.total or len(progress)}] {item.planned.label} seed {item.planned.seed}"
            about = [part for part in (item.status, item.error, item.note) if part]
            self.console.print(f"{words}: {': '.join(about)}", soft_wrap=True)
        if self._live is not None:
            self._live.update(self._draw(progress))

    def _draw(self, progress: Sequence[Any]) -> Group:
        done = sum(p.status == "finished" for p in progress)
        failed = sum(p.status == "failed" for p in progress)
        running = [p for p in progress if p.status == "running"]
        words = f"{done} of {self.total or len(progress)} runs finished, {len(running)} running"
        head = Text(words + (f", {failed} failed" if failed else ""), style="bold")
        # Lines of our own: a table shortens seeds and shares together with the losses.
        name = min(max((len(p.planned.label) for p in running), default=0), self.console.width // 3)
        lines = [Text()]
        for item in running[: max(1, self.console.height - LINES_AROUND)]:
            label, seed = Text(item.planned.label), f"seed {item.planned.seed}"
            label.truncate(name, overflow="ellipsis", pad=True)
            share = f"{100 * item.step / item.steps:.0f}%" if item.steps else "starting"
            losses = "  ".join(f"{task} {_number(loss)}" for task, loss in item.losses.items())
            line = Text.assemble(" ", label, f"  {seed:<7}  {share:>8}  {losses}")
            line.truncate(self.console.width - 1, overflow="ellipsis")
            lines.append(line)
        if len(running) >= len(lines):
            lines.append(Text(f" and {len(running) - len(lines) + 1} more"))
        return Group(head, *lines)


def _already(ended: Sequence[Any]) -> str:
    """One line for runs that no process had to say anything of."""
    seeds: dict[str, list[str]] = {}
    for item in ended:
        seeds.setdefault(item.planned.label, []).append(str(item.planned.seed))
    listed = "; ".join(f"{label} seed{'s' * (len(of) > 1)} {', '.join(of)}" for label, of in seeds.items())
    return f"{how_many(len(ended), 'run was', 'runs were')} finished already: {listed}"


def runs(values: Mapping[str, Any], width: int) -> Group:
    """The runs in a folder, newest first, a line each: as many scores, and one at least, as fit into `width`."""
    if not values["runs"]:
        return Group(Text(f"{values['folder']} holds no runs"))
    datasets = {run["dataset"] for run in values["runs"]}
    keys = ["path", "method", "seed", *(["dataset"] if len(datasets) > 1 else []), "status"]
    heads = ["run", *keys[1:], "age"]
    lines = [
        [*(str(run[key] if run[key] is not None else "-") for key in keys), _age(run["age_seconds"])]
        for run in ({**run, "method": " ".join(filter(None, (run["method"], run["task"])))} for run in values["runs"])
    ]
    used = sum(max(map(len, column)) + 2 for column in zip(heads, *lines, strict=True))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title_justify="left", title_style="bold")
    where = f" on {datasets.pop()}" if len(datasets) == 1 else ""
    table.title = f"{values['folder']}: {how_many(len(lines), 'run')}{where}"
    for heading in heads:
        table.add_column(heading, overflow="fold", justify="right" if heading in ("seed", "age") else "left")
    table.add_column("scores", no_wrap=True)
    room = width - used - 2
    for run, line in zip(values["runs"], lines, strict=True):
        scores = [f"{task} {metric['metric']} {_value(metric)}" for task, metric in run["scores"].items()]
        shown = f"{run['split']}: {scores[0]}" if scores else "-"
        for more in scores[1:]:
            if len(shown) + len(more) + len(", , ...") > room:
                shown += ", ..."
                break
            shown += f", {more}"
        shown = fill(shown, max(room, width // 3), break_long_words=False)
        table.add_row(*line, Text(shown), style=_STATUS.get(run["status"], ""))
    problems = (run["problem"] for run in values["runs"] if run["problem"])
    return Group(table, *(Text(f"damaged: {problem}", style="red") for problem in problems))


_STATUS = {"running": "cyan", "damaged": "red", "failed": "red"}


def _age(seconds: float) -> str:
    """In the largest unit that fits, such as `3 h`."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def _cost_line(values: Mapping[str, Any], cost: Mapping[str, Any]) -> str:
    epoch = values["selected"]["epoch"]
    how = "chosen on val" if values["selected"]["by"] == "val" else "the last"
    chosen = f"epoch {epoch + 1} of {values['epochs']}, {how}; " if epoch is not None else ""
    passes = cost["backward_passes_per_step"]
    return (
        f"{chosen}{cost['seconds']:.1f} s, {_fixed(cost['step_ms_median'], 2)} ms per step (median), "
        f"{passes} backward pass{'es' * (passes != 1)} per step, peak {cost['peak_mib']:.0f} MiB"
    )


def _value(metric: Mapping[str, Any]) -> str:
    """Four decimals, fewer from 10 on; four significant digits where these would be lost among zeros, or too many."""
    value = metric["value"]
    if value is None:
        return "undefined"
    size = abs(value)
    if 0 < size < 1e-3 or size >= 1e8:
        return f"{value:.4g}"
    return f"{value:z,.{4 if size < 10 else 2 if size < 10_000 else 1}f}"


def _fixed(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
