import pytest
import torch
from torch import nn

from mtlcli.data.base import TableFeatures
from mtlcli.errors import MtlError
from mtlcli.models.encoders.mlp import Mlp
from mtlcli.registry import encoders

FEATURES = TableFeatures(("x", "y"), {"a": 3, "b": 5})
INPUTS = {
    "numeric": torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
    "categorical": torch.tensor([[0, 4], [2, 0]], dtype=torch.int32),
}


def test_is_registered_under_its_name():
    assert encoders.get("mlp") is Mlp


def test_stem_looks_up_every_column_in_its_own_rows():
    encoder = Mlp(Mlp.Options(widths=(), embedding=2), FEATURES)
    table = encoder.stages[0].table.weight
    assert table.shape == (3 + 5, 2)
    expected = torch.stack(
        [
            torch.cat([table[0], table[3 + 4], torch.tensor([1.0, 2.0])]),
            torch.cat([table[2], table[3 + 0], torch.tensor([3.0, 4.0])]),
        ]
    )
    assert encoder(INPUTS).equal(expected)
    assert encoder.out_features == encoder.stem_features == 6


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "tanh", "elu"])
def test_one_stage_per_width(norm, activation):
    options = Mlp.Options(widths=(16, 7), embedding=4, norm=norm, activation=activation, dropout=0.1)
    encoder = Mlp(options, FEATURES)
    assert len(encoder.stages) == 3
    assert (encoder.stem_features, encoder.out_features) == (10, 7)
    hidden = INPUTS
    for stage in encoder.eval().stages:
        hidden = stage(hidden)
    assert hidden.shape == (2, 7)
    assert hidden.equal(encoder(INPUTS))


def test_columns_of_one_kind_only():
    numeric = Mlp(Mlp.Options(widths=(4,)), TableFeatures(("x", "y"), {}))
    assert numeric({"numeric": INPUTS["numeric"]}).shape == (2, 4)
    assert numeric.stem_features == 2
    categorical = Mlp(Mlp.Options(widths=(4,), embedding=3), TableFeatures((), {"a": 3, "b": 5}))
    assert categorical({"categorical": INPUTS["categorical"]}).shape == (2, 4)
    assert categorical.stem_features == 6


def test_number_of_parameters():
    encoder = Mlp(Mlp.Options(widths=(16, 7), embedding=4), FEATURES)
    assert sum(p.numel() for p in encoder.parameters()) == 8 * 4 + (10 * 16 + 16) + (16 * 7 + 7)


def test_state_holds_parameters_only():
    """The rows of the columns follow from the data: a checkpoint does not repeat them."""
    encoder = Mlp(Mlp.Options(widths=(4,)), FEATURES)
    assert set(encoder.state_dict()) == {name for name, _ in encoder.named_parameters()}


def test_a_table_without_columns_is_refused():
    with pytest.raises(MtlError, match="at least one column"):
        Mlp(Mlp.Options(), TableFeatures((), {}))


def test_training_reaches_every_used_row_of_the_table():
    encoder = Mlp(Mlp.Options(widths=(), embedding=2), FEATURES)
    nn.functional.mse_loss(encoder(INPUTS), torch.zeros(2, 6)).backward()
    used = encoder.stages[0].table.weight.grad.ne(0).any(1)
    assert used.nonzero()[:, 0].tolist() == [0, 2, 3, 7]
