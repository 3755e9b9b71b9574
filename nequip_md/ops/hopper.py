"""The CUDA C++ kernels for Hopper GPUs: what they take, how weights are laid out, how they get into an artifact.

``csrc/perceptron.cuh`` (perceptrons) and ``csrc/contraction.cuh`` (gradients of contractions, products of an atom's tensors) have the
kernels, templates that are compiled for the sizes of a model when it is exported; ``csrc/ptx.cuh`` has their inline PTX.
AOTInductor calls the operators here through C functions (``csrc/hopper_launch.cpp``) that are linked into the artifact together with
the compiled kernels, as the C++ kernels are on a CPU (:mod:`nequip_md.ops.cpu`). The operators' references read the same arrays of
weights as the kernels do.
"""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from importlib.resources import as_file, files
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from nequip_md.errors import NequIPMDError
from nequip_md.ops import cuda, mlp
from nequip_md.ops._operator import define
from nequip_md.ops.channel_product import _product_reference
from nequip_md.ops.edge_contract import _gradient_reference
from nequip_md.ops.edge_moment import edge_moment
from nequip_md.ops.static_library import build, searched

SIDE = 64
"""Of a block of weights."""
_SHARED_MEMORY = 227 * 1024
_MOST_STAGES = 8
_MOST_COLUMNS = 4
"""Blocks that a second layer may have, and an input: their sums are held in registers."""
_PIECE = 8
"""Halves that the swizzle moves together."""
_LANES, _MOST_WARPS, _STAGES = 32, 8, 4
"""Of the kernels in contraction.cuh."""
_MOST_NUMBERS = 96
"""That a thread of those keeps: the vectors of a centre in every layer and their gradient; an atom's two tensors and the paths."""
_MOST_TERMS = 800
"""That a product of an atom's tensors may have, one statement each."""


def available() -> bool:
    """Whether PyTorch sees a GPU that these kernels are for."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)


# ---- weights ------------------------------------------------------------------------------------------------------


def _blocks(width: int) -> int:
    return -(-width // SIDE)


def _padded(width: int) -> int:
    return SIDE * _blocks(width)


def _swizzle(blocks: Tensor) -> Tensor:
    """The j-th piece of row n goes to place j xor n mod 8; its own inverse."""
    rows, pieces = torch.arange(SIDE, device=blocks.device), torch.arange(SIDE // _PIECE, device=blocks.device)
    places = (pieces.unsqueeze(0) ^ (rows % 8).unsqueeze(1)).unsqueeze(-1)
    split = blocks.unflatten(-1, (SIDE // _PIECE, _PIECE))
    return split.gather(-2, places.expand(split.shape)).flatten(-2)


def _exchange(x: Tensor, dim: int) -> Tensor:
    """Of every 16, columns 4 q + 2 b + e go to 8 b + 2 q + e (q < 4, b < 2, e < 2): where a thread has them in a result."""
    dim %= x.dim()
    return x.unflatten(dim, (-1, 4, 2, 2)).transpose(dim + 1, dim + 2).flatten(dim, dim + 3)


def _exchange_back(x: Tensor, dim: int) -> Tensor:
    dim %= x.dim()
    return x.unflatten(dim, (-1, 2, 4, 2)).transpose(dim + 1, dim + 2).flatten(dim, dim + 3)


def _to_blocks(halves: Tensor, exchanged: bool) -> Tensor:
    """[1 or 2, K, N], multiples of 64, as [K / 64, N / 64, 1 or 2, 64 (n), 64 (k)].

    Args:
        exchanged: the left operand of a product with them is the result of another.
    """
    halves = _exchange(halves, 2)
    if exchanged:
        halves = _exchange(halves, 1)
    count, rows, columns = halves.shape
    blocks = halves.reshape(count, rows // SIDE, SIDE, columns // SIDE, SIDE)
    return _swizzle(blocks.permute(1, 3, 0, 4, 2).contiguous())


def _from_blocks(blocks: Tensor, exchanged: bool) -> Tensor:
    """The inverse, summed over the halves: [K, N], fp32."""
    summed = _swizzle(blocks).float().sum(dim=2)
    matrix = _exchange_back(summed.permute(0, 3, 1, 2).reshape(blocks.shape[0] * SIDE, blocks.shape[1] * SIDE), 1)
    return _exchange_back(matrix, 0) if exchanged else matrix


def _join(first: Tensor, second: Tensor) -> Tensor:
    """Blocks [K, C, ...] and [C, N, ...] in the order of a product by both, chunk by chunk of what lies between."""
    return torch.cat([first.transpose(0, 1), second], dim=1).flatten(0, 1)


def _part(blocks: Tensor, first: int, chunks: int, second: int) -> tuple[Tensor, Tensor]:
    both = blocks.unflatten(0, (chunks, first + second))
    return both[:, :first].transpose(0, 1), both[:, first:]


def _remove_padding(w: Tensor, widths: list[int], columns: int) -> Tensor:
    parts = [part[:k] for part, k in zip(w.split([_padded(k) for k in widths]), widths)]
    return torch.cat(parts)[:, :columns]


# ---- operators ----------------------------------------------------------------------------------------------------


def _pairs(
    stream: Tensor, w1_info: Tensor, w2_info: Tensor, widths: list[int], inner: int, outer: int, transposed: bool
):
    """W1 and W2 as they are in the part of a stream that has both."""
    panels, chunks, columns = sum(map(_blocks, widths)), _blocks(inner), _blocks(outer)
    if transposed:
        w2, w1 = (_from_blocks(b, True).T for b in _part(stream, columns, chunks, panels))
    else:
        first, second = _part(stream, panels, chunks, columns)
        w1, w2 = _from_blocks(first, False), _from_blocks(second, True)
    w1, w2 = w1 * w1_info[0], w2 * w2_info[0]
    return _remove_padding(w1, widths, inner), _remove_padding(w2, [inner], outer)


def _with_empty(tensors: list[Tensor]) -> list[Tensor]:
    """Four results, as a schema has them; those of parts that are not there are empty."""
    return [*tensors, *[tensors[0].new_empty((0, 0))] * (4 - len(tensors))]


def _energy_reference(
    x0, x1, x2, x3, stream, w1_info, w2_info, v, r, factor, widths, inner, outer, products, scaled, instance
):
    parts = [x0, x1, x2, x3][: len(widths)]
    forward, backward = stream.chunk(2)
    w1, w2 = _pairs(forward, w1_info, w2_info, widths, inner, outer, False)
    w1_back, w2_back = _pairs(backward, w1_info, w2_info, widths, inner, outer, True)
    r = _remove_padding(r.unsqueeze(1), widths, 1).squeeze(1)
    h, d1, d2 = mlp._hidden_reference(parts, [w1, w2])
    scale = factor.unsqueeze(1) if scaled else 1.0
    gradient = mlp._hidden_backward_reference(v[:outer].expand_as(d2), [d1, d2], [w1_back, w2_back], widths)
    energy = (h @ v[:outer] + torch.cat(parts, dim=-1) @ r).unsqueeze(1) * scale
    return (energy.squeeze(1), *_with_empty([(g + c) * scale for g, c in zip(gradient, r.split(widths))]))


def _hidden_reference(
    x0, x1, x2, x3, stream, w1_info, w2_info, w3_info, widths, inner, outer, last, products, instance
):
    parts, pairs = [x0, x1, x2, x3][: len(widths)], _blocks(inner) * (sum(map(_blocks, widths)) + _blocks(outer))
    h, d1, d2 = mlp._hidden_reference(
        parts, list(_pairs(stream[:pairs], w1_info, w2_info, widths, inner, outer, False))
    )
    if last:
        w3 = (
            _from_blocks(stream[pairs:].unflatten(0, (_blocks(last), _blocks(outer))).transpose(0, 1), True)
            * w3_info[0]
        )
        y = h @ _remove_padding(w3, [outer], last)
    else:
        y = h.new_empty((0, 0))
    stored = cuda._derivative_dtype(products)
    return h, y, d1.to(stored), d2.to(stored)


def _hidden_backward_reference(
    g, dy, d1, d2, stream, w1_info, w2_info, w3_info, widths, inner, outer, last, products, instance
):
    before = _blocks(last) * _blocks(outer)
    if last:
        w3 = _from_blocks(stream[:before].unflatten(0, (_blocks(last), _blocks(outer))), False).T * w3_info[0]
        g = g + dy @ _remove_padding(w3, [outer], last).T
    weights = _pairs(stream[before:], w1_info, w2_info, widths, inner, outer, True)
    return tuple(_with_empty(mlp._hidden_backward_reference(g, [d1.float(), d2.float()], list(weights), widths)))


def _centres(row_ptr: Tensor, edges: int) -> Tensor:
    return torch.repeat_interleave(row_ptr.diff(), output_size=edges)


def _contract_gradient_reference(g0, g1, g2, g3, w, y, z0, z1, z2, z3, row_ptr, layers, instance):
    g, z = [g0, g1, g2, g3][:layers], [z0, z1, z2, z3][:layers]
    return _gradient_reference(g, w, y, z, _centres(row_ptr, len(w)), row_ptr)


def _contract_moment_reference(g, w, y, row_ptr, instance):
    return edge_moment(g.unsqueeze(1) * w, y, _centres(row_ptr, len(w)), row_ptr)


def _channel_product_reference(x, y, w, table, values, offsets, dim, instance):
    output = torch.repeat_interleave(offsets.diff(), output_size=table.shape[1])
    return _product_reference(x, y, w, torch.cat([table, output.unsqueeze(0)]), values, dim)


_ENERGY = define(
    "hopper_energy(Tensor x0, Tensor x1, Tensor x2, Tensor x3, Tensor stream, Tensor w1_info, Tensor w2_info, Tensor v, Tensor r, "
    "Tensor factor, int[] widths, int inner, int outer, int products, int scaled, int instance) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _energy_reference,
)
_HIDDEN = define(
    "hopper_hidden(Tensor x0, Tensor x1, Tensor x2, Tensor x3, Tensor stream, Tensor w1_info, Tensor w2_info, Tensor w3_info, "
    "int[] widths, int inner, int outer, int last, int products, int instance) -> (Tensor, Tensor, Tensor, Tensor)",
    _hidden_reference,
)
_HIDDEN_BACKWARD = define(
    "hopper_hidden_backward(Tensor g, Tensor dy, Tensor d1, Tensor d2, Tensor stream, Tensor w1_info, Tensor w2_info, Tensor w3_info, "
    "int[] widths, int inner, int outer, int last, int products, int instance) -> (Tensor, Tensor, Tensor, Tensor)",
    _hidden_backward_reference,
)
_CONTRACT_GRADIENT = define(
    "hopper_contract_gradient(Tensor g0, Tensor g1, Tensor g2, Tensor g3, Tensor w, Tensor y, Tensor z0, Tensor z1, Tensor z2, Tensor z3, "
    "Tensor row_ptr, int layers, int instance) -> (Tensor, Tensor, Tensor)",
    _contract_gradient_reference,
    fake=lambda *a: (a[4].new_empty(a[4].shape), a[5].new_empty(a[5].shape), a[6].new_empty(a[6].shape)),
)
_CONTRACT_MOMENT = define(
    "hopper_contract_moment(Tensor g, Tensor w, Tensor y, Tensor row_ptr, int instance) -> Tensor",
    _contract_moment_reference,
    fake=lambda g, w, y, row_ptr, instance: w.new_empty((row_ptr.shape[0] - 1, y.shape[1], w.shape[2])),
)
_CHANNEL_PRODUCT = define(
    "hopper_channel_product(Tensor x, Tensor y, Tensor w, Tensor table, Tensor values, Tensor offsets, int dim, int instance) -> Tensor",
    _channel_product_reference,
    fake=lambda x, y, w, table, values, offsets, dim, instance: x.new_empty((x.shape[0], dim, x.shape[2])),
)
OPERATORS = frozenset({_ENERGY, _HIDDEN, _HIDDEN_BACKWARD, _CONTRACT_GRADIENT, _CONTRACT_MOMENT, _CHANNEL_PRODUCT})


# ---- instances ----------------------------------------------------------------------------------------------------


class Kernels:
    """The forms of one export, and the instances of the kernels that they need.

    Args:
        products: three for ``fp32``, one for ``tf32``.
    """

    def __init__(self, products: int):
        self.products = products
        self.instances: dict[tuple[str, str, int], int] = {}
        """Number by the kernel's kind, what it is an instance of, and bytes of shared memory."""

    def _layout(self, panels: int) -> tuple[int, int]:
        """Stages of the ring and bytes of shared memory, for operands of so many panels."""
        halves = 2 if self.products == 3 else 1
        block = halves * SIDE * SIDE * 2
        fixed = 2 * panels * block + 2 * SIDE * 8
        stages = min(_MOST_STAGES, (_SHARED_MEMORY - fixed) // (block + 16))
        return stages, fixed + stages * (block + 16)

    def _instance(
        self, kind: str, widths: list[int], inner: int, outer: int, last: int, panels: int, *options: str
    ) -> int:
        stages, shared = self._layout(panels)
        parts = f"perceptron::Parts<{', '.join(map(str, widths))}>"
        shape = ", ".join([*options, parts, *map(str, (inner, outer, last, panels, self.products, stages))])
        return self.instances.setdefault((kind, shape, shared), len(self.instances))

    @staticmethod
    def _panels(widths: list[int], outer: int, last: int) -> int:
        """Of the largest operand in shared memory."""
        return max(sum(map(_blocks, widths)), _blocks(outer), _blocks(last))

    def take(self, widths: list[int], inner: int, outer: int, last: int = 0) -> bool:
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
        hi, lo, info = cuda.split(w, widths, _padded)
        halves = torch.stack([hi, lo] if self.products == 3 else [hi])
        return _to_blocks(halves, not first), _to_blocks(halves.transpose(1, 2), not last), info

    def take_contraction(self, w: Tensor, layers: int) -> bool:
        """Whether there is a kernel for the gradient of so many contractions with weights w, [E, L, U]."""
        _, orders, channels = w.shape
        per_lane = channels // _LANES
        small = orders <= 4 and per_lane <= 2 and (layers + 1) * orders**2 * per_lane <= _MOST_NUMBERS
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
        stream = torch.cat([_join(first, second), _join(second_t, first_t)])
        r = torch.cat([pad(c, (0, _padded(k) - k)) for c, k in zip(r.split(widths), widths)])
        v = pad(v, (0, _padded(outer) - outer))
        instance = self._instance(
            "energy", widths, inner, outer, 0, self._panels(widths, outer, 0), str(scaled).lower()
        )
        return [stream, w1_info, w2_info, v, r], instance

    def hidden_constants(
        self, widths: list[int], w1: Tensor, w2: Tensor, w3: Tensor | None
    ) -> tuple[list[Tensor], int]:
        """stream, w1_info, w2_info, w3_info."""
        (inner, outer), last = w2.shape, _width(w3)
        (first, _, w1_info), (second, _, w2_info) = self._halves(w1, widths, first=True), self._halves(w2, [inner])
        stream, w3_info = _join(first, second), w2_info
        if w3 is not None:
            third, _, w3_info = self._halves(w3, [outer], last=True)
            stream = torch.cat([stream, third.transpose(0, 1).flatten(0, 1)])
        return [stream, w1_info, w2_info, w3_info], self._instance(
            "hidden", widths, inner, outer, last, sum(map(_blocks, widths))
        )

    def hidden_backward_constants(
        self, widths: list[int], w1: Tensor, w2: Tensor, w3: Tensor | None
    ) -> tuple[list[Tensor], int]:
        """stream, w1_info, w2_info, w3_info."""
        (inner, outer), last = w2.shape, _width(w3)
        (_, first_t, w1_info), (_, second_t, w2_info) = self._halves(w1, widths, first=True), self._halves(w2, [inner])
        stream, w3_info = _join(second_t, first_t), w2_info
        if w3 is not None:
            _, third_t, w3_info = self._halves(w3, [outer], last=True)
            stream = torch.cat([third_t.flatten(0, 1), stream])
        instance = self._instance("hidden_backward", widths, inner, outer, last, self._panels(widths, outer, last))
        return [stream, w1_info, w2_info, w3_info], instance

    # ---- forms ----

    def energy(
        self, parts: list[Tensor], w1: Tensor, w2: Tensor, v: Tensor, r: Tensor, factor: Tensor | None
    ) -> list[Tensor]:
        widths, scaled = [p.shape[1] for p in parts], factor is not None
        constants, instance = self.energy_constants(widths, w1, w2, v, r, scaled)
        results = _ENERGY(
            *cuda._four(parts),
            *constants,
            factor if scaled else v,
            widths,
            *w2.shape,
            self.products,
            int(scaled),
            instance,
        )
        return list(results[: 1 + len(parts)])

    def hidden(self, parts: list[Tensor], w1: Tensor, w2: Tensor, w3: Tensor | None = None) -> list[Tensor]:
        """h, h w3 unless w3 is None, and the derivatives of silu."""
        widths = [p.shape[1] for p in parts]
        constants, instance = self.hidden_constants(widths, w1, w2, w3)
        h, y, d1, d2 = _HIDDEN(*cuda._four(parts), *constants, widths, *w2.shape, _width(w3), self.products, instance)
        return [h, d1, d2] if w3 is None else [h, y, d1, d2]

    def hidden_backward(
        self,
        g: Tensor,
        dy: Tensor | None,
        d1: Tensor,
        d2: Tensor,
        w1: Tensor,
        w2: Tensor,
        w3: Tensor | None,
        widths: list[int],
    ) -> list[Tensor]:
        constants, instance = self.hidden_backward_constants(widths, w1, w2, w3)
        results = _HIDDEN_BACKWARD(
            g, g if dy is None else dy, d1, d2, *constants, widths, *w2.shape, _width(w3), self.products, instance
        )
        return list(results[: len(widths)])

    def _contraction(self, kind: str, w: Tensor, layers: int) -> int:
        """Instance of a kernel over the edges of a centre."""
        _, orders, channels = w.shape
        edge = (orders + layers) * channels + -(-(orders**2) // 4) * 4
        numbers = _MOST_WARPS * max(_STAGES * edge, orders**2 * channels)
        return self.instances.setdefault((kind, f"{channels}, {orders}, {layers}", 4 * numbers), len(self.instances))

    def contract_gradient(
        self, g: list[Tensor], w: Tensor, y: Tensor, z: list[Tensor], row_ptr: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """dw, dy and the first dz."""
        # unused pointers repeat w: Inductor writes some arrays, such as z, once for every time they are named
        cotangents, vectors = ([*tensors, *[w] * (4 - len(tensors))] for tensors in (g, z))
        return _CONTRACT_GRADIENT(
            *cotangents, w, y, *vectors, row_ptr, len(g), self._contraction("contract_gradient", w, len(g))
        )

    def contract_moment(self, g: Tensor, w: Tensor, y: Tensor, row_ptr: Tensor) -> Tensor:
        return _CONTRACT_MOMENT(g, w, y, row_ptr, self._contraction("contract_moment", w, 1))

    def specialize(self, graph: torch.fx.GraphModule) -> None:
        """Products of atoms' tensors get kernels with their tables written out as statements, now that the graph's constants are known."""
        operator = torch.ops.nequip_md.channel_product_triton.default
        for node in graph.graph.find_nodes(op="call_function", target=operator):
            x, y, w, table, values, offsets, dim = node.args
            constants = [getattr(graph, n.target) if n.op == "get_attr" else None for n in (table, values, offsets)]
            if any(c is None for c in constants) or node.meta["val"].dtype != torch.float32:
                continue
            sizes = [
                x.meta["val"].shape[1],
                y.meta["val"].shape[1],
                w.meta["val"].shape[0],
                dim,
                w.meta["val"].shape[1],
            ]
            if sum(sizes[:3]) <= _MOST_NUMBERS and constants[1].numel() <= _MOST_TERMS:
                shape = ", ".join([*map(str, sizes), _statements(*constants, sizes[-1])])
                instance = self.instances.setdefault(("channel_product", shape, 0), len(self.instances))
                node.target, node.args = _CHANNEL_PRODUCT, (*node.args, instance)
        graph.recompile()

    # ---- compilation ----

    def source(self, text: str | None = None) -> str:
        """The kernels' text, or another version of it, with one line for each instance."""
        folder = files("nequip_md.ops") / "csrc"
        text = text or "".join((folder / name).read_text() for name in ("ptx.cuh", "perceptron.cuh", "contraction.cuh"))
        return text + "".join(
            f"NQ_{kind.upper()}({name}, {shared}, {shape})\n" for name, (kind, shape, shared) in self.names().items()
        )

    def names(self) -> dict[str, tuple[str, str, int]]:
        """Instances by the names of their kernels."""
        return {f"hopper_{key[0]}_{number}": key for key, number in self.instances.items()}

    @contextmanager
    def linked(self) -> Iterator[dict]:
        """Compile what was asked for; yields the Inductor options that link it into an artifact.

        Raises:
            NequIPMDError: NVRTC or the C++ compiler is not there, or fails.
        """
        if not self.instances:
            yield {}
            return
        shims = {operator: [_declaration(operator)] for operator in OPERATORS}
        with tempfile.TemporaryDirectory(prefix="nequip-md-") as name, searched(name):
            folder = Path(name)
            (folder / "kernels.cubin").write_bytes(compile_cuda(self.source()))
            (folder / "instances.inc").write_text(
                "".join(f'{{"{name}", {shared}}},\n' for name, (*_, shared) in self.names().items())
            )
            with as_file(files("nequip_md.ops") / "csrc") as sources:
                build(
                    folder,
                    _LIBRARY,
                    sources / "hopper_launch.cpp",
                    [f'-DKERNELS="{folder / "kernels.cubin"}"', f'-DINSTANCES="{folder / "instances.inc"}"'],
                )
            yield {"aot_inductor.custom_ops_to_c_shims": shims, "aot_inductor.custom_op_libs": [_LIBRARY]}


_LIBRARY = "nequip_md_hopper"
_ARCHITECTURE = "sm_90a"


def _width(w: Tensor | None) -> int:
    """Columns; 0: there is no matrix."""
    return 0 if w is None else w.shape[1]


def _statements(table: Tensor, values: Tensor, offsets: Tensor, channels: int) -> str:
    """C++ that sums the terms of each component of a product, for NQ_CHANNEL_PRODUCT."""
    terms = [
        f"a[{first}] * b[{second}] * ({value!r}f * p[{path}])"
        for (path, first, second), value in zip(table.T.tolist(), values.tolist())
    ]
    bounds = offsets.tolist()
    return " ".join(
        f"out[{k * channels}] = {' + '.join(terms[begin:end]) or '0'};"
        for k, (begin, end) in enumerate(zip(bounds, bounds[1:]))
    )


def _declaration(operator: torch._ops.OpOverload) -> str:
    """Of the C function that AOTInductor calls for it."""
    schema, arguments = operator._schema, []
    for argument in schema.arguments:
        kind = str(argument.type)
        arguments += {"Tensor": ["AtenTensorHandle"], "int": ["int64_t"], "List[int]": ["const int64_t*", "int64_t"]}[
            kind
        ]
    arguments += ["AtenTensorHandle*"] * len(schema.returns)
    return f"AOTITorchError aoti_torch_cuda_{schema.name.split('::')[1]}({', '.join(arguments)})"


def _nvrtc() -> ctypes.CDLL:
    """CUDA's compiler: that of PyTorch, or of the package nvidia-cuda-nvrtc where PyTorch is without CUDA."""
    try:
        if torch.version.cuda:
            # it finds NVRTC, which then can be had by its name
            ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libcaffe2_nvrtc.so"))
            return ctypes.CDLL(f"libnvrtc.so.{torch.version.cuda.split('.')[0]}")
        libraries = [
            f for f in distribution("nvidia-cuda-nvrtc").files or [] if ".so" in f.name and ".alt." not in f.name
        ]
        # NVRTC opens the other one by its name, so that has to be there before
        *_, nvrtc = [ctypes.CDLL(str(f.locate())) for f in sorted(libraries, key=lambda f: "builtins" not in f.name)]
        return nvrtc
    except (OSError, PackageNotFoundError, ValueError) as error:
        raise NequIPMDError(
            f"NVRTC, CUDA's compiler, is part of PyTorch for CUDA and was not found ({error}); reinstall PyTorch"
        ) from None


def compile_cuda(source: str, report: Callable[[str], None] | None = None) -> bytes:
    """A cubin.

    Args:
        report: takes what the assembler says of each kernel: its registers, what it spills, what it warns of.

    Raises:
        NequIPMDError: there is no NVRTC, or it refuses.
    """
    nvrtc = _nvrtc()
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    options = [f"--gpu-architecture={_ARCHITECTURE}", "--std=c++17", *["--ptxas-options=-v"] * bool(report)]
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"perceptron.cu", 0, None, None)
    try:
        failed = nvrtc.nvrtcCompileProgram(
            program, len(options), (ctypes.c_char_p * len(options))(*map(str.encode, options))
        )
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        if failed:
            raise NequIPMDError(f"compiling the CUDA kernels failed: {log.value.decode()[:4000]}")
        if report:
            report(log.value.decode())
        nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
        code = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetCUBIN(program, code)
        return code.raw
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
