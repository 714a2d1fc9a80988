"""Every recipe that is shipped: it parses, fits its data, dumps back to itself; the quickstart trains."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from mtlcli import recipe as recipes
from mtlcli import yamlfile
from mtlcli.engine.inspect import check
from mtlcli.engine.train import train

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "recipes"
FILES = sorted(FOLDER.rglob("*.yaml"))


def label(path: Path) -> str:
    return path.relative_to(FOLDER).as_posix()


def test_there_are_recipes() -> None:
    assert FOLDER / "quickstart.yaml" in FILES
    assert {"ew", "uw", "igb_v1", "famo", "ew+nash_mtl", "igb_v1+nash_mtl"} <= {path.stem for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=label)
def test_a_recipe_dumps_back_to_itself(path: Path) -> None:
    recipe = recipes.load(path)
    again = recipes.from_values(yamlfile.parse(recipe.dump(), "dump").values, "dump")
    assert again.as_dict() == recipe.as_dict()
    assert again.dump() == recipe.dump()


# What makes data small, by dataset; others are small as they are.
SMALLER = {
    "census": ["data.subsample=all", "data.rows=2000"],
    "multi_fashion": ["data.pairs=500"],
    "qm9": ["data.rows=2000"],
}
PACKAGES = {"qm9": "qm9pack"}  # that a dataset's files come with


@pytest.mark.parametrize("path", FILES, ids=label)
def test_a_recipe_fits_its_data(path: Path) -> None:
    """Everything that training builds is built, and every option that depends on the data is held against it."""
    dataset = recipes.load(path).dataset.name
    if dataset in PACKAGES and find_spec(PACKAGES[dataset]) is None:
        pytest.skip(f"needs pip install 'mtlcli[{dataset}]'")
    about = check(recipes.load(path, SMALLER.get(dataset, [])))
    assert about["steps_per_epoch"] > 0
    assert not about["warnings"]


@pytest.mark.parametrize("path", [p for p in FILES if p.parent != FOLDER], ids=label)
def test_a_recipe_is_where_its_name_says(path: Path) -> None:
    """`recipes/<dataset>/<method>.yaml`; where there are several encoders `<encoder>_<method>.yaml`; those for a preset
    of the data in a folder of that name.

    It begins with a line that says what it is.
    """
    recipe = recipes.load(path)
    preset = recipe.as_dict()["data"].get("preset", "standard")
    folders = [recipe.dataset.name, *([] if preset == "standard" else [preset])]
    assert list(path.relative_to(FOLDER).parent.parts) == folders
    assert path.stem in (recipe.method, f"{recipe.encoder.name}_{recipe.method}")
    assert path.read_text(encoding="utf-8").startswith("# ")


def test_the_quickstart_trains(tmp_path: Path) -> None:
    recipe = recipes.load(FOLDER / "quickstart.yaml", ["data.rows=2000", "data.subsample=all", "train.epochs=1"])
    run, result = train(recipe, "quickstart", out=tmp_path / "run", device="cpu")
    assert run.info()["status"] == "finished"
    assert result["steps"] == 4
    for scores in result["tasks"].values():
        for metric in scores["metrics"].values():
            assert isinstance(metric["value"], float)
    assert result["tasks"]["never_married"]["metrics"]["auroc"]["value"] > 0.6
