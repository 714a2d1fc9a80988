"""What a recipe asks for against what its data give."""

from dataclasses import replace

import pytest
import torch
import toy
from torch import nn

import mtlcli
from mtlcli import recipe as recipes
from mtlcli.data.base import ImageFeatures, MultiTaskData
from mtlcli.engine.prepare import prepare, step_for
from mtlcli.errors import MtlError
from mtlcli.models.base import Encoder


@pytest.mark.parametrize("trunk", mtlcli.trunks.names())
@pytest.mark.parametrize(
    ("encoder", "place"),
    [
        ({"name": "resnet18", "weights": "none.pth"}, r"weights: no such file"),
        ({"name": "cnn", "channels": [4] * 9}, r"channels: 9 blocks halve"),
    ],
)
def test_what_is_wrong_with_an_encoder_is_placed_there(encoder, place, trunk):
    values = {
        "data": {"name": "multi_fashion"},
        "model": {"encoder": encoder, "trunk": {"name": trunk}},
    }
    with pytest.raises(MtlError, match=rf"r\.yaml: model\.encoder\.{place}"):
        prepare(recipes.from_values(values, "r.yaml"), torch.device("cpu"))


@pytest.mark.parametrize("width", [10**11, 10**18])
def test_a_network_larger_than_the_memory_is_the_recipes_fault(width: int) -> None:
    values = toy.values(model={"encoder": {"name": "mlp", "widths": [width]}})
    with pytest.raises(MtlError, match=r"^r\.yaml: model: .* does not fit into the memory"):
        prepare(recipes.from_values(values, "r.yaml"), torch.device("cpu"))


def test_a_task_without_any_metric_is_refused() -> None:
    with pytest.raises(MtlError, match=r"^r\.yaml: metrics\.yes: names no metric"):
        prepare(recipes.from_values(toy.values(metrics={"yes": []}), "r.yaml"), torch.device("cpu"))


def test_an_encoder_of_several_sources_is_not_for_one():
    sources = {"x": {"name": "mlp"}}
    values = toy.values()
    values["model"]["encoder"] = {"name": "per_source", "sources": sources}
    with pytest.raises(
        MtlError, match=r"model\.encoder\.name: 'per_source' reads JointFeatures, .*TableFeatures; .*mlp"
    ):
        prepare(recipes.from_values(values, "r.yaml"), torch.device("cpu"))


def test_an_encoder_of_other_inputs_is_refused_with_those_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pictures(Encoder):
        reads = ImageFeatures

        def __init__(self, options: mtlcli.Options, features: ImageFeatures) -> None:
            super().__init__()
            self.stages = nn.ModuleList([nn.Identity()])

    monkeypatch.setitem(mtlcli.encoders._classes, "pictures", Pictures)
    values = toy.values(model={"encoder": {"name": "pictures"}})
    with pytest.raises(MtlError, match=r"model\.encoder\.name: 'pictures' reads ImageFeatures.*TableFeatures.*mlp"):
        prepare(recipes.from_values(values, "r.yaml"), torch.device("cpu"))


def test_a_task_that_a_network_cannot_have_a_head_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    load = toy.Toy.load

    def renamed(self: toy.Toy) -> MultiTaskData:
        data = load(self)
        tasks = tuple(replace(task, name="type") if task.name == "yes" else task for task in data.tasks)
        return replace(data, tasks=tasks)

    monkeypatch.setattr(toy.Toy, "load", renamed)
    with pytest.raises(MtlError, match=r"data\.name: calls a task 'type', which means something else to PyTorch"):
        prepare(recipes.from_values(toy.values(), "r.yaml"), torch.device("cpu"))


def test_a_trunk_without_a_last_shared_layer_is_said_at_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mtlcli.trunks.get("hps"), "last_shared_parameters", lambda self: [])
    sections = toy.weighting("ew", "mgda", wrt="last_shared")
    prepared = prepare(recipes.from_values(toy.values(**sections), "r.yaml"), torch.device("cpu"))
    with pytest.raises(MtlError, match=r"r\.yaml: weighting\.gradient\.wrt: should be params or representation: "):
        step_for(prepared, *prepared.weightings())
