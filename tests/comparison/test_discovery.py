"""Runs found in folders: what belongs together, what is left out and why, and the list of all."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from pathlib import Path
from typing import Any

import pytest
from fake_runs import fake

from mtlcli.comparison import discovery
from mtlcli.errors import MtlError

BOTH: dict[str, dict[str, float | None]] = {"a": {"auroc": 0.8}, "b": {"mae": 4.0}}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def begun(path: Path, when: str, status: str = "finished") -> Path:
    (path / "run.json").write_text(json.dumps({"status": status, "started": f"2026-01-{when}T00:00:00Z"}))
    return path


def unfinished(path: Path, status: str) -> Path:
    fake(path, "ew", 0, BOTH)
    (path / "result.json").unlink()
    return begun(path, "01", status)


def chosen(*targets: str) -> tuple[list[str], list[str]]:
    """The runs by path, and the notes."""
    found = discovery.choose([Path(target) for target in targets])
    return [str(run.path) for run in found.runs], found.notes


def test_a_folder_is_searched_at_any_depth() -> None:
    for path, method in (("runs/a", "ew"), ("runs/deep/er/b", "uw"), ("runs/single_task/a/seed-0", "ew")):
        fake(Path(path), method, 0, BOTH if method == "uw" or path.endswith("/a") else {"a": BOTH["a"]})
    fake(Path("runs/a/inside"), "dwa", 0, BOTH)  # what stands in a run's folder is the run's own
    fake(Path("runs/.made-1234"), "si", 0, BOTH)  # a run that is being made
    runs, notes = chosen("runs")
    assert runs == ["runs/a", "runs/deep/er/b", "runs/single_task/a/seed-0"]
    assert notes == []


def test_the_largest_group_is_compared() -> None:
    """Other data, other tasks and other metrics are left out, with their names."""
    for method in ("ew", "uw"):
        fake(Path("runs") / method, method, 0, BOTH)
    fake(Path("runs/data"), "dwa", 0, BOTH, fingerprint="sha256:bb", dataset="other")
    fake(Path("runs/tasks"), "dwa", 0, {"a": {"auroc": 0.8}, "c": {"mae": 4.0}})
    fake(Path("runs/metrics"), "dwa", 0, {"a": {"auroc": 0.8}, "b": {"r2": 4.0}})
    fake(Path("runs/single"), "ew", 0, {"b": {"mae": 4.0}})
    fake(Path("runs/single_c"), "ew", 0, {"c": {"mae": 4.0}})
    runs, notes = chosen("runs")
    assert runs == ["runs/ew", "runs/single", "runs/uw"]
    assert notes == [
        "left out, other data, tasks or metrics: runs/data (other), runs/metrics (made_up), runs/single_c (made_up), "
        "runs/tasks (made_up)"
    ]


def test_among_groups_of_one_size_the_newest_is_compared() -> None:
    begun(fake(Path("runs/old"), "ew", 0, BOTH), "01")
    begun(fake(Path("runs/new"), "uw", 0, BOTH, fingerprint="sha256:bb"), "02")
    assert chosen("runs")[0] == ["runs/new"]
    begun(Path("runs/old"), "03")
    assert chosen("runs")[0] == ["runs/old"]


def test_of_the_same_run_twice_the_newest_counts() -> None:
    begun(fake(Path("runs/one"), "ew", 0, BOTH), "02")
    begun(fake(Path("runs/one-2"), "ew", 0, BOTH, train__log_every_steps=5), "01")
    begun(fake(Path("runs/other"), "ew", 0, BOTH, optimizer__lr=0.3), "01")
    begun(fake(Path("runs/x/a"), "ew", 0, {"a": BOTH["a"]}, optimizer__lr=0.3), "01")
    begun(fake(Path("runs/y/a"), "ew", 0, {"a": BOTH["a"]}), "02")
    runs, notes = chosen("runs")
    assert runs == ["runs/one", "runs/other", "runs/y/a"]
    assert notes == ["left out, a newer run has the same recipe and seed: runs/one-2 (ew), runs/x/a (ew)"]


def test_what_is_not_finished_is_left_out() -> None:
    fake(Path("runs/good"), "ew", 0, BOTH)
    for status in ("failed", "interrupted"):
        unfinished(Path("runs") / status, status)
    unfinished(Path("runs/killed"), "running")
    with open(unfinished(Path("runs/now"), "running") / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        runs, notes = chosen("runs")
    assert runs == ["runs/good"]
    assert notes == [
        "left out, not finished: runs/failed (failed), runs/interrupted (interrupted), runs/killed (killed), "
        "runs/now (running)"
    ]


def test_damaged_runs_are_named_and_left_out() -> None:
    for name in ("a", "b", "c"):
        fake(Path("runs") / name, "ew", ord(name), BOTH)
    Path("runs/b/result.json").write_text("{")
    Path("runs/c/recipe.yaml").write_text("- a list")
    for targets in (("runs",), ("runs/a", "runs/b", "runs/c")):
        found = discovery.choose([Path(target) for target in targets])
        assert [run.path for run in found.runs] == [Path("runs/a")]
        assert [message.partition(": ")[0] for message in found.damaged] == ["runs/b/result.json", "runs/c/recipe.yaml"]
        assert found.notes == [f"left out, damaged: {message}" for message in found.damaged]
    with pytest.raises(MtlError, match=r"^runs/b/result.json: is damaged, line 1"):
        chosen("runs/b")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", True),
        ("tasks", {}),
        ("cost", {"seconds": "slow"}),
        ("cost", {"peak_mib": float("inf")}),
        ("counts", {"solver": None}),
        ("tasks", {"a": {"metrics": {"auroc": {"value": 10**400, "unit": "", "higher_is_better": True}}}}),
        ("tasks", {"a": {"metrics": {"auroc": {"value": 0.5, "unit": None, "higher_is_better": True}}}}),
        ("tasks", {"a": {"metrics": {"auroc": {"value": 0.5, "unit": "", "higher_is_better": "yes"}}}}),
    ],
)
def test_a_wrong_type_in_a_result_costs_that_run_alone(key: str, value: Any) -> None:
    fake(Path("runs/a"), "ew", 0, BOTH)
    file = fake(Path("runs/b"), "uw", 0, BOTH) / "result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    found = discovery.choose([Path("runs")])
    assert [run.path for run in found.runs] == [Path("runs/a")]
    assert [message.partition(": ")[0] for message in found.damaged] == ["runs/b/result.json"]


def test_what_is_named_is_never_passed_over() -> None:
    """The group is the one of the named runs, however large others are; their own mistakes are errors as ever."""
    for method in ("ew", "uw"):
        fake(Path("runs") / method, method, 0, BOTH)
    fake(Path("mine"), "dwa", 0, BOTH, fingerprint="sha256:bb")
    runs, notes = chosen("mine", "runs")
    assert runs == ["mine"]
    assert notes == ["left out, other data, tasks or metrics: runs/ew (made_up), runs/uw (made_up)"]
    assert chosen("runs/ew", "runs")[0] == ["runs/ew", "runs/uw"]
    assert chosen("runs", "runs/ew/")[0] == ["runs/ew", "runs/uw"]
    begun(fake(Path("again"), "ew", 0, BOTH), "01")
    assert chosen("again", "runs")[0] == ["again", "runs/uw"]
    fake(Path("single"), "ew", 0, {"a": BOTH["a"]})
    assert chosen("single", "runs")[0] == ["single", "runs/ew", "runs/uw"]
    unfinished(Path("half"), "failed")
    with pytest.raises(MtlError, match=r"half: has no result yet \(failed\)"):
        chosen("half", "runs")


def test_a_folder_without_runs() -> None:
    Path("empty").mkdir()
    with pytest.raises(MtlError, match="empty: is not a run directory"):
        chosen("empty")
    unfinished(Path("runs/half"), "failed")
    with pytest.raises(MtlError, match=r"no finished run to compare:\n  left out, not finished: runs/half \(failed\)"):
        chosen("runs")


# -- the list ----------------------------------------------------------------------------------------------------------


def test_the_list_of_runs() -> None:
    begun(fake(Path("runs/old"), "uw", 3, BOTH, epochs=7), "01")
    alone = [begun(fake(Path("alone", n), "ew", 0, BOTH, data__only=["a"]), "01", n) for n in ("finished", "failed")]
    (alone[1] / "result.json").unlink()
    listed = discovery.listing(Path("alone"))["runs"]
    assert [(run["method"], run["task"]) for run in listed] == [("single_task", "a")] * 2
    half = begun(fake(Path("runs/sub/half"), "ew+pcgrad", 1, BOTH), "03", "interrupted")
    (half / "result.json").unlink()
    val = {"a": {"loss": 1.0, "metrics": {"auroc": {"value": 0.6, "unit": "", "higher_is_better": True}}}}
    events: list[dict[str, Any]] = [
        {"event": "StepDone", "step": 1},
        {"event": "EpochDone", "epoch": 0, "best": True, "val": val},
        {"event": "EpochDone", "epoch": 1, "best": False, "val": {}},
    ]
    (half / "events.jsonl").write_text("\n".join(map(json.dumps, events)) + '\n{"event": "Epo')
    broken = begun(fake(Path("runs/broken"), "ew", 1, BOTH), "02")
    (broken / "result.json").write_text("")
    made = discovery.listing(Path("runs"))
    assert made["folder"] == "runs"
    first, second, third = made["runs"]
    assert first | {"age_seconds": 0} == {
        "path": "runs/sub/half",
        "method": "ew+pcgrad",
        "task": None,
        "seed": 1,
        "dataset": "made_up",
        "status": "interrupted",
        "epochs": 2,
        "scores": {"a": {"metric": "auroc", "value": 0.6, "unit": "", "higher_is_better": True}},
        "split": "val",
        "started": "2026-01-03T00:00:00Z",
        "age_seconds": 0,
        "problem": None,
    }
    assert (second["path"], second["status"]) == ("runs/broken", "damaged")
    assert "result.json: is damaged" in second["problem"]
    assert (third["method"], third["epochs"], third["split"]) == ("uw", 7, "test")
    assert third["scores"]["b"] == {"metric": "mae", "value": 4.0, "unit": "", "higher_is_better": False}
    assert third["age_seconds"] > 0


def test_the_list_survives_what_is_no_run() -> None:
    path = fake(Path("runs/odd"), "ew", 0, BOTH)
    (path / "result.json").unlink()
    for info in ("", "[]", '{"started": 5}', "{}"):
        (path / "run.json").write_text(info)
        (path / "events.jsonl").write_text('[1]\n{"event": "EpochDone"}\n')
        (run,) = discovery.listing(Path("runs"))["runs"]
        assert run["status"] == "damaged"
    (path / "recipe.yaml").write_text("a: b: c")
    assert "recipe.yaml, line 1" in discovery.listing(Path("runs"))["runs"][0]["problem"]
    assert discovery.listing(path)["runs"][0]["path"] == "runs/odd"
    Path("empty").mkdir()
    assert discovery.listing(Path("empty"))["runs"] == []
    with pytest.raises(MtlError, match="nope: no such folder"):
        discovery.listing(Path("nope"))
    with pytest.raises(MtlError, match="is a file"):
        discovery.listing(path / "run.json")


def test_a_folder_that_cannot_be_read_is_named_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for method in ("ew", "uw"):
        fake(Path("runs") / method / "seed-0", method, 0, BOTH)
    scan = os.scandir

    def closed(path: Any) -> Any:  # root may read everything
        if Path(path) == Path("runs/uw"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)
    found = discovery.choose([Path("runs")])
    assert [run.path for run in found.runs] == [Path("runs/ew/seed-0")]
    assert found.damaged == ["runs/uw: cannot be read: Permission denied"]
    rows = discovery.listing(Path("runs"))["runs"]
    assert {run["path"]: run["status"] for run in rows} == {"runs/ew/seed-0": "finished", "runs/uw": "damaged"}
