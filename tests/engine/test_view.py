"""What a loss weighting may ask of a step: probes, gradients, moves; and that none of it leaves a trace."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import toy
from torch.utils.checkpoint import checkpoint

from mtlcli import recipe
from mtlcli.engine.prepare import Prepared, prepare
from mtlcli.engine.ranks import Ranks
from mtlcli.engine.view import ModelStep
from mtlcli.errors import MtlError
from mtlcli.weighting.base import Clock


def prepared(**encoder: Any) -> Prepared:
    options = {"name": "mlp", "widths": [16, 8], **encoder}
    return prepare(recipe.from_values(toy.values(model={"encoder": options}), "toy"), torch.device("cpu"))


def view_of(made: Prepared, held_out: bool = True) -> ModelStep:
    train, val = made.data.splits["train"], made.data.splits["val"]
    return ModelStep(
        made.model,
        made.data.tasks,
        train.rows(slice(0, 48)),
        Clock(0, 0, 3, 4),
        0.01,
        Ranks(),
        held_out=(lambda: val.rows(slice(0, 20))) if held_out else None,
    )


def test_losses_are_the_means_over_labelled_samples() -> None:
    view = view_of(prepared())
    labelled = (view.sample_losses != 0).sum(1)
    assert labelled[1] < 48
    torch.testing.assert_close(view.losses, view.sample_losses.sum(1) / labelled)


def test_knowing_that_no_label_is_missing_changes_nothing() -> None:
    made = prepared()
    batch = made.data.splits["train"].rows(slice(0, 48))
    views = [
        ModelStep(made.model, made.data.tasks, batch, Clock(0, 0, 1, 1), 0.1, Ranks(), complete=frozenset(complete))
        for complete in ((), ("yes",))
    ]
    torch.testing.assert_close(views[0].losses, views[1].losses)


def test_a_probe_in_place_repeats_the_step_with_its_dropout_masks() -> None:
    made = prepared(dropout=0.5)
    made.model.train()
    view = view_of(made)
    after = torch.get_rng_state()
    torch.testing.assert_close(view.probe().per_task, view.losses)
    torch.testing.assert_close(view.probe().per_sample, view.sample_losses)
    assert torch.equal(torch.get_rng_state(), after)


def test_a_probe_leaves_batch_norm_and_parameters_untouched() -> None:
    made = prepared(norm="batch", dropout=0.3)
    made.model.train()
    view = view_of(made)
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    moved = view.move(view.gradient(view.losses[0]), by=-0.5)
    assert not torch.equal(view.probe(moved).per_task, view.losses)
    view.probe(batch="held_out")
    for name, value in made.model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_probe_elsewhere_is_the_loss_there() -> None:
    made = prepared()
    view = view_of(made)
    direction = view.gradient(view.losses.sum())
    predicted = view.probe(view.move(direction, by=-0.1)).per_task
    with torch.no_grad():
        for name, parameter in made.model.named_parameters():
            parameter -= 0.1 * direction[name]
    torch.testing.assert_close(view_of(made).losses, predicted)


def test_a_move_may_name_some_parameters_only() -> None:
    made = prepared()
    view = view_of(made)
    (name, value), *others = view.params.items()
    moved = view.move({name: torch.ones_like(value)}, by=2.0)
    torch.testing.assert_close(moved[name], value + 2)
    assert all(moved[other] is parameter for other, parameter in others)
    assert view.probe(moved).per_task.shape == (3,)


def test_gradients_at_a_probe_with_checkpointed_activations() -> None:
    """What is computed again for the backward pass has to read the moved values as well."""

    def gradient(checkpointed: bool) -> Any:
        made = prepared()
        if checkpointed:
            for module in made.model.modules():
                if isinstance(module, torch.nn.Sequential):
                    plain = module.forward
                    module.forward = lambda x, plain=plain: checkpoint(plain, x, use_reentrant=False)
        view = view_of(made)
        moved = view.move(view.gradient(view.losses.sum()), by=-0.5)
        return view.gradient(view.probe(moved).per_task.sum(), at=moved)

    expected, found = gradient(False), gradient(True)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_the_losses_of_a_compiled_model_are_measured_again() -> None:
    made = prepared()
    view = view_of(made)
    assert view.unmoved().per_task is not None
    other = ModelStep(
        made.model,
        made.data.tasks,
        made.data.splits["train"].rows(slice(0, 48)),
        Clock(0, 0, 3, 4),
        0.01,
        Ranks(),
        probe_model=copy.deepcopy(made.model),
    )
    assert view.unmoved().roots is view.roots
    assert other.unmoved().roots is not other.roots
    torch.testing.assert_close(other.unmoved().per_task, other.losses)


def test_gradients_at_a_probe() -> None:
    made = prepared()
    view = view_of(made)
    moved = view.move(view.gradient(view.losses[2]), by=-0.2)
    there = view.gradient(view.probe(moved, "held_out").per_task[2], at=moved)
    with torch.no_grad():
        for name, parameter in made.model.named_parameters():
            parameter.copy_(moved[name])
    expected = view_of(made)
    here = expected.gradient(expected.probe(batch="held_out").per_task[2])
    for name, gradient in there.items():
        torch.testing.assert_close(gradient, here[name])


def test_asking_for_held_out_rows_that_are_not_there() -> None:
    with pytest.raises(MtlError, match=r"data\.held_out"):
        view_of(prepared(), held_out=False).probe(batch="held_out")


def test_bfloat16_forward_keeps_float32_losses() -> None:
    made = prepared()
    batch = made.data.splits["train"].rows(slice(0, 48))
    view = ModelStep(made.model, made.data.tasks, batch, Clock(0, 0, 1, 1), 0.1, Ranks(), autocast=torch.bfloat16)
    assert view.losses.dtype == torch.float32
    torch.testing.assert_close(view.losses, view_of(made).losses, rtol=0.05, atol=0.02)


def test_a_score_is_the_first_metric_with_higher_for_better() -> None:
    made = prepared()
    batch = made.data.splits["train"].rows(slice(0, 48))
    view = ModelStep(
        made.model,
        made.data.tasks,
        batch,
        Clock(0, 0, 1, 1),
        0.1,
        Ranks(),
        metrics={"yes": ["auroc"], "amount": ["mae"]},
    )
    auroc, mae = view.score("yes"), view.score("amount")
    assert auroc is not None
    assert 0 < auroc < 1
    assert mae is not None
    assert mae < 0
    better = view.score("amount", view.move(view.gradient(view.losses[2]), by=-0.05))
    assert better is not None
    assert better > mae
    with pytest.raises(MtlError, match="no metric"):
        view.score("which")


def test_shared_parameters_are_those_of_the_trunk() -> None:
    view = view_of(prepared())
    assert set(view.shared) == {name for name in view.params if name.startswith("trunk.")}


def test_probes_of_a_short_precision_step_are_in_full_precision() -> None:
    """Losses that are compared may differ by less than bfloat16 resolves."""
    made = prepared()
    batch = made.data.splits["train"].rows(slice(0, 48))
    short, full = (
        ModelStep(made.model, made.data.tasks, batch, Clock(0, 0, 1, 1), 0.1, Ranks(), autocast=autocast)
        for autocast in (torch.bfloat16, None)
    )
    assert not torch.equal(short.losses, full.losses)
    assert torch.equal(short.probe().per_task, full.losses)
    assert torch.equal(short.unmoved().per_task, full.losses)
    assert torch.equal(short.unmoved().per_sample, full.unmoved().per_sample)
    assert full.unmoved().roots is full.roots  # no further forward pass
    assert full.samples is None  # nothing has asked for weights of samples


def test_gradients_are_counted_and_leave_other_heads_alone() -> None:
    made = prepared()
    view = view_of(made)
    seen: list[str] = []
    for name, head in made.model.heads.items():
        head.register_full_backward_hook(lambda *_, name=name: seen.append(name))
    view = view_of(made)
    view.gradient(view.roots[1])
    view.gradient(view.probe().roots[0])
    assert (view.passes, seen) == (2, [view.tasks[1], view.tasks[0]])
