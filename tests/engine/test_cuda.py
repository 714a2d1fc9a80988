"""On a GPU: the same training as on the CPU, bit-equal resumes, bfloat16, compiled parts, memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from torch import Tensor, nn

import mtlcli
from mtlcli import recipe
from mtlcli.engine.checkpoints import load_model
from mtlcli.engine.events import Finished, StepDone
from mtlcli.engine.fit import Fit, Interrupted
from mtlcli.engine.prepare import prepare
from mtlcli.engine.ranks import Ranks
from mtlcli.runs import Run

pytestmark = pytest.mark.cuda
DEVICE = torch.device("cuda", 0)
CPU = torch.device("cpu")
METHODS = [(loss, "sum") for loss in mtlcli.loss_weightings.names()]
METHODS += [("si", gradient) for gradient in mtlcli.gradient_weightings.names()]


def fit(folder: Path, device: torch.device, loss: str, gradient: str, stop: bool = False, **train: Any) -> Fit:
    """Two epochs, or one step of them; goes on with what is in the folder."""
    sections = toy.weighting(loss, gradient, rows="sequential")
    train = {"epochs": 2, "precision": "float32", "log_every_steps": 1, **train}
    made = recipe.from_values(toy.values(**sections, train=train), "toy")
    folder.mkdir(exist_ok=True)
    training = Fit(prepare(made, device), Run(folder), Ranks(), lambda: stop)
    if training.run.last.exists():
        training.resume()
    training.log = []  # type: ignore[attr-defined]
    for event in training.events():
        if isinstance(event, StepDone):
            training.log.append(event.losses)  # type: ignore[attr-defined]
        if isinstance(event, Finished):
            training.result = event.result  # type: ignore[attr-defined]
    return training


def parameters(training: Fit) -> Tensor:
    return torch.cat([p.detach().flatten().cpu() for p in training.model.parameters()])


@pytest.mark.parametrize(("loss", "gradient"), METHODS)
def test_trains_like_the_cpu(loss: str, gradient: str, tmp_path: Path) -> None:
    """To float32's accuracy over two epochs; generators of the two devices draw different numbers."""
    there, here = fit(tmp_path / "gpu", DEVICE, loss, gradient), fit(tmp_path / "cpu", CPU, loss, gradient)
    assert all(p.device.type == DEVICE.type for p in there.model.parameters())
    assert parameters(there).isfinite().all()
    draws = _has_drawn(here.loss_weighting) or _has_drawn(here.gradient_weighting)
    if not draws:
        torch.testing.assert_close(parameters(there), parameters(here), rtol=1e-2, atol=2e-3)


def _has_drawn(weighting: Any) -> bool:
    seeds = (2 * 3 + 1, 2 * 3 + 2)  # as prepare gives them to the two slots of seed 3
    return not any(torch.equal(weighting.rng.get_state(), torch.Generator().manual_seed(s).get_state()) for s in seeds)


@pytest.mark.parametrize(("loss", "gradient"), METHODS)
def test_a_resumed_run_equals_an_uninterrupted_one(loss: str, gradient: str, tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", DEVICE, loss, gradient)
    with pytest.raises(Interrupted):
        fit(tmp_path / "parts", DEVICE, loss, gradient, stop=True)
    parts = fit(tmp_path / "parts", DEVICE, loss, gradient)
    torch.testing.assert_close(parameters(parts), parameters(whole), rtol=1e-5, atol=1e-6)  # atomics may reorder sums


@pytest.mark.parametrize("gradient", ["sum", "nash_mtl", "graddrop"])
def test_bfloat16_is_the_default_and_trains(gradient: str, tmp_path: Path) -> None:
    exact = fit(tmp_path / "float32", DEVICE, "ew", gradient)
    fast = fit(tmp_path / "bfloat16", DEVICE, "ew", gradient, precision="auto")
    assert fast.prepared.autocast == (torch.bfloat16 if torch.cuda.is_bf16_supported() else None)
    assert all(p.dtype == torch.float32 for p in fast.model.parameters())
    for ours, theirs in zip(fast.log, exact.log, strict=True):  # type: ignore[attr-defined]
        for task, loss in theirs.items():
            assert ours[task] == pytest.approx(loss, rel=0.1, abs=0.05)


@pytest.mark.parametrize("gradient", ["sum", "nash_mtl"])
def test_compiled_parts_train_alike(gradient: str, tmp_path: Path) -> None:
    eager = fit(tmp_path / "eager", DEVICE, "ew", gradient)
    compiled = fit(tmp_path / "compiled", DEVICE, "ew", gradient, compile=True)
    torch.testing.assert_close(parameters(compiled), parameters(eager), rtol=1e-2, atol=2e-3)


def test_a_checkpoint_of_the_gpu_is_read_on_the_cpu(tmp_path: Path) -> None:
    trained = fit(tmp_path / "gpu", DEVICE, "uw", "sum")
    here = prepare(trained.recipe, CPU)
    load_model(here, trained.run.best)
    assert trained.result["device"].startswith(DEVICE.type)  # type: ignore[attr-defined]
    assert all(p.device.type == "cpu" for p in here.model.parameters())


@pytest.mark.parametrize("slot", ["loss", "gradient"])
def test_the_balancer_keeps_a_method_where_it_works(slot: str) -> None:
    """What reads the Gramian on the CPU, everything else with the model, random numbers included."""
    model = nn.Linear(4, 4, device=DEVICE)
    among = mtlcli.loss_weightings if slot == "loss" else mtlcli.gradient_weightings
    for name in among.names():
        options = {slot: {"weights": {"a": 1.0, "b": 1.0}}} if name == "constant" else {}
        balancer = mtlcli.Balancer(("a", "b"), **{slot: name}, shared=model.parameters(), options=options)
        method = balancer.loss_weighting if slot == "loss" else balancer.gradient_weighting
        at = CPU.type if getattr(method, "reads", None) == "gramian" else DEVICE.type
        assert {method.rng.device.type, *(t.device.type for t in (*method.parameters(), *method.buffers()))} == {at}


@pytest.mark.parametrize("rows", ["sequential", "batched", "auto"])
def test_the_balancer_gives_the_same_gradients_however_rows_are_taken(rows: Any) -> None:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16)).to(DEVICE)
    heads = nn.ModuleList([nn.Linear(16, 1) for _ in range(3)]).to(DEVICE)
    inputs = torch.randn(64, 8, device=DEVICE)

    def gradients(how: Any) -> list[Tensor]:
        balancer = mtlcli.Balancer(
            ("a", "b", "c"),
            gradient="upgrad",
            shared=trunk.parameters(),
            task_parameters={t: h.parameters() for t, h in zip("abc", heads, strict=True)},
            rows=how,
        )
        for p in (*trunk.parameters(), *heads.parameters()):
            p.grad = None
        z = trunk(inputs)
        balancer.backward([(k + 1) * head(z).square().mean() for k, head in enumerate(heads)])
        return [p.grad.clone() for p in (*trunk.parameters(), *heads.parameters()) if p.grad is not None]

    for ours, theirs in zip(gradients(rows), gradients("sequential"), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_memory_of_a_gramian_method() -> None:
    """K rows and one gradient of the trunk beyond what a plain step needs, and no second Jacobian."""
    tasks = 8
    trunk = nn.Sequential(*[nn.Linear(1024, 1024) for _ in range(4)]).to(DEVICE)
    heads = nn.ModuleList([nn.Linear(1024, 1) for _ in range(tasks)]).to(DEVICE)
    inputs = torch.randn(4, 1024, device=DEVICE)
    size = sum(p.nbytes for p in trunk.parameters())

    def peak(gradient: str) -> int:
        names = [f"t{k}" for k in range(tasks)]
        owners = {name: head.parameters() for name, head in zip(names, heads, strict=True)}
        balancer = mtlcli.Balancer(
            names, gradient=gradient, shared=trunk.parameters(), task_parameters=owners, rows="sequential"
        )
        for _ in range(2):
            for p in (*trunk.parameters(), *heads.parameters()):
                p.grad = None
            torch.cuda.reset_peak_memory_stats(DEVICE)
            z = trunk(inputs)
            balancer.backward([head(z).square().mean() for head in heads])
        return torch.cuda.max_memory_allocated(DEVICE)

    assert peak("mgda") - peak("sum") < (tasks + 1.5) * size
