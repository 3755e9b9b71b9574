"""A module that evaluates cases, and its lowering for a backend as in an export."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from nequip_md.kernels import Backend
from nequip_md.lowering import fold_constants
from operators.cases import DTYPE, Case, Graph, Group, Leaf, as_list, fill_tree, tree, upcast

Chosen = tuple[Group, Case, str]
"""A case of a group in a precision."""


def leaves(values) -> Iterator[Leaf]:
    for value in values:
        if isinstance(value, Leaf):
            yield value
        elif isinstance(value, list):
            yield from leaves(value)


def with_derivatives(case: Case, arguments: list) -> list[Tensor]:
    """Results of the operator; gradients of the sum of their squares; and gradients of the sum of these gradients' squares."""
    arguments, by = list(arguments), []
    for k, name in enumerate(case.arguments):
        if name in case.gradients:
            fresh = [t.detach().requires_grad_() for t in as_list(arguments[k])]
            arguments[k] = fresh[0] if isinstance(arguments[k], Tensor) else fresh
            by += fresh
    results = as_list(case.overload(*arguments))
    if not by:
        return results
    energy = sum(result.square().sum() for result in results)
    first = torch.autograd.grad(energy, by, create_graph=case.second)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), by) if case.second else ()
    return [t.detach() for t in (*results, *first, *second)]


class Module(nn.Module):
    """Evaluates cases. Arrays of atoms are inputs, arrays of a model are buffers.

    Args:
        chosen: the cases; equal arrays of one group and precision are one input or buffer.
        graph: the graph that it is traced with.
        derivatives: groups in which :func:`with_derivatives` is evaluated, in float64.
    """

    def __init__(self, chosen: list[Chosen], graph: Graph, device="cpu", derivatives: tuple[str, ...] = ()):
        super().__init__()
        self.chosen, self.graph, self.device, self.derivatives = chosen, graph, device, derivatives
        self.places: dict[tuple[Leaf, str], int] = {}
        self.names: dict[tuple[Leaf, str], str] = {}
        for group, case, precision in chosen:
            for leaf in leaves(tree(group, case)):
                key, places = (leaf, precision), self.names if leaf.array.constant else self.places
                if key not in places:
                    places[key] = f"constant{len(places)}" if leaf.array.constant else len(places)
        for (leaf, precision), name in self.names.items():
            self.register_buffer(name, leaf.array.make(leaf.key, graph, precision, device))
        # where a size can be read: input and dimension
        self.sizes = {
            size: (place, dim)
            for (leaf, _), place in self.places.items()
            for dim, size in enumerate(leaf.array.shape)
            if isinstance(size, str)
        }
        self.traced: dict[int, tuple[torch.fx.GraphModule, list[int]]] = {}

    def inputs(self, graph: Graph) -> tuple[Tensor, ...]:
        return tuple(leaf.array.make(leaf.key, graph, precision, self.device) for leaf, precision in self.places)

    def dynamic_shapes(self, least: int) -> tuple[dict, ...]:
        """Dynamic shapes for :func:`torch.export.export`, with sizes of at least ``least``."""
        dims = {size: torch.export.Dim(size, min=least) for size in ("edges", "centres", "nodes")}
        dims["offsets"] = dims["centres"] + 1
        shapes = [leaf.array.shape for leaf, _ in self.places]
        return tuple({k: dims[size] for k, size in enumerate(shape) if isinstance(size, str)} for shape in shapes)

    def arguments(self, inputs: Sequence[Tensor] | dict[int, Tensor], chosen: Chosen) -> list:
        group, case, precision = chosen

        def array(leaf):
            key = (leaf, precision)
            return getattr(self, self.names[key]) if key in self.names else inputs[self.places[key]]

        def constant(value):
            return (value.to(DTYPE[precision]) if value.is_floating_point() else value).to(self.device)

        def size(name):
            place, dim = self.sizes[name]
            return inputs[place].shape[dim]

        return fill_tree(tree(group, case), array, constant, size)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        results = []
        for number, chosen in enumerate(self.chosen):
            if number in self.traced:
                graph, places = self.traced[number]
                results += graph(*[inputs[place] for place in places])
            else:
                results += self.evaluate(chosen, self.arguments(inputs, chosen))
        return tuple(results)

    def evaluate(self, chosen: Chosen, arguments: list) -> list[Tensor]:
        case = chosen[1]
        return with_derivatives(case, arguments) if self.differentiates(chosen) else as_list(case.overload(*arguments))

    def differentiates(self, chosen: Chosen) -> bool:
        group, case, precision = chosen
        return group.name in self.derivatives and precision == "fp64" and bool(case.gradients)

    def trace_derivatives(self, decompositions: dict) -> None:
        """Trace the derivatives, which an export could not do, with operators replaced as in an export."""
        inputs = self.inputs(self.graph)
        for number, chosen in enumerate(self.chosen):
            if self.differentiates(chosen):
                places = sorted(
                    {self.places[leaf, "fp64"] for leaf in leaves(tree(*chosen[:2])) if not leaf.array.constant}
                )
                places = sorted({*places, *(place for place, _ in self.sizes.values())})

                def function(*own):
                    return self.evaluate(chosen, self.arguments(dict(zip(places, own)), chosen))

                trace = make_fx(function, decompositions, tracing_mode="symbolic", _allow_non_fake_inputs=True)
                self.traced[number] = trace(*[inputs[place] for place in places]), places

    def expected(self, inputs: tuple[Tensor, ...]) -> list[tuple[Chosen, list[Tensor]]]:
        """Results of the references in float64 for each case."""
        return [(chosen, self.evaluate(chosen, upcast(self.arguments(inputs, chosen)))) for chosen in self.chosen]


def exported(module: Module, backend: Backend, least: int = 2) -> torch.export.ExportedProgram:
    """The module's graph in this package's operators, derivatives in those of the backend, with dynamic sizes of at least ``least``."""
    module.trace_derivatives(backend.decompositions())
    inputs = module.inputs(module.graph)
    return torch.export.export(module, inputs, dynamic_shapes=(module.dynamic_shapes(least),))


def lowered(module: Module, backend: Backend, least: int = 2) -> torch.fx.GraphModule:
    """The graph of :func:`exported` in a backend's kernels, as in an export of a model."""
    graph = exported(module, backend, least).run_decompositions(backend.decompositions()).module()
    fold_constants(graph)
    backend.specialize(graph)
    return graph
