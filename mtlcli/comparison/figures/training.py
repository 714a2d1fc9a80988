"""Figures of the runs: validation losses, weights, gradients in conflict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.ticker import LogLocator, MaxNLocator

from mtlcli.comparison.figures import data, style
from mtlcli.comparison.figures.curves import VALIDATION_LOSS, Conflict, Curve, History
from mtlcli.comparison.report import SINGLE_TASK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.gridspec import SubplotSpec

Histories = Mapping[str, History]

HIGHLIGHTED = 5  # methods in colour; the others are grey
_PANELS = 40  # methods of which the weights are drawn


def losses(report: Mapping[str, Any], histories: Histories) -> Figure | None:
    """A panel for each task: validation loss by epoch, the best methods in colour and all others in grey."""
    drawn = {
        task: {m: h.epochs[task][VALIDATION_LOSS] for m, h in histories.items() if _has_loss(h, task)}
        for task in report["metrics"]
    }
    drawn = {task: curves for task, curves in drawn.items() if curves}
    if not drawn:
        return None
    bright, others = _highlighted(report, {method for curves in drawn.values() for method in curves})
    columns = 2 if len(drawn) == 4 else min(3, len(drawn))
    rows = -(-len(drawn) // columns)
    figure = style.canvas(
        1 + 3.4 * columns,
        2.4 * rows,
        f"Validation loss by epoch, {style.clip(report['dataset'])}: lower is better",
        "Means over seeds; bands reach from the lowest seed to the highest. In colour: the best by "
        + ("delta_m" if report.get("baseline") else "mean rank")
        + ", best first.",
        _entries(bright, others),
    )
    for axes, (task, curves) in zip(style.grid(figure, len(drawn), columns), drawn.items(), strict=True):
        for method in [*others, *reversed(bright)]:  # the best on top
            if method in curves:
                _line(axes, curves[method], bright.get(method))
        _fit(axes, curves, bright)
        axes.set_title(style.clip(task))
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_ylabel("validation loss")
    return figure


def weights(report: Mapping[str, Any], histories: Histories) -> Figure | None:
    """A panel for each method: how it weighs the tasks over training."""
    shown = [m for m in data.order(report) if m in histories and histories[m].weights][:_PANELS]
    if not shown:
        return None
    tasks = [task for task in report["metrics"] if any(task in histories[method].weights for method in shown)]
    columns = min(4 if len(shown) <= 16 else 5, len(shown))
    rows = -(-len(shown) // columns)
    figure = style.canvas(
        max(1 + 2.4 * columns, 6),
        1.8 * rows,
        f"Task weights over training, {style.clip(report['dataset'])}",
        "The factor of each task in the update; every method has its own scale. Means over seeds; bands reach from the "
        "lowest seed to the highest. Best method first.",
        [(style.look(number), task) for number, task in enumerate(tasks)],
    )
    for number, (axes, method) in enumerate(zip(style.grid(figure, len(shown), columns), shown, strict=True)):
        curves = histories[method].weights
        for task, curve in curves.items():
            _line(axes, curve, style.look(tasks.index(task)))
        values = [value for curve in curves.values() for value in curve.mean]
        if min(values) > 0 and max(values) > 100 * min(values):
            style.logarithmic(axes.yaxis)
        elif max(values) - min(values) < 1e-6 * max(abs(value) for value in values):
            axes.set_ylim(
                min(0, 2 * values[0]), max(0, 2 * values[0]) or 1
            )  # a flat line in the middle, not magnified rounding
        axes.set_title(style.fold(method, 31, lines=3), fontsize=8.5)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.get_major_locator().set_params(**({} if axes.get_yscale() == "log" else {"nbins": 4}))
        axes.tick_params(labelsize=8)
        if number % columns == 0:
            axes.set_ylabel("task weight")
        if number + columns >= len(shown):
            axes.set_xlabel("training step")
    return figure


def conflict(report: Mapping[str, Any], histories: Histories) -> Figure | None:
    """Cosine, magnitude similarity and condition number over training, and the mean cosine of every two tasks."""
    found = {m: c for m in data.order(report) if m in histories and (c := histories[m].conflict) is not None}
    if not found:
        return None
    bright, others = _highlighted(report, set(found))
    maps = list(bright)[:HIGHLIGHTED]
    size = max(len(found[method].tasks) for method in maps)
    columns = max(3, min(len(maps), 5))
    figure = style.canvas(
        1 + 3.0 * columns,
        6 if size <= 12 else 7.5,
        f"Gradient conflict over training, {style.clip(report['dataset'])}",
        "Cosine between task gradients: -1 opposed, 0 orthogonal, 1 aligned. Magnitude similarity: 1 where gradients "
        "are equally long. Condition number of the Gramian: 1 is best, large where gradients are nearly dependent or "
        "very unequal. Curves are means over pairs of tasks and over seeds, bands reach from the lowest seed to the "
        "highest; the maps are means over training.",
        _entries(bright, others),
    )
    halves = figure.add_gridspec(2, 1, height_ratios=[1, 1.15])
    panels = halves[0].subgridspec(1, 3).subplots(squeeze=False)[0]
    for axes, key, title in zip(
        panels,
        ("cosine", "similarity", "condition"),
        ("mean cosine", "mean magnitude similarity", "condition number"),
        strict=True,
    ):
        for method in [*others, *reversed(bright)]:
            curve = getattr(found[method], key)
            if curve:
                _line(axes, curve, bright.get(method))
        if key == "condition":
            style.logarithmic(axes.yaxis)
            _few_decades(axes.yaxis)
        elif key == "cosine":
            axes.axhline(0, color=style.INK, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.set_title(title)
        axes.set_xlabel("training step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    _maps(figure, halves[1], {method: found[method] for method in maps}, columns)
    return figure


def _maps(figure: Figure, place: SubplotSpec, conflicts: Mapping[str, Conflict], columns: int) -> None:
    panels = place.subgridspec(1, columns).subplots(squeeze=False)[0]
    image = None
    for axes in panels[len(conflicts) :]:
        axes.remove()
    for number, (axes, (method, found)) in enumerate(zip(panels, conflicts.items(), strict=False)):
        values = [[float("nan") if value is None else value for value in row] for row in found.cosines]
        image = axes.imshow(values, cmap="RdBu", vmin=-1, vmax=1, interpolation="nearest")
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        size = len(found.tasks)
        if size <= 6:
            for i in range(size):
                for j in range(size):
                    ink = "white" if abs(values[i][j]) > 0.6 else style.INK
                    shown = f"{round(values[i][j], 2) + 0.0:.2f}"  # no -0.00
                    axes.text(j, i, shown, ha="center", va="center", fontsize=8, color=ink)
        names = [style.clip(task, 16) for task in found.tasks] if size <= 24 else []
        places = range(len(names))
        axes.set_xticks(places, names, rotation=40, ha="right", rotation_mode="anchor", fontsize=8)
        axes.set_yticks(places, names if number == 0 else [""] * len(names), fontsize=8)
        axes.set_title(style.fold(method, 31, lines=3), fontsize=8.5)
    if image is not None:
        bar = figure.colorbar(image, ax=list(panels[: len(conflicts)]), shrink=0.7, aspect=18, pad=0.01)
        bar.set_label("mean cosine")
        bar.outline.set_visible(False)


def _few_decades(axis: Axis) -> None:
    """Powers of ten alone where the range is long."""
    low, high = axis.get_view_interval()
    if high > 100 * low > 0:
        axis.set_major_locator(LogLocator(numticks=7))


def _has_loss(history: History, task: str) -> bool:
    return VALIDATION_LOSS in history.epochs.get(task, {})


def _highlighted(report: Mapping[str, Any], there: set[str]) -> tuple[dict[str, style.Look], list[str]]:
    """The looks of the best methods and of the single-task networks, and the names of the others."""
    methods = [method for method in data.order(report) if method in there]
    best = [method for method in methods if method != SINGLE_TASK][:HIGHLIGHTED]
    bright = {method: style.look(number) for number, method in enumerate(best)}
    if SINGLE_TASK in methods:
        bright[SINGLE_TASK] = style.Look(style.INK, "--")
    return bright, [method for method in methods if method not in bright]


def _line(axes: Axes, curve: Curve, look: style.Look | None) -> None:
    """A curve with its band, or thin and grey where it has no look."""
    if look is None:
        axes.plot(curve.x, curve.mean, color=style.FAINT, linewidth=0.9, zorder=1.5)
        return
    axes.plot(curve.x, curve.mean, color=look.colour, linestyle=look.dashes, zorder=3)
    if curve.low != curve.high:
        axes.fill_between(curve.x, curve.low, curve.high, color=look.colour, alpha=0.16, linewidth=0, zorder=2)


def _fit(axes: Axes, curves: Mapping[str, Curve], bright: Mapping[str, Any]) -> None:
    """All of the bright curves, and of the others what does not squeeze them."""
    everything = [value for curve in curves.values() for value in curve.mean]
    bands = [v for method, curve in curves.items() if method in bright for v in (*curve.low, *curve.high)]
    low, high = data.limits(everything)
    low, high = min([low, *bands]), max([high, *bands])
    room = 0.05 * (high - low) or 1.0
    axes.set_ylim(low - room, high + room)


def _entries(bright: Mapping[str, style.Look], others: Sequence[str]) -> list[tuple[style.Look, str]]:
    """What the legend names."""
    entries = [(look, method) for method, look in bright.items()]
    if others:
        entries.append((style.Look(style.FAINT, "-"), f"{len(others)} other method{'s' if len(others) > 1 else ''}"))
    return entries
