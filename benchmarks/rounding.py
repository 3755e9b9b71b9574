"""What tensor cores round off in the products of halves, emulated on the CPU, and what making up for it leaves.

    python benchmarks/rounding.py

The sum of each 16 columns' products is added to a sum that is rounded towards zero to 24 bits: once for each of the three products of
halves. Relative to float64: the mean that this takes, in units of 2^-24 for each of these additions, and the error (norm of the difference
over norm) as it is, with the result scaled as the kernels do (``unscale_factor`` in nequip_md/kernels/triton/mlp_arithmetic.py), and of plain fp32. For rows
of silu's results and random matrices. Orders: the three products of each 16 columns after each other, as in mlp_kernels.cuh, or those with
lower halves of all columns first, as in mlp_layers.py, which leaves a third of the additions to large sums.
"""

from __future__ import annotations

import torch
from torch import Tensor

ORDERS = ("together", "lower first")
SLICE = 16
"""Columns of one instruction."""


def towards_zero(x: Tensor) -> Tensor:
    """float64 rounded towards zero to 24 bits."""
    nearest = x.float()
    smaller = torch.nextafter(nearest, torch.zeros_like(nearest))
    return torch.where(nearest.double().abs() > x.abs(), smaller, nearest).double()


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """Two of fp16 whose sum is ``x``, scaled to its largest element and back, as float64."""
    scale = 2.0 ** (14 - torch.floor(torch.log2(x.abs().max())))
    upper = (x * scale).half()
    return upper.double() / scale, (x * scale - upper.float()).half().double() / scale


def product(x: Tensor, w: Tensor, order: str) -> tuple[Tensor, int]:
    """x [rows, K] times w [K, N] as the tensor cores sum it, and the number of additions to large sums."""
    (x_upper, x_lower), (w_upper, w_lower) = halves(x), halves(w)
    slices = [slice(k, k + SLICE) for k in range(0, len(w), SLICE)]
    small = [(x_lower, w_upper), (x_upper, w_lower)]
    if order == "together":
        steps = [(*pair, columns) for columns in slices for pair in [*small, (x_upper, w_upper)]]
    else:
        steps = [(*pair, columns) for columns in slices for pair in small] + [
            (x_upper, w_upper, columns) for columns in slices
        ]
    total = torch.zeros(len(x), w.shape[1], dtype=torch.float64)
    for a, b, columns in steps:
        total = towards_zero(total + a[:, columns] @ b[columns])
    return total, len(steps) if order == "together" else len(slices)


def measure(width: int, order: str, rows: int = 500) -> dict[str, float]:
    """``taken``: of 2^-24 by each addition; errors ``as it is``, ``scaled`` and of ``fp32``."""
    generator = torch.Generator().manual_seed(0)
    x = torch.nn.functional.silu(1.5 * torch.randn(rows, width, generator=generator))
    w = torch.randn(width, 64, generator=generator) / width**0.5
    exact = x.double() @ w.double()
    total, additions = product(x, w, order)

    def error(value: Tensor) -> float:
        return float((value - exact).norm() / exact.norm())

    return {
        "taken": (1 - float((total * exact).sum() / exact.square().sum())) * 2**24 / additions,
        "as it is": error(total),
        "scaled": error(total * (1 + additions / 3 / 2**24)),
        "fp32": error((x @ w).double()),
    }


def main() -> None:
    print(f"{'columns':>7}  {'order':11}  taken / 2^-24  as it is   scaled     plain fp32")
    for width in (64, 128, 256, 512):
        for order in ORDERS:
            row = measure(width, order)
            print(
                f"{width:7}  {order:11}  {row['taken']:13.2f}  {row['as it is']:.2e}   {row['scaled']:.2e}   {row['fp32']:.2e}"
            )


if __name__ == "__main__":
    main()
