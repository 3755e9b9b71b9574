"""Candidate tiles of the kernels over edges, for segment_variants.py: sums over a centre's edges, and NequIP's convolution."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import triton

from nequip_md.kernels.triton import edge_contract, edge_moment, tensor_product_convolution
from nequip_md.model import preset
from nequip_md.model.nequip import convolution_paths
from nequip_md.model.nequip_irreps import plan_layers, width

SINGLE, HALF = torch.float32, torch.float16
ROWS = 262144
ORDERS, COMPONENTS, CHANNELS = 4, 16, 64
Shape = tuple[torch.dtype, tuple[int, ...]]


@dataclass(frozen=True)
class Variant:
    group: str
    label: str
    kernel: triton.runtime.JITFunction
    arrays: Callable[[int, int], dict[str, Shape | str | int]]
    """Function of the numbers of atoms and edges that returns the arguments by name: the shape and dtype of an array, the name of another
    argument with the same array, or a number."""
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
