"""Both weighting slots for a person's own training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtlcli.engine import arguments
from mtlcli.engine.closures import Closure, ClosureStep, Given
from mtlcli.engine.ranks import Ranks
from mtlcli.engine.rows import How
from mtlcli.engine.step import Report, Step
from mtlcli.engine.watch import Watch
from mtlcli.errors import MtlError, did_you_mean
from mtlcli.recipe import DEFAULTS, SEEDS_END
from mtlcli.registry import WeightingRegistry, gradient_weightings, loss_weightings
from mtlcli.weighting.base import Anchor, Clock, GradientWeighting, LossWeighting, Weighting

# What torch says in the middle of a backward pass, and what it means to the caller.
UNDERSTOOD = {
    "backward through the graph a second time": "the graph of these losses is used up; compute them anew for every "
    "call",
    "donated buffer": "this method goes back through the graph several times, which a compiled part does not allow by "
    "default: set torch._functorch.config.donated_buffer = False before its first call",
}


class Balancer:
    """Takes the place of `loss.backward()` where one network learns several tasks.

    Where torch.distributed is initialised, losses and gradients are averaged over the processes: the model needs no
    DistributedDataParallel around it, which would average once more. Gradients of methods that are free of the losses'
    scale (`si`, `igb_v1`, `igb_v2`, `stch` and others) do not shrink with a loss divided by the number of batches that
    are added up; divide `.grad` instead.

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
        lr: the optimiser's learning rate, for methods that simulate steps or go by how it falls. May be set anew at any
            time.
        seed: of every random draw.
        last_shared: the shared parameters nearest to the heads.
        groups: a partition of `shared`; the gradient weighting then decides for each group by itself.
        smooth: share of the last weights that a Gramian method's new ones are mixed with (CR-MOGM).
        rows: how task gradients are computed (see `Rows`).
        model: where a forward pass moves buffers, such as the statistics of BatchNorm, and a method calls closures,
            they are put back after each call; its parameters' names serve messages.
        epochs, steps_per_epoch: for methods that plan ahead; steps are counted if left out.

    Raises:
        MtlError: an unknown name or option, a task that is not among `tasks`, a method that needs shared parameters,
            anything of another type or range than it should be.
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
        if model is not None and not isinstance(model, nn.Module):
            raise MtlError(f"Balancer: model should be an nn.Module; found {type(model).__name__}")
        self.tasks, self.lr = arguments.names(tasks), lr
        arguments.number("lr", lr, 0)
        arguments.number("epochs", epochs, 0)
        arguments.number("steps_per_epoch", steps_per_epoch, 0)
        if type(seed) is not int or not 0 <= seed < SEEDS_END:
            raise MtlError(f"Balancer: seed should be a whole number from 0 to {SEEDS_END - 1}; found {seed!r}")
        options = arguments.mapping("options", options)
        for slot in options:
            if slot not in ("loss", "gradient"):
                hint = did_you_mean(slot, ("loss", "gradient"))
                raise MtlError(f"Balancer: options has the keys 'loss' and 'gradient'; found {slot!r}{hint}")
            arguments.mapping(f"options['{slot}']", options[slot])
        owners = {
            task: arguments.parameters(f"task_parameters['{task}']", own)
            for task, own in arguments.mapping("task_parameters", task_parameters).items()
        }
        for task in owners:
            if task not in self.tasks:
                hint = did_you_mean(task, self.tasks)
                known = ", ".join(self.tasks)
                raise MtlError(f"Balancer: task_parameters names '{task}', which is not a task{hint}; tasks: {known}")
        given = arguments.parameters("shared", shared)
        frozen = [p for each in (given, *owners.values()) for p in each if not p.requires_grad]
        self._shared = [p for p in given if p.requires_grad]
        self._private = {task: [p for p in own if p.requires_grad] for task, own in owners.items()}
        everything = [*self._shared, *(p for own in self._private.values() for p in own)]
        if len({id(p) for p in everything}) < len(everything):
            raise MtlError("Balancer: each parameter belongs to `shared` or to one task; found one that is given twice")
        if len({p.dtype for p in self._shared}) > 1:
            kinds = ", ".join(sorted({str(p.dtype) for p in self._shared}))
            raise MtlError(f"Balancer: shared parameters should have one dtype; found {kinds}")
        device = everything[0].device if everything else torch.device("cpu")
        self.loss_weighting: LossWeighting = self._slot("loss", loss, options, seed, device)
        self.gradient_weighting: GradientWeighting = self._slot("gradient", gradient, options, seed, device)
        at_parameters = self.gradient_weighting.reads != "nothing" and wrt != "representation"
        if (at_parameters or self.loss_weighting.takes_gradients) and any(p.is_complex() for p in everything):
            raise MtlError(
                "Balancer: gradients of tasks are compared by real numbers; hold complex parameters as real ones, and "
                "use torch.view_as_complex where they are needed"
            )
        self._step = Step(
            self._shared,
            self._private,
            self.loss_weighting,
            self.gradient_weighting,
            wrt=wrt,
            last_shared=arguments.trainable("last_shared", last_shared),
            groups=arguments.groups(groups),
            every=every,
            smooth=smooth,
            rows=rows,
            ranks=Ranks(),
        )
        self._watch = Watch(self._shared, self._private, frozen, self.loss_weighting, self.gradient_weighting, model)
        self._model = model
        self._buffered: list[nn.Module] = []  # modules with buffers
        self._count, self._epoch, self._epoch_began = 0, 0, 0
        self._epochs, self._steps_per_epoch = epochs, steps_per_epoch
        self._view: ClosureStep | None = None
        self._draws: bool | None = None  # whether the closure draws random numbers, once that is known

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
            closure: computes the losses of this batch again, at whatever values the parameters have then. Small
                differences are measured: it should have no autocast of its own, and one around the call is suspended.
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
        if not torch.is_grad_enabled():
            raise MtlError("backward: gradients are switched off here; call it outside of no_grad and inference_mode")
        arguments.number("lr", self.lr, 0)
        arguments.function("closure", closure)
        arguments.function("held_out", held_out)
        arguments.functions("extra", extra)
        for task, metric in arguments.mapping("metrics", metrics).items():
            arguments.function(f"metrics['{task}']", metric)
        wanted = self.gradient_weighting.extra_batches
        if len(extra) < wanted:
            raise MtlError(
                f"'{self.gradient_weighting.name}' needs the losses of {wanted} further training batches: pass "
                f"extra=[f, g], a function for each; found {len(extra)}"
            )
        self._watch.check_frozen()
        if self._watch.first and self._model is not None:  # the first forward pass may have made buffers
            self._buffered = [m for m in self._model.modules() if next(m.buffers(recurse=False), None) is not None]
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
            self._buffered,
            metrics or {},
            self._step.ranks,
            self._draws,
        )
        cut: Sequence[Tensor] = ()
        if self._step.wrt == "representation" and self.gradient_weighting.reads != "nothing":
            if representation is None:
                raise MtlError(
                    'wrt="representation": pass backward(losses, representation=z), the tensor that heads read'
                )
            cut = arguments.tensors("representation", representation)
        self._watch.look(self._view, cut, any(call is not None for call in (closure, held_out, *extra)))
        self._view.rounded = self._watch.rounded
        try:
            with self._view.full_precision():
                report = self._step.backward(self._view, cut)
        except RuntimeError as error:
            for words, meaning in UNDERSTOOD.items():
                if words in str(error):
                    raise MtlError(f"backward: {meaning}") from None
            raise
        self._draws = self._view.draws
        self._count += 1
        self._watch.remind(clock, self._count - self._epoch_began)
        return report

    def after_step(self) -> None:
        """Call after `optimizer.step()`; only methods that look back do anything."""
        self._watch.stepped()
        if self._view is not None:
            self.loss_weighting.after_step(self._view)
            self._draws = self._view.draws
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
            "made_for": self._made_for(),
            "lr": self.lr,
            "loss_weighting": self.loss_weighting.state_dict(),
            "gradient_weighting": self.gradient_weighting.state_dict(),
            "step": self._step.state_dict(),
            "clock": [self._count, self._epoch, self._epoch_began, self._steps_per_epoch],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Counterpart of `state_dict`. Raises MtlError for the state of other methods or other tasks."""
        mine = self._made_for()
        try:
            if state["made_for"] != mine:
                raise MtlError(f"Balancer: not the state of {_shown(mine)}; it is that of {_shown(state['made_for'])}")
            self.loss_weighting.load_state_dict(state["loss_weighting"])
            self.gradient_weighting.load_state_dict(state["gradient_weighting"])
            self._step.load_state_dict(state["step"])
            self._count, self._epoch, self._epoch_began, self._steps_per_epoch = state["clock"]
            self.lr = state["lr"]
        except (RuntimeError, KeyError, ValueError, TypeError) as error:
            what = str(error).splitlines()[-1].strip()
            what = f"it has no {what}" if isinstance(error, KeyError) else what
            raise MtlError(f"Balancer: not the state of {_shown(mine)}: {what}") from error

    def _made_for(self) -> dict[str, Any]:
        """What a state has to be of."""
        names = {"loss": self.loss_weighting.name, "gradient": self.gradient_weighting.name}
        return {**names, "tasks": list(self.tasks)}

    def _slot(
        self, slot: str, wanted: Any, options: Mapping[str, Mapping[str, Any]], seed: int, device: torch.device
    ) -> Any:
        kind: type[Weighting] = LossWeighting if slot == "loss" else GradientWeighting
        if isinstance(wanted, str):
            among: WeightingRegistry[Any] = loss_weightings if slot == "loss" else gradient_weightings
            return among.make(wanted, self.tasks, kind.seed_in(seed), device, options.get(slot, {}))
        if not isinstance(wanted, kind):
            raise MtlError(f"Balancer: {slot} should be a name or a {kind.__name__}; found {type(wanted).__name__}")
        if options.get(slot):
            raise MtlError(f"Balancer: options['{slot}'] goes with a name; this {slot} weighting is built already")
        if len(wanted.tasks) != len(self.tasks) or (
            set(wanted.tasks) == set(self.tasks) and wanted.tasks != self.tasks
        ):
            raise MtlError(
                f"Balancer: {slot} was built for the tasks {', '.join(wanted.tasks)}; found {', '.join(self.tasks)}"
            )
        return wanted.to(wanted.home(device))


def _shown(made_for: Mapping[str, Any]) -> str:
    return f"{made_for['loss']}+{made_for['gradient']} on the tasks {', '.join(made_for['tasks'])}"
