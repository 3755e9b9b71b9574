"""The Triton kernels that an export of a preset launches, listed and compiled for a Hopper GPU on a machine without one.

Used by machine_code.py and by tests/support/compile_kernels.py. Triton must compile, so ``TRITON_INTERPRET`` must not be set.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from nequip_md.kernels import Backend
from nequip_md.kernels.triton import launcher
from nequip_md.kernels.triton.convolution_source import kernel_of
from nequip_md.lowering import trace
from nequip_md.model import Potential, build_model, preset, with_dtype

TARGET = GPUTarget("cuda", 90, 32)
POINTERS = {
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


def preset_model(name: str, precision: str, **options) -> Potential:
    """A preset for hydrogen and oxygen with random but reproducible weights, in the dtype of ``precision``; ``options`` change it."""
    torch.manual_seed(0)
    config = preset(name, type_names=["H", "O"], cutoff=6.0, avg_num_neighbors=20.0, **options)
    return with_dtype(build_model(config).eval(), "float64" if precision == "fp64" else "float32")


def cuda_graph(name: str, precision: str, backend: Backend) -> tuple[torch.export.ExportedProgram, list[dict]]:
    """The graph that an export of a preset for CUDA compiles, and its launches without duplicates."""
    model = preset_model(name, precision)
    with recorded_launches() as launches:
        program = trace(model, model.config.cutoff, 2, device="cpu", backend=backend)
    return program, launches


@contextmanager
def recorded_launches() -> Iterator[list[dict]]:
    """Record launches instead of executing them: module, name or source of the kernel, types of its arguments, constants, options."""
    found: list[dict] = []

    def record(kernel, grid, *arguments, **constants):
        values = {**dict(zip(kernel.arg_names, arguments)), **constants}
        fixed = {parameter.name: values[parameter.name] for parameter in kernel.params if parameter.is_constexpr}
        launch = {
            "module": kernel.fn.__module__,
            "kernel": kernel.fn.__name__,
            # kernels that are written for a layer are in no module
            "source": inspect.getsource(kernel.fn) if kernel.fn.__module__ in (None, "builtins") else None,
            "types": {name: "constexpr" if name in fixed else _type(values[name]) for name in kernel.arg_names},
            "fixed": fixed,
            "options": {key: constants[key] for key in ("num_warps", "num_stages") if key in constants},
        }
        if launch not in found:
            found.append(launch)

    launch, launcher.launch = launcher.launch, record
    try:
        yield found
    finally:
        launcher.launch = launch


def _type(value: Tensor | int) -> str:
    return POINTERS[value.dtype] if isinstance(value, Tensor) else "i32"


def compile_launch(launch: dict):
    """Compile the kernel of one launch; addresses are multiples of 16, as those of PyTorch's arrays."""
    if launch["source"]:
        kernel = kernel_of(launch["source"], launch["kernel"])
    else:
        kernel = getattr(import_module(launch["module"]), launch["kernel"])
    aligned = {
        (i,): [["tt.divisibility", 16]] for i, kind in enumerate(launch["types"].values()) if kind.startswith("*")
    }
    source = ASTSource(fn=kernel, signature=launch["types"], constexprs=launch["fixed"], attrs=aligned)
    return triton.compile(source, target=TARGET, options=launch["options"])
