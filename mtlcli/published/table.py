"""A published table: its schema, what can be computed from it, and the reader of packaged and people's own files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from mtlcli import yamlfile
from mtlcli.comparison import improvement
from mtlcli.errors import MtlError, did_you_mean
from mtlcli.options import Options, check

_FOLDER = Path(__file__).parent

Values = Mapping[str, Mapping[str, float]]  # task -> metric -> value, in the table's units
Protocol = dict[str, bool | int | float | str | None]  # dotted path in a resolved recipe -> the value it must have


class Metric(Options):
    """How a column is to be read."""

    unit: str = Field(description="of every value in the column; empty where it has none")
    higher_is_better: bool = Field(description="whether larger values are better")
    decimals: int = Field(ge=0, description="decimals that are printed, which bounds what can be recomputed")


class Source(Options):
    """Where values were printed."""

    authors: str = Field(description="of the paper or the repository")
    title: str = Field(description="of the paper or the repository")
    venue: str = Field(description="conference, journal, arXiv or GitHub")
    year: int = Field(ge=1990, description="of the version read")
    url: str = Field(description="of the paper or the file")
    table: str | None = Field(None, description="the table, or the file with the constants; null where not recorded")

    def cite(self) -> str:
        """One line: who, what, where, which table."""
        return f"{self.authors}, {self.title}, {self.venue} {self.year}" + (f", {self.table}" if self.table else "")


class Scores(Options):
    """What one network, or one network per task, reached. What the source does not print is left out."""

    name: str = Field(description="what the source calls it")
    source: str = Field(description="a key of `sources`")
    values: dict[str, dict[str, float]] = Field(default_factory=dict, description="by task and metric")
    note: str | None = Field(None, description="doubts about the figures, and what does not reproduce")


class Row(Scores):
    """One method."""

    method: str | None = Field(description="LOSS or LOSS+GRADIENT as in reports; null where mtl has no such method")
    delta: float | None = Field(None, description="in percent, by the table's convention")
    delta_std: float | None = Field(None, ge=0, description="spread of `delta` over seeds, in percent")
    mean_rank: float | None = Field(None, ge=1, description="as printed: among the rows of that source's table only")
    protocol: Protocol = Field(default_factory=dict, description="what this row needs beyond the table's protocol")


class Published(Options):
    """One dataset under one protocol.

    Tasks, metrics and units go by the names that reports use; a metric has the name of `mtl list metrics` where that
    is what was measured.
    """

    name: str = Field(description="of the table, and of its file")
    title: str = Field(description="one line for people")
    dataset: str = Field(description="name of the dataset")
    protocol: Protocol = Field(description="what a recipe must say to be comparable")
    conditions: dict[str, str] = Field(
        default_factory=dict, description="what must hold besides, and no key of a recipe says"
    )
    convention: Literal["delta_m", "delta_p"] | None = Field(
        None,
        description="of `delta`: delta_m is the mean over metrics of the change for the worse, delta_p the mean over "
        "tasks of the improvement; null where the table has none",
    )
    metrics: Annotated[dict[str, dict[str, Metric]], Field(min_length=1, description="by task and name")]
    baseline: Scores = Field(description="one network per task: what `delta` is measured against")
    sources: dict[str, Source] = Field(description="by key")
    rows: list[Row] = Field(description="methods, in the order of the source")
    notes: list[str] = Field(default_factory=list, description="what a reader of the table should know")

    @model_validator(mode="after")
    def _consistent(self) -> Published:
        problems = [problem for scores in self.scores() for problem in self._problems(scores)]
        seen: set[str] = set()
        for row in self.rows:
            key = f"{row.method} {sorted(row.protocol.items())}"
            if row.method is not None and key in seen:
                problems.append(f"rows: '{row.method}' stands a second time; tell the rows apart by their `protocol`")
            seen.add(key)
            if row.delta is not None and self.convention is None:
                problems.append(f"rows: '{row.name}' has a delta; say by which `convention`, delta_m or delta_p")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _problems(self, scores: Scores) -> Iterator[str]:
        """References to what the table does not have."""
        references = [("source", scores.source, list(self.sources))]
        references += [("task", task, list(self.metrics)) for task in scores.values]
        references += [
            (f"metric of {task}", metric, list(self.metrics[task]))
            for task, values in scores.values.items()
            for metric in values
            if task in self.metrics
        ]
        for kind, name, known in references:
            if name not in known:
                yield (
                    f"'{scores.name}': no {kind} '{name}'{did_you_mean(name, known)}; the table has {', '.join(known)}"
                )

    def scores(self) -> list[Scores]:
        """Baseline and rows."""
        return [self.baseline, *self.rows]

    def delta(self, values: Values) -> float | None:
        """The table's delta of `values` against its own baseline, in percent.

        None where the table has no convention, or the values or the baseline lack a metric: a mean over the others
        would not compare.
        """
        if self.convention is None:
            return None
        columns = {(task, name): about for task, metrics in self.metrics.items() for name, about in metrics.items()}
        base = {(task, name): self.baseline.values.get(task, {}).get(name) or 0.0 for task, name in columns}
        if not all(base.values()):
            return None
        found = {(task, name): values.get(task, {}).get(name) for task, name in columns}
        better = {column: {"higher_is_better": about.higher_is_better} for column, about in columns.items()}
        delta = improvement.delta_m if self.convention == "delta_m" else improvement.delta_p
        return delta(found, base, better)


def names() -> tuple[str, ...]:
    """The packaged tables, sorted."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))


def get(name: str | Path) -> Published:
    """The packaged table `name`, or the one in a YAML file where `name` is a path (it has a `/`, or ends in .yaml).

    Raises:
        MtlError: no such table, with the nearest name; or a file that does not follow the schema, with every mistake
            and its line.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml") and len(path.parts) == 1:
        if name not in names():
            raise MtlError(
                f"no published table '{name}'{did_you_mean(name, names())}; there are: {', '.join(names())}; "
                "for one of your own, give the path of its YAML file"
            )
        path = _FOLDER / f"{name}.yaml"
    document = yamlfile.read(path)
    if not isinstance(document.values, dict):
        keys = ", ".join(Published.model_fields)
        raise MtlError(f"{path}: should be a map with the keys {keys}; found {yamlfile.show(document.values)}")
    table, problems = check(Published, document.values)
    if table is None:
        raise MtlError("\n".join(f"{_place(path, p.path, document.lines)}{p.message}" for p in problems))
    return table


def _place(path: Path, key: str, lines: Mapping[str, int]) -> str:
    """File, line and key of a mistake; the line of the nearest key above one that is missing."""
    parts = key.split(".")
    above = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    line = next((f", line {lines[place]}" for place in above if place in lines), "")
    return f"{path}{line}: {key}: " if key else f"{path}: "
