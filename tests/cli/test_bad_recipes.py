"""A mistake in a recipe becomes one message: where, what was found, what is allowed; and nothing is left behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from harness import RECIPE, Mtl


def refused(mtl: Mtl, *arguments: object) -> str:
    """Run a command that must be refused; its message."""
    before = sorted(Path().rglob("*"))
    done = mtl(*arguments)
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith(("error: ", "Usage: "))
    assert "Traceback" not in done.err
    assert sorted(Path().rglob("*")) == before, "something was left behind"
    return done.err


def in_recipe(mtl: Mtl, *changes: tuple[str, str], extra: str = "") -> str:
    """The message about the toy recipe with texts replaced in it, the same for train and check."""
    text = RECIPE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    Path("toy.yaml").write_text(text + extra)
    message = refused(mtl, "train", "toy.yaml")
    assert refused(mtl, "check", "toy.yaml") == message
    return message


ONE = [  # (text of the recipe, what stands there instead, line, path, words that the message must hold)
    # unknown keys, at every depth
    ("plugins:", "metrics: {}\nplugin: []\nplugins:", 8, "plugin", "unknown key; did you mean 'plugins'?"),
    ("batch_size:", "batchsize:", 1, "data.batchsize", "did you mean 'batch_size'?; known here: rows"),
    ("encoder:", "encodr:", 2, "model.encodr", "did you mean 'encoder'?; known here: encoder, trunk, heads"),
    ("widths:", "width:", 2, "model.encoder.width", "did you mean 'widths'?"),
    ("loss: ew", "los: ew", 3, "weighting.los", "did you mean 'loss'?; known here: loss, gradient"),
    ("gradient: sum", "gradient: {evry: 1}", 3, "weighting.gradient.evry", "did you mean 'every'?"),
    ("lr:", "rate:", 4, "optimizer.rate", "known here: lr"),
    ("epochs:", "epoch:", 6, "train.epoch", "did you mean 'epochs'?"),
    ("model: {", "model: {heads: {hiden: []}, ", 2, "model.heads.hiden", "did you mean 'hidden'?"),
    # wrong types
    ("epochs: 2", "epochs: true", 6, "train.epochs", "should be a whole number >= 1; found true"),
    ("epochs: 2", 'epochs: "3"', 6, "train.epochs", "found '3'; leave the quotes out"),
    ("epochs: 2", "epochs: three", 6, "train.epochs", "found 'three'"),
    ("epochs: 2", "epochs: [3]", 6, "train.epochs", "found [3]"),
    ("epochs: 2", "epochs: {a: 3}", 6, "train.epochs", "found {a: 3}"),
    ("epochs: 2", "epochs:", 6, "train.epochs", "should be a whole number >= 1; found null"),
    ("epochs: 2", "epochs: 2.5", 6, "train.epochs", "found 2.5"),
    ("epochs: 2", "epochs: 1e3", 6, "train.epochs", "found 1000.0; write 1000"),
    ("epochs: 2", "compile: yes", 6, "train.compile", "should be true or false; found 'yes'; write true"),
    ("epochs: 2", "select_by: 3", 6, "train.select_by", "should be text; found 3; put it in quotes"),
    ("epochs: 2", "precision: bf16", 6, "train.precision", "should be one of auto, float32, bfloat16; found 'bf16'"),
    ("epochs: 2", "seed: 2020-01-01", 6, "train.seed", "found '2020-01-01'"),
    ("widths: [8]", "widths: {a: 8}", 2, "model.encoder.widths", "should be a list"),
    ("widths: [8]", "widths: 8", 2, "model.encoder.widths", "should be a list (each a whole number >= 1); found 8"),
    ("widths: [8]", "widths: [8, x]", 2, "model.encoder.widths.1", "found 'x'"),
    ("{name: mlp, widths: [8]}", "[mlp]", 2, "model.encoder", "should be a map with a `name`; found [mlp]"),
    ("{epochs: 2, log_every_steps: 1}", "[1, 2]", 6, "train", "should be a map with the keys epochs, seed"),
    ("{loss: ew, gradient: sum}", "ew", 3, "weighting", "should be a map with the keys loss, gradient; found 'ew'"),
    ("{name: toy, batch_size: 32}", "3", 1, "data", "should be a map with a `name`; found 3"),
    ("{name: constant}", "{name: null}", 5, "schedule.name", "is required: one of constant, cosine"),
    ("lr: 0.01", "betas: 0.9", 4, "optimizer.betas", "should be a list of 2 (a number"),
    ("lr: 0.01", "betas: [0.9]", 4, "optimizer.betas.1", "is required: a number"),
    # out of range, and odd numbers
    ("epochs: 2", "epochs: 0", 6, "train.epochs", "should be a whole number >= 1; found 0"),
    ("epochs: 2", "seed: -1", 6, "train.seed", "found -1"),
    ("epochs: 2", "seed: 99999999999999999999999", 6, "train.seed", "< 2147483648; found 9999999"),
    ("lr: 0.01", "lr: .inf", 4, "optimizer.lr", "should be a number > 0; found .inf"),
    ("lr: 0.01", "lr: .nan", 4, "optimizer.lr", "should be a number > 0; found .nan"),
    ("lr: 0.01", "lr: 0", 4, "optimizer.lr", "should be a number > 0; found 0"),
    ("batch_size: 32", "held_out: 1.0", 1, "data.held_out", "< 1; found 1.0"),
    ("widths: [8]", "widths: [8, 0]", 2, "model.encoder.widths.1", "should be a whole number >= 1; found 0"),
    ("batch_size: 32", "tasks: []", 1, "data.tasks", "at least 1"),
    # unknown names
    ("name: toy", "name: tay", 1, "data.name", "no dataset 'tay'; did you mean 'toy'?; there are: "),
    ("name: toy, ", "", 1, "data.name", "is required: one of "),
    ("name: mlp", "name: mpl", 2, "model.encoder.name", "no encoder 'mpl'; did you mean 'mlp'?"),
    ("model: {", "model: {trunk: mmeo, ", 2, "model.trunk.name", "no trunk 'mmeo'; did you mean 'mmoe'?"),
    ("loss: ew", "loss: igb1", 3, "weighting.loss.name", "no loss weighting 'igb1'; did you mean 'igb_v1'?"),
    ("sum", "{name: pcgard}", 3, "weighting.gradient.name", "no gradient weighting 'pcgard'; did you mean 'pcgrad'?"),
    ("adam", "adma", 4, "optimizer.name", "no optimizer 'adma'; did you mean 'adam'?"),
    ("{name: constant}", "cosin", 5, "schedule.name", "no schedule 'cosin'; did you mean 'cosine'?"),
    ("name: toy", "name: [toy]", 1, "data.name", "no dataset"),
    # names that only the data know
    ("batch_size: 32", "tasks: [yes, amont]", 1, "data.tasks", "no task 'amont'; did you mean 'amount'?"),
    ("batch_size: 32", "tasks: [yes, yes]", 1, "data.tasks", "each task once"),
    ("epochs: 2", "select_by: yes.aurocc", 6, "train.select_by", "did you mean 'yes.auroc'?"),
    # combinations
    ("loss: ew", "loss: needs_held_out", 3, "data.held_out", "'needs_held_out' needs held-out rows; set it above 0"),
    ("sum", "{name: graddrop, every: 2}", 3, "weighting.gradient.every", "should be 1: 'graddrop'"),
    ("sum", "{name: graddrop, wrt: last_shared}", 3, "weighting.gradient.wrt", "should be params or representation: "),
    ("sum", "{name: db_mtl, wrt: representation}", 3, "weighting.gradient.wrt", "should be params: the gradients"),
    ("sum", "{name: modo}", 1, "data.extra_batches", "should be 2: 'modo' needs gradients of batches that"),
    ("loss: ew", "loss: {name: hydalearn, batch: held_out}", 1, "data.held_out", "'hydalearn' needs held-out rows"),
    (
        "loss: ew, gradient: sum",
        "loss: {name: hydalearn, negative: keep}, gradient: {name: mgda, normalise: loss}",
        3,
        "weighting",
        "'mgda' cannot go with 'hydalearn': it divides by weighted losses, which can be negative there; use normalise",
    ),
    ("loss: ew", "loss: constant", 3, "weighting.loss.weights", "is required: a map of names to a number"),
]


@pytest.mark.parametrize(("old", "new", "line", "path", "words"), ONE, ids=lambda value: str(value)[:40])
def test_one_mistake(mtl: Mtl, old: str, new: str, line: int, path: str, words: str) -> None:
    message = in_recipe(mtl, (old, new))
    assert words in message
    assert f"{path}: " in message
    if not path.startswith("data.") or "needs" not in words:  # that key is not in the file; the section's line is told
        assert f"error: toy.yaml, line {line}: {path}: " in message
    assert message.count("\n") == 1


def test_mistakes_in_metrics(mtl: Mtl) -> None:
    for metrics, path, words in [
        ("{yes: [aurocc]}", "metrics.yes", "no metric 'aurocc'; did you mean 'auroc'?"),
        ("{yess: [auroc]}", "metrics.yess", "no task 'yess'; did you mean 'yes'?"),
        ("{amount: [auroc]}", "metrics.amount", "does not fit task 'amount' (regression); these do: mae, rmse, r2"),
        ("{yes: auroc}", "metrics.yes", "should be a list (each text); found 'auroc'"),
        ("[auroc]", "metrics", "should be a map of names to a list"),
    ]:
        message = in_recipe(mtl, extra=f"metrics: {metrics}\n")
        assert f"toy.yaml, line 8: {path}: " in message
        assert words in message


def test_a_trunk_without_a_cut(mtl: Mtl) -> None:
    message = in_recipe(mtl, ("model: {", "model: {trunk: no_cut, "), ("sum", "{name: mgda, wrt: representation}"))
    assert "toy.yaml, line 3: weighting.gradient.wrt: " in message
    assert "trunk 'no_cut' has none (these have: hps" in message
    assert "use wrt: params" in message


def test_a_method_that_reads_nothing_extra_is_free_to_take_any_anchor(mtl: Mtl) -> None:
    assert mtl("check", "toy.yaml", "--set", "weighting.gradient={name: mgda, wrt: representation}").code == 0


def test_all_mistakes_at_once(mtl: Mtl) -> None:
    Path("toy.yaml").write_text(
        RECIPE.replace("batch_size: 32", "batch_size: x").replace("epochs: 2", "epochs: 0, sed: 1") + "trian: {}\n"
    )
    message = refused(mtl, "train", "toy.yaml", "--set", "optimizer.lr=-1", "--set", "model.encoder.norm=bach")
    first, *rest = message.splitlines()
    assert first == "error: toy.yaml: 6 problems"
    in_order = [
        "toy.yaml, line 1: data.batch_size: ",
        "toy.yaml, line 6: train.epochs: ",
        "toy.yaml, line 6: train.sed: ",
        "toy.yaml, line 8: trian: ",
        "--set model.encoder.norm=bach: model.encoder.norm: ",
        "--set optimizer.lr=-1: optimizer.lr: ",
    ]
    for line, place in zip(rest, in_order, strict=True):
        assert line.startswith(f"  {place}"), place


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trian.epochs=3", "--set trian.epochs=3: trian: unknown key; did you mean 'train'?"),
        ("train.epoch=3", "--set train.epoch=3: train.epoch: unknown key; did you mean 'epochs'?"),
        ("model.encoder.x.y=3", "--set model.encoder.x.y=3: model.encoder.x: unknown key"),
        ("train.epochs", "--set train.epochs: should be PATH=VALUE, such as --set train.epochs=3"),
        ("=3", "should be PATH=VALUE"),
        ("train..epochs=3", "should be PATH=VALUE"),
        ("train.epochs.x=3", "--set train.epochs.x=3: train.epochs is 2, not a map with keys"),
        ("plugins.0=x.py", "plugins is ["),
        ("train.epochs=", "--set train.epochs=: train.epochs: should be a whole number >= 1; found null"),
        ("train.epochs=[1", "--set train.epochs=[1, line 1, column 3: is not valid YAML"),
        ("train.epochs=!!python/name:os.system", "only plain values are read and nothing is executed"),
        ("data=tay", "--set data=tay: data.name: no dataset 'tay'; did you mean 'toy'?"),
        ("weighting.loss.nam=uw", "--set weighting.loss.nam=uw: weighting.loss.nam: unknown key"),
    ],
)
def test_a_wrong_override(mtl: Mtl, override: str, words: str) -> None:
    message = refused(mtl, "train", "toy.yaml", "--set", override)
    assert words in message
    assert refused(mtl, "check", "toy.yaml", "--set", override) == message
    assert refused(mtl, "compare", "toy.yaml", "--set", override) == message


def test_several_wrong_overrides_are_all_named(mtl: Mtl) -> None:
    message = refused(mtl, "check", "toy.yaml", "--set", "a", "--set", "train.epochs.x=3", "--set", "b=[")
    assert [line.removeprefix("error: ").split(": ")[0] for line in message.splitlines()] == [
        "--set a",
        "--set train.epochs.x=3",
        "--set b=[, line 1, column 2",
    ]


def test_an_override_reaches_its_key_alone(mtl: Mtl) -> None:
    Path("toy.yaml").write_text(
        RECIPE.replace("weighting: {loss: ew", "weighting: {loss: igb_v1").replace("epochs: 2", "epochs: &two 2")
    )
    done = mtl("check", "toy.yaml", "--json", "--set", "weighting.loss.base_epoch=3", "--set", "train.epochs=4")
    assert done.code == 0, done.err
    assert '"base_epoch": 3' in done.out
    assert '"epochs": 4' in done.out


# -- files that are not a recipe ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "x.yaml: is empty"),
        (b"# only\n# comments\n", "x.yaml: is empty"),
        (b"---\n", "x.yaml: is empty"),
        (b"- a\n- b\n", "should be a map with the keys data, model"),
        (b"hello\n", "should be a map with the keys data, model"),
        (b"data: {name: toy\ntrain: 3\n", "x.yaml, line 2, column 6: is not valid YAML"),
        (b"data:\n\tname: toy\n", "x.yaml, line 2, column 1: is not valid YAML"),
        (b"a: 1\n---\nb: 2\n", "x.yaml, line 2, column 1: is not valid YAML"),
        (b"a: *nowhere\n", "x.yaml, line 1, column 4: is not valid YAML"),
        (b"a: &a {b: *a}\n", "an alias stands inside what it names"),
        (b"train:\n  epochs: 1\n  epochs: 2\n", "x.yaml, line 3: the key 'epochs' stands a second time"),
        (b"plugins: [{a: 1, a: 2}]\n", "x.yaml, line 1: the key 'a' stands a second time"),
        (b"? [a, b]\n: 1\n", "x.yaml, line 1: a key should be text"),
        (bytes(range(256)), "x.yaml: should be a text file in UTF-8"),
        (b"a: 1\nb: \x01\n", "x.yaml, line 2: is not YAML text: it holds the control character 0x1"),
        (b"\x7fELF\x02\x01\x01\x00", "x.yaml, line 1: is not YAML text"),
        (b"[" * 5000, "x.yaml: is nested too deeply"),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_a_file_that_is_no_recipe(mtl: Mtl, content: bytes, words: str) -> None:
    Path("x.yaml").write_bytes(content)
    assert words in refused(mtl, "train", "x.yaml")


def test_aliases_that_multiply_are_refused_quickly(mtl: Mtl) -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    Path("x.yaml").write_text("\n".join(lines))
    assert "do its aliases multiply one another" in refused(mtl, "train", "x.yaml")


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system ['touch harm']", "!!python/name:os.system", "!mine {a: 1}"]
)
def test_a_tag_executes_nothing(mtl: Mtl, tag: str) -> None:
    message = in_recipe(mtl, extra=f"metrics: {tag}\n")
    assert "toy.yaml, line 8, column 10: only plain values are read and nothing is executed" in message
    assert not Path("harm").exists()


def test_no_file(mtl: Mtl) -> None:
    assert "nope.yaml: no such file; . holds toy.yaml" in refused(mtl, "train", "nope.yaml")
    assert "nowhere/nope.yaml: no such file" in refused(mtl, "check", "nowhere/nope.yaml")
    Path("folder").mkdir()
    assert "folder: is a folder; name a YAML file" in refused(mtl, "train", "folder")
    Path("folder/x.yaml").touch()
    assert "such as folder/x.yaml" in refused(mtl, "train", "folder")
    assert "toy.yaml/x: cannot be read: Not a directory" in refused(mtl, "train", "toy.yaml/x")
    assert "File name too long" in refused(mtl, "train", "x" * 300)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read(mtl: Mtl) -> None:
    Path("toy.yaml").chmod(0)
    assert "toy.yaml: cannot be read: Permission denied" in refused(mtl, "train", "toy.yaml")


def test_anchors_and_merge_keys_work(mtl: Mtl) -> None:
    Path("toy.yaml").write_text(
        RECIPE.replace("train: {epochs: 2", "train: {<<: {epochs: 7, seed: 5}, epochs: &n 3")
        .replace("[8]", "[*n, *n]")
        # an anchor must come first
        .replace("model:", "metrics: {yes: [auroc]}\nmodel:")
        .replace("[*n, *n]", "[8]")
    )
    done = mtl("check", "toy.yaml", "--json")
    assert done.code == 0, done.err
    assert '"epochs": 3' in done.out
    assert '"seed": 5' in done.out
    message = in_recipe(mtl, ("train: {epochs: 2", "train: {<<: {epochs: 0, sed: 5}"))
    assert "toy.yaml, line 6: train.epochs: should be a whole number >= 1; found 0" in message
    assert "toy.yaml, line 6: train.sed: unknown key" in message


# -- plugins -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.py", "import json\nx = 1 / 0\n", "fails to import: ZeroDivisionError: division by zero ("),
        ("p.py", "def f(:\n", "fails to import: SyntaxError: invalid syntax"),
        ("p.py", "import sys\nsys.exit(3)\n", "fails to import: SystemExit: 3 ("),
        ("p.py", "import no_such_thing\n", "fails to import: ModuleNotFoundError: No module named 'no_such_thing' ("),
        (
            "p.py",
            "import mtlcli\n@mtlcli.loss_weightings.register('ew')\nclass A: ...\n",
            "loss weighting 'ew' is already registered by mtlcli.weighting.losses.ew.",
        ),
        ("p.py", None, "no such file: "),
        ("no_such_module", None, "no module 'no_such_module' in the working folder or among the installed ones"),
    ],
)
def test_a_plugin_that_does_not_work(mtl: Mtl, name: str, content: str | None, words: str) -> None:
    if content is not None:
        Path(name).write_text(content)
    message = in_recipe(mtl, ("plugins: [", f"plugins: [{name}, "))
    assert "toy.yaml, line 7: plugins.0: " in message
    assert words in message
    if words.endswith("("):
        assert f"p.py, line {1 if 'no_such' in words else 2})" in message


def test_a_plugin_is_found_beside_the_recipe_and_a_module_in_the_working_folder(mtl: Mtl) -> None:
    Path("sub").mkdir()
    register = (
        "import mtlcli\nfrom mtlcli.weighting.losses.ew import *\nfrom mtlcli.weighting.base import LossWeighting\n"
    )
    for name, file in (("beside", "sub/beside.py"), ("working", "working_folder_module.py")):
        Path(file).write_text(
            f"{register}@mtlcli.loss_weightings.register('{name}')\nclass Mine(LossWeighting):\n"
            "    '''Mine.'''\n    def forward(self, step):\n        return step.losses\n"
        )
    text = RECIPE.replace("plugins: [", "plugins: [beside.py, working_folder_module, ")
    for name in ("beside", "working"):
        Path("sub/r.yaml").write_text(text.replace("loss: ew", f"loss: {name}"))
        assert mtl("train", "sub/r.yaml", "--quiet").code == 0


# -- what only training finds ------------------------------------------------------------------------------------------


def test_a_device_that_is_not_there(mtl: Mtl) -> None:
    assert "--device gpu: should be auto, cpu, cuda or cuda:N" in refused(mtl, "train", "toy.yaml", "--device", "gpu")
    assert "--device cpu:1: should be" in refused(mtl, "train", "toy.yaml", "--device", "cpu:1")
    assert "--device cuda:99: " in refused(mtl, "train", "toy.yaml", "--device", "cuda:99")


def test_cuda_without_a_gpu(mtl: Mtl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    message = refused(mtl, "train", "toy.yaml", "--device", "cuda")
    assert "--device cuda: this machine has no usable CUDA device; use --device cpu, or auto" in message


def test_weights_of_a_task_that_is_not_there(mtl: Mtl) -> None:
    message = in_recipe(mtl, ("loss: ew", "loss: {name: constant, weights: {yes: 1, which: 1, amont: 2}}"))
    assert "toy.yaml, line 3: weighting.loss.weights" in message
    assert "no task 'amont'; did you mean 'amount'?" in message


def test_an_option_that_torch_would_refuse(mtl: Mtl) -> None:
    message = in_recipe(mtl, ("lr: 0.01", "betas: [2.0, 0.9]"))
    assert "toy.yaml, line 4: optimizer.betas.0: should be a number >= 0 and < 1; found 2.0" in message
