"""Source of the kernels of NequIP's convolution, written out for the paths of a layer.

The coefficients of a tensor product are known when a graph is compiled, most are zero, and loops over the others would load each
of them. So the source of a kernel, which this module writes, has one statement for each component, with the coefficients as numbers.

A program has one warp. It processes one centre, some channels of one irrep of the features, and a few edges at a time; all values
are tiles [edges, channels] in registers, those of an edge alone [edges, 1]. A :class:`Part` is what such programs compute: paths
from one irrep of the features, not so many that their components leave the registers.
"""

from __future__ import annotations

import hashlib
import linecache
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import triton
import triton.language as tl

from nequip_md.ops.tensor_product_convolution import ConvolutionPath, unpack

NAME = "convolution_by_"
TILES = {"x": 64, "y": 64, "w": 64, "g": 128}
"""Numbers in a tile of the kernels for derivatives by each argument, two or four for each thread of a warp."""
MOST_COMPONENTS = 24
"""Components of messages that a program has at most, unless a single path has more."""
MOST_TERMS = 160
"""Coefficients in the source of one kernel, whose compilation takes longer than in proportion to them; a layer with more has
several kernels."""

Terms = tuple[tuple[int, ...], ...]
"""For each term of a sum, places in the lists of the arguments that are not the derivative's, in the order x, y, w, g."""


class Term(NamedTuple):
    """One coefficient C_abc that is not zero."""

    a: int
    b: int
    """Component of all harmonics, counted from that of l = 0."""
    c: int
    value: float


class Component(NamedTuple):
    """A component c of the messages of one path."""

    path: int
    """Number of the path in its part."""
    column: int
    """First column in a row of messages."""
    name: str
    terms: list[Term]


class Part(NamedTuple):
    """Paths from one irrep of the features that one program computes together."""

    paths: tuple[ConvolutionPath, ...]
    terms: tuple[tuple[Term, ...], ...]
    """Of each path."""

    @property
    def first(self) -> ConvolutionPath:
        return self.paths[0]

    @property
    def channels(self) -> int:
        """Number of channels of a program."""
        return 32 if self.first.mul > 16 else 16

    @property
    def programs(self) -> int:
        """Number of programs for a centre."""
        return triton.cdiv(self.first.mul, self.channels)

    @property
    def count(self) -> int:
        """Number of coefficients."""
        return sum(map(len, self.terms))

    @property
    def orders(self) -> list[int]:
        """Components of the harmonics that any of the paths takes."""
        return sorted({term.b for terms in self.terms for term in terms})

    @property
    def components(self) -> Iterator[Component]:
        """Components of the messages of all paths."""
        for p, (path, terms) in enumerate(zip(self.paths, self.terms, strict=True)):
            for c in range(2 * path.l_out + 1):
                column = path.out_offset + c * path.out_channels + path.out_channel
                yield Component(p, column, f"{p}_{c}", [term for term in terms if term.c == c])


def parts(paths: Sequence[int], coefficients: Sequence[float]) -> list[Part]:
    """Divide the paths of a layer among programs.

    Args:
        paths: as operators take them.
        coefficients: of all paths, flat.
    """
    sources: dict[int, list[ConvolutionPath]] = defaultdict(list)
    for path in unpack(paths):
        sources[path.x_offset].append(path)
    result = []
    for source in sources.values():
        group: list[ConvolutionPath] = []
        for path in source:
            if group and sum(2 * p.l_out + 1 for p in [*group, path]) > MOST_COMPONENTS:
                result.append(group)
                group = []
            group.append(path)
        result.append(group)
    return [Part(tuple(group), tuple(_terms(path, coefficients) for path in group)) for group in result]


def programs(paths: Sequence[int], coefficients: Sequence[float]) -> int:
    """Number of programs of all kernels for a centre."""
    return sum(part.programs for part in parts(paths, coefficients))


def _by_kernel(layer: list[Part]) -> list[list[Part]]:
    """Divide the parts of a layer among kernels."""
    result: list[list[Part]] = [[]]
    for part in layer:
        if result[-1] and sum(p.count for p in [*result[-1], part]) > MOST_TERMS:
            result.append([])
        result[-1].append(part)
    return result


def _terms(path: ConvolutionPath, coefficients: Sequence[float]) -> tuple[Term, ...]:
    shape = (2 * path.l_in + 1, 2 * path.l_edge + 1, 2 * path.l_out + 1)
    values = coefficients[path.cg_offset :]
    indices = product(*map(range, shape))
    return tuple(
        Term(a, path.l_edge**2 + b, c, value) for (a, b, c), value in zip(indices, values, strict=False) if value != 0
    )


# ---- statements -------------------------------------------------------------------------------------------------------------


def _sum(summands: Iterable[str]) -> str:
    return " + ".join(filter(None, summands))


def _product(factor: str, sum_: str) -> str:
    """A sum times a factor; empty, that is zero, if the sum is."""
    return sum_ and f"{factor} * ({sum_})"


def _coupling(terms: list[Term], a: int, y: int) -> str:
    """sum_b C_abc y_b for one a and the terms of one c."""
    return _sum(f"{term.value!r} * y{y}_{term.b}" for term in terms if term.a == a)


def _message(part: Part, terms: list[Term], x: int, y: int) -> str:
    """Component of a message before it is multiplied by a weight, sum_ab C_abc x_a y_b."""
    return _sum(_product(f"x{x}_{a}", _coupling(terms, a, y)) for a in range(2 * part.first.l_in + 1))


class _Kernel:
    """Writes the source of a kernel, part by part.

    Args:
        by: name of the argument of the derivative.
        counts: number of arrays for each other argument.
        widths: number of columns of the arrays of each argument, that of the result under the name ``by``.
        before: number of programs for a centre in earlier kernels of the layer.
    """

    def __init__(self, by: str, counts: dict[str, int], widths: dict[str, int], before: int):
        self.counts, self.widths, self.next, self.tile = counts, widths, before, TILES[by]
        pointers = [f"{name}{k}" for name, count in counts.items() for k in range(count)]
        self.lines = [
            "@triton.jit",
            f"def {NAME}{by}({', '.join([*pointers, 'neighbour', 'row_ptr', 'out'])}):",
            "    i = tl.program_id(0).to(tl.int64)",
            f"    program = tl.program_id(1) + {before}",
            "    begin = tl.load(row_ptr + i)",
            "    end = tl.load(row_ptr + i + 1)",
        ]

    def write(self, indent: int, *lines: str) -> None:
        self.lines += ["    " * indent + line for line in lines]

    def arrays(self, name: str) -> range:
        return range(self.counts.get(name, 0))

    def open(self, part: Part) -> None:
        """Begin with a part."""
        self.part, self.whole, program = part, part.first.mul % part.channels == 0, self.next
        self.edges = self.tile // part.channels
        self.next += part.programs
        self.write(1, f"if (program >= {program}) & (program < {program + part.programs}):")
        self.write(2, f"u = (program - {program}) * {part.channels} + tl.arange(0, {part.channels})")
        self.write(2, f"lane = tl.arange(0, {self.edges})")
        if not self.whole:
            self.write(2, f"inside = u < {part.first.mul}")

    def open_loop(self, shared: bool = True) -> None:
        """Begin the loop over edges; if they are ``shared``, among the programs along the last index of the grid."""
        start, step = "begin", str(self.edges)
        if shared:
            start, step = f"begin + tl.program_id(2) * {step}", f"tl.num_programs(2) * {step}"
        self.write(2, f"for first in range({start}, end, {step}):")
        self.write(3, "e = first + lane")
        self.write(3, "valid = (e < end)[:, None]" + ("" if self.whole else " & inside[None, :]"))
        self.write(3, "e = tl.minimum(e, end - 1)")
        self.write(3, "j = tl.load(neighbour + e)")

    def rows(self, pointer: str, row: str, width: int, offset: int) -> str:
        return f"{pointer} + ({row} * {width} + {offset})[:, None] + u[None, :]"

    def load(self) -> None:
        """Load what the loop takes of all arrays; weights of edges past the centre's last are zero."""
        path, mask = self.part.first, "" if self.whole else ", mask=inside[None, :], other=0.0"
        for k in self.arrays("y"):
            self.write(3, f"y_e = y{k} + (e * {self.widths['y']})[:, None]")
            self.write(3, *(f"y{k}_{b} = tl.load(y_e + {b})" for b in self.part.orders))
        for k in self.arrays("x"):
            self.write(3, f"x_j = {self.rows(f'x{k}', 'j', self.widths['x'], path.x_offset)}")
            self.write(3, *(f"x{k}_{a} = tl.load(x_j + {a * path.mul}{mask})" for a in range(2 * path.l_in + 1)))
        for k in self.arrays("w"):
            for p, path in enumerate(self.part.paths):
                pointer = self.rows(f"w{k}", "e", self.widths["w"], path.w_offset)
                self.write(3, f"w{k}_{p} = tl.load({pointer}, mask=valid, other=0.0)")

    def load_cotangents(self) -> None:
        mask = "" if self.whole else ", mask=inside, other=0.0"
        for k in self.arrays("g"):
            self.write(2, f"g_i = g{k} + i * {self.widths['g']} + u")
            for component in self.part.components:
                self.write(2, f"g{k}_{component.name} = tl.load(g_i + {component.column}{mask})[None, :]")

    @property
    def source(self) -> str:
        return "\n".join(self.lines) + "\n"


def _by_g(kernel: _Kernel, part: Part, terms: Terms) -> None:
    """out[c, u] = sum over edges of w[p, u] times sum_ab C_abc x[a, u] y[b]."""
    tile = f"tl.zeros([{kernel.edges}, {part.channels}], dtype=out.dtype.element_ty)"
    kernel.write(2, *(f"total_{component.name} = {tile}" for component in part.components))
    kernel.open_loop(shared=False)
    kernel.load()
    for component in part.components:
        for k in kernel.arrays("w"):
            message = _sum(_message(part, component.terms, x, y) for x, y, w in terms if w == k)
            kernel.write(3, f"total_{component.name} += {_product(f'w{k}_{component.path}', message)}")
    kernel.write(2, f"out_i = out + i * {kernel.widths['g']} + u")
    mask = "" if kernel.whole else ", mask=inside"
    for component in part.components:
        kernel.write(2, f"tl.store(out_i + {component.column}, tl.sum(total_{component.name}, axis=0){mask})")


def _open_loop_of_products(kernel: _Kernel, part: Part, terms: Terms, name: str) -> None:
    """Begin the loop over edges with h = g w for each component, one sum for each array of the terms' first argument, ``name``."""
    kernel.load_cotangents()
    kernel.open_loop()
    kernel.load()
    for component in part.components:
        for k in kernel.arrays(name):
            products = _sum(f"g{g}_{component.name} * w{w}_{component.path}" for first, w, g in terms if first == k)
            kernel.write(3, f"h{k}_{component.name} = {products}")


def _by_x(kernel: _Kernel, part: Part, terms: Terms) -> None:
    """Add to out of each edge's neighbour: out[a, u] += sum over c of g[c, u] w[p, u] sum_b C_abc y[b]."""
    _open_loop_of_products(kernel, part, terms, "y")
    kernel.write(3, f"out_j = {kernel.rows('out', 'j', kernel.widths['x'], part.first.x_offset)}")
    for a in range(2 * part.first.l_in + 1):
        total = _sum(
            _product(f"h{k}_{component.name}", _coupling(component.terms, a, k))
            for component in part.components
            for k in kernel.arrays("y")
        )
        kernel.write(3, f"tl.atomic_add(out_j + {a * part.first.mul}, {total}, mask=valid, sem='relaxed')")


def _by_w(kernel: _Kernel, part: Part, terms: Terms) -> None:
    """out[p, u] = sum over c of g[c, u] sum_ab C_abc x[a, u] y[b]."""
    kernel.load_cotangents()
    kernel.open_loop()
    kernel.load()
    for p, path in enumerate(part.paths):
        total = _sum(
            _product(
                f"g{k}_{component.name}", _sum(_message(part, component.terms, x, y) for x, y, g in terms if g == k)
            )
            for component in part.components
            if component.path == p
            for k in kernel.arrays("g")
        )
        kernel.write(3, f"tl.store({kernel.rows('out', 'e', kernel.widths['w'], path.w_offset)}, {total}, mask=valid)")


def _by_y(kernel: _Kernel, part: Part, terms: Terms) -> None:
    """This program's part of out[b] = sum_u sum_a x[a, u] sum_pc C_abc g[c, u] w[p, u]; those of all programs stand side by side."""
    _open_loop_of_products(kernel, part, terms, "x")
    width = kernel.widths["y"]
    kernel.write(3, f"out_e = out + e * {width * kernel.widths['programs']} + program * {width}")
    for b in range(width):
        by_a = {
            (k, a): _sum(
                f"{term.value!r} * h{k}_{component.name}"
                for component in part.components
                for term in component.terms
                if (term.a, term.b) == (a, b)
            )
            for k in kernel.arrays("x")
            for a in range(2 * part.first.l_in + 1)
        }
        total = _sum(_product(f"x{k}_{a}", sum_) for (k, a), sum_ in by_a.items())
        value = f"tl.sum({total}, axis=1)" if total else "0.0"
        kernel.write(3, f"tl.store(out_e + {b}, {value}, mask=first + lane < end)")


STATEMENTS = {"x": _by_x, "y": _by_y, "w": _by_w, "g": _by_g}


@cache
def kernels(
    by: str,
    terms: Terms,
    paths: tuple[int, ...],
    coefficients: tuple[float, ...],
    widths: tuple[tuple[str, int], ...],
) -> list[tuple[Any, int]]:
    """The Triton kernels for a layer, and the number of programs of each for a centre.

    Args:
        by: name of the argument of the derivative.
        terms: places in the lists of the other arguments, for each term.
        paths: as operators take them.
        coefficients: of all paths, flat.
        widths: name of each argument and number of columns of its arrays.
    """
    result, before, others = [], 0, [name for name in "xywg" if name != by]
    counts = {name: 1 + max(term[k] for term in terms) for k, name in enumerate(others)}
    columns = {**dict(widths), "programs": programs(paths, coefficients)}
    for layer in _by_kernel(parts(paths, coefficients)):
        kernel = _Kernel(by, counts, columns, before)
        for part in layer:
            kernel.open(part)
            STATEMENTS[by](kernel, part, terms)
        result.append((kernel_of(kernel.source, f"{NAME}{by}"), kernel.next - before))
        before = kernel.next
    return result


def kernel_of(source: str, name: str) -> Any:
    """The Triton kernel of that name in a source."""
    # Triton, and PyTorch after it, read the source of a function from its file
    file = f"<{name} {hashlib.sha256(source.encode()).hexdigest()}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    namespace: dict[str, Any] = {"triton": triton, "tl": tl}
    exec(compile(source, file, "exec"), namespace)
    return namespace[name]
