"""Who takes part in `step_cost.py`: models of every shape, and steps on them by hand, by us, TorchJD and LibMTL."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import libmtl
import torch
from torch import Tensor, nn

import mtlcli
from mtlcli.engine.balancer import Balancer

INPUTS = 256
WARM_UP = 7  # epochs of one step each, after which every method's default options have it at work
# Ours, and TorchJD's class of the same method with its arguments.
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "aligned_mtl": ("AlignedMTL", {}),
    "cagrad": ("CAGrad", {"c": 0.4}),
    "config": ("ConFIG", {}),
    "dualproj": ("DualProj", {}),
    "excess_mtl": ("ExcessMTL", {}),
    "fairgrad": ("FairGrad", {"alpha": 2.0}),
    "graddrop": ("GradDrop", {}),
    "gradvac": ("GradVac", {}),
    "imtl_g": ("IMTLG", {}),
    "mgda": ("MGDA", {}),
    "nash_mtl": ("NashMTL", {"n_tasks": 0}),  # filled in
    "pcgrad": ("PCGrad", {}),
    "upgrad": ("UPGrad", {}),
}
LEARNS_EVERY = {"igb_v2": 50}  # steps from one round of an agent's updates to the next
Step = Callable[[], None]


@dataclass
class Problem:
    """A model, its batch, and its parts."""

    trunk: nn.Module
    heads: nn.ModuleList
    inputs: Tensor
    targets: Tensor  # (K, B)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return tuple(f"t{k}" for k in range(len(self.heads)))

    def losses(self, reduction: str = "mean") -> tuple[Tensor, list[Tensor]]:
        """The representation and the K losses."""
        z = self.trunk(self.inputs)
        heads = zip(self.heads, self.targets, strict=True)
        return z, [nn.functional.mse_loss(head(z).squeeze(1), target, reduction=reduction) for head, target in heads]

    def parameters(self) -> list[nn.Parameter]:
        """All of them."""
        return [*self.trunk.parameters(), *self.heads.parameters()]


def problem(shape: str, device: torch.device) -> Problem:
    """The model of a shape, always with the same values."""
    torch.manual_seed(0)
    if shape == "resnet":
        from torchvision.models import resnet18

        trunk: nn.Module = resnet18(num_classes=1)
        trunk.fc = nn.Identity()
        count, features, inputs = 3, 512, torch.randn(32, 3, 64, 64)
    else:
        count, features, batch = (int(part) for part in shape.split(","))
        widths = [INPUTS, features, features, features]
        layers = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in itertools.pairwise(widths)]
        trunk, inputs = nn.Sequential(*layers), torch.randn(batch, INPUTS)
    heads = nn.ModuleList([nn.Linear(features, 1) for _ in range(count)])
    targets = torch.randn(count, len(inputs)).to(device)
    return Problem(trunk.to(device), heads.to(device), inputs.to(device), targets)


def plain(made: Problem) -> Step:
    """Equal weights by hand."""
    optimizer = torch.optim.SGD(made.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.stack(made.losses()[1]).sum().backward()
        optimizer.step()

    return step


def ours(made: Problem, loss: str, gradient: str, options: dict[str, Any] | None = None, **settings: Any) -> Step:
    """The same step through Balancer."""
    if loss == "constant":
        options = {"weights": dict.fromkeys(made.tasks, 1.0)}
    balancer = Balancer(
        made.tasks,
        loss,
        gradient,
        shared=list(made.trunk.parameters()),
        task_parameters={task: list(head.parameters()) for task, head in zip(made.tasks, made.heads, strict=True)},
        options={"loss": options or {}},
        model=nn.ModuleList([made.trunk, made.heads]),
        epochs=1000,
        **settings,
    )
    reduction = "none" if "sample_weights" in mtlcli.loss_weightings.get(loss).traits else "mean"
    optimizer = torch.optim.SGD([*made.parameters(), *balancer.parameters()], lr=1e-4)
    at_representation = settings.get("wrt") == "representation"
    metrics = dict.fromkeys(made.tasks, lambda: -float(made.losses()[1][0]))
    count = 0

    def again() -> list[Tensor]:
        return made.losses(reduction)[1]

    def step() -> None:
        nonlocal count
        optimizer.zero_grad(set_to_none=True)
        z, losses = made.losses(reduction)
        representation = z if at_representation else None
        balancer.backward(losses, representation, closure=again, held_out=again, extra=[again, again], metrics=metrics)
        optimizer.step()
        balancer.after_step()
        count += 1
        if count <= WARM_UP or count % 50 == 0:
            balancer.end_epoch()

    return step


def passes_step(made: Problem) -> Step:
    """No more than what a method that compares the gradients of K tasks cannot do without: a forward pass, K backward
    passes through the trunk, and the optimiser."""
    optimizer = torch.optim.SGD(made.parameters(), lr=1e-4)
    shared = list(made.trunk.parameters())

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        losses = made.losses()[1]
        for k, (head, loss) in enumerate(zip(made.heads, losses, strict=True)):
            wanted = [*shared, *head.parameters()]
            gradients = torch.autograd.grad(loss, wanted, retain_graph=k < len(losses) - 1)
            for parameter, gradient in zip(wanted, gradients, strict=True):
                parameter.grad = gradient
        optimizer.step()

    return step


def torchjd_step(made: Problem, method: str) -> Step:
    """The same step through TorchJD."""
    from torchjd import aggregation
    from torchjd.autojac import jac_to_grad, mtl_backward

    name, arguments = PEERS[method]
    aggregator = getattr(aggregation, name)(**{k: v or len(made.heads) for k, v in arguments.items()})
    shared = list(made.trunk.parameters())
    optimizer = torch.optim.SGD(made.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        z, losses = made.losses()
        mtl_backward(losses, z)
        jac_to_grad(shared, aggregator)
        optimizer.step()

    return step


@dataclass
class Contestant:
    """How to make a step of it, and how many steps at least show its cost."""

    make: Callable[[Problem], Step]
    warm_up: int = 2
    period: int = 0  # 0: any number
    beside: tuple[str, ...] = ()  # of a peer: our ways that do the same


def contestants(method: str) -> dict[str, Contestant]:
    """Plain PyTorch first, then the method in its ways, then its peers."""
    found = {"plain": Contestant(plain)}
    if method in mtlcli.loss_weightings.names():
        period = LEARNS_EVERY.get(method, 0)
        found[""] = Contestant(lambda made: ours(made, method, "sum"), WARM_UP, period)
        if method in LEARNS_EVERY:  # from larger batches, and more often, the fuller its memory is
            full = {"buffer_size": 50}
            found["memory full"] = Contestant(lambda made: ours(made, method, "sum", full), WARM_UP + 50, period)
        return {**found, **_libmtl(method)}
    cls = mtlcli.gradient_weightings.get(method)
    for anchor in ("params", "representation") if cls.reads != "nothing" else ("params",):
        if anchor in cls.anchors:
            found[anchor] = Contestant(lambda made, wrt=anchor: ours(made, "ew", method, wrt=wrt))  # type: ignore[misc]
    if cls.reads != "nothing" and cls.gives_weights():
        found["every 10"] = Contestant(lambda made: ours(made, "ew", method, every=10), period=10)
    if method == "nash_mtl":  # the bound of every method at the parameters
        found["K passes"] = Contestant(passes_step)
    if method in PEERS:
        found["torchjd"] = Contestant(lambda made: torchjd_step(made, method), beside=("params", "K passes"))
    return {**found, **_libmtl(method)}


def _libmtl(method: str) -> dict[str, Contestant]:
    if method not in libmtl.PEERS or not libmtl.installed():
        return {}
    beside = ("representation",) if method in libmtl.AT_REPRESENTATION else ("", "params")
    return {"libmtl": Contestant(lambda made: libmtl.libmtl_step(made, method), beside=beside)}
