"""Launching of Triton kernels in a traced graph, and sizes that all of them share."""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.library import wrap_triton

MULTIPROCESSORS = 132
"""Multiprocessors of an H100 or H200. The sizes below which a kernel takes another form are multiples of this number."""


PROGRAMS = 2 * MULTIPROCESSORS
"""Programs of the kernel in which each program has a scratch tile."""


def launch(kernel, grid, *arguments, **constants) -> None:
    if isinstance(kernel, triton.runtime.JITFunction):
        wrap_triton(kernel)[grid](*arguments, **constants)
    elif not any(isinstance(a, FakeTensor) for a in arguments):
        # Triton's interpreter (TRITON_INTERPRET=1) is not traced, and has nothing to do for fake tensors
        kernel[grid](*arguments, **constants)


def tile_width(width: int) -> int:
    """Width of a tile: the next power of two, at least 16."""
    return max(16, triton.next_power_of_2(width))


def edges_at_once(width: int) -> int:
    """Number of edges at a time for which a tile has about 2,048 numbers."""
    return max(8, min(64, 2048 // width))


def one_up_to(most: int, count: int) -> int:
    """1 if ``count`` <= ``most``, else 0. It takes no branch, as an export does not know the sizes."""
    return torch.sym_min(1, most // torch.sym_max(count, 1))


def shares(count: int, most: int) -> int:
    """Number of programs, at most ``most``, that share the edges of a centre; more than 1 if ``count`` centres are too few to fill a GPU."""
    return torch.sym_max(1, torch.sym_min(most, 8 * MULTIPROCESSORS // torch.sym_max(count, 1)))


def four(tensors: list[Tensor]) -> list[Tensor]:
    """The four pointers that a kernel takes for the parts of an array; those that it does not use repeat the first."""
    return [*tensors, *[tensors[0]] * (4 - len(tensors))]
