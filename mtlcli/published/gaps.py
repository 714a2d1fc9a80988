"""Our report against a published table: what may be compared, and by how much it differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mtlcli.comparison.report import SINGLE_TASK
from mtlcli.errors import MtlError, did_you_mean
from mtlcli.published.table import Metric, Protocol, Published, Row, Scores, names
from mtlcli.recipe import method_name
from mtlcli.yamlfile import flatten, show

Recipes = Sequence[Mapping[str, Any]]  # resolved, nested or by dotted path

_UNITS = {  # unit -> what it measures, and how much of that one is
    "fraction": ("share", 1.0),
    "percent": ("share", 0.01),
    "m": ("length", 1.0),
    "cm": ("length", 0.01),
    "eV": ("energy", 1.0),
    "meV": ("energy", 0.001),
}
_LISTED = 5  # tasks in a message


class Match(NamedTuple):
    """What a report has in common with a table."""

    factors: dict[tuple[str, str], float]  # (task, metric) -> what our values are multiplied by for the table's unit
    notes: list[str]  # what was converted, and what cannot be
    missing: list[str]  # TASK.METRIC of what the report does not have


def match(table: Published, metrics: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Match:
    """The metrics that a table and a report share: same task, name and direction, and a unit that can be converted.

    Args:
        table: the published table.
        metrics: `metrics` of a report: task -> metric -> `unit` and `higher_is_better`.
    """
    factors: dict[tuple[str, str], float] = {}
    notes, missing = [], []
    for task, name, metric in _columns(table):
        label, ours = f"{task}.{name}", metrics.get(task, {}).get(name)
        if ours is None:
            missing.append(label)
        elif ours["higher_is_better"] != metric.higher_is_better:
            better = "higher" if metric.higher_is_better else "lower"
            notes.append(f"{label} is left out: published as {better} is better, and ours is the other way round")
        elif (factor := _factor(ours["unit"], metric.unit)) is None:
            notes.append(f"{label} is left out: published in {_unit(metric.unit)}, ours is in {_unit(ours['unit'])}")
        else:
            factors[task, name] = factor
            if ours["unit"] != metric.unit:
                notes.append(f"{label}: ours is converted from {_unit(ours['unit'])} to {_unit(metric.unit)}")
    return Match(factors, notes, missing)


def differences(protocol: Protocol, recipes: Recipes) -> list[str]:
    """The keys of `protocol` that do not have the required value in all of `recipes`, each with what was found."""
    settings = [flatten(recipe) for recipe in recipes]
    different = []
    for key, wanted in protocol.items():
        found = {show(each[key]): None for each in settings if key in each and each[key] != wanted}
        lacking = [each for each in settings if key not in each]
        if lacking:
            found[f"no such key{did_you_mean(key, lacking[0])}"] = None
        if found:
            different.append(f"{key}: should be {show(wanted)}; found {', '.join(found)}")
    return different


def compare(table: Published, report: Mapping[str, Any], recipes: Recipes) -> dict[str, Any]:
    """Every row of `report` whose method is in the table, beside what was published.

    Args:
        table: the published table.
        report: the content of report.json.
        recipes: the resolved recipes of the runs behind the report; every one must follow the table's protocol.

    Returns:
        `{"name", "title", "convention", "rows": [{"method", "name", "source", "note", "tasks": {task: {metric:
        {"published", "ours", "gap", "unit", "higher_is_better"}}}, "delta"}], "notes"}`. A gap is ours minus theirs
        in the published unit. `delta` is None or `{"published", "ours", "gap", "baseline"}` in percent, by the table's
        convention and against the baseline named: the paper's, or where the table lacks it our own single tasks.

    Raises:
        MtlError: another dataset, no metric in common, or a protocol that differs; names every key.
    """
    found = match(table, report["metrics"])
    wrong = [] if report["dataset"] == table.dataset else [f"dataset: {_should(table.dataset, report['dataset'])}"]
    if not found.factors:
        theirs = _listing({t: {n: m.unit for n, m in of.items()} for t, of in table.metrics.items()})
        ours = _listing({t: {n: m["unit"] for n, m in of.items()} for t, of in report["metrics"].items()})
        wrong += [f"metrics: none in common; {_should(theirs, ours)}", *(f"metrics: {note}" for note in found.notes)]
    wrong += differences(table.protocol, recipes)
    if wrong:
        first = f"these runs cannot be compared with the published table '{table.name}' ({table.title}):"
        last = f"Train by that protocol, or name another table: {', '.join(names())}"
        raise MtlError("\n".join([first, *(f"  {each}" for each in wrong), last]))
    notes = [*found.notes, *table.notes]
    if found.missing:
        notes.append(f"published, but not in the report: {', '.join(found.missing)}")
    if table.conditions:
        listed = "; ".join(f"{name}: {text}" for name, text in table.conditions.items())
        notes.append(f"no recipe states these conditions, so see to them yourself: {listed}")
    rows, unknown = [], []
    for row in report["rows"]:
        entry, reason = _entry(table, row["method"], recipes)
        if entry is None:
            unknown.append(f"{row['method']}{reason}")
        else:
            rows.append(_row(table, entry, row, report, found))
    if unknown:
        notes.append(f"not published in this table: {', '.join(unknown)}")
    return {"name": table.name, "title": table.title, "convention": table.convention, "rows": rows, "notes": notes}


def _columns(table: Published) -> list[tuple[str, str, Metric]]:
    return [(task, name, metric) for task, metrics in table.metrics.items() for name, metric in metrics.items()]


def _factor(ours: str, theirs: str) -> float | None:
    """What a value in our unit is multiplied by to be in theirs; None where the units measure different things."""
    if ours == theirs:
        return 1.0
    if ours not in _UNITS or theirs not in _UNITS or _UNITS[ours][0] != _UNITS[theirs][0]:
        return None
    return _UNITS[ours][1] / _UNITS[theirs][1]


def _unit(unit: str) -> str:
    return unit or "no unit"


def _should(wanted: str, found: str) -> str:
    return f"should be {wanted}; found {found}"


def _listing(units: Mapping[str, Mapping[str, str]]) -> str:
    """`a (auroc in fraction), b (mae in meV)`, of the first tasks where there are many."""
    listed = [
        f"{task} ({', '.join(f'{name} in {unit}' if unit else name for name, unit in metrics.items())})"
        for task, metrics in units.items()
    ]
    more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    return ", ".join(listed[:_LISTED]) + more


def _method(recipe: Mapping[str, Any]) -> str:
    settings = flatten(recipe)
    return method_name(settings["weighting.loss.name"], settings["weighting.gradient.name"])


def _entry(table: Published, label: str, recipes: Recipes) -> tuple[Scores | None, str]:
    """What was published for a row of the report, or None and why not."""
    method = label.partition(" [")[0]  # runs of one method with other options: `uw [optimizer.lr=0.1]`
    if method == SINGLE_TASK:
        return (table.baseline, "") if table.baseline.values else (None, "")
    own = [each for each in recipes if _method(each) == method]
    rows = [row for row in table.rows if row.method == method]
    fitting = [row for row in rows if not differences(row.protocol, own)]
    if fitting:
        return max(fitting, key=lambda row: len(row.protocol)), ""
    needs = " or ".join("; ".join(differences(row.protocol, own)) for row in rows)
    return None, f" ({needs})" if needs else ""


def _row(
    table: Published, entry: Scores, row: Mapping[str, Any], report: Mapping[str, Any], found: Match
) -> dict[str, Any]:
    ours: dict[str, dict[str, float]] = {}
    tasks: dict[str, dict[str, Any]] = {}
    for (task, name), factor in found.factors.items():
        mean = row["tasks"].get(task, {}).get(name, {}).get("mean")
        if mean is None:  # failed runs, or a metric without a value
            continue
        value = ours.setdefault(task, {})[name] = mean * factor
        published = entry.values.get(task, {}).get(name)
        if published is not None:
            metric = table.metrics[task][name]
            tasks.setdefault(task, {})[name] = {
                "published": published,
                "ours": value,
                "gap": value - published,
                "unit": metric.unit,
                "higher_is_better": metric.higher_is_better,
            }
    return {
        "method": row["method"],
        "name": entry.name,
        "source": table.sources[entry.source].cite(),
        "note": entry.note,
        "tasks": tasks,
        "delta": _delta(table, entry, row, report, ours),
    }


def _delta(
    table: Published,
    entry: Scores,
    row: Mapping[str, Any],
    report: Mapping[str, Any],
    ours: Mapping[str, Mapping[str, float]],
) -> dict[str, Any] | None:
    """Ours by the paper's constants where the table has them all; else against our own single tasks."""
    published = entry.delta if isinstance(entry, Row) else 0.0  # the baseline against itself
    if published is None or table.convention is None or any(n not in ours.get(t, {}) for t, n, _ in _columns(table)):
        return None
    value, baseline = table.delta(ours), table.baseline.name
    if value is None and report["baseline"] == SINGLE_TASK and row[table.convention]:
        value, baseline = row[table.convention]["mean"], SINGLE_TASK
    if value is None:
        return None
    return {"published": published, "ours": value, "gap": value - published, "baseline": baseline}
