"""The contexts that shorten a compilation leave no trace, and change no result."""

from __future__ import annotations

import gc
from threading import Barrier

import pytest
import torch

from nequip_md.lowering.compile_time import few_collections, launchers_side_by_side, no_stacks

driver = pytest.importorskip("triton.backends.nvidia.driver")
TOGETHER = 4


@pytest.fixture
def compiles_launchers(monkeypatch):
    """Triton before 3.7 compiles launchers, with this function."""
    monkeypatch.setattr(driver, "make_launcher", lambda *arguments: "", raising=False)


def futures(*functions):
    from torch._inductor.codecache import LambdaFuture

    return {f"kernel_{i}": LambdaFuture(function) for i, function in enumerate(functions)}


def test_kernels_are_made_side_by_side(compiles_launchers):
    from torch._inductor.async_compile import AsyncCompile

    wait, all_there = AsyncCompile._wait_futures, Barrier(TOGETHER, timeout=30)
    scope = {"other": 3, **futures(*[lambda i=i: (all_there.wait(), i)[1] for i in range(TOGETHER)])}
    with launchers_side_by_side():
        AsyncCompile()._wait_futures(scope)
    assert scope == {"other": 3, **{f"kernel_{i}": i for i in range(TOGETHER)}}
    assert AsyncCompile._wait_futures is wait


def test_a_kernel_that_cannot_be_made_is_reported(compiles_launchers):
    from torch._inductor.async_compile import AsyncCompile

    def fails():
        raise RuntimeError("no such instruction")

    scope = futures(lambda: 1, fails)
    with launchers_side_by_side(), pytest.raises(RuntimeError, match="no such instruction"):
        AsyncCompile()._wait_futures(scope)
    assert scope["kernel_0"] == 1


def test_collections_are_as_before():
    before = gc.get_threshold()
    with pytest.raises(ValueError, match="stop"), few_collections():
        assert gc.get_threshold()[0] > before[0] and gc.isenabled()
        raise ValueError("stop")
    assert gc.get_threshold() == before


def test_nodes_have_stacks_again():
    def stacks():
        program = torch.export.export(torch.nn.Softplus(), (torch.zeros(2),))
        return [node.stack_trace for node in program.graph.nodes if node.op == "call_function"]

    with no_stacks():
        assert stacks() == [None]
    (stack,) = stacks()
    assert "softplus" in stack
