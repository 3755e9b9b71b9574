"""The interface of every potential: edges in, energies out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nequip_md.model.config import PotentialConfig


class Potential(nn.Module):
    """Base class of the models.

    A model sees edges only: no positions, no cell, no files, no device choice. Its one method is :meth:`forward`.

    Attributes:
        config: the configuration that the model was built from.
    """

    def __init__(self, config: PotentialConfig):
        super().__init__()
        self.config = config

    @property
    def type_names(self) -> list[str]:
        return self.config.type_names

    @property
    def dtype(self) -> torch.dtype:
        """Arithmetic of the network; distances, Bessel functions, harmonics and energies are float64 always."""
        return getattr(torch, self.config.dtype)

    def forward(self, edge_vectors: Tensor, edge_index: Tensor, row_ptr: Tensor, node_types: Tensor) -> Tensor:
        """Energies of the owned atoms.

        Args:
            edge_vectors: r_j - r_i with the periodic shift added, angstrom, float64 [E, 3].
            edge_index: centre i (row 0, owned, ascending) and neighbour j (row 1), int64 [2, E].
            row_ptr: offsets of each centre's edges, int64 [N + 1].
            node_types: model types of the N owned atoms, then of the ghosts, int64 [N + G].

        Returns:
            Energy of each owned atom, eV, float64 [N].
        """
        raise NotImplementedError


def energy_and_gradient(
    model: nn.Module,
    edge_vectors: Tensor,
    edge_index: Tensor,
    row_ptr: Tensor,
    node_types: Tensor,
    *,
    create_graph: bool = False,
) -> tuple[Tensor, Tensor]:
    """Evaluate a model and differentiate its total energy: the two outputs of the artifact contract.

    Args:
        create_graph: keep the graph of the derivative (training on forces).

    Returns:
        Node energies, eV, float64 [N]; gradient of their sum by each edge vector, eV/angstrom, float64 [E, 3].
    """
    with torch.enable_grad():
        if not edge_vectors.requires_grad:
            edge_vectors = edge_vectors.detach().requires_grad_(True)
        energy = model(edge_vectors, edge_index, row_ptr, node_types)
        (gradient,) = torch.autograd.grad(energy.sum(), edge_vectors, create_graph=create_graph, materialize_grads=True)
    return (energy, gradient) if create_graph else (energy.detach(), gradient)
