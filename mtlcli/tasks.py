"""What a task is: its kind, its loss, and which metrics score it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

Kind = Literal["binary", "multiclass", "regression", "objective"]


def named(given: Any) -> tuple[str, ...] | None:
    """Different names of tasks, in an order that means something; None where `given` is something else."""
    found = tuple(given) if isinstance(given, Iterable) and not isinstance(given, str | Set) else ()
    fine = found and all(isinstance(name, str) for name in found) and len(set(found)) == len(found)
    return found if fine else None


@dataclass(frozen=True, slots=True)
class LossTerms:
    """Per-sample numerator and denominator of a task's loss.

    The loss of a batch is `total.sum() / count.sum()`, which stays exact under missing labels and over several ranks
    where a mean of means would not.
    """

    total: Tensor  # (B,)
    count: Tensor | None  # (B,)  0 where the label is missing, else the row's weight; None where that is 1 everywhere

    def mean(self) -> Tensor:
        """The loss of the batch, 0 where it holds no label."""
        if self.count is None:
            return self.total.mean()
        count = self.count.sum()
        return self.total.sum() / torch.where(count > 0, count, 1)


@dataclass(frozen=True)
class Task:
    """One thing to predict.

    Labels are a tensor of shape (B,): for `binary` 0 or 1, for `multiclass` a class index, both -1 where missing; for
    `regression` a float in training units, NaN where missing. Predictions are logits of shape (B,) or (B, num_classes),
    or the regression value of shape (B,). For an `objective` the prediction (B,) is the loss itself, a function of the
    representation, and labels mean nothing.
    """

    name: str
    kind: Kind
    num_classes: int = 2
    unit: str = ""  # regression: what the metrics are measured in
    mean: float = 0.0  # regression: label = (transform of the value in unit - mean) / scale
    scale: float = 1.0
    classes: tuple[str, ...] = ()
    transform: Literal["none", "log1p"] = "none"  # regression: of the value, before mean and scale
    objective: Callable[[Tensor], Tensor] | None = None  # objective: representations (B, D) -> losses (B,)
    # Factors on the loss of rows with each class, in the order of the classes (binary: of 0 and 1); a batch's loss is
    # the weighted mean.
    class_weights: tuple[float, ...] | None = None

    @property
    def num_outputs(self) -> int:
        """Width of the head's last layer."""
        return self.num_classes if self.kind == "multiclass" else 1

    def loss(self, prediction: Tensor, target: Tensor, complete: bool = False) -> LossTerms:
        """Cross-entropy (binary, multiclass) or squared error in training units (regression), per sample.

        A missing label contributes exactly nothing: neither value nor gradient nor count. With `complete`, the caller
        knows that none is missing, and the search for them is saved.
        """
        prediction = prediction.to(torch.promote_types(prediction.dtype, torch.float32))
        if complete and self.class_weights is None:
            return LossTerms(self._per_sample(prediction, target), None)
        present = self.present(target)
        # Missing labels are replaced before the loss is taken: NaN * 0 in the backward pass would still be NaN.
        filler = prediction.detach() if self.kind == "regression" else torch.zeros_like(target)
        target = torch.where(present, target, filler)
        total = torch.where(present, self._per_sample(prediction, target), 0.0)
        if self.class_weights is None:
            return LossTerms(total, present.to(total.dtype))
        weight = total.new_tensor(self.class_weights)[target.long()] * present
        return LossTerms(weight * total, weight)

    def in_unit(self, values: Tensor) -> Tensor:
        """Regression values (N,) in training units -> in `unit`, as float64."""
        values = values.double() * self.scale + self.mean
        return values.expm1() if self.transform == "log1p" else values

    def _per_sample(self, prediction: Tensor, target: Tensor) -> Tensor:
        if self.kind == "objective":
            return prediction
        if self.kind == "regression":
            return F.mse_loss(prediction, target, reduction="none")
        if self.kind == "binary":
            return F.binary_cross_entropy_with_logits(prediction, target.to(prediction.dtype), reduction="none")
        return F.cross_entropy(prediction, target.long(), reduction="none")

    def present(self, target: Tensor) -> Tensor:
        """(B,) of bool: where `target` holds a label."""
        return target >= 0 if self.kind in ("binary", "multiclass") else ~target.isnan()


def unusable(name: str) -> str | None:
    """Why a network can have no part of this name, if so."""
    if not name:
        return "is empty"
    if "." in name:
        return "has a point in it"
    return "means something else to PyTorch" if hasattr(nn.ModuleDict(), name) else None
