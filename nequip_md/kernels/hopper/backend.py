"""The CUDA C++ kernels for Hopper GPUs: which operators and sizes they accept, and how they get into an artifact.

They take precedence over the Triton kernels, which run what they do not accept. AOTInductor calls them through C functions
(``launch.cpp``) that are linked into the artifact together with the compiled kernels, as the C++ kernels are on a CPU
(:mod:`nequip_md.kernels.cpu`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path

import torch
from torch import Tensor
from torch._ops import OpOverload

from nequip_md.kernels.backend import Form
from nequip_md.kernels.hopper import operators
from nequip_md.kernels.hopper.instances import MOST_NUMBERS, Instances, matrix_width
from nequip_md.kernels.hopper.nvrtc import compile_cuda
from nequip_md.kernels.shims import shims
from nequip_md.kernels.static_library import build, searched, with_library
from nequip_md.kernels.triton import launcher
from nequip_md.kernels.triton.backend import TritonBackend
from nequip_md.kernels.triton.mlp_forms import part_widths, served
from nequip_md.kernels.triton.weights import MAX_PARTS

_LIBRARY = "nequip_md_hopper"
_MOST_TERMS = 800
"""Most terms of a product of an atom's two tensors, all of which are written out in the source."""
OPERATORS = torch.ops.nequip_md


class HopperBackend(TritonBackend):
    """CUDA C++ and Triton kernels for GPUs of compute capability 9.0."""

    linked_operators = operators.OPERATORS

    def __init__(self, precision: str):
        super().__init__(precision)
        self.instances = Instances(self.products)

    @property
    def kernels(self) -> str:
        return "triton hopper" if self.instances.numbers else "triton"

    def two_layers_in_one_kernel(self, widths: list[int], inner: int, outer: int) -> bool:
        return self.instances.takes_layers(widths, inner, outer) or super().two_layers_in_one_kernel(
            widths, inner, outer
        )

    def forms(self) -> dict[OpOverload, list[Form]]:
        first = {
            OPERATORS.mlp_hidden.default: Form(self._hidden, self._takes_hidden),
            OPERATORS.mlp_hidden_backward.default: Form(self._hidden_backward, self._takes_hidden_backward),
            OPERATORS.mlp_hidden_dense.default: Form(self._hidden_dense, self._takes_hidden_dense),
            OPERATORS.mlp_hidden_dense_backward.default: Form(
                self._hidden_dense_backward, self._takes_hidden_dense_backward
            ),
            OPERATORS.mlp_energy.default: Form(self._energy, self._takes_energy),
            OPERATORS.edge_contract_gradient.default: Form(self._contract_gradient, self._takes_contract_gradient),
            OPERATORS.edge_contract_moment.default: Form(self._contract_moment, self._takes_contract_moment),
        }
        return {
            operator: [first[operator], *forms] if operator in first else forms
            for operator, forms in super().forms().items()
        }

    # ---- multilayer perceptrons -------------------------------------------------------------------------------------

    def _takes(self, widths, w1, w2, w3=None):
        small = served([w1, w2]) and len(widths) <= MAX_PARTS
        return small and self.instances.takes_layers(widths, *w2.shape, matrix_width(w3))

    def _takes_hidden(self, parts, matrices):
        return len(matrices) == 2 and self._takes(part_widths(parts), *matrices)

    def _hidden(self, parts, matrices):
        h, _, d1, d2 = self._layers(parts, *matrices, None)
        return [h, d1, d2]

    def _takes_hidden_dense(self, parts, w1, w2, w3):
        return self._takes(part_widths(parts), w1, w2, w3)

    def _hidden_dense(self, parts, w1, w2, w3):
        return self._layers(parts, w1, w2, w3)

    def _layers(self, parts: list[Tensor], w1: Tensor, w2: Tensor, w3: Tensor | None) -> tuple[Tensor, ...]:
        """The second layer h, h w3 (empty without w3), and the derivatives of silu in both layers."""
        widths = part_widths(parts)
        constants, instance = self.instances.hidden_constants(widths, w1, w2, w3)
        sizes = (widths, *w2.shape, matrix_width(w3), self.products, instance)
        return operators.HIDDEN(*launcher.four(parts), *constants, *sizes)

    def _takes_hidden_backward(self, g, derivatives, matrices, widths):
        return len(matrices) == 2 and self._takes(widths, *matrices)

    def _hidden_backward(self, g, derivatives, matrices, widths):
        return self._layers_backward(g, None, *derivatives, *matrices, None, widths)

    def _takes_hidden_dense_backward(self, g, dy, d1, d2, w1, w2, w3, widths):
        return self._takes(widths, w1, w2, w3)

    def _hidden_dense_backward(self, g, dy, d1, d2, w1, w2, w3, widths):
        return self._layers_backward(g, dy, d1, d2, w1, w2, w3, widths)

    def _layers_backward(self, g, dy, d1, d2, w1, w2, w3, widths) -> list[Tensor]:
        constants, instance = self.instances.hidden_backward_constants(widths, w1, w2, w3)
        sizes = (widths, *w2.shape, matrix_width(w3), self.products, instance)
        results = operators.HIDDEN_BACKWARD(g, g if dy is None else dy, d1, d2, *constants, *sizes)
        return list(results[: len(widths)])

    def _takes_energy(self, parts, matrices, v, r, factor):
        return len(matrices) == 2 and self._takes(part_widths(parts), *matrices)

    def _energy(self, parts, matrices, v, r, factor):
        widths, (w1, w2), scaled = part_widths(parts), matrices, factor is not None
        constants, instance = self.instances.energy_constants(widths, w1, w2, v, r, scaled)
        sizes = (widths, *w2.shape, self.products, int(scaled), instance)
        results = operators.ENERGY(*launcher.four(parts), *constants, factor if scaled else v, *sizes)
        return list(results[: 1 + len(parts)])

    # ---- contractions -----------------------------------------------------------------------------------------------

    def _takes_contract_gradient(self, g, w, y, z, centre, row_ptr):
        return self.instances.takes_contraction(w, len(g))

    def _contract_gradient(self, g, w, y, z, centre, row_ptr):
        # unused pointers repeat w: Inductor materializes some arrays, such as z, once for each mention among the arguments
        cotangents, vectors = ([*tensors, *[w] * (4 - len(tensors))] for tensors in (g, z))
        instance = self.instances.contraction("contract_gradient", w, len(g))
        return operators.CONTRACT_GRADIENT(*cotangents, w, y, *vectors, row_ptr, len(g), instance)

    def _takes_contract_moment(self, g, w, y, centre, row_ptr):
        return self.instances.takes_contraction(w, 1)

    def _contract_moment(self, g, w, y, centre, row_ptr):
        return operators.CONTRACT_MOMENT(g, w, y, row_ptr, self.instances.contraction("contract_moment", w, 1))

    # ---- products of atoms' tensors ---------------------------------------------------------------------------------

    def specialize(self, graph: torch.fx.GraphModule) -> None:
        """Replace products of atoms' tensors by kernels with their tables written out as statements, now that the constants are known."""
        operator = OPERATORS.channel_product_triton.default
        for node in graph.graph.find_nodes(op="call_function", target=operator):
            x, y, w, table, values, offsets, dim = node.args
            constants = [getattr(graph, n.target) if n.op == "get_attr" else None for n in (table, values, offsets)]
            if any(c is None for c in constants) or node.meta["val"].dtype != torch.float32:
                continue
            (paths, channels), components = w.meta["val"].shape, (x.meta["val"].shape[1], y.meta["val"].shape[1])
            if sum(components) + paths <= MOST_NUMBERS and constants[1].numel() <= _MOST_TERMS:
                sizes = (*components, paths, dim, channels)
                shape = ", ".join([*map(str, sizes), statements(*constants, channels)])
                instance = self.instances.number("channel_product", shape, 0)
                node.target, node.args = operators.CHANNEL_PRODUCT, (*node.args, instance)
        graph.recompile()

    # ---- compilation ------------------------------------------------------------------------------------------------

    @contextmanager
    def linked(self) -> Iterator[dict]:
        if not self.instances.numbers:
            with super().linked() as options:
                yield options
            return
        with (
            super().linked() as options,
            tempfile.TemporaryDirectory(prefix="nequip-md-") as name,
            searched(name),
            as_file(files("nequip_md.kernels")) as sources,
        ):
            folder = Path(name)
            (folder / "kernels.cubin").write_bytes(compile_cuda(self.instances.source()))
            lines = [f'{{"{name}", {shared}}},\n' for name, (*_, shared) in self.instances.names().items()]
            (folder / "instances.inc").write_text("".join(lines))
            build(
                folder,
                _LIBRARY,
                sources / "hopper" / "launch.cpp",
                [
                    f"-I{sources / 'include'}",
                    f'-DKERNELS="{folder / "kernels.cubin"}"',
                    f'-DINSTANCES="{folder / "instances.inc"}"',
                ],
            )
            yield with_library(options, _LIBRARY, shims(operators.OPERATORS, "cuda"))


def statements(table: Tensor, values: Tensor, offsets: Tensor, channels: int) -> str:
    """C++ statements that sum the terms of each component of a product, for NQ_CHANNEL_PRODUCT."""
    terms = [
        f"a[{first}] * b[{second}] * ({value!r}f * p[{path}])"
        for (path, first, second), value in zip(table.T.tolist(), values.tolist())
    ]
    bounds = offsets.tolist()
    return " ".join(
        f"out[{k * channels}] = {' + '.join(terms[begin:end]) or '0'};"
        for k, (begin, end) in enumerate(zip(bounds, bounds[1:]))
    )
