"""MLPs in Triton: one kernel for two layers where they fit, a kernel for each layer where they do not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import triton
from torch import Tensor
from torch._ops import OpOverload
from torch.nn.functional import pad

from nequip_md.kernels.backend import Form
from nequip_md.kernels.triton import dense, dense_weight, launcher, mlp_energy, mlp_hidden, mlp_layers, tiles, weights
from nequip_md.kernels.triton.weights import MAX_PARTS, split

if TYPE_CHECKING:
    from nequip_md.kernels.triton.backend import TritonBackend

OPERATORS = torch.ops.nequip_md

MAX_WIDTH = 512
"""Width of the widest layer that the kernels take."""
MAX_PRODUCT_WIDTH = 2048
"""Most rows and columns of a matrix that is multiplied on its own."""
MANY = 4096
"""Rows from which a sum over them is worth a kernel, in the batch with which a step is traced."""
SMALL_GRADIENT = 2**14
"""Numbers in a gradient of this size or less are summed as fast by PyTorch's product."""
LARGE = 2**16
"""Numbers in a matrix from which a product with it takes its time on arithmetic."""


def mlp_forms(backend: TritonBackend) -> dict[OpOverload, list[Form]]:
    """Forms of the operators of :mod:`nequip_md.ops.mlp`, all for float32."""
    forms = _Forms(backend)
    return {
        OPERATORS.dense.default: [Form(forms.dense, lambda x, w, transposed: x.dtype == torch.float32)],
        OPERATORS.mix_orders.default: [Form(forms.mix_orders, lambda x, w, transposed: x.dtype == torch.float32)],
        OPERATORS.mlp_hidden.default: [
            Form(forms.joined_hidden, lambda parts, matrices: served(matrices) and len(parts) > MAX_PARTS),
            Form(forms.one_layer, lambda parts, matrices: served(matrices) and len(matrices) == 1),
            Form(forms.two_layers, forms.takes_two_layers),
            Form(forms.more_layers, forms.takes_more_layers),
            Form(forms.each_layer, lambda parts, matrices: served(matrices)),
        ],
        OPERATORS.mlp_hidden_backward.default: [
            Form(forms.joined_backward, lambda g, d, matrices, widths: served(matrices) and len(widths) > MAX_PARTS),
            Form(forms.one_layer_backward, lambda g, d, matrices, widths: served(matrices) and len(matrices) == 1),
            Form(forms.two_layers_backward, forms.takes_two_layers_backward),
            Form(forms.more_layers_backward, forms.takes_more_layers_backward),
            Form(forms.each_layer_backward, lambda g, d, matrices, widths: served(matrices)),
        ],
        OPERATORS.mlp_readout.default: [Form(forms.readout, lambda parts, matrices, v, r: served(matrices))],
        OPERATORS.mlp_readout_backward.default: [
            Form(forms.readout_backward, lambda g, d, matrices, v, r, widths: served(matrices))
        ],
        OPERATORS.mlp_hidden_dense.default: [
            Form(forms.hidden_dense, forms.takes_hidden_dense),
            Form(forms.hidden_then_dense, lambda parts, *matrices: served(matrices[:2])),
        ],
        OPERATORS.mlp_hidden_dense_backward.default: [
            Form(forms.hidden_dense_backward, forms.takes_hidden_dense_backward),
            Form(forms.hidden_then_dense_backward, lambda g, dy, d1, d2, w1, w2, w3, widths: served([w1, w2])),
        ],
        OPERATORS.mlp_energy.default: [
            Form(forms.energy, forms.takes_energy),
            Form(forms.energy_from_hidden, forms.takes_energy_from_hidden),
            Form(forms.energy_by_layers, forms.takes_energy_by_layers),
        ],
    }


def matrix_product_forms(backend: TritonBackend) -> dict[OpOverload, list[Form]]:
    """Forms of PyTorch's matrix product in exports, for rows of edges or atoms and large constant matrices."""
    return {torch.ops.aten.mm.default: [Form(_Forms(backend).product, takes_large_product)]}


def matrix_product_forms_of_training(backend: TritonBackend) -> dict[OpOverload, list[Form]]:
    """Forms of PyTorch's matrix product in graphs of training steps: with matrices of weights, and gradients by these."""
    forms = _Forms(backend)
    return {
        torch.ops.aten.mm.default: [
            Form(forms.product, takes_product),
            Form(forms.weight_gradient, takes_weight_gradient),
        ]
    }


def takes_product(x: Tensor, w: Tensor) -> bool:
    varies = [isinstance(size, torch.SymInt) for size in (*x.shape, *w.shape)]
    return (
        x.dtype == torch.float32
        and varies == [True, False, False, False]
        and all(16 <= n <= MAX_PRODUCT_WIDTH for n in w.shape)
    )


def takes_large_product(x: Tensor, w: Tensor) -> bool:
    """Whether it is worth a kernel in an export too: PyTorch's is bound by arithmetic, not by memory."""
    return takes_product(x, w) and w.numel() >= LARGE


def takes_weight_gradient(x: Tensor, g: Tensor) -> bool:
    """Whether the product sums over edges and is large; PyTorch's is as fast over the few atoms of a batch."""
    rows = g.shape[0]
    return (
        x.dtype == torch.float32
        and isinstance(rows, torch.SymInt)
        and rows.node.has_hint()
        and rows.node.hint >= MANY
        and all(isinstance(n, int) and 16 <= n <= MAX_PRODUCT_WIDTH for n in (x.shape[0], g.shape[1]))
        and x.shape[0] * g.shape[1] > SMALL_GRADIENT
    )


def served(matrices: Sequence[Tensor]) -> bool:
    """Whether the kernels take layers of these matrices."""
    return all(w.dtype == torch.float32 and w.shape[1] <= MAX_WIDTH for w in matrices)


class _Forms:
    def __init__(self, backend: TritonBackend):
        self.backend, self.products = backend, backend.products

    def _split(self, w: Tensor, *arguments) -> tuple[Tensor, Tensor, Tensor]:
        return split(w, *arguments, varies=self.backend.weights_vary)

    def _fit(self, kernel: str, widths: list[int], matrices: Sequence[Tensor]) -> bool:
        """Whether two layers with these matrices fit into a kernel."""
        return (
            len(matrices) == 2
            and served(matrices)
            and len(widths) <= MAX_PARTS
            and tiles.two_layers_fit(kernel, widths, *matrices[1].shape, self.products)
        )

    def _first_two_fit(self, widths: list[int], matrices: Sequence[Tensor]) -> bool:
        return (
            len(matrices) >= 2
            and served(matrices)
            and len(widths) <= MAX_PARTS
            and self.backend.two_layers_in_one_kernel(widths, *matrices[1].shape)
        )

    # ---- one matrix -------------------------------------------------------------------------------------------------

    def dense(self, x, w, transposed):
        if transposed:
            split_w = self._split(w, [w.shape[0]], weights.dense_columns, weights.multiple_of_64)
            return dense.dense(x, *split_w, *w.shape[::-1], True, self.products)
        split_w = self._split(w, [w.shape[0]], weights.multiple_of_64, weights.dense_columns)
        return dense.dense(x, *split_w, *w.shape, False, self.products)

    def product(self, x, w):
        if not w.is_contiguous() and w.t().is_contiguous():
            # the matrix of a linear map, in its derivative: it is split once for both
            return self.dense(x.contiguous(), w.t(), True)
        return self.dense(x.contiguous(), w.contiguous(), False)

    def weight_gradient(self, x, g):
        return dense_weight.dense_weight(x.t().contiguous(), g.contiguous(), self.products).sum(dim=0)

    def mix_orders(self, x, w, transposed):
        orders, inner, outer = w.shape
        split_w = self._split(w.flatten(0, 1), [inner] * orders)
        return dense.mix_orders(x, *split_w, inner if transposed else outer, transposed, self.products)

    # ---- inputs of many parts -------------------------------------------------------------------------------------------

    def joined_hidden(self, parts, matrices):
        return self.backend.call(OPERATORS.mlp_hidden.default, [torch.cat(parts, dim=-1)], matrices)

    def joined_backward(self, g, derivatives, matrices, widths):
        backward = OPERATORS.mlp_hidden_backward.default
        (dx,) = self.backend.call(backward, g, derivatives, matrices, [sum(widths)])
        return [part.contiguous() for part in dx.split(widths, dim=-1)]

    # ---- hidden layers ----------------------------------------------------------------------------------------------

    def one_layer(self, parts, matrices):
        x, w = torch.cat(parts, dim=-1), matrices[0]
        split_w = self._split(w, [w.shape[0]], weights.multiple_of_64, weights.dense_columns)
        return dense.dense_silu(x, *split_w, *w.shape, self.products)

    def one_layer_backward(self, g, derivatives, matrices, widths):
        dx = self.dense((g * derivatives[0]).contiguous(), matrices[0], True)
        return [part.contiguous() for part in dx.split(widths, dim=-1)]

    def takes_two_layers(self, parts, matrices):
        return self._fit("hidden", part_widths(parts), matrices)

    def two_layers(self, parts, matrices):
        w1, w2 = matrices
        first, second = self._split(w1, part_widths(parts)), self._split(w2, [w2.shape[0]])
        return mlp_hidden.mlp_hidden(parts, *first, *second, [], *w2.shape, 0, self.products)

    def takes_two_layers_backward(self, g, derivatives, matrices, widths):
        return all(self._fit(kernel, widths, matrices) for kernel in ("hidden", "backward"))

    def two_layers_backward(self, g, derivatives, matrices, widths):
        (d1, d2), (w1, w2) = derivatives, matrices
        first, second = self._split(w1, widths), self._split(w2, [w2.shape[0]])
        return mlp_hidden.mlp_hidden_backward(g, [], d1, d2, *first, *second, [], widths, self.products)

    def takes_more_layers(self, parts, matrices):
        return len(matrices) > 2 and self._first_two_fit(part_widths(parts), matrices)

    def more_layers(self, parts, matrices):
        h, *derivatives = self.backend.call(OPERATORS.mlp_hidden.default, parts, matrices[:2])
        h, *rest = self.backend.call(OPERATORS.mlp_hidden.default, [h], matrices[2:])
        return [h, *derivatives, *rest]

    def takes_more_layers_backward(self, g, derivatives, matrices, widths):
        return len(matrices) > 2 and self._first_two_fit(widths, matrices)

    def more_layers_backward(self, g, derivatives, matrices, widths):
        backward = OPERATORS.mlp_hidden_backward.default
        (g,) = self.backend.call(backward, g, derivatives[2:], matrices[2:], [matrices[1].shape[1]])
        return self.backend.call(backward, g, derivatives[:2], matrices[:2], widths)

    # ---- two layers and the matrix that reads them --------------------------------------------------------------------

    def takes_hidden_dense(self, parts, w1, w2, w3):
        return w2.shape[1] <= tiles.WIDEST_BEFORE_LAST and self._fit("hidden", part_widths(parts), [w1, w2])

    def hidden_dense(self, parts, w1, w2, w3):
        first, second, last = (
            self._split(w1, part_widths(parts)),
            self._split(w2, [w2.shape[0]]),
            self._split(w3, [w3.shape[0]]),
        )
        shape = (*w2.shape, w3.shape[1])
        return tuple(mlp_hidden.mlp_hidden(parts, *first, *second, list(last), *shape, self.products))

    def hidden_then_dense(self, parts, w1, w2, w3):
        h, d1, d2 = self.backend.call(OPERATORS.mlp_hidden.default, parts, [w1, w2])
        return h, self.product(h, w3), d1, d2

    def takes_hidden_dense_backward(self, g, dy, d1, d2, w1, w2, w3, widths):
        return self._fit("backward_dense", widths, [w1, w2])

    def hidden_dense_backward(self, g, dy, d1, d2, w1, w2, w3, widths):
        last, first, second = (
            list(self._split(w3, [w3.shape[0]])),
            self._split(w1, widths),
            self._split(w2, [w2.shape[0]]),
        )
        return mlp_hidden.mlp_hidden_backward(g, [dy], d1, d2, *first, *second, last, widths, self.products)

    def hidden_then_dense_backward(self, g, dy, d1, d2, w1, w2, w3, widths):
        g = g + self.product(dy, w3.T)
        return self.backend.call(OPERATORS.mlp_hidden_backward.default, g, [d1, d2], [w1, w2], widths)

    # ---- a readout without its gradient, in graphs of second derivatives ------------------------------------------------

    def readout(self, parts, matrices, v, r):
        h, *derivatives = self.backend.call(OPERATORS.mlp_hidden.default, parts, matrices)
        return [h @ v + torch.cat(parts, dim=-1) @ r, *derivatives]

    def readout_backward(self, g, derivatives, matrices, v, r, widths):
        g = g.unsqueeze(1)
        gradient = self.backend.call(OPERATORS.mlp_hidden_backward.default, g * v, derivatives, matrices, widths)
        return [part + g * c for part, c in zip(gradient, r.split(widths))]

    # ---- a scalar result ----------------------------------------------------------------------------------------------

    def takes_energy(self, parts, matrices, v, r, factor):
        return self._fit("energy", part_widths(parts), matrices)

    def energy(self, parts, matrices, v, r, factor):
        widths, (w1, w2) = part_widths(parts), matrices
        r = torch.cat([pad(c, (0, launcher.tile_width(k) - k)) for c, k in zip(r.split(widths), widths)])
        v = pad(v, (0, launcher.tile_width(len(v)) - len(v)))
        factors = [] if factor is None else [factor]
        first, second = self._split(w1, widths), self._split(w2, [w2.shape[0]])
        return mlp_energy.mlp_energy(parts, *first, *second, v, r, factors, *w2.shape, self.products)

    def takes_energy_from_hidden(self, parts, matrices, v, r, factor):
        return self._first_two_fit(part_widths(parts), matrices)

    def energy_from_hidden(self, parts, matrices, v, r, factor):
        widths = part_widths(parts)
        h, *derivatives = self.backend.call(OPERATORS.mlp_hidden.default, parts, matrices)
        energy = h @ v
        ones = v.expand_as(derivatives[-1]).contiguous()
        gradient = self.backend.call(OPERATORS.mlp_hidden_backward.default, ones, derivatives, matrices, widths)
        gradient = [g + c for g, c in zip(gradient, r.split(widths))]
        return _scaled(energy, gradient, parts, r, factor)

    def takes_energy_by_layers(self, parts, matrices, v, r, factor):
        return len(matrices) >= 2 and served(matrices) and len(parts) <= MAX_PARTS

    def energy_by_layers(self, parts, matrices, v, r, factor):
        energy, *derivatives = self.each_layer(parts, matrices, v)
        gradient = self.each_layer_backward(
            v.unsqueeze(0), derivatives, matrices, part_widths(parts), one_row=True, add=r
        )
        return _scaled(energy, gradient, parts, r, factor)

    # ---- layer by layer -----------------------------------------------------------------------------------------------

    def _layer_matrix(self, w, rows):
        """High and low parts of w, whose rows belong to input parts of these widths; and its scale and norms (:func:`split`)."""
        block = tiles.layer_block(w.shape[1], self.products)
        hi, lo, info = self._split(w, rows, tiles.deep, lambda width: block * triton.cdiv(width, block))
        return [torch.stack([hi, lo] if self.products == 3 else [hi]), info]

    def _note_width(self, widths, matrices):
        layers = ", ".join(str(w.shape[0]) for w in matrices[1:])
        self.backend.note(
            f"an MLP of widths {sum(widths)}, {layers} and {matrices[-1].shape[1]} runs as separate matrix products, as "
            "it is too wide for one kernel"
        )

    def each_layer(self, parts, matrices, v=None):
        """The last layer h, or h v, and the derivatives of silu in every layer."""
        self._note_width(part_widths(parts), matrices)
        x, derivatives, rows = mlp_layers.split_parts(parts, [], False, self.products), [], part_widths(parts)
        for k, w in enumerate(matrices):
            matrix, last = self._layer_matrix(w, rows), k + 1 == len(matrices)
            if last and v is not None:
                padded = pad(v, (0, matrix[0].shape[2] - len(v)))
                sums, d = mlp_layers.layer_dot(x, matrix, padded, len(v), self.products)
                x = [sums.sum(dim=0)]
            else:
                *x, d = mlp_layers.layer_silu(x, matrix, w.shape[1], not last, self.products)
            derivatives.append(d)
            rows = [w.shape[1]]
        return [*x, *derivatives]

    def each_layer_backward(self, g, derivatives, matrices, widths, one_row=False, add=None):
        """Gradient by the input.

        Args:
            one_row: g is [1, N], the same for all rows.
            add: a row that is added to every row of the result.
        """
        self._note_width(widths, matrices)
        x = mlp_layers.split_parts([g], [derivatives[-1]], one_row, self.products)
        for w, d in list(zip(matrices[1:], derivatives))[::-1]:
            x = mlp_layers.layer_times(x, self._layer_matrix(w.T, [w.shape[1]]), d, self.products)
        w = matrices[0].T
        matrix = self._layer_matrix(w, [w.shape[0]])
        added = [] if add is None else [pad(add, (0, matrix[0].shape[2] - len(add)))]
        return mlp_layers.layer_parts(x, matrix, widths, added, self.products)


def part_widths(parts: list[Tensor]) -> list[int]:
    """Widths of the parts of an input, [E, width] each."""
    return [part.shape[1] for part in parts]


def _scaled(energy, gradient, parts, r, factor):
    energy = energy + sum(part @ c for part, c in zip(parts, r.split(part_widths(parts))))
    return [energy, *gradient] if factor is None else [energy * factor, *(g * factor.unsqueeze(1) for g in gradient)]
