"""An error that nobody foresaw becomes one message, too: where, what, and who can mend it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import toy
from harness import Mtl

OWN = """\
import pathlib, mtlcli, torch
@mtlcli.loss_weightings.register("own")
class Own(mtlcli.loss_weightings.get("ew")):
    "Own."
    def forward(self, step):
        if step.clock.step == 4 and pathlib.Path("broken").exists():
            raise ValueError("my own bug")
        if pathlib.Path("worse").exists():
            torch.zeros(2) + torch.zeros(3)
        return super().forward(step)
"""


@pytest.mark.parametrize("plugin", ["own.py", "own_module"])
def test_a_plugin_that_fails_on_the_way(mtl: Mtl, monkeypatch: pytest.MonkeyPatch, plugin: str) -> None:
    """Its own line is named; what was saved before can be gone on with."""
    file = Path(plugin).with_suffix(".py")
    monkeypatch.setattr(sys, "path", [*sys.path, ""])
    file.write_text(OWN)
    Path("broken").touch()
    options = ("--set", f"plugins=[{toy.PLUGIN}, {plugin}]", "--set", "weighting.loss=own", "--out", "run")
    done = mtl("train", "toy.yaml", *options)
    why = "ValueError: my own bug"
    assert (done.code, done.err) == (
        1,
        f"error: {file}, line 7, in forward: {why}; MTL_TRACEBACK=1 shows the whole traceback\n",
    )
    info = json.loads(Path("run/run.json").read_text())
    assert (info["status"], info["error"]) == ("failed", why)
    Path("worse").touch()
    assert f"error: {file}, line 9, in forward: RuntimeError: " in mtl("train", "run/recipe.yaml", "--resume").err
    monkeypatch.setenv("MTL_TRACEBACK", "1")
    with pytest.raises(RuntimeError):
        mtl("train", "run/recipe.yaml", "--resume")
    Path("worse").unlink()
    Path("broken").unlink()
    done = mtl("train", "run/recipe.yaml", "--resume")
    assert done.code == 0, done.err
    assert "resuming at step 3" in done.out
    sys.modules.pop("own_module", None)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyError("x"), ": KeyError: 'x'; this looks like a bug of mtl: please report it"),
        (MemoryError(), ": MemoryError; a smaller data.batch_size needs less memory"),
        (OSError("odd"), ": OSError: odd; MTL_TRACEBACK=1 shows the whole traceback"),
    ],
    ids=str,
)
def test_what_nobody_foresaw_is_one_message(
    mtl: Mtl, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    monkeypatch.setattr("mtlcli.recipe.load", Mock(side_effect=error))
    done = mtl("check", "toy.yaml")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: mtlcli/cli.py, line ")
    assert words in done.err
