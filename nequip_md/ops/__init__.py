"""Custom operators, ``torch.library`` namespace ``nequip_md``: one file for each, with reference and derivatives."""

from nequip_md.ops._operator import references
from nequip_md.ops.channel_product import channel_product
from nequip_md.ops.edge_contract import EdgeContractions, edge_contract
from nequip_md.ops.edge_embedding import edge_embedding
from nequip_md.ops.edge_moment import edge_dot, edge_moment, edge_moment_shared, edge_spread
from nequip_md.ops.ghost_exchange import ghost_exchange
from nequip_md.ops.mlp import MAX_PARTS, dense, mix_orders, mlp_energy, mlp_hidden, mlp_hidden_dense
from nequip_md.ops.segment import segment_sum
from nequip_md.ops.tensor_product_convolution import tensor_product_convolution

__all__ = [
    "MAX_PARTS",
    "EdgeContractions",
    "channel_product",
    "dense",
    "edge_contract",
    "edge_dot",
    "edge_embedding",
    "edge_moment",
    "edge_moment_shared",
    "edge_spread",
    "ghost_exchange",
    "mix_orders",
    "mlp_energy",
    "mlp_hidden",
    "mlp_hidden_dense",
    "references",
    "segment_sum",
    "tensor_product_convolution",
]
