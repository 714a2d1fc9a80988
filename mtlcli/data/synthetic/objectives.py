"""Losses that are functions of a point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mtlcli.data.base import MultiTaskData, PointFeatures, Split, fingerprint
from mtlcli.errors import OptionError
from mtlcli.tasks import Task

SMALLEST = 5e-6  # under the logarithms
ROUNDING = 1e-6  # negative eigenvalues of a Gramian, to the largest, that writing it down explains


def two_objectives(start: Sequence[float], scale: float, rows: int, definition: Mapping[str, Any]) -> MultiTaskData:
    """The illustration of CAGrad and Nash-MTL."""
    tasks = [
        Task(f"loss{k + 1}", "objective", objective=partial(valley_loss, which=k, scale=(scale, 1.0)[k]))
        for k in (0, 1)
    ]
    return _data(tasks, tuple(start), rows, definition)


def quadratics(gramian: Sequence[Sequence[float]], rows: int, definition: Mapping[str, Any]) -> MultiTaskData:
    """K losses ||x - c_k||^2 / 2 with c_k = -g_k, so that their gradients at 0 are g_k with the Gramian wanted.

    Raises OptionError where that is not square, symmetric and positive semi-definite.
    """
    num = len(gramian)
    if not num or any(len(row) != num for row in gramian):
        raise OptionError(
            "gramian", f"should be a square matrix; found rows of {[len(row) for row in gramian]} numbers"
        )
    matrix = torch.tensor(gramian, dtype=torch.float64)
    if not matrix.equal(matrix.T):
        raise OptionError("gramian", "should be symmetric")
    values, vectors = torch.linalg.eigh(matrix)
    if values[0] < -ROUNDING * values[-1].clamp(min=SMALLEST):
        raise OptionError("gramian", f"should have no negative eigenvalue; found {float(values[0]):.4g}")
    gradients = vectors * values.clamp(min=0).sqrt()  # (K, K), a row each
    tasks = [
        Task(f"loss{k + 1}", "objective", objective=partial(half_square, centre=(-gradients[k]).tolist()))
        for k in range(num)
    ]
    return _data(tasks, (0.0,) * num, rows, definition)


def valley_loss(point: Tensor, which: int, scale: float = 1.0) -> Tensor:
    """Loss 0 or 1 at points (B, 2): (B,)."""
    x, y = point.unbind(1)
    inner = (0.5 * (-x - 7) - (-y).tanh()) if which == 0 else (0.5 * (-x + 3) - (-y).tanh() + 2)
    above = inner.abs().clamp(min=SMALLEST).log() + 6
    below = ((-x + (7 if which == 0 else -7)) ** 2 + 0.1 * (-y - 8) ** 2) / 10 - 20
    return scale * (above * (0.5 * y).tanh().clamp(min=0) + below * (-0.5 * y).tanh().clamp(min=0))


def half_square(point: Tensor, centre: Sequence[float]) -> Tensor:
    """||x - centre||^2 / 2 at points (B, D): (B,)."""
    return (point - point.new_tensor(centre)).square().sum(1) / 2


def pareto_front(points: int = 101) -> Tensor:
    """Points (points, 2) on the front of `two_objectives`, from (-7, ...) to (7, ...), float64.

    Where y is negative both losses are c(y) g_k(x, y) with c = tanh(-y / 2). With the weight (x + 7) / 14 on the first
    the x-part of the weighted gradient is zero; its y-part is where c' g + c (y + 8) / 50 vanishes, slightly below -8.
    """
    x = torch.linspace(-7, 7, points, dtype=torch.float64)
    share = (x + 7) / 14
    y = torch.full_like(x, -8.0)
    for _ in range(50):  # a contraction: c' is 7e-4 there
        c = (-y / 2).tanh()
        bowl = (share * (x - 7) ** 2 + (1 - share) * (x + 7) ** 2 + 0.1 * (y + 8) ** 2) / 10 - 20
        y = -8 + 25 * (1 - c**2) / c * bowl
    return torch.stack([x, y], 1)


def _data(tasks: Sequence[Task], start: tuple[float, ...], rows: int, definition: Mapping[str, Any]) -> MultiTaskData:
    counts = {"train": rows, "val": 1, "test": 1}
    splits = {
        name: Split({"row": torch.zeros(count, 1)}, {task.name: torch.zeros(count) for task in tasks})
        for name, count in counts.items()
    }
    meaning = [{key: value for key, value in asdict(task).items() if key != "objective"} for task in tasks]
    return MultiTaskData(
        tuple(tasks), PointFeatures(start), splits, fingerprint({**definition, "tasks": meaning}, splits)
    )
