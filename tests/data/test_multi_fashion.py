import gzip
import struct

import numpy as np
import pytest
import torch

from mtlcli.data import multi_fashion
from mtlcli.data.multi_fashion import MultiFashion, _compose, _measured
from mtlcli.errors import MtlError, OptionError
from mtlcli.registry import datasets


def load(**options):
    return MultiFashion(MultiFashion.Options(**options)).load()


@pytest.fixture(scope="module")
def data():
    return load()


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_set(folder, train=12, test=4, seed=0, zipped=False):
    """Random pictures in IDX files; returns them."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    found = {}
    for part, count in (("train", train), ("t10k", test)):
        pixels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = rng.integers(0, 10, count, dtype=np.uint8)
        found[part] = pixels, labels
        for name, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            if zipped:
                (folder / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(idx(array)))
            else:
                (folder / f"{part}-{name}-ubyte").write_bytes(idx(array))
    return found


@pytest.fixture
def root(tmp_path):
    write_set(tmp_path / "MNIST" / "raw", seed=1)
    write_set(tmp_path / "FashionMNIST" / "raw", seed=2, zipped=True)
    return tmp_path


# -- packaged ----------------------------------------------------------------------------------------------------------


def test_is_registered_under_its_name():
    assert datasets.get("multi_fashion") is MultiFashion


def test_rows_tasks_and_pictures(data):
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 8000, "val": 1000, "test": 1000}
    assert [(task.name, task.kind, task.num_outputs) for task in data.tasks] == [
        ("digit", "multiclass", 10),
        ("garment", "multiclass", 10),
        ("stroke_mass", "regression", 1),
        ("slant", "regression", 1),
    ]
    for split in data.splits.values():
        image = split.inputs["image"]
        assert (image.dtype, tuple(image.shape[1:])) == (torch.uint8, (1, 36, 36))
        # Neither source reaches the other two corners.
        assert not image[:, :, :8, 28:].any()
        assert not image[:, :, 28:, :8].any()
        for task in ("digit", "garment"):
            assert split.targets[task].unique().tolist() == list(range(10))


def test_pictures_are_normalised_by_the_training_ones(data):
    scaled = data.splits["train"].inputs["image"] / 255
    assert data.features.mean[0] == pytest.approx(scaled.mean().item(), abs=1e-4)
    assert data.features.std[0] == pytest.approx(scaled.std().item(), abs=1e-4)


def test_regressions_are_standardised_on_the_training_rows(data):
    for task in data.tasks[2:]:
        labels = data.splits["train"].targets[task.name]
        assert labels.mean().abs() < 1e-4
        assert labels.std().sub(1).abs() < 1e-3
    assert data.tasks[2].mean == pytest.approx(102.7, abs=1)
    assert data.tasks[3].scale == pytest.approx(0.28, abs=0.02)


def test_no_source_image_is_in_two_splits(data):
    """The upper eight rows belong to the digit alone, the lower eight to the garment alone."""
    for part in (slice(0, 8), slice(28, 36)):
        seen = {
            name: {row.tobytes() for row in split.inputs["image"][:, 0, part].numpy()}
            for name, split in data.splits.items()
        }
        for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
            # Empty strips look alike, and so do strips with a corner of a stroke only.
            assert len(seen[one] & seen[other]) < 0.02 * len(seen[other])


def test_packaged_sources_are_in_no_order_of_classes():
    for name in ("digits10k.npz", "garments10k.npz"):
        with np.load(multi_fashion.FILES / name, allow_pickle=False) as held:
            assert (held["x"].shape, held["x"].dtype, held["y"].shape) == ((10000, 28, 28), np.uint8, (10000,))
            for part in (held["y"][:8000], held["y"][8000:9000], held["y"][9000:]):
                assert np.bincount(part, minlength=10).min() > 0.07 * len(part)


@pytest.mark.parametrize("options", [{"pairs": 100}, {"pair_seed": 1}], ids=str)
def test_every_option_changes_the_fingerprint(data, options):
    assert load(**options).fingerprint != data.fingerprint


def test_fewer_pairs_are_the_first_of_more(data):
    few = load(pairs=50)
    assert few.splits["train"].inputs["image"].equal(data.splits["train"].inputs["image"][:50])
    assert few.splits["test"].inputs["image"].equal(data.splits["test"].inputs["image"])


def test_the_same_options_give_the_same_pictures(data):
    assert load().fingerprint == data.fingerprint


# -- how pictures are made ---------------------------------------------------------------------------------------------


def sources(count, seed):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 28, 28), dtype=np.uint8), rng.integers(0, 10, count, dtype=np.uint8)


def test_a_picture_is_the_brighter_of_both_at_every_pixel():
    digits, garments = sources(1, 0), sources(1, 1)
    pixels, labels = _compose(digits, garments, 1, (0, 0))
    expected = np.zeros((36, 36), np.uint8)
    for y in range(28):
        for x in range(28):
            expected[y, x] = digits[0][0, y, x]
    for y in range(28):
        for x in range(28):
            expected[y + 8, x + 8] = max(expected[y + 8, x + 8], garments[0][0, y, x])
    assert (pixels[0, 0] == expected).all()
    assert (labels["digit"][0], labels["garment"][0]) == (digits[1][0], garments[1][0])


def test_every_source_is_used_before_any_is_used_again():
    digits, garments = sources(10, 0), sources(10, 1)
    pixels, _ = _compose(digits, garments, 25, (3, 0))
    top = [bytes(row) for row in pixels[:, 0, :8, :28].reshape(25, -1)]
    assert len(set(top[:10])) == len(set(top[10:20])) == 10
    assert len({(a, bytes(b)) for a, b in zip(top, pixels[:, 0, 28:].reshape(25, -1), strict=True)}) > 20


def test_mass_is_the_sum_of_the_pixels_in_full_ones():
    digit = np.zeros((1, 28, 28), np.uint8)
    digit[0, 3, 4:8] = 255
    digit[0, 5, 5] = 51
    assert _measured(digit)[0][0] == pytest.approx(4.2)


@pytest.mark.parametrize(("shift", "slant"), [(0, 0.0), (1, 1.0), (-1, -1.0), (0.5, 0.5)])
def test_slant_is_pixels_to_the_right_per_pixel_upwards(shift, slant):
    digit = np.zeros((1, 28, 28), np.uint8)
    for up in range(0, 16, 2):
        digit[0, 20 - up, round((14 if shift < 0 else 12) + shift * up)] = 200
    assert _measured(digit)[1][0] == pytest.approx(slant)


@pytest.mark.parametrize("rows", [(), (7,)])
def test_slant_is_missing_where_there_is_no_height(rows):
    digit = np.zeros((1, 28, 28), np.uint8)
    digit[0, list(rows), 3:9] = 255
    assert np.isnan(_measured(digit)[1][0])


# -- full sets ---------------------------------------------------------------------------------------------------------


def test_full_sets_are_read_from_torchvisions_layout(root):
    data = load(root=root)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 10, "val": 2, "test": 4}
    digits = write_set(root / "again", seed=1)
    for split, pixels in (
        ("train", digits["train"][0][:10]),
        ("val", digits["train"][0][10:]),
        ("test", digits["t10k"][0]),
    ):
        found = {row.tobytes() for row in data.splits[split].inputs["image"][:, 0, :8, :28].numpy()}
        assert found == {row[:8].tobytes() for row in pixels}


def test_the_flat_layout_of_debian_is_read(tmp_path):
    write_set(tmp_path / "mnist", seed=1)
    write_set(tmp_path / "fashion-mnist", seed=2, zipped=True)
    assert len(load(root=tmp_path).splits["train"]) == 10


def test_absent_files_are_named(root, tmp_path):
    (root / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(OptionError, match=r"root: should hold the digits as MNIST/raw/t10k-images.*`download: true`"):
        load(root=root)
    with pytest.raises(OptionError, match="root: should be a folder"):
        load(root=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not an IDX file of bytes in 3 dimensions: should begin with 00000803; found nothing"),
        (b"\x00\x00\x0d\x03" + bytes(12), "found 00000d03"),
        (idx(np.zeros((12, 28, 28), np.uint8))[:-5], "should hold 12 x 28 x 28 = 9408 bytes .* found 9403"),
        (idx(np.zeros((12, 28, 28), np.uint8)) + b"x", "found 9409"),
        (idx(np.zeros((12, 27, 28), np.uint8)), "images of 28 x 28; found 27 x 28"),
        (idx(np.zeros((1, 28, 28), np.uint8)), "a label for each of the 1 images; found 12"),
    ],
)
def test_a_damaged_file_is_named(root, content, message):
    path = root / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(MtlError, match=rf"{path.parent}.*{message}"):
        load(root=root)


def test_a_cut_archive_is_named(root):
    path = root / "FashionMNIST" / "raw" / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(MtlError, match=f"{path}: cannot be read"):
        load(root=root)


def test_labels_beyond_nine_are_refused(root):
    path = root / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    path.write_bytes(idx(np.full(12, 10, np.uint8)))
    with pytest.raises(MtlError, match="labels should be 0 to 9; found 10"):
        load(root=root)


def test_download_needs_a_place():
    with pytest.raises(ValueError, match="download: needs `root`"):
        MultiFashion.Options(download=True)


def test_download_leaves_what_is_there_and_says_what_failed(root, monkeypatch):
    import torchvision.datasets

    def fail(*_, **__):
        raise RuntimeError("no route to host")

    monkeypatch.setattr(torchvision.datasets, "MNIST", fail)
    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", fail)
    assert len(load(root=root, download=True).splits["test"]) == 4
    (root / "MNIST" / "raw" / "train-images-idx3-ubyte").unlink()
    with pytest.raises(OptionError, match=r"download: the digits could not be fetched .*no route to host"):
        load(root=root, download=True)
