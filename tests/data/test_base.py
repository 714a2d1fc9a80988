from dataclasses import replace

import pytest
import torch

from mtlcli.data.base import MultiTaskData, Split, TableFeatures, fingerprint
from mtlcli.errors import OptionError
from mtlcli.tasks import Task


def table(rows=100):
    x = torch.arange(float(rows))[:, None]
    split = Split({"numeric": x}, {"a": x[:, 0] * 2, "b": x[:, 0] * 3})
    test = Split({"numeric": x + 1000}, {"a": x[:, 0], "b": x[:, 0]})
    features = TableFeatures(("x",), {})
    tasks = (Task("a", "regression"), Task("b", "regression"))
    return MultiTaskData(tasks, features, {"train": split, "test": test}, "sha256:0")


def test_hold_out_moves_rows_out_of_train():
    data = table().hold_out(0.25, seed=1)
    train, held_out = data.splits["train"], data.splits["held_out"]
    assert (len(train), len(held_out)) == (75, 25)
    rows = torch.cat([train.inputs["numeric"], held_out.inputs["numeric"]])[:, 0]
    assert rows.sort().values.equal(torch.arange(100.0))
    assert held_out.targets["b"].equal(held_out.inputs["numeric"][:, 0] * 3)
    assert data.splits["test"] is not None
    assert data.fingerprint == table().fingerprint


def test_hold_out_depends_on_the_seed_alone():
    first, again, other = (table().hold_out(0.25, seed).splits["held_out"].targets["a"] for seed in (1, 1, 2))
    assert first.equal(again)
    assert not first.equal(other)


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_hold_out_refuses_to_empty_a_part(fraction):
    with pytest.raises(OptionError, match="held_out"):
        table().hold_out(fraction, seed=0)


def test_selecting_an_unknown_task_names_the_nearest():
    data = replace(table(), tasks=(Task("income", "binary"), Task("college", "binary")))
    with pytest.raises(OptionError, match="no task 'incme'; did you mean 'income'"):
        data.select(("incme",))


def test_selecting_a_task_twice_is_refused():
    with pytest.raises(OptionError, match="each task once; found a, a"):
        table().select(("a", "a"))


def test_rows_by_slice_and_by_index_agree():
    split = table().splits["train"]
    by_slice, by_index = split.rows(slice(3, 6)), split.rows(torch.arange(3, 6))
    assert by_slice.inputs["numeric"].equal(by_index.inputs["numeric"])
    assert by_slice.targets["a"].equal(by_index.targets["a"])


def test_fingerprint_sees_definition_values_names_and_splits():
    splits = table().splits
    first = fingerprint({"tasks": ["a"]}, splits)
    assert first == fingerprint({"tasks": ["a"]}, table().splits)
    assert first.startswith("sha256:")
    changed = table().splits
    changed["test"].targets["b"][7] += 1
    others = [
        fingerprint({"tasks": ["b"]}, splits),
        fingerprint({"tasks": ["a"]}, changed),
        fingerprint({"tasks": ["a"]}, {"train": splits["train"]}),
        fingerprint({"tasks": ["a"]}, {"train": splits["test"], "test": splits["train"]}),
    ]
    assert len({first, *others}) == 5


def test_fingerprint_of_a_table_without_columns():
    empty = Split({"numeric": torch.empty(3, 0)}, {"a": torch.zeros(3)})
    assert fingerprint({}, {"train": empty}) != fingerprint({}, {})
