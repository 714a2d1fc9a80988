"""Both weighting slots for a person's own training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mtlcli.engine.ranks import Ranks
from mtlcli.engine.rows import How
from mtlcli.engine.step import Report, Step
from mtlcli.errors import MtlError, did_you_mean
from mtlcli.recipe import DEFAULTS
from mtlcli.registry import WeightingRegistry, gradient_weightings, loss_weightings
from mtlcli.weighting.base import Anchor, Clock, GradientWeighting, Losses, LossWeighting, Params

Given = Tensor | Mapping[str, Tensor] | Sequence[Tensor]
Closure = Callable[[], Given]


class Balancer:
    """Takes the place of `loss.backward()` where one network learns several tasks.

    Args:
        tasks: names of the K tasks; every (K,) tensor follows their order.
        loss: a loss weighting, by name or as an instance of one's own class.
        gradient: a gradient weighting, likewise.
        shared: parameters that several tasks reach. Gradient weightings act on them.
        task_parameters: per task, the parameters that it alone reaches. Every other trainable parameter of the losses
            belongs to `shared`.
        options: `{"loss": {...}, "gradient": {...}}`, the options of weightings given by name.
        wrt: take task gradients at the shared parameters, at the representation handed to `backward`, or at
            `last_shared` alone.
        every: compute the weights of a Gramian method every n-th step and reuse them in between.
        lr: the optimiser's learning rate, for methods that simulate steps. May be set anew at any time.
        seed: of every random draw.
        last_shared: the shared parameters nearest to the heads.
        groups: a partition of `shared`; the gradient weighting then decides for each group by itself.
        smooth: share of the last weights that a Gramian method's new ones are mixed with (CR-MOGM).
        rows: how task gradients are computed (see `Rows`).
        model: where it has BatchNorm and a method calls closures, its buffers are put back after each call.
        epochs, steps_per_epoch: for methods that plan ahead; steps are counted if left out.

    Raises:
        MtlError: an unknown name or option, a task that is not among `tasks`, a method that needs shared parameters.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        loss: str | LossWeighting = DEFAULTS["weighting.loss"],
        gradient: str | GradientWeighting = DEFAULTS["weighting.gradient"],
        shared: Iterable[nn.Parameter] = (),
        task_parameters: Mapping[str, Iterable[nn.Parameter]] | None = None,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        wrt: Anchor = "params",
        every: int = 1,
        lr: float = 1e-3,
        seed: int = 0,
        last_shared: Iterable[nn.Parameter] = (),
        groups: Iterable[Iterable[nn.Parameter]] = (),
        smooth: float = 0.0,
        rows: How = "auto",
        model: nn.Module | None = None,
        epochs: int = 0,
        steps_per_epoch: int = 0,
    ) -> None:
        if isinstance(tasks, str) or not tasks or len(set(tasks)) < len(tasks):
            raise MtlError(f"Balancer: tasks should be a list of different names; found {tasks!r}")
        self.tasks, self.lr = tuple(tasks), lr
        options = options or {}
        for slot in options:
            if slot not in ("loss", "gradient"):
                hint = did_you_mean(slot, ("loss", "gradient"))
                raise MtlError(f"Balancer: options has the keys 'loss' and 'gradient'; found {slot!r}{hint}")
        owners = {task: list(parameters) for task, parameters in (task_parameters or {}).items()}
        for task in owners:
            if task not in self.tasks:
                hint = did_you_mean(task, self.tasks)
                raise MtlError(f"Balancer: task_parameters names '{task}', which is no task{hint}; tasks: {self.tasks}")
        self._shared = [p for p in shared if p.requires_grad]
        self._private = {task: [p for p in own if p.requires_grad] for task, own in owners.items()}
        everything = [*self._shared, *(p for own in self._private.values() for p in own)]
        if len({id(p) for p in everything}) < len(everything):
            raise MtlError("Balancer: each parameter belongs to `shared` or to one task; found one that is given twice")
        device = everything[0].device if everything else torch.device("cpu")
        self.loss_weighting: LossWeighting = self._slot("loss", loss, loss_weightings, options, seed).to(device)
        self.gradient_weighting: GradientWeighting = self._slot(
            "gradient", gradient, gradient_weightings, options, seed
        )
        self._step = Step(
            self._shared,
            self._private,
            self.loss_weighting,
            self.gradient_weighting,
            wrt=wrt,
            last_shared=last_shared,
            groups=groups,
            every=every,
            smooth=smooth,
            rows=rows,
            ranks=Ranks(),
        )
        self._model = model
        self._count, self._epoch, self._epoch_began = 0, 0, 0
        self._epochs, self._steps_per_epoch = epochs, steps_per_epoch
        self._view: ClosureStep | None = None

    def backward(
        self,
        losses: Given,
        representation: Tensor | Sequence[Tensor] | None = None,
        closure: Closure | None = None,
        held_out: Closure | None = None,
        extra: Sequence[Closure] = (),
        metrics: Mapping[str, Callable[[], float]] | None = None,
    ) -> Report:
        """Add this step's gradients to `.grad`, as `losses.sum().backward()` would.

        Args:
            losses: `{task: scalar}` or a list of scalars (cheapest: each has a graph of its own), a tensor (K,), or
                (K, B) per sample for methods that weigh samples.
            representation: with `wrt="representation"`, the tensor that the heads read.
            closure: computes the losses of this batch again, at whatever values the parameters have then.
            held_out: the same on a held-out batch.
            extra: the same on further training batches, for methods that need gradients of several batches which do not
                depend on each other.
            metrics: by task, a function of its metric at the parameters' current values, higher is better; for methods
                that go by a metric.

        Raises:
            MtlError: the losses do not fit the tasks, or the method needs an argument that was not given.
        """
        if "held_out" in self.loss_weighting.needs_with(self.loss_weighting.options) and held_out is None:
            raise MtlError(
                f"'{self.loss_weighting.name}' needs held-out data: pass held_out=, a function of its losses"
            )
        wanted = self.gradient_weighting.extra_batches
        if len(extra) < wanted:
            raise MtlError(
                f"'{self.gradient_weighting.name}' needs the losses of {wanted} further training batches: pass "
                f"extra=[f, g], a function for each; found {len(extra)}"
            )
        clock = Clock(self._count, self._epoch, self._steps_per_epoch, self._epochs)
        self._view = ClosureStep(
            self.tasks,
            losses,
            clock,
            self.lr,
            self._shared,
            self._private,
            {"train": closure, "held_out": held_out},
            extra,
            self._model,
            metrics or {},
        )
        cut: Sequence[Tensor] = ()
        if self._step.wrt == "representation" and self.gradient_weighting.reads != "nothing":
            if representation is None:
                raise MtlError(
                    'wrt="representation": pass backward(losses, representation=z), the tensor that heads read'
                )
            cut = [representation] if isinstance(representation, Tensor) else list(representation)
        report = self._step.backward(self._view, cut)
        self._count += 1
        return report

    def after_step(self) -> None:
        """Call after `optimizer.step()`; only methods that look back do anything."""
        if self._view is not None:
            self.loss_weighting.after_step(self._view)
            self._view = None

    def end_epoch(self) -> None:
        """Call after each epoch, for methods that compare epochs."""
        self._epoch += 1
        self._steps_per_epoch = self._count - self._epoch_began
        self._epoch_began = self._count

    def parameters(self) -> list[nn.Parameter]:
        """The loss weighting's learnable parameters: add them to the optimiser."""
        return self.loss_weighting.learnable()

    @property
    def events(self) -> dict[str, int]:
        """How often something happened that a person should know, such as a solve that had to be regularised."""
        return dict(self.loss_weighting.events + self.gradient_weighting.events)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed loop needs, besides the model and the optimiser."""
        return {
            "loss_weighting": self.loss_weighting.state_dict(),
            "gradient_weighting": self.gradient_weighting.state_dict(),
            "step": self._step.state_dict(),
            "clock": [self._count, self._epoch, self._epoch_began, self._steps_per_epoch],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Counterpart of `state_dict`."""
        self.loss_weighting.load_state_dict(state["loss_weighting"])
        self.gradient_weighting.load_state_dict(state["gradient_weighting"])
        self._step.load_state_dict(state["step"])
        self._count, self._epoch, self._epoch_began, self._steps_per_epoch = state["clock"]

    def _slot(
        self, slot: str, wanted: Any, among: WeightingRegistry[Any], options: Mapping[str, Mapping[str, Any]], seed: int
    ) -> Any:
        if isinstance(wanted, str):
            return among.build(wanted, self.tasks, 2 * seed + (1 if slot == "loss" else 2), **options.get(slot, {}))
        if not isinstance(wanted, LossWeighting if slot == "loss" else GradientWeighting):
            kind = "LossWeighting" if slot == "loss" else "GradientWeighting"
            raise MtlError(f"Balancer: {slot} should be a name or a {kind}; found {type(wanted).__name__}")
        if options.get(slot):
            raise MtlError(f"Balancer: options['{slot}'] goes with a name; this {slot} weighting is built already")
        return wanted


class ClosureStep:
    """A step of somebody else's loop, as weightings see it (`StepView`)."""

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
        model: nn.Module | None,
        metrics: Mapping[str, Callable[[], float]],
    ) -> None:
        self.tasks, self.clock, self.lr = tasks, clock, lr
        self._closures, self._extra = closures, extra
        self._model, self._metrics = model, metrics
        self.shared: Params = {f"shared.{i}": p for i, p in enumerate(shared)}
        self.params: Params = dict(self.shared)
        for task, own in private.items():
            self.params |= {f"{task}.{i}": p for i, p in enumerate(own)}
        self.roots, self._samples = self._taken_apart(losses, "losses")
        self._devices = [p.device for p in self.params.values() if p.device.type == "cuda"][:1]
        self._random_state = self._get_random_state()

    @cached_property
    def losses(self) -> Tensor:
        """(K,) with gradient."""
        return torch.stack(list(self.roots))

    @cached_property
    def sample_losses(self) -> Tensor:
        """(K, B) with gradient. Raises MtlError where the losses were given as means."""
        if self._samples is None:
            raise MtlError(
                "this method weighs samples: pass losses of shape (K, B), one row of per-sample losses a task, "
                f"to backward(); found one loss a task ({', '.join(self.tasks)})"
            )
        return torch.stack(list(self._samples))

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
        with self._at(at):  # a leaf is saved by reference: its backward pass must see the values of the forward pass
            found = torch.autograd.grad(loss, list(self.params.values()), retain_graph=True, allow_unused=True)
        return {
            name: torch.zeros_like(p) if g is None else g
            for (name, p), g in zip(self.params.items(), found, strict=True)
        }

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
            roots, samples = self._taken_apart(closure(), "the closure's losses", torch.is_grad_enabled())
        per_task = torch.stack(list(roots))
        return Losses(per_task, per_task[:, None] if samples is None else torch.stack(list(samples)))

    def score(self, task: str, at: Params | None = None, batch: Literal["train", "held_out"] = "train") -> float | None:
        """Call the metric's function with the parameters at `at`."""
        if task not in self._metrics:
            raise MtlError(
                f"this method goes by a metric of '{task}': pass backward(losses, metrics={{'{task}': f}}), where f() "
                "computes it at the parameters' current values, higher is better"
            )
        with torch.no_grad(), self._probing(at):
            return float(self._metrics[task]())

    @contextmanager
    def _probing(self, at: Params | None) -> Iterator[None]:
        """Parameters at `at`, the step's random state; all of it and the buffers are put back afterwards."""
        now = self._get_random_state()
        self._set_random_state(self._random_state)
        try:
            with self._same_buffers(), self._at(at):
                yield
        finally:
            self._set_random_state(now)

    @contextmanager
    def _same_buffers(self) -> Iterator[None]:
        # Exchanged, not copied back: writing into a buffer would spoil the graphs that have saved it.
        buffers = [] if self._model is None else [(buffer, buffer.data) for buffer in self._model.buffers()]
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
                )
            parts: Sequence[Tensor] = [given[task] for task in self.tasks]
        else:
            parts = list(given) if not isinstance(given, Tensor) else given.unbind() if given.ndim else []
        if len(parts) != len(self.tasks) or any(not isinstance(part, Tensor) or part.ndim > 1 for part in parts):
            found = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
            raise MtlError(
                f"backward: {what} should be a dict by task, or a tensor of shape ({len(self.tasks)},) or "
                f"({len(self.tasks)}, B) in the order {', '.join(self.tasks)}; found {found}"
            )
        if differentiable:
            for task, part in zip(self.tasks, parts, strict=True):
                if not part.requires_grad:
                    raise MtlError(
                        f"backward: the loss of '{task}' has no gradient; compute it without no_grad or detach"
                    )
        parts = [part.to(torch.promote_types(part.dtype, torch.float32)) for part in parts]
        if parts[0].ndim == 0:
            return parts, None
        return [part.mean() for part in parts], parts

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
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in self._devices)]

    def _set_random_state(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        for device, state in zip(self._devices, states[1:], strict=True):
            torch.cuda.set_rng_state(state, device)
