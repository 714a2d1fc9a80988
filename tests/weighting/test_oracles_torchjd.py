"""Weightings against TorchJD, an independent implementation; every difference between the two is stated."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from weighting_toys import ScriptedStep, build_gradient, direction, jacobian_of

from mtlcli import gradient_weightings, loss_weightings

aggregation = pytest.importorskip("torchjd.aggregation")
linalg = pytest.importorskip("torchjd.linalg")
scalarization = pytest.importorskip("torchjd.scalarization")

RANDOM = [jacobian_of(k, 20, seed=k) for k in (2, 3, 5, 11)]
ILL_CONDITIONED = [
    jacobian_of(4, 20, seed=1) * torch.tensor([[1e-2], [1.0], [1e2], [1e1]], dtype=torch.float64),
    jacobian_of(1, 20, seed=2) + 1e-2 * jacobian_of(5, 20, seed=3),
]
RANK_DEFICIENT = [
    jacobian_of(5, 3, seed=4) + 1,
    torch.cat([jacobian_of(3, 9, seed=5), jacobian_of(3, 9, seed=5)]),
    jacobian_of(9, 4, seed=6),
]
FULL_RANK = [*RANDOM, *ILL_CONDITIONED]
EVERY = [*FULL_RANK, *RANK_DEFICIENT]


def named(jacobians: list[Tensor]) -> list[Any]:
    return [pytest.param(j, id=f"{len(j)}x{j.shape[1]}_{i}") for i, j in enumerate(jacobians)]


def weights_of(name: str, jacobian: Tensor, **options: Any) -> Tensor:
    method = gradient_weightings.build(name, tasks=len(jacobian), **options)
    return method(jacobian @ jacobian.T, torch.ones(len(jacobian)))


def close(found: Tensor, expected: Tensor, jacobian: Tensor, tolerance: float) -> None:
    """Absolute tolerance, in lengths of the longest gradient."""
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * float(jacobian.norm(dim=1).max()))


@pytest.mark.parametrize("jacobian", named(EVERY))
def test_gradvac(jacobian: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over three steps, once both visit the tasks in the same orders. They add 1e-8 to what they divide by."""
    num = len(jacobian)
    orders = [torch.randperm(num, generator=torch.Generator().manual_seed(k)).tolist() for k in range(3 * num)]
    without_self = [[j - (j > i % num) for j in order if j != i % num] for i, order in enumerate(orders)]
    found = []
    for method, drawn in ((build_gradient("gradvac", num), orders), (aggregation.GradVac(beta=0.5), without_self)):
        draws = iter(drawn)
        monkeypatch.setattr(torch, "randperm", lambda n, draws=draws, **_: torch.tensor(next(draws)))
        steps = [
            jacobian,
            jacobian + 0.3 * jacobian_of(*jacobian.shape, seed=9) * jacobian.norm(dim=1)[:, None],
            jacobian,
        ]
        found.append(
            [direction(method, j) if method is not None and hasattr(method, "reads") else method(j) for j in steps]
        )
    for ours, theirs in zip(*found, strict=True):
        close(ours, theirs, jacobian, 1e-5)


@pytest.mark.filterwarnings("ignore")  # theirs: cvxpy warns about inaccurate solutions
@pytest.mark.parametrize("c", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("jacobian", named(EVERY))
def test_cagrad(jacobian: Tensor, c: float) -> None:
    """They neither rescale nor multiply by K, and solve to about 1e-8 in the objective: 1e-4 in the direction."""
    ours = weights_of("cagrad", jacobian, c=c, rescale=0) @ jacobian / len(jacobian)
    close(ours, aggregation.CAGrad(c=c, norm_eps=1e-10)(jacobian), jacobian, 3e-4)


@pytest.mark.parametrize("jacobian", named(FULL_RANK))
def test_imtl_g(jacobian: Tensor) -> None:
    """Up to the sign, where theirs ascends every loss."""
    theirs = aggregation.IMTLGWeighting()(jacobian @ jacobian.T)
    projections = jacobian @ (theirs @ jacobian)
    torch.testing.assert_close(weights_of("imtl_g", jacobian), theirs * projections.sign(), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("jacobian", named(RANK_DEFICIENT[1:2]))
def test_imtl_g_direction_of_dependent_gradients(jacobian: Tensor) -> None:
    """Their pseudo-inverse is of the Gramian, ours of the cosines: another length of the update."""
    ours, theirs = weights_of("imtl_g", jacobian) @ jacobian, aggregation.IMTLG()(jacobian)
    torch.testing.assert_close(ours / ours.norm(), theirs / theirs.norm(), rtol=0, atol=1e-8)


@pytest.mark.parametrize("scale", ["min", "median", "rmse"])
@pytest.mark.parametrize("jacobian", named([*RANDOM, ILL_CONDITIONED[1], *RANK_DEFICIENT]))
def test_aligned_mtl(jacobian: Tensor, scale: str) -> None:
    """They average where we sum. Left out: lengths from 1e-2 to 1e2, where the least eigenvalue lies below the epsilon
    of float32, ours and the paper's bound, and above that of float64, theirs."""
    ours = weights_of("aligned_mtl", jacobian, scale=scale)
    theirs = aggregation.AlignedMTLWeighting(scale_mode=scale)(jacobian @ jacobian.T) * len(jacobian)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore")  # theirs: overflow on the way
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("jacobian", named([*RANDOM, ILL_CONDITIONED[1], RANK_DEFICIENT[1]]))
def test_fairgrad(jacobian: Tensor, alpha: float) -> None:
    """They stop at a relative change of 1e-8 and know no `max_norm`; alpha = 0 is 1 / K there. Left out: lengths from
    1e-2 to 1e2, where their residual is above 1, and cancelling gradients."""
    theirs = aggregation.FairGradWeighting(alpha=alpha)(jacobian @ jacobian.T)
    expected = theirs * len(jacobian) if alpha == 0 else theirs
    torch.testing.assert_close(
        weights_of("fairgrad", jacobian, alpha=alpha, max_norm=0), expected, rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize(("name", "theirs"), [("upgrad", "UPGradWeighting"), ("dualproj", "DualProjWeighting")])
@pytest.mark.parametrize("jacobian", named(EVERY))
def test_projections(jacobian: Tensor, name: str, theirs: str) -> None:
    """With their ridge, exact up to rounding. Without it the direction moves by the size of the ridge, which is here as
    small as their solver bears."""
    gramian = jacobian @ jacobian.T
    expected = getattr(aggregation, theirs)()(gramian)
    torch.testing.assert_close(weights_of(name, jacobian, reg_eps=1e-4), expected, rtol=1e-6, atol=1e-6)
    independent = torch.linalg.matrix_rank(jacobian) == len(jacobian)
    projector = linalg.QuadprogProjector(norm_eps=1e-20, reg_eps=1e-13 if independent else 1e-9)
    expected = getattr(aggregation, theirs)(projector=projector)(gramian)
    close(weights_of(name, jacobian) @ jacobian, expected @ jacobian, jacobian, 1e-4)


@pytest.mark.parametrize("jacobian", named([*FULL_RANK, RANK_DEFICIENT[1]]))
def test_config(jacobian: Tensor) -> None:
    ours = weights_of("config", jacobian) @ jacobian
    close(ours, aggregation.ConFIG()(jacobian), jacobian, 1e-7)


@pytest.mark.parametrize("jacobian", named(EVERY))
def test_excess_mtl(jacobian: Tensor) -> None:
    """One warm-up step there is our first step. Their weights sum to 1; they add 1e-7 in two places."""
    method = gradient_weightings.build("excess_mtl", tasks=len(jacobian), step_size=0.3)
    theirs = aggregation.ExcessMTLWeighting(robust_step_size=0.3, n_warmup_steps=1)
    for seed in range(4):
        step = jacobian + jacobian_of(*jacobian.shape, seed=seed + 20)
        expected = theirs(step) * len(step)
        torch.testing.assert_close(method(step, torch.ones(len(step))), expected, rtol=1e-3, atol=1e-3)


def cross_gramians(jacobian: Tensor) -> list[Tensor]:
    """Three steps of inner products between two noisy estimates of the same gradients."""
    noise = [0.2 * jacobian_of(*jacobian.shape, seed=s) * jacobian.norm(dim=1)[:, None] for s in range(40, 46)]
    return [(jacobian + a) @ (jacobian + b).T for a, b in zip(noise[::2], noise[1::2], strict=True)]


@pytest.mark.parametrize("gamma", [1e-3, 0.1])
@pytest.mark.parametrize("jacobian", named(EVERY))
def test_modo(jacobian: Tensor, gamma: float) -> None:
    """Exact."""
    ours = gradient_weightings.build("modo", tasks=len(jacobian), gamma=gamma)
    theirs = aggregation.MoDoWeighting(gamma=gamma, rho=0.1)
    for cross in cross_gramians(jacobian):
        torch.testing.assert_close(ours(cross, torch.ones(len(cross))), theirs(cross), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("jacobian", named(EVERY))
def test_sdmgrad(jacobian: Tensor) -> None:
    """Exact but for the 1e-8 that they add to the squared scale, so a scale of about 1 is given."""
    ours = gradient_weightings.build("sdmgrad", tasks=len(jacobian))
    theirs = aggregation.SDMGradWeighting()
    for cross in cross_gramians(jacobian / jacobian.norm(dim=1, keepdim=True)):
        torch.testing.assert_close(ours(cross, torch.ones(len(cross))), theirs(cross), rtol=1e-4, atol=1e-5)


def streams(seed: int) -> Tensor:
    """Positive losses (steps, K) of a stream that falls at different speeds."""
    rng = torch.Generator().manual_seed(seed)
    speeds = torch.tensor([0.01, 0.05, 0.1])
    noise = 0.2 * torch.rand(24, 3, generator=rng)
    return (torch.arange(24)[:, None] * -speeds).exp() * torch.tensor([0.5, 3.0, 20.0]) + noise


def test_uw() -> None:
    """Exact, while both learn: value, gradient of the losses, and of the log-variances."""
    ours, theirs = loss_weightings.build("uw", tasks=3), scalarization.UW(3)
    optimizers = [torch.optim.Adam(m.parameters(), lr=0.05) for m in (ours, theirs)]
    for losses in streams(0):
        found = []
        for method, optimizer in zip((ours, theirs), optimizers, strict=True):
            step = ScriptedStep(losses)
            total = method(step).sum() if method is ours else method(step.losses)
            optimizer.zero_grad()
            (slope,) = torch.autograd.grad(total, step.losses, retain_graph=True)
            total.backward()
            optimizer.step()
            found.append((total.detach(), slope))
        torch.testing.assert_close(found[0], found[1])


def test_dwa() -> None:
    """Exact, epoch after epoch of four steps."""
    ours, theirs = loss_weightings.build("dwa", tasks=3, temperature=1.5), scalarization.DWA(temperature=1.5)
    for number, losses in enumerate(streams(1)):
        if number and number % 4 == 0:
            theirs.step()
        step = ScriptedStep(losses, epoch=number // 4)
        torch.testing.assert_close(ours(step).sum(), theirs(step.losses))


def test_famo() -> None:
    """Exact for equal settings: both add 1e-8 to the losses."""
    ours = loss_weightings.build("famo", tasks=3, lr=0.1, weight_decay=0.01)
    theirs = scalarization.FAMO(3, lr=0.1, weight_decay=0.01)
    stream = streams(2)
    for losses, after in itertools.pairwise(stream):
        step = ScriptedStep(losses, after=after)
        torch.testing.assert_close(ours(step).sum(), theirs(step.losses), rtol=1e-5, atol=1e-6)
        ours.after_step(step)
        theirs.update(after)
