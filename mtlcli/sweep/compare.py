"""What `mtl compare` trains: recipes, methods and seeds from the command line -> finished runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mtlcli import recipe as recipes
from mtlcli import render, terminal
from mtlcli.comparison.report import SINGLE_TASK, choose_reference
from mtlcli.engine.train import Stop
from mtlcli.errors import MtlError, TrainingError
from mtlcli.recipe import Recipe
from mtlcli.runs import Run
from mtlcli.sweep import execute, plan, tuning

if TYPE_CHECKING:
    from mtlcli.published import Published

STORE = Path("runs/single_task")  # of finished single-task baselines


@dataclass(frozen=True)
class Request:
    """The command line's words."""

    files: Sequence[Path]
    overrides: Sequence[str]
    methods: str | None
    seeds: str
    baseline: str | None
    reference: str | None
    out: Path | None
    launcher: tuple[str, Sequence[str], int]  # name, settings such as address=auto, runs side by side
    tune: int | None  # trials of each method
    store: str | None  # folder of finished single-task baselines; `none` for none, None for the usual one


class Trained(NamedTuple):
    """What a report is made of."""

    paths: list[Path]
    failures: list[dict[str, Any]]
    folder: Path
    baseline: str | None
    tuning: dict[str, dict[str, Any]] | None  # as in report.json


def train(request: Request, theirs: Published | None, name: str, target: terminal.Terminal) -> Trained:
    """Train what is missing, and say how it goes.

    Args:
        theirs: a published table, whose protocol the recipes have to follow.
        name: of the folder, where none is named.

    Raises:
        MtlError: something does not exist or does not fit; then nothing is trained.
        TrainingError: no method has a finished run.
        Interrupted: a signal came.
    """
    if request.tune is not None:
        tuning.check_installed()
    loaded = [recipes.load(file, request.overrides) for file in request.files]
    launcher = execute.choose_launcher(*request.launcher)
    store = _store(request.store)
    base = plan.in_common(loaded, request.methods)
    chosen = plan.parse_methods(request.methods, base) if len(loaded) == 1 else []
    known = plan.look(base) if request.tune is not None else None
    tasks = known.tasks if known is not None else None
    contestants = plan.rivals(base, chosen, tasks) if len(loaded) == 1 else loaded
    joining = tuning.missing_baselines(contestants) if request.tune is not None else []
    contestants = [*contestants, *plan.rivals(base, joining, tasks)]
    _check_fit(request.reference, theirs, contestants)
    folder, planned, baseline = plan.lay_out(
        base, contestants, name, request.seeds, request.baseline, request.out, known
    )

    _check_data(planned)
    stop = Stop()
    failures: list[dict[str, Any]] = []
    found = None
    if request.tune is not None and tasks is not None:
        if joining:
            names = ", ".join(recipes.method_name(*pair) for pair in joining)
            target.print(f"joined by {names}: the honest baselines, tuned like all others")
        view = render.SweepView(target)

        def begin(left: int) -> None:
            view.total = left
            target.print(f"{left} trials to go in {folder / tuning.FOLDER}, {request.tune} of each method")

        with stop.listening(), view.running():
            found = tuning.search(
                planned, tasks, request.tune, folder, launcher, stop.requested, begin, view.show, store
            )
        if stop.signal is not None and found.left:
            terminal.error(f"stopped; {found.left} trials are not over. The same command goes on with them.")
            raise Interrupted(stop.signal)
        planned, failures = found.planned, found.failures

    target.print(f"{len(planned)} runs in {folder}", soft_wrap=True)
    view = render.SweepView(target)
    with stop.listening(), view.running():
        progress = execute.run_all(planned, launcher, folder, stop.requested, view.show, store)
    unfinished = [p for p in progress if p.status != "finished"]
    if stop.signal is not None and unfinished:
        terminal.error(f"stopped; {len(unfinished)} runs are not finished. The same command goes on with them.")
        raise Interrupted(stop.signal)
    failures += [{"method": p.planned.method, "seed": p.planned.seed, "error": p.error or p.status} for p in unfinished]
    done = [p.planned for p in progress if p.status == "finished"]
    if not any(p.method != SINGLE_TASK for p in done):
        reasons = [f"\n  {p.planned.label}, seed {p.planned.seed}: {p.error or p.status}" for p in unfinished]
        reasons += [f"\n  {f['method']}, seed {f['seed']}: {f['error']}" for f in (found.failures if found else ())]
        raise TrainingError(f"{folder}: no method has a finished run, so there is nothing to compare{''.join(reasons)}")
    return Trained([p.path for p in done], failures, folder, baseline, found.studies if found else None)


class Interrupted(Exception):  # noqa: N818 - like KeyboardInterrupt, it reports no mistake
    """A signal came, and everything that ran has saved its state."""

    def __init__(self, signal: int) -> None:
        super().__init__(f"stopped by signal {signal}")
        self.signal = signal


def _store(wanted: str | None) -> Path | None:
    if wanted == "none":
        return None
    folder = STORE if wanted is None else Path(wanted)
    if folder.exists() and not folder.is_dir():
        raise MtlError(f"--single-task-store {folder}: is a file; name a folder, or none")
    return folder


def _check_data(planned: Sequence[plan.Planned]) -> None:
    """Refuse before anything is trained runs in the folder that saw other data than there are now."""
    now = next((each.fingerprint for each in planned if each.fingerprint is not None), None)
    for each in planned if now is not None else ():
        try:
            run = Run.at(each.path)
            then = run.result()["fingerprint"] if run is not None and run.result_file.exists() else now
        except (MtlError, KeyError, TypeError):  # damaged, which is said where it is trained again
            continue
        if then != now:
            raise MtlError(
                f"{each.path}: is a finished run on other data than the recipe gives now ({then} -> {now}): rows, "
                "features, splits or label definitions have changed since, and the two cannot be compared. Name "
                "another --out, or remove the runs of before"
            )


def _check_fit(reference: str | None, theirs: Published | None, contestants: Sequence[Recipe]) -> None:
    """Refuse before anything is trained what the report would refuse: a reference or a protocol that does not fit."""
    if reference is not None:
        choose_reference(reference, [SINGLE_TASK, *(recipe.method for recipe in contestants)])
    if theirs is None:
        return
    from mtlcli import published

    metrics: Mapping[str, Any] = {
        task: {name: about.model_dump() for name, about in of.items()} for task, of in theirs.metrics.items()
    }
    empty = {"dataset": contestants[0].dataset.name, "metrics": metrics, "rows": []}
    published.compare(theirs, empty, [recipe.as_dict() for recipe in contestants])
