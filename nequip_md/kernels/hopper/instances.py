"""Instances of the kernels for Hopper: templates that are compiled for the sizes of a model when it is exported.

The ``mlp_*.cuh`` files have the kernels of MLPs, ``contraction.cuh`` those over edges and atoms, ``ptx.cuh`` their inline PTX.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from nequip_md.kernels.hopper import layout
from nequip_md.kernels.triton.weights import split

SOURCES = (
    "ptx.cuh",
    "mlp_arithmetic.cuh",
    "mlp_weight_stream.cuh",
    "mlp_tiles.cuh",
    "mlp_layers.cuh",
    "mlp_kernels.cuh",
    "contraction.cuh",
)
"""Files that are compiled as one text, in this order: each needs those before it."""

_SHARED_MEMORY = 227 * 1024
_MOST_STAGES = 8
_MOST_COLUMNS = 4
"""Most blocks of 64 columns of a second layer, and of an input: their accumulators are held in registers."""
_LANES, _MOST_WARPS, _STAGES = 32, 8, 4
"""Lanes of a warp, most warps of a thread block, and stages of the pipeline, as in contraction.cuh."""
MOST_NUMBERS = 96
"""Most floats that a thread of contraction.cuh keeps in registers: the vectors of a centre in every layer and their gradient, or an
atom's two tensors and the path weights."""


class Instances:
    """Instances of the kernels that one export needs, and the constants that they read.

    Args:
        products: three for ``fp32``, one for ``tf32``.
    """

    def __init__(self, products: int):
        self.products = products
        self.numbers: dict[tuple[str, str, int], int] = {}
        """Number of each instance, by the kind of kernel, its template arguments, and bytes of shared memory."""

    def number(self, kind: str, shape: str, shared: int) -> int:
        """Number of an instance, which is added if it is new."""
        return self.numbers.setdefault((kind, shape, shared), len(self.numbers))

    def _layout(self, panels: int) -> tuple[int, int]:
        """Stages of the ring and bytes of shared memory, for operands of ``panels`` panels."""
        fp16_parts = 2 if self.products == 3 else 1
        block = fp16_parts * layout.SIDE * layout.SIDE * 2
        fixed = 2 * panels * block + 2 * layout.SIDE * 8
        stages = min(_MOST_STAGES, (_SHARED_MEMORY - fixed) // (block + 16))
        return stages, fixed + stages * (block + 16)

    def _instance(
        self, kind: str, widths: list[int], inner: int, outer: int, last: int, panels: int, *options: str
    ) -> int:
        stages, shared = self._layout(panels)
        parts = f"mlp::Parts<{', '.join(map(str, widths))}>"
        shape = ", ".join([*options, parts, *map(str, (inner, outer, last, panels, self.products, stages))])
        return self.number(kind, shape, shared)

    @staticmethod
    def _panels(widths: list[int], outer: int, last: int) -> int:
        """Panels of the largest operand in shared memory."""
        return max(sum(map(layout.num_blocks, widths)), layout.num_blocks(outer), layout.num_blocks(last))

    def takes_layers(self, widths: list[int], inner: int, outer: int, last: int = 0) -> bool:
        """Whether there is a kernel for input parts of these widths, layers of widths ``inner`` and ``outer``, and a matrix of ``last``
        columns that reads them (0: none)."""
        multiples = all(k % 8 == 0 for k in (*widths, inner, outer, last))
        return multiples and self._panels(widths, outer, last) <= _MOST_COLUMNS

    def _blocks(
        self, w: Tensor, widths: list[int], first: bool = False, last: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Blocks of w, blocks of its transpose, and the scale and norms of w (:func:`split`).

        Args:
            first: the left operand of a product with w comes from memory, as the input does.
            last: so does that of a product with the transpose of w, as a gradient does.
        """
        hi, lo, info = split(w, widths, layout.padded_width)
        parts = torch.stack([hi, lo] if self.products == 3 else [hi])
        return layout.to_blocks(parts, not first), layout.to_blocks(parts.transpose(1, 2), not last), info

    def takes_contraction(self, w: Tensor, layers: int) -> bool:
        """Whether there is a kernel for the gradient of ``layers`` contractions with weights w [E, L, U]."""
        _, orders, channels = w.shape
        per_lane = channels // _LANES
        small = orders <= 4 and per_lane <= 2 and (layers + 1) * orders**2 * per_lane <= MOST_NUMBERS
        return w.dtype == torch.float32 and channels % _LANES == 0 and small

    # ---- constants of a kernel, and its instance ----

    def energy_constants(
        self, widths: list[int], w1: Tensor, w2: Tensor, v: Tensor, r: Tensor, scaled: bool
    ) -> tuple[list[Tensor], int]:
        """Constants stream, w1_info, w2_info, v and r of the energy kernel, and its instance."""
        inner, outer = w2.shape
        (first, first_t, w1_info), (second, second_t, w2_info) = (
            self._blocks(w1, widths, first=True),
            self._blocks(w2, [inner]),
        )
        stream = torch.cat([layout.join(first, second), layout.join(second_t, first_t)])
        r = torch.cat([pad(c, (0, layout.padded_width(k) - k)) for c, k in zip(r.split(widths), widths)])
        v = pad(v, (0, layout.padded_width(outer) - outer))
        instance = self._instance(
            "energy", widths, inner, outer, 0, self._panels(widths, outer, 0), str(scaled).lower()
        )
        return [stream, w1_info, w2_info, v, r], instance

    def hidden_constants(
        self, widths: list[int], w1: Tensor, w2: Tensor, w3: Tensor | None
    ) -> tuple[list[Tensor], int]:
        """Constants stream, w1_info, w2_info and w3_info of the kernel of hidden layers, and its instance."""
        (inner, outer), last = w2.shape, matrix_width(w3)
        (first, _, w1_info), (second, _, w2_info) = self._blocks(w1, widths, first=True), self._blocks(w2, [inner])
        stream, w3_info = layout.join(first, second), w2_info
        if w3 is not None:
            third, _, w3_info = self._blocks(w3, [outer], last=True)
            stream = torch.cat([stream, third.transpose(0, 1).flatten(0, 1)])
        return [stream, w1_info, w2_info, w3_info], self._instance(
            "hidden", widths, inner, outer, last, sum(map(layout.num_blocks, widths))
        )

    def hidden_backward_constants(
        self, widths: list[int], w1: Tensor, w2: Tensor, w3: Tensor | None
    ) -> tuple[list[Tensor], int]:
        """Constants stream, w1_info, w2_info and w3_info of the kernel of hidden layers' gradient, and its instance."""
        (inner, outer), last = w2.shape, matrix_width(w3)
        (_, first_t, w1_info), (_, second_t, w2_info) = self._blocks(w1, widths, first=True), self._blocks(w2, [inner])
        stream, w3_info = layout.join(second_t, first_t), w2_info
        if w3 is not None:
            _, third_t, w3_info = self._blocks(w3, [outer], last=True)
            stream = torch.cat([third_t.flatten(0, 1), stream])
        instance = self._instance("hidden_backward", widths, inner, outer, last, self._panels(widths, outer, last))
        return [stream, w1_info, w2_info, w3_info], instance

    def contraction(self, kind: str, w: Tensor, layers: int) -> int:
        """Instance of a kernel over the edges of a centre."""
        _, orders, channels = w.shape
        edge = (orders + layers) * channels + -(-(orders**2) // 4) * 4
        numbers = _MOST_WARPS * max(_STAGES * edge, orders**2 * channels)
        return self.number(kind, f"{channels}, {orders}, {layers}", 4 * numbers)

    # ---- compilation ----

    def source(self, folder: Path | None = None) -> str:
        """Text to compile: the .cuh files of this folder, or of another one, and one line for each instance."""
        text = "".join(((folder or files("nequip_md.kernels.hopper")) / name).read_text() for name in SOURCES)
        return text + "".join(
            f"NQ_{kind.upper()}({name}, {shared}, {shape})\n" for name, (kind, shape, shared) in self.names().items()
        )

    def names(self) -> dict[str, tuple[str, str, int]]:
        """Each instance by the name of its kernel."""
        return {f"hopper_{key[0]}_{number}": key for key, number in self.numbers.items()}


def matrix_width(w: Tensor | None) -> int:
    """Number of columns; 0 if there is no matrix."""
    return 0 if w is None else w.shape[1]
