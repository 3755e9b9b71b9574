"""Ziegler-Biersack-Littmark screened nuclear repulsion."""

from __future__ import annotations

import torch
from ase.data import atomic_numbers
from torch import Tensor, nn

from nequip_md.model.config import PotentialConfig
from nequip_md.model.radial import EdgeGeometry
from nequip_md.ops.edge_embedding import envelope

# constants of the universal screening function and of LAMMPS' metal units, as documented for LAMMPS' pair_style zbl
_SCREENING = ((0.02817, 0.20162), (0.28022, 0.40290), (0.50986, 0.94229), (0.18175, 3.19980))
_EXPONENT = 0.23
_LENGTH = 0.46850  # angstrom
_COULOMB = 14.399645  # eV angstrom


class ZBL(nn.Module):
    r"""Half of the pair energy for each directed edge, times the cutoff envelope u_p(x).

    .. math:: E_{ij} = \frac{e^2}{4\pi\epsilon_0} \frac{Z_i Z_j}{r} \phi(r / a), \quad a = \frac{0.4685}{Z_i^{0.23} + Z_j^{0.23}}

    Ziegler, Biersack, Littmark, "The Stopping and Range of Ions in Matter" (1985).
    """

    charges: Tensor
    screening: Tensor
    """Z^0.23 of each type"""

    def __init__(self, config: PotentialConfig):
        super().__init__()
        numbers = [float(atomic_numbers[s]) for s in config.pair_potential.chemical_species]
        charges = torch.tensor(numbers, dtype=torch.float64)
        self.register_buffer("charges", charges, persistent=False)
        self.register_buffer("screening", charges.pow(_EXPONENT), persistent=False)
        self.p = 6.0

    def forward(self, edges: EdgeGeometry) -> Tensor:
        """Energy of each directed edge, eV, float64 [E]."""
        zi = self.charges.index_select(0, edges.centre_type)
        zj = self.charges.index_select(0, edges.neighbour_type)
        screening = self.screening.index_select(0, edges.centre_type) + self.screening.index_select(
            0, edges.neighbour_type
        )
        scaled = edges.length * screening / _LENGTH
        phi = sum(c * torch.exp(-d * scaled) for c, d in _SCREENING)
        return 0.5 * _COULOMB * zi * zj / edges.length * phi * envelope(edges.x, self.p)
