"""An eager model with the interface of an artifact, so that checks of artifacts can run without compilation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nequip_md.graph import Graph
from nequip_md.model import Potential, energy_and_gradient


class EagerArtifact:
    """Evaluates ``model`` as :class:`nequip_md.artifact.Artifact` would."""

    def __init__(self, model: nn.Module, type_names: list[str], pair_cutoffs, precision: str = "fp64"):
        self.model = model
        self.type_names = type_names
        self.pair_cutoffs = torch.as_tensor(pair_cutoffs, dtype=torch.float64)
        self.cutoff = float(self.pair_cutoffs.max())
        self.device = torch.device("cpu")
        self.metadata = {"precision": precision, "message_passing_layers": "0", "type_names": " ".join(type_names)}

    @classmethod
    def of(cls, model: Potential) -> EagerArtifact:
        precision = {"float64": "fp64", "float32": "fp32"}[model.config.dtype]
        artifact = cls(model, model.type_names, model.config.cutoff_matrix(), precision)
        if model.config.kind == "nequip":
            artifact.metadata["message_passing_layers"] = str(model.config.num_layers)
        return artifact

    def __call__(self, graph: Graph) -> tuple[Tensor, Tensor]:
        return energy_and_gradient(self.model, *graph.tensors)


class SmoothLennardJones(nn.Module):
    """Half of 4 eps ((sigma/r)^12 - (sigma/r)^6) (1 - (r/r_c)^2)^3 for each edge: smooth at the cutoff.

    The energy is multiplied by 1 + 0.5 t_i + 0.3 t_j for types t = 0, 1, ..., so that types and the direction of an edge matter.
    """

    def __init__(self, epsilon: float = 0.0104, sigma: float = 3.4, cutoff: float = 8.0, shift: float = -2.0):
        super().__init__()
        self.epsilon, self.sigma, self.cutoff, self.shift = epsilon, sigma, cutoff, shift

    def forward(self, edge_vectors: Tensor, edge_index: Tensor, row_ptr: Tensor, node_types: Tensor) -> Tensor:
        r_squared = edge_vectors.square().sum(1)
        six = (self.sigma**2 / r_squared) ** 3
        envelope = (1 - r_squared / self.cutoff**2).clamp(min=0) ** 3
        types = node_types.to(torch.float64)
        strength = 1 + 0.5 * types[edge_index[0]] + 0.3 * types[edge_index[1]]
        energy = self.shift * (1 + types[: row_ptr.shape[0] - 1])
        return energy.index_add(0, edge_index[0], 2 * self.epsilon * strength * (six * six - six) * envelope)
