"""ASE atoms to a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from ase import Atoms

from nequip_md.errors import NequIPMDError
from nequip_md.graph.graph import Graph
from nequip_md.graph.neighbors import edge_vectors, neighbor_pairs, periodic_cell


def atom_types(atoms: Atoms, type_names: Sequence[str], type_map: Mapping[str, str] | None = None) -> np.ndarray:
    """Index into ``type_names`` of each atom, int64 [N].

    Args:
        type_names: the model's types; usually chemical symbols.
        type_map: chemical symbol to type name, where they differ; symbols that it does not hold stand for themselves.
            None where the caller takes none: then the message does not propose it.

    Raises:
        NequIPMDError: a symbol without a type, or a mapping to a type that the model lacks.
    """
    remedy = "type_names must list every element when a model is trained"
    if type_map is not None:
        remedy += "; if its types are not named by chemical symbols, give type_map"
    type_map = type_map or {}
    names = ", ".join(type_names)
    for symbol, name in type_map.items():
        if name not in type_names:
            raise NequIPMDError(
                f"type_map gives {name!r} for {symbol}, which is no type of the model; its types are {names}"
            )
    index = {name: k for k, name in enumerate(type_names)}
    symbols = atoms.get_chemical_symbols()
    unknown = sorted({s for s in symbols if type_map.get(s, s) not in index})
    if unknown:
        raise NequIPMDError(f"the model has no type for {', '.join(unknown)}; its types are {names}: {remedy}")
    return np.array([index[type_map.get(s, s)] for s in symbols], dtype=np.int64)


def cutoff_matrix(cutoffs: float | Sequence | np.ndarray | torch.Tensor, num_types: int) -> np.ndarray:
    """Cutoffs in angstrom, ``[centre type][neighbour type]``; one number stands for all pairs.

    Raises:
        NequIPMDError: another shape, or a cutoff that is not positive and finite.
    """
    matrix = np.asarray(cutoffs, dtype=np.float64)
    if matrix.ndim == 0:
        matrix = np.full((num_types, num_types), matrix)
    if matrix.shape != (num_types, num_types):
        raise NequIPMDError(
            f"cutoffs have shape {matrix.shape}; {num_types} types need one number or {(num_types, num_types)}"
        )
    if not (np.isfinite(matrix) & (matrix > 0)).all():
        raise NequIPMDError(f"cutoffs must be positive numbers of angstrom, they are {matrix.tolist()}")
    return matrix


def graph_from_pairs(
    positions: np.ndarray,
    cell: np.ndarray,
    pairs: np.ndarray,
    shifts: np.ndarray,
    types: np.ndarray,
    cutoffs: np.ndarray,
) -> Graph:
    """Keep the pairs closer than the cutoff of their types (row: centre, column: neighbour).

    Args:
        pairs, shifts: from :func:`~nequip_md.graph.neighbors.neighbor_pairs` with at least the largest cutoff.
    """
    vectors = edge_vectors(positions, cell, pairs, shifts)
    keep = np.einsum("ij,ij->i", vectors, vectors) < (cutoffs**2)[types[pairs[0]], types[pairs[1]]]
    pairs = pairs[:, keep]
    row_ptr = np.zeros(len(positions) + 1, dtype=np.int64)
    np.cumsum(np.bincount(pairs[0], minlength=len(positions)), out=row_ptr[1:])
    return Graph(*map(torch.from_numpy, (vectors[keep], pairs, row_ptr, types)))


def build_graph(
    atoms: Atoms,
    type_names: Sequence[str],
    cutoffs: float | Sequence | np.ndarray | torch.Tensor,
    type_map: Mapping[str, str] | None = None,
) -> Graph:
    """The graph of one structure: every ordered pair closer than its cutoff, through every periodic image.

    Cells may be triclinic, smaller than the cutoff, or open in any direction; positions may lie outside the cell.

    Args:
        type_names: the model's types.
        cutoffs: angstrom; one number, or one for each ``[centre type][neighbour type]``.
        type_map: chemical symbol to type name where they differ, see :func:`atom_types`.

    Raises:
        NequIPMDError: an unknown element, positions or a cell that are not finite or beyond 1e9 angstrom, a periodic
            direction without a cell vector, a cell that has collapsed.
    """
    matrix = cutoff_matrix(cutoffs, len(type_names))
    types = atom_types(atoms, type_names, type_map)
    cell = periodic_cell(atoms)
    pairs, shifts = neighbor_pairs(atoms.positions, cell, atoms.pbc, matrix.max())
    return graph_from_pairs(atoms.positions, cell, pairs, shifts, types, matrix)
