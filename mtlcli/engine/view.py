"""One training step on a model, as loss weightings see it (`StepView`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import pad_sequence

from mtlcli.data.base import Batch
from mtlcli.engine.ranks import Ranks
from mtlcli.errors import MtlError
from mtlcli.metrics import score
from mtlcli.models.base import MTLModel, Predicted, run
from mtlcli.tasks import Task
from mtlcli.weighting.base import Clock, Losses, Params, moved


class _Inside(nn.Module):
    """Calls a function as though in the model's forward pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[[], Any]) -> Any:
        return function()


class ModelStep:
    """The forward pass of one batch, and what may be asked about it.

    Args:
        model: gives predictions per task and the cut.
        tasks: the K tasks, in the order of every (K,) tensor.
        batch: this rank's rows.
        held_out: gives this step's held-out batch, where the recipe has one.
        extra: gives the n-th further training batch of this step, where the recipe has any.
        autocast: dtype of the forward pass, or None for full precision. Losses are always float32.
        complete: tasks of which no row, training or held-out, lacks a label.
        metrics: names by task; the first one of a task is what `score` gives.
        probe_model: the same parameters in modules that are not compiled, for probes; `model` where left out.
    """

    def __init__(
        self,
        model: MTLModel,
        tasks: Sequence[Task],
        batch: Batch,
        clock: Clock,
        lr: float,
        ranks: Ranks,
        held_out: Callable[[], Batch] | None = None,
        extra: Callable[[int], Batch] | None = None,
        autocast: torch.dtype | None = None,
        complete: frozenset[str] = frozenset(),
        metrics: Mapping[str, Sequence[str]] | None = None,
        probe_model: MTLModel | None = None,
    ) -> None:
        self.tasks = tuple(task.name for task in tasks)
        self.clock, self.lr = clock, lr
        self._model, self._tasks, self._batch = model, tasks, batch
        self._ranks, self._held_out, self._extra, self._autocast = ranks, held_out, extra, autocast
        self._device = batch.device
        self._complete, self._metrics = complete, metrics or {}
        self._probe_model = probe_model or model
        self._random_state = self._get_random_state()
        self.passes = 0  # backward passes that `gradient` made
        predictions, self.cut = self._forward(model, batch)
        self.roots, self._totals = self._measure(predictions, batch)

    @cached_property
    def losses(self) -> Tensor:
        """(K,) with gradient; value over all ranks."""
        return torch.stack(self.roots)

    @cached_property
    def sample_losses(self) -> Tensor:
        """(K, B) with gradient, 0 where the label is missing or the task has fewer rows than another."""
        return pad_sequence(self._totals, batch_first=True)

    @property
    def samples(self) -> list[Tensor] | None:
        """The K tensors (B,) behind `sample_losses` if anything has asked for it, else None."""
        return self._totals if "sample_losses" in self.__dict__ else None

    def extra_roots(self, count: int) -> list[list[Tensor]]:
        """K losses of each of `count` further training batches, with dropout masks of their own and without a trace in
        buffers."""
        if self._extra is None:
            raise MtlError("further training batches were asked for, but there are none; set data.extra_batches")
        found = []
        for number in range(count):
            rows = self._extra(number)
            predictions, _ = self._forward(self._probe_model, rows, self._copied_buffers())
            found.append(self._measure(predictions, rows)[0])
        return found

    @cached_property
    def params(self) -> Params:
        """The trainable parameters by name."""
        return {name: p for name, p in self._model.named_parameters() if p.requires_grad}

    @cached_property
    def shared(self) -> Params:
        """Those of `params` that several tasks reach."""
        shared = {id(p) for p in self._model.shared_parameters()}
        return {name: p for name, p in self.params.items() if id(p) in shared}

    def gradient(self, loss: Tensor, at: Params | None = None) -> Params:
        """Gradient of a scalar loss, averaged over ranks."""
        self.passes += 1
        params = self.params if at is None else at

        def differentiate() -> tuple[Tensor | None, ...]:
            return torch.autograd.grad(loss, list(params.values()), retain_graph=True, allow_unused=True)

        # What activation checkpointing computes again has to read the values that the forward pass read.
        found = differentiate() if at is None else self._with(at, differentiate)
        filled = [torch.zeros_like(p) if g is None else g for g, p in zip(found, params.values(), strict=True)]
        self._ranks.mean_(filled)
        return dict(zip(params, filled, strict=True))

    def _with(self, values: Params, function: Callable[[], Any]) -> Any:
        """Call `function` while the model has `values`."""
        return functional_call(_Inside(self._probe_model), {f"model.{name}": v for name, v in values.items()}, function)

    def mean_over_ranks(self, value: Tensor) -> Tensor:
        """The mean of a tensor that every rank has its own of."""
        value = value.detach().clone()
        self._ranks.mean_([value])
        return value

    def move(self, direction: Params, by: float) -> Params:
        """`params + by * direction`, as new leaves."""
        return moved(self.params, direction, by)

    def probe(self, at: Params | None = None, batch: Literal["train", "held_out"] = "train") -> Losses:
        """Losses at `at`, with the dropout masks of this step and without a trace in buffers or random state."""
        return Losses(*self._measure(*self._probe(at, batch)))

    def unmoved(self) -> Losses:
        """The step's own losses, where these are computed as in a probe: in full precision, by modules that are not
        compiled, which draw other dropout masks."""
        alike = self._autocast is None and self._probe_model is self._model
        return Losses(self.roots, self._totals) if alike else self.probe()

    def score(self, task: str, at: Params | None = None, batch: Literal["train", "held_out"] = "train") -> float | None:
        """The first metric of `task` on this rank's rows of that batch, signed so that higher is better."""
        about = next(t for t in self._tasks if t.name == task)
        names = tuple(self._metrics.get(task, ())[:1])
        if not names:
            raise MtlError(f"task '{task}' has no metric to score by")
        with torch.no_grad():
            predictions, rows = self._probe(at, batch)
        (found,) = score(about, names, predictions[task], rows.labels(task)).values()
        return found.value if found.value is None or found.higher_is_better else -found.value

    def _probe(self, at: Params | None, batch: Literal["train", "held_out"]) -> tuple[dict[str, Tensor], Batch]:
        if batch == "held_out" and self._held_out is None:
            raise MtlError("a held-out batch was asked for, but there is none; set data.held_out above 0")
        rows = self._held_out() if batch == "held_out" and self._held_out is not None else self._batch
        with self._same_randomness():
            predictions, _ = run(self._probe_model, rows, None, {**(at or {}), **self._copied_buffers()})
        return predictions, rows

    def _copied_buffers(self) -> Params:
        return {name: buffer.clone() for name, buffer in self._probe_model.named_buffers()}

    def _forward(self, model: MTLModel, batch: Batch, state: Params | None = None) -> Predicted:
        return run(model, batch, self._autocast, state)

    def _measure(self, predictions: dict[str, Tensor], batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        """K losses, each with a graph of its own, and their K totals (B,)."""
        terms = [
            task.loss(predictions[task.name], batch.labels(task.name), task.name in self._complete)
            for task in self._tasks
        ]
        totals = [term.total for term in terms]
        if self._ranks.world == 1:
            return [term.mean() for term in terms], totals
        # Mean over ranks of `world * total / global count` is the loss of the global batch, however unevenly the
        # labels lie.
        world = self._ranks.world
        labelled = [t.total.new_tensor(float(len(t.total))) if t.count is None else t.count.sum() for t in terms]
        counts = torch.stack(labelled) * world
        self._ranks.mean_([counts])
        local = [world * t.total.sum() / n.clamp(min=1) for t, n in zip(terms, counts, strict=True)]
        return self._ranks.shared(local), totals

    def _get_random_state(self) -> Tensor:
        return torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else torch.get_rng_state()

    def _set_random_state(self, state: Tensor) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(state, self._device)
        else:
            torch.set_rng_state(state)

    @contextmanager
    def _same_randomness(self) -> Iterator[None]:
        now = self._get_random_state()
        self._set_random_state(self._random_state)
        try:
            yield
        finally:
            self._set_random_state(now)
