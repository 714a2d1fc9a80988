"""What can be checked of the wheel, the sdist and the image without a container engine."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
COMPILERS = re.compile(r"\b(gcc|g\+\+|clang|build-essential|cmake|make|ninja|devel|python3-dev|uv|pip)\b")


# -- pyproject ---------------------------------------------------------------------------------------------------------


def test_every_dependency_has_a_lower_bound() -> None:
    named = PROJECT["project"]["dependencies"]
    assert [name for name in named if not re.search(r">=\d", name)] == []
    assert PROJECT["project"]["requires-python"] == ">=3.11"
    assert PROJECT["project"]["scripts"] == {"mtl": "mtlcli.cli:main"}


def test_the_version_is_one() -> None:
    import mtlcli

    assert PROJECT["project"]["version"] == mtlcli.__version__
    assert f"## [{mtlcli.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


# -- wheel and sdist ---------------------------------------------------------------------------------------------------


def test_wheel_and_sdist_hold_what_they_should(tmp_path: Path) -> None:
    """Builds both. The one test that needs a package index: the build backend is fetched from it."""
    uv = Path(sys.prefix, "bin", "uv")
    command = str(uv) if uv.exists() else "uv"
    done = subprocess.run(
        [command, "build", "--quiet", "--out-dir", tmp_path, ROOT],
        capture_output=True,
        text=True,
        env={**os.environ, "UV_LINK_MODE": "copy"},
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        entry = archive.read("mtlcli-0.1.0.dist-info/entry_points.txt").decode()
    sources = {p.relative_to(ROOT).as_posix() for p in (ROOT / "mtlcli").rglob("*.py")}
    data = [*(ROOT / "mtlcli" / "comparison" / "assets").iterdir(), *(ROOT / "mtlcli" / "published").glob("*.yaml")]
    data += (ROOT / "mtlcli" / "data" / "files").iterdir()
    files = {p.relative_to(ROOT).as_posix() for p in data}
    assert {*sources, *files, "mtlcli/py.typed", "mtlcli/data/files/census.parquet"} <= held
    assert {"LICENSE", "NOTICE"} <= {Path(name).name for name in held}
    assert not {name for name in held if not name.startswith(("mtlcli/", "mtlcli-"))}
    assert "mtl = mtlcli.cli:main" in entry
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    recipes = {p.relative_to(ROOT).as_posix() for p in (ROOT / "recipes").rglob("*.yaml")}
    assert {*recipes, "LICENSE", "NOTICE", "README.md", "CHANGELOG.md", "pyproject.toml"} <= held


# -- image -------------------------------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    """(INSTRUCTION, arguments), with continued lines joined and comments left out."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", lines)
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in joined.splitlines() if line.strip()]


def stages() -> list[list[tuple[str, str]]]:
    """The instructions of each stage, FROM first."""
    found: list[list[tuple[str, str]]] = []
    for name, arguments in instructions():
        if name == "FROM":
            found.append([])
        if found:
            found[-1].append((name, arguments))
    return found


def last(name: str) -> str:
    return [arguments for found, arguments in stages()[-1] if found == name][-1]


def test_the_image_is_a_cuda_runtime_with_a_build_stage_before() -> None:
    arguments = dict(value.split("=") for name, value in instructions() if name == "ARG")
    assert len(stages()) == 2
    for stage in stages():
        base = re.sub(r"\$\{(\w+)\}", lambda match: arguments[match[1]], stage[0][1])
        assert re.match(r"nvidia/cuda:\d+\.\d+\.\d+-runtime-ubuntu\d+\.\d+", base)


def test_the_last_stage_brings_no_build_tools() -> None:
    installed = " ".join(arguments for name, arguments in stages()[-1] if name == "RUN")
    assert not COMPILERS.search(installed)
    assert "--no-install-recommends" in installed
    copied = [arguments for name, arguments in stages()[-1] if name == "COPY" and "--from" in arguments]
    assert copied == ["--from=build /opt/mtl /opt/mtl"]


def test_the_image_runs_mtl_as_an_ordinary_user() -> None:
    assert last("USER") not in ("root", "0")
    assert json.loads(last("ENTRYPOINT")) == ["mtl"]
    assert set(json.loads(last("VOLUME"))) == {"/data", "/runs"}


def test_runs_land_in_the_volume() -> None:
    """`mtl` writes to ./runs; in the image that is a link to the volume, which the user owns."""
    commands = " ".join(arguments for name, arguments in stages()[-1] if name == "RUN")
    assert f"ln -s /runs {last('WORKDIR')}/runs" in commands
    assert re.search(r"chown \S+ /data /runs", commands)


def copied_sources() -> list[str]:
    """What COPY takes from the build context."""
    found = [value.split()[:-1] for name, value in instructions() if name == "COPY" and "--from" not in value]
    return [source for sources in found for source in sources]


@pytest.mark.parametrize("source", copied_sources())
def test_what_is_copied_exists_and_is_not_ignored(source: str) -> None:
    assert (ROOT / source).exists()
    assert not ignored(source)


@pytest.mark.parametrize("path", [".git", ".venv", "runs", "tests", "dist", "mtlcli/__pycache__", "mtlcli/cli.pyc"])
def test_what_the_image_does_not_need_is_ignored(path: str) -> None:
    assert ignored(path)


def ignored(path: str) -> bool:
    """Docker's rule for .dockerignore: the last pattern that matches the path, or a folder above it, decides."""
    decision = False
    above = [path, *(parent.as_posix() for parent in Path(path).parents if parent != Path())]
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        patterns = [pattern, pattern.removeprefix("**/")]
        if any(fnmatch.fnmatch(part, p) for part in above for p in patterns):
            decision = not line.startswith("!")
    return decision
