"""What gradient weightings have in common: random orders of the tasks, and memories as large as the gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtlcli.errors import MtlError, TrainingError


def random_orders(num_tasks: int, rng: torch.Generator) -> NDArray[np.int64]:
    """A permutation of the tasks (K, K) for every task, one a row."""
    orders = [torch.randperm(num_tasks, generator=rng, device=rng.device) for _ in range(num_tasks)]
    found: NDArray[np.int64] = torch.stack(orders).numpy(force=True)
    return found


def check_finite(by_task: Tensor, method: str) -> None:
    """Raises TrainingError naming `method` where an entry of `by_task` (K,), made of the tasks' gradients, is not
    finite: it would stay in a running value for good."""
    finite = by_task.isfinite()
    if not finite.all():
        tasks = (~finite).nonzero().flatten().tolist()
        raise TrainingError(
            f"{method}: gradients should be finite; found NaN or inf in rows {tasks}: a gradient overflowed or is NaN; "
            "lower the learning rate or look for the loss that diverged"
        )


class Memory:
    """A (K, P) tensor that a method keeps up to date. It starts as zeros once P is known, at the first gradients."""

    def __init__(self) -> None:
        self.value: Tensor | None = None

    def beside(self, jacobian: Tensor, method: str) -> Tensor:
        """The memory, on the device of `jacobian` (K, P). Raises MtlError naming `method` where the shape differs."""
        if self.value is None:
            self.value = torch.zeros_like(jacobian)
        if self.value.shape != jacobian.shape:
            raise MtlError(
                f"{method}: the gradients of all steps should have the same size, since their running values are kept; "
                f"found {tuple(jacobian.shape)} after {tuple(self.value.shape)}; take them at the parameters "
                "(wrt: params), or at representations of batches of one size"
            )
        self.value = self.value.to(jacobian)
        return self.value

    def state_dict(self) -> dict[str, Any]:
        """The tensor, or None before the first gradients."""
        return {"value": self.value}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Counterpart of `state_dict`."""
        value = state_dict["value"]
        self.value = None if value is None else value.clone()
