"""Search spaces: where tuning looks for the value of an option. An option declares its own, on its field."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtlcli.options import Options

_KEY = "searched"  # in a field's JSON schema


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; with `log` their logarithms are equally likely."""

    low: float
    high: float
    log: bool = False
    whole: bool = False  # whole numbers alone
    start: float | None = None  # the first value of an option that has no default

    def holding(self, value: Any) -> Range | None:
        """The range, widened where `value` lies outside. None where it cannot be widened so far: a text, or a number
        that has no logarithm, is a decision and no point of a range."""
        if isinstance(value, bool) or not isinstance(value, int | float) or (self.log and value <= 0):
            return None
        return replace(self, low=min(self.low, value), high=max(self.high, value))

    def readable(self, value: float) -> float:
        """`value` with four significant digits, within the range."""
        if self.whole or value == 0:
            return value
        short = round(value, 3 - math.floor(math.log10(abs(value))))
        return min(max(short, self.low), self.high)

    def as_json(self) -> dict[str, Any]:
        """Plain values, as in report.json."""
        return {"low": self.low, "high": self.high, "log": self.log}


@dataclass(frozen=True)
class Choice:
    """One of some values: texts, numbers, true and false, or null."""

    values: tuple[Any, ...]
    start: Any = None  # the first value of an option that has no default

    def holding(self, value: Any) -> Choice | None:
        """The choice, with `value` among its values. None for a list or a map, which cannot be one of the choices."""
        if isinstance(value, list | dict):
            return None
        return self if value in self.values else replace(self, values=(value, *self.values))

    def readable(self, value: Any) -> Any:
        """`value` itself."""
        return value

    def as_json(self) -> dict[str, Any]:
        """Plain values, as in report.json."""
        return {"choices": list(self.values)}


Search = Range | Choice


def searched(low: float, high: float, log: bool = False) -> dict[str, Any]:
    """A field's `json_schema_extra`: its value is looked for from `low` to `high`.

    The range lies within the field's own bounds, contains its default, and reaches about as far to either side as
    people have gone: `Field(2.0, gt=0, description=..., json_schema_extra=searched(0.5, 8, log=True))`.
    """
    return {_KEY: {"low": low, "high": high, "log": log}}


def searched_among(*values: Any) -> dict[str, Any]:
    """A field's `json_schema_extra`: its value is one of `values`, which contain its default."""
    return {_KEY: {"choices": list(values)}}


def declared(cls: type[Options]) -> dict[str, Search]:
    """Where to look for each option of `cls` whose field says so, by name."""
    found: dict[str, Search] = {}
    for name, info in cls.model_fields.items():
        extra = info.json_schema_extra
        about: Any = extra.get(_KEY) if isinstance(extra, dict) else None
        if about is None:
            continue
        if "choices" in about:
            found[name] = Choice(tuple(about["choices"]))
        else:
            found[name] = Range(**about, whole=info.annotation is int)
    return found


def words(about: Mapping[str, Any]) -> str:
    """`as_json()` in words: `0.001 to 0.1, log`, or `one of a, b`."""
    from mtlcli.yamlfile import show

    if "choices" in about:
        return f"one of {', '.join(c if isinstance(c, str) else show(c) for c in about['choices'])}"
    return f"{about['low']:g} to {about['high']:g}{', log' if about['log'] else ''}"
