"""What a reader of a comparison should know besides its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mtlcli.comparison import significance
from mtlcli.comparison.finished import Finished, Outcome, differing
from mtlcli.comparison.improvement import About, Metric


def caveats(
    joint: Sequence[Finished],
    outcomes: Mapping[str, Sequence[Outcome]],
    tuning: Mapping[str, Mapping[str, Any]] | None,
) -> list[str]:
    """What holds for the table as a whole."""
    searched = {key for study in (tuning or {}).values() for key in study["searched"]}
    notes = []
    if tuning:
        trials = max(study["trials"] for study in tuning.values())
        notes.append(
            f"the learning rate and the options of each method were tuned, with {trials} trials for every method; "
            "values were chosen on val, never on test"
        )
    if any(len(found) == 1 for found in outcomes.values()):
        notes.append("a method with one seed has no known spread (std is null)")
    if len({tuple(sorted(o.seed for o in found)) for found in outcomes.values()}) > 1:
        notes.append("not every method has the same seeds")
    settings = [{key: value for key, value in run.settings.items() if key not in searched} for run in joint]
    other = [key for key in differing(settings) if not key.startswith("weighting.")]
    if other:
        notes.append(f"these runs differ in more than the method and the seed: {', '.join(other)}")
    return notes


def unchosen(runs: Sequence[Finished]) -> list[str]:
    """Runs whose epoch nothing could choose."""
    found = [
        str(run.path)
        for run in runs
        if run.result.get("selected", {}).get("by") == "last" and run.settings.get("train.select_by") != "last"
    ]
    if not found:
        return []
    return [
        f"{len(found)} of {len(runs)} runs stand with their last epoch, because what chooses one has no value on val: "
        f"{', '.join(found[:3])}{', ...' if len(found) > 3 else ''}"
    ]


def undefined(outcomes: Mapping[str, Sequence[Outcome]], about: About, base: Mapping[Metric, float]) -> list[str]:
    """Where a metric has no value, and what follows. A baseline without any was noted with the baseline itself."""
    notes = []
    for metric in about:
        lacking = {m: sorted(o.seed for o in found if o.values.get(metric) is None) for m, found in outcomes.items()}
        lacking = {method: seeds for method, seeds in lacking.items() if seeds}
        same = {tuple(seeds) for seeds in lacking.values()}
        everywhere = all(len(seeds) == len(outcomes[method]) for method, seeds in lacking.items())
        if not lacking or (base and metric not in base) or (len(lacking) == len(outcomes) and everywhere):
            continue
        if len(lacking) == len(outcomes) and len(same) == 1:
            where = f"in every run with seed {', '.join(map(str, same.pop()))}"
        else:
            where = "in runs of " + ", ".join(
                method if len(seeds) == len(outcomes[method]) else f"{method} (seed {', '.join(map(str, seeds))})"
                for method, seeds in lacking.items()
            )
        notes.append(f"{'.'.join(metric)} is undefined {where}" + (": these have no delta_m, delta_p" if base else ""))
    return notes


def verdicts(rows: Sequence[Mapping[str, Any]], reference: str | None) -> list[str]:
    """What the tests say about whole methods, and where they could not say anything."""
    notes = []
    others = [row for row in rows if row["method"] != reference]
    verdicts = {r["method"]: [m["versus"] for task in r["tasks"].values() for m in task.values()] for r in others}
    alike = [method for method, found in verdicts.items() if set(found) == {significance.WITHIN_SPREAD}]
    if alike:
        notes.append(f"no metric differs from {reference} by more than the spread over seeds: {', '.join(alike)}")
    seeds = max(len(row["seeds"]) for row in rows)
    needed = significance.seeds_needed(len(others))
    if reference and significance.LEAST_FOR_WILCOXON <= seeds < needed:
        notes.append(
            f"{seeds} seeds are too few for Wilcoxon's test to find anything among {len(others)} methods after Holm's "
            f"correction; {needed} are enough"
        )
    return notes
