"""One step of somebody else's loop, as loss weightings see it (`StepView`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from numbers import Real
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mtlcli.engine.graph import SHORT
from mtlcli.engine.ranks import Ranks
from mtlcli.errors import MtlError
from mtlcli.weighting.base import Clock, Losses, Params, moved

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
        ranks: the processes that train together, each with losses of its own.
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
        ranks: Ranks,
        draws: bool | None = None,
    ) -> None:
        self.tasks, self.clock, self.lr = tasks, clock, lr
        self._given, self._ranks = losses, ranks
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
        owned = {f"of {task}.{i}": p for task, own in self._private.items() for i, p in enumerate(own)}
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
            return [self._anew(closure(), f"extra[{i}]")[0] for i, closure in enumerate(self._extra[:count])]

    def gradient(self, loss: Tensor, at: Params | None = None) -> Params:
        """Gradient of a scalar loss with respect to `params`, or at `at` for a loss probed there."""
        self.passes += 1
        wanted = {name: self.params[name] for name in at or self.params}
        with self._at(at):  # a leaf is saved by reference: its backward pass must see the values of the forward pass
            found = torch.autograd.grad(loss, list(wanted.values()), retain_graph=True, allow_unused=True)
        filled = (torch.zeros_like(p) if g is None else g for p, g in zip(wanted.values(), found, strict=True))
        dense = [g.to_dense() if g.is_sparse else g for g in filled]
        self._ranks.mean_(dense)
        return dict(zip(wanted, dense, strict=True))

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
        """The mean of a tensor that every rank has its own of."""
        value = value.detach().clone()
        self._ranks.mean_([value])
        return value

    def move(self, direction: Params, by: float) -> Params:
        """`params + by * direction`, as new leaves."""
        return moved(self.params, direction, by)

    def probe(self, at: Params | None = None, batch: Literal["train", "held_out"] = "train") -> Losses:
        """Call the closure with the parameters at `at`; values, buffers and random state are put back after it."""
        closure = self._closures[batch]
        argument = "closure" if batch == "train" else "held_out"
        if closure is None:
            which = "this batch" if batch == "train" else "a held-out batch"
            raise MtlError(
                f"this method measures the losses of {which} again: pass backward(losses, {argument}=f), where f() "
                "computes them at the parameters' current values"
            )
        with self._probing(at):
            given = closure()
        roots, samples = self._anew(given, argument, torch.is_grad_enabled())
        if batch == "train":
            self.draws = self.draws or self._drew
            if self.samples is not None:
                self._check_rows(samples)
        return _losses(roots, samples)

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
            found: Any = self._metrics[task]()
        if found is None:
            return None
        if not isinstance(found, Real) and not (isinstance(found, Tensor) and found.numel() == 1):
            raise MtlError(
                f"backward: metrics['{task}'] should give a number, higher is better, or None where it is undefined; "
                f"found {type(found).__name__}"
            )
        return float(found)

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
        # Exchanged, not copied back: writing into a buffer would spoil the graphs that have saved it. A forward pass
        # may also put another tensor in its place.
        places = [(module._buffers, dict(module._buffers)) for module in self._buffered]
        buffers = [(buffer, buffer.data) for _, held in places for buffer in held.values() if buffer is not None]
        for buffer, data in buffers:
            buffer.data = data.clone()
        try:
            yield
        finally:
            for place, held in places:
                place.update(held)
            for buffer, data in buffers:
                buffer.data = data

    def _anew(
        self, given: Given, argument: str, differentiable: bool = True
    ) -> tuple[Sequence[Tensor], Sequence[Tensor] | None]:
        """What a function that was passed as `argument` gave, taken apart."""
        known = {id(part) for part in (self._given, *_parts(self._given))}
        if any(id(part) in known for part in (given, *_parts(given))):
            raise MtlError(
                f"backward: {argument} should compute its losses anew, at the values that the parameters have when it "
                "is called; it gave those that backward was called with"
            )
        return self._taken_apart(given, f"what {argument} gives", differentiable)

    def _check_rows(self, samples: Sequence[Tensor] | None) -> None:
        """Hold the samples of a closure against those given, which they are compared with one by one."""
        assert self._samples is not None
        wanted = [len(row) for row in self._samples]
        found = None if samples is None else [len(row) for row in samples]
        if found != wanted:
            raise MtlError(
                f"backward: closure should give the per-sample losses of this batch, {wanted} of "
                f"{', '.join(self.tasks)}, as losses did; found {'one loss a task' if found is None else found}"
            )

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
            parts = list(given) if isinstance(given, Iterable) and not isinstance(given, Set) else []
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
                        f"backward: {what}: the loss of '{task}' has no gradient; compute it without no_grad or "
                        f"detach; {UNLABELLED}"
                    )
        parts = [part.float() if part.dtype in SHORT else part for part in parts]
        roots = self._ranks.shared([part.mean() if part.ndim else part for part in parts])
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


def _parts(given: Given) -> Iterable[Tensor]:
    if isinstance(given, Mapping):
        return given.values()
    return given if isinstance(given, Sequence) else ()


def _same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(map(torch.equal, one, other))


def _losses(roots: Sequence[Tensor], samples: Sequence[Tensor] | None) -> Losses:
    return Losses(roots, [root[None] for root in roots] if samples is None else samples)
