"""Tile sizes of the kernels that are not fused MLPs: sums over edges, convolutions, matrices of orders, layers one by one.

    python benchmarks/segment_variants.py --only moment dot --output segments.json

Shapes are those of Allegro "medium" on water (layers: also "large"; convolutions: the second layer of NequIP "M"); the arithmetic is that
of fp32 artifacts. Every variant is timed for 25 atoms of 20 edges, 96 of 84 and 12,288 of 84 (layers: 262,144 rows). Small systems are
timed in a CUDA graph, as an artifact runs them, so that their arrays stay in the cache. Results are not checked here, but in
tests/operators. The tiles are in edge_tiles.py and dense_tiles.py; those that were chosen are beside the kernels, in nequip_md/kernels/triton.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from pathlib import Path

import torch
import triton
from dense_tiles import dense_products, layers, over_atoms
from edge_tiles import Variant, convolutions, over_edges
from kernel_variants import write_rows

SYSTEMS = ((25, 20), (96, 84), (12288, 84))
"""Numbers of atoms, and of edges of each atom."""
MANY = 500_000
"""Number of edges above which a kernel is timed with empty caches."""

VARIANTS = [*over_edges(), *convolutions(), *over_atoms(), *dense_products(), *layers()]
OF_ROWS = ("dense", "layer", "split")
"""Kernels of MLPs, timed for ROWS edges."""
GROUPS = list(dict.fromkeys(v.group for v in VARIANTS))


def compile_one(index: int) -> str | None:
    """Compile a kernel into Triton's cache on disk; runs in a process of its own. Returns an error message or None."""
    variant = VARIANTS[index]
    arrays = variant.arrays(*SYSTEMS[1]) | {"row_ptr": (torch.int64, ())}

    def type_of(value):
        value = arrays[value] if isinstance(value, str) else value
        return value.dtype if torch.is_tensor(value) else value[0] if isinstance(value, tuple) else value

    arguments = variant.arguments({name: type_of(value) for name, value in arrays.items()})
    try:
        variant.kernel.warmup(*arguments, grid=(1,), num_warps=variant.warps, num_stages=variant.stages)
    except Exception as error:  # the tile does not fit; others may
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def measure(variant: Variant, atoms: int, edges_each: int) -> float:
    """Time of one variant, ms."""
    edges = atoms * edges_each
    arrays = variant.arrays(atoms, edges)
    made = {
        name: 0.5 * torch.randn(value[1], device="cuda").to(value[0])
        if isinstance(value, tuple)
        else value.cuda()
        if torch.is_tensor(value)
        else value
        for name, value in arrays.items()
    }
    made = {name: made[value] if isinstance(value, str) else value for name, value in made.items()}
    made["row_ptr"] = edges_each * torch.arange(atoms + 1, device="cuda")
    arguments, grid = variant.arguments(made), variant.grid(atoms, edges)

    def call():
        return variant.kernel[grid](*arguments, num_warps=variant.warps, num_stages=variant.stages)

    call()
    torch.cuda.synchronize()  # a CUDA graph is timed in another stream, which would not wait for the arrays to be filled
    if edges >= MANY or variant.group.startswith(OF_ROWS):
        return triton.testing.do_bench(call, warmup=5, rep=15, return_mode="median")
    return triton.testing.do_bench_cudagraph(call, rep=8, return_mode="median")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", metavar="KERNEL", default=[""], help=f"those whose name starts so: {', '.join(GROUPS)}"
    )
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("error: PyTorch finds no CUDA device here; run this on a machine with one")
    wanted = [i for i, v in enumerate(VARIANTS) if v.group.startswith(tuple(options.only))]
    if not wanted:
        sys.exit(f"error: no kernel's name starts with {' or '.join(options.only)}; there are {', '.join(GROUPS)}")
    with multiprocessing.get_context("spawn").Pool(min(len(wanted), os.cpu_count() or 1)) as pool:
        failures = dict(zip(wanted, pool.map(compile_one, wanted, chunksize=1)))
    rows = []
    for index in wanted:
        variant, failure, times = VARIANTS[index], failures[index], []
        if not failure:
            try:
                times = [
                    measure(variant, *system)
                    for system in (SYSTEMS[-1:] if variant.group.startswith(OF_ROWS) else SYSTEMS)
                ]
            except Exception as error:
                failure = f"{type(error).__name__}: {error}".splitlines()[0]
        label = f"{variant.group:24} {variant.label}, warps {variant.warps}, stages {variant.stages}"
        print(
            f"{label:80} " + (failure[:60] if failure else "  ".join(f"{1e3 * t:9.2f}" for t in times) + " µs"),
            flush=True,
        )
        if not failure:
            rows.append(
                {
                    "kernel": variant.group,
                    "tile": f"{variant.label}, warps {variant.warps}, stages {variant.stages}",
                    "systems": SYSTEMS[-len(times) :],
                    "ms": times,
                }
            )
    if options.output:
        write_rows(options.output, rows)


if __name__ == "__main__":
    main()
