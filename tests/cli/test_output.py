"""What commands print: one JSON document alone on stdout, plain lines without a terminal, nothing when quiet."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from fake_runs import fake
from harness import Mtl

from mtlcli import catalogue, metrics, registry, render, terminal
from mtlcli.cli import run
from mtlcli.comparison.finished import read_runs
from mtlcli.comparison.report import report

THINGS = [(kind, name) for kind, among in catalogue.KINDS.items() for name in among.names() if name != "toy"]
THINGS += [("metrics", name) for name in metrics.names()]


@pytest.fixture
def trained(mtl: Mtl) -> Path:
    """A finished run."""
    assert mtl("train", "toy.yaml", "--out", "run", "--quiet").code == 0
    return Path("run")


def test_json_stands_alone_on_stdout(mtl: Mtl, trained: Path) -> None:
    for arguments in (
        ("train", "toy.yaml", "--set", "weighting.loss=prints"),
        ("train", trained / "recipe.yaml", "--resume"),
        ("eval", trained),
        ("eval", trained, "--split", "val", "--checkpoint", "last"),
        ("compare", trained),
        ("compare", "toy.yaml", "--seeds", "0", "--set", "train.epochs=1", "--baseline", "none"),
        ("list",),
        ("list", "losses"),
        ("list", "losses", "igb_v1"),
        ("list", "metrics", "mae"),
        ("check", "toy.yaml"),
    ):
        done = mtl(*arguments, "--json")
        assert done.code == 0, done.err
        assert isinstance(json.loads(done.out), dict), arguments
        assert done.err, "people's output goes to stderr then"
        assert "\x1b" not in done.out + done.err
        plain = mtl(*arguments)
        if plain.code == 0:
            assert plain.err == ""
            assert "\x1b" not in plain.out
    assert "a plugin's own words" in mtl("train", "toy.yaml", "--set", "weighting.loss=prints", "--json").err


def test_json_says_what_people_read(mtl: Mtl, trained: Path) -> None:
    result = json.loads(mtl("train", "toy.yaml", "--json").out)
    assert result == json.loads(Path("runs/toy/result.json").read_text())
    scored = json.loads(mtl("eval", trained, "--json").out)
    assert scored["tasks"] == result["tasks"]
    checked = json.loads(mtl("check", "toy.yaml", "--json").out)
    assert checked["steps_per_epoch"] == 3
    assert checked["fingerprint"] == result["fingerprint"]


def test_no_json_where_a_command_fails(mtl: Mtl) -> None:
    done = mtl("train", "toy.yaml", "--set", "data.break_at=40", "--json")
    assert done.code == 1
    assert done.out == ""
    assert "error: task 'amount'" in done.err


def test_quiet_prints_nothing(mtl: Mtl) -> None:
    done = mtl("train", "toy.yaml", "--quiet")
    assert done == (0, "", "")
    assert mtl("train", "toy.yaml", "--quiet", "--out", "toy.yaml").err.startswith("error: toy.yaml: is a file")


def test_a_plain_line_an_epoch_without_a_terminal(mtl: Mtl) -> None:
    lines = mtl("train", "toy.yaml").out.splitlines()
    assert lines[0].startswith("training: ew on yes, which, amount (cpu, 2 epochs of 3 steps)")
    assert lines[1].startswith("epoch 1/2  yes loss ")
    assert lines[2].startswith("epoch 2/2  yes loss ")
    assert lines[-1] == "run directory: runs/toy"


def test_names_are_printed_as_they_are(mtl: Mtl) -> None:
    """Rich would take brackets for markup and words between colons for pictures."""
    out = "a [bold] run :smile:"
    done = mtl("train", "toy.yaml", "--out", out)
    assert f"run directory: {out}" in done.out
    assert f"error: {out}: already holds a run" in mtl("train", "toy.yaml", "--out", out).err
    assert mtl("train", "toy.yaml", "--out", "b", "--set", "optimizer.lr=0.02", "--quiet").code == 0
    done = mtl("compare", out, "b")
    assert "ew [optimizer.lr=0.01]" in done.out
    assert "ew [optimizer.lr=0.02]" in done.out


def test_a_terminal_gets_a_live_view(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress and colours on a terminal; the last words stay on it."""
    monkeypatch.setenv("TERM", "xterm")
    main, side = pty.openpty()
    shown = bytearray()

    def read() -> None:
        with suppress(OSError):  # how a terminal says that its other end is closed
            while part := os.read(main, 1 << 16):
                shown.extend(part)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(side, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        assert run(["train", "toy.yaml", "--set", "train.epochs=1"]) == 0
    reader.join(10)
    os.close(main)
    assert b"\x1b[" in shown
    assert b"run directory: runs/toy" in shown


VALUES = (0.9107, 12.34, 3.317e-07, -0.0, 776663.2, 7.767e8, -0.00004, 1234.5, 0.0123)


def printed(made: Callable[[int], Any], width: int, monkeypatch: pytest.MonkeyPatch, encoding: str = "utf-8") -> str:
    """What `made(width)` looks like on a stdout of this encoding."""
    monkeypatch.setenv("COLUMNS", str(width))
    stdout = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="replace")
    monkeypatch.setattr(sys, "stdout", stdout)
    console = terminal.console()
    console.print(made(width))
    stdout.flush()
    monkeypatch.undo()
    return stdout.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]


def scores(**values: float) -> dict[str, Any]:
    return {name: {"value": value, "unit": "", "higher_is_better": value > 1} for name, value in values.items()}


@pytest.mark.parametrize("width", [40, 120])
def test_a_value_shows_digits_that_matter_and_loses_none(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    metrics = scores(**{f"a_metric_of_a_long_name_{i}": value for i, value in enumerate(VALUES)})
    result = {"tasks": {"concentration_of_lead": {"loss": 0.1, "metrics": metrics}}}
    text = printed(lambda _: render.result(result, "title"), width, monkeypatch)
    shown = ("0.9107", "12.34", "3.317e-07", "0.0000", "776,663.2", "7.767e+08", "-4e-05", "1,234.50", "0.0123")
    assert [word for word in text.split() if word in shown] == list(shown)
    assert "…" not in text
    folded = "".join(text.split())
    assert width < 100 or all(f"{name}{'↑' if VALUES[i] > 1 else '↓'}" in folded for i, name in enumerate(metrics))


@pytest.mark.parametrize("width", [50, 80, 120])
def test_the_list_of_runs_never_cuts_a_score(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    scored = {task: {"metric": "rmse", "value": 776663.2} for task in ("lead", "zinc", "copper")}
    listed = {"method": "ew", "task": None, "seed": 0, "dataset": "d", "status": "finished", "split": "test"}
    run = {"path": "runs/lead", **listed, "age_seconds": 60, "scores": scored, "problem": None}
    text = printed(lambda width: render.runs({"folder": "runs", "runs": [run]}, width), width, monkeypatch)
    assert text.split().count("776,663.2") + text.split().count("776,663.2,") == (3 if width > 100 else 1)
    assert ("..." in text) == (width < 100)


@pytest.mark.parametrize(
    ("encoding", "up", "down", "spread"), [("ascii", "(max)", "(min)", "+-"), ("latin-1", "(max)", "(min)", "±")]
)
def test_a_terminal_without_arrows_says_which_way_is_better(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, encoding: str, up: str, down: str, spread: str
) -> None:
    values: Any = {"a": {"auroc": 0.8}, "b": {"mae": 4.0}}
    paths = [fake(tmp_path / f"{method}{seed}", method, seed, values) for method in ("ew", "uw") for seed in (0, 1)]
    made = report(read_runs(paths), "ew")
    text = printed(lambda width: render.report(made, width), 160, monkeypatch, encoding)
    assert "?" not in text
    assert f"auroc {up}" in text
    assert f"mae {down}" in text
    assert f"4.0000 {spread}0.0000" in text
    assert f"Mean {spread} standard deviation" in text


# -- runs that are none ------------------------------------------------------------------------------------------------


def test_eval_of_no_run(mtl: Mtl, trained: Path) -> None:
    Path("empty").mkdir()
    Path("half").mkdir()
    Path("half/run.json").write_text("{}")
    for target, words in [
        ("nope", "nope: no such run"),
        ("empty", "empty: is not a run directory (it has no run.json and recipe.yaml)"),
        (".", ".: is not a run directory (it has no run.json and recipe.yaml); there are: half, run"),
        ("rn", "rn: no such run; did you mean 'run'?; there are: half, run"),
        ("toy.yaml", "toy.yaml: is not a run directory"),
        ("half", "half: is not a run directory (it has no recipe.yaml)"),
    ]:
        done = mtl("eval", target)
        assert done.code == 2
        assert words in done.err
    assert mtl("train", "toy.yaml", "--quiet").code == 0
    assert "no such run; did you mean 'runs/toy'?" in mtl("eval", "sub/toy").err
    assert "'tset' is not one of" in mtl("eval", trained, "--split", "tset").err
    (trained / "run.json").write_text('{"status": ')
    assert "run/run.json: is damaged, line 1" in mtl("train", "run/recipe.yaml", "--resume").err
    (trained / "recipe.yaml").write_text("data: {name: tay}\n")
    assert "run/recipe.yaml, line 1: data.name: no dataset 'tay'" in mtl("eval", trained).err


class Harm:
    """A pickle that would make a file."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("harm"),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_eval_of_no_checkpoint(mtl: Mtl, trained: Path) -> None:
    import pickle

    import torch

    best = trained / "best.pt"
    whole = best.read_bytes()
    for content in (b"", b"hello", whole[: len(whole) // 2], whole[:-10], pickle.dumps(Harm()), pickle.dumps([1])):
        best.write_bytes(content)
        done = mtl("eval", trained)
        assert done.code == 2
        assert "error: run/best.pt: cannot be read as a checkpoint" in done.err
        assert "Traceback" not in done.err
    for state in ({"model": Harm(), "clock": {}}, [1, 2], {"model": {}, "clock": {}, "schema_version": 99}):
        torch.save(state, best)
        done = mtl("eval", trained)
        assert done.code == 2
        assert "error: run/best.pt: " in done.err
    assert not Path("harm").exists()
    best.unlink()
    assert "run/best.pt: no such checkpoint; the run has not saved one yet" in mtl("eval", trained).err


def test_eval_of_another_models_checkpoint(mtl: Mtl, trained: Path) -> None:
    mtl("train", "toy.yaml", "--out", "wide", "--set", "model.encoder.widths=[16]")
    (trained / "best.pt").write_bytes(Path("wide/best.pt").read_bytes())
    done = mtl("eval", trained)
    assert done.code == 2
    assert "run/best.pt: holds another model than the recipe describes: " in done.err


# -- list and check ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name"), THINGS)
def test_everything_has_a_page(mtl: Mtl, kind: str, name: str) -> None:
    page = json.loads(mtl("list", kind, name, "--json").out)
    assert page["name"] == name
    assert page["summary"]
    done = mtl("list", kind, name)
    assert done.code == 0
    assert page["summary"].split()[0] in done.out
    for option in page["options"]:
        assert option["name"] in done.out
        assert option["allowed"] != "a value"


def test_the_list_is_complete(mtl: Mtl) -> None:
    everything = json.loads(mtl("list", "--json").out)
    assert list(everything) == list(catalogue.ALL_KINDS)
    for kind, among in catalogue.KINDS.items():
        assert [entry["name"] for entry in everything[kind]] == list(among.names())
        assert json.loads(mtl("list", kind, "--json").out) == {kind: everything[kind]}
    assert all(entry["summary"] for entries in everything.values() for entry in entries)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["loss"], "mtl list: no kind 'loss'; did you mean 'losses'?; there are: datasets, encoders"),
        (["igb_v1"], "mtl list: no kind 'igb_v1'; did you mean: mtl list losses igb_v1"),
        (
            ["nonsense"],
            "; there are: datasets, encoders, trunks, losses, gradients, optimizers, schedules, loggers, launchers, "
            "metrics, runs",
        ),
        (["encoder", "mlp"], "did you mean 'encoders'?"),
        (["losses", "igbv1"], "no loss weighting 'igbv1'; did you mean 'igb_v1'?"),
        (["gradients", "pcgard"], "no gradient weighting 'pcgard'; did you mean 'pcgrad'?"),
        (["metrics", "aurocc"], "no metric 'aurocc'; did you mean 'auroc'?"),
        (["datasets", "cencus"], "no dataset 'cencus'; did you mean 'census'?"),
    ],
)
def test_a_near_miss_in_the_list(mtl: Mtl, arguments: list[str], words: str) -> None:
    done = mtl("list", *arguments)
    assert done.code == 2
    assert words in done.err


def test_check_prints_a_recipe_that_trains(mtl: Mtl) -> None:
    done = mtl("check", "toy.yaml", "--set", "weighting.loss=uw")
    assert done.code == 0
    assert not Path("runs").exists()
    resolved, _, rest = done.out.partition("\n\nmethod ")
    Path("resolved.yaml").write_text(resolved)
    assert mtl("train", "resolved.yaml", "--quiet").code == 0
    assert rest.startswith("uw; rows: 96 train, 32 val, 32 test; 3 steps per epoch")
    assert "3 of the weighting" in rest


@pytest.mark.parametrize(
    "arguments", [["trian"], ["train"], ["train", "toy.yaml", "--epochs", "3"], ["train", "a", "b"]]
)
def test_a_command_line_that_is_none(mtl: Mtl, arguments: list[str]) -> None:
    done = mtl(*arguments)
    assert done.code == 2
    assert done.out == ""
    assert "Usage: mtl" in done.err
    assert "Error: " in done.err


# -- the process -------------------------------------------------------------------------------------------------------


def test_a_process_separates_its_streams_and_imports_what_it_needs() -> None:
    """stdout and stderr of a real process; and neither `list` nor `check` waits for modules that they do not use."""
    script = (
        "import sys\nfrom mtlcli.cli import run\n"
        "assert run(['list', '--json']) == 0\nassert run(['check', 'toy.yaml']) == 0\n"
        "print(*sys.modules, file=sys.stderr)\nsys.exit(run(['train', 'nope.yaml']))"
    )
    text = Path("toy.yaml").read_text()
    assert "plugin.py" in text
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    listed, end = json.JSONDecoder().raw_decode(done.stdout)
    assert set(listed) == set(catalogue.ALL_KINDS)
    assert done.stdout[end:].lstrip().startswith("data:")
    assert done.stderr.splitlines()[-1].startswith("error: nope.yaml: no such file")
    loaded = set(done.stderr.split())
    assert "torch" in loaded
    assert not loaded & {"torchmetrics", "torchvision", "scipy", "pandas", "sklearn", "matplotlib", "torch._dynamo"}


def test_help_and_runs_need_no_torch(trained: Path) -> None:
    script = (
        "import sys\nfrom mtlcli.cli import run\n"
        "assert run(['compare', 'run']) == 0\nassert run(['train', '--help']) == 0\n"
        "assert run(['list', 'runs', '.']) == 0\n"
        "assert not {'torch', 'polars', 'numpy'} & set(sys.modules), 'slow'"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "registries" not in done.stdout
    assert registry.datasets.names()
