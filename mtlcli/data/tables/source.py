"""Files as frames: block after block, in any order, with the number of every row."""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mtlcli.data.tables import commas as decimal
from mtlcli.data.tables.files import DELIMITED, PARQUET, find
from mtlcli.data.tables.heads import head, unclosed
from mtlcli.errors import MtlError, did_you_mean

if TYPE_CHECKING:
    import polars as pl

ROW = "\0row"  # the column with every row's number in its file, from 0
RAGGED = "\0ragged"  # the column with the number of fields of a row that has too few or too many; else null
NO_UTF8 = -1  # in RAGGED, of a row that is not text in UTF-8
UNCLOSED = -2  # of the last one, where it ends within quotes
VALUES = 2**21  # of a block: 65,536 rows at most
BYTES = 2**24  # of a block of a text file
JUDGED = 100_000  # rows by which it is judged what a column holds
STRETCHES = 8  # that these are taken from, spread over the files


class Block(NamedTuple):
    """A stretch of rows of one file."""

    file: Path
    start: int  # number of its first row in the file, from 0
    rows: int
    offset: int  # number of its first row over all files
    span: tuple[int, int] = (0, 0)  # bytes, of a text file
    plain: bool = False  # of a text file: up to its end, every line is a row
    blank: bool = False  # of a text file: whether lines can be blank
    above: int = 1  # of a text file: lines above its first row


@dataclass(frozen=True)
class Source:
    """One or several files with the same columns.

    Raises MtlError, with the file, where one cannot be read, or has other columns than the first.
    """

    files: tuple[Path, ...]
    missing: tuple[str, ...]  # texts that mean that there is no value
    commas: tuple[str, ...] = ()  # columns that are known to hold numbers with a decimal comma

    @classmethod
    def at(cls, path: Path | Sequence[Path], missing: Sequence[str], commas: Sequence[str] = ()) -> Source:
        """Of the files at `path`: one path or several."""
        paths = [path] if isinstance(path, Path) else path
        files = dict.fromkeys(file for each in paths for file in find(each))
        return cls(tuple(files), tuple(missing), tuple(commas))

    @cached_property
    def types(self) -> Mapping[str, pl.DataType | None]:
        """Every column, with its type; None where the files say nothing of types."""
        first = _header(self.files[0])
        for file in self.files[1:]:
            other = _header(file)
            for one, two, whose in ((first, other, file), (other, first, self.files[0])):
                for name in one:
                    if name not in two:
                        raise MtlError(
                            f"{whose}: has no column '{name}'{did_you_mean(name, two)}, which "
                            f"{file if whose != file else self.files[0]} has; files read together need the same columns"
                        )
        for name in first:
            if name == "*" or (name.startswith("^") and name.endswith("$")):
                raise MtlError(f"{self.files[0]}: has a column '{name}', which polars takes for a pattern; rename it")
        return first

    def require(self, names: Sequence[str], like: str) -> None:
        """Raise MtlError where the files lack one of the columns `names`, which `like` has."""
        lacking = [name for name in names if name not in self.types]
        if lacking:
            raise MtlError(
                f"{self.files[0]}: lacks the column{'s' * (len(lacking) > 1)} {', '.join(lacking)}, which {like} has"
                f"{did_you_mean(lacking[0], self.types)}"
            )

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """All rows in order. Of text files, this reads every byte once."""
        found: list[Block] = []
        for file in self.files:
            offset = found[-1].offset + found[-1].rows if found else 0
            if file.suffix.lower() in DELIMITED:
                found += _text_blocks(file, offset)
                continue
            with reading(file):
                import polars as pl

                total = _scan(file).select(pl.len()).collect().item()
            size = max(1024, min(2**16, VALUES // max(1, len(self.types))))
            found += [Block(file, at, min(size, total - at), offset + at) for at in range(0, total, size)]
        if not found:
            raise MtlError(f"{self.files[0]}: has no rows")
        return tuple(found)

    @property
    def rows(self) -> int:
        """Of all files, blank lines of text files included."""
        return self.blocks[-1].offset + self.blocks[-1].rows

    @cached_property
    def decoded_mib(self) -> float:
        """Rough memory that all rows take while they are read and encoded, in MiB."""
        if self.files[0].suffix.lower() in DELIMITED:
            return 4 * sum(file.stat().st_size for file in self.files) / 2**20
        return 20 * self.rows * len(self.types) / 2**20

    def read(self, block: Block, columns: Sequence[str], numbers: frozenset[str] = frozenset()) -> pl.DataFrame:
        """`columns` of one block, besides ROW and RAGGED. Of text files every column is text, but for `numbers`,
        which are numbers where all values of the block are."""
        import polars as pl

        if block.file.suffix.lower() in DELIMITED:
            told = set(self.decimal_commas) if _other_than_comma(block.file) else set[str]()
            frame = self._read_text(block, columns, numbers - told)
            return frame.with_columns(decimal.pointed(frame[name]) for name in columns if name in told)
        with reading(block.file):
            frame = _scan(block.file).select(columns).slice(block.start, block.rows).collect()
        index = pl.int_range(block.start, block.start + block.rows, eager=True)
        return frame.with_columns(index.alias(ROW), pl.lit(None, pl.Int64).alias(RAGGED))

    def digest(self) -> str:
        """Of the content of all files, in order."""
        digest = hashlib.sha256()
        for file in self.files:
            with reading(file), open(file, "rb") as handle:
                digest.update(hashlib.file_digest(handle, "sha256").digest())
        return digest.hexdigest()

    @cached_property
    def decimal_commas(self) -> Mapping[str, str]:
        """Columns that hold numbers with a decimal comma, with what to tell of them; judged by rows spread over the
        files."""
        import polars as pl

        chosen = spread([block for block in self.blocks if _other_than_comma(block.file)])
        parts = [self._read_text(block, list(self.types), frozenset()).head(JUDGED // len(chosen)) for block in chosen]
        return decimal.found(pl.concat(parts).drop(ROW, RAGGED), self.missing, self.commas) if parts else {}

    def _read_text(self, block: Block, columns: Sequence[str], numbers: frozenset[str]) -> pl.DataFrame:
        import polars as pl

        with reading(block.file), open(block.file, "rb") as handle:
            handle.seek(block.span[0])
            text = handle.read(block.span[1] - block.span[0])
            names, separator, *_ = head(block.file)

        def parse(numbers: frozenset[str]) -> pl.DataFrame:
            types = {name: pl.Float64 if name in numbers else pl.String for name in names}
            return pl.read_csv(
                text, has_header=False, schema=types, separator=separator, null_values=list(self.missing)
            )

        frame = None
        for typed in dict.fromkeys((numbers, frozenset[str]())):
            try:
                frame = parse(typed)
                break
            except pl.exceptions.PolarsError:
                continue
        short = frame is not None and len(names) > 1 and frame[names[-1]].has_nulls()
        open_ = text.count(b'"') % 2 == 1 and _quoted(text, separator)
        uneven = short and not _even(text, separator, block.rows, len(names))
        if frame is None or len(frame) != block.rows or open_ or uneven:
            return _slowly(text, block, names, columns, separator, self.missing)
        index = pl.int_range(block.start, block.start + block.rows, eager=True)
        frame = frame.with_columns(index.alias(ROW), pl.lit(None, pl.Int64).alias(RAGGED))
        if block.blank:
            frame = frame.filter(~pl.all_horizontal(pl.col(names).is_null()))
        return frame.select(*columns, ROW, RAGGED)


def spread(blocks: Sequence[Block]) -> list[Block]:
    """Up to STRETCHES of `blocks`, spread over all of them, by which to judge what the columns hold."""
    return [blocks[i] for i in sorted({round(x) for x in np.linspace(0, len(blocks) - 1, STRETCHES)})] if blocks else []


class reading:  # noqa: N801 - a context manager, which reads as a verb
    """Turn what a reader raises about `file` into one message."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        import polars as pl

        if isinstance(error, pl.exceptions.PolarsError | OSError | pl.exceptions.PanicException):
            what = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise MtlError(f"{self.file}: cannot be read as {self.file.suffix.lstrip('.')}: {what}") from None


def _scan(file: Path) -> pl.LazyFrame:
    """The rows of a file that knows the types of its columns."""
    import polars as pl

    if file.suffix.lower() in PARQUET:
        return pl.scan_parquet(file, glob=False, hive_partitioning=False)
    return pl.scan_ipc(glob.escape(str(file)), hive_partitioning=False)


def _header(file: Path) -> Mapping[str, pl.DataType | None]:
    """Columns and their types."""
    with reading(file):
        if file.suffix.lower() in DELIMITED:
            return dict.fromkeys(head(file).names)
        return dict(_scan(file).collect_schema())


def _other_than_comma(file: Path) -> bool:
    """Whether it is a text file whose fields are separated by another mark, so that a comma may stand in a number."""
    if file.suffix.lower() not in DELIMITED:
        return False
    with reading(file):
        return head(file).separator != ","


def _text_blocks(file: Path, offset: int) -> Iterator[Block]:
    """Blocks that end where a row ends: at a line break outside of quotes."""
    with reading(file), open(file, "rb") as handle:
        above = head(file)
        begin, row, plain = above.begin, 0, True
        end = os.fstat(handle.fileno()).st_size
        while begin < end:
            size = BYTES
            while True:
                handle.seek(begin)
                text = handle.read(size)
                last = begin + len(text) >= end
                breaks, lines, blank = _breaks(text, above.separator)
                if len(breaks) or last:
                    break
                size *= 2  # a field longer than a block
            stop = len(text) if last else int(breaks[-1]) + 1
            rows = len(breaks) + (last and (not len(breaks) or int(breaks[-1]) + 1 < len(text)))
            plain = plain and lines == len(breaks)
            yield Block(file, row, rows, offset + row, (begin, begin + stop), plain, blank, above.lines)
            begin, row = begin + stop, row + rows


def _breaks(text: bytes, separator: str) -> tuple[np.ndarray, int, bool]:
    """Where rows of `text`, which begins with one, end; how many lines end, and whether one of these is blank."""
    codes = np.frombuffer(text, np.uint8)
    breaks = np.flatnonzero(codes == ord("\n"))
    lines = len(breaks)
    short = breaks[np.diff(breaks, prepend=-1) == 2] - 1
    blank = bool((np.diff(breaks, prepend=-1) == 1).any() or (codes[short] == ord("\r")).any())
    if _quoted(text, separator):
        quotes = np.flatnonzero(codes == ord('"'))
        breaks = breaks[np.searchsorted(quotes, breaks) % 2 == 0]
    return breaks, lines, blank


def _quoted(text: bytes, separator: str) -> bool:
    """Whether a field of `text` begins with a quote; those further on are inches and the like."""
    return text.startswith(b'"') or f'{separator}"'.encode() in text or b'\n"' in text


def _even(text: bytes, separator: str, rows: int, width: int) -> bool:
    """Whether every row surely has `width` fields; False where only a closer look can tell."""
    return b'"' not in text and text.count(separator.encode()) == rows * (width - 1)


def _slowly(
    text: bytes, block: Block, names: list[str], columns: Sequence[str], separator: str, missing: Sequence[str]
) -> pl.DataFrame:
    """A block in which rows are too short, too long or no text, read field by field; such rows say so in RAGGED."""
    import polars as pl

    decoded = text.decode(errors="surrogateescape")  # bytes that are not UTF-8 become U+DC80 to U+DCFF
    try:
        lines = list(csv.reader(io.StringIO(decoded, newline=""), delimiter=separator, strict=False))
    except csv.Error as error:
        raise MtlError(f"{block.file}, after row {block.start}: cannot be read as csv: {error}") from None
    at = [names.index(name) for name in columns]
    blank = set(missing) | {""}
    faults = [_fault(line, len(names)) for line in lines]
    if lines and unclosed(decoded, lines[-1]):
        faults[-1] = UNCLOSED
    whole = [line if fault is None and line else [""] * len(names) for line, fault in zip(lines, faults, strict=True)]
    fields = {
        name: pl.Series([None if line[j] in blank else line[j] for line in whole], dtype=pl.String)
        for name, j in zip(columns, at, strict=True)
    }
    wrong = pl.Series(faults, dtype=pl.Int64)
    index = pl.int_range(block.start, block.start + len(lines), eager=True)
    return pl.DataFrame({**fields, ROW: index, RAGGED: wrong}).filter(pl.Series([bool(line) for line in lines]))


def _fault(line: Sequence[str], width: int) -> int | None:
    """What RAGGED says of a row."""
    if any("\udc80" <= character <= "\udcff" for field in line if not field.isascii() for character in field):
        return NO_UTF8
    return None if len(line) in (0, width) else len(line)
