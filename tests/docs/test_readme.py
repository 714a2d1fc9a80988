"""README.md is kept: every command runs, every flag, key, file and name in it exists.

How the commands of the ```sh blocks are checked, by the program they call:

mtl        run in this process, in the order of the README, in a temporary folder that holds `recipes/` and `examples/`;
           SMALL is appended to what trains, so that a run takes a second
torchrun   not run (tests/engine runs on two processes): what follows `-m mtlcli` is parsed by the command line
docker     not run (no container engine here): options, files and what the image is asked to do are checked
make       not run: the target exists
git, source, mkdir    not run

A command of another program fails the test until it is added here.
"""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

import mtlcli
from mtlcli import catalogue, cli, recipe
from mtlcli.models.heads import HeadOptions

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")

SMALL = ("--set", "data.rows=600", "--set", "data.subsample=all", "--set", "train.epochs=1")
SMALL_COMPARE = (*SMALL, "--seeds", "0,1", "--jobs", "1")
SMALL_TUNE = ("--tune", "1")


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def commands(text: str = README) -> Iterator[list[str]]:
    """Every command of the ```sh blocks, as words; `a && b` is two."""
    for block in blocks("sh", text):
        for line in block.replace("\\\n", " ").splitlines():
            for command in line.partition(" #")[0].split(" && "):
                if command.strip():
                    yield shlex.split(command)


def named(program: str) -> list[list[str]]:
    return [words for words in commands() if words[0] == program]


def parsed_by_mtl(arguments: list[str]) -> dict[str, Any]:
    """Let the command line parse `arguments` without running anything; it raises for what it does not know."""
    group: Any = typer.main.get_command(cli.app)
    sub = group.commands[arguments[0]]
    return dict(sub.make_context(arguments[0], list(arguments[1:])).params)


def test_every_program_is_known() -> None:
    known = {"mtl", "torchrun", "docker", "make", "git", "source", "mkdir", "cd"}
    assert {words[0] for words in commands()} <= known


# -- mtl ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as after `git clone`, with what the commands name."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("recipes", "examples"):
        shutil.copytree(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def printed(workplace: Path) -> dict[str, str]:
    """Run every `mtl` command in order; command -> what it printed on stdout."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workplace)
        for words in named("mtl"):
            arguments = words[1:]
            recipe_given = any(word.endswith(".yaml") for word in arguments)
            if arguments[0] == "init" or not recipe_given:
                pass
            elif "mine.yaml" in arguments:  # small as it is
                arguments += ("--set", "train.epochs=1")
            elif arguments[0] == "compare":
                arguments += (*SMALL_COMPARE, *(SMALL_TUNE if "--tune" in arguments else ()))
            else:
                arguments += SMALL
            found[shlex.join(words)] = run_mtl(arguments, patch)
    return found


def run_mtl(arguments: list[str], patch: pytest.MonkeyPatch) -> str:
    """Exactly what `mtl ...` does, without paying 10 s of imports each time."""
    import contextlib
    import io

    patch.setattr(sys, "argv", ["mtl", *arguments])
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as done:
        cli.main()
    assert not done.value.code, f"mtl {shlex.join(arguments)}\n{err.getvalue()}"
    return out.getvalue()


def test_every_mtl_command_runs(printed: dict[str, str]) -> None:
    assert len(printed) >= 8
    assert all(text.strip() for text in printed.values())


@pytest.mark.parametrize("words", named("torchrun"), ids=shlex.join)
def test_a_torchrun_line_starts_mtl(words: list[str]) -> None:
    at = words.index("-m")
    assert words[at + 1] == "mtlcli"
    assert (ROOT / parsed_by_mtl(words[at + 2 :])["recipe"]).exists()


# -- other programs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [w for w in commands(README + CONTRIBUTING) if w[0] == "make"], ids=shlex.join)
def test_a_make_target_exists(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in words[1:]:
        assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE)


@pytest.mark.parametrize("words", named("docker"), ids=shlex.join)
def test_a_docker_line_fits_the_image(words: list[str]) -> None:
    if words[1] == "build":
        assert words[2:] == ["--tag", "mtlcli", "."]
        assert (ROOT / "Dockerfile").exists()
        return
    assert words[1] == "run"
    at = words.index("mtlcli")
    options = iter(words[2:at])
    mounted = {}
    for option in options:
        assert option in ("--rm", "--init", "--gpus", "--user", "--volume")
        value = next(options) if option in ("--gpus", "--user", "--volume") else ""
        if option == "--volume":
            mounted[value.split(":")[1]] = value.split(":")[0]
    assert set(mounted) <= {"/data", "/runs"}
    path = str(parsed_by_mtl(words[at + 1 :])["recipe"])
    assert (ROOT / path.removeprefix("/data/")).exists()


# -- recipes and code --------------------------------------------------------------------------------------------------


def test_the_recipe_shows_every_key_and_nothing_else() -> None:
    from mtlcli import yamlfile

    block = blocks("yaml")[1]
    values = yamlfile.parse(block, "README.md").values
    loaded = recipe.from_values(values, "README.md")
    assert loaded.as_dict() == recipe.from_values({"data": {"name": "census"}}, "defaults").as_dict()
    assert keys_of(values) == keys_of(loaded.as_dict())
    assert set(HeadOptions.model_fields) == set(values["model"]["heads"])


def test_a_table_shows_every_key_at_its_default() -> None:
    from mtlcli import yamlfile

    written = yamlfile.parse(blocks("yaml")[0], "README.md").values
    loaded = recipe.from_values(written, "README.md", folder=ROOT).as_dict()["data"]
    shared = {"batch_size", "held_out", "extra_batches"}
    assert set(written["data"]) == set(loaded) - shared
    bare = {"name": "table", "path": loaded["path"], "tasks": {"churned": {"kind": "binary"}}}
    bare["tasks"]["spend"] = {"kind": "regression"}
    assert recipe.from_values({"data": bare}, "bare").as_dict()["data"] == loaded
    shown = set().union(*(task.keys() for task in written["data"]["tasks"].values()))
    assert shown == set(loaded["tasks"]["churned"])
    assert set(written["data"]["split"]) == set(loaded["split"])


def keys_of(values: Any, path: str = "") -> set[str]:
    if not isinstance(values, dict):
        return {path}
    return {path}.union(*(keys_of(value, f"{path}.{key}") for key, value in values.items()))


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.splitlines()[0])
def test_code_is_a_file_of_the_examples(block: str) -> None:
    assert block in [path.read_text(encoding="utf-8") for path in (ROOT / "examples").glob("*.py")]


def test_the_own_loop_runs(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples" / "own_loop.py"))
    epochs = capsys.readouterr().out.splitlines()
    first, last = (float(re.findall(r"[\d.]+", line)[1]) for line in (epochs[0], epochs[-1]))
    assert last < first


def test_the_own_dataset_trains(tmp_path: Path) -> None:
    import torch

    from mtlcli.engine.prepare import load_data
    from mtlcli.engine.train import train

    rows = torch.rand(200, 3)
    price = 100_000 * (rows @ torch.tensor([2.0, 1.0, -1.0]))
    sold = (price < price.mean()).int()
    lines = ["area,rooms,age,price,sold"]
    lines += [
        ",".join(map(str, [*r, p, s])) for r, p, s in zip(rows.tolist(), price.tolist(), sold.tolist(), strict=True)
    ]
    lines[4:6] = ["0.1,0.2,0.3,,1", "0.3,0.2,0.1,50000,"]  # labels may be missing
    (tmp_path / "houses.csv").write_text("\n".join(lines), encoding="utf-8")
    built = recipe.from_values(
        {
            "data": {"name": "houses", "file": str(tmp_path / "houses.csv"), "batch_size": 16},
            "optimizer": {"lr": 1e-2},
            "plugins": [str(ROOT / "examples" / "my_data.py")],
        },
        "houses",
    )
    _, result = train(built, "houses", out=tmp_path / "run", device="cpu")
    assert result["tasks"]["price"]["metrics"]["r2"]["value"] > 0.5
    assert result["tasks"]["sold"]["metrics"]["auroc"]["value"] > 0.8
    data = load_data(built)
    assert {task.name: sum(split.labelled(task) for split in data.splits.values()) for task in data.tasks} == {
        "price": 199,
        "sold": 199,
    }


# -- JSON --------------------------------------------------------------------------------------------------------------


def test_the_json_has_the_shape_of_what_is_written(printed: dict[str, str], workplace: Path) -> None:
    """Key for key; where the README shows one task, metric or row of several, that one."""
    shown_result, shown_report = (json.loads(block) for block in blocks("json"))
    result = json.loads((workplace / "runs" / "quickstart" / "result.json").read_text(encoding="utf-8"))
    report = json.loads((workplace / "runs" / "compare" / "report.json").read_text(encoding="utf-8"))
    same_shape(shown_result, result, "result.json")
    same_shape(shown_report, report, "report.json")


def same_shape(shown: Any, real: Any, where: str) -> None:
    if isinstance(shown, dict):
        part = where.endswith((".tasks", ".metrics", ".tasks.income", ".metrics.income"))
        assert set(shown) <= set(real) if part else set(shown) == set(real), where
        for key, value in shown.items():
            same_shape(value, real[key], f"{where}.{key}")
    elif isinstance(shown, list):
        assert isinstance(real, list), where
        for value in shown[:1]:
            same_shape(value, real[0] if not isinstance(value, dict) else with_method(real, value), where)
    elif where.endswith((".p", ".test", ".versus")) and real is None:  # what the seeds at hand cannot tell
        pass
    elif isinstance(shown, bool | str):
        assert type(real) is type(shown), where
    else:
        assert isinstance(real, int | float), where


def with_method(rows: list[dict[str, Any]], shown: dict[str, Any]) -> dict[str, Any]:
    return next(row for row in rows if row["method"] == shown["method"])


# -- words in the text -------------------------------------------------------------------------------------------------


def prose() -> str:
    return re.sub(r"^```.*?^```$", "", README, flags=re.DOTALL | re.MULTILINE)


def code_words() -> list[str]:
    """What stands in backticks in the text."""
    return re.findall(r"`([^`]+)`", prose())


def test_every_flag_in_the_text_exists() -> None:
    group: Any = typer.main.get_command(cli.app)
    flags = {flag for command in group.commands.values() for p in command.params for flag in p.opts}
    flags |= {"--gpus", "--nproc-per-node"}
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", prose())) <= flags


def test_every_mtl_command_in_the_text_parses() -> None:
    group: Any = typer.main.get_command(cli.app)
    for _, command, *rest in (shlex.split(word) for word in code_words() if word.startswith("mtl ")):
        assert command in group.commands
        needed = ["RUN", "DATA", "--out", "OUT"] if command == "predict" else ["TARGET"]
        given = [part for word in rest for part in ((word, "DATA") if word == "--data" else (word,))]
        parsed_by_mtl([command, *given, *([] if rest and not rest[0].startswith("-") else needed)])


def test_every_file_in_the_text_exists() -> None:
    made = {"recipe.yaml", "run.json", "events.jsonl", "last.pt", "best.pt", "result.json"}
    made |= {"preprocessing.json"}
    made |= {"report.json", "report.csv", "report.md", "report.tex", "report.html"}
    made |= {".venv", ".venv/bin/", "runs/", "/runs", "/data", "runs/single_task", "tune/"}
    linked = re.findall(r"\]\(([^)#]+)\)", prose())
    looks_like_a_file = re.compile(r"^[\w./+-]+\.(py|yaml|md|json|jsonl|pt|svg)$|^[\w.-]*/[\w./-]*$|^[A-Z]{5,}\S*$")
    files = {word for word in code_words() if looks_like_a_file.match(word) and "=" not in word}
    files -= {"LOSS", "+GRADIENT", "LOSS+GRADIENT", "RECIPE", "TARGET"} | made
    missing = [name for name in (*sorted(files), *linked) if not name.startswith("http") and not (ROOT / name).exists()]
    assert missing == []


def test_every_key_and_name_in_the_text_exists() -> None:
    loaded = recipe.from_values({"data": {"name": "census"}}, "defaults").as_dict()
    known = {path.lstrip(".") for path in keys_of(loaded)}
    dotted = {word.partition("=")[0] for word in code_words() if re.match(r"^[a-z_]+(\.[a-z_]+)+(=\S+)?$", word)}
    files = {
        word
        for word in dotted
        if word.endswith((".py", ".yaml", ".json", ".jsonl", ".pt", ".csv", ".md", ".tex", ".html"))
    }
    assert dotted - files - known == set()
    for sentence, among in (("Other optimisers: ([^.]*)", "optimizers"), ("Other schedules: ([^.]*)", "schedules")):
        match = re.search(sentence, prose())
        assert match is not None
        names: Callable[[], tuple[str, ...]] = getattr(mtlcli.registry, among).names
        assert set(re.findall(r"`(\w+)`", match[1])) == set(names()) - {"adam", "constant"}


def test_the_table_of_weightings_has_each_of_them_in_its_slot() -> None:
    section = README.partition("\n## The weightings\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (loss|gradient) \|.*\| (`[^|]*`) \|$", section, re.MULTILINE)
    for slot, registry in (("loss", mtlcli.loss_weightings), ("gradient", mtlcli.gradient_weightings)):
        named = [name for own, cells in rows if own == slot for name in re.findall(r"`(\w+)`", cells)]
        packaged = [name for name in registry.names() if registry.get(name).__module__.startswith("mtlcli.")]
        assert sorted(named) == sorted(packaged)


def test_contributing_names_what_there_is() -> None:
    for folder in re.findall(r"`(mtlcli/[\w/.]+)`", CONTRIBUTING):
        assert (ROOT / folder).exists()
    for kind in re.findall(r"@(\w+)\.register", CONTRIBUTING):
        assert getattr(mtlcli, kind) in catalogue.KINDS.values()
