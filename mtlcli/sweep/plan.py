"""Methods x seeds and the single-task baselines, each a run of its own; finished runs are kept."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from mtlcli import registry
from mtlcli.comparison.report import SINGLE_TASK
from mtlcli.engine.prepare import load_data
from mtlcli.errors import MtlError, did_you_mean
from mtlcli.options import Options
from mtlcli.recipe import DEFAULTS, SEEDS_END, GradientSection, Recipe, differences, from_values, method_name
from mtlcli.runs import disk_errors, read_json, replace_file, to_json
from mtlcli.search import Search

PLAN_FILE = "compare.json"


@dataclass(frozen=True)
class Planned:
    """One run of a sweep."""

    method: str  # as in the table: a method's name, or single_task
    label: str  # as shown while it runs
    seed: int
    recipe: Recipe
    path: Path
    fingerprint: str | None = None  # of its data, where its result may come from the store


class Known(NamedTuple):
    """What a sweep must know of its data before anything is trained."""

    tasks: tuple[str, ...]
    fingerprint: str


def look(base: Recipe) -> Known:
    """Read the data of all contestants once. Raises MtlError where that fails."""
    data = load_data(base)
    return Known(tuple(task.name for task in data.tasks), data.fingerprint)


def lay_out(
    base: Recipe,
    contestants: Sequence[Recipe],
    name: str,
    seeds: str,
    baseline: str | None,
    out: Path | None,
    known: Known | None = None,
) -> tuple[Path, list[Planned], str | None]:
    """Everything that can be checked before anything is trained: the folder, its runs, the baseline as a row's name.

    Where the data are not `known` and have to be, they are read.

    Raises MtlError for a seed or baseline that does not exist or does not fit, or a folder that is taken.
    """
    chosen = _baseline(baseline, [(rival.loss.name, rival.gradient.name) for rival in contestants])
    planned = plan(base, contestants, parse_seeds(seeds), chosen in (None, SINGLE_TASK), known)
    if chosen == SINGLE_TASK and not any(run.method == SINGLE_TASK for run in planned):
        raise MtlError(f"--baseline {SINGLE_TASK}: the recipe has one task only; name a method, or none")
    folder = choose_folder(base, out, name)  # last: a sweep that cannot begin leaves no folder behind
    return folder, [replace(run, path=folder / run.path) for run in planned], chosen


def in_common(recipes: Sequence[Recipe], methods: str | None) -> Recipe:
    """What all contestants share: one recipe, which is trained with each of `methods`, or what several share.

    Raises MtlError for recipes that differ in more than their methods.
    """
    if len(recipes) == 1:
        return recipes[0]
    if methods is not None:
        raise MtlError("--methods goes with one recipe; of several recipes, each is a method of its own")
    return _common(recipes)


def parse_methods(text: str | None, recipe: Recipe) -> list[tuple[str, str]]:
    """`igb_v1,+pcgrad,ew+nash_mtl` -> (loss, gradient) names. Raises MtlError for all that do not exist."""
    if text is None:
        return [(recipe.loss.name, recipe.gradient.name)]
    found: list[tuple[str, str]] = []
    wrong = []
    for name in (part.strip() for part in text.split(",")):
        pair = _pair(name)
        unknown = _unknown(*pair) if name.strip("+") else "should be LOSS, +GRADIENT or LOSS+GRADIENT"
        if unknown:
            wrong.append(f"--methods: '{name}': {unknown}")
        elif pair in found:
            wrong.append(f"--methods: '{name}' is given twice")
        found.append(pair)
    if wrong:
        raise MtlError("\n".join(wrong))
    return found


def parse_seeds(text: str) -> list[int]:
    """`0,1,2` -> whole numbers. Raises MtlError for anything else, and for a seed given twice."""
    seeds: list[int] = []
    for part in text.split(","):
        if not re.fullmatch(r"\s*[0-9]{1,10}\s*", part) or int(part) >= SEEDS_END:
            raise MtlError(
                f"--seeds {text}: should be whole numbers from 0 to {SEEDS_END - 1} with commas between, such as "
                f"0,1,2; found '{part.strip()}'"
            )
        if int(part) in seeds:
            raise MtlError(f"--seeds {text}: {int(part)} is given twice")
        seeds.append(int(part))
    return seeds


def rivals(recipe: Recipe, methods: Sequence[tuple[str, str]], tasks: Sequence[str] | None = None) -> list[Recipe]:
    """The recipe with each of `methods`. Raises MtlError where one does not fit.

    With the names of the `tasks`, options without a default begin where their search begins.
    """
    found = []
    for loss, gradient in methods:
        values = recipe.as_dict()
        values["weighting"] = _weighting(values["weighting"], loss, gradient)
        if tasks is not None:
            _start(values["weighting"]["loss"], registry.loss_weightings.get(loss).search_space(tasks))
            _start(values["weighting"]["gradient"], registry.gradient_weightings.get(gradient).search_space(tasks))
        found.append(from_values(values, f"{recipe.title} (method {method_name(loss, gradient)})"))
    return found


def plan(
    base: Recipe, contestants: Sequence[Recipe], seeds: Sequence[int], single_task: bool, known: Known | None = None
) -> list[Planned]:
    """Every run that the table needs, single-task baselines first; paths are relative to the sweep's folder.

    Raises MtlError where a baseline does not fit, or two contestants are the same.
    """
    runs = []
    tasks, fingerprint = (known or look(base)) if single_task else ((), None)
    for seed in seeds:
        for task in tasks if len(tasks) > 1 else ():
            values = _with_seed(base, seed)
            values["data"]["only"] = [task]
            values["model"]["trunk"] = {"name": DEFAULTS["model.trunk"]}
            values["weighting"] = {}
            values["metrics"] = {t: names for t, names in values["metrics"].items() if t == task}
            by = values["train"]["select_by"]
            if "." in by and by.rpartition(".")[0] != task:
                values["train"]["select_by"] = "delta"
            path = Path(SINGLE_TASK) / task.replace("%", "%25").replace("/", "%2F") / f"seed-{seed}"
            single = from_values(values, f"{base.title} (single task {task})")
            runs.append(Planned(SINGLE_TASK, f"{SINGLE_TASK} {task}", seed, single, path, fingerprint))
    titles: dict[Path, str] = {}
    for seed in seeds:
        for contestant in contestants:
            seeded = from_values(_with_seed(contestant, seed), contestant.title)
            path = Path(_folder(seeded)) / f"seed-{seed}"
            if path in titles:
                raise MtlError(f"{contestant.title}: is the same method as {titles[path]}; leave one out")
            titles[path] = contestant.title
            runs.append(Planned(seeded.method, seeded.method, seed, seeded, path))
    return runs


def choose_folder(recipe: Recipe, out: Path | None, name: str) -> Path:
    """The sweep's folder: `out`, or the first `runs/compare-NAME[-n]` that is free or belongs to this recipe.

    Raises:
        MtlError: `out` belongs to a recipe that differs in more than methods and seeds; names the keys.
    """
    values = recipe.as_dict()
    values["weighting"] = {}
    values["train"]["seed"] = 0
    mine = from_values(values, recipe.title)
    for number in count(1):
        folder = out or Path("runs") / (f"compare-{name}" if number == 1 else f"compare-{name}-{number}")
        theirs = folder / PLAN_FILE
        if theirs.exists():
            changed = differences(_planned_recipe(theirs), mine)
            if not changed:
                return folder
            if out is not None:
                raise MtlError(
                    f"{folder}: belongs to a comparison whose recipe differs in more than methods and seeds "
                    "(there -> now):\n" + "\n".join(f"  {line}" for line in changed) + "\nName another --out"
                )
        elif not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            with disk_errors(folder, MtlError):
                folder.mkdir(parents=True, exist_ok=True)
            replace_file(theirs, (to_json({"recipe": mine.as_dict()}, indent=2) + "\n").encode())
            return folder
        elif out is not None:
            raise MtlError(f"{folder}: exists and was not made by mtl compare; name another --out")
    raise AssertionError("unreachable")


def _common(recipes: Sequence[Recipe]) -> Recipe:
    """What recipes share that differ in their methods, with which go the further rows that these need."""
    bare = []
    for recipe in recipes:
        values = _with_seed(recipe, 0)
        values["weighting"] = {}
        values["data"] |= {"held_out": 0.0, "extra_batches": 0}
        bare.append(from_values(values, recipe.title))
    wrong = [(other, changed) for other in bare[1:] if (changed := differences(bare[0], other))]
    if wrong:
        raise MtlError(
            "recipes that are compared should differ only in weighting, train.seed, data.held_out and "
            f"data.extra_batches; these differ from {bare[0].title} ({bare[0].title} -> the other):\n"
            + "\n".join(f"  {other.title}: {'; '.join(changed)}" for other, changed in wrong)
        )
    return bare[0]


def _pair(method: str) -> tuple[str, str]:
    """`LOSS`, `+GRADIENT` or `LOSS+GRADIENT` -> both names."""
    loss, plus, gradient = method.partition("+")
    return loss or DEFAULTS["weighting.loss"], gradient if plus else DEFAULTS["weighting.gradient"]


def _unknown(loss: str, gradient: str) -> str | None:
    """What is wrong with the names of a method, if anything."""
    losses, gradients = registry.loss_weightings, registry.gradient_weightings
    if loss not in losses.names():
        if loss in gradients.names():
            return f"'{loss}' is a gradient weighting: write +{loss}, or LOSS+{loss}"
        hint = did_you_mean(loss, [*losses.names(), *(f"+{name}" for name in gradients.names())])
        return f"no loss weighting '{loss}'{hint}" if hint else losses.unknown(loss)
    if gradient not in gradients.names():
        if gradient in losses.names():
            return f"'{gradient}' is a loss weighting: write {gradient}, or {gradient}+GRADIENT"
        return gradients.unknown(gradient)
    return None


def _baseline(wanted: str | None, methods: Sequence[tuple[str, str]]) -> str | None:
    """The name of the baseline's row. Raises MtlError, before anything is trained, where there will be none."""
    if wanted is None or wanted in (SINGLE_TASK, "none"):
        return wanted
    rows = {pair: method_name(*pair) for pair in methods}
    if _pair(wanted) not in rows:
        allowed = [SINGLE_TASK, "none", *rows.values()]
        raise MtlError(f"--baseline {wanted}: should be one of {', '.join(allowed)}{did_you_mean(wanted, allowed)}")
    return rows[_pair(wanted)]


def _planned_recipe(file: Path) -> Recipe:
    try:
        return from_values(read_json(file)["recipe"], str(file))
    except (KeyError, TypeError):
        raise MtlError(f"{file}: was not written by mtl compare, or is damaged; name another --out") from None


def _weighting(base: Mapping[str, Any], loss: str, gradient: str) -> dict[str, Any]:
    """Both slots by name: the recipe's own options where it has the same method, defaults elsewhere. Where and how
    gradients are taken stays as in the recipe."""
    engine = {key: base["gradient"][key] for key in GradientSection.model_fields}
    method = registry.gradient_weightings.get(gradient)
    if not method.gives_weights():  # none to reuse, to average, or to carry over from one layer
        engine |= {"every": 1, "smooth": 0.0}
    if engine["wrt"] not in method.allowed_anchors():
        engine["wrt"] = "params"
    own_loss = base["loss"] if base["loss"]["name"] == loss else {"name": loss}
    own_gradient = base["gradient"] if base["gradient"]["name"] == gradient else {"name": gradient, **engine}
    return {"loss": own_loss, "gradient": own_gradient}


def _start(options: dict[str, Any], searched: Mapping[str, Search]) -> None:
    """Set what has no value yet to where its search starts, in place."""
    unset = {key: s.start for key, s in searched.items() if s.start is not None and key.split(".")[0] not in options}
    for key, start in unset.items():
        option, dot, entry = key.partition(".")
        if dot:
            options.setdefault(option, {})[entry] = start
        else:
            options[option] = start


def _folder(recipe: Recipe) -> str:
    """The method's name; with options other than the defaults, a short hash of them beside it."""
    parts = (recipe.loss.options, recipe.gradient.options, recipe.gradient_engine)
    if all(_all_defaults(options) for options in parts):
        return recipe.method
    weighting = json.dumps(recipe.as_dict()["weighting"], sort_keys=True)
    return f"{recipe.method}-{hashlib.sha256(weighting.encode()).hexdigest()[:6]}"


def _all_defaults(options: Options) -> bool:
    required = any(info.is_required() for info in type(options).model_fields.values())
    return not required and options == type(options)()


def _with_seed(recipe: Recipe, seed: int) -> dict[str, Any]:
    values = recipe.as_dict()
    values["train"]["seed"] = seed
    return values
