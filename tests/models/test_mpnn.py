import pytest
import torch

from mtlcli.data.molecules import MoleculeFeatures
from mtlcli.models.encoders.mpnn import Mpnn
from mtlcli.registry import encoders, trunks

FEATURES = MoleculeFeatures(("H", "C", "N"), 9)


def make(**options):
    torch.manual_seed(1)
    return Mpnn(Mpnn.Options(**{"width": 8, "layers": 2, "basis": 10, **options}), FEATURES).double().eval()


def molecules(sizes=(3, 1, 5), width=9):
    types = torch.zeros(len(sizes), width, dtype=torch.uint8)
    positions = torch.zeros(len(sizes), width, 3, dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    for row, size in enumerate(sizes):
        types[row, :size] = torch.randint(1, 4, (size,), generator=generator, dtype=torch.uint8)
        positions[row, :size] = 2 * torch.randn(size, 3, generator=generator, dtype=torch.float64)
    return {"types": types, "positions": positions}


def test_is_registered_under_its_name():
    assert encoders.get("mpnn") is Mpnn


def test_stages_are_a_chain():
    encoder = make()
    hidden = encoder.stages[0](molecules())
    assert tuple(hidden.shape) == (3, 9, 3 + 1 + 8)
    for stage in encoder.stages[1:]:
        hidden = stage(hidden)
    assert tuple(hidden.shape) == (3, encoder.out_features) == (3, 16)


def test_padding_does_not_matter():
    encoder, wide = make(), molecules()
    narrow = {name: tensor[:, :5] for name, tensor in wide.items()}
    assert torch.allclose(encoder(wide), encoder(narrow))
    alone = {name: tensor[:1, :3] for name, tensor in wide.items()}
    assert torch.allclose(encoder(wide)[:1], encoder(alone))
    # What stands where there is no atom is never looked at.
    wide["positions"][0, 3:] = 0.1
    assert torch.allclose(encoder(wide), encoder(narrow))


def test_the_order_of_atoms_does_not_matter():
    encoder, inputs = make(), molecules((5,))
    order = torch.tensor([3, 1, 4, 0, 2, 5, 6, 7, 8])
    shuffled = {name: tensor[:, order] for name, tensor in inputs.items()}
    assert torch.allclose(encoder(inputs), encoder(shuffled))


def test_moving_turning_and_mirroring_do_not_matter():
    encoder, inputs = make(), molecules((6,))
    turn, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    moved = {**inputs, "positions": inputs["positions"] @ turn + torch.tensor([1.0, -2.0, 0.5])}
    assert torch.allclose(encoder(inputs), encoder(moved))
    stretched = {**inputs, "positions": 1.1 * inputs["positions"]}
    assert not torch.allclose(encoder(inputs), encoder(stretched))


def test_elements_matter():
    encoder, inputs = make(), molecules((4,))
    other = {**inputs, "types": inputs["types"] % 3 + 1}
    other["types"] = other["types"] * inputs["types"].ne(0)
    assert not torch.allclose(encoder(inputs), encoder(other))


def test_atoms_beyond_the_cutoff_do_not_speak():
    encoder = make(cutoff=3.0)
    types = torch.tensor([[1, 2]], dtype=torch.uint8)

    def at(distance):
        return encoder({"types": types, "positions": torch.tensor([[[0.0, 0, 0], [distance, 0, 0]]]).double()})

    assert torch.allclose(at(3.0), at(50.0))
    assert not torch.allclose(at(2.5), at(50.0))


def test_a_single_atom_has_finite_features_and_gradients():
    encoder, inputs = make(), molecules((1, 1))
    features = encoder(inputs)
    assert features.isfinite().all()
    features.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())


def test_a_gate_reads_the_mean_over_atoms():
    encoder, inputs = make(), molecules((2,))
    stem = encoder.stages[0](inputs)
    assert torch.allclose(encoder.summary(stem), stem[:, :2, 4:].mean(1))


@pytest.mark.parametrize("trunk", ["hps", "mmoe"])
def test_predictions_of_a_molecule_do_not_depend_on_its_batch(trunk):
    cls = trunks.get(trunk)
    built = cls(cls.Options(), make, ("a", "b")).double().eval()
    inputs = molecules((3, 7))
    alone = {name: tensor[:1, :3] for name, tensor in inputs.items()}
    assert torch.allclose(built(inputs).per_task["b"][:1], built(alone).per_task["b"])


def test_bfloat16_keeps_coordinates_exact():
    encoder = make().float()
    inputs = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in molecules().items()}
    with torch.autocast("cpu", torch.bfloat16):
        stem = encoder.stages[0](inputs)
        assert stem[..., :3].equal(inputs["positions"])
        assert encoder(inputs).isfinite().all()
