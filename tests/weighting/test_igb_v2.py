"""IGB v2: its agent against automatic gradients, its densities against known ones, its schedule on scripted losses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import mse_loss, softplus
from weighting_toys import STEPS_PER_EPOCH, ScriptedStep, Toy, train

from mtlcli import MtlError, loss_weightings
from mtlcli.weighting.base import Clock
from mtlcli.weighting.losses._agent import Agent, Nets, Replay, draw

# The published schedule on a smaller scale, so that the agent learns and chooses within a few steps.
FAST: dict[str, Any] = {
    "base_epoch": 0,
    "update_after": 1,
    "start_epoch": 2,
    "update_every": 2,
    "batch_size": 8,
    "buffer_size": 10,
}


def step_of(losses: list[float] | Tensor, number: int, lr: float = 0.01) -> ScriptedStep:
    step = ScriptedStep(torch.as_tensor(losses), number // STEPS_PER_EPOCH)
    step.clock = Clock(number, number // STEPS_PER_EPOCH, STEPS_PER_EPOCH, 10)
    step.lr = lr
    return step


def feed(method: Any, rows: Any, start: int = 0) -> list[Tensor]:
    return [method(step_of(row, start + i)).detach() for i, row in enumerate(rows)]


def stream(count: int, num_tasks: int = 3, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return 0.5 + torch.rand(count, num_tasks, generator=rng) * torch.tensor([1.0, 10.0, 0.1])[:num_tasks]


# -- the agent ---------------------------------------------------------------------------------------------------------


def density(outputs: Tensor, noise: Tensor, log_prob: str) -> tuple[Tensor, Tensor]:
    """Weights (B, K) and log densities (B,), with a graph: the published line, or a multivariate normal's."""
    mean, log_std = outputs.chunk(2, -1)
    std = log_std.clamp(-20, 2).exp()
    u = mean + std * noise
    size = u.shape[-1]
    weights = size * u.softmax(-1)
    if log_prob == "official":
        normal = torch.distributions.Normal(mean, std).log_prob(u).sum(-1)
        return weights, normal - (2 * (math.log(2) - u - softplus(-2 * u))).sum(-1)
    # y_i = u_i - u_K is Gaussian, and d(w_1 .. w_K-1) / dy has the determinant K^(K-1) prod(softmax(u))
    covariance = torch.diag_embed(std[:, :-1].square()) + std[:, -1:, None].square()
    gaussian = torch.distributions.MultivariateNormal(mean[:, :-1] - mean[:, -1:], covariance)
    determinant = u.log_softmax(-1).sum(-1) + (size - 1) * math.log(size)
    return weights, gaussian.log_prob(u[:, :-1] - u[:, -1:]) - determinant


@pytest.mark.parametrize("log_prob", ["official", "corrected"])
def test_densities_and_their_slopes(log_prob: Any) -> None:
    outputs = torch.randn(64, 8, dtype=torch.float64) * 1.5
    outputs[:8, 4:] += 4  # beyond the range of log std
    outputs.requires_grad_()
    noise = torch.randn(64, 4, dtype=torch.float64)
    weights, expected = density(outputs, noise, log_prob)
    found = draw(outputs.detach(), noise, log_prob)
    torch.testing.assert_close(found.weights, weights.detach())
    torch.testing.assert_close(found.log_prob, expected.detach())
    slope = torch.autograd.grad(expected.sum(), outputs)[0]
    by_log_std = found.log_prob_by_u * found.spread + found.log_prob_by_log_std
    torch.testing.assert_close(torch.cat([found.log_prob_by_u, by_log_std * found.inside], -1), slope)


def test_the_corrected_density_is_one() -> None:
    """With two tasks the first weight lies in (0, 2); its density integrates to 1."""
    outputs = torch.tensor([0.3, -0.4, -0.2, 0.1], dtype=torch.float64).expand(20001, 4)
    first = torch.linspace(1e-4, 2 - 1e-4, 20001, dtype=torch.float64)
    logit = (first / (2 - first)).log()
    std = outputs[:, 2:].exp()
    noise = torch.stack([(logit - 0.7) / std[:, 0], torch.zeros_like(logit)], -1)  # u_1 - u_2 = logit, u_2 at its mean
    found = draw(outputs, noise, "corrected")
    torch.testing.assert_close(found.weights[:, 0], first)
    assert torch.trapezoid(found.log_prob.exp(), first).item() == pytest.approx(1, abs=1e-3)
    shifted = draw(outputs + torch.tensor([5.0, 5.0, 0.0, 0.0]), noise, "corrected")  # the same weights
    torch.testing.assert_close(shifted.log_prob, found.log_prob)


def test_the_official_density_is_the_published_line() -> None:
    found = draw(torch.zeros(1, 4), torch.tensor([[0.0, 1.0]]), "official")
    normal = -math.log(2 * math.pi) - 0.5
    squash = 2 * (math.log(2) - 1 - math.log(1 + math.exp(-2)))  # at u = 1; 0 at u = 0
    torch.testing.assert_close(found.log_prob, torch.tensor([normal - squash]))


def reference_net(nets: Nets, which: int) -> list[Tensor]:
    return [
        parameter.detach()[which].clone().requires_grad_() for layer in range(3) for parameter in nets._layers()[layer]
    ]


def apply(net: list[Tensor], x: Tensor) -> Tensor:
    x = (x @ net[0] + net[1]).relu()
    return (x @ net[2] + net[3]).relu() @ net[4] + net[5]


@pytest.mark.parametrize("log_prob", ["official", "corrected"])
def test_updates_against_automatic_gradients(log_prob: Any) -> None:
    size, batch, rng = 3, 16, torch.Generator().manual_seed(0)
    agent = Agent(size, 1e-2, 0.9, 0.1, log_prob, rng, hidden=12).double()
    actor = reference_net(agent.actor, 0)
    critics = [reference_net(agent.critics, i) for i in range(2)]
    copies = [[p.detach().clone() for p in critic] for critic in critics]
    log_price = agent.log_price.detach().clone().requires_grad_()
    assert log_price.exp().item() == pytest.approx(0.2)
    critic_adam = torch.optim.Adam([p for critic in critics for p in critic], lr=1e-2)
    actor_adam = torch.optim.Adam(actor, lr=1e-2)
    price_adam = torch.optim.Adam([log_price], lr=1e-2)
    target_entropy = -size if log_prob == "official" else 1 - size
    for _ in range(4):
        rows = torch.rand(batch, 3 * size + 1, generator=rng, dtype=torch.float64)
        noise, next_noise = torch.randn(2, batch, size, generator=rng, dtype=torch.float64)
        agent.learn(rows, noise, next_noise)

        state, action, reward, after = rows.split([size, size, 1, size], 1)
        price = log_price.exp().detach()
        with torch.no_grad():
            weights, log_density = density(apply(actor, after), next_noise, log_prob)
            values = torch.stack([apply(copy, torch.cat([after, weights], 1)) for copy in copies]).amin(0)
            target = reward + 0.9 * (values - price * log_density[:, None])
        found = [apply(critic, torch.cat([state, action], 1)) for critic in critics]
        critic_adam.zero_grad()
        sum(mse_loss(value, target) for value in found).backward()
        critic_adam.step()
        weights, log_density = density(apply(actor, state), noise, log_prob)
        values = torch.stack([apply(critic, torch.cat([state, weights], 1)) for critic in critics]).amin(0)
        actor_adam.zero_grad()
        (price * log_density[:, None] - values).mean().backward()
        actor_adam.step()
        price_adam.zero_grad()
        (-log_price * (log_density.detach() + target_entropy)).mean().backward()
        price_adam.step()
        for copy, critic in zip(copies, critics, strict=True):
            for mine, theirs in zip(copy, critic, strict=True):
                mine.lerp_(theirs.detach(), 0.1)

    for mine, theirs in zip(reference_net(agent.actor, 0), actor, strict=True):
        torch.testing.assert_close(mine, theirs)
    for i in range(2):
        for mine, theirs in zip(reference_net(agent.critics, i), critics[i], strict=True):
            torch.testing.assert_close(mine, theirs)
        for mine, theirs in zip(reference_net(agent.copies, i), copies[i], strict=True):
            torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(agent.log_price, log_price)


def test_an_agent_finds_the_task_to_weigh() -> None:
    """Reward grows with the first weight, so the agent should come to favour the first task."""
    rng = torch.Generator().manual_seed(0)
    agent = Agent(3, 3e-3, 0.0, 0.05, "corrected", rng, hidden=32)
    states = torch.rand(256, 3, generator=rng)
    for _ in range(400):
        actions = 3 * torch.randn(256, 3, generator=rng).softmax(-1)
        rows = torch.cat([states, actions, 5 * actions[:, :1], states], 1)
        agent.learn(rows, *torch.randn(2, 256, 3, generator=rng))
    chosen = torch.stack([agent.act(state, torch.randn(3, generator=rng)) for state in states])
    assert chosen[:, 0].mean() > 2


def test_replay_is_first_in_first_out() -> None:
    replay = Replay(3, 2)
    for i in range(5):
        assert replay.size == min(i, 3)
        replay.push(torch.tensor([i, -i]))
    assert sorted(replay.rows[:, 0].tolist()) == [2, 3, 4]
    other = Replay(3, 2)
    other.load_state_dict(replay.state_dict())
    assert (other.size, other.pushed) == (3, 5)


# -- the method --------------------------------------------------------------------------------------------------------


def test_transitions_of_a_scripted_stream() -> None:
    method = loss_weightings.build("igb_v2", tasks=2)
    rows = torch.tensor([[9.0, 9.0]] * 4 + [[1.0, 4.0]] * 2 + [[3.0, 8.0]] * 2 + [[2.0, 9.0], [1.0, 6.0], [1.5, 3.0]])
    weights = []
    for i, row in enumerate(rows):
        output = method(step_of(row, i, lr=0.1 if i < 10 else 0.05))
        weights.append(method.weights.clone())
        torch.testing.assert_close(output, method.weights * row.log())
    # D is the mean over the epoch 1, [2, 6]; the first transition leads from its last step into the epoch 2
    rewards = [min((3 - 2) / 2, (8 - 9) / 6), min((2 - 1) / 2, (9 - 6) / 6), 2 * min((1 - 1.5) / 2, (6 - 3) / 6)]
    assert method.replay.size == 3
    for n in range(3):
        expected = torch.cat([rows[7 + n], weights[7 + n], torch.tensor(rewards[n : n + 1]), rows[8 + n]])
        torch.testing.assert_close(method.replay.rows[n], expected)


def test_rewards_without_a_scale() -> None:
    method = loss_weightings.build("igb_v2", tasks=2, base_epoch=0, reward_scale="none")
    for i, lr in enumerate((0.1, 0.1, 0.1, 0.1, 0.01, 0.0)):
        method(step_of([2.0, 2.0 - 0.1 * i], i, lr))
    torch.testing.assert_close(method.replay.rows[:2, 4], torch.zeros(2))
    assert method.progress.scale == 1


def test_reward_scale_follows_the_learning_rate() -> None:
    method = loss_weightings.build("igb_v2", tasks=2)
    found = []
    for i, lr in enumerate((0.0, 0.05, 0.1, 0.1, 0.05, 0.025, 0.0)):  # warm-up, two halvings, the end of a cosine
        method(step_of([1.0, 1.0], i, lr))
        found.append(method.progress.scale)
    assert found == [1, 1, 1, 1, 2, 4, 4]


def test_schedule_of_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    method = loss_weightings.build("igb_v2", tasks=2, **{**FAST, "update_every": 4, "batch_size": 6, "buffer_size": 8})
    batches: list[int] = []
    monkeypatch.setattr(method.agent, "learn", lambda rows, *noises: batches.append(len(rows)))
    calls = []
    for i in range(18):
        batches.clear()
        method(step_of([1.0, 2.0], i))
        calls.append((len(batches), set(batches)))
    # the buffer holds i - 3 transitions from step 4 on: c = 1 + (i - 3) / 8, at most 2
    expected: dict[int, tuple[int, set[int]]] = {i: (0, set()) for i in range(18)}
    expected |= {4: (2, {3}), 8: (3, {4}), 12: (4, {6}), 16: (4, {6})}
    assert dict(enumerate(calls)) == expected


def test_published_schedule_of_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    method = loss_weightings.build("igb_v2", tasks=2)
    method.replay.pushed = 10_000
    batches: list[int] = []
    monkeypatch.setattr(method.agent, "learn", lambda rows, *noises: batches.append(len(rows)))
    for epoch, number in ((2, 50), (3, 51), (3, 100)):
        step = step_of([1.0, 2.0], number)
        step.clock = Clock(number, epoch, 30, 10)
        method(step)
        assert len(batches) == (50 if (epoch, number) == (3, 100) else 0)
    assert set(batches) == {256}


def test_random_weights_until_the_agent_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    method = loss_weightings.build("igb_v2", tasks=3)
    asked: list[Tensor] = []
    act = method.agent.act
    monkeypatch.setattr(method.agent, "act", lambda state, noise: asked.append(state) or act(state, noise))
    rows = stream(6 * STEPS_PER_EPOCH)
    for i, row in enumerate(rows):
        method(step_of(row, i))
        assert method.weights.sum().item() == pytest.approx(3)
        assert len(asked) == max(0, i + 1 - 5 * STEPS_PER_EPOCH)
    torch.testing.assert_close(torch.stack(asked), rows[5 * STEPS_PER_EPOCH :])


def test_resumed_is_uninterrupted_while_the_agent_works(tmp_path: Any) -> None:
    rows = stream(28)
    for half in (5, 9, 16, 21):
        method = loss_weightings.build("igb_v2", tasks=3, **FAST)
        feed(method, rows[:half])
        torch.save(method.state_dict(), tmp_path / "state.pt")
        expected = feed(method, rows[half:], half)
        resumed = loss_weightings.build("igb_v2", tasks=3, seed=9, **FAST)
        resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        assert torch.equal(torch.stack(feed(resumed, rows[half:], half)), torch.stack(expected))
        for mine, theirs in zip(resumed.parameters(), method.parameters(), strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("log_prob", ["official", "corrected"])
@pytest.mark.parametrize("scale", [1e-10, 1.0, 1e10])
def test_finite_at_every_scale_while_the_agent_works(scale: float, log_prob: str) -> None:
    method = loss_weightings.build("igb_v2", tasks=3, log_prob=log_prob, **FAST)
    outputs = torch.stack(feed(method, stream(40) * torch.tensor([scale, 1.0, 1e5])))
    assert outputs.isfinite().all()
    assert all(parameter.isfinite().all() for parameter in method.parameters())


def test_equal_seeds_give_equal_agents() -> None:
    methods = [loss_weightings.build("igb_v2", tasks=3, seed=5, **FAST) for _ in range(2)]
    for method in methods:
        torch.manual_seed(torch.seed())  # nothing comes from the global generator
        feed(method, stream(30))
    for mine, theirs in zip(*(method.parameters() for method in methods), strict=True):
        assert torch.equal(mine, theirs)


def test_non_finite_losses_change_nothing() -> None:
    method = loss_weightings.build("igb_v2", tasks=2, **FAST)
    feed(method, stream(6, 2))
    pushed, weights = method.replay.pushed, method.weights.clone()
    feed(method, [[math.nan, 1.0]], 6)
    assert torch.equal(method.weights, weights)
    feed(method, [[1.0, 1.0]], 7)  # which no finite step precedes
    assert method.replay.pushed == pushed
    feed(method, [[1.0, 1.0]], 8)
    assert method.replay.pushed == pushed + 1
    assert sum(method.events.values()) == 1


def test_equal_weights_where_those_of_the_agent_are_not_finite() -> None:
    method = loss_weightings.build("igb_v2", tasks=2, **FAST)
    feed(method, stream(9, 2))
    with torch.no_grad():
        method.agent.actor.bias2.fill_(math.nan)
    (output,) = feed(method, [[0.5, 2.0]], 9)
    torch.testing.assert_close(output, torch.tensor([0.5, 2.0]).log())
    assert method.weights.tolist() == [1, 1]
    assert method.events == {"the agent's weights were not finite: equal weights were used": 1}


def test_rounds_in_which_nothing_could_be_learned_are_refused() -> None:
    """floor(update_every c / 2) is 0 for a single step until the buffer is full."""
    with pytest.raises(MtlError, match=r"update_every.*>= 2"):
        loss_weightings.build("igb_v2", tasks=2, update_every=1)


def test_one_task_needs_no_agent() -> None:
    method = loss_weightings.build("igb_v2", tasks=1, **FAST)
    rows = stream(20, 1)
    torch.testing.assert_close(torch.stack(feed(method, rows)), rows.log())
    assert not list(method.parameters())


def test_the_runs_optimiser_leaves_the_agent_alone() -> None:
    method = loss_weightings.build("igb_v2", tasks=3, **FAST)
    assert method.learnable() == []
    toy = Toy(3)
    before = [p.detach().clone() for p in method.parameters()]
    train(method, toy, 0, 6)
    changed = [not torch.equal(a, b) for a, b in zip(before, method.parameters(), strict=True)]
    assert all(changed)
