r"""Multilayer perceptrons on edges as operators: what a device may do in few kernels.

Layers of a product and its nonlinearity, two or more at a time,

.. math:: h_k = \mathrm{silu}(p_k), \quad p_k = h_{k-1} W_k, \quad h_0 = [x_0 | x_1 | \dots],

with the input in parts, side by side; every :math:`\mathrm{silu}'(p_k)` is left for the gradient. The references are plain
PyTorch. The fast forms (:mod:`nequip_md.ops.cuda`) are for inference: gradients go to the inputs, not to the weights, and once only.
A model uses these operators when it is exported for a device that has them, and plain PyTorch otherwise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nequip_md.ops._operator import define

MAX_PARTS = 4
"""Parts of an input that the fast forms take."""


def silu_and_derivative(x: Tensor) -> tuple[Tensor, Tensor]:
    s = torch.sigmoid(x)
    h = x * s
    return h, s + h * (1 - s)


# ---- one matrix ---------------------------------------------------------------------------------------------------


def _dense_reference(x: Tensor, w: Tensor, transposed: bool) -> Tensor:
    return x @ (w.T if transposed else w)


def _dense_setup(ctx, inputs, output):
    _, w, ctx.transposed = inputs
    ctx.save_for_backward(w)


def _dense_backward(ctx, g):
    (w,) = ctx.saved_tensors
    return torch.ops.nequip_md.dense(g.contiguous(), w, not ctx.transposed), None, None


define(
    "dense(Tensor x, Tensor w, bool transposed) -> Tensor",
    _dense_reference,
    backward=_dense_backward,
    setup_context=_dense_setup,
)


# ---- one matrix for each order ------------------------------------------------------------------------------------


def _mix_reference(x: Tensor, w: Tensor, transposed: bool) -> Tensor:
    w = w.transpose(1, 2) if transposed else w
    return torch.cat([x[:, l * l : (l + 1) ** 2] @ w[l] for l in range(w.shape[0])], dim=1)


def _mix_backward(ctx, g):
    (w,) = ctx.saved_tensors
    return torch.ops.nequip_md.mix_orders(g.contiguous(), w, not ctx.transposed), None, None


define(
    "mix_orders(Tensor x, Tensor w, bool transposed) -> Tensor",
    _mix_reference,
    backward=_mix_backward,
    setup_context=_dense_setup,
)


# ---- hidden layers ------------------------------------------------------------------------------------------------


def hidden_reference(parts: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    h, derivatives = torch.cat(parts, dim=-1), []
    for w in weights:
        h, d = silu_and_derivative(h @ w)
        derivatives.append(d)
    return [h, *derivatives]


def hidden_backward_reference(
    g: Tensor, derivatives: list[Tensor], weights: list[Tensor], widths: list[int]
) -> list[Tensor]:
    for d, w in zip(reversed(derivatives), reversed(weights)):
        g = (g * d) @ w.T
    return [part.clone(memory_format=torch.contiguous_format) for part in g.split(widths, dim=-1)]


def _hidden_setup(ctx, inputs, output):
    parts, weights = inputs
    ctx.widths = [part.shape[1] for part in parts]
    ctx.save_for_backward(*output[1:], *weights)


def _hidden_backward(ctx, gradients):
    layers = len(ctx.saved_tensors) // 2
    derivatives, weights = ctx.saved_tensors[:layers], ctx.saved_tensors[layers:]
    return torch.ops.nequip_md.mlp_hidden_backward(gradients[0].contiguous(), derivatives, weights, ctx.widths), [
        None
    ] * layers


define(
    "mlp_hidden(Tensor[] parts, Tensor[] weights) -> Tensor[]",
    hidden_reference,
    backward=_hidden_backward,
    setup_context=_hidden_setup,
)
define(
    "mlp_hidden_backward(Tensor g, Tensor[] derivatives, Tensor[] weights, int[] widths) -> Tensor[]",
    hidden_backward_reference,
)


# ---- two layers and the matrix that reads them --------------------------------------------------------------------


def _hidden_dense_reference(
    parts: list[Tensor], w1: Tensor, w2: Tensor, w3: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    h, d1, d2 = hidden_reference(parts, [w1, w2])
    return h, h @ w3, d1, d2


def _hidden_dense_backward_reference(
    g: Tensor, dy: Tensor, d1: Tensor, d2: Tensor, w1: Tensor, w2: Tensor, w3: Tensor, widths: list[int]
) -> list[Tensor]:
    return hidden_backward_reference(g + dy @ w3.T, [d1, d2], [w1, w2], widths)


def _hidden_dense_setup(ctx, inputs, output):
    parts, *weights = inputs
    ctx.widths = [part.shape[1] for part in parts]
    ctx.save_for_backward(*output[2:], *weights)


def _hidden_dense_backward(ctx, g, dy, *_):
    gradient = torch.ops.nequip_md.mlp_hidden_dense_backward(
        g.contiguous(), dy.contiguous(), *ctx.saved_tensors, ctx.widths
    )
    return gradient, None, None, None


define(
    "mlp_hidden_dense(Tensor[] parts, Tensor w1, Tensor w2, Tensor w3) -> (Tensor, Tensor, Tensor, Tensor)",
    _hidden_dense_reference,
    backward=_hidden_dense_backward,
    setup_context=_hidden_dense_setup,
)
define(
    "mlp_hidden_dense_backward(Tensor g, Tensor dy, Tensor d1, Tensor d2, Tensor w1, Tensor w2, Tensor w3, int[] widths) "
    "-> Tensor[]",
    _hidden_dense_backward_reference,
)


# ---- hidden layers and a scalar output ----------------------------------------------------------------------------


def _energy_reference(
    parts: list[Tensor], weights: list[Tensor], v: Tensor, r: Tensor, factor: Tensor | None
) -> list[Tensor]:
    h, *derivatives = hidden_reference(parts, weights)
    widths = [part.shape[1] for part in parts]
    gradient = hidden_backward_reference(v.expand_as(derivatives[-1]), derivatives, weights, widths)
    energy = h @ v + torch.cat(parts, dim=-1) @ r
    gradient = [g + c for g, c in zip(gradient, r.split(widths))]
    if factor is None:
        return [energy, *gradient]
    return [energy * factor, *(g * factor.unsqueeze(1) for g in gradient)]


def _energy_setup(ctx, inputs, output):
    ctx.layers = len(inputs[1])
    ctx.save_for_backward(*output[1:])


def _energy_backward(ctx, gradients):
    g = gradients[0]
    # a traced graph differentiates the sum of the energies (artifact contract), so its cotangents are ones, unseen
    if type(g) is Tensor and not bool((g == 1).all()):
        raise RuntimeError("mlp_energy has the gradient of the sum of its energies only")
    return list(ctx.saved_tensors), [None] * ctx.layers, None, None, None


define(
    "mlp_energy(Tensor[] parts, Tensor[] weights, Tensor v, Tensor r, Tensor? factor) -> Tensor[]",
    _energy_reference,
    backward=_energy_backward,
    setup_context=_energy_setup,
)


# ---- public -------------------------------------------------------------------------------------------------------


def dense(x: Tensor, w: Tensor) -> Tensor:
    """x w: [E, K] by [K, N]."""
    return torch.ops.nequip_md.dense(x.contiguous(), w.contiguous(), False)


def mix_orders(x: Tensor, w: Tensor) -> Tensor:
    """Every order l of x by its own matrix: [N, (l_max + 1)^2, K] by [l_max + 1, K, U] gives [N, (l_max + 1)^2, U]."""
    return torch.ops.nequip_md.mix_orders(x.contiguous(), w.contiguous(), False)


def mlp_hidden(parts: list[Tensor], weights: list[Tensor]) -> Tensor:
    """silu( ... silu(silu([x0 | x1 ...] W1) W2) ... ).

    Args:
        parts: the input, up to four parts [E, K_j].
        weights: one matrix for each layer: [sum of K_j, N1], [N1, N2] ...

    Returns:
        [E, width of the last layer]; differentiable once, by ``parts`` only.
    """
    if len(parts) > MAX_PARTS:
        parts = [torch.cat(parts, dim=-1)]
    return torch.ops.nequip_md.mlp_hidden([p.contiguous() for p in parts], [w.contiguous() for w in weights])[0]


def mlp_hidden_dense(parts: list[Tensor], w1: Tensor, w2: Tensor, w3: Tensor) -> tuple[Tensor, Tensor]:
    """h = :func:`mlp_hidden` of ``parts``, w1 and w2, [E, N2], and h w3, [E, N3]; w3 is [N2, N3].

    Both have to be used: the gradients of both are read. Differentiable once, by ``parts`` only.
    """
    if len(parts) > MAX_PARTS:
        parts = [torch.cat(parts, dim=-1)]
    return torch.ops.nequip_md.mlp_hidden_dense(
        [p.contiguous() for p in parts], w1.contiguous(), w2.contiguous(), w3.contiguous()
    )[:2]


def mlp_energy(
    parts: list[Tensor], weights: list[Tensor], v: Tensor, r: Tensor, factor: Tensor | None = None
) -> Tensor:
    """(silu( ... silu(x W1) W2 ... ) v + x r) factor for x = [x0 | x1 ...].

    The gradient by x is made in the same pass. It is that of the sum of all results, which is what an artifact gives: nothing that
    comes after may do anything else with them.

    Args:
        parts, weights: as for :func:`mlp_hidden`, of two layers or more.
        v: [width of the last layer].
        r: [sum of K_j].
        factor: [E], or None for 1.

    Returns:
        [E]; differentiable once, by ``parts`` only.

    Raises:
        RuntimeError: in the backward pass, if another function than the sum is differentiated.
    """
    return torch.ops.nequip_md.mlp_energy(
        [p.contiguous() for p in parts], [w.contiguous() for w in weights], v.contiguous(), r.contiguous(), factor
    )[0]
