"""Predictions for the rows of a new file: `mtl predict`."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mtlcli.engine.evaluate import ROWS_AT_ONCE, predict
from mtlcli.engine.inspect import new_rows
from mtlcli.errors import MtlError, did_you_mean
from mtlcli.runs import SCHEMA_VERSION, Run, disk_errors, replace_file
from mtlcli.tasks import Task

if TYPE_CHECKING:
    import polars as pl

WRITERS: dict[str, Callable[[pl.DataFrame, io.BytesIO], Any]] = {
    ".parquet": lambda frame, to: frame.write_parquet(to),
    ".csv": lambda frame, to: frame.write_csv(to),
    ".arrow": lambda frame, to: frame.write_ipc(to),
    ".jsonl": lambda frame, to: frame.write_ndjson(to),
}


def predict_file(
    run: Run, path: Path, out: Path, checkpoint: str, device: str, on_error: str | None = None
) -> dict[str, Any]:
    """Write the predictions of all tasks for the rows of `path` to `out`, in their order, and describe them.

    Columns, by task: NAME.probability and NAME.class (binary), NAME.class and NAME.probability.CLASS (multiclass),
    NAME.prediction in the task's unit (regression); before them, the key that split the data, if one did, and the
    numbers of rows in the file as `row` (`row number`, where the key is called so), if some were left out.

    Raises MtlError where `out` has another extension, or is the input.
    """
    import polars as pl

    write = WRITERS.get(out.suffix.lower())
    if write is None:
        hint = did_you_mean(out.suffix.lower(), WRITERS)
        raise MtlError(f"--out {out}: should end in one of {', '.join(WRITERS)}{hint}")
    if out.is_dir():
        raise MtlError(f"--out {out}: is a folder; name a file")
    prepared, clock, rows = new_rows(run, path, checkpoint, device, labels=False, on_error=on_error)
    if any(out.resolve() == file.resolve() for file in rows.files):
        raise MtlError(f"--out {out}: is the file that is read; name another one")
    tasks = prepared.data.tasks
    found = predict(prepared.model, tasks, rows.split.batches(ROWS_AT_ONCE), prepared.autocast)
    columns: dict[str, Any] = dict(rows.carried)
    if rows.left_out:
        columns["row" if "row" not in columns else "row number"] = rows.rows
    by_task = {task.name: readable(task, found[task.name][0].cpu(), rows.classes.get(task.name)) for task in tasks}
    for values in by_task.values():
        columns |= values
    with disk_errors(out, MtlError):
        out.parent.mkdir(parents=True, exist_ok=True)
    memory = io.BytesIO()
    write(pl.DataFrame(columns), memory)
    replace_file(out, memory.getvalue(), MtlError)
    return {
        "schema_version": SCHEMA_VERSION,
        "run": str(run.path),
        "method": prepared.recipe.method,
        "checkpoint": checkpoint,
        "step": clock["step"],
        "data": str(path),
        "out": str(out),
        "rows": len(rows.rows),
        "left_out": rows.left_out,
        "columns": list(columns),
        "tasks": {
            task.name: {"kind": task.kind, "unit": task.unit, "columns": list(by_task[task.name])} for task in tasks
        },
        "notes": list(rows.notes),
    }


def readable(task: Task, prediction: Tensor, classes: Sequence[Any] | None = None) -> dict[str, Any]:
    """Columns of a task from its raw predictions: probabilities and classes, or values in its unit.

    `classes`: those of the task as its training files hold them, so that predictions can be compared with labels; as
    text by default.
    """
    classes = task.classes if classes is None else classes
    prediction = prediction.double()
    if task.kind == "regression":
        return {f"{task.name}.prediction": task.in_unit(prediction).numpy()}
    if task.kind == "binary":
        positive = (prediction > 0).long().tolist()
        return {
            f"{task.name}.probability": prediction.sigmoid().numpy(),
            f"{task.name}.class": [classes[c] for c in positive],
        }
    probabilities = prediction.softmax(1).numpy()
    chosen = prediction.argmax(1).tolist()
    return {
        f"{task.name}.class": [classes[c] for c in chosen],
        **{f"{task.name}.probability.{name}": probabilities[:, c] for c, name in enumerate(task.classes)},
    }
