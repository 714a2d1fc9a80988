"""Which files a path means. Nothing outside of the folder that was named is ever read."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from pathlib import Path

from mtlcli.errors import MtlError, did_you_mean

DELIMITED = {".csv": ",", ".tsv": "\t", ".tab": "\t"}  # and what stands between two fields
PARQUET = (".parquet", ".pq")
ARROW = (".arrow", ".feather", ".ipc")
READABLE = (*DELIMITED, *PARQUET, *ARROW)


def find(path: Path) -> list[Path]:
    """The files at `path`, sorted: a file, those below a folder, or those that a glob matches.

    Raises MtlError where there are none, where one has another extension, where a folder holds several kinds of file,
    and where a link leads out of the folder.
    """
    if path.is_dir():
        files = [file for file in _below(path) if file.suffix.lower() in READABLE]
        if not files:
            raise MtlError(f"{path}: the folder holds no file that can be read ({', '.join(READABLE)})")
    elif path.exists():
        files = [path]
    elif glob.has_magic(str(path)):
        files = _matches(path)
        if not files:
            raise MtlError(f"{path}: matches no file; the pattern is taken from the recipe's folder")
    else:
        near = sorted(other.name for other in path.parent.iterdir()) if path.parent.is_dir() else []
        there = "" if path.parent.is_dir() else f"; there is no folder {path.parent}"
        raise MtlError(f"{path}: no such file{did_you_mean(path.name, near)}{there}")
    for file in files:
        if file.suffix.lower() not in READABLE:
            raise MtlError(f"{file}: the extension '{file.suffix}' cannot be read; these can: {', '.join(READABLE)}")
        if not file.is_file():
            raise MtlError(f"{file}: is not a regular file")
        if not os.access(file, os.R_OK):
            raise MtlError(f"{file}: cannot be read: permission denied")
    suffixes = sorted({file.suffix.lower() for file in files})
    if len(suffixes) > 1:
        raise MtlError(
            f"{path}: holds files of several kinds ({', '.join(suffixes)}); choose one, as in *{suffixes[0]}"
        )
    return files


def _matches(pattern: Path) -> list[Path]:
    """Files that the glob matches, below its first part without a wildcard."""
    parts = pattern.parts
    first = next(n for n, part in enumerate(parts) if glob.has_magic(part))
    base = Path(*parts[:first])
    found = sorted(file for file in base.glob(str(Path(*parts[first:]))) if not file.is_dir())
    for file in found:
        _inside(file, base)
    return found


def _below(folder: Path) -> Iterator[Path]:
    """Every file below `folder`, but hidden ones; linked folders are not entered."""
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "_")))
        for name in folders:
            _inside(Path(here, name), folder)
        for name in sorted(files):
            if not name.startswith((".", "_")):
                _inside(Path(here, name), folder)
                yield Path(here, name)


def _inside(file: Path, folder: Path) -> None:
    if not file.resolve().is_relative_to(folder.resolve()):
        raise MtlError(f"{file}: is a link to {file.resolve()}, outside of {folder}; name that file itself, or copy it")
