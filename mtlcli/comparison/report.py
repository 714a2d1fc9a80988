"""Finished runs -> one report: mean and spread over seeds, tests, improvement over the baseline, ranks, cost."""

from __future__ import annotations

import os
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtlcli.comparison import remarks, significance
from mtlcli.comparison.finished import Finished, Outcome, differing
from mtlcli.comparison.improvement import About, Metric, Values, baseline_means, delta_m, delta_p, mean_ranks
from mtlcli.errors import MtlError, did_you_mean
from mtlcli.runs import SCHEMA_VERSION
from mtlcli.yamlfile import show

SINGLE_TASK = "single_task"
_COSTS = ("seconds", "step_ms_median", "peak_mib", "backward_passes_per_step")


def report(
    runs: Sequence[Finished],
    baseline: str | None,
    failures: Sequence[Mapping[str, Any]] = (),
    reference: str | None = None,
    folder: Path | None = None,
    tuning: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """The content of report.json.

    Args:
        runs: finished runs of the same data, tasks and metrics. Runs of one task where others have several together
            make up the single-task baseline.
        baseline: `single_task`, the name of a method, `none`, or None for single_task where there is one.
        failures: `{"method", "seed", "error"}` of runs that did not finish; they become rows that say why.
        reference: the method that all others are tested against; None for equal weights, or else the first method.
        folder: where the report is written; runs inside of it are named relative to it.
        tuning: where the runs' values come from a search, what it found, by method.

    Raises:
        MtlError: the runs cannot be compared, or the baseline or the reference is not among them.
    """
    tasks = max((run.tasks for run in runs), key=len)
    joint = [run for run in runs if len(run.tasks) == len(tasks)]
    single = [run for run in runs if len(run.tasks) < len(tasks)]
    _same_data(runs)
    _same_tasks(joint[0], runs)
    about = joint[0].metrics
    single_task, notes = _single_task(single, tasks)
    outcomes = ({SINGLE_TASK: single_task} if single_task else {}) | _label(joint)
    base_name = _baseline(baseline, outcomes, failures, notes)
    tested = _reference(reference, outcomes, failures, notes)
    base, left_out = baseline_means([o.values for o in outcomes[base_name]], about) if base_name else ({}, [])
    notes += left_out
    ranks = mean_ranks({m: [o.values for o in found] for m, found in outcomes.items() if m != SINGLE_TASK}, about)
    rows: list[dict[str, Any]] = [
        {
            "method": method,
            "seeds": sorted(o.seed for o in found),
            "tasks": _by_metric(found, about),
            "delta_m": _delta(delta_m, found, base, about) if base_name else None,
            "delta_p": _delta(delta_p, found, base, about) if base_name else None,
            "mean_rank": ranks.get(method),
            "cost": _cost(found),
            "cost_by_seed": {
                str(o.seed): {**_costs(o.cost), "fallbacks": sum(o.counts.values())} for o in _by_seed(found)
            },
            "counts": dict(sum((Counter(o.counts) for o in found), Counter())),
            "runs": [_place(path, folder) for o in _by_seed(found) for path in o.runs],
        }
        for method, found in outcomes.items()
    ]
    _test(rows, tested, about)
    notes += remarks.caveats(joint, outcomes, tuning) + remarks.unchosen(runs)
    notes += remarks.undefined(outcomes, about, base) + remarks.verdicts(rows, tested)
    _add_failures(rows, failures)
    return {
        "schema_version": SCHEMA_VERSION,
        "dataset": runs[0].result["dataset"],
        "fingerprint": runs[0].result["fingerprint"],
        "baseline": base_name,
        "reference": tested,
        "test": dict(significance.TEST),
        "metrics": {
            task: {
                name: {key: meta[key] for key in ("unit", "higher_is_better")}
                for (owner, name), meta in about.items()
                if owner == task
            }
            for task in tasks
        },
        "rows": rows,
        **({"tuning": dict(tuning)} if tuning else {}),
        "notes": notes,
    }


def choose_reference(wanted: str | None, methods: Sequence[str]) -> str | None:
    """The row that all others are tested against: `wanted`, else equal weights, else the first method that shares.

    None where there is nothing to test. Raises MtlError where `wanted` is not among `methods`.
    """
    if wanted is None and len(methods) < 2:
        return None
    from mtlcli.recipe import DEFAULTS

    if wanted is None:
        usual = [DEFAULTS["weighting.loss"], *(method for method in methods if method != SINGLE_TASK)]
        return next(name for name in usual if name in methods)
    name = f"{DEFAULTS['weighting.loss']}{wanted}" if wanted.startswith("+") else wanted
    if name not in methods:
        raise MtlError(
            f"--reference {wanted}: is not in the table{did_you_mean(wanted, methods)}; there are: {', '.join(methods)}"
        )
    return name


# -- checks ------------------------------------------------------------------------------------------------------------


def _same_data(runs: Sequence[Finished]) -> None:
    first = runs[0]
    for run in runs[1:]:
        if run.result["fingerprint"] != first.result["fingerprint"]:
            raise MtlError(
                f"these runs saw different data and cannot be compared:\n"
                f"  {first.path}: {first.result['dataset']}, {first.result['fingerprint']}\n"
                f"  {run.path}: {run.result['dataset']}, {run.result['fingerprint']}\n"
                f"Rows, features, splits or label definitions differ; compare them with `mtl check`. Where the data "
                "have changed since, train into another folder (--out), or remove the older runs"
            )


def _same_tasks(first: Finished, runs: Sequence[Finished]) -> None:
    """Each run has the tasks of `first`, or one of them, and the same metrics for them."""
    for run in runs:
        if set(run.tasks) != set(first.tasks) and (len(run.tasks) > 1 or run.tasks[0] not in first.tasks):
            raise MtlError(
                f"these runs have different tasks and cannot be compared:\n"
                f"  {first.path}: {', '.join(first.tasks)}\n  {run.path}: {', '.join(run.tasks)}"
            )
        for task in run.tasks:
            theirs, ours = ({name for owner, name in r.metrics if owner == task} for r in (first, run))
            if ours != theirs:
                raise MtlError(
                    f"these runs have different metrics for '{task}' and cannot be compared:\n"
                    f"  {first.path}: {', '.join(sorted(theirs))}\n  {run.path}: {', '.join(sorted(ours))}\n"
                    f"Train them with the same `metrics: {{{task}: [...]}}`"
                )


def _once_per_seed(runs: Sequence[Finished], what: str) -> None:
    seen: dict[int, Path] = {}
    for run in runs:
        seed = run.result["seed"]
        if seed in seen:
            raise MtlError(
                f"{what} with seed {seed} is given twice, and would count twice; leave one out:\n"
                f"  {seen[seed]}\n  {run.path}"
            )
        seen[seed] = run.path


# -- rows --------------------------------------------------------------------------------------------------------------


def _label(runs: Sequence[Finished]) -> dict[str, list[Outcome]]:
    """Outcomes by method. Runs of one method that differ in more than the seed are told apart by what differs: by what
    they do not share with most of them."""
    variants: dict[str, dict[str, list[Finished]]] = {}
    for run in runs:
        variants.setdefault(run.result["method"], {}).setdefault(run.identity(), []).append(run)
    outcomes: dict[str, list[Outcome]] = {}
    for method, groups in variants.items():
        every = [{key: value for run in group for key, value in run.settings.items()} for group in groups.values()]
        keys = differing(every)
        usual = {key: _most([settings.get(key) for settings in every]) for key in keys}
        for group, settings in zip(groups.values(), every, strict=True):
            unlike = [key for key in keys if settings.get(key) != usual[key]]
            shown = [key for key in unlike if key in settings] or unlike
            values = [f"{key.removeprefix('weighting.')}={show(settings.get(key))}" for key in shown]
            label = f"{method} [{', '.join(values)}]" if values else method
            _once_per_seed(group, f"'{label}'")
            outcomes[label] = [
                Outcome(r.result["seed"], r.values, r.result["cost"], r.result.get("counts") or {}, (r.path,))
                for r in group
            ]
    return outcomes


def _most(values: Sequence[Any]) -> Any:
    """The value that more than half of them are; where there is none, something that no value equals."""
    return next((value for value in values if 2 * values.count(value) > len(values)), object())


def _single_task(runs: Sequence[Finished], tasks: tuple[str, ...]) -> tuple[list[Outcome], list[str]]:
    """One outcome per seed from the K single-task runs of that seed; their costs add up, memory does not."""
    by_seed: dict[int, dict[str, Finished]] = {}
    for task in tasks:
        _once_per_seed([run for run in runs if run.tasks == (task,)], f"the single task '{task}'")
    for run in runs:
        by_seed.setdefault(run.result["seed"], {})[run.tasks[0]] = run
    outcomes, notes = [], []
    for seed, found in sorted(by_seed.items()):
        missing = [task for task in tasks if task not in found]
        if missing:
            notes.append(f"the single-task baseline of seed {seed} lacks {', '.join(missing)} and is left out")
            continue
        values: dict[Metric, float | None] = {}
        counts: Counter[str] = Counter()
        for task in tasks:
            values |= found[task].values
            counts.update(found[task].result.get("counts") or {})
        cost: dict[str, float | None] = {}
        for key in _COSTS:
            known = [value for run in found.values() if (value := run.result["cost"].get(key)) is not None]
            combine = max if key == "peak_mib" else sum
            cost[key] = combine(known) if len(known) == len(found) else None
        outcomes.append(Outcome(seed, values, cost, counts, tuple(found[task].path for task in tasks)))
    return outcomes, notes


def _add_failures(rows: list[dict[str, Any]], failures: Sequence[Mapping[str, Any]]) -> None:
    """Runs that did not finish join the row of their method, or make one of their own."""
    for failure in failures:
        row = next((row for row in rows if row["method"] == failure["method"]), None)
        if row is None:
            row = {"method": failure["method"], "seeds": [], "tasks": {}, "delta_m": None, "delta_p": None}
            row |= {"mean_rank": None, "cost": {}, "cost_by_seed": {}, "counts": {}, "runs": []}
            rows.append(row)
        row.setdefault("failed", []).append({"seed": failure["seed"], "error": failure["error"]})


def _baseline(
    wanted: str | None, outcomes: Mapping[str, Any], failures: Sequence[Mapping[str, Any]], notes: list[str]
) -> str | None:
    if wanted == "none":
        return None
    name = wanted or SINGLE_TASK
    if name in outcomes:
        return name
    if any(failure["method"] == name for failure in failures):
        notes.append(f"the baseline {name} did not finish, so delta_m and delta_p are not known")
        return None
    if wanted is None:
        notes.append("no single-task runs are among these, so delta_m and delta_p are not known")
        return None
    raise MtlError(
        f"--baseline {wanted}: no finished run of it{did_you_mean(wanted, outcomes)}; there are: {', '.join(outcomes)}"
    )


def _reference(
    wanted: str | None, outcomes: Mapping[str, Any], failures: Sequence[Mapping[str, Any]], notes: list[str]
) -> str | None:
    failed = [failure["method"] for failure in failures if failure["method"] not in outcomes]
    name = choose_reference(wanted, [*outcomes, *failed] if wanted else [*outcomes])
    if name in outcomes or name is None:
        return name
    notes.append(f"the reference {name} did not finish, so no method is tested against it")
    return None


# -- numbers -----------------------------------------------------------------------------------------------------------


def _by_metric(outcomes: Sequence[Outcome], about: Iterable[Metric]) -> dict[str, dict[str, Any]]:
    tasks: dict[str, dict[str, Any]] = {}
    for task, name in about:
        values = {o.seed: o.values.get((task, name)) for o in outcomes}
        tasks.setdefault(task, {})[name] = significance.summary(values)
    return tasks


def _delta(
    delta: Callable[[Values, Mapping[Metric, float], About], float | None],
    outcomes: Sequence[Outcome],
    base: Mapping[Metric, float],
    about: About,
) -> dict[str, Any]:
    return significance.summary({o.seed: delta(o.values, base, about) for o in outcomes})


def _test(rows: Sequence[Mapping[str, Any]], reference: str | None, about: About) -> None:
    """Every metric and both deltas, each a family of tests of its own."""
    for (task, name), meta in about.items():
        summaries = {row["method"]: row["tasks"][task][name] for row in rows}
        significance.judge(summaries, reference, meta["higher_is_better"])
    for key, higher_is_better in (("delta_m", False), ("delta_p", True)):
        found = {row["method"]: row[key] for row in rows if row[key] is not None}
        significance.judge(found, reference, higher_is_better)


def _costs(cost: Mapping[str, float | None]) -> dict[str, float | None]:
    return {key: cost.get(key) for key in dict.fromkeys((*_COSTS, *cost))}


def _cost(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Means over seeds; for memory the largest."""
    found: dict[str, Any] = {}
    for key in dict.fromkeys(key for o in outcomes for key in _costs(o.cost)):
        known = [value for o in outcomes if (value := o.cost.get(key)) is not None]
        found[key] = (max(known) if key == "peak_mib" else statistics.fmean(known)) if known else None
    return found


def _by_seed(outcomes: Sequence[Outcome]) -> list[Outcome]:
    return sorted(outcomes, key=lambda o: o.seed)


def _place(path: Path, folder: Path | None) -> str:
    """A run's path: relative to the report's folder where it lies inside, else absolute."""
    full = Path(os.path.abspath(path))
    above = Path(os.path.abspath(folder)) if folder is not None else None
    return full.relative_to(above).as_posix() if above is not None and full.is_relative_to(above) else str(full)
