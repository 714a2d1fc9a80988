"""A person's own loop in two processes trains what one would on both their rows, without DistributedDataParallel."""

from __future__ import annotations

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from mtlcli.engine.balancer import Balancer

CASES = [
    ("si", "sum"),
    ("uw", "sum"),
    ("famo", "sum"),
    ("igb_v2", "sum"),
    ("auto_lambda", "sum"),
    ("hydalearn", "sum"),
    ("slgrad", "sum"),
    ("si", "mgda"),
    ("ew", "graddrop"),
    ("ew", "modo"),
]


def trained(loss: str, gradient: str, rank: int, world: int) -> Tensor:
    """All parameters after a few steps on this rank's part of every batch."""
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(3, 5), nn.Tanh()).double()
    heads = nn.ModuleList([nn.Linear(5, 1), nn.Linear(5, 1)]).double()
    inputs, targets = torch.randn(5, 3, 8, 3).double(), torch.randn(5, 3, 2, 8).double()
    mine = slice(rank * 8 // world, (rank + 1) * 8 // world)
    own = {"a": heads[0].parameters(), "b": heads[1].parameters()}
    balancer = Balancer(("a", "b"), loss, gradient, shared=trunk.parameters(), task_parameters=own, lr=0.1)
    balancer.loss_weighting.double()
    optimizer = torch.optim.SGD([*trunk.parameters(), *heads.parameters(), *balancer.parameters()], lr=0.1)

    def losses(step: int, batch: int) -> Tensor:
        z = trunk(inputs[step, batch, mine])
        found = torch.stack([head(z)[:, 0] for head in heads])
        return (found - targets[step, batch, :, mine]).square()

    for step in range(5):
        calls = [lambda batch=batch: losses(step, batch) for batch in range(3)]  # noqa: B023
        optimizer.zero_grad()
        balancer.backward(calls[0](), closure=calls[0], held_out=calls[1], extra=calls[1:])
        optimizer.step()
        balancer.after_step()
        balancer.end_epoch()
    return torch.cat([p.detach().flatten() for p in optimizer.param_groups[0]["params"]])


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE="2")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save([trained(*case, rank, 2) for case in CASES], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[list[Tensor]]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(worker, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: "+".join(CASES[number]))
def test_two_ranks_equal_one(number: int, two_ranks: list[list[Tensor]]) -> None:
    alone = trained(*CASES[number], 0, 1)
    for rank in two_ranks:
        torch.testing.assert_close(rank[number], alone, rtol=1e-7, atol=1e-9)
