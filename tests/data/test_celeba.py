import re
from dataclasses import asdict

import pytest
import torch
from PIL import Image

from mtlcli import published
from mtlcli import recipe as recipes
from mtlcli.data.celeba import CelebA
from mtlcli.data.sources import combined
from mtlcli.engine.evaluate import evaluate
from mtlcli.engine.prepare import prepare
from mtlcli.errors import MtlError, OptionError
from mtlcli.registry import datasets

NAMES = ["5_o_Clock_Shadow", "Bald", "Young"]
LABELS = [(-1, 1, 1), (1, -1, 1), (-1, -1, -1), (1, 1, -1), (-1, 1, -1), (1, -1, 1)]
SPLIT = [0, 2, 0, 1, 0, 1]


def load(root, **options):
    return CelebA(CelebA.Options(**{"root": root, "workers": 0, **options})).load()


@pytest.fixture(params=[True, False], ids=["line break at the end", "none"])
def root(request, tmp_path):
    folder = tmp_path / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    names = [f"{n + 1:06d}.jpg" for n in range(6)]
    for n, name in enumerate(names):
        Image.new("RGB", (48, 64), (40 * n, 10, 200)).save(folder / "img_align_celeba" / name)
    # The original pads with blanks.
    rows = [f"{name} " + "".join(f"{value:3d}" for value in row) for name, row in zip(names, LABELS, strict=True)]
    end = "\n" if request.param else ""
    (folder / "list_attr_celeba.txt").write_text("\n".join(["6", " ".join(NAMES) + " ", *rows]) + end)
    parts = [f"{name} {part}" for name, part in zip(names, SPLIT, strict=True)]
    (folder / "list_eval_partition.txt").write_text("\n".join(parts) + end)
    return tmp_path


def test_is_registered_under_its_name():
    assert datasets.get("celeba") is CelebA


@pytest.mark.parametrize("cache", ["auto", "none"])
def test_every_row_is_read(root, cache):
    data = load(root, cache=cache)
    assert [(task.name, task.kind) for task in data.tasks] == [(name.lower(), "binary") for name in NAMES]
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 3, "val": 2, "test": 1}
    for part, name in enumerate(("train", "val", "test")):
        rows = [n for n in range(6) if SPLIT[n] == part]
        (batch,) = data.splits[name].batches(10)
        assert tuple(batch.inputs["image"].shape) == (len(rows), 3, 64, 64)
        assert batch.inputs["image"][:, 0, 5, 5].tolist() == pytest.approx([40 * n for n in rows], abs=3)
        for k, task in enumerate(data.tasks):
            assert batch.targets[task.name].tolist() == [int(LABELS[n][k] == 1) for n in rows]


def test_pixels_enter_as_zero_to_one(root):
    features = load(root, size=(32, 24)).features
    assert (features.mean, features.std) == ((0.0,) * 3, (1.0,) * 3)
    assert (features.channels, features.height, features.width) == (3, 32, 24)


def test_where_pictures_are_kept_does_not_change_the_fingerprint(root):
    assert load(root, cache="none").fingerprint == load(root).fingerprint
    assert load(root, size=(32, 32)).fingerprint != load(root).fingerprint


def test_a_wrong_label_is_told_with_its_line(root):
    path = root / "celeba" / "list_attr_celeba.txt"
    path.write_text(path.read_text().replace("000003.jpg  -1", "000003.jpg   0"))
    with pytest.raises(MtlError, match=r"list_attr_celeba\.txt, line 5: .*3 labels of -1 or 1; found 000003\.jpg 0"):
        load(root)


def test_a_picture_that_stands_twice_is_told(root):
    path = root / "celeba" / "list_attr_celeba.txt"
    path.write_text(path.read_text().replace("000003.jpg", "000002.jpg"))
    with pytest.raises(MtlError, match=r"list_attr_celeba\.txt, line 5: 000002\.jpg already stands in line 4"):
        load(root)


def test_a_picture_in_two_splits_is_told(root):
    path = root / "celeba" / "list_eval_partition.txt"
    code = {"0": "1"}.get(path.read_text().split()[1], "0")
    path.write_text(path.read_text().rstrip() + f"\n000001.jpg {code}\n")
    with pytest.raises(MtlError, match=rf"line 7: 000001\.jpg is in the split 'train' elsewhere; found {code}"):
        load(root)


def test_a_lost_row_is_told(root):
    path = root / "celeba" / "list_attr_celeba.txt"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))
    with pytest.raises(MtlError, match="should hold 6 pictures, as its first line says; found 5"):
        load(root)


def test_a_picture_in_no_split_is_told(root):
    path = root / "celeba" / "list_eval_partition.txt"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))
    with pytest.raises(MtlError, match=r"which split 000006\.jpg is in"):
        load(root)
    path.write_text("000001.jpg 3")
    with pytest.raises(MtlError, match=r"list_eval_partition\.txt, line 1: .*0, 1 or 2; found 000001\.jpg 3"):
        load(root)


def test_a_broken_picture_is_told(root):
    path = root / "celeba" / "img_align_celeba" / "000004.jpg"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(MtlError, match=r"list_attr_celeba\.txt, line 6: .*000004\.jpg: cannot be read"):
        load(root)
    path.unlink()
    with pytest.raises(MtlError, match=r"000004\.jpg: cannot be read: .*No such file"):
        load(root)


def test_broken_pictures_are_left_out_where_that_is_asked(root):
    whole = load(root)
    path = root / "celeba" / "img_align_celeba" / "000003.jpg"
    path.write_bytes(path.read_bytes()[:200])
    data = load(root, on_error="skip")
    (note,) = data.notes
    assert re.match(r"1 row without a usable picture was left out .*line 5: .*000003\.jpg: cannot be read", note)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 2, "val": 2, "test": 1}
    (batch,) = data.splits["train"].batches(10)
    assert batch.inputs["image"][:, 0, 5, 5].tolist() == pytest.approx([0, 160], abs=3)
    assert batch.targets["bald"].tolist() == [1, 1]
    assert data.fingerprint != whole.fingerprint
    (root / "celeba" / "img_align_celeba" / "000002.jpg").unlink()
    with pytest.raises(MtlError, match=r"celeba: should have a picture that can be read in the split 'test'; 2 rows"):
        load(root, on_error="skip")


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_a_link_out_of_the_folder_is_refused(root, on_error):
    path = root / "celeba" / "img_align_celeba" / "000003.jpg"
    path.rename(root / "elsewhere.jpg")
    path.symlink_to(root / "elsewhere.jpg")
    with pytest.raises(MtlError, match=r"line 5: .*000003\.jpg is a link to .*elsewhere\.jpg, outside of .*img_align"):
        load(root, on_error=on_error)
    path.unlink()
    path.symlink_to(path.with_name("000001.jpg"))
    assert len(load(root).splits["train"]) == 3


def test_the_folder_of_pictures_may_itself_be_a_link(root):
    folder = root / "celeba" / "img_align_celeba"
    folder.rename(root / "pictures")
    folder.symlink_to(root / "pictures")
    assert len(load(root).splits["train"]) == 3


def test_links_in_a_circle_are_a_broken_picture(root):
    path = root / "celeba" / "img_align_celeba" / "000003.jpg"
    path.unlink()
    path.symlink_to(path.name)
    with pytest.raises(MtlError, match=r"line 5: .*000003\.jpg: cannot be read: .*levels of symbolic links"):
        load(root)


def test_no_name_leads_out_of_the_folder(root):
    path = root / "celeba" / "list_attr_celeba.txt"
    path.write_text(path.read_text().replace("000003.jpg", "../../x.jpg"))
    with pytest.raises(MtlError, match=r"line 5: should name a file in img_align_celeba; found \.\./\.\./x\.jpg"):
        load(root)


def test_absent_files_are_named(tmp_path):
    with pytest.raises(OptionError, match=r"root: .*celeba should hold .*lacks list_attr_celeba\.txt.*download: true"):
        load(tmp_path)


def test_download_says_what_failed(tmp_path, monkeypatch):
    import torchvision.datasets

    def fail(*_, **__):
        raise RuntimeError("The daily quota is exceeded")

    monkeypatch.setattr(torchvision.datasets, "CelebA", fail)
    with pytest.raises(OptionError, match=r"download: .*quota"):
        load(tmp_path, download=True)


def prepared(root, **sections):
    data = {"name": "celeba", "root": str(root), "workers": 0, "size": [16, 16], "batch_size": 2}
    model = {"encoder": {"name": "cnn", "channels": [4], "hidden": 8, "grid": 1}}
    return prepare(recipes.from_values({"data": data, "model": model, **sections}, "celeba"), torch.device("cpu"))


def test_f1_is_the_metric_unless_a_recipe_says_otherwise(root):
    made = prepared(root, train={"select_by": "young.f1"})
    assert made.metrics == {name.lower(): ("f1",) for name in NAMES}
    assert prepared(root, metrics={"young": ["auroc"]}).metrics["young"] == ("auroc",)
    with pytest.raises(MtlError, match=r"train\.select_by: no 'young\.auroc'"):
        prepared(root, train={"select_by": "young.auroc"})
    assert prepared(root).data.select(("bald",)).metrics["bald"] == ("f1",)


def test_metrics_of_a_source_are_those_of_its_tasks(root):
    one = load(root)
    both = combined({"a": one, "b": one.select(("young",))}, "cycle", 2.0)
    assert both.metrics["a_bald"] == both.metrics["b"] == ("f1",)


def test_metrics_are_no_part_of_the_fingerprint(root):
    """Runs of before they were declared stay comparable."""
    data = load(root)
    assert all("metrics" not in asdict(task) for task in data.tasks)


class Ones(torch.nn.Module):
    """Says yes to everything."""

    def __init__(self, tasks):
        super().__init__()
        self.tasks = tasks

    def forward(self, inputs):
        ones = torch.ones(len(inputs["image"]))
        return {task.name: ones for task in self.tasks}, ()


def test_names_and_units_are_those_of_the_published_table(root):
    data = load(root)
    scores = evaluate(Ones(data.tasks), data.tasks, data.splits["train"], data.metrics)
    ours = {
        task: {
            name: {"unit": score.unit, "higher_is_better": score.higher_is_better} for name, score in of.metrics.items()
        }
        for task, of in scores.items()
    }
    found = published.match(published.get("celeba"), ours)
    assert found.factors.keys() == {(name.lower(), "f1") for name in NAMES}


def test_f1_is_scored(root):
    data = load(root)
    scores = evaluate(Ones(data.tasks), data.tasks, data.splits["train"], data.metrics)
    assert scores["bald"].metrics["f1"].value == pytest.approx(0.8)
