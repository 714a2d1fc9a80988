"""Several datasets as one: each brings tasks with inputs of their own."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from pydantic import Field, field_validator

from mtlcli import nested, registry
from mtlcli.data.base import Dataset, MultiTaskData
from mtlcli.data.sources import Policy, combined
from mtlcli.errors import MtlError, OptionError
from mtlcli.options import Options as AnyOptions
from mtlcli.registry import datasets
from mtlcli.tasks import unusable


@datasets.register("joint")
class Joint(Dataset):
    """Tasks from several datasets: a step has a batch of each, and one update for all.

    `sources` maps names to datasets with their options. A source with one task gives it the source's name; of several,
    each is called SOURCE_TASK. Every source's batch passes through the network by itself, so that a normalisation over
    the batch sees one source at a time. Sources with equal features (images of one size, say) share the whole network;
    where they differ, each has the encoder's first stage to itself, and a linear layer to a common width. For sources
    that no one encoder reads, a table beside pictures, there is the encoder `per_source`.

    `policy` says what happens where lengths differ, with `batch_size` rows of each source a step unless said otherwise:
    `cycle`: an epoch is as long as the longest source; shorter ones begin again, reshuffled.
    `shortest`: an epoch ends with the shortest source; of longer ones the next epoch takes the rows that follow.
    `proportional`: batches are as large as the sources are, and as many rows in sum, so that all end together.
    `temperature`: batch sizes in proportion to rows ** (1 / temperature); an epoch is as many rows as there are.

    Raises MtlError where a source cannot be read, OptionError for a source that does not exist.
    """

    class Options(AnyOptions):
        """The sources, and how their lengths meet."""

        sources: dict[str, dict[str, Any]] = Field(description="datasets with their options, by name")
        policy: Policy = Field("cycle", description="what happens where the sources have different lengths")
        temperature: float = Field(2.0, ge=1, description="1 is proportional to rows; large values are equal shares")

        @field_validator("sources")
        @classmethod
        def _known(cls, sources: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
            if not sources:
                raise ValueError("should name at least one source; found none")
            for source in sources:
                if not source.isidentifier():
                    raise ValueError(f"should call sources by letters, digits and underscores; found '{source}'")
                if why := unusable(source):
                    raise ValueError(f"the name '{source}' {why}; choose another one")
            return nested.plain(nested.read(registry.datasets, sources))

        def at(self, folder: Path) -> Self:
            """The same with the paths of all sources taken from `folder`."""
            found = nested.read(registry.datasets, self.sources)
            moved = {source: (cls, options.at(folder)) for source, (cls, options) in found.items()}
            return self.model_copy(update={"sources": nested.plain(moved)})

    options: Options

    def load(self) -> MultiTaskData:
        """Every source in turn; what it says of its keys is said of where they stand here."""
        found: dict[str, MultiTaskData] = {}
        for source, (cls, options) in nested.read(registry.datasets, self.options.sources).items():
            keys = re.compile(rf"\bdata\.(?=({'|'.join(cls.Options.model_fields)})\b)")
            at = f"data.sources.{source}."
            try:
                data = cls(options).load()
            except OptionError as error:
                raise OptionError(f"sources.{source}.{error.option}", keys.sub(at, error.message)) from None
            except MtlError as error:
                raise MtlError(keys.sub(at, str(error))) from None
            found[source] = replace(data, notes=tuple(keys.sub(at, note) for note in data.notes))
        return combined(found, self.options.policy, self.options.temperature)
