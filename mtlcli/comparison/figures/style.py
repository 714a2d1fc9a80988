"""How every figure looks: colours that colour-blind people tell apart, fonts, names as they are, the same bytes."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.transforms import Bbox

# Okabe and Ito's palette without its yellow, which is not seen on white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
Dashes = Literal["-", "--", "-.", ":"]
DASHES: tuple[Dashes, ...] = ("-", "--", "-.", ":")
INK, MUTED, FAINT, SHADE = "#1b1f24", "#57606a", "#c9cfd6", "#eef1f4"
BETTER, WORSE, UNCLEAR = COLOURS[0], COLOURS[1], "#8c959f"

_NAME = 34  # characters of a name that a figure has room for

_SETTINGS: dict[Any, Any] = {
    "text.parse_math": False,  # names may hold $ and _
    "text.usetex": False,
    "axes.formatter.use_mathtext": False,
    "svg.hashsalt": "mtlcli",  # ids would be random
    "font.family": ["DejaVu Sans"],  # comes with matplotlib
    "font.size": 9.5,
    "text.color": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": MUTED,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e6e9ed",
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "savefig.dpi": 150,
}


# Where a name may stand beside its point, in points; the front's line leaves a point to the right and from above.
_AROUND = ((7, 8), (-7, -8), (7, -8), (-7, 8), (9, 0), (-9, 0), (0, 13), (0, -13), (12, 17), (12, -17))


class Look(NamedTuple):
    """Of one line among many."""

    colour: str
    dashes: Dashes


def look(number: int) -> Look:
    """The `number`-th: colours first, then the same colours dashed."""
    return Look(COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)])


@contextmanager
def applied() -> Iterator[None]:
    """Draw in our style, whatever a person's matplotlibrc says; theirs is back afterwards."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Glyph .* missing from font"
        )  # a box is drawn for it, and that is all
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


def render(figure: Figure, kind: str) -> bytes:
    """The figure as `png` or `svg`."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine("none")  # the places are found; finding them again takes as long as all the drawing
        for axes in figure.axes:  # their last digits differ from time to time
            left, bottom, width, height = (round(value, 6) for value in axes.get_position(original=True).bounds)
            axes.set_position((left, bottom, width, height))
    written = io.BytesIO()
    metadata: Mapping[str, Any] = {"Date": None} if kind == "svg" else {}  # no time of writing: same input, same bytes
    figure.savefig(written, format=kind, metadata=metadata)
    return written.getvalue()


def canvas(
    width: float, height: float, title: str, how_to_read: str, entries: Sequence[tuple[Look, str]] = ()
) -> Figure:
    """An empty figure of `width` inches with room for panels of `height` inches.

    Above them are the title and the legend of `entries`, below is how to read it.
    """
    names = [fold(name) for _, name in entries]
    wide = max((len(line) for name in names for line in name.splitlines()), default=0) * 0.088 + 0.7  # inches of a name
    columns = max(1, min(len(entries), int(width / wide)))
    caption = textwrap.wrap(how_to_read, int(width * 14.5))
    head = 0.45 + (0.34 if any("\n" in name for name in names) else 0.2) * -(-len(entries) // columns)
    foot = 0.15 + 0.17 * len(caption)
    total = head + height + foot
    figure = Figure(figsize=(width, total), layout="constrained")
    FigureCanvasAgg(figure)
    rect = (0, foot / total, 1, height / total)
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06, wspace=0.03, hspace=0.04, rect=rect)  # type: ignore[union-attr, call-arg]
    left = 0.1 / width
    figure.text(left, 1 - 0.1 / total, title, va="top", fontsize=12.5, fontweight="bold")
    figure.text(left, 0.1 / total, "\n".join(caption), va="bottom", fontsize=8.5, color=MUTED, linespacing=1.3)
    if entries:
        handles = [Line2D([], [], color=look.colour, linestyle=look.dashes, linewidth=1.8) for look, _ in entries]
        numbers = [str(number) for number in range(len(names))]
        made = figure.legend(handles, numbers, loc="upper left", ncols=columns, fontsize=9, borderaxespad=0)
        made.set_bbox_to_anchor((left, 1 - 0.38 / total))
        made.set_in_layout(False)
        for text, name in zip(made.get_texts(), names, strict=True):
            text.set_text(name)  # now: a name that begins with _ would not have been taken
    return figure


def grid(figure: Figure, count: int, columns: int, **shared: Any) -> list[Axes]:
    """`count` axes in rows of `columns`."""
    rows = -(-count // columns)
    axes = figure.subplots(rows, columns, squeeze=False, **shared).flat
    for unused in axes[count:]:
        unused.remove()
    return list(axes[:count])


def clip(name: str, room: int = _NAME) -> str:
    """The name in one line, shortened in its middle: what tells variants of one method apart stands at the end."""
    name = " ".join(name.split())
    half = (room - 1) // 2
    return name if len(name) <= room else f"{name[:half]}\u2026{name[-half:]}"


def fold(name: str, width: int = _NAME, lines: int = 2) -> str:
    """The name in at most so many lines of `width` characters."""
    return "\n".join(textwrap.wrap(clip(name, lines * width - 8), width)[:lines])


def logarithmic(axis: Axis) -> None:
    """A logarithmic axis with plain numbers; matplotlib's own labels are formulas, which are switched off."""
    set_scale = axis.axes.set_xscale if axis.axis_name == "x" else axis.axes.set_yscale  # type: ignore[attr-defined]
    set_scale("log")
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def label_points(axes: Axes, points: Sequence[tuple[float, float, str, bool]]) -> None:
    """Names beside points, each where nothing else is; one that finds no room is left out, unless it must be there.

    Args:
        axes: with everything else drawn, and its limits final.
        points: x, y, name, whether it must be named; the important ones first.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    pixel = figure.dpi / 72
    inside = axes.get_window_extent()
    places = [axes.transData.transform((x, y)) for x, y, _, _ in points]
    taken: list[Bbox] = []
    for (x, y, name, needed), own in zip(points, places, strict=True):
        for dx, dy in _AROUND:
            text = axes.annotate(
                fold(name),
                (x, y),
                (dx, dy),
                textcoords="offset points",
                ha="center" if not dx else "left" if dx > 0 else "right",
                va="center",
                fontsize=9,
                linespacing=1,
                fontweight="bold" if needed else "normal",
                color=INK if needed else MUTED,
                path_effects=[withStroke(linewidth=3, foreground="white")],  # legible on lines
            )
            box = text.get_window_extent()
            room = inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
            others = (place for place in places if place is not own)
            hits = any(box.overlaps(other) for other in taken) or any(
                box.x0 - 4 * pixel < px < box.x1 + 4 * pixel and box.y0 - 3 * pixel < py < box.y1 + 3 * pixel
                for px, py in others
            )
            if room and not hits:
                taken.append(box)
                break
            text.remove()
