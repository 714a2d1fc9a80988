"""Where tuning looks for the options of weightings: laws over both registries, and what a space holds."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import Field

from mtlcli import options, registry
from mtlcli.options import Options
from mtlcli.search import Choice, Range, declared, searched, searched_among, words

TASKS = ("yes", "which.amount")  # the name of a task may hold a dot
SHIPPED: list[Any] = [
    cls
    for among in (registry.loss_weightings, registry.gradient_weightings)
    for cls in map(among.get, among.names())  # type: ignore[attr-defined]
    if cls.__module__.startswith("mtlcli.")
]
NAMES = [cls.name for cls in SHIPPED]


def accepted(cls: type[Options], key: str, value: Any) -> bool:
    """Whether the options take `value` at `OPTION` or `OPTION.KEY`."""
    option, dot, entry = key.partition(".")
    return not options.check(cls, {option: {entry: value} if dot else value})[1]


@pytest.mark.parametrize("cls", SHIPPED, ids=NAMES)
def test_a_space_lies_within_the_bounds_and_holds_the_default(cls: Any) -> None:
    defaults = {name: info.default for name, info in cls.Options.model_fields.items() if not info.is_required()}
    for key, search in cls.search_space(TASKS).items():
        points = search.values if isinstance(search, Choice) else (search.low, search.high)
        assert all(accepted(cls.Options, key, point) for point in points), key
        default = defaults.get(key, search.start)
        assert search.holding(default) == search, key
        if isinstance(search, Range):
            assert search.low < search.high
            assert search.low > 0 or not search.log


@pytest.mark.parametrize("cls", SHIPPED, ids=NAMES)
def test_what_people_tune_is_searched(cls: Any) -> None:
    tuned = {"lr", "outer_lr", "inner_lr", "temperature", "alpha", "c", "beta", "rho", "gamma", "momentum", "mu"}
    assert tuned & set(cls.Options.model_fields) <= set(cls.search_space(TASKS))


def test_the_honest_baselines_say_so() -> None:
    honest = {cls.name for cls in SHIPPED if getattr(cls, "honest_baseline", False)}
    assert honest == {"ew", "si", "constant"}
    spaces = registry.loss_weightings.get("constant").search_space(TASKS)
    assert spaces == {f"weights.{task}": Range(0.1, 10, log=True, start=1) for task in TASKS}


def test_a_range_is_widened_to_what_the_recipe_has() -> None:
    log, whole = Range(0.1, 10, log=True), Range(1, 4, whole=True)
    assert log.holding(100) == Range(0.1, 100, log=True)
    assert whole.holding(0) == Range(0, 4, whole=True)
    assert [log.holding(value) for value in (0, -1, "max_min", None, True)] == [None] * 5
    assert Choice(("a", "b")).holding("c") == Choice(("c", "a", "b"))
    assert Choice((None, 0.9)).holding(None) == Choice((None, 0.9))
    assert Choice(("a",)).holding({"b": 1}) is None


def test_drawn_values_are_readable_and_stay_inside() -> None:
    assert Range(0.001, 0.1, log=True).readable(0.0123456) == 0.01235
    assert Range(0.00123456, 1, log=True).readable(0.00123457) == 0.001235
    assert Range(0, 0.0123456).readable(0.01234559) == 0.0123456
    assert Range(1, 4, whole=True).readable(3) == 3
    assert Range(-2, 2).readable(0) == 0


def test_a_space_is_declared_on_the_field_and_said_in_words() -> None:
    class Declared(Options):
        """Two that are searched, and one that is not."""

        rate: float = Field(0.01, gt=0, json_schema_extra=searched(1e-3, 0.1, log=True))
        count: int = Field(2, json_schema_extra=searched(1, 4))
        kind: str | None = Field(None, json_schema_extra=searched_among(None, "a"))
        other: float = Field(1.0)

    found = declared(Declared)
    assert found == {
        "rate": Range(1e-3, 0.1, log=True),
        "count": Range(1, 4, whole=True),
        "kind": Choice((None, "a")),
    }
    assert [words(search.as_json()) for search in found.values()] == ["0.001 to 0.1, log", "1 to 4", "one of null, a"]
    by_name = {field.name: field.searched for field in options.fields(Declared)}
    assert by_name["rate"] == {"low": 1e-3, "high": 0.1, "log": True}
    assert by_name["other"] is None
