"""The C++ kernels: which operators have one, and how they get into a compiled artifact.

AOTInductor calls a custom operator through a C function. That function usually belongs to a library which must be loaded
beside the artifact. Here it belongs to a static library that is linked into the artifact's own code, so the ``.pt2`` file
needs PyTorch and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files

import torch

from nequip_md.kernels.backend import Backend
from nequip_md.kernels.shims import shims
from nequip_md.kernels.static_library import build_once, searched, with_library

_LIBRARY = "nequip_md_cpu"
OPERATORS = frozenset(
    getattr(torch.ops.nequip_md, name).default
    for name in (
        "segment_sum",
        "edge_moment",
        "edge_spread",
        "edge_dot",
        "edge_contract",
        "edge_contract_backward",
        "channel_product",
        "tensor_product_convolution",
        "tensor_product_convolution_nodes",
        "tensor_product_convolution_edges",
    )
)
"""Operators that have a kernel in ``cpu_kernels.cpp``."""


class CPUBackend(Backend):
    """C++ kernels for the processor of this machine."""

    kernels = "c++"
    linked_operators = OPERATORS

    @contextmanager
    def linked(self) -> Iterator[dict]:
        with super().linked() as options, as_file(files("nequip_md.kernels")) as sources:
            folder = build_once(
                _LIBRARY,
                sources / "cpu" / "cpu_kernels.cpp",
                sources / "include",
                ["-march=native", "-ffp-contract=fast", "-fopenmp"],
            )
            with searched(str(folder)):
                yield with_library(options, _LIBRARY, shims(OPERATORS, "cpu"))
