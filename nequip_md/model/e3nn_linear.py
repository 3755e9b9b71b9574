"""Linear maps between equivariant features, with the weights and normalisation of e3nn."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nequip_md.model.nequip_irreps import Irreps, split


def mixed(x: Tensor, weight: Tensor) -> Tensor:
    """[nodes, components, channels] times [channels, N], as [nodes, components * N].

    All nodes are rows of one product. PyTorch would take a product for each node where their rows are not adjacent.
    """
    return (x.flatten(0, 1) @ weight).view(x.shape[0], x.shape[1] * weight.shape[1])


class EquivariantLinear(nn.Module):
    """y_c,w = sum_u x_c,u W_uw / sqrt(U) for each irrep, the same W for its components c.

    Input and output irreps must be the same, each at most once; numbers of channels differ. This is e3nn's ``Linear``
    on simplified irreps.

    Args:
        inputs: irreps of the features that enter.
        outputs: irreps of the features that leave, each of them one of ``inputs``.
        dtype: of the weights.
    """

    def __init__(self, inputs: Irreps, outputs: Irreps, dtype: torch.dtype):
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        self._source = [[b.name for b in inputs].index(block.name) for block in outputs]
        self.weights = nn.ParameterDict(
            {
                block.name: nn.Parameter(torch.randn(inputs[source].mul, block.mul, dtype=dtype))
                for source, block in zip(self._source, outputs)
            }
        )

    def forward(self, features: Tensor) -> Tensor:
        """[nodes, width(inputs)] -> [nodes, width(outputs)]."""
        parts = split(features, self.inputs)
        results = []
        for source, block in zip(self._source, self.outputs):
            weight = self.weights[block.name] * self.inputs[source].mul ** -0.5
            results.append(mixed(parts[source], weight))
        return torch.cat(results, dim=1)


class SelfConnection(nn.Module):
    """y_c,w = sum_uv x_c,u a_v W_uvw / sqrt(U V): each irrep of an atom mixed by a matrix made from its type embedding a.

    This is e3nn's ``FullyConnectedTensorProduct`` with scalars as second argument.

    Args:
        inputs: irreps of the features that enter.
        outputs: irreps of the features that leave; those absent from ``inputs`` are zero.
        num_attributes: width V of the type embedding.
        dtype: of the weights.
    """

    def __init__(self, inputs: Irreps, outputs: Irreps, num_attributes: int, dtype: torch.dtype):
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        names = [block.name for block in inputs]
        self._source = [names.index(block.name) if block.name in names else None for block in outputs]
        self.weights = nn.ParameterDict(
            {
                block.name: nn.Parameter(torch.randn(inputs[source].mul, num_attributes, block.mul, dtype=dtype))
                for source, block in zip(self._source, outputs)
                if source is not None
            }
        )

    def forward(self, features: Tensor, embedding: Tensor, node_types: Tensor) -> Tensor:
        """
        Args:
            features: [nodes, width(inputs)].
            embedding: type embedding [types, V].
            node_types: int64 [nodes].

        Returns:
            [nodes, width(outputs)].
        """
        num_types, num_attributes = embedding.shape
        # One matrix for each type is cheaper than the embedding as second factor as long as there are few types.
        folded = num_types < num_attributes
        if folded:
            types = torch.arange(num_types, device=node_types.device)
            attributes = (node_types[:, None] == types).to(features.dtype)
        else:
            attributes = embedding.index_select(0, node_types)
        parts = split(features, self.inputs)
        results = []
        for source, block in zip(self._source, self.outputs):
            if source is None:
                results.append(features.new_zeros(features.shape[0], block.width))
                continue
            weight = self.weights[block.name]
            weight = weight * (weight.shape[0] * weight.shape[1]) ** -0.5
            if folded:
                weight = torch.einsum("uvw,tv->utw", weight, embedding)
            product = parts[source][..., None] * attributes[:, None, None, :]
            results.append(mixed(product.flatten(2), weight.flatten(0, 1)))
        return torch.cat(results, dim=1)
