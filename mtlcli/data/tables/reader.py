"""Blocks of a file -> rows whose values are what they should be; the others are reported, or left out and counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from mtlcli.data.tables.files import DELIMITED
from mtlcli.data.tables.fitted import label_column
from mtlcli.data.tables.kinds import EXPECTED, TRUTH, Held, conform, whole_texts
from mtlcli.data.tables.options import LabelKind
from mtlcli.data.tables.source import NO_UTF8, RAGGED, ROW, UNCLOSED, Block, Source
from mtlcli.data.tables.splits import SPELLED
from mtlcli.errors import MtlError, how_many
from mtlcli.yamlfile import show

if TYPE_CHECKING:
    import polars as pl

INDEX = "\0index"  # the column with every row's number over all files
KEY = "\0key"
SPLIT = "\0split"
EXAMPLES = 3  # of rows that were left out, in the note
OF_A_RECIPE = "data.on_error: skip"  # what leaves bad rows out
OF_NEW_FILES = "--on-error skip"


class Target(NamedTuple):
    """The column of a task's labels: what it holds, and which values are labels (None: all that occur)."""

    task: str
    kind: LabelKind
    column: str
    held: Held
    classes: tuple[str, ...] | None = None
    least: float | None = None  # regression: what log1p can take


@dataclass
class Faults:
    """Rows that cannot be used: the first one ends it, or all are counted."""

    skip: bool
    option: str = OF_A_RECIPE
    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, block: Block, rows: pl.Series, message: str, help_: str) -> None:
        """Rows of `block` by their numbers. Raises MtlError about the first, unless they are to be left out."""
        place = where(block, int(rows[0]))
        if not self.skip:
            more = f" (and {how_many(len(rows) - 1, 'more row')} near it)" if len(rows) > 1 else ""
            raise MtlError(f"{place}: {message}{more}; {help_}, or leave such rows out with {self.option}")
        if len(self.examples) < EXAMPLES:
            self.examples.append(f"{place}: {message}")

    @property
    def note(self) -> str | None:
        """What to tell about the rows that were left out."""
        if not self.count:
            return None
        more = "; ..." if self.count > len(self.examples) else ""
        were = "was" if self.count == 1 else "were"
        rows = how_many(self.count, "bad row")
        return f"{rows} {were} left out ({self.option}): {'; '.join(self.examples)}{more}"


@dataclass(frozen=True)
class Reader:
    """Reads `columns` (features), labels, and the columns with keys and splits, of one source."""

    source: Source
    columns: Mapping[str, Held]
    targets: Sequence[Target] = ()
    key: str | None = None
    split: str | None = None

    def read(self, block: Block, faults: Faults) -> pl.DataFrame:
        """The good rows of `block`: its columns, a label column per target, KEY, SPLIT, ROW and INDEX.

        Raises MtlError for a bad row that is not to be left out, and for a column of a type that never fits.
        """
        import polars as pl

        wanted = [*self.columns, *(t.column for t in self.targets), *(c for c in (self.key, self.split) if c)]
        numbers = {name for name, held in self.columns.items() if held.kind == "numeric"}
        numbers |= {target.column for target in self.targets if target.kind == "regression"}
        numbers -= {t.column for t in self.targets if t.kind != "regression"} | {self.key or "", self.split or ""}
        raw = self.source.read(block, list(dict.fromkeys(wanted)), frozenset(numbers))
        found = {ROW: raw[ROW], INDEX: raw[ROW] + (block.offset - block.start)}
        bad = raw[RAGGED].is_not_null()
        if bad.any():
            unread = raw.filter(bad)
            fields = how_many(len(self.source.types), "field")
            message, remedy = f"should have {fields}; found {unread[RAGGED][0]}", "correct it"
            if unread[RAGGED][0] == NO_UTF8:
                message, remedy = "should be text in UTF-8; found other bytes", "save the file as UTF-8"
            elif unread[RAGGED][0] == UNCLOSED:
                message = "opens a quote that is never closed, so that all that follows in the file belongs to this row"
                remedy = "close it"
            faults.add(block, unread[ROW], message, remedy)
        sound = ~bad
        for name, held in self.columns.items():
            found[name], wrong = self._held(raw, name, held, block, faults, sound)
            bad = bad if wrong is None else bad | wrong
        for target in self.targets:
            found[label_column(target.task)], wrong = self._label(raw, target, block, faults, sound)
            bad = bad if wrong is None else bad | wrong
        for name, column in ((KEY, self.key), (SPLIT, self.split)):
            if column is not None:
                found[name], _ = self._held(raw, column, Held("text"), block, faults, sound)
        if self.split is not None:
            wrong = ~found[SPLIT].str.to_lowercase().is_in(list(SPELLED)).fill_null(False) & sound
            if wrong.any():
                rows, value = raw.filter(wrong), raw.filter(wrong)[self.split][0]
                faults.add(
                    block,
                    rows[ROW],
                    f"column '{self.split}' should say train, val (or valid, validation, dev) or test; found "
                    f"{_shown(value)}",
                    "correct it",
                )
                bad = bad | wrong
        frame = pl.DataFrame(found)
        faults.count += int(bad.sum())
        return frame.filter(~bad) if bad.any() else frame

    def _held(
        self, raw: pl.DataFrame, name: str, held: Held, block: Block, faults: Faults, sound: pl.Series
    ) -> tuple[pl.Series, pl.Series | None]:
        found = conform(raw[name], held, self.source.missing)
        expected = EXPECTED[held.kind] if held.format is None else f"a date like {held.format}"
        if found is None:
            raise MtlError(
                f"{block.file}: column '{name}' should hold {expected} in every row; its type is {raw[name].dtype}"
            )
        if found.wrong is None:
            return found.values, None
        wrong = found.wrong & sound
        if wrong.any():
            rows = raw.filter(wrong)
            faults.add(
                block,
                rows[ROW],
                f"column '{name}' should hold {expected}, as in most rows; found {_shown(rows[name][0])}",
                "correct it"
                if faults.option == OF_NEW_FILES
                else f"correct it{self._missing(rows[name])}, say what the column is (data.columns: {{{name}: "
                "categorical})",
            )
        return found.values, wrong

    def _label(
        self, raw: pl.DataFrame, target: Target, block: Block, faults: Faults, sound: pl.Series
    ) -> tuple[pl.Series, pl.Series | None]:
        import polars as pl

        found = conform(raw[target.column], target.held, self.source.missing)
        about = f"column '{target.column}', the label of task '{target.task}',"
        if found is None:
            raise MtlError(
                f"{block.file}: {about} should hold {EXPECTED[target.held.kind]} in every row; its type is "
                f"{raw[target.column].dtype}"
            )
        values, wrong, expected = found.values, found.wrong, EXPECTED[target.held.kind]
        if target.kind != "regression":
            if target.held.kind == "boolean":
                called = {TRUTH[name.lower()]: name for name in target.classes or ("false", "true")}
                values = values.replace_strict(called, return_dtype=pl.String)
            elif target.held.kind == "numeric":
                # Through float64, whole numbers beyond 2**53 would run into each other.
                exact = whole_texts(raw[target.column], self.source.missing)
                spelled = conform(values, Held("text"), ()).values  # type: ignore[union-attr]
                values = exact.zip_with(exact.is_not_null(), spelled)
            truth = values.str.to_lowercase()  # True and true are one class: programs write both
            values = values.zip_with(~truth.is_in(["true", "false"]).fill_null(False), truth)
            if target.classes is not None:
                expected = f"one of its classes {_listed(target.classes)}"
                unknown = values.is_not_null() & ~values.is_in(list(target.classes))
                wrong = unknown if wrong is None else unknown | wrong
        elif target.least is not None:
            low = (values < target.least).fill_null(False)
            if low.any():
                expected = f"a number of at least {target.least:g}, as `transform: log1p` needs"
                wrong = low if wrong is None else low | wrong
        if wrong is None or not (wrong := wrong & sound).any():
            return values, None
        rows = raw.filter(wrong)
        faults.add(
            block,
            rows[ROW],
            f"{about} should hold {expected}, or nothing where it is not known; found {_shown(rows[target.column][0])}",
            "correct it"
            if faults.option == OF_NEW_FILES
            # A text that is repeated may be one more class.
            else f"correct it{self._missing(rows[target.column], repeated=target.kind == 'regression')}",
        )
        return values.cast(pl.String) if target.kind != "regression" else values, wrong

    def _missing(self, wrong: pl.Series, repeated: bool = True) -> str:
        """The remedy for a text that seems to stand for a missing value: it has no letter or digit, or is repeated."""
        text = wrong[0].strip() if isinstance(wrong[0], str) else ""
        if not text or (any(map(str.isalnum, text)) and not (repeated and (wrong == wrong[0]).sum() > 1)):
            return ""
        listed = show([*self.source.missing, text], width=200)
        return f", say that it stands for a missing value (data.missing: {listed})"


def where(block: Block, row: int) -> str:
    """A row of a file, counted from 1 without the header; of text files, its line where that is known."""
    line = f" (line {row + 1 + block.above})" if block.plain and block.file.suffix.lower() in DELIMITED else ""
    return f"{block.file}, row {row + 1}{line}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _listed(values: Sequence[str], most: int = 8) -> str:
    return ", ".join(values[:most]) + (f" and {len(values) - most} more" if len(values) > most else "")
