"""The K task gradients as one matrix, held in a buffer that every step uses again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import reduce
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from mtlcli.engine.graph import SHORT
from mtlcli.errors import MtlError
from mtlcli.weighting.base import GradientWeighting

How = Literal["auto", "sequential", "batched"]

ENTRIES = 1 << 19  # of the Jacobian at a time for methods that go by columns: temporaries stay in a CPU's caches
BLOCK = 1 << 12  # columns that are multiplied in float32 before float64 takes over
AT_ONCE = 1 << 20  # columns of 16 bits that are held in float32 at a time
SMALL = 1 << 28  # bytes of a Jacobian that may be held twice for speed


class Taken(NamedTuple):
    """Task gradients at some tensors (the anchor), and of the parameters asked for along with them."""

    jacobian: Tensor  # (K, P)  valid until the next call
    reached: list[bool]  # per tensor of the anchor, whether any task reached it
    along: list[Tensor | None]  # gradients of the parameters `along`, task after task


class Rows:
    """Takes task gradients.

    Args:
        tasks: for messages.
        how: `sequential`, one backward pass per task, which holds the gradients of all tasks once and those of one
            task besides; `batched`, all in one vectorised pass, which holds them twice; `auto`, sequential on the CPU,
            and on CUDA the faster of the two, timed once, as long as the gradients take little memory.

    Raises MtlError for another `how`.
    """

    def __init__(self, tasks: Sequence[str], how: How) -> None:
        if how not in get_args(How):
            raise MtlError(f"rows: should be {' or '.join(get_args(How))}; found {how!r}")
        self.tasks = tasks
        self.how: How | None = None if how == "auto" else how
        self._buffer = torch.empty(0)
        self._looked = False  # whether all tasks are known to reach the anchor

    def take(
        self,
        anchor: Sequence[Tensor],
        roots: Sequence[Tensor],
        pull: Sequence[Tensor],
        along: Sequence[Sequence[Tensor]],
        keep_graph: bool,
    ) -> Taken:
        """Gradient of `roots[k]`, weighted by `pull[k]`, at every tensor of `anchor` and at `along[k]`, for each task.

        Raises MtlError where a task reaches none of the anchor.
        """
        if self.how is None:
            self.how = _faster(anchor, roots, pull)
        size = sum(tensor.numel() for tensor in anchor)
        dtype = reduce(torch.promote_types, {tensor.dtype for tensor in anchor})
        held = self._buffer
        if (held.shape, held.device, held.dtype) != ((len(roots), size), anchor[0].device, dtype):
            self._buffer = anchor[0].new_empty(len(roots), size, dtype=dtype)
        if self.how == "batched" and roots[0].ndim == 0:
            return self._batched(anchor, roots, pull, along)
        return self._sequential(anchor, roots, pull, along, keep_graph)

    def _sequential(
        self,
        anchor: Sequence[Tensor],
        roots: Sequence[Tensor],
        pull: Sequence[Tensor],
        along: Sequence[Sequence[Tensor]],
        keep_graph: bool,
    ) -> Taken:
        reached = [False] * len(anchor)
        extra: list[Tensor | None] = []
        sizes = [tensor.numel() for tensor in anchor]
        for k, (root, cotangent) in enumerate(zip(roots, pull, strict=True)):
            keep = keep_graph or k < len(roots) - 1
            found = torch.autograd.grad(root, [*anchor, *along[k]], cotangent, retain_graph=keep, allow_unused=True)
            self._check_reached(k, found[: len(anchor)])
            for i, part in enumerate(torch.split(self._buffer[k], sizes)):
                gradient = found[i]
                if gradient is not None and gradient.is_sparse:
                    gradient = gradient.to_dense()
                part.zero_() if gradient is None else part.copy_(gradient.reshape(-1))
                reached[i] |= gradient is not None
            extra.extend(found[len(anchor) :])
            del found, gradient  # before the next task's come into being
        return Taken(self._buffer, reached, extra)

    def _check_reached(self, k: int, found: Sequence[Tensor | None]) -> None:
        if all(g is None for g in found):
            raise MtlError(
                f"task '{self.tasks[k]}' does not reach the shared part where gradients are taken; give the tensors "
                "that its loss was computed from (a model compiled as a whole hides them: compile its parts; "
                "so does checkpointing with use_reentrant=True)"
            )

    def _batched(
        self,
        anchor: Sequence[Tensor],
        roots: Sequence[Tensor],
        pull: Sequence[Tensor],
        along: Sequence[Sequence[Tensor]],
    ) -> Taken:
        if not self._looked:  # its zeros may stand for a task that reaches nothing
            for k, (root, cotangent) in enumerate(zip(roots, pull, strict=True)):
                gradients = torch.autograd.grad(root, list(anchor), cotangent, retain_graph=True, allow_unused=True)
                self._check_reached(k, gradients)
            self._looked = True
        try:
            stacked = _vectorised(anchor, roots, pull)
        except RuntimeError as error:
            what = str(error).strip().splitlines()[0]
            raise MtlError(f"rows: batched does not go with this model ({what}); use sequential or auto") from error
        parts = torch.split(self._buffer, [tensor.numel() for tensor in anchor], dim=1)
        for part, rows in zip(parts, stacked, strict=True):
            part.zero_() if rows is None else part.copy_(rows.reshape(len(roots), -1))
        flat = [p for parameters in along for p in parameters]
        extra = torch.autograd.grad(roots, flat, pull, retain_graph=True, allow_unused=True) if flat else ()
        return Taken(self._buffer, [rows is not None for rows in stacked], list(extra))


def direction(method: GradientWeighting, jacobian: Tensor, losses: Tensor) -> Tensor:
    """(P,) what a method makes of the Jacobian (K, P); where it goes by columns, some at a time."""
    if method.reads != "columns":
        found: Tensor = method(jacobian, losses)
        # The next step writes over the Jacobian, and what becomes `.grad` must outlive it.
        alias = found.untyped_storage().data_ptr() == jacobian.untyped_storage().data_ptr()
        return found.clone() if alias else found
    columns = max(1, ENTRIES // len(jacobian))
    return torch.cat([method(part, losses) for part in torch.split(jacobian, columns, dim=1)])


def inner_products(rows: Tensor, columns: Tensor) -> Tensor:
    """`rows` (K, P) times `columns` (K, P) transposed: (K, K) in float64.

    A single product in float32 adds up millions of terms one after the other and can be off in the fourth digit. What
    has 16 bits is multiplied in float32.
    """
    if rows.dtype in SHORT:
        pairs = zip(*(torch.split(matrix, AT_ONCE, dim=1) for matrix in (rows, columns)), strict=True)
        return torch.stack([inner_products(left.float(), right.float()) for left, right in pairs]).sum(0)
    count = rows.shape[1] // BLOCK
    left, right = (
        matrix[:, : count * BLOCK].reshape(len(rows), count, BLOCK).transpose(0, 1) for matrix in (rows, columns)
    )
    blocks: Tensor = left @ right.mT
    return blocks.sum(0, dtype=torch.float64) + rows[:, count * BLOCK :] @ columns[:, count * BLOCK :].T


def _vectorised(anchor: Sequence[Tensor], roots: Sequence[Tensor], pull: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    columns = torch.diag(torch.stack(list(pull))).unbind()
    return torch.autograd.grad(
        list(roots), list(anchor), columns, retain_graph=True, allow_unused=True, is_grads_batched=True
    )


def _faster(anchor: Sequence[Tensor], roots: Sequence[Tensor], pull: Sequence[Tensor]) -> How:
    held = len(roots) * sum(tensor.numel() * tensor.element_size() for tensor in anchor)
    if anchor[0].device.type != "cuda" or roots[0].ndim > 0 or held > SMALL:
        return "sequential"

    def seconds(how: How) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        if how == "batched":
            _vectorised(anchor, roots, pull)
        else:
            for root, cotangent in zip(roots, pull, strict=True):
                torch.autograd.grad(root, list(anchor), cotangent, retain_graph=True, allow_unused=True)
        torch.cuda.synchronize()
        return time.perf_counter() - start

    try:
        seconds("sequential")  # the first calls pay for kernels and allocations
        seconds("batched")
    except RuntimeError:  # an operation without a vectorised backward, such as a cuDNN recurrent layer
        return "sequential"
    return "batched" if seconds("batched") < seconds("sequential") else "sequential"
