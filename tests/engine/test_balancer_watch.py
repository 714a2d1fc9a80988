"""What a Balancer notices by itself: closures that are none, devices, buffers, and calls that are missing."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_balancer import TASKS, balancer_for, net, task_losses
from torch import Tensor, nn

from mtlcli.engine.balancer import Balancer
from mtlcli.engine.watch import PATIENCE
from mtlcli.errors import MtlError
from mtlcli.weighting.base import LossWeighting

PROBING = ("famo", "hydalearn", "auto_lambda", "moml", "forum")


class Pair:
    """A trunk, two heads, and their losses."""

    def __init__(self, names: tuple[str, str] = ("a", "b"), trunk: nn.Module | None = None) -> None:
        torch.manual_seed(0)
        self.names = names
        self.trunk = trunk or nn.Sequential(nn.Linear(4, 8), nn.Tanh())
        self.heads = nn.ModuleList([nn.Linear(8, 1) for _ in names])
        self.model = nn.ModuleList([self.trunk, self.heads])

    def samples(self, seed: int = 0, rows: int = 6) -> Tensor:
        """Losses (2, B) on rows that a seed draws."""
        drawn = torch.Generator().manual_seed(seed)
        z = self.trunk(torch.randn(rows, 4, generator=drawn))
        return torch.stack([(head(z)[:, 0] - torch.randn(rows, generator=drawn)) ** 2 for head in self.heads])

    def losses(self) -> Tensor:
        return self.samples().mean(1)

    def held_out(self) -> Tensor:
        return self.samples(1).mean(1)

    def balancer(self, **settings: Any) -> Balancer:
        own = {name: list(head.parameters()) for name, head in zip(self.names, self.heads, strict=True)}
        return Balancer(self.names, shared=list(self.trunk.parameters()), task_parameters=own, **settings)


@pytest.mark.parametrize("form", ["tensor", "dict"])
@pytest.mark.parametrize("loss", PROBING)
def test_a_closure_that_hands_the_losses_back_is_noticed(loss: str, form: str) -> None:
    pair = Pair()
    balancer = pair.balancer(loss=loss)
    given: Any = pair.losses() if form == "tensor" else dict(zip("ab", pair.losses().unbind(), strict=True))

    def step() -> None:
        balancer.backward(given, closure=lambda: given, held_out=lambda: given)
        balancer.after_step()

    with pytest.raises(MtlError, match=r"(closure|held_out) should compute its losses anew"):
        step()


@pytest.mark.parametrize(
    ("closure", "found"),
    [
        (lambda pair: pair.losses(), "one loss a task"),
        (lambda pair: pair.samples()[:, :1], r"\[1, 1\]"),
        (lambda pair: pair.samples(rows=3), r"\[3, 3\]"),
    ],
)
def test_samples_are_compared_with_samples_of_the_same_batch(closure: Callable[[Pair], Tensor], found: str) -> None:
    pair = Pair()
    balancer = pair.balancer(loss="slgrad")
    with pytest.raises(MtlError, match=rf"should give the per-sample losses .* \[6, 6\] of a, b.* found {found}"):
        balancer.backward(pair.samples(), closure=lambda: closure(pair), held_out=pair.held_out)


def test_a_message_says_whose_losses_have_no_gradient() -> None:
    pair = Pair()
    held_out = torch.no_grad()(pair.held_out)
    with pytest.raises(MtlError, match="what held_out gives: the loss of 'a' has no gradient"):
        pair.balancer(loss="moml").backward(pair.losses(), held_out=held_out)


@pytest.mark.parametrize("loss", ["hydalearn", "forum", "moml"])
def test_a_task_may_have_any_name(loss: str) -> None:
    found = []
    for names in (("a", "b"), ("shared", "b")):
        pair = Pair(names)
        report = pair.balancer(loss=loss).backward(pair.losses(), closure=pair.losses, held_out=pair.held_out)
        found.append(report.weights)
    assert torch.equal(*found)


class Counting(nn.Module):
    """Puts a new tensor in the place of its buffer with every forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 8)
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        self.passes = self.passes + 1
        return torch.tanh(self.layer(inputs))


def test_buffers_that_a_forward_pass_replaces_are_put_back() -> None:
    trunk = Counting()
    pair = Pair(trunk=trunk)
    pair.balancer(loss="hydalearn", model=pair.model).backward(pair.losses(), closure=pair.losses)
    assert trunk.passes == 1


def test_batch_normalisation_that_stands_still_needs_no_model() -> None:
    pair = Pair(trunk=nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)).eval())
    pair.balancer(loss="hydalearn").backward(pair.losses(), closure=pair.losses)


@pytest.mark.parametrize("loss", ["hydalearn", "slgrad"])
def test_layers_of_the_trunk_are_not_a_tasks_own(loss: str) -> None:
    pair = Pair()
    weight, bias = pair.trunk.parameters()
    one, other = (list(head.parameters()) for head in pair.heads)
    balancer = Balancer(("a", "b"), loss=loss, shared=[weight], task_parameters={"a": [bias, *one], "b": other})
    with pytest.raises(MtlError, match=r"task_parameters\['a'\] holds parameters that the losses of other tasks reach"):
        balancer.backward(pair.samples(), closure=pair.samples, held_out=pair.held_out)


def test_a_frozen_trunk_is_called_frozen() -> None:
    pair = Pair()
    pair.trunk.requires_grad_(False)
    with pytest.raises(MtlError, match="all parameters in shared= are frozen"):
        pair.balancer(loss="hydalearn").backward(pair.losses(), closure=pair.losses)


def test_what_is_kept_elsewhere_than_the_losses_is_noticed() -> None:
    balancer = Balancer(("a", "b"), loss="uw")
    losses = torch.ones(2, device="meta", requires_grad=True)
    with pytest.raises(MtlError, match="losses are on meta, and what 'uw' keeps is on cpu: make the Balancer after"):
        balancer.backward(losses * 1)


def test_parameters_of_16_bits_are_spoken_of_where_losses_are_measured_again() -> None:
    pair = Pair(trunk=nn.Linear(4, 8, dtype=torch.bfloat16))

    def mixed() -> Tensor:
        z = pair.trunk(torch.ones(3, 4, dtype=torch.bfloat16)).float()
        return torch.stack([head(z).square().mean() for head in pair.heads])

    with pytest.warns(UserWarning, match="parameters of 16 bits mostly lose"):
        pair.balancer(loss="famo").backward(mixed(), closure=mixed)
    pair.balancer(loss="uw").backward(mixed())


@pytest.mark.parametrize("found", ["high", [1.0], torch.ones(2)])
def test_a_metric_is_a_number(found: Any) -> None:
    pair = Pair()
    balancer = pair.balancer(loss="hydalearn", options={"loss": {"gain": "metric"}})
    with pytest.raises(MtlError, match=r"metrics\['a'\] should give a number, higher is better.* found"):
        balancer.backward(pair.losses(), closure=pair.losses, metrics={"a": lambda: found})


@pytest.mark.parametrize("returned", [None, [1.0, 2.0, 3.0], 1.0])
def test_a_class_of_ones_own_needs_no_name_and_returns_a_tensor(returned: Any) -> None:
    class Mine(LossWeighting):
        def forward(self, step: Any) -> Any:
            return returned

    mine = Mine(None, TASKS, torch.Generator())
    model = net()
    with pytest.raises(MtlError, match=rf"'Mine': forward should return \(3,\).* found {type(returned).__name__}"):
        balancer_for(model, loss=mine).backward(task_losses(model)[1])


def test_learning_rates_are_resumed() -> None:
    balancer, resumed = (balancer_for(net(), loss="igb_v2") for _ in range(2))
    balancer.lr = 0.25
    resumed.load_state_dict(balancer.state_dict())
    assert resumed.lr == 0.25


# -- calls that are missing --------------------------------------------------------------------------------------------


def test_learnable_parameters_that_nobody_trains_are_spoken_of() -> None:
    pair = Pair()
    forgetful, thorough = pair.balancer(loss="uw"), pair.balancer(loss="uw")
    optimizer = torch.optim.SGD([*pair.model.parameters(), *thorough.parameters()], lr=0.01)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2 * PATIENCE):
            optimizer.zero_grad()
            thorough.backward(pair.losses())
            optimizer.step()
        assert not caught
        for _ in range(2 * PATIENCE):
            forgetful.backward(pair.losses())
    assert [str(each.message) for each in caught] == [
        "'uw' has parameters that nobody trained in 32 calls of backward: give balancer.parameters() to the optimiser"
    ]
    assert caught[0].filename == __file__


def test_epochs_that_nobody_ends_are_spoken_of() -> None:
    pair = Pair()
    for ends, expected in ((True, 0), (False, 1)):
        balancer = pair.balancer(loss="igb_v1", steps_per_epoch=5, epochs=10)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for step in range(1, 31):
                balancer.backward(pair.losses())
                if ends and step % 5 == 0:
                    balancer.end_epoch()
        assert len(caught) == expected
    says = "begins in epoch 2, counted from 0, and epoch 0 has had 11 steps instead of 5: call end_epoch()"
    assert says in str(caught[0].message)
