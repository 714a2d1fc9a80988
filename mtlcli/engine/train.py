"""Train a recipe into a run directory: create or resume it, survive signals, record the outcome."""

from __future__ import annotations

import os
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from mtlcli.engine.events import Event, Warned
from mtlcli.engine.fit import Fit, Interrupted
from mtlcli.engine.prepare import choose_device, prepare
from mtlcli.engine.ranks import Ranks
from mtlcli.errors import MtlError, Stopped
from mtlcli.loggers.fanout import Fanout
from mtlcli.recipe import Recipe, differences
from mtlcli.runs import Run, provenance, read_recipe
from mtlcli.yamlfile import flatten

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stop:
    """Signals to end as a flag; a second one stops the process at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.signal is not None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Catch the signals; outside the main thread, where Python forbids that, do nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # Under nohup the end of the terminal is not a reason to stop.
        unheard = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        caught = [number for number in SIGNALS if number != signal.SIGHUP or not unheard]
        before = {number: signal.signal(number, self._handle) for number in caught}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        for caught in SIGNALS:
            if signal.getsignal(caught) == self._handle:
                signal.signal(caught, signal.SIG_DFL)


def train(
    recipe: Recipe,
    name: str,
    out: Path | None = None,
    device: str = "auto",
    resume: bool = False,
    wait: bool = False,
    show: Callable[[Event, Run], None] = lambda event, run: None,
) -> tuple[Run, dict[str, Any]]:
    """Train `recipe` and return its run and the content of result.json.

    Args:
        name: of the numbered folder under `runs/` where `out` is None.
        resume: go on with the run at `out` (or the newest one called `name`); without one there, begin it.
        wait: where another process is training this very run, wait for it instead of raising.
        show: called with every event, on the first rank.

    Raises:
        MtlError: the recipe does not fit the data or the machine, or the folder is taken.
        TrainingError: the run began and could not finish.
        Stopped: a signal came; last.pt holds the state.
    """
    stop = Stop()
    with ExitStack() as stack:
        stack.enter_context(stop.listening())
        chosen = choose_device(device, int(os.environ.get("LOCAL_RANK", "0")))
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        ranks = Ranks.start(chosen.type)
        stack.callback(Ranks.stop)
        existing = ranks.agreed(lambda: _existing(recipe, name, out)) if resume else None
        if existing is not None and ranks.agreed(existing.finished):
            return existing, existing.result()
        # Everything that can be wrong with a recipe shows before there is a folder for it.
        fit = Fit(prepare(recipe, chosen), existing or Run(out or Path(name)), ranks, stop.requested)
        fitted = fit.prepared.data.fitted
        about = {"device": str(chosen), "ranks": ranks.world}
        run = fit.run = existing or ranks.agreed(lambda: _create(recipe, name, out, resume, about, fitted))
        ranks.agreed(lambda: stack.enter_context(run.lock(wait)))
        stack.callback(run.close)
        if ranks.agreed(run.finished):  # by the process whose lock was waited for
            return run, run.result()
        if ranks.agreed(run.last.exists):
            fit.resume()
        if ranks.rank == 0:
            run.update_info(status="running", pid=os.getpid(), error=None, **about)
        try:
            result = _follow(fit, run, ranks, show)
        except Interrupted:
            if ranks.rank == 0:
                run.update_info(status="interrupted", ended=_now())
            raise Stopped(run.path, stop.signal or signal.SIGTERM) from None
        except BaseException as error:
            if ranks.rank == 0:
                with suppress(MtlError):  # on a full disk the first error is the one to report
                    kind = "" if isinstance(error, MtlError) else type(error).__name__
                    what = ": ".join(part for part in (kind, str(error)) if part)
                    run.update_info(status="failed", error=what, ended=_now())
            raise
        return run, result


def _follow(fit: Fit, run: Run, ranks: Ranks, show: Callable[[Event, Run], None]) -> dict[str, Any]:
    """Train, and record and show every event."""
    if ranks.rank != 0:
        for _ in fit.events():
            pass
        return {}
    result: dict[str, Any] = {}
    loggers = Fanout(fit.recipe.log, run, flatten(fit.recipe.as_dict()), fit.step)
    status = "failed"
    try:
        for event in fit.events():
            run.append(event.as_json())
            show(event, run)
            for message in loggers.write(event.as_json()):
                warned = Warned(message)
                run.append(warned.as_json())
                show(warned, run)
            result = getattr(event, "result", result)
        status = "finished"
    except Interrupted:
        status = "interrupted"
        raise
    finally:
        loggers.close(status)
    run.write_result(result)
    run.update_info(status="finished", ended=_now())
    return result


def _existing(recipe: Recipe, name: str, out: Path | None) -> Run | None:
    """The run to resume, held against the recipe; None where there is nothing yet."""
    run = Run.latest(name) if out is None else Run.at(out)
    if run is None:
        return None
    changed = differences(read_recipe(run), recipe)
    if changed:
        raise MtlError(
            f"{run.path}: --resume needs the recipe that the run was started with; these keys differ (run -> now):\n"
            + "\n".join(f"  {line}" for line in changed)
            + f"\nUse `mtl train {shlex.quote(str(run.recipe_file))} --resume` to go on with it, or another --out for "
            "a new run"
        )
    return run


def _create(
    recipe: Recipe,
    name: str,
    out: Path | None,
    resume: bool,
    about: Mapping[str, Any],
    fitted: Mapping[str, Any] | None,
) -> Run:
    info = {"status": "running", "pid": os.getpid(), **about, **provenance()}
    try:
        return Run.create(out, name, recipe.dump(), info, fitted)
    except MtlError:
        found = _existing(recipe, name, out) if resume else None  # made by another process in the meantime
        if found is None:
            raise
        return found


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
