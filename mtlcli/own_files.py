"""The commands for files of one's own: `mtl init` and `mtl predict`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from mtlcli.console import Checkpoint, CheckpointName, Device, Json, OnError, RunPath, output
from mtlcli.errors import MtlError


def predict(
    run: RunPath,
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A file with the columns of training, or pictures.")],
    out: Annotated[Path, typer.Option("--out", help="The file to write: .parquet, .csv, .arrow or .jsonl.")],
    checkpoint: Checkpoint = CheckpointName.best,
    device: Device = "auto",
    on_error: OnError = None,
    as_json: Json = False,
) -> None:
    """Predict every task for the rows of a new file."""
    with output(as_json) as (target, emit):
        from mtlcli import pages
        from mtlcli.runs import Run

        opened = Run.open(run)
        from mtlcli.engine.predict import predict_file

        values = predict_file(opened, data, out, checkpoint.value, device, None if on_error is None else on_error.value)
        target.print(pages.predicted(values))
        emit(values)


def init(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe to write.")],
    source: Annotated[
        Path | None, typer.Option("--from", metavar="DATA", help="A table of your own: CSV, Parquet or Arrow.")
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", metavar="NAME:KIND", help="A column to predict: binary, multiclass or regression."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over the recipe that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Write a commented recipe for a table of your own; without --from, for the packaged data."""
    with output(as_json) as (target, emit):
        from mtlcli import pages, starter
        from mtlcli.runs import SCHEMA_VERSION

        if recipe.exists() and not force:
            raise MtlError(f"{recipe}: is there already; --force writes over it")
        table = None
        if source is None:
            if task:
                raise MtlError("--task names a column of the table given with --from; without one there is none")
            text, values = starter.packaged(), {}
        else:
            table = starter.look(source)
            tasks = table.tasks(task or [])
            if not tasks:
                if not sys.stdin.isatty():
                    raise MtlError(
                        "name what to predict with --task NAME:KIND (binary, multiclass or regression), such as "
                        f"--task {table.example()}; the columns are: {', '.join(table.uses)}"
                    )
                target.print(pages.columns([use._asdict() for use in table.uses.values()]))
                while not tasks or typer.confirm("Another one?", default=False):
                    said = typer.prompt("Predict which column, and how (NAME:KIND)")
                    try:
                        tasks |= table.tasks([said])
                    except MtlError as error:
                        target.print(str(error))
            text, values = starter.for_table(table, tasks, recipe), {"data": str(source), "tasks": tasks}
        starter.write(recipe, text)
        problem = starter.problem(table, recipe) if table is not None else None
        then = f"it cannot be trained yet: {problem}\nafter that" if problem is not None else "next"
        target.print(f"written: {recipe}\n{then}: mtl check {shlex.quote(str(recipe))}", soft_wrap=True)
        emit({"schema_version": SCHEMA_VERSION, "recipe": str(recipe), **values, "problem": problem})
