"""Weightings and a trunk that do to a run what a test needs; registered by `plugins: [.../plugin.py]`."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from pydantic import Field
from torch import Tensor

import mtlcli
from mtlcli.data.base import Inputs
from mtlcli.models.base import Features
from mtlcli.models.trunks.hps import HardSharing
from mtlcli.search import searched
from mtlcli.weighting.base import LossWeighting, StepView


@mtlcli.loss_weightings.register("slow")
class Slow(LossWeighting):
    """Equal weights; waits as long as the environment says, which no result depends on."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        time.sleep(float(os.environ.get("SLOW_START", "0")))

    def forward(self, step: StepView) -> Tensor:
        time.sleep(float(os.environ.get("SLOW_STEP", "0")))
        return step.losses


@mtlcli.loss_weightings.register("breaks")
class Breaks(LossWeighting):
    """Fails in the third step."""

    def forward(self, step: StepView) -> Tensor:
        if step.clock.step == 2:
            raise RuntimeError("broken on purpose")
        return step.losses


@mtlcli.loss_weightings.register("fragile")
class Fragile(LossWeighting):
    """Equal weights; fails with any strength but its default."""

    class Options(mtlcli.Options):
        """Options of fragile."""

        strength: float = Field(1.0, ge=1, json_schema_extra=searched(1.0, 100.0))

    def forward(self, step: StepView) -> Tensor:
        if self.options.strength > 1:
            raise RuntimeError("too strong")
        return step.losses


@mtlcli.loss_weightings.register("prints")
class Prints(LossWeighting):
    """Prints where it should not."""

    def forward(self, step: StepView) -> Tensor:
        print("a plugin's own words")
        return step.losses


@mtlcli.loss_weightings.register("needs_held_out")
class NeedsHeldOut(LossWeighting):
    """Equal weights; asks for held-out rows."""

    needs = frozenset({"held_out"})

    def forward(self, step: StepView) -> Tensor:
        return step.losses


@mtlcli.trunks.register("no_cut")
class NoCut(HardSharing):
    """Hard sharing that says it has no cut."""

    has_cut = False

    def forward(self, inputs: Inputs) -> Features:
        return super().forward(inputs)._replace(cut=())


if "KILL_AT_RENAME" in os.environ:  # end without warning between writing a file and giving it its name
    _replace, _left = os.replace, int(os.environ["KILL_AT_RENAME"])

    def _killing(*arguments: Any, **keywords: Any) -> None:
        global _left
        _left -= 1
        if _left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        _replace(*arguments, **keywords)

    os.replace = _killing  # type: ignore[assignment]
