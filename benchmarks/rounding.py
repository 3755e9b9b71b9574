"""Rounding errors of tensor cores in products of fp16 parts, emulated on the CPU, and errors that remain after compensation.

    python benchmarks/rounding.py

For each of the three products of parts, the products of 16 columns are summed and added to an accumulator, which is rounded towards zero to
24 bits. The table has, relative to float64: the mean loss, in units of 2^-24 for each addition, and the error (norm of the difference over
norm) without compensation, with the result scaled as in the kernels (``unscale_factor`` in nequip_md/kernels/triton/mlp_arithmetic.py), and
of plain fp32. Rows are results of silu, matrices are random. Orders: the three products for each 16 columns in turn, as in mlp_kernels.cuh,
or those with low parts for all columns first, as in mlp_layers.py, so that only a third of the additions is to large sums.
"""

from __future__ import annotations

import torch
from torch import Tensor

ORDERS = ("together", "lower first")
SLICE = 16
"""Columns of one instruction."""


def towards_zero(x: Tensor) -> Tensor:
    """Round float64 towards zero to 24 bits."""
    nearest = x.float()
    smaller = torch.nextafter(nearest, torch.zeros_like(nearest))
    return torch.where(nearest.double().abs() > x.abs(), smaller, nearest).double()


def split(x: Tensor) -> tuple[Tensor, Tensor]:
    """The high and low fp16 parts of ``x``, scaled by its largest element before and back afterwards, as float64."""
    scale = 2.0 ** (14 - torch.floor(torch.log2(x.abs().max())))
    upper = (x * scale).half()
    return upper.double() / scale, (x * scale - upper.float()).half().double() / scale


def product(x: Tensor, w: Tensor, order: str) -> tuple[Tensor, int]:
    """x [rows, K] times w [K, N] as the tensor cores sum it, and the number of additions to large sums."""
    (x_upper, x_lower), (w_upper, w_lower) = split(x), split(w)
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
    """Mean loss by each addition, in units of 2^-24 (``taken``), and the errors ``as it is``, ``scaled`` and of ``fp32``."""
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
