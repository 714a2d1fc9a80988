"""Whether the settings of a step fit each other and its methods. Every failure is an MtlError that says what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from torch import Tensor

from mtlcli.errors import MtlError
from mtlcli.weighting.base import Anchor, GradientWeighting, LossWeighting, objections


def check_ranges(wrt: Anchor, every: int, smooth: float) -> None:
    """Each by itself."""
    for setting, value, fits, expected in (
        ("wrt", wrt, wrt in get_args(Anchor), " or ".join(get_args(Anchor))),
        ("every", every, type(every) is int and every >= 1, "a whole number of at least 1"),
        ("smooth", smooth, isinstance(smooth, int | float) and 0 <= smooth < 1, "from 0 to below 1"),
    ):
        if not fits:
            raise MtlError(f"{setting}: should be {expected}; found {value!r}")


def check_fit(
    loss: LossWeighting,
    gradient: GradientWeighting,
    wrt: Anchor,
    every: int,
    smooth: float,
    shared: Sequence[Tensor],
    last_shared: Sequence[Tensor],
) -> None:
    """Both methods with each other, and with the settings and parameters of a step that acts on task gradients."""
    name = gradient.name
    for objection in objections(type(loss), loss.options, type(gradient), gradient.options):
        raise MtlError(objection)
    if wrt not in gradient.allowed_anchors():
        raise MtlError(f"wrt: {wrt} does not go with '{name}'; use {' or '.join(gradient.allowed_anchors())}")
    if wrt == "params" and not shared:
        raise MtlError(f"gradient weighting '{name}' needs trainable shared parameters; this model has none")
    if wrt == "last_shared" and not last_shared:
        raise MtlError("wrt: last_shared needs the parameters of the last shared layer; none are known here")
    for setting, wanted in (("every above 1", every > 1), ("smooth", smooth > 0)):
        if wanted and not gradient.gives_weights():
            raise MtlError(f"{setting} needs weights, and '{name}' mixes the gradients themselves; leave it out")
