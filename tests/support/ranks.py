"""Division of a structure among ranks: each owns some atoms, and has ghosts for the other neighbours."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from nequip_md.graph import Graph, Structure, build_graph, forces_from_gradient


class Rank:
    """The part of a structure on one rank.

    Attributes:
        atoms: the atoms that it owns, in its order.
        edges: the edges of the whole graph that start at these atoms, in their order.
        graph: the graph of these atoms and the ghosts; no two nodes are images of one atom.
        ghost_atoms: the atom of which each ghost is an image.
    """

    def __init__(self, structure: Atoms, whole: Graph, atoms: Tensor):
        self.atoms = atoms
        local = {int(atom): k for k, atom in enumerate(atoms)}
        positions = torch.from_numpy(structure.positions)
        ghosts: dict[tuple, int] = {}
        edges, index, row_ptr = [], [], [0]
        for atom in atoms.tolist():
            for edge in range(int(whole.row_ptr[atom]), int(whole.row_ptr[atom + 1])):
                other = int(whole.edge_index[1, edge])
                shift = whole.edge_vectors[edge] - (positions[other] - positions[atom])
                if other in local and shift.abs().max() < 1e-6:
                    node = local[other]
                else:
                    image = (other, *np.round(shift.numpy(), 4).tolist())
                    node = len(atoms) + ghosts.setdefault(image, len(ghosts))
                edges.append(edge)
                index.append((local[atom], node))
            row_ptr.append(len(index))
        self.edges = torch.tensor(edges)
        self.ghost_atoms = torch.tensor([image[0] for image in ghosts], dtype=torch.int64)
        self.graph = Graph(
            whole.edge_vectors[self.edges],
            torch.tensor(index).T.contiguous(),
            torch.tensor(row_ptr),
            whole.node_types[torch.cat([atoms, self.ghost_atoms])],
        )

    def forces(self, gradient: Tensor, total: Tensor) -> None:
        """Add the forces on owned atoms and ghosts to ``total`` [atoms, 3]."""
        total.index_add_(0, torch.cat([self.atoms, self.ghost_atoms]), forces_from_gradient(self.graph, gradient))


def split(structure: Atoms, type_names: list[str], cutoffs: Tensor, owners: Sequence[int]) -> tuple[Graph, list[Rank]]:
    """The graph of a structure in one process, and that of each rank.

    Args:
        owners: the rank that owns each atom.
    """
    whole = build_graph(Structure.from_ase(structure, type_names), cutoffs)
    owners = torch.as_tensor(owners)
    return whole, [
        Rank(structure, whole, (owners == rank).nonzero().squeeze(1)) for rank in range(int(owners.max()) + 1)
    ]


class Communicator:
    """Exchanges features between ranks that are threads of this process; ``calls`` has (reduce, width) of each call of rank 0."""

    def __init__(self, ranks: list[Rank]):
        self.ranks = ranks
        self.calls: list[tuple[bool, int]] = []
        self._features: list[Tensor | None] = [None] * len(ranks)
        self._barrier = threading.Barrier(len(ranks), timeout=60)

    def exchange(self, rank: int):
        """The function for :meth:`nequip_md.artifact.Artifact.set_exchange` of this rank."""
        atoms = int(max(r.atoms.max() for r in self.ranks)) + 1
        mine, ghosts = self.ranks[rank].atoms, self.ranks[rank].ghost_atoms

        def call(features: Tensor, owned: int, reduce: bool) -> None:
            if rank == 0:
                self.calls.append((reduce, features.shape[1]))
            assert features.shape[0] == owned + len(ghosts) and owned >= len(mine)
            self._features[rank] = features
            self._barrier.wait()
            everywhere = features.new_zeros(atoms, features.shape[1])
            for other, theirs in zip(self.ranks, self._features, strict=True):
                if reduce:
                    everywhere.index_add_(0, other.ghost_atoms, theirs[theirs.shape[0] - len(other.ghost_atoms) :])
                else:
                    everywhere[other.atoms] = theirs[: len(other.atoms)]
            # no rank writes before all have read
            self._barrier.wait()
            if reduce:
                features[: len(mine)] += everywhere[mine]
            else:
                features[owned:] = everywhere[ghosts]
            self._barrier.wait()

        return call
