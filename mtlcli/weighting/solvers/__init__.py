"""Exact solvers for the small problems of gradient weightings: K x K, float64, on the CPU.

They work on NumPy arrays, whose operations on small matrices cost a fraction of torch's. Each returns its answer with
what a caller must know about it, so that no failure passes unseen.
"""

from mtlcli.weighting.solvers.gramian import ROUNDING, Array, Solution, answer, checked, cosines
from mtlcli.weighting.solvers.inverse import inverse_point, power_point
from mtlcli.weighting.solvers.projections import equal_projections
from mtlcli.weighting.solvers.quadratic import (
    conflict_averse_point,
    conflict_free_points,
    min_norm_point,
    nonnegative_minimum,
)
from mtlcli.weighting.solvers.simplex import conditional, labelled, onto_simplex
from mtlcli.weighting.solvers.worst_case import chi_square_worst_case, entropy_tempered

__all__ = [
    "ROUNDING",
    "Array",
    "Solution",
    "answer",
    "checked",
    "chi_square_worst_case",
    "conditional",
    "conflict_averse_point",
    "conflict_free_points",
    "cosines",
    "entropy_tempered",
    "equal_projections",
    "inverse_point",
    "labelled",
    "min_norm_point",
    "nonnegative_minimum",
    "onto_simplex",
    "power_point",
]
