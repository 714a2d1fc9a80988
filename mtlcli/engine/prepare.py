"""Recipe -> data, model and weightings, ready to train or to score."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mtlcli import metrics, registry
from mtlcli.data.base import BaseSplit, Dataset, Features, JointFeatures, MultiTaskData, Portion
from mtlcli.engine.ranks import Ranks
from mtlcli.engine.step import Step
from mtlcli.errors import MtlError, OptionError, did_you_mean
from mtlcli.models.base import Encoder, MTLModel, run
from mtlcli.models.heads import build_head
from mtlcli.models.sources import SourcesEncoder, check_reads
from mtlcli.recipe import Recipe
from mtlcli.tasks import unusable
from mtlcli.weighting.base import GradientWeighting, LossWeighting

SELECT_BY = ("delta", "loss", "last")
NORMS = nn.modules.batchnorm._BatchNorm  # which take means over the rows of a batch


@dataclass(frozen=True)
class Prepared:
    """What a recipe describes, on its device."""

    recipe: Recipe
    device: torch.device
    autocast: torch.dtype | None
    data: MultiTaskData
    model: MTLModel
    plain_model: MTLModel  # the same parameters in modules that are never compiled; `model` itself where none is
    metrics: dict[str, tuple[str, ...]]

    def weightings(self) -> tuple[LossWeighting, GradientWeighting]:
        """Both slots, newly built."""
        recipe, names = self.recipe, tuple(task.name for task in self.data.tasks)
        seed = recipe.train.seed
        with placed(recipe, "weighting.loss"):
            method = registry.loss_weightings.get(recipe.loss.name)
            loss = method.on(self.device, recipe.loss.options, names, method.seed_in(seed))
        with placed(recipe, "weighting.gradient"):
            mixer = registry.gradient_weightings.get(recipe.gradient.name)
            gradient = mixer.on(self.device, recipe.gradient.options, names, mixer.seed_in(seed))
        return loss, gradient


def choose_device(wanted: str, local_rank: int = 0) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N` -> a device that is there. Raises MtlError otherwise."""
    kind, _, index = wanted.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (index and (kind != "cuda" or not index.isdigit())):
        raise MtlError(f"--device {wanted}: should be auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if kind != "cpu" and torch.cuda.is_available() else 0
    if kind == "cpu" or (kind == "auto" and not count):
        return torch.device("cpu")
    if not count:
        raise MtlError(f"--device {wanted}: this machine has no usable CUDA device; use --device cpu, or auto")
    number = int(index) if index else local_rank % count
    if number >= count:
        raise MtlError(f"--device {wanted}: there are {count} CUDA devices, cuda:0 to cuda:{count - 1}")
    return torch.device("cuda", number)


def prepare(recipe: Recipe, device: torch.device, fitted: Mapping[str, Any] | None = None) -> Prepared:
    """Read the data, build and seed the model.

    Args:
        fitted: what a run keeps of its data (`MultiTaskData.fitted`); with it none are read, and there are no splits.

    Raises:
        MtlError: an option does not fit the data, or a task, metric or column is unknown; with its place in the recipe.
    """
    data = load_data(recipe) if fitted is None else _chosen(recipe, dataset(recipe).restore(fitted))
    with placed(recipe, "model.encoder"):
        check_reads(recipe.encoder.name, data.features)
    torch.manual_seed(recipe.train.seed)
    with placed(recipe, "model.trunk"), _fitting(recipe):
        trunk_class = registry.trunks.get(recipe.trunk.name)
        names = tuple(task.name for task in data.tasks)
        trunk = trunk_class(recipe.trunk.options, lambda: _encoder(recipe, data.features), names)
        heads: dict[str, nn.Module] = {t.name: build_head(t, trunk.out_features, recipe.heads) for t in data.tasks}
        model = MTLModel(trunk, heads)
    model = model.to(device)
    plain = model
    if recipe.train.compile:
        shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        plain = copy.deepcopy(model, memo=shared)
        _compile(model)
    return Prepared(
        recipe=recipe,
        device=device,
        autocast=_autocast(recipe, device),
        data=data.to(device),
        model=model,
        plain_model=plain,
        metrics=_metrics(recipe, data),
    )


def step_for(prepared: Prepared, loss: LossWeighting, gradient: GradientWeighting, ranks: Ranks | None = None) -> Step:
    """The step that the recipe asks for. Raises MtlError with the place of a setting that the model cannot serve."""
    model, settings = prepared.model, prepared.recipe.gradient_engine
    if settings.wrt == "representation" and isinstance(prepared.data.features, JointFeatures):
        raise prepared.recipe.error(
            "weighting.gradient.wrt",
            "tasks with inputs of their own have no representation in common; use params or last_shared",
        )
    last_shared = model.trunk.last_shared_parameters()
    if settings.wrt == "last_shared" and not last_shared:
        raise prepared.recipe.error(
            "weighting.gradient.wrt", "should be params or representation: this trunk names no last shared layer"
        )
    try:
        return Step(
            model.shared_parameters(),
            model.task_parameters(),
            loss,
            gradient,
            wrt=settings.wrt,
            last_shared=last_shared,
            groups=model.parameter_groups(settings.groups),
            every=settings.every,
            smooth=settings.smooth,
            rows=settings.rows,
            ranks=ranks,
        )
    except MtlError as error:
        raise prepared.recipe.error("weighting.gradient", str(error)) from None


def check_batches(prepared: Prepared, world: int = 1) -> None:
    """Raise MtlError where a rank would get a single row to train a model on that normalises over rows."""
    recipe = prepared.recipe
    batch_size = recipe.data.batch_size
    for split in (split for name, split in prepared.data.splits.items() if name in ("train", "held_out")):

        def lonely(batch_size: int, split: BaseSplit = split) -> dict[str, Portion]:
            found = split.portions(batch_size, world)
            last = {source: (min(size, len(rows)), len(rows) % size) for source, (rows, size) in found.items()}
            return {source: found[source] for source in found if any(0 < n < 2 * world for n in last[source])}

        for source, (rows, size) in lonely(batch_size).items():
            if _takes_one_row(prepared, rows):
                continue
            candidates = range(batch_size + 1, batch_size + len(split))
            able = next((str(other) for other in candidates if not lonely(other)), "no other")
            raise recipe.error(
                "data.batch_size",
                f"{size} of {len(rows):,} rows {f'of {source} ' if source else ''}at a time leaves a single one to "
                f"some {'process' if world > 1 else 'step'}, over which batch normalisation cannot take a mean and a "
                f"variance; {able} would do, or another norm",
            )


def _takes_one_row(prepared: Prepared, split: BaseSplit) -> bool:
    """Whether the model can be trained on a single row: maps and graphs have several values in one."""
    trial = copy.deepcopy(prepared.plain_model)
    for module in trial.modules():  # dropout, for one, would draw random numbers that the training then lacks
        module.train(isinstance(module, NORMS))
    try:
        with torch.no_grad():
            run(trial, next(iter(split.batches(1))), prepared.autocast)
    except ValueError as error:
        return "more than 1 value per channel" not in str(error)
    return True


def load_data(recipe: Recipe) -> MultiTaskData:
    """The recipe's data, with its choice of tasks and its held-out part."""
    with placed(recipe, "data"):
        data = _chosen(recipe, dataset(recipe).load())
        if recipe.data.held_out:
            data = data.hold_out(recipe.data.held_out, recipe.train.seed)
    return data


def dataset(recipe: Recipe) -> Dataset:
    """The recipe's dataset; nothing is read."""
    return registry.datasets.get(recipe.dataset.name)(recipe.dataset.options)


def _chosen(recipe: Recipe, data: MultiTaskData) -> MultiTaskData:
    for key, names in (("tasks", recipe.data.tasks), ("only", recipe.data.only)):
        if names is not None:
            data = data.select(tuple(names), key)
    for task in data.tasks:
        if why := unusable(task.name):
            raise recipe.error("data.name", f"calls a task '{task.name}', which {why}; rename it in the data")
    return data


@contextmanager
def placed(recipe: Recipe, section: str) -> Iterator[None]:
    """Give an OptionError raised inside its place in the recipe."""
    try:
        yield
    except OptionError as error:
        raise recipe.error(f"{section}.{error.option}", error.message) from None


def scale_warning(losses: dict[str, float]) -> str | None:
    """What to tell a person whose tasks start with losses more than 100 times apart."""
    positive = {task: loss for task, loss in losses.items() if loss > 0}
    if not positive:
        return None
    low, high = min(positive, key=positive.__getitem__), max(positive, key=positive.__getitem__)
    if positive[high] <= 100 * positive[low]:
        return None
    able = [name for name in registry.loss_weightings.names() if registry.loss_weightings.get(name).scale_free]
    return (
        f"the first loss of '{high}' is {positive[high] / positive[low]:.3g} times that of '{low}' "
        f"({positive[high]:.3g} against {positive[low]:.3g}), so an unweighted sum trains mostly '{high}'. What helps: "
        f"a `transform` of its labels, a weighting that is indifferent to scale (weighting.loss: {' or '.join(able)}), "
        "or another balancing method"
    )


@contextmanager
def _fitting(recipe: Recipe) -> Iterator[None]:
    """Say so where a network is larger than the memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        too_large = ("allocate memory", "size calculation overflowed")
        if isinstance(error, RuntimeError) and not any(words in str(error) for words in too_large):
            raise
        raise recipe.error("model", "a network of these widths does not fit into the memory of this machine") from None


def _encoder(recipe: Recipe, features: Features) -> Encoder:
    cls = registry.encoders.get(recipe.encoder.name)
    with placed(recipe, "model.encoder"):
        if isinstance(features, JointFeatures) and not issubclass(cls.reads, JointFeatures):
            return SourcesEncoder(lambda of: cls(recipe.encoder.options, of), features)
        return cls(recipe.encoder.options, features)


def _metrics(recipe: Recipe, data: MultiTaskData) -> dict[str, tuple[str, ...]]:
    tasks = {task.name: task for task in data.tasks}
    for name in recipe.metrics:
        if name not in tasks:
            hint = did_you_mean(name, tasks)
            raise recipe.error(f"metrics.{name}", f"no task '{name}'{hint}; there are: {', '.join(tasks)}")
    chosen = {}
    for name, task in tasks.items():
        if name in recipe.metrics and not recipe.metrics[name]:
            raise recipe.error(f"metrics.{name}", "names no metric; leave it out for those of the data, or name some")
        chosen[name] = tuple(recipe.metrics.get(name) or data.metrics.get(name) or metrics.default(task.kind))
        try:
            metrics.check(task, chosen[name])
        except MtlError as error:
            raise recipe.error(f"metrics.{name}", str(error)) from None
    by = recipe.train.select_by
    able = [*SELECT_BY, *(f"{task}.{metric}" for task, names in chosen.items() for metric in names)]
    if by not in able:
        raise recipe.error("train.select_by", f"no '{by}'{did_you_mean(by, able)}; there are: {', '.join(able)}")
    return chosen


def _autocast(recipe: Recipe, device: torch.device) -> torch.dtype | None:
    wanted = recipe.train.precision
    if wanted == "auto":
        wanted = "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    return torch.bfloat16 if wanted == "bfloat16" else None


def _compile(model: MTLModel) -> None:
    """Compile trunk and heads one by one: a model compiled as a whole hides the tensors between them from autograd."""
    import torch._functorch.config

    # Task gradients go back through the same graph several times; donated buffers would be gone after the first.
    torch._functorch.config.donated_buffer = False
    model.trunk.compile()
    for head in model.heads.values():
        head.compile()
