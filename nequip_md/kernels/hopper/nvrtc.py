"""Compilation of CUDA C++ to machine code for Hopper GPUs, by NVRTC."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch

from nequip_md.errors import NequIPMDError

_ARCHITECTURE = "sm_90a"


def _nvrtc() -> ctypes.CDLL:
    """Load CUDA's run-time compiler: that of PyTorch, or of the package nvidia-cuda-nvrtc if PyTorch is built without CUDA."""
    try:
        if torch.version.cuda:
            # loads NVRTC, which can then be opened by its name
            ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libcaffe2_nvrtc.so"))
            return ctypes.CDLL(f"libnvrtc.so.{torch.version.cuda.split('.')[0]}")
        libraries = [
            f for f in distribution("nvidia-cuda-nvrtc").files or [] if ".so" in f.name and ".alt." not in f.name
        ]
        # NVRTC opens the library of built-in functions by its name, so that one must be loaded first
        *_, nvrtc = [ctypes.CDLL(str(f.locate())) for f in sorted(libraries, key=lambda f: "builtins" not in f.name)]
        return nvrtc
    except (OSError, PackageNotFoundError, ValueError) as error:
        raise NequIPMDError(
            f"NVRTC, CUDA's compiler, is part of PyTorch for CUDA and was not found ({error}); reinstall PyTorch"
        ) from None


def compile_cuda(source: str, report: Callable[[str], None] | None = None) -> bytes:
    """Compile CUDA C++ to a cubin.

    Args:
        report: called with the assembler's messages on each kernel: registers, spilled bytes, warnings.

    Raises:
        NequIPMDError: NVRTC is missing, or the code does not compile.
    """
    nvrtc = _nvrtc()
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    options = [f"--gpu-architecture={_ARCHITECTURE}", "--std=c++17", *["--ptxas-options=-v"] * bool(report)]
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None)
    try:
        failed = nvrtc.nvrtcCompileProgram(
            program, len(options), (ctypes.c_char_p * len(options))(*map(str.encode, options))
        )
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        if failed:
            raise NequIPMDError(f"compiling the CUDA kernels failed: {log.value.decode()[:4000]}")
        if report:
            report(log.value.decode())
        nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
        code = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetCUBIN(program, code)
        return code.raw
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
