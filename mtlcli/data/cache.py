"""Arrays that took long to compute, kept in the user's cache folder."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]


def folder() -> Path:
    """`$XDG_CACHE_HOME/mtlcli`, or `~/.cache/mtlcli`."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "mtlcli"


def cached(key: str, build: Callable[[], Arrays]) -> tuple[Arrays, str | None]:
    """What `build` gives, from the file `key`.npz where there is one, and what a person should know, if anything.

    Args:
        key: names the content: whatever `build` reads, and its version.
        build: called where there is no such file, or none that can be read.
    """
    path = folder() / f"{key}.npz"
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
            return {name: held[name] for name in held.files}, None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):  # absent, or damaged: then it is written anew
        arrays = build()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as part:
            try:
                np.savez(part, **arrays)  # type: ignore[arg-type]  # it takes `allow_pickle` for one of them
                part.flush()
                os.replace(part.name, path)
            except BaseException:
                os.unlink(part.name)
                raise
    except OSError as error:
        return arrays, f"{path} could not be written ({error.strerror}), so the next run computes it again"
    return arrays, None
