"""Figures of a comparison as files: every one as PNG and SVG, drawn by matplotlib, which is imported when needed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlcli.comparison.figures.curves import History, histories
from mtlcli.errors import MtlError
from mtlcli.runs import disk_errors, replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_figures(report: Mapping[str, Any], runs: Sequence[Path], folder: Path) -> list[Path]:
    """Draw what can be drawn of a report and the runs behind it; the same input gives the same bytes.

    A figure whose data are missing (no baseline, no events) is left out, and an older file of its name removed.

    Args:
        report: the content of report.json; its rows' `runs` are relative to the parent of `folder`.
        runs: run directories; one that belongs to no row is passed over.
        folder: made if need be.

    Returns:
        The files written: for each figure a PNG and an SVG.

    Raises:
        MtlError: a file cannot be written.
    """
    # It warns where it finds no folder for its cache, as in a container of another user's.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    from mtlcli.comparison.figures import style

    with disk_errors(folder, MtlError):
        folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, draw in drawings(report, histories(report, runs, folder.parent)).items():
        with style.applied():
            figure = draw()
            for kind in ("png", "svg"):
                file = folder / f"{name}.{kind}"
                if figure is None:
                    file.unlink(missing_ok=True)
                else:
                    replace_file(file, style.render(figure, kind))
                    written.append(file)
    return written


def drawings(report: Mapping[str, Any], read: Mapping[str, History]) -> dict[str, Callable[[], Figure | None]]:
    """What draws each figure, in the order in which a reader wants them; None where there is nothing to draw.

    To be called within `style.applied()`.
    """
    from mtlcli.comparison.figures import summary, training

    return {
        "quality_cost": lambda: summary.quality_cost(report),
        "improvement": lambda: summary.improvement(report),
        "ranks": lambda: summary.rank_plot(report),
        "losses": lambda: training.losses(report, read),
        "weights": lambda: training.weights(report, read),
        "gradient_conflict": lambda: training.conflict(report, read),
    }
