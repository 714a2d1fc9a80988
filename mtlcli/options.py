"""Options: typed, frozen settings that live on the class they configure, and the one function that checks them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from mtlcli.errors import MtlError, did_you_mean
from mtlcli.search import declared
from mtlcli.yamlfile import parse as parse_yaml
from mtlcli.yamlfile import show


class Options(BaseModel):
    """Base of every options class: unknown keys are errors, values never change after the check.

    Declare fields as `name: type = Field(default, ge=..., description="...")`; ranges and descriptions appear in error
    messages and in `mtl list`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    def at(self, folder: Path) -> Self:
        """The same options with every path (a field of type Path, at any depth) taken from `folder`, links left as they
        are."""
        changed = {name: found for name, value in self if (found := _located(value, folder)) is not value}
        return self.model_copy(update=changed) if changed else self


OptionsT = TypeVar("OptionsT", bound=Options)


class Problem(NamedTuple):
    """One thing wrong with the input: `path` is the dotted path of the key, `message` says what is wrong with it."""

    path: str
    message: str


class Field(NamedTuple):
    """One option, as `mtl list` shows it."""

    name: str
    allowed: str
    default: Any
    required: bool
    description: str
    searched: dict[str, Any] | None  # where tuning looks for it, if anywhere


def check(
    cls: type[OptionsT], raw: Mapping[str, Any], path: str = "", also_known: tuple[str, ...] = ()
) -> tuple[OptionsT | None, list[Problem]]:
    """Check `raw` against `cls`: the options, or None and every problem found.

    Values are held to JSON's types: `"1"` is not a number and `true` not an integer. `also_known` are keys that a
    caller has already taken out of the same mapping; they count when the nearest valid name is looked for.
    """
    try:
        text = json.dumps(raw, default=_plain)
    except (TypeError, ValueError) as error:
        return None, [Problem(path, f"should hold plain values (numbers, texts, lists, maps); {error}")]
    try:
        return cls.model_validate_json(text, strict=True), []
    except ValidationError as error:
        return None, list(_problems(cls, error, path, also_known))


def _plain(value: Any) -> Any:
    """NumPy's and torch's numbers as Python's; whatever else JSON does not know, in words."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else str(value)


def parse(cls: type[OptionsT], raw: Mapping[str, Any], what: str) -> OptionsT:
    """Like `check`, for callers in Python: raises MtlError naming `what` and every problem."""
    options, problems = check(cls, raw)
    if options is None:
        raise MtlError("\n".join(f"{what}: option {problem.path}: {problem.message}" for problem in problems))
    return options


def _located(value: Any, folder: Path) -> Any:
    if isinstance(value, Path):
        return Path(os.path.abspath(folder / value.expanduser()))
    if isinstance(value, Options):
        return value.at(folder)
    if isinstance(value, list | tuple) and any(isinstance(item, Path | Options) for item in value):
        return type(value)(_located(item, folder) for item in value)
    return value


def fields(cls: type[Options]) -> list[Field]:
    """Every option of `cls` with its allowed values, default and description."""
    schema = cls.model_json_schema()
    spaces = declared(cls)
    found = []
    for name, info in cls.model_fields.items():
        node = schema["properties"][info.alias or name]
        default = None if info.is_required() else info.get_default(call_default_factory=True)
        if isinstance(default, BaseModel):
            default = default.model_dump(mode="json")
        allowed, searched = _describe(node, schema), spaces[name].as_json() if name in spaces else None
        found.append(Field(name, allowed, default, info.is_required(), info.description or "", searched))
    return found


def _problems(cls: type[Options], error: ValidationError, path: str, also_known: tuple[str, ...]) -> Iterator[Problem]:
    schema = cls.model_json_schema()
    seen = set()
    for item in error.errors(include_url=False):
        location = [str(part) for part in item["loc"]]
        node, keys = _follow(schema, location)
        where = ".".join(p for p in (path, *keys) if p)
        if where in seen:  # a union reports one error per member
            continue
        seen.add(where)
        if item["type"] == "extra_forbidden":
            siblings, _ = _follow(schema, location[:-1])
            known = [*siblings.get("properties", {}), *(also_known if len(keys) == 1 else ())]
            allowed = f"known here: {', '.join(known)}" if known else "it has no options"
            yield Problem(where, f"unknown key{did_you_mean(keys[-1], known)}; {allowed}")
        elif item["type"] == "missing":
            yield Problem(where, f"is required: {_describe(node, schema)}")
        elif item["type"] == "value_error":
            yield Problem(where, str(item["ctx"]["error"]) if "ctx" in item else item["msg"])
        else:
            found = item["input"]
            yield Problem(
                where, f"should be {_describe(node, schema)}; found {show(found)}{_remedy(found, node, schema)}"
            )


def _remedy(found: Any, node: dict[str, Any], schema: dict[str, Any]) -> str:
    """What turns the value found into one that is allowed, where that is plain."""
    members = [_resolve(member, schema) for member in node.get("anyOf", [node])]
    listed = [member.get("enum", [member["const"]] if "const" in member else []) for member in members]
    types = {member.get("type") for member in members if "const" not in member}
    hint = did_you_mean(found, [str(value) for values in listed for value in values])
    if hint or any("enum" in member for member in members):
        return hint
    if isinstance(found, float) and found.is_integer() and "integer" in types:
        return f"; write {int(found)}"
    if isinstance(found, str):
        if "boolean" in types and found.lower() in ("yes", "on", "no", "off"):
            return f"; write {'true' if found.lower() in ('yes', 'on') else 'false'}"
        return "; leave the quotes out" if types & _type_of(found) else ""
    return "; put it in quotes" if "string" in types and isinstance(found, bool | int | float) else ""


def _type_of(text: str) -> set[str]:
    """The JSON types of what `text` would be without quotes."""
    try:
        value = parse_yaml(text, "").values
    except MtlError:
        return set()
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int):
        return {"integer", "number"}
    return {"number"} if isinstance(value, float) else set()


def _follow(schema: dict[str, Any], location: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The schema at `location`, and the part of `location` that names keys (union members are left out)."""
    node, keys = _resolve(schema, schema), []
    for part in location:
        if part in node.get("properties", {}):
            node = _resolve(node["properties"][part], schema)
        elif part.isdigit() and ("items" in node or "prefixItems" in node):
            node = _resolve(node.get("items") or node["prefixItems"][0], schema)
        elif isinstance(node.get("additionalProperties"), dict):
            node = _resolve(node["additionalProperties"], schema)
        elif "anyOf" in node:
            continue
        else:
            node = {}
        keys.append(part)
    return node, keys


def _resolve(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    reference = node.get("$ref")
    return schema["$defs"][reference.rsplit("/", 1)[1]] if reference else node


_NOUNS = {
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "boolean": "true or false",
    "null": "null",
    "object": "a map",
}


def _describe(node: dict[str, Any], schema: dict[str, Any]) -> str:
    """What a value may be, in words: `a number > 0`, `one of a, b`, `a list of whole numbers >= 1`."""
    node = _resolve(node, schema)
    if "anyOf" in node:
        return " or ".join(_describe(member, schema) for member in node["anyOf"])
    if "enum" in node:
        return "one of " + ", ".join(str(value) for value in node["enum"])
    if "const" in node:
        return str(node["const"])
    if "prefixItems" in node:
        return f"a list of {len(node['prefixItems'])} ({', '.join(_describe(n, schema) for n in node['prefixItems'])})"
    if node.get("type") == "array":
        least = f"at least {node['minItems']} in number, " if node.get("minItems") else ""
        return f"a list ({least}each {_describe(node.get('items', {}), schema)})"
    if node.get("type") == "object" and isinstance(node.get("additionalProperties"), dict):
        return f"a map of names to {_describe(node['additionalProperties'], schema)}"
    noun = _NOUNS.get(str(node.get("type")), "a value")
    bounds = [
        f"{sign} {node[key]}"
        for key, sign in (("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="), ("exclusiveMaximum", "<"))
        if key in node
    ]
    return " ".join((noun, " and ".join(bounds))).strip()


def known_keys(cls: type[Options]) -> tuple[str, ...]:
    """The names of the options of `cls`."""
    return tuple(cls.model_fields)
