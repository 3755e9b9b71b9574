"""NequIP's convolution: against the sum that defines it, its derivatives, and its C++ kernels in an artifact."""

from __future__ import annotations

import pytest
import torch
from e3nn.o3 import wigner_3j

from nequip_md.kernels.cpu.backend import CPUBackend
from nequip_md.model.nequip_irreps import split, width
from nequip_md.ops import tensor_product_convolution
from support.convolution import CASES, COUNTS, NODES, inputs, layer


def form(irreps, x, y, w, g, centre, neighbour):
    """F(x, y, w, g) by one sum over everything for each path, in terms of blocks."""
    total, first_weight = 0.0, 0
    blocks = {(block.l, block.p): part for block, part in zip(irreps.messages, split(g, irreps.messages))}
    used = dict.fromkeys(blocks, 0)
    for path in irreps.paths:
        key = (path.l_out, path.p_out)
        cg = wigner_3j(path.l_in, path.l_edge, path.l_out, dtype=x.dtype) * (2 * path.l_out + 1) ** 0.5
        total = total + torch.einsum(
            "abc,eau,eb,eu,ecu->",
            cg,
            split(x, irreps.inputs)[path.source][neighbour],
            y[:, path.l_edge**2 : (path.l_edge + 1) ** 2],
            w[:, first_weight : first_weight + path.mul],
            blocks[key][centre][..., used[key] : used[key] + path.mul],
        )
        first_weight += path.mul
        used[key] += path.mul
    return total


@pytest.mark.parametrize("case", CASES)
def test_operators_are_the_gradients_of_one_form(case):
    irreps, paths, cg = layer(*CASES[case])
    x, y, w, g, centre, neighbour, row_ptr = inputs(irreps, grad=True)
    dx, dy, dw, dg = torch.autograd.grad(form(irreps, x, y, w, g, centre, neighbour), (x, y, w, g))
    messages = tensor_product_convolution(x, y, w, centre, neighbour, row_ptr, cg, paths, width(irreps.messages))
    torch.testing.assert_close(messages, dg)
    for actual, expected in zip(torch.autograd.grad((messages * g).sum(), (x, y, w)), (dx, dy, dw), strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("case", ["vectors", "no_parity"])
def test_second_and_third_derivatives(case):
    irreps, paths, cg = layer(*CASES[case])
    counts, nodes = [2, 0, 1], 4
    x, y, w, g, *graph = inputs(irreps, counts, nodes, grad=True)
    assert torch.autograd.gradgradcheck(
        lambda x, y, w: tensor_product_convolution(x, y, w, *graph, cg, paths, width(irreps.messages)),
        (x, y, w),
        (g,),
        fast_mode=case != "vectors",
    )
    edges = torch.ops.nequip_md.tensor_product_convolution_edges
    assert torch.autograd.gradgradcheck(
        lambda x, y, w, g: edges(x, y, w, g, *graph, cg, paths), (x, y, w, g), fast_mode=True
    )


def test_schema_and_fake_agree_with_the_reference():
    irreps, paths, cg = layer(*CASES["vectors"])
    x, y, w, g, *graph = inputs(irreps, grad=True)
    operators = torch.ops.nequip_md
    for operator, arguments in (
        (operators.tensor_product_convolution.default, (x, y, w, *graph, cg, paths, width(irreps.messages))),
        (operators.tensor_product_convolution_nodes.default, (y, w, g, *graph, cg, paths, *x.shape)),
        (operators.tensor_product_convolution_edges.default, (x, y, w, g, *graph, cg, paths)),
    ):
        torch.library.opcheck(operator, arguments)


class Kernels(torch.nn.Module):
    """The three operators of one layer, in both precisions; channels are whole vectors, tails, and both."""

    def __init__(self):
        super().__init__()
        self.irreps, self.paths, cg = layer(3, [35, 16, 5, 8])
        self.register_buffer("cg", cg)

    def forward(self, x, y, w, g, centre, neighbour, row_ptr):
        out = []
        operators = torch.ops.nequip_md
        graph = (centre, neighbour, row_ptr)
        for dtype in (torch.float64, torch.float32):
            x, y, w, g, cg = (t.to(dtype) for t in (x, y, w, g, self.cg))
            out += [
                operators.tensor_product_convolution(x, y, w, *graph, cg, self.paths, g.shape[1]),
                operators.tensor_product_convolution_nodes(y, w, g, *graph, cg, self.paths, *x.shape),
                *operators.tensor_product_convolution_edges(x, y, w, g, *graph, cg, self.paths),
            ]
        return tuple(out)


def test_cpp_kernels_in_an_artifact(tmp_path):
    module = Kernels()
    edges, owned, nodes = (torch.export.Dim(name, min=2) for name in ("edges", "owned", "nodes"))
    shapes = ({0: nodes}, {0: edges}, {0: edges}, {0: owned}, {0: edges}, {0: edges}, {0: owned + 1})
    program = torch.export.export(module, inputs(module.irreps), dynamic_shapes=shapes)
    with CPUBackend().linked() as options:
        path = torch._inductor.aoti_compile_and_package(
            program, package_path=str(tmp_path / "ops.pt2"), inductor_configs=options
        )
    compiled = torch._inductor.aoti_load_package(path)
    for counts, nodes in ((COUNTS, NODES), ([2, 1], 2), ([0, 0, 90, 7], 5), ([1] * 33, 40)):
        arguments = inputs(module.irreps, counts, nodes)
        for got, expected in zip(compiled(*arguments), module(*arguments), strict=True):
            tolerance = 1e-13 if got.dtype == torch.float64 else 3e-6
            assert (got - expected).abs().max() <= tolerance * max(1.0, expected.abs().max()), (counts, got.dtype)
