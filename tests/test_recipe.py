"""Recipes: what is resolved is the same however it was written, and comes back from its own YAML."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import toy

from mtlcli import fitting, yamlfile
from mtlcli import recipe as recipes
from mtlcli.errors import MtlError


def build(**sections: Any) -> recipes.Recipe:
    return recipes.from_values(toy.values(**sections), "toy")


def test_short_and_long_forms_are_one_recipe() -> None:
    long = build(weighting={"loss": {"name": "uw"}, "gradient": {"name": "pcgrad"}}, schedule={"name": "cosine"})
    short = recipes.from_values(
        toy.values(weighting={"loss": "uw", "gradient": "pcgrad"}) | {"schedule": "cosine"}, "toy"
    )
    assert short.as_dict() == long.as_dict()
    assert short.method == "uw+pcgrad"
    assert build().method == "ew"
    assert build(weighting={"gradient": "pcgrad"}).method == "ew+pcgrad"


def test_a_recipe_comes_back_from_its_yaml(tmp_path: Path) -> None:
    made = build(
        weighting={"loss": {"name": "constant", "weights": {"yes": 1e-5, "which": 0.1, "amount": 3}}},
        metrics={"yes": ["auroc"]},
    )
    again = recipes.from_values(yamlfile.parse(made.dump(), "dump").values, "dump")
    assert again.as_dict() == made.as_dict()
    assert recipes.differences(made, again) == []
    file = tmp_path / "recipe.yaml"
    file.write_text(made.dump())
    assert recipes.load(file).as_dict() == made.as_dict()


def test_differences_name_every_key_with_both_values() -> None:
    one, other = build(), build(optimizer={"name": "sgd", "lr": 0.5}, train={"clip_norm": 1.0, "epochs": 4})
    found = recipes.differences(one, other)
    assert "optimizer.lr: 0.01 -> 0.5" in found
    assert "optimizer.name: 'adam' -> 'sgd'" in found
    assert "optimizer.nesterov: not set -> false" in found
    assert "train.clip_norm: null -> 1.0" in found
    assert not [line for line in found if line.startswith("train.epochs")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train.epochs=3", ("train.epochs", 3)),
        (" a.b =x=y", ("a.b", "x=y")),
        ("a=1e-3", ("a", 1e-3)),
        ("a=[1, 2]", ("a", [1, 2])),
        ("a={b: null}", ("a", {"b": None})),
        ("a=", ("a", None)),
        ("a=yes", ("a", "yes")),
        ("a='3'", ("a", "3")),
    ],
)
def test_overrides_are_read_as_yaml(text: str, expected: tuple[str, Any]) -> None:
    assert recipes.parse_override(text) == expected


def test_an_override_does_not_reach_through_an_alias(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(
        "data: {name: toy}\nmetrics: {yes: &m [auroc], which: *m}\nweighting: {loss: &o {name: uw}, gradient: sum}\n"
        f"plugins: [{toy.PLUGIN}]\n"
    )
    made = recipes.load(file, ["weighting.loss.name=ew"])
    assert made.loss.name == "ew"
    assert made.lines["weighting.loss.name"] == "--set weighting.loss.name=ew"
    text = "a: &a {x: 1}\nb: *a\n"
    values = yamlfile.parse(text, "t").values
    assert recipes._set(values, ["a", "x"], 2, "a.x=2") == {"a": {"x": 2}, "b": {"x": 1}}


def test_errors_name_the_place_of_the_key_or_of_what_holds_it(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(f"data:\n  name: toy\n  rows: 30\nplugins: [{toy.PLUGIN}]\n")
    made = recipes.load(file, ["train.seed=3"])
    assert str(made.error("data.rows", "m")) == f"{file}, line 3: data.rows: m"
    assert str(made.error("data.tasks", "m")) == f"{file}, line 1: data.tasks: m"
    assert str(made.error("train.seed", "m")) == "--set train.seed=3: train.seed: m"
    assert str(made.error("train", "m")) == "--set train.seed=3: train: m"
    assert str(made.error("optimizer.lr", "m")) == f"{file}: optimizer.lr: m"


# -- the YAML underneath -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", "yes"),
        ("off", "off"),
        ("true", True),
        ("True", True),
        ("null", None),
        ("~", None),
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("-1.5e+2", -150.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("1_000", 1000),
        ("-7", -7),
        ("0", 0),
        ("010", "010"),
        ("0x10", "0x10"),
        ("12:30", "12:30"),
        ("2020-01-01", "2020-01-01"),
        (".inf", math.inf),
        ("-.inf", -math.inf),
        ("1e", "1e"),
        ("'1'", "1"),
        ("hello world", "hello world"),
    ],
)
def test_plain_words(text: str, value: Any) -> None:
    found = yamlfile.parse(f"a: {text}", "t").values["a"]
    assert found == value
    assert type(found) is type(value)
    assert yamlfile.parse(yamlfile.dump({"a": value}), "t").values == {"a": value}


@pytest.mark.parametrize(
    "text", ["yes", "no", "null", "1e3", "010", "12:30", "2020-01-01", "", "a: b", "- x", "é", "#", "1_0"]
)
def test_text_stays_text(text: str) -> None:
    values = {text: [text, {text: text}]}
    assert yamlfile.parse(yamlfile.dump(values), "t").values == values


def test_keys_are_text_and_know_their_lines() -> None:
    document = yamlfile.parse("1: a\nyes:\n  - x\n  - {b: 2}\nm: {<<: {b: 1, c: 2}, b: 3}\n", "t")
    assert document.values == {"1": "a", "yes": ["x", {"b": 2}], "m": {"b": 3, "c": 2}}
    assert document.lines["yes.1.b"] == 4
    assert document.lines["m.c"] == 5


def test_values_as_they_are_shown() -> None:
    shown = [yamlfile.show(v) for v in (None, True, 3, 1e-5, math.inf, "a", [1, "b"], {"a": {"b": 1}}, "x" * 100)]
    assert shown[:8] == ["null", "true", "3", "1.0e-05", ".inf", "'a'", "[1, b]", "{a: {b: 1}}"]
    assert len(shown[8]) == 60


def test_flatten() -> None:
    assert yamlfile.flatten({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}


def test_a_name_of_ours_cannot_be_taken() -> None:
    import mtlcli
    from mtlcli.weighting.base import LossWeighting

    with pytest.raises(MtlError, match="loss weighting 'ew' is already registered by mtlcli"):

        @mtlcli.loss_weightings.register("ew")
        class Mine(LossWeighting):
            pass

    assert mtlcli.loss_weightings.get("ew").__module__.startswith("mtlcli.")


@pytest.mark.parametrize(
    ("loss", "epochs", "begins"),
    [
        ({"name": "igb_v2"}, 5, 6),
        ({"name": "igb_v2", "start_epoch": 2}, 2, 3),
        ({"name": "igb_v1", "base_epoch": 3}, 4, 5),
        ({"name": "stch"}, 3, 6),
        ({"name": "dwa"}, 2, 3),
    ],
)
def test_a_method_that_begins_after_the_end_is_told(loss: dict[str, Any], epochs: int, begins: int) -> None:
    made = build(weighting={"loss": loss}, train={"epochs": epochs})
    (message,) = fitting.idle(made.loss, epochs)
    assert message.startswith(f"'{loss['name']}' begins in epoch {begins}, and training ends after {epochs}")
    assert not fitting.idle(made.loss, begins)
    assert not fitting.idle(build().loss, 1)
