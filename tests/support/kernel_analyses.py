"""How often PyTorch analyses the Triton kernels of a graph that it compiles, with and without :func:`kept_analyses`, without a GPU.

    python kernel_analyses.py     # a line of JSON

Tests run it in a process of its own, since Triton decides at its first import whether kernels are compiled or interpreted.
"""

from __future__ import annotations

import json
import re
from contextlib import nullcontext

import torch
import triton
from torch._functorch.aot_autograd import aot_export_module
from torch._guards import TracingContext, tracing
from torch._higher_order_ops import triton_kernel_wrap
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from triton.backends.compiler import GPUTarget

from nequip_md.kernels.triton.segment_sum import segment_sum
from nequip_md.lowering.compile_time import kept_analyses


class Hopper:
    """A stand-in for a GPU's driver, which answers what the analysis asks."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


def sums(values: torch.Tensor, more: torch.Tensor, row_ptr: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Four launches of one kernel, three of which differ in sizes alone and one in precision."""
    first = segment_sum(values, row_ptr)
    return (
        first,
        segment_sum(first, row_ptr[:3]),
        segment_sum(more, row_ptr),
        segment_sum(2 * values, row_ptr),
        2 * first,
    )


def functionalized(keep: bool) -> tuple[str, int]:
    """The graph as the compiler sees it, and how many kernels it has translated to make it."""
    translated = []
    translate = triton_kernel_wrap.generate_ttir

    def counted(*arguments):
        translated.append(arguments)
        return translate(*arguments)

    mode = FakeTensorMode()
    with mode:
        inputs = [torch.empty(9, 2), torch.empty(9, 2, dtype=torch.float64), torch.empty(5, dtype=torch.int64)]
        graph = make_fx(sums)(*inputs)
        triton_kernel_wrap.generate_ttir = counted
        try:
            with kept_analyses() if keep else nullcontext(), tracing(TracingContext(mode)):
                module, _ = aot_export_module(graph, inputs, trace_joint=False)
        finally:
            triton_kernel_wrap.generate_ttir = translate
    # PyTorch numbers the launches of a process
    return re.sub(r"_idx = \d+", "", module.code), len(translated)


if __name__ == "__main__":
    triton.runtime.driver.set_active(Hopper())
    (plain, often), (kept, once) = functionalized(False), functionalized(True)
    written = re.findall(r"tensors_to_clone = (\[.*?\])", kept)
    print(json.dumps({"same": plain == kept, "written": written, "translations": [often, once]}))
