"""The Triton kernels: which operators have one, and how a traced graph calls it.

Each operator is wrapped as a ``torch.library.triton_op`` of the same name with the suffix ``_triton``. AOTInductor traces
through it and compiles the kernel into the artifact. Importing this module requires Triton.
"""

from __future__ import annotations

from functools import partial

import torch
from torch._ops import OpOverload
from torch.utils._python_dispatch import _disable_current_modes

from nequip_md.kernels.backend import Backend, Form
from nequip_md.kernels.triton import (
    channel_product,
    edge_contract,
    edge_embedding,
    edge_moment,
    segment_sum,
    tensor_product_convolution,
)
from nequip_md.kernels.triton.mlp_forms import (
    MAX_WIDTH,
    matrix_product_forms,
    matrix_product_forms_of_training,
    mlp_forms,
)
from nequip_md.kernels.triton.tiles import two_layers_fit

OPERATORS = torch.ops.nequip_md


class TritonBackend(Backend):
    """Triton kernels for NVIDIA GPUs.

    Args:
        precision: ``fp64``; ``fp32``, which computes a matrix product as three fp16 products; or ``tf32``, which takes one.
    """

    device = "cuda"
    kernels = "triton"
    unordered = frozenset(
        {OPERATORS.tensor_product_convolution_nodes.default, OPERATORS.tensor_product_convolution_by_x.default}
    )

    def __init__(self, precision: str):
        self.products = 1 if precision == "tf32" else 3
        self.dot_precision = "tf32" if precision == "tf32" else "tf32x3"
        super().__init__()

    def two_layers_in_one_kernel(self, widths: list[int], inner: int, outer: int) -> bool:
        """Whether one kernel computes two layers of an MLP from input parts of these widths."""
        return two_layers_fit("hidden", widths, inner, outer, self.products)

    def forms(self) -> dict[OpOverload, list[Form]]:
        forms = {
            OPERATORS.segment_sum: lambda values, centre, row_ptr: segment_sum.segment_sum(values, row_ptr),
            OPERATORS.edge_moment: self._edge_moment,
            OPERATORS.edge_spread: self._edge_spread,
            OPERATORS.edge_spread_add: self._edge_spread_add,
            OPERATORS.edge_dot: self._edge_dot,
            OPERATORS.edge_contract: lambda w, y, z, centre, row_ptr: edge_contract.edge_contract(w, y, z, row_ptr),
            OPERATORS.edge_contract_backward: self._edge_contract_backward,
            OPERATORS.edge_contract_moment: self._edge_contract_moment,
            OPERATORS.edge_contract_gradient: self._edge_contract_gradient,
            OPERATORS.channel_product: _channel_product,
            OPERATORS.tensor_product_convolution: _convolution,
            OPERATORS.tensor_product_convolution_nodes: _convolution_nodes,
            OPERATORS.tensor_product_convolution_edges: _convolution_edges,
            **{
                getattr(OPERATORS, f"tensor_product_convolution_by_{by}"): partial(_convolution_by, by) for by in "xywg"
            },
        }
        return {
            **{operator.default: [Form(form)] for operator, form in forms.items()},
            OPERATORS.edge_embedding.default: [Form(_edge_embedding, _takes_embedding)],
            OPERATORS.edge_embedding_backward.default: [Form(_edge_embedding_backward, _takes_embedding_backward)],
            **mlp_forms(self),
            **matrix_product_forms(self),
        }

    def forms_of_training(self) -> dict[OpOverload, list[Form]]:
        return {
            OPERATORS.channel_product_weight.default: [Form(_channel_product_weight)],
            torch.ops.aten.mv.default: [Form(_column_product, _sums_many)],
            **matrix_product_forms_of_training(self),
        }

    def without_form(self, operator: OpOverload, arguments: tuple) -> None:
        if operator == OPERATORS.mlp_hidden.default:
            dtype, widths = arguments[1][0].dtype, [w.shape[1] for w in arguments[1]]
            if dtype != torch.float32:
                self.note(f"MLPs in {dtype} run as PyTorch's matrix products; there are kernels for float32")
            elif max(widths) > MAX_WIDTH:
                self.note(f"an MLP runs as PyTorch's matrix products: a width of {max(widths)} exceeds {MAX_WIDTH}")

    def _edge_moment(self, a, y, centre, row_ptr):
        return edge_moment.edge_moment(a, y, row_ptr, self.dot_precision)

    def _edge_spread(self, y, z, centre, row_ptr, orders):
        return edge_moment.edge_spread(y, z, row_ptr, orders, self.dot_precision)

    def _edge_spread_add(self, y, z, centre, row_ptr, starts):
        return edge_moment.edge_spread_add(y, z, row_ptr, starts, self.dot_precision)

    def _edge_dot(self, a, z, centre, row_ptr):
        return edge_moment.edge_dot(a, z, row_ptr, self.dot_precision)

    def _edge_contract_backward(self, g, w, y, z, centre, row_ptr):
        return self.call(OPERATORS.edge_contract_gradient.default, [g], w, y, [z], centre, row_ptr)

    def _edge_contract_gradient(self, g, w, y, z, centre, row_ptr):
        return tuple(edge_contract.edge_contract_gradient(g, w, y, z, row_ptr))

    def _edge_contract_moment(self, g, w, y, centre, row_ptr):
        return edge_contract.edge_contract_moment(g, w, y, row_ptr)


def _sorted_terms(table, values, row, count):
    """Terms in the order of one row of their table, and where each of its ``count`` values begins. All inputs are constants, so
    this is evaluated once, when a graph is lowered."""
    keys, order = table[row].sort(stable=True)
    offsets = (keys.unsqueeze(0) < torch.arange(count + 1, device=keys.device).unsqueeze(1)).sum(dim=1)
    return table.index_select(1, order), values.index_select(0, order), offsets


def _channel_product(x, y, w, table, values, dim):
    terms, values, offsets = _sorted_terms(table, values, 3, dim)
    return channel_product.channel_product(x, y, w, terms[:3], values, offsets, dim)


def _channel_product_weight(x, y, z, table, values, paths):
    terms, values, offsets = _sorted_terms(table, values, 0, paths)
    x, y, z = x.contiguous(), y.contiguous(), z.contiguous()
    return channel_product.channel_product_weight(x, y, z, terms[1:], values, offsets, paths).sum(dim=0)


def _sums_many(matrix, vector):
    return isinstance(matrix.shape[1], torch.SymInt)


def _column_product(matrix, vector):
    """A product of matrix and vector that sums over edges or atoms, which Inductor would do in too few programs."""
    return (matrix @ vector.unsqueeze(1)).squeeze(1)


def _takes_embedding(*arguments):
    return arguments[-1] <= edge_embedding.MAX_ORDER


def _takes_embedding_backward(dg, dharmonics, *arguments):
    return arguments[-1] <= edge_embedding.MAX_ORDER and len(dharmonics) <= 4


def _edge_embedding(vectors, edge_index, node_types, cutoffs, roots, centre, neighbour, *rest):
    table = torch.cat([centre, neighbour])
    # a second dimension, for the reason given in weights.split()
    roots = roots.unsqueeze(1)
    return tuple(edge_embedding.edge_embedding(vectors, edge_index, node_types, cutoffs, roots, table, *rest))


def _edge_embedding_backward(dg, dharmonics, vectors, edge_index, node_types, cutoffs, roots, centre, neighbour, *rest):
    table, roots = torch.cat([centre, neighbour]), roots.unsqueeze(1)
    return edge_embedding.edge_embedding_backward(
        dg, dharmonics, vectors, edge_index, node_types, cutoffs, roots, table, *rest
    )


def _numbers(cg):
    """Elements of a constant, which a trace does not record."""
    with _disable_current_modes():
        return cg.tolist()


def _convolution_by(by: str, x, y, w, g, terms, centre, neighbour, row_ptr, cg, paths, *sizes):
    lists = [[array.contiguous() for array in arrays] for arrays in (x, y, w, g)]
    nodes, width = sizes if by == "x" else (0, *sizes)
    result = tensor_product_convolution.tensor_product_convolution_by(
        by, *lists, terms, neighbour.contiguous(), row_ptr, paths, _numbers(cg), nodes, width
    )
    return result.sum(dim=1) if by == "y" else result


def _convolution(x, y, w, *rest):
    return _convolution_by("g", [x], [y], [w], [], [0, 0, 0], *rest)


def _convolution_nodes(y, w, g, *rest):
    return _convolution_by("x", [], [y], [w], [g], [0, 0, 0], *rest)


def _convolution_edges(x, y, w, g, *rest):
    dy = _convolution_by("y", [x], [], [w], [g], [0, 0, 0], *rest, y.shape[1])
    return dy, _convolution_by("w", [x], [y], [], [g], [0, 0, 0], *rest, w.shape[1])
