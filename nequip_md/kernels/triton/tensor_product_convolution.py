"""Kernels of NequIP's convolution (:mod:`nequip_md.ops.tensor_product_convolution`), over the edges of one centre.

One launch computes all paths from one irrep of the features, which has A components a and U channels. The C components of
all their messages are side by side, padded to ``BLOCK_C``. For each edge a matrix, computed beforehand, couples a with c:
``coupling`` [E, ``COUPLING_WIDTH``] holds it from column ``COUPLING_FIRST`` on as [A, BLOCK_C], zero in the padding. ``table``,
[2, BLOCK_C] from ``TABLE`` on, holds for each component the first weight of its path, counted from ``W_FIRST``, and its
first column in a row of messages.

One program processes one centre and ``BLOCK_U`` channels; features and messages stay in registers. Where edges are
independent, they are divided among the programs along the last index of the grid. A sum over edges processes ``UNROLL`` edges at a
time, so that their loads are in flight together.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op

from nequip_md.kernels.triton import launcher
from nequip_md.ops.tensor_product_convolution import ConvolutionPath, coefficients, unpack


@triton.jit
def tile(table, TABLE: tl.constexpr, C: tl.constexpr, BLOCK_C: tl.constexpr, U: tl.constexpr, BLOCK_U: tl.constexpr):
    """This program's channels and components, which of the pairs exist, the first weight of each component, and columns in a row of
    messages."""
    u = tl.program_id(1) * BLOCK_U + tl.arange(0, BLOCK_U)
    c = tl.arange(0, BLOCK_C)
    inside = (c < C)[:, None] & (u < U)[None, :]
    first = tl.load(table + TABLE + c)
    column = tl.load(table + TABLE + BLOCK_C + c)[:, None] + u[None, :]
    return u, c, inside, first, column


@triton.jit
def sum_kernel(
    x,
    coupling,
    w,
    neighbour,
    row_ptr,
    table,
    out,
    X_WIDTH: tl.constexpr,
    W_WIDTH: tl.constexpr,
    G_WIDTH: tl.constexpr,
    COUPLING_WIDTH: tl.constexpr,
    X_FIRST: tl.constexpr,
    W_FIRST: tl.constexpr,
    COUPLING_FIRST: tl.constexpr,
    TABLE: tl.constexpr,
    A: tl.constexpr,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    U: tl.constexpr,
    BLOCK_U: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """The messages to a centre: out[c, u] = sum over edges of w[c, u] times the sum over a of coupling[a, c] x[a, u]."""
    i = tl.program_id(0).to(tl.int64)
    u, c, inside, first, column = tile(table, TABLE, C, BLOCK_C, U, BLOCK_U)
    weight = first[:, None] + u[None, :]
    begin = tl.load(row_ptr + i)
    end = tl.load(row_ptr + i + 1)
    total = tl.zeros([BLOCK_C, BLOCK_U], dtype=out.dtype.element_ty)
    for e0 in range(begin, end, UNROLL):
        for k in tl.static_range(UNROLL):
            e = tl.minimum(e0 + k, end - 1)
            x_j = x + tl.load(neighbour + e) * X_WIDTH + X_FIRST
            coupling_e = coupling + e * COUPLING_WIDTH + COUPLING_FIRST
            w_e = tl.load(w + e * W_WIDTH + W_FIRST + weight, mask=inside & (e0 + k < end), other=0.0)
            message = tl.zeros([BLOCK_C, BLOCK_U], dtype=out.dtype.element_ty)
            for a in tl.static_range(A):
                x_a = tl.load(x_j + a * U + u, mask=u < U, other=0.0)
                message += tl.load(coupling_e + a * BLOCK_C + c)[:, None] * x_a[None, :]
            total += message * w_e
    tl.store(out + i * G_WIDTH + column, total, mask=inside)


@triton.jit
def nodes_kernel(
    g,
    coupling,
    w,
    neighbour,
    row_ptr,
    table,
    dx,
    X_WIDTH: tl.constexpr,
    W_WIDTH: tl.constexpr,
    G_WIDTH: tl.constexpr,
    COUPLING_WIDTH: tl.constexpr,
    X_FIRST: tl.constexpr,
    W_FIRST: tl.constexpr,
    COUPLING_FIRST: tl.constexpr,
    TABLE: tl.constexpr,
    A: tl.constexpr,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    U: tl.constexpr,
    BLOCK_U: tl.constexpr,
):
    """Add to dx of each edge's neighbour: dx[a, u] += sum over c of coupling[a, c] g[c, u] w[c, u]."""
    i = tl.program_id(0).to(tl.int64)
    u, c, inside, first, column = tile(table, TABLE, C, BLOCK_C, U, BLOCK_U)
    weight = first[:, None] + u[None, :]
    begin = tl.load(row_ptr + i)
    end = tl.load(row_ptr + i + 1)
    g_i = tl.load(g + i * G_WIDTH + column, mask=inside, other=0.0)
    for e in range(begin + tl.program_id(2), end, tl.num_programs(2)):
        dx_j = dx + tl.load(neighbour + e) * X_WIDTH + X_FIRST
        coupling_e = coupling + e * COUPLING_WIDTH + COUPLING_FIRST
        gw = g_i * tl.load(w + e * W_WIDTH + W_FIRST + weight, mask=inside, other=0.0)
        for a in tl.static_range(A):
            part = tl.sum(tl.load(coupling_e + a * BLOCK_C + c)[:, None] * gw, axis=0)
            tl.atomic_add(dx_j + a * U + u, part, mask=u < U, sem="relaxed")


@triton.jit
def edges_kernel(
    x,
    g,
    coupling,
    w,
    neighbour,
    row_ptr,
    table,
    dcoupling,
    dw,
    X_WIDTH: tl.constexpr,
    W_WIDTH: tl.constexpr,
    G_WIDTH: tl.constexpr,
    COUPLING_WIDTH: tl.constexpr,
    DCOUPLING_WIDTH: tl.constexpr,
    X_FIRST: tl.constexpr,
    W_FIRST: tl.constexpr,
    COUPLING_FIRST: tl.constexpr,
    DCOUPLING_FIRST: tl.constexpr,
    TABLE: tl.constexpr,
    A: tl.constexpr,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PATHS: tl.constexpr,
    U: tl.constexpr,
    BLOCK_U: tl.constexpr,
):
    """dw[p, u] = sum over the components c of path p of g[c, u] times the sum over a of coupling[a, c] x[a, u], and
    dcoupling[a, c] = sum over u of x[a, u] g[c, u] w[c, u], whose parts for each block of channels stand side by side."""
    i = tl.program_id(0).to(tl.int64)
    u, c, inside, first, column = tile(table, TABLE, C, BLOCK_C, U, BLOCK_U)
    weight = first[:, None] + u[None, :]
    begin = tl.load(row_ptr + i)
    end = tl.load(row_ptr + i + 1)
    g_i = tl.load(g + i * G_WIDTH + column, mask=inside, other=0.0)
    dcoupling += DCOUPLING_FIRST + tl.program_id(1) * (A * BLOCK_C)
    for e in range(begin + tl.program_id(2), end, tl.num_programs(2)):
        x_j = x + tl.load(neighbour + e) * X_WIDTH + X_FIRST
        coupling_e = coupling + e * COUPLING_WIDTH + COUPLING_FIRST
        gw = g_i * tl.load(w + e * W_WIDTH + W_FIRST + weight, mask=inside, other=0.0)
        message = tl.zeros([BLOCK_C, BLOCK_U], dtype=dw.dtype.element_ty)
        for a in tl.static_range(A):
            x_a = tl.load(x_j + a * U + u, mask=u < U, other=0.0)[None, :]
            message += tl.load(coupling_e + a * BLOCK_C + c)[:, None] * x_a
            tl.store(dcoupling + e * DCOUPLING_WIDTH + a * BLOCK_C + c, tl.sum(gw * x_a, axis=1))
        message *= g_i
        for p in tl.static_range(PATHS):
            part = tl.sum(tl.where((first == p * U)[:, None], message, 0.0), axis=0)
            tl.store(dw + e * W_WIDTH + W_FIRST + p * U + u, part, mask=u < U)


class ConvolutionSource(NamedTuple):
    """Adjacent paths from one irrep of the features, which one launch computes together."""

    paths: list[ConvolutionPath]
    coupling: int
    """First column of its matrix [2 l_in + 1, block] in a row of all sources' couplings."""
    dcoupling: int
    """First column of its gradients, which have such a matrix for each block of channels."""
    table: int
    """Offset of its tables (:func:`component_tables`)."""

    @property
    def first(self) -> ConvolutionPath:
        return self.paths[0]

    @property
    def components(self) -> list[tuple[ConvolutionPath, int]]:
        """Components of the messages of all paths, as (path, component)."""
        return [(path, c) for path in self.paths for c in range(2 * path.l_out + 1)]

    @property
    def block(self) -> int:
        """Number of components in a tile."""
        return max(4, triton.next_power_of_2(len(self.components)))

    @property
    def channels(self) -> int:
        """Number of channels at a time, for tiles of about 2,048 numbers."""
        return min(launcher.tile_width(self.first.mul), 128, max(16, 2048 // self.block))

    @property
    def programs(self) -> int:
        """Number of programs for a centre."""
        return triton.cdiv(self.first.mul, self.channels)

    @property
    def width(self) -> int:
        """Number of elements of its coupling matrix."""
        return (2 * self.first.l_in + 1) * self.block

    def constants(self) -> dict:
        """Constants of the three kernels, each of which takes some of them."""
        return {
            "X_FIRST": self.first.x_offset,
            "W_FIRST": self.first.w_offset,
            "COUPLING_FIRST": self.coupling,
            "DCOUPLING_FIRST": self.dcoupling,
            "TABLE": self.table,
            "A": 2 * self.first.l_in + 1,
            "C": len(self.components),
            "BLOCK_C": self.block,
            "PATHS": len(self.paths),
            "U": self.first.mul,
            "BLOCK_U": self.channels,
            "UNROLL": 2,
        }

    @property
    def warps(self) -> int:
        return max(1, self.block * self.channels // 1024)


def convolution_sources(paths: list[int]) -> list[ConvolutionSource]:
    """Group the paths of a layer, given as operators take them, by launches."""
    sources: list[ConvolutionSource] = []
    for path in unpack(paths):
        last = sources[-1].paths[-1] if sources else None
        if last and (last.x_offset, last.w_offset + last.mul) == (path.x_offset, path.w_offset):
            sources[-1].paths.append(path)
            continue
        before = sources[-1] if sources else None
        ends = (
            (
                before.coupling + before.width,
                before.dcoupling + before.programs * before.width,
                before.table + 2 * before.block,
            )
            if before
            else (0, 0, 0)
        )
        sources.append(ConvolutionSource([path], *ends))
    return sources


def _coupling_matrices(sources: list[ConvolutionSource], cg: Tensor, components: int, gradient: bool) -> Tensor:
    """Matrix that gives all sources' couplings, or their gradients, from the harmonics: [components of the harmonics, couplings]."""
    matrices = []
    for source in sources:
        parts = []
        for path in source.paths:
            part, before = coefficients(cg, path).transpose(0, 1), path.l_edge**2
            parts.append(torch.nn.functional.pad(part, (0, 0, 0, 0, before, components - before - part.shape[0])))
        matrix = torch.nn.functional.pad(torch.cat(parts, dim=2), (0, source.block - len(source.components)))
        matrices += [matrix.flatten(1)] * (source.programs if gradient else 1)
    return torch.cat(matrices, dim=1)


def component_tables(sources: list[ConvolutionSource], device: torch.device) -> Tensor:
    """The kernels' tables: for each source the first weight of each component, then its first column in the messages."""
    table = []
    for source in sources:
        filling = [0] * (source.block - len(source.components))
        table += [path.w_offset - source.first.w_offset for path, _ in source.components] + filling
        table += [path.out_offset + c * path.out_channels + path.out_channel for path, c in source.components] + filling
    return torch.tensor(table, dtype=torch.int32, device=device)


def _convolve(
    kernel, nodes: int, shares: int, pointers: list[Tensor], sources: list[ConvolutionSource], widths: dict
) -> None:
    """Launch a kernel for each source; ``shares`` is the number of programs that share the edges of a centre."""
    for source in sources:
        constants = {name: value for name, value in source.constants().items() if name in kernel.arg_names}
        launcher.launch(
            kernel, (nodes, source.programs, shares), *pointers, **widths, **constants, num_warps=source.warps
        )


def couplings(y: Tensor, cg: Tensor, paths: list[int]) -> tuple[Tensor, Tensor]:
    """The matrices that couple features with messages along each edge, and the kernels' tables."""
    sources = convolution_sources(paths)
    return y @ _coupling_matrices(sources, cg, y.shape[1], gradient=False), component_tables(sources, y.device)


def gradient_couplings(cg: Tensor, paths: list[int], components: int) -> Tensor:
    """Matrix [components of the harmonics, gradients of the couplings]; its transpose gives the gradient by the harmonics."""
    return _coupling_matrices(convolution_sources(paths), cg, components, gradient=True)


@triton_op("nequip_md::tensor_product_convolution_triton", mutates_args={})
def tensor_product_convolution(
    x: Tensor,
    coupling: Tensor,
    w: Tensor,
    neighbour: Tensor,
    row_ptr: Tensor,
    tables: Tensor,
    paths: list[int],
    width: int,
) -> Tensor:
    nodes = row_ptr.shape[0] - 1
    out = x.new_empty((nodes, width))
    widths = {"X_WIDTH": x.shape[1], "W_WIDTH": w.shape[1], "G_WIDTH": width, "COUPLING_WIDTH": coupling.shape[1]}
    _convolve(
        sum_kernel,
        nodes,
        1,
        [x, coupling, w, neighbour, row_ptr, tables, out],
        convolution_sources(paths),
        widths,
    )
    return out


@triton_op("nequip_md::tensor_product_convolution_nodes_triton", mutates_args={})
def tensor_product_convolution_nodes(
    coupling: Tensor,
    w: Tensor,
    g: Tensor,
    neighbour: Tensor,
    row_ptr: Tensor,
    tables: Tensor,
    paths: list[int],
    nodes: int,
    width: int,
) -> Tensor:
    dx, centres = g.new_zeros((nodes, width)), row_ptr.shape[0] - 1
    widths = {"X_WIDTH": width, "W_WIDTH": w.shape[1], "G_WIDTH": g.shape[1], "COUPLING_WIDTH": coupling.shape[1]}
    _convolve(
        nodes_kernel,
        centres,
        launcher.shares(centres, 6),
        [g, coupling, w, neighbour, row_ptr, tables, dx],
        convolution_sources(paths),
        widths,
    )
    return dx


@triton_op("nequip_md::tensor_product_convolution_edges_triton", mutates_args={})
def tensor_product_convolution_edges(
    x: Tensor,
    coupling: Tensor,
    w: Tensor,
    g: Tensor,
    neighbour: Tensor,
    row_ptr: Tensor,
    tables: Tensor,
    paths: list[int],
) -> list[Tensor]:
    sources, centres = convolution_sources(paths), row_ptr.shape[0] - 1
    last = sources[-1]
    dcoupling = w.new_empty((w.shape[0], last.dcoupling + last.programs * last.width))
    dw = torch.empty_like(w)
    widths = {
        "X_WIDTH": x.shape[1],
        "W_WIDTH": w.shape[1],
        "G_WIDTH": g.shape[1],
        "COUPLING_WIDTH": coupling.shape[1],
        "DCOUPLING_WIDTH": dcoupling.shape[1],
    }
    _convolve(
        edges_kernel,
        centres,
        launcher.shares(centres, 6),
        [x, g, coupling, w, neighbour, row_ptr, tables, dcoupling, dw],
        sources,
        widths,
    )
    return [dcoupling, dw]
