"""A small seeded dataset for tests, registered as `toy`: three kinds of task, labels missing in two of them.

Recipes name it with `plugins: [tests/toy.py]`; tests import it.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

import mtlcli
from mtlcli.data.base import Dataset, MultiTaskData, Split, TableFeatures, fingerprint
from mtlcli.tasks import Task

PLUGIN = str(Path(__file__).resolve())


@mtlcli.datasets.register("toy")
class Toy(Dataset):
    """Linear rules with noise on five numbers and one category."""

    class Options(mtlcli.Options):
        """How many rows, and what is wrong with them."""

        rows: int = Field(96, ge=8, description="training rows; val and test have a third each")
        missing: float = Field(0.3, ge=0, lt=1, description="share of missing labels in two of the tasks")
        scale: float = Field(1.0, description="factor on the labels of `amount`")
        break_at: int | None = Field(None, description="training row whose `amount` is infinite")
        constant: Literal["none", "val", "test"] = Field("none", description="split in which `yes` is always 0")
        unlabelled: Literal["none", "val"] = Field("none", description="split without labels")

    def load(self) -> MultiTaskData:
        options: Any = self.options
        rng = torch.Generator().manual_seed(7)
        sizes = {"train": options.rows, "val": options.rows // 3, "test": options.rows // 3}
        rule = torch.randn(5, 3, generator=rng)
        splits = {}
        for name, n in sizes.items():
            numeric = torch.randn(n, 5, generator=rng)
            category = torch.randint(0, 4, (n, 1), generator=rng, dtype=torch.int32)
            signal = numeric @ rule + 0.5 * category + 0.3 * torch.randn(n, 3, generator=rng)
            yes = (signal[:, 0] > 0.5).to(torch.int8)
            which = signal[:, 1].add(2).clamp(0, 3).to(torch.int8)
            amount = options.scale * signal[:, 2]
            lost = torch.rand(n, generator=rng) < options.missing
            which[lost] = -1
            amount[lost.flip(0)] = torch.nan
            if name == "train" and options.break_at is not None:
                amount[options.break_at] = torch.inf
            if name == options.constant:
                yes.zero_()
            if name == options.unlabelled:
                yes.fill_(-1)
                which.fill_(-1)
                amount.fill_(torch.nan)
            targets = {"yes": yes, "which": which, "amount": amount}
            splits[name] = Split({"numeric": numeric, "categorical": category}, targets)
        tasks = (
            Task("yes", "binary"),
            Task("which", "multiclass", num_classes=4),
            Task("amount", "regression", unit="apples", scale=2.0, mean=1.0),
        )
        features = TableFeatures(tuple("abcde"), {"kind": 4})
        definition = {"options": options.model_dump(), "tasks": [asdict(task) for task in tasks]}
        return MultiTaskData(tasks, features, splits, fingerprint(definition, splits))


# Options of methods that have no defaults.
NEEDED: dict[str, dict[str, Any]] = {"constant": {"weights": {"yes": 1.0, "which": 0.5, "amount": 2.0}}}


def weighting(loss: str, gradient: str = "sum", **gradient_options: Any) -> dict[str, Any]:
    """The sections that a method needs: its options, and held-out rows where it asks for them."""
    needs = mtlcli.loss_weightings.get(loss).needs
    extra = mtlcli.gradient_weightings.get(gradient).extra_batches
    return {
        "weighting": {
            "loss": {"name": loss, **NEEDED.get(loss, {})},
            "gradient": {"name": gradient, **gradient_options},
        },
        "data": {"held_out": 0.2 if "held_out" in needs else 0.0, "extra_batches": extra},
    }


def values(**sections: dict[str, Any]) -> dict[str, Any]:
    """A small recipe on the toy data as plain values; each section given is laid over it."""
    base: dict[str, Any] = {
        "data": {"name": "toy", "batch_size": 32},
        "model": {"encoder": {"name": "mlp", "widths": [16, 8], "embedding": 2}},
        "weighting": {},
        "optimizer": {"name": "adam", "lr": 0.01},
        "schedule": {"name": "constant"},
        "train": {"epochs": 4, "seed": 3, "log_every_steps": 2},
        "plugins": [PLUGIN],
    }
    for name, section in sections.items():
        base[name] = {**base[name], **section} if isinstance(base.get(name), dict) else section
    return base
