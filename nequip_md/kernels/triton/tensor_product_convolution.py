"""Kernels of NequIP's convolution (:mod:`nequip_md.ops.tensor_product_convolution`), over the edges of one centre.

Their source is written for the paths of a layer and their coefficients (:mod:`nequip_md.kernels.triton.convolution_source`).
"""

from __future__ import annotations

from torch import Tensor
from torch.library import triton_op

from nequip_md.kernels.triton import convolution_source, launcher
from nequip_md.ops.tensor_product_convolution import unpack_terms


@triton_op("nequip_md::tensor_product_convolution_by_triton", mutates_args={})
def tensor_product_convolution_by(
    by: str,
    x: list[Tensor],
    y: list[Tensor],
    w: list[Tensor],
    g: list[Tensor],
    terms: list[int],
    neighbour: Tensor,
    row_ptr: Tensor,
    paths: list[int],
    coefficients: list[float],
    nodes: int,
    width: int,
) -> Tensor:
    """The sum of derivatives by one argument, see ``tensor_product_convolution_by_x`` and its like.

    Args:
        by: name of the argument.
        coefficients: the operators' ``cg``.
        nodes: number of rows of the gradient by x.

    Returns:
        The sum. By y it is [E, programs, width], the parts of all programs for a centre.
    """
    centres, edges = row_ptr.shape[0] - 1, neighbour.shape[0]
    lists = {name: arrays for name, arrays in zip("xywg", (x, y, w, g), strict=True) if arrays}
    like = next(iter(lists.values()))[0]
    layer = tuple(paths), tuple(coefficients)
    shares = launcher.shares(centres, 6)
    if by == "x":
        out = like.new_zeros((nodes, width))
    elif by == "y":
        out = like.new_empty((edges, convolution_source.programs(*layer), width))
    elif by == "w":
        out = like.new_empty((edges, width))
    else:
        out, shares = like.new_empty((centres, width)), 1
    widths = {**{name: arrays[0].shape[1] for name, arrays in lists.items()}, by: width}
    pointers = [array for arrays in lists.values() for array in arrays]
    made = convolution_source.kernels(by, tuple(unpack_terms(terms)), *layer, tuple(sorted(widths.items())))
    for kernel, programs in made:
        launcher.launch(kernel, (centres, programs, shares), *pointers, neighbour, row_ptr, out, num_warps=1)
    return out
