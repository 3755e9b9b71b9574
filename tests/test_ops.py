"""Each operator: its reference against an independent loop, its derivatives, and its C++ kernel in an artifact."""

from __future__ import annotations

from importlib.resources import files

import pytest
import torch

from nequip_md.kernels.cpu.backend import OPERATORS, CPUBackend
from nequip_md.model import build_model, preset
from nequip_md.model.allegro import tensor_track
from nequip_md.model.clebsch_gordan import product_table
from nequip_md.model.spherical_harmonics import spherical_harmonics
from nequip_md.ops import (
    EdgeContractions,
    channel_product,
    edge_contract,
    edge_dot,
    edge_moment,
    edge_moment_shared,
    edge_spread,
    segment_sum,
)

COUNTS = [3, 0, 5, 1, 0, 19]  # edges of each centre, empty ones among them


def edges(counts=COUNTS):
    counts = torch.tensor(counts)
    row_ptr = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    return torch.repeat_interleave(torch.arange(len(counts)), counts), row_ptr


def random(*shape, seed=0, dtype=torch.float64, grad=False):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, dtype=dtype, generator=generator).requires_grad_(grad)


def order_of(m: int) -> int:
    return int(m**0.5)


def trilinear(a, y, z, centre):
    """sum a[e, l(m), c] y[e, m] z[i, m, c] by an explicit loop over components."""
    total = 0.0
    for m in range(y.shape[1]):
        slot = 0 if a.shape[1] == 1 else order_of(m)
        total = total + torch.einsum("ec,e,ec->", a[:, slot], y[:, m], z[centre, m])
    return total


@pytest.mark.parametrize("l_max", range(5))
@pytest.mark.parametrize("shared", [True, False])
def test_moment_spread_dot_are_the_gradients_of_one_form(l_max, shared):
    centre, row_ptr = edges()
    components, orders = (l_max + 1) ** 2, 1 if shared else l_max + 1
    a, y, z = (
        random(len(centre), orders, 5, grad=True),
        random(len(centre), components, grad=True),
        random(len(COUNTS), components, 5, grad=True),
    )
    da, dy, dz = torch.autograd.grad(trilinear(a, y, z, centre), (a, y, z))
    torch.testing.assert_close(edge_moment(a, y, centre, row_ptr), dz)
    torch.testing.assert_close(edge_spread(y, z, centre, row_ptr, orders), da)
    torch.testing.assert_close(edge_dot(a, z, centre, row_ptr), dy)


@pytest.mark.parametrize("l_max", [0, 2, 3])
def test_contract_is_the_sum_over_components(l_max):
    centre, row_ptr = edges()
    components = (l_max + 1) ** 2
    w, y, z = random(len(centre), l_max + 1, 4), random(len(centre), components), random(len(COUNTS), components, 4)
    expected = sum(w[:, order_of(m)] * y[:, m : m + 1] * z[centre, m] for m in range(components))
    torch.testing.assert_close(edge_contract(w, y, z, centre, row_ptr), expected)


@pytest.mark.parametrize("count", [1, 2, 3, 6])
@pytest.mark.parametrize("used", ["all", "last", "first", "and w"])
def test_contractions_in_turn_have_the_gradients_of_contractions_one_by_one(count, used):
    """Each z depends on the q before it, as in Allegro; 6 are more than one kernel takes."""
    centre, row_ptr = edges()
    inputs = (
        random(len(centre), 3, 4, grad=True),
        random(len(centre), 9, grad=True),
        random(len(COUNTS), 9, 4, grad=True),
    )

    def result(shared):
        w, y, z = inputs
        contractions = EdgeContractions(w, y, centre, row_ptr)
        results = []
        for _ in range(count):
            q = contractions(z) if shared else edge_contract(w, y, z, centre, row_ptr)
            results.append((q**2).sum())
            z = z + edge_moment(q.sin().unsqueeze(1), y, centre, row_ptr)
        total = {"all": sum(results), "last": results[-1], "first": results[0], "and w": sum(results)}[used]
        return total + ((contractions.w if shared else w) ** 3).sum() if used == "and w" else total

    for got, expected in zip(torch.autograd.grad(result(True), inputs), torch.autograd.grad(result(False), inputs)):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(("readers", "used"), [(1, 1), (4, 3), (6, 6), (2, 0)])
@pytest.mark.parametrize("moment_used", [True, False])
def test_shared_moment_adds_up_its_readers(readers, used, moment_used):
    """Gradients of a moment and of those who read its input again; readers that are there but read nothing."""
    centre, row_ptr = edges([3, 0, 2])
    a, y = random(5, 1, 6, grad=True), random(5, 9, grad=True)

    def result(moment, copies):
        parts = [(copy.sin() * (k + 1)).sum() for k, copy in enumerate(copies[:used])]
        return sum(parts, (moment**2).sum() if moment_used else (a * 0).sum())

    moment, *copies = edge_moment_shared(a, y, centre, row_ptr, readers)
    assert len(copies) == readers
    got = torch.autograd.grad(result(moment, copies), (a, y), allow_unused=True, materialize_grads=True)
    expected = torch.autograd.grad(
        result(edge_moment(a, y, centre, row_ptr), [a] * readers), (a, y), allow_unused=True, materialize_grads=True
    )
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("readers", [1, 3, 6])
@pytest.mark.parametrize(("l_max", "p"), [(0, 6.0), (2, 2.5), (3, 1.0)])
def test_edge_embedding_is_what_a_model_composes(l_max, p, readers):
    """The operator and its gradient against autograd through a model's modules; edges beyond the cutoff included."""
    torch.manual_seed(5)
    bessels = {"kind": "bessel", "num_bessels": 5, "bessel_trainable": True}
    model = build_model(
        preset(
            "small",
            type_names=["H", "O"],
            dtype="float64",
            l_max=l_max,
            polynomial_cutoff_p=p,
            cutoff=4.0,
            pair_cutoffs={"H": {"O": 3.0}},
            radial_embedding=bessels,
        )
    )
    with torch.no_grad():
        model.embedding.basis.roots.add_(0.3 * random(5))
    vectors = 1.7 * random(60, 3)
    edge_index = torch.stack([torch.arange(60) // 10, torch.arange(60) % 9])
    node_types = torch.arange(9) % 2
    vectors.requires_grad_(True)
    geometry = model.geometry(vectors, edge_index, node_types)
    assert 5 < (geometry.x >= 1).sum() < 55
    composed = model.embedding(geometry), spherical_harmonics(geometry.unit, l_max)
    fused = model.embedding.with_harmonics(vectors, edge_index, node_types, model.geometry.cutoffs, l_max, readers)
    composed = [composed[0], *[composed[1]] * readers]
    torch.testing.assert_close(fused, composed)
    cotangents = [random(*t.shape, seed=3 + k) for k, t in enumerate(composed)]
    sums = [sum((c * t).sum() for c, t in zip(cotangents, results)) for results in (fused, composed)]
    gradients = [torch.autograd.grad(total, vectors)[0] for total in sums]
    torch.testing.assert_close(*gradients)
    embedding = model.requires_grad_(False).embedding
    arguments = (
        vectors.detach(),
        edge_index,
        node_types,
        model.geometry.cutoffs,
        embedding.basis.roots,
        embedding.centre,
        embedding.neighbour,
        embedding.linear.last(),
        p,
        l_max,
    )
    for operator, leading in (("edge_embedding", []), ("edge_embedding_backward", [cotangents[0], cotangents[1:]])):
        torch.library.opcheck(
            getattr(torch.ops.nequip_md, operator).default,
            (*leading, *arguments),
            test_utils=("test_schema", "test_faketensor"),
        )


def cases():
    centre, row_ptr = edges([2, 0, 3])
    y, z, a, w = (
        random(5, 4, grad=True),
        random(3, 4, 2, grad=True),
        random(5, 1, 2, grad=True),
        random(5, 2, 2, grad=True),
    )
    track = tensor_track(1, True, 2)
    paths, table, values = product_table(track[0], track[0], track[1])
    dim = int(table[3].max()) + 1
    x, v, pw = random(2, 4, 2, grad=True), random(2, 4, 2, seed=1, grad=True), random(len(paths), 2, grad=True)
    return {
        "segment_sum": (lambda v: segment_sum(v, centre, row_ptr), (random(5, 2, grad=True),)),
        "edge_moment": (lambda a, y: edge_moment(a, y, centre, row_ptr), (a, y)),
        "edge_moment_orders": (lambda a, y: edge_moment(a, y, centre, row_ptr), (w, y)),
        "edge_spread": (lambda y, z: edge_spread(y, z, centre, row_ptr, 2), (y, z)),
        "edge_dot": (lambda a, z: edge_dot(a, z, centre, row_ptr), (w, z)),
        "edge_contract": (lambda w, y, z: edge_contract(w, y, z, centre, row_ptr), (w, y, z)),
        "channel_product": (lambda x, y, w: channel_product(x, y, w, table, values, dim), (x, v, pw)),
    }


@pytest.mark.parametrize("name", cases())
def test_first_and_second_derivatives(name):
    function, inputs = cases()[name]
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("name", cases())
def test_schema_and_fake_agree_with_the_reference(name):
    """opcheck: schema, aliasing, fake tensors, autograd registration, dynamic shapes."""
    function, inputs = cases()[name]
    called = []
    with _Record(called):
        function(*inputs)
    for operator, arguments in called:
        torch.library.opcheck(operator, arguments)
    assert called


class _Record(torch.utils._python_dispatch.TorchDispatchMode):
    def __init__(self, called):
        super().__init__()
        self.called = called

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "nequip_md":
            self.called.append((func, tuple(a.detach().clone() if isinstance(a, torch.Tensor) else a for a in args)))
        return func(*args, **(kwargs or {}))


class EveryKernel(torch.nn.Module):
    """Every operator with a C++ kernel, at several orders and channel counts (whole vectors, tails, both)."""

    SIZES = [(0, 3), (1, 16), (2, 21), (3, 8), (3, 64), (4, 35)]

    def forward(self, a, y, z, g, centre, row_ptr, table, values, w):
        out = [segment_sum(g, centre, row_ptr)]
        for l_max, channels in self.SIZES:
            m = (l_max + 1) ** 2
            yy, zz = y[:, :m].contiguous(), z[:, :m, :channels].contiguous()
            for orders in {1, l_max + 1}:
                aa = a[:, :orders, :channels].contiguous()
                out += [
                    edge_moment(aa, yy, centre, row_ptr),
                    edge_spread(yy, zz, centre, row_ptr, orders),
                    edge_dot(aa, zz, centre, row_ptr),
                ]
            ww, gg = a[:, : l_max + 1, :channels].contiguous(), g[:, :channels].contiguous()
            out += [
                edge_contract(ww, yy, zz, centre, row_ptr),
                *torch.ops.nequip_md.edge_contract_backward(gg, ww, yy, zz, centre, row_ptr),
            ]
        x = z[:, :16].contiguous()
        return *out, channel_product(x, x.sin(), w, table, values, 32)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-13), (torch.float32, 2e-6)])
def test_cpp_kernels_in_an_artifact(tmp_path, dtype, tolerance):
    track = tensor_track(3, True, 4)
    paths, table, values = product_table(track[0], track[0], track[1])
    w = random(len(paths), 64, dtype=dtype)

    def inputs(counts):
        centre, row_ptr = edges(counts)
        e, n = len(centre), len(counts)
        return (
            random(e, 5, 64, dtype=dtype),
            random(e, 25, dtype=dtype),
            random(n, 25, 64, dtype=dtype),
            random(e, 64, dtype=dtype),
            centre,
            row_ptr,
            table,
            values.to(dtype),
            w,
        )

    e, n = torch.export.Dim("e", min=2), torch.export.Dim("n", min=2)
    shapes = ({0: e}, {0: e}, {0: n}, {0: e}, {0: e}, {0: n + 1}, None, None, None)
    module = EveryKernel()
    program = torch.export.export(module, inputs(COUNTS), dynamic_shapes=shapes)
    with CPUBackend().linked() as options:
        path = torch._inductor.aoti_compile_and_package(
            program, package_path=str(tmp_path / "ops.pt2"), inductor_configs=options
        )
    compiled = torch._inductor.aoti_load_package(path)
    for counts in (COUNTS, [2, 1], [0, 0, 300, 7], [1] * 33):
        arguments = inputs(counts)
        for k, (got, expected) in enumerate(zip(compiled(*arguments), module(*arguments), strict=True)):
            assert (got - expected).abs().max() <= tolerance * max(1.0, expected.abs().max()), (counts, k)


def test_kernels_replace_every_operator_of_the_models():
    """An operator that gets a C++ signature but no kernel, or the other way round, would fail at export only."""
    source = (files("nequip_md.kernels.cpu") / "cpu_kernels.cpp").read_text()
    for operator in OPERATORS:
        assert f"aoti_torch_cpu_{operator._schema.name.split('::')[1]}(" in source
