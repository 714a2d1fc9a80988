"""The head of a text file: the names of its columns, what separates its fields, and where its rows begin."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

from mtlcli.data.tables.files import DELIMITED
from mtlcli.errors import MtlError

LONGEST = 2**20  # bytes of a line
SPREADSHEET = "sep="  # how the first line of a spreadsheet's export may name the separator: `sep=;`


class Head(NamedTuple):
    """What stands above the rows of a text file."""

    names: list[str]
    separator: str
    begin: int  # the byte where the rows begin
    lines: int  # above the first row


def head(file: Path) -> Head:
    """Of `file`. Raises MtlError where it is no text in UTF-8, or has a name twice."""
    separator, lines = DELIMITED[file.suffix.lower()], 1
    with open(file, "rb") as handle:
        text = handle.readline(LONGEST)
        line = _decoded(file, text).strip("\r\n")
        told = line.lower().startswith(SPREADSHEET) and len(line) == len(SPREADSHEET) + 1
        if told:
            separator, lines = line[-1], 2
            text = handle.readline(LONGEST)
        elif separator == ",":  # of a .csv, whichever of comma, semicolon and tab its first line holds most of
            separator = max(",", ";", "\t", key=line.count)
        begin = handle.tell()
    try:
        names = next(csv.reader([_decoded(file, text)], delimiter=separator), [])
    except csv.Error as error:
        if b"\r" in text.rstrip(b"\r\n"):
            raise MtlError(
                f"{file}: its lines should end in a line feed; they end in a carriage return alone, as on old "
                "computers; save it with other line ends"
            ) from None
        raise MtlError(f"{file}: cannot be read as csv: {error}") from None
    if not names:
        raise MtlError(f"{file}: is empty; the first line should name the columns")
    # Programs that number the rows leave that column without a name.
    names = [name.strip() or f"unnamed_{number}" for number, name in enumerate(names, 1)]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise MtlError(f"{file}: has two columns '{name}'; every column needs a name of its own")
    return Head(names, separator, begin, lines)


def _decoded(file: Path, line: bytes) -> str:
    if line.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in line:
        raise MtlError(f"{file}: should be a text file in UTF-8; it looks like UTF-16; save it as UTF-8")
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MtlError(
            f"{file}: should be a text file in UTF-8; byte {error.start} of its first line is none; save it as UTF-8"
        ) from None
