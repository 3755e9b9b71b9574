"""Distances and their radial basis. All of this is float64, whatever the network's dtype."""

from __future__ import annotations

from math import pi
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nequip_md.model.config import PotentialConfig
from nequip_md.ops.edge_embedding import envelope


class EdgeGeometry(NamedTuple):
    """What the models need of each edge; E edges, float64."""

    centre: Tensor
    """int64 [E]"""
    centre_type: Tensor
    """int64 [E]"""
    neighbour_type: Tensor
    """int64 [E]"""
    length: Tensor
    """angstrom [E]"""
    unit: Tensor
    """direction [E, 3]"""
    x: Tensor
    """length over the cutoff of the ordered type pair [E]"""


class Geometry(nn.Module):
    """Edge vectors to :class:`EdgeGeometry`, with a cutoff for each ordered pair of types."""

    cutoffs: Tensor

    def __init__(self, config: PotentialConfig):
        super().__init__()
        self.register_buffer("cutoffs", torch.tensor(config.cutoff_matrix(), dtype=torch.float64), persistent=False)

    def forward(self, edge_vectors: Tensor, edge_index: Tensor, node_types: Tensor) -> EdgeGeometry:
        centre, neighbour = edge_index.unbind(0)
        centre_type = node_types.index_select(0, centre)
        neighbour_type = node_types.index_select(0, neighbour)
        cutoff = self.cutoffs.view(-1).index_select(0, centre_type * self.cutoffs.shape[0] + neighbour_type)
        length = edge_vectors.square().sum(dim=-1).sqrt()
        return EdgeGeometry(
            centre, centre_type, neighbour_type, length, edge_vectors / length.unsqueeze(-1), length / cutoff
        )


class BesselBasis(nn.Module):
    """B_n(x) u_p(x) with B_n(x) = sin(n pi x) / (pi x), n = 1 ... num_bessels (Gasteiger et al., arXiv 2003.03123).

    The factors n are parameters ("roots") when ``trainable``.
    """

    def __init__(self, num_bessels: int, trainable: bool, p: float):
        super().__init__()
        self.p = p
        roots = torch.arange(1, num_bessels + 1, dtype=torch.float64)
        if trainable:
            self.roots = nn.Parameter(roots)
        else:
            self.register_buffer("roots", roots, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[E] scaled lengths to [E, num_bessels]; float64."""
        scaled = (pi * x).unsqueeze(-1)
        return torch.sin(scaled * self.roots) / scaled * envelope(x, self.p).unsqueeze(-1)


class SplineBasis(nn.Module):
    """phi_k(x) = (1 - cos(2 pi (clamp(x, a_k, b_k) - a_k) / Delta))^2 / 4 on overlapping supports [a_k, b_k].

    a_k = (k - span) / S, Delta = (span + 1) / S, b_k = a_k + Delta, k = 0 ... S - 1. All vanish smoothly at x = 1.
    """

    def __init__(self, num_splines: int, span: int):
        super().__init__()
        self.width = (span + 1) / num_splines
        lower = torch.arange(-span, num_splines - span, dtype=torch.float64) / num_splines
        self.register_buffer("lower", lower, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[E] scaled lengths to [E, num_splines]; float64."""
        offset = (x.unsqueeze(-1) - self.lower).clamp(0.0, self.width)
        return 0.25 * (1.0 - torch.cos(offset * (2 * pi / self.width))).square()
