"""Gradient weightings where a cap, a floor or a guard decides, one property of their pages each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from weighting_toys import build_gradient, jacobian_of

from mtlcli import gradient_weightings

ONES = torch.ones(3, dtype=torch.float64)


def wide(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def gramian_of(*lengths: float) -> Tensor:
    return wide(*lengths).square().diag()


# emtl


@pytest.mark.parametrize("options", [{"form": "penalty"}, {"form": "kl", "rho": 1e6}, {"form": "chi2", "rho": 0.1}])
def test_emtl_caps_contributions_at_a_thousand_times_their_median(options: dict[str, Any]) -> None:
    """Contributions 1e6, 1e4, 1, 1, 1 count as 1e3, 1e3, 1, 1, 1."""

    def weights(losses: Tensor) -> Tensor:
        method = gradient_weightings.build("emtl", tasks=5, normalise="none", **options)
        return method(torch.eye(5, dtype=torch.float64), losses)

    torch.testing.assert_close(weights(wide(1e6, 1e4, 1, 1, 1)), weights(wide(1e3, 1e3, 1, 1, 1)))


# gradnorm


@pytest.mark.parametrize("scale", [1e-10, 1e10])
def test_gradnorm_does_not_mind_the_scale(scale: float) -> None:
    plain, scaled = (build_gradient("gradnorm", 3) for _ in range(2))
    for step in range(1, 11):
        lengths, losses = wide(1, 2, 4 / step), wide(1 / step, 0.5, 2)
        expected = plain(lengths.square().diag(), losses)
        torch.testing.assert_close(scaled((scale * lengths).square().diag(), scale * losses), expected)
    assert expected.std() > 0.05


def test_gradnorm_weights_stay_positive() -> None:
    """Adam takes a step of `lr` however small the weight is."""
    method = gradient_weightings.build("gradnorm", tasks=2, lr=0.1)
    for _ in range(30):
        weights = method(gramian_of(1.0, 1e6), ONES[:2])
        assert weights.min() > 0.9e-4  # the floor, rescaled to the sum of two
    assert weights[1] < 2e-4


# gradvac


def test_gradvac_leaves_pairs_with_a_zero_gradient_alone() -> None:
    method = gradient_weightings.build("gradvac", tasks=3, beta=1.0)
    alike = jacobian_of(3, 6) + 3
    method(alike @ alike.T, ONES)
    before = method.targets.clone()
    assert before[2, 0] > 0.5 < before[0, 2]
    silent = alike.clone()
    silent[1], silent[2] = silent[0], 0  # the first two agree and need no turn
    assert method(silent @ silent.T, ONES).tolist() == pytest.approx([1.0, 1.0, 1.0])
    assert torch.equal(method.targets[2], before[2])
    assert torch.equal(method.targets[:, 2], before[:, 2])


# fairgrad


def test_fairgrad_gives_a_zero_gradient_the_smallest_weight_of_the_others() -> None:
    weights = gradient_weightings.build("fairgrad", tasks=3, alpha=1.0, max_norm=0.0)(gramian_of(4.0, 0.0, 8.0), ONES)
    torch.testing.assert_close(weights, wide(1 / 4, 1 / 8, 1 / 8))


# moco


def test_moco_decays_its_step_sizes_apart() -> None:
    """With a beta that stays, gamma alone gets smaller."""
    options = {"beta": 1.0, "beta_sigma": 0.0, "gamma": 0.01, "gamma_sigma": 1.0}
    method = gradient_weightings.build("moco", tasks=2, **options)
    jacobian = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    weights = wide(0.5, 0.5)
    for step in (1, 2, 3):
        pull = wide(1, 4) * weights
        weights = weights - 0.01 / step * (pull - pull.mean())  # the projection, while no weight is zero
        method(jacobian, ONES[:2])
        torch.testing.assert_close(method.weights, weights)


# config, imtl_g, mgda


@pytest.mark.parametrize("num_tasks", [3, 4, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_config_stays_where_gradients_cancel(num_tasks: int, dtype: torch.dtype) -> None:
    """The corners of a simplex add up to zero, up to the rounding of their numbers."""
    for seed in range(5):
        corners = torch.eye(num_tasks, dtype=torch.float64) - 1 / num_tasks
        turned = corners @ torch.linalg.qr(jacobian_of(num_tasks, num_tasks, seed))[0]
        jacobian = (turned * jacobian_of(num_tasks, 1, seed + 50).exp()).to(dtype).double()
        method = build_gradient("config", num_tasks)
        assert method(jacobian @ jacobian.T, torch.ones(num_tasks)).tolist() == [0.0] * num_tasks
        assert sum(method.events.values()) == 1


def test_imtl_g_where_weights_cancel() -> None:
    """C^-1 1 = (10, 10, -5) / 7, which over lengths 4, 4, 1 adds up to zero."""
    cosine = torch.tensor([[1.0, 0.0, 0.6], [0.0, 1.0, 0.6], [0.6, 0.6, 1.0]], dtype=torch.float64)
    lengths, method = wide(4, 4, 1), build_gradient("imtl_g", 3)
    weights = method(lengths[:, None] * cosine * lengths, ONES)
    torch.testing.assert_close(weights, wide(0.25, 0.25, -0.5))
    assert dict(method.events) == {"weights cancel: their sizes sum to 1 instead": 1}


@pytest.mark.parametrize("normalise", ["loss", "loss+"])
@pytest.mark.parametrize("scale", [1e-6, 1e6, 1e200])
def test_mgda_minds_only_ratios_of_losses(normalise: str, scale: float) -> None:
    method = gradient_weightings.build("mgda", tasks=3, normalise=normalise)
    gramian, losses = jacobian_of(3, 8) @ jacobian_of(3, 8).T, wide(1, 2, 3)
    torch.testing.assert_close(method(gramian, scale * losses), method(gramian, losses))
    assert not method.events


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.3, 1.0])
def test_fairgrad_says_where_gradients_cancel_beside_others(alpha: float) -> None:
    """The third task's product is so large that those of the first two vanish beside it."""
    jacobian = jacobian_of(3, 200)
    jacobian[0] = -jacobian[1]
    method = gradient_weightings.build("fairgrad", tasks=3, alpha=alpha)
    method(jacobian @ jacobian.T, ONES)
    assert sum(method.events.values()) == 1


def test_gradvac_learns_nothing_from_what_rounding_leaves() -> None:
    """After its exact opposite is taken out of a gradient, the rest agrees with nobody."""
    method = gradient_weightings.build("gradvac", tasks=4, beta=1.0)
    jacobian = jacobian_of(4, 1000).float()
    jacobian[1] = -1.7 * jacobian[0]
    for _ in range(5):  # in other orders
        method((jacobian.double() @ jacobian.double().T), torch.ones(4))
        assert method.targets[:2, 2:].abs().max() < 0.2
