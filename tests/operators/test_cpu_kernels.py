"""The table in C++: every case that has a kernel, in one compiled artifact with dynamic sizes."""

from __future__ import annotations

from importlib.resources import files

import pytest
import torch

from nequip_md.kernels.cpu.backend import OPERATORS, CPUBackend
from nequip_md.kernels.shims import function_name
from nequip_md.lowering.compile import compile_program
from operators.cases import DTYPE, Graph, at_most, wrong
from operators.lowered import Module, exported
from operators.table import GROUPS

NO_KERNEL = {
    **dict.fromkeys(
        (
            "dense",
            "mix_orders",
            "mlp_hidden",
            "mlp_hidden_backward",
            "mlp_hidden_dense",
            "mlp_hidden_dense_backward",
            "mlp_readout",
            "mlp_readout_backward",
            "mlp_energy",
        ),
        "products of matrices are PyTorch's",
    ),
    **dict.fromkeys(
        (
            "edge_spread_add",
            "edge_contract_gradient",
            "edge_contract_moment",
            *(f"tensor_product_convolution_by_{name}" for name in "xywg"),
        ),
        "a pass makes it where a backend has a form",
    ),
    **dict.fromkeys(("edge_embedding", "edge_embedding_backward"), "its time is small beside the rest"),
    "channel_product_weight": "a gradient by weights is of training",
}
"""Operators that run as their references, with the reason."""
REFUSED = {"strided": "the kernels take contiguous arrays, and say so"}
"""Kinds of cases that the kernels do not take, with the reason."""
DIFFERENTIATED = ("sums, 2 orders of 2", "product, 2 orders of 2", "derivatives of convolution, vectors")
"""Groups whose first and second derivatives are compiled too."""
PRECISIONS = ("fp64", "fp32")
GRAPHS = (
    Graph((3, 0, 5, 1, 0, 19)),
    Graph((2, 1), 0),
    Graph((0, 0, 300, 7), 1),
    Graph((1,) * 33, 7),
)
"""Graphs of various sizes; the artifact is traced with the first one."""
CASES = [
    (group, case, precision)
    for group in GROUPS.values()
    for precision in PRECISIONS
    if precision in group.precisions
    for case in group.cases
    if case.operator not in NO_KERNEL and case.about not in REFUSED
]


def test_every_operator_has_a_kernel_or_a_reason():
    names = {operator._schema.name.split("::")[1] for operator in OPERATORS}
    assert names.isdisjoint(NO_KERNEL)
    assert names | set(NO_KERNEL) == {case.operator for group in GROUPS.values() for case in group.cases}


def test_every_signature_has_a_kernel():
    """Otherwise an operator with a C++ signature but no kernel, or the reverse, would fail at export only."""
    source = (files("nequip_md.kernels.cpu") / "cpu_kernels.cpp").read_text()
    for operator in OPERATORS:
        assert f"{function_name(operator, 'cpu')}(" in source


@pytest.fixture(scope="session")
def artifact(made_once):
    """One artifact for the whole run, with all cases and their derivatives, since most of the time is that of g++."""

    def compile_all(path):
        backend = CPUBackend()
        program = exported(module(), backend)
        called = {node.target for node in program.graph.nodes}
        assert called >= OPERATORS
        path.write_bytes(compile_program(program, backend))

    return torch._inductor.aoti_load_package(str(made_once("operators.pt2", compile_all)))


def module() -> Module:
    return Module(CASES, GRAPHS[0], derivatives=DIFFERENTIATED)


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: f"{len(graph.counts)} centres")
def test_results(artifact, graph):
    cases, found = module(), []
    inputs = cases.inputs(graph)
    results = list(artifact(*inputs))
    for (_, case, precision), want in cases.expected(inputs):
        got = [results.pop(0) for _ in want]
        assert all(t.dtype == DTYPE[precision] for t in got), case.name
        found += wrong(case, got, want, case.tolerance["cpu"][precision], (at_most,))
    assert not results
    assert not found, "\n".join(found)
