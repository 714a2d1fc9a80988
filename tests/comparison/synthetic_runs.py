"""Made-up runs and the report on them: what `mtl compare` leaves behind, without any training."""

from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtlcli import yamlfile

TASKS = {
    "income": {"auroc": ("fraction", True), "average_precision": ("fraction", True)},
    "college": {"auroc": ("fraction", True)},
    "weeks_worked": {"mae": ("weeks", False), "r2": ("", True)},
}
Metrics = dict[str, dict[str, tuple[str, bool]]]


def build(
    folder: Path,
    methods: Sequence[str] = ("plain", "+turned", "plain+turned"),
    seeds: Sequence[int] = (0, 1, 2),
    epochs: int = 4,
    tasks: Metrics = TASKS,
    baseline: bool = True,
    diagnostics: bool = True,
    failed: Sequence[str] = (),
) -> tuple[dict[str, Any], list[Path]]:
    """Write runs into `folder`; return the report and their paths. The `failed` methods get a row that says why."""
    draw = random.Random(0)
    paths: list[Path] = []
    rows = []
    names = ["single_task", *methods] if baseline else list(methods)
    for number, method in enumerate(names):
        quality = 0.0 if method == "single_task" else draw.gauss(0, 0.02)
        values: dict[str, dict[str, dict[str, float]]] = {t: {m: {} for m in found} for t, found in tasks.items()}
        own = []
        for seed in seeds:
            scores = {t: {m: _score(up, quality, draw) for m, (_, up) in found.items()} for t, found in tasks.items()}
            for task, found in scores.items():
                for metric, value in found.items():
                    values[task][metric][str(seed)] = value
            for part in [[task] for task in tasks] if method == "single_task" else [list(tasks)]:
                path = folder / f"{number:03}" / (part[0] if len(part) < len(tasks) else "all") / f"seed-{seed}"
                _write(path, method, seed, epochs, {t: scores[t] for t in part}, tasks, diagnostics, draw)
                own.append(path)
        paths += own
        rows.append(_row(method, seeds, values, tasks, draw.uniform(8, 40), [p.relative_to(folder) for p in own]))
    _summarize(rows, tasks, baseline)
    for method in failed:
        error = "step 12: the loss of income is not finite; lower optimizer.lr"
        rows.append({"method": method, "seeds": [], "tasks": {}, "delta_m": None, "delta_p": None, "mean_rank": None})
        rows[-1] |= {"cost": {}, "runs": [], "failed": [{"seed": 0, "error": error}]}
    report = {
        "schema_version": 1,
        "dataset": "made_up",
        "fingerprint": "sha256:aa",
        "baseline": "single_task" if baseline else None,
        "reference": "single_task" if baseline else None,
        "metrics": {
            t: {m: {"unit": unit, "higher_is_better": up} for m, (unit, up) in found.items()}
            for t, found in tasks.items()
        },
        "rows": rows,
        "notes": ["not every method has the same seeds"],
    }
    return report, paths


def _score(up: bool, quality: float, draw: random.Random) -> float:
    return 0.8 * (1 + quality + draw.gauss(0, 0.004)) if up else 5.0 * (1 - quality + draw.gauss(0, 0.004))


def summary(values: dict[str, float], versus: str | None = None) -> dict[str, Any]:
    """As in report.json; the interval's width is made up."""
    known = list(values.values())
    mean = statistics.fmean(known)
    std = statistics.stdev(known) if len(known) > 1 else None
    interval = None if std is None else [mean - 2.5 * std, mean + 2.5 * std]
    about = {"p": 0.03, "test": "Welch's t"} if versus else {"p": None, "test": None}
    return {"mean": mean, "std": std, "n": len(known), "interval": interval, "values": values, **about} | {
        "versus": versus
    }


def _row(
    method: str, seeds: Sequence[int], values: Any, tasks: Metrics, step_ms: float, runs: Sequence[Path]
) -> dict[str, Any]:
    cost = {"seconds": step_ms * 3, "step_ms_median": step_ms, "peak_mib": 400 + step_ms}
    return {
        "method": method,
        "seeds": list(seeds),
        "tasks": {t: {m: summary(values[t][m]) for m in found} for t, found in tasks.items()},
        "delta_m": None,
        "delta_p": None,
        "mean_rank": None,
        "cost": cost | {"backward_passes_per_step": 1, "counts": {"solver fallbacks": 3} if "turned" in method else {}},
        "runs": [str(path) for path in runs],
    }


def _summarize(rows: list[dict[str, Any]], tasks: Metrics, baseline: bool) -> None:
    """Fill in delta_m, delta_p, versus and mean ranks."""
    reference = rows[0]["tasks"]
    joint = rows[1:] if baseline else rows
    for row in rows if baseline else ():
        delta: dict[str, float] = {}
        for seed in map(str, row["seeds"]):
            gains = []
            for task, found in tasks.items():
                for metric, (_, up) in found.items():
                    base = reference[task][metric]["mean"]
                    change = (row["tasks"][task][metric]["values"][seed] - base) / base * 100
                    gains.append(change if up else -change)
            delta[seed] = -statistics.fmean(gains)
        mean = statistics.fmean(delta.values())
        verdict = "worse" if mean > 0.5 else "better" if mean < -0.5 else "within spread"
        versus = None if row is rows[0] or len(delta) < 2 else verdict
        row["delta_m"] = summary(delta, versus)
        row["delta_p"] = summary({seed: -value for seed, value in delta.items()}, versus)
        for found in row["tasks"].values():
            for cell in found.values():
                cell["versus"] = versus
    ranks: dict[str, list[int]] = {row["method"]: [] for row in joint}
    for task, found in tasks.items():
        for metric, (_, up) in found.items():
            ranked = sorted(joint, key=lambda row: row["tasks"][task][metric]["mean"], reverse=up)
            for place, row in enumerate(ranked):
                ranks[row["method"]].append(place + 1)
    for row in joint:
        row["mean_rank"] = statistics.fmean(ranks[row["method"]])


def _write(
    path: Path,
    method: str,
    seed: int,
    epochs: int,
    scores: dict[str, dict[str, float]],
    tasks: Metrics,
    diagnostics: bool,
    draw: random.Random,
) -> None:
    path.mkdir(parents=True)
    names = list(scores)
    recipe = {"data": {"name": "made_up", "tasks": names}, "weighting": {"loss": {"name": method}}}
    (path / "recipe.yaml").write_text(yamlfile.dump(recipe | {"train": {"seed": seed}}))
    (path / "run.json").write_text(json.dumps({"status": "finished"}))
    result = {
        "schema_version": 1,
        "method": "plain" if method == "single_task" else method,
        "seed": seed,
        "dataset": "made_up",
        "fingerprint": "sha256:aa",
        "tasks": {t: {"loss": 0.1, "metrics": _metrics(tasks[t], found)} for t, found in scores.items()},
        "cost": {"seconds": 10.0, "step_ms_median": 2.0, "peak_mib": 100.0, "backward_passes_per_step": 1},
    }
    (path / "result.json").write_text(json.dumps(result))
    like = random.Random(method)  # what the seeds of one method have in common
    speed, level = like.uniform(0.5, 1.5), {t: like.uniform(0.25, 0.4) + draw.gauss(0, 0.01) for t in names}
    phase = {t: like.uniform(0, 6) + draw.gauss(0, 0.2) for t in names}
    lines = []
    steps = 100
    for epoch in range(epochs):
        for step in range(epoch * steps, (epoch + 1) * steps, 20):
            done = step / (epochs * steps)
            weights = {t: 1 + 0.8 * done * math.sin(phase[t] + 2 * done) + draw.gauss(0, 0.02) for t in names}
            about = {"step": step, "epoch": epoch}
            losses = {t: level[t] + 0.6 * math.exp(-speed * 6 * done) for t in names}
            lines.append({"event": "StepDone", **about, "losses": losses, "weights": weights, "lr": 0.1, "step_ms": 9})
            if diagnostics and len(names) > 1 and step % 40 == 0:
                lines.append({"event": "Diagnostics", **about, **_diagnostics(names, done, draw)})
        done = (epoch + 1) / epochs
        val = {
            t: {"loss": level[t] + 0.5 * math.exp(-speed * 5 * done) + draw.gauss(0, 0.004)}
            | {"metrics": _metrics(tasks[t], {m: v * (0.7 + 0.3 * done) for m, v in found.items()})}
            for t, found in scores.items()
        }
        common = {"epoch": epoch, "step": (epoch + 1) * steps, "losses": losses, "weights": weights, "val": val}
        lines.append({"event": "EpochDone", **common, "score": 0.1, "best": True, "lr": 0.1, "seconds": 1.0})
    (path / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _metrics(about: dict[str, tuple[str, bool]], values: dict[str, float]) -> dict[str, Any]:
    return {m: {"value": v, "unit": about[m][0], "higher_is_better": about[m][1]} for m, v in values.items()}


def _diagnostics(tasks: Sequence[str], done: float, draw: random.Random) -> dict[str, Any]:
    size = range(len(tasks))
    cosines = [[1.0] * len(tasks) for _ in size]
    similarity = [[1.0] * len(tasks) for _ in size]
    for i in size:
        for j in range(i):
            cosines[i][j] = cosines[j][i] = max(-1.0, min(1.0, 0.5 - 0.7 * done * (i + j) / 3 + draw.gauss(0, 0.05)))
            similarity[i][j] = similarity[j][i] = 0.9 - 0.4 * done + draw.gauss(0, 0.02)
    condition = 10 ** (1 + 2 * done + draw.gauss(0, 0.1))
    return {"cosines": cosines, "magnitude_similarity": similarity, "condition": condition, "tasks": list(tasks)}
