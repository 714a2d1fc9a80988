"""The clock that a Balancer shows to weightings: steps and epochs from 0, through an interruption as well."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mtlcli import Balancer
from mtlcli.options import Options
from mtlcli.weighting.base import Clock, LossWeighting, StepView

TASKS = ("a", "b")


class Watch(LossWeighting):
    """Writes down when it was asked."""

    name = "watch"

    def __init__(self) -> None:
        super().__init__(Options(), TASKS, torch.Generator())
        self.seen: list[Clock] = []

    def forward(self, step: StepView) -> Tensor:
        self.seen.append(step.clock)
        return step.losses


def run(balancer: Balancer, steps: int) -> list[Clock]:
    """What `steps` steps saw."""
    watch = balancer.loss_weighting
    assert isinstance(watch, Watch)
    watch.seen = []
    x = nn.Parameter(torch.ones(2))
    for _ in range(steps):
        balancer.backward([x.sum(), x.square().sum()])
        balancer.after_step()
    return watch.seen


def test_steps_and_epochs_are_counted() -> None:
    balancer = Balancer(TASKS, loss=Watch(), epochs=9)
    assert run(balancer, 3) == [Clock(0, 0, 0, 9), Clock(1, 0, 0, 9), Clock(2, 0, 0, 9)]
    balancer.end_epoch()
    assert run(balancer, 2) == [Clock(3, 1, 3, 9), Clock(4, 1, 3, 9)]
    balancer.end_epoch()
    assert run(balancer, 1) == [Clock(5, 2, 2, 9)]


def test_what_is_given_is_known_from_the_first_step_on() -> None:
    assert run(Balancer(TASKS, loss=Watch(), epochs=5, steps_per_epoch=7), 2) == [Clock(0, 0, 7, 5), Clock(1, 0, 7, 5)]


def test_a_resumed_clock_goes_on() -> None:
    """In the middle of an epoch, whose steps from before the interruption count too."""
    balancer, resumed = (Balancer(TASKS, loss=Watch()) for _ in range(2))
    run(balancer, 3)
    balancer.end_epoch()
    run(balancer, 2)
    resumed.load_state_dict(balancer.state_dict())
    assert run(resumed, 2) == run(balancer, 2) == [Clock(5, 1, 3, 0), Clock(6, 1, 3, 0)]
    resumed.end_epoch()
    assert run(resumed, 1) == [Clock(7, 2, 4, 0)]
