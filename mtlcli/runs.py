"""Run directory: made atomically, always readable, never half-written."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import mmap
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from itertools import count
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from mtlcli import __version__
from mtlcli.errors import MtlError, TrainingError

if TYPE_CHECKING:
    from mtlcli.recipe import Recipe

SCHEMA_VERSION = 1
LOCK = ".lock"
ASIDE = ".aside"  # a folder with this file in it holds runs that count only where that folder itself is named


class Run:
    """One run directory: recipe.yaml, run.json, events.jsonl, last.pt, best.pt, result.json."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._events: IO[str] | None = None

    recipe_file = property(lambda self: self.path / "recipe.yaml")
    info_file = property(lambda self: self.path / "run.json")
    events_file = property(lambda self: self.path / "events.jsonl")
    preprocessing_file = property(lambda self: self.path / "preprocessing.json")
    result_file = property(lambda self: self.path / "result.json")
    last = property(lambda self: self.path / "last.pt")
    best = property(lambda self: self.path / "best.pt")

    @classmethod
    def create(
        cls,
        path: Path | None,
        name: str,
        recipe: str,
        info: Mapping[str, Any],
        fitted: Mapping[str, Any] | None = None,
    ) -> Run:
        """A new run at `path`, or at a new numbered name under `runs/`, with recipe.yaml and run.json in it.

        `fitted`, what new rows need to be encoded, becomes preprocessing.json.

        A new folder appears complete or not at all; an empty one that is there, such as a mounted volume, is filled
        where it is. Raises MtlError where a run, or anything else, is already.
        """
        files = {"recipe.yaml": recipe}
        if fitted is not None:
            files["preprocessing.json"] = to_json(fitted, indent=1) + "\n"
        files["run.json"] = to_json({"schema_version": SCHEMA_VERSION, "name": name, **info}, indent=2) + "\n"
        if path is not None and path.exists():
            with disk_errors(path, MtlError):
                _check_empty(path)  # before anything is put into a folder of other files
                with lock(path, f"{path}: another process is making a run there"):
                    _check_empty(path)
                    _write_all(path, files)
            return cls(path)
        target = path or Path("runs") / name
        if target.is_symlink():  # a folder can be put in the place of another, but not of a link to one
            target = target.resolve()
        made = target.parent / f".{target.name}-{uuid.uuid4().hex[:8]}"
        with disk_errors(target, MtlError):
            made.mkdir(parents=True)
            try:
                _write_all(made, files)
                for number in count(2):
                    try:
                        os.rename(made, target)  # onto nothing, or onto an empty folder
                        return cls(target)
                    except OSError as error:
                        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                            raise
                        if path is not None:  # taken since it was looked at
                            raise MtlError(f"{path}: another process made a run there just now") from None
                    target = target.with_name(f"{name}-{number}")
            finally:
                shutil.rmtree(made, ignore_errors=True)
        raise AssertionError("unreachable")

    @classmethod
    def open(cls, path: Path) -> Run:
        """An existing run. Raises MtlError where `path` holds none."""
        run = cls(path)
        missing = " and ".join(file.name for file in (run.info_file, run.recipe_file) if not file.exists())
        if not missing:
            return run
        what = f"is not a run directory (it has no {missing})" if path.exists() else "no such run"
        if path.is_dir() and not _runs_in(path):
            what += " and holds no runs"
        runs = sorted(_runs_in(path if path.is_dir() else path.parent), key=_natural) or _runs_in(Path("runs"))
        near = get_close_matches(path.name, [run.name for run in runs], n=1)
        hint = "".join(f"; did you mean '{run}'?" for run in runs if run.name in near)
        there = f"; there are: {', '.join(map(str, runs[-8:]))}" if runs else ""
        raise MtlError(f"{path}: {what}{hint}{there}")

    @classmethod
    def at(cls, path: Path) -> Run | None:
        """The run at `path`, or None where there is none yet."""
        return cls.open(path) if (path / "run.json").exists() else None

    @classmethod
    def latest(cls, name: str) -> Run | None:
        """The newest numbered run `name` under `runs/`, if any."""
        numbered = re.compile(rf"{re.escape(name)}(-[0-9]+)?")
        folders = [path for path in _runs_in(Path("runs")) if numbered.fullmatch(path.name) and cls(path)._is_of(name)]
        return cls(max(folders, key=_natural)) if folders else None

    def _is_of(self, name: str) -> bool:
        """Whether it was made as a run `name`: the first run of `name-2` has the folder of the second of `name`."""
        with suppress(MtlError):  # a damaged run is said to be when it is opened
            return bool(self.info().get("name", name) == name)
        return True

    @contextmanager
    def lock(self, wait: bool = False) -> Iterator[None]:
        """Hold the directory, so that no two processes train the same run. The lock goes with the process."""
        with lock(self.path, f"{self.path}: another process is training this run; wait for it, or stop it", wait):
            for left_over in self.path.glob(".*.tmp"):  # of a process that was killed while it wrote
                left_over.unlink(missing_ok=True)
            yield

    def is_locked(self) -> bool:
        """Whether another process is training this run now."""
        try:
            with open(self.path / LOCK) as handle:
                return not _flock(handle)
        except OSError:  # nobody ever held it
            return False

    def info(self) -> dict[str, Any]:
        """run.json. Raises MtlError where it cannot be read."""
        return read_json(self.info_file)

    def finished(self) -> bool:
        """Whether it has been trained to its end and has its result. Raises MtlError where run.json cannot be read."""
        return self.info().get("status") == "finished" and self.result_file.exists()

    def update_info(self, **values: Any) -> None:
        """Change entries of run.json."""
        current = read_json(self.info_file) if self.info_file.exists() else {"schema_version": SCHEMA_VERSION}
        replace_file(self.info_file, (to_json({**current, **values}, indent=2) + "\n").encode())

    def result(self) -> dict[str, Any]:
        """result.json. Raises MtlError where it is missing, damaged or of another version."""
        if not self.result_file.exists():
            status = self.info().get("status", "unknown")
            if status == "running":
                status = "another process is training it" if self.is_locked() else "it was killed"
            raise MtlError(
                f"{self.path}: has no result yet ({status}); finish it with: "
                f"mtl train {shlex.quote(str(self.recipe_file))} --resume"
            )
        found = read_json(self.result_file)
        if found.get("schema_version") != SCHEMA_VERSION:
            raise MtlError(
                f"{self.result_file}: has schema version {found.get('schema_version')}; "
                f"this version of mtl reads {SCHEMA_VERSION}"
            )
        return found

    def fitted(self) -> dict[str, Any]:
        """preprocessing.json. Raises MtlError where the run has none, or it is damaged."""
        if not self.preprocessing_file.exists():
            raise MtlError(f"{self.path}: has no preprocessing.json, without which it cannot read new files")
        return read_json(self.preprocessing_file)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write result.json."""
        replace_file(self.result_file, (to_json(result, indent=2) + "\n").encode())

    def append(self, event: Mapping[str, Any]) -> None:
        """Add a line to events.jsonl."""
        with disk_errors(self.events_file):
            if self._events is None:
                cut_torn_line(self.events_file)
                self._events = open(self.events_file, "a", encoding="utf-8")  # noqa: SIM115
            self._events.write(to_json(event) + "\n")
            self._events.flush()

    def close(self) -> None:
        """Close events.jsonl."""
        if self._events is not None:
            with suppress(OSError):  # every line was flushed; a disk that refused one was reported then
                self._events.close()
            self._events = None

    def events(self) -> Iterator[dict[str, Any]]:
        """The lines of events.jsonl, without incomplete ones, as a killed process may leave them."""
        if not self.events_file.exists():
            return
        with open(self.events_file, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    event = json.loads(line)
                except json.JSONDecodeError:
                    continue
                if isinstance(event, dict) and "event" in event:
                    yield event


def provenance() -> dict[str, Any]:
    """Versions, git state, command and start time, for run.json."""
    from importlib.metadata import version

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    changed = git("status", "--porcelain")
    packages = ("torch", "torchmetrics", "numpy", "polars")
    return {
        "versions": {
            "mtlcli": __version__,
            "python": platform.python_version(),
            **{package: version(package) for package in packages},
        },
        "git": {"commit": git("rev-parse", "HEAD"), "dirty": None if changed is None else bool(changed)},
        "argv": sys.argv,
        "host": platform.node(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _check_empty(path: Path) -> None:
    """Raise MtlError unless `path` is a folder without anything in it but a lock."""
    if (path / "run.json").exists():
        raise MtlError(f"{path}: already holds a run; add --resume to go on with it, or name another --out")
    if not path.is_dir():
        raise MtlError(f"{path}: is a file; name a folder that is empty or not there yet with --out")
    if any(file.name != LOCK for file in path.iterdir()):
        raise MtlError(f"{path}: holds other files; name a folder that is empty or not there yet with --out")


def _write_all(folder: Path, files: Mapping[str, str]) -> None:
    """Write `files`, texts by name, in their order: all of them or none."""
    try:
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
    except BaseException:
        for name in files:
            with suppress(OSError):
                (folder / name).unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises MtlError naming the file and, where it is damaged, the line."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise MtlError(f"{path}: is damaged, line {error.lineno}: {error.msg}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise MtlError(f"{path}: cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise MtlError(f"{path}: should hold a JSON object; found {type(values).__name__}")
    return values


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    """Write report.json into `folder`, which is made if need be."""
    with disk_errors(folder, MtlError):
        folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / "report.json", (to_json(report, indent=2) + "\n").encode())


def read_recipe(run: Run) -> Recipe:
    """The run's own recipe."""
    from mtlcli import recipe

    return recipe.load(run.recipe_file)


def to_json(values: Any, indent: int | None = None) -> str:
    """JSON that every parser reads: a number that is not finite becomes null."""
    return json.dumps(_finite(values), indent=indent, allow_nan=False)


def replace_file(path: Path, content: bytes, kind: type[MtlError] = TrainingError) -> None:
    """Write under a temporary name, flush to the disk, rename: a reader sees the old file or the new one, whole.

    Raises an error of this kind where the disk does not take it; the old file is then untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path, kind):
        try:
            with open(temporary, "wb") as handle:
                handle.write(content)
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def set_aside(folder: Path) -> None:
    """Mark `folder` as one whose runs count only where it is named itself."""
    if not folder.joinpath(ASIDE).exists():
        folder.joinpath(ASIDE).touch()


@contextmanager
def disk_errors(path: Path, kind: type[MtlError] = TrainingError) -> Iterator[None]:
    """Turn an error of the file system into one message about `path`."""
    try:
        yield
    except OSError as error:
        saved = "; what was saved before is untouched" if kind is TrainingError and path.parent.exists() else ""
        raise kind(f"{path}: cannot be written: {error.strerror or error}{saved}") from error


@contextmanager
def lock(folder: Path, busy: str, wait: bool = False) -> Iterator[None]:
    """Hold `folder` against other processes; the lock goes with the process.

    Raises MtlError with the message `busy` where another one holds it, unless asked to wait for that one.
    """
    with disk_errors(folder, MtlError):
        handle = open(folder / LOCK, "a")  # noqa: SIM115 - closed below, however the body ends
    try:
        # A second's patience: a process that only asks whether a run is locked holds it for a moment.
        for left in count(10, -1):
            if _flock(handle):
                break
            if left <= 0 and not wait:
                raise MtlError(busy)
            time.sleep(0.1)
        yield
    finally:
        handle.close()


def _flock(handle: IO[str]) -> bool:
    """Try to lock; False where another process holds the lock. A file system without locks grants every one."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def cut_torn_line(path: Path) -> None:
    """Shorten the file to its last whole line: what follows was half-written when a process was killed."""
    if not path.exists() or not path.stat().st_size:
        return
    with open(path, "r+b") as handle:
        with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as content:
            end = content.rfind(b"\n") + 1
        handle.truncate(end)


def _finite(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {key: _finite(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def _runs_in(folder: Path) -> list[Path]:
    """The runs in a folder; a name that begins with a dot is one that is being made."""
    found = (info.parent for info in folder.glob("*/run.json")) if folder.is_dir() else ()
    return [run for run in found if not run.name.startswith(".")]


def _natural(folder: Path) -> tuple[str, int]:
    """Sorts run 10 after run 9."""
    stem, _, number = folder.name.rpartition("-")
    return (stem, int(number)) if stem and number.isdecimal() else (folder.name, 1)
