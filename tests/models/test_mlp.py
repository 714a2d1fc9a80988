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
            torch.cat([table[1:3].mean(0), table[3 + 4], torch.tensor([1.0, 2.0])]),
            torch.cat([table[2], table[4:8].mean(0), torch.tensor([3.0, 4.0])]),
        ]
    )
    torch.testing.assert_close(encoder(INPUTS), expected)
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


# -- what training has not seen ----------------------------------------------------------------------------------------

SHOPS = torch.arange(1, 21, dtype=torch.int32)[:, None]


def trained(widths, seed):
    """A network that has learned what each of 20 categories is worth, 0.2 on average."""
    torch.manual_seed(seed)
    worth = 0.2 + torch.linspace(-1, 1, 20)[torch.randperm(20)]
    encoder = Mlp(Mlp.Options(widths=widths), TableFeatures((), {"shop": 21}))
    model = nn.Sequential(encoder, nn.Linear(encoder.out_features, 1), nn.Flatten(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.mse_loss(model({"categorical": SHOPS}), worth).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize(("widths", "tolerance"), [((), 0.001), ((32,), 0.25), ((256, 128), 0.25)])
def test_an_unseen_category_is_worth_about_the_mean(widths, tolerance):
    """With a row of random values it is off by 0.44 and more."""
    unseen = torch.zeros(1, 1, dtype=torch.int32)
    found = torch.stack([trained(widths, seed)({"categorical": unseen})[0] for seed in range(10)]).detach()
    assert (found - 0.2).square().mean().sqrt() < tolerance


def test_rows_without_unseen_categories_train_as_if_there_were_none():
    model = trained((8,), seed=0)
    assert not model[0].stages[0].table.weight[0].any()
    known = model[0].stages[0].table.weight[1:]
    assert model[0].stages[0]({"categorical": SHOPS}).equal(known)


def test_what_training_has_seen_without_knowing_its_category_is_learned():
    """Rare categories of a long column share code 0 in training."""
    encoder = Mlp(Mlp.Options(widths=()), TableFeatures((), {"shop": 21}))
    head = nn.Linear(8, 1)
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=0.05)
    codes, worth = torch.cat([SHOPS, SHOPS[:1] * 0]), torch.cat([torch.zeros(20), torch.ones(1)])
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.mse_loss(head(encoder({"categorical": codes}))[:, 0], worth).backward()
        optimizer.step()
    assert head(encoder({"categorical": codes}))[-1].item() == pytest.approx(1, abs=0.05)
