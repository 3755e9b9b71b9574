"""A neighbour list with a skin, reused while no pair can have entered the cutoff unseen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from ase import Atoms

from nequip_md.errors import NequIPMDError
from nequip_md.graph.build import atom_types, cutoff_matrix, graph_from_pairs
from nequip_md.graph.graph import Graph
from nequip_md.graph.neighbors import neighbor_pairs, periodic_cell


class _Search(NamedTuple):
    """A structure that was searched, and the pairs that were found (see :func:`~nequip_md.graph.neighbors.neighbor_pairs`)."""

    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    pairs: np.ndarray
    shifts: np.ndarray


class VerletList:
    """Graphs of a moving structure. Pairs are searched within cutoff + skin; each call re-evaluates and filters them.

    The list is kept as long as it holds every pair within the cutoff r_c. Let F be the deformation of the cell since
    the search, x = x0 F + u, and s the smallest singular value of F. A pair that the list lacks was farther than
    r_c + skin, hence is now farther than s (r_c + skin) - 2 max|u|. So the list is complete while

        s (r_c + skin) - 2 max|u| >= r_c,

    which in a fixed cell says that no atom has moved by more than half of the skin. Another number of atoms or
    another periodicity gives a new search; other types need none, as the largest cutoff counts. The graph is the same,
    bit for bit, as that of a new search.

    Several threads may share one list, and copies of it go their own ways: a search is kept and replaced as a whole.

    Attributes:
        num_searches: how often pairs were searched so far.
    """

    def __init__(
        self,
        type_names: Sequence[str],
        cutoffs: float | Sequence | np.ndarray | torch.Tensor,
        skin: float = 1.0,
        type_map: Mapping[str, str] | None = None,
    ):
        """Args as for :func:`~nequip_md.graph.build_graph`; ``skin`` in angstrom, 0 searches whenever an atom moves.

        Raises:
            NequIPMDError: a negative skin.
        """
        if not (np.isfinite(skin) and skin >= 0):
            raise NequIPMDError(f"the skin must be a distance of at least 0 angstrom, it is {skin}")
        self.type_names = list(type_names)
        self.type_map = dict(type_map or {})
        self.cutoffs = cutoff_matrix(cutoffs, len(self.type_names))
        self.skin = float(skin)
        self.num_searches = 0
        self._last: _Search | None = None

    def graph(self, atoms: Atoms) -> Graph:
        """The graph of ``atoms`` as they are now.

        Raises:
            NequIPMDError: as for :func:`~nequip_md.graph.build_graph`.
        """
        types = atom_types(atoms, self.type_names, self.type_map)
        cell = periodic_cell(atoms)
        search = self._last
        if search is None or not self._complete(search, atoms.positions, cell, atoms.pbc):
            found = neighbor_pairs(atoms.positions, cell, atoms.pbc, self.cutoffs.max() + self.skin)
            self._last = search = _Search(atoms.positions.copy(), cell, atoms.pbc.copy(), *found)
            self.num_searches += 1
        return graph_from_pairs(atoms.positions, cell, search.pairs, search.shifts, types, self.cutoffs)

    def _complete(self, search: _Search, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> bool:
        if positions.shape != search.positions.shape or (pbc != search.pbc).any():
            return False
        if len(positions) == 0:
            return True
        deformation = np.linalg.solve(search.cell, cell) if (cell != search.cell).any() else np.eye(3)
        smallest = np.linalg.svd(deformation, compute_uv=False)[-1]
        moved = np.linalg.norm(positions - search.positions @ deformation, axis=1).max()
        cutoff = self.cutoffs.max()
        return smallest * (cutoff + self.skin) - 2 * moved >= cutoff
