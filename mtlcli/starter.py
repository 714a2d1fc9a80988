"""Recipes to begin with: commented, for a table of one's own or for the packaged data."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtlcli import registry
from mtlcli.data.tables.look import Look
from mtlcli.data.tables.source import JUDGED
from mtlcli.errors import MtlError, how_many
from mtlcli.options import Options, fields
from mtlcli.recipe import DEFAULTS as PARTS
from mtlcli.recipe import DataSection, GradientSection, TrainSection
from mtlcli.runs import disk_errors, replace_file
from mtlcli.yamlfile import dump

DEFAULTS = {"own": "table", "packaged": "census"}
NOTE = 34  # the column where comments begin


def look(path: Path) -> Look:
    """A first look at the files at `path`. Raises MtlError where they cannot be read."""
    return Look.at(path, tuple(_options(DEFAULTS["own"]).model_fields["missing"].default))


def for_table(table: Look, tasks: Mapping[str, Mapping[str, Any]], recipe: Path) -> str:
    """A recipe for a table: its columns, its tasks, a split, and a network of a size that suits its rows."""
    path = table.path if table.path.is_absolute() else os.path.relpath(table.path, recipe.parent)
    split, why = table.split(tasks)
    labels = {task.get("column", name) for name, task in tasks.items()}
    dropped = [
        use.column
        for use in table.uses.values()
        if use.used_as == "dropped" and use.column not in labels and use.column not in split.values()
    ]
    train_rows = round(0.7 * table.rows)
    batch = 2 ** min(10, max(5, (train_rows // 50).bit_length() - 1))
    steps = max(1, train_rows // batch)
    widths = [64, 32] if train_rows < 5_000 else [128, 64] if train_rows < 100_000 else [256, 128]
    lines = [
        f"# {_plain(table.path.name)}: {how_many(table.rows, 'row')}, {how_many(len(table.uses), 'column')}. "
        "Written by mtl init, to be changed.",
        "#   mtl check RECIPE                          what becomes of every column, and what is wrong",
        "#   mtl train RECIPE                          train it",
        "#   mtl compare RECIPE --methods A,B          several ways of weighting the tasks, as in mtl list losses",
        "#   mtl predict RUN NEW.csv --out PRED.csv    predictions for new rows",
        "data:",
        f"  name: {DEFAULTS['own']}",
        _line("path", str(path), "a file, a folder or a pattern; taken from this file's folder"),
        "  # What to predict, by name. More keys of a task: column, positive, classes, class_weights, transform, unit.",
        "  tasks:",
    ]
    lines += [_line(name, task, "", 4) for name, task in tasks.items()]
    lines += ["  # What the columns hold; with `columns: {NAME: categorical}` one says otherwise."]
    width = max(map(len, table.uses))
    for use in table.uses.values():
        what = (use.used_as, use.detail)
        if use.column in labels:
            what = ("label", "")
        elif use.column == split.get("by"):
            what = ("key", "its rows come into the same split")
        elif use.column == split.get("column"):
            what = ("split", "says train, val or test")
        lines.append(_plain(f"  #   {use.column:<{width}}  {what[0]:<12} {what[1]}").rstrip())
    lines += [
        _line("features", "auto", "columns to predict from; auto: all that are left"),
        _line("drop", dropped, "columns to leave out"),
        _line("split", split, why),
        _line("on_error", "stop", "at a bad row; skip leaves it out, and counts"),
        _line("batch_size", batch, "rows a step"),
    ]
    train = {"epochs": max(5, min(30, 2_000 // steps)), "seed": 0, "select_by": "delta"}
    return "\n".join(lines) + "\n" + _rest({"widths": widths}, train)


def packaged() -> str:
    """A recipe for the packaged data."""
    name = DEFAULTS["packaged"]
    lines = [
        f"# The packaged data, {name}: `mtl list datasets {name}` says what they are. Written by mtl init.",
        "#   mtl check RECIPE, mtl train RECIPE, mtl compare RECIPE --methods A,B (mtl list losses)",
        "data:",
        f"  name: {name}",
        *_section(DataSection, {"batch_size": 1024}),
        *_section(_options(name), {}),
    ]
    return "\n".join(lines) + "\n" + _rest({}, {"epochs": 3, "seed": 0, "select_by": "delta"})


def write(path: Path, text: str) -> None:
    """Write a recipe, whole or not at all. Raises MtlError where the disk does not take it."""
    with disk_errors(path, MtlError):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, text.encode(), MtlError)


def problem(table: Look, recipe: Path) -> str | None:
    """Why `mtl check` will refuse the data of a recipe for `table`, in one line.

    None where it will not, and where there are so many rows that reading them all is left to mtl check.
    """
    from mtlcli import recipe as recipes
    from mtlcli.engine.prepare import load_data

    if table.rows > JUDGED:
        return None
    try:
        load_data(recipes.load(recipe))
    except MtlError as error:
        return "; ".join(str(error).splitlines())
    return None


def _rest(encoder: Mapping[str, Any], train: Mapping[str, Any]) -> str:
    """The sections that do not depend on the data."""
    names = {slot: PARTS[slot] for slot in ("model.encoder", "weighting.loss", "weighting.gradient", "optimizer")}
    encoders = registry.encoders.get(names["model.encoder"]).Options
    optimizer = registry.optimizers.get(names["optimizer"]).Options
    shown = {"widths": None, "dropout": None, **encoder}
    lines = [
        "model:",
        "  encoder:",
        f"    name: {names['model.encoder']}",
        *_section(encoders, encoder, 4, list(shown)),
        _line("trunk", PARTS["model.trunk"], "how tasks share the encoder; `mtl list trunks`"),
        "weighting:",
        _line("loss", names["weighting.loss"], "how task losses are weighed; `mtl list losses`"),
        "  gradient:",
        _line("name", names["weighting.gradient"], "how task gradients become one; `mtl list gradients`", 4),
        *_section(GradientSection, {}, 4, ["wrt"]),
        "optimizer:",
        f"  name: {names['optimizer']}",
        *_section(optimizer, {}, 2, ["lr", "weight_decay"]),
        "train:",
        *_section(TrainSection, train, 2, list(train)),
    ]
    return "\n".join(lines) + "\n"


def _section(cls: type[Options], values: Mapping[str, Any], indent: int = 2, keys: Sequence[str] = ()) -> list[str]:
    """A line for every option (or for `keys`), with its value, or its default, and its description."""
    return [
        _line(field.name, values.get(field.name, field.default), field.description, indent)
        for field in fields(cls)
        if not keys or field.name in keys
    ]


def _line(key: str, value: Any, comment: str, indent: int = 2) -> str:
    """`key: value  # comment`; the comment stands above where both do not fit on a line."""
    margin = " " * indent
    pair = dump({key: [*value] if isinstance(value, tuple) else value}).rstrip()
    text = textwrap.indent(pair[1:-1] if pair.startswith("{") else pair, margin)
    if not comment:
        return text
    comment = _plain(comment)
    beside = f"{text:<{NOTE}}  # {comment}"
    return beside if "\n" not in text and len(beside) <= 120 else f"{margin}# {comment}\n{text}"


def _plain(text: str) -> str:
    """`text` as a comment takes it: on one line, without characters that YAML does not allow."""
    return "".join(character if character.isprintable() else " " for character in text)


def _options(name: str) -> type[Options]:
    return registry.datasets.get(name).Options
