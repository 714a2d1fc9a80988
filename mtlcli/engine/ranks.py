"""Several processes as one: start, stop, mean. The identity on one process."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mtlcli.errors import MtlError, TrainingError

T = TypeVar("T")


class Ranks:
    """torchrun's processes. No DDP wrapper: it reduces only what `backward()` leaves in `.grad`, and the gradients of
    single tasks never pass there."""

    def __init__(self) -> None:
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self.rank = dist.get_rank() if dist.is_initialized() else 0

    @classmethod
    def start(cls, device_type: str) -> Ranks:
        """Join torchrun's group where its variables are set; one process otherwise. Raises TrainingError where the
        others are not found."""
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
            with _others("the processes of this run did not find each other"):
                dist.init_process_group("nccl" if device_type == "cuda" else "gloo")
        return cls()

    @staticmethod
    def stop() -> None:
        """Leave the group, if there is one."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over ranks, in one reduction. Raises TrainingError where a rank has ended, as
        all that follow do."""
        if self.world == 1 or not tensors:
            return
        flat = torch.cat([t.reshape(-1) for t in tensors])
        with _others():
            dist.all_reduce(flat)
        flat /= self.world
        for tensor, part in zip(tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def shared(self, losses: Sequence[Tensor]) -> list[Tensor]:
        """Losses () with the values that they have over all ranks, and each rank's own gradients, whose mean is that of
        the whole batch."""
        if self.world == 1:
            return list(losses)
        values = torch.stack([loss.detach() for loss in losses])
        self.mean_([values])
        return [loss + (value - loss.detach()) for loss, value in zip(losses, values, strict=True)]

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set on any rank."""
        if self.world == 1:
            return flag
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        total = torch.tensor([float(flag)], device=device)
        with _others():
            dist.all_reduce(total)
        return bool(total.item() > 0)

    def agreed(self, find: Callable[[], T]) -> T:
        """What `find` returns or raises (an MtlError) on the first rank, which alone calls it: files, say, may change
        while others look."""
        if self.world == 1:
            return find()
        told: list[Any] = [None, None]
        if self.rank == 0:
            try:
                told[0] = find()
            except MtlError as error:
                told[1] = error
        with _others():
            dist.broadcast_object_list(told, src=0)
        if told[1] is not None:
            raise told[1]
        found: T = told[0]
        return found

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.world > 1:
            with _others():
                dist.barrier()


@contextmanager
def _others(what: str = "another process of this run has ended") -> Iterator[None]:
    """Say of a broken connection what it means: the other process's own message, if it had one, says why."""
    try:
        yield
    except RuntimeError as error:
        reason = re.sub(r"^\[.*?\] ", "", str(error).strip()).split(". ")[0]  # gloo begins with a line of its source
        raise TrainingError(f"{what} ({reason}); see what the others printed, and go on with --resume") from error
