"""What a dataset hands to the engine: tasks, features, splits, a fingerprint."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from mtlcli.errors import MtlError, OptionError, did_you_mean
from mtlcli.options import Options as AnyOptions
from mtlcli.registry import datasets
from mtlcli.tasks import Task

Inputs = dict[str, Tensor]


class Features:
    """What a dataset's inputs look like; encoders are built from it, and say which kinds they can read."""


@dataclass(frozen=True)
class TableFeatures(Features):
    """Inputs of a table: `inputs["numeric"]` (B, F) float32, standardised, and `inputs["categorical"]` (B, C) int32.

    A column with n known categories holds codes 1..n and 0 for one not seen in training, so its cardinality is n + 1.
    """

    numeric: tuple[str, ...]
    categorical: Mapping[str, int]  # column -> cardinality, in the order of the tensor's columns


@dataclass(frozen=True)
class ImageFeatures(Features):
    """Images: `inputs["image"]` (B, channels, height, width) uint8. Networks read (value / 255 - mean) / std."""

    channels: int
    height: int
    width: int
    mean: tuple[float, ...]  # per channel, of values in 0..1
    std: tuple[float, ...]

    @property
    def at_once(self) -> int:
        """How many to score at a time: 64 maps of the image's own size for each of them take half a GiB."""
        return max(1, 2**21 // (self.height * self.width))


@dataclass(frozen=True)
class PointFeatures(Features):
    """No inputs but a number of rows: the losses are functions of a point that begins at `start`."""

    start: tuple[float, ...]


@dataclass(frozen=True)
class JointFeatures(Features):
    """Several sources of rows, each with inputs of its own: `inputs["SOURCE/name"]` is what the source calls `name`."""

    sources: Mapping[str, Features]
    tasks: Mapping[str, tuple[str, ...]]  # of every source; none where those of the source are not trained

    def select(self, names: Sequence[str]) -> JointFeatures:
        """The same sources with the tasks `names` alone."""
        return replace(self, tasks={s: tuple(t for t in own if t in names) for s, own in self.tasks.items()})

    @staticmethod
    def joined(source: str, inputs: Inputs) -> Inputs:
        """What `source` alone calls `inputs`, as a joint batch calls them."""
        return {f"{source}/{name}": tensor for name, tensor in inputs.items()}

    @staticmethod
    def parted(inputs: Inputs) -> tuple[str, Inputs]:
        """The source of a part's inputs, and what that source calls them."""
        source = next(iter(inputs)).partition("/")[0]
        return source, {name.partition("/")[2]: tensor for name, tensor in inputs.items()}


class Batch(NamedTuple):
    """`inputs` for the encoder and one label tensor of shape (B,) per task.

    Where tasks have inputs of their own, there is a part for each kind of input, with the labels of its tasks; the
    batch itself is empty then.
    """

    inputs: Inputs
    targets: dict[str, Tensor]
    parts: tuple[Batch, ...] = ()

    @property
    def device(self) -> torch.device:
        """Where its tensors live."""
        return self.parts[0].device if self.parts else next(iter(self.inputs.values())).device

    def labels(self, task: str) -> Tensor:
        """The labels of `task`."""
        return next(part.targets[task] for part in self.parts or (self,) if task in part.targets)

    def to(self, device: torch.device) -> Batch:
        """The same rows on `device`."""
        inputs, targets = ({n: t.to(device) for n, t in held.items()} for held in (self.inputs, self.targets))
        return Batch(inputs, targets, tuple(part.to(device) for part in self.parts))

    def map_inputs(self, change: Callable[[Inputs], Inputs]) -> Batch:
        """The same labels with other inputs."""
        inputs = self.inputs if self.parts else change(self.inputs)
        return Batch(inputs, self.targets, tuple(part.map_inputs(change) for part in self.parts))


class Loader(Protocol):
    """Shuffled batches of a split, the same again for the same seed and place."""

    def __len__(self) -> int:
        """Steps an epoch."""

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of `epoch`, starting at its step `first_step`."""

    def endless(self, step: int) -> Batch:
        """Batch number `step` of a stream that reshuffles whenever the rows are used up; asked with growing `step`."""


class Portion(NamedTuple):
    """What one source gives to every step."""

    split: BaseSplit  # its rows
    size: int  # how many of them a step has, over all ranks


class BaseSplit(ABC):
    """Rows of one split, wherever they are kept."""

    @abstractmethod
    def __len__(self) -> int:
        """Rows; of several inputs, those of all of them."""

    @abstractmethod
    def loader(self, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> Loader:
        """Shuffled batches for training. Over several ranks each takes its own rows of every global batch."""

    def portions(self, batch_size: int, world: int = 1) -> Mapping[str, Portion]:
        """What a step passes through the network, each by itself: the part of every source, here all rows as one."""
        return {"": Portion(self, batch_size)}

    @abstractmethod
    def batches(self, size: int) -> Iterator[Batch]:
        """All rows once, in their order, at most `size` at a time."""

    @abstractmethod
    def labelled(self, task: Task) -> int:
        """How many rows have a label for `task`."""

    @abstractmethod
    def select(self, tasks: Sequence[str]) -> BaseSplit:
        """The same rows with the labels of `tasks` alone."""

    @abstractmethod
    def to(self, device: torch.device) -> BaseSplit:
        """The same rows, with batches on `device`."""

    def hold_out(self, fraction: float, seed: int) -> tuple[BaseSplit, BaseSplit]:
        """What remains, and a seeded `fraction` of the rows. Raises OptionError where that cannot be."""
        raise OptionError("held_out", "these data cannot give rows away; leave it out, or set it to 0")

    def complete(self, task: Task) -> bool:
        """Whether every row has a label for `task`."""
        return self.labelled(task) == len(self)


@dataclass(frozen=True)
class Split(BaseSplit):
    """Rows held in memory: every tensor has the same first dimension."""

    inputs: Inputs
    targets: dict[str, Tensor]
    at_once: int | None = None  # most rows that `batches` gives at a time, where networks make much of a row
    keys: Tensor | None = None  # (N,) of int64, on the CPU: rows with the same one are held out together

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def loader(self, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> Loader:
        """One permutation an epoch, one gather a batch."""
        from mtlcli.data.loader import ResidentLoader

        return ResidentLoader(self, batch_size, seed, rank, world)

    def batches(self, size: int) -> Iterator[Batch]:
        """Slices."""
        size = min(size, self.at_once or size)
        for start in range(0, len(self), size):
            yield self.rows(slice(start, start + size))

    def labelled(self, task: Task) -> int:
        """Counted anew at every call."""
        return int(task.present(self.targets[task.name]).sum())

    def select(self, tasks: Sequence[str]) -> Split:
        """The same tensors."""
        return replace(self, targets={name: self.targets[name] for name in tasks})

    def hold_out(self, fraction: float, seed: int) -> tuple[Split, Split]:
        """Rows, or whole keys, drawn at random; both parts keep the order."""
        keys = torch.arange(len(self)) if self.keys is None else torch.unique(self.keys, return_inverse=True)[1]
        sizes = keys.bincount()
        order = torch.randperm(len(sizes), generator=torch.Generator().manual_seed(seed))
        ends = sizes[order].cumsum(0)
        chosen = order[ends - sizes[order] // 2 <= round(fraction * len(self))]
        given = torch.isin(keys, chosen)
        if given.all() or not given.any():
            raise OptionError("held_out", f"{fraction} of {len(self)} training rows leaves one of the two parts empty")
        return self._part((~given).nonzero()[:, 0]), self._part(given.nonzero()[:, 0])

    def rows(self, index: Tensor | slice) -> Batch:
        """The rows at `index`, on the device where the split lives."""
        if isinstance(index, slice):
            return Batch({n: t[index] for n, t in self.inputs.items()}, {n: t[index] for n, t in self.targets.items()})
        return Batch(
            {n: t.index_select(0, index) for n, t in self.inputs.items()},
            {n: t.index_select(0, index) for n, t in self.targets.items()},
        )

    def _part(self, index: Tensor) -> Self:
        inputs, targets = ({n: t[index] for n, t in held.items()} for held in (self.inputs, self.targets))
        return replace(self, inputs=inputs, targets=targets, keys=None if self.keys is None else self.keys[index])

    def to(self, device: torch.device) -> Split:
        """The same rows on `device`, moved once."""
        inputs, targets = ({n: t.to(device) for n, t in held.items()} for held in (self.inputs, self.targets))
        return replace(self, inputs=inputs, targets=targets)


class ColumnUse(NamedTuple):
    """What becomes of a column of a table."""

    column: str
    used_as: str  # numeric, boolean, date, categorical, label, key, split, or dropped
    detail: str  # what was found in it, or why it is dropped


@dataclass(frozen=True)
class NewRows:
    """The rows of new files, encoded as the training rows were."""

    files: tuple[Path, ...]
    split: BaseSplit
    rows: Sequence[int]  # the number in the file of each of them, from 1
    left_out: int  # rows of the file that cannot be used
    labels: tuple[str, ...]  # the tasks that the file has a column for
    carried: Mapping[str, Sequence[Any]]  # columns that belong beside predictions, such as the key
    notes: tuple[str, ...] = ()
    # By task, its classes as the training files hold them: text, numbers or truth values.
    classes: Mapping[str, Sequence[bool | int | float | str]] = field(default_factory=dict)


@dataclass(frozen=True)
class MultiTaskData:
    """A dataset, ready to train on."""

    tasks: tuple[Task, ...]
    features: Features
    splits: Mapping[str, BaseSplit]  # train, val, test; held_out once it is carved out of train
    fingerprint: str  # of every row, feature, label and split, whichever tasks are chosen
    # Changes the inputs of a training batch at random, from torch's global generator, on the batch's device.
    augment: Callable[[Inputs], Inputs] | None = None
    # What was fitted on the training rows and new files need, as plain values; it is kept with the run.
    fitted: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()  # what a person should know of these data: skipped rows, suspected leaks
    columns: tuple[ColumnUse, ...] = ()  # of a table of one's own
    metrics: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # by task, in place of its kind's defaults

    def select(self, names: tuple[str, ...], option: str = "tasks") -> MultiTaskData:
        """The same data with only the tasks `names`, in that order. The fingerprint stays.

        Raises OptionError about `option` for a name that is not a task, or stands twice.
        """
        by_name = {task.name: task for task in self.tasks}
        for name in names:
            if name not in by_name:
                raise OptionError(
                    option, f"no task '{name}'{did_you_mean(name, by_name)}; there are: {', '.join(by_name)}"
                )
        if len(set(names)) < len(names):
            raise OptionError(option, f"each task once; found {', '.join(names)}")
        splits = {split: part.select(names) for split, part in self.splits.items()}
        features = self.features.select(names) if isinstance(self.features, JointFeatures) else self.features
        chosen = {name: usual for name, usual in self.metrics.items() if name in names}
        return replace(self, tasks=tuple(by_name[n] for n in names), features=features, splits=splits, metrics=chosen)

    def hold_out(self, fraction: float, seed: int) -> MultiTaskData:
        """Move a seeded `fraction` of the training rows into the split `held_out`."""
        train, held_out = self.splits["train"].hold_out(fraction, seed)
        return replace(self, splits={**self.splits, "train": train, "held_out": held_out})

    def to(self, device: torch.device) -> MultiTaskData:
        """Every split on `device`."""
        return replace(self, splits={name: split.to(device) for name, split in self.splits.items()})


class Dataset(ABC):
    """Reads one dataset. Register with `@datasets.register("name")`; give `Options` its fields.

    Declare files and folders as `Path`: a recipe's relative paths are then taken from the recipe's folder.
    """

    name: ClassVar[str]

    Options: ClassVar[type[AnyOptions]] = AnyOptions

    def __init__(self, options: AnyOptions) -> None:
        self.options = options

    @abstractmethod
    def load(self) -> MultiTaskData:
        """Read, split and encode all rows and all tasks. Raises MtlError naming the file, OptionError for an option."""

    def restore(self, fitted: Mapping[str, Any]) -> MultiTaskData:
        """Tasks and features of a run from its `MultiTaskData.fitted`, without rows; the data may be gone.

        Raises MtlError where this dataset cannot read new files.
        """
        raise self._cannot_read()

    def read(
        self,
        path: Path,
        fitted: Mapping[str, Any],
        labels: bool = True,
        on_error: str | None = None,
    ) -> NewRows:
        """The rows of a new file, encoded as the training rows were; labels where it has them, missing elsewhere.

        Args:
            path: the file, or a folder of them.
            fitted: `MultiTaskData.fitted` of the run.
            labels: whether to read labels at all; without, whatever stands in their columns is not a mistake.
            on_error: at a bad row: stop, or skip it; None does as the recipe says.

        Raises MtlError where the file does not fit, or where this dataset cannot read others.
        """
        raise self._cannot_read()

    @classmethod
    def reads_new_files(cls) -> bool:
        """Whether it has `read`."""
        return cls.read is not Dataset.read

    def _cannot_read(self) -> MtlError:
        able = [name for name in datasets.names() if datasets.get(name).reads_new_files()]
        return MtlError(f"dataset '{self.name}' cannot read new files; these can: {', '.join(able)}")


def fingerprint(definition: Mapping[str, object], splits: Mapping[str, Split]) -> str:
    """`sha256:...` over `definition` (JSON: what the columns and labels mean) and every tensor of every split."""
    digest = hashlib.sha256(json.dumps(definition, sort_keys=True, default=str).encode())
    for split in sorted(splits):
        for part in (splits[split].inputs, splits[split].targets):
            for name in sorted(part):
                tensor = part[name].cpu().contiguous()
                digest.update(f"{split}/{name}/{tensor.dtype}/{tuple(tensor.shape)}".encode())
                digest.update(tensor.numpy().data)
    return f"sha256:{digest.hexdigest()}"
