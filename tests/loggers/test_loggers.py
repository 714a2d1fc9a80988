"""Loggers: the same numbers as in events.jsonl, wherever they go, and none that can stop a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import toy

import mtlcli
from mtlcli import recipe
from mtlcli.engine.train import train
from mtlcli.errors import MtlError
from mtlcli.loggers.base import Logger, scalars
from mtlcli.registry import loggers
from mtlcli.runs import Run


def run_with(log: dict[str, Any], folder: Path, **sections: Any) -> Run:
    values = {**toy.values(train={"epochs": 2, "log_every_steps": 1, "diagnostics_every": 2}, **sections), "log": log}
    run, _ = train(recipe.from_values(values, "toy"), "toy", out=folder, device="cpu")
    return run


def expected(run: Run) -> dict[str, list[tuple[int, float]]]:
    """What events.jsonl holds, by name."""
    found: dict[str, list[tuple[int, float]]] = {}
    for event in run.events():
        at = scalars(event)
        for name, value in at[1].items() if at else ():
            found.setdefault(name, []).append((at[0], value))  # type: ignore[index]
    return found


def test_an_event_becomes_names_and_numbers(tmp_path: Path) -> None:
    found = expected(run_with({}, tmp_path / "run"))
    assert {
        "loss/yes",
        "weight/which",
        "lr",
        "step_ms",
        "epoch_loss/amount",
        "val/yes/auroc",
        "val/amount/loss",
        "score",
        "cosine/yes/which",
        "cosine/which/amount",
        "condition",
        "test/amount/r2",
    } <= set(found)
    assert [step for step, _ in found["loss/yes"]] == [0, 1, 2, 3, 4, 5]
    assert [step for step, _ in found["val/yes/auroc"]] == [3, 6]
    assert [step for step, _ in found["cosine/yes/which"]] == [0, 2, 4]
    assert all(isinstance(value, float) for values in found.values() for _, value in values)


def test_tensorboard(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = run_with({"tensorboard": True}, tmp_path / "run")
    read = accumulator.EventAccumulator(str(run.path / "tensorboard"))
    read.Reload()
    wanted = expected(run)
    assert set(read.Tags()["scalars"]) == set(wanted)
    for name in ("loss/yes", "val/yes/auroc", "test/amount/r2"):
        assert [(e.step, e.value) for e in read.Scalars(name)] == [(s, pytest.approx(v)) for s, v in wanted[name]]


@pytest.mark.filterwarnings("ignore")
def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    run = run_with({"wandb": {"mode": "offline", "project": "tests", "tags": ["a"]}}, tmp_path / "run")
    (folder,) = (run.path / "wandb").glob("offline-run-*")
    (file,) = folder.glob("*.wandb")
    data = file.read_bytes()
    assert len(data) > 1000
    assert b"val/yes/auroc" in data
    assert b"weighting.loss.name" in data


@pytest.mark.filterwarnings("ignore")
def test_mlflow_in_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = run_with({"mlflow": {"experiment": "tests"}}, tmp_path / "run")
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    found = client.get_run(run.info()["mlflow_run"])
    assert found.info.status == "FINISHED"
    assert found.data.params["weighting.loss.name"] == "ew"
    wanted = expected(run)
    history = client.get_metric_history(found.info.run_id, "loss/yes")
    assert sorted((m.step, m.value) for m in history) == [(s, pytest.approx(v)) for s, v in wanted["loss/yes"]]
    assert found.data.metrics["test/amount/r2"] == pytest.approx(wanted["test/amount/r2"][-1][1])


class Broken(Logger):
    """Fails when told to."""

    package = "json"
    fail_at: int | None = 3
    closed: list[str]

    class Options(mtlcli.Options):
        """None."""

    def __init__(self, options: Any, run: Run, settings: Mapping[str, Any], step: int) -> None:
        if self.fail_at is None:
            raise OSError("no such server")
        Broken.written, Broken.closed = [], []

    written: list[int]

    def write(self, values: Mapping[str, float], step: int) -> None:
        if step == self.fail_at:
            raise ConnectionError("the network is gone\nand more")
        self.written.append(step)

    def close(self, status: str) -> None:
        self.closed.append(status)


@pytest.fixture
def broken() -> Any:
    loggers.names()
    loggers._classes["broken"] = Broken
    Broken.name = "broken"
    yield Broken
    del loggers._classes["broken"]


def test_a_logger_that_fails_does_not_stop_the_training(
    tmp_path: Path, broken: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Broken, "fail_at", 3)
    run = run_with({"broken": True}, tmp_path / "run")
    assert run.info()["status"] == "finished"
    (warned,) = [event for event in run.events() if event["event"] == "Warned"]
    assert warned["message"] == (
        "log.broken stopped at step 3, the training goes on: ConnectionError: the network is gone"
    )
    assert max(Broken.written) < 3
    assert Broken.closed == []


def test_a_logger_is_told_how_the_run_ended(tmp_path: Path, broken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Broken, "fail_at", 10**9)
    run_with({"broken": True}, tmp_path / "run")
    assert Broken.closed == ["finished"]
    with pytest.raises(MtlError, match="its loss became inf"):
        run_with({"broken": True}, tmp_path / "other", data={"break_at": 5})
    assert Broken.closed == ["failed"]


def test_a_logger_that_cannot_begin_is_told_before_training(
    tmp_path: Path, broken: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Broken, "fail_at", None)
    with pytest.raises(MtlError, match=r"log\.broken: cannot begin: OSError: no such server"):
        run_with({"broken": True}, tmp_path / "run")
    assert not any(event["event"] == "StepDone" for event in Run(tmp_path / "run").events())


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ({"tensorbord": True}, "log.tensorbord: no logger 'tensorbord'; did you mean 'tensorboard'?"),
        ({"tensorboard": 3}, "log.tensorboard: should be true, false, or a map of its options; found 3"),
        ({"wandb": {"projekt": "x"}}, "log.wandb.projekt: unknown key; did you mean 'project'?"),
        (["tensorboard"], "log: should be a map"),
    ],
)
def test_mistakes_in_a_recipe(log: Any, words: str) -> None:
    with pytest.raises(MtlError) as caught:
        recipe.from_values({**toy.values(), "log": log}, "toy")
    assert words in str(caught.value)


def test_a_package_that_is_missing_is_told_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtlcli.extras.find_spec", lambda name: None)
    with pytest.raises(MtlError, match=r"needs the package tensorboard, .* pip install 'mtlcli\[tensorboard\]'"):
        recipe.from_values({**toy.values(), "log": {"tensorboard": True}}, "toy")


def test_a_package_of_somebody_elses_logger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers.get("tensorboard"), "package", "somewhere_else")
    monkeypatch.setattr(loggers.get("tensorboard"), "extra", None)
    with pytest.raises(MtlError, match=r"not installed: pip install somewhere_else$"):
        recipe.from_values({**toy.values(), "log": {"tensorboard": True}}, "toy")


def test_a_recipe_keeps_what_is_wanted() -> None:
    made = recipe.from_values({**toy.values(), "log": {"tensorboard": True, "wandb": False, "mlflow": None}}, "toy")
    assert made.as_dict()["log"] == {"tensorboard": {}}
    assert recipe.from_values(made.as_dict(), "again").as_dict() == made.as_dict()
    assert json.loads(json.dumps(made.as_dict()))["log"] == {"tensorboard": {}}
