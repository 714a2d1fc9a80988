"""Office-31 and Office-Home: the same classes of objects in several domains, a task and a folder of pictures each."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from mtlcli.data import imagefiles
from mtlcli.data.augment import DESCRIPTION, Change, augmentation
from mtlcli.data.base import Dataset, ImageFeatures, MultiTaskData
from mtlcli.data.imagefiles import Cache, OnError, Shape, Skipped
from mtlcli.data.sources import Policy, combined
from mtlcli.errors import MtlError, OptionError
from mtlcli.options import Options as AnyOptions
from mtlcli.registry import datasets
from mtlcli.tasks import Task

SPLITS = ("train", "val", "test")
SHARES = (0.6, 0.2)  # of train and val; the rest is test
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


class OfficeOptions(AnyOptions):
    """Where the folders are, and what pictures become."""

    root: Path = Field(description="folder that holds a folder for every domain")
    size: tuple[int, int] = Field((224, 224), description="height and width that pictures are resized to")
    augment: list[Change] | None = Field(None, description=DESCRIPTION)
    cache: Cache = Field("auto", description="pictures in memory, or read again; auto: memory, where they fit")
    workers: int | None = Field(None, ge=0, description="processes that decode; null: one a core, up to 8")
    policy: Policy = Field("cycle", description="what happens where the domains have different lengths")
    temperature: float = Field(2.0, ge=1, description="of policy temperature: 1 is proportional to rows")
    split_seed: int = Field(0, ge=0, description="of the splits, where there are no lists of files")
    on_error: OnError = Field("stop", description="at a picture that cannot be read; skip leaves it out, and counts")


class Office(Dataset):
    """A task per domain, with pictures of its own: a step has a batch of every domain."""

    domains: ClassVar[tuple[str, ...]]

    Options = OfficeOptions
    options: OfficeOptions

    def load(self) -> MultiTaskData:
        """Every picture is decoded once."""
        options = self.options
        if not options.root.is_dir():
            raise OptionError(
                "root", f"should be a folder with {', '.join(self.domains)}; found none at {options.root}"
            )
        found = {domain: _listed(options.root, domain) for domain in self.domains}
        if any(files is None for files in found.values()):
            found = {domain: _walked(options.root, domain, options.split_seed) for domain in self.domains}
        listed = {domain: files for domain, files in found.items() if files is not None}
        classes = _classes(listed)
        return combined(
            {domain: self._read(domain, files, classes) for domain, files in listed.items()},
            options.policy,
            options.temperature,
        )

    def _read(self, domain: str, files: Listed, classes: tuple[str, ...]) -> MultiTaskData:
        shape = Shape(3, *self.options.size)
        inside = os.path.realpath(self.options.root)
        for path in files.paths:
            if (real := imagefiles.outside(path, inside)) is not None:
                raise MtlError(
                    f"{path}: is a link to {real}, outside of {self.options.root}; copy the file into the folder"
                )
        scanned = imagefiles.scan(files.paths, shape, self.options.cache, self.options.workers)
        skipped = Skipped(self.options.on_error)
        for row, fault in scanned.faults.items():
            skipped.add(row, f"{files.paths[row]}: {fault}")
        rows = skipped.left(files.rows, f"{self.options.root}: {domain}")
        task = Task(domain, "multiclass", num_classes=len(classes), classes=classes)
        features = ImageFeatures(*shape, *imagefiles.IMAGENET[3])
        targets = {split: {domain: files.labels[index]} for split, index in rows.items()}
        meaning = {"dataset": self.name, "task": asdict(task), "features": asdict(features)}
        return MultiTaskData(
            (task,),
            features,
            imagefiles.splits(files.paths, scanned, rows, targets, features, self.options.workers),
            imagefiles.digest(meaning, scanned, rows, targets),
            augment=augmentation(self.options.augment) if self.options.augment else None,
            notes=(skipped.note,) if skipped.note else (),
        )


@datasets.register("office31")
class Office31(Office):
    """Office-31: objects of an office in three domains, 31 classes, a task per domain.

    `amazon` (2,817 pictures of a shop), `dslr` (498) and `webcam` (795). `root` holds a folder for every domain, with a
    folder for every class in it, or in `images` below it. Where `root` also holds lists of files
    (`amazon_train.txt`, `amazon_val.txt` and so on, each line `amazon/images/back_pack/frame_0001.jpg 0`), these are
    the splits; else 60, 20 and 20 % of every class, drawn by `split_seed`. Pictures are resized to 224 x 224 and
    normalised as for ImageNet. Every domain passes through the network by itself; shorter ones begin again (`policy`).
    A picture that cannot be read ends it; `on_error: skip` leaves such pictures out and counts them.

    Source: Saenko et al., Adapting Visual Category Models to New Domains, ECCV 2010; multi-task protocol and lists:
    median-research-group/LibMTL, examples/office.
    Deviation: lists are read to their last character, where that code loses one.

    Raises OptionError for a missing folder, MtlError with file and line for a list that is damaged.
    """

    domains = ("amazon", "dslr", "webcam")


@datasets.register("office_home")
class OfficeHome(Office):
    """Office-Home: objects of office and home in four domains, 65 classes, a task per domain.

    `Art` (2,427 pictures), `Clipart` (4,365), `Product` (4,439) and `Real_World` (4,357; the archive calls its folder
    `Real World`). Layout, splits and all else are as of Office-31.

    Source: Venkateswara et al., Deep Hashing Network for Unsupervised Domain Adaptation, CVPR 2017; multi-task protocol
    and lists: median-research-group/LibMTL, examples/office.

    Raises OptionError for a missing folder, MtlError with file and line for a list that is damaged.
    """

    domains = ("Art", "Clipart", "Product", "Real_World")


@dataclass(frozen=True)
class Listed:
    """The files of a domain."""

    paths: list[str]
    labels: Tensor  # (N,)
    rows: dict[str, Tensor]  # by split, numbers of files
    classes: dict[int, str]  # of every label that occurs


def _listed(root: Path, domain: str) -> Listed | None:
    """As lists say; None where there are none. Raises MtlError for a line that is wrong, or a list that is missing."""
    lists = {split: root / f"{domain}_{split}.txt" for split in SPLITS}
    if not any(path.exists() for path in lists.values()):
        return None
    paths: list[str] = []
    labels: list[int] = []
    classes: dict[int, str] = {}
    rows = {}
    for split, path in lists.items():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise MtlError(f"{path}: cannot be read: {error}") from None
        first = len(paths)
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            name, _, label = line.strip().rpartition(" ")
            parts = PurePosixPath(name).parts
            if not label.isdigit() or len(parts) < 2 or not imagefiles.below(name):
                raise MtlError(
                    f"{path}, line {number}: should be a file below {root} and the number of its class, such as "
                    f"`{domain}/back_pack/frame_0001.jpg 0`; found {line[:80]}"
                )
            known = classes.setdefault(int(label), parts[-2])
            if known != parts[-2]:
                raise MtlError(f"{path}, line {number}: class {label} is '{known}' elsewhere; found '{parts[-2]}'")
            paths.append(str(_existing(root, domain, name)))
            labels.append(int(label))
        if len(paths) == first:
            raise MtlError(f"{path}: names no file, which leaves the split '{split}' of {domain} empty")
        rows[split] = torch.arange(first, len(paths))
    return Listed(paths, torch.tensor(labels), rows, classes)


def _walked(root: Path, domain: str, seed: int) -> Listed:
    """Every picture in the domain's folder, split within each class. Raises OptionError where there is none."""
    folder = _existing(root, domain, f"{domain}/images")
    if not folder.is_dir():
        folder = _existing(root, domain, domain)
    if not folder.is_dir():
        raise OptionError("root", f"{root} should hold a folder '{domain}'")
    named = sorted(path for path in folder.iterdir() if path.is_dir())
    files = [sorted(p for p in each.iterdir() if p.suffix.lower() in SUFFIXES) for each in named]
    rng = torch.Generator().manual_seed(seed)
    parts: dict[str, list[Tensor]] = {split: [] for split in SPLITS}
    first = 0
    for each in files:
        order = first + torch.randperm(len(each), generator=rng)
        ends = [round(SHARES[0] * len(each)), round(sum(SHARES) * len(each))]
        for split, part in zip(SPLITS, order.tensor_split(ends), strict=True):
            parts[split].append(part)
        first += len(each)
    rows = {split: torch.cat(part).sort().values if part else torch.empty(0).long() for split, part in parts.items()}
    for split, index in rows.items():
        if not len(index):
            raise OptionError("root", f"{folder}: holds too few pictures in folders of classes: no row for '{split}'")
    labels = torch.cat([torch.full((len(each),), k) for k, each in enumerate(files)])
    return Listed(
        [str(path) for each in files for path in each], labels, rows, {k: path.name for k, path in enumerate(named)}
    )


def _existing(root: Path, domain: str, name: str) -> Path:
    """`root / name`, or the same with the domain's folder as the archives call it."""
    path = root / name
    other = root / name.replace(domain, domain.replace("_", " "), 1)
    # `os.path.exists` says no of a name that is too long, where `Path.exists` raises.
    return other if not os.path.exists(path) and os.path.exists(other) else path


def _classes(listed: Mapping[str, Listed]) -> tuple[str, ...]:
    """Names of the classes by label. Raises OptionError where domains do not agree."""
    names: dict[int, tuple[str, str]] = {}
    for domain, files in listed.items():
        for label, name in files.classes.items():
            first, known = names.setdefault(label, (domain, name))
            if known != name:
                raise OptionError(
                    "root", f"class {label} is '{known}' in {first} and '{name}' in {domain}; domains share classes"
                )
    return tuple(_name(names, label) for label in range(max(names) + 1))


def _name(names: Mapping[int, Sequence[str]], label: int) -> str:
    return names[label][1] if label in names else f"class {label}"
