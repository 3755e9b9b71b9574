"""Cases of the operator table: an operator with its arguments by name and shape; creation of arguments and comparison of results."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

DTYPE = {"fp64": torch.float64, "fp32": torch.float32, "tf32": torch.float32}


@dataclass(frozen=True)
class Graph:
    """Centres with their edges, which determine the sizes of arrays and the indices."""

    counts: tuple[int, ...]
    """Number of edges of each centre."""
    more_nodes: int = 3
    """Number of nodes that are neighbours only."""

    @property
    def sizes(self) -> dict[str, int]:
        centres, edges = len(self.counts), sum(self.counts)
        return {"edges": edges, "centres": centres, "offsets": centres + 1, "nodes": centres + self.more_nodes}

    @cached_property
    def row_ptr(self) -> Tensor:
        return torch.tensor([0, *self.counts]).cumsum(0)

    @cached_property
    def centre(self) -> Tensor:
        return torch.repeat_interleave(torch.arange(len(self.counts)), torch.tensor(self.counts))


# ---- fills: functions of shape, generator and graph that return the numbers of an array ------------------------------


def normal(shape, generator, graph):
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def rows_of_all_sizes(shape, generator, graph):
    """Rows whose sizes differ by orders of magnitude; one of them is zero."""
    values = normal(shape, generator, graph) * torch.exp(4 * normal((shape[0], 1), generator, graph))
    values[3:4] = 0.0
    return values


def silu_derivatives(shape, generator, graph):
    return normal(shape, generator, graph).clamp(-0.1, 1.1)


def scaled(factor: float) -> Callable:
    return lambda *arguments: factor * normal(*arguments)


def matrix(gain: float = 1.0) -> Callable:
    """A random matrix [..., K, N] that multiplies the norm of rows by ``gain`` on average."""
    return lambda shape, *others: normal(shape, *others) * gain / shape[-2] ** 0.5


def numbers_below(size: str) -> Callable:
    return lambda shape, generator, graph: torch.randint(0, graph.sizes[size], shape, generator=generator)


# ---- arguments -------------------------------------------------------------------------------------------------------


class Array(NamedTuple):
    """A tensor argument of an operator."""

    shape: tuple[int | str, ...]
    """Shape, of numbers and names of sizes of a :class:`Graph`."""
    fill: Callable = normal
    kind: str = "network"
    """Kind of dtype: ``network`` is that of the precision, ``derivative`` likewise, but fp16 for tf32 (for silu'), ``geometry`` float64."""
    constant: bool = False
    """Whether the argument belongs to the model, not to the evaluated atoms; it is then a constant of a lowered graph."""
    strided: bool = False
    """Whether the array is a view of every other number of an array twice as large."""
    about: str = ""
    """Text that distinguishes it from arrays of the same name and shape with other numbers."""

    def make(self, key: str, graph: Graph, precision: str, device) -> Tensor:
        shape = tuple(graph.sizes[s] if isinstance(s, str) else s for s in self.shape)
        generator = torch.Generator().manual_seed(zlib.crc32(f"{key} {shape}".encode()))
        values = self.fill(shape, generator, graph)
        if values.is_floating_point():
            values = values.to(self.dtype(precision))
        return values.to(device)

    def dtype(self, precision: str) -> torch.dtype:
        if self.kind == "geometry":
            return torch.float64
        return torch.float16 if self.kind == "derivative" and precision == "tf32" else DTYPE[precision]


CENTRE = Array(("edges",), lambda shape, generator, graph: graph.centre)
NEIGHBOUR = Array(("edges",), numbers_below("nodes"))
ROW_PTR = Array(("offsets",), lambda shape, generator, graph: graph.row_ptr)


class Size(NamedTuple):
    """A size of the graph as an argument."""

    of: str


@dataclass(frozen=True)
class Case:
    """An operator with its arguments.

    Attributes:
        operator: its name in ``torch.ops.nequip_md``.
        arguments: arguments by their names in the schema: :class:`Array` or lists of them, :class:`Size`, tensors that are
            constants of a model, numbers. Equal arrays of the same name in a group are one tensor.
        tolerance: tolerance by backend and precision for the relative error, in the norm that the backend's test uses.
        gradients: arguments by which the operator has a gradient. If there are none, PyTorch warns when it is differentiated.
        second: whether it has second derivatives, by ``gradients`` and by the cotangents.
        formula: function that computes the results from float64 arguments in another way.
        about: text that distinguishes it from other cases of the operator in its group.
        loose: indices of results that may be ten times less accurate: silu' of an argument that is a small difference of numbers a
            hundred times larger.
        once: whether no form depends on the number of rows or multiprocessors, so that one test suffices.
    """

    operator: str
    arguments: dict[str, object]
    tolerance: dict[str, dict[str, float]]
    gradients: tuple[str, ...]
    second: bool
    formula: Callable
    about: str = ""
    loose: tuple[int, ...] = ()
    once: bool = False

    @property
    def name(self) -> str:
        return f"{self.operator} ({self.about})" if self.about else self.operator

    @property
    def overload(self) -> torch._ops.OpOverload:
        return getattr(torch.ops.nequip_md, self.operator).default


@dataclass(frozen=True)
class Group:
    """Cases that share arrays.

    Attributes:
        graph: the graph that all backends evaluate; some evaluate further graphs.
        precisions: the precisions in which models have these operators.
        multiprocessors: numbers of multiprocessors of the GPUs whose forms are tested: if there are few rows for each, kernels take
            other tiles, or several programs share the edges of a centre.
        derivatives: whether the cases are small enough for derivatives by finite differences; backends differentiate them too.
    """

    name: str
    cases: list[Case]
    graph: Graph
    precisions: tuple[str, ...] = ("fp64", "fp32", "tf32")
    multiprocessors: tuple[int, ...] = (132,)
    derivatives: bool = False


class Leaf(NamedTuple):
    """Placeholder of an array in the arguments of a case."""

    key: str
    array: Array


def tree(group: Group, case: Case) -> list:
    """The case's arguments with a :class:`Leaf` for each array."""

    def place(name, value):
        if isinstance(value, Array):
            return Leaf(f"{group.name}/{name}/{value.fill.__qualname__}/{value.about}", value)
        if isinstance(value, list) and value and isinstance(value[0], Array):
            return [place(f"{name}{k}", v) for k, v in enumerate(value)]
        return value

    return [place(name, value) for name, value in case.arguments.items()]


def fill_tree(
    values: list, leaf: Callable[[Leaf], Tensor], constant: Callable[[Tensor], Tensor], size: Callable
) -> list:
    """Arguments from :func:`tree`, with placeholders for arrays, constants and sizes replaced by results of the given functions."""
    filled = []
    for value in values:
        if isinstance(value, Leaf):
            tensor = leaf(value)
            if value.array.strided:
                tensor = torch.stack([tensor, torch.zeros_like(tensor)], dim=-1)[..., 0]
            filled.append(tensor)
        elif isinstance(value, Size):
            filled.append(size(value.of))
        elif isinstance(value, Tensor):
            filled.append(constant(value))
        elif isinstance(value, list):
            filled.append(fill_tree(value, leaf, constant, size))
        else:
            filled.append(value)
    return filled


def arguments(group: Group, case: Case, graph: Graph, precision: str, device="cpu") -> list:
    """The arguments with which the operator is called."""

    def constant(value):
        return (value.to(DTYPE[precision]) if value.is_floating_point() else value).to(device)

    return fill_tree(
        tree(group, case),
        lambda leaf: leaf.array.make(leaf.key, graph, precision, device),
        constant,
        graph.sizes.__getitem__,
    )


def upcast(value):
    """Tensors converted to float64."""
    if isinstance(value, (list, tuple)):
        return [upcast(v) for v in value]
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


# ---- results ---------------------------------------------------------------------------------------------------------


def as_list(results) -> list[Tensor]:
    return [results] if isinstance(results, Tensor) else list(results)


def in_norm(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm().clamp(min=1e-30))


def at_most(got: Tensor, want: Tensor) -> float:
    """The largest difference, relative to the largest result or 1."""
    return float((got - want).abs().max() / want.abs().max().clamp(min=1.0))


def by_rows(got: Tensor, want: Tensor) -> float:
    """The median of the rows' errors, since small rows would not count in a sum over all."""
    if want.dim() != 2:
        return 0.0
    return float(((got - want).norm(dim=1) / want.norm(dim=1).clamp(1e-300)).median())


def wrong(case: Case, got, want, tolerance: float, measures=(in_norm,)) -> Iterator[str]:
    """A sentence for each wrong result."""
    got, want = as_list(got), as_list(want)
    if len(got) != len(want):
        yield f"{case.name}: {len(got)} results, not {len(want)}"
    for k, (a, b) in enumerate(zip(got, want)):
        if a.shape != b.shape:
            yield f"{case.name}: result {k} is {tuple(a.shape)}, not {tuple(b.shape)}"
        elif b.numel():
            for measure in measures:
                allowed = tolerance * (10 if k in case.loose and measure is not by_rows else 1)
                error = measure(a.double(), b.double())
                if not error <= allowed:
                    yield f"{case.name}: error {error:.1e} of result {k} {measure.__name__}, allowed {allowed:.1e}"
