"""Single-task baselines trained once: finished runs in a folder, by all that their results follow from."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mtlcli import __version__, yamlfile
from mtlcli.comparison.finished import NO_EFFECT, read_run
from mtlcli.engine.checkpoints import read_checkpoint
from mtlcli.engine.prepare import choose_device
from mtlcli.errors import MtlError
from mtlcli.recipe import Recipe
from mtlcli.runs import Run, set_aside, to_json
from mtlcli.yamlfile import flatten

FILES = ("recipe.yaml", "run.json", "events.jsonl", "last.pt", "best.pt", "result.json")  # of a finished run
OPTIONAL = ("preprocessing.json",)  # of one whose dataset reads new files


class Entry:
    """The place of one result in a store. Its folder's name is a hash of the data's fingerprint, the recipe without
    what has no effect, the plugins' files, the versions of mtlcli and torch, and the type of the device.

    Args:
        store: the folder, made with the first run that is kept.
        recipe: of the run.
        fingerprint: of the data that the recipe gives.
        device: as for `mtl train`.
    """

    def __init__(self, store: Path, recipe: Recipe, fingerprint: str, device: str) -> None:
        self._recipe = recipe
        self._origin = {
            "fingerprint": fingerprint,
            "recipe": _effective(recipe.as_dict()),
            "versions": {"mtlcli": __version__, "torch": version("torch")},
            "device": choose_device(device).type,
        }
        plugins = [_digest(name) for name in recipe.plugins]
        named = json.dumps({**self._origin, "plugins": plugins, "files": FILES + OPTIONAL}, sort_keys=True)
        self.path = store / hashlib.sha256(named.encode()).hexdigest()[:20]

    def take(self, target: Path) -> tuple[bool, str | None]:
        """Make the run that is kept here one at `target` too.

        Returns:
            Whether that was done, and what to tell a person: where it came from, or that what is kept is damaged.
        """
        if Run.at(target) is not None or not self.path.exists():
            return False, None
        try:
            self._check(self.path)
            if not place(self.path, target, self._recipe):  # another comparison has begun a run there
                return False, None
        except MtlError as error:
            return False, f"trained again, for what the store has of it is damaged and gets replaced: {error}"
        except FileNotFoundError:  # replaced by another process at this moment
            return False, None
        return True, f"taken from the store: {self.path}"

    def keep(self, run: Path) -> str | None:
        """Keep a finished run here, in place of a damaged one; returns what to tell a person if that fails."""
        try:
            self._check(run)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            set_aside(self.path.parent)
            if self.path.exists():
                try:
                    self._check(self.path)
                except MtlError:
                    _remove(self.path)
            place(run, self.path)
        except (MtlError, OSError) as error:
            return f"not kept in the store: {error}"
        return None

    def _check(self, path: Path) -> None:
        """Raise MtlError unless `path` holds a whole run with the result that belongs here."""
        missing = [name for name in FILES if not path.joinpath(name).is_file()]
        if missing:
            raise MtlError(f"{path}: lacks {', '.join(missing)}")
        run, result = Run(path), read_run(path).result
        info, settings = run.info(), yamlfile.read(run.recipe_file).values
        versions = info.get("versions")
        found = {
            "fingerprint": result["fingerprint"],
            "recipe": _effective(settings),
            "versions": {name: versions.get(name) for name in self._origin["versions"]} if versions else None,
            "device": str(result.get("device")).partition(":")[0],
        }
        wrong = [key for key, value in self._origin.items() if found[key] != value]
        if info.get("status") != "finished":
            wrong.append("status")
        if wrong:
            raise MtlError(f"{path}: is another run than belongs there, by its {', '.join(wrong)}")
        for checkpoint in (run.best, run.last):
            read_checkpoint(checkpoint)


def place(source: Path, target: Path, recipe: Recipe | None = None) -> bool:
    """Make the finished run at `source` one at `target` too, whole or not at all.

    Files are links where the file system has them, so that nothing is stored twice, and copies elsewhere. With
    `recipe`, which must lead to the same result, the new run has that one, and says where it was taken from.

    Returns:
        False where something is at `target` already.

    Raises:
        OSError: the disk does not take it, or `source` is gone.
    """
    made = target.parent / f".{target.name}-{uuid.uuid4().hex[:8]}"
    made.mkdir(parents=True)
    try:
        for name in (*FILES, *(name for name in OPTIONAL if source.joinpath(name).exists())):
            _link(source / name, made / name)
        if recipe is not None:
            info = {**Run(source).info(), "taken_from": str(source)}
            for name, text in (("recipe.yaml", recipe.dump()), ("run.json", to_json(info, indent=2) + "\n")):
                made.joinpath(name).unlink()
                made.joinpath(name).write_text(text, encoding="utf-8")
        os.rename(made, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        return False
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return True


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


def _remove(path: Path) -> None:
    """Out of the way at once, then gone: nobody finds half of it."""
    aside = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
    os.rename(path, aside)
    shutil.rmtree(aside, ignore_errors=True)


def _effective(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved recipe by dotted path, without the keys that no result follows from, and without plugins, whose
    paths say nothing about what is in them."""
    without = {key: value for key, value in settings.items() if key not in ("log", "plugins")}
    found: dict[str, Any] = json.loads(json.dumps(flatten(without)))  # lists for tuples, as a file has them
    return {key: value for key, value in found.items() if key not in NO_EFFECT}


def _digest(plugin: str) -> str:
    """Of the plugin's own file."""
    file = plugin
    if not plugin.endswith(".py"):
        spec = find_spec(plugin)
        if spec is None or spec.origin is None:  # a folder of modules: known by its name alone
            return plugin
        file = spec.origin
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()
