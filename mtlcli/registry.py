"""Registries: a name in a recipe -> the class that does it.

A registry imports every file of its package when it is first asked, so a new weighting, dataset, encoder or trunk is
one new file with a decorated class in it. People's own classes register with the same decorator (`plugins:` in a
recipe, or a plain import).
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from mtlcli.errors import MtlError, did_you_mean

if TYPE_CHECKING:
    import torch

    from mtlcli.data.base import Dataset
    from mtlcli.engine.optimizers import Optimizer
    from mtlcli.engine.schedules import Schedule
    from mtlcli.loggers.base import Logger
    from mtlcli.models.base import Encoder, Trunk
    from mtlcli.sweep.launchers.base import Launcher
    from mtlcli.weighting.base import GradientWeighting, LossWeighting

T = TypeVar("T")
C = TypeVar("C", bound=type)


class Registry(Generic[T]):
    """Names of one kind of thing. `kind` is its singular name in messages, `module` where its own classes live."""

    def __init__(self, kind: str, module: str) -> None:
        self.kind = kind
        self._module = module
        self._classes: dict[str, type[T]] = {}
        self._complete = False

    def register(self, name: str) -> Callable[[C], C]:
        """Class decorator: make the class available under `name`. Raises MtlError where the name is taken."""

        def add(cls: C) -> C:
            if not cls.__module__.startswith(self._module):
                self._import_all()  # so that whoever takes a name of ours is told, and not our own class
            other = self._classes.get(name)
            if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
                raise MtlError(f"{self.kind} '{name}' is already registered by {other.__module__}.{other.__qualname__}")
            self._classes[name] = cls
            cls.name = name  # type: ignore[attr-defined]
            return cls

        return add

    def names(self) -> tuple[str, ...]:
        """Every registered name, sorted."""
        self._import_all()
        return tuple(sorted(self._classes))

    def get(self, name: str) -> type[T]:
        """The class registered under `name`. Raises MtlError with the nearest name."""
        self._import_all()
        if name not in self._classes:
            raise MtlError(self.unknown(name))
        return self._classes[name]

    def unknown(self, name: object) -> str:
        """What to tell a person whose `name` is not registered."""
        names = self.names()
        return f"no {self.kind} '{name}'{did_you_mean(name, names)}; there are: {', '.join(names)}"

    def _import_all(self) -> None:
        if self._complete:
            return
        self._complete = True
        try:
            module = importlib.import_module(self._module)
            for found in pkgutil.iter_modules(getattr(module, "__path__", [])):
                importlib.import_module(f"{self._module}.{found.name}")
        except BaseException:
            self._complete = False
            raise


class WeightingRegistry(Registry[T]):
    """A registry whose classes are built from options, task names and a random generator."""

    def build(
        self,
        name: str,
        /,
        tasks: int | Iterable[str],
        seed: int = 0,
        device: torch.device | str = "cpu",
        **options: Any,
    ) -> T:
        """The weighting `name` for `tasks` (their names, or how many), with its options given by keyword.

        It works for a model on `device`, and its random draws are seeded with `seed`. Raises MtlError for unknown names
        and options, and for tasks, a seed or a device that cannot be used.
        """
        import torch

        from mtlcli.tasks import named

        names = named(f"task{k}" for k in range(tasks)) if type(tasks) is int else named(tasks)
        if names is None:
            raise MtlError(f"tasks should be a list of different names, or how many there are; found {tasks!r}")
        if type(seed) is not int or not -(2**63) <= seed < 2**64:
            raise MtlError(f"seed should be a whole number that torch takes; found {seed!r}")
        try:
            place = torch.device(device)
        except (RuntimeError, TypeError):
            raise MtlError(f"device should be one of torch's, such as cpu or cuda:0; found {device!r}") from None
        return self.make(name, names, seed, place, options)

    def make(self, name: str, tasks: tuple[str, ...], seed: int, device: torch.device, options: Mapping[str, Any]) -> T:
        """Like `build`, with the options as a mapping."""
        from mtlcli.options import parse

        cls: Any = self.get(name)
        built: T = cls.on(device, parse(cls.Options, options, f"{self.kind} '{name}'"), tasks, seed)
        return built


datasets: Registry[Dataset] = Registry("dataset", "mtlcli.data")
encoders: Registry[Encoder] = Registry("encoder", "mtlcli.models.encoders")
trunks: Registry[Trunk] = Registry("trunk", "mtlcli.models.trunks")
loss_weightings: WeightingRegistry[LossWeighting] = WeightingRegistry("loss weighting", "mtlcli.weighting.losses")
gradient_weightings: WeightingRegistry[GradientWeighting] = WeightingRegistry(
    "gradient weighting", "mtlcli.weighting.gradients"
)
optimizers: Registry[Optimizer] = Registry("optimizer", "mtlcli.engine.optimizers")
schedules: Registry[Schedule] = Registry("schedule", "mtlcli.engine.schedules")
loggers: Registry[Logger] = Registry("logger", "mtlcli.loggers")
launchers: Registry[Launcher] = Registry("launcher", "mtlcli.sweep.launchers")


plugin_modules: set[str] = set()  # packages and modules that plugins came from, by name


def import_plugin(name: str) -> None:
    """Import a person's own registrations: a `.py` file by absolute path, or a module by name.

    Modules are also looked for in the working folder. A plugin is imported once, however often it is named.

    Raises:
        MtlError: there is no such plugin, or it fails; then with its own error and the line.
    """
    is_file = name.endswith(".py")
    if is_file and not Path(name).is_file():
        raise MtlError(f"no such file: {name}; a path is taken from the folder of the recipe")
    try:
        if is_file:
            _import_file(name)
        else:
            if str(Path.cwd()) not in sys.path and "" not in sys.path:
                sys.path.append(str(Path.cwd()))
            importlib.import_module(name)
            plugin_modules.add(name.partition(".")[0])
    except (Exception, SystemExit) as error:  # whatever a person's own module raises is what they need to see
        if isinstance(error, ModuleNotFoundError) and error.name in (name, name.partition(".")[0]):
            raise MtlError(
                f"no module '{name}' in the working folder or among the installed ones; "
                "for a file, write its path with .py at the end"
            ) from None
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_outside(frame.filename)]
        line = f" ({own[0].filename}, line {own[0].lineno})" if own else ""
        what = str(error) if isinstance(error, MtlError) else f"{type(error).__name__}: {error}"
        raise MtlError(f"plugin '{name}' fails to import: {what}{line}") from error


def _import_file(path: str) -> None:
    if any(getattr(module, "__file__", None) == path for module in list(sys.modules.values())):
        return
    unique = f"mtlcli_plugin_{hashlib.sha256(path.encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(unique, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[unique] = module  # before it runs, as for any import: dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[unique]
        raise


def _is_outside(file: str) -> bool:
    """Whether a frame of a traceback is neither ours nor of the import system."""
    ours = (Path(__file__).parent, Path(importlib.__file__).parent)
    return not file.startswith("<") and not any(Path(file).is_relative_to(folder) for folder in ours)
