"""One step of somebody else's loop, as loss weightings see it (`StepView`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mtlcli.engine.graph import SHORT
from mtlcli.errors import MtlError
from mtlcli.weighting.base import Clock, Losses, Params

Given = Tensor | Mapping[str, Tensor] | Sequence[Tensor]
Closure = Callable[[], Given]

UNLABELLED = "where a batch has no label of a task, give 0 * prediction.sum()"


class NotPrivate(NamedTuple):
    """Parameters that are said to belong to one task, and do not."""

    owner: str  # the task that they were given for
    parameters: list[nn.Parameter]


class ClosureStep:
    """What one call of `Balancer.backward` was given.

    Args:
        buffered: modules whose buffers a forward pass may move.
        draws: whether the closure draws random numbers, such as dropout masks; None where that is not known yet.
    """

    def __init__(
        self,
        tasks: tuple[str, ...],
        losses: Given,
        clock: Clock,
        lr: float,
        shared: Sequence[nn.Parameter],
        private: Mapping[str, Sequence[nn.Parameter]],
        closures: Mapping[str, Closure | None],
        extra: Sequence[Closure],
        buffered: Sequence[nn.Module],
        metrics: Mapping[str, Callable[[], float]],
        draws: bool | None = None,
    ) -> None:
        self.tasks, self.clock, self.lr = tasks, clock, lr
        self._closures, self._extra = closures, extra
        self._buffered, self._metrics = buffered, metrics
        self._shared, self._private = shared, private
        self.draws = draws
        self.rounded = False  # whether the losses given were computed in 16 bits
        self.passes = 0  # backward passes that `gradient` made
        self.roots, self._samples = self._taken_apart(losses, "losses")
        self._device = self.roots[0].device
        self._random_state: list[Tensor] | None = None  # that all probes begin with
        self._drew = False  # whether the last probe drew random numbers

    @cached_property
    def shared(self) -> Params:
        """The shared parameters, by their place in what was given."""
        return {f"shared.{i}": p for i, p in enumerate(self._shared)}

    @cached_property
    def params(self) -> Params:
        """All parameters that were given, likewise."""
        owned = {f"{task}.{i}": p for task, own in self._private.items() for i, p in enumerate(own)}
        return {**self.shared, **owned}

    @cached_property
    def losses(self) -> Tensor:
        """(K,) with gradient."""
        return torch.stack(list(self.roots))

    @cached_property
    def sample_losses(self) -> Tensor:
        """(K, B) with gradient, 0 where a task has fewer rows than another. Raises MtlError where means were given."""
        if self._samples is None:
            raise MtlError(
                "this method weighs samples: pass losses of shape (K, B), one row of per-sample losses a task, "
                f"to backward(); found one loss a task ({', '.join(self.tasks)})"
            )
        return pad_sequence(list(self._samples), batch_first=True)

    @property
    def samples(self) -> Sequence[Tensor] | None:
        """The K rows behind `sample_losses` if anything has asked for it, else None."""
        return self._samples if "sample_losses" in self.__dict__ else None

    def extra_roots(self, count: int) -> list[Sequence[Tensor]]:
        """K losses of each of `count` further training batches; the model's buffers are put back after them."""
        with self._same_buffers():
            return [self._taken_apart(closure(), "the losses of an extra batch")[0] for closure in self._extra[:count]]

    def gradient(self, loss: Tensor, at: Params | None = None) -> Params:
        """Gradient of a scalar loss with respect to `params`, or at `at` for a loss probed there."""
        self.passes += 1
        wanted = {name: self.params[name] for name in at or self.params}
        with self._at(at):  # a leaf is saved by reference: its backward pass must see the values of the forward pass
            found = torch.autograd.grad(loss, list(wanted.values()), retain_graph=True, allow_unused=True)
        filled = (torch.zeros_like(p) if g is None else g for p, g in zip(wanted.values(), found, strict=True))
        return {name: g.to_dense() if g.is_sparse else g for name, g in zip(wanted, filled, strict=True)}

    def not_private(self) -> NotPrivate | None:
        """The first task with parameters of its own that the loss of another task depends on. The graph stays usable.

        It asks for gradients, since losses that were cut from one tensor have one graph.
        """
        for owner, own in self._private.items():
            others = [root for task, root in zip(self.tasks, self.roots, strict=True) if task != owner]
            if own and others:
                found = torch.autograd.grad(others, own, retain_graph=True, allow_unused=True)
                # 0 times an overflow is NaN, and says nothing.
                reached = [p for p, g in zip(own, found, strict=True) if g is not None and g.nan_to_num(0, 0, 0).any()]
                if reached:
                    return NotPrivate(owner, reached)
        return None

    def mean_over_ranks(self, value: Tensor) -> Tensor:
        """`value`: a person's own loop has one process."""
        return value

    def move(self, direction: Params, by: float) -> Params:
        """`params + by * direction`, as new leaves."""
        return {
            name: (p.detach() + by * direction[name]).requires_grad_() if name in direction else p
            for name, p in self.params.items()
        }

    def probe(self, at: Params | None = None, batch: Literal["train", "held_out"] = "train") -> Losses:
        """Call the closure with the parameters at `at`; values, buffers and random state are put back after it."""
        closure = self._closures[batch]
        if closure is None:
            argument = "closure" if batch == "train" else "held_out"
            which = "this batch" if batch == "train" else "a held-out batch"
            raise MtlError(
                f"this method measures the losses of {which} again: pass backward(losses, {argument}=f), where f() "
                "computes them at the parameters' current values"
            )
        with self._probing(at):
            given = closure()
        if batch == "train":
            self.draws = self.draws or self._drew
        return _losses(*self._taken_apart(given, "the closure's losses", torch.is_grad_enabled()))

    def unmoved(self) -> Losses:
        """What was given; or, in the precision and with the masks of all probes, what the closure gives, where
        that would differ: where the losses were computed in 16 bits, or the closure draws masks of its own."""
        if self.draws is False and not self.rounded:
            return _losses(self.roots, self._samples)
        with torch.no_grad():
            return self.probe()

    def score(self, task: str, at: Params | None = None, batch: Literal["train", "held_out"] = "train") -> float | None:
        """Call the metric's function with the parameters at `at`."""
        if task not in self._metrics:
            raise MtlError(
                f"this method goes by a metric of '{task}': pass backward(losses, metrics={{'{task}': f}}), where f() "
                "computes it at the parameters' current values, higher is better"
            )
        with torch.no_grad(), self._probing(at):
            found = self._metrics[task]()
        return None if found is None else float(found)

    @contextmanager
    def _probing(self, at: Params | None) -> Iterator[None]:
        """Parameters at `at`, the step's random state, full precision; all of it and the buffers are put back after it.

        Autocast keeps 16-bit copies of parameters, which know nothing of values that are exchanged.
        """
        now = self._get_random_state()
        if self._random_state is None:
            self._random_state = now
        self._set_random_state(self._random_state, now)
        try:
            with self._same_buffers(), self._at(at), self.full_precision():
                torch.clear_autocast_cache()
                yield
        finally:
            torch.clear_autocast_cache()
            then = self._get_random_state()
            self._drew = not _same(self._random_state, then)
            self._set_random_state(now, then)

    def full_precision(self) -> AbstractContextManager[None]:
        kind = self._device.type
        return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()

    @contextmanager
    def _same_buffers(self) -> Iterator[None]:
        # Exchanged, not copied back: writing into a buffer would spoil the graphs that have saved it.
        buffers = [(buffer, buffer.data) for module in self._buffered for buffer in module.buffers(recurse=False)]
        for buffer, data in buffers:
            buffer.data = data.clone()
        try:
            yield
        finally:
            for buffer, data in buffers:
                buffer.data = data

    def _taken_apart(
        self, given: Given, what: str, differentiable: bool = True
    ) -> tuple[Sequence[Tensor], Sequence[Tensor] | None]:
        """K scalar losses and, where they were given per sample, the K rows (B,) that they are means of."""
        if isinstance(given, Mapping):
            missing = [task for task in self.tasks if task not in given]
            extra = [task for task in given if task not in self.tasks]
            if missing or extra:
                raise MtlError(
                    f"backward: {what} should hold one entry for each of {', '.join(self.tasks)}; "
                    f"missing: {', '.join(missing) or 'none'}, unknown: {', '.join(map(str, extra)) or 'none'}"
                    + (f"; {UNLABELLED}" if missing else "")
                )
            parts: Sequence[Tensor] = [given[task] for task in self.tasks]
        elif isinstance(given, Tensor):
            parts = given.unbind() if given.ndim else []
        else:
            parts = list(given) if isinstance(given, Iterable) else []
        if len(parts) != len(self.tasks) or any(not isinstance(part, Tensor) or part.ndim > 1 for part in parts):
            found = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
            kinds = {str(tuple(p.shape)) if isinstance(p, Tensor) else type(p).__name__ for p in parts}
            raise MtlError(
                f"backward: {what} should be a dict by task, or a tensor of shape ({len(self.tasks)},) or "
                f"({len(self.tasks)}, B) in the order {', '.join(self.tasks)}; found {found}"
                + (f" of {', '.join(sorted(kinds))}" if parts and not isinstance(given, Tensor) else "")
            )
        if differentiable:
            for task, part in zip(self.tasks, parts, strict=True):
                if not part.requires_grad:
                    raise MtlError(
                        f"backward: the loss of '{task}' has no gradient; compute it without no_grad or detach; "
                        + UNLABELLED
                    )
        parts = [part.float() if part.dtype in SHORT else part for part in parts]
        roots = [part.mean() if part.ndim else part for part in parts]
        return roots, parts if all(part.ndim for part in parts) else None

    @contextmanager
    def _at(self, values: Params | None) -> Iterator[None]:
        if values is None:
            yield
            return
        before = {name: p.data for name, p in self.params.items()}
        try:
            for name, value in values.items():
                self.params[name].data = value.data
            yield
        finally:
            for name, data in before.items():
                self.params[name].data = data

    def _get_random_state(self) -> list[Tensor]:
        on_cuda = [torch.cuda.get_rng_state(self._device)] if self._device.type == "cuda" else []
        return [torch.get_rng_state(), *on_cuda]

    def _set_random_state(self, states: list[Tensor], now: list[Tensor]) -> None:
        """From `now` to `states`; setting costs more than comparing."""
        if _same(states, now):
            return
        torch.set_rng_state(states[0])
        for state in states[1:]:
            torch.cuda.set_rng_state(state, self._device)


def _same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(map(torch.equal, one, other))


def _losses(roots: Sequence[Tensor], samples: Sequence[Tensor] | None) -> Losses:
    return Losses(roots, [root[None] for root in roots] if samples is None else samples)
