r"""Multilayer perceptrons on edges, and products with matrices, as operators.

.. math:: h_k = \mathrm{silu}(p_k), \quad p_k = h_{k-1} W_k, \quad h_0 = [x_0 | x_1 | \dots],

with an input that consists of parts side by side. Every :math:`\mathrm{silu}'(p_k)` is a result too, as the gradient needs it.

These operators have derivatives of any order, also by weights. The first derivatives by the input, which an evaluation of
energies and forces needs, are operators again, so that a device can have a kernel for them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nequip_md.ops._operator import define, needed, vector_jacobian_products


def silu_and_derivative(x: Tensor) -> tuple[Tensor, Tensor]:
    s = torch.sigmoid(x)
    h = x * s
    return h, s + h * (1 - s)


def _silu_second_derivative(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 - s) * (2 + x * (1 - 2 * s))


# ---- one matrix ---------------------------------------------------------------------------------------------------


def _dense_reference(x: Tensor, w: Tensor, transposed: bool) -> Tensor:
    return x @ (w.T if transposed else w)


def _matrix_setup(ctx, inputs, output):
    x, w, ctx.transposed = inputs
    ctx.save_for_backward(x, w)


def _dense_backward(ctx, g):
    x, w = ctx.saved_tensors
    by_x, by_w = needed(ctx)
    dx = torch.ops.nequip_md.dense(g.contiguous(), w, not ctx.transposed) if by_x else None
    dw = (g.T @ x if ctx.transposed else x.T @ g) if by_w else None
    return dx, dw, None


define(
    "dense(Tensor x, Tensor w, bool transposed) -> Tensor",
    _dense_reference,
    backward=_dense_backward,
    setup_context=_matrix_setup,
)


# ---- one matrix for each order ------------------------------------------------------------------------------------


def _of_order(x: Tensor, l: int) -> Tensor:
    """Rows of order l: [N, (l_max + 1)^2, K] to [N, 2 l + 1, K]."""
    return x[:, l * l : (l + 1) ** 2]


def _mix_reference(x: Tensor, w: Tensor, transposed: bool) -> Tensor:
    w = w.transpose(1, 2) if transposed else w
    return torch.cat([_of_order(x, l) @ w[l] for l in range(w.shape[0])], dim=1)


def _mix_backward(ctx, g):
    x, w = ctx.saved_tensors
    by_x, by_w = needed(ctx)
    dx = torch.ops.nequip_md.mix_orders(g.contiguous(), w, not ctx.transposed) if by_x else None
    if not by_w:
        return dx, None, None
    left, right = (g, x) if ctx.transposed else (x, g)
    dw = [_of_order(left, l).flatten(0, 1).T @ _of_order(right, l).flatten(0, 1) for l in range(w.shape[0])]
    return dx, torch.stack(dw), None


define(
    "mix_orders(Tensor x, Tensor w, bool transposed) -> Tensor",
    _mix_reference,
    backward=_mix_backward,
    setup_context=_matrix_setup,
)


# ---- hidden layers ------------------------------------------------------------------------------------------------


def hidden_reference(parts: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    h, derivatives = torch.cat(list(parts), dim=-1), []
    for w in weights:
        h, d = silu_and_derivative(h @ w)
        derivatives.append(d)
    return [h, *derivatives]


def hidden_backward_reference(
    g: Tensor, derivatives: Sequence[Tensor], weights: Sequence[Tensor], widths: Sequence[int]
) -> list[Tensor]:
    for d, w in zip(reversed(derivatives), reversed(weights)):
        g = (g * d) @ w.T
    return [part.clone(memory_format=torch.contiguous_format) for part in g.split(list(widths), dim=-1)]


def _hidden_setup(ctx, inputs, output):
    parts, weights = inputs
    ctx.layers = len(weights)
    ctx.save_for_backward(*parts, *weights, *output[1:])
    ctx.set_materialize_grads(False)


def _hidden_backward(ctx, gradients):
    g, *by_derivatives = gradients
    count = len(ctx.saved_tensors) - 2 * ctx.layers
    parts, weights = ctx.saved_tensors[:count], ctx.saved_tensors[count : count + ctx.layers]
    derivatives = ctx.saved_tensors[count + ctx.layers :]
    wanted = needed(ctx)
    if g is not None and not any(wanted[count:]) and all(d is None for d in by_derivatives):
        widths = [part.shape[1] for part in parts]
        return torch.ops.nequip_md.mlp_hidden_backward(g.contiguous(), derivatives, weights, widths), [
            None
        ] * ctx.layers
    dx, dw = _hidden_gradients(g, by_derivatives, torch.cat(list(parts), dim=-1), weights, derivatives, wanted[count:])
    return list(dx.split([part.shape[1] for part in parts], dim=-1)), dw


def _hidden_gradients(
    g: Tensor | None,
    by_derivatives: list[Tensor | None],
    x: Tensor,
    weights: Sequence[Tensor],
    derivatives: Sequence[Tensor],
    wanted: list[bool],
) -> tuple[Tensor, list[Tensor | None]]:
    """Gradients by the input and, where ``wanted``, by the weights. The layers' outputs are recomputed."""
    inputs, products = [x], []
    for w in weights:
        products.append(inputs[-1] @ w)
        inputs.append(torch.nn.functional.silu(products[-1]))
    g = torch.zeros_like(inputs[-1]) if g is None else g
    dw: list[Tensor | None] = [None] * len(weights)
    for k in reversed(range(len(weights))):
        gp = g * derivatives[k]
        if by_derivatives[k] is not None:
            gp = gp + by_derivatives[k] * _silu_second_derivative(products[k])
        if wanted[k]:
            dw[k] = inputs[k].T @ gp
        g = gp @ weights[k].T
    return g, dw


define(
    "mlp_hidden(Tensor[] parts, Tensor[] weights) -> Tensor[]",
    hidden_reference,
    backward=_hidden_backward,
    setup_context=_hidden_setup,
)


def _backward_setup(ctx, inputs, output):
    g, derivatives, weights, ctx.widths = inputs
    ctx.layers = len(weights)
    ctx.save_for_backward(g, *derivatives, *weights)


def _backward_backward(ctx, gradients):
    """Gradients by g, the derivatives and the weights; the result is linear in each of them."""
    g, *rest = ctx.saved_tensors
    derivatives, weights = rest[: ctx.layers], rest[ctx.layers :]
    wanted = needed(ctx)
    # the result is v_0 with v_(k-1) = (v_k * d_k) W_k^T and v_n = g
    v = [g]
    for d, w in zip(reversed(derivatives[1:]), reversed(weights[1:])):
        v.append((v[-1] * d) @ w.T)
    v.reverse()
    pieces = [
        torch.zeros(g.shape[0], k, dtype=g.dtype, device=g.device) if c is None else c
        for c, k in zip(gradients, ctx.widths)
    ]
    c = torch.cat(pieces, dim=-1)
    by_derivatives, by_weights = [None] * ctx.layers, [None] * ctx.layers
    for k, (d, w) in enumerate(zip(derivatives, weights)):
        if wanted[1 + ctx.layers + k]:
            by_weights[k] = c.T @ (v[k] * d)
        product = c @ w
        if wanted[1 + k]:
            by_derivatives[k] = product * v[k]
        c = product * d
    return c, by_derivatives, by_weights, None


define(
    "mlp_hidden_backward(Tensor g, Tensor[] derivatives, Tensor[] weights, int[] widths) -> Tensor[]",
    hidden_backward_reference,
    backward=_backward_backward,
    setup_context=_backward_setup,
)


# ---- hidden layers and a scalar result ----------------------------------------------------------------------------


def _readout_reference(parts: list[Tensor], weights: list[Tensor], v: Tensor, r: Tensor) -> list[Tensor]:
    h, *derivatives = hidden_reference(parts, weights)
    return [h @ v + torch.cat(parts, dim=-1) @ r, *derivatives]


def _readout_setup(ctx, inputs, output):
    parts, weights, v, r = inputs
    ctx.layers = len(weights)
    ctx.save_for_backward(*parts, *weights, v, r, *output[1:])
    ctx.set_materialize_grads(False)


def _readout_backward(ctx, gradients):
    g, *by_derivatives = gradients
    layers, wanted = ctx.layers, needed(ctx)
    count = len(ctx.saved_tensors) - 2 * layers - 2
    tensors, derivatives = list(ctx.saved_tensors[:-layers]), ctx.saved_tensors[-layers:]
    parts, weights, (v, r) = tensors[:count], tensors[count : count + layers], tensors[-2:]
    if g is not None and not any(wanted[count:]) and all(d is None for d in by_derivatives):
        widths = [part.shape[1] for part in parts]
        dx = torch.ops.nequip_md.mlp_readout_backward(g.contiguous(), derivatives, weights, v, r, widths)
        return dx, [None] * layers, None, None

    def readout(*tensors):
        parts, weights, (v, r) = tensors[:count], tensors[count : count + layers], tensors[-2:]
        h, *derivatives = torch.ops.nequip_md.mlp_hidden(parts, weights)
        return [h @ v + torch.cat(parts, dim=-1) @ r, *derivatives]

    d = vector_jacobian_products(readout, tensors, wanted, gradients)
    return d[:count], d[count : count + layers], d[-2], d[-1]


define(
    "mlp_readout(Tensor[] parts, Tensor[] weights, Tensor v, Tensor r) -> Tensor[]",
    _readout_reference,
    backward=_readout_backward,
    setup_context=_readout_setup,
)


def _readout_backward_reference(
    g: Tensor, derivatives: list[Tensor], weights: list[Tensor], v: Tensor, r: Tensor, widths: list[int]
) -> list[Tensor]:
    g = g.unsqueeze(1)
    gradient = hidden_backward_reference(g * v, derivatives, weights, widths)
    return [part + g * c for part, c in zip(gradient, r.split(widths))]


def _readout_backward_setup(ctx, inputs, output):
    g, derivatives, weights, v, r, ctx.widths = inputs
    ctx.layers = len(weights)
    ctx.save_for_backward(g, *derivatives, *weights, v, r)


def _readout_backward_backward(ctx, gradients):
    layers, widths = ctx.layers, ctx.widths

    def gradient(g, *tensors):
        derivatives, weights, (v, r) = tensors[:layers], tensors[layers : 2 * layers], tensors[-2:]
        g = g.unsqueeze(1)
        parts = torch.ops.nequip_md.mlp_hidden_backward(g * v, derivatives, weights, widths)
        return [part + g * c for part, c in zip(parts, r.split(widths))]

    d = vector_jacobian_products(gradient, list(ctx.saved_tensors), needed(ctx), gradients)
    return d[0], d[1 : 1 + layers], d[1 + layers : 1 + 2 * layers], d[-2], d[-1], None


define(
    "mlp_readout_backward(Tensor g, Tensor[] derivatives, Tensor[] weights, Tensor v, Tensor r, int[] widths) -> Tensor[]",
    _readout_backward_reference,
    backward=_readout_backward_backward,
    setup_context=_readout_backward_setup,
)


# ---- fused operators of lowered graphs (nequip_md.lowering.mlps), without derivatives --------------------------------


def _hidden_dense_reference(
    parts: list[Tensor], w1: Tensor, w2: Tensor, w3: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    h, d1, d2 = hidden_reference(parts, [w1, w2])
    return h, h @ w3, d1, d2


def _hidden_dense_backward_reference(
    g: Tensor, dy: Tensor, d1: Tensor, d2: Tensor, w1: Tensor, w2: Tensor, w3: Tensor, widths: list[int]
) -> list[Tensor]:
    return hidden_backward_reference(g + dy @ w3.T, [d1, d2], [w1, w2], widths)


define(
    "mlp_hidden_dense(Tensor[] parts, Tensor w1, Tensor w2, Tensor w3) -> (Tensor, Tensor, Tensor, Tensor)",
    _hidden_dense_reference,
)
define(
    "mlp_hidden_dense_backward(Tensor g, Tensor dy, Tensor d1, Tensor d2, Tensor w1, Tensor w2, Tensor w3, int[] widths) "
    "-> Tensor[]",
    _hidden_dense_backward_reference,
)


def _energy_reference(
    parts: list[Tensor], weights: list[Tensor], v: Tensor, r: Tensor, factor: Tensor | None
) -> list[Tensor]:
    """The readout multiplied by ``factor`` ([E], or 1 if it is None), and the gradient of its sum."""
    energy, *derivatives = _readout_reference(parts, weights, v, r)
    g = torch.ones_like(energy) if factor is None else factor
    gradient = _readout_backward_reference(g, derivatives, weights, v, r, [part.shape[1] for part in parts])
    return [energy * g, *gradient]


define(
    "mlp_energy(Tensor[] parts, Tensor[] weights, Tensor v, Tensor r, Tensor? factor) -> Tensor[]", _energy_reference
)


# ---- public -------------------------------------------------------------------------------------------------------


def dense(x: Tensor, w: Tensor) -> Tensor:
    """Multiply x [E, K] by w [K, N]."""
    return torch.ops.nequip_md.dense(x.contiguous(), w.contiguous(), False)


def mix_orders(x: Tensor, w: Tensor) -> Tensor:
    """Multiply every order l of x [N, (l_max + 1)^2, K] by its own matrix w [l_max + 1, K, U]: [N, (l_max + 1)^2, U]."""
    return torch.ops.nequip_md.mix_orders(x.contiguous(), w.contiguous(), False)


def mlp_hidden(parts: list[Tensor], weights: list[Tensor]) -> Tensor:
    """Hidden layers of an MLP, silu( ... silu(silu([x0 | x1 ...] W1) W2) ... ).

    Args:
        parts: the input in parts, [E, K_j].
        weights: one matrix for each layer: [sum of K_j, N1], [N1, N2] ...

    Returns:
        [E, width of the last layer].
    """
    return torch.ops.nequip_md.mlp_hidden(_contiguous(parts), _contiguous(weights))[0]


def mlp_readout(parts: list[Tensor], weights: list[Tensor], v: Tensor, r: Tensor) -> Tensor:
    """Scalar readout h v + x r, with h = :func:`mlp_hidden` of the parts x = [x0 | x1 ...].

    Args:
        parts, weights: as for :func:`mlp_hidden`.
        v: [width of the last layer].
        r: [sum of K_j].

    Returns:
        [E].
    """
    return torch.ops.nequip_md.mlp_readout(_contiguous(parts), _contiguous(weights), v.contiguous(), r.contiguous())[0]


def _contiguous(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.contiguous() for tensor in tensors]
