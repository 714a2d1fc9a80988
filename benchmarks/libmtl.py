"""LibMTL's weightings on a model of `step_cost.py`, from its release on PyPI: `pip install --no-deps LibMTL`.

Its methods are parts of a model class, so that each step here makes one of them out of the benchmark's own model.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from contestants import Problem

# Ours, and LibMTL's class of the same method with its arguments.
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "cagrad": ("CAGrad", {"calpha": 0.4, "rescale": 1}),
    "dwa": ("DWA", {"T": 2.0}),
    "ew": ("EW", {}),
    "gls": ("GLS", {}),
    "graddrop": ("GradDrop", {"leak": 0.0}),
    "gradnorm": ("GradNorm", {"alpha": 1.5}),
    "gradvac": ("GradVac", {"beta": 0.5}),
    "mgda": ("MGDA", {"mgda_gn": "none"}),
    "pcgrad": ("PCGrad", {}),
    "rlw": ("RLW", {"dist": "Normal"}),
    "uw": ("UW", {}),
}
AT_REPRESENTATION = {"graddrop"}  # which LibMTL takes nowhere else


def installed() -> bool:
    """Whether LibMTL is there."""
    return importlib.util.find_spec("LibMTL") is not None


def libmtl_step(made: Problem, method: str) -> Callable[[], None]:
    """The same step through LibMTL, in its third epoch."""
    name, arguments = PEERS[method]
    weighting = _weighting(name)
    tasks, device = made.tasks, made.inputs.device

    class Model(weighting):  # type: ignore[misc, valid-type]
        """What LibMTL's trainer makes of an architecture and a weighting, as far as weightings ask."""

        def __init__(self) -> None:
            super().__init__()
            self.task_name, self.task_num, self.device = list(tasks), len(tasks), device
            self.rep_grad = method in AT_REPRESENTATION
            self.epoch, self.train_loss_buffer = 2, torch.ones(len(tasks), 3).numpy()
            self.init_param()

        def get_share_params(self) -> Iterable[nn.Parameter]:
            return made.trunk.parameters()

        def zero_grad_share_params(self) -> None:
            made.trunk.zero_grad(set_to_none=False)  # it writes into `.grad` afterwards

    model = Model()
    optimizer = torch.optim.SGD([*made.parameters(), *model.parameters()], lr=1e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        losses = _from_copies(made, model) if model.rep_grad else made.losses()[1]
        model.backward(torch.stack(losses), **arguments)
        optimizer.step()

    return step


def _from_copies(made: Problem, model: Any) -> list[Tensor]:
    """The K losses, each from a copy of the representation, where LibMTL finds the tasks' gradients."""
    model.rep = made.trunk(made.inputs)
    model.rep_tasks = {task: model.rep.detach().clone().requires_grad_() for task in made.tasks}
    heads = zip(made.heads, made.targets, model.rep_tasks.values(), strict=True)
    return [nn.functional.mse_loss(head(copy).squeeze(1), target) for head, target, copy in heads]


def _weighting(name: str) -> type[nn.Module]:
    # Its encoders ask for a module that torchvision has since given up; nothing else of it is needed here.
    given_up = types.ModuleType("torchvision.models.utils")
    given_up.load_state_dict_from_url = torch.hub.load_state_dict_from_url  # type: ignore[attr-defined]
    sys.modules.setdefault("torchvision.models.utils", given_up)
    from LibMTL import weighting

    found: type[nn.Module] = getattr(weighting, name)
    return found
