"""What a recipe says about tasks and splits of a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from mtlcli.options import Options

LabelKind = Literal["binary", "multiclass", "regression"]
Value = bool | int | float | str
SPLITS = ("train", "val", "test")
MISSING = ["", "NA", "N/A", "NaN", "nan", "null", "NULL", "None"]  # texts that stand for a missing value
VAL, TEST = 0.1, 0.2


class TaskOptions(Options):
    """One task: which column, and how it is learned."""

    kind: LabelKind = Field(description="binary, multiclass or regression")
    column: str | None = Field(None, description="the column with the labels; null: called like the task")
    positive: Value | None = Field(None, description="binary: the value that counts as 1; null: the larger one")
    classes: list[Value] | None = Field(
        None, min_length=2, description="the classes, in order; null: all that occur, sorted"
    )
    class_weights: Literal["balanced"] | list[float] | None = Field(
        None, description="factors on the loss by class, in order; balanced: as if classes were equally frequent"
    )
    positive_weight: Literal["balanced"] | float | None = Field(None, description="binary: factor on the loss of 1")
    transform: Literal["none", "log1p"] = Field("none", description="regression: what is learned is log(1 + value)")
    unit: str = Field("", description="regression: what the values are measured in")

    @model_validator(mode="after")
    def _fits_its_kind(self) -> TaskOptions:
        fitting = {
            "positive": ("binary",),
            "positive_weight": ("binary",),
            "classes": ("binary", "multiclass"),
            "class_weights": ("binary", "multiclass"),
            "transform": ("regression",),
            "unit": ("regression",),
        }
        for name, kinds in fitting.items():
            if getattr(self, name) != type(self).model_fields[name].default and self.kind not in kinds:
                raise ValueError(f"`{name}` is for {' and '.join(kinds)} tasks; this one is {self.kind}")
        if self.class_weights is not None and self.positive_weight is not None:
            raise ValueError("`positive_weight: w` is short for `class_weights: [1, w]`; give one of them")
        if self.positive is not None and self.classes is not None:
            raise ValueError("of two `classes` the second is the positive one; give `classes` or `positive`")
        if self.kind == "binary" and self.classes is not None and len(self.classes) != 2:
            raise ValueError(f"a binary task has 2 `classes`; found {len(self.classes)}")
        weights = self.class_weights if isinstance(self.class_weights, list) else []
        own = self.positive_weight if isinstance(self.positive_weight, float | int) else 1.0
        if min([*weights, own], default=1.0) < 0 or (weights and max(weights) == 0) or own == 0:
            raise ValueError("weights should be at least 0, and not all 0")
        return self


class SplitOptions(Options):
    """How rows become train, val and test."""

    val: float | None = Field(default=None, gt=0, lt=1, description=f"share of the rows for validation; null: {VAL}")
    test: float | None = Field(default=None, gt=0, lt=1, description=f"share of the rows for the test; null: {TEST}")
    by: str | None = Field(default=None, description="a column with keys; all rows of a key come into the same split")
    seed: int = Field(default=0, ge=0, lt=2**31, description="seed of the choice")
    column: str | None = Field(default=None, description="a column that says train, val or test")
    test_path: Path | None = Field(default=None, description="the test rows are in files of their own")

    @model_validator(mode="after")
    def _fits_together(self) -> SplitOptions:
        if self.column is not None and self.test_path is not None:
            raise ValueError("`column` and `test_path` both say which rows are for the test; give one of them")
        if self.test is not None and (self.column is not None or self.test_path is not None):
            given = "column" if self.column is not None else "test_path"
            raise ValueError(f"`{given}` says which rows are for the test; leave `test` out")
        if self.shares[0] + self.shares[1] >= 1:
            raise ValueError(f"val and test take {sum(self.shares):g} of the rows, and nothing is left to train on")
        return self

    @property
    def shares(self) -> tuple[float, float]:
        """Of validation and test among the rows that are not told apart otherwise."""
        apart = self.column is not None or self.test_path is not None
        return VAL if self.val is None else self.val, 0.0 if apart else TEST if self.test is None else self.test

    def definition(self) -> dict[str, Any]:
        """What the split follows from, without where files are."""
        return self.model_dump(mode="json", exclude={"test_path"})
