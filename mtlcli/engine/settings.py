"""Whether the settings of a step fit each other and its methods. Every failure is an MtlError that says what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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


def misfits(
    gradient: type[GradientWeighting], wrt: Anchor, every: int, smooth: float, grouped: bool
) -> Iterator[tuple[str, str]]:
    """Settings that a method cannot serve, or that exclude each other: which one, and what to do.

    Args:
        grouped: whether parameters are divided into several groups.
    """
    name = gradient.name
    if gradient.reads != "nothing" and wrt not in gradient.allowed_anchors():
        reason = (
            f"the gradients that '{name}' brings together from several batches have no entry in common"
            if wrt == "representation"
            else f"'{name}' mixes the gradients themselves and has no weights to carry over"
        )
        yield "wrt", f"should be {' or '.join(gradient.allowed_anchors())}: {reason}; found {wrt}"
    if not gradient.gives_weights():
        reason = f"'{name}' mixes the gradients themselves and has no weights to reuse or to average"
        if every > 1:
            yield "every", f"should be 1: {reason}; found {every}"
        if smooth > 0:
            yield "smooth", f"should be 0: {reason}; found {smooth}"
    if grouped and wrt != "params":
        yield "groups", f"divide the gradients at parameters, and so need wrt: params; found wrt: {wrt}"


def check_fit(
    loss: LossWeighting,
    gradient: GradientWeighting,
    wrt: Anchor,
    every: int,
    smooth: float,
    grouped: bool,
    shared: Sequence[Tensor],
    last_shared: Sequence[Tensor],
) -> None:
    """Both methods with each other, and with the settings and parameters of a step that acts on task gradients."""
    for objection in objections(type(loss), loss.options, type(gradient), gradient.options):
        raise MtlError(objection)
    for setting, message in misfits(type(gradient), wrt, every, smooth, grouped):
        raise MtlError(f"{setting}: {message}")
    if wrt == "params" and not shared:
        raise MtlError(f"gradient weighting '{gradient.name}' needs trainable shared parameters; this model has none")
    if wrt == "last_shared" and not last_shared:
        raise MtlError("wrt: last_shared needs the parameters of the last shared layer; none are known here")
