"""What can be said about a recipe or a finished run without training: `mtl check` and `mtl eval`."""

from __future__ import annotations

from typing import Any

import torch

from mtlcli.engine.evaluate import evaluate
from mtlcli.engine.fit import load_model
from mtlcli.engine.prepare import Prepared, choose_device, prepare, scale_warning, step_for
from mtlcli.errors import MtlError, did_you_mean
from mtlcli.recipe import Recipe
from mtlcli.runs import SCHEMA_VERSION, Run, read_recipe


def check(recipe: Recipe) -> dict[str, Any]:
    """Build everything that `mtl train` would, on the CPU, and describe it."""
    prepared = prepare(recipe, torch.device("cpu"))
    loss, gradient = prepared.weightings()
    model = prepared.model
    step_for(prepared, loss, gradient)  # for what it refuses
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
        "warnings": [*prepared.data.notes, *([warning] if warning else [])],
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


def _first_losses(prepared: Prepared) -> dict[str, float]:
    """Losses of the untrained model on the first rows of the training split."""
    batch = next(prepared.data.splits["train"].batches(prepared.recipe.data.batch_size))
    scores = evaluate(prepared.model, prepared.data.tasks, [batch], {task.name: () for task in prepared.data.tasks})
    return {task: score.loss for task, score in scores.items() if score.loss is not None}
