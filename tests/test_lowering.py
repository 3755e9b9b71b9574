"""Passes over traced graphs, and whole models in the kernels of a GPU: Triton's interpreter (conftest.py) where there is none."""

from __future__ import annotations

import copy
import itertools
import re
from collections import Counter

import pytest
import torch
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from nequip_md.kernels import Backend, Form
from nequip_md.kernels.hopper import operators as hopper
from nequip_md.kernels.hopper.backend import HopperBackend
from nequip_md.kernels.triton.backend import TritonBackend
from nequip_md.lowering import fold_constants, run_passes, trace
from nequip_md.lowering.trace import example_inputs
from nequip_md.model import NequIPConfig, build_model, energy_and_gradient, preset, with_dtype
from nequip_md.ops import references

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# tolerances of whole models, relative to the norm; rounding differs between machines with the order of sums in matrix products
TOLERANCE = {"fp64": 1e-12, "fp32": 4e-6, "tf32": 4e-3}
OPERATORS = torch.ops.nequip_md


class EveryForm(Backend):
    """A backend in which every operator has a form, its reference, so that all passes apply and results are exact."""

    def forms(self):
        return {operator: [Form(reference)] for operator, reference in references().items()}


def counts(graph) -> Counter:
    """Number of calls of each of this package's operators, by name."""
    names = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    return Counter(name.split(".")[1] for name in names if name.startswith("nequip_md."))


def small_allegro(**options):
    defaults = {"type_names": ["H", "O"], "cutoff": 5.0, "avg_num_neighbors": 12.0, "dtype": "float64", "l_max": 2}
    widths = {"num_scalar_features": 8, "num_tensor_features": 4, "allegro_mlp_width": 16, "two_body_mlp_width": 8}
    torch.manual_seed(0)
    return build_model(preset("small", **{**defaults, **widths, **options})).eval()


ALLEGRO = {
    "two layers": {},
    "five layers": {"num_layers": 5},
    "scale of each type": {"energy_scales": {"H": 0.7, "O": 1.4}, "avg_num_neighbors": {"H": 9.0, "O": 14.0}},
    "repulsion": {"pair_potential": {"chemical_species": ["H", "O"]}},
    "MLPs of one layer": {"allegro_mlp_depth": 1, "two_body_mlp_depth": 1},
    "MLPs of three layers": {"allegro_mlp_depth": 3, "two_body_mlp_depth": 3},
    "readout of two layers": {"readout_mlp_depth": 1, "readout_mlp_width": 8, "readout_mlp_nonlinearity": "silu"},
    "another nonlinearity": {"allegro_mlp_nonlinearity": "mish"},
    "linear": {"allegro_mlp_nonlinearity": None, "two_body_mlp_nonlinearity": None},
    "splines": {"radial_embedding": {"kind": "spline", "num_splines": 6, "spline_span": 3}},
}


@pytest.mark.parametrize("options", ALLEGRO.values(), ids=ALLEGRO)
def test_passes_keep_energies_and_gradients(options):
    model = small_allegro(**options).requires_grad_(False)
    inputs = example_inputs(9, 4, 8, 2, 5.0, seed=1)
    graph = make_fx(lambda *i: energy_and_gradient(model, *i), tracing_mode="symbolic", _allow_non_fake_inputs=True)(
        *inputs
    )
    fold_constants(graph)
    before = counts(graph.graph)
    run_passes(graph, EveryForm())
    after = counts(graph.graph)
    assert after != before
    other = example_inputs(6, 3, 5, 2, 5.0, seed=2)
    for got, want in zip(graph(*other), energy_and_gradient(model, *other), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)

    layers = model.config.num_layers
    # a contraction that is left over after every four has nothing to be summed with
    assert after["edge_contract_gradient"] == (layers + 2) // 4 and after["edge_contract_backward"] == (layers % 4 == 1)
    # the first of every four contractions gets its own gradient by z with the sums of those by w and y
    assert after["edge_contract_moment"] == layers - after["edge_contract_gradient"] - after["edge_contract_backward"]
    linear = model.readout.nonlinearity is None and model.layers[-1].mlp.nonlinearity == "silu"
    assert after["mlp_energy"] == linear and not after["mlp_readout_backward"]
    two = [
        len(mlp.weights) == 3 and mlp.nonlinearity == "silu"
        for mlp in (model.two_body_mlp, *(layer.mlp for layer in model.layers[:-1]))
    ]
    assert after["mlp_hidden_dense"] >= sum(two) and after["mlp_hidden_dense_backward"] >= sum(two)
    if "radial_embedding" not in options:
        (embedding,) = graph.graph.find_nodes(op="call_function", target=OPERATORS.edge_embedding_backward.default)
        assert len(embedding.args[1]) == min(
            4, layers + after["edge_contract_gradient"] + after["edge_contract_backward"]
        )


def test_passes_leave_what_a_backend_has_no_form_for():
    model = small_allegro().requires_grad_(False)
    inputs = example_inputs(9, 4, 8, 2, 5.0, seed=1)
    graph = make_fx(lambda *i: energy_and_gradient(model, *i), tracing_mode="symbolic", _allow_non_fake_inputs=True)(
        *inputs
    )
    before = counts(graph.graph)
    run_passes(graph, Backend())
    assert counts(graph.graph) == before


def loss_gradient(model, inputs):
    """The function (weights) -> gradient of a loss of energies and forces: second derivatives, as a training step takes them."""
    names = [name for name, _ in model.named_parameters()]

    def step(edge_vectors, *tensors):
        weights = {name: tensor.detach().requires_grad_() for name, tensor in zip(names, tensors)}
        edge_vectors = edge_vectors.detach().requires_grad_()
        energy = functional_call(model, weights, (edge_vectors, *inputs[1:]))
        (gradient,) = torch.autograd.grad(energy.sum(), edge_vectors, create_graph=True)
        loss = energy.square().mean() + gradient.square().mean()
        return torch.autograd.grad(loss, list(weights.values()), materialize_grads=True, allow_unused=True)

    return step


@pytest.mark.parametrize(
    "options",
    [ALLEGRO[name] for name in ("two layers", "five layers", "scale of each type", "MLPs of one layer")],
)
def test_passes_serve_second_derivatives(options):
    """In the graph of a training step, passes apply to the first derivatives, and the second derivatives stay correct."""
    model = small_allegro(**options)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    inputs = example_inputs(9, 4, 8, 2, 5.0, seed=1)
    step, weights = loss_gradient(model, inputs), [p.detach().clone() for p in model.parameters()]
    expected = step(inputs[0], *weights)
    graph = make_fx(step, tracing_mode="symbolic", _allow_non_fake_inputs=True)(inputs[0], *weights)
    run_passes(graph, EveryForm())
    made = counts(graph.graph)
    layers = model.config.num_layers
    assert made["edge_contract_gradient"] >= (layers + 2) // 4 and made["edge_spread_add"] >= 1
    assert (made["mlp_hidden_dense"] >= layers) == ("allegro_mlp_depth" not in options)
    # what the readout leaves for its gradient has other readers here
    assert not made["mlp_energy"]
    for got, want in zip(graph(inputs[0], *weights), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11 * max(1.0, float(want.abs().max())))


def test_passes_sum_the_derivatives_of_convolutions():
    """In the graph of a training step, derivatives of a layer by one argument that are added up are one call."""
    torch.manual_seed(0)
    options = {"cutoff": 5.0, "avg_num_neighbors": 12.0, "num_layers": 3, "l_max": 1, "num_features": [3, 2]}
    model = build_model(NequIPConfig(type_names=["H", "O"], dtype="float64", radial_mlp_width=6, **options)).eval()
    inputs = example_inputs(9, 0, 8, 2, 5.0, seed=1)
    step, weights = loss_gradient(model, inputs), [p.detach().clone() for p in model.parameters()]
    expected = step(inputs[0], *weights)
    graph = make_fx(step, tracing_mode="symbolic", _allow_non_fake_inputs=True)(inputs[0], *weights)
    graph.graph.eliminate_dead_code()
    before = counts(graph.graph)
    run_passes(graph, EveryForm())
    made = counts(graph.graph)
    name = "tensor_product_convolution"
    assert before[name] == 3 + 2 * 3 + 2 and not made[name] and not made[f"{name}_nodes"] and not made[f"{name}_edges"]
    # of the energy, of the forces and of the loss; the features that the first layer reads do not depend on positions
    assert {by: made[f"{name}_by_{by}"] for by in "xywg"} == {"x": 2 + 3, "y": 3, "w": 3 + 3, "g": 3 + 3}
    for got, want in zip(graph(inputs[0], *weights), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11 * max(1.0, float(want.abs().max())))
    other = make_fx(step, tracing_mode="symbolic", _allow_non_fake_inputs=True)(inputs[0], *weights)
    run_passes(other, Backend())
    assert counts(other.graph)[name] == before[name]


@pytest.mark.parametrize("kind", ["allegro", "nequip"])
def test_loss_gradient_is_that_of_finite_differences(kind):
    if kind == "allegro":
        model = small_allegro(radial_embedding={"kind": "bessel", "num_bessels": 4, "bessel_trainable": True})
    else:
        torch.manual_seed(0)
        options = {"cutoff": 5.0, "avg_num_neighbors": 12.0, "num_features": [4, 2], "radial_mlp_width": 6}
        model = build_model(
            preset("S", type_names=["H", "O"], dtype="float64", bessel_trainable=True, **options)
        ).eval()
    inputs = example_inputs(7, 0, 6, 2, 5.0, seed=1)
    weights = [p.detach().clone() for p in model.parameters()]
    gradient = loss_gradient(model, inputs)(inputs[0], *weights)
    names = [name for name, _ in model.named_parameters()]

    def loss(values):
        energy, forces = energy_and_gradient(lambda *i: functional_call(model, dict(zip(names, values)), i), *inputs)
        return float(energy.square().mean() + forces.square().mean())

    direction = [torch.randn_like(w) for w in weights]
    step = 1e-5
    ends = [loss([w + sign * step * d for w, d in zip(weights, direction)]) for sign in (1, -1)]
    slope = sum(float((g * d).sum()) for g, d in zip(gradient, direction))
    assert abs((ends[0] - ends[1]) / (2 * step) - slope) <= 1e-6 * abs(slope) + 1e-7


# ---- whole models ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "precision"),
    [*itertools.product(("small", "large"), ("fp64", "fp32", "tf32")), ("nano", "fp32")],
)
def test_whole_allegro(name, precision):
    """The graph that an export for CUDA compiles, node by node, against the model in float64."""
    by_type = (
        {} if name == "small" else {"energy_scales": {"H": 0.7, "O": 1.4}, "energy_shifts": {"H": -1.0, "O": -3.0}}
    )
    neighbours = 20.0 if name == "small" else {"H": 19.0, "O": 22.0}
    # the products of l_max 3 take most of the time in the interpreter, and the operators' table has them
    fewer = {"l_max": 2} if DEVICE == "cpu" and name == "large" else {}
    config = preset(
        name,
        type_names=["H", "O"],
        avg_num_neighbors=neighbours,
        pair_potential={"chemical_species": ["H", "O"]},
        **by_type,
        **fewer,
    )
    torch.manual_seed(3)
    exact = with_dtype(build_model(config).eval(), "float64").to(DEVICE)
    model = copy.deepcopy(exact) if precision == "fp64" else with_dtype(exact, "float32").to(DEVICE)
    backend = TritonBackend(precision)
    program = trace(model, config.cutoff, 2, device=DEVICE, backend=backend)
    assert any("float64" in note for note in backend.notes) == (precision == "fp64")
    calls = counts(program.graph)
    assert bool(calls["mlp_hidden_triton"]) == (precision != "fp64")
    assert calls["edge_embedding_triton"] == calls["edge_embedding_backward_triton"] == 1
    # with two hidden layers, what reads a hidden layer is in its kernel
    assert bool(calls["dense_triton"]) == (name == "large" and precision != "fp64")
    assert calls["edge_contract_gradient_triton"] == 1
    assert calls["edge_contract_moment_triton"] == config.num_layers - 1
    if precision != "fp64":
        # gradients by the edges' tensor weights are summed in a kernel: no addition of arrays of their size, or zeros in it
        shape = (config.l_max + 1, config.num_tensor_features)
        made = [
            str(n.target) for n in program.graph.nodes if tuple(getattr(n.meta.get("val"), "shape", ()))[1:] == shape
        ]
        assert made
        assert not [target for target in made if "add" in target or "zeros" in target or "expand" in target], made
        # nor are those of shared features and harmonics added outside of one
        widths = {(config.num_scalar_features,), (1, config.num_scalar_features), ((config.l_max + 1) ** 2,)}
        added = [
            node
            for node in program.graph.nodes
            if "aten.add" in str(node.target) and tuple(getattr(node.meta.get("val"), "shape", ()))[1:] in widths
        ]
        # in large, features that later layers make have several readers as well
        assert not added or name == "large", added
    assert model.layers[-1].pairs_orders
    if DEVICE == "cpu" and (name, precision) == ("large", "tf32"):
        pytest.skip(
            "its graph is right; its results, minutes in the interpreter, are left to a GPU, as those of wide MLPs are"
        )
    inputs = example_inputs(5, 3, 9, 2, config.cutoff, seed=5, device=DEVICE)
    for got, want in zip(program.module()(*inputs), energy_and_gradient(exact, *inputs), strict=True):
        assert (got - want).norm() <= TOLERANCE[precision] * want.norm()


@pytest.mark.parametrize("precision", ["fp32", "fp64"])
def test_whole_nequip(precision):
    """Message passing: the graph that an export for CUDA compiles has a kernel for each derivative of each convolution."""
    widths = {"num_features": [16, 8], "radial_mlp_width": 16}
    config = preset("S", type_names=["H", "O"], cutoff=6.0, avg_num_neighbors=20.0, **widths)
    torch.manual_seed(3)
    exact = with_dtype(build_model(config).eval(), "float64").to(DEVICE)
    model = copy.deepcopy(exact) if precision == "fp64" else with_dtype(exact, "float32").to(DEVICE)
    program = trace(model, config.cutoff, 2, device=DEVICE, backend=TritonBackend(precision))
    calls = program.graph.find_nodes(op="call_function", target=OPERATORS.tensor_product_convolution_by_triton.default)
    # what the first layer reads are types
    assert Counter(call.args[0] for call in calls) == {"g": 2, "y": 2, "w": 2, "x": 1}
    sample = example_inputs(13, 0, 7, 2, config.cutoff, device=DEVICE, seed=5)
    for got, expected in zip(program.module()(*sample), energy_and_gradient(exact, *sample), strict=True):
        assert (got - expected).norm() <= TOLERANCE[precision] * expected.norm()


def test_whole_allegro_on_hopper():
    """The graph that an export for a Hopper GPU compiles; its operators' references run here."""
    config = preset("small", type_names=["H", "O"], avg_num_neighbors=20.0)
    torch.manual_seed(0)
    exact = with_dtype(build_model(config).eval(), "float64").to(DEVICE)
    model = with_dtype(exact, "float32").to(DEVICE)
    program = trace(model, config.cutoff, 2, device=DEVICE, backend=HopperBackend("fp32"))
    calls = Counter(node.target for node in program.graph.nodes if "nequip_md.hopper" in str(node.target))
    assert calls == {
        hopper.ENERGY: 1,
        hopper.HIDDEN: 2,
        hopper.HIDDEN_BACKWARD: 2,
        hopper.CONTRACT_GRADIENT: 1,
        hopper.CONTRACT_MOMENT: 1,
        hopper.CHANNEL_PRODUCT: 3,
    }
    others = [node for node in program.graph.nodes if re.search("mlp_|gather|channel_product_triton", str(node.target))]
    assert not others
    inputs = example_inputs(5, 3, 9, 2, config.cutoff, seed=5, device=DEVICE)
    for got, want in zip(program.module()(*inputs), energy_and_gradient(exact, *inputs), strict=True):
        assert (got - want).norm() <= 4e-6 * want.norm()


def test_what_has_no_kernel_is_noted():
    config = preset("small", type_names=["H"], two_body_mlp_width=520)
    backend = TritonBackend("fp32")
    trace(build_model(config).eval(), config.cutoff, 1, device="cpu", backend=backend)
    assert any("a width of 520 exceeds 512" in note for note in backend.notes)
