"""Static libraries that are compiled at export and linked into an artifact's own code."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from nequip_md.errors import NequIPMDError
from nequip_md.inductor_cache import use_private_cache


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
    code = folder / f"{name}.o"
    _run([*_command(options), "-c", str(source), "-o", str(code)])
    _run(["ar", "rcs", str(folder / f"lib{name}.a"), str(code)])


def build_once(name: str, source: Path, headers: Path, options: list[str]) -> Path:
    """:func:`build` in Inductor's cache folder, unless the same library is there already.

    Several models that one process exports then share one library.

    Args:
        headers: folder of the headers that the source includes besides those of PyTorch, and of those in its own folder.

    Returns:
        The folder of the library.

    Raises:
        NequIPMDError: there is no C++ compiler, it fails, or the cache folder is refused (:func:`use_private_cache`).
    """
    command = [*_command(options), f"-I{headers}"]
    # the compiler's version, and the instructions that -march=native stands for, are macros
    key = [*command, torch.__version__, _run([*command, "-E", "-dM", "-x", "c++", os.devnull])]
    texts = sorted(
        path for folder in (source.parent, headers) for path in folder.iterdir() if path.suffix in (".cpp", ".h")
    )
    digest = hashlib.sha256("\0".join([*key, *(path.read_text() for path in texts)]).encode()).hexdigest()
    cache = use_private_cache()
    folder = cache / f"{name}-{digest}"
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=cache) as unfinished:
            made = Path(unfinished) / "made"
            made.mkdir()
            build(made, name, source, [*options, f"-I{headers}"])
            try:
                made.rename(folder)
            except OSError:
                if not folder.exists():  # otherwise another process was faster
                    raise
    return folder


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


def _command(options: list[str]) -> list[str]:
    from torch.utils.cpp_extension import include_paths  # imported late, as it imports PyTorch's compiler

    includes = [f"-I{path}" for path in include_paths()]
    return [compiler(), "-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", *options, *includes]


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise NequIPMDError(
            f"{command[0]} was not found; an export needs g++ and binutils (Debian: apt install g++)"
        ) from error
    if done.returncode:
        raise NequIPMDError(f"compiling the kernels failed: {' '.join(command)}\n{done.stderr[-4000:]}")
    return done.stdout
