"""From a model to a traced graph with the artifact's signature."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import sympy
import torch
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext, statically_known_true

from nequip_md.errors import NequIPMDError
from nequip_md.kernels import Backend
from nequip_md.lowering.clean import merge_equal_calls, remove_aliases, remove_no_ops
from nequip_md.lowering.compile_time import few_collections
from nequip_md.lowering.constants import fold_constants
from nequip_md.lowering.passes import run_passes
from nequip_md.model import energy_and_gradient

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]
_ONE_MORE = " + 1"
_SIZES_MATTER = (
    "the model cannot be traced for batches of any size: {}; "
    "its forward must not branch on numbers of atoms, edges or frames"
)


def example_inputs(
    owned: int, ghosts: int, degree: int, types: int, cutoff: float, *, device: str = "cpu", seed: int = 0
) -> Inputs:
    """Random inputs of an artifact, with ``degree`` edges for each owned node (one less for odd nodes).

    All sizes differ from each other and from the widths of a model, so that tracing cannot confuse them.
    """
    generator = torch.Generator().manual_seed(seed)
    counts = torch.full((owned,), degree) - torch.arange(owned) % 2
    row_ptr = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    centre = torch.repeat_interleave(torch.arange(owned), counts)
    neighbour = torch.randint(0, owned + ghosts, centre.shape, generator=generator)
    direction = nn.functional.normalize(torch.randn(len(centre), 3, dtype=torch.float64, generator=generator), dim=-1)
    length = cutoff * (0.3 + 0.65 * torch.rand(len(centre), 1, dtype=torch.float64, generator=generator))
    node_types = torch.randint(0, types, (owned + ghosts,), generator=generator)
    tensors = (direction * length, torch.stack([centre, neighbour]), row_ptr, node_types)
    return tuple(t.to(device) for t in tensors)


def dynamic_shapes() -> tuple:
    """Dynamic dimensions of the four inputs, for :func:`torch.export.export`."""
    edges = torch.export.Dim("edges", min=2)
    owned = torch.export.Dim("owned", min=2)
    nodes = torch.export.Dim("nodes", min=2)
    return ({0: edges}, {1: edges}, {0: owned + 1}, {0: nodes})


@few_collections()
def trace(
    model: nn.Module,
    cutoff: float,
    types: int,
    *,
    device: str,
    backend: Backend,
) -> torch.export.ExportedProgram:
    """Export ``model`` and the gradient of its energy as one graph with dynamic sizes.

    The graph is traced at two sizes. If the two graphs differ, a size was taken for a constant.

    Args:
        model: any module with the forward of :class:`nequip_md.model.Potential`.
        cutoff: bound of the lengths of the example edges, angstrom.
        types: number of model types.
        backend: the kernels that replace the operators.

    Raises:
        NequIPMDError: the two graphs differ, or a dimension is not dynamic.
    """
    model = copy.deepcopy(model).to(device).eval().requires_grad_(False)
    samples = [
        example_inputs(11, 5, 9, types, cutoff, device=device, seed=1),
        example_inputs(17, 3, 6, types, cutoff, device=device, seed=2),
    ]

    def evaluate(edge_vectors: Tensor, edge_index: Tensor, row_ptr: Tensor, node_types: Tensor):
        return energy_and_gradient(model, edge_vectors, edge_index, row_ptr, node_types)

    graphs = [lower(_traced(evaluate, sample), sample, backend) for sample in samples]
    if graphs[0].code != graphs[1].code:
        raise NequIPMDError(
            "the model was traced at two sizes and the graphs differ, so a number of atoms or edges was "
            "taken for a constant; its forward must not branch on sizes: " + _difference(graphs)
        )
    try:
        return torch.export.export(graphs[0], samples[0], dynamic_shapes=dynamic_shapes())
    except Exception as error:
        raise NequIPMDError(f"torch.export could not export this model with dynamic sizes: {error}") from error


@dataclass(frozen=True)
class SymbolicInputs:
    """Fake tensors to trace a function with, some sizes of which are symbols.

    Attributes:
        sizes: by name.
    """

    tensors: list[Tensor]
    sizes: dict[str, torch.SymInt]


def symbolic(tensors: Sequence[Tensor], dynamic: Sequence[Mapping[int, str]]) -> SymbolicInputs:
    """Fake tensors like some tensors.

    Args:
        dynamic: names of the sizes of each tensor that are symbols, by dimension. Sizes of the same name are equal, and the size
            ``name + 1`` is one more than the size ``name``, which another tensor has.
    """
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    fakes, sizes = [], {}
    for tensor, names in zip(tensors, dynamic, strict=True):
        kinds = [DimDynamic.DYNAMIC if d in names else DimDynamic.STATIC for d in range(tensor.dim())]
        fakes.append(mode.from_tensor(tensor, symbolic_context=StatelessSymbolicContext(dynamic_sizes=kinds)))
        for dimension, name in names.items():
            size, plain = fakes[-1].shape[dimension], name.removesuffix(_ONE_MORE)
            size = size if plain == name else size - 1
            torch._check(size == sizes.setdefault(plain, size))
    return SymbolicInputs(fakes, sizes)


def trace_function(function: Callable, inputs: SymbolicInputs, backend: Backend) -> torch.fx.GraphModule:
    """Trace a function of tensors, derivatives that it takes included, and lower the graph; equal calls in it are merged.

    Args:
        function: of tensors alone; tensors that it closes over become constants.
        inputs: from :func:`symbolic`.
        backend: whose forms replace the operators.

    Raises:
        NequIPMDError: the graph holds for some sizes alone.
    """
    graph = _traced(function, inputs.tensors)
    remove_no_ops(graph)
    graph = lower(graph, inputs.tensors, backend)
    _check_sizes(inputs)
    remove_aliases(graph, backend)
    remove_no_ops(graph)
    merge_equal_calls(graph)
    return graph


def _check_sizes(inputs: SymbolicInputs) -> None:
    """Raise an error if a trace took a symbolic size for a constant, or depends on what it is.

    That it differs from a number or from another size is left out: operators and passes compare sizes to find equal ones.
    """
    if not inputs.sizes:
        return
    # guards count as known in the environment that they were made in
    afresh = symbolic([torch.empty(2 + number) for number in range(len(inputs.sizes))], [{0: n} for n in inputs.sizes])
    names: dict[sympy.Expr, str] = {}
    for name, size in inputs.sizes.items():
        found = size.node.expr
        if not found.is_Symbol or found in names:
            raise NequIPMDError(_SIZES_MATTER.format(f"the number of {name} was taken for {names.get(found, found)}"))
        names[found] = name
    symbols = {symbol: afresh.sizes[name].node.expr for symbol, name in names.items()}
    made, known = (next(iter(sizes.values())).node.shape_env for sizes in (inputs.sizes, afresh.sizes))
    for guard in made.guards:
        condition = made.replace(guard.expr)
        always = statically_known_true(known.create_symboolnode(condition.xreplace(symbols)))
        if not always and not isinstance(condition, sympy.Ne):
            named = condition.xreplace({symbol: sympy.Symbol(name) for symbol, name in names.items()})
            raise NequIPMDError(_SIZES_MATTER.format(f"it was assumed that {named}"))


def _traced(function: Callable, inputs: Sequence[Tensor], decompositions: dict | None = None) -> torch.fx.GraphModule:
    mode = "fake" if isinstance(inputs[0], FakeTensor) else "symbolic"
    trace = make_fx(function, decomposition_table=decompositions or {}, tracing_mode=mode, _allow_non_fake_inputs=True)
    # make_fx enables this itself for "symbolic" alone; PyTorch 2.11's matrix product of three dimensions in C++ takes symbols for constants
    with enable_python_dispatcher():
        return trace(*inputs)


def lower(graph: torch.fx.GraphModule, inputs: Sequence[Tensor], backend: Backend) -> torch.fx.GraphModule:
    """Replace the operators of a graph by a device's kernels.

    Args:
        graph: the traced graph, gradients included; changed in place.
        inputs: the inputs that it was traced with.
        backend: the kernels that replace the operators.

    Returns:
        The lowered graph.
    """
    fold_constants(graph)
    run_passes(graph, backend)
    lowered = _traced(torch.fx.Interpreter(graph).run, inputs, backend.decompositions())
    fold_constants(lowered)
    backend.specialize(lowered)
    return lowered


def _difference(graphs: list) -> str:
    for first, second in zip(*(g.code.splitlines() for g in graphs)):
        if first != second:
            return f"{first.strip()!r} against {second.strip()!r}"
    return "one graph is longer than the other"
