"""The graph that a model sees: edges, their centres and types. No positions and no cell."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Graph:
    """One structure or a batch of them, in the layout of the artifact contract.

    N owned atoms come first, then G ghosts (copies of atoms that another rank owns; none in Python engines).

    Attributes:
        edge_vectors: r_j - r_i with the periodic shift added, angstrom, float64 [E, 3].
        edge_index: centre i (row 0, owned, ascending) and neighbour j (row 1), int64 [2, E].
        row_ptr: offsets of each centre's edges, int64 [N + 1].
        node_types: model types of the owned atoms, then of the ghosts, int64 [N + G].
        graph_ptr: offsets of each structure's owned atoms, int64 [B + 1]; by default one structure of N atoms.
            Phantom atoms that padding appends lie beyond ``graph_ptr[-1]``: they belong to no structure.
    """

    edge_vectors: Tensor
    edge_index: Tensor
    row_ptr: Tensor
    node_types: Tensor
    graph_ptr: Tensor = field(default=None)  # type: ignore[assignment]

    def __post_init__(self):
        if self.graph_ptr is None:
            object.__setattr__(self, "graph_ptr", self.row_ptr.new_tensor([0, self.num_nodes]))

    @property
    def num_nodes(self) -> int:
        """N, the number of owned atoms, phantoms included."""
        return self.row_ptr.shape[0] - 1

    @property
    def num_edges(self) -> int:
        return self.edge_vectors.shape[0]

    @property
    def num_graphs(self) -> int:
        return self.graph_ptr.shape[0] - 1

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The four inputs of a model, in the order of its ``forward``."""
        return self.edge_vectors, self.edge_index, self.row_ptr, self.node_types

    @property
    def node_graph(self) -> Tensor:
        """Structure of each owned atom, int64 [N]; B, the number of structures, for phantom atoms."""
        atoms = torch.arange(self.num_nodes, device=self.graph_ptr.device)
        # the last structure that begins at the atom or before it. The ends, graph_ptr[1:], would do too, but Inductor 2.11 takes the
        # wrong elements of a slice on GPUs
        return torch.searchsorted(self.graph_ptr, atoms, right=True) - 1

    def to(self, device: torch.device | str) -> Graph:
        return replace(self, **{name: getattr(self, name).to(device) for name in self.__dataclass_fields__})
