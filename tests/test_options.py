"""Options: every option of everything that is registered refuses what it does not take, and says where and why."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from mtlcli import recipe, registry
from mtlcli.errors import MtlError
from mtlcli.models.heads import HeadOptions
from mtlcli.options import Options, check, fields, parse

KINDS: tuple[registry.Registry[Any], ...] = (
    registry.datasets,
    registry.encoders,
    registry.trunks,
    registry.loss_weightings,
    registry.gradient_weightings,
    registry.optimizers,
    registry.schedules,
)
CLASSES: list[type[Options]] = [among.get(name).Options for among in KINDS for name in among.names()]
CLASSES += [recipe.DataSection, recipe.GradientSection, recipe.TrainSection, recipe.PluginsAndMetrics, HeadOptions]
CASES = [(cls, field.name) for cls in dict.fromkeys(CLASSES) for field in fields(cls)]
ODD: list[Any] = [None, True, "x", "3", 3, -1, 0, 1.5, 1e3, float("inf"), float("nan"), [], [1], ["x"], {}, {"a": 1}]
ODD += [[[]], [{}], {"a": {}}, {"a": [1]}, 10**30, -(10**30), 1e-300, "", "é\n" * 100, object()]


@pytest.mark.parametrize(("cls", "name"), CASES, ids=lambda value: getattr(value, "__qualname__", value))
def test_an_odd_value_is_taken_or_refused_with_its_path(cls: type[Options], name: str) -> None:
    for value in ODD:
        options, problems = check(cls, {name: value}, "section")
        if any(problem.path.startswith(f"section.{name}") for problem in problems):
            assert options is None
            for problem in problems:
                assert "\n" not in problem.message
                assert len(problem.message) < 500
                assert (
                    problem.message.startswith(("should ", "is required", "unknown key")) or "needs" in problem.message
                )
        elif options is not None:
            taken = options.model_dump()[name]
            assert type(options).model_validate(options.model_dump()) == options
            assert not isinstance(taken, float) or abs(taken) < float("inf")


@pytest.mark.parametrize("cls", list(dict.fromkeys(CLASSES)), ids=lambda cls: cls.__qualname__)
def test_defaults_survive_json(cls: type[Options]) -> None:
    required = {field.name for field in fields(cls) if field.required}
    if not required:
        again, problems = check(cls, cls().model_dump(mode="json"))
        assert not problems
        assert again == cls()
    for field in fields(cls):
        assert field.allowed != "a value"


class Inner(Options):
    deep: int = Field(1, ge=1)


class Some(Options):
    number: float = Field(1.0, gt=0, le=2)
    choice: Literal["mean", "sum"] = "mean"
    either: int | Literal["auto"] = "auto"
    pair: tuple[float, float] = (0.1, 0.2)
    widths: tuple[Annotated[int, Field(ge=1)], ...] = ()
    table: dict[str, Annotated[float, Field(ge=0)]] = {}  # noqa: RUF012
    inner: Inner = Inner()
    flag: bool = False
    text: str | None = None
    needed: int


@pytest.mark.parametrize(
    ("given", "path", "message"),
    [
        ({"number": 0}, "s.number", "should be a number > 0 and <= 2; found 0"),
        ({"number": "1"}, "s.number", "should be a number > 0 and <= 2; found '1'; leave the quotes out"),
        ({"number": True}, "s.number", "should be a number > 0 and <= 2; found true"),
        ({"number": float("nan")}, "s.number", "should be a number > 0 and <= 2; found .nan"),
        ({"choice": "men"}, "s.choice", "should be one of mean, sum; found 'men'; did you mean 'mean'?"),
        ({"either": "atuo"}, "s.either", "should be a whole number or auto; found 'atuo'; did you mean 'auto'?"),
        ({"either": 1.5}, "s.either", "should be a whole number or auto; found 1.5"),
        ({"pair": [1, 2, 3]}, "s.pair", "should be a list of 2 (a number, a number); found [1, 2, 3]"),
        ({"widths": [1, 0]}, "s.widths.1", "should be a whole number >= 1; found 0"),
        ({"widths": [2.0]}, "s.widths.0", "should be a whole number >= 1; found 2.0; write 2"),
        ({"table": {"a": -1}}, "s.table.a", "should be a number >= 0; found -1"),
        ({"table": {"a.b": -1}}, "s.table.a.b", "should be a number >= 0; found -1"),
        ({"inner": {"dep": 1}}, "s.inner.dep", "unknown key; did you mean 'deep'?; known here: deep"),
        ({"inner": {"deep": 0}}, "s.inner.deep", "should be a whole number >= 1; found 0"),
        ({"flag": "off"}, "s.flag", "should be true or false; found 'off'; write false"),
        ({"text": 3}, "s.text", "should be text or null; found 3; put it in quotes"),
        ({"needed": None}, "s.needed", "should be a whole number; found null"),
    ],
)
def test_messages(given: dict[str, Any], path: str, message: str) -> None:
    options, problems = check(Some, {"needed": 1, **given}, "s")
    assert options is None
    assert [(problem.path, problem.message) for problem in problems] == [(path, message)]


def test_every_problem_is_reported() -> None:
    _, problems = check(Some, {"number": 0, "choice": 1, "nuber": 2, "widths": [0, 0]}, also_known=("name",))
    assert {problem.path for problem in problems} == {"number", "choice", "nuber", "widths.0", "widths.1", "needed"}
    (unknown,) = (problem.message for problem in problems if problem.path == "nuber")
    assert unknown.startswith("unknown key; did you mean 'number'?; known here: number, choice")
    assert unknown.endswith(", name")

    _, (alone,) = check(Options, {"foo": 1})
    assert alone.message == "unknown key; it has no options"


def test_in_python_the_same_becomes_an_error() -> None:
    with pytest.raises(MtlError, match=r"loss weighting 'x': option number: should be a number > 0 and <= 2; found -1"):
        parse(Some, {"needed": 1, "number": -1}, "loss weighting 'x'")
    assert parse(Some, {"needed": 3}, "x").needed == 3


def test_options_are_frozen() -> None:
    from pydantic import ValidationError

    with pytest.raises(ValidationError):
        parse(Some, {"needed": 1}, "x").needed = 2


def test_what_mtl_list_shows() -> None:
    shown = {field.name: (field.allowed, field.default, field.required) for field in fields(Some)}
    assert shown["number"] == ("a number > 0 and <= 2", 1.0, False)
    assert shown["pair"] == ("a list of 2 (a number, a number)", (0.1, 0.2), False)
    assert shown["inner"] == ("a map", {"deep": 1}, False)
    assert shown["needed"] == ("a whole number", None, True)
