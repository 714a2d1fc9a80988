"""Tables whose labels follow from known rules."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mtlcli.data.base import BaseSplit, Batch, Loader, MultiTaskData, Split, TableFeatures, fingerprint
from mtlcli.tasks import Task

HIDDEN = 64  # units that signals are linear in
SPLITS = ("train", "val", "test")


class Rules:
    """Rows of features, and signals that follow from them.

    Args:
        features: standard normal columns.
        rows: of the training split; the others have half as many.
        seed: of everything drawn from `rng`.
    """

    def __init__(self, features: int, rows: int, seed: int) -> None:
        self.rng = torch.Generator().manual_seed(seed)
        self.features = TableFeatures(tuple(f"x{i}" for i in range(features)), {})
        mixing = torch.randn(features, HIDDEN, generator=self.rng, dtype=torch.float64) / math.sqrt(features)
        self.counts = {"train": rows, "val": max(1, rows // 2), "test": max(1, rows // 2)}
        self.inputs = {name: self.normal(count, features) for name, count in self.counts.items()}
        self._hidden = {name: (2 * x @ mixing).tanh() for name, x in self.inputs.items()}
        # The covariance of the hidden units over many other rows makes the signals' variance and correlation exact.
        sample = (2 * self.normal(20_000, features) @ mixing).tanh()
        self._root = torch.linalg.cholesky(sample.T @ sample / len(sample) + 1e-9 * torch.eye(HIDDEN))

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, float64."""
        return torch.randn(*shape, generator=self.rng, dtype=torch.float64)

    def signals(self, correlation: Tensor) -> dict[str, Tensor]:
        """Per split, (N, K) signals of variance 1 with this (K, K) correlation over the distribution of rows.

        Beyond as many signals as there are hidden units the correlation holds on average alone.
        """
        values, vectors = torch.linalg.eigh(correlation)
        root = vectors * values.clamp(min=0).sqrt()  # (K, K), root @ root.T is the correlation
        # Of the hidden units as they are, so that most of a signal lies where they vary most; then made orthonormal.
        drawn = self._root.T @ self.normal(HIDDEN, len(correlation))
        directions = torch.linalg.qr(drawn).Q if len(correlation) <= HIDDEN else drawn / math.sqrt(HIDDEN)
        weights = torch.linalg.solve_triangular(self._root.T, directions, upper=True) @ root.T
        weights /= (self._root.T @ weights).norm(dim=0)
        return {name: hidden @ weights for name, hidden in self._hidden.items()}

    def data(
        self,
        tasks: Sequence[Task],
        targets: Mapping[str, Mapping[str, Tensor]],
        definition: Mapping[str, Any],
        train: BaseSplit | None = None,
    ) -> MultiTaskData:
        """Rows with these labels, by split and task; `train` in place of the training split, where it changes."""
        splits = {name: Split({"numeric": self.inputs[name].float()}, dict(targets[name])) for name in SPLITS}
        digest = fingerprint(dict(definition), splits)
        return MultiTaskData(
            tuple(tasks), self.features, {**splits, "train": train} if train is not None else splits, digest
        )


def related(
    drawn: Rules, num: int, relatedness: float, noise: float, scale_ratio: float, definition: Mapping[str, Any]
) -> MultiTaskData:
    """Regressions whose signals correlate by `relatedness`."""
    correlation = torch.full((num, num), relatedness, dtype=torch.float64).fill_diagonal_(1.0)
    scales = torch.logspace(0, math.log10(scale_ratio), num, dtype=torch.float64)
    targets = {}
    for name, signal in drawn.signals(correlation).items():
        labels = scales * (signal + noise * drawn.normal(*signal.shape))
        targets[name] = {f"t{k}": labels[:, k].float() for k in range(num)}
    return drawn.data([Task(f"t{k}", "regression") for k in range(num)], targets, definition)


def label_noise(drawn: Rules, num: int, noisy: int, wrong: float, definition: Mapping[str, Any]) -> MultiTaskData:
    """Binary tasks, of which the last `noisy` have wrong labels outside of test."""
    correlation = torch.full((num, num), 0.5, dtype=torch.float64).fill_diagonal_(1.0)
    targets = {}
    for name, signal in drawn.signals(correlation).items():
        labels = (signal > 0).to(torch.int8)
        random = (drawn.normal(*signal.shape) > 0).to(torch.int8)
        drawn_anew = torch.rand(*signal.shape, generator=drawn.rng) < wrong
        drawn_anew[:, : num - noisy] = False
        labels = labels if name == "test" else torch.where(drawn_anew, random, labels)
        targets[name] = {f"t{k}": labels[:, k].clone() for k in range(num)}
    return drawn.data([Task(f"t{k}", "binary") for k in range(num)], targets, definition)


def drift(drawn: Rules, noise: float, epochs: float, definition: Mapping[str, Any]) -> MultiTaskData:
    """An auxiliary that turns from the main task's signal into noise while training goes on."""
    targets, right, random = _two_tasks(drawn, noise)
    turns = torch.rand(len(right["train"]), generator=drawn.rng)  # which part of `epochs` a row's label lasts
    for name in SPLITS:
        targets[name]["auxiliary"] = right[name]
    rows = {"main": targets["train"]["main"], "right": right["train"], "random": random["train"], "turns": turns}
    train = DriftingSplit(Split({"numeric": drawn.inputs["train"].float()}, rows), ("main", "auxiliary"), epochs)
    return drawn.data(_TWO, targets, definition, train)


def sample_relevance(drawn: Rules, noise: float, definition: Mapping[str, Any]) -> MultiTaskData:
    """An auxiliary that is the main task's signal where the first feature is positive, and noise elsewhere."""
    targets, right, random = _two_tasks(drawn, noise)
    for name in SPLITS:
        targets[name]["auxiliary"] = torch.where(drawn.inputs[name][:, 0] > 0, right[name], random[name])
    return drawn.data(_TWO, targets, definition)


_TWO = (Task("main", "regression"), Task("auxiliary", "regression"))


def _two_tasks(drawn: Rules, noise: float) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor], dict[str, Tensor]]:
    """Labels of `main` by split, and the auxiliary's where it is right and where it is noise."""
    signal = {name: found[:, 0] for name, found in drawn.signals(torch.ones(1, 1, dtype=torch.float64)).items()}
    targets = {name: {"main": (s + noise * drawn.normal(len(s))).float()} for name, s in signal.items()}
    random = {name: drawn.normal(len(s)).float() for name, s in signal.items()}
    return targets, {name: s.float() for name, s in signal.items()}, random


@dataclass(frozen=True)
class DriftingSplit(BaseSplit):
    """Training rows whose auxiliary labels depend on when they are seen.

    `rows` holds, as its targets, `main`, the auxiliary's `right` and `random` labels, and `turns`: the share of
    `epochs` for which a row's label is right. Outside of training labels are right.
    """

    rows: Split
    tasks: tuple[str, ...]
    epochs: float

    def __len__(self) -> int:
        return len(self.rows)

    def loader(self, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> Loader:
        """Batches with labels as they are at that step."""
        return DriftingLoader(self, self.rows.loader(batch_size, seed, rank, world))

    def batches(self, size: int) -> Iterator[Batch]:
        """With labels as they are at the beginning."""
        return (self.at(batch, 0.0) for batch in self.rows.batches(size))

    def at(self, batch: Batch, epoch: float) -> Batch:
        """The batch as it is at `epoch`, fractions counted."""
        held = batch.targets
        right = epoch < held["turns"] * self.epochs
        labels = {"main": held["main"], "auxiliary": torch.where(right, held["right"], held["random"])}
        return Batch(batch.inputs, {task: labels[task] for task in self.tasks})

    def labelled(self, task: Task) -> int:
        """All."""
        return len(self)

    def select(self, tasks: Sequence[str]) -> DriftingSplit:
        """The same rows with the labels of `tasks`."""
        return DriftingSplit(self.rows, tuple(tasks), self.epochs)

    def hold_out(self, fraction: float, seed: int) -> tuple[DriftingSplit, DriftingSplit]:
        """Two parts that drift alike."""
        kept, given = (DriftingSplit(part, self.tasks, self.epochs) for part in self.rows.hold_out(fraction, seed))
        return kept, given

    def to(self, device: torch.device) -> DriftingSplit:
        """The same rows on `device`."""
        return DriftingSplit(self.rows.to(device), self.tasks, self.epochs)


class DriftingLoader:
    """Batches of a split that drifts."""

    def __init__(self, split: DriftingSplit, rows: Loader) -> None:
        self._split, self._rows = split, rows

    def __len__(self) -> int:
        return len(self._rows)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of `epoch`, starting at its step `first_step`."""
        for step, batch in enumerate(self._rows.epoch(epoch, first_step), first_step):
            yield self._split.at(batch, epoch + step / len(self))

    def endless(self, step: int) -> Batch:
        """Batch number `step`."""
        return self._split.at(self._rows.endless(step), step / len(self))
