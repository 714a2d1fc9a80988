"""Multi-Fashion: a digit and a garment overlaid, four tasks, packaged with mtlcli."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator

from mtlcli.data import idx
from mtlcli.data.base import Dataset, ImageFeatures, MultiTaskData, Split, fingerprint
from mtlcli.errors import MtlError, OptionError
from mtlcli.options import Options as AnyOptions
from mtlcli.registry import datasets
from mtlcli.tasks import Task

FILES = Path(__file__).parent / "files"
SIDE, CANVAS = 28, 36
GARMENTS = (
    "T-shirt or top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
# Below `root` as torchvision writes it, and as Debian's package dataset-fashion-mnist does.
FOLDERS = {"digits": ("MNIST/raw", "mnist"), "garments": ("FashionMNIST/raw", "fashion-mnist")}
DEBIAN = Path("/usr/share/datasets")

Parts = dict[str, idx.Pictures]  # by split


@datasets.register("multi_fashion")
class MultiFashion(Dataset):
    """Pictures of a handwritten digit and a garment laid over each other: what they are, and how the digit was drawn.

    A digit of MNIST at the top left and a garment of Fashion-MNIST at the bottom right of 36 x 36 pixels, 28 x 28 each;
    where they overlap, the brighter pixel counts. Tasks: `digit` and `garment` (10 classes each), `stroke_mass` (ink of
    the digit, regression: the sum of its pixels, 0 to 1 each, in full pixels) and `slant` (regression: how many pixels
    the digit leans to the right per pixel upwards, by its second moments; missing where it is flat).

    Packaged are 10,000 digits and 10,000 garments: 8,000 of each compose the training pictures, 1,000 the validation
    and 1,000 the test ones, so that no source image is seen in two splits. With `root`, the full sets: of the official
    training images the last sixth composes the validation pictures, the official test images compose the test ones.

    A digit is paired with a garment at random, seeded by `pair_seed`, and every source image is used once before any is
    used again. Fewer `pairs` are the first of more; validation and test have a picture for every source image.

    `root` holds `MNIST/raw` and `FashionMNIST/raw` with IDX files, plain or `.gz`, as torchvision writes them; or
    `mnist` and `fashion-mnist`, as in Debian's /usr/share/datasets, which is looked into for garments anyway.

    Source: the recipe of MultiMNIST (Sabour et al., NeurIPS 2017, arXiv 1710.09829; for multi-task learning Sener &
    Koltun, NeurIPS 2018, arXiv 1810.04650); LeCun, Cortes & Burges, MNIST; Xiao et al., Fashion-MNIST, arXiv
    1708.07747; see NOTICE.
    Deviations: both recipes overlay two digits; the two regressions are ours.

    Raises MtlError for files that are missing or damaged.
    """

    class Options(AnyOptions):
        """Which source images, and how many pictures are made of them."""

        pairs: int | None = Field(None, ge=1, description="training pictures; null: one for every digit")
        pair_seed: int = Field(0, ge=0, description="seed of which digit meets which garment")
        root: Path | None = Field(None, description="folder with the full sets; null: the 10,000 packaged ones of each")
        download: bool = Field(False, description="fetch the full sets into `root` where they are not there")

        @model_validator(mode="after")
        def _somewhere(self) -> MultiFashion.Options:
            if self.download and self.root is None:
                raise ValueError("download: needs `root`, the folder to fetch the full sets into")
            return self

    options: Options

    def load(self) -> MultiTaskData:
        """Compose all pictures; 0.3 s for the packaged images."""
        digits, garments = (self._packaged if self.options.root is None else self._full)()
        composed = {}
        for number, split in enumerate(("train", "val", "test")):
            count = len(digits[split][0])
            if split == "train":
                count = self.options.pairs or count
            composed[split] = _compose(digits[split], garments[split], count, (self.options.pair_seed, number))
        pixels, labels = composed["train"]
        tasks = (
            Task("digit", "multiclass", num_classes=10, classes=tuple("0123456789")),
            Task("garment", "multiclass", num_classes=10, classes=GARMENTS),
            _regression("stroke_mass", "full pixels", labels["stroke_mass"]),
            _regression("slant", "pixels per pixel", labels["slant"]),
        )
        scaled = pixels / np.float32(255)
        features = ImageFeatures(1, CANVAS, CANVAS, (float(scaled.mean()),), (float(scaled.std()) or 1.0,))
        splits = {
            name: Split(
                {"image": torch.from_numpy(pixels)},
                {task.name: _in_training_units(task, labels[task.name]) for task in tasks},
                features.at_once,
            )
            for name, (pixels, labels) in composed.items()
        }
        meaning = {"dataset": self.name, "tasks": [asdict(task) for task in tasks], "features": asdict(features)}
        return MultiTaskData(tasks, features, splits, fingerprint(meaning, splits))

    def _packaged(self) -> tuple[Parts, Parts]:
        return _packaged("digits10k.npz"), _packaged("garments10k.npz")

    def _full(self) -> tuple[Parts, Parts]:
        root = self.options.root
        assert root is not None
        if not root.is_dir() and not self.options.download:
            raise OptionError("root", f"should be a folder; found none at {root}")
        return _full(root, "digits", self.options.download), _full(root, "garments", self.options.download)


def _packaged(name: str) -> Parts:
    with np.load(FILES / name, allow_pickle=False) as held:
        pixels, classes = held["x"], held["y"]
    bounds = {"train": slice(8000), "val": slice(8000, 9000), "test": slice(9000, None)}
    return {split: (pixels[rows], classes[rows]) for split, rows in bounds.items()}


def _full(root: Path, kind: str, download: bool) -> Parts:
    folders = [root / name for name in FOLDERS[kind]]
    if kind == "garments":
        folders.append(DEBIAN / FOLDERS[kind][1])
    if download and not all(idx.find(folders, part) for part in ("train", "t10k")):
        _fetch(root, kind)
    read = {}
    for part in ("train", "t10k"):
        files = idx.find(folders, part)
        if files is None:
            raise OptionError(
                "root",
                f"should hold the {kind} as {FOLDERS[kind][0]}/{part}-images-idx3-ubyte and "
                f"{part}-labels-idx1-ubyte, plain or .gz; looked in {', '.join(map(str, folders))}; `download: true` "
                "fetches them",
            )
        read[part] = idx.read_pictures(*files, side=SIDE, num_classes=10)
        if len(read[part][0]) < (least := {"train": 2, "t10k": 1}[part]):
            raise MtlError(f"{files[0]}: should hold at least {least} images; found {len(read[part][0])}")
    pixels, classes = read["train"]
    first = len(pixels) - max(1, len(pixels) // 6)
    return {
        "train": (pixels[:first], classes[:first]),
        "val": (pixels[first:], classes[first:]),
        "test": read["t10k"],
    }


def _fetch(root: Path, kind: str) -> None:
    from torchvision.datasets import MNIST, FashionMNIST

    try:
        (MNIST if kind == "digits" else FashionMNIST)(str(root), download=True)
    except (OSError, RuntimeError) as error:  # no network, no permission, or every mirror refused
        raise OptionError("download", f"the {kind} could not be fetched into {root}: {error}") from None


def _compose(
    digits: idx.Pictures, garments: idx.Pictures, count: int, seed: tuple[int, int]
) -> tuple[NDArray[np.uint8], dict[str, NDArray[Any]]]:
    """Pictures (count, 1, 36, 36), and labels in their units."""
    top, bottom = (_drawn(len(part[0]), count, (*seed, place)) for place, part in enumerate((digits, garments)))
    canvas = np.zeros((count, CANVAS, CANVAS), np.uint8)
    canvas[:, :SIDE, :SIDE] = digits[0][top]
    corner = canvas[:, -SIDE:, -SIDE:]
    np.maximum(corner, garments[0][bottom], out=corner)
    mass, slant = _measured(digits[0])
    labels: dict[str, NDArray[Any]] = {
        "digit": digits[1][top],
        "garment": garments[1][bottom],
        "stroke_mass": mass[top],
        "slant": slant[top],
    }
    return canvas[:, None], labels


def _drawn(available: int, count: int, seed: tuple[int, ...]) -> NDArray[np.int64]:
    """`count` numbers below `available`, each once before any is there again."""
    rng, rounds = np.random.default_rng(seed), -(-count // available)
    return np.concatenate([rng.permutation(available) for _ in range(rounds)])[:count]


def _measured(digits: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mass (N,) and slant (N,), which is NaN for a digit without height."""
    ink = digits / 255.0
    mass = ink.sum((1, 2))
    at = np.arange(SIDE, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        x = at - (ink.sum(1) @ at / mass)[:, None]
        y = at - (ink.sum(2) @ at / mass)[:, None]
        height = (ink.sum(2) * y**2).sum(1)
        # Rows are counted downwards.
        slant = -np.einsum("nij,ni,nj->n", ink, y, x, optimize=True) / height
    return mass, np.where(height > 1e-9, slant, np.nan)


def _regression(name: str, unit: str, values: NDArray[np.float64]) -> Task:
    known = values[~np.isnan(values)]
    if not len(known):
        return Task(name, "regression", unit=unit)
    return Task(name, "regression", unit=unit, mean=float(known.mean()), scale=float(known.std()) or 1.0)


def _in_training_units(task: Task, labels: NDArray[Any]) -> torch.Tensor:
    if task.kind == "multiclass":
        return torch.from_numpy(labels.astype(np.int8))
    return torch.from_numpy(((labels - task.mean) / task.scale).astype(np.float32))
