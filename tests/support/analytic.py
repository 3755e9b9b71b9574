"""Analytic potentials as models with the inputs and outputs of an artifact; LAMMPS has them natively."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nequip_md.ops import ghost_exchange


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


class EmbeddedAtom(nn.Module):
    """A many-body potential, which LAMMPS has as ``eam/alloy``: E_i = s_i + F(rho_i) + 1/2 sum_j phi(r_ij).

    rho_i = sum_j w(t_j) (1 - r/r_c)^3 exp(-r), F(rho) = -a(t_i) (sqrt(rho + 0.05) - sqrt(0.05)),
    phi(r) = b(t_i, t_j) exp(-1.8 (r - 2.5)) (1 - r/r_c)^3, for r < r_c.

    Args:
        weights, depths: w and a (eV) of each type, [T].
        repulsion: b, eV, symmetric, [T][T].
        cutoff: r_c, angstrom.
        shifts: energy of an isolated atom of each type, eV.
    """

    def __init__(self, weights, depths, repulsion, cutoff: float, shifts=None):
        super().__init__()
        self.cutoff = cutoff
        for name, values in (
            ("weights", weights),
            ("depths", depths),
            ("repulsion", repulsion),
            ("shifts", shifts or [0.0] * len(weights)),
        ):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float64))

    def density(self, r: Tensor) -> Tensor:
        return (1 - r / self.cutoff).clamp(min=0) ** 3 * torch.exp(-r)

    def pair(self, r: Tensor) -> Tensor:
        return torch.exp(-1.8 * (r - 2.5)) * (1 - r / self.cutoff).clamp(min=0) ** 3

    def embedding(self, rho: Tensor) -> Tensor:
        return -(torch.sqrt(rho + 0.05) - 0.05**0.5)

    def forward(self, edge_vectors: Tensor, edge_index: Tensor, row_ptr: Tensor, node_types: Tensor) -> Tensor:
        r = edge_vectors.square().sum(1).sqrt()
        types = node_types[edge_index[0]], node_types[edge_index[1]]
        owned = node_types[: row_ptr.shape[0] - 1]
        rho = self.sums(self.weights[types[1]] * self.density(r), edge_index, owned)
        pairs = 0.5 * self.repulsion[types] * self.pair(r)
        return self.shifts[owned] + self.energies(rho, pairs, self.density(r), types, edge_index, node_types, owned)

    @staticmethod
    def sums(values: Tensor, edge_index: Tensor, owned: Tensor) -> Tensor:
        """Sum of the values of each owned atom's edges, [N]."""
        return torch.zeros_like(owned, dtype=torch.float64).index_add(0, edge_index[0], values)

    def energies(self, rho, pairs, density, types, edge_index, node_types, owned) -> Tensor:
        """Energy of each owned atom [N] without its shift, from its rho, and the pair terms and densities (before weights) of edges [E]."""
        return self.depths[owned] * self.embedding(rho) + self.sums(pairs, edge_index, owned)

    def write_setfl(self, path, names: list[str], points: int = 20_000, largest_density: float = 3.0) -> None:
        """Write the file that ``pair_style eam/alloy`` reads, with tables so dense that their splines are exact to 1e-11."""
        r = torch.arange(points, dtype=torch.float64) * (self.cutoff / (points - 1))
        rho = torch.arange(points, dtype=torch.float64) * (largest_density / (points - 1))
        lines = ["tables of a test", "", "", f"{len(names)} {' '.join(names)}"]
        lines.append(f"{points} {float(rho[1])!r} {points} {float(r[1])!r} {self.cutoff!r}")

        def add(values: Tensor) -> None:
            lines.extend(map(repr, values.tolist()))

        for t in range(len(names)):
            lines.append("18 40.0 5.4 fcc")
            add(self.depths[t] * self.embedding(rho))
            add(self.weights[t] * self.density(r))
        for t in range(len(names)):
            for other in range(t + 1):
                add(r * self.repulsion[t, other] * self.pair(r))
        path.write_text("\n".join(lines) + "\n")


class EmbeddedAtomByMessages(EmbeddedAtom):
    """The same potential with message passing: each atom's F(rho) belongs to those that make its density, in proportion.

    F(rho_j) = sum_i w(t_i) (1 - r/r_c)^3 exp(-r) F(rho_j) / rho_j, so total energy, forces and virials are those of
    :class:`EmbeddedAtom`, but an atom's energy takes features of its neighbours: a(t_j) and sqrt(rho_j + 0.05).
    """

    def energies(self, rho, pairs, density, types, edge_index, node_types, owned) -> Tensor:
        features = torch.stack([self.depths[owned], torch.sqrt(rho + 0.05)], dim=1)
        depth, root = ghost_exchange(features, node_types)[edge_index[1]].unbind(1)
        # F / rho without a division by rho, which may be 0
        share = -depth / (root + 0.05**0.5)
        return self.sums(self.weights[types[0]] * density * share + pairs, edge_index, owned)
