"""The C++ kernels: which operators have one, and how they get into a compiled artifact.

AOTInductor calls a custom operator through a C function. That function normally belongs to a library which must be
loaded beside the artifact; here it comes from a static library that is linked into the artifact's own code, so that the
``.pt2`` file needs PyTorch and nothing else.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path

import torch

from nequip_md.ops.static_library import build, searched

_LIBRARY = "nequip_md_cpu"
_T = "AtenTensorHandle"
_SIGNATURES = {
    "segment_sum": f"{_T}, {_T}, {_T}, {_T}*",
    "edge_moment": f"{_T}, {_T}, {_T}, {_T}, {_T}*",
    "edge_spread": f"{_T}, {_T}, {_T}, {_T}, int64_t, {_T}*",
    "edge_dot": f"{_T}, {_T}, {_T}, {_T}, {_T}*",
    "edge_contract": f"{_T}, {_T}, {_T}, {_T}, {_T}, {_T}*",
    "edge_contract_backward": f"{_T}, {_T}, {_T}, {_T}, {_T}, {_T}, {_T}*, {_T}*, {_T}*",
    "channel_product": f"{_T}, {_T}, {_T}, {_T}, {_T}, int64_t, {_T}*",
    "tensor_product_convolution": f"{_T}, {_T}, {_T}, {_T}, {_T}, {_T}, {_T}, const int64_t*, int64_t, int64_t, {_T}*",
    "tensor_product_convolution_nodes": f"{_T}, {_T}, {_T}, {_T}, {_T}, {_T}, {_T}, const int64_t*, int64_t, int64_t, int64_t, {_T}*",
    "tensor_product_convolution_edges": f"{_T}, {_T}, {_T}, {_T}, {_T}, {_T}, {_T}, {_T}, const int64_t*, int64_t, {_T}*, {_T}*",
}


def operators() -> frozenset[torch._ops.OpOverload]:
    """Operators that have a C++ kernel."""
    return frozenset(getattr(torch.ops.nequip_md, name).default for name in _SIGNATURES)


@contextmanager
def linked_kernels() -> Iterator[dict]:
    """Compile the kernels for this machine; yields the Inductor options that link them into an artifact.

    Raises:
        NequIPMDError: there is no C++ compiler, or it fails.
    """
    shims = {
        getattr(torch.ops.nequip_md, name).default: [f"AOTITorchError aoti_torch_cpu_{name}({signature})"]
        for name, signature in _SIGNATURES.items()
    }
    with tempfile.TemporaryDirectory(prefix="nequip-md-") as folder, searched(folder):
        with as_file(files("nequip_md.ops") / "csrc") as sources:
            build(
                Path(folder), _LIBRARY, sources / "cpu_kernels.cpp", ["-march=native", "-ffp-contract=fast", "-fopenmp"]
            )
        yield {"aot_inductor.custom_ops_to_c_shims": shims, "aot_inductor.custom_op_libs": [_LIBRARY]}
