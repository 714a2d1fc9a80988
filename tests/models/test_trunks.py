"""Laws that hold for every trunk, and what `hps` and `mmoe` promise beyond them."""

import pytest
import torch
from torch import nn
from torch.autograd import grad

from mtlcli.data.base import TableFeatures
from mtlcli.errors import MtlError
from mtlcli.models.base import Encoder, MTLModel
from mtlcli.models.encoders.mlp import Mlp
from mtlcli.models.heads import HeadOptions, build_head
from mtlcli.models.trunks.mmoe import mix
from mtlcli.registry import trunks
from mtlcli.tasks import Task

FEATURES = TableFeatures(("x", "y", "z"), {"a": 4, "b": 6})
NUMERIC_ONLY = TableFeatures(("x", "y", "z"), {})
TASKS = (Task("one", "binary"), Task("two", "multiclass", num_classes=3), Task("three", "regression"))
NAMES = tuple(task.name for task in TASKS)
ALL = pytest.mark.parametrize("name", trunks.names())
WITH_CUT = pytest.mark.parametrize("name", [name for name in trunks.names() if trunks.get(name).has_cut])


def make_trunk(name, features=FEATURES, widths=(16, 8), tasks=NAMES, **options):
    cls = trunks.get(name)
    encoder = Mlp.Options(widths=widths, embedding=3, activation="gelu")
    return cls(cls.Options(**options), lambda: Mlp(encoder, features), tasks)


def make_model(name, features=FEATURES, **options):
    torch.manual_seed(0)
    trunk = make_trunk(name, features, **options)
    return MTLModel(trunk, {task.name: build_head(task, trunk.out_features, HeadOptions()) for task in TASKS}).double()


def make_inputs(features=FEATURES, rows=12):
    rng = torch.Generator().manual_seed(1)
    codes = [torch.randint(n, (rows,), generator=rng) for n in features.categorical.values()]
    numeric = torch.randn(rows, len(features.numeric), generator=rng, dtype=torch.float64)
    return {"numeric": numeric, "categorical": torch.stack(codes, 1).int()} if codes else {"numeric": numeric}


def losses(predictions):
    return {task: prediction.pow(2).mean() + prediction.sum() for task, prediction in predictions.items()}


@ALL
def test_partition(name):
    """Private parameters are reached by their task alone, shared ones by two tasks or more; together they are all."""
    model = make_model(name)
    predictions, _ = model(make_inputs())
    parameters = list(model.parameters())
    reached = {id(p): set() for p in parameters}
    for task, loss in losses(predictions).items():
        for p, g in zip(parameters, grad(loss, parameters, retain_graph=True, allow_unused=True), strict=True):
            if g is not None:
                reached[id(p)].add(task)
    private = model.task_parameters()
    assert tuple(private) == NAMES
    for task, own in private.items():
        for p in own:
            assert reached[id(p)] == {task}
    for p in model.shared_parameters():
        assert len(reached[id(p)]) >= 2
    declared = [id(p) for own in private.values() for p in own] + [id(p) for p in model.shared_parameters()]
    assert len(declared) == len(set(declared))
    assert set(declared) == {id(p) for p in parameters}


@ALL
def test_features_have_the_announced_width(name):
    trunk = make_trunk(name).double()
    features = trunk(make_inputs(rows=5))
    assert tuple(features.per_task) == NAMES
    assert all(z.shape == (5, trunk.out_features) for z in features.per_task.values())
    assert bool(features.cut) == trunks.get(name).has_cut


@WITH_CUT
@pytest.mark.parametrize("features", [FEATURES, NUMERIC_ONLY], ids=["embedded", "numeric"])
def test_cut(name, features):
    """Pushing sum_k w_k dL_k/dcut back from the cut gives the weighted gradient of the shared parameters."""
    model = make_model(name, features)
    predictions, cut = model(make_inputs(features))
    terms = list(losses(predictions).values())
    weights = [0.7, -1.3, 2.1]
    shared = model.shared_parameters()
    total = sum(w * loss for w, loss in zip(weights, terms, strict=True))
    expected = grad(total, shared, retain_graph=True)
    rows = [grad(loss, cut, retain_graph=True) for loss in terms]
    mixed = [sum(w * row[i] for w, row in zip(weights, rows, strict=True)) for i in range(len(cut))]
    found = grad(cut, shared, mixed)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-12)


def test_hps_hands_every_head_the_same_tensor():
    features = make_trunk("hps").double()(make_inputs())
    assert len({id(z) for z in (*features.per_task.values(), *features.cut)}) == 1


def test_hps_without_layers_is_a_linear_model():
    trunk = make_trunk("hps", widths=())
    assert trunk.out_features == 2 * 3 + 3


def test_mmoe_with_one_expert_is_hps():
    hps, mmoe = make_model("hps"), make_model("mmoe", num_experts=1)
    mmoe.heads.load_state_dict(hps.heads.state_dict())
    mmoe.trunk.stem.load_state_dict(hps.trunk.encoder.stages[0].state_dict())
    mmoe.trunk.experts[0].load_state_dict(nn.Sequential(*hps.trunk.encoder.stages[1:]).state_dict())
    expected, found = hps(make_inputs())[0], mmoe(make_inputs())[0]
    for task in NAMES:
        assert found[task].equal(expected[task])
    for task, loss in losses(found).items():
        for g in grad(loss, mmoe.trunk.task_parameters(task), retain_graph=True):
            assert g.eq(0).all(), "a gate over one expert has nothing to decide"


def test_mmoe_with_equal_experts_does_not_depend_on_its_gates():
    trunk = make_trunk("mmoe").double()
    for expert in trunk.experts[1:]:
        expert.load_state_dict(trunk.experts[0].state_dict())
    before = trunk(make_inputs()).per_task["one"]
    for p in trunk.task_parameters("one"):
        nn.init.normal_(p, std=3)
    torch.testing.assert_close(trunk(make_inputs()).per_task["one"], before)


def test_mmoe_experts_start_apart():
    trunk = make_trunk("mmoe").double()
    experts = trunk(make_inputs()).cut[0]
    assert experts.shape == (4, 12, 8)
    assert all(not experts[0].equal(other) for other in experts[1:])


def test_mmoe_mixture_is_a_weighted_mean():
    """Rows of the gate sum to one: where every expert says one, so does the mixture."""
    trunk = make_trunk("mmoe").double()
    gate = trunk.gates["two"](torch.randn(7, 9, dtype=torch.float64)).softmax(1)
    assert gate.shape == (7, 4)
    ones = mix(gate, torch.ones(4, 7, 5, dtype=torch.float64))
    torch.testing.assert_close(ones, torch.ones(7, 5, dtype=torch.float64))


def test_mix():
    weights, experts = torch.rand(5, 3), torch.randn(3, 5, 2, 4, 4)
    expected = sum(weights[:, e, None, None, None] * experts[e] for e in range(3))
    torch.testing.assert_close(mix(weights, experts), expected)


def test_mmoe_gates_fixed_on_different_experts_isolate_the_tasks():
    trunk = make_trunk("mmoe", num_experts=3).double()
    for e, task in enumerate(NAMES):
        weight, bias = trunk.task_parameters(task)
        nn.init.zeros_(weight)
        bias.data = torch.full((3,), -1e4, dtype=torch.float64)
        bias.data[e] = 1e4
    features = trunk(make_inputs())
    g = grad(features.per_task["two"].sum(), features.cut[0])[0]
    assert g[1].ne(0).any()
    assert g[[0, 2]].eq(0).all()


def test_mmoe_parameters_by_closed_form():
    """Stem 10 x 3, E experts 9 -> 16 -> 8, K gates 9 -> E."""
    trunk = make_trunk("mmoe", num_experts=5)
    stem, expert, gate = (4 + 6) * 3, (9 * 16 + 16) + (16 * 8 + 8), 9 * 5 + 5
    assert sum(p.numel() for p in trunk.parameters()) == stem + 5 * expert + 3 * gate
    assert sum(p.numel() for p in make_trunk("hps").parameters()) == stem + expert


def test_mmoe_leaves_a_stem_without_parameters_out_of_the_cut():
    assert len(make_trunk("mmoe").double()(make_inputs()).cut) == 2
    assert len(make_trunk("mmoe", NUMERIC_ONLY).double()(make_inputs(NUMERIC_ONLY)).cut) == 1


def test_mmoe_gates_read_maps_averaged_over_positions():
    class Maps(Encoder):
        stem_features, out_features = 6, 5

        def __init__(self):
            super().__init__()
            self.stages = nn.ModuleList([nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 5, 3, padding=1)])

    cls = trunks.get("mmoe")
    trunk = cls(cls.Options(), Maps, NAMES)
    features = trunk(torch.randn(3, 2, 8, 8))
    assert features.per_task["one"].shape == (3, 5, 8, 8)
    assert [tuple(part.shape) for part in features.cut] == [(4, 3, 5, 8, 8), (3, 6)]


def test_mmoe_needs_a_stage_for_its_experts():
    with pytest.raises(MtlError, match=r"trunk 'mmoe'.*only one"):
        make_trunk("mmoe", widths=())
