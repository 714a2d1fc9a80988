"""Batches without a label of some task: its loss is 0, and the others train as though it was not there."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from weighting_toys import (
    EPOCHS,
    STEPS_PER_EPOCH,
    ScriptedStep,
    Toy,
    ToyStep,
    build_gradient,
    build_loss,
    task_names,
    train,
)

from mtlcli import Balancer, gradient_weightings, loss_weightings
from mtlcli.weighting.base import Losses

NUM_STEPS = EPOCHS * STEPS_PER_EPOCH
RANDOM = "its random numbers are other ones with another number of tasks"
# Why a method treats the others otherwise when one more task is there that says nothing.
SIMPLEX = "it learns a point on the simplex of all tasks"
LOSS_EXCEPTIONS = {"rlw": RANDOM, "igb_v2": RANDOM, "forum": SIMPLEX, "moml": SIMPLEX}
FURTHER = "it needs further batches; see below"
GRADIENT_EXCEPTIONS = {"moco": SIMPLEX, "modo": FURTHER, "sdmgrad": FURTHER}


class FewerTasks(Toy):
    """The first `keep` tasks of a toy with three; the third has no labels."""

    def __init__(self, keep: int) -> None:
        super().__init__(3, torch.tensor([1.0, 4.0, 0.0]))
        self.keep, self.tasks = keep, self.tasks[:keep]

    def sample_losses(self, params: dict[str, Tensor], seed: int) -> Tensor:
        return super().sample_losses(params, seed)[: self.keep]


def test_a_task_without_labels_changes_nothing_for_the_others(loss_name: str) -> None:
    if loss_name in LOSS_EXCEPTIONS:
        pytest.skip(LOSS_EXCEPTIONS[loss_name])
    paths = []
    for keep in (2, 3):
        toy = FewerTasks(keep)
        train(build_loss(loss_name, toy.tasks), toy, 0, NUM_STEPS)
        paths.append(toy.params)
    torch.testing.assert_close(paths[0]["shared"], paths[1]["shared"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(paths[0]["heads"], paths[1]["heads"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("wrt", ["params", "representation"])
def test_a_gradient_of_a_task_without_labels_has_no_say(gradient_name: str, wrt: Any) -> None:
    cls = gradient_weightings.get(gradient_name)
    if gradient_name in GRADIENT_EXCEPTIONS:
        pytest.skip(GRADIENT_EXCEPTIONS[gradient_name])
    if wrt not in cls.anchors:
        pytest.skip("not there")
    found = []
    for num_tasks in (2, 3):
        torch.manual_seed(0)
        trunk, heads = nn.Linear(4, 5), [nn.Linear(5, 1) for _ in range(3)]
        tasks = task_names(num_tasks)
        owned = {task: list(head.parameters()) for task, head in zip(tasks, heads, strict=False)}
        shared = list(trunk.parameters())
        balancer = Balancer(tasks, gradient=gradient_name, shared=shared, task_parameters=owned, wrt=wrt)
        for number in range(3):
            torch.manual_seed(number)
            inputs, targets = torch.randn(8, 4), torch.randn(3, 8, 1)
            trunk.zero_grad()
            z = trunk(inputs).tanh()
            labelled = (1.0, 3.0, 0.0)
            losses = [c * (head(z) - y).square().mean() for c, head, y in zip(labelled, heads, targets, strict=True)]
            torch.manual_seed(number)
            balancer.backward(losses[:num_tasks], representation=z if wrt == "representation" else None)
        found.append(torch.cat([p.grad.flatten() for p in trunk.parameters() if p.grad is not None]))
        assert found[-1].norm() > 0
    torch.testing.assert_close(torch.cosine_similarity(*found, dim=0), torch.tensor(1.0))


def weights_after(method: Any, rows: list[tuple[float, ...]], epoch: int) -> list[float]:
    """What the last of `rows` is multiplied by (or its log)."""
    for row in rows:
        step = ScriptedStep(torch.tensor(row), epoch)
        output = method(step)
    (slope,) = torch.autograd.grad(output.sum(), step.sample_losses)
    factor = torch.ones_like(step.losses) if method.name in ("dwa", "cov") else step.losses.detach()
    return (slope[:, 0] * factor).tolist()


@pytest.mark.parametrize(("name", "epoch"), [("igb_v1", 1), ("stch", 4)])
def test_a_base_is_the_mean_over_labelled_steps(name: str, epoch: int) -> None:
    full, partly = (loss_weightings.build(name, tasks=2) for _ in range(2))
    weights_after(full, [(2.0, 3.0), (4.0, 3.0)], epoch)
    weights_after(partly, [(2.0, 3.0), (4.0, 0.0), (3.0, 0.0)], epoch)
    expected = weights_after(full, [(1.0, 2.0)], epoch + 1)
    assert weights_after(partly, [(1.0, 2.0)], epoch + 1) == pytest.approx(expected)
    assert weights_after(partly, [(1.0, 0.0)], epoch + 1) == pytest.approx([1.0, 0.0])
    assert sum(expected) == pytest.approx(2.0)


@pytest.mark.parametrize(("name", "epoch"), [("igb_v1", 1), ("stch", 4)])
def test_a_task_that_comes_late_takes_its_first_loss_as_its_base(name: str, epoch: int) -> None:
    method = loss_weightings.build(name, tasks=2)
    weights_after(method, [(2.0, 0.0)], epoch)
    assert weights_after(method, [(2.0, 5.0)], epoch + 1) == pytest.approx([1.0, 1.0])
    weights_after(method, [(2.0, 1.0)], epoch + 1)
    assert method.base.over([2.0, 5.0], [1.0, 1.0]) == [1.0, 1.0]


def test_igb_v2_goes_by_the_tasks_that_it_sees() -> None:
    method = loss_weightings.build("igb_v2", tasks=2, base_epoch=0)
    rows = [(0, (2.0, 4.0)), (0, (2.0, 0.0)), (1, (1.0, 0.0)), (1, (1.0, 3.0)), (1, (0.0, 0.0)), (1, (0.0, 1.0))]
    for epoch, row in rows:
        method(ScriptedStep(torch.tensor(row), epoch))
    states, _, rewards, followings = method.replay.rows[: method.replay.size].split([2, 2, 1, 2], dim=1)
    # Bases 2 and 4. The fifth step has no labels at all and so nothing to reward.
    assert states.tolist() == [[2.0, 4.0], [1.0, 4.0], [1.0, 3.0]]
    assert followings.tolist() == [[1.0, 4.0], [1.0, 3.0], [1.0, 1.0]]
    assert rewards[:, 0].tolist() == pytest.approx([0.5, 0.0, 0.5])


@pytest.mark.parametrize("window", ["epoch", "iterations"])
def test_dwa_compares_labelled_steps(window: str) -> None:
    method = loss_weightings.build("dwa", tasks=3, window=window, length=2)
    first, second = [(4.0, 2.0, 1.0), (4.0, 0.0, 0.0)], [(2.0, 0.0, 0.0), (2.0, 2.0, 0.0)]
    weights_after(method, first, 0)
    weights_after(method, second, 1)
    found = weights_after(method, [(2.0, 2.0, 1.0)], 2) if window == "epoch" else method.history.means
    if window == "iterations":
        assert found == [[4.0, 2.0, 1.0], [2.0, 2.0, None]]
        return
    share = 1 / (1 + math.exp((1 - 0.5) / 2))  # ratios 1/2 and 1 at the temperature 2
    assert found == pytest.approx([2 * share, 2 * (1 - share), 1.0])


def test_cov_leaves_steps_without_labels_out() -> None:
    full, partly = (loss_weightings.build("cov", tasks=2) for _ in range(2))
    rows = [(1.0, 2.0), (3.0, 5.0), (2.0, 1.0), (5.0, 2.0)]
    apart = [row for a, b in rows for row in ((a, 0.0), (0.0, b))]
    expected = weights_after(full, [*rows, (1.0, 1.0)], 0)
    assert weights_after(partly, [*apart, (1.0, 1.0)], 0) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["uw", "imtl_l"])
def test_a_learned_scale_waits_for_labels(name: str) -> None:
    method = loss_weightings.build(name, tasks=2)
    method(ScriptedStep(torch.tensor([2.0, 0.0]))).sum().backward()
    (learned,) = method.parameters()
    assert learned.grad is not None
    assert learned.grad[0] != 0
    assert learned.grad[1] == 0


@pytest.mark.parametrize(("name", "options"), [("emtl", {"ema": 0.9}), ("metabalance", {})])
def test_running_lengths_wait_for_labels(name: str, options: dict[str, Any]) -> None:
    method = gradient_weightings.build(name, tasks=2, **options)
    lengths = []
    for diagonal, losses in (((4.0, 9.0), (1.0, 1.0)), ((4.0, 0.0), (1.0, 0.0))):
        method(torch.diag(torch.tensor(diagonal, dtype=torch.float64)), torch.tensor(losses, dtype=torch.float64))
        lengths.append(method.lengths.tolist())
    assert lengths[1][1] == lengths[0][1] > 0


def test_gradnorm_compares_the_tasks_that_it_sees() -> None:
    """Two tasks that are level stay level, whatever a third that is seldom seen."""
    method = build_gradient("gradnorm", 3)
    method(torch.eye(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
    before = method.weights.detach().clone()
    gramian = torch.diag(torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))
    method(gramian, torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(method.weights.detach(), before)


@pytest.mark.parametrize("options", [{}, {"mode": "linearised"}, {"batch": "held_out"}], ids=str)
def test_hydalearn_keeps_its_weights_without_labels_of_the_main_task(options: dict[str, str]) -> None:
    method = loss_weightings.build("hydalearn", tasks=task_names(3), main="task0", **options)
    method(ToyStep(Toy(3), 0))
    before = method.weights.clone()
    assert before.std() > 0
    output = method(ToyStep(Toy(3, torch.tensor([0.0, 1.0, 1.0])), 1))
    assert torch.equal(method.weights, before)
    assert output[1] > 0
    assert dict(method.events) == {"the main task's gain is not known: the last weights were used": 1}


def test_hydalearn_keeps_its_weights_where_held_out_rows_lack_the_main_task() -> None:
    class HeldOutWithout(ToyStep):
        def probe(self, at: Any = None, batch: Any = "train") -> Losses:
            losses = super().probe(at, batch)
            return Losses((losses.per_task * torch.tensor([0.0, 1.0, 1.0])).unbind(), losses.per_sample.unbind())

    for mode in ("simulated", "linearised"):
        method = loss_weightings.build("hydalearn", tasks=task_names(3), main="task0", mode=mode, batch="held_out")
        before = method.weights.clone()
        method(HeldOutWithout(Toy(3), 0))
        assert torch.equal(method.weights, before)
        assert sum(method.events.values()) == 1


@pytest.mark.parametrize("name", ["modo", "sdmgrad"])
def test_a_point_on_the_simplex_is_shared_by_the_tasks_with_labels(name: str) -> None:
    """The third keeps its part, and the others move as though there were two of them."""
    torch.manual_seed(0)
    rows = torch.randn(3, 5, dtype=torch.float64)
    two, three = (gradient_weightings.build(name, tasks=n) for n in (2, 3))
    silent, losses = rows @ rows.T, torch.tensor([1.0, 2.0, 0.0])
    silent[2], silent[:, 2] = 0, 0
    for _ in range(3):
        expected = two((rows @ rows.T)[:2, :2], losses[:2])
        found = three(silent, losses)
        torch.testing.assert_close(found[:2], expected)
        assert found[2] == 0
    kept = three.weights if name == "modo" else three.shares
    assert float(kept[2]) == pytest.approx(1 / 3)
    assert float(kept.sum()) == pytest.approx(1)
    nobody = three(torch.zeros(3, 3, dtype=torch.float64), torch.zeros(3))
    assert nobody.isfinite().all()


@pytest.mark.parametrize("distribution", ["normal", "dirichlet"])
def test_random_weights_are_shared_by_the_tasks_with_labels(distribution: str) -> None:
    whole, partly = (loss_weightings.build("rlw", tasks=3, seed=1, distribution=distribution) for _ in range(2))
    every = whole(ScriptedStep(torch.tensor([1.0, 1.0, 1.0]), 0)).detach()
    found = partly(ScriptedStep(torch.tensor([1.0, 1.0, 0.0]), 0)).detach()
    assert float(every.sum()) == pytest.approx(3)
    assert found.tolist() == pytest.approx([*(2 * every[:2] / every[:2].sum()).tolist(), 0])
    assert partly(ScriptedStep(torch.zeros(3), 0)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("router", ["weights", "network"])
def test_ldc_outlives_weights_that_are_all_but_nothing(router: str) -> None:
    """Its numbers fall for good, since the sum that it divides by is held fixed."""
    method = loss_weightings.build("ldc_mtl", tasks=2, router=router)
    if method.numbers is not None:
        method.numbers.data.fill_(-500.0)
    optimizer = torch.optim.Adam(method.learnable(), 1e-3)
    for number in range(400):
        row = torch.tensor([1.0, 0.0 if number % 2 else 3.0])
        shares = method(ScriptedStep(row, 0))
        assert shares.isfinite().all()
        optimizer.zero_grad()
        shares.sum().backward()
        optimizer.step()
    assert all(p.isfinite().all() for p in method.parameters())
