"""What `mtl list` shows: every registered thing, and one thing's page."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from mtlcli import metrics, registry
from mtlcli.comparison import discovery
from mtlcli.errors import MtlError, did_you_mean
from mtlcli.options import fields

KINDS: Mapping[str, registry.Registry[Any]] = {
    "datasets": registry.datasets,
    "encoders": registry.encoders,
    "trunks": registry.trunks,
    "losses": registry.loss_weightings,
    "gradients": registry.gradient_weightings,
    "optimizers": registry.optimizers,
    "schedules": registry.schedules,
    "loggers": registry.loggers,
    "launchers": registry.launchers,
}
ALL_KINDS = (*KINDS, "metrics")


def overview(kind: str | None) -> dict[str, list[dict[str, str]]]:
    """Names and one-sentence summaries, of one kind or all. Raises MtlError for an unknown kind."""
    if kind is not None and kind not in ALL_KINDS:
        kinds = (*ALL_KINDS, discovery.KIND)
        home = next((k for k in ALL_KINDS if kind in _names(k)), None)
        hint = f"; did you mean: mtl list {home} {kind}" if home else did_you_mean(kind, kinds)
        raise MtlError(f"mtl list: no kind '{kind}'{hint}; there are: {', '.join(kinds)}")
    return {k: [{"name": n, "summary": _summary(k, n)} for n in _names(k)] for k in ALL_KINDS if kind in (None, k)}


def page(kind: str, name: str) -> dict[str, Any]:
    """One thing's docstring and options. Raises MtlError for an unknown kind or name."""
    overview(kind)
    if kind == "metrics":
        metric = metrics.get(name)
        doc = f"{metric.description}\n\nFor tasks of kind: {', '.join(metric.kinds)}."
        return {"name": name, "kind": "metric", "summary": metric.description, "doc": doc, "options": []}
    among = KINDS[kind]
    cls = among.get(name)
    options = [option._asdict() for option in fields(cls.Options)]
    return {
        "name": name,
        "kind": among.kind,
        "summary": _summary(kind, name),
        "doc": inspect.getdoc(cls) or "",
        "options": options,
    }


def _names(kind: str) -> tuple[str, ...]:
    return metrics.names() if kind == "metrics" else KINDS[kind].names()


def _summary(kind: str, name: str) -> str:
    """The first sentence of what is said about it."""
    if kind == "metrics":
        return metrics.get(name).description
    doc = inspect.getdoc(KINDS[kind].get(name)) or ""
    return " ".join(doc.split("\n\n", 1)[0].split())
