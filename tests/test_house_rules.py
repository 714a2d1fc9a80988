"""The house rules that a machine can check; CONTRIBUTING.md lists them for people."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

import mtlcli
from mtlcli import recipe, registry
from mtlcli.cli import app
from mtlcli.models.heads import HeadOptions
from mtlcli.options import Options, fields

PACKAGE = Path(mtlcli.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
PLUGIN_KINDS = (
    registry.datasets,
    registry.encoders,
    registry.trunks,
    registry.loss_weightings,
    registry.gradient_weightings,
)
REGISTRIES = (*PLUGIN_KINDS, registry.optimizers, registry.schedules)
SECTIONS = (
    recipe.DataSection,
    recipe.GradientSection,
    recipe.TrainSection,
    recipe.PluginsAndMetrics,
    HeadOptions,
)
RICH_FILES = {"render.py", "pages.py", "terminal.py"}
AUTOGRAD_FILES = {
    f"engine/{name}.py" for name in ("step", "rows", "factors", "view", "closures", "accumulate", "weighted")
}


def shipped_classes() -> list[Any]:
    """Every registered class of the package itself; a test elsewhere may have registered toys."""
    classes = [among.get(name) for among in REGISTRIES for name in among.names()]
    return [cls for cls in classes if cls.__module__.startswith("mtlcli.")]


def label(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", FILES, ids=label)
def test_a_file_stays_small(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


# -- names -------------------------------------------------------------------------------------------------------------


def owners() -> dict[str, set[str]]:
    """Name of a method, dataset, encoder or trunk -> the files that register something under it."""
    found: dict[str, set[str]] = {}
    plugin_names = {name for among in PLUGIN_KINDS for name in among.names()}
    for among in REGISTRIES:
        for name in set(among.names()) & plugin_names:
            source = Path(inspect.getfile(among.get(name)))
            if source.is_relative_to(PACKAGE):
                found.setdefault(name, set()).add(label(source))
    return found


def words(tree: ast.Module) -> Iterator[tuple[int, str, bool]]:
    """(line, text, whether it is an identifier) of every identifier and every string that is not a docstring.

    `recipe.DEFAULTS`, the one table of names, is left out.
    """
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skipped.add(node.value)
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "DEFAULTS" for t in node.targets):
            skipped.update(ast.walk(node))
    for node in ast.walk(tree):
        if node in skipped:
            continue
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield line, node.value, False
        elif isinstance(node, ast.alias):
            yield line, node.name.rpartition(".")[2], True
        else:
            for attribute in ("id", "attr", "arg", "name"):
                value = getattr(node, attribute, None)
                if isinstance(value, str):
                    yield line, value, True


# Names that are also plain words: they count only as a whole string.
PLAIN_WORDS = {"config", "constant", "images", "joint", "point", "sum", "synthetic", "table"}


def foreign_names(text: str, identifier: bool, known: set[str]) -> set[str]:
    """Which of `known` the text is about."""
    if identifier:
        return {text} & known - PLAIN_WORDS
    if text in known:
        return {text}
    return {name for name in known - PLAIN_WORDS if re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text)}


@pytest.mark.parametrize("path", FILES, ids=label)
def test_a_name_stays_in_its_own_file(path: Path) -> None:
    known = owners()
    tree = parsed(path)
    trespasses = [
        f"{label(path)}:{line}: {name}"
        for line, text, identifier in words(tree)
        for name in foreign_names(text, identifier, set(known))
        if label(path) not in known[name]
    ]
    assert not trespasses


# -- who may import or call what ---------------------------------------------------------------------------------------


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=label)
def test_rich_is_imported_where_things_are_shown_alone(path: Path) -> None:
    rich = [name for name in imported(parsed(path)) if name.split(".")[0] == "rich"]
    assert bool(rich) == (label(path) in RICH_FILES)


@pytest.mark.parametrize("path", FILES, ids=label)
def test_autograd_is_called_by_the_engine_alone(path: Path) -> None:
    if label(path) in AUTOGRAD_FILES:
        return
    tree = parsed(path)
    used = [
        name for name in imported(tree) if "autograd" in name or re.fullmatch(r"torch\.func\.(grad|vjp|jac).*", name)
    ]
    used += [f"line {n.lineno}" for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr == "autograd"]
    for node in ast.walk(tree):
        # `Step.backward` is ours; a tensor's `backward` takes no losses and no step.
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "backward":
            receiver = ast.unparse(node.func.value)
            used += [] if receiver.endswith(("step", "step_function")) else [f"line {node.lineno}: {receiver}.backward"]
    assert not used


# -- documentation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", shipped_classes(), ids=lambda cls: f"{cls.__module__}.{cls.name}")
def test_a_registered_class_explains_itself(cls: Any) -> None:
    page = cls.__doc__ or ""
    assert re.search(r"[.)]$", page.strip().splitlines()[0].strip() if page.strip() else "")
    if cls.__module__.startswith("mtlcli.weighting"):
        assert "Source:" in page
        assert "Deviations:" in page
    assert [option.name for option in fields(cls.Options) if not option.description] == []


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_key_of_a_recipe_is_described(section: type[Options]) -> None:
    assert [option.name for option in fields(section) if not option.description] == []


# -- the command line --------------------------------------------------------------------------------------------------

FLAGS = {
    "train": ["RECIPE", "--set", "--out", "--device", "--resume", "--quiet", "--json"],
    "eval": ["RUN", "--split", "--data", "--checkpoint", "--device", "--on-error", "--json"],
    "predict": ["RUN", "DATA", "--out", "--checkpoint", "--device", "--on-error", "--json"],
    "init": ["RECIPE", "--from", "--task", "--force", "--json"],
    "compare": [
        "TARGET",
        "--methods",
        "--seeds",
        "--tune",
        "--single-task-store",
        "--jobs",
        "--launcher",
        "--launcher-set",
        "--address",
        "--baseline",
        "--reference",
        "--published",
        "--out",
        "--set",
        "--json",
    ],
    "list": ["KIND", "NAME", "--json"],
    "check": ["RECIPE", "--set", "--json"],
}
ARGUMENTS = {"recipe": "RECIPE", "run": "RUN", "targets": "TARGET", "kind": "KIND", "name": "NAME", "data": "DATA"}


def test_the_flags_are_frozen() -> None:
    """People's scripts rely on them. A new knob is a key of the recipe (`--set`), not a flag."""
    command: Any = typer.main.get_command(app)
    found = {
        name: [
            ARGUMENTS[parameter.name] if parameter.param_type_name == "argument" else option
            for parameter in sub.params
            for option in parameter.opts
        ]
        for name, sub in command.commands.items()
    }
    assert {name: sorted(flags) for name, flags in found.items()} == {n: sorted(flags) for n, flags in FLAGS.items()}


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys, mtlcli.cli\n"
        "sys.argv = ['mtl', '--help']\n"
        "try:\n    mtlcli.cli.main()\n"
        "except SystemExit as done:\n    assert not done.code\n"
        "print(*sorted(sys.modules), sep='\\n', file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "Usage: mtl" in done.stdout
    modules = set(done.stderr.split())
    heavy = {"torch", "torchvision", "torchmetrics", "polars", "numpy", "pydantic", "yaml"}
    assert not heavy & modules
