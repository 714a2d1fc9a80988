"""What a recipe asks for against what its data give."""

import pytest
import torch
import toy
from torch import nn

import mtlcli
from mtlcli import recipe as recipes
from mtlcli.data.base import ImageFeatures
from mtlcli.engine.prepare import prepare
from mtlcli.errors import MtlError
from mtlcli.models.base import Encoder


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
