"""The store of single-task baselines: trained once for all comparisons that lead to the same result."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from harness import Done, Mtl
from test_sweep import means, runs_in

from mtlcli import recipe as recipes
from mtlcli.engine.train import train
from mtlcli.recipe import Recipe
from mtlcli.runs import ASIDE, Run
from mtlcli.sweep.store import Entry, place

STORE = Path("runs/single_task")
SMALL = ["--set", "train.epochs=1", "--set", "data.tasks=[yes, amount]", "--seeds", "0", "--jobs", "2", "--json"]
BASELINES = ["single_task/amount/seed-0", "single_task/yes/seed-0"]


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take seconds to draw, and have tests of their own."""
    monkeypatch.setattr("mtlcli.comparison.figures.write_figures", lambda *arguments: [])


def compare(mtl: Mtl, out: str, *arguments: str) -> Done:
    """A small comparison in the folder `out`, which ends well."""
    done = mtl("compare", "toy.yaml", *SMALL, "--out", out, *arguments)
    assert done.code == 0, done.err
    return done


def kept() -> list[Path]:
    return sorted(path for path in STORE.iterdir() if path.name != ASIDE)


def taken(done: Done) -> int:
    return done.err.count("taken from the store")


def test_a_baseline_is_trained_once(mtl: Mtl) -> None:
    first = compare(mtl, "one")
    assert taken(first) == 0
    files = {entry / "last.pt": (entry / "last.pt").stat().st_ino for entry in kept()}
    assert set(files.values()) == {Path("one", name, "last.pt").stat().st_ino for name in BASELINES}

    # Another method, another rhythm of records, another recipe's weighting: the baselines are the same.
    other = ["--methods", "uw", "--set", "train.log_every_steps=7", "--set", "weighting.loss=dwa"]
    second = compare(mtl, "two", *other)
    assert taken(second) == 2
    assert runs_in("two").keys() == {*BASELINES, "uw/seed-0"}
    for name in BASELINES:
        run = Run(Path("two", name))
        assert run.last.stat().st_ino in files.values()
        assert recipes.load(run.recipe_file).train.log_every_steps == 7
        assert run.info()["taken_from"].startswith(str(STORE.resolve()))
    one, two = (means(json.loads(done.out)) for done in (first, second))
    assert {k: v for k, v in one.items() if k.startswith("single_task.")}.items() <= two.items()
    assert {path: path.stat().st_ino for path in files} == files

    # Other epochs are other baselines, and so are other rows.
    assert taken(compare(mtl, "three", "--set", "train.epochs=2")) == 0
    assert taken(compare(mtl, "four", "--set", "data.rows=48", "--single-task-store", "none")) == 0
    assert len(kept()) == 4
    # The store's runs are nobody's comparison.
    assert json.loads(mtl("list", "runs", "--json").out)["runs"] == []


def test_what_is_damaged_is_named_and_replaced(mtl: Mtl) -> None:
    compare(mtl, "one", "--single-task-store", str(STORE))
    before = kept()
    torn, emptied = before
    (torn / "best.pt").unlink()
    (torn / "best.pt").write_text("torn")
    (emptied / "result.json").unlink()
    done = compare(mtl, "two")
    assert taken(done) == 0
    words = "trained again, for what the store has of it is damaged and gets replaced: runs/single_task/"
    assert done.err.replace(str(Path.cwd()) + "/", "").count(words) == 2
    assert kept() == before
    assert (emptied / "result.json").exists()
    assert taken(compare(mtl, "three")) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["toy.yaml", "--single-task-store", "toy.yaml"], "toy.yaml: is a file; name a folder, or none"),
        ([".", "--single-task-store", "none"], "--single-task-store goes with a recipe; these targets are run"),
    ],
    ids=str,
)
def test_a_store_that_does_not_fit(mtl: Mtl, arguments: list[str], words: str) -> None:
    done = mtl("compare", *arguments)
    assert (done.code, done.out) == (2, "")
    assert words in done.err


# -- one run in the store ----------------------------------------------------------------------------------------------


@pytest.fixture
def recipe() -> Recipe:
    """A single task."""
    return recipes.load(Path("toy.yaml"), ["data.tasks=[yes]", "train.epochs=1"])


@pytest.fixture
def run(recipe: Recipe) -> Run:
    """Its finished run."""
    return train(recipe, "run", out=Path("run"), device="cpu")[0]


def entry(recipe: Recipe, run: Run, device: str = "cpu") -> Entry:
    return Entry(STORE, recipe, run.result()["fingerprint"], device)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("events.jsonl", None),
        ("last.pt", "torn"),
        ("recipe.yaml", "data: {name: toy}"),
        ("run.json", '{"status": "running"}'),
        ("result.json", "{"),
    ],
)
def test_no_file_of_a_run_may_be_damaged(recipe: Recipe, run: Run, file: str, content: str | None) -> None:
    place_of = entry(recipe, run)
    assert place_of.take(Path("copy")) == (False, None)
    assert place_of.keep(run.path) is None
    (place_of.path / file).unlink()
    if content is not None:
        (place_of.path / file).write_text(content)
    done, note = place_of.take(Path("copy"))
    assert not done
    assert note is not None
    assert str(place_of.path) in note
    assert not Path("copy").exists()
    assert place_of.keep(run.path) is None
    assert place_of.take(Path("copy"))[0]
    assert Run(Path("copy")).result() == run.result()
    assert [path.name for path in STORE.iterdir() if path.name != ASIDE] == [place_of.path.name]


def test_only_what_belongs_there_is_kept(recipe: Recipe, run: Run) -> None:
    other = Entry(STORE, recipe, "sha256:other", "cpu")
    assert str(other.keep(run.path)).startswith("not kept in the store: run: is another run than belongs there")
    assert not STORE.exists()
    Path("file").touch()
    assert "not kept in the store: " in str(
        Entry(Path("file/store"), recipe, run.result()["fingerprint"], "cpu").keep(run.path)
    )


def test_plugins_and_versions_tell_results_apart(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    text = Path("toy.yaml").read_text()

    def name(plugin: str, content: str) -> str:
        Path(plugin).write_text(content)
        Path("toy.yaml").write_text(text.replace("plugins: [", f"plugins: [{plugin}, "))
        return entry(recipes.load(Path("toy.yaml")), run).path.name

    before = name("mine.py", "")
    assert name("moved.py", "") == before
    assert name("moved.py", "1\n") != before
    monkeypatch.setattr("mtlcli.sweep.store.version", lambda package: "0.0")
    assert name("mine.py", "") != before


def test_many_at_once_leave_one_whole_run(run: Run) -> None:
    made: list[bool] = []
    threads = [threading.Thread(target=lambda: made.append(place(run.path, Path("kept/run")))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [False] * 7 + [True]
    assert [path.name for path in Path("kept").iterdir()] == ["run"]
    of_the_run = {path.name for path in run.path.iterdir() if not path.name.startswith(".")}
    assert {path.name for path in Path("kept/run").iterdir()} == of_the_run


@pytest.mark.parametrize("how", ["from the store", "tuned"])
def test_what_was_taken_predicts_new_rows(mtl: Mtl, how: str) -> None:
    rows = [f"{i % 7},{i % 5},{i % 2},{i * 0.5}" for i in range(60)]
    Path("t.csv").write_text("\n".join(["a,b,won,paid", *rows]))
    init = ["init", "--from", "t.csv", "--task", "won:binary", "--task", "paid:regression", "t.yaml"]
    assert mtl(*init).code == 0
    sweep = ["compare", "t.yaml", "--set", "train.epochs=1", "--methods", "ew", "--seeds", "0", "--json"]
    if how == "tuned":
        run = Path("one", json.loads(mtl(*sweep, "--tune", "1", "--out", "one").out)["rows"][0]["runs"][0])
    else:
        for out in ("one", "two"):
            done = mtl(*sweep, "--out", out)
        assert taken(done) == 2
        run = Path("two/single_task/won/seed-0")
    done = mtl("predict", run, "t.csv", "--out", "p.csv")
    assert done.code == 0, done.err
    assert len(Path("p.csv").read_text().splitlines()) == 61
