"""TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtlcli.loggers.base import Logger
from mtlcli.options import Options as AnyOptions
from mtlcli.registry import loggers
from mtlcli.runs import Run


@loggers.register("tensorboard")
class TensorBoard(Logger):
    """Write TensorBoard's event files into the run directory, under `tensorboard/`.

    `tensorboard --logdir runs` shows all runs side by side. A resumed run goes on in the same folder, and what was
    recorded beyond the checkpoint is dropped.
    """

    package = extra = "tensorboard"

    def __init__(self, options: AnyOptions, run: Run, settings: Mapping[str, Any], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=step)
        lines = "\n".join(f"    {key}: {value}" for key, value in settings.items())
        self._writer.add_text("recipe", lines, step)

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Record `values` at `step`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, status: str) -> None:
        """Close the file."""
        self._writer.close()
