"""A fair search: every method, and every single task, gets the same number of trials before it is compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from mtlcli import extras, registry
from mtlcli.errors import MtlError
from mtlcli.recipe import DEFAULTS, Recipe, differences
from mtlcli.runs import Run, disk_errors, read_recipe, set_aside, to_json
from mtlcli.sweep.execute import Progress, run_all
from mtlcli.sweep.launchers.base import Launcher
from mtlcli.sweep.plan import Planned
from mtlcli.sweep.store import place
from mtlcli.sweep.study import Study, journal, space, with_values

FOLDER = "tune"  # of all trials, in the comparison's


@dataclass(frozen=True)
class Tuned:
    """What the search found."""

    planned: list[Planned]  # the runs of the comparison, each with its method's best values
    failures: list[dict[str, Any]]  # of methods without a trial that worked, as rows of the report
    studies: dict[str, dict[str, Any]]  # by method, or single task, as in report.json
    left: int  # trials that are not over, because the search was stopped; then nothing else is known yet


def check_installed() -> None:
    """Raise MtlError where Optuna is missing."""
    if lacking := extras.missing("optuna", "tune"):
        raise MtlError(f"--tune: {lacking}")


def missing_baselines(contestants: Sequence[Recipe]) -> list[tuple[str, str]]:
    """The honest baselines that are not among `contestants`, as names of loss and gradient weighting."""
    plain = DEFAULTS["weighting.gradient"]
    there = {(recipe.loss.name, recipe.gradient.name) for recipe in contestants}
    losses = registry.loss_weightings
    return [(n, plain) for n in losses.names() if losses.get(n).honest_baseline and (n, plain) not in there]


def search(
    planned: Sequence[Planned],
    tasks: Sequence[str],
    trials: int,
    folder: Path,
    launcher: Launcher,
    stopped: Callable[[], bool],
    begin: Callable[[int], None],
    show: Callable[[Sequence[Progress]], None],
    store: Path | None,
) -> Tuned:
    """Go on with the search until every method has had its trials, then plan the comparison with what it found.

    A method's trials follow each other, since each depends on those before; methods go on side by side.

    Args:
        planned: the runs of the comparison with the recipes' own values. The trials have the first one's seed.
        tasks: the tasks' names.
        trials: of each method.
        folder: the comparison's.
        begin: told how many trials are left.
        launcher, stopped, show, store: as for `run_all`.

    Raises:
        MtlError: the folder was tuned with something else, or another process is tuning there.
    """
    place_of = folder / FOLDER
    with disk_errors(place_of, MtlError):
        place_of.mkdir(parents=True, exist_ok=True)
        set_aside(place_of)
    with journal(place_of) as storage:
        studies = {
            name: Study(storage, name, run, space(run.recipe, tasks), trials, place_of)
            for run in planned
            if run.seed == planned[0].seed
            for name in [_name(run, folder)]
        }

        def after(ended: Progress) -> Planned | None:
            study = studies[ended.planned.path.parent.relative_to(place_of).as_posix()]
            ended.note = "; ".join(part for part in (study.tell(ended), ended.note) if part)
            return study.next()

        following = [trial for study in studies.values() if (trial := study.next()) is not None]
        begin(sum(study.left() for study in studies.values()))
        run_all(following, launcher, folder, stopped, show, store, after)
        left = sum(study.left() for study in studies.values())
        return Tuned([], [], {}, left) if stopped() and left else _outcome(planned, studies, folder)


def _outcome(planned: Sequence[Planned], studies: Mapping[str, Study], folder: Path) -> Tuned:
    found, failures = [], []
    for run in planned:
        study, first = studies[_name(run, folder)], run.seed == planned[0].seed
        best = study.best() if study.lost is None else None
        if best is not None:
            found.append(_tuned(run, best[1]))
            if first:
                _reuse(study.place(best[0]), found[-1])
        elif first:
            why = f"all {study.trials} trials failed; the first: {next(iter(study.failures()), 'not over')}"
            error = f"{study.lost}; the same command goes on with it" if study.lost is not None else why
            failures.append({"method": run.method, "seed": run.seed, "error": error})
    once = Counter(study.planned.label for study in studies.values())
    named = {
        study.planned.label if once[study.planned.label] == 1 else name: study.as_json()
        for name, study in studies.items()
    }
    return Tuned(found, failures, named, 0)


def _name(run: Planned, folder: Path) -> str:
    """A study's name: the folder of the runs that it is for."""
    return run.path.parent.relative_to(folder).as_posix()


def _tuned(run: Planned, values: Mapping[str, Any]) -> Planned:
    """The run with `values`, in a folder of its own where they are not the recipe's."""
    recipe = with_values(run.recipe, values)
    if not differences(run.recipe, recipe):
        return run
    digest = sha256(to_json(dict(sorted(values.items()))).encode()).hexdigest()[:6]
    above = run.path.parent
    return replace(run, recipe=recipe, path=above.with_name(f"{above.name}-tuned-{digest}") / run.path.name)


def _reuse(trial: Path, run: Planned) -> None:
    """Let the best trial's run be the comparison's too: it is the same run."""
    done = Run(trial)
    with suppress(MtlError, OSError):  # then it is trained again, with the same result
        if done.finished() and not differences(read_recipe(done), run.recipe):
            place(trial, run.path, run.recipe)
