"""Tables of nonzero Clebsch-Gordan coefficients for products of multiplicity-one irreps."""

from __future__ import annotations

from math import sqrt

import torch
from e3nn.o3 import Irrep, wigner_3j
from torch import Tensor


def offsets(irreps: list[Irrep]) -> list[int]:
    """First component of each irrep, and the total number of components last."""
    total = [0]
    for irrep in irreps:
        total.append(total[-1] + irrep.dim)
    return total


def product_table(
    first: list[Irrep], second: list[Irrep], output: list[Irrep]
) -> tuple[list[tuple[int, int, int]], Tensor, Tensor]:
    """All paths first x second -> output and their nonzero coefficients.

    Returns:
        paths: (first, second, output) positions, ordered by output, then first, then second;
        table: rows path, component of first, of second, of output, int64 [4, T];
        values: sqrt(2 l_out + 1) times the Wigner 3j symbol, float64 [T].
    """
    starts = [offsets(irreps) for irreps in (first, second, output)]
    paths, rows, values = [], [], []
    for k, irrep_out in enumerate(output):
        for i, irrep_first in enumerate(first):
            for j, irrep_second in enumerate(second):
                if irrep_out not in irrep_first * irrep_second:
                    continue
                coefficients = wigner_3j(irrep_first.l, irrep_second.l, irrep_out.l, dtype=torch.float64)
                index = coefficients.nonzero()
                values.append(coefficients[tuple(index.T)] * sqrt(2 * irrep_out.l + 1))
                shift = torch.tensor([starts[0][i], starts[1][j], starts[2][k]])
                rows.append(torch.cat([torch.full((len(index), 1), len(paths)), index + shift], dim=1))
                paths.append((i, j, k))
    return paths, torch.cat(rows).T.contiguous(), torch.cat(values)
