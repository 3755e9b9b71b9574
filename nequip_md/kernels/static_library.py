"""Static libraries that are compiled at export and linked into an artifact's own code."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nequip_md.errors import NequIPMDError


def compiler() -> str:
    """The C++ compiler that Inductor uses: the one that CXX names, or g++.

    Raises:
        NequIPMDError: there is no such compiler.
    """
    # imported late, as it imports PyTorch's compiler, which running an artifact does not need
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        return get_cpp_compiler()
    except (InvalidCxxCompiler, OSError) as error:
        named = os.environ.get("CXX")
        found = f"CXX is {named!r}, which cannot be run: set it to the path of one" if named else "g++ was not found"
        raise NequIPMDError(
            f"an export needs a C++ compiler, and {found} (Debian and Ubuntu: apt install g++; or set CXX)"
        ) from error


def build(folder: Path, name: str, source: Path, options: list[str]) -> None:
    """Compile one source into ``lib<name>.a`` in ``folder``.

    Raises:
        NequIPMDError: there is no C++ compiler, or it fails.
    """
    from torch.utils.cpp_extension import include_paths  # imported late, as it imports PyTorch's compiler

    code = folder / f"{name}.o"
    _run(
        [
            compiler(),
            "-std=c++17",
            "-O3",
            "-fPIC",
            "-fvisibility=hidden",
            *options,
            *(f"-I{path}" for path in include_paths()),
            "-c",
            str(source),
            "-o",
            str(code),
        ]
    )
    _run(["ar", "rcs", str(folder / f"lib{name}.a"), str(code)])


def with_library(options: dict, library: str, functions: dict) -> dict:
    """Add a library to Inductor options that link libraries.

    Args:
        functions: C functions of the operators in the library, from :func:`nequip_md.kernels.shims.shims`.
    """
    known, linked = "aot_inductor.custom_ops_to_c_shims", "aot_inductor.custom_op_libs"
    return {known: {**options.get(known, {}), **functions}, linked: [*options.get(linked, []), library]}


@contextmanager
def searched(folder: str) -> Iterator[None]:
    """Let the compiler find libraries in this folder too."""
    # the compiler searches LIBRARY_PATH after the folders of -L; Inductor has no option that adds a -L folder
    before = os.environ.get("LIBRARY_PATH")
    os.environ["LIBRARY_PATH"] = os.pathsep.join([folder, *([before] if before else [])])
    try:
        yield
    finally:
        if before is None:
            del os.environ["LIBRARY_PATH"]
        else:
            os.environ["LIBRARY_PATH"] = before


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise NequIPMDError(
            f"{command[0]} was not found; an export needs g++ and binutils (Debian: apt install g++)"
        ) from error
    if done.returncode:
        raise NequIPMDError(f"compiling the kernels failed: {' '.join(command)}\n{done.stderr[-4000:]}")
