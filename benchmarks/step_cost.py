"""What a step costs with each method: ours against plain PyTorch, TorchJD and, where it is installed, LibMTL.

    python benchmarks/step_cost.py [--device cpu|cuda] [--shapes 3,512,256 resnet ...] [--methods ew nash_mtl ...]
                                   [--rounds 5] [--seconds 10] [--quick] [--json]

A shape is K,width,batch of an MLP trunk of three layers with K linear heads; `resnet` is ResNet-18 on 64x64 images with
three heads. One method is measured at a time: every round runs a few steps of plain PyTorch, of ours, and of the peers'
same method in turn, so that all of them see the same machine, on one and the same model, since where its memory lies
makes a difference of some per cent; there are at least `--rounds`, and more as long as
`--seconds` allow. Shown are medians over rounds of the ms per step and of the ratios within a round, beside the largest
value that is aimed at (`<` met, `>` missed).

Every loss weighting is measured once its later epochs have begun. A round covers a whole period of what happens every
few steps. The weighting with an agent is measured over 1,000 steps in which it acts and learns, or as many as 20 times
`--seconds` allow.

Beside Nash-MTL stand `K passes`: a forward pass, K backward passes and the optimiser, without any method. That is the
bound of what a method that compares gradients at the parameters can reach.

Memory is the most that a step holds beside parameters, data and the graph of its own forward pass, in sizes of the
trunk's parameters: on the CPU counted from the tensors alive, on CUDA from what the allocator hands out.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from alive import alive
from contestants import LEARNS_EVERY, Contestant, Problem, Step, contestants, problem
from rich.console import Console
from rich.table import Table

import mtlcli

SHAPES = ["3,512,256", "9,512,256", "40,256,256", "40,512,1024", "resnet"]
QUICK = ["ew", "uw", "famo", "igb_v2", "nash_mtl", "upgrad", "pcgrad", "graddrop"]
ONLY_READ_LOSSES = {
    *("ew", "constant", "si", "gls", "uw", "dwa", "rlw", "imtl_l", "stch", "cov", "igb_v1", "go4align", "ldc_mtl")
}


def targets(method: str, way: str, shape: str, rest: float) -> dict[str, float]:
    """The largest values that are aimed at. `rest`: the memory that gradients of activations and heads may take."""
    tasks = 3 if shape == "resnet" else int(shape.split(",")[0])
    wide = tasks >= 40
    if way in ("", "memory full"):
        special = {"famo": 1.5 if wide else 1.4, "igb_v2": 1.35}
        return {"times_plain": 1.05} if method in ONLY_READ_LOSSES else {"times_plain": special.get(method, torch.inf)}
    times = {"representation": 1.5 if wide else 1.25, "every 10": torch.inf if wide else 1.6}
    cls = mtlcli.gradient_weightings.get(method)
    if cls.extra_batches:  # three forward passes, and the gradients of two batches
        return {}
    found = {"times_plain": times.get(way, torch.inf)}
    if way == "params" and cls.reads == "gramian":
        found["memory"] = tasks + 1 + rest
        found["times_torchjd"] = 0.35 if method == "nash_mtl" else 0.9
    return found


# -- measuring ---------------------------------------------------------------------------------------------------------


def warmed_up(contestant: Contestant, made: Problem) -> tuple[Step, float, float]:
    """A step, the memory that it needs, and the size of the forward graph and the heads; both in trunks."""
    known = [*made.parameters(), *made.trunk.buffers(), made.inputs, made.targets]
    made.losses()  # libraries allocate workspaces of their own at first
    with alive(made.inputs.device, known) as held:
        losses = made.losses()
        graph = held.now
        del losses
        step = contestant.make(made)
        for _ in range(contestant.warm_up):
            step()
        held.restart()
        step()
    trunk, heads = (sum(p.nbytes for p in part.parameters()) for part in (made.trunk, made.heads))
    return step, (held.most - graph) / trunk, (graph + heads) / trunk


def measure(method: str, shape: str, device: torch.device, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """A row for each of our ways."""
    made = problem(shape, device)
    runs: dict[str, tuple[Step, int]] = {}
    memory: dict[str, float] = {}
    errors: dict[str, str] = {}
    rest = 0.0
    known = contestants(method)
    for way, contestant in known.items():
        try:
            step, memory[way], rest = warmed_up(contestant, made)
            runs[way] = step, contestant.period or max(1, min(5, int(250 / _milliseconds(step, 1, device))))
        except Exception as error:  # a row says what somebody cannot do
            errors[way] = f"{type(error).__name__}: {error}".splitlines()[0]
    times: dict[str, list[float]] = {way: [] for way in runs}
    start, count, most = time.perf_counter(), 0, 10 * rounds
    if method in LEARNS_EVERY and seconds > 2:
        most, seconds = max(rounds, 1000 // LEARNS_EVERY[method]), 20 * seconds
    while count < rounds or (count < most and time.perf_counter() - start < seconds):
        count += 1
        for way, (step, many) in runs.items():
            times[way].append(_milliseconds(step, many, device))
    rows: list[dict[str, Any]] = [{"method": method, "way": way, "error": error} for way, error in errors.items()]
    for way in [way for way in runs if way != "plain" and not known[way].beside]:
        row: dict[str, Any] = {"method": method, "way": way, "ms": statistics.median(times[way]), "memory": memory[way]}
        for other in [other for other in times if other == "plain" or way in known[other].beside]:
            row[f"{other}_ms"], row[f"{other}_memory"] = statistics.median(times[other]), memory[other]
            row[f"times_{other}"] = statistics.median(a / b for a, b in zip(times[way], times[other], strict=True))
        aims = targets(method, way, shape, rest)
        rows.append({**row, "rounds": count, "targets": {key: aim for key, aim in aims.items() if key in row}})
    return rows


def solvers(methods: list[str]) -> list[dict[str, Any]]:
    """Median ms of every Gramian method alone, on random Gramians of K tasks."""
    rows = []
    for name in methods:
        if name not in mtlcli.gradient_weightings.names() or mtlcli.gradient_weightings.get(name).reads != "gramian":
            continue
        row: dict[str, Any] = {"method": name, "targets": {"K=40": 5.0 if name == "upgrad" else 1.0}}
        for count in (2, 3, 11, 40):
            torch.manual_seed(count)
            method = mtlcli.gradient_weightings.build(name, count)
            found = []
            for _ in range(60):
                jacobian = torch.randn(count, 200, dtype=torch.float64) * (10 * torch.rand(count, 1) + 0.1)
                gramian, losses = jacobian @ jacobian.T, torch.rand(count, dtype=torch.float64) + 0.1
                found.append(_milliseconds(lambda: method(gramian, losses), 1, torch.device("cpu")))  # noqa: B023
            row[f"K={count}"] = statistics.median(found[10:])
        rows.append(row)
    return rows


def _milliseconds(step: Callable[[], object], many: int, device: torch.device) -> float:
    """Of one of `many` steps."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(many):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start) / many


# -- showing -----------------------------------------------------------------------------------------------------------

COLUMNS = {
    "ms": "ms",
    "plain_ms": "plain ms",
    "times_plain": "x plain",
    "torchjd_ms": "TorchJD ms",
    "times_torchjd": "x TorchJD",
    "memory": "memory",
    "torchjd_memory": "TorchJD's",
    "libmtl_ms": "LibMTL ms",
    "times_libmtl": "x LibMTL",
}


def _cell(row: dict[str, Any], key: str) -> str:
    if key not in row:
        return ""
    target = row["targets"].get(key, torch.inf)
    aim = "" if target == torch.inf else f" {'<' if row[key] <= target else '>'} {target:.2f}"
    return f"{row[key]:.2f}{aim}"


def _table(title: str, labels: list[str], columns: dict[str, str], rows: list[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left")
    for label in labels:
        table.add_column(label)
    for heading in columns.values():
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*(row[label] for label in labels), *(_cell(row, key) for key in columns))
    return table


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shapes", nargs="+")
    everything = [*mtlcli.loss_weightings.names(), *mtlcli.gradient_weightings.names()]
    parser.add_argument("--methods", nargs="+", choices=everything)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--quick", action="store_true", help="a few methods, the smallest shape, few rounds")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    shapes = arguments.shapes or (SHAPES[:1] if arguments.quick else SHAPES)
    methods = arguments.methods or (QUICK if arguments.quick else everything)
    rounds = arguments.rounds or (2 if arguments.quick else 5)
    seconds = min(arguments.seconds, 2) if arguments.quick else arguments.seconds
    values: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "shapes": {},
    }
    # Each table is shown as soon as it is there: the whole takes an hour and more.
    console = Console(width=None if sys.stdout.isatty() else 150, quiet=arguments.json)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a peer's solver warns at every call
        for shape in shapes:
            measured = [measure(method, shape, device, rounds, seconds) for method in methods]
            rows = values["shapes"][shape] = list(itertools.chain(*measured))
            timed = [row for row in rows if "error" not in row]
            console.print(_table(f"{shape} on {values['device']}", ["method", "way"], COLUMNS, timed))
            for row in rows:
                if "error" in row:
                    console.print(f"{row['method']}, {row['way']}: {row['error']}", markup=False)
        values["solvers"] = solvers(methods)
    sizes = {f"K={count}": f"K={count}" for count in (2, 3, 11, 40)}
    console.print(_table("solver alone, ms", ["method"], sizes, values["solvers"]))
    if arguments.json:
        json.dump(values, sys.stdout, indent=2)
        sys.stdout.write("\n")


if __name__ == "__main__":
    main()
