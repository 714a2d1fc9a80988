"""Improvable gap balancing, version 2."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mtlcli.options import Options as AnyOptions
from mtlcli.registry import loss_weightings
from mtlcli.search import searched
from mtlcli.weighting.base import LossWeighting, StepView
from mtlcli.weighting.losses._agent import Agent, Replay
from mtlcli.weighting.losses._values import SMALLEST, Base, Kept, finite, log_of


@loss_weightings.register("igb_v2")
class IGBv2(LossWeighting):
    """Let a small agent choose the weights, rewarded by how much the task that improves least improves.

    Formula: sum_k w_k log L_k, w = K softmax(u), u ~ N(mean(L), std(L)^2) from a soft actor-critic agent whose state is
        the losses. Reward: scale * min_k (L_k(t - 1) - L_k(t)) / D_k, D_k = mean training loss of task k over the
        epoch `base_epoch`. Until `start_epoch` the weights are random, K softmax(z) with z ~ N(0, I). From
        `update_after` on, every `update_every` steps, the agent takes floor(update_every c / 2) updates on
        floor(batch_size c / 2) transitions each, c = 1 + share of the replay buffer that is filled.
    Reads: the losses, which should be positive, the epoch, and the learning rate.
    Cost: no extra pass over the model; updates of nets with 128 x 128 hidden units, and a buffer of
        `buffer_size` (3 K + 1) numbers, which lies where the losses do.
    Source: Dai, Fei & Lu, Improvable Gap Balancing for Multi-Task Learning, UAI 2023, arXiv 2307.15429; code
        YanqiDai/IGB4MTL, `ImprovableGapBalancing_v2` and `SAC_Agent`, which is followed with all its constants.
    Deviations: the code scores an action with the density of a tanh of a Gaussian, although it is a softmax of one;
        `log_prob: official` does the same, since the published results stand on it. `corrected` is the density of the
        action itself, on the K - 1 dimensional simplex: u up to a common shift is Gaussian (additive logistic
        coordinates), and the softmax has the Jacobian prod(w); its target entropy is 1 - K in place of -K. Rewards are
        scaled by the largest learning rate so far over the current one, as in the code's NYUv2 run (its QM9 run
        overwrites the former by mistake, which is `reward_scale: none`); where the rate is 0, by the last such scale.
        A loss below 1e-12, as without a label in the batch, has no gradient and is counted unless it is 0; the agent
        goes on seeing the task's last loss, and the reward is taken over the others. A step with non-finite losses
        reuses the last weights and enters no transition. With one task nothing is learned and w = 1.
    """

    class Options(AnyOptions):
        """Options of IGB v2."""

        base_epoch: int = Field(1, ge=0, description="The epoch whose mean losses are the base, counted from 0.")
        start_epoch: int = Field(5, ge=0, description="First epoch whose weights the agent chooses.")
        update_after: int = Field(3, ge=0, description="First epoch in which the agent learns.")
        update_every: int = Field(50, ge=2, description="Steps from one round of the agent's updates to the next.")
        batch_size: int = Field(256, ge=2, description="Transitions in an update once the buffer is full.")
        buffer_size: int = Field(10_000, ge=1, description="How many transitions are remembered.")
        lr: float = Field(
            3e-4,
            gt=0,
            description="Learning rate of the agent's nets.",
            json_schema_extra=searched(3e-5, 3e-3, log=True),
        )
        discount: float = Field(
            0.99,
            ge=0,
            lt=1,
            description="What a reward one step later is worth.",
            json_schema_extra=searched(0.9, 0.999),
        )
        follow: float = Field(0.005, gt=0, le=1, description="How fast the critics' copies follow them.")
        reward_scale: Literal["lr", "none"] = Field(
            "lr", description="Scale rewards up as the learning rate falls, or leave them."
        )
        log_prob: Literal["official", "corrected"] = Field("official", description="Which density of an action to use.")

    before: Tensor  # (K,)  losses of the step before, or whenever a task last had labels
    weights: Tensor  # (K,)  of the last step

    @classmethod
    def begins(cls, options: Any) -> int:
        """When the agent takes over."""
        return int(options.start_epoch)

    def __init__(self, options: AnyOptions, tasks: tuple[str, ...], rng: torch.Generator) -> None:
        super().__init__(options, tasks, rng)
        size = len(tasks)
        self.register_buffer("before", torch.zeros(size))
        self.register_buffer("weights", torch.ones(size))
        self.base, self.progress = Base(size, self.options.base_epoch), Progress(size)
        self.keep("base", self.base)
        self.keep("progress", self.progress)
        if size > 1:
            chosen = self.options
            self.agent = Agent(size, chosen.lr, chosen.discount, chosen.follow, chosen.log_prob, rng)
            self.replay = Replay(chosen.buffer_size, 3 * size + 1)
            self.keep("critics", self.agent.critic_adam)
            self.keep("actor", self.agent.actor_adam)

    def learnable(self) -> list[nn.Parameter]:
        """None: the agent's nets have Adams of their own."""
        return []

    def forward(self, step: StepView) -> Tensor:
        """Logs (K,) of the losses, each times its weight."""
        if len(self.tasks) > 1:
            losses, values = step.losses.detach().to(self.before), step.losses.tolist()
            self.progress.follow_rate(step.lr, self.options.reward_scale == "lr")
            if finite(values):
                if min(values) <= SMALLEST:
                    losses = torch.where(losses > SMALLEST, losses, self.before)
                self.base.add(values, step.clock.epoch)
                self._remember(losses, values, step.clock.epoch)
                if step.clock.epoch >= self.options.update_after and step.clock.step % self.options.update_every == 0:
                    self._learn()
                self.weights = self._choose(losses, step.clock.epoch)
                self.before = losses
                self.progress.follow(values)
            else:
                self.count("non-finite losses: the last weights were used")
                self.progress.linked = False
        return self.weights * log_of(step.losses, self)

    def _remember(self, losses: Tensor, values: list[float], epoch: int) -> None:
        """Add a transition to these losses (K,), unless no task can tell how it went."""
        progress = self.progress
        gains = self.base.over([last - now for last, now in zip(progress.last, values, strict=True)], values)
        known = [gain for gain, last in zip(gains, progress.last, strict=True) if gain is not None and last]
        if epoch > self.options.base_epoch and progress.linked and known:
            reward = losses.new_tensor([progress.scale * min(known)])
            self.replay.push(torch.cat([self.before, self.weights, reward, losses]))

    def _learn(self) -> None:
        """One round of the agent's updates, with all their random numbers drawn at once."""
        size, rows, device = self.replay.size, self.replay.rows, self.rng.device
        if size == 0:
            return
        fullness = 1 + size / len(rows)
        updates, batch = (int(n * fullness / 2) for n in (self.options.update_every, self.options.batch_size))
        chosen = torch.randint(size, (updates, batch), generator=self.rng, device=device).to(rows.device)
        noise = torch.randn(updates, 2, batch, len(self.tasks), generator=self.rng, device=device).to(rows)
        for picked, (now, following) in zip(chosen, noise, strict=True):
            self.agent.learn(rows[picked], now, following)

    def _choose(self, losses: Tensor, epoch: int) -> Tensor:
        """Weights (K,)."""
        noise = torch.randn(len(losses), generator=self.rng, device=self.rng.device).to(losses)
        if epoch < self.options.start_epoch:
            return len(losses) * noise.softmax(0)
        weights = self.agent.act(losses, noise)
        if torch.isfinite(weights).all():
            return weights
        self.count("the agent's weights were not finite: equal weights were used")
        return torch.ones_like(losses)


class Progress(Kept):
    """Plain numbers, which need not be fetched from the device to be asked about."""

    def __init__(self, num_tasks: int) -> None:
        super().__init__(num_tasks)
        self.last = [0.0] * num_tasks  # losses whenever a task last had labels; 0 before it
        self.linked = False  # whether the losses and weights of the step before begin a transition
        self.largest_lr, self.scale = 0.0, 1.0  # of the rewards

    def follow(self, losses: list[float]) -> None:
        """Remember the losses (K,) of a step whose weights begin a transition."""
        self.last = [now if now > SMALLEST else last for now, last in zip(losses, self.last, strict=True)]
        self.linked = True

    def follow_rate(self, lr: float, scaled: bool) -> None:
        """Remember the largest learning rate; where rewards are `scaled`, scale them by that over `lr`."""
        self.largest_lr = max(self.largest_lr, lr)
        if lr > 0 and scaled:
            self.scale = self.largest_lr / lr
