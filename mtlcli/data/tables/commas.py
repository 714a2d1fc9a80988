"""Numbers with a decimal comma, `1,5`: which columns hold them, and how they are read.

They are looked for where another mark than the comma stands between fields. A point in such a column groups thousands:
`1.234,5` is 1234.5, and `1.234` is 1234. Where a comma could group thousands as well, as in `1,234`, it is a decimal
comma, unless whole numbers without one stand in the same column.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from mtlcli.data.tables.kinds import MOSTLY, texts

if TYPE_CHECKING:
    import polars as pl

GROUPED = r"[+-]?(\d+|\d{1,3}(\.\d{3})+)"
WHOLE = rf"^{GROUPED}$"
NUMBER = rf"^({GROUPED}|[+-]?),\d+([eE][+-]?\d+)?$"
UNSURE = r"^[+-]?[1-9]\d{0,2},\d{3}$"
POINT = r"^[+-]?\d*\.\d+$"


def found(frame: pl.DataFrame, missing: Sequence[str], known: Collection[str]) -> Mapping[str, str]:
    """Columns of text with numbers that have a decimal comma, and what to tell a person of each.

    `known`: columns that are known to have some elsewhere, so that nothing is unsure of them.
    """
    told = {}
    for column in frame:
        values = texts(column, missing).drop_nulls()
        numbers = values.filter(values.str.contains(NUMBER))
        if not len(numbers):
            continue
        whole = values.str.contains(WHOLE)
        points = values.str.contains(POINT) & ~whole
        if points.any() or len(numbers) + whole.sum() <= MOSTLY * len(values):
            continue
        unsure = bool(numbers.str.contains(UNSURE).all())
        if unsure and column.name not in known and whole.any():
            continue
        example = numbers[0]
        told[column.name] = "decimal commas" + (f": {example} is read as {pointed(numbers)[0]}" if unsure else "")
    return told


def pointed(column: pl.Series) -> pl.Series:
    """The numbers among texts with a decimal point, and nothing between thousands; other texts as they are."""
    stripped = column.str.strip_chars()
    plain = stripped.str.replace_all(".", "", literal=True).str.replace(",", ".", literal=True)
    return plain.zip_with((stripped.str.contains(NUMBER) | stripped.str.contains(WHOLE)).fill_null(False), column)
