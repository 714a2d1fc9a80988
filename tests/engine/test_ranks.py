"""Two processes train like one, with labels that lie unevenly over them, for every weighting and both anchors."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import toy

import mtlcli
from mtlcli import recipe
from mtlcli.engine.fit import Fit
from mtlcli.engine.prepare import prepare
from mtlcli.engine.ranks import Ranks
from mtlcli.errors import TrainingError
from mtlcli.runs import Run


def cases() -> list[tuple[str, str, str]]:
    found = [(loss, "sum", "params") for loss in mtlcli.loss_weightings.names()]
    for gradient in mtlcli.gradient_weightings.names():
        method = mtlcli.gradient_weightings.get(gradient)
        # A method that draws a sign per entry of the representation draws for each rank's own samples.
        anchors = {"params"} if method.reads != "gramian" else method.anchors & {"params", "representation"}
        found += [("si", gradient, wrt) for wrt in sorted(anchors)]
    return found


def trained(loss: str, gradient: str, wrt: str, folder: Path) -> torch.Tensor:
    """All parameters after two epochs, in float64 so that only the order of sums can differ."""
    sections = toy.weighting(loss, gradient, wrt=wrt)
    sections["data"]["rows"] = 97
    made = recipe.from_values(
        toy.values(**sections, optimizer={"name": "sgd", "lr": 0.05}, train={"epochs": 2}),
        "toy",
    )
    prepared = prepare(made, torch.device("cpu"))
    prepared.model.double()
    for split in prepared.data.splits.values():
        split.inputs["numeric"] = split.inputs["numeric"].double()
        split.targets["amount"] = split.targets["amount"].double()
    training = Fit(prepared, Run(folder), Ranks())
    training.loss_weighting.double()
    training.model.train()
    for epoch in range(2):
        for batch in training.loader.epoch(epoch):
            training._train_step(batch, epoch)
    return torch.cat([p.detach().flatten() for p in training.model.parameters()])


def worker(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world))
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    found = {case: trained(*case, Path(folder)) for case in cases()}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[str, str, str], torch.Tensor]]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(worker, args=(2, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def deserter(rank: int, folder: str) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    ranks = Ranks()
    ranks.barrier()
    if rank == 1:
        os._exit(0)
    calls: list[Callable[[], object]] = [
        lambda: ranks.mean_([torch.ones(2)]),
        lambda: ranks.any(True),
        lambda: ranks.agreed(lambda: 1),
        ranks.barrier,
    ]
    for number, call in enumerate(calls):
        try:
            call()
        except TrainingError as error:
            Path(folder, f"{number}.txt").write_text(str(error))
    os._exit(0)


def test_a_rank_that_has_ended_is_no_bug(tmp_path: Path) -> None:
    mp.spawn(deserter, args=(str(tmp_path),), nprocs=2)
    said = [path.read_text() for path in sorted(tmp_path.glob("*.txt"))]
    assert len(said) == 4
    assert all(text.startswith("another process of this run has ended (") and "--resume" in text for text in said)
    assert "[/" not in said[0]


@pytest.mark.parametrize("case", cases(), ids="-".join)
def test_two_ranks_equal_one(case: tuple[str, str, str], two_ranks: Any, tmp_path: Path) -> None:
    alone = trained(*case, tmp_path)
    for rank in two_ranks:
        torch.testing.assert_close(rank[case], alone, rtol=1e-7, atol=1e-9)
