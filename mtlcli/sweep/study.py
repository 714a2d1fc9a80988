"""The trials of one method: values from Optuna, trained as runs, judged on val, written down in a journal."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlcli import registry
from mtlcli.comparison.improvement import baseline_means, delta_m
from mtlcli.engine.inspect import evaluate_run
from mtlcli.errors import MtlError
from mtlcli.recipe import Recipe, differences, from_values
from mtlcli.runs import Run, cut_torn_line, disk_errors, lock
from mtlcli.search import Choice, Range, Search
from mtlcli.sweep.execute import Progress
from mtlcli.sweep.plan import Planned
from mtlcli.yamlfile import flatten

if TYPE_CHECKING:
    import optuna

JOURNAL = "journal.log"
LR = "optimizer.lr"
# The rate that suits one method is seldom more than ten times another's: weights that sum to 1 in place of K, or logs
# in place of losses, change the size of a step by about that much.
LR_FACTOR = 10
Scores = list[tuple[str, str, float | None, bool]]  # task, metric, value on val, whether higher is better


@contextmanager
def journal(folder: Path) -> Iterator[optuna.storages.BaseStorage]:
    """Optuna's journal of all studies, in `folder`, held against other processes.

    Raises MtlError where another process holds it, the disk does not take it, or the file is damaged.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    file = folder / JOURNAL
    with lock(folder, f"{folder}: another process is tuning there; wait for it, or stop it"):
        try:
            with disk_errors(file, MtlError):
                cut_torn_line(file)
                storage = JournalStorage(JournalFileBackend(str(file)))
        except (ValueError, KeyError, IndexError, AssertionError) as error:  # whatever Optuna makes of such a file
            raise MtlError(
                f"{file}: is damaged ({error!r}); delete {folder} to tune anew, or name another --out"
            ) from None
        yield storage


def space(recipe: Recipe, tasks: Sequence[str]) -> dict[str, Search]:
    """Where tuning looks for each value of the recipe, by dotted key: the learning rate and what its two weightings
    declare. Each holds the recipe's own value; what cannot hold it is left as the recipe has it."""
    own = flatten(recipe.as_dict())
    wanted: dict[str, Search] = {}
    if LR in own:  # an optimiser of one's own may have none
        wanted[LR] = Range(own[LR] / LR_FACTOR, own[LR] * LR_FACTOR, log=True)
    loss, gradient = registry.loss_weightings, registry.gradient_weightings
    for slot, found in (
        ("loss", loss.get(recipe.loss.name).search_space(tasks)),
        ("gradient", gradient.get(recipe.gradient.name).search_space(tasks)),
    ):
        wanted |= {f"weighting.{slot}.{option}": search for option, search in found.items()}
    holding = {key: search.holding(own[key]) for key, search in wanted.items() if key in own}
    return {key: search for key, search in holding.items() if search is not None}


def with_values(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """The recipe with other values, by dotted key. Raises MtlError where they do not fit together."""
    settings = recipe.as_dict()
    for key, value in values.items():
        *above, name = key.split(".", 3)  # below an option stands the name of a task, dots and all
        section = settings
        for part in above:
            section = section[part]
        section[name] = value
    return from_values(settings, recipe.title)


class Study:
    """The trials of one method, one after the other; the first has the recipe's own values.

    A trial's values follow from the seed, the study's name, the trial's number and the trials before it alone, so that
    it does not matter where a comparison was interrupted.

    Args:
        storage: the journal.
        name: of the study and, below `folder`, of its trials' folder.
        planned: the run to tune; its seed is that of the trials.
        searched: where to look for each value, by dotted key.
        trials: how many there are to be. What the journal has beyond them does not count.
        folder: of all studies.

    Raises:
        MtlError: the journal has the study for another recipe, or with other search spaces.
    """

    def __init__(
        self,
        storage: optuna.storages.BaseStorage,
        name: str,
        planned: Planned,
        searched: Mapping[str, Search],
        trials: int,
        folder: Path,
    ) -> None:
        import optuna

        self._optuna, self._storage = optuna, storage
        self.name, self.planned, self.searched, self.trials = name, planned, dict(searched), trials
        self.folder, self._file = folder / name, folder / JOURNAL
        self.lost: str | None = None  # how a job ended that left its trial open
        own = flatten(planned.recipe.as_dict())
        self._own = {key: own[key] for key in searched}
        self._distributions = {key: self._distribution(search) for key, search in searched.items()}
        with self._writing():
            self._study = optuna.create_study(
                storage=storage, study_name=name, direction="minimize", load_if_exists=True
            )
            self._check()

    def next(self) -> Planned | None:
        """The first trial that is not over yet; None where all are, or where a job was lost on the way."""
        for number in range(0 if self.lost is None else self.trials, self.trials):
            known = self._study.get_trials()
            trial = known[number] if number < len(known) else self._begin(number, known)
            if trial.state.is_finished():
                continue
            try:
                recipe = with_values(self.planned.recipe, trial.params)
            except MtlError as error:  # values that no check of a single option could refuse
                self._fail(number, str(error))
                continue
            label = f"{self.planned.label}, trial {number}"
            return replace(self.planned, label=label, recipe=recipe, path=self.place(number))
        return None

    def tell(self, ended: Progress) -> str:
        """Take in how a trial ended, and return what it came to.

        A run whose process was stopped, or is gone without a word, says nothing about the trial, which stays open for
        the next call.
        """
        number = int(ended.planned.path.name.rpartition("-")[2])
        run = Run.at(ended.planned.path)
        if ended.status == "finished" and run is not None:
            return self._judge(number, run)
        error = ended.error or ended.status
        if ended.status == "interrupted" or (run is not None and run.info().get("status") == "running"):
            self.lost = f"trial {number}: {error}"
            return "left open"
        return self._fail(number, error)

    def place(self, number: int) -> Path:
        """The run directory of a trial."""
        return self.folder / f"trial-{number:03d}"

    def left(self) -> int:
        """How many trials are not over yet."""
        return self.trials - len([trial for trial in self._first() if trial.state.is_finished()])

    def failures(self) -> list[str]:
        """Why trials failed."""
        return [str(trial.user_attrs.get("error")) for trial in self._first() if trial.state.name == "FAIL"]

    def best(self) -> tuple[int, dict[str, Any], float] | None:
        """Number, values and delta_m on val of the best trial, of equals the first; None where none has a score."""
        scored = [(t.value, t.number, t.params) for t in self._first() if t.value is not None]
        value, number, params = min(scored, key=lambda trial: trial[:2], default=(0.0, -1, {}))
        return (number, params, value) if number >= 0 else None

    def as_json(self) -> dict[str, Any]:
        """What report.json says of it."""
        best = self.best()
        return {
            "trials": self.trials,
            "failed": len(self.failures()),
            "values": best[1] if best else {},
            "val_delta_m": best[2] if best else None,
            "searched": {key: search.as_json() for key, search in self.searched.items()},
        }

    def _first(self) -> list[optuna.trial.FrozenTrial]:
        return self._study.get_trials()[: self.trials]

    def _check(self) -> None:
        """Hold the journal against what is asked for now."""
        spaces = {key: search.as_json() for key, search in self.searched.items()}
        kept = self._study.user_attrs
        if "recipe" in kept:
            changed = differences(from_values(kept["recipe"], self.name), self.planned.recipe)
            if kept.get("searched", spaces) != spaces:
                changed.append(f"search spaces: {kept['searched']} -> {spaces}")
            if changed:
                raise MtlError(
                    f"{self.folder}: was tuned with another recipe, seed or search space (there -> now):\n"
                    + "\n".join(f"  {line}" for line in changed)
                    + "\nName another --out"
                )
            return
        self._study.set_user_attr("searched", spaces)
        self._study.set_user_attr("recipe", self.planned.recipe.as_dict())

    def _begin(self, number: int, known: Sequence[optuna.trial.FrozenTrial]) -> optuna.trial.FrozenTrial:
        """Draw a trial's values, and write them down in one piece."""
        create = self._optuna.trial.create_trial
        values = self._own if number == 0 else self._draw(number, known)
        running = self._optuna.trial.TrialState.RUNNING
        with self._writing():
            self._study.add_trial(create(state=running, params=values, distributions=self._distributions))
        return self._study.get_trials()[number]

    def _draw(self, number: int, known: Sequence[optuna.trial.FrozenTrial]) -> dict[str, Any]:
        """By TPE (Bergstra et al., Algorithms for Hyper-Parameter Optimization, NeurIPS 2011), from the trials so far,
        with a random state of this trial's own."""
        digest = hashlib.sha256(f"{self.planned.seed}/{self.name}/{number}".encode()).digest()
        sampler = self._optuna.samplers.TPESampler(seed=int.from_bytes(digest[:4], "big"))
        memory = self._optuna.create_study(direction="minimize", sampler=sampler)
        memory.add_trials(known[:number])
        drawn = memory.ask(self._distributions).params
        return {key: self.searched[key].readable(value) for key, value in drawn.items()}

    def _judge(self, number: int, run: Run) -> str:
        """Score a trial on val: delta_m against the first trial that finished."""
        scores = val_scores(run)
        first = next((t.user_attrs["val"] for t in self._first() if t.value is not None), scores)
        about = {(task, name): {"higher_is_better": higher} for task, name, _, higher in first}
        base, _ = baseline_means([{(task, name): value for task, name, value, _ in first}], about)
        score = delta_m({(task, name): value for task, name, value, _ in scores}, base, about)
        if score is None:
            return self._fail(number, "its scores on val are undefined")
        with self._writing():
            self._note(number, "val", scores)
            self._study.tell(number, score)
        return f"delta_m {score:+z.2f} % on val"

    def _fail(self, number: int, error: str) -> str:
        with self._writing():
            self._note(number, "error", error)
            self._study.tell(number, state=self._optuna.trial.TrialState.FAIL)
        return "counts as failed"

    def _note(self, number: int, key: str, value: Any) -> None:
        study = self._storage.get_study_id_from_name(self.name)
        trial = self._storage.get_trial_id_from_study_id_trial_number(study, number)
        self._storage.set_trial_user_attr(trial, key, value)

    def _writing(self) -> AbstractContextManager[None]:
        return disk_errors(self._file, MtlError)

    def _distribution(self, search: Search) -> optuna.distributions.BaseDistribution:
        kinds = self._optuna.distributions
        found: optuna.distributions.BaseDistribution
        if isinstance(search, Choice):
            found = kinds.CategoricalDistribution(search.values)
        elif search.whole:
            found = kinds.IntDistribution(int(search.low), int(search.high), log=search.log)
        else:
            found = kinds.FloatDistribution(search.low, search.high, log=search.log)
        return found


def val_scores(run: Run) -> Scores:
    """The finished run's scores on val in the epoch that was chosen; never on test."""
    epoch = run.result()["selected"]["epoch"]
    found = [event["val"] for event in run.events() if event["event"] == "EpochDone" and event.get("epoch") == epoch]
    # A process that was killed between saving an epoch and recording it left no event of it, but the model.
    tasks = found[-1] if found else evaluate_run(run, "val", "best", "auto")["tasks"]
    return [
        (task, name, metric["value"], metric["higher_is_better"])
        for task, scores in tasks.items()
        for name, metric in scores["metrics"].items()
    ]
