"""From an exported graph to compiled code, by PyTorch's Ahead-of-Time Inductor."""

from __future__ import annotations

import io
import tempfile
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nequip_md import inductor_cache
from nequip_md.errors import NequIPMDError
from nequip_md.kernels import Backend
from nequip_md.lowering.compile_time import short_compilation


def compile_program(program: torch.export.ExportedProgram, backend: Backend, options: dict | None = None) -> memoryview:
    """The content of a ``.pt2`` package, with the backend's kernels linked into its code.

    Args:
        program: of a lowered graph.
        options: of Inductor, besides those that this package always sets.

    Raises:
        NequIPMDError: a compiler is missing or fails, or there is no space to compile in.
    """

    def package(content: io.BytesIO, options: dict) -> None:
        torch._inductor.aoti_compile_and_package(program, package_path=content, inductor_configs=options)

    return _content(package, backend, options)


def compile_graph(
    graph: torch.fx.GraphModule, inputs: Sequence[Tensor], backend: Backend, options: dict | None = None
) -> memoryview:
    """Compile a lowered graph that was traced with fake tensors, as :func:`compile_program` does; symbolic sizes are variables in the code.

    The graph is not traced by :func:`torch.export.export`, which would double the time in Python before Inductor begins.

    Args:
        inputs: like those that the graph was traced with, from which Inductor chooses how work is shared among threads.
    """

    def package(content: io.BytesIO, options: dict) -> None:
        from torch._inductor.package import package_aoti

        package_aoti(
            content,
            torch._inductor.aot_compile(graph, tuple(inputs), options={**options, "aot_inductor.package": True}),
        )

    return _content(package, backend, options)


def _content(package: Callable[[io.BytesIO, dict], None], backend: Backend, options: dict | None) -> memoryview:
    """Let a function compile and write a package; returns its content.

    Args:
        package: called with the buffer to write to and the options of Inductor.

    Raises:
        NequIPMDError: a compiler is missing or fails, or there is no space to compile in.
    """
    inductor_cache.use_private_cache()
    # the compiler's half of torch, which whoever only runs artifacts does without
    from torch._inductor.exc import CppCompileError, InductorError

    # threads are decided when the code runs, not where it is compiled
    options = {**inductor_cache.OPTIONS, "cpp.dynamic_threads": True, **(options or {})}
    if backend.device == "cuda":
        # Inductor would compile and run test programs for the processor's vector instructions, which this code does not use
        options["cpp.vec_isa_ok"] = False
    # in memory, because PyTorch ends the process when it cannot write to a file
    content = io.BytesIO()
    try:
        with backend.linked() as options_of_kernels, short_compilation(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            package(content, {**options, **options_of_kernels})
    except (OSError, CppCompileError, InductorError) as error:
        raise NequIPMDError(
            f"compiling the model failed: {str(error)[-2000:].strip()}\nCompilation writes to {tempfile.gettempdir()}; if "
            "there is no space, set TMPDIR to a folder that has some"
        ) from error
    return content.getbuffer()
