"""Numbers worked out by hand, or by a second transcription of the published formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from weighting_toys import ScriptedStep

from mtlcli import MtlError, loss_weightings
from mtlcli.errors import OptionError


def slopes(output: Tensor, step: ScriptedStep) -> Tensor:
    """The weight (K,) that each loss's own gradient received."""
    return torch.autograd.grad(output.sum(), step.sample_losses)[0][:, 0]


def feed(method, rows: list[tuple[float, ...]], epoch: int) -> Tensor:
    for row in rows:
        output = method(ScriptedStep(torch.tensor(row), epoch))
    return output.detach()


def test_ew_returns_the_losses() -> None:
    step = ScriptedStep(torch.tensor([1.0, 2.0]))
    assert torch.equal(loss_weightings.build("ew", tasks=2)(step), step.losses)


def test_constant_multiplies_by_name() -> None:
    method = loss_weightings.build("constant", tasks=("b", "a"), weights={"a": 2.0, "b": 0.0})
    assert method(ScriptedStep(torch.tensor([3.0, 5.0]))).tolist() == [0.0, 10.0]
    assert "weights" not in method.state_dict()


def test_constant_refuses_names() -> None:
    with pytest.raises(OptionError, match="no task 'dept'; did you mean 'depth'") as found:
        loss_weightings.build("constant", tasks=("seg", "depth"), weights={"seg": 1.0, "dept": 1.0})
    assert found.value.option == "weights"
    with pytest.raises(OptionError, match="no weight for depth"):
        loss_weightings.build("constant", tasks=("seg", "depth"), weights={"seg": 1.0})
    with pytest.raises(MtlError, match=r"weights.*>= 0"):
        loss_weightings.build("constant", tasks=("seg",), weights={"seg": -1.0})
    with pytest.raises(MtlError, match="is required"):
        loss_weightings.build("constant", tasks=("seg",))


def test_si_is_the_log() -> None:
    step = ScriptedStep(torch.tensor([1.0, 4.0]))
    output = loss_weightings.build("si", tasks=2)(step)
    torch.testing.assert_close(output, torch.tensor([0.0, math.log(4)]))
    torch.testing.assert_close(slopes(output, step), torch.tensor([1.0, 0.25]))


@pytest.mark.parametrize("name", ["si", "igb_v1"])
def test_no_gradient_through_the_log_of_nothing(name: str) -> None:
    method = loss_weightings.build(name, tasks=3)
    step = ScriptedStep(torch.tensor([0.0, -2.0, 4.0]))
    output = method(step)
    assert output.isfinite().all()
    assert slopes(output, step).tolist() == [0.0, 0.0, 0.25]
    assert sum(method.events.values()) == 1


def test_uw_by_hand() -> None:
    method = loss_weightings.build("uw", tasks=2, init=0.5)
    step = ScriptedStep(torch.tensor([3.0, 1.0]))
    output = method(step)
    torch.testing.assert_close(output, torch.tensor([1.1597960, 0.5532653]))  # L / (2 e^0.5) + 0.25
    output.sum().backward()
    assert step.sample_losses.grad is not None
    torch.testing.assert_close(step.sample_losses.grad[:, 0], torch.tensor([0.3032653, 0.3032653]))
    torch.testing.assert_close(method.log_variances.grad, torch.tensor([-0.4097960, 0.1967347]))


def test_uw_settles_at_the_loss() -> None:
    method = loss_weightings.build("uw", tasks=2)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.5)
    for _ in range(400):
        optimizer.zero_grad()
        method(ScriptedStep(torch.tensor([0.2, 5.0]))).sum().backward()
        optimizer.step()
    torch.testing.assert_close(method.log_variances.detach().exp(), torch.tensor([0.2, 5.0]))


def test_dwa_by_hand() -> None:
    method = loss_weightings.build("dwa", tasks=2)
    rows = [(1.0, 1.0), (3.0, 5.0)]
    assert torch.equal(feed(method, [(5.0, 1.0), (3.0, 3.0)], 0), torch.tensor([3.0, 3.0]))  # means 4 and 2
    assert torch.equal(feed(method, [(2.0, 1.0), (2.0, 3.0)], 1), torch.tensor([2.0, 3.0]))  # means 2 and 2
    # 2 softmax([0.5, 1] / 2) = [2 / (1 + e^0.25), 2 / (1 + e^-0.25)]
    weights = torch.tensor([0.8756470, 1.1243530])
    torch.testing.assert_close(feed(method, rows[:1], 2), weights)
    torch.testing.assert_close(feed(method, rows[1:], 2), weights * torch.tensor(rows[1]))  # means 2 and 3
    # 2 softmax([2 / 2, 3 / 2] / 2) in the epoch after
    torch.testing.assert_close(feed(method, rows[:1], 3), weights)


def test_dwa_leaves_non_finite_steps_out() -> None:
    method = loss_weightings.build("dwa", tasks=2)
    feed(method, [(4.0, 2.0), (math.nan, 2.0)], 0)
    feed(method, [(math.inf, 1.0), (2.0, 2.0)], 1)
    torch.testing.assert_close(feed(method, [(1.0, 1.0)], 2), torch.tensor([0.8756470, 1.1243530]))


@pytest.mark.parametrize("distribution", ["normal", "dirichlet"])
def test_rlw_sums_to_the_number_of_tasks(distribution: str) -> None:
    method = loss_weightings.build("rlw", tasks=5, distribution=distribution)
    drawn = torch.stack([method(ScriptedStep(torch.ones(5))).detach() for _ in range(4000)])
    torch.testing.assert_close(drawn.sum(1), torch.full((4000,), 5.0))
    assert (drawn > 0).all()
    torch.testing.assert_close(drawn.mean(0), torch.ones(5), rtol=0, atol=0.1)
    if distribution == "dirichlet":  # variance of 5 d_k for uniform d on the simplex: 25 (K - 1) / (K^2 (K + 1))
        torch.testing.assert_close(drawn.var(0), torch.full((5,), 4 / 6), rtol=0, atol=0.1)


def test_igb_v1_by_hand() -> None:
    method = loss_weightings.build("igb_v1", tasks=2)
    feed(method, [(100.0, 1.0)], 0)
    for row in ((4.0, 4.0), (2.0, 8.0)):  # not in proportion to their mean so far, which has no say yet
        torch.testing.assert_close(feed(method, [row], 1), torch.tensor(row).log())
    # D = [3, 6]; L / D = [1, 0.5]; 2 softmax = [2 / (1 + e^-0.5), 2 / (1 + e^0.5)]
    step = ScriptedStep(torch.tensor([3.0, 3.0]), 2)
    output = method(step)
    weights = torch.tensor([1.2449187, 0.7550813])
    torch.testing.assert_close(output, weights * math.log(3))
    torch.testing.assert_close(slopes(output, step), weights / 3)
    feed(method, [(7.0, 7.0)], 3)
    assert method.base.over([3.0, 6.0], [1.0, 1.0]) == [1.0, 1.0]  # set once


def test_igb_v1_base_epoch() -> None:
    method = loss_weightings.build("igb_v1", tasks=2, base_epoch=0)
    feed(method, [(3.0, 6.0)], 0)
    torch.testing.assert_close(feed(method, [(3.0, 3.0)], 1), torch.tensor([1.2449187, 0.7550813]) * math.log(3))


def test_igb_v1_non_finite_losses() -> None:
    method = loss_weightings.build("igb_v1", tasks=2)
    feed(method, [(3.0, 6.0), (math.nan, 1.0), (1.0, math.inf)], 1)
    feed(method, [(3.0, 3.0)], 2)
    weights = method.weights.clone()
    torch.testing.assert_close(weights, torch.tensor([1.2449187, 0.7550813]))
    feed(method, [(math.nan, 3.0)], 2)
    assert torch.equal(method.weights, weights)
    assert sum(method.events.values()) == 3


def test_igb_v1_does_not_see_units() -> None:
    outcomes = []
    for unit in (1.0, 1e4):
        method = loss_weightings.build("igb_v1", tasks=2)
        feed(method, [(2.0 * unit, 4.0)], 1)
        feed(method, [(1.0 * unit, 3.0)], 2)
        outcomes.append(method.weights)
    torch.testing.assert_close(*outcomes)


@pytest.mark.parametrize(
    ("name", "options"), [("igb_v1", {"base_epoch": 0}), ("stch", {"warmup_epochs": 0, "mu": 0.01})]
)
def test_a_spike_takes_all_the_weight_and_no_more(name: str, options: dict[str, float]) -> None:
    """The exponential of a loss that is 1e30 times its base has no number."""
    method = loss_weightings.build(name, tasks=3, **options)
    feed(method, [(3.0, 6.0, 1.0)], 0)
    step = ScriptedStep(torch.tensor([3.0, 6e30, 1.0]), 1)
    output = method(step)
    assert output.isfinite().all()
    torch.testing.assert_close(slopes(output, step) * step.losses.detach(), torch.tensor([0.0, 3.0, 0.0]))


@pytest.mark.parametrize("lowest", [0.0, 0.1])
def test_famo_against_its_published_loop(lowest: float) -> None:
    rng = torch.Generator().manual_seed(0)
    method = loss_weightings.build("famo", tasks=3, min_losses={"task1": lowest} if lowest else {})
    floor = torch.tensor([0.0, lowest, 0.0])
    logits = torch.zeros(3, requires_grad=True)
    adam = torch.optim.Adam([logits], lr=0.025, weight_decay=1e-3)
    for _ in range(20):
        losses = 0.2 + torch.rand(3, generator=rng) * torch.tensor([1.0, 0.1, 30.0])
        after = losses * (0.85 + 0.2 * torch.rand(3, generator=rng))
        step = ScriptedStep(losses, after=after)
        output = method(step)
        method.after_step(step)

        leaf = losses.clone().requires_grad_()
        gap = leaf - floor + 1e-8
        shares = torch.softmax(logits, -1).detach()
        objective = (gap.log() * shares / (shares / gap).sum().detach()).sum()
        torch.testing.assert_close(output.sum(), objective)
        torch.testing.assert_close(slopes(output, step), torch.autograd.grad(objective, leaf)[0])
        torch.testing.assert_close(slopes(method(step), step).sum(), torch.tensor(1.0))
        change = (losses - floor + 1e-8).log() - (after - floor + 1e-8).log()
        adam.zero_grad()
        torch.softmax(logits, -1).backward(change)
        adam.step()
        torch.testing.assert_close(method.logits, logits.detach())


@pytest.mark.parametrize("absent", [0.0, -1.0])
def test_famo_trains_the_others_where_a_task_has_no_labels(absent: float) -> None:
    method, without = (loss_weightings.build("famo", tasks=num) for num in (3, 2))
    step, other = ScriptedStep(torch.tensor([0.5, absent, 2.0])), ScriptedStep(torch.tensor([0.5, 2.0]))
    found = slopes(method(step), step)
    assert found[1] == 0
    torch.testing.assert_close(found[[0, 2]], slopes(without(other), other))
    assert method.events.total() == (absent < 0)
    none = ScriptedStep(torch.zeros(3))
    assert slopes(method(none), none).tolist() == [0.0, 0.0, 0.0]


def test_famo_counts_what_it_cannot_use() -> None:
    method = loss_weightings.build("famo", tasks=2, min_losses={"task0": 2.0})
    step = ScriptedStep(torch.tensor([1.0, 1.0]), after=torch.tensor([math.nan, 1.0]))
    output = method(step)
    assert output.isfinite().all()
    assert slopes(output, step)[0] == 0
    method.after_step(step)
    assert method.logits.tolist() == [0.0, 0.0]
    assert sum(method.events.values()) == 2
    with pytest.raises(OptionError, match="did you mean 'task0'"):
        loss_weightings.build("famo", tasks=2, min_losses={"tsk0": 2.0})
