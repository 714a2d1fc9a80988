"""Molecules as inputs: atoms and where they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtlcli.data.base import Batch, Features, Split

BOHR = 0.529177210903  # Angstrom


@dataclass(frozen=True)
class MoleculeFeatures(Features):
    """Molecules: `inputs["types"]` (B, A) uint8 and `inputs["positions"]` (B, A, 3) float32, in Angstrom.

    Types are 1..n in the order of `elements`, 0 where there is no atom; a molecule's atoms come first.
    """

    elements: tuple[str, ...]
    atoms: int  # of the largest molecule


@dataclass(frozen=True)
class MoleculeSplit(Split):
    """Molecules held in memory, each batch as wide as its largest one."""

    at_once: int | None = 512

    def rows(self, index: Tensor | slice) -> Batch:
        """The rows at `index`, without columns that hold no atom."""
        inputs, targets, _ = super().rows(index)
        width = max(1, int(inputs["types"].ne(0).any(0).sum()))
        return Batch({name: tensor[:, :width] for name, tensor in inputs.items()}, targets)


def padded(counts: NDArray[np.int64], values: NDArray[Any], width: int) -> NDArray[Any]:
    """Rows of all molecules (sum of counts, ...) -> a molecule a row (N, width, ...), zero behind its `counts` (N,)."""
    present = np.arange(width)[None] < counts[:, None]
    found = np.zeros((*present.shape, *values.shape[1:]), values.dtype)
    found[present] = values
    return found


def coulomb_spectra(charges: NDArray[np.float32], positions: NDArray[np.float32]) -> NDArray[np.float32]:
    """Eigenvalues (N, A) of Coulomb matrices, largest absolute value first; in Hartree.

    M_ii = 0.5 Z_i^2.4 and M_ij = Z_i Z_j / |R_i - R_j|. They do not change with the order of the atoms, nor where a
    molecule is moved or turned to.

    Args:
        charges: (N, A), 0 where there is no atom.
        positions: (N, A, 3), in Angstrom.

    Source: Rupp et al., Fast and Accurate Modeling of Molecular Atomization Energies with Machine Learning, Physical
    Review Letters 108, 2012.
    """
    found = []
    for start in range(0, len(charges), 8192):
        z = torch.from_numpy(charges[start : start + 8192]).double()
        r = torch.from_numpy(positions[start : start + 8192]).double() / BOHR
        matrix = z[:, :, None] * z[:, None, :]
        distance = (r[:, :, None] - r[:, None, :]).square().sum(3).sqrt()
        matrix = torch.where(distance > 0, matrix / distance, 0.0)
        matrix += torch.diag_embed(0.5 * z**2.4)
        values = torch.linalg.eigvalsh(matrix)
        order = values.abs().argsort(dim=1, descending=True, stable=True)
        found.append(values.gather(1, order).float().numpy())
    return np.concatenate(found)
