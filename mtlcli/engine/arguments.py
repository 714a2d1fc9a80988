"""What a person hands to a `Balancer`, held against what it should be. Every failure is an MtlError that says so."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

from torch import Tensor, nn

from mtlcli.errors import MtlError
from mtlcli.tasks import named


def names(given: Any) -> tuple[str, ...]:
    """Tasks, in an order that means something."""
    found = named(given)
    if found is None:
        raise MtlError(f"Balancer: tasks should be a list of different names; found {given!r}")
    return found


def parameters(argument: str, given: Any) -> list[nn.Parameter]:
    """Parameters, of a module or from anywhere."""
    several = isinstance(given, Iterable) and not isinstance(given, nn.Module | Tensor | str)
    found = list(given) if several else [given]
    wrong = [each for each in found if not several or not isinstance(each, Tensor)]
    if wrong:
        raise MtlError(
            f"Balancer: {argument} should be a list of parameters, such as module.parameters(); found "
            f"{type(wrong[0]).__name__}"
        )
    return found


def trainable(argument: str, given: Any) -> list[nn.Parameter]:
    """Those of the parameters that are not frozen."""
    return [p for p in parameters(argument, given) if p.requires_grad]


def groups(given: Any) -> list[list[nn.Parameter]]:
    """Lists of parameters, without frozen ones; None counts as nothing given."""
    if given is not None and not isinstance(given, Iterable):
        raise MtlError(f"Balancer: groups should be a list of lists of parameters; found {type(given).__name__}")
    return [trainable(f"groups[{i}]", group) for i, group in enumerate(given or ())]


def mapping(argument: str, given: Any) -> Mapping[str, Any]:
    """A dict; None is an empty one."""
    if given is not None and not isinstance(given, Mapping):
        raise MtlError(f"Balancer: {argument} should be a dict; found {type(given).__name__}")
    return given or {}


def number(argument: str, given: Any, least: int) -> None:
    """A number of at least `least`."""
    if isinstance(given, bool) or not isinstance(given, Real) or not least <= float(given) < math.inf:
        raise MtlError(f"Balancer: {argument} should be a number of at least {least}; found {given!r}")


def function(argument: str, given: Any) -> None:
    """Something to call later, as often as is needed; None counts as nothing given."""
    if given is not None and not callable(given):
        raise MtlError(
            f"backward: {argument} should be a function without arguments, which computes anew when it is called; "
            f"found {type(given).__name__}"
        )


def functions(argument: str, given: Any) -> None:
    """A list of such functions."""
    if not isinstance(given, Sequence):
        raise MtlError(f"backward: {argument} should be a list of functions; found {type(given).__name__}")
    for i, each in enumerate(given):
        function(f"{argument}[{i}]", each)


def tensors(argument: str, given: Any) -> list[Tensor]:
    """One tensor or several."""
    found = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    wrong = [each for each in found if not isinstance(each, Tensor)]
    if wrong:
        raise MtlError(f"backward: {argument} should be a tensor or a list of them; found {type(wrong[0]).__name__}")
    if len({id(each) for each in found}) < len(found):
        raise MtlError(f"backward: {argument} should hold each tensor once")
    return found
