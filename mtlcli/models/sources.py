"""One encoder for several sources of rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from mtlcli.data.base import Features, ImageFeatures, Inputs, JointFeatures
from mtlcli.models.base import Encoder


class SourcesEncoder(Encoder):
    """An encoder that reads the rows of every source of `features`.

    Sources with equal features pass through the very same network. Where features differ, every source has a stage 0
    of its own and, unless that gives maps, a linear layer to the widest of them; all later stages are shared.

    Args:
        make: builds the encoder for the features of one source.
    """

    def __init__(self, make: Callable[[Features], Encoder], features: JointFeatures) -> None:
        super().__init__()
        kinds = list(features.sources.values())
        if all(kind == kinds[0] for kind in kinds):
            encoder = make(kinds[0])
            stem = OwnStages(nn.ModuleDict({"all": encoder.stages[0]}), dict.fromkeys(features.sources, "all"))
        else:
            made = {source: make(kind) for source, kind in features.sources.items()}
            encoder = max(made.values(), key=lambda each: each.stem_features)
            stages = {}
            for source, each in made.items():
                layers = [each.stages[0]]
                if not isinstance(features.sources[source], ImageFeatures):
                    layers.append(nn.Linear(each.stem_features, encoder.stem_features))
                stages[source] = nn.Sequential(*layers)
            stem = OwnStages(nn.ModuleDict(stages), {source: source for source in stages})
            stem.tasks = dict(features.tasks)
        self.stages = nn.ModuleList([stem, *encoder.stages[1:]])
        self.stem_features, self.out_features = encoder.stem_features, encoder.out_features


class OwnStages(nn.Module):
    """Sends the rows of a source to its stage.

    Args:
        stages: by key.
        keys: of every source.
    """

    def __init__(self, stages: nn.ModuleDict, keys: Mapping[str, str]) -> None:
        super().__init__()
        self.stages, self._keys = stages, dict(keys)
        self.tasks: dict[str, tuple[str, ...]] = {}  # by key, the tasks that alone reach the stage

    def forward(self, inputs: Inputs) -> Tensor:
        """Whatever the source's stage gives."""
        source, own = JointFeatures.parted(inputs)
        found: Tensor = self.stages[self._keys[source]](own)
        return found

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """Parameters that only `task`'s loss reaches."""
        return [p for key, tasks in self.tasks.items() if tasks == (task,) for p in self.stages[key].parameters()]
