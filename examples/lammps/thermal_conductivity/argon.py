"""Liquid argon's Lennard-Jones potential as an artifact: any torch module that obeys the contract of docs/artifact.md will do."""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

from nequip_md.export import artifact_metadata, write_artifact

EPSILON = 0.010324  # eV; 119.8 K
SIGMA = 3.405  # angstrom
CUTOFF = 8.5  # angstrom, 2.5 sigma


class Argon(nn.Module):
    """E_i = 1/2 sum_j [phi(r_ij) - phi(r_c)], phi(r) = 4 epsilon ((sigma/r)^12 - (sigma/r)^6)."""

    def forward(self, edge_vectors: Tensor, edge_index: Tensor, row_ptr: Tensor, node_types: Tensor) -> Tensor:
        r_squared = edge_vectors.square().sum(1)
        energy = torch.where(r_squared < CUTOFF**2, 0.5 * (self.phi(r_squared) - self.phi(CUTOFF**2)), 0.0)
        return energy.new_zeros(row_ptr.shape[0] - 1).index_add(0, edge_index[0], energy)

    @staticmethod
    def phi(r_squared):
        six = (SIGMA**2 / r_squared) ** 3
        return 4 * EPSILON * (six * six - six)


if __name__ == "__main__":
    write_artifact(Argon(), sys.argv[1], artifact_metadata(kind="lennard-jones", type_names=["Ar"], cutoff=CUTOFF))
