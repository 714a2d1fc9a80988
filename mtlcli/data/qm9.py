"""QM9: twelve properties of small organic molecules."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from mtlcli.data.base import Dataset, Features, MultiTaskData, Split, TableFeatures, fingerprint
from mtlcli.data.cache import Arrays, cached
from mtlcli.data.molecules import MoleculeFeatures, MoleculeSplit, coulomb_spectra, padded
from mtlcli.errors import MtlError, OptionError
from mtlcli.options import Options as AnyOptions
from mtlcli.registry import datasets
from mtlcli.tasks import Task

if TYPE_CHECKING:
    import polars as pl

PACKAGE = "qm9pack"
FILES = ("qm9_part1.csv", "qm9_part2.csv", "qm9_part3.csv")
ELEMENTS = {"H": 1, "C": 6, "N": 7, "O": 8, "F": 9}  # and their nuclear charges
MEV = 27211.386245988  # in a Hartree
MOLECULES, TRAIN, VAL = 130_831, 110_000, 10_000
ATOMS = 29  # of the largest molecule
VERSION = 1  # of what is kept in the cache


class Target(NamedTuple):
    """A task, its column, and the unit that it is scored in."""

    column: str
    unit: str
    factor: float  # from the column's unit to `unit`
    atoms: tuple[float, ...] = ()  # of single atoms of ELEMENTS, in Hartree


TARGETS = {
    "mu": Target("Dipole_debye", "D", 1.0),
    "alpha": Target("Polarizability_bohr3", "a0^3", 1.0),
    "homo": Target("HOMO_au", "meV", MEV),
    "lumo": Target("LUMO_au", "meV", MEV),
    "gap": Target("HOMO_LUMO_gap_au", "meV", MEV),
    "r2": Target("R2_bohr2", "a0^2", 1.0),
    "zpve": Target("ZPVE_au", "meV", MEV),
    "u0": Target("InternalEnergy_0K_au", "meV", MEV, (-0.500273, -37.846772, -54.583861, -75.064579, -99.718730)),
    "u": Target("InternalEnergy_298K_au", "meV", MEV, (-0.498857, -37.845355, -54.582445, -75.063163, -99.717314)),
    "h": Target("Enthalphy_298K_au", "meV", MEV, (-0.497912, -37.844411, -54.581501, -75.062219, -99.716370)),
    "g": Target("GibbsFreeEnergy_298K_au", "meV", MEV, (-0.510927, -37.861317, -54.598897, -75.079532, -99.733544)),
    "cv": Target("Heatcapacity_Cv_cal_mol_K", "cal/(mol K)", 1.0),
}


@datasets.register("qm9")
class QM9(Dataset):
    """Small organic molecules: twelve properties computed with density functional theory, all regression.

    130,831 molecules of up to 9 heavy atoms (C, N, O, F), 29 with hydrogen. Tasks: `mu` (dipole moment, D), `alpha`
    (polarisability, a0^3), `homo`, `lumo`, `gap` (orbital energies, meV), `r2` (spatial extent, a0^2), `zpve` (meV),
    `u0`, `u`, `h`, `g` (energies, enthalpy and free energy, meV) and `cv` (heat capacity, cal/(mol K)). Labels are
    standardised by the training molecules; the mean absolute error in these units is what papers report. Tables of
    multi-task papers leave `gap` out.

    `representation: descriptors` is a table for every encoder of tables: how many atoms there are of each element, and
    the 29 eigenvalues of the Coulomb matrix. `representation: graph` is atoms and their coordinates.

    Split: 110,000 molecules for training, 10,000 for validation, the rest for testing, at random, seeded. With fewer
    molecules than 130,831 in `root`, the same shares.

    The files come with the package qm9pack (`pip install 'mtlcli[qm9]'`), or from the folder `root`. What is computed
    from them is kept in the cache folder ($XDG_CACHE_HOME/mtlcli or ~/.cache/mtlcli, 80 MB): some 20 s once.

    Source: Ramakrishnan et al., Quantum chemistry structures and properties of 134 kilo molecules, Scientific Data 1,
    2014; energies of single atoms from the same.

    Raises OptionError where there are no files, or `rows` asks for more molecules than there are; MtlError for a
    damaged file.
    """

    class Options(AnyOptions):
        """How molecules are described, and how many there are."""

        representation: Literal["descriptors", "graph"] = Field("descriptors", description="what encoders read")
        rows: int | None = Field(None, ge=1, description="keep this many training molecules; null: all")
        energies: Literal["atomisation", "total"] = Field(
            "atomisation", description="of u0, u, h and g: less those of the single atoms, as in papers, or in full"
        )
        split_seed: int = Field(0, ge=0, description="seed of the split and of `rows`")
        root: Path | None = Field(None, description=f"folder with {', '.join(FILES)}; null: the package {PACKAGE}'s")

    options: Options

    def load(self) -> MultiTaskData:
        """All tasks; 1.5 s once the cache is there."""
        files = self._files()
        held, note = cached(f"{self.name}-{VERSION}-{_digest(files)}", lambda: _read(files))
        parts = self._parts(len(held["types"]))
        values = {name: self._labels(target, held) for name, target in TARGETS.items()}
        tasks = tuple(
            Task(name, "regression", unit=TARGETS[name].unit, mean=mean, scale=scale)
            for name, labels in values.items()
            for mean, scale in [_moments(labels[parts["train"]])]
        )
        labels = {
            task.name: torch.from_numpy(((values[task.name] - task.mean) / task.scale).astype(np.float32))
            for task in tasks
        }
        kind: type[Split]
        features: Features
        if self.options.representation == "graph":
            kind, features = MoleculeSplit, MoleculeFeatures(tuple(ELEMENTS), held["types"].shape[1])
            inputs = {name: torch.from_numpy(held[name]) for name in ("types", "positions")}
        else:
            kind, (features, inputs) = Split, _descriptors(held, parts["train"])
        splits = {
            name: kind(
                {n: tensor[index] for n, tensor in inputs.items()}, {n: tensor[index] for n, tensor in labels.items()}
            )
            for name, index in parts.items()
        }
        meaning = {"dataset": self.name, "tasks": [asdict(task) for task in tasks], "features": asdict(features)}
        return MultiTaskData(tasks, features, splits, fingerprint(meaning, splits), notes=(note,) if note else ())

    def _files(self) -> list[Path]:
        """The three files. Raises OptionError where they are not there."""
        if self.options.root is not None:
            folder = self.options.root
        else:
            # Found, not imported: the package needs others at import time, and only its files are wanted.
            spec = find_spec(PACKAGE)
            if spec is None or not spec.submodule_search_locations:
                raise OptionError(
                    "root",
                    f"needs the files of the package {PACKAGE}, which is not installed: pip install 'mtlcli[qm9]'; "
                    f"or name a folder with {', '.join(FILES)}",
                )
            folder = Path(spec.submodule_search_locations[0]) / "data"
        absent = [name for name in FILES if not (folder / name).is_file()]
        if absent:
            raise OptionError("root", f"{folder} should hold {', '.join(FILES)}; it lacks {', '.join(absent)}")
        return [folder / name for name in FILES]

    def _parts(self, molecules: int) -> dict[str, NDArray[np.int64]]:
        """Numbers of the molecules of every split, ascending. Fewer `rows` are a subset of more."""
        order = np.random.default_rng(self.options.split_seed).permutation(molecules)
        train, val = (round(molecules * share / MOLECULES) for share in (TRAIN, VAL))
        if not 0 < val < molecules - train:
            raise MtlError(f"{self.name}: {molecules} molecules are too few for three splits; needs at least 10")
        rows = self.options.rows or train
        if rows > train:
            raise OptionError("rows", f"should be at most {train}, the molecules for training; found {rows}")
        found = {"train": order[:rows], "val": order[train : train + val], "test": order[train + val :]}
        return {name: np.sort(index) for name, index in found.items()}

    def _labels(self, target: Target, held: Arrays) -> NDArray[np.float64]:
        """Labels (N,) in the target's unit."""
        values: NDArray[np.float64] = held[target.column]
        if target.atoms and self.options.energies == "atomisation":
            values = values - _counts(held["types"]) @ np.array(target.atoms)
        return values * target.factor


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:32]


def _read(files: Sequence[Path]) -> Arrays:
    """Types (N, A), positions (N, A, 3), spectrum (N, A), and the columns of the labels (N,)."""
    import polars as pl

    frame = pl.concat([_frame(path) for path in files])
    counts = frame["atoms"].list.len().to_numpy().astype(np.int64)
    codes = {element: number for number, element in enumerate(ELEMENTS, 1)}
    width = max(ATOMS, int(counts.max()))
    types = padded(counts, frame["atoms"].explode().replace_strict(codes, return_dtype=pl.UInt8).to_numpy(), width)
    positions = padded(counts, frame["xyz"].explode().to_numpy().astype(np.float32).reshape(-1, 3), width)
    charges = np.array([0, *ELEMENTS.values()], np.float32)[types]
    labels = {target.column: frame[target.column].to_numpy() for target in TARGETS.values()}
    return {"types": types, "positions": positions, "spectrum": coulomb_spectra(charges, positions), **labels}


def _frame(path: Path) -> pl.DataFrame:
    """Labels, `atoms` (list of elements) and `xyz` (list of three numbers an atom). Raises MtlError naming the file."""
    import polars as pl

    columns = [target.column for target in TARGETS.values()]
    # Coordinates are written as `-.5` and `0.`, which is not JSON.
    lists = pl.col("Elements", "XYZ_Ang").str.replace_all(r"[\[\]' ]", "").str.split(",")
    try:
        frame = pl.read_csv(
            path, columns=["Elements", "XYZ_Ang", *columns], schema_overrides=dict.fromkeys(columns, pl.Float64)
        )
        frame = frame.with_columns(lists).with_columns(pl.col("XYZ_Ang").cast(pl.List(pl.Float64)))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise MtlError(f"{path}: cannot be read as a part of the data: {str(error).splitlines()[0]}") from None
    frame = frame.rename({"Elements": "atoms", "XYZ_Ang": "xyz"})
    wrong = frame.with_row_index("line", 2).filter(
        pl.any_horizontal(pl.all().is_null())
        | (pl.col("xyz").list.len() != 3 * pl.col("atoms").list.len())
        | ~pl.col("atoms").list.eval(pl.element().is_in(list(ELEMENTS))).list.all()
    )
    if len(wrong):
        raise MtlError(
            f"{path}, line {wrong['line'][0]}: should hold atoms of {', '.join(ELEMENTS)}, three coordinates for each "
            f"and all labels; found {wrong.row(0)[1:]}"[:400]
        )
    return frame


def _counts(types: NDArray[np.uint8]) -> NDArray[np.int64]:
    """How many atoms (N, 5) of each element."""
    return np.stack([(types == number).sum(1) for number in range(1, len(ELEMENTS) + 1)], axis=1)


def _descriptors(held: Arrays, train: NDArray[np.int64]) -> tuple[TableFeatures, dict[str, torch.Tensor]]:
    names = [f"atoms of {element}" for element in ELEMENTS]
    names += [f"eigenvalue {number}" for number in range(1, held["spectrum"].shape[1] + 1)]
    values = np.concatenate([_counts(held["types"]), held["spectrum"]], axis=1, dtype=np.float64)
    mean, scale = np.array([_moments(column) for column in values[train].T]).T
    return TableFeatures(tuple(names), {}), {"numeric": torch.from_numpy(((values - mean) / scale).astype(np.float32))}


def _moments(values: NDArray[Any]) -> tuple[float, float]:
    """Mean and standard deviation, with 1 for the deviation of a constant."""
    return float(values.mean()), float(values.std()) or 1.0
