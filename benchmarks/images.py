"""How fast batches come, beside the usual DataLoader on the same rows; nothing is trained.

    python benchmarks/images.py [--json] [--rounds N] [--batch-size N] [--files N] [--workers N] [--device cpu|cuda]

cached         `images`, kept in memory                 against DataLoader(TensorDataset(...), shuffle=True)
decoded        `images`, decoded for every batch        against DataLoader over files: Pillow, resize, uint8
multi_fashion  the packaged pictures                    against DataLoader(TensorDataset(...), shuffle=True)
qm9            descriptors, and qm9_graph: molecules    against DataLoader(TensorDataset(...), shuffle=True)

The files are JPEGs of 178 x 218 pixels, made for the purpose and resized to 64 x 64. Both sides of a line take turns in
one process, in a new order every round; a round is one epoch, and what counts is the median over rounds. qm9 is left
out where its package is not installed.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from mtlcli import recipe as recipes
from mtlcli.data.base import BaseSplit, Split
from mtlcli.engine.prepare import load_data

SIZE = (64, 64)
Epoch = Callable[[int], int]  # number of the epoch -> rows


def main() -> None:
    """Measure, then print a table or JSON."""
    parser = argparse.ArgumentParser(description="Batches a second against the usual DataLoader.")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--rounds", type=int, default=7, help="epochs of each side")
    parser.add_argument("--batch-size", type=int, default=256, help="rows a batch")
    parser.add_argument("--files", type=int, default=2048, help="picture files")
    parser.add_argument("--workers", type=int, default=2, help="processes that decode")
    parser.add_argument("--device", default="cpu", help="where batches are wanted: cpu or cuda")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        values = measure(arguments, Path(folder))
    print(json.dumps(values, indent=2) if arguments.json else table(values))


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Rows a second of every line, both sides."""
    device = torch.device(arguments.device)
    lines: dict[str, tuple[Epoch, Epoch]] = {}
    pictures = {
        "name": "images",
        "path": str(folder),
        "labels": str(write_files(folder, arguments.files)),
        "tasks": {"label": {"kind": "binary"}},
        "size": list(SIZE),
        "split": {"column": "part"},
        "workers": arguments.workers,
    }
    kept = train_rows({**pictures, "cache": "memory"})
    lines["cached"] = ours(kept, device, arguments), tensors(kept, device, arguments)
    lines["decoded"] = (
        ours(train_rows({**pictures, "cache": "none"}), device, arguments),
        plain(Files(sorted(folder.glob("train-*.jpg"))), device, arguments, arguments.workers),
    )
    others: dict[str, dict[str, Any]] = {"multi_fashion": {"name": "multi_fashion"}}
    if find_spec("qm9pack") is not None:
        others["qm9"] = {"name": "qm9", "representation": "descriptors"}
        others["qm9_graph"] = {"name": "qm9", "representation": "graph"}
    for name, data in others.items():
        rows = train_rows(data)
        lines[name] = ours(rows, device, arguments), tensors(rows, device, arguments)
    found = {name: compare(*both, arguments.rounds, device) for name, both in lines.items()}
    settings = {key: vars(arguments)[key] for key in ("rounds", "batch_size", "files", "workers", "device")}
    return {"schema_version": 1, "settings": settings, "threads": torch.get_num_threads(), "rows_per_second": found}


def write_files(folder: Path, count: int) -> Path:
    """`count` training pictures, and a few others; the table of labels."""
    rng = torch.Generator().manual_seed(0)
    rows = ["file,label,part"]
    for part, number in (("train", count), ("val", 4), ("test", 4)):
        for n in range(number):
            coarse = torch.randint(0, 256, (3, 14, 11), generator=rng, dtype=torch.uint8)
            pixels = functional.resize(coarse, [218, 178], antialias=True).permute(1, 2, 0)
            Image.fromarray(pixels.numpy()).save(folder / f"{part}-{n:06d}.jpg", quality=90)
            rows.append(f"{part}-{n:06d}.jpg,{n % 2},{part}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder / "labels.csv"


def train_rows(data: dict[str, Any]) -> BaseSplit:
    """The training split of a recipe's data."""
    return load_data(recipes.from_values({"data": data}, "benchmark")).splits["train"]


def ours(split: BaseSplit, device: torch.device, arguments: argparse.Namespace) -> Epoch:
    """What the trainer iterates over: the split on its device."""
    loader = split.to(device).loader(arguments.batch_size, seed=0)
    return lambda epoch: sum(len(next(iter(batch.targets.values()))) for batch in loader.epoch(epoch))


def tensors(split: BaseSplit, device: torch.device, arguments: argparse.Namespace) -> Epoch:
    """The same tensors in a TensorDataset."""
    assert isinstance(split, Split)
    return plain(TensorDataset(*split.inputs.values(), *split.targets.values()), device, arguments, 0)


def plain(rows: Dataset[Any], device: torch.device, arguments: argparse.Namespace, workers: int) -> Epoch:
    """The usual loop."""
    loader = DataLoader(rows, arguments.batch_size, shuffle=True, num_workers=workers, pin_memory=device.type == "cuda")

    def run(epoch: int) -> int:
        batches: Iterable[list[Tensor]] = loader
        rows = 0
        for batch in batches:
            moved = [tensor.to(device, non_blocking=True) for tensor in batch]
            rows += len(moved[0])
        return rows

    return run


class Files(Dataset[Any]):
    """Pictures as tutorials read them."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self.change = v2.Compose([v2.Resize(SIZE), v2.PILToTensor()])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        with Image.open(self.paths[row]) as image:
            return self.change(image.convert("RGB")), row % 2


def compare(one: Epoch, other: Epoch, rounds: int, device: torch.device) -> dict[str, float]:
    """Rows a second of both, and the median over rounds of their ratio within a round."""
    sides = {"mtl": one, "dataloader": other}
    for epoch in sides.values():
        epoch(0)
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(1, rounds + 1):
        for name in random.Random(number).sample(list(sides), len(sides)):
            begun = time.perf_counter()
            rows = sides[name](number)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            speeds[name].append(rows / (time.perf_counter() - begun))
    ratios = [a / b for a, b in zip(*speeds.values(), strict=True)]
    return {**{name: statistics.median(found) for name, found in speeds.items()}, "ratio": statistics.median(ratios)}


def table(values: dict[str, Any]) -> str:
    """One line for every kind of data."""
    lines = [f"{'rows a second':<16}{'mtl':>12}{'DataLoader':>12}{'ratio':>8}"]
    for name, row in values["rows_per_second"].items():
        lines.append(f"{name:<16}{row['mtl']:>12,.0f}{row['dataloader']:>12,.0f}{row['ratio']:>8.2f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
