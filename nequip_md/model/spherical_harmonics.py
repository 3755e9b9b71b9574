"""Real spherical harmonics of unit vectors, as homogeneous polynomials.

Convention of e3nn: components of each l in e3nn's order, "component" normalisation, sum_m Y_lm^2 = 2l + 1.

The polynomials follow from the recursion Y_{l+1} ~ C(l, 1, l+1) Y_l Y_1 with e3nn's Wigner 3j symbols. Their
coefficients are plain numbers, computed at import; evaluation is a handful of multiplications.
"""

from __future__ import annotations

import torch
from e3nn.o3 import wigner_3j
from torch import Tensor

Polynomial = dict[tuple[int, int, int], float]
"""Coefficient by exponents of x, y, z."""


def _norm_squared(components: list[Polynomial]) -> float:
    """sum_m Y_m^2 at one (any) unit vector."""
    point = (0.6, 0.0, 0.8)
    values = [sum(c * point[0] ** i * point[1] ** j * point[2] ** k for (i, j, k), c in p.items()) for p in components]
    return sum(v * v for v in values)


def _next_order(l: int, previous: list[Polynomial]) -> list[Polynomial]:
    """Components of order ``l`` from those of order l - 1."""
    axes = [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
    coupling = wigner_3j(l - 1, 1, l, dtype=torch.float64).tolist()
    components: list[Polynomial] = []
    for m in range(2 * l + 1):
        terms: Polynomial = {}
        for a, polynomial in enumerate(previous):
            for b, axis in enumerate(axes):
                for exponents, coefficient in polynomial.items():
                    key = tuple(i + j for i, j in zip(exponents, axis))
                    terms[key] = terms.get(key, 0.0) + coupling[a][b][m] * coefficient
        components.append(terms)
    scale = ((2 * l + 1) / _norm_squared(components)) ** 0.5
    # the recursion keeps e3nn's sign, since e3nn's 3j symbols of (l, 1, l + 1) were chosen that way
    return [{key: scale * c for key, c in sorted(terms.items()) if abs(c) > 1e-12} for terms in components]


POLYNOMIALS: list[list[Polynomial]] = [[{(0, 0, 0): 1.0}]]
for _l in range(1, 5):
    POLYNOMIALS.append(_next_order(_l, POLYNOMIALS[-1]))


def spherical_harmonics(unit: Tensor, l_max: int) -> Tensor:
    """Y_lm of unit vectors.

    Args:
        unit: [E, 3].
        l_max: highest order, at most 4.

    Returns:
        [E, (l_max + 1)^2], orders one after the other.
    """
    x, y, z = unit.unbind(-1)
    powers = [[None, axis] for axis in (x, y, z)]
    for l in range(2, l_max + 1):
        for row in powers:
            row.append(row[l - 1] * row[1])
    columns = [torch.ones_like(x)]
    monomials: dict[tuple[int, int, int], Tensor] = {}
    for l in range(1, l_max + 1):
        for polynomial in POLYNOMIALS[l]:
            column = None
            for exponents, coefficient in polynomial.items():
                if exponents not in monomials:
                    factors = [powers[axis][n] for axis, n in enumerate(exponents) if n]
                    product = factors[0]
                    for factor in factors[1:]:
                        product = product * factor
                    monomials[exponents] = product
                term = monomials[exponents] * coefficient
                column = term if column is None else column + term
            columns.append(column)
    return torch.stack(columns, dim=-1)
