"""Instances of the kernels for Hopper: templates that are compiled for the sizes of a model when it is exported.

``perceptron.cuh`` has the kernels of perceptrons, ``contraction.cuh`` those over edges and atoms, ``ptx.cuh`` their inline PTX.
"""

from __future__ import annotations

from importlib.resources import files

import torch
from torch import Tensor
from torch.nn.functional import pad

from nequip_md.kernels.hopper import layout
from nequip_md.kernels.triton.weights import split

_SHARED_MEMORY = 227 * 1024
_MOST_STAGES = 8
_MOST_COLUMNS = 4
"""Blocks that a second layer may have, and an input: their sums are held in registers."""
_LANES, _MOST_WARPS, _STAGES = 32, 8, 4
"""Lanes of a warp, most warps of a program and stages of the ring, as in contraction.cuh."""
MOST_NUMBERS = 96
"""That a thread of those keeps: the vectors of a centre in every layer and their gradient; an atom's two tensors and the paths."""


class Instances:
    """Instances of the kernels that one export needs, and what they read of a model.

    Args:
        products: three for ``fp32``, one for ``tf32``.
    """

    def __init__(self, products: int):
        self.products = products
        self.numbers: dict[tuple[str, str, int], int] = {}
        """Number by the kernel's kind, what it is an instance of, and bytes of shared memory."""

    def number(self, kind: str, shape: str, shared: int) -> int:
        """Number of an instance, new or known."""
        return self.numbers.setdefault((kind, shape, shared), len(self.numbers))

    def _layout(self, panels: int) -> tuple[int, int]:
        """Stages of the ring and bytes of shared memory, for operands of so many panels."""
        halves = 2 if self.products == 3 else 1
        block = halves * layout.SIDE * layout.SIDE * 2
        fixed = 2 * panels * block + 2 * layout.SIDE * 8
        stages = min(_MOST_STAGES, (_SHARED_MEMORY - fixed) // (block + 16))
        return stages, fixed + stages * (block + 16)

    def _instance(
        self, kind: str, widths: list[int], inner: int, outer: int, last: int, panels: int, *options: str
    ) -> int:
        stages, shared = self._layout(panels)
        parts = f"perceptron::Parts<{', '.join(map(str, widths))}>"
        shape = ", ".join([*options, parts, *map(str, (inner, outer, last, panels, self.products, stages))])
        return self.number(kind, shape, shared)

    @staticmethod
    def _panels(widths: list[int], outer: int, last: int) -> int:
        """Panels of the largest operand in shared memory."""
        return max(sum(map(layout.num_blocks, widths)), layout.num_blocks(outer), layout.num_blocks(last))

    def takes_layers(self, widths: list[int], inner: int, outer: int, last: int = 0) -> bool:
        """Whether there is a kernel for input parts of these widths, layers of ``inner`` and ``outer`` and a matrix after them."""
        multiples = all(k % 8 == 0 for k in (*widths, inner, outer, last))
        return multiples and self._panels(widths, outer, last) <= _MOST_COLUMNS

    def _halves(
        self, w: Tensor, widths: list[int], first: bool = False, last: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Blocks of w and of its transpose, and what scales and bounds them.

        Args:
            first, last: the left operand comes from memory, of w (the input) or of its transpose (a gradient).
        """
        hi, lo, info = split(w, widths, layout.padded_width)
        halves = torch.stack([hi, lo] if self.products == 3 else [hi])
        return layout.to_blocks(halves, not first), layout.to_blocks(halves.transpose(1, 2), not last), info

    def takes_contraction(self, w: Tensor, layers: int) -> bool:
        """Whether there is a kernel for the gradient of so many contractions with weights w, [E, L, U]."""
        _, orders, channels = w.shape
        per_lane = channels // _LANES
        small = orders <= 4 and per_lane <= 2 and (layers + 1) * orders**2 * per_lane <= MOST_NUMBERS
        return w.dtype == torch.float32 and channels % _LANES == 0 and small

    # ---- what a kernel reads of a model, and its instance ----

    def energy_constants(
        self, widths: list[int], w1: Tensor, w2: Tensor, v: Tensor, r: Tensor, scaled: bool
    ) -> tuple[list[Tensor], int]:
        """stream, w1_info, w2_info, v, r."""
        inner, outer = w2.shape
        (first, first_t, w1_info), (second, second_t, w2_info) = (
            self._halves(w1, widths, first=True),
            self._halves(w2, [inner]),
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
        """stream, w1_info, w2_info, w3_info."""
        (inner, outer), last = w2.shape, matrix_width(w3)
        (first, _, w1_info), (second, _, w2_info) = self._halves(w1, widths, first=True), self._halves(w2, [inner])
        stream, w3_info = layout.join(first, second), w2_info
        if w3 is not None:
            third, _, w3_info = self._halves(w3, [outer], last=True)
            stream = torch.cat([stream, third.transpose(0, 1).flatten(0, 1)])
        return [stream, w1_info, w2_info, w3_info], self._instance(
            "hidden", widths, inner, outer, last, sum(map(layout.num_blocks, widths))
        )

    def hidden_backward_constants(
        self, widths: list[int], w1: Tensor, w2: Tensor, w3: Tensor | None
    ) -> tuple[list[Tensor], int]:
        """stream, w1_info, w2_info, w3_info."""
        (inner, outer), last = w2.shape, matrix_width(w3)
        (_, first_t, w1_info), (_, second_t, w2_info) = self._halves(w1, widths, first=True), self._halves(w2, [inner])
        stream, w3_info = layout.join(second_t, first_t), w2_info
        if w3 is not None:
            _, third_t, w3_info = self._halves(w3, [outer], last=True)
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

    def source(self, text: str | None = None) -> str:
        """The kernels' text, or another version of it, with one line for each instance."""
        folder = files("nequip_md.kernels.hopper")
        text = text or "".join((folder / name).read_text() for name in ("ptx.cuh", "perceptron.cuh", "contraction.cuh"))
        return text + "".join(
            f"NQ_{kind.upper()}({name}, {shared}, {shape})\n" for name, (kind, shape, shared) in self.names().items()
        )

    def names(self) -> dict[str, tuple[str, str, int]]:
        """Instances by the names of their kernels."""
        return {f"hopper_{key[0]}_{number}": key for key, number in self.numbers.items()}


def matrix_width(w: Tensor | None) -> int:
    """Columns; 0: there is no matrix."""
    return 0 if w is None else w.shape[1]
