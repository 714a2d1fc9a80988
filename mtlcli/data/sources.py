"""Several datasets as one: batches with a part of each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from mtlcli.data.base import BaseSplit, Batch, Inputs, JointFeatures, Loader, MultiTaskData, Portion
from mtlcli.errors import OptionError
from mtlcli.tasks import Task

Policy = Literal["cycle", "shortest", "proportional", "temperature"]


def combined(found: Mapping[str, MultiTaskData], policy: Policy, temperature: float) -> MultiTaskData:
    """Data of several sources as one.

    Raises OptionError where two tasks would have the same name, or a source has other splits.
    """
    names = {
        source: {t.name: source if len(data.tasks) == 1 else f"{source}_{t.name}" for t in data.tasks}
        for source, data in found.items()
    }
    tasks = [replace(task, name=names[source][task.name]) for source, data in found.items() for task in data.tasks]
    called = [task.name for task in tasks]
    for name in called:
        if called.count(name) > 1:
            raise OptionError("sources", f"two tasks would be called '{name}'; rename one of the sources")
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
        source, own = JointFeatures.parted(inputs)
        change = found[source].augment
        return inputs if change is None else JointFeatures.joined(source, change(own))

    return MultiTaskData(
        tuple(tasks),
        features,
        splits,
        f"sha256:{digest.hexdigest()}",
        augment=augment if any(data.augment for data in found.values()) else None,
        notes=tuple(f"{source}: {note}" for source, data in found.items() for note in data.notes),
        columns=tuple(u._replace(column=f"{s}/{u.column}") for s, data in found.items() for u in data.columns),
        metrics={names[s][task]: chosen for s, data in found.items() for task, chosen in data.metrics.items()},
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
        return Batch(JointFeatures.joined(source, batch.inputs), targets)


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

    def portions(self, batch_size: int, world: int = 1) -> dict[str, Portion]:
        """A split of its own for every source."""
        rows = {name: len(source.rows) for name, source in self.sources.items()}
        sizes = dict.fromkeys(rows, batch_size)
        if self.policy in ("proportional", "temperature"):
            power = 1.0 if self.policy == "proportional" else 1 / self.temperature
            shares = {name: count**power for name, count in rows.items()}
            budget = batch_size * len(rows)
            # A rank without a row of a task would have no loss for it.
            sizes = {n: max(world, round(budget * share / sum(shares.values()))) for n, share in shares.items()}
        return {n: Portion(replace(self, sources={n: source}), sizes[n]) for n, source in self.sources.items()}

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
        portions = split.portions(batch_size, world)
        self.loaders = {
            name: source.rows.loader(portions[name].size, seed, rank, world) for name, source in split.sources.items()
        }
        lengths = [len(loader) for loader in self.loaders.values()]
        if split.policy == "temperature":
            self._length = max(1, round(len(split) / sum(portion.size for portion in portions.values())))
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
