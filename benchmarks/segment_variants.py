"""Tile sizes of the kernels that are not fused perceptrons: sums over edges, convolutions, matrices of orders, layers one by one.

    python benchmarks/segment_variants.py --only moment dot --output segments.json

Shapes are those of Allegro "medium" on water (layers: also "large"; convolutions: the second layer of NequIP "M"), arithmetic is that
of fp32 artifacts. Every variant is timed for 25 atoms of 20 edges, 96 of 84 and 12,288 of 84 (layers: 262,144 rows); the little ones
repeatedly from a CUDA graph, as an artifact runs them, so that their arrays stay in the cache. Results are not checked here
(tests/operators does). The choices stand beside the kernels, in nequip_md/kernels/triton.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from kernel_variants import write_rows

from nequip_md.kernels.triton import (
    channel_product,
    dense,
    edge_contract,
    edge_moment,
    mlp_layers,
    tensor_product_convolution,
)
from nequip_md.model import build_model, preset
from nequip_md.model.nequip import convolution_paths
from nequip_md.model.nequip_irreps import plan_layers, width

SINGLE, HALF = torch.float32, torch.float16
SYSTEMS = ((25, 20), (96, 84), (12288, 84))
"""Atoms, edges of each."""
ROWS = 262144
ORDERS, COMPONENTS, CHANNELS = 4, 16, 64
MANY = 500_000
"""Edges from which on a kernel is timed with empty caches."""

Shape = tuple[torch.dtype, tuple[int, ...]]


@dataclass(frozen=True)
class Variant:
    group: str
    label: str
    kernel: triton.runtime.JITFunction
    arrays: Callable[[int, int], dict[str, Shape | str | int]]
    """From the numbers of atoms and edges: an array, the name of another argument that is the same one, or a number."""
    constants: dict[str, object]
    warps: int
    stages: int
    grid: Callable[[int, int], tuple[int, ...]]

    def arguments(self, values: dict[str, object]) -> list:
        return [self.constants[n] if n in self.constants else values[n] for n in self.kernel.arg_names]


def over_edges() -> Iterator[Variant]:
    for channels in (256, 64):
        for edges, warps, block, stages in (
            (16, 1, 128, 3),
            (32, 1, 128, 3),
            (32, 2, 128, 3),
            (32, 2, 128, 2),
            (64, 2, 64, 3),
        ):
            block = min(block, channels)
            yield Variant(
                f"moment {channels}",
                f"edges {edges}, block {block}",
                edge_moment.moment_product_kernel,
                lambda n, e, c=channels: {
                    "a": (SINGLE, (e, c)),
                    "y": (SINGLE, (e, COMPONENTS)),
                    "out": (SINGLE, (n, COMPONENTS, c)),
                },
                {
                    "C": channels,
                    "M": COMPONENTS,
                    "BLOCK_M": 16,
                    "BLOCK_C": block,
                    "EDGES": edges,
                    "PRECISION": "tf32x3",
                },
                warps,
                stages,
                lambda n, e, k=channels // block: (n, k),
            )
        for edges, warps, shares, block, stages in (
            (32, 2, 1, 256, 3),
            (32, 2, 1, 64, 3),
            (32, 2, 1, 64, 2),
            (32, 2, 3, 64, 2),
        ):
            block = min(block, channels)
            yield Variant(
                f"dot {channels}",
                f"edges {edges}, block {block}, shares {shares}",
                edge_moment.dot_product_kernel,
                lambda n, e, c=channels: {
                    "a": (SINGLE, (e, c)),
                    "z": (SINGLE, (n, COMPONENTS, c)),
                    "out": (SINGLE, (e, COMPONENTS)),
                },
                {
                    "C": channels,
                    "M": COMPONENTS,
                    "BLOCK_M": 16,
                    "BLOCK_C": block,
                    "EDGES": edges,
                    "PRECISION": "tf32x3",
                },
                warps,
                stages,
                lambda n, e, s=shares: (n, s),
            )
        starts = 2 if channels == 64 else 0
        for product in (False, True):
            for edges, warps, shares, block in ((16, 8, 1, 128), (16, 8, 3, 128), (32, 4, 1, 128), (32, 4, 3, 128)):
                block = min(block, channels)
                constants = {"C": channels, "BLOCK_C": block, "EDGES": edges, "STARTS": starts}
                if product:
                    constants |= {"M": COMPONENTS, "BLOCK_M": 16, "PRECISION": "tf32x3"}
                else:
                    constants |= {"L": ORDERS, "SLOTS": 1}
                yield Variant(
                    f"spread {channels}",
                    f"{'product' if product else 'plain'}, edges {edges}, shares {shares}",
                    edge_moment.spread_product_kernel if product else edge_moment.spread_kernel,
                    lambda n, e, c=channels: {
                        "y": (SINGLE, (e, COMPONENTS)),
                        "z": (SINGLE, (n, COMPONENTS, c)),
                        "out": (SINGLE, (e, c)),
                        "start0": (SINGLE, (e, c)),
                        "start1": (SINGLE, (e, c)),
                        "start2": "start0",
                        "start3": "start0",
                    },
                    constants,
                    warps if channels > 64 else 4,
                    3,
                    lambda n, e, k=channels // block, s=shares: (n, k, s),
                )

    def weights(e):
        return SINGLE, (e, ORDERS, CHANNELS)

    def rows(e):
        return SINGLE, (e, CHANNELS)

    def harmonics(e):
        return SINGLE, (e, COMPONENTS)

    def atoms(n):
        return SINGLE, (n, COMPONENTS, CHANNELS)

    for edges, warps, shares in ((16, 4, 1), (16, 4, 2), (16, 4, 6), (32, 4, 3), (8, 4, 6)):
        yield Variant(
            "contract",
            f"edges {edges}, shares {shares}",
            edge_contract.contract_kernel,
            lambda n, e: {"w": weights(e), "y": harmonics(e), "z": atoms(n), "out": rows(e)},
            {"U": CHANNELS, "L": ORDERS, "BLOCK_U": 64, "EDGES": edges},
            warps,
            3,
            lambda n, e, s=shares: (n, 1, s),
        )
    for block, edges, warps in ((64, 8, 4), (32, 8, 2), (32, 16, 4), (16, 16, 2), (16, 32, 2)):
        yield Variant(
            "contract moment",
            f"edges {edges}, block {block}",
            edge_contract.contract_moment_kernel,
            lambda n, e: {"g": rows(e), "w": weights(e), "y": harmonics(e), "dz": atoms(n)},
            {"U": CHANNELS, "L": ORDERS, "BLOCK_U": block, "BLOCK_M": 16, "EDGES": edges, "TOGETHER": True},
            warps,
            3,
            lambda n, e, k=CHANNELS // block: (n, k),
        )
    for edges, warps in ((8, 4), (16, 4), (16, 8), (32, 8)):
        yield Variant(
            "contract gradient",
            f"edges {edges}",
            edge_contract.contract_gradient_kernel,
            lambda n, e: {
                "g0": rows(e),
                "g1": rows(e),
                "g2": "g0",
                "g3": "g0",
                "w": weights(e),
                "y": harmonics(e),
                "z0": atoms(n),
                "z1": atoms(n),
                "z2": "z0",
                "z3": "z0",
                "dw": weights(e),
                "dy": harmonics(e),
                "dz": atoms(n),
            },
            {"U": CHANNELS, "L": ORDERS, "K": 2, "BLOCK_U": 64, "BLOCK_M": 16, "EDGES": edges, "TOGETHER": edges <= 16},
            warps,
            3,
            lambda n, e: (n,),
        )


def convolutions() -> Iterator[Variant]:
    irreps = plan_layers(preset("M", type_names=["H", "O"], cutoff=6.0, avg_num_neighbors=85.0))[1]
    paths, _ = convolution_paths(irreps)
    sources = tensor_product_convolution.convolution_sources([number for path in paths for number in path])
    table, last = tensor_product_convolution.component_tables(sources, torch.device("cpu")), sources[-1]
    widths = {
        "X_WIDTH": width(irreps.inputs),
        "G_WIDTH": width(irreps.messages),
        "W_WIDTH": sum(path.mul for path in paths),
        "COUPLING_WIDTH": last.coupling + last.width,
    }

    def arrays(n, e, programs):
        x, g, w, coupling = (
            (SINGLE, (rows, widths[name]))
            for rows, name in ((n, "X_WIDTH"), (n, "G_WIDTH"), (e, "W_WIDTH"), (e, "COUPLING_WIDTH"))
        )
        gradient = SINGLE, (e, (last.dcoupling + last.width) * max(programs, last.programs))
        return {
            "x": x,
            "g": g,
            "w": w,
            "coupling": coupling,
            "out": g,
            "dx": x,
            "dw": w,
            "dcoupling": gradient,
            "table": table,
            "neighbour": torch.randint(n, (e,)),
        }

    kernels = (
        ("sum", tensor_product_convolution.sum_kernel, (1, 2, 4)),
        ("nodes", tensor_product_convolution.nodes_kernel, (None,)),
        ("edges", tensor_product_convolution.edges_kernel, (None,)),
    )
    for name, kernel, unrolls in kernels:
        for source in sources:
            for block, warps in dict.fromkeys(
                ((source.channels, 1), (source.channels, 2), (source.channels, 4), (32, 1))
            ):
                for unroll, shares in ((u, s) for u in unrolls for s in ((1,) if u else (1, 6))):
                    programs = triton.cdiv(source.first.mul, block)
                    yield Variant(
                        f"convolution {name} l={source.first.l_in}",
                        f"channels {block}" + (f", unroll {unroll}" if unroll else f", shares {shares}"),
                        kernel,
                        lambda n, e, p=programs: arrays(n, e, p),
                        {
                            **source.constants(),
                            **widths,
                            "DCOUPLING_WIDTH": (last.dcoupling + last.width) * max(programs, last.programs),
                            "BLOCK_U": block,
                            "UNROLL": unroll,
                        },
                        warps,
                        3,
                        lambda n, e, p=programs, s=shares: (n, p, s),
                    )


def over_atoms() -> Iterator[Variant]:
    for inner, outer in ((256, 64), (64, 256)):
        for size, chunk, block, warps, stages in (
            (64, 64, 128, 4, 2),
            (32, 64, 64, 4, 3),
            (32, 64, 64, 8, 2),
            (16, 256, 64, 4, 2),
        ):
            chunk, block = min(chunk, inner), min(block, outer)
            yield Variant(
                f"mix {inner} to {outer}",
                f"rows {size}, chunk {chunk}, block {block}",
                dense.mix_kernel,
                lambda n, e, i=inner, o=outer: {
                    "x": (SINGLE, (n, COMPONENTS, i)),
                    "w_hi": (HALF, (ORDERS * i, o)),
                    "w_lo": (HALF, (ORDERS * i, o)),
                    "w_info": (SINGLE, (3, 1)),
                    "out": (SINGLE, (n, COMPONENTS, o)),
                    "N": n,
                },
                {
                    "K": inner,
                    "U": outer,
                    "M": COMPONENTS,
                    "PADDED_K": inner,
                    "PADDED_U": outer,
                    "BLOCK_U": block,
                    "TRANSPOSED": False,
                    "ROWS": size,
                    "CHUNK": chunk,
                    "PRODUCTS": 3,
                },
                warps,
                stages,
                lambda n, e, size=size, k=outer // block: (triton.cdiv(7 * n, size), ORDERS, k),
            )
    layer = build_model(preset("medium", type_names=["H", "O"], cutoff=6.0, avg_num_neighbors=85.0)).layers[0]
    output, order = layer.table[3].sort(stable=True)
    inputs, environment = (int(layer.table[row].max()) + 1 for row in (1, 2))
    terms = {
        "table": layer.table[:3].index_select(1, order),
        "values": layer.values.index_select(0, order).float(),
        "offsets": (output < torch.arange(layer.dim_in + 1).unsqueeze(1)).sum(dim=1),
    }
    for unroll, size, warps in ((4, 8, 4), (8, 8, 4), (8, 4, 4), (8, 2, 1)):
        yield Variant(
            "channel product",
            f"unroll {unroll}, atoms {size}",
            channel_product.channel_product_kernel,
            lambda n, e: {
                "x": (SINGLE, (n, inputs, CHANNELS)),
                "y": (SINGLE, (n, environment, CHANNELS)),
                "N": n,
                **terms,
                "w": (SINGLE, (len(layer.path_weights), CHANNELS)),
                "out": (SINGLE, (n, layer.dim_in, CHANNELS)),
            },
            {
                "A": inputs,
                "B": environment,
                "D": layer.dim_in,
                "TERMS": layer.table.shape[1],
                "U": CHANNELS,
                "BLOCK_U": 64,
                "ATOMS": size,
                "UNROLL": unroll,
            },
            warps,
            3,
            lambda n, e, size=size: (triton.cdiv(n, size) * layer.dim_in,),
        )


def dense_products() -> Iterator[Variant]:
    for then, transposed in (("", False), ("silu", False), ("", True)):
        for block, chunk, stages in ((128, 64, 2), (128, 32, 3), (256, 32, 2), (256, 32, 3)):
            yield Variant(
                f"dense 512 {'transposed ' * transposed}{then}",
                f"block {block}, chunk {chunk}",
                dense.dense_kernel,
                lambda n, e: {
                    "x": (SINGLE, (ROWS, 512)),
                    "w_hi": (HALF, (512, 512)),
                    "w_lo": (HALF, (512, 512)),
                    "w_info": (SINGLE, (3, 1)),
                    "out": (SINGLE, (ROWS, 512)),
                    "d": (SINGLE, (ROWS, 512)),
                    "count": ROWS,
                },
                {
                    "K": 512,
                    "N": 512,
                    "BLOCK_N": block,
                    "PADDED_N": 512,
                    "PADDED_K": 512,
                    "TRANSPOSED": transposed,
                    "THEN": then,
                    "ROWS": 128,
                    "CHUNK": chunk,
                    "PRODUCTS": 3,
                },
                8,
                stages,
                lambda n, e, k=512 // block: (ROWS // 128, k),
            )


def layers() -> Iterator[Variant]:
    """Shapes of perceptrons that run layer by layer: the widths of "large", and 256."""
    tiles = (
        (128, 256, 64, 8, 4),
        (128, 256, 64, 8, 3),
        (128, 256, 32, 8, 6),
        (128, 128, 64, 8, 4),
        (128, 128, 64, 4, 3),
        (64, 256, 64, 4, 4),
        (256, 128, 64, 8, 3),
    )
    of_large = (512, (512,), "silu"), (512, (512,), "times d"), (512, (64, 128, 128, 128), "")
    for inner, widths, then in (*of_large, (256, (256,), "silu")):
        outer = sum(widths)
        for products in (3, 1):
            for size, block, chunk, warps, stages in tiles:
                columns = block * triton.cdiv(outer, block)
                kinds = {f"K{j}": widths[j] if j < len(widths) else 0 for j in range(4)}

                def arrays(
                    n,
                    e,
                    i=inner,
                    o=outer,
                    p=products,
                    c=columns,
                    w=widths,
                    halved=bool(then),
                    b=columns // block,
                    k=chunk,
                ):
                    outs = [(HALF, (1 if p == 1 else 2, ROWS, o))] if halved else [(SINGLE, (ROWS, k)) for k in w]
                    return {
                        "x": (HALF, (1 if p == 1 else 2, ROWS, i)),
                        "scales": (SINGLE, (ROWS,)),
                        "squares": (SINGLE, (1, ROWS)),
                        "w": (HALF, (1 if p == 1 else 2, i, c)),
                        "w_info": (SINGLE, (3, 1)),
                        "d": (HALF if p == 1 else SINGLE, (ROWS, o)),
                        "out_scales": (SINGLE, (ROWS,)),
                        "out_squares": (SINGLE, (b, ROWS)),
                        **{
                            name: outs[j] if j < len(outs) else "out"
                            for j, name in enumerate(("out", "out1", "out2", "out3"))
                        },
                        "count": ROWS,
                        "steps": p * i // k,
                    }

                yield Variant(
                    f"layer {inner} to {outer} {then} {'tf32' * (products == 1)}".strip(),
                    f"rows {size}, block {block}, chunk {chunk}",
                    mlp_layers.layer_kernel,
                    arrays,
                    {
                        "K": inner,
                        "N": outer,
                        "PADDED_N": columns,
                        "BLOCK_N": block,
                        "BLOCKS_IN": 1,
                        "THEN": then,
                        "TO_HALVES": bool(then),
                        "WIDTH": outer,
                        "PARTS": len(widths),
                        **kinds,
                        "ROWS": size,
                        "CHUNK": chunk,
                        "PRODUCTS": products,
                    },
                    warps,
                    stages,
                    lambda n, e, size=size, k=columns // block: (ROWS // size * k,),
                )
    for widths in ((64, 128, 128, 128), (512,)):
        for products in (3, 1):
            for size, warps in ((8, 4), (16, 4), (16, 8), (32, 8)):
                kinds = {f"{letter}{j}": widths[j] if j < len(widths) else 64 for letter in "KPB" for j in range(4)}
                yield Variant(
                    f"halves {sum(widths)} {'tf32' * (products == 1)}".strip(),
                    f"rows {size}",
                    mlp_layers.halves_kernel,
                    lambda n, e, w=widths, p=products: {
                        **{f"x{j}": (SINGLE, (ROWS, w[j])) if j < len(w) else "x0" for j in range(4)},
                        "d": (HALF if p == 1 else SINGLE, (ROWS, w[0])),
                        "x": (HALF, (1 if p == 1 else 2, ROWS, sum(w))),
                        "scales": (SINGLE, (ROWS,)),
                        "squares": (SINGLE, (1, ROWS)),
                        "count": ROWS,
                    },
                    {
                        "PARTS": len(widths),
                        **kinds,
                        "WIDTH": sum(widths),
                        "TIMES": len(widths) == 1,
                        "ONE_ROW": False,
                        "ROWS": size,
                        "PRODUCTS": products,
                    },
                    warps,
                    3,
                    lambda n, e, size=size: (ROWS // size,),
                )


VARIANTS = [*over_edges(), *convolutions(), *over_atoms(), *dense_products(), *layers()]
OF_ROWS = ("dense", "layer", "halves")
"""Kernels of perceptrons, timed for ROWS edges."""
GROUPS = list(dict.fromkeys(v.group for v in VARIANTS))


def compile_one(index: int) -> str | None:
    """Into Triton's cache on disk, by a process of its own."""
    variant = VARIANTS[index]
    arrays = variant.arrays(*SYSTEMS[1]) | {"row_ptr": (torch.int64, ())}

    def type_of(value):
        value = arrays[value] if isinstance(value, str) else value
        return value.dtype if torch.is_tensor(value) else value[0] if isinstance(value, tuple) else value

    arguments = variant.arguments({name: type_of(value) for name, value in arrays.items()})
    try:
        variant.kernel.warmup(*arguments, grid=(1,), num_warps=variant.warps, num_stages=variant.stages)
    except Exception as error:  # a tile that does not fit; the others go on
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def measure(variant: Variant, atoms: int, edges_each: int) -> float:
    """Time in ms."""
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
    torch.cuda.synchronize()  # a graph is timed in another stream, which does not wait for the arrays to be filled
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
