"""Whole runs on two processes: they stay alike to the end, agree on what is on disk, and resume."""

from __future__ import annotations

import os
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import toy

import mtlcli.engine.train as training
from mtlcli import recipe
from mtlcli.engine.events import Event, StepDone, Warned
from mtlcli.engine.fit import Fit
from mtlcli.engine.prepare import prepare
from mtlcli.engine.ranks import Ranks
from mtlcli.errors import MtlError, Stopped, TrainingError
from mtlcli.runs import Run


def made(norm: str = "batch", **sections: Any) -> recipe.Recipe:
    return recipe.from_values(
        toy.values(
            model={"encoder": {"name": "mlp", "widths": [16, 8], "norm": norm}},
            optimizer={"name": "sgd", "lr": 0.3},
            # Its patience ends where val falls, so that ranks whose val differs soon have other rates.
            schedule={"name": "plateau", "gamma": 0.5, "patience": 0},
            train={"epochs": 10, "select_by": "loss"},
            **sections,
        ),
        "toy",
    )


def train(folder: Path, name: str, stop_at: int | None = None) -> dict[str, Any]:
    """What a rank holds after a run at `folder / name`, and what was said."""
    kept: list[Fit] = []
    said: list[str] = []

    class Kept(Fit):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            kept.append(self)

    def show(event: Event, run: Run) -> None:
        said.extend([event.message] if isinstance(event, Warned) else [])
        if isinstance(event, StepDone) and event.step == stop_at:
            os.kill(os.getpid(), signal.SIGINT)

    training.Fit = Kept  # type: ignore[misc]
    chosen = made(data={"rows": 98, "batch_size": 14})
    outcome = "finished"
    try:
        training.train(chosen, "toy", folder / name, device="cpu", resume=True, show=show)
    except Stopped:
        outcome = "stopped"
    (fit,) = kept
    model = fit.model.state_dict()
    return {"outcome": outcome, "model": model, "lr": fit.optimizer.param_groups[0]["lr"], "said": said}


def agreements(rank: int) -> dict[str, Any]:
    """What `agreed` gives where the ranks see different things."""
    ranks = Ranks()
    asked: list[int] = []

    def find() -> int:
        asked.append(rank)
        return 10 + rank

    def fail() -> None:
        raise TrainingError(f"rank {rank} found nothing")

    found = {"value": ranks.agreed(find), "asked": asked}
    try:
        ranks.agreed(fail)
    except MtlError as error:
        found["error"] = type(error), str(error)
    return found


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    here = Path(folder)
    dist.init_process_group("gloo", init_method=f"file://{here}/meet", rank=rank, world_size=2)
    leave, Ranks.stop = Ranks.stop, lambda: None  # type: ignore[method-assign] # there is more than one run to come
    found = {
        "agreed": agreements(rank),
        "whole": train(here, "whole"),
        "stopped": train(here, "parts", stop_at=30),
        "resumed": train(here, "parts"),
    }
    leave()
    torch.save(found, here / f"{rank}.pt")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(worker, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def test_the_first_rank_answers_for_all(two_ranks: Any) -> None:
    first, second = (found["agreed"] for found in two_ranks)
    assert first["value"] == second["value"] == 10
    assert (first["asked"], second["asked"]) == ([0], [])
    assert first["error"] == second["error"] == (TrainingError, "rank 0 found nothing")


@pytest.mark.parametrize("name", ["whole", "resumed"])
def test_ranks_stay_alike_with_batch_normalisation(name: str, two_ranks: Any) -> None:
    """Statistics of its own rows would lead each rank to another score on val, and so to another learning rate."""
    first, second = (found[name] for found in two_ranks)
    assert first["outcome"] == second["outcome"] == "finished"
    assert first["lr"] == second["lr"] < 0.3
    for key, value in first["model"].items():
        assert torch.equal(value, second["model"][key]), key


def test_several_ranks_resume(two_ranks: Any) -> None:
    for found in two_ranks:
        assert found["stopped"]["outcome"] == "stopped"
        assert found["resumed"]["lr"] == found["whole"]["lr"]
        for key, value in found["whole"]["model"].items():
            # The mean over ranks of running statistics is taken once more, at the stop.
            torch.testing.assert_close(found["resumed"]["model"][key], value, rtol=1e-6, atol=1e-7)


def test_it_is_said_what_batch_normalisation_does_on_several_ranks(two_ranks: Any) -> None:
    assert any("each of the 2 processes alone" in line for line in two_ranks[0]["whole"]["said"])


# -- batches of one row ------------------------------------------------------------------------------------------------


class TwoRanks(Ranks):
    def __init__(self) -> None:
        self.world, self.rank = 2, 0


@pytest.mark.parametrize(
    ("rows", "size", "ranks", "able"),
    [
        (97, 16, Ranks(), 17),  # one row is left over
        (97, 96, Ranks(), 97),
        (8, 1, Ranks(), 2),
        (98, 16, TwoRanks(), 17),  # one row for each
        (99, 16, TwoRanks(), 17),  # two and one
        (97, 16, TwoRanks(), 17),  # one and none
    ],
)
def test_a_single_row_is_refused_where_rows_are_normalised(
    rows: int, size: int, ranks: Ranks, able: int, tmp_path: Path
) -> None:
    def built(norm: str, batch_size: int) -> None:
        chosen = made(norm, data={"rows": rows, "batch_size": batch_size})
        Fit(prepare(chosen, torch.device("cpu")), Run(tmp_path), ranks)

    with pytest.raises(MtlError, match=rf"data\.batch_size: {size} of {rows} rows at a time .*; {able} would do"):
        built("batch", size)
    built("layer", size)
    built("batch", able)


def test_a_model_with_several_values_in_a_row_takes_one() -> None:
    """Nor does the trial draw random numbers, or touch the statistics."""
    values = {
        "data": {"name": "multi_fashion", "pairs": 33, "batch_size": 32},
        "model": {"encoder": {"name": "cnn", "channels": [4]}},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = prepare(recipe.from_values(values, "r.yaml"), torch.device("cpu"))
    before, state = {k: v.clone() for k, v in prepared.model.state_dict().items()}, torch.get_rng_state()
    Fit(prepared, Run(Path("nowhere")), Ranks())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in prepared.model.state_dict().items())
