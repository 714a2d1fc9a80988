"""Where people's output goes."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

from rich.console import Console
from rich.text import Text

BATCH_WIDTH = 160  # where there is no terminal, tables must not be cut at 80 columns


class Terminal(Console):
    """The stdout of the moment. Names and paths are printed as they are, brackets too."""

    # Whether something goes on that should not end with its display: a reader of a pipe who is gone, or a full disk,
    # then ends the output alone.
    outlived = False

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def __exit__(self, *about: Any) -> None:
        """Here everything is written, what a live view draws as well."""
        try:
            super().__exit__(*about)
        except OSError as broken:
            if not self.outlived:
                raise
            self.on_broken_pipe()
            with suppress(OSError):  # stderr may be the same terminal
                error(f"stdout cannot be written ({broken.strerror}); going on without it")

    def on_broken_pipe(self) -> None:
        """Nothing reads stdout any longer."""
        with suppress(*[SystemExit] if self.outlived else []):
            super().on_broken_pipe()


def console(quiet: bool = False) -> Terminal:
    """For all but errors."""
    made = Terminal(quiet=quiet)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = BATCH_WIDTH
    return made


def error(message: str) -> None:
    """One message about a mistake, on stderr."""
    Terminal(stderr=True, soft_wrap=True).print(Text.assemble(("error: ", "bold red"), message))
