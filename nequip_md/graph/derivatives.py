"""Forces, virials and stresses from the gradient of the energy by each edge vector.

With g_ij = dE/dr_ij for the directed edge i -> j (zero on phantom edges), for every model and engine alike:

    F_i = sum over own edges of g_ij - sum over edges that end at i of g_ki,    W = -sum r_ij (x) g_ij,
    stress = -W / V = (1/V) dE/d(strain).

All functions are differentiable by the gradient, as training on forces and stresses needs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nequip_md.graph.graph import Graph


def total_energy(graph: Graph, node_energy: Tensor) -> Tensor:
    """Energy of each structure, eV [B], from the energies of the owned atoms [N]; phantom atoms are left out."""
    # phantom atoms add to an entry of their own
    return node_energy.new_zeros(graph.num_graphs + 1).index_add(0, graph.node_graph, node_energy)[:-1]


def forces_from_gradient(graph: Graph, gradient: Tensor) -> Tensor:
    """Forces on owned atoms, then ghosts, eV/angstrom [N + G, 3], from the edge gradient [E, 3]."""
    zero = gradient.new_zeros(graph.node_types.shape[0], 3)
    return zero.index_add(0, graph.edge_index[0], gradient).index_add(0, graph.edge_index[1], -gradient)


def virial_from_gradient(graph: Graph, gradient: Tensor) -> Tensor:
    """W = -sum r_ij (x) g_ij of each structure, eV [B, 3, 3]; component [a, b] is -sum r_a g_b."""
    if graph.num_graphs == 1:
        return -(graph.edge_vectors.T @ gradient).unsqueeze(0)
    index = graph.node_graph[graph.edge_index[0]]
    products = graph.edge_vectors[:, :, None] * gradient[:, None, :]
    # edges of phantom atoms add to an entry of their own
    return -products.new_zeros(graph.num_graphs + 1, 3, 3).index_add(0, index, products)[:-1]


def stress_from_gradient(graph: Graph, gradient: Tensor, volume: Tensor | float) -> Tensor:
    """(1/V) sum r_ij (x) g_ij of each structure, eV/angstrom^3 [B, 3, 3]; positive when the structure is under tension.

    Args:
        volume: angstrom^3, one number or one for each structure [B].
    """
    volume = torch.as_tensor(volume, dtype=gradient.dtype, device=gradient.device)
    return -virial_from_gradient(graph, gradient) / volume.reshape(-1, 1, 1)


def atomic_virials(graph: Graph, gradient: Tensor) -> Tensor:
    """Virial of each owned atom, then ghost, eV [N + G, 3, 3]: half of every edge's product to each of its ends.

    They sum to the virial of the structure. The halves are a convention (that of LAMMPS' ``compute stress/atom``); a
    many-body energy has no unique virial per atom.
    """
    halves = -0.5 * graph.edge_vectors[:, :, None] * gradient[:, None, :]
    zero = halves.new_zeros(graph.node_types.shape[0], 3, 3)
    return zero.index_add(0, graph.edge_index[0], halves).index_add(0, graph.edge_index[1], halves)
