"""How much memory rows may take."""

from __future__ import annotations

import os
from pathlib import Path


def available_mib() -> float:
    """Memory that can be had without swapping, as far as the system says."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) / 2**10
    except (OSError, KeyError, ValueError):  # no Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20
