"""Checkpoints, read back: nothing in such a file is executed, and a damaged one is said to be."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from mtlcli.engine.prepare import Prepared
from mtlcli.errors import MtlError
from mtlcli.runs import SCHEMA_VERSION


def read_checkpoint(path: Path, device: str = "cpu") -> dict[str, Any]:
    """The state in a checkpoint. Only tensors and plain values are read, nothing in the file is executed.

    Raises:
        MtlError: no such file, a damaged one, or one that is not ours.
    """
    if not path.exists():
        raise MtlError(f"{path}: no such checkpoint; the run has not saved one yet")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of files that it then refuses
            with zipfile.ZipFile(path) as archive:
                if archive.testzip() is not None:  # torch does not look at checksums
                    raise zipfile.BadZipFile
            state = torch.load(path, map_location=device, weights_only=True)
    except Exception:  # torch raises many kinds for a damaged file, in words about itself
        raise MtlError(
            f"{path}: cannot be read as a checkpoint: truncated, damaged, or written by another program; "
            "the run's other checkpoint may be whole (mtl eval --checkpoint best|last)"
        ) from None
    if not isinstance(state, dict) or "model" not in state or "clock" not in state:
        raise MtlError(f"{path}: is not a checkpoint of mtl")
    if state.get("schema_version") != SCHEMA_VERSION:
        raise MtlError(
            f"{path}: has schema version {state.get('schema_version')}; this version of mtl reads {SCHEMA_VERSION}"
        )
    return state


def load_model(prepared: Prepared, path: Path, device: str = "cpu") -> dict[str, Any]:
    """Load a checkpoint's parameters into the model; returns its clock. Raises MtlError where they do not fit."""
    state = read_checkpoint(path, device)
    try:
        prepared.model.load_state_dict(state["model"])
    except RuntimeError as error:
        raise MtlError(f"{path}: holds another model than the recipe describes: {in_short(error)}") from None
    clock: dict[str, Any] = state["clock"]
    return clock


def in_short(error: Exception) -> str:
    """The first differences that torch lists under its heading."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "; ".join(line[:200] for line in (lines[1:3] or lines[:1])) or type(error).__name__
