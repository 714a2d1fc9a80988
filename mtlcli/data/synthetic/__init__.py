"""Generated data with known answers."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from mtlcli.data.base import Dataset, MultiTaskData
from mtlcli.data.synthetic import objectives, rules
from mtlcli.options import Options as AnyOptions
from mtlcli.registry import datasets

MANY = 200  # tasks


@datasets.register("synthetic")
class Synthetic(Dataset):
    """Problems of which the answer is known, generated from `seed`.

    Tables of standard normal `features`, for encoders of tables. Signals are linear in tanh of mixed features, with
    mean 0 and variance 1; `noise` is the standard deviation of what regression labels have besides.
    `related`: `num_tasks` regressions t0, t1 ...; any two signals correlate by `relatedness`. The best R2 that anything
    reaches on them is 1 / (1 + noise ** 2). Labels of the last task are `scale_ratio` times as large as those of the
    first, in geometric steps between.
    `label_noise`: `num_tasks` binary tasks; of the last `noisy_tasks`, a share `wrong` of the labels in train and val
    is drawn at random. Test labels are right. The setting of ExcessMTL (He et al., ICML 2024).
    `drift`: regressions `main`, with noise, and `auxiliary`, which begins as the signal of `main` without noise and
    turns into noise: a label at epoch e (fractions counted) is still right with probability max(0, 1 - e /
    drift_epochs). It helps first and harms later: the story of HydaLearn (Verboven et al., 2022). In val and test it is
    right.
    `sample_relevance`: the same two tasks, but the auxiliary is right for rows whose first feature is positive and
    noise for all others, in every split.

    Objectives of a point, for the encoder `point`; `rows` are steps an epoch with `batch_size: 1`.
    `two_objectives`: the two losses of the illustration in CAGrad (Liu et al., NeurIPS 2021) and Nash-MTL (Navon et
    al., ICML 2022), with a valley that leads away from the Pareto front; the first one times `scale`, as in the latter.
    `start` is where the point begins. The front is nearly the segment from (-7, -8) to (7, -8):
    `mtlcli.data.synthetic.objectives.pareto_front`.
    `quadratics`: K losses ||x - c_k||^2 / 2 whose gradients at the start have the Gramian `gramian`.

    Raises OptionError for a matrix that is not a Gramian.
    """

    class Options(AnyOptions):
        """Which problem, and its numbers; what a problem does not name, it does not use."""

        problem: Literal["related", "label_noise", "drift", "sample_relevance", "two_objectives", "quadratics"] = Field(
            "related", description="what is generated"
        )
        num_tasks: int = Field(3, ge=1, le=MANY, description="related, label_noise: how many tasks")
        rows: int = Field(2000, ge=1, description="training rows; val and test have half as many each")
        features: int = Field(16, ge=1, description="numeric columns of a table")
        noise: float = Field(0.5, ge=0, description="standard deviation of the noise in labels, beside a signal of 1")
        relatedness: float = Field(0.5, ge=0, le=1, description="related: correlation of any two signals")
        scale_ratio: float = Field(1.0, gt=0, description="related: scale of the last task's labels to the first's")
        noisy_tasks: int = Field(1, ge=0, description="label_noise: how many of the tasks have wrong labels")
        wrong: float = Field(0.4, ge=0, le=1, description="label_noise: share of labels drawn at random")
        drift_epochs: float = Field(5.0, gt=0, description="drift: epochs until the auxiliary is nothing but noise")
        start: tuple[float, float] = Field((-8.5, 7.5), description="two_objectives: first point")
        scale: float = Field(0.1, gt=0, description="two_objectives: factor on the first loss")
        gramian: tuple[tuple[float, ...], ...] = Field(
            ((1.0, -0.5), (-0.5, 1.0)), description="quadratics: inner products of the gradients at the start"
        )
        seed: int = Field(0, ge=0, description="of everything that is drawn")

        @model_validator(mode="after")
        def _noisy(self) -> Self:
            if self.problem == "label_noise" and self.noisy_tasks > self.num_tasks:
                raise ValueError(f"noisy_tasks should be at most num_tasks, {self.num_tasks}; found {self.noisy_tasks}")
            return self

    options: Options

    def load(self) -> MultiTaskData:
        """Generated anew every time; the same for the same options."""
        options = self.options
        definition = {"dataset": self.name, **options.model_dump()}
        if options.problem == "two_objectives":
            return objectives.two_objectives(options.start, options.scale, options.rows, definition)
        if options.problem == "quadratics":
            return objectives.quadratics(options.gramian, options.rows, definition)
        drawn = rules.Rules(options.features, options.rows, options.seed)
        if options.problem == "related":
            return rules.related(
                drawn, options.num_tasks, options.relatedness, options.noise, options.scale_ratio, definition
            )
        if options.problem == "label_noise":
            return rules.label_noise(drawn, options.num_tasks, options.noisy_tasks, options.wrong, definition)
        if options.problem == "drift":
            return rules.drift(drawn, options.noise, options.drift_epochs, definition)
        return rules.sample_relevance(drawn, options.noise, definition)
