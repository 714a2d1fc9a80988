"""Weights & Biases."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from mtlcli.loggers.base import Logger
from mtlcli.options import Options as AnyOptions
from mtlcli.registry import loggers
from mtlcli.runs import Run


@loggers.register("wandb")
class WandB(Logger):
    """Send the run to Weights & Biases, or keep it under the run directory for `wandb sync`.

    A resumed run goes on under the same id. Steps are in the column `step`, since W&B's own counter cannot go back to a
    checkpoint.
    """

    package = extra = "wandb"

    class Options(AnyOptions):
        """Options of Weights & Biases."""

        project: str = Field("mtl", description="Project there.")
        entity: str | None = Field(None, description="User or team; null takes the account's default.")
        group: str | None = Field(None, description="Group of runs, such as a comparison's name.")
        tags: list[str] = Field([], description="Tags of the run.")
        mode: Literal["online", "offline"] = Field("online", description="offline keeps everything on disk.")

    def __init__(self, options: Any, run: Run, settings: Mapping[str, Any], step: int) -> None:
        import wandb

        origin = f"{run.path.resolve()} {run.info().get('started')}"
        self._run = wandb.init(
            project=options.project,
            entity=options.entity,
            group=options.group,
            tags=options.tags,
            mode=options.mode,
            name=run.path.name,
            id=hashlib.sha256(origin.encode()).hexdigest()[:16],
            resume="allow",
            dir=str(run.path),
            config=dict(settings),
            settings=wandb.Settings(silent=True, console="off"),
        )
        self._run.define_metric("*", step_metric="step")

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Record `values` at `step`."""
        self._run.log({**values, "step": step})

    def close(self, status: str) -> None:
        """End the run there; one that was interrupted or failed is marked so."""
        self._run.finish(exit_code=0 if status == "finished" else 1)
