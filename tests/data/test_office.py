"""Domains with pictures of their own, in folders or as lists say."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mtlcli
from mtlcli.data.base import MultiTaskData
from mtlcli.errors import MtlError, OptionError

DOMAINS = ("amazon", "dslr", "webcam")


def picture(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 8, 3), value, np.uint8)).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of five and ten pictures a domain; a picture's brightness says which one it is."""
    for d, domain in enumerate(DOMAINS):
        for c, (name, count) in enumerate((("back pack", 5), ("mug", 10))):
            for n in range(count):
                picture(tmp_path / domain / "images" / name / f"{n}.png", 80 * d + 20 * c + n)
    return tmp_path


def load(root: Path, name: str = "office31", **options: Any) -> MultiTaskData:
    cls = mtlcli.datasets.get(name)
    return cls(cls.Options(root=root, size=(4, 4), **options)).load()


def seen(data: MultiTaskData, split: str) -> dict[str, list[tuple[int, int]]]:
    """By domain, the brightness and label of every picture."""
    found: dict[str, list[tuple[int, int]]] = {}
    for batch in data.splits[split].batches(100):
        for part in batch.parts:
            ((domain, labels),) = part.targets.items()
            values = part.inputs[f"{domain}/image"][:, 0, 0, 0].tolist()
            found.setdefault(domain, []).extend(zip(values, labels.tolist(), strict=True))
    return found


def test_folders_are_split_within_classes(root: Path) -> None:
    data = load(root)
    assert [(task.name, task.kind, task.classes) for task in data.tasks] == [
        (domain, "multiclass", ("back pack", "mug")) for domain in DOMAINS
    ]
    for split, (packs, mugs) in {"train": (3, 6), "val": (1, 2), "test": (1, 2)}.items():
        for rows in seen(data, split).values():
            labels = [label for _, label in rows]
            assert (labels.count(0), labels.count(1)) == (packs, mugs)
    for d, domain in enumerate(DOMAINS):
        everything = chain(*(seen(data, split)[domain] for split in ("train", "val", "test")))
        expected = [(80 * d + n, 0) for n in range(5)] + [(80 * d + 20 + n, 1) for n in range(10)]
        assert sorted(everything) == expected
    assert load(root).fingerprint == data.fingerprint != load(root, split_seed=1).fingerprint


def test_lists_say_which_file_is_where(root: Path) -> None:
    for domain in DOMAINS:
        for n, split in enumerate(("train", "val", "test")):
            lines = [f"{domain}/images/mug/{n}.png 1", f"{domain}/images/back pack/{n}.png 0"]
            (root / f"{domain}_{split}.txt").write_text("\n".join(lines))  # without a line break at the end
    data = load(root)
    assert seen(data, "val") == {domain: [(80 * d + 21, 1), (80 * d + 1, 0)] for d, domain in enumerate(DOMAINS)}
    (root / "dslr_val.txt").write_text("dslr/images/mug/1.png 1\n../../etc/passwd 0\n")
    with pytest.raises(MtlError, match=r"dslr_val\.txt, line 2: .*found \.\./\.\./etc/passwd 0"):
        load(root)
    (root / "dslr_val.txt").write_text("dslr/images/mug/1.png 0\n")
    with pytest.raises(MtlError, match="class 0 is 'back pack' elsewhere; found 'mug'"):
        load(root)


def test_the_folder_of_the_real_world_may_have_a_space(tmp_path: Path) -> None:
    for domain in ("Art", "Clipart", "Product", "Real World"):
        for n in range(5):
            picture(tmp_path / domain / "Mug" / f"{n}.jpg", 20 * n)
    data = load(tmp_path, "office_home")
    assert [task.name for task in data.tasks] == ["Art", "Clipart", "Product", "Real_World"]
    assert [len(data.splits[split]) for split in ("train", "val", "test")] == [12, 4, 4]


def test_what_is_missing_is_said(root: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="should be a folder with amazon, dslr, webcam"):
        load(tmp_path / "nowhere")
    with pytest.raises(OptionError, match="should hold a folder 'Art'"):
        load(root, "office_home")
    broken = root / "dslr" / "images" / "mug" / "3.png"
    broken.unlink()
    (tmp_path.parent / "outside.png").touch()
    broken.symlink_to(tmp_path.parent / "outside.png")
    with pytest.raises(MtlError, match=r"mug/3\.png: is a link to .*outside\.png, outside of"):
        load(root)
    broken.unlink()
    broken.symlink_to(broken.name)
    with pytest.raises(MtlError, match=r"mug/3\.png: cannot be read: .*levels of symbolic links"):
        load(root)
    broken.unlink()
    broken.write_bytes(b"no picture")
    with pytest.raises(MtlError, match=r"mug/3\.png: cannot be read: .*; .*data\.on_error: skip"):
        load(root)


def test_pictures_that_cannot_be_read_are_left_out_where_that_is_asked(root: Path) -> None:
    for n in (3, 5):
        (root / "dslr" / "images" / "mug" / f"{n}.png").write_bytes(b"no picture")
    (root / "webcam" / "images" / "mug" / "0.png").write_bytes(b"no picture")
    data = load(root, on_error="skip")
    dslr, webcam = data.notes
    assert dslr.startswith("dslr: 2 rows without a usable picture were left out (data.on_error: skip): ")
    assert webcam.startswith("webcam: 1 row without a usable picture was left out (data.on_error: skip): ")
    everything = {d: list(chain(*(seen(data, split)[d] for split in ("train", "val", "test")))) for d in DOMAINS}
    assert {domain: len(rows) for domain, rows in everything.items()} == {"amazon": 15, "dslr": 13, "webcam": 14}
    # What is left keeps its label.
    assert all(label == int(value >= 100) for value, label in everything["dslr"])


def test_a_name_in_a_list_that_is_too_long_is_a_broken_picture(root: Path) -> None:
    for domain in DOMAINS:
        for n, split in enumerate(("train", "val", "test")):
            (root / f"{domain}_{split}.txt").write_text(f"{domain}/images/mug/{n}.png 0\n")
    (root / "dslr_train.txt").write_text(f"dslr/images/mug/{'x' * 300}.png 0\ndslr/images/mug/4.png 0\n")
    with pytest.raises(MtlError, match=r"xxx\.png: cannot be read: .*name too long"):
        load(root)
    assert len(load(root, on_error="skip").splits["train"]) == 3
