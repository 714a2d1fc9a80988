"""Finished runs, read back: their scores, their cost and their recipes as plain values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtlcli import yamlfile
from mtlcli.comparison.improvement import Metric, Values
from mtlcli.errors import MtlError
from mtlcli.runs import Run
from mtlcli.yamlfile import flatten

NO_EFFECT = ("train.log_every_steps", "train.checkpoint_every_steps")  # keys that no result depends on
# What is relied on; the value of a metric and every cost are numbers besides, or null where they are not known.
_KINDS = {"method": str, "seed": int, "dataset": str, "fingerprint": str, "tasks": dict, "cost": dict}
_METRIC_KINDS = {"unit": str, "higher_is_better": bool}


@dataclass(frozen=True)
class Finished:
    """A finished run, read back."""

    path: Path
    settings: Mapping[str, Any]  # dotted path -> value, of its resolved recipe
    result: Mapping[str, Any]
    metrics: Mapping[Metric, Mapping[str, Any]]  # value, unit, higher_is_better

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that it was trained on."""
        return tuple(self.result["tasks"])

    @property
    def values(self) -> dict[Metric, float | None]:
        """The test score by task and metric."""
        return {metric: about["value"] for metric, about in self.metrics.items()}

    def identity(self) -> str:
        """What its result follows from but the seed: runs that share it are seeds of one method."""
        rest = {k: v for k, v in self.settings.items() if k not in ("train.seed", *NO_EFFECT) and not _is_neutral(v)}
        return repr(sorted(rest.items()))


@dataclass(frozen=True)
class Outcome:
    """What one method reached with one seed: a run, or a set of single-task runs taken together."""

    seed: int
    values: Values
    cost: Mapping[str, float | None]
    counts: Mapping[str, int]  # solver fallbacks by event
    runs: tuple[Path, ...]


def read_runs(paths: Sequence[Path]) -> list[Finished]:
    """Read finished runs; raises as `read_run` does for the first that cannot be read."""
    return [read_run(path) for path in paths]


def read_run(path: Path) -> Finished:
    """Read a finished run. Raises MtlError for a folder that is not a run, has no result, or a damaged one."""
    run = Run.open(path)
    result = run.result()
    try:
        metrics = _metrics(result)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise MtlError(f"{run.result_file}: was not written by mtl, or is damaged ({error!r})") from None
    # The resolved recipe as plain values: nothing is checked again, and torch is not needed.
    settings = yamlfile.read(run.recipe_file).values
    if not isinstance(settings, dict):
        raise MtlError(f"{run.recipe_file}: was not written by mtl, or is damaged")
    return Finished(run.path, flatten(settings), result, metrics)


def _metrics(result: Mapping[str, Any]) -> dict[Metric, Mapping[str, Any]]:
    """Value, unit and direction by task and metric. Raises what Python does where a result is not as mtl writes it: a
    wrong type has to be found here, where the file is known, and not in a sum over several runs."""
    _of_kinds(result, _KINDS, "")
    metrics: dict[Metric, Mapping[str, Any]] = {}
    counts = result.get("counts") or {}
    _of_kinds(counts, dict.fromkeys(counts, int), "counts.")
    numbers = {f"cost.{key}": value for key, value in result["cost"].items()}
    for task, scores in result["tasks"].items():
        for name, metric in scores["metrics"].items():
            _of_kinds(metric, _METRIC_KINDS, f"{task}.{name}.")
            metrics[task, name] = {key: metric[key] for key in ("value", *_METRIC_KINDS)}
            numbers[f"{task}.{name}"] = metric["value"]
    for what, number in numbers.items():
        if number is not None and (isinstance(number, bool) or not math.isfinite(number)):
            raise ValueError(f"{what} is {number!r}")
    if not result["tasks"]:
        raise ValueError("tasks is {}")
    return metrics


def _of_kinds(values: Mapping[str, Any], kinds: Mapping[str, type], above: str) -> None:
    for key, kind in kinds.items():
        if type(values[key]) is not kind:  # True is not a seed
            raise TypeError(f"{above}{key} is {values[key]!r}")


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys that do not have the same value everywhere, in the order of the recipe."""
    keys = dict.fromkeys(key for each in settings for key in each)
    return [
        key
        for key in keys
        if key not in ("train.seed", *NO_EFFECT)
        and any(each.get(key) != settings[0].get(key) for each in settings)
        and not all(_is_neutral(each.get(key)) for each in settings)
    ]


def _is_neutral(value: Any) -> bool:
    """Whether a key with this value does as much as one that is not there: older versions did not write newer keys."""
    return not value


def protocols(runs: Sequence[Finished]) -> list[Mapping[str, Any]]:
    """The recipes of `runs` as far as they say how they were trained.

    A single task shares nothing, so its trunk is not part of that: it counts as the trunk of the others.
    """
    joint = max(runs, key=lambda run: len(run.tasks))
    trunk = {key: value for key, value in joint.settings.items() if key.startswith("model.trunk.")}
    return [run.settings if len(run.tasks) == len(joint.tasks) else {**run.settings, **trunk} for run in runs]
