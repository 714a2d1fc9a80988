"""Finished runs with made-up results, for what only reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mtlcli import yamlfile

UP = {"auroc", "r2"}  # higher is better
COST = {"seconds": 10.0, "step_ms_median": 2.0, "peak_mib": 100.0, "backward_passes_per_step": 1}


def fake(path: Path, method: str, seed: int, values: dict[str, dict[str, float | None]], **changes: Any) -> Path:
    """A finished run; `values` are metrics by task. `changes`: result keys, or dotted keys of the recipe."""
    path.mkdir(parents=True)
    loss, _, gradient = method.partition("+")
    recipe: dict[str, Any] = {
        "data": {"name": "made_up", "tasks": list(values)},
        "weighting": {"loss": {"name": loss}, "gradient": {"name": gradient or "sum"}},
        "optimizer": {"name": "adam", "lr": 0.1},
        "train": {"seed": seed, "log_every_steps": 20},
    }
    result: dict[str, Any] = {
        "schema_version": 1,
        "method": method,
        "seed": seed,
        "dataset": "made_up",
        "fingerprint": "sha256:aa",
        "tasks": {
            task: {
                "loss": 0.1,
                "metrics": {n: {"value": v, "unit": "", "higher_is_better": n in UP} for n, v in metrics.items()},
            }
            for task, metrics in values.items()
        },
        "cost": COST,
    }
    for key, value in changes.items():
        if "__" in key:
            section, name = key.split("__")
            recipe[section][name] = value
        else:
            result[key] = value
    (path / "recipe.yaml").write_text(yamlfile.dump(recipe))
    (path / "run.json").write_text(json.dumps({"status": "finished"}))
    (path / "result.json").write_text(json.dumps(result))
    return path
