"""Structures to graphs: neighbour lists, batching, padding, and forces from edge gradients."""

from nequip_md.graph.build import build_graph, build_graphs
from nequip_md.graph.combine import batch_graphs, pad_graph, unbatch_graph
from nequip_md.graph.derivatives import (
    atomic_virials,
    forces_from_gradient,
    stress_from_gradient,
    total_energy,
    virial_from_gradient,
)
from nequip_md.graph.graph import Graph
from nequip_md.graph.structure import Structure, atom_types, cell_volume
from nequip_md.graph.verlet import VerletList

__all__ = [
    "Graph",
    "Structure",
    "VerletList",
    "atom_types",
    "atomic_virials",
    "batch_graphs",
    "build_graph",
    "build_graphs",
    "cell_volume",
    "forces_from_gradient",
    "pad_graph",
    "stress_from_gradient",
    "total_energy",
    "unbatch_graph",
    "virial_from_gradient",
]
