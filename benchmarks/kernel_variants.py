"""Tile sizes of the MLP kernels: compare each with float64, then time it.

    python benchmarks/kernel_variants.py --precision fp32 tf32 --output variants.json

Shapes are those of Allegro "medium". Each kernel runs on many edges, where throughput counts, and on few, where the time of one
tile does. Kernels are compiled in several processes first. The fastest are in ``TILES`` and ``FEW_TILES`` of nequip_md/kernels/triton/tiles.py.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import sys
from datetime import date
from pathlib import Path

import torch
import triton

from nequip_md.bench.measure import machine
from nequip_md.kernels.triton import mlp_energy, mlp_hidden, tiles, weights

MANY, FEW = 1_040_000, (500, 2_016, 8_064)
PROGRAMS = 264
# kernel, widths of the input's parts, inner, outer, width of the matrix after the hidden layer (0: none)
SHAPES = {
    "first hidden": (mlp_hidden.hidden_kernel, [32], 64, 64, 256),
    "hidden": (mlp_hidden.hidden_kernel, [64, 64], 256, 256, 64),
    "first backward": (mlp_hidden.hidden_backward_kernel, [32], 64, 64, 256),
    "backward": (mlp_hidden.hidden_backward_kernel, [64, 64], 256, 256, 64),
    "energy": (mlp_energy.energy_kernel, [64, 64, 64], 256, 256, 0),
}
TILES = [
    (128, 32, 8, 2),
    (128, 32, 8, 3),
    (128, 16, 8, 3),
    (64, 32, 4, 2),
    (64, 32, 4, 3),
    (64, 16, 4, 2),
    (64, 16, 4, 3),
    (32, 32, 4, 3),
    (16, 32, 4, 3),
    (16, 64, 4, 2),
    (16, 64, 8, 2),
]
"""Rows, chunk, warps, stages."""
WEIGHTS = {"w1_hi", "w1_lo", "w2_hi", "w2_lo", "w3_hi", "w3_lo"}
DERIVATIVES = {"d1", "d2", "scratch"}
"""Arguments that are fp16 where one product is taken."""


def products_of(precision: str) -> int:
    return 1 if precision == "tf32" else 3


def settings(name: str, precision: str, tile: tuple) -> tuple[dict, dict]:
    """Constants of a kernel, and its warps and stages."""
    _, widths, inner, outer, last = SHAPES[name]
    rows, chunk, warps, stages = tile
    constants = {
        **tiles.part_constants(widths),
        **tiles.last_constants(last, outer),
        "N1": inner,
        "N2": outer,
        "P1": inner,
        "P2": outer,
        "ROWS": rows,
        "CHUNK": min(chunk, inner),
        "PRODUCTS": products_of(precision),
        "SCALED": False,
    }
    return constants, {"num_warps": warps, "num_stages": stages}


def compile_one(job: tuple) -> str | None:
    """Compile a kernel into Triton's cache on disk; runs in a process of its own. Returns an error message or None."""
    name, precision, tile = job
    kernel = SHAPES[name][0]
    constants, options = settings(name, precision, tile)
    fp16 = WEIGHTS | (DERIVATIVES if precision == "tf32" else set())
    arguments = [
        constants[n] if n in constants else MANY if n == "count" else torch.float16 if n in fp16 else torch.float32
        for n in kernel.arg_names
    ]
    try:
        kernel.warmup(*arguments, grid=(1,), **options)
    except Exception as error:  # the tile does not fit; others may
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def silu(p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    s = torch.sigmoid(p)
    return p * s, s + p * s * (1 - s)


class Case:
    """One kernel with random inputs, and its correct results for some of the rows in float64."""

    def __init__(self, name: str, precision: str):
        self.name, self.precision = name, precision
        self.kernel, widths, inner, outer, last = SHAPES[name]
        numbers = {"device": "cuda", "dtype": torch.float32}
        stored = {"device": "cuda", "dtype": tiles.derivative_dtype(products_of(precision))}
        torch.manual_seed(0)
        w1 = torch.randn(sum(widths), inner, **numbers) / math.sqrt(sum(widths))
        w2 = torch.randn(inner, outer, **numbers) * math.sqrt(2 / inner)
        w3 = torch.randn(outer, max(last, 1), **numbers) * math.sqrt(2 / outer)
        v, r = torch.randn(outer, **numbers), torch.randn(sum(widths), **numbers)
        self.w1, self.w2, self.w3 = w1, w2, w3
        parts = [torch.randn(MANY, k, **numbers) for k in widths]
        self.rows = torch.cat([torch.arange(500), torch.arange(MANY - 500, MANY)]).cuda()
        x = torch.cat(parts, 1)[self.rows].double()
        h1, d1 = silu(x @ w1.double())
        h2, d2 = silu(h1 @ w2.double())
        named = {"v": v, "r": r, "factor": v, "stored": stored, "inner": inner, "outer": outer}
        for i, (w, k) in enumerate(((w1, widths), (w2, [inner]), (w3, [outer])), 1):
            named |= {f"w{i}_{part}": t for part, t in zip(("hi", "lo", "info"), weights.split(w, k))}
        gradients = [torch.empty_like(p) for p in parts]
        for i in range(4):
            j = i if i < len(parts) else 0
            named |= {f"x{i}": parts[j], f"dx{i}": gradients[j]}
        if self.kernel is mlp_hidden.hidden_kernel:
            named |= {
                "out": torch.empty(MANY, outer, **numbers),
                "y": torch.empty(MANY, last, **numbers),
                "d1": torch.empty(MANY, inner, **stored),
                "d2": torch.empty(MANY, outer, **stored),
            }
            self.results, self.wanted = [named[n] for n in ("out", "y", "d1", "d2")], [h2, h2 @ w3.double(), d1, d2]
        elif self.kernel is mlp_hidden.hidden_backward_kernel:
            named |= {"g": torch.randn(MANY, outer, **numbers), "dy": torch.randn(MANY, last, **numbers)}
            named |= {
                key: silu(torch.randn(MANY, n, **numbers))[1].to(stored["dtype"])
                for key, n in (("d1", inner), ("d2", outer))
            }
            g, dy, d1, d2 = (named[n][self.rows].double() for n in ("g", "dy", "d1", "d2"))
            dx = (((g + dy @ w3.double().T) * d2) @ w2.double().T * d1) @ w1.double().T
            self.results, self.wanted = gradients, list(dx.split(widths, 1))
        else:
            named["energy"] = torch.empty(MANY, **numbers)
            dx = ((v.double() * d2) @ w2.double().T * d1) @ w1.double().T + r.double()
            self.results, self.wanted = (
                [named["energy"], *gradients],
                [h2 @ v.double() + x @ r.double(), *dx.split(widths, 1)],
            )
        self.named = named

    def launch(self, tile: tuple, count: int):
        constants, options = settings(self.name, self.precision, tile)
        named = {**self.named, **constants, "count": count}
        programs = triton.cdiv(count, tile[0])
        if self.kernel is mlp_energy.energy_kernel:
            programs = PROGRAMS
            named["scratch"] = torch.empty(PROGRAMS, tile[0], named["inner"] + named["outer"], **named["stored"])
        arguments = [named[n] for n in self.kernel.arg_names]
        return lambda: self.kernel[(programs,)](*arguments, **options)

    def error(self, count: int = MANY) -> float:
        """Largest relative error of the results (by norms) after a launch on the first ``count`` rows."""
        some = self.rows < count
        pairs = [(got[self.rows[some]].double(), want[some]) for got, want in zip(self.results, self.wanted)]
        return max(float((got - want).norm() / want.norm()) for got, want in pairs)

    def measure(self, tile: tuple) -> dict:
        for result in self.results:
            result.fill_(float("nan"))
        call = self.launch(tile, MANY)
        compiled = call()
        torch.cuda.synchronize()
        row = {
            "kernel": self.name,
            "precision": self.precision,
            "tile": tile,
            "error": self.error(),
            "spilled": compiled.n_spills,
            "shared": compiled.metadata.shared,
        }
        row["many_ms"] = triton.testing.do_bench(self.launch(tile, MANY), warmup=5, rep=25, return_mode="median")
        # in a CUDA graph, as in a recorded step, with inputs in the cache
        row["few_ms"] = [
            triton.testing.do_bench_cudagraph(self.launch(tile, count), rep=8, return_mode="median") for count in FEW
        ]
        return row


def write_rows(path: Path, rows: list[dict]) -> None:
    """Write the result file of a program that times kernels."""
    facts = {
        "machine": machine("cuda"),
        "triton": triton.__version__,
        "date": date.today().isoformat(),
        "command": "python " + " ".join(sys.argv),
    }
    path.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=("fp32", "tf32"), nargs="+", default=["fp32", "tf32"])
    parser.add_argument(
        "--only", choices=SHAPES, nargs="+", default=list(SHAPES), metavar="KERNEL", help=f"of {', '.join(SHAPES)}"
    )
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("error: PyTorch finds no CUDA device here; run this on a machine with one")
    jobs = [(name, precision, tile) for name in options.only for precision in options.precision for tile in TILES]
    with multiprocessing.get_context("spawn").Pool(min(len(jobs), os.cpu_count() or 1)) as pool:
        failures = dict(zip(jobs, pool.map(compile_one, jobs, chunksize=1)))
    rows = []
    print(
        f"{'kernel':15} {'':5} {'rows, chunk, warps, stages':>26} {f'{MANY:,} edges':>16} {f'{FEW} edges':>28} {'error':>8} {'spilled':>8}"
    )
    for name in options.only:
        for precision in options.precision:
            case = Case(name, precision)
            for tile in TILES:
                failure, row = failures[name, precision, tile], None
                if not failure:
                    try:
                        row = case.measure(tile)
                    except Exception as error:
                        failure = f"{type(error).__name__}: {error}".splitlines()[0]
                if failure:
                    print(f"{name:15} {precision:5} {str(tile):>26} {failure[:70]}", flush=True)
                    continue
                rows.append(row)
                few = " ".join(f"{t:.4f}" for t in row["few_ms"])
                print(
                    f"{name:15} {precision:5} {str(tile):>26} {row['many_ms']:13.3f} ms {few:>25} ms {row['error']:8.0e} "
                    f"{row['spilled']:8}",
                    flush=True,
                )
            del case
            torch.cuda.empty_cache()
    if options.output:
        write_rows(options.output, rows)


if __name__ == "__main__":
    main()
