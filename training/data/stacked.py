"""Samples that stay on the training device, in one tensor for each kind of value."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nequip_md.graph import Graph
from nequip_md.training.data.sample_set import SampleSet
from nequip_md.training.data.samples import Sample

_TOGETHER = 256
"""Samples that are copied to the device at once."""
_OF_ATOMS = ("node_types", "degrees", "forces")
_OF_FRAMES = ("energy", "stress", "volume", "weight")


class StackedSamples(Sequence[Sample]):
    """The samples of a data set on a device. A batch is gathered by a number of operations that does not grow with it, and only
    the numbers of its frames, and where they lie, are copied to the device."""

    def __init__(self, samples: SampleSet, device: torch.device):
        self._atoms, self._edges = samples.table.num_atoms, samples.table.num_edges
        self._first_atom, self._first_edge = (np.cumsum(n) - n for n in (self._atoms, self._edges))
        self.device = device
        frames, atoms, edges = len(samples), int(self._atoms.sum()), int(self._edges.sum())

        def new(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        self._vectors, self._index = new(edges, 3), new(2, edges, dtype=torch.int64)
        types, degrees = (new(atoms, dtype=torch.int64) for _ in range(2))
        self._of_atoms = dict(zip(_OF_ATOMS, (types, degrees, new(atoms, 3))))
        shapes = ((frames,), (frames, 3, 3), (frames,), (frames,))
        self._of_frames = {name: new(*shape) for name, shape in zip(_OF_FRAMES, shapes)}
        frame = atom = edge = 0
        for some in samples.in_batches(_TOGETHER):
            some = some.to(device)
            graph = some.graph
            n, e = graph.num_nodes, graph.num_edges
            self._vectors[edge : edge + e] = graph.edge_vectors
            # atoms are counted from the first of each sample
            first = graph.graph_ptr[graph.node_graph[graph.edge_index[0]]]
            self._index[:, edge : edge + e] = graph.edge_index - first
            of_atoms = (graph.node_types, graph.row_ptr.diff(), some.forces)
            for target, values in zip(self._of_atoms.values(), of_atoms):
                target[atom : atom + n] = values
            for name, target in self._of_frames.items():
                target[frame : frame + graph.num_graphs] = getattr(some, name)
            frame, atom, edge = frame + graph.num_graphs, atom + n, edge + e

    def __len__(self) -> int:
        return len(self._atoms)

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} samples, and none with index {index}")
        return self.batch([index % len(self)])

    def __getitems__(self, indices: list[int]) -> Sample | list[Sample]:
        """The batch of these samples, for ``DataLoader``; an empty list of none."""
        return self.batch(indices) if indices else []

    def batch(self, indices: Sequence[int]) -> Sample:
        """The batch that :func:`~nequip_md.training.data.samples.collate` gives for these samples, on the device."""
        frames = np.asarray(indices)
        atoms, edges = self._atoms[frames], self._edges[frames]
        ends, edge_ends = np.cumsum(atoms), np.cumsum(edges)
        num_atoms, num_edges, count = int(ends[-1]), int(edge_ends[-1]), len(frames)
        # one small copy; rows begin at multiples of 64 bytes, as compiled code may expect
        plan = np.zeros((6, -(-(count + 1) // 8) * 8), dtype=np.int64)
        plan[0, 1 : count + 1] = ends
        # what is added to the number of an atom and of an edge in the batch to find it here
        to_atom, to_edge = self._first_atom[frames] - (ends - atoms), self._first_edge[frames] - (edge_ends - edges)
        plan[1:, :count] = frames, atoms, edges, to_atom, to_edge
        plan = torch.from_numpy(plan).to(self.device, non_blocking=True)
        graph_ptr = plan[0, : count + 1]
        frames, atoms, edges, to_atom, to_edge = plan[1:, :count]

        rows = torch.arange(num_atoms, device=self.device)
        rows = rows + torch.repeat_interleave(to_atom, atoms, output_size=num_atoms)
        columns = torch.stack([to_edge, graph_ptr[:-1]])
        columns = torch.repeat_interleave(columns, edges, dim=1, output_size=num_edges)
        places = torch.arange(num_edges, device=self.device) + columns[0]
        of_atoms = {name: values.index_select(0, rows) for name, values in self._of_atoms.items()}
        row_ptr = rows.new_zeros(num_atoms + 1)
        torch.cumsum(of_atoms["degrees"], 0, out=row_ptr[1:])
        graph = Graph(
            edge_vectors=self._vectors.index_select(0, places),
            edge_index=self._index.index_select(1, places) + columns[1],
            row_ptr=row_ptr,
            node_types=of_atoms["node_types"],
            graph_ptr=graph_ptr,
        )
        labels = {name: values.index_select(0, frames) for name, values in self._of_frames.items()}
        return Sample(graph=graph, forces=of_atoms["forces"], index=frames, **labels)
