"""Independent implementations of the operators in float64, by loops over components and by autograd of PyTorch's own functions."""

from __future__ import annotations

from math import pi

import torch
from e3nn import o3
from torch import Tensor
from torch.nn.functional import silu


def order_of(component: int) -> int:
    return int(component**0.5)


def gradients(scalar: Tensor, *by: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(scalar, by))


def zeros(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.float64, requires_grad=True)


def differentiable(*tensors: Tensor) -> list[Tensor]:
    return [t.detach().requires_grad_() for t in tensors]


# ---- edges -----------------------------------------------------------------------------------------------------------


def trilinear(a: Tensor, y: Tensor, z: Tensor, centre: Tensor) -> Tensor:
    """The trilinear form, sum a[e, l(m), c] y[e, m] z[i, m, c]."""
    total = 0.0
    for m in range(y.shape[1]):
        slot = 0 if a.shape[1] == 1 else order_of(m)
        total = total + torch.einsum("ec,e,ec->", a[:, slot], y[:, m], z[centre, m])
    return total


def segment_sum(values, centre, row_ptr):
    return torch.stack([values[begin:end].sum(dim=0) for begin, end in zip(row_ptr, row_ptr[1:])])


def edge_moment(a, y, centre, row_ptr):
    z = zeros(len(row_ptr) - 1, y.shape[1], a.shape[2])
    return gradients(trilinear(a, y, z, centre), z)


def edge_spread(y, z, centre, row_ptr, orders):
    a = zeros(len(y), orders, z.shape[2])
    return gradients(trilinear(a, y, z, centre), a)


def edge_dot(a, z, centre, row_ptr):
    y = zeros(len(a), z.shape[1])
    return gradients(trilinear(a, y, z, centre), y)


def edge_spread_add(y, z, centre, row_ptr, starts):
    (spread,) = edge_spread(y, z, centre, row_ptr, 1)
    for start in starts:
        spread = spread + start
    return spread


def edge_contract(w, y, z, centre, row_ptr):
    return sum(w[:, order_of(m)] * y[:, m : m + 1] * z[centre, m] for m in range(y.shape[1]))


def edge_contract_gradient(g, w, y, z, centre, row_ptr):
    w, y, first = differentiable(w, y, z[0])
    total = sum((c * edge_contract(w, y, v, centre, row_ptr)).sum() for c, v in zip(g, [first, *z[1:]]))
    return gradients(total, w, y, first)


def edge_contract_backward(g, w, y, z, centre, row_ptr):
    return edge_contract_gradient([g], w, y, [z], centre, row_ptr)


def edge_contract_moment(g, w, y, centre, row_ptr):
    z = zeros(len(row_ptr) - 1, y.shape[1], w.shape[2])
    return gradients((g * edge_contract(w, y, z, centre, row_ptr)).sum(), z)


def edge_embedding(vectors, edge_index, node_types, cutoffs, roots, centre, neighbour, weights, p, l_max):
    first, second = node_types[edge_index]
    x = vectors.norm(dim=1, keepdim=True) / cutoffs[first, second].unsqueeze(1)
    envelope = 1 - (p + 1) * (p + 2) / 2 * x**p + p * (p + 2) * x ** (p + 1) - p * (p + 1) / 2 * x ** (p + 2)
    basis = torch.where(x < 1, torch.sin(roots * pi * x) / (pi * x) * envelope, 0.0)
    harmonics = o3.spherical_harmonics(list(range(l_max + 1)), vectors, normalize=True, normalization="component")
    return torch.cat([centre[first], neighbour[second]], dim=1) * (basis @ weights), harmonics


def edge_embedding_backward(dg, dharmonics, vectors, *rest):
    (vectors,) = differentiable(vectors)
    g, harmonics = edge_embedding(vectors, *rest)
    return gradients((dg * g).sum() + (sum(dharmonics) * harmonics).sum(), vectors)


# ---- atoms -----------------------------------------------------------------------------------------------------------


def _coefficients(table, values, *sizes):
    dense = torch.zeros(sizes, dtype=torch.float64)
    for (path, first, second, output), value in zip(table.T.tolist(), values.tolist()):
        dense[path, first, second, output] += value
    return dense


def channel_product(x, y, w, table, values, dim):
    c = _coefficients(table, values, len(w), x.shape[1], y.shape[1], dim)
    return torch.einsum("pabc,nau,nbu,pu->ncu", c, x, y, w)


def channel_product_weight(x, y, z, table, values, paths):
    c = _coefficients(table, values, paths, x.shape[1], y.shape[1], z.shape[1])
    return torch.einsum("pabc,nau,nbu,ncu->pu", c, x, y, z)


def mix_orders(x, w, transposed):
    rows = [x[:, m] @ (w[order_of(m)].T if transposed else w[order_of(m)]) for m in range(x.shape[1])]
    return torch.stack(rows, dim=1)


# ---- multilayer perceptrons ------------------------------------------------------------------------------------------


def dense(x, w, transposed):
    return torch.einsum("ek,nk->en" if transposed else "ek,kn->en", x, w)


def mlp_hidden(parts, weights):
    h, derivatives = torch.cat(parts, dim=1), []
    for w in weights:
        (p,) = differentiable(h @ w)
        h = silu(p)
        derivatives += gradients(h.sum(), p)
    return [h.detach(), *derivatives]


def mlp_hidden_dense(parts, w1, w2, w3):
    h, d1, d2 = mlp_hidden(parts, [w1, w2])
    return h, h @ w3, d1, d2


def mlp_readout(parts, weights, v, r):
    h, *derivatives = mlp_hidden(parts, weights)
    return [h @ v + torch.cat(parts, dim=1) @ r, *derivatives]


def mlp_energy(parts, weights, v, r, factor):
    parts = differentiable(*parts)
    h = x = torch.cat(parts, dim=1)
    for w in weights:
        h = silu(h @ w)
    energy = h @ v + x @ r
    energy = energy if factor is None else energy * factor
    return [energy.detach(), *gradients(energy.sum(), *parts)]


def _linear(x, derivatives, weights):
    """The layers with silu replaced by linear functions with these slopes."""
    for w, d in zip(weights, derivatives):
        x = (x @ w) * d
    return x


def mlp_hidden_backward(g, derivatives, weights, widths):
    parts = [zeros(len(g), width) for width in widths]
    return gradients((g * _linear(torch.cat(parts, dim=1), derivatives, weights)).sum(), *parts)


def mlp_hidden_dense_backward(g, dy, d1, d2, w1, w2, w3, widths):
    parts = [zeros(len(g), width) for width in widths]
    h = _linear(torch.cat(parts, dim=1), [d1, d2], [w1, w2])
    return gradients((g * h).sum() + (dy * (h @ w3)).sum(), *parts)


def mlp_readout_backward(g, derivatives, weights, v, r, widths):
    parts = [zeros(len(g), width) for width in widths]
    x = torch.cat(parts, dim=1)
    return gradients((g * (_linear(x, derivatives, weights) @ v + x @ r)).sum(), *parts)
