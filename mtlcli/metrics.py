"""Metrics: how a task's predictions on a whole split are scored, in units that a person reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from mtlcli.errors import MtlError, did_you_mean
from mtlcli.tasks import Kind, Task


class UndefinedMetricError(Exception):
    """Raised by a metric that has no value on the rows at hand; the text says why."""


@dataclass(frozen=True)
class Score:
    """A metric's value on one split, or None and the reason why it has none."""

    value: float | None
    unit: str
    higher_is_better: bool
    undefined: str | None = None


@dataclass(frozen=True)
class Metric:
    """A number that says how good a task's predictions are."""

    name: str
    kinds: tuple[Kind, ...]
    higher_is_better: bool
    unit: str | None  # None: the task's own unit
    description: str
    # (predictions, labels) -> value, over labelled rows only. Logits (N,) or (N, C) and labels of int64; for regression
    # both (N,) in the task's unit. Floats are float64.
    compute: Callable[[Tensor, Tensor], Tensor]


_METRICS: dict[str, Metric] = {}
_DEFAULTS: dict[Kind, tuple[str, ...]] = {
    "binary": ("auroc", "average_precision"),
    "multiclass": ("accuracy", "f1"),
    "regression": ("mae", "r2"),
    "objective": ("value",),
}

Compute = Callable[[Tensor, Tensor], Tensor]


def register(name: str, *kinds: Kind, higher_is_better: bool, unit: str | None) -> Callable[[Compute], Compute]:
    """Decorator: make the function a metric for tasks of `kinds`, described by its docstring's first line.

    Raises MtlError where the name is taken.
    """

    def add(compute: Compute) -> Compute:
        if name in _METRICS:
            raise MtlError(f"metric '{name}' is already registered")
        description = (compute.__doc__ or name).splitlines()[0]
        _METRICS[name] = Metric(name, kinds, higher_is_better, unit, description, compute)
        return compute

    return add


def names(kind: Kind | None = None) -> tuple[str, ...]:
    """Every metric, or those that fit tasks of `kind`."""
    return tuple(name for name, metric in _METRICS.items() if kind is None or kind in metric.kinds)


def get(name: str) -> Metric:
    """The metric `name`. Raises MtlError with the nearest name."""
    if name not in _METRICS:
        raise MtlError(f"no metric '{name}'{did_you_mean(name, _METRICS)}; there are: {', '.join(_METRICS)}")
    return _METRICS[name]


def default(kind: Kind) -> tuple[str, ...]:
    """The metrics of a task that names none; the first is the one to show where there is room for one."""
    return _DEFAULTS[kind]


def check(task: Task, names: tuple[str, ...]) -> None:
    """Raise MtlError where one of `names` is not a metric or does not fit `task`."""
    for name in names:
        if task.kind not in get(name).kinds:
            fitting = ", ".join(n for n, metric in _METRICS.items() if task.kind in metric.kinds)
            raise MtlError(f"metric '{name}' does not fit task '{task.name}' ({task.kind}); these do: {fitting}")


def score(task: Task, names: tuple[str, ...], prediction: Tensor, target: Tensor) -> dict[str, Score]:
    """Every metric of `names`, exact over the rows given: hand in a whole split, as `Task` describes both tensors.

    Rows without a label do not count. Regression is scored in the task's unit. A metric without a value (no labelled
    rows, one class only, a constant label, non-finite predictions) is None with the reason.
    Raises MtlError where a metric does not fit the task.
    """
    check(task, names)
    present = task.present(target)
    prediction, target = prediction[present].detach().double(), target[present]
    reason = None
    if not len(target):
        reason = "no labelled rows"
    elif not prediction.isfinite().all():
        broken = int((~prediction.isfinite()).reshape(len(target), -1).any(1).sum())
        reason = f"{broken} of {len(target)} predictions are not finite"
    if task.kind == "regression":
        prediction, target = task.in_unit(prediction), task.in_unit(target)
    elif task.kind != "objective":
        target = target.long()
    return {name: _score(task, get(name), prediction, target, reason) for name in names}


def _score(task: Task, metric: Metric, prediction: Tensor, target: Tensor, reason: str | None) -> Score:
    value = None
    if reason is None:
        try:
            value = float(metric.compute(prediction, target))
        except UndefinedMetricError as undefined:
            reason = str(undefined)
    return Score(value, task.unit if metric.unit is None else metric.unit, metric.higher_is_better, reason)


def _one_vs_rest(prediction: Tensor, target: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Scores in 0..1 and labels 0 or 1 of every class that occurs (binary: of the positive one)."""
    classes = torch.unique(target)
    if len(classes) < 2:
        raise UndefinedMetricError(f"only one class among the {len(target)} labelled rows")
    if prediction.dim() == 1:
        yield prediction.sigmoid(), target
        return
    probabilities = prediction.softmax(1)
    for c in classes.tolist():
        yield probabilities[:, c], (target == c).long()


def _mean(values: Iterator[Tensor]) -> Tensor:
    return torch.stack([value.double() for value in values]).mean()


@register("auroc", "binary", "multiclass", higher_is_better=True, unit="fraction")
def auroc(prediction: Tensor, target: Tensor) -> Tensor:
    """Area under the ROC curve; multiclass: each class against the rest, mean over the classes that occur."""
    from torchmetrics.functional.classification import binary_auroc

    return _mean(binary_auroc(p, t, validate_args=False) for p, t in _one_vs_rest(prediction, target))


@register("average_precision", "binary", "multiclass", higher_is_better=True, unit="fraction")
def average_precision(prediction: Tensor, target: Tensor) -> Tensor:
    """Area under the stepwise precision-recall curve; multiclass: as for auroc."""
    from torchmetrics.functional.classification import binary_average_precision

    return _mean(binary_average_precision(p, t, validate_args=False) for p, t in _one_vs_rest(prediction, target))


@register("accuracy", "binary", "multiclass", higher_is_better=True, unit="fraction")
def accuracy(prediction: Tensor, target: Tensor) -> Tensor:
    """Share of rows whose likeliest class is the label's."""
    from torchmetrics.functional.classification import binary_accuracy, multiclass_accuracy

    if prediction.dim() == 1:
        return binary_accuracy((prediction > 0).long(), target)
    return multiclass_accuracy(prediction, target, num_classes=prediction.shape[1], average="micro")


@register("f1", "binary", "multiclass", higher_is_better=True, unit="fraction")
def f1(prediction: Tensor, target: Tensor) -> Tensor:
    """Harmonic mean of precision and recall; multiclass: mean over the classes that are labelled or predicted."""
    from torchmetrics.functional.classification import binary_f1_score, multiclass_f1_score

    if prediction.dim() > 1:
        return multiclass_f1_score(prediction, target, num_classes=prediction.shape[1], average="macro")
    predicted = (prediction > 0).long()
    if not (predicted | target).any():
        raise UndefinedMetricError(
            f"no positive label and no positive prediction among the {len(target)} labelled rows"
        )
    return binary_f1_score(predicted, target)


@register("log_loss", "binary", "multiclass", higher_is_better=False, unit="nats")
def log_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean negative log-probability of the label."""
    if prediction.dim() == 1:
        return F.binary_cross_entropy_with_logits(prediction, target.double())
    return F.cross_entropy(prediction, target)


@register("mae", "regression", higher_is_better=False, unit=None)
def mae(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error."""
    from torchmetrics.functional.regression import mean_absolute_error

    return mean_absolute_error(prediction, target)


@register("rmse", "regression", higher_is_better=False, unit=None)
def rmse(prediction: Tensor, target: Tensor) -> Tensor:
    """Root of the mean squared error."""
    from torchmetrics.functional.regression import mean_squared_error

    return mean_squared_error(prediction, target, squared=False)


@register("r2", "regression", higher_is_better=True, unit="")
def r2(prediction: Tensor, target: Tensor) -> Tensor:
    """Share of the labels' variance that is explained: 1 is perfect, 0 no better than their mean."""
    from torchmetrics.functional.regression import r2_score

    if (target == target[0]).all():
        raise UndefinedMetricError(f"the label is the same in all {len(target)} labelled rows")
    # torchmetrics takes sums of squares below 1e-4 for zero. R2 does not depend on origin and unit: choose large ones.
    centre = target.mean()
    unit = (target - centre).norm() * 1e-6
    return r2_score((prediction - centre) / unit, (target - centre) / unit)


@register("value", "objective", higher_is_better=False, unit="")
def value(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean of the objective itself."""
    return prediction.mean()
