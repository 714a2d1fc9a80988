"""Epochs, evaluation, checkpoints: a generator of events that can be stopped and resumed anywhere."""

from __future__ import annotations

import io
import resource
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtlcli import fitting
from mtlcli.data.base import Batch, Loader
from mtlcli.engine.evaluate import TaskScore, evaluate
from mtlcli.engine.events import Diagnostics, EpochDone, Event, Finished, Started, StepDone, Warned
from mtlcli.engine.prepare import Prepared, scale_warning, step_for
from mtlcli.engine.ranks import Ranks
from mtlcli.engine.selection import Selection
from mtlcli.engine.step import Report
from mtlcli.engine.view import ModelStep
from mtlcli.errors import MtlError, TrainingError
from mtlcli.registry import optimizers, schedules
from mtlcli.runs import SCHEMA_VERSION, Run, replace_file
from mtlcli.weighting.base import Clock


class Interrupted(Exception):  # noqa: N818 - like KeyboardInterrupt, it reports no mistake
    """The run was asked to stop and has saved its state."""


class Fit:
    """One training run. Iterate over `events()`; everything else is its state.

    Args:
        prepared: data, model, recipe, device.
        run: where checkpoints go.
        ranks: the processes that train together; only the first one writes.
        stop: asked after every step; once it says so, the state is saved and `Interrupted` raised.
    """

    def __init__(self, prepared: Prepared, run: Run, ranks: Ranks, stop: Callable[[], bool] = lambda: False) -> None:
        self.prepared, self.run, self.ranks, self.stop = prepared, run, ranks, stop
        recipe = self.recipe = prepared.recipe
        self.tasks = prepared.data.tasks
        self.model = prepared.model
        self.loader = self._loader("train", recipe.train.seed)
        self.held_out = self._loader("held_out", recipe.train.seed + 1) if recipe.data.held_out else None
        self.extra = [self._loader("train", recipe.train.seed + 2 + n) for n in range(recipe.data.extra_batches)]
        self.loss_weighting, self.gradient_weighting = prepared.weightings()
        self.step_function = step_for(prepared, self.loss_weighting, self.gradient_weighting, ranks)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        learned = self.loss_weighting.learnable()
        self.optimizer = optimizers.get(recipe.optimizer.name)(recipe.optimizer.options).build(self.parameters, learned)
        epochs, per_epoch = recipe.train.epochs, len(self.loader)
        self.schedule = schedules.get(recipe.schedule.name)(recipe.schedule.options, epochs * per_epoch, per_epoch)
        self.selection = Selection(recipe.train.select_by)
        learned_from = [rows for name, rows in prepared.data.splits.items() if name in ("train", "held_out")]
        self.complete = frozenset(task.name for task in self.tasks if all(rows.complete(task) for rows in learned_from))
        self.step = 0
        self.best: dict[str, Any] = {"epoch": None, "score": None}
        self.seconds = 0.0
        self.passes = 0
        self.step_ms: list[float] = []
        self.peak_mib = 0.0
        self._sums = torch.zeros(2, len(self.tasks), dtype=torch.float64)  # losses and weights over the epoch so far
        self._pending: list[Report] = []
        self._gramians: list[tuple[int, Tensor]] = []  # of steps since the last flush, for diagnostics
        self._saved_step: int | None = None
        self._resumed = False

    @property
    def epoch(self) -> int:
        """The epoch that the next step belongs to."""
        return self.step // len(self.loader)

    # -- training ------------------------------------------------------------------------------------------------------

    def events(self) -> Iterator[Event]:
        """Train to the end, score `test`, and yield what happens.

        Raises:
            TrainingError: a loss became non-finite, or the disk refused a checkpoint. What was saved before stands.
            Interrupted: `stop` asked for it; last.pt holds this very step.
        """
        import torchmetrics  # noqa: F401 - takes seconds, which must not be counted as the first epoch's

        train = self.recipe.train
        yield Started(
            method=self.recipe.method,
            tasks=[task.name for task in self.tasks],
            device=str(self.prepared.device),
            epochs=train.epochs,
            steps_per_epoch=len(self.loader),
            step=self.step,
            resumed=self._resumed,
        )
        if not self._resumed:
            for note in (*self.prepared.data.notes, *fitting.idle(self.recipe.loss, train.epochs)):
                yield Warned(note)
            self._save()
        self.model.train()
        while self.epoch < train.epochs:
            yield from self._train_epoch()
        yield Finished(self._result())

    def _train_epoch(self) -> Iterator[Event]:
        train, epoch, per_epoch = self.recipe.train, self.epoch, len(self.loader)
        begun = mark = time.perf_counter()
        before = self.seconds
        for batch in self.loader.epoch(epoch, self.step % per_epoch):
            self._train_step(batch, epoch)
            last = self.step % per_epoch == 0
            due = (self.step - 1) % train.log_every_steps == 0
            stop = self.ranks.any(self.stop()) if self.ranks.world == 1 or due or last else False
            checkpoint = train.checkpoint_every_steps is not None and self.step % train.checkpoint_every_steps == 0
            if due or last or stop or checkpoint:
                yield from self._flush(epoch, mark, due)
                mark = time.perf_counter()
            self.seconds = before + time.perf_counter() - begun
            if (stop or checkpoint) and not last:
                self._save()
                mark = time.perf_counter()
            if stop and not last:
                raise Interrupted
        yield self._end_epoch(epoch, before, begun)
        if self.ranks.any(self.stop()):
            raise Interrupted

    def _train_step(self, batch: Batch, epoch: int) -> None:
        lr = self.schedule.apply(self.optimizer, self.step)
        if self.prepared.data.augment is not None:
            batch = batch.map_inputs(self.prepared.data.augment)
        view = ModelStep(
            model=self.model,
            tasks=self.tasks,
            batch=batch,
            clock=Clock(self.step, epoch, len(self.loader), self.recipe.train.epochs),
            lr=lr,
            ranks=self.ranks,
            held_out=partial(self.held_out.endless, self.step) if self.held_out else None,
            extra=self._extra_batch if self.extra else None,
            autocast=self.prepared.autocast,
            complete=self.complete,
            metrics=self.prepared.metrics,
            probe_model=self.prepared.plain_model,
        )
        self.optimizer.zero_grad(set_to_none=True)
        every = self.recipe.train.diagnostics_every
        if every is not None and self.step % every == 0:
            self._gramians.append((self.step, self.step_function.gramian(view)))
        report = self.step_function.backward(view, view.cut)
        if self.recipe.train.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.recipe.train.clip_norm)
        self.optimizer.step()
        self.loss_weighting.after_step(view)
        self.passes += report.passes
        self.step += 1
        self._pending.append(report)

    def _flush(self, epoch: int, mark: float, record: bool) -> Iterator[Event]:
        """Bring the losses of the last steps to the CPU, in one transfer; check and record them."""
        values = torch.stack([torch.stack((r.losses, r.weights.to(r.losses))) for r in self._pending]).double().cpu()
        first = self.step - len(self._pending)
        self._pending.clear()
        bad = (~values[:, 0].isfinite()).nonzero()
        if len(bad):
            row, k = (int(i) for i in bad[0])
            saved = f"{self.run.last} (step {self._saved_step})" if self._saved_step is not None else "none"
            raise TrainingError(
                f"task '{self.tasks[k].name}': its loss became {float(values[row, 0, k])} at step {first + row} "
                f"(epoch {epoch}). The last good checkpoint is {saved}. What helps: a smaller optimizer.lr, "
                f"train.clip_norm, or a look at the labels of '{self.tasks[k].name}'"
            )
        self._sums += values.sum(0)
        ms = 1e3 * (time.perf_counter() - mark) / len(values)
        if first > 0:  # the first step pays for allocations and kernels
            self.step_ms.append(ms)
        losses, weights = (self._by_task(row) for row in values[-1])
        if first == 0:
            message = scale_warning(self._by_task(values[0, 0]))
            if message:
                yield Warned(message)
        for step, gramian in self._gramians:
            if gramian.isfinite().all():
                yield Diagnostics.of(gramian, [task.name for task in self.tasks], step, epoch)
        self._gramians.clear()
        if record:
            lr = float(self.optimizer.param_groups[0]["lr"])
            yield StepDone(self.step - 1, epoch, losses, weights, lr, ms)

    def _end_epoch(self, epoch: int, before: float, begun: float) -> EpochDone:
        prepared = self.prepared
        val = evaluate(self.model, self.tasks, prepared.data.splits["val"], prepared.metrics, prepared.autocast)
        score = self.selection.score(val, epoch)
        self.schedule.end_epoch(score)
        best = self.best["epoch"] is None or (
            score is not None and (self.best["score"] is None or score > self.best["score"])
        )
        if best:
            self.best = {"epoch": epoch, "score": score}
        losses, weights = (self._by_task(row / len(self.loader)) for row in self._sums)
        self._sums.zero_()
        self.seconds = before + time.perf_counter() - begun
        self._save(best)
        return EpochDone(
            epoch=epoch,
            step=self.step,
            losses=losses,
            weights=weights,
            val={task: s.as_json() for task, s in val.items()},
            score=score,
            best=best,
            lr=float(self.optimizer.param_groups[0]["lr"]),
            seconds=self.seconds,
            counts=self._counts(),
        )

    # -- result --------------------------------------------------------------------------------------------------------

    def _result(self) -> dict[str, Any]:
        """`test`, read once, at the best epoch."""
        prepared, recipe = self.prepared, self.recipe
        load_model(prepared, self.run.best, "cpu")
        scores: dict[str, TaskScore] = evaluate(
            self.model, self.tasks, prepared.data.splits["test"], prepared.metrics, prepared.autocast
        )
        passes = self.passes / max(self.step, 1)
        return {
            "schema_version": SCHEMA_VERSION,
            "method": recipe.method,
            "seed": recipe.train.seed,
            "dataset": recipe.dataset.name,
            "fingerprint": prepared.data.fingerprint,
            "device": str(prepared.device),
            "epochs": recipe.train.epochs,
            "steps": self.step,
            "selected": {"by": "val", "epoch": self.best["epoch"]},
            "tasks": {task: score.as_json() for task, score in scores.items()},
            "cost": {
                "seconds": round(self.seconds, 3),
                "step_ms_median": round(statistics.median(self.step_ms), 4) if self.step_ms else None,
                "peak_mib": round(self._peak(), 1),
                "backward_passes_per_step": int(passes) if passes == int(passes) else round(passes, 3),
            },
            "counts": self._counts(),
        }

    def _peak(self) -> float:
        """Peak memory in MiB: allocated on the GPU, or the process's resident set on the CPU."""
        if self.prepared.device.type == "cuda":
            now = torch.cuda.max_memory_allocated(self.prepared.device) / 2**20
        else:
            now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        self.peak_mib = max(self.peak_mib, now)
        return self.peak_mib

    def _counts(self) -> dict[str, int]:
        return dict(Counter(self.loss_weighting.events) + Counter(self.gradient_weighting.events))

    def _by_task(self, values: Tensor) -> dict[str, float]:
        return {task.name: float(value) for task, value in zip(self.tasks, values, strict=True)}

    def _extra_batch(self, number: int) -> Batch:
        return self.extra[number].endless(self.step)

    def _loader(self, split: str, seed: int) -> Loader:
        rows = self.prepared.data.splits[split]
        return rows.loader(self.recipe.data.batch_size, seed, self.ranks.rank, self.ranks.world)

    # -- state ---------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        device = self.prepared.device
        return {
            "schema_version": SCHEMA_VERSION,
            "method": self.recipe.method,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "loss_weighting": self.loss_weighting.state_dict(),
            "gradient_weighting": self.gradient_weighting.state_dict(),
            "step_function": self.step_function.state_dict(),
            "selection": self.selection.state_dict(),
            "rng": {
                "cpu": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
            },
            "clock": {"step": self.step, "epoch": self.epoch},
            "best": dict(self.best),
            "sums": self._sums,
            "cost": {"seconds": self.seconds, "passes": self.passes, "step_ms": self.step_ms, "peak_mib": self._peak()},
        }

    def resume(self) -> None:
        """Go on from last.pt. Raises MtlError where it is damaged or belongs to something else."""
        state = read_checkpoint(self.run.last)
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            self.loss_weighting.load_state_dict(state["loss_weighting"])
            self.gradient_weighting.load_state_dict(state["gradient_weighting"])
            self.step_function.load_state_dict(state["step_function"])
            self.selection.load_state_dict(state["selection"])
            self.step = self._saved_step = state["clock"]["step"]
            self.best = dict(state["best"])
            self._sums = state["sums"]
            cost = state["cost"]
            torch.set_rng_state(state["rng"]["cpu"])
            if self.prepared.device.type == "cuda" and state["rng"]["cuda"] is not None:
                torch.cuda.set_rng_state(state["rng"]["cuda"], self.prepared.device)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise MtlError(f"{self.run.last}: does not fit this recipe: {_in_short(error)}") from None
        self.seconds, self.passes = cost["seconds"], cost["passes"]
        self.step_ms, self.peak_mib = list(cost["step_ms"]), cost["peak_mib"]
        self._resumed = True

    def _save(self, best: bool = False) -> None:
        """Write last.pt, and best.pt before it, so that last.pt never names a best epoch that is not on disk."""
        broken = next((n for n, p in self.model.named_parameters() if not bool(p.isfinite().all())), None)
        if broken is not None:
            raise TrainingError(
                f"the parameter '{broken}' became non-finite by step {self.step - 1}; {self.run.last} still holds step "
                f"{self._saved_step}. What helps: a smaller optimizer.lr, or train.clip_norm"
            )
        if self.ranks.rank == 0:
            memory = io.BytesIO()
            torch.save(self.state_dict(), memory)
            for path in (self.run.best, self.run.last) if best else (self.run.last,):
                replace_file(path, memory.getvalue())
        self._saved_step = self.step
        self.ranks.barrier()


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
            state = torch.load(path, map_location=device, weights_only=True)
    except Exception:  # torch raises many kinds for a damaged file, in words about itself
        raise MtlError(
            f"{path}: is no readable checkpoint: truncated, or written by another program; "
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
        raise MtlError(f"{path}: holds another model than the recipe describes: {_in_short(error)}") from None
    clock: dict[str, Any] = state["clock"]
    return clock


def _in_short(error: Exception) -> str:
    """The first differences that torch lists under its heading."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "; ".join(line[:200] for line in (lines[1:3] or lines[:1])) or type(error).__name__
