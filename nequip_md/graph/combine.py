"""Several graphs in one, one in several, and graphs of a minimum size."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nequip_md.errors import NequIPMDError
from nequip_md.graph.graph import Graph


def batch_graphs(graphs: Sequence[Graph]) -> Graph:
    """One graph of several structures without edges between them; owned atoms of all come first, then all ghosts.

    Args:
        graphs: without phantom atoms, all on one device; they may be batches themselves.

    Raises:
        NequIPMDError: nothing to batch, or a padded graph (its phantom atoms would become atoms of a structure).
    """
    if not graphs:
        raise NequIPMDError("there is no graph to batch")
    if any(int(g.graph_ptr[-1]) != g.num_nodes for g in graphs):
        raise NequIPMDError("a padded graph cannot be batched; batch first, then pad")
    owned = sum(g.num_nodes for g in graphs)
    nodes = edges = ghosts = 0
    index, rows, ptrs = [], [], []
    for g in graphs:
        index.append(
            torch.where(g.edge_index < g.num_nodes, g.edge_index + nodes, g.edge_index - g.num_nodes + owned + ghosts)
        )
        rows.append(g.row_ptr[:-1] + edges)
        ptrs.append(g.graph_ptr[:-1] + nodes)
        nodes, edges, ghosts = nodes + g.num_nodes, edges + g.num_edges, ghosts + g.node_types.shape[0] - g.num_nodes
    types = [g.node_types[: g.num_nodes] for g in graphs] + [g.node_types[g.num_nodes :] for g in graphs]
    return Graph(
        edge_vectors=torch.cat([g.edge_vectors for g in graphs]),
        edge_index=torch.cat(index, dim=1),
        row_ptr=torch.cat([*rows, graphs[0].row_ptr.new_tensor([edges])]),
        node_types=torch.cat(types),
        graph_ptr=torch.cat([*ptrs, graphs[0].graph_ptr.new_tensor([nodes])]),
    )


def unbatch_graph(graph: Graph) -> list[Graph]:
    """The graphs of one structure each that a batch holds; the reverse of :func:`batch_graphs`.

    Raises:
        NequIPMDError: the graph has ghosts or phantom atoms, of which nothing says which structure they belong to.
    """
    if not int(graph.graph_ptr[-1]) == graph.num_nodes == graph.node_types.shape[0]:
        raise NequIPMDError("a graph with ghosts or phantom atoms cannot be cut into its structures")
    nodes = graph.graph_ptr.diff().tolist()
    edges = graph.row_ptr[graph.graph_ptr].diff().tolist()
    graphs = []
    first_node = first_edge = 0
    for n, e, vectors, index, types in zip(
        nodes,
        edges,
        graph.edge_vectors.split(edges),
        graph.edge_index.split(edges, dim=1),
        graph.node_types.split(nodes),
    ):
        row_ptr = graph.row_ptr[first_node : first_node + n + 1] - first_edge
        graphs.append(Graph(vectors.clone(), index - first_node, row_ptr, types.clone()))
        first_node, first_edge = first_node + n, first_edge + e
    return graphs


def pad_graph(graph: Graph, min_edges: int = 2, min_nodes: int = 2, *, cutoff: float) -> Graph:
    """Append phantom atoms (type 0) and phantom edges until the graph has the given size.

    Phantom atoms come after the owned atoms (ghosts move up), phantom edges after all edges. A phantom edge leads from
    a phantom atom to itself, or without any from the last owned atom to itself, and is twice the cutoff long, so that it adds
    exactly 0 to every energy and gradient. Phantom atoms have equally many of them.
    The first N energies and E gradients of the padded graph are those of the graph.

    Args:
        cutoff: largest cutoff of the model, angstrom.

    Raises:
        NequIPMDError: phantom edges are asked for, but there is no atom to hold them.
    """
    nodes = max(0, min_nodes - graph.num_nodes)
    edges = max(0, min_edges - graph.num_edges)
    if not nodes and not edges:
        return graph
    n = graph.num_nodes + nodes
    if n == 0:
        raise NequIPMDError(f"{edges} phantom edges need an atom to hold them: use min_nodes of at least 1")
    index = torch.where(graph.edge_index < graph.num_nodes, graph.edge_index, graph.edge_index + nodes)
    vectors = graph.edge_vectors.new_zeros(edges, 3)
    vectors[:, 0] = 2 * cutoff
    holders = max(1, nodes)
    ends = torch.arange(1, holders + 1, device=index.device) * edges // holders
    holder = torch.searchsorted(ends, torch.arange(edges, device=index.device), right=True) + (n - holders)
    row_ptr = torch.cat([graph.row_ptr[: n + 1 - holders], graph.row_ptr[-1] + ends])
    types = graph.node_types
    return Graph(
        edge_vectors=torch.cat([graph.edge_vectors, vectors]),
        edge_index=torch.cat([index, holder.expand(2, edges)], dim=1),
        row_ptr=row_ptr,
        node_types=torch.cat([types[: graph.num_nodes], types.new_zeros(nodes), types[graph.num_nodes :]]),
        graph_ptr=graph.graph_ptr,
    )
