"""Training as a whole on the toy data: resumed equals uninterrupted, losses that break, labels that are missing."""

from __future__ import annotations

import itertools
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import toy

import mtlcli
from mtlcli import recipe
from mtlcli.engine.checkpoints import read_checkpoint
from mtlcli.engine.events import Diagnostics, EpochDone, Finished, StepDone, Warned
from mtlcli.engine.fit import Fit, Interrupted
from mtlcli.engine.prepare import prepare
from mtlcli.engine.ranks import Ranks
from mtlcli.engine.view import ModelStep
from mtlcli.errors import MtlError, TrainingError
from mtlcli.recipe import Recipe
from mtlcli.registry import optimizers, schedules
from mtlcli.runs import Run
from mtlcli.weighting.base import Clock

CPU = torch.device("cpu")


def build(**sections: Any) -> Recipe:
    return recipe.from_values(toy.values(**sections), "toy")


def fit(made: Recipe, folder: Path, stop_after: int | None = None, resume: bool = False) -> tuple[dict[str, Any], Fit]:
    """Train; with `stop_after`, ask for a stop once that many steps of this call are done."""
    folder.mkdir(exist_ok=True)
    asked = itertools.count(1)
    training = Fit(
        prepare(made, CPU), Run(folder), Ranks(), lambda: stop_after is not None and next(asked) >= stop_after
    )
    if resume:
        training.resume()
    result: dict[str, Any] = {}
    for event in training.events():
        if isinstance(event, Finished):
            result = event.result
    return result, training


def scores(result: dict[str, Any]) -> dict[str, Any]:
    return {key: result[key] for key in ("tasks", "selected", "steps", "counts")}


def resumed(made: Recipe, tmp_path: Path, *stops: int) -> tuple[dict[str, Any], Fit]:
    """Train with an interruption after each of `stops` steps, counted from the last one."""
    folder = tmp_path / "interrupted"
    for number, stop in enumerate(stops):
        with pytest.raises(Interrupted):
            fit(made, folder, stop, resume=number > 0)
    return fit(made, folder, resume=True)


PAIRS = [(loss, "sum") for loss in mtlcli.loss_weightings.names()]
PAIRS += [("ew", gradient) for gradient in mtlcli.gradient_weightings.names()]
PAIRS += [("famo", "graddrop"), ("igb_v1", "nash_mtl")]


@pytest.mark.parametrize(("loss", "gradient"), PAIRS)
def test_resumed_equals_uninterrupted(loss: str, gradient: str, tmp_path: Path) -> None:
    made = build(
        **toy.weighting(loss, gradient),
        model={"encoder": {"name": "mlp", "widths": [16, 8], "dropout": 0.2}},
    )
    whole, one = fit(made, tmp_path / "whole")
    parts, other = resumed(made, tmp_path, 2, 3, 1, 4)
    assert scores(parts) == scores(whole)
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert one.loss_weighting.state_dict().keys() == other.loss_weighting.state_dict().keys()


@pytest.mark.parametrize("schedule", schedules.names())
@pytest.mark.parametrize("optimizer", optimizers.names())
def test_every_optimizer_and_schedule_resumes(optimizer: str, schedule: str, tmp_path: Path) -> None:
    made = build(
        optimizer={"name": optimizer, "lr": 0.01},
        schedule={"name": schedule, "warmup_steps": 3},
        weighting={"loss": "uw"},
        train={"clip_norm": 1.0},
    )
    whole, _ = fit(made, tmp_path / "whole")
    parts, _ = resumed(made, tmp_path, 4, 5)
    assert scores(parts) == scores(whole)


def test_reused_weights_and_norms_resume(tmp_path: Path) -> None:
    made = build(
        weighting={"loss": "ew", "gradient": {"name": "mgda", "every": 3}},
        model={"encoder": {"name": "mlp", "widths": [8], "norm": "batch", "dropout": 0.1}, "trunk": {"name": "mmoe"}},
    )
    whole, _ = fit(made, tmp_path / "whole")
    parts, _ = resumed(made, tmp_path, 2, 5)
    assert scores(parts) == scores(whole)


@pytest.mark.parametrize(
    "options",
    [
        {"name": "mgda", "wrt": "last_shared", "every": 2, "smooth": 0.5},
        {"name": "gradvac", "groups": "module", "smooth": 0.3},
        {"name": "nash_mtl", "groups": "module", "every": 3},
        {"name": "graddrop", "groups": "tensor"},
    ],
)
@pytest.mark.parametrize("trunk", ["hps", "mmoe"])
def test_engine_options_resume(options: dict[str, Any], trunk: str, tmp_path: Path) -> None:
    made = build(
        weighting={"gradient": options},
        model={"encoder": {"name": "mlp", "widths": [8, 8]}, "trunk": {"name": trunk}},
    )
    whole, _ = fit(made, tmp_path / "whole")
    parts, _ = resumed(made, tmp_path, 2, 5)
    assert scores(parts) == scores(whole)


def test_a_killed_run_goes_on_from_the_last_checkpoint(tmp_path: Path) -> None:
    made = build(train={"checkpoint_every_steps": 2})
    whole, _ = fit(made, tmp_path / "whole")
    folder = tmp_path / "killed"
    folder.mkdir()
    training = Fit(prepare(made, CPU), Run(folder), Ranks())
    for event in training.events():  # leave the generator where a kill would
        if isinstance(event, StepDone) and event.step == 6:
            break
    assert read_checkpoint(folder / "last.pt")["clock"]["step"] == 6
    parts, _ = fit(made, folder, resume=True)
    assert scores(parts) == scores(whole)


def test_same_seed_same_result_and_another_seed_another(tmp_path: Path) -> None:
    one, _ = fit(build(), tmp_path / "a")
    two, _ = fit(build(), tmp_path / "b")
    other, _ = fit(build(train={"seed": 4}), tmp_path / "c")
    assert scores(one) == scores(two)
    assert scores(one) != scores(other)


def test_result_and_events_have_the_fixed_shape(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    training = Fit(prepare(build(), CPU), Run(folder), Ranks())
    events = list(training.events())
    epochs = [e for e in events if isinstance(e, EpochDone)]
    assert [e.epoch for e in epochs] == [0, 1, 2, 3]
    assert [e.step for e in epochs] == [3, 6, 9, 12]
    finished = events[-1]
    assert isinstance(finished, Finished)
    result = json.loads(json.dumps(finished.result))
    assert {"schema_version", "method", "seed", "dataset", "fingerprint", "device", "epochs", "steps"} < set(result)
    assert result["method"] == "ew"
    assert result["steps"] == 12
    assert result["selected"]["by"] == "val"
    best = max(epochs, key=lambda e: (e.score if e.score is not None else -1e9, -e.epoch))
    assert result["selected"]["epoch"] == best.epoch
    assert set(result["cost"]) == {"seconds", "step_ms_median", "peak_mib", "backward_passes_per_step"}
    assert result["cost"]["backward_passes_per_step"] == 1
    metric = result["tasks"]["amount"]["metrics"]["mae"]
    assert metric["unit"] == "apples"
    assert metric["higher_is_better"] is False


def test_test_is_scored_with_the_best_epochs_parameters(tmp_path: Path) -> None:
    from mtlcli.engine.evaluate import evaluate

    made = build(train={"epochs": 6, "select_by": "yes.auroc"}, optimizer={"lr": 0.3})
    result, _ = fit(made, tmp_path / "run")
    state = read_checkpoint(tmp_path / "run" / "best.pt")
    prepared = prepare(made, CPU)
    prepared.model.load_state_dict(state["model"])
    again = evaluate(prepared.model, prepared.data.tasks, prepared.data.splits["test"], prepared.metrics)
    assert {task: score.as_json() for task, score in again.items()} == result["tasks"]
    assert state["best"]["epoch"] == result["selected"]["epoch"]


def test_training_learns(tmp_path: Path) -> None:
    made = build(data={"rows": 600}, train={"epochs": 20}, optimizer={"lr": 0.02})
    result, _ = fit(made, tmp_path / "run")
    assert result["tasks"]["yes"]["metrics"]["auroc"]["value"] > 0.95
    assert result["tasks"]["amount"]["metrics"]["r2"]["value"] > 0.9


def test_a_broken_loss_stops_the_run_and_harms_nothing(tmp_path: Path) -> None:
    made = build(data={"break_at": 40}, train={"checkpoint_every_steps": 1, "log_every_steps": 1})
    folder = tmp_path / "run"
    with pytest.raises(TrainingError, match=r"task 'amount'.* inf at step \d.*last good checkpoint is .*last\.pt"):
        fit(made, folder)
    state = read_checkpoint(folder / "last.pt")
    assert all(bool(p.isfinite().all()) for p in state["model"].values())


def test_a_broken_loss_is_found_before_a_late_record(tmp_path: Path) -> None:
    made = build(data={"break_at": 40}, train={"log_every_steps": 1000})
    with pytest.raises(TrainingError, match="task 'amount'"):
        fit(made, tmp_path / "run")


def test_losses_far_apart_are_pointed_out(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    events = list(Fit(prepare(build(data={"scale": 100.0}), CPU), Run(folder), Ranks()).events())
    (warned,) = [e for e in events if isinstance(e, Warned)]
    for word in ("amount", "transform", "si", "balancing"):
        assert word in warned.message
    assert not [e for e in Fit(prepare(build(), CPU), Run(folder), Ranks()).events() if isinstance(e, Warned)]


def test_an_undefined_metric_says_why(tmp_path: Path) -> None:
    result, _ = fit(build(data={"constant": "test"}), tmp_path / "run")
    auroc = result["tasks"]["yes"]["metrics"]["auroc"]
    assert auroc["value"] is None
    assert "only one class" in auroc["undefined"]


@pytest.mark.parametrize("by", ["delta", "loss", "last", "yes.auroc", "amount.mae"])
def test_every_way_to_select(by: str, tmp_path: Path) -> None:
    result, training = fit(build(train={"select_by": by}), tmp_path / "run")
    assert result["selected"]["epoch"] in range(4)
    if by == "last":
        assert result["selected"]["epoch"] == 3
    assert training.best["epoch"] == result["selected"]["epoch"]


def test_without_anything_to_choose_by_the_last_epoch_stands(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    events = list(Fit(prepare(build(data={"unlabelled": "val"}), CPU), Run(folder), Ranks()).events())
    (warned,) = [e for e in events if isinstance(e, Warned)]
    assert "train.select_by: delta has no value on val (amount: no labelled rows; which: no labelled" in warned.message
    assert [e.best for e in events if isinstance(e, EpochDone)] == [True] * 4
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert finished.result["selected"] == {"by": "last", "epoch": 3}
    assert read_checkpoint(folder / "best.pt")["clock"]["epoch"] == 4


def test_one_class_alone_on_val_leaves_the_loss_to_choose_by(tmp_path: Path) -> None:
    made = build(data={"constant": "val", "only": ["yes"]}, train={"epochs": 6})
    result, training = fit(made, tmp_path / "run")
    assert result["selected"]["by"] == "val"
    assert training.best["score"] is not None


@pytest.mark.parametrize("loss", ["ew", "igb_v1"])
def test_a_training_loss_is_the_mean_over_labelled_steps(loss: str, tmp_path: Path) -> None:
    made = build(
        weighting={"loss": loss},
        data={"missing": 0.9, "batch_size": 2},
        train={"epochs": 1, "log_every_steps": 1},
    )
    (tmp_path / "run").mkdir()
    events = list(Fit(prepare(made, CPU), Run(tmp_path / "run"), Ranks()).events())
    steps = [e for e in events if isinstance(e, StepDone)]
    (epoch,) = [e for e in events if isinstance(e, EpochDone)]
    for task in ("yes", "which", "amount"):
        known = [value for step in steps if (value := step.losses[task]) is not None]
        assert epoch.losses[task] == pytest.approx(sum(known) / len(known))
    assert len(known) < len(steps)
    assert all(value != 0 for value in known)


@pytest.mark.parametrize("gradient", ["sum", "nash_mtl", "moco", "mgda"])
def test_a_run_that_diverges_says_where_whatever_the_method(gradient: str, tmp_path: Path) -> None:
    made = build(**toy.weighting("ew", gradient), optimizer={"name": "sgd", "lr": 1e25})
    with pytest.raises(TrainingError, match=r"task '\w+': its loss became (nan|inf) at step \d.*good checkpoint is"):
        fit(made, tmp_path / "run")


def test_a_weighting_that_breaks_is_not_blamed_on_the_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = mtlcli.loss_weightings.get("ew")
    monkeypatch.setattr(whole, "forward", lambda self, step: step.losses * (torch.nan if step.clock.step == 5 else 1.0))
    with pytest.raises(TrainingError, match="task 'yes': its weight under 'ew' became nan at step 5") as found:
        fit(build(), tmp_path / "run")
    assert "labels" not in str(found.value)


def test_damage_inside_a_checkpoint_is_seen(tmp_path: Path) -> None:
    fit(build(), tmp_path / "run")
    path = tmp_path / "run" / "best.pt"
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        member = max(archive.infolist(), key=lambda info: info.file_size)
    content[member.header_offset + 200] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(MtlError, match="cannot be read as a checkpoint: truncated, damaged"):
        read_checkpoint(path)


def test_held_out_rows_leave_training_and_keep_the_fingerprint(tmp_path: Path) -> None:
    plain, held = build(), build(data={"held_out": 0.25})
    a, b = prepare(plain, CPU), prepare(held, CPU)
    assert len(b.data.splits["train"]) == 72
    assert len(b.data.splits["held_out"]) == 24
    assert a.data.fingerprint == b.data.fingerprint
    result, _ = fit(held, tmp_path / "run")
    assert result["steps"] == 12


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    fit(build(), tmp_path / "run")
    with pytest.raises(MtlError, match="does not fit this recipe"):
        fit(build(model={"encoder": {"name": "mlp", "widths": [4]}}), tmp_path / "run", resume=True)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own tracing asks for it
def test_compiled_parts_train_like_plain_ones(tmp_path: Path) -> None:
    sections: dict[str, Any] = {"weighting": {"loss": "famo", "gradient": "nash_mtl"}, "train": {"epochs": 1}}
    plain, _ = fit(build(**sections), tmp_path / "plain")
    sections["train"]["compile"] = True
    compiled, _ = fit(build(**sections), tmp_path / "compiled")
    for task, score in plain["tasks"].items():
        assert compiled["tasks"][task]["loss"] == pytest.approx(score["loss"], rel=1e-4)


def test_diagnostics_say_how_gradients_conflict_and_change_nothing(tmp_path: Path) -> None:
    """Against gradients taken by hand at the first step; the trained parameters are the same to the last bit."""
    plain, watched = build(), build(train={"diagnostics_every": 2})
    made = prepare(watched, CPU)
    training = Fit(made, Run(tmp_path), Ranks())
    batch = next(iter(training.loader.epoch(0)))
    losses = ModelStep(made.model, made.data.tasks, batch, Clock(0, 0, 3, 4), 0.01, Ranks()).losses
    rows = [torch.autograd.grad(loss, made.model.shared_parameters(), retain_graph=True) for loss in losses]
    jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]).double()
    lengths = jacobian.norm(dim=1)
    expected = jacobian @ jacobian.T
    events = [event for event in training.events() if isinstance(event, Diagnostics)]
    assert [event.step for event in events] == [0, 2, 4, 6, 8, 10]
    first = events[0]
    assert first.tasks == ["yes", "which", "amount"]
    torch.testing.assert_close(
        torch.tensor(first.cosines).double(), expected / lengths[:, None] / lengths, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        torch.tensor(first.magnitude_similarity).double(),
        2 * lengths[:, None] * lengths / (lengths[:, None] ** 2 + lengths**2),
        rtol=1e-4,
        atol=1e-5,
    )
    assert first.condition == pytest.approx(float(torch.linalg.cond(expected)), rel=1e-2)
    (tmp_path / "plain").mkdir()
    _, without = fit(plain, tmp_path / "plain")
    for a, b in zip(training.model.parameters(), without.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_diagnostics_of_gradients_that_vanish_or_are_alike() -> None:
    zero = Diagnostics.of(torch.tensor([[4.0, 0.0], [0.0, 0.0]]), ["a", "b"], 0, 0)
    assert zero.cosines == [[1.0, 0.0], [0.0, 0.0]]
    assert zero.magnitude_similarity == [[1.0, 0.0], [0.0, 1.0]]
    assert zero.condition is None
    assert Diagnostics.of(torch.ones(2, 2), ["a", "b"], 0, 0).condition is None


def test_every_training_batch_is_augmented(tmp_path: Path) -> None:
    """Those that weights are learned from as well as the one that is trained on."""
    made = recipe.from_values(toy.values(**toy.weighting("ew", "modo"), train={"epochs": 1}), "toy")
    prepared = prepare(made, torch.device("cpu"))
    changed = []
    object.__setattr__(prepared.data, "augment", lambda inputs: changed.append(inputs) or inputs)
    training = Fit(prepared, Run(tmp_path), Ranks())
    for batch in training.loader.epoch(0):
        training._train_step(batch, 0)
    assert len(changed) == 3 * training.step > 0
