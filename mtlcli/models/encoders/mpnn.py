"""Message passing between the atoms of a molecule."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from mtlcli.data.base import Inputs
from mtlcli.data.molecules import MoleculeFeatures
from mtlcli.models.base import Encoder
from mtlcli.models.heads import Width
from mtlcli.options import Options as AnyOptions
from mtlcli.registry import encoders

POSITION = slice(0, 3)
PRESENT = slice(3, 4)  # 1 where there is an atom
HIDDEN = slice(4, None)


@encoders.register("mpnn")
class Mpnn(Encoder):
    """Message passing with filters that are functions of distance; molecules are fully connected within `cutoff`.

    h_i <- h_i + f(sum_j (W h_j) * g(|r_i - r_j|)) in each of `layers` rounds, with two-layer nets f and g; g reads
    `basis` Gaussians of the distance and fades to nothing at `cutoff`. Predictions do not change where a molecule is
    moved, turned or mirrored, nor with the order of its atoms. Stage 0 embeds the elements and passes the coordinates
    on with them: (B, A, 3 + 1 + width), the fourth number telling atoms from padding; each round is a stage. The last
    stage turns atoms into features and gives their mean and their sum, divided by the largest number of atoms, side by
    side: (B, 2 * width).

    Cost: A^2 pairs a molecule and round; made for a GPU.

    Source: Schuett et al., SchNet: A continuous-filter convolutional neural network for modeling quantum interactions,
    NeurIPS 2017, arXiv 1706.08566.
    Deviations: SiLU in place of shifted softplus; features of mean and sum for heads to read, where SchNet sums an
    energy an atom; the filters fade with a cosine. This is not the network of published multi-task tables, which is
    PyTorch Geometric's with bonds as inputs.
    """

    reads = MoleculeFeatures

    class Options(AnyOptions):
        """How wide, how deep, how far."""

        width: Width = Field(64, description="features of an atom")
        layers: int = Field(4, ge=1, description="rounds of messages")
        basis: int = Field(50, ge=2, description="Gaussians that a distance is described by")
        cutoff: float = Field(10.0, gt=0, description="how far messages reach, in Angstrom")

    def __init__(self, options: Options, features: MoleculeFeatures) -> None:
        super().__init__()
        rounds = (Interaction(options.width, options.basis, options.cutoff) for _ in range(options.layers))
        stem, readout = Atoms(len(features.elements), options.width), Readout(options.width, features.atoms)
        self.stages = nn.ModuleList([stem, *rounds, readout])
        self.stem_features, self.out_features = options.width, 2 * options.width

    @staticmethod
    def summary(stem: Tensor) -> Tensor:
        """(B, width): the mean over atoms."""
        return stem[..., HIDDEN].sum(1) / stem[..., PRESENT].sum(1).clamp(min=1)


class Atoms(nn.Module):
    """`types` (B, A) and `positions` (B, A, 3) -> (B, A, 3 + 1 + width)."""

    def __init__(self, elements: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(elements + 1, width, padding_idx=0)

    def forward(self, inputs: Inputs) -> Tensor:
        """Where it is, whether it is there, and what it is."""
        types, positions = inputs["types"].int(), inputs["positions"]
        hidden = self.embedding(types)
        present = types.ne(0).to(hidden.dtype)[..., None]
        return torch.cat([positions.to(hidden.dtype), present, hidden], dim=2)


class Interaction(nn.Module):
    """One round of messages; (B, A, 3 + 1 + width) to the same."""

    centres: Tensor

    def __init__(self, width: int, basis: int, cutoff: float) -> None:
        super().__init__()
        self.cutoff, self.spread = cutoff, cutoff / (basis - 1)
        self.register_buffer("centres", torch.linspace(0, cutoff, basis), persistent=False)
        self.filter = nn.Sequential(nn.Linear(basis, width), nn.SiLU(), nn.Linear(width, width))
        self.sent = nn.Linear(width, width, bias=False)
        self.update = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, atoms: Tensor) -> Tensor:
        """Add what every atom is told by all others."""
        position, present, hidden = atoms[..., POSITION], atoms[..., PRESENT], atoms[..., HIDDEN]
        apart = position[:, :, None] - position[:, None]
        # No gradient reaches the coordinates, so the root of zero on the diagonal does no harm.
        distance = apart.square().sum(3, keepdim=True).sqrt()
        gaussians = (-0.5 * ((distance - self.centres) / self.spread).square()).exp()
        fade = 0.5 * (torch.pi * distance.clamp(max=self.cutoff) / self.cutoff).cos() + 0.5
        pairs = fade * present[:, :, None] * present[:, None]
        pairs = pairs * ~torch.eye(atoms.shape[1], dtype=torch.bool, device=atoms.device)[..., None]
        filters = self.filter(gaussians) * pairs
        messages = torch.einsum("bijd,bjd->bid", filters, self.sent(hidden).to(filters.dtype))
        hidden = hidden + present * self.update(messages)
        return torch.cat([position, present, hidden], dim=2)


class Readout(nn.Module):
    """(B, A, 3 + 1 + width) -> (B, 2 * width)."""

    def __init__(self, width: int, atoms: int) -> None:
        super().__init__()
        self.atoms = atoms
        self.net = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(self, atoms: Tensor) -> Tensor:
        """Mean and sum over the atoms that are there."""
        present = atoms[..., PRESENT]
        total = (present * self.net(atoms[..., HIDDEN])).sum(1)
        return torch.cat([total / present.sum(1).clamp(min=1), total / self.atoms], dim=1)
