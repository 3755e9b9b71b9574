"""Lennard-Jones as a model that obeys the artifact contract: an oracle that LAMMPS has natively."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LennardJones(nn.Module):
    """Half of a truncated and shifted Lennard-Jones energy for each edge: ``lj/cut`` with ``pair_modify shift yes``.

    E_i = s_i + 1/2 sum_j [phi(r_ij) - phi(r_c)] for r_ij < r_c, phi(r) = 4 eps ((sigma/r)^12 - (sigma/r)^6).

    Args:
        epsilon: well depths, eV, [T][T].
        sigma: diameters, angstrom, [T][T].
        cutoffs: cutoff of each ordered pair, angstrom, [centre type][neighbour type].
        shifts: energy of an isolated atom of each type, eV.
    """

    def __init__(self, epsilon, sigma, cutoffs, shifts=None):
        super().__init__()
        epsilon, sigma, cutoffs = (torch.tensor(x, dtype=torch.float64) for x in (epsilon, sigma, cutoffs))
        self.register_buffer("epsilon", epsilon)
        self.register_buffer("sigma", sigma)
        self.register_buffer("cutoffs", cutoffs)
        self.register_buffer("at_cutoff", self._phi(epsilon, (sigma / cutoffs) ** 2))
        self.register_buffer("shifts", torch.tensor(shifts or [0.0] * len(epsilon), dtype=torch.float64))

    @staticmethod
    def _phi(epsilon: Tensor, sigma_over_r_squared: Tensor) -> Tensor:
        six = sigma_over_r_squared**3
        return 4 * epsilon * (six * six - six)

    def forward(self, edge_vectors: Tensor, edge_index: Tensor, row_ptr: Tensor, node_types: Tensor) -> Tensor:
        centre, neighbour = edge_index[0], edge_index[1]
        pair = (node_types[centre], node_types[neighbour])
        r_squared = edge_vectors.square().sum(1)
        energy = self._phi(self.epsilon[pair], self.sigma[pair] ** 2 / r_squared) - self.at_cutoff[pair]
        energy = torch.where(r_squared < self.cutoffs[pair] ** 2, energy, torch.zeros_like(energy))
        num_owned = row_ptr.shape[0] - 1
        node_energy = energy.new_zeros(num_owned).index_add(0, centre, 0.5 * energy)
        return node_energy + self.shifts[node_types[:num_owned]]
