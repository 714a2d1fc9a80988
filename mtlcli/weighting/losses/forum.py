"""The first-order multi-gradient algorithm for multi-objective bilevel problems."""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mtlcli.options import Options as AnyOptions
from mtlcli.registry import loss_weightings
from mtlcli.search import searched
from mtlcli.weighting.base import Params, StepView
from mtlcli.weighting.losses._bilevel import Bilevel, gradients
from mtlcli.weighting.solvers import Array, onto_simplex

ITERATIONS = 1000


@loss_weightings.register("forum")
class FORUM(Bilevel):
    """Lower all held-out losses at once, on condition that the weighted training loss is nearly as low as it can be.

    Formula: q = (grad of f(a, theta) - f(a, theta_T) in a, grad of f in theta), f = sum_k s_k L_k, s = softmax(a),
        theta_T = theta after `inner_steps` gradient steps on f. With unit gradients F_k of the held-out losses and
        p_k = rho - <F_k, q> / |q|^2, c moves to the point on the simplex that minimises |sum_k c_k F_k + n q|^2 -
        n rho |q|^2 with n = max(c . p, 0), by the part (epoch + 1)^-0.75. The joint step is sum_k c_k F_k + n q: Adam
        moves a by its first part, and the model trains on sum_k (c_k / |grad V_k| + n s_k) L_k.
    Reads: the losses and their weighted gradient; the same at `inner_steps` more points; held-out gradients
        (`data.held_out`).
    Cost: `inner_steps` forward and backward passes, and a forward and K backward passes on the held-out batch; one
        more forward pass where the step's own losses cannot be compared with them (bfloat16; dropout in a closure); K
        gradients in memory.
    Source: Ye et al., A First-Order Multi-Gradient Algorithm for Multi-Objective Bi-Level Optimization, ECAI 2024,
        arXiv 2401.09257; code Baijiong-Lin/FORUM, `train_FORUM`, with its defaults for NYUv2.
    Deviations: a loss weighting cannot send held-out gradients into the model, so the training batch's stand in for
        them, divided by the length of the held-out ones; c, n and the step of a are as published. The code draws both
        batches from the training rows. Its quadratic program goes to a conic solver; here n is eliminated and
        accelerated gradient descent on the simplex does the rest. A held-out loss of exactly 0, as without a label in
        that batch, stays out of it. Where anything is not finite, the last weights are used and the logits stay
        (counted).
    """

    class Options(AnyOptions):
        """Options of FORUM."""

        rho: float = Field(
            0.1,
            gt=0,
            description="How fast the training loss has to come down to its minimum.",
            json_schema_extra=searched(0.01, 1.0, log=True),
        )
        inner_steps: int = Field(5, ge=1, description="Gradient steps that stand for that minimum.")
        inner_lr: float = Field(
            0.1, gt=0, description="Size of those steps.", json_schema_extra=searched(0.01, 1.0, log=True)
        )
        outer_lr: float = Field(
            1e-3,
            gt=0,
            description="Learning rate of the logits of the weights.",
            json_schema_extra=searched(1e-4, 0.1, log=True),
        )

    combination: Tensor  # (K,)  c
    weights: Tensor  # (K,)  of the last step

    def __init__(self, options: AnyOptions, tasks: tuple[str, ...], rng: torch.Generator) -> None:
        super().__init__(options, tasks, rng)
        self.register_buffer("combination", torch.zeros(len(tasks)))
        self.register_buffer("weights", torch.ones(len(tasks)))

    def forward(self, step: StepView) -> Tensor:
        """The losses (K,), each times its weight."""
        shares = self.shares().double()
        training = step.gradient((shares.to(step.losses) * step.losses).sum())
        lowest = self._minimum(training, step)
        fallen = step.unmoved().per_task.detach().double() - lowest  # (K,)  slope in the shares
        if step.losses.isfinite().all() and not fallen.isfinite().all():
            self.count("the inner steps diverged, which a smaller inner_lr prevents: the weights stayed")
            return self.weights * step.losses
        by_logits = shares * (fallen - shares @ fallen)
        flat = torch.cat([value.flatten() for value in training.values()])
        probed = step.probe(batch="held_out")
        held_out, known = gradients(step, probed.roots), (probed.per_task.detach() != 0).cpu()
        lengths = torch.linalg.vector_norm(held_out, dim=1) + 1e-8
        units = held_out / lengths[:, None]
        size = torch.cat([flat.double(), by_logits]).norm()
        gramian, along = (units @ units.T).double(), (units @ flat).double() / size.clamp(min=1e-150)
        if not all(value.isfinite().all() for value in (gramian, along, size, by_logits)):
            self.count("a slope of the held-out losses was not finite: the weights stayed")
            return self.weights * step.losses

        radius = self.options.rho * float(size)
        if known.any():
            minimum = aligned_minimum(gramian.cpu()[known][:, known].numpy(), along.cpu()[known].numpy(), radius)
            found = torch.zeros(len(known), dtype=torch.float64)
            found[known] = torch.from_numpy(minimum)
            rate = (step.clock.epoch + 1) ** -0.75
            self.combination = torch.lerp(self.combination, found.to(self.combination), rate)
        combination = self.combination.double()
        push = (combination.sum() * radius - combination @ along).clamp(min=0) / size.clamp(min=1e-150)
        self.descend(push * fallen)
        self.weights = (combination / lengths.double() + push * shares).to(self.weights)
        return self.weights * step.losses

    def _minimum(self, gradient: Params, step: StepView) -> Tensor:
        """Training losses (K,) after the inner steps, of which the first goes along `gradient`."""
        shares = self.shares()
        moved = {name: -self.options.inner_lr * value for name, value in gradient.items()}
        for _ in range(self.options.inner_steps - 1):
            there = step.move(moved, 1)
            losses = step.probe(there).per_task
            weighted = (shares.to(losses) * losses).sum()
            if not weighted < 1e5:  # the code stops there as well: the steps are too long
                return losses.detach().double()
            further = step.gradient(weighted, at=there)
            moved = {name: value - self.options.inner_lr * further[name] for name, value in moved.items()}
        with torch.no_grad():
            return step.probe(step.move(moved, 1)).per_task.double()


def aligned_minimum(gramian: Array, along: Array, radius: float) -> Array:
    """c (K,) on the simplex that minimises c'Mc + max(radius - x, 0) x with x = c . along.

    M = `gramian` should exceed along along'. That is FORUM's program once n is eliminated, with `along` the inner
    products with the unit vector q / |q|. The second term has a kink at x = radius: the answer is on either side of it,
    or on it.
    """
    near = _simplex_minimum(gramian - np.outer(along, along), radius * along)
    if near @ along <= radius:
        return near
    far = _simplex_minimum(gramian, np.zeros_like(along))
    if far @ along >= radius:
        return far
    # A minimum on the kink lies between those that a slope pulls to either side of it, as the slopes come together.
    low, high = -1.0, 0.0
    above, below = _simplex_minimum(gramian, low * along), far
    while above @ along < radius and low > -1e6:
        low, high, below = 2 * low, low, above
        above = _simplex_minimum(gramian, low * along)
    if above @ along < radius:
        return above
    for _ in range(40):
        middle = (low + high) / 2
        found = _simplex_minimum(gramian, middle * along)
        if found @ along > radius:
            low, above = middle, found
        else:
            high, below = middle, found
    share = (radius - float(below @ along)) / max(float((above - below) @ along), 1e-300)
    between: Array = below + min(max(share, 0.0), 1.0) * (above - below)
    return between


def _simplex_minimum(matrix: Array, linear: Array) -> Array:
    """c (K,) on the simplex that minimises c'Qc + b'c for Q = `matrix` positive semidefinite and b = `linear`."""
    rate = 1 / max(2 * float(np.linalg.norm(matrix, 2)), float(np.abs(linear).max()), 1e-12)
    point = ahead = np.full(len(linear), 1 / len(linear))
    momentum = 1.0
    for _ in range(ITERATIONS):
        moved = onto_simplex(ahead - rate * (2 * matrix @ ahead + linear))
        # Where momentum runs against a side of the simplex, points repeat before they are the answer: what has to stand
        # still is the step itself.
        done = np.abs(moved - ahead).max() < 1e-12
        change = moved - point
        if (ahead - moved) @ change > 0:  # momentum has overshot
            momentum = 1.0
        faster = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = moved + (momentum - 1) / faster * change
        point, momentum = moved, faster
        if done:
            break
    return point
