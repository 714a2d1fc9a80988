"""What `mtl check`, `mtl list` and `mtl predict` say -> the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from mtlcli import search
from mtlcli.errors import how_many
from mtlcli.yamlfile import show


def check(values: Mapping[str, Any], recipe: str) -> Group:
    """The resolved recipe, the data, the parameter counts."""
    tasks = []
    for task, about in values["tasks"].items():
        labelled = " / ".join(f"{about['labelled'][split]:,}" for split in ("train", "val", "test"))
        own = f"{values['parameters'][task]:,}"
        tasks.append((task, about["kind"], labelled, ", ".join(about["metrics"]), own))
    tables = [_grid(("task", "kind", "labelled rows (train / val / test)", "metrics", "parameters"), tasks)]
    if values["columns"]:
        tables.insert(0, columns(values["columns"]))
    extra = values["parameters"]["weighting"]
    rows = ", ".join(f"{count:,} {name}" for name, count in values["rows"].items())
    lines = [
        Text(recipe.rstrip()),
        Text(),
        Text(f"method {values['method']}; rows: {rows}; {values['steps_per_epoch']:,} steps per epoch"),
        Text(
            f"{values['parameters']['shared']:,} shared parameters" + (f", {extra:,} of the weighting" if extra else "")
        ),
    ]
    warnings = [Text.assemble(("warning: ", "bold yellow"), message) for message in values["warnings"]]
    return Group(*lines, *tables, *warnings)


def columns(uses: Sequence[Mapping[str, str]]) -> Table:
    """What becomes of the columns of a table."""
    return _grid(("column", "used as", "detail"), [tuple(use.values()) for use in uses])


def predicted(values: Mapping[str, Any]) -> Group:
    """Where predictions are, and what their columns mean."""
    rows = [(task, about["kind"], ", ".join(about["columns"])) for task, about in values["tasks"].items()]
    head = Text(f"{how_many(values['rows'], 'row')} of {values['data']} -> {values['out']}")
    return Group(head, _grid(("task", "kind", "columns"), rows), *(Text(n, style="yellow") for n in values["notes"]))


def listing(values: Mapping[str, Any]) -> Group:
    """Everything that is registered, by kind."""
    parts: list[Any] = []
    for kind, entries in values.items():
        table = Table(
            title=kind, title_justify="left", title_style="bold", box=None, show_header=False, padding=(0, 2, 0, 2)
        )
        table.add_column(no_wrap=True)
        table.add_column()
        for entry in entries:
            table.add_row(entry["name"], entry["summary"])
        parts += [table, Text()]
    return Group(*parts[:-1])


def page(values: Mapping[str, Any]) -> Group:
    """One thing's page: its docstring and its options."""
    parts: list[Any] = [Text(f"{values['name']} ({values['kind']})", style="bold"), Text(values["doc"])]
    if values["options"]:
        rows = []
        for option in values["options"]:
            default = "required" if option["required"] else _in_yaml(option["default"])
            searched = f"; searched: {search.words(option['searched'])}" if option["searched"] else ""
            rows.append((option["name"], default, option["allowed"] + searched, option["description"]))
        parts += [Text(), _grid(("name", "default", "allowed", "meaning"), rows, "options")]
    return Group(*parts)


def _in_yaml(value: Any) -> str:
    return value if isinstance(value, str) else show(value)


def _grid(headings: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> Table:
    """A table; numbers of parameters stand on the right, and are never cut."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for heading in headings:
        number = heading == "parameters"
        table.add_column(heading, justify="right" if number else "left", no_wrap=number, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
