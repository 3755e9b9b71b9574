"""A neighbour list with a skin, reused while no pair can have entered the cutoff unseen."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nequip_md.errors import NequIPMDError
from nequip_md.graph.build import Cutoffs, cutoff_matrix, graph_from_pairs
from nequip_md.graph.graph import Graph
from nequip_md.graph.neighbors import neighbor_pairs
from nequip_md.graph.structure import Structure


class _Search(NamedTuple):
    """A structure that was searched, and the pairs that were found (see :func:`~nequip_md.graph.neighbors.neighbor_pairs`)."""

    structure: Structure
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

    def __init__(self, cutoffs: Cutoffs, skin: float = 1.0):
        """Cutoffs as for :func:`~nequip_md.graph.build_graph`; ``skin`` in angstrom, 0 searches whenever an atom moves.

        Raises:
            NequIPMDError: a negative skin, or cutoffs that :func:`~nequip_md.graph.build_graph` refuses.
        """
        if not (np.isfinite(skin) and skin >= 0):
            raise NequIPMDError(f"the skin must be a distance of at least 0 angstrom, it is {skin}")
        self.cutoffs = cutoff_matrix(cutoffs)
        self.skin = float(skin)
        self.num_searches = 0
        self._last: _Search | None = None

    def graph(self, structure: Structure) -> Graph:
        """The graph of the structure as it is now.

        Raises:
            NequIPMDError: as for :func:`~nequip_md.graph.build_graph`.
        """
        search = self._last
        if search is None or not self._complete(search.structure, structure):
            found = neighbor_pairs([structure], self.cutoffs.max() + self.skin)
            self._last = search = _Search(structure, *found)
            self.num_searches += 1
        return graph_from_pairs([structure], search.pairs, search.shifts, self.cutoffs)

    def _complete(self, then: Structure, now: Structure) -> bool:
        """Whether the pairs that were found in ``then`` are all that can be within the cutoff in ``now``."""
        if now.num_atoms != then.num_atoms or (now.pbc != then.pbc).any():
            return False
        if now.num_atoms == 0:
            return True
        before, cell = then.invertible_cell, now.invertible_cell
        deformation = np.linalg.solve(before, cell) if (cell != before).any() else np.eye(3)
        smallest = np.linalg.svd(deformation, compute_uv=False)[-1]
        moved = np.linalg.norm(now.positions - then.positions @ deformation, axis=1).max()
        cutoff = self.cutoffs.max()
        return smallest * (cutoff + self.skin) - 2 * moved >= cutoff
