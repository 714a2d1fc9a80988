"""Encoders of several sources of rows: which can read them, and one for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from mtlcli import registry
from mtlcli.data.base import Features, ImageFeatures, Inputs, JointFeatures
from mtlcli.errors import OptionError
from mtlcli.models.base import Encoder


def check_reads(name: str, features: Features) -> None:
    """Raise OptionError about `name` where this encoder cannot read `features`, with the encoders that can."""
    reads = registry.encoders.get(name).reads
    if isinstance(features, reads):
        return
    if not isinstance(features, JointFeatures):
        raise OptionError(
            "name",
            f"'{name}' reads {reads.__name__}, and these data give {type(features).__name__}; encoders for them: "
            f"{', '.join(_able(type(features))) or 'none is registered'}",
        )
    kinds = {source: type(kind) for source, kind in features.sources.items()}
    if len(set(kinds.values())) == 1:
        check_reads(name, next(iter(features.sources.values())))
    elif not all(issubclass(kind, reads) for kind in kinds.values()):
        given = ", ".join(f"'{source}' gives {kind.__name__}" for source, kind in kinds.items())
        each = ", ".join(f"{source}: {{name: {', '.join(_able(kind)[:1])}}}" for source, kind in kinds.items())
        (joint, *_) = (other for other in _able(JointFeatures) if registry.encoders.get(other).reads is JointFeatures)
        raise OptionError(
            "name",
            f"'{name}' reads {reads.__name__}, and not every source gives them: {given}; give each source an encoder: "
            f"{{name: {joint}, sources: {{{each}}}}}",
        )


def _able(kind: type[Features]) -> list[str]:
    """Encoders that read this kind of inputs."""
    return [name for name in registry.encoders.names() if issubclass(kind, registry.encoders.get(name).reads)]


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
            stem = OwnStages(nn.ModuleDict(stages), {source: source for source in stages}, features.tasks)
        self.stages = nn.ModuleList([stem, *encoder.stages[1:]])
        self.stem_features, self.out_features = encoder.stem_features, encoder.out_features


class OwnStages(nn.Module):
    """Sends the rows of a source to its stage.

    Args:
        stages: by key.
        keys: of every source.
        tasks: by key, the tasks that alone reach the stage; none where it is everyone's.
    """

    def __init__(
        self, stages: nn.ModuleDict, keys: Mapping[str, str], tasks: Mapping[str, tuple[str, ...]] | None = None
    ) -> None:
        super().__init__()
        self.stages, self._keys, self.tasks = stages, dict(keys), dict(tasks or {})

    def forward(self, inputs: Inputs) -> Tensor:
        """Whatever the source's stage gives."""
        source, own = JointFeatures.parted(inputs)
        found: Tensor = self.stages[self._keys[source]](own)
        return found

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """Parameters that only `task`'s loss reaches."""
        return [p for key, tasks in self.tasks.items() if tasks == (task,) for p in self.stages[key].parameters()]
