"""NequIP: equal to upstream's model for all options, and with the properties of any potential."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from nequip_md.checkpoint.upstream_nequip import config_from_upstream, state_from_upstream
from nequip_md.errors import NequIPMDError
from nequip_md.graph import Structure, build_graph, forces_from_gradient, pad_graph
from nequip_md.model import NequIPConfig, build_model, energy_and_gradient, preset
from nequip_md.model.gate import SILU_FACTOR, TANH_FACTOR
from nequip_md.ops.ghost_exchange import ghost_exchange
from support.physical_checks import (
    check_finite_differences,
    check_permutation,
    check_rotation,
    check_size_consistency,
    check_smooth_cutoff,
    close,
    evaluator,
)
from support.structures import (
    dense_box,
    distant_parts,
    elongated_cell,
    single_atom,
    small_molecule,
    triclinic_crystal,
    water_box,
)
from support.upstream_nequip import build_upstream, evaluate_upstream, upstream_options, upstream_state

HO, HCO = ["H", "O"], ["H", "C", "O"]
SMALL = {
    "cutoff": 4.0,
    "num_features": 4,
    "radial_mlp_width": 8,
    "avg_num_neighbors": 11.0,
    "num_layers": 2,
    "dtype": "float64",
    "energy_scales": 1.7,
    "energy_shifts": -0.3,
}

# every option at least once away from its default
CASES = {
    "l0": {"type_names": ["O"], "l_max": 0, "num_layers": 3},
    "l1": {"type_names": HCO, "l_max": 1, "num_layers": 3, "energy_shifts": {"H": -1.0, "C": 0.4, "O": 2.0}},
    "l2_no_parity": {
        "type_names": HO,
        "l_max": 2,
        "parity": False,
        "num_features": [5, 3, 2],
        "avg_num_neighbors": {"H": 6.0, "O": 14.0},
    },
    "l2_four_layers": {"type_names": HCO, "l_max": 2, "num_layers": 4, "num_features": [4, 2, 3]},
    "l3": {"type_names": HO, "l_max": 3, "num_layers": 3, "num_features": 2, "type_embed_num_features": 3},
    "l4_no_parity": {"type_names": HO, "l_max": 4, "parity": False, "num_features": [4, 3, 2, 1, 2]},
    "one_layer": {"type_names": HCO, "l_max": 2, "num_layers": 1, "type_embed_num_features": 6},
    "pair_cutoffs_zbl": {
        "type_names": HCO,
        "l_max": 1,
        "pair_cutoffs": {"H": 3.0, "C": {"H": 2.6, "O": 3.7}},
        "pair_potential": {"chemical_species": HCO},
    },
    "radial": {
        "type_names": HO,
        "l_max": 1,
        "bessel_trainable": True,
        "num_bessels": 5,
        "polynomial_cutoff_p": 4.0,
        "radial_mlp_depth": 2,
        "radial_mlp_width": 6,
    },
    "more_types_than_features": {
        "type_names": HCO,
        "l_max": 1,
        "num_layers": 3,
        "type_embed_num_features": 2,
        "avg_num_neighbors": {"H": 3.0, "C": 9.0, "O": 14.0},
    },
    "trainable_scales": {
        "type_names": HO,
        "l_max": 1,
        "energy_scales": 2.0,
        "energy_scales_trainable": True,
        "energy_shifts": {"H": 1.0, "O": -2.0},
        "energy_shifts_trainable": True,
    },
    "no_scales": {"type_names": HO, "l_max": 1, "energy_scales": None, "energy_shifts": None},
    "readout_silu": {"type_names": HO, "l_max": 1, "readout_mlp_depth": 1, "readout_mlp_width": 7},
    "readout_linear": {"type_names": HO, "l_max": 1, "readout_mlp_depth": 2, "readout_mlp_nonlinearity": None},
    "readout_mish": {"type_names": HO, "l_max": 1, "readout_mlp_depth": 2, "readout_mlp_nonlinearity": "mish"},
    "readout_gelu": {"type_names": HO, "l_max": 1, "readout_mlp_depth": 1, "readout_mlp_nonlinearity": "gelu"},
}


def config_of(case: str) -> NequIPConfig:
    return NequIPConfig(**{**SMALL, **CASES[case]})


def structures(config: NequIPConfig) -> list[Atoms]:
    """A triclinic crystal and a molecule with all of the model's types."""
    names = config.type_names
    if len(names) == 3:
        return [triclinic_crystal(("O", "C"), (2, 1, 1)), small_molecule()]
    lone = molecule("H2O2" if "H" in names else "O3")
    lone.rattle(0.1, seed=1)
    return [triclinic_crystal(("O", names[0]), (2, 1, 1)), lone]


@cache
def converted(case: str):
    """Upstream's model with random weights, and ours from it by way of the checkpoint conversion."""
    config = config_of(case)
    upstream = build_upstream(config, seed=sum(map(ord, case)))
    translated = config_from_upstream(upstream_options(config))
    model = build_model(translated)
    model.load_state_dict(state_from_upstream(translated, upstream_state(upstream)))
    return upstream, translated, model


def compare(upstream, config, model, atoms: Atoms, tolerance: float) -> None:
    expected, actual = evaluate_upstream(upstream, config, atoms), evaluator(model, config)(atoms)
    assert np.abs(expected.forces).max() > 1e-3
    close(actual.energies, expected.energies, tolerance)
    close(actual.forces, expected.forces, tolerance)
    if expected.stress is not None:
        close(actual.stress, expected.stress, tolerance)


@pytest.mark.parametrize("case", CASES)
def test_same_function_as_upstream(case):
    upstream, config, model = converted(case)
    for atoms in structures(config):
        compare(upstream, config, model, atoms, 1e-10)


def test_preset_is_upstreams():
    config = preset("S", type_names=HO, cutoff=4.0, avg_num_neighbors=10.0, dtype="float64")
    options = {**upstream_options(config), "_target_": "nequip.model.PresetNequIPGNNModel", "preset": "S"}
    for key in (
        "num_layers",
        "l_max",
        "num_features",
        "parity",
        "type_embed_num_features",
        "radial_mlp_depth",
        "radial_mlp_width",
    ):
        del options[key]
    assert config_from_upstream(options) == config_from_upstream(upstream_options(config))
    upstream, model = build_upstream(config), build_model(config)
    model.load_state_dict(state_from_upstream(config, upstream_state(upstream)))
    compare(upstream, config, model, triclinic_crystal(repeat=(2, 1, 1)), 1e-10)


def test_float32_follows_float64():
    _, config, model = converted("l2_no_parity")
    single_config = config.model_copy(update={"dtype": "float32"})
    single = build_model(single_config)
    single.load_state_dict({key: value.to(single.state_dict()[key].dtype) for key, value in model.state_dict().items()})
    atoms = structures(config)[0]
    exact, rounded = evaluator(model, config)(atoms), evaluator(single, single_config)(atoms)
    close(rounded.energies, exact.energies, 2e-6)
    close(rounded.forces, exact.forces, 2e-5)


def test_activation_factors_are_e3nns():
    from e3nn.math import normalize2mom

    assert normalize2mom(torch.nn.functional.silu).cst == pytest.approx(SILU_FACTOR, rel=1e-14)
    assert normalize2mom(torch.tanh).cst == pytest.approx(TANH_FACTOR, rel=1e-14)


@pytest.mark.parametrize("case", ["l2_no_parity", "l3", "l4_no_parity", "pair_cutoffs_zbl"])
def test_physics(case):
    _, config, model = converted(case)
    evaluate = evaluator(model, config)
    for atoms in structures(config):
        check_rotation(evaluate, atoms)
        check_permutation(evaluate, atoms)
        check_finite_differences(evaluate, atoms)


@pytest.mark.parametrize("case", ["l2_four_layers", "pair_cutoffs_zbl"])
def test_distant_parts_are_independent(case):
    _, config, model = converted(case)
    check_size_consistency(evaluator(model, config), *distant_parts())


@pytest.mark.parametrize("case", ["l2_no_parity", "l3", "one_layer"])
def test_smooth_at_the_cutoff(case):
    _, config, model = converted(case)
    check_smooth_cutoff(evaluator(model, config), "HO", config.cutoff)


@pytest.mark.parametrize("case", CASES)
def test_isolated_atom_has_the_energy_of_its_shift(case):
    _, config, model = converted(case)
    evaluate = evaluator(model, config)
    shifts = model.scale_shift.shifts.detach().expand(len(config.type_names)).tolist()
    for symbol, shift in zip(config.type_names, shifts):
        result = evaluate(Atoms(symbol, [[0.1, 0.2, 0.3]]))
        assert result.energy == shift
        assert not result.forces.any()


@pytest.mark.parametrize("case", ["radial", "trainable_scales", "l2_no_parity"])
def test_training_on_forces(case):
    """The gradient of a loss on forces along a random direction of all parameters, against finite differences."""
    _, config, model = converted(case)
    model = build_model(config)
    model.load_state_dict(converted(case)[2].state_dict())
    graph = build_graph(Structure.from_ase(structures(config)[1], config.type_names), config.cutoff_matrix())
    target = torch.randn(graph.num_nodes, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def loss(create_graph: bool = False) -> torch.Tensor:
        energy, gradient = energy_and_gradient(model, *graph.tensors, create_graph=create_graph)
        return energy.sum() + (forces_from_gradient(graph, gradient) - target).square().sum()

    parameters = list(model.parameters())
    gradients = torch.autograd.grad(loss(create_graph=True), parameters)
    generator = torch.Generator().manual_seed(2)
    directions = [torch.randn(p.shape, dtype=torch.float64, generator=generator) for p in parameters]
    start = [p.detach().clone() for p in parameters]
    values = []
    for step in (-2e-5, -1e-5, 1e-5, 2e-5):
        with torch.no_grad():
            for parameter, origin, direction in zip(parameters, start, directions):
                parameter.copy_(origin + step * direction)
        values.append(loss().item())
    numeric = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / 1.2e-4
    analytic = sum((gradient * direction).sum().item() for gradient, direction in zip(gradients, directions))
    assert all(gradient.any() for gradient in gradients)
    assert analytic == pytest.approx(numeric, rel=1e-7)


def test_padding_adds_nothing():
    _, config, model = converted("l1")
    graph = build_graph(Structure.from_ase(small_molecule(), config.type_names), config.cutoff_matrix())
    padded = pad_graph(graph, min_edges=graph.num_edges + 9, min_nodes=graph.num_nodes + 3, cutoff=config.cutoff)
    energies, gradient = energy_and_gradient(model, *graph.tensors)
    more, more_gradient = energy_and_gradient(model, *padded.tensors)
    torch.testing.assert_close(more[: graph.num_nodes], energies, rtol=0, atol=1e-13)
    torch.testing.assert_close(more_gradient[: graph.num_edges], gradient, rtol=0, atol=1e-13)
    assert not more_gradient[graph.num_edges :].any()


def test_ghosts_without_an_exchange_are_not_numbers():
    owned = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    everything = ghost_exchange(owned, torch.zeros(5, dtype=torch.int64))
    assert torch.equal(everything[:3], owned) and everything[3:].isnan().all()
    weights = torch.arange(6, dtype=torch.float64).view(3, 2)
    (gradient,) = torch.autograd.grad((everything[:3] * weights).sum(), owned, create_graph=True)
    assert torch.equal(gradient, weights)
    alone = torch.zeros(3, dtype=torch.int64)
    assert torch.autograd.gradcheck(ghost_exchange, (owned, alone)) and torch.autograd.gradgradcheck(
        ghost_exchange, (owned, alone)
    )


REFUSED = {
    "convnet_resnet": True,
    "convnet_sc": False,
    "learnable_shift": True,
    "convnet_nonlinearity_type": "norm",
    "categorical_graph_field_embed": [{"field": "total_charge", "num_features": 2, "min": 0, "max": 1}],
    "readout_mlp_nonlinearity": "ssp",
    "avg_num_neighbors": None,
    "a_new_option": 1,
    "num_features": [4, 4, 4, 4],
}


@pytest.mark.parametrize("option", REFUSED)
def test_option_that_is_not_implemented_is_refused_by_name(option):
    options = {**upstream_options(config_of("l1")), option: REFUSED[option]}
    with pytest.raises(NequIPMDError, match=option):
        config_from_upstream(options)


def full_options(**changes) -> dict:
    """The model of case ``l1``, given by irreps."""
    options = {**upstream_options(config_of("l1")), "_target_": "nequip.model.FullNequIPGNNModel"}
    for key in ("num_layers", "l_max", "parity", "num_features", "radial_mlp_depth", "radial_mlp_width"):
        del options[key]
    hidden = "4x0e+4x0o+4x1e+4x1o"
    return {
        **options,
        "irreps_edge_sh": "0e+1o",
        "feature_irreps_hidden": [hidden, hidden, "4x0e"],
        "radial_mlp_depth": [1, 1, 1],
        "radial_mlp_width": [8, 8, 8],
        "type_embed_num_features": 4,
        **changes,
    }


def test_model_given_by_irreps_is_recognised():
    options = {**upstream_options(config_of("l1")), "type_embed_num_features": 4, "num_features": [4, 4]}
    expected = config_from_upstream(options)
    assert config_from_upstream(full_options()) == expected


@pytest.mark.parametrize(
    "change",
    [
        {"irreps_edge_sh": "0e+1e"},
        {"feature_irreps_hidden": ["4x0e+4x1o", "4x0e+4x0o+4x1e+4x1o", "4x0e"]},
        {"feature_irreps_hidden": ["4x0e+4x1o", "4x0e+4x1o", "3x0e"]},
        {"radial_mlp_width": [8, 8, 9]},
    ],
)
def test_other_irreps_are_refused_by_name(change):
    with pytest.raises(NequIPMDError, match=next(iter(change))):
        config_from_upstream(full_options(**change))


@pytest.mark.parametrize("damage", ["missing", "unknown", "shape"])
def test_weights_that_do_not_fit_are_refused_by_name(damage):
    upstream, config, _ = converted("l1")
    state, name = upstream_state(upstream), "layer1_convnet.conv.linear_2.weight"
    if damage == "missing":
        del state[name]
    elif damage == "shape":
        state[name] = state[name][:-1]
    else:
        name = "layer7_convnet.conv.linear_1.weight"
        state[name] = torch.zeros(3)
    with pytest.raises(NequIPMDError, match=name):
        state_from_upstream(config, state)


def test_artifact_is_the_eager_model(small_models):
    """One compiled file at sizes from a lone atom to a dense box."""
    from nequip_md.artifact import load_artifact
    from nequip_md.checkpoint import load

    checkpoint, path = small_models("nequip_fp64")
    model, artifact = load(checkpoint), load_artifact(path)
    for atoms in (single_atom("O"), molecule("H2O"), triclinic_crystal(), water_box(2), dense_box(), elongated_cell()):
        graph = build_graph(Structure.from_ase(atoms, artifact.type_names), artifact.pair_cutoffs)
        energies, gradient = energy_and_gradient(model, *graph.tensors)
        compiled, compiled_gradient = artifact(graph)
        torch.testing.assert_close(compiled, energies, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(compiled_gradient, gradient, rtol=1e-10, atol=1e-11)
