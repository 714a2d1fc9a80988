"""What every option is without a word from the user: the published values, or those that the method's page names."""

from __future__ import annotations

from typing import Any

from mtlcli import gradient_weightings, loss_weightings
from mtlcli.options import fields

LOSSES: dict[str, dict[str, Any]] = {
    "auto_lambda": {"primary": None, "init": 0.1, "lr": 1e-4, "distance": 0.01},
    "constant": {},
    "cov": {"decay": None},
    "dwa": {"temperature": 2.0, "window": "epoch", "length": 25},
    "ew": {},
    "famo": {"lr": 0.025, "weight_decay": 1e-3, "min_losses": {}},
    "forum": {"rho": 0.1, "inner_steps": 5, "inner_lr": 0.1, "outer_lr": 1e-3},
    "gls": {},
    "go4align": {"groups": 2, "step_size": 1e-4},
    "hydalearn": {
        "main": None,
        "mode": "simulated",
        "step": 0.1,
        "heads": "unweighted",
        "normalise": "simplex",
        "negative": "clamp",
        "gain": "loss",
        "batch": "train",
        "max_ratio": 10.0,
    },
    "igb_v1": {"base_epoch": 1},
    "igb_v2": {
        "base_epoch": 1,
        "start_epoch": 5,
        "update_after": 3,
        "update_every": 50,
        "batch_size": 256,
        "buffer_size": 10_000,
        "lr": 3e-4,
        "discount": 0.99,
        "follow": 0.005,
        "reward_scale": "lr",
        "log_prob": "official",
    },
    "imtl_l": {},
    "ldc_mtl": {"penalty": 0.05, "normalise": "ratio", "router": "weights"},
    "moml": {"inner_lr": 0.1, "outer_lr": 1e-3, "aggregate": "min_norm"},
    "rlw": {"distribution": "normal"},
    "si": {},
    "slgrad": {
        "main": None,
        "distance": 1e-3,
        "look_ahead": False,
        "normalise": "simplex",
        "heads": "weighted",
    },
    "stch": {"mu": 1.0, "warmup_epochs": 4},
    "uw": {"init": 0.0},
}
GRADIENTS: dict[str, dict[str, Any]] = {
    "aligned_mtl": {"scale": "min"},
    "cagrad": {"c": 0.4, "rescale": 1},
    "config": {},
    "db_mtl": {"beta": 0.9, "beta_sigma": 0.0},
    "dualproj": {"reg_eps": 0.0},
    "emtl": {
        "form": "chi2",
        "rho": 0.5,
        "strength": 0.5,
        "ratio": "loss_over_norm",
        "normalise": "loss",
        "ema": 0.0,
    },
    "excess_mtl": {"step_size": 0.01},
    "fairgrad": {"alpha": 2.0, "max_norm": 1.0},
    "graddrop": {"leak": 0.0},
    "gradnorm": {"alpha": 1.5, "lr": 0.025},
    "gradvac": {"beta": 0.5},
    "imtl_g": {},
    "metabalance": {"main": None, "relax": 0.7, "beta": 0.9},
    "mgda": {"normalise": "none"},
    "moco": {
        "beta": 0.5,
        "beta_sigma": 0.5,
        "gamma": 0.1,
        "gamma_sigma": 0.5,
        "rho": 0.0,
        "normalise": "none",
    },
    "modo": {"gamma": 1e-3, "rho": 0.1},
    "nash_mtl": {"max_norm": 1.0},
    "pcgrad": {},
    "sdmgrad": {"pull": 0.3, "iterations": 20, "lr": 10.0, "momentum": 0.5},
    "sum": {},
    "upgrad": {"reg_eps": 0.0},
}


def test_defaults_are_the_published_ones(any_class: Any) -> None:
    """Exactly the options that have a default, so that a new one has to be written down here."""
    if not any_class.__module__.startswith("mtlcli."):
        return
    published = {**LOSSES, **GRADIENTS}[any_class.name]
    assert {field.name: field.default for field in fields(any_class.Options) if not field.required} == published


def test_every_method_of_the_table_is_there() -> None:
    assert set(LOSSES) <= set(loss_weightings.names())
    assert set(GRADIENTS) <= set(gradient_weightings.names())
