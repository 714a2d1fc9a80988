"""The encoder of sources that no one encoder reads."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any, Self

from pydantic import Field, field_validator
from torch import nn

from mtlcli import nested
from mtlcli.data.base import JointFeatures
from mtlcli.errors import OptionError, did_you_mean
from mtlcli.models.base import Encoder
from mtlcli.models.heads import Activation, Norm, Width, dense
from mtlcli.models.sources import OwnStages, check_reads
from mtlcli.options import Options as AnyOptions
from mtlcli.registry import encoders


@encoders.register("per_source")
class PerSource(Encoder):
    """An encoder for each source of rows, such as a table beside pictures, then dense layers that all sources share.

    `sources` maps the sources of the data to encoders with their options, every source to one of its own. Stage 0 is
    the source's whole encoder and a dense layer that brings its features to `width`, (B, width); each number in
    `shared` adds one stage that rows of all sources pass: linear, norm, activation, dropout.

    What a source with a single task has to itself belongs to that task; the other parameters are shared.

    Raises OptionError for a source that is unknown, or has no encoder, or one that cannot read it.
    """

    reads = JointFeatures

    class Options(AnyOptions):
        """What each source has to itself, and what they share."""

        sources: dict[str, dict[str, Any]] = Field(description="encoders with their options, by the name of the source")
        width: Width = Field(128, description="features that those of every source become, each by a layer of its own")
        shared: tuple[Width, ...] = Field((128,), min_length=1, description="features that each shared layer gives")
        activation: Activation = Field("relu", description="after these dense layers")
        dropout: float = Field(0.0, ge=0, lt=1, description="after every activation")
        norm: Norm = Field("none", description="between linear and activation; batch: of rows of one source")

        @field_validator("sources")
        @classmethod
        def _known(cls, sources: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
            return nested.plain(nested.read(encoders, sources))

        def at(self, folder: Path) -> Self:
            """The same with the paths of all encoders taken from `folder`."""
            found = nested.read(encoders, self.sources)
            moved = {source: (cls, options.at(folder)) for source, (cls, options) in found.items()}
            return self.model_copy(update={"sources": nested.plain(moved)})

    def __init__(self, options: Options, features: JointFeatures) -> None:
        super().__init__()
        own = nested.read(encoders, options.sources)
        for source in own:
            if source not in features.sources:
                hint = did_you_mean(source, features.sources)
                raise OptionError(
                    f"sources.{source}", f"no source '{source}'{hint}; there are: {', '.join(features.sources)}"
                )
        stems = {}
        for source, kind in features.sources.items():
            if source not in own:
                raise OptionError("sources", f"should name an encoder for every source; '{source}' has none")
            cls, chosen = own[source]
            try:
                check_reads(cls.name, kind)
                encoder = cls(chosen, kind)
            except OptionError as error:
                raise OptionError(f"sources.{source}.{error.option}", error.message) from None
            # A network of some tasks alone has no use for the encoders of the others.
            if features.tasks[source]:
                last = dense(encoder.out_features, options.width, options.activation, options.dropout, options.norm)
                stems[source] = nn.Sequential(*encoder.stages, last)
        stem = OwnStages(nn.ModuleDict(stems), {source: source for source in stems}, features.tasks)
        layers = (
            dense(*pair, options.activation, options.dropout, options.norm)
            for pair in pairwise((options.width, *options.shared))
        )
        self.stages = nn.ModuleList([stem, *layers])
        self.stem_features, self.out_features = options.width, options.shared[-1]
