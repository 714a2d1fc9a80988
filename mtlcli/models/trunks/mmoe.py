"""Multi-gate mixture of experts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor, nn

from mtlcli.data.base import Inputs
from mtlcli.errors import MtlError
from mtlcli.models.base import Encoder, Features, Trunk
from mtlcli.options import Options as AnyOptions
from mtlcli.registry import trunks


@trunks.register("mmoe")
class MMoE(Trunk):
    """Experts shared by all tasks, mixed for each task by a gate of its own.

    x = stem(inputs); z_t = sum_e softmax(W_t x + b_t)_e expert_e(x). The stem is the encoder's stage 0, the experts are
    copies of its other stages, each with its own initial values. A gate reads the stem's output, averaged over
    positions or atoms where there are any. Shared: stem and experts; private to a task: its gate. Cut: the stacked
    experts (E, B, ...) and what the gates read.

    Options: `num_experts`. With one expert this is hard sharing.

    Source: Ma et al., Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts, KDD 2018.
    Deviation: the paper's gates and experts read the raw input; here both read the embedded input, as implementations
    for tables do.

    Raises MtlError where the encoder has no stage after the first to make experts of.
    """

    has_cut = True

    class Options(AnyOptions):
        """How many experts."""

        num_experts: int = Field(4, ge=1, description="experts, each a copy of the encoder after its first stage")

    def __init__(self, options: Options, make_encoder: Callable[[], Encoder], tasks: tuple[str, ...]) -> None:
        super().__init__(options, make_encoder, tasks)
        encoder = make_encoder()
        if len(encoder.stages) < 2:
            raise MtlError(
                "trunk 'mmoe': experts are made of the encoder's stages after the first, and this encoder has only "
                "one; give it at least one more layer"
            )
        self.stem, self._summary = encoder.stages[0], encoder.summary
        others = (make_encoder() for _ in range(options.num_experts - 1))
        self.experts = nn.ModuleList(nn.Sequential(*each.stages[1:]) for each in (encoder, *others))
        self.gates = nn.ModuleDict({task: nn.Linear(encoder.stem_features, options.num_experts) for task in tasks})
        self.out_features = encoder.out_features

    def forward(self, inputs: Inputs) -> Features:
        """A mixture per task, of the shape that one expert gives."""
        x = self.stem(inputs)
        experts = torch.stack([expert(x) for expert in self.experts])
        # An alias, so that the gradient at the cut's second part holds the path through the gates and not the one
        # through the experts, which the first part already carries.
        read = self._summary(x.view_as(x))
        mixed = {task: mix(gate(read).softmax(1), experts) for task, gate in self.gates.items()}
        # Nothing to learn lies behind a stem without parameters.
        return Features(mixed, (experts, read) if read.requires_grad else (experts,))

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """The gate of `task`."""
        return list(self.gates[task].parameters())

    def last_shared_parameters(self) -> list[nn.Parameter]:
        """Every expert's last stage."""
        return [p for expert in self.experts for p in list(expert.children())[-1].parameters()]


def mix(weights: Tensor, experts: Tensor) -> Tensor:
    """`weights` (B, E) times `experts` (E, B, ...), summed over the experts: (B, ...)."""
    return torch.einsum("be,eb...->b...", weights, experts)
