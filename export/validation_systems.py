"""Structures for the validation of an artifact, of its own types, scaled by its cutoff, in many sizes and shapes."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import torch

from nequip_md.graph import Graph, Structure, build_graph


def open_structure(positions: np.ndarray, types: np.ndarray) -> Structure:
    """A structure without a cell."""
    return Structure(positions, np.zeros((3, 3)), np.zeros(3, dtype=bool), types)


def displaced(structure: Structure, displacement: np.ndarray) -> Structure:
    return replace(structure, positions=structure.positions + displacement)


def strained(structure: Structure, strain: np.ndarray) -> Structure:
    """The structure deformed by r -> r (1 + strain)."""
    deformation = np.eye(3) + strain
    return replace(structure, positions=structure.positions @ deformation, cell=structure.cell @ deformation)


def translated(structure: Structure, translation: np.ndarray) -> Structure:
    """The structure translated, then wrapped into the cell along periodic directions."""
    positions = structure.positions + translation
    turns = np.floor(positions @ np.linalg.inv(structure.invertible_cell)) * structure.pbc
    return replace(structure, positions=positions - turns @ structure.cell)


def random_structure(
    shape: np.ndarray,
    atoms: int,
    neighbors: float,
    num_types: int,
    cutoff: float,
    seed: int,
    *,
    periodic: bool = True,
) -> Structure:
    """Atoms at random positions with a minimum distance, in a cell of the given shape.

    Args:
        shape: cell vectors of any length [3, 3]; scaled for ``neighbors`` atoms, on average, within the cutoff.
        periodic: False keeps the positions and drops the cell.
    """
    rng = np.random.default_rng(seed)
    volume = atoms / neighbors * (4 / 3) * np.pi * cutoff**3
    cell = shape * (volume / abs(np.linalg.det(shape))) ** (1 / 3)
    minimum = 0.78 * (volume / atoms) ** (1 / 3)
    images = np.array(list(product((-1, 0, 1), repeat=3))) @ cell if periodic else np.zeros((1, 3))
    positions = np.empty((0, 3))
    while len(positions) < atoms:
        trial = rng.random(3) @ cell
        vectors = (positions[:, None] - trial + images).reshape(-1, 3)
        if not len(vectors) or np.linalg.norm(vectors, axis=1).min() > minimum:
            positions = np.vstack([positions, trial])
        else:
            minimum *= 0.9995  # so that a full box can take further atoms
    types = rng.permutation(np.arange(atoms) % num_types)
    return Structure(positions, cell, np.full(3, True), types) if periodic else open_structure(positions, types)


def validation_systems(num_types: int, cutoff: float, *, quick: bool) -> dict[str, Structure]:
    """Structures by name, of sizes with which no artifact is traced; the first one has the most typical density."""
    cubic, long = np.eye(3), np.diag([1.0, 1.1, 4.0])
    triclinic = np.array([[1.0, 0.0, 0.0], [0.35, 1.1, 0.0], [-0.3, 0.4, 0.9]])
    last = num_types - 1
    systems = {
        "triclinic box": random_structure(triclinic, 29, 24, num_types, cutoff, seed=11),
        "dense box": random_structure(cubic, 19, 60, num_types, cutoff, seed=12),
        "elongated cell": random_structure(long, 14, 20, num_types, cutoff, seed=13),
        "cluster": random_structure(cubic, 7, 10, num_types, cutoff, seed=14, periodic=False),
        "pair": open_structure(np.array([[0.0, 0.0, 0.0], [0.2, 0.3, -0.1]]) * cutoff, np.array([0, last])),
        "single atom": open_structure(np.zeros((1, 3)), np.array([last])),
        "no atom": open_structure(np.zeros((0, 3)), np.zeros(0, dtype=np.int64)),
    }
    if not quick:
        systems |= {
            "larger box": random_structure(cubic, 97, 30, num_types, cutoff, seed=15),
            "sparse box": random_structure(triclinic, 23, 3, num_types, cutoff, seed=16),
            "one atom and its images": random_structure(triclinic, 1, 12, num_types, cutoff, seed=17),
        }
    return systems


def isolated_atoms(num_types: int) -> Graph:
    """A graph with one atom of each type and no edge."""
    return Graph(
        torch.zeros(0, 3, dtype=torch.float64),
        torch.zeros(2, 0, dtype=torch.int64),
        torch.zeros(num_types + 1, dtype=torch.int64),
        torch.arange(num_types),
    )


def crossing_pairs(cutoffs: np.ndarray, inside: float, *, most: int = 64) -> tuple[list[Graph], list[int]]:
    """For each ordered pair of types, a graph in which one atom is about to leave the other's cutoff.

    Each graph holds a centre, an atom at ``(1 - inside)`` of the centre's cutoff for it, and two atoms near the centre.

    Args:
        most: largest number of pairs, which are chosen evenly.

    Returns:
        The graphs, and for each the index of the edge that is about to vanish.
    """
    rng = np.random.default_rng(18)
    num_types = len(cutoffs)
    every = list(product(range(num_types), repeat=2))
    graphs, edges = [], []
    for centre, neighbour in every[:: -(-len(every) // most)]:
        distance = cutoffs[centre, neighbour] * (1 - inside)
        near = cutoffs.min() * np.array([[-0.2, 0.35, 0.1], [0.1, -0.3, 0.3]])
        positions = np.vstack([np.zeros(3), [distance, 0.0, 0.0], near])
        types = np.array([centre, neighbour, *rng.integers(0, num_types, 2)])
        graph = build_graph(open_structure(positions, types), cutoffs)
        leaving = (graph.edge_index[0] == 0) & (graph.edge_index[1] == 1)
        graphs.append(graph)
        edges.append(int(leaving.nonzero()[0, 0]))
    return graphs, edges


def without_edge(graph: Graph, edge: int) -> Graph:
    """The same graph without one edge."""
    keep = torch.arange(graph.num_edges, device=graph.row_ptr.device) != edge
    row_ptr = graph.row_ptr.clone()
    row_ptr[int(graph.edge_index[0, edge]) + 1 :] -= 1
    return Graph(graph.edge_vectors[keep], graph.edge_index[:, keep], row_ptr, graph.node_types)


def some_centres(graph: Graph, first: int, count: int) -> tuple[Graph, slice]:
    """A graph with atoms ``first`` to ``first + count - 1`` as owned atoms and all others as ghosts, and the indices of its edges."""
    nodes = torch.arange(graph.num_nodes, device=graph.row_ptr.device)
    owned = nodes[first : first + count]
    order = torch.cat([owned, nodes[:first], nodes[first + count :]])
    place = torch.empty_like(order)
    place[order] = nodes
    edges = slice(int(graph.row_ptr[first]), int(graph.row_ptr[first + count]))
    row_ptr = graph.row_ptr[first : first + count + 1] - graph.row_ptr[first]
    return Graph(graph.edge_vectors[edges], place[graph.edge_index[:, edges]], row_ptr, graph.node_types[order]), edges
