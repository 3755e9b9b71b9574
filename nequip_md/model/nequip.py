r"""NequIP: equivariant message passing.

The model of Batzner et al., Nat. Commun. 13, 2453 (2022). In each layer

.. math::
    m_{i,c,p,u} = \sum_{e \in i} R_{p,u}(d_e) \sqrt{2 l_c + 1} \sum_{ab} C^p_{abc} \; x_{j(e),a,u} \; Y_{e,b}, \qquad
    x_j = \bar n(t_j)^{-1/2} \, \mathrm{Linear}(h_j), \\
    h_i \leftarrow \mathrm{Gate}(\mathrm{Linear}(m_i) + \mathrm{SelfConnection}_{t_i}(h_i))

with radial weights R from an MLP of the Bessel functions of the distance. The first layer has no self-connection, so that
an atom without neighbours has the energy of its type alone. A linear map or an MLP reads the energy off the last layer's
scalars.
"""

from __future__ import annotations

from itertools import accumulate
from math import pi, sqrt

import torch
from e3nn.o3 import wigner_3j
from torch import Tensor, nn

from nequip_md.model.config import NequIPConfig
from nequip_md.model.e3nn_linear import EquivariantLinear, SelfConnection
from nequip_md.model.energy import NeighbourNorm, ScaleShift
from nequip_md.model.gate import Gate
from nequip_md.model.mlp import MLP
from nequip_md.model.nequip_irreps import LayerIrreps, embedding_width, feature_multiplicities, plan_layers, width
from nequip_md.model.potential import Potential
from nequip_md.model.radial import BesselBasis, EdgeGeometry, Geometry
from nequip_md.model.spherical_harmonics import spherical_harmonics
from nequip_md.model.zbl import ZBL
from nequip_md.ops import segment_sum
from nequip_md.ops.ghost_exchange import ghost_exchange
from nequip_md.ops.tensor_product_convolution import ConvolutionPath, tensor_product_convolution


def convolution_paths(irreps: LayerIrreps) -> tuple[list[ConvolutionPath], Tensor]:
    """Where each path of a layer finds its numbers, and sqrt(2 l_out + 1) times the Wigner 3j symbols, flat, float64."""
    starts = [0, *accumulate(block.width for block in irreps.inputs)]
    blocks = {
        (b.l, b.p): (start, b.mul)
        for b, start in zip(irreps.messages, [0, *accumulate(block.width for block in irreps.messages)])
    }
    used = dict.fromkeys(blocks, 0)
    paths, coefficients, weights, size = [], [], 0, 0
    for path in irreps.paths:
        target = (path.l_out, path.p_out)
        offset, channels = blocks[target]
        paths.append(
            ConvolutionPath(
                l_in=path.l_in,
                l_edge=path.l_edge,
                l_out=path.l_out,
                mul=path.mul,
                x_offset=starts[path.source],
                w_offset=weights,
                out_offset=offset,
                out_channels=channels,
                out_channel=used[target],
                cg_offset=size,
            )
        )
        symbols = wigner_3j(path.l_in, path.l_edge, path.l_out, dtype=torch.float64) * sqrt(2 * path.l_out + 1)
        coefficients.append(symbols.flatten())
        used[target] += path.mul
        weights += path.mul
        size += symbols.numel()
    return paths, torch.cat(coefficients)


class InteractionLayer(nn.Module):
    """One message-passing step: linear, convolution, linear, self-connection, gate.

    Args:
        irreps: of the layer.
        index: 0 for the first layer, which has no self-connection and reads the type embedding, known for ghosts too.
    """

    cg: Tensor

    def __init__(self, config: NequIPConfig, irreps: LayerIrreps, index: int, dtype: torch.dtype):
        super().__init__()
        self.is_first = index == 0
        paths, cg = convolution_paths(irreps)
        self.paths = [field for path in paths for field in path]
        self.message_width = width(irreps.messages)
        self.register_buffer("cg", cg.to(dtype), persistent=False)
        self.linear_in = EquivariantLinear(irreps.inputs, irreps.inputs, dtype)
        hidden = [config.radial_mlp_width] * config.radial_mlp_depth
        self.radial_mlp = MLP([config.num_bessels, *hidden, sum(path.mul for path in paths)], "silu", dtype)
        self.linear_out = EquivariantLinear(irreps.messages, irreps.outputs, dtype)
        self.self_connection = (
            None if self.is_first else SelfConnection(irreps.inputs, irreps.outputs, embedding_width(config), dtype)
        )
        self.gate = Gate(irreps)
        self.norm = NeighbourNorm(config)

    def forward(
        self,
        features: Tensor,
        embedding: Tensor,
        radial: Tensor,
        harmonics: Tensor,
        edge_index: Tensor,
        row_ptr: Tensor,
        node_types: Tensor,
    ) -> Tensor:
        """
        Args:
            features: of the owned nodes, [N, width of the inputs]; in the first layer the type embedding itself.
            embedding: of each type, [types, V].
            radial: Bessel functions, [E, num_bessels].
            harmonics: [E, (l_max + 1)^2].
            edge_index, row_ptr, node_types: as in :meth:`Potential.forward`.

        Returns:
            Features of the owned nodes, [N, width of the gate's output].
        """
        centre, neighbour = edge_index.unbind(0)
        if self.is_first:
            types = torch.arange(embedding.shape[0], device=node_types.device)
            x = self.norm(self.linear_in(embedding), types).index_select(0, node_types)
        else:
            owned_types = node_types[: features.shape[0]]
            x = ghost_exchange(self.norm(self.linear_in(features), owned_types), node_types)
        weights = self.radial_mlp(radial)
        messages = tensor_product_convolution(
            x, harmonics, weights, centre, neighbour, row_ptr, self.cg, self.paths, self.message_width
        )
        outputs = self.linear_out(messages)
        if self.self_connection is not None:
            outputs = outputs + self.self_connection(features, embedding, owned_types)
        return self.gate(outputs)


class NequIP(Potential):
    """Equivariant message passing: E_i = scale(t_i) readout(h_i) + shift(t_i) + pair term."""

    config: NequIPConfig

    def __init__(self, config: NequIPConfig):
        super().__init__(config)
        dtype = self.dtype
        scalars = feature_multiplicities(config)[0]
        self.geometry = Geometry(config)
        self.basis = BesselBasis(config.num_bessels, config.bessel_trainable, config.polynomial_cutoff_p)
        self.type_embedding = nn.Parameter(torch.randn(len(config.type_names), embedding_width(config), dtype=dtype))
        self.layers = nn.ModuleList(
            InteractionLayer(config, irreps, index, dtype) for index, irreps in enumerate(plan_layers(config))
        )
        hidden = [config.readout_mlp_width or scalars] * config.readout_mlp_depth
        self.readout = MLP([scalars, *hidden, 1], config.readout_mlp_nonlinearity, dtype)
        self.scale_shift = ScaleShift(config)
        self.zbl = ZBL(config) if config.pair_potential else None

    def forward(self, edge_vectors: Tensor, edge_index: Tensor, row_ptr: Tensor, node_types: Tensor) -> Tensor:
        edges = self.geometry(edge_vectors, edge_index, node_types)
        radial = self.radial_features(edges)
        harmonics = spherical_harmonics(edges.unit, self.config.l_max).to(self.dtype)
        features = self.type_embedding
        for layer in self.layers:
            features = layer(features, self.type_embedding, radial, harmonics, edge_index, row_ptr, node_types)
        owned_types = node_types[: row_ptr.shape[0] - 1]
        energy = self.scale_shift(self.readout(features).squeeze(-1), owned_types)
        if self.zbl is not None:
            energy = energy + segment_sum(self.zbl(edges).unsqueeze(-1), edges.centre, row_ptr).squeeze(-1)
        return energy

    def radial_features(self, edges: EdgeGeometry) -> Tensor:
        """2 pi / r_cut^2 times the Bessel functions and the envelope, [E, num_bessels], in the network's dtype.

        The factor holds the global cutoff, also where pairs of types have their own.
        """
        return (self.basis(edges.x) * (2 * pi / self.config.cutoff**2)).to(self.dtype)
