"""The contracts of the two slots.

`weighting.loss` turns the K task losses into the K losses that are trained on; `weighting.gradient` turns their K
gradients into one. A composition is both slots filled.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mtlcli.options import Options as AnyOptions
from mtlcli.search import Search, declared

Params = dict[str, Tensor]
Anchor = Literal["params", "representation", "last_shared"]
Reads = Literal["nothing", "gramian", "jacobian", "columns"]
Trait = Literal["sample_weights", "negative_weights"]


def moved(params: Params, direction: Params, by: float) -> Params:
    """`params + by * direction`, as new leaves. Parameters that `direction` does not name stay where they are."""
    return {
        name: (p.detach() + by * direction[name]).requires_grad_() if name in direction else p
        for name, p in params.items()
    }


class Clock(NamedTuple):
    """Where in the training a step stands. Epochs and steps count from 0."""

    step: int
    epoch: int
    steps_per_epoch: int
    epochs: int


class Losses:
    """Losses of one forward pass.

    Args:
        roots: the K losses (), each with a graph of its own where the model allows.
        samples: the K rows of per-sample losses (B,) that they are means of.
    """

    def __init__(self, roots: Sequence[Tensor], samples: Sequence[Tensor]) -> None:
        self.roots, self._samples = roots, samples

    @cached_property
    def per_task(self) -> Tensor:
        """(K,)"""
        return torch.stack(list(self.roots))

    @cached_property
    def per_sample(self) -> Tensor:
        """(K, B), 0 where the label is missing or a task has fewer rows than another."""
        return pad_sequence(list(self._samples), batch_first=True)


class StepView(Protocol):
    """One training step, as a loss weighting may look at it. Lazy; nothing here changes the model."""

    tasks: tuple[str, ...]
    clock: Clock
    lr: float

    @property
    def losses(self) -> Tensor:
        """(K,) with gradient. Its value is taken over all ranks."""

    @property
    def roots(self) -> Sequence[Tensor]:
        """The entries of `losses`, each with a graph of its own where the model allows: for gradients task by task,
        which through `losses` would each pass through all heads."""

    @property
    def sample_losses(self) -> Tensor:
        """(K, B) with gradient: this rank's samples, 0 where the label is missing."""

    @property
    def params(self) -> Params:
        """The trainable parameters by name."""

    @property
    def shared(self) -> Params:
        """Those of `params` that several tasks reach."""

    def gradient(self, loss: Tensor, at: Params | None = None) -> Params:
        """Gradient of a scalar `loss` with respect to `params` (or to `at`, when the loss came from a probe there).

        Averaged over ranks; zeros where a parameter does not reach the loss. The graph stays usable.
        """

    def mean_over_ranks(self, value: Tensor) -> Tensor:
        """The mean of a tensor that every rank has its own of."""

    def move(self, direction: Params, by: float) -> Params:
        """`params + by * direction`, as new leaves. Parameters that `direction` does not name stay where they are."""

    def probe(self, at: Params | None = None, batch: Literal["train", "held_out"] = "train") -> Losses:
        """Losses of a fresh forward pass at `at` (default: where the parameters are now).

        It is computed in full precision, since losses that are compared may differ by little; all probes of a step have
        the same dropout masks, and leave BatchNorm statistics and the random state untouched.
        """

    def unmoved(self) -> Losses:
        """The losses where the parameters are now, to be compared with those of probes: of the same precision and
        dropout masks. A further forward pass only where `losses` is not."""

    def score(self, task: str, at: Params | None = None, batch: Literal["train", "held_out"] = "train") -> float | None:
        """The first metric of `task` on a probe of that batch, signed so that higher is better; None where undefined.

        Raises MtlError where no metric is known.
        """


class Stateful(Protocol):
    """An inner optimiser or a buffer of experience: anything with a state_dict."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


class Weighting(nn.Module, ABC):
    """What both slots have in common: options, task names, a random generator, and a complete `state_dict`.

    What a method remembers is a buffer, what it learns a parameter. `self.keep(name, thing)` puts an inner optimiser or
    a replay buffer into the `state_dict`; `self.count(event)` counts what a user must hear about (a failed solve and
    what was done instead).

    Args:
        options: the method's checked options.
        tasks: the names of the K tasks, in the order of every (K,) tensor.
        rng: source of every random draw, on the device of what `forward` reads and seeded alike on all ranks.
    """

    name: ClassVar[str]  # that of the class, until it is registered under another
    stream: ClassVar[Literal[1, 2]]  # of random numbers, by slot

    Options: ClassVar[type[AnyOptions]] = AnyOptions

    @classmethod
    def search_space(cls, tasks: Sequence[str]) -> Mapping[str, Search]:
        """Where tuning looks for each option's value; a map's entry goes by `OPTION.KEY`.

        Default: what the options declare on their fields. Options that depend on the names of the tasks say so here.
        """
        return declared(cls.Options)

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        cls.name = cls.__name__

    def __init__(self, options: AnyOptions, tasks: tuple[str, ...], rng: torch.Generator) -> None:
        super().__init__()
        self.options: Any = options
        self.tasks = tasks
        self.rng = rng
        self.events: Counter[str] = Counter()
        self._kept: dict[str, Stateful] = {}

    @classmethod
    def home(cls, device: torch.device) -> torch.device:
        """Where its tensors and random draws are for a model on `device`."""
        return device

    @classmethod
    def on(cls, device: torch.device, options: AnyOptions, tasks: tuple[str, ...], seed: int) -> Self:
        """A new one for a model on `device`, its random draws seeded with `seed`."""
        home = cls.home(device)
        return cls(options, tasks, torch.Generator(home).manual_seed(seed)).to(home)

    @classmethod
    def seed_in(cls, run_seed: int) -> int:
        """Its seed in a run with `run_seed`: the two slots draw different numbers."""
        return 2 * run_seed + cls.stream

    def keep(self, name: str, thing: Stateful) -> None:
        """Save and restore `thing` with this method's state."""
        self._kept[name] = thing

    def count(self, event: str) -> None:
        """Count an event that is reported with the run, such as `fell back to equal weights`."""
        self.events[event] += 1

    def get_extra_state(self) -> dict[str, Any]:
        """Random state, counts and everything kept: part of `state_dict()`."""
        kept = {name: thing.state_dict() for name, thing in self._kept.items()}
        return {"rng": self.rng.get_state(), "events": dict(self.events), "kept": kept}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Counterpart of `get_extra_state`."""
        self.rng.set_state(state["rng"].cpu())
        self.events.clear()  # kept in place: groups of parameters share it
        self.events.update(state["events"])
        for name, thing in self._kept.items():
            thing.load_state_dict(state["kept"][name])


class LossWeighting(Weighting):
    """K losses -> the K losses that are trained on. Register with `@loss_weightings.register("name")`."""

    stream = 1
    needs: ClassVar[frozenset[Literal["held_out"]]] = frozenset()
    takes_gradients: ClassVar[bool] = False  # whether it asks for gradients at the parameters, and so must know them
    traits: ClassVar[frozenset[Trait]] = frozenset()  # what a gradient weighting may refuse to go with
    scale_free: ClassVar[bool] = False  # whether multiplying one task's loss by a constant changes nothing
    # Whether a tuned comparison has it beside, asked for or not: what a new method has to beat once all are tuned.
    honest_baseline: ClassVar[bool] = False
    # What the task heads learn from: `weighted`, the loss that this method returns; `unweighted`, their own raw loss,
    # so that a task of weight 0 still trains its head.
    heads: Literal["weighted", "unweighted"] = "weighted"

    @classmethod
    def needs_with(cls, options: Any) -> frozenset[Literal["held_out"]]:
        """What the recipe must provide for these options. Default: `needs`, whatever they are."""
        return cls.needs

    @classmethod
    def traits_with(cls, options: Any) -> frozenset[Trait]:
        """What is special about the weights that these options lead to. Default: `traits`."""
        return cls.traits

    @classmethod
    def begins(cls, options: Any) -> int:
        """The first epoch, from 0, in which it does what it is for; until then it only gathers what it needs."""
        return 0

    @abstractmethod
    def forward(self, step: StepView) -> Tensor:
        """(K,), differentiable. Entry k depends on `step.losses[k]` (or on `step.sample_losses[k]`) and on this
        method's own parameters alone: weights computed from several losses are detached. That loses nothing, since the
        gradient of any function of the losses is a weighted sum of theirs, and it lets the gradient slot act on the K
        results.
        """

    def learnable(self) -> list[nn.Parameter]:
        """Parameters that the run's optimiser trains on the sum of what `forward` returns, in a group of their own.

        Default: all of them. A method with an inner optimiser of its own returns none.
        """
        return [p for p in self.parameters() if p.requires_grad]

    def after_step(self, step: StepView) -> None:
        """Called once the optimiser has moved the parameters. Default: nothing."""


class GradientWeighting(Weighting):
    """K gradients -> one. Register with `@gradient_weightings.register("name")`.

    `reads` says what `forward` gets: `nothing`, it is not called and the gradients are summed; `gramian`, the (K, K)
    inner products in float64 on the CPU; `jacobian`, the (K, P) gradients; `columns`, some columns of these at a time,
    for a method that makes an entry of the direction from the tasks' gradients at that entry alone. It returns weights
    (K,) or the direction (P,), as `returns` says. Where the gradients are taken and how often is the engine's business.
    """

    stream = 2
    reads: ClassVar[Reads]
    # None: weights where the Gramian is read, the direction where gradients are.
    returns: ClassVar[Literal["weights", "direction"] | None] = None
    # What the task heads receive: `unweighted`, the gradient of the loss they are trained on; `weighted`, that times
    # the task's weight.
    heads: ClassVar[Literal["unweighted", "weighted"]] = "unweighted"
    # Where its gradients may be taken. A method that remembers gradients entry by entry cannot work on those of a
    # representation, whose entries belong to the samples of one batch.
    anchors: ClassVar[frozenset[Anchor]] = frozenset({"params", "representation", "last_shared"})
    # Training batches, drawn independently, that it needs beside the one that is trained on: none, or two. With two,
    # the Gramian holds the inner products of the first one's gradients (rows) with the second one's (columns).
    extra_batches: ClassVar[Literal[0, 2]] = 0
    # Whether a zero gradient takes weight from the others, up to all of it. A task that says nothing by it is then left
    # out of the problem: one that has no label in the batch (its loss is 0), or does not reach a group of parameters.
    minds_zeros: ClassVar[bool] = False

    @classmethod
    def home(cls, device: torch.device) -> torch.device:
        """The CPU where it reads the Gramian, which is there."""
        return torch.device("cpu") if cls.reads == "gramian" else device

    @classmethod
    def gives_weights(cls) -> bool:
        """Whether `forward` returns weights (K,), which can be reused, averaged, and carried to other parameters."""
        return (cls.returns or ("direction" if cls.reads in ("jacobian", "columns") else "weights")) == "weights"

    @classmethod
    def allowed_anchors(cls) -> tuple[Anchor, ...]:
        """`anchors`, sorted; without the last shared layer where there are no weights to carry over from it."""
        return tuple(sorted(cls.anchors - (frozenset() if cls.gives_weights() else {"last_shared"})))

    @classmethod
    def refuses(cls, options: Any) -> Mapping[Trait, str]:
        """Traits of loss weightings that it cannot go with under these options, and why. Default: none."""
        return {}

    @abstractmethod
    def forward(self, statistic: Tensor, losses: Tensor) -> Tensor:
        """Weights or direction.

        Args:
            statistic: the Gramian or the Jacobian of the losses that are trained on.
            losses: (K,), detached: each raw loss times its weight. Where a loss weighting trains on something else,
                such as logs, that is the same to first order, and positive.
        """


def objections(
    loss: type[LossWeighting], loss_options: AnyOptions, gradient: type[GradientWeighting], gradient_options: AnyOptions
) -> list[str]:
    """Why two weightings make no sense together; empty where they do."""
    refused = gradient.refuses(gradient_options)
    traits = sorted(loss.traits_with(loss_options))
    return [f"'{gradient.name}' cannot go with '{loss.name}': {refused[trait]}" for trait in traits if trait in refused]
