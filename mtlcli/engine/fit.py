"""Epochs, evaluation, checkpoints: a generator of events that can be stopped and resumed anywhere."""

from __future__ import annotations

import io
import resource
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mtlcli import fitting
from mtlcli.data.base import Batch, Loader
from mtlcli.engine.checkpoints import in_short, load_model, read_checkpoint
from mtlcli.engine.evaluate import TaskScore, evaluate
from mtlcli.engine.events import Diagnostics, EpochDone, Event, Finished, Started, StepDone, Warned
from mtlcli.engine.prepare import NORMS, Prepared, check_batches, scale_warning, step_for
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
        check_batches(prepared, ranks.world)
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
        # Over the epoch so far: losses, in how many steps there were any, and weights.
        self._sums = torch.zeros(3, len(self.tasks), dtype=torch.float64)
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
            for note in (*self.prepared.data.notes, *fitting.idle(self.recipe.loss, train.epochs), *self._apart()):
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
        done = self._end_epoch(epoch, before, begun)
        if done.score is None and epoch == 0:
            yield Warned(self.selection.silent(done.val))
        yield done
        if self.ranks.any(self.stop()):
            raise Interrupted

    def _train_step(self, batch: Batch, epoch: int) -> None:
        lr = self.schedule.apply(self.optimizer, self.step)
        view = ModelStep(
            model=self.model,
            tasks=self.tasks,
            batch=self._augmented(batch),
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
        try:
            report = self.step_function.backward(view, view.cut)
        except TrainingError as error:
            # Steps whose losses nobody has looked at yet may say more than the gradients do.
            last = Report(view.losses.detach(), torch.ones(len(self.tasks)), 0)
            self._check(self._values([*self._pending, last]), self.step - len(self._pending))
            raise TrainingError(f"step {self.step} (epoch {epoch}): {error}. {self._saved}") from None
        if self.recipe.train.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.recipe.train.clip_norm)
        self.optimizer.step()
        self.loss_weighting.after_step(view)
        self.passes += report.passes
        self.step += 1
        self._pending.append(report)

    def _flush(self, epoch: int, mark: float, record: bool) -> Iterator[Event]:
        """Bring the losses of the last steps to the CPU, in one transfer; check and record them."""
        values = self._values(self._pending)
        first = self.step - len(self._pending)
        self._pending.clear()
        self._check(values, first)
        there = (values[:, 0] != 0) | torch.tensor([task.name in self.complete for task in self.tasks])
        self._sums += torch.stack((values[:, 0].sum(0), there.sum(0), values[:, 1].sum(0)))
        ms = 1e3 * (time.perf_counter() - mark) / len(values)
        if first > 0:  # the first step pays for allocations and kernels
            self.step_ms.append(ms)
        losses = self._means(values[-1, 0], there[-1])
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
            yield StepDone(self.step - 1, epoch, losses, self._by_task(values[-1, 1]), lr, ms)

    def _values(self, reports: Sequence[Report]) -> Tensor:
        """Losses and weights (steps, 2, K) on the CPU."""
        return torch.stack([torch.stack((r.losses, r.weights.to(r.losses))) for r in reports]).double().cpu()

    def _check(self, values: Tensor, first: int) -> None:
        """Raise TrainingError where a loss or weight (steps, 2, K) of the steps from `first` on is not finite."""
        bad = (~values.isfinite()).nonzero()
        if not len(bad):
            return
        row, what, k = (int(i) for i in bad[0])
        task, found, step = self.tasks[k].name, float(values[row, what, k]), first + row
        when = f"became {found} at step {step} (epoch {step // len(self.loader)})"
        if what:
            raise TrainingError(f"task '{task}': its weight under '{self.recipe.method}' {when}. {self._saved}")
        raise TrainingError(
            f"task '{task}': its loss {when}. {self._saved}. What helps: a smaller optimizer.lr, train.clip_norm, or "
            f"a look at the labels of '{task}'"
        )

    @property
    def _saved(self) -> str:
        saved = f"{self.run.last} (step {self._saved_step})" if self._saved_step is not None else "none"
        return f"The last good checkpoint is {saved}"

    def _end_epoch(self, epoch: int, before: float, begun: float) -> EpochDone:
        prepared = self.prepared
        self._share_statistics()
        val = evaluate(self.model, self.tasks, prepared.data.splits["val"], prepared.metrics, prepared.autocast)
        own = self.selection.score(val, epoch)
        score = self.ranks.agreed(lambda: own)  # the schedule hears it, and must not run apart by a rounding
        self.schedule.end_epoch(score)
        known = self.best["score"]
        best = known is None or (score is not None and score > known)  # the newest, while there is nothing to choose by
        if best:
            self.best = {"epoch": epoch, "score": score}
        losses = self._means(self._sums[0], self._sums[1])
        weights = self._by_task(self._sums[2] / len(self.loader))
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
            "selected": {
                "by": "last" if recipe.train.select_by == "last" or self.best["score"] is None else "val",
                "epoch": self.best["epoch"],
            },
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

    def _means(self, totals: Tensor, steps: Tensor) -> dict[str, float | None]:
        """Losses (K,) over the steps (K,) that had any label of the task; None where none had."""
        values = zip(self.tasks, totals.tolist(), steps.tolist(), strict=True)
        return {task.name: total / count if count else None for task, total, count in values}

    def _extra_batch(self, number: int) -> Batch:
        return self._augmented(self.extra[number].endless(self.step))

    def _augmented(self, batch: Batch) -> Batch:
        augment = self.prepared.data.augment
        return batch if augment is None else batch.map_inputs(augment)

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
            self._sums.copy_(state["sums"])
            cost = state["cost"]
            torch.set_rng_state(state["rng"]["cpu"])
            if self.prepared.device.type == "cuda" and state["rng"]["cuda"] is not None:
                torch.cuda.set_rng_state(state["rng"]["cuda"], self.prepared.device)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise MtlError(f"{self.run.last}: does not fit this recipe: {in_short(error)}") from None
        self.seconds, self.passes = cost["seconds"], cost["passes"]
        self.step_ms, self.peak_mib = list(cost["step_ms"]), cost["peak_mib"]
        self._resumed = True

    def _apart(self) -> Iterator[str]:
        """What several ranks do otherwise than one."""
        if self.ranks.world > 1 and any(isinstance(module, NORMS) for module in self.model.modules()):
            yield (
                f"batch normalisation takes its means over the rows of each of the {self.ranks.world} processes alone, "
                "so that together they train a little differently from a single one; another norm does not"
            )

    def _share_statistics(self) -> None:
        """Batch normalisation counts the rows of its own rank; from here on all ranks have the mean of these counts."""
        normalising = [module for module in self.model.modules() if isinstance(module, NORMS)]
        self.ranks.mean_([b for module in normalising for b in module.buffers() if b.is_floating_point()])

    def _save(self, best: bool = False) -> None:
        """Write last.pt, and best.pt before it, so that last.pt never names a best epoch that is not on disk."""
        self._share_statistics()
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
