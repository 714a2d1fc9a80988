"""Fixtures of the command line's tests."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import RECIPE, SLOW, Background, Done, Mtl

from mtlcli import registry
from mtlcli.cli import run


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test has a working folder of its own with `toy.yaml` in it."""
    monkeypatch.chdir(tmp_path)
    Path("toy.yaml").write_text(RECIPE)


@pytest.fixture(autouse=True)
def _own_registrations() -> Iterator[None]:
    """What a test's plugins register is gone after it."""
    kinds: tuple[registry.Registry[Any], ...] = (
        registry.datasets,
        registry.encoders,
        registry.trunks,
        registry.loss_weightings,
        registry.gradient_weightings,
    )
    before = {among: {name: among.get(name) for name in among.names()} for among in kinds}
    yield
    for among, classes in before.items():
        among._classes = classes
    for name in [name for name in sys.modules if name.startswith("mtlcli_plugin_")]:
        del sys.modules[name]  # so that the next test may register them again


@pytest.fixture
def mtl(capfd: pytest.CaptureFixture[str]) -> Mtl:
    """`mtl ARGUMENTS...` in this process."""

    def call(*arguments: object) -> Done:
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        return Done(code, *capfd.readouterr())

    return call


@pytest.fixture
def background(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Background]]:
    """`mtl ARGUMENTS...` in a process of its own; `name=value` is its environment."""
    folder = tmp_path_factory.mktemp("logs")
    begun: list[Background] = []

    def start(*arguments: object, **environment: str) -> Background:
        begun.append(Background(folder / str(len(begun)), *arguments, **environment))
        return begun[-1]

    yield start
    for each in begun:
        each.process.kill()
        each.process.join()


@pytest.fixture
def undisturbed(mtl: Mtl) -> dict[str, Any]:
    """The result of the run that every disturbed one must repeat."""
    done = mtl("train", "toy.yaml", *SLOW, "--out", "whole", "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)
