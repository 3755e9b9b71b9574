"""Candidate tiles of the kernels of matrix products and of products in atoms, for segment_variants.py."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
from edge_tiles import CHANNELS, COMPONENTS, HALF, ORDERS, ROWS, SINGLE, Variant

from nequip_md.kernels.triton import channel_product, dense, mlp_layers
from nequip_md.model import build_model, preset


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
    """Shapes of MLPs that run layer by layer: the widths of "large", and 256."""
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
                        "TO_FP16": bool(then),
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
                    f"split {sum(widths)} {'tf32' * (products == 1)}".strip(),
                    f"rows {size}",
                    mlp_layers.split_kernel,
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
