"""One run of a comparison, in whatever process a launcher gives it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars  # noqa: F401 - imported here so that processes forked from one with this module have it at once
import torch
import torchmetrics  # noqa: F401 - likewise

from mtlcli.engine.events import EpochDone, Event, Started, StepDone
from mtlcli.engine.train import train
from mtlcli.errors import MtlError, Stopped
from mtlcli.recipe import from_values
from mtlcli.runs import Run
from mtlcli.sweep.launchers.base import Work
from mtlcli.sweep.store import Entry


def perform(work: Work, device: str, tell: Callable[..., None] = lambda **message: None) -> dict[str, Any]:
    """Train the run, going on with what is there, or take it from the store.

    Returns `status`; where it failed, `error`; and where a person should know something of the store, `note`.

    Args:
        work: the run.
        device: as for `mtl train`.
        tell: called with `step`, `steps` and `losses` as they change.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(work.threads)

    def show(event: Event, run: Run) -> None:
        if isinstance(event, Started):
            tell(step=event.step, steps=event.epochs * event.steps_per_epoch)
        elif isinstance(event, StepDone | EpochDone):
            tell(step=event.step, losses=event.losses)

    target = Path(work.path)
    try:
        while Run(target).is_locked():  # another comparison trains this run; a signal still ends the wait at once
            time.sleep(0.5)
        recipe = from_values(work.recipe, work.title)
        entry, note = None, None
        if work.store is not None and work.fingerprint is not None:
            entry = Entry(Path(work.store), recipe, work.fingerprint, device)
            taken, note = entry.take(target)
            if taken:
                return {"status": "finished", "note": note}
        train(recipe, target.name, out=target, device=device, resume=True, wait=True, show=show)
        if entry is not None:
            note = entry.keep(target) or note
    except Stopped:
        return {"status": "interrupted"}
    except MtlError as error:
        return {"status": "failed", "error": str(error)}
    except Exception as error:  # one broken run must not end the others; its row says what happened
        return {"status": "failed", "error": f"{type(error).__name__}: {error}"}
    return {"status": "finished", "note": note}
