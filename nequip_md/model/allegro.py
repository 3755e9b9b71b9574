r"""Allegro without edge tensors.

The model of Musaelian et al., Nat. Commun. 14, 579 (2023), in an exactly equivalent form. In layer k the tensor track is

.. math:: T^{k+1}_{e,u,c} = \sum_p w_{u,p} \sqrt{2l_c+1} \sum_{ab} C^p_{abc} T^k_{e,u,a} A^k_{i(e),u,b}

and A belongs to the centre i(e), so each layer is a linear map M_k[i, u] that belongs to an atom and a channel. Only the
scalar part of T is ever read, so what the next MLP needs is

.. math:: q^k_{e,u} = \sum_{l} w^0_{e,u,l} \sum_{m \in l} Y_{e,lm} \; z^k_{i(e),u,lm}, \quad z^k = M_0^T M_1^T \cdots M_k^T e_0

with the chain z evaluated once for each atom and channel. Likewise the environment A is a sum over edges of a linear
function of the hidden layer of an MLP, so the sum is taken first and the linear map applied to atoms. Per edge there
remain MLPs, one moment (:func:`~nequip_md.ops.edge_moment`) and one contraction (:func:`~nequip_md.ops.edge_contract`).
"""

from __future__ import annotations

from math import isqrt, sqrt

import torch
from e3nn.o3 import Irrep
from torch import Tensor, nn

from nequip_md.model.clebsch_gordan import offsets, product_table
from nequip_md.model.config import AllegroConfig, BesselEmbedding
from nequip_md.model.energy import NeighbourNorm, ScaleShift
from nequip_md.model.mlp import MLP, uniform_weight
from nequip_md.model.potential import Potential
from nequip_md.model.radial import BesselBasis, EdgeGeometry, Geometry, SplineBasis
from nequip_md.model.spherical_harmonics import spherical_harmonics
from nequip_md.model.zbl import ZBL
from nequip_md.ops import (
    channel_product,
    dense,
    edge_contract,
    edge_embedding,
    edge_moment,
    mix_orders,
    mlp_readout,
    segment_sum,
)

SCALAR = Irrep("0e")


def tensor_track(l_max: int, parity: bool, num_layers: int) -> list[list[Irrep]]:
    """Irreps of the tensor track before layer 0, between layers and after the last one.

    Every irrep up to l_max is allowed (without parity: those of the spherical harmonics alone) and the last layer
    gives scalars. Irreps that cannot be reached are removed, then those that lead nowhere.
    """
    harmonics = [Irrep(l, (-1) ** l) for l in range(l_max + 1)]
    allowed = [Irrep(l, p) for l in range(l_max + 1) for p in (1, -1)] if parity else harmonics
    track = [harmonics]
    for layer in range(num_layers):
        wanted = [SCALAR] if layer == num_layers - 1 else allowed
        reached = {ir for a in track[-1] for b in harmonics for ir in a * b}
        track.append([ir for ir in wanted if ir in reached])
    for layer in reversed(range(num_layers)):
        useful = set(track[layer + 1])
        track[layer] = [a for a in track[layer] if any(ir in useful for b in harmonics for ir in a * b)]
    return track


class BesselTypeEmbedding(nn.Module):
    """g_e = [C[t_i] | N[t_j]] * Lin(B(x) u(x)): types and distance of an edge as one vector."""

    def __init__(self, config: AllegroConfig, width: int, dtype: torch.dtype):
        super().__init__()
        types = len(config.type_names)
        options = config.radial_embedding
        self.basis = BesselBasis(options.num_bessels, options.bessel_trainable, config.polynomial_cutoff_p)
        self.centre = nn.Parameter(torch.randn(types, width // 2, dtype=dtype))
        self.neighbour = nn.Parameter(torch.randn(types, width // 2, dtype=dtype))
        self.linear = MLP([options.num_bessels, width], None, dtype)

    def forward(
        self, edge_vectors: Tensor, edge_index: Tensor, node_types: Tensor, cutoffs: Tensor, l_max: int
    ) -> tuple[Tensor, Tensor]:
        """g [E, width], and the spherical harmonics of the edges, [E, (l_max + 1)^2], in the network's dtype."""
        tables = self.centre, self.neighbour, self.linear.last()
        return edge_embedding(
            edge_vectors, edge_index, node_types, cutoffs, self.basis.roots, *tables, self.basis.p, l_max
        )


class SplineTypeEmbedding(nn.Module):
    """g_ed = sum_k W[t_i, t_j, d, k] phi_k(x): one spline for each ordered pair of types and channel."""

    def __init__(self, config: AllegroConfig, width: int, dtype: torch.dtype):
        super().__init__()
        options = config.radial_embedding
        self.types = len(config.type_names)
        self.width = width
        self.out_dtype = dtype
        self.basis = SplineBasis(options.num_splines, options.spline_span)
        bound = sqrt(3 / max(options.spline_span, 1))
        weight = torch.empty(self.types**2, width, options.num_splines, dtype=torch.float64)
        self.weight = nn.Parameter(weight.uniform_(-bound, bound))

    def forward(self, edges: EdgeGeometry) -> Tensor:
        basis = self.basis(edges.x)
        pair = edges.centre_type * self.types + edges.neighbour_type
        # one product for all pairs of types, then the columns of the edge's own pair: no [E, width, splines] array
        every_pair = (basis @ self.weight.flatten(0, 1).T).view(-1, self.types**2, self.width)
        index = pair.view(-1, 1, 1).expand(-1, 1, self.width)
        return every_pair.gather(1, index).squeeze(1).to(self.out_dtype)


class AllegroLayer(nn.Module):
    """Weights of one layer: its path weights, its MLP and the two linear maps after it."""

    def __init__(self, config: AllegroConfig, index: int, track: list[list[Irrep]], dtype: torch.dtype):
        super().__init__()
        scalars, channels, orders = config.num_scalar_features, config.num_tensor_features, config.l_max + 1
        is_last = index == config.num_layers - 1
        harmonics = track[0]
        paths, table, values = product_table(track[index], harmonics, track[index + 1])
        self.channels = channels
        self.dim_in = offsets(track[index])[-1]
        self.path_weights = uniform_weight(len(paths), channels if config.path_channel_coupling else 1, dtype=dtype)
        # the transposed map of the chain z: output component and A give the input component
        self.register_buffer("table", table[[0, 3, 2, 1]].contiguous(), persistent=False)
        self.register_buffer("values", values.to(dtype), persistent=False)
        # paths into the scalar pair each input component with the one component of A that has its l and m
        into_scalar = table[3] == 0
        pairing = torch.zeros(self.dim_in, dtype=torch.int64)
        pairing[table[1, into_scalar]] = table[2, into_scalar]
        self.pairs_all_of_a = torch.equal(pairing, torch.arange(offsets(harmonics)[-1]))
        self.register_buffer("pairing", pairing, persistent=False)
        self.register_buffer("scalar_table", table[:, into_scalar].contiguous(), persistent=False)
        self.register_buffer("scalar_values", values[into_scalar].to(dtype), persistent=False)
        # the last layer pairs each component with its like, by one path and one number for each order
        into = {
            int(a): (int(p), round(float(v), 12))
            for p, a, v in zip(table[0, into_scalar], table[1, into_scalar], values[into_scalar])
        }
        self.pairs_orders = (
            is_last
            and self.pairs_all_of_a
            and len(into) == int(into_scalar.sum())
            and all(into.get(m) == into.get(l * l) for l in range(orders) for m in range(l * l, (l + 1) ** 2))
        )

        out = scalars if is_last else scalars + channels * orders
        widths = [scalars * (index + 1) + channels, *[config.allegro_mlp_width] * config.allegro_mlp_depth, out]
        self.mlp = MLP(widths, config.allegro_mlp_nonlinearity, dtype)

    def weights(self) -> Tensor:
        """Path weights for each channel, [P, U]."""
        return self.path_weights.expand(-1, self.channels)

    def pair_scale(self) -> Tensor:
        """Factors of the environment's components in M_k^T e_0, [dim_in, U]."""
        path, component = self.scalar_table[0], self.scalar_table[1]
        scale = self.scalar_values.unsqueeze(-1) * self.weights().index_select(0, path)
        return scale.new_zeros(self.dim_in, self.channels).index_add(0, component, scale)

    def order_scale(self) -> Tensor:
        """:meth:`pair_scale` where all components of an order have the same (``pairs_orders``), [L, U]."""
        return torch.stack(
            [factors[0] for factors in self.pair_scale().split([2 * l + 1 for l in range(isqrt(self.dim_in))])]
        )

    def chain_start(self, environment: Tensor) -> Tensor:
        """M_k^T e_0: [N, M, U] environment to [N, dim_in, U]."""
        paired = environment if self.pairs_all_of_a else environment.index_select(1, self.pairing)
        return paired * self.pair_scale()

    def chain_step(self, z: Tensor, environment: Tensor) -> Tensor:
        """M_k^T z: [N, dim_out, U] to [N, dim_in, U]."""
        return channel_product(z, environment, self.weights(), self.table, self.values, self.dim_in)


class Allegro(Potential):
    """Strictly local equivariant potential; energies of ordered pairs summed over each centre's edges.

    E_i = scale(t_i) (2 n-bar(t_i))^(-1/2) sum_e eps_e + shift(t_i) + pair term.
    """

    config: AllegroConfig

    def __init__(self, config: AllegroConfig):
        super().__init__(config)
        dtype = self.dtype
        scalars, channels, orders = config.num_scalar_features, config.num_tensor_features, config.l_max + 1
        width = config.radial_embedding_dim or scalars
        track = tensor_track(config.l_max, config.parity, config.num_layers)

        self.geometry = Geometry(config)
        embedding = BesselTypeEmbedding if isinstance(config.radial_embedding, BesselEmbedding) else SplineTypeEmbedding
        self.embedding = embedding(config, width, dtype)
        hidden = [config.two_body_mlp_width] * config.two_body_mlp_depth
        self.two_body_mlp = MLP([width, *hidden, scalars], config.two_body_mlp_nonlinearity, dtype)
        self.tensor_weights = MLP([scalars, channels * orders], None, dtype)
        self.first_projection = MLP([scalars, scalars + channels * orders], None, dtype)
        self.layers = nn.ModuleList(AllegroLayer(config, k, track, dtype) for k in range(config.num_layers))
        readout_hidden = [config.readout_mlp_width] * config.readout_mlp_depth
        self.readout = MLP(
            [scalars * (config.num_layers + 1), *readout_hidden, 1], config.readout_mlp_nonlinearity, dtype
        )
        self.norm = NeighbourNorm(config)
        self.scale_shift = ScaleShift(config)
        self.zbl = ZBL(config) if config.pair_potential else None

    def forward(self, edge_vectors: Tensor, edge_index: Tensor, row_ptr: Tensor, node_types: Tensor) -> Tensor:
        edges = self.geometry(edge_vectors, edge_index, node_types)
        owned_types = node_types[: row_ptr.shape[0] - 1]
        if isinstance(self.embedding, BesselTypeEmbedding):
            embedded, harmonics = self.embedding(
                edge_vectors, edge_index, node_types, self.geometry.cutoffs, self.config.l_max
            )
        else:
            embedded = self.embedding(edges)
            harmonics = spherical_harmonics(edges.unit, self.config.l_max).to(self.dtype)
        energy = self.pair_energies(embedded, harmonics, edges, row_ptr, owned_types).to(torch.float64)
        if self.zbl is not None:
            energy = energy + self.zbl(edges)
        energy = segment_sum(energy.unsqueeze(-1), edges.centre, row_ptr).squeeze(-1)
        return self.scale_shift.shifted(energy, owned_types)

    def pair_energies(
        self, embedded: Tensor, harmonics: Tensor, edges: EdgeGeometry, row_ptr: Tensor, owned_types: Tensor
    ) -> Tensor:
        """Energy of each edge, eV, [E], from the embedding of its types and length and its harmonics."""
        config, centre = self.config, edges.centre
        scalars, channels, orders = config.num_scalar_features, config.num_tensor_features, config.l_max + 1

        hidden, two_body = self.two_body_mlp.hidden(embedded), self.two_body_mlp.last()
        matrix = self._by_order(two_body @ self.tensor_weights.last()).flatten(1)
        tensor_weights = dense(hidden, matrix).view(-1, orders, channels)
        projection = two_body @ self.first_projection.last()
        # scalar features of the layers so far, and the same with the map that was left out of each (None: identity):
        # whatever reads them merges that map with its own first matrix
        features, maps = [hidden], [projection[:, :scalars]]
        environment_map = projection[:, scalars:]
        environments: list[Tensor] = []
        for k, layer in enumerate(self.layers):
            moment = edge_moment(hidden.unsqueeze(1), harmonics, centre, row_ptr)
            environments.append(self._environment(moment, environment_map, layer, owned_types))
            z = environments[k] if layer.pairs_orders else layer.chain_start(environments[k])
            for earlier in reversed(range(k)):
                z = self.layers[earlier].chain_step(z, environments[earlier])
            inputs = [*features, edge_contract(tensor_weights, harmonics, z, centre, row_ptr)]

            if k == config.num_layers - 1 and self.readout.nonlinearity is None:
                return self._scaled(self._linear_readout(layer.mlp, inputs, maps), edges)
            if layer.mlp.nonlinearity:
                hidden = layer.mlp.hidden_from(inputs, self._merge(layer.mlp.first(), maps))
                last = layer.mlp.last()
            else:
                hidden, last = torch.cat(inputs, dim=-1), self._merge(layer.mlp.last(), maps)
            features.append(dense(hidden, last[:, :scalars]))
            maps.append(None)
            environment_map = last[:, scalars:]
        hidden = self.readout.hidden_from(features, self._merge(self.readout.first(), maps))
        return self._scaled((hidden @ self._readout_vector()).squeeze(-1), edges)

    def _environment(self, moment: Tensor, matrix: Tensor, layer: AllegroLayer, owned_types: Tensor) -> Tensor:
        """Sum over each atom's edges of what a layer pairs with the tensors, [N, M, U], from the moment [N, M, H]."""
        matrix = self._by_order(matrix)
        # nothing but the chain's start reads the last environment: its scale goes into the matrix
        if layer.pairs_orders:
            matrix = matrix * layer.order_scale()
        if self.norm.uniform is not None:
            return mix_orders(moment, (matrix * self.norm.uniform).transpose(0, 1))
        return self.norm(mix_orders(moment, matrix.transpose(0, 1)), owned_types)

    def _by_order(self, matrix: Tensor) -> Tensor:
        """[H, U * L], channel-major as the weights are stored, to [H, L, U]."""
        channels, orders = self.config.num_tensor_features, self.config.l_max + 1
        return matrix.unflatten(1, (channels, orders)).transpose(1, 2)

    def _merge(self, matrix: Tensor, maps: list[Tensor | None]) -> Tensor:
        """Rows of a matrix that reads the scalar features, with the maps that were left out of them multiplied in."""
        scalars = self.config.num_scalar_features
        rows = []
        for j, left_out in enumerate(maps):
            block = matrix[j * scalars : (j + 1) * scalars]
            rows.append(block if left_out is None else left_out @ block)
        return torch.cat([*rows, matrix[len(maps) * scalars :]])

    def _factors(self) -> Tensor:
        """What scales pair energies, [1] or one for each type of the centre."""
        return (self.scale_shift.scales * self.norm.factors() * sqrt(0.5)).to(self.dtype)

    def _readout_vector(self) -> Tensor:
        """Matrix [width, 1] of the last readout layer, with the scale of the energies where there is one for all types."""
        factors = self._factors()
        return self.readout.last() * factors if factors.numel() == 1 else self.readout.last()

    def _scaled(self, energy: Tensor, edges: EdgeGeometry) -> Tensor:
        """Times the scale of the centre's type, where each type has its own."""
        factors = self._factors()
        return energy if factors.numel() == 1 else energy * factors.index_select(0, edges.centre_type)

    def _linear_readout(self, mlp: MLP, inputs: list[Tensor], maps: list[Tensor | None]) -> Tensor:
        """The last layer's MLP and a readout without nonlinearity, which is one vector and merges with the MLP's matrix."""
        scalars, vector = self.config.num_scalar_features, self._readout_vector()
        direct = self._merge(vector[:-scalars], maps)
        direct = torch.cat([direct, direct.new_zeros(inputs[-1].shape[1], 1)]).squeeze(-1)
        if mlp.nonlinearity is None:
            merged = self._merge(mlp.last(), maps) @ vector[-scalars:]
            return torch.cat(inputs, dim=-1) @ (merged.squeeze(-1) + direct)
        first, last = self._merge(mlp.first(), maps), (mlp.last() @ vector[-scalars:]).squeeze(-1)
        if mlp.nonlinearity == "silu":
            return mlp_readout(inputs, mlp.matrices(first), last, direct)
        return mlp.hidden_from(inputs, first) @ last + torch.cat(inputs, dim=-1) @ direct
