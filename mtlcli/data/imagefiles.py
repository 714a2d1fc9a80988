"""Pictures in files: decoded by worker processes, once into memory or anew for every batch."""

from __future__ import annotations

import atexit
import hashlib
import io
import math
import multiprocessing
import os
import signal
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import tee
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mtlcli.data.base import BaseSplit, Batch, ImageFeatures, Loader, Split, fingerprint
from mtlcli.data.loader import ResidentLoader
from mtlcli.data.memory import available_mib
from mtlcli.data.tables.reader import OF_A_RECIPE
from mtlcli.errors import MtlError, how_many
from mtlcli.tasks import Task

Cache = Literal["auto", "memory", "none"]
OnError = Literal["stop", "skip"]
AT_ONCE = 32  # files that a worker decodes before it hands them on
FEW = 256  # files that are decoded sooner than workers have started
MOST_WORKERS = 8
DIGEST = 16  # bytes
SHOWN = 3  # rows that were left out, in the note
# Mean and standard deviation of ImageNet, by the number of channels.
IMAGENET = {3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), 1: ((0.449,), (0.226,))}


class Shape(NamedTuple):
    """What every picture is brought to."""

    channels: int
    height: int
    width: int


class Decoded(NamedTuple):
    """One file: its pixels (C, H, W), or what is wrong with it."""

    pixels: NDArray[np.uint8] | None
    digest: bytes
    fault: str | None


def decode(path: str, shape: Shape) -> Decoded:
    """Read, turn upright, and resize, the aspect ratio not kept. Raises nothing: faults are told."""
    from PIL import Image, ImageOps

    mode = {1: "L", 3: "RGB"}[shape.channels]
    try:
        raw = Path(path).read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(raw)) as image:
                if image.mode.startswith(("I", "F")):
                    return Decoded(None, b"", f"holds pixels of mode {image.mode}; save it with 8 bits a channel")
                # Large JPEGs are decoded at a fraction of their size, still above twice the one that is wanted.
                image.draft(mode, (2 * shape.width, 2 * shape.height))
                ImageOps.exif_transpose(image, in_place=True)
                plain = image.convert("RGBA") if "transparency" in image.info else image
                small = plain.convert(mode).resize((shape.width, shape.height), Image.Resampling.BILINEAR)
                pixels = np.asarray(small, np.uint8).reshape(shape.height, shape.width, shape.channels)
    except Exception as error:  # Pillow raises many kinds for a damaged file
        text = str(error).replace("<_io.BytesIO object at", "<").splitlines() or [type(error).__name__]
        reason = "no image that can be read" if "cannot identify image" in text[0] else text[0]
        reason = getattr(error, "strerror", None) or reason  # without the path, which messages begin with
        return Decoded(None, b"", f"cannot be read: {reason}")
    return Decoded(pixels.transpose(2, 0, 1), hashlib.blake2b(raw, digest_size=DIGEST).digest(), None)


class Files(Dataset[Any]):
    """Batches of rows -> their pictures; what worker processes run."""

    def __init__(self, paths: Sequence[str], shape: Shape, keep: bool) -> None:
        # One array of bytes: worker processes would copy a list of texts page by page as they count references.
        self.paths, self.shape, self.keep = np.array([os.fsencode(path) for path in paths]), shape, keep

    def __getitems__(self, rows: Sequence[int]) -> list[Decoded]:
        """Every file's pixels; without `keep`, digests and faults alone."""
        found = [decode(os.fsdecode(self.paths[row]), self.shape) for row in rows]
        return found if self.keep else [each._replace(pixels=None) for each in found]


def run(files: Files, batches: Iterable[list[int]], workers: int) -> Iterator[list[Decoded]]:
    """The files of every batch, in order, decoded ahead by `workers` processes; 0: by this one."""
    loader = DataLoader(
        files,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_as_they_are,
        worker_init_fn=_stay,
        generator=torch.Generator(),  # else it would draw from the generator that training draws from
    )
    if workers:
        _end_workers_at_exit()
    yield from loader


@cache
def _end_workers_at_exit() -> None:
    """Workers that are still there when the program ends, such as after an error, would wait for it as it for them:
    what ends them then is a signal that they ignore."""

    def end() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would report them as lost
        for child in multiprocessing.active_children():
            if child.daemon:
                child.kill()

    atexit.register(end)


def _as_they_are(found: list[Decoded]) -> list[Decoded]:
    return found


def _stay(worker: int) -> None:
    """Terminals and clusters signal every process, and the main one wants a last batch before it saves and stops."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def worker_count(wanted: int | None, files: int) -> int:
    """How many processes decode."""
    if wanted is not None:
        return wanted
    return 0 if files < FEW else min(len(os.sched_getaffinity(0)), MOST_WORKERS)


def below(name: str) -> bool:
    """Whether a name, as it is written, leads to something below a folder; links are another matter."""
    parts = PurePosixPath(name)
    return not parts.is_absolute() and ".." not in parts.parts and "\0" not in name


def names(folder: Path) -> list[str]:
    """The pictures in a folder and the folders in it, by their endings; sorted. Links to folders are not followed, and
    hidden files are not a person's pictures: beside each of them, some archives hold a `._` file of its name."""
    from PIL import Image

    endings = Image.registered_extensions()
    found = (Path(place, file) for place, _, files in os.walk(folder) for file in files if not file.startswith("."))
    return sorted(path.relative_to(folder).as_posix() for path in found if path.suffix.lower() in endings)


def outside(path: str, inside: str) -> str | None:
    """Where links of `path` lead, if out of the folder `inside`, which has none. Raises nothing."""
    real = os.path.realpath(path)
    return None if Path(real).is_relative_to(inside) else real


class Skipped:
    """Rows without a usable picture: the first one ends it, or all are counted."""

    def __init__(self, on_error: OnError, option: str = OF_A_RECIPE) -> None:
        self.skip, self.option = on_error == "skip", option
        self.rows: set[int] = set()
        self.examples: list[str] = []

    def add(self, row: int, message: str) -> None:
        """One more; `message` names its place. Raises MtlError unless rows are left out."""
        if not self.skip:
            raise MtlError(f"{message}; correct it, or leave such rows out with {self.option}")
        self.rows.add(row)
        self.examples.append(message)

    def left(self, rows: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
        """What remains of `rows`, by split. Raises MtlError naming `what` where that is nothing."""
        gone = torch.tensor(sorted(self.rows), dtype=torch.long)
        found = {name: index[~torch.isin(index, gone)] for name, index in rows.items()}
        for name, index in found.items():
            if not len(index):
                raise MtlError(f"{what}: should have a picture that can be read in the split '{name}'; {self.note}")
        return found

    @property
    def note(self) -> str | None:
        """What to tell about the rows that were left out."""
        if not self.rows:
            return None
        more = "; ..." if len(self.examples) > SHOWN else ""
        were = "was" if len(self.rows) == 1 else "were"
        return (
            f"{how_many(len(self.rows), 'row')} without a usable picture {were} left out ({self.option}): "
            f"{'; '.join(self.examples[:SHOWN])}{more}"
        )


class Scanned(NamedTuple):
    """Every file, looked into once."""

    pixels: Tensor | None  # (N, C, H, W), where they are kept
    digests: Tensor  # (N, 16) uint8
    faults: dict[int, str]  # row -> what is wrong with its file


def scan(paths: Sequence[str], shape: Shape, cache: Cache, workers: int | None) -> Scanned:
    """Decode every file: what cannot be read is known before training, and what is in memory need not be read again.

    Args:
        cache: auto keeps the pictures where they take at most half of the memory that is available.
    """
    keep = cache == "memory" or (cache == "auto" and len(paths) * math.prod(shape) <= available_mib() * 2**19)
    pixels = torch.zeros((len(paths), *shape), dtype=torch.uint8) if keep else None
    digests, faults = torch.zeros((len(paths), DIGEST), dtype=torch.uint8), {}
    batches = [list(range(start, min(start + AT_ONCE, len(paths)))) for start in range(0, len(paths), AT_ONCE)]
    found = run(Files(paths, shape, keep), batches, worker_count(workers, len(paths)))
    for rows, decoded in zip(batches, found, strict=True):
        for row, each in zip(rows, decoded, strict=True):
            if each.fault is not None:
                faults[row] = each.fault
                continue
            digests[row] = torch.frombuffer(bytearray(each.digest), dtype=torch.uint8)
            if pixels is not None and each.pixels is not None:
                pixels[row] = torch.from_numpy(each.pixels.copy())
    return Scanned(pixels, digests, faults)


def splits(
    paths: Sequence[str],
    scanned: Scanned,
    rows: Mapping[str, Tensor],
    targets: Mapping[str, Mapping[str, Tensor]],
    features: ImageFeatures,
    workers: int | None,
    keys: Tensor | None = None,
) -> dict[str, BaseSplit]:
    """Every split, from memory where the pictures are kept there.

    Args:
        rows: by split, the numbers of its files.
        targets: by split, the labels of these rows.
        keys: of the training rows, which are held out together where they have the same.
    """
    found: dict[str, BaseSplit] = {}
    for name, index in rows.items():
        own = keys if name == "train" else None
        if scanned.pixels is None:
            files = Split({"row": index}, dict(targets[name]), keys=own)
            found[name] = FileSplit(tuple(paths), features, files, workers)
        else:
            # A stretch of rows needs no copy of its own.
            step = bool(len(index)) and bool((index.diff() == 1).all())
            pixels = scanned.pixels[int(index[0]) : int(index[-1]) + 1] if step else scanned.pixels[index]
            found[name] = Split({"image": pixels}, dict(targets[name]), features.at_once, own)
    return found


def digest(
    meaning: Mapping[str, object],
    scanned: Scanned,
    rows: Mapping[str, Tensor],
    targets: Mapping[str, Mapping[str, Tensor]],
) -> str:
    """The fingerprint of the files' contents and labels, wherever the pictures are kept."""
    named = {name: Split({"file": scanned.digests[index]}, dict(targets[name])) for name, index in rows.items()}
    return fingerprint(meaning, named)


@dataclass(frozen=True)
class FileSplit(BaseSplit):
    """Pictures that stay in their files: worker processes decode them ahead, batch after batch."""

    paths: tuple[str, ...]  # of all splits
    features: ImageFeatures
    index: Split  # `row` (N,): which files these are; and their labels
    workers: int | None
    device: torch.device | None = None

    def __len__(self) -> int:
        return len(self.index)

    def loader(self, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> Loader:
        """The same rows at every step as if they were in memory."""
        return FileLoader(self, ResidentLoader(self.index, batch_size, seed, rank, world))

    def batches(self, size: int) -> Iterator[Batch]:
        """All files once."""
        return self.decoded(self.index.batches(min(size, self.features.at_once)))

    def labelled(self, task: Task) -> int:
        """Counted in memory."""
        return self.index.labelled(task)

    def select(self, tasks: Sequence[str]) -> FileSplit:
        """The same files."""
        return replace(self, index=self.index.select(tasks))

    def to(self, device: torch.device) -> FileSplit:
        """The same files; batches are moved as they come."""
        return replace(self, device=device)

    def hold_out(self, fraction: float, seed: int) -> tuple[FileSplit, FileSplit]:
        """As of rows in memory."""
        kept, given = self.index.hold_out(fraction, seed)
        return replace(self, index=kept), replace(self, index=given)

    def decoded(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Batches of rows -> batches of pictures. Raises MtlError for a file that has gone since it was looked into."""
        shape = Shape(self.features.channels, self.features.height, self.features.width)
        ahead, here = tee(batches)
        workers = worker_count(self.workers, len(self))
        rows = (batch.inputs["row"].tolist() for batch in ahead)
        for found, batch in zip(run(Files(self.paths, shape, True), rows, workers), here, strict=True):
            pixels = np.empty((len(found), *shape), np.uint8)
            for place, each in enumerate(found):
                if each.pixels is None:
                    row = int(batch.inputs["row"][place])
                    raise MtlError(f"{self.paths[row]}: {each.fault}; it could be read when the run began")
                pixels[place] = each.pixels
            read = Batch({"image": torch.from_numpy(pixels)}, batch.targets)
            yield read if self.device is None else read.to(self.device)


class FileLoader:
    """Shuffled batches of a FileSplit."""

    def __init__(self, split: FileSplit, rows: ResidentLoader) -> None:
        self.split, self.rows = split, rows
        self._stream: Iterator[Batch] = iter(())
        self._last: tuple[int, Batch] | None = None  # step of the stream and its batch

    def __len__(self) -> int:
        """Steps an epoch."""
        return len(self.rows)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of `epoch`, starting at its step `first_step`."""
        return self.split.decoded(self.rows.epoch(epoch, first_step))

    def endless(self, step: int) -> Batch:
        """Batch number `step`; one stream serves steps that follow each other."""
        if self._last is None or step != self._last[0]:
            if self._last is None or step != self._last[0] + 1:
                self._stream = self.split.decoded(self._from(step))
            self._last = step, next(self._stream)
        return self._last[1]

    def _from(self, step: int) -> Iterator[Batch]:
        while True:
            yield self.rows.endless(step)
            step += 1
