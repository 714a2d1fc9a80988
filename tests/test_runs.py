"""Run directories: written whole or not at all, locked by one process, read back with clear words."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from pathlib import Path

import pytest

from mtlcli.errors import MtlError, TrainingError
from mtlcli.runs import Run, provenance, read_json, replace_file, to_json


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def made(path: str = "run") -> Run:
    return Run.create(Path(path), "name", "data: {}\n", {"status": "running"})


def test_a_folder_appears_complete_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **keywords: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", refuse)
        with pytest.raises(MtlError, match="run: cannot be written: No space left on device"):
            made()
    assert list(Path().rglob("*")) == []
    run = made()
    assert run.info() == {"schema_version": 1, "name": "name", "status": "running"}
    assert {path.name for path in run.path.iterdir()} == {"recipe.yaml", "run.json"}


@pytest.mark.parametrize("there", [True, False])
def test_a_link_to_an_empty_folder(there: bool) -> None:
    if there:
        Path("real").mkdir()
    Path("link").symlink_to("real")
    Run.create(Path("link"), "name", "", {})
    assert Run.open(Path("link")).path == Path("link")
    assert Path("real/run.json").exists()


@pytest.mark.parametrize("out", [".", "empty"])
def test_an_empty_folder_is_filled_where_it_is(out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mounted volume, or the current folder, cannot be replaced by another."""
    Path("empty").mkdir()
    monkeypatch.chdir("empty" if out == "." else ".")
    folder = Path(out).stat().st_ino
    real = Path.write_text

    def full(path: Path, text: str, **keywords: str) -> int:
        if path.name == "run.json":
            raise OSError(28, "No space left on device")
        return real(path, text, **keywords)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", full)
        with pytest.raises(MtlError, match=r"cannot be written: No space left on device"):
            made(out)
    assert {path.name for path in Path(out).iterdir()} <= {".lock"}
    assert made(out).info()["name"] == "name"
    assert Path(out).stat().st_ino == folder
    with pytest.raises(MtlError, match="already holds a run"):
        made(out)


def test_one_run_is_made_in_an_empty_folder() -> None:
    Path("empty").mkdir()
    found: list[str] = []

    def create() -> None:
        try:
            found.append(str(made("empty").path))
        except MtlError as error:
            found.append(str(error))

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found)[0] == "empty"
    assert all(text.startswith(("empty: already holds a run", "empty: holds other")) for text in sorted(found)[1:])


def test_numbered_names_step_over_whatever_is_there() -> None:
    Path("runs").mkdir()
    Path("runs/name").write_text("a file")
    Path("runs/name-2").mkdir()
    Path("runs/name-2/notes").touch()
    Path("runs/name-3").mkdir()
    names = [Run.create(None, "name", "", {}).path.name for _ in range(2)]
    assert names == ["name-3", "name-4"]


def test_the_newest_run_is_the_one_with_the_highest_number() -> None:
    assert Run.latest("name") is None
    for _ in range(11):
        Run.create(None, "name", "", {})
    for other in ("name-x", "names", "name-2", "na[m]e"):
        Run.create(None, other, "", {})
    newest, odd = Run.latest("name"), Run.latest("na[m]e")
    assert newest is not None
    assert newest.path.name == "name-11"
    assert odd is not None
    assert odd.path.name == "na[m]e"
    longer = Run.latest("name-2")
    assert longer is not None
    assert longer.path.name == "name-2-2"
    Run.create(None, "other-2", "", {})
    assert Run.latest("other") is None


def test_one_process_holds_a_run() -> None:
    run = made()
    assert not run.is_locked()
    with run.lock():
        assert run.is_locked()
        with pytest.raises(MtlError, match="run: another process is training this run"), Run(run.path).lock():
            pass
        waited = []

        def wait() -> None:
            with Run(run.path).lock(wait=True):
                waited.append(time.monotonic())

        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.3)
        assert not waited
    thread.join(5)
    assert waited
    assert not run.is_locked()


def test_an_error_of_the_work_is_not_taken_for_the_locks() -> None:
    run = made()
    with pytest.raises(FileNotFoundError), run.lock():
        raise FileNotFoundError(2, "gone", "somewhere else")


def test_the_lock_clears_what_a_killed_process_left_half_written() -> None:
    run = made()
    left = run.path / ".last.pt.123.tmp"
    left.touch()
    with run.lock():
        assert not left.exists()


def test_a_file_is_replaced_whole_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path("file")
    replace_file(path, b"old")

    def refuse(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", refuse)
        with pytest.raises(
            TrainingError, match="file: cannot be written: No space left on device; what was saved before"
        ):
            replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in Path().iterdir()] == ["file"]


@pytest.mark.parametrize("torn", ["", "{", '{"event": "Two"', "\x00\x00", '{"a": 1}{'])
def test_a_torn_line_is_cut_before_the_next_one(torn: str) -> None:
    run = made()
    run.append({"event": "One"})
    run.close()
    with open(run.events_file, "a") as handle:
        handle.write(torn)
    again = Run(run.path)
    again.append({"event": "Three"})
    again.close()
    assert [json.loads(line) for line in run.events_file.read_text().splitlines()] == [
        {"event": "One"},
        {"event": "Three"},
    ]


def test_a_first_line_that_is_torn() -> None:
    run = made()
    run.events_file.write_text('{"ev')
    assert list(run.events()) == []
    run.append({"event": "One"})
    run.close()
    assert list(run.events()) == [{"event": "One"}]


def test_lines_that_are_no_events_are_passed_over() -> None:
    run = made()
    run.events_file.write_text('3\n[1]\nnull\n{}\n{"event": "One"}\n')
    assert list(run.events()) == [{"event": "One"}]


def test_json_has_no_numbers_that_json_does_not_know() -> None:
    values = {"a": [1.0, math.nan, (math.inf,)], "b": {"c": -math.inf, "d": True}}
    assert json.loads(to_json(values)) == {"a": [1.0, None, [None]], "b": {"c": None, "d": True}}


def test_damaged_files_are_named() -> None:
    run = made()
    for content, words in [
        ("", "run.json: is damaged, line 1"),
        ('{\n"a": \n', "run.json: is damaged, line 3"),
        ("3", "run.json: should hold a JSON object; found int"),
    ]:
        run.info_file.write_text(content)
        with pytest.raises(MtlError) as raised:
            run.info()
        assert words in str(raised.value)
    run.info_file.write_bytes(b"\xff\xfe")
    with pytest.raises(MtlError, match=r"run\.json: cannot be read"):
        read_json(run.info_file)


def test_no_result_says_what_to_do() -> None:
    run = made("a run")
    with pytest.raises(
        MtlError, match=r"no result yet \(it was killed\); finish it with: mtl train 'a run/recipe.yaml' --"
    ):
        run.result()
    with run.lock(), pytest.raises(MtlError, match=r"no result yet \(another process is training it\)"):
        run.result()
    run.update_info(status="interrupted")
    with pytest.raises(MtlError, match=r"no result yet \(interrupted\)"):
        run.result()


def test_opening_what_is_no_run() -> None:
    Path("empty").mkdir()
    with pytest.raises(MtlError, match=r"^nope: no such run$"):
        Run.open(Path("nope"))
    for name in ("first", "second"):
        Run.create(None, name, "", {})
    with pytest.raises(
        MtlError, match=r"^secnd: no such run; did you mean 'runs/second'\?; there are: runs/first, runs/s"
    ):
        Run.open(Path("secnd"))
    with pytest.raises(MtlError, match=r"^runs: is not a run directory .*; there are: runs/first, runs/second$"):
        Run.open(Path("runs"))
    assert Run.at(Path("nope")) is None


def test_provenance_says_what_ran() -> None:
    found = provenance()
    assert {"mtlcli", "python", "torch", "numpy"} <= set(found["versions"])
    assert set(found["git"]) == {"commit", "dirty"}
    assert found["argv"]
