"""Several datasets as one: each brings tasks with inputs of their own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from pydantic import Field, field_validator

from mtlcli import registry
from mtlcli.data.base import BaseSplit, Batch, Dataset, Inputs, JointFeatures, Loader, MultiTaskData
from mtlcli.errors import MtlError, OptionError
from mtlcli.options import Options as AnyOptions
from mtlcli.options import check
from mtlcli.registry import datasets
from mtlcli.tasks import Task

Policy = Literal["cycle", "shortest", "proportional", "temperature"]


@datasets.register("joint")
class Joint(Dataset):
    """Tasks from several datasets: a step has a batch of each, and one update for all.

    `sources` maps names to datasets with their options. A source with one task gives it the source's name; of several,
    each is called SOURCE_TASK. Every source's batch passes through the network by itself, so that a normalisation over
    the batch sees one source at a time. Sources with equal features (images of one size, say) share the whole network;
    where they differ, each has the encoder's first stage to itself, and a linear layer to a common width.

    `policy` says what happens where lengths differ, with `batch_size` rows of each source a step unless said otherwise:
    `cycle`: an epoch is as long as the longest source; shorter ones begin again, reshuffled.
    `shortest`: an epoch ends with the shortest source; of longer ones the next epoch takes the rows that follow.
    `proportional`: batches are as large as the sources are, and as many rows in sum, so that all end together.
    `temperature`: batch sizes in proportion to rows ** (1 / temperature); an epoch is as many rows as there are.

    Raises MtlError where a source cannot be read, OptionError for a source that does not exist.
    """

    class Options(AnyOptions):
        """The sources, and how their lengths meet."""

        sources: dict[str, dict[str, Any]] = Field(description="datasets with their options, by name")
        policy: Policy = Field("cycle", description="what happens where the sources have different lengths")
        temperature: float = Field(2.0, ge=1, description="1 is proportional to rows; large values are equal shares")

        @field_validator("sources")
        @classmethod
        def _known(cls, sources: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
            if not sources:
                raise ValueError("names no source; give at least one")
            return {source: _checked(source, dict(values)) for source, values in sources.items()}

    options: Options

    def load(self) -> MultiTaskData:
        """Every source in turn."""
        found: dict[str, MultiTaskData] = {}
        for source, values in self.options.sources.items():
            options = {key: value for key, value in values.items() if key != "name"}
            cls = registry.datasets.get(values["name"])
            built, _ = check(cls.Options, options)
            assert built is not None
            try:
                found[source] = cls(built).load()
            except OptionError as error:
                raise OptionError(f"sources.{source}.{error.option}", error.message) from None
        return combined(found, self.options.policy, self.options.temperature)


def combined(found: Mapping[str, MultiTaskData], policy: Policy, temperature: float) -> MultiTaskData:
    """Data of several sources as one.

    Raises MtlError where two tasks would have the same name, or a source has other splits.
    """
    names = {
        source: {t.name: source if len(data.tasks) == 1 else f"{source}_{t.name}" for t in data.tasks}
        for source, data in found.items()
    }
    tasks = [replace(task, name=names[source][task.name]) for source, data in found.items() for task in data.tasks]
    called = [task.name for task in tasks]
    for name in called:
        if called.count(name) > 1:
            raise MtlError(f"joint: two tasks would be called '{name}'; rename one of the sources")
    splits = {}
    for split in ("train", "val", "test"):
        parts = {
            source: Source(data.splits[split], dict(names[source]), {t.name: t for t in data.tasks})
            for source, data in found.items()
        }
        splits[split] = JointSplit(parts, policy, temperature)
    features = JointFeatures(
        {source: data.features for source, data in found.items()},
        {source: tuple(names[source].values()) for source in found},
    )
    digest = hashlib.sha256(json.dumps([[s, data.fingerprint] for s, data in found.items()]).encode())

    def augment(inputs: Inputs) -> Inputs:
        source = next(iter(inputs)).partition("/")[0]
        change = found[source].augment
        own = {name.partition("/")[2]: tensor for name, tensor in inputs.items()}
        return inputs if change is None else _joined(source, change(own))

    return MultiTaskData(
        tuple(tasks),
        features,
        splits,
        f"sha256:{digest.hexdigest()}",
        augment=augment if any(data.augment for data in found.values()) else None,
        notes=tuple(f"{source}: {note}" for source, data in found.items() for note in data.notes),
    )


@dataclass(frozen=True)
class Source:
    """One source's rows, and what its tasks are called here."""

    rows: BaseSplit
    names: Mapping[str, str]  # its own name of a task -> the name here
    tasks: Mapping[str, Task]  # by its own name

    def batch(self, source: str, batch: Batch) -> Batch:
        """The same rows as a part of a joint batch."""
        targets = {self.names[task]: labels for task, labels in batch.targets.items() if task in self.names}
        return Batch(_joined(source, batch.inputs), targets)


@dataclass(frozen=True)
class JointSplit(BaseSplit):
    """Rows of several sources."""

    sources: Mapping[str, Source]
    policy: Policy
    temperature: float

    def __len__(self) -> int:
        return sum(len(source.rows) for source in self.sources.values())

    def loader(self, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> Loader:
        """A batch of every source a step."""
        return JointLoader(self, batch_size, seed, rank, world)

    def batches(self, size: int) -> Iterator[Batch]:
        """Source after source."""
        for name, source in self.sources.items():
            for batch in source.rows.batches(size):
                yield Batch({}, {}, (source.batch(name, batch),))

    def labelled(self, task: Task) -> int:
        """In its source."""
        source, own = self._owner(task)
        return source.rows.labelled(own)

    def complete(self, task: Task) -> bool:
        """In its source."""
        source, own = self._owner(task)
        return source.rows.complete(own)

    def select(self, tasks: Sequence[str]) -> JointSplit:
        """Without sources that have none of `tasks`."""
        kept = {}
        for name, source in self.sources.items():
            own = {ours: here for ours, here in source.names.items() if here in tasks}
            if own:
                kept[name] = replace(source, rows=source.rows.select(tuple(own)), names=own)
        return replace(self, sources=kept)

    def hold_out(self, fraction: float, seed: int) -> tuple[JointSplit, JointSplit]:
        """From every source."""
        pairs = {name: source.rows.hold_out(fraction, seed) for name, source in self.sources.items()}
        kept, given = (
            replace(self, sources={name: replace(self.sources[name], rows=pair[i]) for name, pair in pairs.items()})
            for i in (0, 1)
        )
        return kept, given

    def to(self, device: torch.device) -> JointSplit:
        """Every source."""
        return replace(self, sources={n: replace(s, rows=s.rows.to(device)) for n, s in self.sources.items()})

    def _owner(self, task: Task) -> tuple[Source, Task]:
        for source in self.sources.values():
            for own, here in source.names.items():
                if here == task.name:
                    return source, source.tasks[own]
        raise KeyError(task.name)


class JointLoader:
    """A batch of every source a step; sources that end before the epoch does begin again."""

    def __init__(self, split: JointSplit, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self._sources = split.sources
        rows = {name: len(source.rows) for name, source in split.sources.items()}
        sizes = dict.fromkeys(rows, batch_size)
        if split.policy in ("proportional", "temperature"):
            power = 1.0 if split.policy == "proportional" else 1 / split.temperature
            shares = {name: count**power for name, count in rows.items()}
            budget = batch_size * len(rows)
            # A rank without a row of a task would have no loss for it.
            sizes = {n: max(world, round(budget * share / sum(shares.values()))) for n, share in shares.items()}
        self.loaders = {
            name: source.rows.loader(sizes[name], seed, rank, world) for name, source in split.sources.items()
        }
        lengths = [len(loader) for loader in self.loaders.values()]
        if split.policy == "temperature":
            self._length = max(1, round(sum(rows.values()) / sum(sizes.values())))
        else:
            self._length = min(lengths) if split.policy == "shortest" else max(lengths)

    def __len__(self) -> int:
        return self._length

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of `epoch`, starting at its step `first_step`."""
        for step in range(first_step, len(self)):
            yield self.endless(epoch * len(self) + step)

    def endless(self, step: int) -> Batch:
        """Batch number `step` of every source's own stream."""
        parts = (self._sources[name].batch(name, loader.endless(step)) for name, loader in self.loaders.items())
        return Batch({}, {}, tuple(parts))


def _joined(source: str, inputs: Inputs) -> Inputs:
    return {f"{source}/{name}": tensor for name, tensor in inputs.items()}


def _checked(source: str, values: dict[str, Any]) -> dict[str, Any]:
    """A source's values with every default explicit. Raises ValueError, as pydantic wants it."""
    if not source.isidentifier():
        raise ValueError(f"a source is called by letters, digits and underscores; found '{source}'")
    name = values.pop("name", None)
    if name not in registry.datasets.names():
        raise ValueError(f"{source}: {registry.datasets.unknown(name)}")
    built, problems = check(registry.datasets.get(name).Options, values, source)
    if built is None:
        raise ValueError("; ".join(f"{problem.path}: {problem.message}" for problem in problems))
    return {"name": name, **built.model_dump(mode="json")}
