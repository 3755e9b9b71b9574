"""The interface between the kernels of a device and the code that lowers a graph for that device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.resources import as_file, files
from typing import NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload

from nequip_md.kernels.exchange import forms as exchange
from nequip_md.kernels.shims import shims
from nequip_md.kernels.static_library import build_once, searched, with_library
from nequip_md.ops import references

_EXCHANGE_LIBRARY = "nequip_md_exchange"


def _always(*arguments) -> bool:
    return True


def _value(argument):
    if isinstance(argument, (list, tuple)):
        return [_value(item) for item in argument]
    return argument.meta["val"] if isinstance(argument, torch.fx.Node) else argument


class Form(NamedTuple):
    """One way to run an operator on a device."""

    call: Callable
    """Function of the operator's arguments that returns its results."""
    accepts: Callable[..., bool] = _always
    """Whether this form takes given arguments; may depend on their widths, dtypes and numbers."""


class Backend:
    """The forms of operators for one kind of device.

    This base class has forms for the exchange of ghosts' features only; every other operator runs as its reference.

    Attributes:
        device: ``cpu`` or ``cuda``.
        kernels: name of the kernels, for the metadata of an artifact.
        exchanges_ghosts: whether a traced graph needs the features of ghosts.
        weights_vary: whether weights are inputs of a graph, not constants.
        notes: one sentence for each part of a model that runs in a slower form, with the reason; filled while tracing.
        linked_operators: operators that stay in the graph, each of which compiled code calls through a C function; the
            exchange is not among them.
        unordered: operators whose forms add in an order that differs from run to run.
    """

    device = "cpu"
    kernels = "none"
    linked_operators: frozenset[OpOverload] = frozenset()
    unordered: frozenset[OpOverload] = frozenset()

    def __init__(self):
        self.notes: list[str] = []
        self.exchanges_ghosts = self.weights_vary = False
        self._forms = {
            torch.ops.nequip_md.ghost_exchange.default: [Form(self._exchange)],
            torch.ops.nequip_md.ghost_reduce.default: [Form(exchange.reduce)],
            **self.forms(),
        }

    def for_training(self) -> Backend:
        """Change the backend to that of graphs of training steps, where weights vary and there are no ghosts; returns it.

        While PyTorch takes deterministic algorithms only, ``unordered`` operators run as their references.
        """
        self.weights_vary = True
        self._forms |= {
            **self.forms_of_training(),
            torch.ops.nequip_md.ghost_exchange.default: [Form(lambda owned, node_types: owned.clone())],
            torch.ops.nequip_md.ghost_reduce.default: [Form(lambda values, node_types, owned: values.clone())],
        }
        if torch.are_deterministic_algorithms_enabled():
            for operator in self.unordered:
                del self._forms[operator]
        return self

    def forms(self) -> dict[OpOverload, list[Form]]:
        """Forms of each operator, the fastest first. The first one that accepts the arguments is taken, else the reference."""
        return {}

    def forms_of_training(self) -> dict[OpOverload, list[Form]]:
        """More forms for graphs of training steps, also of PyTorch's own operators."""
        return {}

    def call(self, operator: OpOverload, *arguments):
        """Run an operator in the first form that accepts its arguments; NotImplemented if it is PyTorch's and there is none."""
        for form in self._forms.get(operator, ()):
            if form.accepts(*arguments):
                return form.call(*arguments)
        if operator not in references():
            return NotImplemented
        self.without_form(operator, arguments)
        return references()[operator](*arguments)

    def without_form(self, operator: OpOverload, arguments: tuple) -> None:
        """Add a note; called when an operator runs as its reference, though it may have forms for other arguments."""

    def accepts(self, operator: OpOverload, *arguments) -> bool:
        """Whether there is a form for these arguments: tensors, fake tensors, or nodes of a graph with such values."""
        values = [_value(argument) for argument in arguments]
        return any(form.accepts(*values) for form in self._forms.get(operator, ()))

    def decompositions(self) -> dict[OpOverload, Callable]:
        """Functions that a trace runs in place of operators, for each operator that does not stay in the graph."""
        return {
            operator: partial(self.call, operator) if operator in self._forms else reference
            for operator, reference in {**references(), **self._forms}.items()
            if operator not in self.linked_operators and operator is not exchange.EXCHANGE_GHOSTS
        }

    def specialize(self, graph: torch.fx.GraphModule) -> None:
        """Replace operators of a lowered graph, in place, by ones that depend on the graph's constants."""

    @contextmanager
    def linked(self) -> Iterator[dict]:
        """Build the libraries that compiled code calls; yields the Inductor options that link them into an artifact.

        Raises:
            NequIPMDError: a compiler is missing or fails.
        """
        if not self.exchanges_ghosts:
            yield {}
            return
        with as_file(files("nequip_md.kernels")) as sources:
            folder = build_once(
                _EXCHANGE_LIBRARY,
                sources / "exchange" / "exchange.cpp",
                sources / "include",
                ["-DON_CUDA"] if self.device == "cuda" else [],
            )
            with searched(str(folder)):
                yield with_library({}, _EXCHANGE_LIBRARY, shims([exchange.EXCHANGE_GHOSTS], self.device))

    def _exchange(self, owned: Tensor, node_types: Tensor) -> Tensor:
        self.exchanges_ghosts = True
        return exchange.exchange(owned, node_types)

    def note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)
