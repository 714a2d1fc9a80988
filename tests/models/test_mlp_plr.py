"""The encoder `mlp_plr`: numbers as features of where they lie."""

from __future__ import annotations

import math

import pytest
import torch

from mtlcli.data.base import TableFeatures
from mtlcli.errors import MtlError
from mtlcli.models.encoders.mlp import TableStem
from mtlcli.models.encoders.mlp_plr import MlpPlr

FEATURES = TableFeatures(("x", "y"), {"a": 3, "b": 5})
INPUTS = {
    "numeric": torch.tensor([[1.0, -2.0], [0.5, 4.0], [0.0, 0.3]]),
    "categorical": torch.tensor([[1, 4], [2, 1], [1, 1]], dtype=torch.int32),
}


def built(**options: object) -> MlpPlr:
    torch.manual_seed(0)
    return MlpPlr(MlpPlr.Options(**options), FEATURES)


def test_every_number_by_hand() -> None:
    encoder = built(widths=(), embedding=2, periodic=3, frequencies=4, sigma=0.5)
    stem = encoder.stages[0]
    found = encoder(INPUTS)
    assert encoder.out_features == encoder.stem_features == found.shape[1] == 2 * 2 + 2 + 2 * 3
    for row in range(3):
        for column in range(2):
            x = INPUTS["numeric"][row, column].item()
            angles = [2 * math.pi * c * x for c in stem.frequencies[column].tolist()]
            waves = torch.tensor([*map(math.sin, angles), *map(math.cos, angles)])
            expected = (waves @ stem.weight[column] + stem.bias[column, 0]).clamp(min=0)
            torch.testing.assert_close(found[row, 6 + 3 * column : 9 + 3 * column], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[:, :6], stem.plain(INPUTS))


def test_frequencies_begin_as_wide_as_sigma_says_and_learn() -> None:
    encoder = built(frequencies=4000, sigma=3.0)
    assert encoder.stages[0].frequencies.std().item() == pytest.approx(3.0, rel=0.05)
    encoder(INPUTS).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())
    assert encoder.stages[0].frequencies.grad.abs().sum() > 0


def test_columns_of_one_kind_only() -> None:
    texts = MlpPlr(MlpPlr.Options(widths=(4,), embedding=3), TableFeatures((), {"a": 3, "b": 5}))
    assert texts({**INPUTS, "numeric": torch.empty(3, 0)}).shape == (3, 4)
    assert texts({"categorical": INPUTS["categorical"]}).shape == (3, 4)
    assert texts.stem_features == 6
    numbers = MlpPlr(MlpPlr.Options(widths=(4,), periodic=5), TableFeatures(("x", "y"), {}))
    assert numbers({"numeric": INPUTS["numeric"]}).shape == (3, 4)
    assert numbers.stem_features == 2 + 2 * 5
    with pytest.raises(MtlError, match="at least one column"):
        MlpPlr(MlpPlr.Options(), TableFeatures((), {}))


def test_a_bump_is_learned_that_a_dense_layer_of_that_size_does_not() -> None:
    """A label that depends on the stretch in which a number lies."""
    x = torch.linspace(-3, 3, 400)[:, None]
    label = ((x[:, 0] * 2).floor() % 2).float()

    def loss(encoder: torch.nn.Module) -> float:
        head = torch.nn.Linear(encoder.out_features, 1)
        optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=0.02)
        for _ in range(150):
            found = torch.nn.functional.binary_cross_entropy_with_logits(head(encoder({"numeric": x}))[:, 0], label)
            optimizer.zero_grad()
            found.backward()
            optimizer.step()
        return found.item()

    features = TableFeatures(("x",), {})
    torch.manual_seed(0)
    periodic = MlpPlr(MlpPlr.Options(widths=(16,)), features)
    plain = type(periodic).__mro__[1](MlpPlr.Options(widths=(16,)), features)
    assert isinstance(plain.stages[0], TableStem)
    assert loss(periodic) < 0.5 * loss(plain)
