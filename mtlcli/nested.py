"""Options that hold registered classes by names of their own, each class with its options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from mtlcli.options import Options, check
from mtlcli.registry import Registry

T = TypeVar("T")
Named = dict[str, tuple[type[T], Options]]


def read(among: Registry[T], values: Mapping[str, Mapping[str, Any]]) -> Named[T]:
    """Classes and their options, from plain values such as `{mine: {name: ..., ...}}`.

    Raises ValueError for the first that is wrong, as pydantic wants it.
    """
    found: Named[T] = {}
    for key, given in values.items():
        own = dict(given)
        name = own.pop("name", None)
        if name not in among.names():
            raise ValueError(f"should name {among.kind}s; {key}: {among.unknown(name)}")
        options, problems = check(among.get(name).Options, own, key)  # type: ignore[attr-defined]
        if options is None:
            wrong = "; ".join(f"{problem.path}: {problem.message}" for problem in problems)
            raise ValueError(f"should hold what each {among.kind} takes; {wrong}")
        found[key] = among.get(name), options
    return found


def plain(found: Named[Any]) -> dict[str, dict[str, Any]]:
    """Plain values again, with every default explicit."""
    return {key: {"name": cls.name, **options.model_dump(mode="json")} for key, (cls, options) in found.items()}
