import importlib.util

import numpy as np
import pytest
import torch

from mtlcli import recipe
from mtlcli.data import qm9
from mtlcli.data.base import TableFeatures
from mtlcli.data.cache import cached, folder
from mtlcli.data.molecules import BOHR, MoleculeFeatures, MoleculeSplit, coulomb_spectra, padded
from mtlcli.data.qm9 import ELEMENTS, FILES, MEV, QM9, TARGETS
from mtlcli.engine.prepare import load_data
from mtlcli.errors import MtlError, OptionError
from mtlcli.registry import datasets

COUNT = 60


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mtlcli"


def load(root, **options):
    return QM9(QM9.Options(root=root, **options)).load()


def number(value):
    """As the files write numbers: `.5`, `-.5`, `1.`."""
    return f"{value:.6f}".rstrip("0").replace("0.", ".", 1) if abs(value) < 1 else f"{value:.6f}".rstrip("0")


@pytest.fixture
def molecules():
    rng = np.random.default_rng(0)
    found = []
    for _ in range(COUNT):
        size = rng.integers(1, 12)
        atoms = rng.choice(list(ELEMENTS), size)
        found.append((list(atoms), rng.normal(0, 2, (size, 3)).round(6), rng.normal(0, 1, len(TARGETS)).round(6)))
    return found


@pytest.fixture
def root(tmp_path, molecules):
    place = tmp_path / "files"
    place.mkdir()
    header = ",".join(["Index", "Elements", "XYZ_Ang", *(target.column for target in TARGETS.values())])
    for part, name in enumerate(FILES):
        rows = []
        for index, (atoms, xyz, labels) in enumerate(molecules[part::3]):
            elements = "[" + ",".join(f"'{atom}'" for atom in atoms) + "]"
            positions = "[" + ",".join("[" + ",".join(map(number, row)) + "]" for row in xyz) + "]"
            rows.append(f'{index},"{elements}","{positions}",' + ",".join(map(str, labels)))
        (place / name).write_text("\n".join([header, *rows]) + "\n")
    return place


def everything(data, side, name):
    return torch.cat([getattr(split, side)[name] for split in data.splits.values()])


# -- what is read ------------------------------------------------------------------------------------------------------


def test_is_registered_under_its_name():
    assert datasets.get("qm9") is QM9


def test_tasks_and_units(root):
    tasks = {task.name: (task.kind, task.unit) for task in load(root).tasks}
    assert list(tasks) == ["mu", "alpha", "homo", "lumo", "gap", "r2", "zpve", "u0", "u", "h", "g", "cv"]
    assert {kind for kind, _ in tasks.values()} == {"regression"}
    meV = {name for name, (_, unit) in tasks.items() if unit == "meV"}  # noqa: N806
    assert meV == {"homo", "lumo", "gap", "zpve", "u0", "u", "h", "g"}
    assert [tasks[name][1] for name in ("mu", "alpha", "r2", "cv")] == ["D", "a0^3", "a0^2", "cal/(mol K)"]


def test_splits_are_in_the_shares_of_the_field_and_disjoint(root):
    data = load(root, representation="graph")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 50, "val": 5, "test": 5}
    positions = everything(data, "inputs", "positions").flatten(1)
    assert len(positions.unique(dim=0)) == COUNT


def test_the_whole_set_is_split_as_in_papers():
    parts = QM9(QM9.Options())._parts(130_831)
    assert {name: len(rows) for name, rows in parts.items()} == {"train": 110_000, "val": 10_000, "test": 10_831}
    assert len(np.unique(np.concatenate(list(parts.values())))) == 130_831
    few = QM9(QM9.Options(rows=20_000))._parts(130_831)
    assert len(few["train"]) == 20_000
    assert np.isin(few["train"], parts["train"]).all()
    assert (few["test"] == parts["test"]).all()
    assert not np.array_equal(QM9(QM9.Options(split_seed=1))._parts(130_831)["test"], parts["test"])


def test_atoms_and_coordinates_are_those_of_the_files(root, molecules):
    data = load(root, representation="graph")
    assert data.features == MoleculeFeatures(("H", "C", "N", "O", "F"), 29)
    ordered = [each for part in range(3) for each in molecules[part::3]]
    parts = QM9(QM9.Options(root=root))._parts(COUNT)
    for name, split in data.splits.items():
        types, positions = split.inputs["types"], split.inputs["positions"]
        for row, index in enumerate(parts[name]):
            atoms, xyz, _ = ordered[index]
            codes = [list(ELEMENTS).index(atom) + 1 for atom in atoms]
            assert types[row].tolist() == codes + [0] * (29 - len(atoms))
            assert torch.allclose(positions[row, : len(atoms)], torch.tensor(xyz).float())
            assert not positions[row, len(atoms) :].any()


@pytest.mark.parametrize("energies", ["atomisation", "total"])
def test_labels_are_in_the_units_of_papers(root, molecules, energies):
    data = load(root, energies=energies)
    ordered = [each for part in range(3) for each in molecules[part::3]]
    test = QM9(QM9.Options(root=root))._parts(COUNT)["test"]
    for column, task in enumerate(data.tasks):
        expected = np.array([ordered[index][2][column] for index in test])
        if energies == "atomisation" and TARGETS[task.name].atoms:
            single = dict(zip(ELEMENTS, TARGETS[task.name].atoms, strict=True))
            expected = expected - np.array([sum(single[atom] for atom in ordered[index][0]) for index in test])
        expected = expected * (MEV if task.unit == "meV" else 1)
        found = task.in_unit(data.splits["test"].targets[task.name])
        assert np.allclose(found, expected, rtol=1e-5, atol=1e-4 * np.abs(expected).max())


def test_everything_is_standardised_by_the_training_molecules(root):
    data = load(root)
    train = data.splits["train"]
    for task in data.tasks:
        assert train.targets[task.name].mean().abs() < 1e-5
        assert train.targets[task.name].std(correction=0).sub(1).abs() < 1e-4
    numeric = train.inputs["numeric"]
    assert isinstance(data.features, TableFeatures)
    assert (len(data.features.numeric), numeric.shape[1]) == (5 + 29, 5 + 29)
    assert numeric.mean(0).abs().max() < 1e-5


@pytest.mark.parametrize(
    "options", [{"representation": "graph"}, {"rows": 20}, {"energies": "total"}, {"split_seed": 1}]
)
def test_every_option_changes_the_fingerprint(root, options):
    assert load(root, **options).fingerprint != load(root).fingerprint
    assert load(root, **options).fingerprint == load(root, **options).fingerprint


# -- descriptors -------------------------------------------------------------------------------------------------------


def test_spectrum_of_a_diatomic_molecule():
    """[[0.5 * 8^2.4, 8 * 6 / R], [8 * 6 / R, 0.5 * 6^2.4]], by the quadratic formula."""
    a, b, c = 0.5 * 8**2.4, 0.5 * 6**2.4, 48 / (1.128 / BOHR)
    root = np.sqrt((a - b) ** 2 / 4 + c**2)
    charges = np.array([[8, 6, 0]], np.float32)
    positions = np.array([[[0, 0, 0], [0, 0, 1.128], [0, 0, 0]]], np.float32)
    expected = sorted([(a + b) / 2 + root, (a + b) / 2 - root], key=abs, reverse=True)
    assert np.allclose(coulomb_spectra(charges, positions)[0], [*expected, 0], rtol=1e-5)


def test_spectra_do_not_change_with_order_place_and_orientation():
    rng = np.random.default_rng(0)
    charges, positions = np.array([[6, 1, 8, 1, 7]], np.float32), rng.normal(0, 2, (1, 5, 3)).astype(np.float32)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    order = rng.permutation(5)
    moved = (positions[:, order] @ turn + 3).astype(np.float32)
    one, other = coulomb_spectra(charges, positions), coulomb_spectra(charges[:, order], moved)
    assert np.allclose(one, other, rtol=1e-4, atol=1e-4)
    assert (np.diff(np.abs(one)) <= 0).all()


# -- batches -----------------------------------------------------------------------------------------------------------


def test_a_batch_is_as_wide_as_its_largest_molecule():
    types = torch.zeros(5, 29, dtype=torch.uint8)
    for row, size in enumerate((3, 7, 2, 5, 1)):
        types[row, :size] = 1
    split = MoleculeSplit({"types": types, "positions": torch.zeros(5, 29, 3)}, {"mu": torch.zeros(5)})
    widths = [batch.inputs["types"].shape[1] for batch in split.batches(2)]
    assert widths == [7, 5, 1]
    loader = split.select(["mu"]).loader(5, seed=0)
    (batch,) = loader.epoch(0)
    assert tuple(batch.inputs["positions"].shape) == (5, 7, 3)
    kept, given = split.hold_out(0.4, seed=0)
    assert isinstance(kept, MoleculeSplit)
    assert (len(kept), len(given)) == (3, 2)
    assert next(given.batches(9)).inputs["types"].shape[1] < 29


def test_padding_keeps_molecules_apart():
    found = padded(np.array([1, 2]), np.array([[1.0], [2.0], [3.0]], np.float32), 3)
    assert found[..., 0].tolist() == [[1, 0, 0], [2, 3, 0]]


# -- cache -------------------------------------------------------------------------------------------------------------


def test_what_was_computed_is_kept(root, cache, monkeypatch):
    first = load(root).fingerprint
    (file,) = cache.iterdir()
    assert file.suffix == ".npz"
    monkeypatch.setattr(qm9, "_read", None)
    assert load(root).fingerprint == first


def test_other_content_is_computed_anew(root, cache):
    load(root)
    path = root / FILES[0]
    path.write_text(path.read_text() + path.read_text().splitlines()[1] + "\n")
    load(root)
    assert len(list(cache.iterdir())) == 2


def test_a_damaged_file_is_replaced(root, cache):
    first = load(root).fingerprint
    (file,) = cache.iterdir()
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[: size // 2])
    assert load(root).fingerprint == first
    assert file.stat().st_size == size


def test_pickles_are_never_loaded(cache):
    cache.mkdir(parents=True)
    np.savez(cache / "key.npz", x=np.array([{"a": 1}], dtype=object))
    arrays, note = cached("key", lambda: {"x": np.ones(2)})
    assert arrays["x"].tolist() == [1, 1]
    assert note is None


def test_a_cache_that_cannot_be_written_is_told(root, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    data = load(root)
    assert "could not be written" in data.notes[0]
    assert str(folder()) in data.notes[0]


# -- mistakes ----------------------------------------------------------------------------------------------------------


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(qm9, "find_spec", lambda name: None)
    loaded = recipe.from_values({"data": {"name": "qm9"}}, "recipe")
    with pytest.raises(MtlError, match=r"data\.root: needs .*qm9pack.*pip install 'mtlcli\[qm9\]'"):
        load_data(loaded)


def test_absent_files_are_named(root):
    (root / FILES[1]).unlink()
    with pytest.raises(OptionError, match=r"root: .*lacks qm9_part2\.csv"):
        load(root)


def test_too_many_rows_are_refused(root):
    with pytest.raises(OptionError, match=r"rows: should be at most 50.*found 51"):
        load(root, rows=51)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("'H'", "'Xe'", r"qm9_part1\.csv, line \d+: should hold atoms of H, C"),
        ("]]", ",1.]]", r"qm9_part1\.csv, line 2: .*three coordinates"),
        ("XYZ_Ang", "xyz", r"qm9_part1\.csv: cannot be read as a part"),
        ("]]", "x]]", r"qm9_part1\.csv: cannot be read as a part"),
    ],
)
def test_a_damaged_part_is_named(root, old, new, message):
    path = root / FILES[0]
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(MtlError, match=message):
        load(root)


@pytest.mark.skipif(importlib.util.find_spec("qm9pack") is None, reason="needs pip install 'mtlcli[qm9]'")
def test_the_package_is_not_imported(root, monkeypatch):
    """Its import needs packages that are not there; its files are enough."""
    import sys

    files = QM9(QM9.Options())._files()
    assert [path.name for path in files] == list(FILES)
    assert "qm9pack" not in sys.modules
