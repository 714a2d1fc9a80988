"""A soft actor-critic agent whose actions are K weights that sum to K.

Its nets are so small that most of the time of a training step would go into building graphs. So their gradients are
written out here, once for two hidden layers and once for the policy; tests hold them against automatic ones.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

LogProb = Literal["official", "corrected"]
LOG_STD_RANGE = (-20.0, 2.0)
ENTROPY_PRICE = 0.2  # at the beginning; it is learned


class Replay(nn.Module):
    """The last `capacity` rows, first in, first out. How many there are is known without asking the device."""

    rows: Tensor  # (capacity, width)

    def __init__(self, capacity: int, width: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(capacity, width))
        self.pushed = 0

    @property
    def size(self) -> int:
        """How many rows there are to draw from."""
        return min(self.pushed, len(self.rows))

    def push(self, row: Tensor) -> None:
        """Add a row (width,), in place of the oldest one where there is no room."""
        self.rows[self.pushed % len(self.rows)] = row
        self.pushed += 1

    def get_extra_state(self) -> dict[str, Any]:
        """How many rows were ever pushed."""
        return {"pushed": self.pushed}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Counterpart of `get_extra_state`."""
        self.pushed = state["pushed"]


class Nets(nn.Module):
    """N nets side by side, each with two hidden layers of ReLUs; initialised like `nn.Linear`."""

    def __init__(self, count: int, inputs: int, hidden: int, outputs: int, rng: torch.Generator) -> None:
        super().__init__()
        for layer, (fan_in, fan_out) in enumerate([(inputs, hidden), (hidden, hidden), (hidden, outputs)]):
            for name, shape in (("weight", (count, fan_in, fan_out)), ("bias", (count, 1, fan_out))):
                drawn = torch.rand(shape, generator=rng, device=rng.device) * 2 - 1
                self.register_parameter(f"{name}{layer}", nn.Parameter(drawn / math.sqrt(fan_in)))

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Outputs (N, B, outputs) at x (B, inputs), and the inputs of the three layers."""
        (w0, b0), (w1, b1), (w2, b2) = self._layers()
        x = x.expand(len(w0), *x.shape)
        first = torch.baddbmm(b0, x, w0).relu_()
        second = torch.baddbmm(b1, first, w1).relu_()
        return _product(second, w2) + b2, [x, first, second]

    def propagate(self, saved: list[Tensor], slope: Tensor, parameters: bool = True) -> Tensor:
        """Turn the slopes (N, B, outputs) of a scalar at the outputs into its gradients in the parameters' `.grad`.

        Without `parameters`, into its slopes (N, B, inputs) at the inputs, which are returned.
        """
        for layer, (weight, bias) in reversed(list(enumerate(self._layers()))):
            if parameters:
                weight.grad = _product(saved[layer].transpose(1, 2), slope)
                bias.grad = slope.sum(1, keepdim=True)
                if layer == 0:  # nobody asks for both
                    break
            slope = _product(slope, weight.transpose(1, 2))
            if layer > 0:
                slope *= saved[layer].sign()  # 0 or 1
        return slope

    def _layers(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        return [(getattr(self, f"weight{layer}"), getattr(self, f"bias{layer}")) for layer in range(3)]


def _product(a: Tensor, b: Tensor) -> Tensor:
    """`a` (N, R, S) times `b` (N, S, T). Where S or T is 1, as at a critic's output, `bmm` takes ten times as long as
    the elementwise way."""
    if a.shape[2] == 1:
        return a * b
    return (a * b.transpose(1, 2)).sum(2, keepdim=True) if b.shape[2] == 1 else torch.bmm(a, b)


class Action(NamedTuple):
    """Draws from the policy, and what their gradients are made of."""

    weights: Tensor  # (B, K)  K softmax(u), u = mean + std * noise
    log_prob: Tensor  # (B,)
    log_prob_by_u: Tensor  # (B, K)  slope of `log_prob` in u
    log_prob_by_log_std: Tensor  # (B, K)  its slope in log std where u stays
    spread: Tensor  # (B, K)  std * noise, the slope of u in log std
    inside: Tensor  # (B, K)  whether log std is within its range


def draw(outputs: Tensor, noise: Tensor, log_prob: LogProb) -> Action:
    """Draws (B, K) of the policy with `outputs` (B, 2 K) of its net, for standard normal `noise` (B, K)."""
    mean, raw = outputs.chunk(2, -1)
    log_std = raw.clamp(*LOG_STD_RANGE)
    spread = log_std.exp() * noise
    u = mean + spread
    num_tasks = u.shape[-1]
    weights = num_tasks * u.softmax(-1)
    log_two_pi = math.log(2 * math.pi)
    if log_prob == "official":
        normal = -(noise.square() / 2 + log_std + log_two_pi / 2)
        density = (normal - 2 * (math.log(2) - u - softplus(-2 * u))).sum(-1)
        by_u, by_log_std = 2 * u.tanh(), torch.full_like(u, -1)
    else:
        # The draws fix u up to a common shift, so that shift is integrated out: what is left of the quadratic form is
        # taken about `shift`, its most likely value, and softmax has the Jacobian prod(weights) on the simplex.
        precision = (-2 * log_std).softmax(-1)  # each entry's share
        shift = (precision * spread).sum(-1, keepdim=True)
        scaled = shift * (-log_std).exp()
        quadratic = (noise - scaled).square().sum(-1)
        log_det = 2 * log_std.sum(-1) + (-2 * log_std).logsumexp(-1)
        jacobian = u.log_softmax(-1).sum(-1) + (num_tasks - 1) * math.log(num_tasks)
        density = -(quadratic + log_det + (num_tasks - 1) * log_two_pi) / 2 - jacobian
        by_u, by_log_std = weights - 1, scaled * (scaled - noise) + precision - 1
    return Action(weights, density, by_u, by_log_std, spread, raw == log_std)


class Agent(nn.Module):
    """Actor, twin critics with slowly following copies, and a learned price of entropy, each step off policy.

    Args:
        num_tasks: K. States and actions are (K,).
        lr: of Adam, for all parts.
        discount: of later rewards.
        follow: share of the critics that their copies take over in a step.
        log_prob: which density of an action to use.
        rng: of the first parameters.
    """

    def __init__(
        self,
        num_tasks: int,
        lr: float,
        discount: float,
        follow: float,
        log_prob: LogProb,
        rng: torch.Generator,
        hidden: int = 128,
    ) -> None:
        super().__init__()
        self.discount, self.follow, self.log_prob = discount, follow, log_prob
        self.target_entropy = -float(num_tasks if log_prob == "official" else num_tasks - 1)
        self.actor = Nets(1, num_tasks, hidden, 2 * num_tasks, rng)
        self.critics = Nets(2, 2 * num_tasks, hidden, 1, rng)
        self.copies = Nets(2, 2 * num_tasks, hidden, 1, rng).requires_grad_(False)
        self.copies.load_state_dict(self.critics.state_dict())
        self.log_price = nn.Parameter(torch.tensor(math.log(ENTROPY_PRICE)))
        self.critic_adam = torch.optim.Adam(self.critics.parameters(), lr=lr, fused=True)
        self.actor_adam = torch.optim.Adam([*self.actor.parameters(), self.log_price], lr=lr, fused=True)

    @torch.no_grad()
    def act(self, state: Tensor, noise: Tensor) -> Tensor:
        """A draw (K,) of the policy at `state` (K,)."""
        outputs, _ = self.actor(state[None])
        return draw(outputs[0], noise[None], self.log_prob).weights[0]

    @torch.no_grad()
    def learn(self, rows: Tensor, noise: Tensor, next_noise: Tensor) -> None:
        """One update from transitions (B, 3 K + 1): state, action, reward, next state. Noises are (B, K)."""
        num_tasks = noise.shape[-1]
        visited, reward, after = rows[:, : 2 * num_tasks], rows[:, 2 * num_tasks, None], rows[:, 2 * num_tasks + 1 :]
        state = visited[:, :num_tasks]
        price = self.log_price.exp()

        following = draw(self.actor(after)[0][0], next_noise, self.log_prob)
        values = self.copies(torch.cat([after, following.weights], -1))[0].amin(0)
        target = (values - price * following.log_prob[:, None]).mul_(self.discount).add_(reward)
        values, saved = self.critics(visited)
        self.critics.propagate(saved, 2 * (values - target) / len(rows))
        self.critic_adam.step()

        outputs, actor_saved = self.actor(state)
        drawn = draw(outputs[0], noise, self.log_prob)
        values, saved = self.critics(torch.cat([state, drawn.weights], -1))
        lower = torch.zeros_like(values).scatter_(0, values.argmin(0, keepdim=True), -1 / len(rows))
        by_weights = self.critics.propagate(saved, lower, parameters=False).sum(0)[:, num_tasks:]
        by_u = drawn.weights * (by_weights - (drawn.weights * by_weights).mean(-1, keepdim=True))
        share = price / len(rows)
        by_u += share * drawn.log_prob_by_u
        by_log_std = by_u * drawn.spread + share * drawn.log_prob_by_log_std
        self.actor.propagate(actor_saved, torch.cat([by_u, by_log_std * drawn.inside], -1)[None])
        self.log_price.grad = -(drawn.log_prob.mean() + self.target_entropy)
        self.actor_adam.step()

        torch._foreach_lerp_(list(self.copies.parameters()), list(self.critics.parameters()), self.follow)
