"""The one exception that people see, and the nearest-name hint that its messages carry."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path


class MtlError(Exception):
    """A mistake in the input: the command line prints the message without a traceback and exits with `exit_code`."""

    exit_code = 2


class TrainingError(MtlError):
    """The input was fine but the run could not go on (non-finite losses, a full disk)."""

    exit_code = 1


class Stopped(Exception):  # noqa: N818 - like KeyboardInterrupt, it reports no mistake
    """Training was stopped by a signal; its state is saved in the run directory `run`."""

    def __init__(self, run: Path, number: int) -> None:
        super().__init__(f"stopped by signal {number}; state saved in {run}")
        self.run, self.number = run, number


class OptionError(MtlError):
    """An option that is well-formed but does not fit the tasks or the model at hand.

    A weighting, trunk, encoder or dataset raises it with the name of its own option; whoever builds it knows where in
    the recipe that option stands and adds the place.
    """

    def __init__(self, option: str, message: str) -> None:
        super().__init__(f"{option}: {message}")
        self.option = option
        self.message = message


@contextmanager
def about(option: str) -> Iterator[None]:
    """Say that an MtlError raised inside is about the value of `option`."""
    try:
        yield
    except OptionError:
        raise
    except MtlError as error:
        raise OptionError(option, str(error)) from None


def did_you_mean(name: object, allowed: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the allowed name nearest to `name`, or an empty string where none is near."""
    names = list(allowed)
    near = get_close_matches(str(name), names, n=1, cutoff=0.6)
    near = near or [other for other in names if other.lower() == str(name).lower()]
    return f"; did you mean '{near[0]}'?" if near else ""


def how_many(count: int, one: str, more: str | None = None) -> str:
    """`1 row`, `2,000 rows`: a number of things, the plural with an s unless it is given."""
    return f"{count:,} {one if count == 1 else more or f'{one}s'}"
