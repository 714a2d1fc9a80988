"""The contract of a logger, and what it is given: events as flat names and numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from mtlcli.options import Options as AnyOptions
from mtlcli.runs import Run


class Logger(ABC):
    """Sends a run's numbers somewhere. Register with `@mtlcli.registry.loggers.register("name")`.

    Its package is imported when the run begins, in `__init__`, so that recipes without it never pay for it. Whatever an
    instance raises while the run goes on ends the logging, not the run.

    Args:
        options: checked options.
        run: the run directory.
        settings: the resolved recipe, dotted path -> value.
        step: the step that the run begins or goes on with.
    """

    name: ClassVar[str]
    package: ClassVar[str | None] = None  # the module that has to be installed, if any
    extra: ClassVar[str | None] = None  # the extra of mtlcli that installs it
    Options: ClassVar[type[AnyOptions]] = AnyOptions

    @abstractmethod
    def __init__(self, options: Any, run: Run, settings: Mapping[str, Any], step: int) -> None: ...

    @abstractmethod
    def write(self, values: Mapping[str, float], step: int) -> None:
        """Record `values`, by names such as `loss/income`, at `step`."""

    @abstractmethod
    def close(self, status: str) -> None:
        """The run has ended as `status` says: finished, interrupted or failed."""


def scalars(event: Mapping[str, Any]) -> tuple[int, dict[str, float]] | None:
    """The step and the numbers of a line of events.jsonl, by names with slashes; None where it has none."""
    kind = event["event"]
    if kind == "Finished":
        result = event["result"]
        return result["steps"], dict(_scores("test", result["tasks"]))
    if "step" not in event or kind == "Started":
        return None
    values: dict[str, Any] = {}
    if kind == "StepDone":
        values |= {f"loss/{task}": value for task, value in event["losses"].items()}
        values |= {f"weight/{task}": value for task, value in event["weights"].items()}
        values |= {"lr": event["lr"], "step_ms": event["step_ms"]}
    elif kind == "EpochDone":
        values |= {f"epoch_loss/{task}": value for task, value in event["losses"].items()}
        values |= {**dict(_scores("val", event["val"])), "score": event["score"], "seconds": event["seconds"]}
        values |= {f"count/{what}": count for what, count in event["counts"].items()}
    elif kind == "Diagnostics":
        tasks = event["tasks"]
        for i, one in enumerate(tasks):
            for j, other in enumerate(tasks[:i]):
                values[f"cosine/{other}/{one}"] = event["cosines"][i][j]
        values["condition"] = event["condition"]
    return event["step"], {name: float(value) for name, value in values.items() if value is not None}


def _scores(split: str, tasks: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for task, found in tasks.items():
        if found["loss"] is not None:
            yield f"{split}/{task}/loss", found["loss"]
        for name, metric in found["metrics"].items():
            if metric["value"] is not None:
                yield f"{split}/{task}/{name}", metric["value"]
