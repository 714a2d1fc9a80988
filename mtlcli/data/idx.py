"""IDX files, the format of MNIST: a header of big-endian numbers, then bytes."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtlcli.errors import MtlError

Pictures = tuple[NDArray[np.uint8], NDArray[np.uint8]]  # (N, height, width) and labels (N,)


def find(folders: Sequence[Path], part: str) -> tuple[Path, Path] | None:
    """The files of images and labels of `part` (train or t10k), plain or `.gz`, in the first folder with both."""
    for folder in folders:
        found = [
            next((path for ending in ("", ".gz") if (path := folder / f"{part}-{kind}-ubyte{ending}").is_file()), None)
            for kind in ("images-idx3", "labels-idx1")
        ]
        if found[0] and found[1]:
            return found[0], found[1]
    return None


def read_pictures(images: Path, labels: Path, side: int, num_classes: int) -> Pictures:
    """Pictures (N, side, side) and their classes (N,).

    Raises MtlError where a file is not an IDX file, or the two do not belong together.
    """
    pixels, classes = read(images, 3), read(labels, 1)
    if pixels.shape[1:] != (side, side):
        raise MtlError(f"{images}: should hold images of {side} x {side}; found {pixels.shape[1]} x {pixels.shape[2]}")
    if len(pixels) != len(classes):
        raise MtlError(f"{labels}: should hold a label for each of the {len(pixels)} images; found {len(classes)}")
    if len(classes) and classes.max() >= num_classes:
        raise MtlError(f"{labels}: labels should be 0 to {num_classes - 1}; found {classes.max()}")
    return pixels, classes


def read(path: Path, dims: int) -> NDArray[np.uint8]:
    """The array of bytes with `dims` dimensions in an IDX file, plain or `.gz`.

    Raises MtlError where the header says something else, or more or fewer bytes follow it than it says.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise MtlError(f"{path}: cannot be read: {error}; fetch it again") from None
    start = 4 + 4 * dims
    magic = bytes((0, 0, 8, dims))  # 8: unsigned bytes
    if raw[:4] != magic or len(raw) < start:
        raise MtlError(
            f"{path}: is not an IDX file of bytes in {dims} dimension{'s' * (dims > 1)}: should begin with "
            f"{magic.hex()}; found {raw[:4].hex() or 'nothing'}"
        )
    shape = tuple(np.frombuffer(raw, ">u4", dims, 4).tolist())
    if len(raw) - start != math.prod(shape):
        raise MtlError(
            f"{path}: should hold {' x '.join(map(str, shape))} = {math.prod(shape)} bytes after its header; "
            f"found {len(raw) - start}; fetch it again"
        )
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)
