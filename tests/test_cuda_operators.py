"""The Triton kernels against the plain references: on the GPU where there is one, in Triton's interpreter (conftest.py) otherwise."""

from __future__ import annotations

import copy

import pytest
import torch

from nequip_md import ops
from nequip_md.kernels.triton import launcher
from nequip_md.kernels.triton.backend import TritonBackend
from nequip_md.lowering.trace import example_inputs, trace
from nequip_md.model import build_model, energy_and_gradient, fuse, preset, with_dtype
from support.convolution import CASES, inputs, layer

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FORMS = {precision: TritonBackend(precision).decompositions() for precision in ("fp64", "fp32", "tf32")}
TOLERANCE = {"fp64": 1e-14, "fp32": 4e-6, "tf32": 4e-3}
DTYPE = {"fp64": torch.float64, "fp32": torch.float32, "tf32": torch.float32}
OPERATORS = torch.ops.nequip_md


@pytest.fixture(autouse=True)
def same_numbers():
    torch.manual_seed(0)


def edges(counts=(5, 0, 37, 1, 130, 0)):
    """centre and row_ptr of centres with these numbers of edges."""
    counts = torch.tensor(counts)
    row_ptr = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    return torch.repeat_interleave(torch.arange(len(counts)), counts).to(DEVICE), row_ptr.to(DEVICE)


def upcast(value):
    if isinstance(value, (list, tuple)):
        return [upcast(v) for v in value] if value and torch.is_tensor(value[0]) else value
    return value.double() if torch.is_tensor(value) and value.is_floating_point() else value


def check(name, precision, *arguments, results=None, layers=2):
    """The Triton form in its precision against the reference in float64, relative to the norm; the first ``results`` of it.

    The tolerance is for ``layers`` of a perceptron.
    """
    operator = getattr(OPERATORS, name).default
    expected, result = operator(*upcast(arguments)), FORMS[precision][operator](*arguments)
    single = torch.is_tensor(expected)
    for got, want in list(zip([result] if single else result, [expected] if single else expected))[:results]:
        assert got.shape == want.shape
        error = (got.double() - want).norm() / want.norm().clamp(min=1e-30)
        assert error <= TOLERANCE[precision] * max(1, layers / 2), f"{name}: {error:.1e}"


def random(precision, *shape):
    return torch.randn(*shape, dtype=DTYPE[precision], device=DEVICE)


@pytest.mark.parametrize("multiprocessors", [132, 1], ids=["shared out", "one program"])
@pytest.mark.parametrize("precision", FORMS)
@pytest.mark.parametrize(("channels", "orders"), [(64, 4), (24, 3), (1, 1), (160, 2), (7, 5)])
def test_segments(precision, channels, orders, multiprocessors, monkeypatch):
    """``multiprocessors``: of a GPU on which several programs share the edges of one of the six centres, or one has them all."""
    monkeypatch.setattr(launcher, "MULTIPROCESSORS", multiprocessors)
    centre, row_ptr = edges()
    count, nodes = len(centre), len(row_ptr) - 1
    z = random(precision, nodes, orders**2, channels)
    y = random(precision, count, orders**2)
    g = random(precision, count, channels)
    for slots in {1, orders}:
        a = random(precision, count, slots, channels)
        check("edge_moment", precision, a, y, centre, row_ptr)
        check("edge_dot", precision, a, z, centre, row_ptr)
        check("edge_spread", precision, y, z, centre, row_ptr, slots)
    starts = [random(precision, count, 1, channels) for _ in range(4)]
    for number in (1, 2, 4):
        check("edge_spread_add", precision, y, z, centre, row_ptr, starts[:number])
    w = random(precision, count, orders, channels)
    check("edge_contract", precision, w, y, z, centre, row_ptr)
    check("edge_contract_backward", precision, g, w, y, z, centre, row_ptr)
    check("edge_contract_moment", precision, g, w, y, centre, row_ptr)
    for layers in (1, 2, 4):
        cotangents, vectors = ([random(precision, *x.shape) for _ in range(layers)] for x in (g, z))
        check("edge_contract_gradient", precision, cotangents, w, y, vectors, centre, row_ptr)
    check("segment_sum", precision, g, centre, row_ptr)


@pytest.mark.parametrize("precision", ["fp64", "fp32"])
@pytest.mark.parametrize(("channels", "orders", "counts"), [(130, 5, (2, 0, 7)), (16, 2, (500, 0, 1)), (600, 1, (3,))])
def test_gradient_of_contractions(precision, channels, orders, counts):
    """Sums that do not fit into shared memory together; many edges of one centre; one edge at a time."""
    centre, row_ptr = edges(counts)
    count = len(centre)
    shapes = (count, channels), (len(counts), orders**2, channels), (count, orders, channels), (count, orders**2)
    g, z, w, y = (random(precision, *shape) for shape in shapes)
    check("edge_contract_moment", precision, g, w, y, centre, row_ptr)
    check("edge_contract_gradient", precision, [g, g.sin()], w, y, [z, z.cos()], centre, row_ptr)


@pytest.mark.parametrize("precision", FORMS)
def test_channel_product(precision):
    generator = torch.Generator().manual_seed(1)
    table = torch.stack([torch.randint(0, n, (60,), generator=generator) for n in (4, 9, 5, 7)]).to(DEVICE)
    x, y, w, values = (random(precision, *s) for s in ((11, 9, 20), (11, 5, 20), (4, 20), (60,)))
    check("channel_product", precision, x, y, w, table, values, 7)


@pytest.mark.parametrize("precision", ["fp64", "fp32"])
@pytest.mark.parametrize("case", [*CASES.values(), (1, [150, 33]), (2, [40, 16, 70], 1, False)], ids=str)
def test_convolution(precision, case):
    """Channels of several programs and of a part of one; centres without edges; neighbours that are no centres."""
    irreps, paths, cg = layer(*case)
    x, y, w, g, *graph, cg = (t.to(DEVICE) for t in (*inputs(irreps), cg))
    x, y, w, g, cg = (t.to(DTYPE[precision]) for t in (x, y, w, g, cg))
    check("tensor_product_convolution", precision, x, y, w, *graph, cg, paths, g.shape[1])
    check("tensor_product_convolution_nodes", precision, y, w, g, *graph, cg, paths, *x.shape)
    check("tensor_product_convolution_edges", precision, x, y, w, g, *graph, cg, paths)
    strided = torch.stack([g, w.new_zeros(g.shape)], dim=2)[..., 0]
    check("tensor_product_convolution_edges", precision, x, y, w, strided, *graph, cg, paths)


@pytest.mark.parametrize("multiprocessors", [132, 2, 1], ids=["few edges", "some", "many"])
@pytest.mark.parametrize("precision", ["fp32", "tf32"])
@pytest.mark.parametrize(
    ("widths", "inner", "outer"),
    [
        ([64, 64], 256, 256),
        ([16, 24], 40, 32),
        ([32], 64, 64),
        ([64, 64, 64], 128, 64),
        ([48, 16, 16, 16], 64, 96),
        ([64, 128, 128, 128], 512, 512),
    ],
)
def test_perceptrons(precision, widths, inner, outer, multiprocessors, monkeypatch):
    """``multiprocessors``: of a GPU on which so many rows take the tile for 16 rows, for 64, or the one for many."""
    monkeypatch.setattr(launcher, "MULTIPROCESSORS", multiprocessors)
    rows = 70
    # rows of very different sizes: each has its own scale
    parts = [random(precision, rows, k) * torch.exp(4 * random(precision, rows, 1)) for k in widths]
    parts[0][3] = 0.0
    w1 = random(precision, sum(widths), inner) / sum(widths) ** 0.5
    w2 = random(precision, inner, outer) / inner**0.5
    v, r = random(precision, outer), random(precision, sum(widths))
    check("mlp_hidden", precision, parts, [w1, w2], results=1)
    check("mlp_energy", precision, parts, [w1, w2], v, r, None, results=1)
    # silu' of a small difference of large numbers is as inaccurate as that difference
    even = [random(precision, rows, k) for k in widths]
    check("mlp_hidden", precision, even, [w1, w2])
    check("mlp_energy", precision, even, [w1, w2], v, r, random(precision, rows))
    g, d1, d2 = (random(precision, rows, n) for n in (outer, inner, outer))
    d1, d2 = d1.clamp(-0.1, 1.1), d2.clamp(-0.1, 1.1)
    check("mlp_hidden_backward", precision, g, [d1, d2], [w1, w2], widths)
    for last in (48, 160) if outer <= 256 else (48,):
        w3 = random(precision, outer, last) / outer**0.5
        check("mlp_hidden_dense", precision, parts, w1, w2, w3, results=2)
        check("mlp_hidden_dense_backward", precision, g, 10 * random(precision, rows, last), d1, d2, w1, w2, w3, widths)
    check("dense", precision, torch.cat(parts, dim=-1), w1, False)
    check("dense", precision, d1, w1, True)
    check("mlp_hidden", precision, even, [w1])
    check("mlp_hidden_backward", precision, random(precision, rows, inner), [d1], [w1], widths)
    w = random(precision, 4, widths[0], inner)
    check("mix_orders", precision, random(precision, 9, 16, widths[0]), w, False)
    check("mix_orders", precision, random(precision, 9, 16, inner), w, True)


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
@pytest.mark.parametrize(
    ("widths", "layers"),
    [
        ([64, 128, 100], [512, 512, 512]),
        ([30], [300, 520]),
        ([32, 16], [64, 96, 48]),
        ([32], [64, 64, 512, 320]),
        ([128, 128], [512, 256]),
    ],
)
def test_deeper_and_wider_perceptrons(precision, widths, layers):
    """Layer by layer where two do not fit into one kernel; both forms in one perceptron."""
    rows = 140
    parts = [random(precision, rows, k) * torch.exp(4 * random(precision, rows, 1)) for k in widths]
    parts[0][3] = 0.0
    weights = [random(precision, m, n) / m**0.5 for m, n in zip([sum(widths), *layers], layers)]
    check("mlp_hidden", precision, parts, weights, results=1, layers=len(layers))
    even = [random(precision, rows, k) for k in widths]
    check("mlp_hidden", precision, even, weights, layers=len(layers))
    v, r = random(precision, layers[-1]), random(precision, sum(widths))
    if len(layers) > 1:
        check("mlp_energy", precision, even, weights, v, r, random(precision, rows), layers=len(layers))
    derivatives = [random(precision, rows, n).clamp(-0.1, 1.1) for n in layers]
    check(
        "mlp_hidden_backward",
        precision,
        random(precision, rows, layers[-1]),
        derivatives,
        weights,
        widths,
        layers=len(layers),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("width", "bessels", "l_max", "types", "p", "trained"),
    [
        (32, 8, 3, 2, 6.0, False),
        (64, 8, 2, 1, 6.0, True),
        (20, 5, 1, 3, 5.5, True),
        (6, 1, 0, 2, 1.0, False),
        (130, 12, 3, 4, 2.0, True),
    ],
)
def test_edge_embedding(dtype, width, bessels, l_max, types, p, trained):
    """157 edges, which fill no number of programs; about half of them beyond the cutoff of their ordered pair of types."""
    count, nodes = 157, 23
    vectors = 1.8 * random("fp64", count, 3)
    vectors[0] = torch.tensor([0.0, 0.0, 5000.0])
    edge_index = torch.randint(0, nodes, (2, count), device=DEVICE)
    node_types = torch.randint(0, types, (nodes,), device=DEVICE)
    cutoffs = 2 + 2 * torch.rand(types, types, dtype=torch.float64, device=DEVICE)
    roots = torch.arange(1, bessels + 1, dtype=torch.float64, device=DEVICE)
    roots += 0.2 * trained * random("fp64", bessels)
    shapes = ((types, width // 2), (types, width // 2), (bessels, width))
    tables = [torch.randn(*shape, dtype=dtype, device=DEVICE) for shape in shapes]
    arguments = (vectors, edge_index, node_types, cutoffs, roots, *tables, p, l_max)
    cotangents = [torch.randn(count, n, dtype=dtype, device=DEVICE) for n in (width, (l_max + 1) ** 2)]
    outside = vectors.norm(dim=1) >= cutoffs[node_types[edge_index[0]], node_types[edge_index[1]]]
    assert 10 < outside.sum() < count - 10

    forms, tolerance = FORMS["fp32"], 3e-7 if dtype == torch.float32 else 1e-12
    values = forms[OPERATORS.edge_embedding.default](*arguments)
    # in parts, as from several readers of the harmonics
    parts = [cotangents[1] - 3.0, torch.full_like(cotangents[1], 2.0), torch.ones_like(cotangents[1])]
    gradient = forms[OPERATORS.edge_embedding_backward.default](cotangents[0], parts, *arguments)
    exact = upcast(list(arguments[:-2])), arguments[-2:]
    expected = OPERATORS.edge_embedding(*exact[0], *exact[1])
    expected_gradient = OPERATORS.edge_embedding_backward(
        cotangents[0].double(), [cotangents[1].double()], *exact[0], *exact[1]
    )
    for got, want in zip([*values, gradient], [*expected, expected_gradient]):
        assert got.shape == want.shape
        assert (got - want).norm() <= tolerance * want.norm()
    assert [v.dtype for v in (*values, gradient)] == [dtype, dtype, torch.float64]
    assert not values[0][outside].any()
    no_harmonics = [cotangents[0], [torch.zeros_like(cotangents[1])]]
    assert not forms[OPERATORS.edge_embedding_backward.default](*no_harmonics, *arguments)[outside].any()


def test_edge_embedding_near_the_cutoff_keeps_its_digits():
    """u_p(x) ends with the third power of 1 - x: rounding of x to fp32 would be seen."""
    x = 1 - torch.logspace(-6, -1, 40, dtype=torch.float64, device=DEVICE)
    vectors = x.unsqueeze(1) * torch.tensor([[0.0, 1.2, 1.6]], dtype=torch.float64, device=DEVICE)
    index, types = (
        torch.zeros(2, len(x), dtype=torch.int64, device=DEVICE),
        torch.zeros(1, dtype=torch.int64, device=DEVICE),
    )
    cutoffs, roots = 2 * x.new_ones(1, 1), torch.arange(1, 9, dtype=torch.float64, device=DEVICE)
    tables = [random("fp32", *shape) for shape in ((1, 16), (1, 16), (8, 32))]
    arguments = (vectors, index, types, cutoffs, roots, *tables, 6.0, 1)
    got, want = (
        FORMS["fp32"][OPERATORS.edge_embedding.default](*arguments)[0],
        OPERATORS.edge_embedding(*upcast(arguments))[0],
    )
    noise_of_float64 = 1e-12 * (1 - x)
    assert ((got - want).norm(dim=1) <= 3e-7 * want.norm(dim=1) + noise_of_float64).all()


@pytest.mark.parametrize("size", [1e-12, 1e-6, 1e6, 1e17])
def test_scales_follow_the_rows(size):
    """fp16 ends at 65,504; rows of any size keep the accuracy of fp32."""
    parts = [size * random("fp32", 40, 32), size * random("fp32", 40, 32)]
    x = torch.cat(parts, dim=-1)
    check("dense", "fp32", x, random("fp32", 64, 48), False)
    # for silu ~ identity the whole network scales; for large arguments it is the identity or zero
    check("mlp_hidden", "fp32", parts, [random("fp32", 64, 64), random("fp32", 64, 64)], results=1)


@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e-19, 1e-17])
def test_rows_near_zero_stay_near_zero(size):
    """At the cutoff the inputs vanish with high powers of the distance to it."""
    parts, w1, w2 = [size * random("fp32", 40, 64)], random("fp32", 64, 64) / 8, random("fp32", 64, 64) / 8
    result = FORMS["fp32"][OPERATORS.mlp_hidden.default](parts, [w1, w2])[0]
    assert (result - OPERATORS.mlp_hidden(parts, [w1, w2])[0]).abs().max() <= 1e-3 * size + 1e-25


def test_limits_of_silu():
    """Where exp overflows, silu and its derivative are 0 or x and 1; nothing is NaN on finite input."""
    parts = [
        torch.diag(torch.tensor([-1e15, -200.0, -90.0, -1.0, 0.0, 1.0, 90.0, 1e15], dtype=torch.float32, device=DEVICE))
    ]
    unit = torch.eye(8, dtype=torch.float32, device=DEVICE)
    check("mlp_hidden", "fp32", parts, [unit, unit])
    for value in FORMS["fp32"][OPERATORS.mlp_hidden.default](parts, [unit, unit]):
        assert torch.isfinite(value).all()


def test_not_a_number_is_not_hidden():
    parts = [random("fp32", 40, 32)]
    parts[0][7, 3] = float("inf")
    out = FORMS["fp32"][OPERATORS.mlp_hidden.default](parts, [random("fp32", 32, 64), random("fp32", 64, 64)])[0]
    finite = torch.isfinite(out).all(dim=1)
    assert not finite[7]
    assert finite.sum() == 39


@pytest.mark.parametrize(
    ("name", "precision"), [("small", "fp32"), ("small", "fp64"), ("medium", "tf32"), ("large", "fp32")]
)
def test_whole_model(name, precision):
    """The graph that an export for CUDA compiles, node by node, against the model in float64."""
    by_type = (
        {} if name == "small" else {"energy_scales": {"H": 0.7, "O": 1.4}, "energy_shifts": {"H": -1.0, "O": -3.0}}
    )
    neighbours = 20.0 if name == "small" else {"H": 19.0, "O": 22.0}
    config = preset(
        name,
        type_names=["H", "O"],
        avg_num_neighbors=neighbours,
        pair_potential={"chemical_species": ["H", "O"]},
        **by_type,
    )
    torch.manual_seed(3)
    exact = with_dtype(build_model(config).eval(), "float64").to(DEVICE)
    model = copy.deepcopy(exact) if precision == "fp64" else with_dtype(exact, "float32").to(DEVICE)
    assert fuse(model) == (["the model is float64, not float32"] if precision == "fp64" else [])
    program = trace(
        model,
        config.cutoff,
        2,
        device=DEVICE,
        backend=TritonBackend(precision),
        message_passing=False,
    )
    targets = {str(node.target) for node in program.graph.nodes}
    for operator in ("mlp_hidden", "edge_embedding", "edge_embedding_backward"):
        assert (f"nequip_md.{operator}_triton.default" in targets) == (precision != "fp64")
    # with two hidden layers, what reads a hidden layer is in its kernel
    assert ("nequip_md.dense_triton.default" in targets) == (name == "large")
    if precision != "fp64":
        # gradients by the edges' tensor weights meet in a kernel: no addition of arrays of their size, or zeros in it
        shape = (config.l_max + 1, config.num_tensor_features)
        made = [
            str(node.target)
            for node in program.graph.nodes
            if tuple(getattr(node.meta.get("val"), "shape", ()))[1:] == shape
        ]
        assert made
        assert not [target for target in made if "add" in target or "zeros" in target or "expand" in target], made
        # nor are those of shared features and harmonics added outside of one, and the last environment comes scaled
        widths = {(config.num_scalar_features,), (1, config.num_scalar_features), ((config.l_max + 1) ** 2,)}
        added = [
            node
            for node in program.graph.nodes
            if "aten.add" in str(node.target) and tuple(getattr(node.meta.get("val"), "shape", ()))[1:] in widths
        ]
        # in large, features that later layers make have several readers as well
        assert not added or name == "large", added
        assert model.layers[-1].pairs_orders
        calls = [str(node.target) for node in program.graph.nodes].count
        assert calls("nequip_md.edge_contract_gradient_triton.default") == 1
        assert calls("nequip_md.edge_contract_moment_triton.default") == config.num_layers - 1
    inputs = example_inputs(5, 3, 9, 2, config.cutoff, seed=5, device=DEVICE)
    for got, want in zip(program.module()(*inputs), energy_and_gradient(exact, *inputs)):
        assert (got - want).norm() <= TOLERANCE[precision] * want.norm()


@pytest.mark.parametrize("precision", ["fp32", "fp64"])
def test_whole_nequip(precision):
    """Message passing: the graph that an export for CUDA compiles has a kernel for each derivative of each convolution."""
    config = preset(
        "S", type_names=["H", "O"], cutoff=6.0, avg_num_neighbors=20.0, num_features=[16, 8], radial_mlp_width=16
    )
    torch.manual_seed(3)
    exact = with_dtype(build_model(config).eval(), "float64").to(DEVICE)
    model = copy.deepcopy(exact) if precision == "fp64" else with_dtype(exact, "float32").to(DEVICE)
    fuse(model)
    program = trace(
        model,
        config.cutoff,
        2,
        device=DEVICE,
        backend=TritonBackend(precision),
        message_passing=True,
    )
    calls = [str(node.target) for node in program.graph.nodes]
    for suffix, count in (("", 2), ("_edges", 2), ("_nodes", 1)):  # what the first layer reads are types
        assert calls.count(f"nequip_md.tensor_product_convolution{suffix}_triton.default") == count
    sample = example_inputs(13, 0, 7, 2, config.cutoff, device=DEVICE, seed=5)
    for got, expected in zip(program.module()(*sample), energy_and_gradient(exact, *sample), strict=True):
        assert (got - expected).norm() <= TOLERANCE[precision] * expected.norm()


def test_energies_differentiate_as_a_sum():
    """The operator makes its gradient before it knows what comes after it: anything but a sum is refused."""
    x = random("fp32", 5, 32).requires_grad_()
    arguments = [x], [random("fp32", 32, 16), random("fp32", 16, 16)], random("fp32", 16), random("fp32", 32)
    (ops.mlp_energy(*arguments).sum()).backward()
    with pytest.raises(RuntimeError, match="sum of its energies only"):
        (2 * ops.mlp_energy(*arguments)).sum().backward()


def test_what_is_not_fused_is_said():
    config = preset("small", type_names=["H"], allegro_mlp_nonlinearity="mish", two_body_mlp_width=520)
    left = fuse(build_model(config))
    assert any("mish" in sentence for sentence in left)
    assert any("520" in sentence for sentence in left)
    assert ops.MAX_PARTS == 4
