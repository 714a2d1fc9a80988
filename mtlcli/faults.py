"""Errors that nobody foresaw -> one message: where, what, and who can mend it. Imports nothing heavy."""

from __future__ import annotations

import os
import sysconfig
import traceback
from pathlib import Path
from types import FrameType

from mtlcli import registry

VARIABLE = "MTL_TRACEBACK"
PACKAGE = Path(__file__).parent
LIBRARIES = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def wanted() -> bool:
    """Whether a person asks for whole tracebacks."""
    return os.environ.get(VARIABLE, "0") not in ("", "0")


def describe(error: Exception) -> str:
    """What to tell of `error`: the innermost line of a person's own file, else of ours, and what can be done."""
    calls = list(traceback.walk_tb(error.__traceback__))
    ours = [call for call in calls if _file(call[0]).is_relative_to(PACKAGE)]
    own = [call for call in calls if call not in ours and _is_own(call[0])]
    frame, line = (own or ours or calls)[-1]
    what = "".join(traceback.format_exception_only(error)).strip()
    if own:
        remedy = f"{VARIABLE}=1 shows the whole traceback"
    elif isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU
        remedy = "a smaller data.batch_size needs less memory"
    elif isinstance(error, OSError):
        remedy = f"{VARIABLE}=1 shows the whole traceback"
    else:
        remedy = f"this looks like a bug of mtl: please report it, with the traceback that {VARIABLE}=1 shows"
    return f"{_place(_file(frame))}, line {line}, in {frame.f_code.co_name}: {what}; {remedy}"


def _is_own(frame: FrameType) -> bool:
    """Whether it runs a plugin, or whatever else is installed neither with Python nor with pip."""
    file = _file(frame)
    if str(frame.f_globals.get("__name__")).partition(".")[0] in registry.plugin_modules:
        return True
    installed = "site-packages" in file.parts or any(file.is_relative_to(folder) for folder in LIBRARIES)
    return file.is_file() and not installed


def _file(frame: FrameType) -> Path:
    return Path(frame.f_code.co_filename)


def _place(file: Path) -> Path:
    """The file as one would name it: ours from the package on, others from the working folder."""
    above = PACKAGE.parent if file.is_relative_to(PACKAGE) else Path.cwd()
    return file.relative_to(above) if file.is_relative_to(above) else file
