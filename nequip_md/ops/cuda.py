"""The Triton kernels: which operators have one, and how they replace the references in an export for CUDA.

Every kernel is wrapped as a ``torch.library.triton_op`` of the same name with the suffix ``_triton``, which AOTInductor
opens and compiles into the artifact. Importing this module needs Triton.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isqrt
from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.library import triton_op, wrap_triton

from nequip_md.ops.tensor_product_convolution import ConvolutionPath, coefficients, unpack
from nequip_md.ops.triton_kernels import contract_gradient, convolution, embedding, segments
from nequip_md.ops.triton_kernels import halves as halves_kernels
from nequip_md.ops.triton_kernels import mlp as mlp_kernels

if TYPE_CHECKING:
    from nequip_md.ops.hopper import Kernels

_MULTIPROCESSORS = 132
"""Of an H100 or H200. Sizes up to which a kernel takes another form count in these."""
_PROGRAMS = 2 * _MULTIPROCESSORS
"""Programs of the kernel that keeps a scratch tile."""


def _launch(kernel, grid, *arguments, **constants) -> None:
    if isinstance(kernel, triton.runtime.JITFunction):
        wrap_triton(kernel)[grid](*arguments, **constants)
    elif not any(isinstance(a, FakeTensor) for a in arguments):
        # Triton's interpreter (TRITON_INTERPRET=1): nothing to trace, and nothing to do where there are only shapes
        kernel[grid](*arguments, **constants)


def _block(width: int) -> int:
    """Width of a tile: the next power of two, at least 16."""
    return max(16, triton.next_power_of_2(width))


def _edges(width: int) -> int:
    """Edges at a time, for tiles of about 2,048 numbers."""
    return max(8, min(64, 2048 // width))


def _one_up_to(most: int, count: int) -> int:
    """1 if ``count`` <= ``most``, else 0; of sizes that an export does not know, which no branch may look at."""
    return torch.sym_min(1, most // torch.sym_max(count, 1))


def _shares(count: int, most: int) -> int:
    """Programs, at most ``most``, that share out the edges of one centre where there are ``count`` centres, too few to fill a GPU."""
    return torch.sym_max(1, torch.sym_min(most, 8 * _MULTIPROCESSORS // torch.sym_max(count, 1)))


# ---- segments -----------------------------------------------------------------------------------------------------


@triton_op("nequip_md::segment_sum_triton", mutates_args={})
def segment_sum(values: Tensor, row_ptr: Tensor) -> Tensor:
    count, channels = row_ptr.shape[0] - 1, values.shape[1]
    out = values.new_empty((count, channels))
    _launch(segments.segment_sum_kernel, (count, channels), values, row_ptr, out, channels, EDGES=128, num_warps=1)
    return out


@triton_op("nequip_md::edge_moment_triton", mutates_args={})
def edge_moment(a: Tensor, y: Tensor, row_ptr: Tensor, precision: str) -> Tensor:
    (_, slots, channels), components, count = a.shape, y.shape[1], row_ptr.shape[0] - 1
    out = a.new_empty((count, components, channels))
    block = min(_block(channels), 128)
    grid = (count, triton.cdiv(channels, block))
    if slots == 1 and a.dtype == torch.float32:
        _launch(
            segments.moment_product_kernel,
            grid,
            a,
            y,
            row_ptr,
            out,
            C=channels,
            M=components,
            BLOCK_M=_block(components),
            BLOCK_C=block,
            EDGES=32,
            PRECISION=precision,
            num_warps=2,
        )
    else:
        _launch(
            segments.moment_kernel,
            grid,
            a,
            y,
            row_ptr,
            out,
            C=channels,
            M=components,
            SLOTS=slots,
            BLOCK_M=triton.next_power_of_2(components),
            BLOCK_C=block,
            UNROLL=4,
            num_warps=2,
        )
    return out


def _spread(y: Tensor, z: Tensor, row_ptr: Tensor, orders: int, starts: list[Tensor], precision: str) -> Tensor:
    (edges, components), channels, count = y.shape, z.shape[2], row_ptr.shape[0] - 1
    out = y.new_empty((edges, orders, channels))
    block = min(_block(channels), 128)
    if orders == 1 and y.dtype == torch.float32:
        _launch(
            segments.spread_product_kernel,
            (count, triton.cdiv(channels, block), _shares(count, 3)),
            y,
            z,
            row_ptr,
            *_four(starts or [out]),
            out,
            C=channels,
            M=components,
            BLOCK_M=_block(components),
            BLOCK_C=block,
            EDGES=32,
            STARTS=len(starts),
            PRECISION=precision,
            num_warps=4,
            num_stages=3,
        )
        return out
    _launch(
        segments.spread_kernel,
        (count, triton.cdiv(channels, block), _shares(count, 6 if block < 128 else 3)),
        y,
        z,
        row_ptr,
        *_four(starts or [out]),
        out,
        C=channels,
        L=isqrt(components),
        SLOTS=orders,
        BLOCK_C=block,
        EDGES=16,
        STARTS=len(starts),
        num_warps=8 if block == 128 else 4,
    )
    return out


@triton_op("nequip_md::edge_spread_triton", mutates_args={})
def edge_spread(y: Tensor, z: Tensor, row_ptr: Tensor, orders: int, precision: str) -> Tensor:
    return _spread(y, z, row_ptr, orders, [], precision)


@triton_op("nequip_md::edge_spread_add_triton", mutates_args={})
def edge_spread_add(y: Tensor, z: Tensor, row_ptr: Tensor, starts: list[Tensor], precision: str) -> Tensor:
    return _spread(y, z, row_ptr, 1, starts, precision)


@triton_op("nequip_md::edge_dot_triton", mutates_args={})
def edge_dot(a: Tensor, z: Tensor, row_ptr: Tensor, precision: str) -> Tensor:
    (edges, slots, channels), components, count = a.shape, z.shape[1], row_ptr.shape[0] - 1
    out = a.new_empty((edges, components))
    if slots == 1 and a.dtype == torch.float32:
        _launch(
            segments.dot_product_kernel,
            (count, _shares(count, 3)),
            a,
            z,
            row_ptr,
            out,
            C=channels,
            M=components,
            BLOCK_M=_block(components),
            BLOCK_C=min(_block(channels), 64),
            EDGES=32,
            PRECISION=precision,
            num_warps=2,
            num_stages=3 if channels <= 64 else 2,
        )
    else:
        block = _block(channels)
        _launch(
            segments.dot_kernel,
            (count,),
            a,
            z,
            row_ptr,
            out,
            C=channels,
            L=isqrt(components),
            SLOTS=slots,
            BLOCK_C=block,
            EDGES=_edges(block),
            num_warps=4,
        )
    return out


@triton_op("nequip_md::edge_contract_triton", mutates_args={})
def edge_contract(w: Tensor, y: Tensor, z: Tensor, row_ptr: Tensor) -> Tensor:
    (edges, orders, channels), count = w.shape, row_ptr.shape[0] - 1
    out = w.new_empty((edges, channels))
    block = min(_block(channels), 128)
    grid = (count, triton.cdiv(channels, block), _shares(count, 6))
    _launch(
        segments.contract_kernel,
        grid,
        w,
        y,
        z,
        row_ptr,
        out,
        U=channels,
        L=orders,
        BLOCK_U=block,
        EDGES=16,
        num_warps=4,
    )
    return out


def _contract_constants(w: Tensor, block: int, warps: int) -> dict:
    """Sizes of the tiles of a contraction's gradient: 16 bytes for each thread, at least two threads for each channel."""
    orders, channels = w.shape[1:]
    components = triton.next_power_of_2(orders**2)
    edges = max(1, 512 * warps // (block * w.element_size()))
    return {
        "U": channels,
        "L": orders,
        "BLOCK_U": block,
        "BLOCK_M": components,
        "EDGES": edges,
        "TOGETHER": edges * block * components * w.element_size() <= 64 * 1024,
        "num_warps": warps,
    }


@triton_op("nequip_md::edge_contract_moment_triton", mutates_args={})
def edge_contract_moment(g: Tensor, w: Tensor, y: Tensor, row_ptr: Tensor) -> Tensor:
    count, channels = row_ptr.shape[0] - 1, w.shape[2]
    dz = w.new_empty((count, y.shape[1], channels))
    block = min(_block(channels), 32)
    _launch(
        contract_gradient.contract_moment_kernel,
        (count, triton.cdiv(channels, block)),
        g,
        w,
        y,
        row_ptr,
        dz,
        **_contract_constants(w, block, 2),
    )
    return dz


@triton_op("nequip_md::edge_contract_gradient_triton", mutates_args={})
def edge_contract_gradient(g: list[Tensor], w: Tensor, y: Tensor, z: list[Tensor], row_ptr: Tensor) -> list[Tensor]:
    dw, dy, dz = w.new_empty(w.shape), torch.empty_like(y), z[0].new_empty(z[0].shape)
    block = max(_block(w.shape[2]), triton.next_power_of_2(y.shape[1]))
    # unused pointers repeat w: Inductor writes some arrays, such as z, once for every time they are named
    pointers = [*g, *[w] * (4 - len(g)), w, y, *z, *[w] * (4 - len(z))]
    _launch(
        contract_gradient.contract_gradient_kernel,
        (row_ptr.shape[0] - 1,),
        *pointers,
        row_ptr,
        dw,
        dy,
        dz,
        K=len(g),
        **_contract_constants(w, block, max(4, min(8, block // 16))),
    )
    return [dw, dy, dz]


@triton_op("nequip_md::channel_product_triton", mutates_args={})
def channel_product(
    x: Tensor, y: Tensor, w: Tensor, table: Tensor, values: Tensor, offsets: Tensor, dim: int
) -> Tensor:
    (count, components, channels), terms, atoms = x.shape, table.shape[1], 8
    out = x.new_empty((count, dim, channels))
    _launch(
        segments.channel_product_kernel,
        (triton.cdiv(count, atoms) * dim,),
        x,
        y,
        w,
        table,
        values,
        offsets,
        out,
        count,
        A=components,
        B=y.shape[1],
        D=dim,
        TERMS=terms,
        U=channels,
        BLOCK_U=_block(channels),
        ATOMS=atoms,
        UNROLL=4,
        num_warps=4,
    )
    return out


# ---- NequIP's convolution -----------------------------------------------------------------------------------------


class ConvolutionSource(NamedTuple):
    """Adjacent paths from one irrep of the features, which one launch takes together."""

    paths: list[ConvolutionPath]
    coupling: int
    """First column of its couplings, [2 l_in + 1, block] in a row of all sources' couplings."""
    dcoupling: int
    """First column of their gradients, which have such a matrix for each block of channels."""
    table: int
    """Where its tables begin (:func:`component_tables`)."""

    @property
    def first(self) -> ConvolutionPath:
        return self.paths[0]

    @property
    def components(self) -> list[tuple[ConvolutionPath, int]]:
        """Of all paths' messages."""
        return [(path, c) for path in self.paths for c in range(2 * path.l_out + 1)]

    @property
    def block(self) -> int:
        """Components of a tile."""
        return max(4, triton.next_power_of_2(len(self.components)))

    @property
    def channels(self) -> int:
        """At a time, for tiles of about 2,048 numbers."""
        return min(_block(self.first.mul), 128, max(16, 2048 // self.block))

    @property
    def programs(self) -> int:
        """For a centre."""
        return triton.cdiv(self.first.mul, self.channels)

    @property
    def width(self) -> int:
        """Numbers of a coupling."""
        return (2 * self.first.l_in + 1) * self.block

    def constants(self) -> dict:
        """Of all three kernels; none takes every one."""
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
    """Of the paths of a layer, as operators take them."""
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
    """[components of the harmonics, all sources' couplings], or as many as there are in their gradients."""
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
    """For each source the first weight of each component, then its first column in the messages."""
    table = []
    for source in sources:
        filling = [0] * (source.block - len(source.components))
        table += [path.w_offset - source.first.w_offset for path, _ in source.components] + filling
        table += [path.out_offset + c * path.out_channels + path.out_channel for path, c in source.components] + filling
    return torch.tensor(table, dtype=torch.int32, device=device)


def _convolve(
    kernel, nodes: int, shares: int, pointers: list[Tensor], sources: list[ConvolutionSource], widths: dict
) -> None:
    """``shares``: programs that share the edges of a centre."""
    for source in sources:
        constants = {name: value for name, value in source.constants().items() if name in kernel.arg_names}
        _launch(kernel, (nodes, source.programs, shares), *pointers, **widths, **constants, num_warps=source.warps)


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
        convolution.sum_kernel,
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
        convolution.nodes_kernel,
        centres,
        _shares(centres, 6),
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
        convolution.edges_kernel,
        centres,
        _shares(centres, 6),
        [x, g, coupling, w, neighbour, row_ptr, tables, dcoupling, dw],
        sources,
        widths,
    )
    return [dcoupling, dw]


# ---- embedding of edges -------------------------------------------------------------------------------------------


def _embedding_constants(table: Tensor, weights: Tensor, p: float, l_max: int) -> dict:
    bessels, width = weights.shape
    # 32 edges for each warp: with fewer, the compiler repeats the float64 part in every lane of a row
    return {
        "T": table.shape[0] // 2,
        "B": bessels,
        "W": width,
        "BLOCK_W": min(_block(width), 32),
        "L": l_max + 1,
        "P": int(p) if p == int(p) else p,
        "EDGES": 64,
        "UNROLL": 1,
        "num_warps": 2,
    }


@triton_op("nequip_md::edge_embedding_triton", mutates_args={})
def edge_embedding(
    vectors: Tensor,
    edge_index: Tensor,
    node_types: Tensor,
    cutoffs: Tensor,
    roots: Tensor,
    table: Tensor,
    weights: Tensor,
    p: float,
    l_max: int,
) -> list[Tensor]:
    count, constants = vectors.shape[0], _embedding_constants(table, weights, p, l_max)
    g, harmonics = weights.new_empty((count, weights.shape[1])), weights.new_empty((count, (l_max + 1) ** 2))
    _launch(
        embedding.embedding_kernel,
        (triton.cdiv(count, constants["EDGES"]),),
        vectors,
        edge_index,
        node_types,
        cutoffs,
        roots,
        table,
        weights,
        g,
        harmonics,
        count,
        **constants,
    )
    return [g, harmonics]


@triton_op("nequip_md::edge_embedding_backward_triton", mutates_args={})
def edge_embedding_backward(
    dg: Tensor,
    dharmonics: list[Tensor],
    vectors: Tensor,
    edge_index: Tensor,
    node_types: Tensor,
    cutoffs: Tensor,
    roots: Tensor,
    table: Tensor,
    weights: Tensor,
    p: float,
    l_max: int,
) -> Tensor:
    count, constants = vectors.shape[0], _embedding_constants(table, weights, p, l_max)
    dvectors = torch.empty_like(vectors)
    _launch(
        embedding.embedding_backward_kernel,
        (triton.cdiv(count, constants["EDGES"]),),
        dg,
        *_four(dharmonics),
        vectors,
        edge_index,
        node_types,
        cutoffs,
        roots,
        table,
        weights,
        dvectors,
        count,
        READERS=len(dharmonics),
        **constants,
    )
    return dvectors


# ---- multilayer perceptrons ---------------------------------------------------------------------------------------


def _multiple(width: int) -> int:
    """As :func:`_block`, but no more than a multiple of 64."""
    return _block(width) if width <= 64 else 64 * triton.cdiv(width, 64)


def _columns(width: int) -> int:
    """Columns of a product that :func:`dense` makes: up to 256, a tile's width, or a multiple of 256."""
    return _block(width) if width <= 256 else 256 * triton.cdiv(width, 256)


def split(
    w: Tensor, widths: list[int], pad: Callable[[int], int] = _block, pad_columns: Callable[[int], int] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """A matrix as scaled fp16 halves, padded with zeros to the kernels' tiles.

    Args:
        w: [sum of widths, N], fp32.
        widths: rows that belong to each part of the input.
        pad: width to padded width, of the rows and, unless ``pad_columns`` is given, of the columns.

    Returns:
        hi and lo, fp16, [sum of padded widths, padded N], with w t = hi + lo for a power of two t; and fp32 [3, 1]: 1 / t, the
        largest norm of a column of w, the largest norm of a row. (Inductor writes a vector as short as three anew in every
        evaluation; an array of two dimensions it leaves in memory.)
    """
    columns = (pad_columns or pad)(w.shape[1]) - w.shape[1]
    padded = [
        torch.nn.functional.pad(part, (0, columns, 0, pad(part.shape[0]) - part.shape[0])) for part in w.split(widths)
    ]
    scale = torch.exp2(13 - torch.floor(torch.log2(w.abs().max().clamp(1e-30))))
    scaled = torch.cat(padded) * scale
    hi = scaled.to(torch.float16)
    lo = (scaled - hi).to(torch.float16)
    # rounded up a little: the kernels take these norms for bounds
    norms = [torch.linalg.vector_norm(w, dim=d).max() * 1.0001 for d in (0, 1)]
    return hi, lo, torch.stack([1 / scale, *norms]).unsqueeze(1)


_SHARED_MEMORY = 227 * 1024
_WIDEST_OUTER = 256
"""Widest second layer of a kernel that holds its sums in registers."""
_TILES = {
    # rows, chunk, warps, stages, by products; the first that fits is taken. From timings on an H200 (benchmarks/NOTEBOOK.md)
    3: {
        "hidden": ((128, 32, 8, 3), (128, 32, 8, 2), (64, 16, 4, 3), (64, 16, 4, 2)),
        "narrow": (
            (64, 32, 4, 3),
            (64, 16, 4, 2),
        ),  # as hidden, for layers of 64: four programs for each multiprocessor
        "backward": ((64, 32, 4, 3), (64, 16, 4, 2)),
        "backward_dense": ((64, 32, 4, 2), (64, 16, 4, 2)),
        "energy": ((128, 32, 8, 2), (64, 16, 4, 2)),
    },
    1: {
        "hidden": ((64, 32, 4, 3), (64, 16, 4, 2)),
        "narrow": ((64, 32, 4, 3), (64, 16, 4, 2)),
        "backward": ((64, 16, 4, 3), (64, 16, 4, 2)),
        "backward_dense": ((64, 16, 4, 3), (64, 16, 4, 2)),
        "energy": ((64, 16, 4, 3), (64, 16, 4, 2)),
    },
}
_FEW_TILES = {
    # taken while there is no more than one for each multiprocessor: the time of one tile is then that of the kernel
    3: {
        "hidden": ((16, 32, 4, 3), (64, 32, 4, 3)),
        "backward": ((16, 32, 4, 3),),
        "backward_dense": ((16, 32, 4, 3), (64, 32, 4, 3)),
        "energy": ((16, 64, 8, 2), (64, 32, 4, 3)),
    },
    1: {
        "hidden": ((16, 32, 4, 3),),
        "backward": ((16, 32, 4, 3),),
        "backward_dense": ((16, 32, 4, 3),),
        "energy": ((16, 64, 8, 2),),
    },
}


def _tile(
    tile: tuple[int, int, int, int], kernel: str, widths: list[int], inner: int, outer: int, products: int
) -> dict | None:
    """Constants of a tile, or None if it takes more shared memory or registers than there are."""
    inputs, outputs = sum(_block(k) for k in widths), _block(outer)
    bytes_each = 4 if products == 3 else 2
    rows, chunk, warps, stages = tile
    chunk = min(chunk, _block(inner))
    weights = chunk * (inputs + outputs)
    # products of 64 rows are waited for one turn later than those of fewer
    buffers = stages if rows >= 64 else stages - 1
    forward, backward = rows * inputs + buffers * weights, rows * (outputs + chunk) + buffers * weights
    last = _block_last(outer)
    shared = {
        "hidden": forward,
        "backward": backward,
        # the gradient of the hidden layer stays in registers
        "backward_dense": max(buffers * weights, buffers * last * (outputs + rows) + rows * last),
        # reuses the memory of one direction for the other, whose weights need not be doubled
        "energy": max(forward, rows * (outputs + chunk) + weights),
    }[kernel]
    accumulators = {"hidden": outputs, "backward_dense": inputs + outputs}.get(kernel, max(inputs, outputs))
    registers = rows * accumulators / (32 * warps)
    if bytes_each * shared <= _SHARED_MEMORY and registers <= (224 if kernel == "backward_dense" else 128):
        return {"ROWS": rows, "CHUNK": chunk, "num_warps": warps, "num_stages": stages}
    return None


def _tiles(kernel: str, widths: list[int], inner: int, outer: int, products: int) -> dict | None:
    """Tile sizes of a kernel for input parts of these widths and layers of widths ``inner`` and ``outer``; None: too wide."""
    if kernel in ("hidden", "energy") and _block(outer) > _WIDEST_OUTER:
        return None
    candidates = _TILES[products]["narrow" if kernel == "hidden" and max(inner, outer) <= 64 else kernel]
    return next(filter(None, (_tile(t, kernel, widths, inner, outer, products) for t in candidates)), None)


def _tiles_by_count(
    kernel: str, widths: list[int], inner: int, outer: int, products: int, count: int
) -> list[tuple[dict, int]]:
    """The tiles for few rows and the tile for many, each with 1 or 0: whether it is the one for ``count`` rows.

    A graph launches the kernel once for each; a launch of no programs is none.
    """
    forms, below, many = [], 0, _tiles(kernel, widths, inner, outer, products)
    for candidate in _FEW_TILES[products][kernel]:
        tile = _tile(candidate, kernel, widths, inner, outer, products)
        if tile and tile != many:
            up_to = _one_up_to(_MULTIPROCESSORS * tile["ROWS"], count)
            forms.append((tile, up_to - below))
            below = up_to
    return [*forms, (many, 1 - below)]


def _derivative_dtype(products: int) -> torch.dtype:
    """Of silu', which lies in (-0.1, 1.1): halves have the accuracy of one product."""
    return torch.float16 if products == 1 else torch.float32


def _part_constants(widths: list[int]) -> dict:
    filled = [*widths, *[16] * (4 - len(widths))]
    constants = {"PARTS": len(widths)}
    for j, width in enumerate(filled):
        constants |= {f"K{j}": width, f"B{j}": _block(width)}
    return constants


_WIDEST_BEFORE_LAST = 256
"""Widest hidden layer that is multiplied by the next matrix in its own kernel: its halves are held in registers."""


def _block_last(outer: int) -> int:
    """Columns at a time of the matrix that reads a hidden layer of this width."""
    return 64 if outer <= 64 else 32


def _last_constants(width: int, outer: int) -> dict:
    """For the matrix that reads the hidden layer; width 0: there is none."""
    return {"N3": width, "P3": _block(width), "BLOCK3": min(_block_last(outer), _block(width))}


def _dense(
    x: Tensor,
    w: tuple[Tensor, Tensor, Tensor],
    d: Tensor,
    inner: int,
    outer: int,
    transposed: bool,
    products: int,
    then: str,
) -> Tensor:
    count, padded, rows = x.shape[0], _columns(outer), 128
    out = x.new_empty((count, outer))
    block = min(padded, 256)
    _launch(
        mlp_kernels.dense_kernel,
        (triton.cdiv(count, rows), padded // block),
        x,
        *w,
        out,
        d,
        count,
        K=inner,
        N=outer,
        BLOCK_N=block,
        PADDED_N=padded,
        PADDED_K=_multiple(inner),
        TRANSPOSED=transposed,
        THEN=then,
        ROWS=rows,
        CHUNK=min(32, _multiple(inner)),
        PRODUCTS=products,
        num_warps=8 if block >= 128 else 4,
        num_stages=3,
    )
    return out


@triton_op("nequip_md::dense_triton", mutates_args={})
def dense(
    x: Tensor, w_hi: Tensor, w_lo: Tensor, w_info: Tensor, inner: int, outer: int, transposed: bool, products: int
) -> Tensor:
    return _dense(x, (w_hi, w_lo, w_info), x, inner, outer, transposed, products, "")


@triton_op("nequip_md::dense_silu_triton", mutates_args={})
def dense_silu(
    x: Tensor, w_hi: Tensor, w_lo: Tensor, w_info: Tensor, inner: int, outer: int, products: int
) -> list[Tensor]:
    d = x.new_empty((x.shape[0], outer), dtype=_derivative_dtype(products))
    return [_dense(x, (w_hi, w_lo, w_info), d, inner, outer, False, products, "silu"), d]


@triton_op("nequip_md::mix_orders_triton", mutates_args={})
def mix_orders(
    x: Tensor, w_hi: Tensor, w_lo: Tensor, w_info: Tensor, outer: int, transposed: bool, products: int
) -> Tensor:
    count, components, inner = x.shape
    out = x.new_empty((count, components, outer))
    orders, rows, block = isqrt(components), 32, min(_block(outer), 64)
    grid = (triton.cdiv(count * (2 * orders - 1), rows), orders, _block(outer) // block)
    _launch(
        mlp_kernels.mix_kernel,
        grid,
        x,
        w_hi,
        w_lo,
        w_info,
        out,
        count,
        K=inner,
        U=outer,
        M=components,
        PADDED_K=_block(inner),
        PADDED_U=_block(outer),
        BLOCK_U=block,
        TRANSPOSED=transposed,
        ROWS=rows,
        CHUNK=min(64, _block(inner)),
        PRODUCTS=products,
        num_warps=4,
        num_stages=3,
    )
    return out


@triton_op("nequip_md::mlp_hidden_triton", mutates_args={})
def mlp_hidden(
    parts: list[Tensor],
    w1_hi: Tensor,
    w1_lo: Tensor,
    w1_info: Tensor,
    w2_hi: Tensor,
    w2_lo: Tensor,
    w2_info: Tensor,
    w3: list[Tensor],
    inner: int,
    outer: int,
    last: int,
    products: int,
) -> list[Tensor]:
    widths, count = [p.shape[1] for p in parts], parts[0].shape[0]
    out = parts[0].new_empty((count, outer))
    d1, d2 = (parts[0].new_empty((count, n), dtype=_derivative_dtype(products)) for n in (inner, outer))
    y = [out.new_empty((count, last))] if last else []
    for tiles, wanted in _tiles_by_count("hidden", widths, inner, outer, products, count):
        _launch(
            mlp_kernels.hidden_kernel,
            (wanted * triton.cdiv(count, tiles["ROWS"]),),
            *_four(parts),
            w1_hi,
            w1_lo,
            w1_info,
            w2_hi,
            w2_lo,
            w2_info,
            *(w3 or [w2_hi, w2_lo, w2_info]),
            out,
            d1,
            d2,
            *(y or [out]),
            count,
            **_part_constants(widths),
            N1=inner,
            N2=outer,
            P1=_block(inner),
            P2=_block(outer),
            **_last_constants(last, outer),
            PRODUCTS=products,
            **tiles,
        )
    return [out, *y, d1, d2]


@triton_op("nequip_md::mlp_hidden_backward_triton", mutates_args={})
def mlp_hidden_backward(
    g: Tensor,
    dy: list[Tensor],
    d1: Tensor,
    d2: Tensor,
    w1_hi: Tensor,
    w1_lo: Tensor,
    w1_info: Tensor,
    w2_hi: Tensor,
    w2_lo: Tensor,
    w2_info: Tensor,
    w3: list[Tensor],
    widths: list[int],
    products: int,
) -> list[Tensor]:
    (count, inner), outer = d1.shape, d2.shape[1]
    out = [g.new_empty((count, k)) for k in widths]
    for tiles, wanted in _tiles_by_count("backward_dense" if w3 else "backward", widths, inner, outer, products, count):
        _launch(
            mlp_kernels.hidden_backward_kernel,
            (wanted * triton.cdiv(count, tiles["ROWS"]),),
            g,
            *(dy or [g]),
            d1,
            d2,
            w1_hi,
            w1_lo,
            w1_info,
            w2_hi,
            w2_lo,
            w2_info,
            *(w3 or [w2_hi, w2_lo, w2_info]),
            *_four(out),
            count,
            **_part_constants(widths),
            N1=inner,
            N2=outer,
            P1=_block(inner),
            P2=_block(outer),
            **_last_constants(dy[0].shape[1] if dy else 0, outer),
            PRODUCTS=products,
            **tiles,
        )
    return out


@triton_op("nequip_md::mlp_energy_triton", mutates_args={})
def mlp_energy(
    parts: list[Tensor],
    w1_hi: Tensor,
    w1_lo: Tensor,
    w1_info: Tensor,
    w2_hi: Tensor,
    w2_lo: Tensor,
    w2_info: Tensor,
    v: Tensor,
    r: Tensor,
    factor: list[Tensor],
    inner: int,
    outer: int,
    products: int,
) -> list[Tensor]:
    widths, count = [p.shape[1] for p in parts], parts[0].shape[0]
    energy = parts[0].new_empty((count,))
    gradients = [torch.empty_like(p) for p in parts]
    forms = _tiles_by_count("energy", widths, inner, outer, products, count)
    most = max(tiles["ROWS"] for tiles, _ in forms)
    scratch = parts[0].new_empty((_PROGRAMS, most, _block(inner) + _block(outer)), dtype=_derivative_dtype(products))
    for tiles, wanted in forms:
        _launch(
            mlp_kernels.energy_kernel,
            (wanted * _PROGRAMS,),
            *_four(parts),
            w1_hi,
            w1_lo,
            w1_info,
            w2_hi,
            w2_lo,
            w2_info,
            v,
            r,
            *(factor or [v]),
            energy,
            *_four(gradients),
            scratch,
            count,
            **_part_constants(widths),
            P1=_block(inner),
            P2=_block(outer),
            PRODUCTS=products,
            SCALED=bool(factor),
            **tiles,
        )
    return [energy, *gradients]


# ---- wide perceptrons, layer by layer -----------------------------------------------------------------------------

_DEPTH = 64
"""Of the inner dimension, multiplied at a time."""


def _deep(width: int) -> int:
    """A width that is multiplied with: a multiple of :data:`_DEPTH`."""
    return _DEPTH * triton.cdiv(width, _DEPTH)


_LAYER_TILES = {3: (256, 8, 4), 1: (128, 4, 3)}
"""Columns, warps and stages by products. From timings on an H200 (benchmarks/NOTEBOOK.md)."""


def _layer_block(width: int, products: int) -> int:
    """Columns of the tile of a layer as wide: no more than what it takes."""
    return min(_LAYER_TILES[products][0], 256 if triton.cdiv(width, 128) % 2 == 0 else 128)


def _layer(
    x: list[Tensor],
    w: list[Tensor],
    widths: list[int],
    then: str,
    to_halves: bool,
    products: int,
    d: Tensor | None = None,
    v: Tensor | None = None,
) -> list[Tensor]:
    """Halves, scales and squares, or fp32 parts of ``widths``, or what each block of columns gives to the product with ``v``."""
    x_halves, scales, squares = x
    count, outer, width, rows = x_halves.shape[1], sum(widths), _deep(widths[0]), 128
    columns, block = w[0].shape[2], _layer_block(outer, products)
    if to_halves:
        out = [
            x_halves.new_empty((x_halves.shape[0], count, width)),
            scales.new_empty((count,)),
            scales.new_empty((columns // block, count)),
        ]
        pointers = [*out, *out[:1] * 3]
    elif v is not None:
        out = [scales.new_empty((columns // block, count))]
        pointers = [*out, scales, scales, v, v, v]
    else:
        out = [scales.new_empty((count, k)) for k in widths]
        pointers = [out[0], scales, scales, *_four(out)[1:]]
    parts = {f"K{j}": k for j, k in enumerate([*widths, 0, 0, 0][:4])}
    _, warps, stages = _LAYER_TILES[products]
    # the number of steps is not a constant, or the loop would be unrolled, which takes long to compile
    steps = products * x_halves.shape[2] // _DEPTH
    _launch(
        halves_kernels.layer_kernel,
        (triton.cdiv(count, rows) * (columns // block),),
        *x,
        *w,
        scales if d is None else d,
        *pointers,
        count,
        steps,
        K=x_halves.shape[2],
        N=outer,
        PADDED_N=columns,
        BLOCK_N=block,
        BLOCKS_IN=squares.shape[0],
        THEN=then,
        TO_HALVES=to_halves,
        WIDTH=width,
        PARTS=len(widths),
        **parts,
        ROWS=rows,
        CHUNK=_DEPTH,
        PRODUCTS=products,
        num_warps=warps,
        num_stages=stages,
    )
    return out


@triton_op("nequip_md::halves_triton", mutates_args={})
def halves(parts: list[Tensor], d: list[Tensor], one_row: bool, products: int) -> list[Tensor]:
    count, widths, rows = (d if one_row else parts)[0].shape[0], [p.shape[1] for p in parts], 16
    padded = [_deep(k) for k in widths]
    out = [
        parts[0].new_empty((2 if products == 3 else 1, count, sum(padded)), dtype=torch.float16),
        parts[0].new_empty((count,)),
        parts[0].new_empty((1, count)),
    ]
    filled = {
        f"{name}{j}": k
        for name, values in (("K", widths), ("P", padded), ("B", map(triton.next_power_of_2, padded)))
        for j, k in enumerate([*values, *[_DEPTH] * (4 - len(widths))])
    }
    _launch(
        halves_kernels.halves_kernel,
        (triton.cdiv(count, rows),),
        *_four(parts),
        *(d or parts[:1]),
        *out,
        count,
        PARTS=len(widths),
        **filled,
        WIDTH=sum(padded),
        TIMES=bool(d),
        ONE_ROW=one_row,
        ROWS=rows,
        PRODUCTS=products,
        num_warps=8,
    )
    return out


@triton_op("nequip_md::layer_silu_triton", mutates_args={})
def layer_silu(x: list[Tensor], w: list[Tensor], outer: int, to_halves: bool, products: int) -> list[Tensor]:
    d = x[1].new_empty((x[1].shape[0], outer), dtype=_derivative_dtype(products))
    return [*_layer(x, w, [outer], "silu", to_halves, products, d), d]


@triton_op("nequip_md::layer_dot_triton", mutates_args={})
def layer_dot(x: list[Tensor], w: list[Tensor], v: Tensor, outer: int, products: int) -> list[Tensor]:
    d = x[1].new_empty((x[1].shape[0], outer), dtype=_derivative_dtype(products))
    return [*_layer(x, w, [outer], "silu dot", False, products, d, v), d]


@triton_op("nequip_md::layer_times_triton", mutates_args={})
def layer_times(x: list[Tensor], w: list[Tensor], d: Tensor, products: int) -> list[Tensor]:
    return _layer(x, w, [d.shape[1]], "times d", True, products, d)


@triton_op("nequip_md::layer_parts_triton", mutates_args={})
def layer_parts(x: list[Tensor], w: list[Tensor], widths: list[int], add: list[Tensor], products: int) -> list[Tensor]:
    return _layer(x, w, widths, "add d" if add else "", False, products, add[0] if add else None)


def _four(tensors: list[Tensor]) -> list[Tensor]:
    """A kernel has four pointers for the parts; those it does not use repeat the first."""
    return [*tensors, *[tensors[0]] * (4 - len(tensors))]


# ---- in place of the references -----------------------------------------------------------------------------------


def replacements(
    precision: str, said: list[str] | None = None, hopper: Kernels | None = None
) -> dict[torch._ops.OpOverload, Callable]:
    """Triton forms by operator, for a trace.

    Args:
        precision: ``fp32`` takes three products, ``tf32`` one.
        said: gets a sentence for each perceptron that does not fit into one kernel and runs as separate matrix products.
        hopper: takes the perceptrons and gradients of contractions that it has CUDA C++ kernels for.
    """
    ops, pad = torch.ops.nequip_md, torch.nn.functional.pad
    products = 1 if precision == "tf32" else 3
    dot = "tf32" if precision == "tf32" else "tf32x3"

    def too_wide(widths, weights):
        layers = ", ".join(str(w.shape[0]) for w in weights[1:])
        sentence = (
            f"a perceptron of widths {sum(widths)}, {layers} and {weights[-1].shape[1]} runs as separate matrix products, as "
            "it is too wide for one kernel"
        )
        if said is not None and sentence not in said:
            said.append(sentence)

    def product_form(x, y, w, table, values, dim):
        # of constants, and evaluated once: the terms by output component
        output, order = table[3].sort(stable=True)
        offsets = (output.unsqueeze(0) < torch.arange(dim + 1, device=output.device).unsqueeze(1)).sum(dim=1)
        return channel_product(x, y, w, table[:3].index_select(1, order), values.index_select(0, order), offsets, dim)

    def mix_form(x, w, transposed):
        orders, inner, outer = w.shape
        halves = split(w.flatten(0, 1), [inner] * orders)
        return mix_orders(x, *halves, inner if transposed else outer, transposed, products)

    def dense_form(x, w, transposed):
        if transposed:
            return dense(x, *split(w, [w.shape[0]], _columns, _multiple), *w.shape[::-1], True, products)
        return dense(x, *split(w, [w.shape[0]], _multiple, _columns), *w.shape, False, products)

    def product(x, w):
        return dense_form(x.contiguous(), w.contiguous(), False)

    def layer_matrix(w, rows):
        """Halves of w, its rows in parts of these widths; and what scales and bounds it."""
        block = _layer_block(w.shape[1], products)
        hi, lo, info = split(w, rows, _deep, lambda width: block * triton.cdiv(width, block))
        return [torch.stack([hi, lo] if products == 3 else [hi]), info]

    def layers_form(parts, weights, v=None):
        """h, or h v, and the derivatives of silu."""
        x, derivatives, rows = halves(parts, [], False, products), [], [p.shape[1] for p in parts]
        for k, w in enumerate(weights):
            matrix, last = layer_matrix(w, rows), k + 1 == len(weights)
            if last and v is not None:
                sums, d = layer_dot(x, matrix, pad(v, (0, matrix[0].shape[2] - len(v))), len(v), products)
                x = [sums.sum(dim=0)]
            else:
                *x, d = layer_silu(x, matrix, w.shape[1], not last, products)
            derivatives.append(d)
            rows = [w.shape[1]]
        return [*x, *derivatives]

    def layers_backward_form(g, derivatives, weights, widths, one_row=False, add=None):
        """``one_row``: g is the same for all rows; ``add``: a row to add to the result."""
        x = halves([g], [derivatives[-1]], one_row, products)
        for w, d in list(zip(weights[1:], derivatives))[::-1]:
            x = layer_times(x, layer_matrix(w.T, [w.shape[1]]), d, products)
        w = weights[0].T
        matrix = layer_matrix(w, [w.shape[0]])
        added = [] if add is None else [pad(add, (0, matrix[0].shape[2] - len(add)))]
        return layer_parts(x, matrix, widths, added, products)

    def fits(kernel, widths, weights):
        """Whether one kernel takes the first two layers."""
        if _tiles(kernel, widths, *weights[1].shape, products):
            return True
        too_wide(widths, weights)
        return False

    def on_hopper(widths, w2, w3=None):
        return hopper is not None and hopper.take(widths, *w2.shape, 0 if w3 is None else w3.shape[1])

    def hidden_form(parts, weights):
        """h and the derivatives of silu."""
        if len(weights) == 1:
            x, w = torch.cat(parts, dim=-1), weights[0]
            return dense_silu(x, *split(w, [w.shape[0]], _multiple, _columns), *w.shape, products)
        widths, w2 = [p.shape[1] for p in parts], weights[1]
        if on_hopper(widths, w2):
            h, *derivatives = hopper.hidden(parts, *weights[:2])
        elif not fits("hidden", widths, weights):
            return layers_form(parts, weights)
        else:
            first, second = split(weights[0], widths), split(w2, [w2.shape[0]])
            h, *derivatives = mlp_hidden(parts, *first, *second, [], *w2.shape, 0, products)
        if len(weights) > 2:
            h, *rest = hidden_form([h], weights[2:])
            derivatives += rest
        return [h, *derivatives]

    def hidden_backward_form(g, derivatives, weights, widths):
        if len(weights) == 1:
            dx = dense_form((g * derivatives[0]).contiguous(), weights[0], True)
            return [part.contiguous() for part in dx.split(widths, dim=-1)]
        cuda_cpp = on_hopper(widths, weights[1])
        if not cuda_cpp and not fits("hidden", widths, weights):
            return layers_backward_form(g, derivatives, weights, widths)
        if len(weights) > 2:
            (g,) = hidden_backward_form(g, derivatives[2:], weights[2:], [weights[1].shape[1]])
        (d1, d2), (w1, w2) = derivatives[:2], weights[:2]
        if cuda_cpp:
            return hopper.hidden_backward(g, None, d1, d2, w1, w2, None, widths)
        if not fits("backward", widths, weights):
            return layers_backward_form(g, [d1, d2], [w1, w2], widths)
        return mlp_hidden_backward(g, [], d1, d2, *split(w1, widths), *split(w2, [w2.shape[0]]), [], widths, products)

    def hidden_dense_form(parts, w1, w2, w3):
        """h, h w3 and the derivatives of silu."""
        widths = [p.shape[1] for p in parts]
        if on_hopper(widths, w2, w3):
            return tuple(hopper.hidden(parts, w1, w2, w3))
        if w2.shape[1] > _WIDEST_BEFORE_LAST or _tiles("hidden", widths, *w2.shape, products) is None:
            h, d1, d2 = hidden_form(parts, [w1, w2])
            return h, product(h, w3), d1, d2
        first, second, last = split(w1, widths), split(w2, [w2.shape[0]]), split(w3, [w3.shape[0]])
        return tuple(mlp_hidden(parts, *first, *second, list(last), *w2.shape, w3.shape[1], products))

    def hidden_dense_backward_form(g, dy, d1, d2, w1, w2, w3, widths):
        if on_hopper(widths, w2, w3):
            return hopper.hidden_backward(g, dy, d1, d2, w1, w2, w3, widths)
        if _tiles("backward_dense", widths, *w2.shape, products) is None:
            return hidden_backward_form(g + product(dy, w3.T), [d1, d2], [w1, w2], widths)
        last = list(split(w3, [w3.shape[0]]))
        return mlp_hidden_backward(
            g, [dy], d1, d2, *split(w1, widths), *split(w2, [w2.shape[0]]), last, widths, products
        )

    def energy_by_layers(parts, weights, v, r, factor):
        widths = [p.shape[1] for p in parts]
        if on_hopper(widths, weights[1]) or fits("hidden", widths, weights):
            h, *derivatives = hidden_form(parts, weights)
            energy = h @ v
            gradient = hidden_backward_form(v.expand_as(derivatives[-1]).contiguous(), derivatives, weights, widths)
            gradient = [g + c for g, c in zip(gradient, r.split(widths))]
        else:
            energy, *derivatives = layers_form(parts, weights, v)
            gradient = layers_backward_form(v.unsqueeze(0), derivatives, weights, widths, one_row=True, add=r)
        energy = energy + sum(part @ c for part, c in zip(parts, r.split(widths)))
        return (
            [energy, *gradient] if factor is None else [energy * factor, *(g * factor.unsqueeze(1) for g in gradient)]
        )

    def energy_form(parts, weights, v, r, factor):
        if len(weights) > 2:
            return energy_by_layers(parts, weights, v, r, factor)
        widths, (w1, w2) = [p.shape[1] for p in parts], weights
        if on_hopper(widths, w2):
            return hopper.energy(parts, w1, w2, v, r, factor)
        if _tiles("energy", widths, *w2.shape, products) is None:
            return energy_by_layers(parts, weights, v, r, factor)
        r = torch.cat([pad(c, (0, _block(k) - k)) for c, k in zip(r.split(widths), widths)])
        v = pad(v, (0, _block(len(v)) - len(v)))
        factors = [] if factor is None else [factor]
        return mlp_energy(parts, *split(w1, widths), *split(w2, [w2.shape[0]]), v, r, factors, *w2.shape, products)

    def contract_gradient_form(g, w, y, z, row_ptr):
        if hopper is not None and hopper.take_contraction(w, len(g)):
            return hopper.contract_gradient(g, w, y, z, row_ptr)
        return tuple(edge_contract_gradient(g, w, y, z, row_ptr))

    def contract_moment_form(g, w, y, row_ptr):
        if hopper is not None and hopper.take_contraction(w, 1):
            return hopper.contract_moment(g, w, y, row_ptr)
        return edge_contract_moment(g, w, y, row_ptr)

    def couplings(y, cg, paths):
        """What couples features with messages along each edge, and the kernels' tables."""
        sources = convolution_sources(paths)
        return y @ _coupling_matrices(sources, cg, y.shape[1], gradient=False), component_tables(sources, y.device)

    def convolution_form(x, y, w, centre, neighbour, row_ptr, cg, paths, width):
        coupling, tables = couplings(y, cg, paths)
        return tensor_product_convolution(
            x.contiguous(), coupling, w.contiguous(), neighbour.contiguous(), row_ptr, tables, paths, width
        )

    def convolution_nodes_form(y, w, g, centre, neighbour, row_ptr, cg, paths, nodes, width):
        coupling, tables = couplings(y, cg, paths)
        g, w, neighbour = g.contiguous(), w.contiguous(), neighbour.contiguous()
        return tensor_product_convolution_nodes(coupling, w, g, neighbour, row_ptr, tables, paths, nodes, width)

    def convolution_edges_form(x, y, w, g, centre, neighbour, row_ptr, cg, paths):
        coupling, tables = couplings(y, cg, paths)
        x, w, g, neighbour = x.contiguous(), w.contiguous(), g.contiguous(), neighbour.contiguous()
        dcoupling, dw = tensor_product_convolution_edges(x, coupling, w, g, neighbour, row_ptr, tables, paths)
        return dcoupling @ _coupling_matrices(convolution_sources(paths), cg, y.shape[1], gradient=True).T, dw

    def embedding_form(vectors, edge_index, node_types, cutoffs, roots, centre, neighbour, *rest):
        table = torch.cat([centre, neighbour])
        # of two dimensions for the reason given at split
        return tuple(edge_embedding(vectors, edge_index, node_types, cutoffs, roots.unsqueeze(1), table, *rest))

    def embedding_backward_form(
        dg, dharmonics, vectors, edge_index, node_types, cutoffs, roots, centre, neighbour, *rest
    ):
        table = torch.cat([centre, neighbour])
        return edge_embedding_backward(
            dg, dharmonics, vectors, edge_index, node_types, cutoffs, roots.unsqueeze(1), table, *rest
        )

    return {
        ops.segment_sum.default: lambda values, centre, row_ptr: segment_sum(values, row_ptr),
        ops.edge_moment.default: lambda a, y, centre, row_ptr: edge_moment(a, y, row_ptr, dot),
        ops.edge_spread.default: lambda y, z, centre, row_ptr, orders: edge_spread(y, z, row_ptr, orders, dot),
        ops.edge_dot.default: lambda a, z, centre, row_ptr: edge_dot(a, z, row_ptr, dot),
        ops.edge_contract.default: lambda w, y, z, centre, row_ptr: edge_contract(w, y, z, row_ptr),
        ops.edge_spread_add.default: lambda y, z, centre, row_ptr, starts: edge_spread_add(y, z, row_ptr, starts, dot),
        ops.edge_contract_backward.default: lambda g, w, y, z, centre, row_ptr: contract_gradient_form(
            [g], w, y, [z], row_ptr
        ),
        ops.edge_contract_moment.default: lambda g, w, y, centre, row_ptr: contract_moment_form(g, w, y, row_ptr),
        ops.edge_contract_gradient.default: lambda g, w, y, z, centre, row_ptr: contract_gradient_form(
            g, w, y, z, row_ptr
        ),
        ops.channel_product.default: product_form,
        ops.mix_orders.default: mix_form,
        ops.tensor_product_convolution.default: convolution_form,
        ops.tensor_product_convolution_nodes.default: convolution_nodes_form,
        ops.tensor_product_convolution_edges.default: convolution_edges_form,
        ops.dense.default: dense_form,
        ops.mlp_hidden.default: hidden_form,
        ops.mlp_hidden_backward.default: hidden_backward_form,
        ops.mlp_hidden_dense.default: hidden_dense_form,
        ops.mlp_hidden_dense_backward.default: hidden_dense_backward_form,
        ops.mlp_energy.default: energy_form,
        ops.edge_embedding.default: embedding_form,
        ops.edge_embedding_backward.default: embedding_backward_form,
    }
