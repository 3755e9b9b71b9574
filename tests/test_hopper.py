"""The CUDA C++ kernels of perceptrons: the weights' layout and the references anywhere, the kernels themselves in an artifact on a Hopper GPU."""

from __future__ import annotations

import copy
import re
import subprocess
from collections import Counter
from importlib.resources import as_file, files

import pytest
import torch
from torch import nn

from nequip_md.errors import NequIPMDError
from nequip_md.export.trace import example_inputs, fold_constants, trace
from nequip_md.kernels.static_library import build
from nequip_md.model import build_model, energy_and_gradient, fuse, preset, with_dtype
from nequip_md.ops import cuda, decompositions, hopper

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OPERATORS = torch.ops.nequip_md
PRODUCTS = {"fp32": 3, "tf32": 1}
TOLERANCE = {"fp32": 6e-6, "tf32": 1e-2}
WIDTHS = {  # of the input's parts, the two layers, what reads the second
    "medium": ([64, 64], 256, 256, 64),
    "first": ([32], 64, 64, 256),
    "three": ([64, 64, 64], 256, 256, 128),
    "odd": ([24, 8, 40], 72, 16, 136),
    "wide input": ([128, 64, 64], 128, 192, 8),
}
COUNTS = (500, 1, 0, 63, 64, 65, 8448, 8449, 20000)
"""Of rows: one warpgroup for each program up to 8,448 on 132 multiprocessors, two above."""


@pytest.fixture(autouse=True)
def same_numbers():
    torch.manual_seed(0)


def weights(widths, inner, outer, last):
    inputs = sum(widths)
    return {
        "w1": torch.randn(inputs, inner) / inputs**0.5,
        "w2": torch.randn(inner, outer) * (2 / inner) ** 0.5,
        "w3": torch.randn(outer, last) * (2 / outer) ** 0.5,
        "v": torch.randn(outer),
        "r": torch.randn(inputs),
    }


class Perceptrons(nn.Module):
    """Every operator that has such a kernel, on one set of rows."""

    dynamic = ({0: torch.export.Dim("count", min=0)},) * 6

    def __init__(self, shape):
        super().__init__()
        self.widths, self.inner, self.outer, self.last = shape
        # results: two energies with their gradients; h, d1, d2; h, y, d1, d2
        parts, first = len(self.widths), 2 * (1 + len(self.widths))
        self.derivatives = {*range(1, 1 + parts), *range(2 + parts, first), first + 1, first + 2, first + 5, first + 6}
        for name, value in weights(*shape).items():
            self.register_buffer(name, value)

    def forward(self, x, factor, g, dy, d1, d2):
        parts = [part.contiguous() for part in x.split(self.widths, dim=1)]
        energy = OPERATORS.mlp_energy(parts, [self.w1, self.w2], self.v, self.r, factor)
        plain_energy = OPERATORS.mlp_energy(parts, [self.w1, self.w2], self.v, self.r, None)
        hidden = OPERATORS.mlp_hidden(parts, [self.w1, self.w2])
        dense = OPERATORS.mlp_hidden_dense(parts, self.w1, self.w2, self.w3)
        back = OPERATORS.mlp_hidden_backward(g, [d1, d2], [self.w1, self.w2], self.widths)
        dense_back = OPERATORS.mlp_hidden_dense_backward(g, dy, d1, d2, self.w1, self.w2, self.w3, self.widths)
        return (*energy, *plain_energy, *hidden, *dense, *back, *dense_back)

    def inputs(self, count, precision="fp32", device="cpu"):
        stored = torch.float16 if precision == "tf32" else torch.float32
        # a hidden layer's gradient and input differ by orders of magnitude from edge to edge
        size = torch.exp(4 * torch.randn(count, 1))
        values = (
            torch.randn(count, sum(self.widths)) * size,
            torch.rand(count),
            torch.randn(count, self.outer) * size,
            torch.randn(count, self.last) * size,
            torch.rand(count, self.inner).to(stored),
            torch.rand(count, self.outer).to(stored),
        )
        return tuple(value.to(device) for value in values)


class Contractions(nn.Module):
    """Two contractions of the same weights and their gradients, and the product of two tensors of an atom, on one set of centres."""

    SIZES = {"medium": (64, 4), "small": (64, 3), "narrow": (32, 2)}  # channels, orders
    edges, centres = torch.export.Dim("edges", min=0), torch.export.Dim("centres", min=0)
    dynamic = (*[{0: edges}] * 4, *[{0: centres}] * 2, {0: edges}, {0: centres + 1})

    def __init__(self, channels, orders):
        super().__init__()
        self.channels, self.orders = channels, orders
        config = preset(
            "medium", type_names=["H"], avg_num_neighbors=20.0, l_max=orders - 1, num_tensor_features=channels
        )
        layer = build_model(config).layers[0]
        self.dim = layer.dim_in
        for name, value in (("table", layer.table), ("values", layer.values), ("paths", layer.path_weights)):
            self.register_buffer(name, value.detach().clone().float() if value.is_floating_point() else value.clone())

    def forward(self, g0, g1, w, y, z0, z1, centre, row_ptr):
        dw, dy, dz = OPERATORS.edge_contract_gradient([g0, g1], w, y, [z0, z1], centre, row_ptr)
        moment = OPERATORS.edge_contract_moment(g1, w, y, centre, row_ptr)
        return dw, dy, dz, moment, OPERATORS.channel_product(z0, z1, self.paths, self.table, self.values, self.dim)

    def inputs(self, counts, device="cpu"):
        """``counts``: edges of each centre."""
        edges, centres, components = sum(counts), len(counts), self.orders**2
        row_ptr = torch.tensor([0, *counts]).cumsum(0)
        vectors = [torch.randn(centres, components, self.channels) for _ in range(2)]
        values = (
            torch.randn(edges, self.channels),
            torch.randn(edges, self.channels),
            torch.randn(edges, self.orders, self.channels),
            torch.randn(edges, components),
            *vectors,
            torch.repeat_interleave(torch.arange(centres), torch.tensor(counts)),
            row_ptr,
        )
        return tuple(value.to(device) for value in values)


def lowered(module, inputs, precision, kernels, dynamic=None):
    """An exported program with the kernels' operators, weights divided once and for all: Inductor would not round between two casts."""
    table = {**decompositions(keep=hopper.OPERATORS), **cuda.replacements(precision, None, kernels)}
    graph = torch.export.export(module, inputs, dynamic_shapes=dynamic).run_decompositions(table).module()
    fold_constants(graph)
    kernels.specialize(graph)
    return torch.export.export(graph, inputs, dynamic_shapes=dynamic)


def called(program):
    return {node.target for node in program.graph.nodes if "nequip_md" in str(node.target)}


def exact(module, inputs):
    return copy.deepcopy(module).double()(*(value.double() if value.is_floating_point() else value for value in inputs))


def assert_near(got, expected, tolerance, derivatives=()):
    """``derivatives``: silu' or made of it alone, of the size of 1 also where its argument, and so that one's error, is a hundred times larger."""
    for k, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert a.shape == b.shape, k
        if b.numel():
            # row by row: a scale for all rows would lose the small ones
            difference = a.double() - b
            assert float(difference.norm()) <= tolerance * (10 if k in derivatives else 1) * float(b.norm()), k
            if b.dim() == 2:  # in the sum over all, small rows do not count
                assert float((difference.norm(dim=1) / b.norm(dim=1).clamp(1e-300)).median()) < tolerance, k


@pytest.mark.parametrize("exchanged", [False, True])
def test_a_block_lies_as_the_tensor_cores_read_it(exchanged):
    """A 128-byte swizzle exchanges the 16-byte pieces of row n, k // 8, by n mod 8 (PTX manual, asynchronous warpgroup instructions)."""
    w = torch.arange(64 * 128, dtype=torch.float32).reshape(1, 64, 128)
    blocks = hopper._to_blocks(w, exchanged)
    assert blocks.shape == (1, 2, 1, 64, 64)

    def place(column):
        """Thread q holds columns 2 q, 2 q + 1, 2 q + 8 and 2 q + 9 of 16 (PTX manual, wgmma, matrix D): four that are adjacent in w."""
        q, four = column % 16 // 4, column % 4
        return column // 16 * 16 + (2 * q, 2 * q + 1, 2 * q + 8, 2 * q + 9)[four]

    for k, column in ((0, 0), (1, 0), (9, 3), (63, 64), (17, 127), (40, 70)):
        n, at = place(column), place(k) if exchanged else k
        assert blocks[0, n // 64, 0, n % 64, ((at // 8) ^ (n % 8)) * 8 + at % 8] == w[0, k, column]
    assert torch.equal(hopper._from_blocks(blocks, exchanged), w[0])


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
@pytest.mark.parametrize("name", WIDTHS)
def test_references_read_the_blocks(name, precision):
    module = Perceptrons(WIDTHS[name])
    kernels = hopper.Kernels(PRODUCTS[precision])
    inputs = module.inputs(50, precision)
    with torch.no_grad():
        expected = exact(module, inputs)
        program = lowered(module, inputs, precision, kernels)
        got = program.module()(*inputs)
    assert called(program) == {hopper._ENERGY, hopper._HIDDEN, hopper._HIDDEN_BACKWARD}
    assert len(kernels.instances) == 6
    assert_near(got, expected, TOLERANCE[precision])


@pytest.mark.parametrize("name", Contractions.SIZES)
def test_references_over_edges(name):
    module, kernels = Contractions(*Contractions.SIZES[name]), hopper.Kernels(3)
    inputs = module.inputs([3, 0, 7, 40])
    program = lowered(module, inputs, "fp32", kernels)
    assert called(program) == {hopper._CONTRACT_GRADIENT, hopper._CONTRACT_MOMENT, hopper._CHANNEL_PRODUCT}
    assert_near(program.module()(*inputs), exact(module, inputs), 1e-6)


def test_terms_as_statements():
    """C++ reads them like Python: evaluated here with the same names."""
    module = Contractions(32, 3)
    output, order = module.table[3].sort(stable=True)
    offsets = (output < torch.arange(module.dim + 1).unsqueeze(1)).sum(dim=1)
    text = hopper._statements(module.table[:3, order], module.values[order], offsets, 32)
    a, b, out = *torch.randn(2, 9, dtype=torch.float64), {}
    # a literal of C++ ends in f
    exec(
        re.sub(r"(?<=\d)f\b", "", text).replace(";", "\n").replace(" out", "out"),
        {"out": out, "a": a, "b": b, "p": module.paths[:, 5].double()},
    )
    want = torch.ops.nequip_md.channel_product(
        a.view(1, 9, 1),
        b.view(1, 9, 1),
        module.paths[:, 5:6].double(),
        module.table,
        module.values.double(),
        module.dim,
    )
    assert list(out) == [32 * d for d in range(module.dim)]
    assert torch.allclose(torch.stack(list(out.values())), want.flatten())


def test_whole_model():
    """The graph that an export for a Hopper GPU compiles, node by node, against the model in float64."""
    config = preset("small", type_names=["H", "O"], avg_num_neighbors=20.0)
    exact = with_dtype(build_model(config).eval(), "float64").to(DEVICE)
    model = with_dtype(exact, "float32").to(DEVICE)
    fuse(model)
    kernels = hopper.Kernels(3)
    table = {**decompositions(keep=hopper.OPERATORS), **cuda.replacements("fp32", None, kernels)}
    program = trace(
        model,
        config.cutoff,
        2,
        device=DEVICE,
        decompositions=table,
        message_passing=False,
        specialize=kernels.specialize,
    )
    calls = Counter(node.target for node in program.graph.nodes if "nequip_md.hopper" in str(node.target))
    assert calls == {
        hopper._ENERGY: 1,
        hopper._HIDDEN: 2,
        hopper._HIDDEN_BACKWARD: 2,
        hopper._CONTRACT_GRADIENT: 1,
        hopper._CONTRACT_MOMENT: 1,
        hopper._CHANNEL_PRODUCT: 3,
    }
    assert not [
        node for node in program.graph.nodes if re.search("mlp_|gather|channel_product_triton", str(node.target))
    ]
    inputs = example_inputs(5, 3, 9, 2, config.cutoff, seed=5, device=DEVICE)
    for got, want in zip(program.module()(*inputs), energy_and_gradient(exact, *inputs)):
        assert (got - want).norm() <= 4e-6 * want.norm()


def test_other_widths_are_left_to_triton():
    kernels = hopper.Kernels(3)
    assert kernels.take([64, 64], 256, 256, 64)
    assert not kernels.take([64, 60], 256, 256)
    assert not kernels.take([64, 64, 64, 64, 8], 256, 256)
    assert not kernels.take([64], 256, 320)
    assert not kernels.take([64], 256, 256, 512)


def test_other_contractions_are_left_to_triton():
    kernels = hopper.Kernels(3)

    def take(orders, channels, layers, dtype=torch.float32):
        return kernels.take_contraction(torch.empty(0, orders, channels, dtype=dtype), layers)

    assert take(4, 64, 2) and take(4, 64, 1) and take(2, 32, 4)
    assert not take(4, 64, 2, torch.float64)
    assert not take(4, 64, 3) and not take(5, 32, 1) and not take(4, 128, 1) and not take(3, 48, 2)


def test_launches_are_declared_as_they_are_defined(tmp_path):
    """AOTInductor calls them by declarations that are made from the schemas; C++ refuses a definition that differs."""
    declarations = "".join(f'extern "C" {hopper._declaration(operator)};\n' for operator in hopper.OPERATORS)
    (tmp_path / "declared.h").write_text(
        "#define USE_CUDA\n#include <torch/csrc/inductor/aoti_torch/c/shim.h>\n" + declarations
    )
    (tmp_path / "kernels.cubin").write_bytes(b"none")
    (tmp_path / "instances.inc").write_text('{"hopper_energy_0", 1024},\n')
    with as_file(files("nequip_md.ops") / "csrc") as sources:
        build(
            tmp_path,
            "launches",
            sources / "hopper_launch.cpp",
            [
                "-include",
                str(tmp_path / "declared.h"),
                f'-DKERNELS="{tmp_path / "kernels.cubin"}"',
                f'-DINSTANCES="{tmp_path / "instances.inc"}"',
            ],
        )
    symbols = subprocess.run(["nm", tmp_path / "liblaunches.a"], capture_output=True, text=True, check=True).stdout
    for operator in hopper.OPERATORS:
        assert f" T aoti_torch_cuda_{operator._schema.name.split('::')[1]}\n" in symbols


def test_kernels_over_edges_compile():
    kernels = hopper.Kernels(3)
    for sizes in Contractions.SIZES.values():
        module = Contractions(*sizes)
        lowered(module, module.inputs([3, 0, 7, 40]), "fp32", kernels)
    said = []
    hopper.compile_cuda(kernels.source(), said.append)
    spilled = [int(n) for n in re.findall(r"(\d+) bytes spill stores", said[0])]
    assert len(spilled) == 3 * len(Contractions.SIZES) and max(spilled) <= 64


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
@pytest.mark.parametrize("name", WIDTHS)
def test_products_are_kept_in_flight(name, precision):
    """ptxas says when it waits for every single product instead; and nothing much is spilled."""
    kernels, module = hopper.Kernels(PRODUCTS[precision]), Perceptrons(WIDTHS[name])
    lowered(module, module.inputs(50, precision), precision, kernels)
    said = []
    assert hopper.compile_cuda(kernels.source(), said.append).startswith(b"\x7fELF")
    assert "wgmma" not in said[0] and "setmaxnreg" not in said[0]
    spilled = [int(n) for n in re.findall(r"(\d+) bytes spill stores", said[0])]
    assert len(spilled) == 6 and max(spilled) <= 400


def test_what_the_compiler_refuses_is_said():
    with pytest.raises(NequIPMDError, match="(?s)compiling the CUDA kernels failed.*perceptron.cu.*no_such_type"):
        hopper.compile_cuda("no_such_type x;")


@pytest.mark.gpu
@pytest.mark.skipif(not hopper.available(), reason="needs a Hopper GPU")
@pytest.mark.parametrize("precision", ["fp32", "tf32"])
@pytest.mark.parametrize("name", WIDTHS)
def test_kernels_in_an_artifact(tmp_path, name, precision):
    module = Perceptrons(WIDTHS[name]).cuda()
    kernels = hopper.Kernels(PRODUCTS[precision])
    with torch.no_grad():
        program = lowered(module, module.inputs(50, precision, "cuda"), precision, kernels, module.dynamic)
        with kernels.linked() as options:
            path = torch._inductor.aoti_compile_and_package(
                program, package_path=str(tmp_path / "perceptrons.pt2"), inductor_configs=options
            )
        compiled = torch._inductor.aoti_load_package(path)
        for rows in COUNTS:
            inputs = module.inputs(rows, precision, "cuda")
            got = compiled(*inputs)
            assert_near(got, exact(module, inputs), TOLERANCE[precision], module.derivatives)
            again = compiled(*inputs)
            assert all(torch.equal(a, b) for a, b in zip(got, again)), "equal digits when repeated"


@pytest.mark.gpu
@pytest.mark.skipif(not hopper.available(), reason="needs a Hopper GPU")
@pytest.mark.parametrize("name", Contractions.SIZES)
def test_kernels_over_edges_in_an_artifact(tmp_path, name):
    module, kernels = Contractions(*Contractions.SIZES[name]).cuda(), hopper.Kernels(3)
    with torch.no_grad():
        program = lowered(module, module.inputs([3, 0, 7, 40], "cuda"), "fp32", kernels, module.dynamic)
        with kernels.linked() as options:
            path = torch._inductor.aoti_compile_and_package(
                program, package_path=str(tmp_path / "edges.pt2"), inductor_configs=options
            )
        compiled = torch._inductor.aoti_load_package(path)
        # few centres and many; none, without edges, with hundreds
        for counts in ([0], [500], [1, 0, 500, 2], [85] * 100, [(7 * i) % 90 for i in range(1000)]):
            inputs = module.inputs(counts, "cuda")
            got = compiled(*inputs)
            assert_near(got, exact(module, inputs), 2e-6)
            assert all(torch.equal(a, b) for a, b in zip(got, compiled(*inputs))), "equal digits when repeated"
