"""The C++ kernels: which operators have one, and how they get into a compiled artifact.

AOTInductor calls a custom operator through a C function. That function normally belongs to a library which must be
loaded beside the artifact; here it comes from a static library that is linked into the artifact's own code, so that the
``.pt2`` file needs PyTorch and nothing else.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path

import torch
from torch._inductor.cpp_builder import get_cpp_compiler
from torch.utils.cpp_extension import include_paths

from nequip_md.errors import NequIPMDError

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
    "tensor_product_convolution":
        f"{_T}, {_T}, {_T}, {_T}, {_T}, {_T}, {_T}, const int64_t*, int64_t, int64_t, {_T}*",
    "tensor_product_convolution_nodes":
        f"{_T}, {_T}, {_T}, {_T}, {_T}, {_T}, {_T}, const int64_t*, int64_t, int64_t, int64_t, {_T}*",
    "tensor_product_convolution_edges":
        f"{_T}, {_T}, {_T}, {_T}, {_T}, {_T}, {_T}, {_T}, const int64_t*, int64_t, {_T}*, {_T}*",
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
    with tempfile.TemporaryDirectory(prefix="nequip-md-") as folder:
        _build(Path(folder))
        # the compiler searches LIBRARY_PATH after its own -L folders; Inductor has no option for more of those
        before = os.environ.get("LIBRARY_PATH")
        os.environ["LIBRARY_PATH"] = os.pathsep.join([folder, *([before] if before else [])])
        try:
            yield {"aot_inductor.custom_ops_to_c_shims": shims, "aot_inductor.custom_op_libs": [_LIBRARY]}
        finally:
            if before is None:
                del os.environ["LIBRARY_PATH"]
            else:
                os.environ["LIBRARY_PATH"] = before


def _build(folder: Path) -> None:
    compiler = get_cpp_compiler()
    with as_file(files("nequip_md.ops") / "csrc") as sources:
        command = [compiler, "-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fopenmp", "-fPIC", "-fvisibility=hidden",
                   *(f"-I{path}" for path in include_paths()), "-c", str(sources / "cpu_kernels.cpp"),
                   "-o", str(folder / "kernels.o")]
        _run(command)
    _run(["ar", "rcs", str(folder / f"lib{_LIBRARY}.a"), str(folder / "kernels.o")])


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise NequIPMDError(f"{command[0]} was not found; exporting for the CPU needs g++ and binutils (Debian: apt install g++)") from error
    if done.returncode:
        raise NequIPMDError(f"compiling the CPU kernels failed: {' '.join(command)}\n{done.stderr[-4000:]}")
