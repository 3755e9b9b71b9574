"""Custom operators in the ``torch.library`` namespace ``nequip_md``: one file for each kind, with schemas, references, derivatives.

The functions here have derivatives of any order by all tensors that a model or its training changes. The fused operators that
:mod:`nequip_md.lowering` puts in their place (``mlp_energy``, ``edge_contract_gradient`` and others, named in each file) have
none, as graphs are lowered after differentiation.
"""

from nequip_md.ops._operator import references
from nequip_md.ops.channel_product import channel_product
from nequip_md.ops.edge_contract import edge_contract
from nequip_md.ops.edge_embedding import edge_embedding
from nequip_md.ops.edge_moment import edge_dot, edge_moment, edge_spread
from nequip_md.ops.ghost_exchange import ghost_exchange
from nequip_md.ops.mlp import dense, mix_orders, mlp_hidden, mlp_readout
from nequip_md.ops.segment import segment_sum
from nequip_md.ops.tensor_product_convolution import tensor_product_convolution

__all__ = [
    "channel_product",
    "dense",
    "edge_contract",
    "edge_dot",
    "edge_embedding",
    "edge_moment",
    "edge_spread",
    "ghost_exchange",
    "mix_orders",
    "mlp_hidden",
    "mlp_readout",
    "references",
    "segment_sum",
    "tensor_product_convolution",
]
