"""The sum over each centre's edges (:mod:`nequip_md.ops.segment`)."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op

from nequip_md.kernels.triton import launcher


@triton.jit
def segment_sum_kernel(values, row_ptr, out, C, EDGES: tl.constexpr):
    i = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1)
    begin = tl.load(row_ptr + i)
    end = tl.load(row_ptr + i + 1)
    total = tl.zeros([EDGES], dtype=out.dtype.element_ty)
    e = tl.arange(0, EDGES)
    for e0 in range(begin, end, EDGES):
        total += tl.load(values + e0 * C + e * C + c, mask=e < end - e0, other=0.0)
    tl.store(out + i * C + c, tl.sum(total, axis=0))


@triton_op("nequip_md::segment_sum_triton", mutates_args={})
def segment_sum(values: Tensor, row_ptr: Tensor) -> Tensor:
    count, channels = row_ptr.shape[0] - 1, values.shape[1]
    out = values.new_empty((count, channels))
    launcher.launch(segment_sum_kernel, (count, channels), values, row_ptr, out, channels, EDGES=128, num_warps=1)
    return out
