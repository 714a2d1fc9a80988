"""CelebA: forty attributes of faces."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

import torch
from pydantic import Field

from mtlcli.data import imagefiles
from mtlcli.data.base import Dataset, ImageFeatures, MultiTaskData
from mtlcli.data.imagefiles import Cache, OnError, Shape, Skipped
from mtlcli.errors import MtlError, OptionError
from mtlcli.options import Options as AnyOptions
from mtlcli.registry import datasets
from mtlcli.tasks import Task

ATTRIBUTES, PARTITION, IMAGES = "list_attr_celeba.txt", "list_eval_partition.txt", "img_align_celeba"
SPLITS = {"0": "train", "1": "val", "2": "test"}
METRICS = ("f1",)  # of every task, as papers report


@datasets.register("celeba")
class CelebA(Dataset):
    """Faces of celebrities: forty attributes, each a binary task.

    202,599 aligned faces; tasks are the attributes in the order of the file, in lower case: `5_o_clock_shadow` to
    `young`. Labels -1 and 1 of the file are 0 and 1 here. The split is the official one. Pictures are resized to
    64 x 64 and enter as values of 0 to 1, without augmentation, as multi-task papers have it; as theirs, the metric of
    every task is F1 at a threshold of one half, unless `metrics` says otherwise.

    A picture that cannot be read ends it; `on_error: skip` leaves such pictures out and counts them. A link that leads
    out of the folder of pictures is refused, always.

    `root` holds torchvision's layout: `celeba/list_attr_celeba.txt`, `celeba/list_eval_partition.txt` and the folder
    `celeba/img_align_celeba`. `download: true` lets torchvision fetch it (1.4 GB). The data are for non-commercial
    research only.

    Source: Liu et al., Deep Learning Face Attributes in the Wild, ICCV 2015, arXiv 1411.7766; protocol: Liu et al.,
    FAMO, NeurIPS 2023, arXiv 2306.03792, and its code Cranial-XIX/FAMO.
    Deviations: a row more is read than by that code, which loses the last one of a file without a line break at its
    end.

    Raises OptionError where files are missing, MtlError with the line for one that is damaged.
    """

    class Options(AnyOptions):
        """Where the files are, and what pictures become."""

        root: Path = Field(description="folder that holds `celeba`")
        size: tuple[int, int] = Field((64, 64), description="height and width that pictures are resized to")
        download: bool = Field(False, description="fetch the files into `root` where they are not there")
        cache: Cache = Field("auto", description="pictures in memory, or read again; auto: memory, where they fit")
        workers: int | None = Field(None, ge=0, description="processes that decode; null: one a core, up to 8")
        on_error: OnError = Field(
            "stop", description="at a picture that cannot be read; skip leaves it out, and counts"
        )

    options: Options

    def load(self) -> MultiTaskData:
        """Every picture is decoded once."""
        folder = self._folder()
        names, attributes, labels = _attributes(folder / ATTRIBUTES)
        rows = _partition(folder / PARTITION, names)
        paths = [str(folder / IMAGES / name) for name in names]
        _check_links(paths, folder)
        shape = Shape(3, *self.options.size)
        scanned = imagefiles.scan(paths, shape, self.options.cache, self.options.workers)
        skipped = Skipped(self.options.on_error)
        for row, fault in scanned.faults.items():
            skipped.add(row, f"{folder / ATTRIBUTES}, line {row + 3}: {paths[row]}: {fault}")
        rows = skipped.left(rows, str(folder))
        tasks = tuple(Task(name, "binary") for name in attributes)
        features = ImageFeatures(*shape, mean=(0.0,) * 3, std=(1.0,) * 3)
        targets = {
            split: {task.name: labels[index, k].contiguous() for k, task in enumerate(tasks)}
            for split, index in rows.items()
        }
        meaning = {"dataset": self.name, "tasks": [asdict(task) for task in tasks], "features": asdict(features)}
        return MultiTaskData(
            tasks,
            features,
            imagefiles.splits(paths, scanned, rows, targets, features, self.options.workers),
            imagefiles.digest(meaning, scanned, rows, targets),
            notes=(skipped.note,) if skipped.note else (),
            metrics={task.name: METRICS for task in tasks},
        )

    def _folder(self) -> Path:
        folder = self.options.root / "celeba"
        wanted = (ATTRIBUTES, PARTITION, IMAGES)
        if self.options.download and not all((folder / name).exists() for name in wanted):
            from torchvision.datasets import CelebA as Torchvision

            try:
                Torchvision(str(self.options.root), download=True)
            except (OSError, RuntimeError, ImportError, ValueError) as error:  # no network, a full quota, no gdown
                raise OptionError("download", f"the faces could not be fetched into {folder}: {error}") from None
        absent = [name for name in wanted if not (folder / name).exists()]
        if absent:
            raise OptionError(
                "root",
                f"{folder} should hold {', '.join(wanted)}, as torchvision lays them out; it lacks "
                f"{', '.join(absent)}; `download: true` fetches them",
            )
        return folder


def _attributes(path: Path) -> tuple[list[str], list[str], torch.Tensor]:
    """File names, attributes, and labels (N, attributes) of int8, 0 or 1. Raises MtlError with the line."""
    lines = _lines(path)
    if len(lines) < 2 or not lines[0].strip().isdigit():
        raise MtlError(f"{path}, line 1: should be the number of pictures, and line 2 the attributes")
    attributes = [name.lower() for name in lines[1].split()]
    if len(set(attributes)) < len(attributes):
        raise MtlError(f"{path}, line 2: every attribute should stand once")
    rows = [line.split() for line in lines[2:]]
    if len(rows) != int(lines[0]):
        raise MtlError(f"{path}: should hold {int(lines[0])} pictures, as its first line says; found {len(rows)}")
    first: dict[str, int] = {}
    for number, row in enumerate(rows, 3):
        if len(row) != len(attributes) + 1 or not {"-1", "1"}.issuperset(row[1:]):
            raise MtlError(
                f"{path}, line {number}: should be a file name and {len(attributes)} labels of -1 or 1; found "
                f"{' '.join(row)[:60]}"
            )
        if Path(row[0]).name != row[0] or not imagefiles.below(row[0]):
            raise MtlError(f"{path}, line {number}: should name a file in {IMAGES}; found {row[0]}")
        if (line := first.setdefault(row[0], number)) != number:
            raise MtlError(f"{path}, line {number}: {row[0]} already stands in line {line}; every picture once")
    labels = torch.tensor([[value == "1" for value in row[1:]] for row in rows], dtype=torch.int8)
    return [row[0] for row in rows], attributes, labels


def _partition(path: Path, names: list[str]) -> dict[str, torch.Tensor]:
    """By split, the numbers of its rows. Raises MtlError with the line, or the picture that is in no split."""
    split_of: dict[str, str] = {}
    for number, line in enumerate(_lines(path), 1):
        match line.split():
            case [name, code] if code in SPLITS:
                if split_of.setdefault(name, SPLITS[code]) != SPLITS[code]:
                    raise MtlError(
                        f"{path}, line {number}: {name} is in the split '{split_of[name]}' elsewhere; found {code}"
                    )
            case _:
                raise MtlError(f"{path}, line {number}: should be a file name and 0, 1 or 2; found {line[:60]}")
    for name in names:
        if name not in split_of:
            raise MtlError(f"{path}: should say which split {name} is in; {ATTRIBUTES} names it")
    found = {split: [n for n, name in enumerate(names) if split_of[name] == split] for split in SPLITS.values()}
    for split, rows in found.items():
        if not rows:
            raise MtlError(f"{path}: leaves the split '{split}' empty")
    return {split: torch.tensor(rows) for split, rows in found.items()}


def _check_links(paths: list[str], folder: Path) -> None:
    """Raise MtlError for a picture that is a link to somewhere else."""
    inside = os.path.realpath(folder / IMAGES)
    for row, path in enumerate(paths):
        # Names have no folders in them, so that nothing but a link can lead elsewhere.
        real = imagefiles.outside(path, inside) if os.path.islink(path) else None
        if real is not None:
            raise MtlError(
                f"{folder / ATTRIBUTES}, line {row + 3}: {path} is a link to {real}, outside of {folder / IMAGES}; "
                "copy the file into the folder"
            )


def _lines(path: Path) -> list[str]:
    """Lines that are not blank, at the end or anywhere else."""
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise MtlError(f"{path}: cannot be read: {error}") from None
