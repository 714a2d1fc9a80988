"""The head of a text file: the names of its columns, what separates its fields, and where its rows begin."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mtlcli.data.tables.files import DELIMITED
from mtlcli.errors import MtlError

LONGEST = 2**20  # bytes of a line
BREAK = re.compile(r"\s*[\r\n]\s*")
QUOTED = re.compile('"[^"]*"')
SPREADSHEET = "sep="  # how the first line of a spreadsheet's export may name the separator: `sep=;`


class Head(NamedTuple):
    """What stands above the rows of a text file."""

    names: list[str]
    separator: str
    begin: int  # the byte where the rows begin
    lines: int  # above the first row


def head(file: Path) -> Head:
    """Of `file`. Raises MtlError where it is not text in UTF-8, or has a name twice."""
    usual = DELIMITED[file.suffix.lower()]
    # Of a .csv, whichever of comma, semicolon and tab its first line holds most of.
    separators, above = (",;\t" if usual == "," else usual), 0
    with open(file, "rb") as handle:
        text = handle.readline(LONGEST)
        line = _decoded(file, text).strip("\r\n")
        if line.lower().startswith(SPREADSHEET) and len(line) == len(SPREADSHEET) + 1:
            separators, above = line[-1], 1
            text = handle.readline(LONGEST)
        try:
            names, separator = _fields(_decoded(file, text), separators)
            while unclosed(_decoded(file, text), names):  # a name over several lines
                more = handle.readline(LONGEST)
                if not more or len(text) > LONGEST:
                    raise MtlError(f"{file}: its first line opens a quote that is never closed; close it")
                text += more
                names, separator = _fields(_decoded(file, text), separators)
        except csv.Error as error:
            if b"\r" in text.rstrip(b"\r\n"):
                raise MtlError(
                    f"{file}: its lines should end in a line feed; they end in a carriage return alone, as on old "
                    "computers; save it with other line ends"
                ) from None
            raise MtlError(f"{file}: cannot be read as csv: {error}") from None
        begin, lines = handle.tell(), above + max(1, text.count(b"\n"))
    if not names:
        raise MtlError(f"{file}: is empty; the first line should name the columns")
    # Programs that number the rows leave that column without a name.
    names = [BREAK.sub(" ", name.strip()) or f"unnamed_{number}" for number, name in enumerate(names, 1)]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise MtlError(f"{file}: has two columns '{name}'; every column needs a name of its own")
    return Head(names, separator, begin, lines)


def unclosed(text: str, fields: Sequence[str]) -> bool:
    """Whether `text` ends within quotes, given the `fields` of its last row."""
    return bool(fields and fields[-1]) and text.endswith('"' + fields[-1].replace('"', '""'))


def _fields(line: str, separators: str) -> tuple[list[str], str]:
    """The fields of `line`, and which of `separators` it holds most of, outside of quotes."""
    separator = max(separators, key=QUOTED.sub("", line).count)
    # Lines end in a line feed alone: what is left of a file with other ends is refused, not taken for a line.
    return next(csv.reader(io.StringIO(line, newline="\n"), delimiter=separator), []), separator


def _decoded(file: Path, line: bytes) -> str:
    if line.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in line:
        raise MtlError(
            f"{file}: should be a text file in UTF-8; it looks like UTF-16, or is not text at all; save it as UTF-8"
        )
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MtlError(
            f"{file}: should be a text file in UTF-8; byte {error.start} of its first line is not; save it as UTF-8"
        ) from None
