"""Recipe: YAML and `--set` -> checked, frozen, and written back with every default explicit."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from mtlcli import extras, fitting, registry, yamlfile
from mtlcli.errors import MtlError, did_you_mean
from mtlcli.options import Options, Problem, check, known_keys
from mtlcli.registry import Registry
from mtlcli.yamlfile import flatten, show

if TYPE_CHECKING:
    from mtlcli.models.heads import HeadOptions


SEEDS_END = 2**31


class DataSection(Options):
    """Keys of `data:` that every dataset shares."""

    batch_size: int = Field(1024, ge=1, description="rows a step, over all ranks")
    held_out: float = Field(0.0, ge=0, lt=1, description="share of the training rows kept for methods that need it")
    extra_batches: Literal[0, 2] = Field(
        0, description="further training batches a step, drawn independently, for methods that need them"
    )
    tasks: list[str] | None = Field(None, min_length=1, description="the tasks to train, in order; null takes all")
    # For data whose own key `tasks` says what the tasks are.
    only: list[str] | None = Field(None, min_length=1, description="of `tasks`, those to train, in order; null: all")


class GradientSection(Options):
    """Keys of `weighting.gradient:` that the engine reads for every method."""

    wrt: Literal["params", "representation", "last_shared"] = Field(
        "params",
        description="where task gradients are taken; at the representation, heads that begin with a linear layer make "
        "it about as cheap as plain training",
    )
    every: int = Field(1, ge=1, description="compute the weights every n-th step and reuse them in between")
    groups: Literal["all", "module", "tensor"] = Field(
        "all", description="decide once for all shared parameters, for each module's, or for each tensor"
    )
    smooth: float = Field(0.0, ge=0, lt=1, description="share of the last weights in the new ones (CR-MOGM)")
    rows: Literal["auto", "sequential", "batched"] = Field("auto", description="how task gradients are computed")


class TrainSection(Options):
    """Keys of `train:`."""

    epochs: int = Field(5, ge=1, description="passes over the training rows")
    seed: int = Field(
        0, ge=0, lt=SEEDS_END, description="seed of the weights, the order of rows, dropout and the weightings"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of the forward pass; auto is bfloat16 on CUDA and float32 on the CPU"
    )
    compile: bool = Field(False, description="compile trunk and heads with torch.compile")
    clip_norm: float | None = Field(None, gt=0, description="largest norm of the model's whole gradient")
    select_by: str = Field(
        "delta", description="best epoch on val by: delta, loss, last, or a TASK.METRIC such as income.auroc"
    )
    checkpoint_every_steps: int | None = Field(None, ge=1, description="also save last.pt every n steps")
    log_every_steps: int = Field(20, ge=1, description="steps between two records of the losses")
    diagnostics_every: int | None = Field(
        None, ge=1, description="steps between two records of how the tasks' gradients conflict; K backward passes each"
    )


class PluginsAndMetrics(Options):
    """Top-level keys without a section of their own."""

    metrics: dict[str, list[str]] = Field(default_factory=dict, description="metrics by task; others take defaults")
    plugins: list[str] = Field(default_factory=list, description="modules or .py files with one's own registrations")


@dataclass(frozen=True)
class Part:
    """A registered class by name, with its checked options."""

    name: str
    options: Options


@dataclass(frozen=True)
class Recipe:
    """Everything that a run follows from."""

    title: str
    data: DataSection
    dataset: Part
    encoder: Part
    trunk: Part
    heads: HeadOptions
    loss: Part
    gradient: Part
    gradient_engine: GradientSection
    optimizer: Part
    schedule: Part
    train: TrainSection
    metrics: Mapping[str, Sequence[str]]
    log: Sequence[Part]
    plugins: Sequence[str]
    lines: Mapping[str, str]  # dotted path -> where the key was written, for messages about it

    @property
    def method(self) -> str:
        """`LOSS` or `LOSS+GRADIENT`."""
        return method_name(self.loss.name, self.gradient.name)

    def error(self, path: str, message: str) -> MtlError:
        """A user error about the key at `path`."""
        return MtlError(f"{_place(self.title, self.lines, path)}{path}: {message}")

    def as_dict(self) -> dict[str, Any]:
        """Plain values with every default explicit; `from_values` reads them back."""

        def part(value: Part, common: Options | None = None) -> dict[str, Any]:
            shared = common.model_dump(mode="json") if common else {}
            return {"name": value.name, **shared, **value.options.model_dump(mode="json")}

        return {
            "data": part(self.dataset, self.data),
            "model": {
                "encoder": part(self.encoder),
                "trunk": part(self.trunk),
                "heads": self.heads.model_dump(mode="json"),
            },
            "weighting": {"loss": part(self.loss), "gradient": part(self.gradient, self.gradient_engine)},
            "optimizer": part(self.optimizer),
            "schedule": part(self.schedule),
            "train": self.train.model_dump(mode="json"),
            "metrics": {task: list(names) for task, names in self.metrics.items()},
            "log": {part.name: part.options.model_dump(mode="json") for part in self.log},
            "plugins": list(self.plugins),
        }

    def dump(self) -> str:
        """The resolved recipe as YAML."""
        return yamlfile.dump(self.as_dict())


DEFAULTS = {
    "model.encoder": "mlp",
    "model.trunk": "hps",
    "weighting.loss": "ew",
    "weighting.gradient": "sum",
    "optimizer": "adam",
    "schedule": "constant",
}
_SECTIONS = ("data", "model", "weighting", "optimizer", "schedule", "train", "metrics", "log", "plugins")


def method_name(loss: str, gradient: str) -> str:
    """`LOSS` or `LOSS+GRADIENT`: how a method is called in results and reports."""
    return loss if gradient == DEFAULTS["weighting.gradient"] else f"{loss}+{gradient}"


def load(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read the recipe at `path`, apply `--set` overrides, check everything.

    Raises:
        MtlError: every problem at once, each with the file and line or the `--set` it came from.
    """
    document = yamlfile.read(path)
    if document.values is None:
        raise MtlError(f"{path}: is empty; a recipe has at least `data: {{name: ...}}`")
    if not isinstance(document.values, dict):
        keys = ", ".join(_SECTIONS)
        raise MtlError(f"{path}: should be a map with the keys {keys}; found {show(document.values)}")
    lines = {key: f"{path}, line {line}" for key, line in document.lines.items()}
    values, wrong = document.values, []
    for override in overrides:
        try:
            key, value = parse_override(override)
            values = _set(values, key.split("."), value, override)
        except MtlError as error:
            wrong.append(str(error))
            continue
        lines = {k: place for k, place in lines.items() if k != key and not k.startswith(f"{key}.")}
        lines[key] = f"--set {override}"
    if wrong:
        raise MtlError("\n".join(wrong))
    return from_values(values, str(path), lines, folder=path.parent)


def parse_override(text: str) -> tuple[str, Any]:
    """`PATH=VALUE` -> dotted path and the value, read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not all(part.strip() for part in key.split(".")):
        raise MtlError(f"--set {text}: should be PATH=VALUE, such as --set train.epochs=3")
    return key.strip(), yamlfile.parse(value, f"--set {text}").values


def from_values(
    values: Mapping[str, Any], title: str, lines: Mapping[str, str] | None = None, folder: Path | None = None
) -> Recipe:
    """Check plain values. `title` names them in messages; files of plugins and options are taken from `folder`.

    Raises:
        MtlError: every problem at once.
    """
    from mtlcli.models.heads import HeadOptions

    read = _Reader(folder or Path())
    top = read.map("", values, _SECTIONS)
    own = read.options(PluginsAndMetrics, "", {"plugins": top["plugins"]} if top.get("plugins") is not None else {})
    plugins = [_absolute(plugin, folder) for plugin in own.plugins] if own else []
    read.plugins(plugins)
    if read.problems_of("plugins"):  # whatever the plugins would have registered is unknown now
        raise MtlError(_report(title, lines or {}, read.problems))
    dataset, data = read.part("data", top.get("data"), registry.datasets, DataSection)
    model = read.map("model", top.get("model"), ("encoder", "trunk", "heads"))
    encoder, _ = read.part("model.encoder", model.get("encoder"), registry.encoders)
    trunk, _ = read.part("model.trunk", model.get("trunk"), registry.trunks)
    heads = read.options(HeadOptions, "model.heads", model.get("heads"))
    weighting = read.map("weighting", top.get("weighting"), ("loss", "gradient"))
    loss, _ = read.part("weighting.loss", weighting.get("loss"), registry.loss_weightings)
    gradient, engine = read.part(
        "weighting.gradient", weighting.get("gradient"), registry.gradient_weightings, GradientSection
    )
    optimizer, _ = read.part("optimizer", top.get("optimizer"), registry.optimizers)
    schedule, _ = read.part("schedule", top.get("schedule"), registry.schedules)
    train = read.options(TrainSection, "train", top.get("train"))
    scored = read.options(PluginsAndMetrics, "", {"metrics": top["metrics"]} if top.get("metrics") is not None else {})
    log = read.loggers(top.get("log"))
    if loss and data:
        read.problems += fitting.held_out(loss, data)
    if gradient and data:
        read.problems += fitting.extra_batches(gradient, data)
    if loss and gradient:
        read.problems += fitting.pair(loss, gradient)
    if gradient and engine and trunk:
        read.problems += fitting.engine(gradient, engine, trunk)
    if read.problems:
        raise MtlError(_report(title, lines or {}, read.problems))
    return Recipe(
        title=title,
        data=data,
        dataset=dataset,
        encoder=encoder,
        trunk=trunk,
        heads=heads,
        loss=loss,
        gradient=gradient,
        gradient_engine=engine,
        optimizer=optimizer,
        schedule=schedule,
        train=train,
        metrics=scored.metrics,
        log=log,
        plugins=plugins,
        lines=lines or {},
    )


def differences(one: Recipe, other: Recipe) -> list[str]:
    """Dotted paths of the keys whose values differ, each with both values."""
    a, b = flatten(one.as_dict()), flatten(other.as_dict())
    return [
        f"{key}: {show(a[key]) if key in a else 'not set'} -> {show(b[key]) if key in b else 'not set'}"
        for key in sorted(a.keys() | b.keys())
        if a.get(key, ...) != b.get(key, ...)
    ]


class _Reader:
    """Reads the sections of a recipe and gathers what is wrong with them.

    What cannot be built comes back as None, and then there is a problem that says why.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problems: list[Problem] = []

    def add(self, path: str, message: str) -> None:
        """One more problem."""
        self.problems.append(Problem(path, message))

    def map(self, path: str, value: Any, known: Sequence[str] = ()) -> dict[str, Any]:
        """`value` as a map (null is an empty one) with no keys but `known`, if these are given."""
        if value is None:
            return {}
        if not isinstance(value, dict):
            keys = f"the keys {', '.join(known)}" if known else "a `name`"
            self.add(path, f"should be a map with {keys}; found {show(value)}")
            return {}
        for key in value:
            if known and key not in known:
                where = f"{path}.{key}" if path else str(key)
                self.add(where, f"unknown key{did_you_mean(key, known)}; known here: {', '.join(known)}")
        return value

    def options(self, cls: type[Options], path: str, value: Any, also_known: tuple[str, ...] = ()) -> Any:
        """`value` checked against `cls`."""
        if value is not None and not isinstance(value, dict):
            self.map(path, value, (*also_known, *known_keys(cls)))
            return None
        built, found = check(cls, {str(key): item for key, item in (value or {}).items()}, path, also_known)
        self.problems += found
        return None if built is None else built.at(self.folder)

    def part(self, path: str, value: Any, among: Registry[Any], common: type[Options] | None = None) -> tuple[Any, Any]:
        """A section with a `name`: the named class's options, and those that every class here shares."""
        if isinstance(value, str):
            value = {"name": value}
        if value is not None and not isinstance(value, dict):
            self.map(path, value)
            return None, None
        value = value or {}
        name = value.get("name", DEFAULTS.get(path))
        own_keys = known_keys(among.get(name).Options) if name in among.names() else ()
        shared_keys = tuple(key for key in known_keys(common) if key not in own_keys) if common else ()
        shared = self.options(common, path, {k: v for k, v in value.items() if k in shared_keys}) if common else None
        if name is None:
            self.add(f"{path}.name", f"is required: one of {', '.join(among.names())}")
            return None, shared
        if name not in among.names():
            self.add(f"{path}.name", among.unknown(name))
            return None, shared
        own = {k: v for k, v in value.items() if k != "name" and k not in shared_keys}
        options = self.options(among.get(name).Options, path, own, ("name", *shared_keys))
        return (None if options is None else Part(name, options)), shared

    def loggers(self, value: Any) -> list[Part]:
        """`log:` as a map of names to true, false or options; those that are wanted."""
        found = []
        for name, wanted in self.map("log", value).items():
            if name not in registry.loggers.names():
                self.add(f"log.{name}", registry.loggers.unknown(name))
            elif wanted is True or isinstance(wanted, dict):
                cls = registry.loggers.get(name)
                options = self.options(cls.Options, f"log.{name}", {} if wanted is True else wanted)
                if lacking := extras.missing(cls.package, cls.extra):
                    self.add(f"log.{name}", lacking)
                if options is not None:
                    found.append(Part(name, options))
            elif wanted not in (False, None):
                self.add(f"log.{name}", f"should be true, false, or a map of its options; found {show(wanted)}")
        return found

    def plugins(self, names: Sequence[str]) -> None:
        """Import people's own registrations."""
        for index, name in enumerate(names):
            try:
                registry.import_plugin(name)
            except MtlError as error:
                self.add(f"plugins.{index}", str(error))

    def problems_of(self, section: str) -> list[Problem]:
        """The problems at `section` and below."""
        return [p for p in self.problems if p.path == section or p.path.startswith(f"{section}.")]


def _absolute(plugin: str, folder: Path | None) -> str:
    """The path of a plugin file, taken from `folder`; a module's name as it is."""
    return str(((folder or Path()) / plugin).resolve()) if plugin.endswith(".py") else plugin


def _set(values: Mapping[str, Any], key: Sequence[str], value: Any, override: str, above: str = "") -> dict[str, Any]:
    """`values` with `value` at `key`. Copied on the way down: an alias elsewhere must not change with it."""
    name, *rest = key
    path = f"{above}{name}"
    if not rest:
        return {**values, name: value}
    child = values.get(name)
    if isinstance(child, str):  # `loss: igb_v1` is short for `loss: {name: igb_v1}`
        child = {"name": child}
    if child is not None and not isinstance(child, dict):
        raise MtlError(f"--set {override}: {path} is {show(child)}, not a map with keys; set {path} as a whole")
    return {**values, name: _set(child or {}, rest, value, override, f"{path}.")}


def _place(title: str, lines: Mapping[str, str], path: str) -> str:
    """Where the key at `path` was written, or a `--set` below it, or the nearest key above it."""
    parts = path.split(".")
    nearest = [path, *(key for key in lines if key.startswith(f"{path}."))]
    nearest += [".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1)]
    return next((f"{lines[key]}: " for key in nearest if key in lines), f"{title}: ")


def _line_number(place: str) -> float:
    found = re.search(r", line ([0-9]+): $", place)
    return int(found[1]) if found else math.inf


def _report(title: str, lines: Mapping[str, str], problems: Sequence[Problem]) -> str:
    placed = [(_place(title, lines, p.path), f"{p.path}: {p.message}") for p in problems]
    texts = [place + text for place, text in sorted(placed, key=lambda each: _line_number(each[0]))]
    return texts[0] if len(texts) == 1 else "\n".join([f"{title}: {len(texts)} problems", *(f"  {t}" for t in texts)])
