"""One pass over the rows of a table: which columns there are, what they hold, and everything that is fitted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mtlcli.data.base import ColumnUse
from mtlcli.data.tables import labels, leaks
from mtlcli.data.tables.fitted import Column, Fitted, label_column
from mtlcli.data.tables.kinds import As, Held, declared, hold
from mtlcli.data.tables.options import SplitOptions, TaskOptions
from mtlcli.data.tables.profile import CAMEL, FEWEST, IDENTIFIER, Profile
from mtlcli.data.tables.reader import INDEX, KEY, SPLIT, Faults, Reader, Target
from mtlcli.data.tables.source import JUDGED, RAGGED, ROW, Block, Source, spread
from mtlcli.data.tables.splits import TEST, TRAIN, Codes, counted, drawn, key_hashes, row_hashes, told
from mtlcli.errors import MtlError, OptionError, did_you_mean

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class Wanted:
    """What a recipe asks of a table."""

    tasks: Mapping[str, TaskOptions]
    features: Sequence[str] | None  # None: all that are left
    drop: Sequence[str]
    columns: Mapping[str, As]
    split: SplitOptions
    skip: bool
    sample: int | None  # training rows that are kept for medians; None keeps all


@dataclass
class Gathered:
    """What one pass found."""

    profile: Profile
    faults: Faults
    targets: list[Target]
    frames: list[tuple[pl.DataFrame, Codes]] = field(default_factory=list)  # where rows are kept
    counts: list[tuple[Source, Block, np.ndarray[Any, Any]]] = field(default_factory=list)  # rows by split, of blocks
    rows: leaks.Overlap = field(default_factory=leaks.Overlap)
    keys: leaks.Overlap | None = None
    suspects: dict[str, leaks.Overlap] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A source, that of the test rows if they have one, and what their columns are."""

    wanted: Wanted
    source: Source
    test: Source | None
    held: Mapping[str, Held]
    targets: Sequence[Target]
    uses: Sequence[ColumnUse]
    carve: bool  # whether validation rows are drawn from those for training

    @classmethod
    def judge(cls, wanted: Wanted, source: Source, test: Source | None) -> Table:
        """Decide which columns are features and what they hold. Raises OptionError for what does not fit."""
        split = wanted.split
        labels.check_names(list(wanted.tasks))
        for name, task in wanted.tasks.items():
            column = task.column or name
            if column not in source.types:
                raise OptionError(
                    f"tasks.{name}.column" if task.column else f"tasks.{name}",
                    f"{source.files[0]} has no column '{column}'{did_you_mean(column, source.types)}; "
                    f"there are: {', '.join(source.types)}",
                )
        special = {"split.by": split.by, "split.column": split.column}
        for option, names in (
            *((option, [name] if name else []) for option, name in special.items()),
            ("features", wanted.features or []),
            ("drop", wanted.drop),
            ("columns", list(wanted.columns)),
        ):
            for name in names:
                if name not in source.types:
                    raise OptionError(
                        option,
                        f"{source.files[0]} has no column '{name}'{did_you_mean(name, source.types)}; "
                        f"there are: {', '.join(source.types)}",
                    )
        rows = head(source)
        uses, held = _features(wanted, source, rows)
        if test is not None:
            asked = [task.column or name for name, task in wanted.tasks.items()]
            test.require([*held, *asked, *([split.by] if split.by else [])], str(source.files[0]))
        targets = [
            labels.target(name, task, rows[task.column or name], source.missing) for name, task in wanted.tasks.items()
        ]
        carve = split.test_path is not None or (split.column is not None and not _says_val(source, split.column))
        if split.column is not None and not carve and split.val is not None:
            raise OptionError("split.val", f"the column '{split.column}' has rows for validation; leave `val` out")
        return cls(wanted, source, test, held, targets, uses, carve or split.column is None)

    def gather(self, keep: bool) -> Gathered:
        """Read all rows, once; or twice where rows turn out to have a class that is none. `keep`: hold them in memory.

        Raises MtlError for a bad row, OptionError where there is nothing to learn.
        """
        found = self._pass(self.targets, keep)
        decided, strange = [], False
        for target in self.targets:
            if target.kind != "regression" and target.classes is None:
                counts = found.profile.labels[target.task]
                target = target._replace(classes=labels.classes(target, self.wanted.tasks[target.task], counts))
                strange = strange or not counts["value"].is_in(list(target.classes or ())).all()
            decided.append(target)
        found.targets = decided
        return self._pass(decided, keep) if strange else found

    def fit(self, found: Gathered) -> tuple[Fitted, list[ColumnUse], list[str]]:
        """What new rows need, what became of every column, and what to tell a person."""
        uses, notes = list(self.uses), [found.faults.note] if found.faults.note else []
        columns: list[Column] = []
        chosen = {*(self.wanted.features or ()), *self.wanted.columns}
        for name in self.held:
            column, use, note = found.profile.column(name, name in chosen)
            columns += [column] if column else []
            uses.append(use)
            notes += [note] if note else []
        if not columns:
            raise OptionError("features", f"{self.source.files[0]}: no column is left to predict from")
        fitted_labels, of_labels = labels.fit(found.targets, self.wanted.tasks, found.profile)
        notes += of_labels
        uses = [self._told(use) for use in uses]
        chance = leaks.chance(found.profile.sample.select(self._values()))
        notes += leaks.given_away(found.profile.sample.sort(INDEX), columns, fitted_labels)
        notes += leaks.overlap_notes(found.rows, found.keys, self.wanted.split.by, found.suspects, chance)
        fitted = Fitted(
            columns=columns,
            labels=fitted_labels,
            key=self.wanted.split.by,
            ignored=[use.column for use in uses if use.used_as in ("dropped", "split")],
            decimal_commas=list(self.source.decimal_commas),
            missing=list(self.source.missing),
        )
        order = {name: place for place, name in enumerate(self.source.types)}
        return fitted, sorted(uses, key=lambda use: order[use.column]), notes

    def readers(self, targets: Sequence[Target]) -> Iterator[tuple[Reader, bool]]:
        """One for each source, and whether all of its rows are for the test."""
        split = self.wanted.split
        yield Reader(self.source, self.held, targets, split.by, split.column), False
        if self.test is not None:
            yield Reader(self.test, self.held, targets, split.by), True

    def codes(self, frame: pl.DataFrame, test: bool, draw: Callable[..., Codes]) -> Codes:
        """The split of every row; `draw` is `counted` where these are all rows, else `drawn`."""
        split = self.wanted.split
        if test:
            return np.full(len(frame), TEST, np.int8)
        index = frame[INDEX].to_numpy()
        codes = np.zeros(len(frame), np.int8)
        if split.column is not None:
            codes = told(frame[SPLIT]).copy()
        if self.carve:
            open_ = codes == TRAIN
            hashes = row_hashes(index, split.seed) if split.by is None else key_hashes(frame[KEY], index, split.seed)
            codes[open_] = draw(hashes[open_], split.shares)
        return codes

    def _pass(self, targets: Sequence[Target], keep: bool) -> Gathered:
        import polars as pl

        faults = Faults(self.wanted.skip)
        profile = Profile(self.held, targets, None if keep else self.wanted.sample, self.wanted.split.seed)
        found = Gathered(profile, faults, list(targets))
        apart = self.wanted.split.column is not None or self.test is not None
        found.keys = leaks.Overlap() if self.wanted.split.by is not None and apart else None
        found.suspects = {name: leaks.Overlap() for name in self._suspects()}
        for reader, test in self.readers(targets):
            parts = ((block, reader.read(block, faults)) for block in reader.source.blocks)
            if keep:
                whole = pl.concat([frame for _, frame in parts])
                codes = self.codes(whole, test, counted)
                found.frames.append((whole, codes))
                self._take(found, whole, codes)
                continue
            for block, frame in parts:
                codes = self.codes(frame, test, drawn)
                found.counts.append((reader.source, block, np.bincount(codes, minlength=3)))
                self._take(found, frame, codes)
        found.suspects = {n: s for n, s in found.suspects.items() if s.distinct >= FEWEST}
        return found

    def _take(self, found: Gathered, frame: pl.DataFrame, codes: Codes) -> None:
        found.profile.add(frame, codes)
        found.rows.add(leaks.hashes(frame.select(self._values())), codes)
        for name, overlap in (*found.suspects.items(), *([(KEY, found.keys)] if found.keys else [])):
            known = frame[name].is_not_null()
            overlap.add(leaks.hashes(frame.filter(known).select(name)), codes[known.to_numpy()])

    def _values(self) -> list[str]:
        """Columns of a frame by which two rows are the same."""
        return [*self.held, *(label_column(target.task) for target in self.targets)]

    def _told(self, use: ColumnUse) -> ColumnUse:
        """With what only the files and the split say of a column."""
        split = self.wanted.split
        if use.used_as == "key" and split.column is not None:
            drawn_too = "; between train and val, all rows of a key stay together" if self.carve else ""
            return use._replace(detail=f"the column '{split.column}' says which split a row is in{drawn_too}")
        if use.used_as == "key" and split.test_path is not None:
            return use._replace(detail="between train and val, all rows of a key stay together")
        commas = self.source.decimal_commas.get(use.column)
        return use if commas is None else use._replace(detail=f"{use.detail}; {commas}")

    def _suspects(self) -> list[str]:
        """Features that look like keys."""
        return [name for name in self.held if IDENTIFIER.search(name) or CAMEL.search(name)]


def head(source: Source) -> pl.DataFrame:
    """Up to JUDGED rows, from stretches spread over the files, as they are written."""
    import polars as pl

    chosen = spread(source.blocks)
    parts = [source.read(b, list(source.types)).head(JUDGED // len(chosen)) for b in chosen]
    try:
        return pl.concat(parts, how="vertical_relaxed").filter(pl.col(RAGGED).is_null()).drop(ROW, RAGGED)
    except pl.exceptions.SchemaError:
        raise MtlError(_types_apart(chosen, parts)) from None


def _types_apart(blocks: Sequence[Block], parts: Sequence[pl.DataFrame]) -> str:
    """What to tell of the first column that is of types in several files which do not go together."""
    import polars as pl

    for name in parts[0].columns:
        for block, part in zip(blocks[1:], parts[1:], strict=True):
            try:
                pl.concat([parts[0].select(name), part.select(name)], how="vertical_relaxed")
            except pl.exceptions.SchemaError:
                return (
                    f"{block.file}: the column '{name}' is of type {part[name].dtype}, and of "
                    f"{parts[0][name].dtype} in {blocks[0].file}; files read together need types that go together"
                )
    return f"{blocks[0].file}: its columns are of other types than those of the files that are read with it"


def _features(wanted: Wanted, source: Source, head: pl.DataFrame) -> tuple[list[ColumnUse], dict[str, Held]]:
    """What becomes of every column before any statistics: uses of those that are not features; what features hold."""
    split = wanted.split
    tasks: dict[str, list[str]] = {}
    for name, task in wanted.tasks.items():
        tasks.setdefault(task.column or name, []).append(name)
    uses, held = [], {}
    for name in wanted.columns:
        if name in tasks:
            raise OptionError(
                f"columns.{name}",
                f"is the label of task '{tasks[name][0]}', whose `kind` says what it holds; leave it out",
            )
    for name in wanted.features or ():
        if name in tasks:
            raise OptionError("features", f"the column '{name}' is the label of task '{tasks[name][0]}'; leave it out")
        if name in wanted.drop:
            raise OptionError("features", f"the column '{name}' is also named in data.drop; leave one of them out")
        if name == split.column:
            raise OptionError("features", f"the column '{name}' says which split a row is in; leave it out")
    for name in source.types:
        if name in tasks:
            uses.append(ColumnUse(name, "label", f"of {', '.join(tasks[name])}"))
        elif name == split.column:
            uses.append(ColumnUse(name, "split", "says train, val or test"))
        elif name == split.by and name not in (wanted.features or ()):
            uses.append(ColumnUse(name, "key", "all rows of a key come into the same split"))
        elif name in wanted.drop:
            uses.append(ColumnUse(name, "dropped", "named in data.drop"))
        elif wanted.features is not None and name not in wanted.features:
            uses.append(ColumnUse(name, "dropped", "not named in data.features"))
        else:
            as_ = wanted.columns.get(name)
            found = hold(head[name], source.missing) if as_ is None else declared(head[name], as_)
            if isinstance(found, Held):
                held[name] = found
            else:
                why = "empty" if found == "empty" else f"of type {head[name].dtype}, which cannot be used"
                if name in (wanted.features or ()) and found == "unsupported":
                    raise OptionError("features", f"the column '{name}' is {why}")
                uses.append(ColumnUse(name, "dropped", why))
    return uses, held


def _says_val(source: Source, column: str) -> bool:
    """Whether any row says that it is for validation."""
    reader = Reader(source, {}, split=column)
    faults = Faults(skip=True)
    return any((told(reader.read(block, faults)[SPLIT]) == 1).any() for block in source.blocks)
