"""Properties of the Triton kernels that relative errors do not test: zeros, limits, NaN."""

from __future__ import annotations

import math

import pytest
import torch

from nequip_md.kernels.triton import weights
from nequip_md.kernels.triton.backend import TritonBackend
from operators.cases import arguments, upcast
from operators.edge_cases import EMBEDDINGS
from operators.table import GROUPS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OPERATORS = torch.ops.nequip_md


@pytest.fixture
def backend():
    torch.manual_seed(0)
    return TritonBackend("fp32")


def random(*shape):
    return torch.randn(*shape, dtype=torch.float32, device=DEVICE)


@pytest.mark.parametrize("precision", ["fp32", "fp64"])
@pytest.mark.parametrize("name", EMBEDDINGS)
def test_edges_beyond_the_cutoff_have_no_part(name, precision):
    group, backend = GROUPS[f"embedding, {name}"], TritonBackend(precision)
    forward, backward, _ = (arguments(group, case, group.graph, precision, DEVICE) for case in group.cases)
    vectors, edge_index, node_types, cutoffs = forward[:4]
    outside = vectors.norm(dim=1) >= cutoffs[node_types[edge_index[0]], node_types[edge_index[1]]]
    assert 10 < outside.sum() < len(vectors) - 10
    g, harmonics = backend.call(OPERATORS.edge_embedding.default, *forward)
    assert g.dtype == harmonics.dtype == forward[-3].dtype
    assert not g[outside].any()
    dg, (dharmonics,), *rest = backward
    operator = OPERATORS.edge_embedding_backward.default
    gradient = backend.call(operator, dg, [torch.zeros_like(dharmonics)], *rest)
    assert gradient.dtype == torch.float64
    assert not gradient[outside].any()


def test_edge_embedding_near_the_cutoff_keeps_its_digits(backend):
    """Near the cutoff u_p(x) is proportional to (1 - x)^3, which would show a rounding of x to fp32."""
    x = 1 - torch.logspace(-6, -1, 40, dtype=torch.float64, device=DEVICE)
    vectors = x.unsqueeze(1) * torch.tensor([[0.0, 1.2, 1.6]], dtype=torch.float64, device=DEVICE)
    index = torch.zeros(2, len(x), dtype=torch.int64, device=DEVICE)
    types = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    cutoffs, roots = 2 * x.new_ones(1, 1), torch.arange(1, 9, dtype=torch.float64, device=DEVICE)
    tables = [random(*shape) for shape in ((1, 16), (1, 16), (8, 32))]
    given = (vectors, index, types, cutoffs, roots, *tables, 6.0, 1)
    got = backend.call(OPERATORS.edge_embedding.default, *given)[0]
    want = OPERATORS.edge_embedding(*upcast(given))[0]
    noise_of_float64 = 1e-12 * (1 - x)
    assert ((got - want).norm(dim=1) <= 3e-7 * want.norm(dim=1) + noise_of_float64).all()


@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e-19, 1e-17])
def test_rows_near_zero_stay_near_zero(size, backend):
    """Near the cutoff, inputs vanish with a high power of the distance to it."""
    parts, weights = [size * random(40, 64)], [random(64, 64) / 8, random(64, 64) / 8]
    result = backend.call(OPERATORS.mlp_hidden.default, parts, weights)[0]
    assert (result - OPERATORS.mlp_hidden(parts, weights)[0]).abs().max() <= 1e-3 * size + 1e-25


def test_limits_of_silu_are_finite(backend):
    """Results are finite where exp overflows; the table tests their values."""
    group = GROUPS["mlp, limits"]
    case = next(case for case in group.cases if case.about == "limits of silu")
    for value in backend.call(case.overload, *arguments(group, case, group.graph, "fp32", DEVICE)):
        assert torch.isfinite(value).all()


def test_not_a_number_is_not_hidden(backend):
    parts = [random(40, 32)]
    parts[0][7, 3] = float("inf")
    out = backend.call(OPERATORS.mlp_hidden.default, parts, [random(32, 64), random(64, 64)])[0]
    finite = torch.isfinite(out).all(dim=1)
    assert not finite[7]
    assert finite.sum() == 39


@pytest.mark.parametrize("size", [1e-15, 1.0, 1e12])
@pytest.mark.parametrize(
    ("widths", "columns", "pad"),
    [([7], 5, None), ([64, 3, 40, 1], 24, None), ([100], 300, weights.multiple_of_64), ([16, 16, 16], 16, None)],
)
@pytest.mark.parametrize("varies", [False, True])
def test_weights_are_split_exactly(widths, columns, pad, varies, size):
    w = size * random(sum(widths), columns)
    w[0, 0], w[-1, -1] = 0.0, 1e-3 * w[-1, -1]
    hi, lo, info = weights.split(w, widths, *([pad] if pad else []), varies=varies)
    unscale, columns_norm, rows_norm = info[:, 0].double()
    assert hi.shape == lo.shape and math.frexp(float(unscale))[0] == 0.5  # a power of two
    pad = pad or weights.launcher.tile_width
    rows = torch.cat([torch.arange(k) + sum(map(pad, widths[:i])) for i, k in enumerate(widths)]).to(DEVICE)
    want = torch.zeros(sum(map(pad, widths)), pad(columns), dtype=torch.float64, device=DEVICE)
    want[rows, :columns] = w.double()
    assert want.shape == hi.shape
    # 11 bits each and a sign; the low part of a small number has fewer bits
    error = ((hi.double() + lo.double()) * unscale - want).abs()
    assert bool((error <= 2.0**-22 * want.abs() + 2.0**-38 * w.double().norm()).all())
    assert bool((hi.double() * unscale - want).abs().le(2.0**-11 * want.abs() + 2.0**-38 * w.double().norm()).all())
    assert columns_norm >= w.double().norm(dim=0).max() and rows_norm >= w.double().norm(dim=1).max()
    assert float(w.double().abs().max() / unscale) < 65504


def test_weights_that_vanish_are_split_into_zeros():
    hi, lo, info = weights.split(torch.zeros(5, 7, device=DEVICE), [5], varies=True)
    assert not hi.any() and not lo.any() and bool(info.isfinite().all())
