"""report.html: one page with the report and its curves in it; needs no network and no library."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mtlcli.comparison import tabular
from mtlcli.comparison.figures import curves, data
from mtlcli.runs import replace_file, to_json

_ASSETS = Path(__file__).parent / "assets"
_DIGITS = 5  # significant ones of a curve: a score of 0.99365 differs from one of 0.99370


def write_page(report: Mapping[str, Any], runs: Sequence[Path], file: Path) -> None:
    """Write the page. The same input gives the same bytes.

    Args:
        report: the content of report.json; its rows' `runs` are relative to the folder of `file`.
        runs: run directories, for the curves; one that belongs to no row is passed over.
        file: replaced whole or not at all; its folder has to be there.

    Raises:
        MtlError: the file cannot be written.
    """
    replace_file(file, page(report, curves.histories(report, runs, file.parent)).encode())


def page(report: Mapping[str, Any], histories: Mapping[str, curves.History]) -> str:
    """The page's text."""
    style, script = _asset("css"), _asset("js")
    parts = {
        "title": html.escape(f"mtl compare: {report['dataset']}"),
        "policy": f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'",
        "style": style,
        "script": script,
        "data": embedded(document(report, histories)),
    }
    # In one pass: nothing that stands in a part is taken for a mark of the template.
    return re.sub(r"\{\{(\w+)\}\}", lambda mark: parts[mark[1]], _asset("html"))


def document(report: Mapping[str, Any], histories: Mapping[str, curves.History]) -> dict[str, Any]:
    """What the script draws: the report, and what the figures show of it."""
    return {
        "report": report,
        "tuned": tabular.tuned(report),
        "order": data.order(report),
        "gains": {
            task: {method: gain._asdict() for method, gain in by_method.items()}
            for task, by_method in data.gains(report).items()
        },
        "ranks": {
            method: [by_metric.get((task, name)) for task, found in report["metrics"].items() for name in found]
            for method, by_metric in data.ranks(report).items()
        },
        "trade_off": [point._asdict() for point in data.trade_off(report)],
        "histories": {method: _compact(asdict(history)) for method, history in histories.items()},
    }


def embedded(values: Any) -> str:
    """JSON that may stand inside of a script element: nothing in it ends the element or begins another."""
    text = to_json(values)  # ASCII already, so without U+2028, which some parsers take for the end of a line
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _asset(kind: str) -> str:
    return (_ASSETS / f"report.{kind}").read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """What a Content-Security-Policy knows an inline script or style by."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _compact(values: Any) -> Any:
    """Few digits, and no band where it is no wider than the line, as with one seed."""
    if isinstance(values, Mapping):
        kept = dict(values)
        if "low" in kept and kept["low"] == kept["mean"] == kept["high"]:
            del kept["low"], kept["high"]
        return {key: _compact(value) for key, value in kept.items()}
    if isinstance(values, list):
        return [_compact(value) for value in values]
    if not isinstance(values, float):
        return values
    short = float(f"{values:.{_DIGITS}g}")
    return int(short) if short.is_integer() else short
