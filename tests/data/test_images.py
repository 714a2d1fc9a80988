import multiprocessing
import os
import signal

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from mtlcli import recipe as recipes
from mtlcli.data.imagefiles import FileSplit
from mtlcli.data.images import Images
from mtlcli.engine.prepare import load_data
from mtlcli.engine.train import train
from mtlcli.errors import MtlError, OptionError
from mtlcli.options import check
from mtlcli.registry import datasets

COUNT = 40
TASKS = {
    "kind": {"kind": "multiclass"},
    "bright": {"kind": "binary"},
    "level": {"kind": "regression", "unit": "steps"},
}


@pytest.fixture
def table():
    """What labels.csv holds: picture n is grey, of brightness 6 n."""
    return {
        "file": [f"sub/{n:02d}.png" for n in range(COUNT)],
        "kind": [("cat", "dog", "owl")[n % 3] for n in range(COUNT)],
        "bright": [int(n >= COUNT // 2) for n in range(COUNT)],
        "level": [None if n == 7 else float(n) for n in range(COUNT)],
        "person": [f"p{n // 4}" for n in range(COUNT)],
        "part": [("train", "train", "train", "val", "test")[n % 5] for n in range(COUNT)],
    }


@pytest.fixture
def folder(tmp_path, table):
    (tmp_path / "pictures" / "sub").mkdir(parents=True)
    for n, name in enumerate(table["file"]):
        Image.new("L", (20, 12), 6 * n).save(tmp_path / "pictures" / name)
    pl.DataFrame(table).write_csv(tmp_path / "labels.csv")
    return tmp_path


def load(folder, **options):
    given = {
        "path": str(folder / "pictures"),
        "labels": str(folder / "labels.csv"),
        "tasks": TASKS,
        "size": [8, 10],
        "split": {"column": "part"},
        "workers": 0,
    }
    built, problems = check(Images.Options, given | options)
    assert not problems, problems
    return Images(built).load()


def rewrite(folder, table, **changes):
    """Other values in some rows: `file={3: "x.png"}`."""
    changed = {name: [changes.get(name, {}).get(n, v) for n, v in enumerate(values)] for name, values in table.items()}
    pl.DataFrame(changed).write_csv(folder / "labels.csv")


def grey(split):
    """The numbers of the pictures in a split, by their brightness."""
    return torch.cat([batch.inputs["image"][:, 0, 0, 0] for batch in split.batches(7)]).div(6).int().tolist()


# -- what is read ------------------------------------------------------------------------------------------------------


def test_is_registered_under_its_name():
    assert datasets.get("images") is Images


@pytest.mark.parametrize("cache", ["memory", "none", "auto"])
@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_and_labels_belong_together(folder, cache, workers):
    data = load(folder, cache=cache, workers=workers)
    assert [(task.name, task.kind, task.classes) for task in data.tasks] == [
        ("kind", "multiclass", ("cat", "dog", "owl")),
        ("bright", "binary", ("0", "1")),
        ("level", "regression", ()),
    ]
    for name, places in (("train", (0, 1, 2)), ("val", (3,)), ("test", (4,))):
        rows = [n for n in range(COUNT) if n % 5 in places]
        split = data.splits[name]
        assert isinstance(split, FileSplit) == (cache == "none")
        assert grey(split) == rows
        batches = list(split.batches(7))
        assert tuple(batches[0].inputs["image"].shape[1:]) == (3, 8, 10)
        assert batches[0].inputs["image"].dtype == torch.uint8
        labels = {task: torch.cat([batch.targets[task] for batch in batches]) for task in TASKS}
        assert labels["kind"].tolist() == [n % 3 for n in rows]
        assert labels["bright"].tolist() == [int(n >= 20) for n in rows]
        level = data.tasks[2].in_unit(labels["level"])
        assert [round(value) for n, value in zip(rows, level.tolist(), strict=True) if n != 7] == [
            n for n in rows if n != 7
        ]
        assert split.labelled(data.tasks[2]) == sum(n != 7 for n in rows)


def test_parquet_and_other_options(folder, table):
    pl.DataFrame(table).write_parquet(folder / "labels.parquet")
    data = load(folder, labels=str(folder / "labels.parquet"), channels=1)
    assert data.features.channels == 1
    assert next(data.splits["train"].batches(2)).inputs["image"].shape == (2, 1, 8, 10)


def test_random_splits_are_seeded_and_keep_keys_together(folder):
    by = {"val": 0.2, "test": 0.2, "by": "person", "seed": 1}
    data = load(folder, split=by)
    people = {name: {n // 4 for n in grey(split)} for name, split in data.splits.items()}
    assert sum(map(len, people.values())) == COUNT // 4
    assert len(data.splits["train"]) == 24
    assert load(folder, split=by).fingerprint == data.fingerprint
    assert load(folder, split={**by, "seed": 2}).fingerprint != data.fingerprint


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_keys_are_held_out_as_a_whole(folder, cache):
    split = load(folder, cache=cache, split={"val": 0.2, "test": 0.2, "by": "person", "seed": 1}).splits["train"]
    kept, given = ({n // 4 for n in grey(part)} for part in split.hold_out(0.5, seed=0))
    assert len(kept) == len(given) == 3
    assert kept.isdisjoint(given)


def test_the_fingerprint_follows_the_content_alone(folder):
    first = load(folder).fingerprint
    assert load(folder, cache="none", workers=2).fingerprint == first
    assert load(folder, size=[9, 9]).fingerprint != first
    Image.new("L", (20, 12), 255).save(folder / "pictures" / "sub" / "00.png")
    assert load(folder).fingerprint != first


def test_paths_are_taken_from_the_recipes_folder(folder, monkeypatch):
    monkeypatch.chdir("/")
    data = {"name": "images", "path": "pictures", "labels": "labels.csv", "tasks": TASKS, "size": [8, 8], "workers": 0}
    values = {"data": data, "model": {"encoder": {"name": "cnn", "channels": [4], "grid": 1}}}
    loaded = recipes.from_values(values, "recipe", folder=folder)
    assert len(load_data(loaded).tasks) == 3


# -- batches without a cache -------------------------------------------------------------------------------------------


def rows_of(batches):
    return [batch.inputs["image"][:, 0, 0, 0].div(6).int().tolist() for batch in batches]


@pytest.mark.parametrize("workers", [0, 2])
def test_decoded_batches_are_those_of_a_split_in_memory(folder, workers):
    kept = load(folder, cache="memory").splits["train"].loader(5, seed=3)
    read = load(folder, cache="none", workers=workers).splits["train"].loader(5, seed=3)
    assert len(kept) == len(read) == 5
    for epoch in (0, 1):
        assert rows_of(kept.epoch(epoch)) == rows_of(read.epoch(epoch))
    assert rows_of(read.epoch(1, first_step=3)) == rows_of(kept.epoch(1))[3:]
    assert rows_of(map(read.endless, (0, 1, 1, 7, 8))) == rows_of(map(kept.endless, (0, 1, 1, 7, 8)))


def test_decoding_leaves_the_global_generator_alone(folder):
    split = load(folder, cache="none", workers=2).splits["train"]
    state = torch.get_rng_state()
    list(split.loader(5, seed=3).epoch(0))
    assert torch.get_rng_state().equal(state)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_outlive_a_signal_to_all_processes(folder, number):
    """A terminal and a cluster send it to every process; the main one saves and stops after its step."""
    batches = load(folder, cache="none", workers=1).splits["train"].loader(5, seed=3).epoch(0)
    others = set(multiprocessing.active_children())
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - others
    os.kill(worker.pid, number)
    assert len(list(batches)) == 4


def test_ranks_share_every_batch(folder):
    split = load(folder, cache="none").splits["train"]
    whole = rows_of(split.loader(6, seed=1).epoch(0))
    parts = [rows_of(split.loader(6, 1, rank, 2).epoch(0)) for rank in (0, 1)]
    assert [sorted(a + b) for a, b in zip(*parts, strict=True)] == [sorted(rows) for rows in whole]


def test_files_are_held_out_like_rows(folder):
    memory, files = (load(folder, cache=cache).hold_out(0.25, 0) for cache in ("memory", "none"))
    for name in ("train", "held_out"):
        assert grey(memory.splits[name]) == grey(files.splits[name])
    assert list(files.select(("level",)).splits["val"].index.targets) == ["level"]


def test_a_file_that_goes_while_training_is_named(folder):
    split = load(folder, cache="none").splits["test"]
    (folder / "pictures" / "sub" / "09.png").unlink()
    with pytest.raises(MtlError, match=r"09\.png: cannot be read: .*it could be read when the run began"):
        list(split.batches(10))


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_error", ["stop", "skip"])
@pytest.mark.parametrize(
    "name", ["/etc/hostname", "../secret.png", "sub/../../secret.png", "link.png", "out/secret.png"]
)
def test_no_name_leads_out_of_the_folder(folder, table, tmp_path_factory, name, on_error):
    outside = tmp_path_factory.mktemp("outside")
    for place in (outside / "secret.png", folder / "secret.png"):
        Image.new("L", (8, 8)).save(place)
    os.symlink(outside / "secret.png", folder / "pictures" / "link.png")
    os.symlink(outside, folder / "pictures" / "out")
    rewrite(folder, table, file={3: name})
    with pytest.raises(MtlError, match=r"labels\.csv, row 4 .*(should name a file below|outside of)"):
        load(folder, on_error=on_error)


def test_a_link_within_the_folder_is_followed(folder, table):
    os.symlink(folder / "pictures" / "sub" / "03.png", folder / "pictures" / "link.png")
    rewrite(folder, table, file={3: "link.png"})
    assert len(load(folder).splits["val"]) == 8


def broken(folder, table):
    """Five rows without a usable picture: absent, cut, no image, no name, named twice."""
    (folder / "pictures" / "sub" / "05.png").unlink()
    whole = folder / "pictures" / "sub" / "10.png"
    Image.effect_noise((40, 40), 50).save(whole)
    whole.write_bytes(whole.read_bytes()[:300])
    (folder / "pictures" / "sub" / "15.png").write_text("no image")
    rewrite(folder, table, file={20: None, 25: "sub/00.png"})


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_rows_without_a_picture_are_counted(folder, table, cache):
    broken(folder, table)
    data = load(folder, on_error="skip", cache=cache, workers=2)
    assert grey(data.splits["train"]) == [n for n in range(COUNT) if n % 5 < 3 and n not in (5, 10, 15, 20, 25)]
    (note,) = data.notes
    assert note.startswith("5 rows without a usable picture were left out (data.on_error: skip): ")
    assert data.splits["train"].labelled(data.tasks[0]) == 19


def without(folder, rows):
    for n in rows:
        (folder / "pictures" / "sub" / f"{n:02d}.png").unlink()


def test_labels_of_rows_that_are_left_out_do_not_count(folder):
    """Neither in mean and scale, nor in class weights, nor for what is known of the classes."""
    train = [n for n in range(COUNT) if n % 5 < 3]
    without(folder, [n for n in train if n > 25 or n % 3 == 2])
    left = [n for n in train if n <= 25 and n % 3 < 2]
    tasks = {**TASKS, "kind": {"kind": "multiclass", "class_weights": "balanced"}}
    data = load(folder, on_error="skip", tasks=tasks)
    kind, _, level = data.tasks
    known = np.array([n for n in left if n != 7], float)
    assert (level.mean, level.scale) == pytest.approx((known.mean(), known.std()))
    assert data.splits["train"].targets["level"].nanmean().item() == pytest.approx(0, abs=1e-6)
    counts = [sum(n % 3 == c for n in left) for c in range(3)]
    assert counts[2] == 0
    assert kind.class_weights == pytest.approx([len(left) / (3 * max(1, count)) for count in counts])
    assert any("no training row has the class owl" in note for note in data.notes)


def test_one_class_among_the_rows_that_are_left_is_told(folder):
    without(folder, [n for n in range(COUNT // 2, COUNT) if n % 5 < 3])
    with pytest.raises(OptionError, match=r"every training row has the label '0' \(column 'bright'\)"):
        load(folder, on_error="skip")


def odd(folder, table, kind):
    """A name in row 4 that the system refuses, and what it says."""
    if kind == "loop":
        os.symlink("loop.png", folder / "pictures" / "loop.png")
        rewrite(folder, table, file={3: "loop.png"})
        return "Too many levels of symbolic links"
    rewrite(folder, table, file={3: "x" * 300 + ".png"})
    return "File name too long"


@pytest.mark.parametrize("kind", ["loop", "long"])
def test_a_name_that_the_system_refuses_is_a_fault_of_its_row(folder, table, kind):
    reason = odd(folder, table, kind)
    with pytest.raises(MtlError, match=rf"labels\.csv, row 4 \(line 5\): .*cannot be read: {reason}; .*on_error: skip"):
        load(folder)
    data = load(folder, on_error="skip")
    assert len(data.splits["val"]) == 7
    assert data.notes[0].startswith("1 row without a usable picture was left out (data.on_error: skip): ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file": {5: "sub/absent.png"}}, r"row 6 \(line 7\): there is no file .*absent\.png; .*on_error: skip"),
        ({"file": {5: None}}, r"row 6 \(line 7\): names no file in the column 'file'"),
        ({"file": {5: "sub/00.png"}}, r"row 6 \(line 7\): .*00\.png already stands in row 1"),
        ({"file": {5: "sub//00.png"}}, r"row 6 \(line 7\): .*already stands in row 1"),
        ({"part": {5: "somewhere"}}, r"row 6 .*train, val"),
    ],
)
def test_a_bad_row_is_told(folder, table, changes, message):
    rewrite(folder, table, **changes)
    with pytest.raises(MtlError, match=rf"labels\.csv, {message}"):
        load(folder)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_picture_is_told_with_row_and_file(folder, workers):
    path = folder / "pictures" / "sub" / "11.png"
    path.write_bytes(b"\x89PNG\r\n")
    with pytest.raises(MtlError, match=r"labels\.csv, row 12 \(line 13\): .*11\.png: cannot be read"):
        load(folder, workers=workers)


@pytest.mark.parametrize(
    ("options", "option", "message"),
    [
        ({"path": "/nowhere/at/all"}, "path", "should be a folder"),
        ({"file_column": "fil"}, "file_column", "did you mean 'file'"),
        ({"file_column": "kind"}, "file_column", "label of a task"),
        ({"tasks": {"knd": {"kind": "multiclass"}}}, "tasks.knd", "did you mean 'kind'"),
        ({"split": {"test_path": "x.csv"}}, "split.test_path", "split.column"),
    ],
)
def test_an_option_that_does_not_fit_is_told(folder, options, option, message):
    with pytest.raises(OptionError, match=message) as error:
        load(folder, **options)
    assert error.value.option == option


def test_a_size_is_two_numbers():
    _, problems = check(Images.Options, {"path": "a", "labels": "b", "tasks": TASKS, "size": [0, 4]})
    assert "at least 1" in problems[0].message


# -- augmentation ------------------------------------------------------------------------------------------------------


def test_augmentation_is_for_training_alone(folder, tmp_path):
    data = {
        "name": "images",
        "path": str(folder / "pictures"),
        "labels": str(folder / "labels.csv"),
        "tasks": TASKS,
        "size": [8, 10],
        "split": {"column": "part"},
        "augment": ["flip", "crop", "color"],
        "cache": "none",
        "workers": 2,
        "batch_size": 6,
    }
    encoder = {"name": "cnn", "channels": [4, 8], "hidden": 8, "grid": 1}
    values = {"data": data, "model": {"encoder": encoder}, "train": {"epochs": 2}}
    results = []
    for cache in ("none", "memory"):
        loaded = recipes.from_values({**values, "data": {**data, "cache": cache}}, "recipe")
        results.append(train(loaded, "recipe", out=tmp_path / cache, device="cpu")[1])
    # The same draws for the same rows, wherever the pictures are kept.
    assert results[0]["tasks"] == results[1]["tasks"]
    assert results[0]["fingerprint"] == results[1]["fingerprint"]
