"""Gradients -> `.grad`, as a backward pass of PyTorch's own leaves them there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def accumulate(parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """Add each gradient to its parameter's `.grad`, in memory of its own and laid out as the parameter is.

    Others change `.grad` in place, such as clipping, and fused optimisers read it in the parameter's layout; what
    `torch.autograd.grad` returns may be one tensor for two parameters, or an expanded or transposed one.
    """
    ends: dict[int, int] = {}  # of what was handed out of a piece of memory
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            continue
        if parameter.grad is not None:
            parameter.grad = parameter.grad + gradient
        elif gradient.layout != torch.strided:
            parameter.grad = gradient
        else:
            memory, start = gradient.untyped_storage().data_ptr(), gradient.data_ptr()
            if gradient.stride() != parameter.stride() or start < ends.get(memory, 0):
                gradient = torch.empty_like(parameter, requires_grad=False).copy_(gradient)
            else:
                ends[memory] = start + gradient.nbytes
            parameter.grad = gradient


def make_dense(parameters: Sequence[Tensor]) -> None:
    """Write sparse gradients, such as those of embeddings, out in full."""
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.to_dense()


def backward_beside(parameters: Sequence[Tensor], tensors: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    """A backward pass from `tensors`, with their `gradients`, to everything but `parameters`."""
    before = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    torch.autograd.backward(list(tensors), list(gradients))
    for parameter, gradient in zip(parameters, before, strict=True):
        parameter.grad = gradient
