import pytest
import torch

from mtlcli.data.base import ImageFeatures
from mtlcli.errors import OptionError
from mtlcli.models.encoders.cnn import Cnn
from mtlcli.registry import encoders, trunks


def features(channels=1, height=36, width=36):
    return ImageFeatures(channels, height, width, (0.5,) * channels, (0.25,) * channels)


def images(count=3, channels=1, height=36, width=36):
    return {"image": torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8)}


def test_is_registered_under_its_name():
    assert encoders.get("cnn") is Cnn


@pytest.mark.parametrize("size", [(28, 28), (36, 36), (64, 48), (29, 31)])
@pytest.mark.parametrize("channels", [1, 3])
def test_stages_are_a_chain(size, channels):
    encoder = Cnn(Cnn.Options(), features(channels, *size)).eval()
    inputs = images(3, channels, *size)
    stem = encoder.stages[0](inputs)
    assert tuple(stem.shape) == (3, encoder.stem_features, size[0] // 2, size[1] // 2)
    hidden = stem
    for stage in encoder.stages[1:]:
        hidden = stage(hidden)
    assert tuple(hidden.shape) == (3, encoder.out_features)
    assert hidden.equal(encoder(inputs))


def test_pixels_are_normalised():
    encoder = Cnn(Cnn.Options(), ImageFeatures(2, 28, 28, (0.2, 0.4), (0.5, 0.1)))
    inputs = images(2, 2, 28, 28)
    mean, std = torch.tensor([0.2, 0.4])[:, None, None], torch.tensor([0.5, 0.1])[:, None, None]
    assert torch.allclose(encoder.stages[0][0](inputs), (inputs["image"] / 255 - mean) / std, atol=1e-5)


@pytest.mark.parametrize("norm", ["none", "batch", "group"])
def test_options(norm):
    options = Cnn.Options(channels=(8, 12), hidden=7, grid=2, dropout=0.5, norm=norm)
    encoder = Cnn(options, features())
    assert (len(encoder.stages), encoder.stem_features, encoder.out_features) == (3, 8, 7)
    kinds = {type(module).__name__ for module in encoder.modules()}
    assert ("BatchNorm2d" in kinds, "GroupNorm" in kinds) == (norm == "batch", norm == "group")
    assert encoder(images()).shape == (3, 7)


def test_state_holds_nothing_that_follows_from_the_data():
    assert not [name for name in Cnn(Cnn.Options(), features()).state_dict() if "scale" in name or "shift" in name]


def test_too_many_blocks_for_the_picture_are_refused():
    with pytest.raises(OptionError, match=r"channels: 4 blocks halve 28 x 28 .* at most 3"):
        Cnn(Cnn.Options(channels=(8, 8, 8, 8)), features(1, 28, 28))


@pytest.mark.parametrize("trunk", ["hps", "mmoe"])
def test_every_parameter_is_reached_under_both_trunks(trunk):
    cls = trunks.get(trunk)
    built = cls(cls.Options(), lambda: Cnn(Cnn.Options(channels=(4, 8), hidden=6), features()), ("a", "b"))
    found = built(images(4)).per_task
    assert found["a"].shape == (4, 6)
    sum(z.square().sum() for z in found.values()).backward()
    assert all(p.grad is not None for p in built.parameters())


def test_bfloat16():
    encoder = Cnn(Cnn.Options(), features())
    with torch.autocast("cpu", torch.bfloat16):
        assert encoder(images()).isfinite().all()
