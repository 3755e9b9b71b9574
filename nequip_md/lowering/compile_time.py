"""Contexts in which PyTorch compiles a graph with Triton kernels in less time, to the same code."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import sympy
import torch
from torch._higher_order_ops import triton_kernel_wrap
from torch.fx.experimental.proxy_tensor import PythonKeyTracer

_ANALYSES = ("identify_mutated_tensors", "identify_accessed_tensors")
"""PyTorch's function that finds the tensors, before PyTorch 2.13 and since."""
_LAUNCHERS_AT_ONCE = 8
"""C compilers that run at the same time."""


@contextmanager
def short_compilation() -> Iterator[None]:
    """Context in which PyTorch compiles sooner."""
    with ExitStack() as stack:
        for context in (few_collections, no_stacks, kept_analyses, launchers_side_by_side):
            stack.enter_context(context())
        yield


@contextmanager
def few_collections() -> Iterator[None]:
    """Python's garbage collector seldom looks at the many objects of a large graph, which live until the end of a compilation anyway."""
    thresholds = gc.get_threshold()
    gc.set_threshold(100_000, 50, 100)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)


@contextmanager
def no_stacks() -> Iterator[None]:
    """PyTorch does not note the Python stack of each node of the graphs that it traces, which takes a third of the time of a trace.

    ``torch.fx.config.do_not_emit_stack_traces`` of PyTorch 2.13 does the same; the attribute is in older versions as well.
    """
    never = property(lambda tracer: False, lambda tracer, wanted: None)
    with patch.object(PythonKeyTracer, "record_stack_traces", never):
        yield


@contextmanager
def kept_analyses() -> Iterator[None]:
    """PyTorch remembers which tensors a Triton kernel writes to.

    It translates the kernel to Triton's intermediate language to find out, and does so several times for each launch in the graph.
    """
    with ExitStack() as stack:
        for name in _ANALYSES:
            if analyse := getattr(triton_kernel_wrap, name, None):
                stack.enter_context(patch.object(triton_kernel_wrap, name, _kept(analyse)))
        yield


def _kept(analyse: Callable) -> Callable:
    known: dict[Hashable, Any] = {}

    def kept(kernel: Any, arguments: dict[str, Any], descriptors: dict[str, Any]) -> Any:
        key = None if descriptors else _kind_of_launch(kernel, arguments)
        if key is None:
            return analyse(kernel, arguments, descriptors)
        if key not in known:
            known[key] = analyse(kernel, arguments, descriptors)
        return copy.copy(known[key])

    return kept


def _kind_of_launch(kernel: Any, arguments: dict[str, Any]) -> Hashable | None:
    """Key of everything that the translation of a launch depends on: kernel, types of tensors, constants. None if there is no key."""
    from torch._inductor.ir import IRNode
    from triton.runtime.autotuner import Autotuner

    if isinstance(kernel, Autotuner):  # PyTorch makes one for each launch with a number of warps
        arguments = {**arguments, **(kernel.configs[0].kwargs if kernel.configs else {})}
        kernel = kernel.fn
    kinds = []
    for name, value in arguments.items():
        if isinstance(value, (torch.Tensor, IRNode)):
            kinds.append((name, torch.Tensor, value.dtype))
        elif isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool, sympy.Expr)):
            kinds.append((name, sympy.Expr, None))  # PyTorch takes any number in its place
        else:
            kinds.append((name, type(value), value))
    try:
        hash(tuple(kinds))
    except TypeError:
        return None
    return kernel, *kinds


@contextmanager
def launchers_side_by_side() -> Iterator[None]:
    """Several C compilers run at the same time with Triton before 3.7, which compiles a C library to launch each kind of kernel."""
    try:
        from torch._inductor.async_compile import AsyncCompile
        from torch._inductor.codecache import CodeCacheFuture
        from triton.backends.nvidia import driver
    except ImportError:
        yield
        return
    wait = getattr(AsyncCompile, "_wait_futures", None)
    if wait is None or not hasattr(driver, "make_launcher"):
        yield
        return

    def wait_side_by_side(self: AsyncCompile, scope: dict[str, Any]) -> None:
        pending = {key: value for key, value in scope.items() if isinstance(value, (Future, CodeCacheFuture))}
        with ThreadPoolExecutor(_LAUNCHERS_AT_ONCE) as threads:
            results = {key: threads.submit(future.result) for key, future in pending.items()}
        scope.update({key: result.result() for key, result in results.items() if result.exception() is None})
        wait(self, scope)  # PyTorch reports what failed

    with patch.object(AsyncCompile, "_wait_futures", wait_side_by_side):
        yield
