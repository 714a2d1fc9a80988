"""What a Balancer notices by itself of how it is used: where the losses come from, and calls that are missing."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mtlcli.engine.closures import ClosureStep
from mtlcli.engine.graph import SHORT, Reached, nested, reached
from mtlcli.errors import MtlError
from mtlcli.weighting.base import Clock, GradientWeighting, LossWeighting

PATIENCE = 32  # calls of `backward` before a forgotten call is spoken of: a loop may add up several batches a step


class Watch:
    """Holds every call of `Balancer.backward` against what the Balancer was told of the model.

    Args:
        shared: trainable parameters that several tasks reach.
        private: per task, those that it alone reaches.
        frozen: parameters that were given, but were not trainable then.
        model: whose names serve messages.
    """

    def __init__(
        self,
        shared: Sequence[nn.Parameter],
        private: Mapping[str, Sequence[nn.Parameter]],
        frozen: Sequence[nn.Parameter],
        loss: LossWeighting,
        gradient: GradientWeighting,
        model: nn.Module | None,
    ) -> None:
        self._shared, self._frozen = shared, frozen
        self._known = [*shared, *(p for own in private.values() for p in own)]
        self._loss, self._gradient, self._model = loss, gradient, model
        self._calls = 0
        self._since = 0  # calls since the last of `after_step`
        self._learned: list[Tensor] = []  # what the loss weighting's learnable parameters were at first
        self.rounded = False  # whether the losses are computed in 16 bits
        # Whether anything goes by which parameters were given as whose.
        self.asks = gradient.reads != "nothing" or loss.takes_gradients or loss.heads == "unweighted"

    @property
    def first(self) -> bool:
        """Whether the next call is the first one."""
        return self._calls == 0

    def check_frozen(self) -> None:
        """Raise MtlError where a parameter has been frozen or unfrozen since the Balancer was made."""
        if not self.asks:
            return
        for now, found in (
            ("frozen", not all(p.requires_grad for p in self._known)),
            ("unfrozen", any(p.requires_grad for p in self._frozen)),
        ):
            if found:
                raise MtlError(f"Balancer: a parameter was {now} after the Balancer was made; make a new one")

    def look(self, view: ClosureStep, cut: Sequence[Tensor], closures: bool) -> None:
        """Hold the graph of the losses against what is known: wholly in the first call, then ever more seldom for what
        may change. `closures`: whether functions are called at other values of the parameters.

        Raises MtlError where they do not fit.
        """
        if self.first:
            self._look_at_all(view, cut, closures)
            self._learned = [p.detach().clone() for p in self._loss.learnable()]
        elif self._calls & (self._calls - 1) == 0:
            self._look_again(reached(view.roots, cut))
        self._calls += 1

    def remind(self, clock: Clock, steps: int) -> None:
        """Warn of calls that are missing. `steps`: in this epoch so far."""
        loss = self._loss
        self._since += 1
        forgotten = None
        if self._since == PATIENCE and type(loss).after_step is not LossWeighting.after_step:
            forgotten = (
                f"'{loss.name}' learns from what each step did to the losses, and has learned nothing "
                f"in {PATIENCE} calls of backward: call after_step() after optimizer.step()"
            )
        if self._calls == PATIENCE and self._learned and not self._moved():
            forgotten = (
                f"'{loss.name}' has parameters that nobody trained in {PATIENCE} calls of backward: give "
                "balancer.parameters() to the optimiser"
            )
        begins = type(loss).begins(loss.options)
        if clock.steps_per_epoch and steps == 2 * clock.steps_per_epoch + 1 and clock.epoch < begins:
            forgotten = (
                f"'{loss.name}' begins in epoch {begins}, counted from 0, and epoch {clock.epoch} has had {steps} "
                f"steps instead of {clock.steps_per_epoch}: call end_epoch() after each epoch"
            )
        if forgotten:
            warnings.warn(forgotten, stacklevel=3)

    def stepped(self) -> None:
        """Told of a call of `after_step`."""
        self._since = 0

    def _moved(self) -> bool:
        """Whether learnable parameters have moved, or have had no reason to."""
        now = self._loss.learnable()
        waiting = any(p.grad is not None and bool(p.grad.any()) for p in now)
        return not waiting or not all(map(torch.equal, now, self._learned))

    def _look_at_all(self, view: ClosureStep, cut: Sequence[Tensor], closures: bool) -> None:
        found = reached(view.roots, cut)
        self._check_devices(view.roots[0].device)
        if closures and found.normalised and self._model is None:
            raise MtlError(
                "Balancer: the losses pass through batch normalisation, whose statistics every call of a closure would "
                "move: pass model=, so that they are put back"
            )
        if closures and any(p.dtype in SHORT for p in self._known):
            warnings.warn(
                "closures measure small differences, which parameters of 16 bits mostly lose: keep the parameters in "
                "float32, and compute in 16 bits with torch.autocast around the forward pass",
                stacklevel=4,
            )
        if not self._shared and self._loss.takes_gradients:
            what = "all parameters in shared= are frozen" if self._frozen else "pass shared=, those of the trunk"
            raise MtlError(f"Balancer: '{self._loss.name}' takes gradients at the shared parameters: {what}")
        self._look_again(found)
        if self.asks:
            self._check_owners(view)
        if self._gradient.reads != "nothing":
            self._check_cut(cut, found.parameters)

    def _check_devices(self, device: torch.device) -> None:
        for weighting in (self._loss, self._gradient):
            home = weighting.home(device)
            wrong = [t.device for t in itertools.chain(weighting.parameters(), weighting.buffers()) if t.device != home]
            if wrong:
                raise MtlError(
                    f"Balancer: the losses are on {device}, and what '{weighting.name}' keeps is on {wrong[0]}: make "
                    "the Balancer after the model has been moved, and pass shared=, whose device it takes"
                )

    def _look_again(self, found: Reached) -> None:
        """What may change while training goes on: the precision, and which parameters are frozen."""
        self.rounded = found.rounded
        known = {id(p) for p in self._known}
        missing = [p for p in found.parameters if p.requires_grad and id(p) not in known]
        if missing and self.asks:
            raise MtlError(
                f"Balancer: {len(missing)} trainable parameters of the losses are in neither `shared` nor "
                f"`task_parameters`, and would not be trained: {self._shown(missing)}; "
                "those that one task alone reaches, such as its head, belong to task_parameters={'task': "
                "head.parameters()}"
            )

    def _check_owners(self, view: ClosureStep) -> None:
        several = view.not_private()
        if several:
            raise MtlError(
                f"Balancer: task_parameters['{several.owner}'] holds parameters that the losses of other tasks reach: "
                f"{self._shown(several.parameters)}; those that several tasks reach belong to `shared`, and a head to "
                "its own task"
            )

    def _check_cut(self, cut: Sequence[Tensor], around: Sequence[nn.Parameter]) -> None:
        """Whether all paths cross `cut` once. `around`: what the losses reach beside it."""
        shared = {id(p) for p in self._shared} - {id(tensor) for tensor in cut}
        past = [p for p in around if id(p) in shared] if cut else []
        if past or nested(cut):
            how = f"past it from {self._shown(past)}" if past else "from one of its tensors through another"
            raise MtlError(
                "backward: every path from a shared parameter to a loss should cross the representation once; found "
                f"one {how}; hand over what the heads read, or use wrt='params'"
            )

    def _shown(self, parameters: Sequence[nn.Parameter]) -> str:
        """The first few, by name where the model is known and by shape where not."""
        names = {} if self._model is None else {id(p): name for name, p in self._model.named_parameters()}
        shown = ", ".join(names.get(id(p), str(tuple(p.shape))) for p in parameters[:4])
        return f"{shown}{', ...' if len(parameters) > 4 else ''}"
