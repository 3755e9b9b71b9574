"""Structures to graphs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from nequip_md.errors import NequIPMDError
from nequip_md.graph.combine import unbatch_graph
from nequip_md.graph.graph import Graph
from nequip_md.graph.neighbors import edge_vectors, neighbor_pairs, search_groups
from nequip_md.graph.structure import Structure

Cutoffs = float | Sequence | np.ndarray | torch.Tensor
"""Angstrom; one number, or one for each ``[centre type][neighbour type]``."""


def cutoff_matrix(cutoffs: Cutoffs) -> np.ndarray:
    """Cutoffs in angstrom, ``[centre type][neighbour type]``, or [] of one number for all pairs.

    Raises:
        NequIPMDError: another shape, or a cutoff that is not positive and finite.
    """
    matrix = np.asarray(cutoffs, dtype=np.float64)
    if matrix.ndim and (matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]):
        raise NequIPMDError(
            f"cutoffs have shape {matrix.shape}; give one number, or one for each centre type and neighbour type"
        )
    if not (np.isfinite(matrix) & (matrix > 0)).all():
        raise NequIPMDError(f"cutoffs must be positive numbers of angstrom, they are {matrix.tolist()}")
    return matrix


def graph_from_pairs(
    structures: Sequence[Structure], pairs: np.ndarray, shifts: np.ndarray, cutoffs: np.ndarray
) -> Graph:
    """Keep the pairs closer than the cutoff of their types (row: centre, column: neighbour).

    Args:
        pairs, shifts: from :func:`~nequip_md.graph.neighbors.neighbor_pairs` with at least the largest cutoff.
        cutoffs: from :func:`cutoff_matrix`.

    Raises:
        NequIPMDError: an atom of a type that the cutoffs do not hold.
    """
    types = np.concatenate([s.types for s in structures])
    if cutoffs.ndim and types.size and types.max() >= len(cutoffs):
        raise NequIPMDError(f"an atom has type {types.max()}, but there are cutoffs for {len(cutoffs)} types only")
    vectors = edge_vectors(structures, pairs, shifts)
    squares = cutoffs**2 if cutoffs.ndim == 0 else (cutoffs**2)[types[pairs[0]], types[pairs[1]]]
    keep = np.einsum("ij,ij->i", vectors, vectors) < squares
    vectors, pairs = vectors.compress(keep, axis=0), pairs.compress(keep, axis=1)
    row_ptr = np.zeros(len(types) + 1, dtype=np.int64)
    np.cumsum(np.bincount(pairs[0], minlength=len(types)), out=row_ptr[1:])
    graph_ptr = np.cumsum([0, *(s.num_atoms for s in structures)])
    return Graph(*map(torch.from_numpy, (vectors, pairs, row_ptr, types, graph_ptr)))


def build_graph(structure: Structure, cutoffs: Cutoffs) -> Graph:
    """The graph of one structure: every ordered pair closer than its cutoff, through every periodic image.

    Cells may be triclinic, smaller than the cutoff, or open in any direction; positions may lie outside the cell.

    Args:
        cutoffs: angstrom; one number, or one for each ``[centre type][neighbour type]``.

    Raises:
        NequIPMDError: cutoffs of another shape or not positive, a type without cutoffs, a cell that has collapsed.
    """
    matrix = cutoff_matrix(cutoffs)
    return graph_from_pairs([structure], *neighbor_pairs([structure], matrix.max()), matrix)


def build_graphs(structures: Sequence[Structure], cutoffs: Cutoffs) -> list[Graph]:
    """The graph of each of many structures, as :func:`build_graph` gives them, but faster for small structures.

    :func:`~nequip_md.graph.batch_graphs` makes one graph of them.

    Args:
        cutoffs: angstrom; one number, or one for each ``[centre type][neighbour type]``.

    Raises:
        NequIPMDError: as for :func:`build_graph`.
    """
    if not structures:
        return []
    matrix = cutoff_matrix(cutoffs)
    graphs = []
    for group in search_groups(structures, matrix.max()):
        graphs += unbatch_graph(graph_from_pairs(group, *neighbor_pairs(group, matrix.max()), matrix))
    return graphs
