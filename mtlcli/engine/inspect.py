"""What can be said about a recipe or a finished run without training: `mtl check` and `mtl eval`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mtlcli import fitting
from mtlcli.data.base import NewRows
from mtlcli.engine.checkpoints import load_model
from mtlcli.engine.evaluate import evaluate
from mtlcli.engine.prepare import Prepared, check_batches, choose_device, dataset, prepare, scale_warning, step_for
from mtlcli.errors import MtlError, did_you_mean
from mtlcli.recipe import Recipe
from mtlcli.runs import SCHEMA_VERSION, Run, read_recipe


def check(recipe: Recipe) -> dict[str, Any]:
    """Build everything that `mtl train` would, on the CPU, and describe it."""
    prepared = prepare(recipe, torch.device("cpu"))
    loss, gradient = prepared.weightings()
    model = prepared.model
    step_for(prepared, loss, gradient)  # for what it refuses
    check_batches(prepared)
    splits = prepared.data.splits
    warning = scale_warning(_first_losses(prepared))
    return {
        "schema_version": SCHEMA_VERSION,
        "recipe": recipe.as_dict(),
        "method": recipe.method,
        "fingerprint": prepared.data.fingerprint,
        "rows": {name: len(split) for name, split in splits.items()},
        "steps_per_epoch": len(splits["train"].loader(recipe.data.batch_size, recipe.train.seed)),
        "tasks": {
            task.name: {
                "kind": task.kind,
                "labelled": {name: split.labelled(task) for name, split in splits.items()},
                "metrics": list(prepared.metrics[task.name]),
            }
            for task in prepared.data.tasks
        },
        "parameters": {
            "shared": sum(p.numel() for p in model.shared_parameters()),
            **{task: sum(p.numel() for p in own) for task, own in model.task_parameters().items()},
            "weighting": sum(p.numel() for p in loss.learnable()),
        },
        "columns": [use._asdict() for use in prepared.data.columns],
        "warnings": [
            *prepared.data.notes,
            *fitting.idle(recipe.loss, recipe.train.epochs),
            *([warning] if warning else []),
        ],
    }


def evaluate_run(run: Run, split: str, checkpoint: str, device: str) -> dict[str, Any]:
    """Score one split with one of the run's checkpoints."""
    recipe = read_recipe(run)
    prepared = prepare(recipe, choose_device(device))
    trained_on = run.result()["fingerprint"] if run.result_file.exists() else prepared.data.fingerprint
    if trained_on != prepared.data.fingerprint:
        raise MtlError(
            f"{run.path}: was trained on other data than its recipe gives now: {trained_on} against "
            f"{prepared.data.fingerprint}; has the dataset changed since?"
        )
    clock = load_model(prepared, run.path / f"{checkpoint}.pt")
    splits = prepared.data.splits
    if split not in splits:
        raise MtlError(
            f"{run.path}: the data have no split '{split}'{did_you_mean(split, splits)}; has: {', '.join(splits)}"
        )
    scores = evaluate(prepared.model, prepared.data.tasks, splits[split], prepared.metrics, prepared.autocast)
    return {
        "schema_version": SCHEMA_VERSION,
        "run": str(run.path),
        "method": recipe.method,
        "seed": recipe.train.seed,
        "dataset": recipe.dataset.name,
        "fingerprint": prepared.data.fingerprint,
        "split": split,
        "rows": len(splits[split]),
        "checkpoint": checkpoint,
        "step": clock["step"],
        "tasks": {task: score.as_json() for task, score in scores.items()},
    }


def evaluate_file(run: Run, path: Path, checkpoint: str, device: str, on_error: str | None = None) -> dict[str, Any]:
    """Score a new file with one of the run's checkpoints. The data that the run was trained on are not read."""
    prepared, clock, rows = new_rows(run, path, checkpoint, device, labels=True, on_error=on_error)
    if not rows.labels:
        raise MtlError(f"{path}: has no column with labels, so there is nothing to score; mtl predict needs none")
    tasks = prepared.data.tasks
    lacking = [task.name for task in tasks if task.name not in rows.labels]
    notes = [*rows.notes, *(f"task '{name}': the file has no column with its labels" for name in lacking)]
    return {
        "schema_version": SCHEMA_VERSION,
        "run": str(run.path),
        "method": prepared.recipe.method,
        "seed": prepared.recipe.train.seed,
        "dataset": prepared.recipe.dataset.name,
        "fingerprint": prepared.data.fingerprint,
        "data": str(path),
        "rows": len(rows.split),
        "left_out": rows.left_out,
        "checkpoint": checkpoint,
        "step": clock["step"],
        "tasks": {
            task: score.as_json()
            for task, score in evaluate(prepared.model, tasks, rows.split, prepared.metrics, prepared.autocast).items()
        },
        "notes": notes,
    }


def new_rows(
    run: Run, path: Path, checkpoint: str, device: str, labels: bool, on_error: str | None = None
) -> tuple[Prepared, dict[str, Any], NewRows]:
    """The model of a run, built from what it keeps, the checkpoint's clock, and the rows of a new file on its device.

    `on_error` None does as the recipe says.

    Raises MtlError where the run keeps nothing to read new files with, or the file does not fit.
    """
    recipe = read_recipe(run)
    reader = dataset(recipe)
    fitted = run.fitted() if reader.reads_new_files() else {}
    rows = reader.read(path, fitted, labels, on_error)
    prepared = prepare(recipe, choose_device(device), fitted)
    clock = load_model(prepared, run.path / f"{checkpoint}.pt")
    return prepared, clock, replace(rows, split=rows.split.to(prepared.device))


def _first_losses(prepared: Prepared) -> dict[str, float]:
    """Losses of the untrained model on the first rows of the training split."""
    recipe = prepared.recipe
    batch = next(iter(prepared.data.splits["train"].loader(recipe.data.batch_size, recipe.train.seed).epoch(0)))
    scores = evaluate(prepared.model, prepared.data.tasks, [batch], {task.name: () for task in prepared.data.tasks})
    return {task: score.loss for task, score in scores.items() if score.loss is not None}
