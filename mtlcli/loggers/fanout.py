"""All loggers of a run as one. None of them can stop the training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from mtlcli.errors import MtlError
from mtlcli.loggers.base import Logger, scalars
from mtlcli.registry import loggers
from mtlcli.runs import Run

if TYPE_CHECKING:
    from mtlcli.recipe import Part


class Fanout:
    """Opens every logger that a recipe asks for and hands each of them every event.

    Raises MtlError where one cannot be opened, which is before the first step.
    """

    def __init__(self, parts: Sequence[Part], run: Run, settings: Mapping[str, Any], step: int) -> None:
        self._loggers: dict[str, Logger] = {}
        for part in parts:
            try:
                self._loggers[part.name] = loggers.get(part.name)(part.options, run, settings, step)
            except Exception as error:  # whatever a service's client raises: no login, no network, no such project
                self.close("failed")
                raise MtlError(f"log.{part.name}: cannot begin: {_short(error)}") from error

    def write(self, event: Mapping[str, Any]) -> Iterator[str]:
        """Record an event; yields a message for every logger that fails, which then gets nothing more."""
        found = scalars(event)
        if found is None:
            return
        step, values = found
        for name, logger in list(self._loggers.items()):
            try:
                logger.write(values, step)
            except Exception as error:  # a lost connection must not lose a night's work
                del self._loggers[name]
                yield f"log.{name} stopped at step {step}, the training goes on: {_short(error)}"

    def close(self, status: str) -> None:
        """The run has ended; what a logger raises now changes nothing any more."""
        for logger in self._loggers.values():
            with suppress(Exception):
                logger.close(status)
        self._loggers.clear()


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
