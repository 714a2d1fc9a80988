"""What weightings that serve one task before others have in common."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from mtlcli.errors import OptionError, did_you_mean
from mtlcli.weighting.base import Params


def index_of(name: str | None, tasks: tuple[str, ...], option: str) -> int:
    """Where `name` stands among `tasks`; the first where it is None. Raises OptionError for an unknown name."""
    if name is None:
        return 0
    if name not in tasks:
        raise OptionError(option, f"no task '{name}'{did_you_mean(name, tasks)}; tasks: {', '.join(tasks)}")
    return tasks.index(name)


def restricted(gradient: Params, to: Iterable[str]) -> Params:
    """The part of `gradient` that belongs to the parameters named in `to`."""
    return {name: gradient[name] for name in to}


def inner(a: Params, b: Params) -> Tensor:
    """Inner product () in float64, over the parameters in `a`."""
    products = [torch.dot(a[name].double().flatten(), b[name].double().flatten()) for name in a]
    return torch.stack(products).sum()


def norm(a: Params) -> Tensor:
    """Euclidean length () in float64."""
    lengths: list[Tensor] = [torch.linalg.vector_norm(value.double()) for value in a.values()]
    length: Tensor = torch.linalg.vector_norm(torch.stack(lengths))
    return length
