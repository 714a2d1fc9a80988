"""A report as files: every value in JSON and CSV, the table in Markdown and TeX, a page and figures."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from mtlcli.comparison import tabular
from mtlcli.comparison.tabular import ALL_TASKS, COST, Cell, Column
from mtlcli.runs import replace_file, write_report

_ARROWS = {"up": "\u2191", "down": "\u2193"}
_TEX_ARROWS = {"up": r"$\uparrow$", "down": r"$\downarrow$"}
_TEX_MARKS = {"+": "$^{+}$", "-": "$^{-}$", "~": r"$^{\sim}$"}
_TEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "_": r"\_",
    "%": r"\%",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": "$<$",
    ">": "$>$",
    "|": r"\textbar{}",  # the usual fonts have a dash there
    "±": r"$\pm$",
}
_TEX_LEGEND = "Bold: the best of a column; underlined: the second best."
_COST_UNITS = {"seconds": "s", "step_ms_median": "ms", "peak_mib": "MiB"}


def write(report: Mapping[str, Any], runs: Sequence[Path], folder: Path) -> list[str]:
    """Write the report in every form into `folder`, which is made if need be.

    Args:
        report: the content of report.json.
        runs: the run directories behind it, for curves.
        folder: gets report.json, report.csv, report.md, report.tex, report.html and figures/.

    Returns:
        What stands beside report.json, by name.

    Raises:
        MtlError: the disk does not take it.
    """
    from mtlcli.comparison.figures import write_figures
    from mtlcli.comparison.page import write_page

    contents = {
        "report.csv": as_csv(report),
        "report.md": as_markdown(report),
        "report.tex": as_tex(report),
    }
    write_report(folder, report)
    for name, text in contents.items():
        replace_file(folder / name, text.encode())
    write_page(report, runs, folder / "report.html")
    figures = write_figures(report, runs, folder / "figures")
    return [*contents, "report.html", *(["figures/"] if figures else [])]


# -- CSV ---------------------------------------------------------------------------------------------------------------


def as_csv(report: Mapping[str, Any]) -> str:
    """One value a line: method, seed, task, metric, unit, higher_is_better, value.

    Improvements (delta_m, delta_p) and costs have no task. Beside published values there are two more columns, the
    same for every seed: `paper`, and `gap`, our mean minus the paper's; both in the paper's unit.
    """
    published = {row["method"]: row for row in (report.get("published") or {}).get("rows", ())}
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(
        [
            "method",
            "seed",
            "task",
            "metric",
            "unit",
            "higher_is_better",
            "value",
            *(["paper", "gap"] if published else []),
        ]
    )
    for row in tabular.rows(report):
        theirs = published.get(row["method"], {})
        for task, metric, unit, higher_is_better, values in _series(report, row):
            if task:
                entry = theirs.get("tasks", {}).get(task, {}).get(metric)
            else:
                entry = theirs.get("delta") if published and metric == report["published"]["convention"] else None
            beside = [entry["published"], entry["gap"]] if entry else ["", ""]
            for seed, value in values.items():
                line = [row["method"], seed, task, metric, unit, str(higher_is_better).lower(), value]
                lines.writerow([*line, *(beside if published else [])])
    return text.getvalue()


def _series(
    report: Mapping[str, Any], row: Mapping[str, Any]
) -> Iterator[tuple[str, str, str, bool, Mapping[str, float]]]:
    """Task, metric, unit, direction, value by seed: all that is known of a row."""
    for task, metrics in report["metrics"].items():
        for name, about in metrics.items():
            yield task, name, about["unit"], about["higher_is_better"], row["tasks"][task][name]["values"]
    for key, higher_is_better in (("delta_m", False), ("delta_p", True)):
        if row[key]:
            yield "", key, "percent", higher_is_better, row[key]["values"]
    for key in dict.fromkeys(key for cost in row["cost_by_seed"].values() for key in cost):
        values = {seed: cost[key] for seed, cost in row["cost_by_seed"].items() if cost.get(key) is not None}
        yield "", key, _COST_UNITS.get(key, ""), False, values


# -- Markdown ----------------------------------------------------------------------------------------------------------


def as_markdown(report: Mapping[str, Any]) -> str:
    """The table for a README or an issue, best values bold, with its legend and notes."""
    columns = _all_columns(report)
    heads = ["method", *(_head(column) for column in columns)]
    lines = [heads, ["---", *["---:"] * len(columns)]]
    for method, cells in _by_row(report, columns):
        lines.append([f"`{method}`", *(_markdown(cell) for cell in cells)])
    table = "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
    words = [f"**Bold**: the best of a column. {_verbatim(' '.join(tabular.legend(report)))}", ""]
    words += [f"* {_verbatim(note)}" for note in (*tabular.notes(report), *_failures(report))]
    return table + "\n\n" + "\n".join(words).rstrip() + "\n"


def _head(column: Column) -> str:
    group = "" if column.group in (ALL_TASKS, COST) else column.group
    parts = (group, column.name, column.unit, _ARROWS.get(column.better, ""))
    return " ".join(_verbatim(part) for part in parts if part)


def _verbatim(text: str) -> str:
    """So that Markdown shows what is written: a task or an error that has `<...>` in it would vanish as HTML."""
    return re.sub(r"[\\`*~<]", r"\\\g<0>", text)


def _markdown(cell: Cell) -> str:
    value = f"**{cell.value}**" if cell.place == 1 else cell.value
    parts = (value, f"± {cell.spread}" if cell.spread else "", _verbatim(cell.mark))
    return " ".join(part for part in parts if part)


# -- TeX ---------------------------------------------------------------------------------------------------------------


def as_tex(report: Mapping[str, Any]) -> str:
    """A `tabular` with booktabs rules, best values bold and second best underlined, and under it the legend; notes and
    failed runs as comments."""
    columns = _all_columns(report)
    groups = [(name, len(list(found))) for name, found in groupby(columns, key=lambda column: column.group)]
    spans, rules, first = [], [], 2
    for name, size in groups:
        spans.append(rf"\multicolumn{{{size}}}{{c}}{{{tex(name)}}}")
        rules.append(rf"\cmidrule(lr){{{first}-{first + size - 1}}}")
        first += size
    heads = [
        " ".join(part for part in (tex(c.name), tex(c.unit), _TEX_ARROWS.get(c.better, "")) if part) for c in columns
    ]
    body = [" & ".join([tex(method), *(_tex(cell) for cell in cells)]) for method, cells in _by_row(report, columns)]
    comments = ["\\usepackage{booktabs} in the preamble, then \\input this file."]
    comments += [*tabular.notes(report), *_failures(report)]
    return "\n".join(
        [
            *(f"% {line}" for comment in comments for line in comment.splitlines()),
            rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
            r"\toprule",
            " & ".join(["", *spans]).strip() + r" \\",
            "".join(rules),
            " & ".join(["method", *heads]) + r" \\",
            r"\midrule",
            *(f"{line} \\\\" for line in body),
            r"\bottomrule",
            r"\end{tabular}",
            "",
            r"\smallskip",
            rf"\parbox{{\linewidth}}{{\footnotesize {tex(_TEX_LEGEND)} {tex(' '.join(tabular.legend(report)))}}}",
            "",
        ]
    )


def tex(text: str) -> str:
    """`text` with every character that means something to TeX escaped."""
    return "".join(_TEX.get(character, character) for character in text)


def _tex(cell: Cell) -> str:
    if cell.value == "-":
        return "--"
    value = re.sub(r"[+-](?=\d)", r"$\g<0>$", tex(cell.value))
    value = {1: rf"\textbf{{{value}}}", 2: rf"\underline{{{value}}}"}.get(cell.place, value)
    return value + (rf" $\pm$ {cell.spread}" if cell.spread else "") + _TEX_MARKS.get(cell.mark, "")


# -- both --------------------------------------------------------------------------------------------------------------


def _all_columns(report: Mapping[str, Any]) -> list[Column]:
    """By group; the seeds stand with what sums all tasks up."""
    columns = tabular.columns(report)
    at = next(i for i, column in enumerate(columns) if column.group == ALL_TASKS)
    return [*columns[:at], tabular.seeds(report), *columns[at:]]


def _by_row(report: Mapping[str, Any], columns: list[Column]) -> Iterator[tuple[str, list[Cell]]]:
    for i, row in enumerate(tabular.rows(report)):
        yield row["method"], [column.cells[i] for column in columns]


def _failures(report: Mapping[str, Any]) -> list[str]:
    return [
        f"failed: {row['method']}, seed {failed['seed']}: {failed['error']}"
        for row in report["rows"]
        for failed in row.get("failed", ())
    ]
