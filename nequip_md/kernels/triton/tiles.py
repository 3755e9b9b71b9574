"""Tile sizes of the MLP kernels: those that fit a multiprocessor, and of these the fastest on an H200."""

from __future__ import annotations

import torch
import triton

from nequip_md.kernels.triton import launcher

SHARED_MEMORY = 227 * 1024


WIDEST_OUTER = 256
"""Width of the widest second layer whose accumulators a kernel can hold in registers."""


TILES = {
    # (rows, chunk, warps, stages) by the number of products; the first that fits is taken. From timings on an H200 (benchmarks/NOTEBOOK.md)
    3: {
        "hidden": ((128, 32, 8, 3), (128, 32, 8, 2), (64, 16, 4, 3), (64, 16, 4, 2)),
        "narrow": (
            (64, 32, 4, 3),
            (64, 16, 4, 2),
        ),  # hidden layers of width 64 or less: four programs for each multiprocessor
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


FEW_TILES = {
    # taken while there is at most one tile for each multiprocessor, as the kernel then takes the time of one tile
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


def tile(
    tile: tuple[int, int, int, int], kernel: str, widths: list[int], inner: int, outer: int, products: int
) -> dict | None:
    """Constants of a tile, or None if it takes more shared memory or registers than there are."""
    inputs, outputs = sum(launcher.tile_width(k) for k in widths), launcher.tile_width(outer)
    bytes_each = 4 if products == 3 else 2
    rows, chunk, warps, stages = tile
    chunk = min(chunk, launcher.tile_width(inner))
    weights = chunk * (inputs + outputs)
    # with 64 rows or more, a product is waited for one iteration later, so one more buffer is in use
    buffers = stages if rows >= 64 else stages - 1
    forward, backward = rows * inputs + buffers * weights, rows * (outputs + chunk) + buffers * weights
    last = block_last(outer)
    shared = {
        "hidden": forward,
        "backward": backward,
        # the gradient of the hidden layer stays in registers
        "backward_dense": max(buffers * weights, buffers * last * (outputs + rows) + rows * last),
        # the backward direction reuses the memory of the forward direction, and its weights are not double-buffered
        "energy": max(forward, rows * (outputs + chunk) + weights),
    }[kernel]
    accumulators = {"hidden": outputs, "backward_dense": inputs + outputs}.get(kernel, max(inputs, outputs))
    registers = rows * accumulators / (32 * warps)
    if bytes_each * shared <= SHARED_MEMORY and registers <= (224 if kernel == "backward_dense" else 128):
        return {"ROWS": rows, "CHUNK": chunk, "num_warps": warps, "num_stages": stages}
    return None


def tiles(kernel: str, widths: list[int], inner: int, outer: int, products: int) -> dict | None:
    """Tile sizes of a kernel for input parts of these widths and layers of widths ``inner`` and ``outer``, or None if they are too wide."""
    if kernel in ("hidden", "energy") and launcher.tile_width(outer) > WIDEST_OUTER:
        return None
    candidates = TILES[products]["narrow" if kernel == "hidden" and max(inner, outer) <= 64 else kernel]
    return next(filter(None, (tile(t, kernel, widths, inner, outer, products) for t in candidates)), None)


def two_layers_fit(kernel: str, widths: list[int], inner: int, outer: int, products: int) -> bool:
    """Whether a kernel takes two layers of these widths."""
    return tiles(kernel, widths, inner, outer, products) is not None


def tiles_by_count(
    kernel: str, widths: list[int], inner: int, outer: int, products: int, count: int
) -> list[tuple[dict, int]]:
    """The tiles for few rows and the tile for many rows, each with 1 if it is the one for ``count`` rows, else 0.

    A graph launches the kernel with each tile, on a grid multiplied by that number; a launch of no programs does nothing.
    """
    forms, below, many = [], 0, tiles(kernel, widths, inner, outer, products)
    for candidate in FEW_TILES[products][kernel]:
        found = tile(candidate, kernel, widths, inner, outer, products)
        if found and found != many:
            up_to = launcher.one_up_to(launcher.MULTIPROCESSORS * found["ROWS"], count)
            forms.append((found, up_to - below))
            below = up_to
    return [*forms, (many, 1 - below)]


def derivative_dtype(products: int) -> torch.dtype:
    """Dtype in which silu', which lies in (-0.1, 1.1), is stored: fp16 is as accurate as one product."""
    return torch.float16 if products == 1 else torch.float32


def part_constants(widths: list[int]) -> dict:
    filled = [*widths, *[16] * (4 - len(widths))]
    constants = {"PARTS": len(widths)}
    for j, width in enumerate(filled):
        constants |= {f"K{j}": width, f"B{j}": launcher.tile_width(width)}
    return constants


WIDEST_BEFORE_LAST = 256
"""Width of the widest hidden layer that is multiplied by the next matrix in the same kernel, which holds it in registers."""


def block_last(outer: int) -> int:
    """Number of columns at a time of the matrix that reads a hidden layer of this width."""
    return 64 if outer <= 64 else 32


def last_constants(width: int, outer: int) -> dict:
    """Constants of the matrix that reads the hidden layer; width 0 if there is none."""
    return {"N3": width, "P3": launcher.tile_width(width), "BLOCK3": min(block_last(outer), launcher.tile_width(width))}


DEPTH = 64
"""Columns of the inner dimension that are multiplied at a time."""


def deep(width: int) -> int:
    """Inner dimension of a product over ``width`` columns: the next multiple of :data:`DEPTH`."""
    return DEPTH * triton.cdiv(width, DEPTH)


LAYER_TILES = {3: (256, 8, 4), 1: (128, 4, 3)}
"""Columns, warps and stages by products. From timings on an H200 (benchmarks/NOTEBOOK.md)."""


def layer_block(width: int, products: int) -> int:
    """Number of columns of the tile of a layer of this width."""
    return min(LAYER_TILES[products][0], 256 if triton.cdiv(width, 128) % 2 == 0 else 128)
