"""What the commands share: options, and where their output goes. Imports nothing heavy."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mtlcli.terminal import Terminal


class CheckpointName(StrEnum):
    """Checkpoints that `mtl eval` and `mtl predict` read."""

    best = "best"
    last = "last"


class OnErrorName(StrEnum):
    """What `mtl eval` and `mtl predict` do at a bad row of a new file."""

    stop = "stop"
    skip = "skip"


RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]
Checkpoint = Annotated[CheckpointName, typer.Option("--checkpoint", help="The run's checkpoint to read.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
OnError = Annotated[
    OnErrorName | None,
    typer.Option("--on-error", help="At a bad row of a new file; as the run's recipe says by default."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; everything else goes to stderr.")]


@contextmanager
def output(as_json: bool, quiet: bool = False) -> Iterator[tuple[Terminal, Callable[[Any], None]]]:
    """The console for people, and what prints the JSON document if one is wanted.

    With JSON, stdout is for that document alone: all else, even what a plugin prints, goes to stderr.
    """
    from mtlcli import terminal
    from mtlcli.runs import to_json

    stdout = sys.stdout

    def emit(values: Any) -> None:
        if as_json:
            stdout.write(to_json(values, indent=2) + "\n")
            stdout.flush()

    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        yield terminal.console(quiet), emit
