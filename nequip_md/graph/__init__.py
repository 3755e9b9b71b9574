"""Atoms to graphs: neighbour lists, batching, padding, and forces from edge gradients."""

from nequip_md.graph.build import atom_types, build_graph
from nequip_md.graph.combine import batch_graphs, pad_graph
from nequip_md.graph.derivatives import (
    atomic_virials,
    forces_from_gradient,
    stress_from_gradient,
    total_energy,
    virial_from_gradient,
)
from nequip_md.graph.graph import Graph
from nequip_md.graph.neighbors import cell_volume
from nequip_md.graph.verlet import VerletList

__all__ = [
    "Graph",
    "VerletList",
    "atom_types",
    "atomic_virials",
    "batch_graphs",
    "build_graph",
    "cell_volume",
    "forces_from_gradient",
    "pad_graph",
    "stress_from_gradient",
    "total_energy",
    "virial_from_gradient",
]
