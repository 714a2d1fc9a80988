"""Gradients of tasks as rows, their inner products, and what methods make of them."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch

from mtlcli import MtlError
from mtlcli.engine.rows import Rows, direction, inner_products
from mtlcli.options import Options
from mtlcli.weighting.base import GradientWeighting


@pytest.mark.parametrize("size", [1, 1000, 70_000, 3_000_001])
def test_inner_products_are_as_exact_as_their_factors(size: int) -> None:
    """Within 1e-6 of squared lengths, however many terms there are; the plain float32 product is up to 1e-3 off."""
    rng = torch.Generator().manual_seed(0)
    rows, columns = (torch.rand(3, size, generator=rng) for _ in range(2))
    found = inner_products(rows, columns)
    assert found.dtype == torch.float64
    expected = rows.double() @ columns.double().T
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    own = inner_products(rows, rows)
    torch.testing.assert_close(own, own.T, rtol=1e-7, atol=0)


def test_inner_products_of_float64_stay_exact() -> None:
    rows = torch.randn(4, 5000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(inner_products(rows, rows), rows @ rows.T, rtol=1e-12, atol=1e-9)


class Doubled(torch.autograd.Function):
    """Twice the input; its backward pass leaves torch, and so cannot be vectorised."""

    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx, slope: torch.Tensor) -> torch.Tensor:
        return 2 * torch.from_numpy(slope.numpy())


def test_batched_rows_say_when_an_operation_refuses() -> None:
    shared = torch.ones(3, requires_grad=True)
    roots, ones = [Doubled.apply(shared).sum(), shared.prod()], [torch.ones(())] * 2
    with pytest.raises(MtlError, match=r"rows: batched does not go with this model \(.*\); use sequential or auto"):
        Rows(("a", "b"), "batched").take([shared], roots, ones, [[], []], keep_graph=True)
    rows = Rows(("a", "b"), "sequential").take([shared], roots, ones, [[], []], keep_graph=False)
    assert rows.jacobian.tolist() == [[2.0, 2.0, 2.0], [1.0, 1.0, 1.0]]


class FirstRow(GradientWeighting):
    """The first task's gradient, as a view of the Jacobian."""

    name = "first_row"
    reads: ClassVar[Any] = "jacobian"

    def forward(self, statistic: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
        return statistic[0]


def test_a_direction_outlives_the_jacobian() -> None:
    """The next step writes over it."""
    method = FirstRow(Options(), ("a", "b"), torch.Generator())
    jacobian = torch.ones(2, 3)
    found = direction(method, jacobian, torch.ones(2))
    jacobian.zero_()
    assert found.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("how", ["sequential", "batched"])
def test_a_task_that_reaches_nothing_is_named(how: Any) -> None:
    shared, other = (torch.ones(3, requires_grad=True) for _ in range(2))
    roots = [shared.sum(), (shared * other).sum(), other.sum()]
    with pytest.raises(MtlError, match="task 'c' does not reach the shared part"):
        Rows(["a", "b", "c"], how).take([shared], roots, [torch.ones(())] * 3, [[]] * 3, keep_graph=False)
