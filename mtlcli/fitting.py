"""What the sections of a recipe ask of each other: a list of problems for each pair of sections."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtlcli import registry
from mtlcli.options import Problem

if TYPE_CHECKING:
    from mtlcli.recipe import DataSection, GradientSection, Part


def held_out(loss: Part, data: DataSection) -> list[Problem]:
    """Held-out rows, where the loss weighting needs them."""
    if "held_out" in registry.loss_weightings.get(loss.name).needs_with(loss.options) and data.held_out == 0:
        return [Problem("data.held_out", f"'{loss.name}' needs held-out rows; set it above 0, such as 0.1; found 0")]
    return []


def idle(loss: Part, epochs: int) -> list[str]:
    """What to tell of a loss weighting that training ends before it begins."""
    begins = registry.loss_weightings.get(loss.name).begins(loss.options)
    if begins < epochs:
        return []
    return [
        f"'{loss.name}' begins in epoch {begins + 1}, and training ends after {epochs}: until then it does not weigh "
        f"tasks as it is meant to; train longer, or let it begin earlier (mtl list losses {loss.name})"
    ]


def extra_batches(gradient: Part, data: DataSection) -> list[Problem]:
    """Further batches, where the gradient weighting needs them."""
    wanted = registry.gradient_weightings.get(gradient.name).extra_batches
    if data.extra_batches >= wanted:
        return []
    what = f"should be {wanted}: '{gradient.name}' needs gradients of batches that do not depend on each other"
    return [Problem("data.extra_batches", f"{what}; found {data.extra_batches}")]


def pair(loss: Part, gradient: Part) -> list[Problem]:
    """Two weightings that make no sense together."""
    from mtlcli.weighting.base import objections

    loss_class, gradient_class = (
        registry.loss_weightings.get(loss.name),
        registry.gradient_weightings.get(gradient.name),
    )
    found = objections(loss_class, loss.options, gradient_class, gradient.options)
    return [Problem("weighting", objection) for objection in found]


def engine(gradient: Part, settings: GradientSection, trunk: Part) -> list[Problem]:
    """Settings of the engine that the method or the trunk cannot serve."""
    from mtlcli.engine.settings import misfits

    method = registry.gradient_weightings.get(gradient.name)
    found = dict(misfits(method, settings.wrt, settings.every, settings.smooth, settings.groups != "all"))
    if settings.wrt == "representation" and not registry.trunks.get(trunk.name).has_cut:
        able = [name for name in registry.trunks.names() if registry.trunks.get(name).has_cut]
        found["wrt"] = (
            f"representation needs one tensor between trunk and heads; trunk '{trunk.name}' has none "
            f"(these have: {', '.join(able)}); use wrt: params"
        )
    return [Problem(f"weighting.gradient.{setting}", message) for setting, message in found.items()]
