"""Figures of the report: quality against cost, improvement by task, ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.colors import Normalize
from matplotlib.markers import CARETDOWN, CARETLEFT, CARETRIGHT, CARETUP

from mtlcli.comparison.figures import data, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Report = Mapping[str, Any]

_GOES_ON = " A triangle at the edge: it goes on beyond."
_NUMBERED = 24  # metrics up to which a cell has room for its rank


def quality_cost(report: Report) -> Figure | None:
    """Every method as a point, lower left is better, and the front of those that nothing beats in both."""
    points = data.trade_off(report)
    if len(points) < 2:
        return None
    baseline = report.get("baseline")
    what = "delta_m" if baseline else "mean rank"
    low, high = data.limits([point.quality for point in points])
    room = 0.12 * (high - low) or 1.0
    low, high = low - room, high + room
    cut = any(_beyond(point.interval, low, high) for point in points)
    figure = style.canvas(
        8,
        5,
        f"Quality against cost on {style.clip(report['dataset'])}: lower left is better",
        (f"delta_m is the mean change for the worse over all metrics, against {baseline}. " if baseline else "")
        + "The line is the Pareto front: nothing else is both as good and as cheap."
        + (" Bars are 95 % intervals over seeds." if any(point.interval for point in points) else "")
        + (_GOES_ON if cut else ""),
    )
    axes = figure.subplots()
    for point in points:
        shown = min(point.quality, high)
        colour = style.BETTER if point.front else style.UNCLEAR
        if point.interval:
            axes.plot([point.cost] * 2, point.interval, color=colour, alpha=0.4, linewidth=1.1, solid_capstyle="butt")
            for end in _beyond(point.interval, low, high):
                _triangle(axes, point.cost, end, CARETDOWN if end == low else CARETUP, colour)
        marker = "^" if point.quality > high else "s" if point.method == baseline else "o"
        axes.plot(point.cost, shown, marker, color=colour, markersize=7.5, markeredgecolor="white", clip_on=False)
    front = [point for point in points if point.front]
    axes.step(
        [*(point.cost for point in front), max(point.cost for point in points) * 1.05],
        [*(point.quality for point in front), front[-1].quality],
        where="post",
        color=style.BETTER,
        linewidth=1.2,
        zorder=1,
    )
    if baseline:
        axes.axhline(0, color=style.INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    if max(point.cost for point in points) > 8 * min(point.cost for point in points) > 0:
        style.logarithmic(axes.xaxis)
    axes.margins(x=0.08)
    axes.set_ylim(low, high)
    axes.set_xlabel("median milliseconds per training step (lower is better)")
    axes.set_ylabel(f"{what}{', %' if baseline else ''} (lower is better)")
    named = sorted(points, key=lambda point: (not point.front, point.method != baseline, point.quality))
    style.label_points(
        axes,
        [
            (
                point.cost,
                min(point.quality, high),
                point.method + (f" ({what} {point.quality:.3g})" if point.quality > high else ""),
                point.front or point.method == baseline,
            )
            for point in named
        ],
    )
    return figure


def improvement(report: Report) -> Figure | None:
    """A panel for each task: how much better than the baseline each method is there, with its interval."""
    gains = data.gains(report)
    baseline = report.get("baseline")
    methods = [method for method in data.order(report) if method != baseline]
    methods = [method for method in methods if any(method in by_method for by_method in gains.values())]
    if not methods:
        return None
    columns = min(4, len(gains))
    rows = -(-len(gains) // columns)
    left_out = 0
    if rows > 3:  # dozens of tasks: the best methods are what one wants to see
        methods, left_out = methods[:10], len(methods[10:])
    shown = {task: {m: by_method[m] for m in methods if m in by_method} for task, by_method in gains.items()}
    limits = {task: _limits([gain.mean for gain in bars.values()]) for task, bars in shown.items()}
    cut = any(_beyond(_reach(gain), *limits[task]) for task, bars in shown.items() for gain in bars.values())
    figure = style.canvas(
        2.0 + 2.3 * columns,
        rows * (0.75 + _row_height(methods) * len(methods)),
        f"Improvement over {style.clip(str(baseline))} by task, {style.clip(report['dataset'])}: right is better",
        "Bars are means over a task's metrics, whiskers 95 % intervals over seeds. A bar is pale where the interval "
        "holds zero, or is not known because there is one seed. The band around zero is the baseline's own interval."
        + (f" {left_out} methods of lower quality are left out." if left_out else "")
        + (_GOES_ON if cut else ""),
    )
    for axes, (task, by_method) in zip(
        style.grid(figure, len(gains), columns, sharey=True), gains.items(), strict=True
    ):
        axes.set_xlim(limits[task])
        _bars(axes, methods, by_method, by_method.get(str(baseline)))
        axes.set_title(style.clip(task))
        axes.set_xlabel("improvement, %")
        axes.set_yticks(range(len(methods)), [style.fold(method) for method in methods], color=style.INK)
        axes.set_ylim(len(methods) - 0.4, -0.6)
    return figure


def _bars(axes: Axes, methods: list[str], gains: Mapping[str, data.Gain], own: data.Gain | None) -> None:
    if own and own.interval:
        axes.axvspan(*own.interval, color=style.SHADE, zorder=0)
    axes.axvline(0, color=style.INK, linewidth=0.9)
    axes.grid(visible=False, axis="y")
    for place, method in enumerate(methods):
        gain = gains.get(method)
        if gain is None:
            axes.text(0, place, " not known", va="center", fontsize=8, color=style.MUTED)
            continue
        clear = gain.interval is not None and (gain.interval[0] > 0 or gain.interval[1] < 0)
        colour = style.BETTER if gain.mean > 0 else style.WORSE
        axes.barh(place, gain.mean, color=colour, alpha=1 if clear else 0.4, height=0.66)
        if gain.interval:
            axes.plot(gain.interval, [place] * 2, color=style.INK, linewidth=1.1, solid_capstyle="butt")
        left, right = axes.get_xlim()
        for end in _beyond(_reach(gain), left, right):
            _triangle(axes, end, place, CARETLEFT if end == left else CARETRIGHT, style.INK)


def _limits(means: Sequence[float]) -> tuple[float, float]:
    """Of a panel of bars. Two seeds have intervals of thirteen standard errors: they may leave the panel, or the bars
    were not seen."""
    low, high = data.limits(means) if means else (0.0, 0.0)
    room = 0.6 * max(abs(low), abs(high), 1e-9)
    return min(low, 0.0) - room, max(high, 0.0) + room


def _reach(gain: data.Gain) -> tuple[float, float]:
    """From where to where a bar and its whisker go."""
    ends = (gain.mean, *(gain.interval or ()))
    return min(ends), max(ends)


def _beyond(ends: tuple[float, float] | None, low: float, high: float) -> list[float]:
    """The limits that something leaves a panel by."""
    return [] if ends is None else [*([low] if ends[0] < low else []), *([high] if ends[1] > high else [])]


def _triangle(axes: Axes, x: float, y: float, marker: Any, colour: str) -> None:
    """With its tip at the place, so that it stays within the panel."""
    axes.plot(x, y, marker=marker, color=colour, markersize=5, markeredgewidth=0)


def rank_plot(report: Report) -> Figure | None:
    """A table in colours: rank of each method on each metric, the best mean rank on top."""
    ranks = data.ranks(report)
    metrics = [(task, name) for task, found in report["metrics"].items() for name in found]
    known = data.rows(report)
    methods = sorted(ranks, key=lambda method: (_mean_rank(known[method]), method))
    if len(methods) < 2:
        return None
    numbers = len(metrics) <= _NUMBERED
    wide = max((0.62 if numbers else 0.26) * len(metrics), 2.2)
    figure = style.canvas(
        5.6 + wide,
        1.7 + max(_row_height(methods), 0.26) * len(methods),
        f"Ranks on {style.clip(report['dataset'])}: 1 is best",
        "Rank of each method's mean over seeds by metric, dark is better, ties share a rank. Right: the mean over "
        "metrics, lower is better.",
    )
    cells, summary = figure.subplots(1, 2, sharey=True, width_ratios=[wide, 2.2])
    norm = Normalize(1, 1.15 * len(methods))
    values = [[ranks[method].get(metric, math.nan) for metric in metrics] for method in methods]
    cells.imshow(values, cmap="Blues_r", norm=norm, aspect="auto", interpolation="nearest")
    for row, ranked in enumerate(values):
        for column, rank in enumerate(ranked):
            if numbers:
                ink = "white" if norm(rank) < 0.5 else style.INK
                label = "-" if math.isnan(rank) else f"{rank:g}"
                cells.text(column, row, label, ha="center", va="center", fontsize=8.5, color=ink)
    cells.grid(visible=False)
    cells.spines[:].set_visible(False)
    names = [f"{style.clip(task, 20)} {style.clip(name, 20)}" for task, name in metrics]
    cells.set_xticks(range(len(metrics)), names, rotation=40, ha="left", rotation_mode="anchor", fontsize=8.5)
    cells.xaxis.tick_top()
    cells.set_yticks(range(len(methods)), [style.fold(method) for method in methods], color=style.INK)
    means = [_mean_rank(known[method]) for method in methods]
    drawn = [(mean, row) for row, mean in enumerate(means) if math.isfinite(mean)]
    summary.hlines([row for _, row in drawn], 1, [mean for mean, _ in drawn], color=style.FAINT, linewidth=1)
    summary.plot([mean for mean, _ in drawn], [row for _, row in drawn], "o", color=style.INK, markersize=6)
    for mean, row in drawn:
        summary.annotate(f"{mean:.2f}", (mean, row), (7, 0), textcoords="offset points", va="center", fontsize=8.5)
    summary.set_xlim(0.6, len(methods) * 1.25)
    summary.xaxis.tick_top()
    summary.xaxis.set_label_position("top")
    summary.set_xlabel("mean rank (lower is better)")
    summary.tick_params(labelleft=False)
    return figure


def _mean_rank(row: Mapping[str, Any]) -> float:
    rank = row.get("mean_rank")
    return math.inf if rank is None else float(rank)


def _row_height(methods: Sequence[str]) -> float:
    """Inches; a name of two lines needs more."""
    return 0.33 if any("\n" in style.fold(method) for method in methods) else 0.21
