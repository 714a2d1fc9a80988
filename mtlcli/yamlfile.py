"""YAML that is safe to read: plain values only, no key twice, and every key's line kept for messages.

Plain words are read as YAML 1.2 does: `yes` is text and not true, `1e-3` is a number, `12:30` and dates are text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from mtlcli.errors import MtlError

LARGEST = 100_000  # keys and list items; beyond it stand only aliases that multiply one another

_TEXT = "tag:yaml.org,2002:str"
_MERGE = "tag:yaml.org,2002:merge"
_PLAIN = (  # the first that matches decides
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9_]*)", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9][0-9_]*\.[0-9_]*)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.0123456789")),
    ("merge", r"<<", ["<"]),
)


class _Loader(yaml.SafeLoader):
    """The safe loader with YAML 1.2's plain words."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - declared so by the parent


class _Dumper(yaml.SafeDumper):
    """The safe dumper; it puts text in quotes that YAML 1.2 or 1.1 would read as something else."""


for _kind, _pattern, _first in _PLAIN:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"^(?:{_pattern})$"), _first)


class Document(NamedTuple):
    """A parsed file: its values, whose keys are all text, and the line (from 1) of every key by dotted path."""

    values: Any
    lines: dict[str, int]


def read(path: Path) -> Document:
    """Parse the file at `path`. Raises MtlError that names the file, and line and column where there are any."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        hint = f"; {path.parent} holds {', '.join(near)}" if near else ""
        raise MtlError(f"{path}: no such file{hint}") from None
    except IsADirectoryError:
        near = sorted(str(p) for p in path.glob("*.y*ml"))
        hint = f", such as {near[0]}" if near else ""
        raise MtlError(f"{path}: is a folder; name a YAML file{hint}") from None
    except UnicodeDecodeError as error:
        raise MtlError(f"{path}: should be a text file in UTF-8; byte {error.start} is not") from None
    except OSError as error:
        raise MtlError(f"{path}: cannot be read: {error.strerror}") from None
    return parse(text, str(path))


def parse(text: str, place: str) -> Document:
    """Parse `text`; `place` is where it came from, for messages."""
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return Document(None, {})
            lines: dict[str, int] = {}
            _collect(node, "", lines, place)
            return Document(loader.construct_document(node), lines)
        finally:
            loader.dispose()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise MtlError(
            f"{place}, line {line}: is not YAML text: it holds the control character {error.character:#x}; "
            "is this the file you meant?"
        ) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{place}, line {mark.line + 1}, column {mark.column + 1}" if mark else place
        problem = ", ".join(part for part in (error.context, error.problem) if part)
        if "'\\t'" in problem:
            problem += "; indent with spaces, not with tabs"
        if isinstance(error, yaml.constructor.ConstructorError):
            raise MtlError(f"{where}: only plain values are read and nothing is executed; {problem}") from None
        raise MtlError(f"{where}: is not valid YAML: {problem}") from None
    except RecursionError:
        raise MtlError(f"{place}: is nested too deeply, or an alias stands inside what it names") from None
    except (yaml.YAMLError, ValueError) as error:
        raise MtlError(f"{place}: is not valid YAML: {error}") from None


def dump(values: Any) -> str:
    """`values` as YAML that `parse` reads back to the same."""
    text: str = yaml.dump(
        values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120
    )
    return text


def show(value: Any, width: int = 60) -> str:
    """A value as one would write it in YAML, on one line and cut to `width`, for messages."""
    if isinstance(value, str):
        text = repr(value)
    else:
        try:
            text = yaml.dump(
                value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=True, width=1 << 30
            )
        except yaml.YAMLError:  # a Python object that no file could hold
            text = repr(value)
        text = text.removesuffix("\n").removesuffix("\n...")
    return text if len(text) <= width else f"{text[: width - 3]}..."


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested maps as one: dotted path -> value. Lists and empty maps stay whole."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _collect(node: yaml.Node, path: str, lines: dict[str, int], place: str, merged: bool = False) -> None:
    """Note the line of every key and list item, refuse what stands twice, make every key text."""
    if len(lines) > LARGEST:
        raise MtlError(f"{place}: holds more than {LARGEST:,} values; do its aliases multiply one another?")
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            where = f"{path}.{index}" if path else str(index)
            lines.setdefault(where, item.start_mark.line + 1)
            _collect(item, where, lines, place)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise MtlError(f"{place}, line {line}: a key should be text; found a list or a map")
        if key.value in seen:
            raise MtlError(
                f"{place}, line {line}: the key '{key.value}' stands a second time (first on line {seen[key.value]})"
            )
        seen[key.value] = line
        if key.tag == _MERGE:
            continue
        key.tag = _TEXT
        where = f"{path}.{key.value}" if path else key.value
        if merged and where in lines:  # what the map says itself wins over what is merged into it
            continue
        lines[where] = line
        _collect(value, where, lines, place, merged)
    for key, value in node.value:
        if key.tag == _MERGE:
            for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                _collect(source, path, lines, place, merged=True)
