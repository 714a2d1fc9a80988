"""A first look at a table: what its columns hold, and a recipe's data section proposed from that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from mtlcli.data.base import ColumnUse
from mtlcli.data.tables import labels
from mtlcli.data.tables.gather import head
from mtlcli.data.tables.kinds import Held, conform, hold
from mtlcli.data.tables.options import LabelKind, TaskOptions
from mtlcli.data.tables.profile import CAMEL, FEWEST, IDENTIFIER, Profile
from mtlcli.data.tables.reader import INDEX
from mtlcli.data.tables.source import Source
from mtlcli.data.tables.splits import SPELLED, TEST, TRAIN
from mtlcli.errors import MtlError, did_you_mean
from mtlcli.tasks import unusable

if TYPE_CHECKING:
    import polars as pl

KINDS = get_args(LabelKind)
RARE = 0.1  # share of the rarer class below which a balanced weight is proposed


@dataclass(frozen=True)
class Look:
    """Up to 100,000 rows of a table, as they are written, and what its columns would become."""

    path: Path
    rows: int
    frame: pl.DataFrame
    uses: Mapping[str, ColumnUse]
    missing: tuple[str, ...]

    @classmethod
    def at(cls, path: Path, missing: tuple[str, ...]) -> Look:
        """Of the files at `path`. Raises MtlError where they cannot be read."""
        import polars as pl

        source = Source.at(path, missing)
        frame = head(source)
        if not len(frame):
            raise MtlError(f"{source.files[0]}: has no rows")
        held = {name: found for name in source.types if isinstance(found := hold(frame[name], missing), Held)}
        conformed = {name: conform(frame[name], kind, missing) for name, kind in held.items()}
        typed = pl.DataFrame({name: found.values for name, found in conformed.items() if found is not None})
        profile = Profile({name: held[name] for name in typed.columns}, (), None)
        profile.add(typed.with_columns(pl.int_range(pl.len()).alias(INDEX)), np.zeros(len(typed), np.int8))
        uses = {}
        for name in source.types:
            known = profile.column(name, False)[1] if name in typed.columns else None
            uses[name] = known or ColumnUse(name, "dropped", f"empty, or of a type ({frame[name].dtype}) of no use")
            if name in source.decimal_commas:
                uses[name] = uses[name]._replace(detail=f"{uses[name].detail}; {source.decimal_commas[name]}")
        return cls(path, source.rows, frame, uses, missing)

    def tasks(self, wanted: list[str]) -> dict[str, dict[str, Any]]:
        """`NAME:KIND` of every task -> its options in a recipe.

        Raises MtlError for a column or kind that does not exist, or a column that cannot be learned so.
        """
        found: dict[str, dict[str, Any]] = {}
        for text in wanted:
            column, colon, kind = text.rpartition(":")
            if not colon or kind not in KINDS:
                raise MtlError(
                    f"--task {text}: should be NAME:KIND, with {', '.join(KINDS)} for KIND{did_you_mean(kind, KINDS)}"
                )
            if column not in self.uses:
                raise MtlError(
                    f"--task {text}: {self.path} has no column '{column}'{did_you_mean(column, self.uses)}; there are: "
                    f"{', '.join(self.uses)}"
                )
            name = f"{column.replace('.', '_')}_label" if unusable(column) else column
            if name in found:
                raise MtlError(f"--task {text}: '{name}' is given twice")
            found[name] = self._task(text, name, column, kind)
        return found

    def example(self) -> str:
        """A task that one might want, as --task takes it."""
        for name in reversed(list(self.uses)):
            values = self.frame[name].drop_nulls().n_unique()
            if self.uses[name].used_as in ("numeric", "boolean", "categorical"):
                numeric = self.uses[name].used_as == "numeric"
                kind = "binary" if values == 2 else "regression" if numeric and values > 20 else "multiclass"
                return f"{name}:{kind}"
        return "NAME:binary"

    def split(self, tasks: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Any], str]:
        """A split that suits the columns, and why."""
        taken = {task.get("column", name) for name, task in tasks.items()}
        for name in self.uses:
            found = conform(self.frame[name], Held("text"), self.missing)
            words = [] if found is None else found.values.str.to_lowercase().unique().to_list()
            parts = {SPELLED.get(word) for word in words}
            if name not in taken and None not in parts and {TRAIN, TEST} <= parts:
                return {"column": name}, f"the column {name} says which split a row is in"
        for name in self.uses:
            values = self.frame[name].drop_nulls()
            named = IDENTIFIER.search(name) or CAMEL.search(name)
            if named and name not in taken and FEWEST <= values.n_unique() < 0.9 * len(values):
                shares = {"val": 0.1, "test": 0.2, "by": name, "seed": 0}
                return shares, f"all rows with the same {name} come into the same split"
        return {"val": 0.1, "test": 0.2, "seed": 0}, "at random; `by: COLUMN` keeps rows with the same key together"

    def _task(self, text: str, name: str, column: str, kind: str) -> dict[str, Any]:
        values: dict[str, Any] = {"kind": kind}
        if name != column:
            values["column"] = column
        try:
            target = labels.target(name, TaskOptions.model_validate(values), self.frame[column], self.missing)
            found = conform(self.frame[column], target.held, self.missing)
            assert found is not None
            known = found.values.drop_nulls()
            counts = known.value_counts(sort=True)["count"].to_list()
            different = len(counts) if found.wrong is None else self.frame[column].drop_nulls().n_unique()
            if kind == "multiclass":
                labels.check_number(target, different, len(known))
        except MtlError as error:
            raise MtlError(f"--task {text}: {error}") from None
        if different < 2:
            raise MtlError(f"--task {text}: every label in the column '{column}' is the same; nothing to learn")
        if kind == "binary" and different > 2:
            raise MtlError(
                f"--task {text}: a binary task has two values; the column '{column}' holds {different:,} different "
                "ones; is it multiclass, or a regression?"
            )
        if kind == "binary" and counts[-1] < RARE * len(known):
            values["positive_weight"] = "balanced"
        if kind == "regression" and len(known) and known.min() >= 0 and known.mean() > 1.5 * known.median():  # type: ignore[operator]
            values["transform"] = "log1p"
        return values
