"""Which split a row belongs to. Nothing but the seed and the row's number, key or own word decides."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mtlcli.data.tables.options import SPLITS, SplitOptions
from mtlcli.errors import OptionError

if TYPE_CHECKING:
    import polars as pl

Codes = NDArray[np.int8]  # of SPLITS, by row
TRAIN, VAL, TEST = range(3)
SPELLED = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "dev", "development"), VAL),
    **dict.fromkeys(("test", "testing"), TEST),
}


def told(words: pl.Series) -> Codes:
    """Codes (N,) of rows that say themselves where they belong, in words among SPELLED."""
    import polars as pl

    codes: Codes = words.str.to_lowercase().replace_strict(SPELLED, return_dtype=pl.Int8).to_numpy()
    return codes


def drawn(keys: NDArray[np.uint64], shares: tuple[float, float]) -> Codes:
    """Codes (N,) of rows by their hashes (N,), with shares of validation and test that hold on average."""
    share = keys.astype(np.float64) / 2.0**64
    val, test = shares
    return np.select([share < test, share < test + val], [TEST, VAL], TRAIN).astype(np.int8)


def counted(keys: NDArray[np.uint64], shares: tuple[float, float]) -> Codes:
    """Like `drawn`, with shares that hold as exactly as whole rows, or whole keys, allow; no share stays empty."""
    _, which, sizes = np.unique(keys, return_inverse=True, return_counts=True)
    val, test = (round(share * len(keys)) for share in shares)
    # A key with more rows than both should have is for training, if any is; they share what the others have.
    large = sizes > val + test
    order = np.argsort(large, kind="stable")
    share = min(1.0, sizes[~large].sum() / max(1, val + test))
    val, test = val * share, test * share
    middle = np.cumsum(sizes[order]) - sizes[order] / 2  # a key belongs where its middle row would
    first = max(int((middle < test).sum()), int(shares[1] > 0))
    second = max(int((middle < test + val).sum()), first + int(shares[0] > 0))
    codes = np.repeat(np.array([TEST, VAL, TRAIN], np.int8), np.diff([0, first, second, max(second, len(sizes))]))
    found: Codes = codes[np.argsort(order)[which]]
    return found


def row_hashes(index: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """Hashes (N,) of row numbers (N,): splitmix64, which is the same everywhere."""
    with np.errstate(over="ignore"):
        x = index.astype(np.uint64) + np.uint64(1) + np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        found: NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return found


def key_hashes(keys: pl.Series, index: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """Hashes (N,) of keys; a row without a key has one of its own."""
    import polars as pl

    known = keys.drop_nulls().unique()
    salt = (seed % 2**64).to_bytes(8, "little")
    hashes = [
        int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8, salt=salt).digest(), "little") for key in known
    ]
    found = keys.replace_strict(known, pl.Series(hashes, dtype=pl.UInt64), default=None, return_dtype=pl.UInt64)
    own = row_hashes(index, seed)
    return np.where(keys.is_null().to_numpy(), own, found.fill_null(0).to_numpy())


def check_sizes(options: SplitOptions, sizes: Mapping[str, int]) -> None:
    """Raise OptionError where a split is empty."""
    empty = next((name for name in SPLITS if not sizes[name]), None)
    if empty is None:
        return
    apart = "split.test_path" if options.test_path else "split.column" if options.column else None
    option = apart if apart and empty != "val" else "split.by" if options.by else "split"
    counts = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
    what = "a larger share, or more keys" if options.by else "a larger share, or more rows"
    raise OptionError(option, f"leaves the split '{empty}' without rows ({counts}); what helps: {what}")
