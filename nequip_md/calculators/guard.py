"""A warning when a structure leaves what a model was trained on."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from nequip_md.errors import ExtrapolationWarning, NequIPMDError
from nequip_md.graph import Graph

CLOSER = 0.9
"""Fraction of the closest distance in the training data below which a pair of atoms is reported. Long runs at the
temperature of the training data come a little closer than that. The engine has the same number (guard.cpp)."""

LARGER = 10.0
"""Multiple of the largest force in the training data above which a force is reported."""

_SUFFIX = "; energies and forces can be far off here. Later cases are not reported"


class Guard:
    """Compares distances and forces with those of the training data, and warns once of each.

    Attributes:
        closest_distances: of each ordered pair of types in the training data, angstrom, float64 [T, T]; 0 where no
            such pair is known.
        largest_force: norm of the largest force in the training data, eV/angstrom; infinite where it is not known.
    """

    def __init__(self, metadata: Mapping[str, str], type_names: Sequence[str]):
        """
        Args:
            metadata: an artifact's table; its keys ``closest_distances`` and ``largest_force`` may be absent or empty.
            type_names: the model's types.

        Raises:
            NequIPMDError: one of the two is there, but is not what it should be.
        """
        self.type_names, num_types = list(type_names), len(type_names)
        try:
            distances = [float(x) for x in metadata.get("closest_distances", "").split()] or [0.0] * num_types**2
            self.closest_distances = torch.tensor(distances, dtype=torch.float64).view(num_types, num_types)
            self.largest_force = float(metadata.get("largest_force") or "inf")
        except (ValueError, RuntimeError) as error:
            raise NequIPMDError(
                f"the artifact's closest_distances or largest_force cannot be read ({error}); compile the model again"
                " with nequip-md-export, or set guard to False"
            ) from None
        self._watch_distances = bool((self.closest_distances > 0).any())
        self._watch_forces = self.largest_force > 0 and np.isfinite(self.largest_force)

    def check_distances(self, graph: Graph) -> None:
        """Warn of the pair that is closest, compared with the training data, if it is closer than ``CLOSER`` times that."""
        if not self._watch_distances or graph.num_edges == 0:
            return
        closest = self.closest_distances.to(graph.edge_vectors.device)
        trained = closest[tuple(graph.node_types[graph.edge_index])]
        excess = graph.edge_vectors.norm(dim=1) - CLOSER * trained
        edge = int(excess.argmin())
        if excess[edge] < 0:
            self._watch_distances = False
            i, j = graph.edge_index[:, edge].tolist()
            names = [self.type_names[t] for t in graph.node_types[[i, j]].tolist()]
            warnings.warn(
                f"atoms {i} ({names[0]}) and {j} ({names[1]}) are {graph.edge_vectors[edge].norm():.3g} angstrom"
                f" apart, the closest such pair in the training data {trained[edge]:.3g} angstrom{_SUFFIX}",
                ExtrapolationWarning,
                stacklevel=3,
            )

    def check_forces(self, graph: Graph, forces: Tensor) -> None:
        """Warn of the largest force if it is larger than ``LARGER`` times the largest of the training data."""
        if not self._watch_forces or len(forces) == 0:
            return
        sizes = forces.norm(dim=1)
        atom = int(sizes.argmax())
        if sizes[atom] > LARGER * self.largest_force:
            self._watch_forces = False
            warnings.warn(
                f"the force on atom {atom} ({self.type_names[graph.node_types[atom]]}) is {sizes[atom]:.3g} eV/angstrom, the largest force"
                f" in the training data {self.largest_force:.3g} eV/angstrom{_SUFFIX}",
                ExtrapolationWarning,
                stacklevel=3,
            )
