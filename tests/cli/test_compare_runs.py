"""`mtl compare` on runs that are there already: in folders, damaged, beside published tables; `mtl list runs`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fake_runs import fake
from harness import Mtl

from mtlcli import yamlfile

VALUES: dict[str, dict[str, float | None]] = {"a": {"auroc": 0.8}, "b": {"mae": 4.0}}
TABLE = {
    "name": "mine",
    "title": "Results of mine",
    "dataset": "made_up",
    "protocol": {"optimizer.lr": 0.1},
    "convention": "delta_m",
    "metrics": {
        "a": {"auroc": {"unit": "", "higher_is_better": True, "decimals": 2}},
        "b": {"mae": {"unit": "", "higher_is_better": False, "decimals": 1}},
    },
    "baseline": {"name": "STL", "source": "own", "values": {"a": {"auroc": 0.8}, "b": {"mae": 4.0}}},
    "sources": {"own": {"authors": "Me", "title": "A title", "venue": "arXiv", "year": 2020, "url": "https://x.y"}},
    "rows": [{"method": "uw", "name": "UW", "source": "own", "values": {"a": {"auroc": 0.75}}, "delta": 2.0}],
}


@pytest.fixture
def runs() -> list[str]:
    """Two methods with two seeds in `runs/`."""
    made = []
    for method, gain in (("ew", 0.0), ("uw", 0.01)):
        for seed in (0, 1):
            values = {"a": {"auroc": 0.8 + gain * (1 + seed)}, "b": {"mae": 4.0 - gain}}
            made.append(fake(Path("runs") / method / f"seed-{seed}", method, seed, values))
    return [str(path) for path in made]


def test_a_folder_of_runs_is_compared(mtl: Mtl, runs: list[str]) -> None:
    fake(Path("runs/other"), "dwa", 0, VALUES, fingerprint="sha256:bb")
    done = mtl("compare", "runs", "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert [(row["method"], row["seeds"]) for row in report["rows"]] == [("ew", [0, 1]), ("uw", [0, 1])]
    assert report["reference"] == "ew"
    assert "left out, other data, tasks or metrics: runs/other (made_up)" in report["notes"]
    assert "note: left out, other data" in done.err
    named = mtl("compare", *runs, "runs/other")
    assert named.code == 2
    assert "runs/ew/seed-0: made_up, sha256:aa" in named.err
    assert "runs/other: made_up, sha256:bb" in named.err


def test_a_damaged_result_is_named_and_skipped(mtl: Mtl, runs: list[str]) -> None:
    Path(runs[3], "result.json").write_text('{"schema_')
    for targets in (["runs"], runs):
        done = mtl("compare", *targets, "--json")
        assert done.code == 1
        report = json.loads(done.out)
        assert [(row["method"], row["seeds"]) for row in report["rows"]] == [("ew", [0, 1]), ("uw", [0])]
        assert "error: left out: runs/uw/seed-1/result.json: is damaged, line 1" in done.err
        assert "; delete runs/uw/seed-1 to train it again" in done.err
        assert any(note.startswith("left out, damaged: runs/uw/seed-1/result.json") for note in report["notes"])
    alone = mtl("compare", runs[3])
    assert (alone.code, alone.out) == (2, "")
    assert "error: runs/uw/seed-1/result.json: is damaged, line 1" in alone.err


def test_mistakes_with_runs(mtl: Mtl, runs: list[str]) -> None:
    for arguments, words in (
        (["--reference", "uww"], "--reference uww: is not in the table; did you mean 'uw'?; there are: ew, uw"),
        (["--baseline", "uww"], "--baseline uww: no finished run of it; did you mean 'uw'?"),
        (["--published", "office31"], "no published table 'office31'; did you mean 'office_31'?"),
        (["--published", "mine.yaml"], "mine.yaml: no such file"),
        (["--published", "qm9"], "these runs cannot be compared with the published table 'qm9'"),
        (["--seeds", "0"], "--seeds goes with a recipe; these targets are run directories"),
        (["--tune", "2", "--set", "a=1"], "--set, --tune go with a recipe"),
    ):
        done = mtl("compare", *runs, *arguments, "--out", "out")
        assert (done.code, done.out) == (2, "")
        assert words in done.err
        assert not Path("out").exists()
    Path("empty").mkdir()
    assert (
        "empty: is not a run directory (it has no run.json and recipe.yaml) and holds no runs"
        in mtl("compare", "empty").err
    )


def test_everything_is_written_beside_the_report(mtl: Mtl, runs: list[str]) -> None:
    done = mtl("compare", "runs", "--out", "out", "--baseline", "ew", "--reference", "uw")
    assert done.code == 0, done.err
    assert "report: out/report.json" in done.out
    assert {"report.json", "report.csv", "report.md", "report.tex", "report.html"} <= {
        p.name for p in Path("out").iterdir()
    }
    report = json.loads(Path("out/report.json").read_text())
    assert report["reference"] == "uw"
    assert report["rows"][0]["runs"] == [str(Path(run).resolve()) for run in runs[:2]]
    inside = mtl("compare", "runs", "--out", "runs", "--json")
    assert json.loads(inside.out)["rows"][0]["runs"] == ["ew/seed-0", "ew/seed-1"]
    assert mtl("compare", "runs", "--json").code == 0  # what was written there is taken for no run


def test_beside_a_published_table(mtl: Mtl, runs: list[str]) -> None:
    """uw: auroc 0.815 against 0.75. delta_m by the paper's baseline: -(1.875 + 0.25) / 2 against 2."""
    Path("mine.yaml").write_text(yamlfile.dump(TABLE))
    done = mtl("compare", "runs", "--published", "mine.yaml", "--baseline", "ew", "--out", "out", "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report == json.loads(Path("out/report.json").read_text())
    (row,) = report["published"]["rows"]
    assert row["tasks"]["a"]["auroc"]["gap"] == pytest.approx(0.065)
    assert row["delta"]["gap"] == pytest.approx(-1.0625 - 2)
    for text in (done.err, Path("out/report.md").read_text(), Path("out/report.tex").read_text()):
        assert "paper" in text
        assert "0.0650" in text
        assert "3.06" in text
    assert ",paper,gap\n" in Path("out/report.csv").read_text()
    Path("mine.yaml").write_text(yamlfile.dump(TABLE | {"protocol": {"optimizer.lr": 0.5}}))
    refused = mtl("compare", "runs", "--published", "mine.yaml")
    assert (refused.code, refused.out) == (2, "")
    assert "optimizer.lr: should be 0.5; found 0.1" in refused.err


def test_a_recipe_is_refused_before_anything_is_trained(mtl: Mtl) -> None:
    table = TABLE | {"dataset": "toy", "protocol": {"optimizer.lr": 0.5}}
    Path("mine.yaml").write_text(yamlfile.dump(table))
    for arguments, words in (
        (["--published", "mine.yaml"], "optimizer.lr: should be 0.5; found 0.01"),
        (["--published", "qm"], "no published table 'qm'; did you mean 'qm9'?"),
        (["--reference", "dwaa", "--methods", "ew,dwa"], "--reference dwaa: is not in the table; did you mean 'dwa'?"),
    ):
        done = mtl("compare", "toy.yaml", *arguments, "--out", "out")
        assert (done.code, done.out) == (2, "")
        assert words in done.err
        assert not Path("out").exists()


def test_comparing_runs_with_several_seeds_imports_nothing_large(runs: list[str]) -> None:
    script = (
        "import sys\nfrom mtlcli.cli import run\n"
        "assert run(['compare', 'runs', '--json']) == 0\n"
        "assert not {'torch', 'polars', 'matplotlib', 'numpy', 'scipy'} & set(sys.modules), 'slow'"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_list_of_runs(mtl: Mtl, runs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    Path(runs[1], "result.json").write_text("")
    listed = json.loads(mtl("list", "runs", "--json").out)
    assert listed["folder"] == "runs"
    assert {run["path"] for run in listed["runs"]} == set(runs)
    done = mtl("list", "runs", "runs/uw")
    assert done.code == 0
    assert "runs/uw/seed-0" in done.out
    assert "runs/ew" not in done.out
    assert "test: a auroc 0.8100, b mae 3.9900" in done.out
    assert "damaged: runs/ew/seed-1/result.json: is damaged" in mtl("list", "runs").out
    assert "nope: no such folder" in mtl("list", "runs", "nope").err
    assert "no kind 'run'; did you mean 'runs'?" in mtl("list", "run").err
    Path("empty").mkdir()
    assert "empty holds no runs" in mtl("list", "runs", "empty").out
