"""Batches from rows that already live on the device: one seeded permutation an epoch, one gather a batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from mtlcli.data.base import Batch, Split

EPOCHS = 1_000_003  # keeps (seed, epoch) apart from (seed + 1, epoch - 1)


class ResidentLoader:
    """Shuffled batches of a split in memory.

    The order of epoch `e` depends on `seed` and `e` alone, so a resumed epoch repeats it exactly. Over several ranks
    every rank takes its own rows of each global batch.
    """

    def __init__(self, split: Split, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self.split, self.batch_size, self.seed = split, batch_size, seed
        self.rank, self.world = rank, world
        self._device = next(iter(split.inputs.values())).device
        self._latest = (-1, torch.empty(0))  # epoch and its order

    def __len__(self) -> int:
        """Steps an epoch; the last batch may be smaller."""
        return -(-len(self.split) // self.batch_size)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of `epoch`, starting at its step `first_step`."""
        order = self._order(epoch)
        for step in range(first_step, len(self)):
            yield self._batch(order, step)

    def endless(self, step: int) -> Batch:
        """Batch number `step` of a stream that reshuffles whenever the rows are used up."""
        epoch, step = divmod(step, len(self))
        return self._batch(self._order(epoch), step)

    def _batch(self, order: torch.Tensor, step: int) -> Batch:
        index = order[step * self.batch_size : (step + 1) * self.batch_size]
        return self.split.rows(index if self.world == 1 else index[self.rank :: self.world])

    def _order(self, epoch: int) -> torch.Tensor:
        if self._latest[0] != epoch:  # `endless` asks at every step
            # Drawn on the CPU: the order must not depend on the device.
            generator = torch.Generator().manual_seed((self.seed * EPOCHS + epoch) % 2**63)
            self._latest = epoch, torch.randperm(len(self.split), generator=generator).to(self._device)
        return self._latest[1]
