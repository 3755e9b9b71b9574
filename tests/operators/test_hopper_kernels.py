"""The table in CUDA C++ for Hopper: references of its operators, kernels compiled by g++ on a CPU, and kernels in an artifact on a GPU."""

from __future__ import annotations

import re
from collections import Counter
from fnmatch import fnmatchcase
from functools import cache

import pytest
import torch

from nequip_md.kernels.hopper import operators
from nequip_md.kernels.hopper.backend import HopperBackend
from nequip_md.kernels.hopper.nvrtc import compile_cuda
from nequip_md.kernels.select import is_hopper
from operators.cases import Case, Graph, Group, arguments, by_rows, in_norm, wrong
from operators.lowered import Module, lowered
from operators.table import GROUPS
from support.hopper_on_cpu import OnThreads, compile_kernels

KERNELS = {
    "mlp_energy": operators.ENERGY,
    "mlp_hidden": operators.HIDDEN,
    "mlp_hidden_dense": operators.HIDDEN,
    "mlp_hidden_backward": operators.HIDDEN_BACKWARD,
    "mlp_hidden_dense_backward": operators.HIDDEN_BACKWARD,
    "edge_contract_gradient": operators.CONTRACT_GRADIENT,
    "edge_contract_moment": operators.CONTRACT_MOMENT,
    "channel_product": operators.CHANNEL_PRODUCT,
}
"""Operators with a kernel; the others run in Triton."""
CHANNELS, LANES, LAYERS = "channels are no multiple of 32", "a thread would keep too many numbers", "not two layers"
LEFT_TO_TRITON = (
    ("sums, 4 orders of 64", "edge_contract_gradient (4 layers)", LANES),
    ("sums, 2 orders of 160", "edge_contract_*", LANES),
    *((f"sums, {size}", "edge_contract_*", CHANNELS) for size in ("[1235] orders of [12357]", "* of 16", "* of 2[14]")),
    *((f"sums, {size}", "edge_contract_*", CHANNELS) for size in ("* of 8", "* of 35")),
    *((f"contractions, {size}", "edge_contract_*", CHANNELS) for size in ("* of 130", "* of 16", "* of 600")),
    ("mlp, 3 and 2", "*", "widths are no multiple of 8"),
    ("mlp, large", "*", "the input is wider than four blocks of 64"),
    ("mlp, *", "*(one layer*", LAYERS),
    *((f"mlp, {sizes}", "*", LAYERS) for sizes in ("292 to *", "48 to *", "32 to *")),
    ("mlp, 30 to *", "*", "widths are no multiple of 8"),
)
"""Cases of these operators without a kernel: patterns of group and case, with the reason."""
ALL_EDGES = "sums and products"
BATCHES: dict[str, list[Group]] = {}
"""Groups that are compiled together, by name; each group of MLPs is compiled alone."""
for group in GROUPS.values():
    if any(case.operator in KERNELS for case in group.cases) and "fp32" in group.precisions:
        BATCHES.setdefault(group.name if group.name.startswith("mlp") else ALL_EDGES, []).append(group)


def is_left(group: Group, case: Case) -> bool:
    return any(fnmatchcase(group.name, g) and fnmatchcase(case.name, c) for g, c, _ in LEFT_TO_TRITON)


@cache
def taken(batch: str) -> list[tuple[Group, Case]]:
    """Cases of a batch that run in these kernels."""
    pairs = [(group, case) for group in BATCHES[batch] for case in group.cases]
    return [(group, case) for group, case in pairs if case.operator in KERNELS and not is_left(group, case)]


ITEMS = [
    (batch, precision)
    for batch in BATCHES
    if taken(batch)
    for precision in (["fp32"] if batch == ALL_EDGES else BATCHES[batch][0].precisions)
]


def module(batch: str, precision: str, device="cpu") -> Module:
    return Module([(group, case, precision) for group, case in taken(batch)], example(batch), device)


def example(batch: str) -> Graph:
    return Graph((3, 0, 7, 40)) if batch == ALL_EDGES else Graph((50,), 0)


@cache
def lowered_once(batch: str, precision: str) -> tuple[HopperBackend, Module, torch.fx.GraphModule]:
    """The lowered graph of a batch for the tests on a CPU, made once."""
    backend, cases = HopperBackend(precision), module(batch, precision)
    with torch.no_grad():
        return backend, cases, lowered(cases, backend, 0)


def wrong_results(cases: Module, inputs, results, tolerance: str, factor: float = 1.0) -> list[str]:
    found, results = [], list(results)
    for (_, case, precision), want in cases.expected(inputs):
        got = [results.pop(0) for _ in want]
        found += wrong(case, got, want, factor * case.tolerance[tolerance][precision], (in_norm, by_rows))
    assert not results
    return found


def test_what_is_left_to_triton_is_said():
    for group in GROUPS.values():
        backend = HopperBackend("fp32")
        for case in group.cases:
            # products are replaced in the lowered graph, where their table is known; test_references counts them
            if "fp32" in group.precisions and case.operator in KERNELS and case.operator != "channel_product":
                first = backend.forms()[case.overload][0]
                accepted = first.accepts(*arguments(group, case, group.graph, "fp32"))
                assert accepted != is_left(group, case), f"{group.name}: {case.name}"


COMPILED = {
    (ALL_EDGES, "fp32"): 64,
    **{
        (f"mlp, {name}", precision): 400
        for name in ("medium", "first", "three of 64", "odd", "wide input")
        for precision in ("fp32", "tf32")
    },
}
"""Bytes that a thread may spill, for the groups that are compiled here; the others are compiled on a GPU."""


@pytest.mark.parametrize(("batch", "precision"), [item for item in ITEMS if item[1] == "fp32" or item in COMPILED])
def test_references(batch, precision):
    """The references of the Hopper operators, which read weights in the kernels' layout."""
    _, cases, graph = lowered_once(batch, precision)
    calls = Counter(node.target for node in graph.graph.nodes if "nequip_md" in str(node.target))
    assert calls == Counter(KERNELS[case.operator] for _, case in taken(batch))
    inputs = cases.inputs(example(batch))
    found = wrong_results(cases, inputs, graph(*inputs), "hopper references")
    assert not found, "\n".join(found)


EMULATED = {
    (ALL_EDGES, "fp32"),
    ("mlp, medium", "fp32"),
    ("mlp, odd", "fp32"),
    ("mlp, wide input", "fp32"),
    ("mlp, limits", "fp32"),
    ("mlp, medium", "tf32"),
    ("mlp, first", "tf32"),
}
"""Batches that run without a GPU: g++ takes half a minute for the kernels of one MLP, so the others run on a GPU only."""


@pytest.mark.parametrize(("batch", "precision"), sorted(EMULATED))
def test_kernels_on_threads(batch, precision, tmp_path):
    backend, cases, graph = lowered_once(batch, precision)
    library = compile_kernels(backend.instances, tmp_path)
    if batch == ALL_EDGES:
        runs = [(Graph((1, 0, 85, 2, 16)), {"warps": warps}) for warps in (4, 8)]
    else:
        # few rows: one warpgroup computes in each thread block; many rows: two do, and a thread block has two tiles
        rows = ((1, 1, 1), (65, 1, 2), (129, 2, 1))
        runs = [(Graph((count,), 0), {"active": active, "most": most}) for count, active, most in rows]
    for sizes, options in runs:
        inputs = cases.inputs(sizes)
        results = OnThreads(graph, backend.instances, library, **options).run(*inputs)
        # of few rows, one counts for more
        found = wrong_results(cases, inputs, results, "hopper", 1 if batch == ALL_EDGES else 2)
        assert not found, "\n".join(found)


@pytest.mark.parametrize(("batch", "precision"), COMPILED)
def test_kernels_compile(batch, precision):
    """ptxas does not report that it serializes products, and threads spill little."""
    instances, said = lowered_once(batch, precision)[0].instances, []
    assert compile_cuda(instances.source(), said.append).startswith(b"\x7fELF")
    assert "wgmma" not in said[0] and "setmaxnreg" not in said[0]
    spilled = [int(n) for n in re.findall(r"(\d+) bytes spill stores", said[0])]
    assert len(spilled) == len(instances.numbers) and max(spilled) <= COMPILED[batch, precision]


ROWS = (500, 1, 0, 63, 64, 65, 8448, 8449, 20000)
"""Numbers of rows: one warpgroup computes in each thread block up to 8,448 rows on 132 multiprocessors, two above."""
CENTRES = ((0,), (500,), (1, 0, 500, 2), (85,) * 100, tuple((7 * i) % 90 for i in range(1000)))
"""Numbers of edges for few centres and for many, from none to hundreds."""


@pytest.mark.gpu
@pytest.mark.skipif(not is_hopper(), reason="needs a Hopper GPU")
@pytest.mark.parametrize(("batch", "precision"), ITEMS)
def test_kernels_in_an_artifact(batch, precision, tmp_path):
    backend, cases = HopperBackend(precision), module(batch, precision, "cuda")
    with torch.no_grad():
        graph, inputs = lowered(cases, backend, 0), cases.inputs(cases.graph)
        program = torch.export.export(graph, inputs, dynamic_shapes=cases.dynamic_shapes(0))
    with backend.linked() as options:
        path = torch._inductor.aoti_compile_and_package(
            program, package_path=str(tmp_path / "kernels.pt2"), inductor_configs=options
        )
    compiled = torch._inductor.aoti_load_package(path)
    graphs = [Graph(counts) for counts in CENTRES] if batch == ALL_EDGES else [Graph((rows,), 0) for rows in ROWS]
    for sizes in graphs:
        inputs = cases.inputs(sizes)
        results = compiled(*inputs)
        # the energy of one row is one number, a sum whose terms may cancel
        found = wrong_results(cases, inputs, results, "hopper", 4 if sizes.counts == (1,) else 1)
        assert not found, "\n".join(found)
        again = compiled(*inputs)
        assert all(torch.equal(a, b) for a, b in zip(results, again)), "equal digits when repeated"
