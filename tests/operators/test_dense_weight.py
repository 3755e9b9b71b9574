"""The gradient of a matrix product by its matrix: on the GPU where there is one, in Triton's interpreter (conftest.py) otherwise."""

from __future__ import annotations

import pytest
import torch

from nequip_md.kernels.triton import dense_weight, launcher

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {3: 1e-6, 1: 2e-3}
"""Of results, by the number of products, relative to their norm."""


def factors(rows: int, inner: int, outer: int, spread: float = 0.0):
    """Two random arrays, the sizes of whose rows differ by factors of the order of exp(spread)."""
    generator = torch.Generator().manual_seed(rows + inner)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    x, g = (normal(rows, n) * torch.exp(spread * normal(rows, 1)) for n in (inner, outer))
    return x.to(DEVICE), g.to(DEVICE)


def error(x, g, products):
    got, want = dense_weight.dense_weight(x, g, products).sum(dim=0), x.double().T @ g.double()
    return float((got - want).norm() / want.norm())


@pytest.mark.parametrize("products", [3, 1])
@pytest.mark.parametrize(
    ("rows", "inner", "outer"),
    [(2, 16, 16), (63, 20, 36), (64, 128, 16), (65, 16, 130), (500, 40, 72), (1000, 130, 257)],
)
def test_sizes(rows, inner, outer, products, monkeypatch):
    monkeypatch.setattr(launcher, "MULTIPROCESSORS", 132 if DEVICE == "cuda" else 3)
    assert error(*factors(rows, inner, outer), products) < TOLERANCE[products]


@pytest.mark.parametrize("spread", [3.0, 8.0])
def test_rows_of_all_sizes(spread, monkeypatch):
    monkeypatch.setattr(launcher, "MULTIPROCESSORS", 132 if DEVICE == "cuda" else 3)
    x, g = factors(700, 24, 33, spread)
    x[5], g[9], x[100:200] = 0.0, 0.0, 0.0
    assert error(x, g, 3) < TOLERANCE[3]
    assert error(1e-12 * x, 1e-10 * g, 3) < TOLERANCE[3]
    assert error(1e3 * x, 1e-3 * g, 3) < TOLERANCE[3]


def test_columns_of_all_sizes():
    """Each element is accurate beside the sizes of its row and column."""
    x, g = factors(400, 16, 16)
    powers = torch.logspace(0, -4, 16, device=DEVICE)
    x, g = x * powers, g * powers
    got, want = dense_weight.dense_weight(x, g, 3).sum(dim=0), x.double().T @ g.double()
    assert float(((got - want).abs() / torch.outer(x.norm(dim=0), g.norm(dim=0))).max()) < 1e-4


def test_no_rows():
    x, g = factors(0, 16, 48)
    assert not dense_weight.dense_weight(x, g, 3).sum(dim=0).any()
