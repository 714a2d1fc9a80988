"""The report as CSV, Markdown, TeX and terminal tables: the same values, escaped for each."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from fake_runs import fake
from rich.console import Console

from mtlcli import render
from mtlcli.comparison import exports, tabular
from mtlcli.comparison.finished import read_runs
from mtlcli.comparison.report import report
from mtlcli.errors import MtlError

NASTY = "weeks_%&#{}~^|\\<worked>"


@pytest.fixture
def made(tmp_path: Path) -> dict[str, Any]:
    """Single tasks, equal weights and two methods, three seeds; one metric is undefined for one of them."""
    paths = []
    for seed, noise in enumerate((-0.01, 0.0, 0.015)):
        singles: dict[str, dict[str, float | None]] = {"a": {"auroc": 0.8 + noise}, NASTY: {"mae": 12.0 - 10 * noise}}
        for task, values in singles.items():
            paths.append(fake(tmp_path / "single" / str(ord(task[0])) / str(seed), "ew", seed, {task: values}))
        for i, method in enumerate(("ew", "uw", "ew+nash_mtl")):
            auroc = None if method == "uw" and seed == 2 else 0.8 + noise + 0.1 * i + 0.001 * seed * (1 + 2 * i)
            values = {"a": {"auroc": auroc}, NASTY: {"mae": 12.0 - 10 * noise}}
            paths.append(fake(tmp_path / method / str(seed), method, seed, values, counts={"stopped early": i}))
    failures = [{"method": "si", "seed": 0, "error": "loss_a is inf | 100 %"}]
    return report(read_runs(paths), None, failures, folder=tmp_path)


# -- CSV ---------------------------------------------------------------------------------------------------------------


def test_csv_has_one_value_a_line(made: dict[str, Any]) -> None:
    lines = list(csv.DictReader(io.StringIO(exports.as_csv(made))))
    assert list(lines[0]) == ["method", "seed", "task", "metric", "unit", "higher_is_better", "value"]
    found = {(line["method"], line["task"], line["metric"], line["seed"]): line for line in lines}
    assert len(found) == len(lines)
    for row in tabular.rows(made):
        for task, metrics in row["tasks"].items():
            for metric, summary in metrics.items():
                for seed, value in summary["values"].items():
                    assert float(found[row["method"], task, metric, seed]["value"]) == value
        for key in ("delta_m", "delta_p"):
            for seed, value in row[key]["values"].items():
                assert float(found[row["method"], "", key, seed]["value"]) == value
    assert ("uw", "a", "auroc", "2") not in found
    assert found["uw", "a", "auroc", "0"]["higher_is_better"] == "true"
    assert found["uw", "", "delta_m", "0"]["unit"] == "percent"
    assert float(found["single_task", "", "seconds", "1"]["value"]) == 20.0
    assert found["ew+nash_mtl", "", "fallbacks", "1"]["value"] == "2"
    assert not any(line["method"] == "si" for line in lines)


# -- Markdown and TeX --------------------------------------------------------------------------------------------------


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]


def test_markdown_is_a_table(made: dict[str, Any]) -> None:
    text = exports.as_markdown(made)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 4
    assert len({len(cells_of(line)) for line in lines}) == 1
    assert r"\|" in lines[0]
    by_method = {cells_of(line)[0]: cells_of(line) for line in lines[2:]}
    assert by_method["`ew`"][1].startswith("0.8027 ± 0.01")
    assert by_method["`ew+nash_mtl`"][1].startswith("**1.0067** ±")
    assert "* failed: si, seed 0: loss_a is inf | 100 %" in text
    assert "* ew+nash_mtl: stopped early: 6 times in 3 runs" in text


def test_markdown_shows_what_is_written(made: dict[str, Any]) -> None:
    """`<b>` and `*` in names and errors are no HTML and no emphasis; what a cell has in bold is."""
    error = "TypeError: '<' not supported in <lambda> *here*"
    rows = [*made["rows"], {"method": "uw+mgda", "seeds": [], "failed": [{"seed": 1, "error": error}]}]
    text = exports.as_markdown({**made, "rows": rows})
    assert r"\<worked>" in text.splitlines()[0]
    assert r"* failed: uw+mgda, seed 1: TypeError: '\<' not supported in \<lambda> \*here\*" in text.splitlines()


def test_tex_is_a_booktabs_table(made: dict[str, Any]) -> None:
    text = exports.as_tex(made)
    lines = [line for line in text.splitlines() if not line.startswith("%")]
    columns = re.match(r"\\begin{tabular}{(l(r+))}$", lines[0])
    assert columns is not None
    assert lines[lines.index(r"\end{tabular}") + 1 :][:-1] == ["", r"\smallskip"]
    assert r"\footnotesize Bold: the best of a column; underlined: the second best. Mean $\pm$ standard" in lines[-1]
    assert r"; \textasciitilde{} the difference is within the spread;" in lines[-1]
    assert [line for line in lines if line.endswith("rule")] == [r"\toprule", r"\midrule", r"\bottomrule"]
    rows = [line for line in lines if line.endswith(r" \\")]
    assert len(rows) == 2 + 4
    for row in rows[1:]:
        assert len(re.findall(r"(?<!\\)&", row)) == len(columns[2])
    assert sum(int(n) for n in re.findall(r"multicolumn{(\d+)}", rows[0])) == len(columns[2])
    assert r"\cmidrule(lr){2-2}\cmidrule(lr){3-3}\cmidrule(lr){4-" in text
    body = "\n".join(lines)
    unescaped = re.sub(r"\\[{}]", "", body)
    assert unescaped.count("{") == unescaped.count("}")
    assert r"weeks\_\%\&\#\{\}\textasciitilde{}\textasciicircum{}\textbar{}\textbackslash{}$<$worked$>$" in rows[0]
    assert re.search(r"ew\+nash\\_mtl & \\textbf{1\.0067} \$\\pm\$ 0\.01", body)
    assert r"\underline{0.8" in body
    assert all(ord(character) < 128 for character in body)
    assert "% failed: si, seed 0" in text


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no TeX here")
def test_tex_compiles(made: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "report.tex").write_text(exports.as_tex(made), encoding="utf-8")
    whole = r"\documentclass{article}\usepackage{booktabs}\begin{document}\small\input{report}\end{document}"
    (tmp_path / "whole.tex").write_text(whole, encoding="utf-8")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "whole"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


# -- what all of them show ---------------------------------------------------------------------------------------------


def column(made: dict[str, Any], group: str, name: str) -> tabular.Column:
    (found,) = [c for c in tabular.columns(made) if (c.group, c.name) == (group, name)]
    return found


def test_places_and_marks(made: dict[str, Any]) -> None:
    """single_task 0.8017, ew 0.8027, uw 0.8965 without its third seed, ew+nash_mtl 1.0067."""
    auroc = column(made, "a", "auroc")
    assert [cell.place for cell in auroc.cells] == [0, 0, 2, 1]
    assert [cell.mark for cell in auroc.cells] == ["~", "", "+", "+"]
    assert auroc.better == "up"
    mae = column(made, NASTY, "mae")
    assert [cell.place for cell in mae.cells] == [0, 0, 0, 0]  # all the same: none is best
    assert [cell.mark for cell in mae.cells] == ["~", "", "~", "~"]
    assert [cell.value for cell in mae.cells] == ["11.98"] * 4
    delta = column(made, tabular.ALL_TASKS, "delta_m")
    assert [cell.place for cell in delta.cells] == [0, 0, 2, 1]  # the baseline takes no place
    assert delta.cells[0].value == "+0.00"
    assert [cell.value for cell in column(made, tabular.COST, "fallbacks").cells] == ["0", "0", "3", "6"]


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ((0.9, 0.85), ["0.9000", "0.8500"]),
        ((9.5, 10.5), ["9.50", "10.50"]),  # one number of decimals a column
        ((0.00123456, 0.001), ["0.001235", "0.001000"]),
        ((0.0, 0.0), ["0.0000", "0.0000"]),
        ((-12.0, 0.5), ["-12.00", "0.50"]),
    ],
)
def test_decimals_fit_the_column(tmp_path: Path, values: tuple[float, float], shown: list[str]) -> None:
    paths = [fake(tmp_path / m, m, 0, {"a": {"mae": v}}) for m, v in zip(("uw", "dwa"), values, strict=True)]
    made = report(read_runs(paths), None)
    assert [cell.value for cell in column(made, "a", "mae").cells] == shown


def test_one_seed_says_that_no_spread_is_known(tmp_path: Path) -> None:
    made = report(read_runs([fake(tmp_path / m, m, 0, {"a": {"mae": 1.0}}) for m in ("uw", "dwa")]), None)
    assert tabular.legend(made) == ["One seed each: no spread is known, so no difference can be told from chance."]
    assert {cell.spread for cell in column(made, "a", "mae").cells} == {""}
    assert "±" not in exports.as_markdown(made)


def drawn(values: dict[str, Any], width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), highlight=False, markup=False, emoji=False)
    console.print(render.report(values, width))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return [line.rstrip() for line in str(text).splitlines()]


@pytest.mark.parametrize("width", [60, 80, 100, 120, 160, 250])
def test_the_terminal_shows_every_column_at_every_width(made: dict[str, Any], width: int) -> None:
    lines = drawn(made, width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "…" not in text
    for words in ("auroc ↑", "mae ↓", "delta_m", "delta_p", "mean rank", "passes", "fallbacks", "peak", "seeds"):
        assert words in text
    assert re.search(r"ew\+nash_mtl +1\.0067 ±0\.\d{4} \*\+", text)
    assert "failed: si, seed 0: loss_a is inf" in text.replace("\n", " ")
    assert ("95 % interval" in text) == (width >= 160)


def test_a_long_name_is_folded(tmp_path: Path) -> None:
    label = {"optimizer__lr": 0.1, "train__select_by": "a_very_long_name_of_a_task.average_precision"}
    paths = [fake(tmp_path / "1", "ew", 0, {"a": {"mae": 1.0}}, **label)]
    paths.append(fake(tmp_path / "2", "ew", 0, {"a": {"mae": 2.0}}))
    lines = drawn(report(read_runs(paths), None), 80)
    assert max(map(len, lines)) <= 80
    assert "…" not in "\n".join(lines)
    assert any("fallbacks" in line for line in lines)


# -- beside what was published -----------------------------------------------------------------------------------------


def test_published_columns(made: dict[str, Any]) -> None:
    """Gaps are in the paper's unit; the rows that it does not have stay empty."""
    about = {"unit": "percent", "higher_is_better": True}
    entry = {"published": 79.0, "ours": 80.27, "gap": 1.27, **about}
    delta = {"published": 1.5, "ours": -0.25, "gap": -1.75, "baseline": "STL"}
    row = {"method": "ew", "source": "Them, A Paper 2020", "note": "printed twice", "delta": delta}
    made["published"] = {"name": "x", "title": "The table", "convention": "delta_m", "notes": ["converted"]}
    made["published"]["rows"] = [{**row, "tasks": {"a": {"auroc": entry}}}]
    columns = tabular.columns(made)
    at = next(i for i, c in enumerate(columns) if c.name == "auroc")
    paper, gap = columns[at + 1 : at + 3]
    assert (paper.name, paper.unit, [c.value for c in paper.cells]) == ("paper", "percent", ["-", "79.00", "-", "-"])
    assert (gap.name, [c.value for c in gap.cells]) == ("gap", ["-", "+1.27", "-", "-"])
    sums = [c.name for c in columns if c.group == tabular.ALL_TASKS]
    assert sums == ["delta_m", "95 % interval", "paper", "gap", "delta_p", "mean rank"]
    assert [c.name for c in columns if c.group == NASTY] == ["mae"]
    notes = tabular.notes(made)
    assert any("The table (Them, A Paper 2020)" in note for note in notes)
    assert {"ew: printed twice", "converted", "the gap in delta_m is measured against STL"} <= set(notes)
    lines = {(x["method"], x["metric"], x["seed"]): x for x in csv.DictReader(io.StringIO(exports.as_csv(made)))}
    assert (lines["ew", "auroc", "1"]["paper"], lines["ew", "auroc", "1"]["gap"]) == ("79.0", "1.27")
    assert (lines["ew", "delta_m", "0"]["paper"], lines["ew", "delta_p", "0"]["paper"]) == ("1.5", "")
    assert lines["uw", "auroc", "0"]["paper"] == ""
    assert "a paper percent" in exports.as_markdown(made)
    assert "& paper percent & gap percent" in exports.as_tex(made)
    assert "paper" in "\n".join(drawn(made, 80))


# -- files -------------------------------------------------------------------------------------------------------------


def test_everything_is_written(made: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    names = exports.write(made, [], folder)
    assert json.loads((folder / "report.json").read_text()) == json.loads(json.dumps(made))
    assert {"report.csv", "report.md", "report.tex", "report.html"} <= set(names)
    assert all((folder / name).exists() for name in names)
    (tmp_path / "file").touch()
    with pytest.raises(MtlError, match="cannot be written"):
        exports.write(made, [], tmp_path / "file")
