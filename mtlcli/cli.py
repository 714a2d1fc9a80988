"""The command line: parse, call, render. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mtlcli import own_files
from mtlcli.console import Checkpoint, CheckpointName, Device, Json, OnError, RunPath, output
from mtlcli.errors import MtlError, Stopped, how_many

if TYPE_CHECKING:
    from mtlcli.published import Published

app = typer.Typer(
    help="Train one network on several tasks, decide how they share each update, compare what works.",
    epilog="With MTL_TRACEBACK=1 in the environment, an unexpected error shows its whole traceback.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # Rich would take three quarters of the time in which --help answers
    context_settings={"help_option_names": ["-h", "--help"]},
)


class SplitName(StrEnum):
    """Splits that `mtl eval` scores."""

    test = "test"
    val = "val"
    train = "train"


RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe in YAML.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Override a key, such as train.epochs=3. May be repeated."),
]


@app.command()
def train(
    recipe: RecipePath,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option("--out", help="Run directory; a new one under runs/ by default.")] = None,
    device: Device = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run, or begin it if there is none.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
    as_json: Json = False,
) -> None:
    """Train a recipe, score the test split, write a run directory."""
    with output(as_json, quiet) as (target, emit):
        from mtlcli import recipe as recipes
        from mtlcli import render

        loaded = recipes.load(recipe, overrides or [])
        from mtlcli.engine.train import train as run_training

        name, own_run = _name(recipe)
        with render.TrainView(target) as view:
            run, result = run_training(
                loaded,
                name,
                own_run if resume and out is None else out,
                device,
                resume,
                show=lambda event, run: view.show(event.as_json()),
            )
        if result:  # only the first of several ranks has one
            target.print(render.result(result, f"{result['method']} on {result['dataset']}, test split"))
            if not view.trained:
                target.print("the run was finished already; nothing was trained")
            target.print(f"run directory: {run.path}", soft_wrap=True)
            emit(result)


@app.command("eval")
def evaluate(
    run: RunPath,
    split: Annotated[SplitName | None, typer.Option("--split", help="The split to score; test by default.")] = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DATA", help="Score a new file instead, with the same columns.")
    ] = None,
    checkpoint: Checkpoint = CheckpointName.best,
    device: Device = "auto",
    on_error: OnError = None,
    as_json: Json = False,
) -> None:
    """Score a run's checkpoint on one split, or on a new file."""
    with output(as_json) as (target, emit):
        from mtlcli import render
        from mtlcli.runs import Run

        opened = Run.open(run)
        if data is not None and split is not None:
            raise MtlError("--split names a part of the run's own data, and --data another file; give one of them")
        if data is None and on_error is not None:
            raise MtlError("--on-error is about bad rows of a new file; name one with --data")
        from mtlcli.engine.inspect import evaluate_file, evaluate_run

        if data is not None:
            values = evaluate_file(opened, data, checkpoint.value, device, None if on_error is None else on_error.value)
            title = f"{values['method']} on {data} ({how_many(values['rows'], 'row')})"
        else:
            values = evaluate_run(opened, (split or SplitName.test).value, checkpoint.value, device)
            rows = how_many(values["rows"], "row")
            title = f"{values['method']} on {values['dataset']}, {values['split']} split ({rows})"
        target.print(render.result(values, title))
        emit(values)


app.command()(own_files.predict)
app.command()(own_files.init)


@app.command()
def compare(
    targets: Annotated[
        list[Path], typer.Argument(metavar="TARGET...", help="Recipes, or finished runs and folders of them.")
    ],
    methods: Annotated[
        str | None, typer.Option("--methods", metavar="A,B,C+D", help="Methods, as LOSS, +GRADIENT or LOSS+GRADIENT.")
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option("--seeds", metavar="0,1,2", help="Seeds that every method is trained with; 0,1,2 by default."),
    ] = None,
    tune: Annotated[
        int | None,
        typer.Option(
            "--tune", metavar="N", min=1, help="Trials that every method gets to find its values, chosen on val."
        ),
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Runs side by side.")] = 1,
    launcher: Annotated[
        str, typer.Option("--launcher", metavar="local|ray|slurm", help="Where runs are trained.")
    ] = "local",
    address: Annotated[
        str | None, typer.Option("--address", help="Of a running Ray cluster; without it, Ray starts here.")
    ] = None,
    launcher_set: Annotated[
        list[str] | None, typer.Option("--launcher-set", metavar="KEY=VALUE", help="A setting of the launcher.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option("--baseline", metavar="single_task|NAME|none", help="What improvement is measured on.")
    ] = None,
    single_task_store: Annotated[
        str | None,
        typer.Option(
            "--single-task-store",
            metavar="DIR|none",
            help="Where finished single-task baselines are kept for other comparisons; runs/single_task by default.",
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference", metavar="NAME", help="What all others are tested against; equal weights by default."
        ),
    ] = None,
    published: Annotated[
        str | None,
        typer.Option(
            "--published", metavar="NAME|FILE", help="A published table to set beside: its name, or a YAML file."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the runs and of the report.")] = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Train methods and seeds side by side, or compare finished runs."""
    with output(as_json) as (target, emit):
        from mtlcli import render, terminal
        from mtlcli.comparison import discovery
        from mtlcli.comparison.report import report

        theirs = _published(published)
        folders = [path for path in targets if path.is_dir()]
        failures: list[dict[str, Any]] = []
        tuning: dict[str, dict[str, Any]] | None = None
        if len(folders) == len(targets):
            given = {"--methods": methods, "--seeds": seeds, "--set": overrides or None, "--tune": tune}
            given["--single-task-store"] = single_task_store
            wrong = [flag for flag, value in given.items() if value is not None]
            if wrong:
                verb = "goes" if len(wrong) == 1 else "go"
                raise MtlError(f"{', '.join(wrong)} {verb} with a recipe; these targets are run directories")
            chosen = discovery.choose(targets)
        elif folders:
            other = next(path for path in targets if path not in folders)
            raise MtlError(
                f"{other}: {'is a file' if other.exists() else 'no such run'}; compare takes recipes, or run "
                "directories, not both"
            )
        else:
            from mtlcli.sweep import compare as sweep

            settings = [*([f"address={address}"] if address is not None else []), *(launcher_set or [])]
            request = sweep.Request(
                files=targets,
                overrides=overrides or [],
                methods=methods,
                seeds="0,1,2" if seeds is None else seeds,
                baseline=baseline,
                reference=reference,
                out=out,
                launcher=(launcher, settings, jobs),
                tune=tune,
                store=single_task_store,
            )
            name = _name(targets[0])[0] if len(targets) == 1 else targets[0].resolve().parent.name
            try:
                paths, failures, out, baseline, tuning = sweep.train(request, theirs, name, target)
            except sweep.Interrupted as stopped:
                raise typer.Exit(128 + stopped.signal) from None
            chosen = discovery.read(paths)
        for message in chosen.damaged:  # now, for without these runs there may be no table at all
            terminal.error(f"left out: {message}")
        values = report(chosen.runs, baseline, failures, reference, out, tuning)
        values["notes"] = [*chosen.notes, *values["notes"]]
        if theirs is not None:
            from mtlcli import published as tables
            from mtlcli.comparison.finished import protocols

            values["published"] = tables.compare(theirs, values, protocols(chosen.runs))
        if out is not None:
            from mtlcli.comparison import exports

            beside = exports.write(values, [run.path for run in chosen.runs], out)
        target.print(render.report(values, target.width))
        if out is not None:
            target.print(f"report: {out / 'report.json'}\nbeside it: {', '.join(beside)}", soft_wrap=True)
        emit(values)
    if failures or chosen.damaged:
        raise typer.Exit(1)


def _published(name: str | None) -> Published | None:
    """The published table that is asked for."""
    if name is None:
        return None
    from mtlcli import published

    return published.get(name)


@app.command("list")
def list_(
    kind: Annotated[
        str | None,
        typer.Argument(
            metavar="[datasets|encoders|trunks|losses|gradients|optimizers|schedules|loggers|launchers|metrics|runs]",
            help="Of one kind.",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME|DIR]", help="Show its page: formula, options, source; of runs, their folder."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List what there is; with a name, its page."""
    with output(as_json) as (target, emit):
        from mtlcli import pages, render
        from mtlcli.comparison import discovery

        values: dict[str, Any]
        if kind == discovery.KIND:
            values = discovery.listing(Path(name) if name is not None else discovery.RUNS)
            target.print(render.runs(values, target.width))
        else:
            from mtlcli import catalogue

            if kind is not None and name is not None:
                values = catalogue.page(kind, name)
                target.print(pages.page(values))
            else:
                values = catalogue.overview(kind)
                target.print(pages.listing(values))
        emit(values)


@app.command()
def check(recipe: RecipePath, overrides: Overrides = None, as_json: Json = False) -> None:
    """Validate a recipe and describe it; trains nothing."""
    with output(as_json) as (target, emit):
        from mtlcli import pages
        from mtlcli import recipe as recipes

        loaded = recipes.load(recipe, overrides or [])
        from mtlcli.engine.inspect import check as describe

        values = describe(loaded)
        target.print(pages.check(values, loaded.dump()))
        emit(values)


def main() -> None:
    """Entry point of `mtl`."""
    # Idle threads that spin between small kernels starve whatever else the machine runs, and then the run itself: seen,
    # 42 ms a step instead of 8. It must be set before torch is imported, and gives way to a person's own choice.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # an arrow that a terminal cannot show must not end a run
            stream.reconfigure(errors="replace")
    sys.exit(run())


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (by default the process's own) and return its exit code.

    User errors become one message on stderr and 2, or 1 where training failed. So does what nobody foresaw, such as a
    mistake in a person's own plugin, and 1; the whole traceback is shown on request.
    """
    try:
        typer.main.get_command(app).main(arguments, prog_name="mtl")
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else 1
    except MtlError as error:
        message, code = str(error), error.exit_code
    except Stopped as stopped:
        file = shlex.quote(str(stopped.run / "recipe.yaml"))
        message, code = f"{stopped}; go on with: mtl train {file} --resume", 128 + stopped.number
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            message, code = f"{error.filename}: {error.strerror}", 2
        else:
            from mtlcli import faults

            if faults.wanted():
                raise
            message, code = faults.describe(error), 1
    from mtlcli import terminal

    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    terminal.error(f"process {os.environ.get('RANK', '0')}: {message}" if several else message)
    return code


def _name(recipe: Path) -> tuple[str, Path | None]:
    """What a recipe's runs are called: like the file, or a run's own recipe.yaml like that run; and that run."""
    folder = recipe.parent
    if recipe.name == "recipe.yaml" and folder.joinpath("run.json").exists():
        return folder.resolve().name, folder
    return recipe.stem, None
