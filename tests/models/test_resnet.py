import pytest
import torch
import torchvision

from mtlcli.data.base import ImageFeatures
from mtlcli.errors import OptionError
from mtlcli.models.encoders.resnet import ResNetOptions
from mtlcli.registry import encoders, trunks

FEATURES = ImageFeatures(3, 64, 64, (0.4, 0.5, 0.6), (0.2, 0.2, 0.2))


def make(name="resnet18", features=FEATURES, **options):
    return encoders.get(name)(ResNetOptions(**options), features)


def images(count=2, channels=3, size=64):
    return {"image": torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8)}


@pytest.mark.parametrize(
    ("name", "parameters", "width"),
    [("resnet18", 11_176_512, 512), ("resnet34", 21_284_672, 512), ("resnet50", 23_508_032, 2048)],
)
def test_number_of_parameters(name, parameters, width):
    encoder = make(name)
    assert encoder.name == name
    assert sum(p.numel() for p in encoder.parameters()) == parameters
    assert (encoder.stem_features, encoder.out_features) == (64, width)


@pytest.mark.parametrize(("stem", "side"), [("large", 16), ("small", 64)])
def test_stages_are_a_chain(stem, side):
    encoder = make(stem=stem).eval()
    inputs = images()
    hidden = encoder.stages[0](inputs)
    assert tuple(hidden.shape) == (2, 64, side, side)
    for stage in encoder.stages[1:]:
        hidden = stage(hidden)
    assert tuple(hidden.shape) == (2, 512)
    assert hidden.equal(encoder(inputs))


def test_any_number_of_channels():
    grey = ImageFeatures(1, 36, 36, (0.5,), (0.2,))
    for stem in ("large", "small"):
        assert make(features=grey, stem=stem)(images(2, 1, 36)).shape == (2, 512)


def test_the_last_stage_is_the_last_shared_layer():
    cls = trunks.get("hps")
    assert cls(cls.Options(), make, ("a", "b")).last_shared_parameters()


def test_mixes_experts():
    cls = trunks.get("mmoe")
    trunk = cls(cls.Options(num_experts=2), make, ("a", "b"))
    assert trunk(images()).per_task["a"].shape == (2, 512)


# -- weights -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(5)
    net = torchvision.models.resnet18(weights=None).eval()
    net.bn1.running_mean.uniform_()  # buffers are loaded too
    return net


@pytest.fixture
def file(net, tmp_path):
    path = tmp_path / "resnet18.pt"
    torch.save(net.state_dict(), path)
    return path


def test_weights_give_torchvisions_features(net, file):
    encoder = make(weights=file).eval()
    inputs = images()
    mean, std = (torch.tensor(values)[:, None, None] for values in (FEATURES.mean, FEATURES.std))
    headless = torch.nn.Sequential(*list(net.children())[:-1], torch.nn.Flatten())
    with torch.no_grad():
        assert torch.allclose(encoder(inputs), headless((inputs["image"] / 255 - mean) / std), atol=1e-4)


def test_a_classifier_for_other_classes_does_not_matter(net, tmp_path):
    state = net.state_dict() | {"fc.weight": torch.zeros(7, 512), "fc.bias": torch.zeros(7)}
    torch.save(state, tmp_path / "other.pt")
    assert make(weights=tmp_path / "other.pt").out_features == 512


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet34", {}, r"resnet18\.pt does not fit resnet34.*lacks layer1\.2\.conv1\.weight.*and \d+ more"),
        ("resnet18", {"stem": "small"}, r"conv1\.weight should be \(64, 3, 3, 3\); found \(64, 3, 7, 7\)"),
    ],
)
def test_weights_that_do_not_fit_are_told(file, name, options, message):
    with pytest.raises(OptionError, match=message):
        make(name, weights=file, **options)


def test_files_that_are_no_weights(tmp_path):
    with pytest.raises(OptionError, match=r"weights: no such file: .*absent\.pt"):
        make(weights=tmp_path / "absent.pt")
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(b"not a file of torch")
    with pytest.raises(OptionError, match=r"damaged\.pt cannot be read as a state_dict"):
        make(weights=damaged)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(OptionError, match=r"list\.pt should hold a map of names to tensors"):
        make(weights=tmp_path / "list.pt")


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_nothing_in_a_file_is_executed(tmp_path, capsys):
    torch.save({"conv1.weight": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(OptionError, match="cannot be read as a state_dict"):
        make(weights=tmp_path / "evil.pt")
    assert "executed" not in capsys.readouterr().out
