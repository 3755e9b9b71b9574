"""Allegro: equal to nequip-allegro 0.8.3 from PyPI, and with the properties of any potential."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms

from nequip_md.checkpoint.upstream_allegro import config_from_upstream, state_from_upstream
from nequip_md.graph import Structure, build_graph, forces_from_gradient, stress_from_gradient
from nequip_md.model import PRESETS, AllegroConfig, build_model, energy_and_gradient, preset, with_dtype
from support.structures import distant_parts, elongated_cell, single_atom, small_molecule, triclinic_crystal
from support.upstream_nequip import build_upstream, evaluate_upstream, upstream_options, upstream_state

RELATIVE = 1e-10
"""Agreement with upstream, float64, relative to the largest entry."""

BASE = {
    "type_names": ["H", "O"],
    "cutoff": 4.0,
    "avg_num_neighbors": 11.0,
    "dtype": "float64",
    "num_scalar_features": 12,
    "num_tensor_features": 6,
    "energy_scales": 1.3,
    "energy_shifts": -0.4,
}

CASES = {
    "default": {},
    "l0": {"l_max": 0},
    "l1_one_layer": {"l_max": 1, "num_layers": 1},
    "l1_four_layers": {"l_max": 1, "num_layers": 4},
    "l3": {"l_max": 3},
    "l3_three_layers": {"l_max": 3, "num_layers": 3},
    "no_parity": {"l_max": 2, "parity": False, "num_layers": 3},
    "no_parity_l3": {"l_max": 3, "parity": False},
    "no_coupling": {"path_channel_coupling": False, "num_layers": 3},
    "no_coupling_no_parity_one_layer": {"path_channel_coupling": False, "parity": False, "num_layers": 1},
    "spline": {"radial_embedding": {"kind": "spline"}},
    "spline_short": {"radial_embedding": {"kind": "spline", "num_splines": 10, "spline_span": 4}},
    "trainable_roots": {"radial_embedding": {"kind": "bessel", "num_bessels": 5, "bessel_trainable": True}},
    "envelope_power": {"polynomial_cutoff_p": 4.0},
    "pair_cutoffs": {"pair_cutoffs": {"H": {"H": 2.5, "O": 3.1}, "O": 3.6}},
    "neighbours_by_type": {"avg_num_neighbors": {"H": 7.0, "O": 19.0}},
    "scales_by_type_trainable": {
        "energy_scales": {"H": 0.5, "O": 2.0},
        "energy_shifts": {"H": -3.0, "O": 5.0},
        "energy_scales_trainable": True,
        "energy_shifts_trainable": True,
    },
    "zbl": {"pair_potential": {"chemical_species": ["H", "O"]}},
    "linear_readout": {"readout_mlp_nonlinearity": None, "readout_mlp_depth": 1, "num_layers": 3},
    "no_hidden_layers": {"two_body_mlp_depth": 0, "allegro_mlp_depth": 0, "readout_mlp_depth": 0},
    "linear_allegro_mlp": {"allegro_mlp_nonlinearity": None, "allegro_mlp_depth": 2, "num_layers": 3},
    "linear_two_body_mlp": {"two_body_mlp_nonlinearity": None, "two_body_mlp_depth": 2},
    "gelu_mish_deep": {
        "two_body_mlp_nonlinearity": "mish",
        "allegro_mlp_nonlinearity": "gelu",
        "readout_mlp_nonlinearity": "mish",
        "two_body_mlp_depth": 2,
        "allegro_mlp_depth": 3,
        "readout_mlp_depth": 2,
        "radial_embedding_dim": 8,
    },
    "three_types": {"type_names": ["H", "C", "O"]},
}


def make(case: str) -> AllegroConfig:
    return AllegroConfig(**{**BASE, **CASES[case]})


def evaluate(model, atoms: Atoms):
    """Energies [N], forces [N, 3] and, if periodic, stress [3, 3], as numpy arrays."""
    graph = build_graph(Structure.from_ase(atoms, model.type_names), torch.tensor(model.config.cutoff_matrix()))
    energy, gradient = energy_and_gradient(model, *graph.tensors)
    stress = (
        stress_from_gradient(graph, gradient, abs(atoms.cell.volume)).numpy().reshape(3, 3) if atoms.pbc.all() else None
    )
    return energy.detach().numpy(), forces_from_gradient(graph, gradient).numpy(), stress


def inputs(config: AllegroConfig) -> list[Atoms]:
    """A periodic triclinic crystal and a molecule, of the model's types."""
    symbols = config.type_names
    molecule = small_molecule()
    molecule.set_chemical_symbols([symbols[k % len(symbols)] for k in range(len(molecule))])
    return [triclinic_crystal((symbols[0], symbols[-1])), molecule]


def close(got, expected, relative):
    scale = np.abs(expected).max()
    assert scale > 1e-3, "too small a signal to compare"
    assert np.abs(np.asarray(got) - expected).max() <= relative * scale


@pytest.mark.parametrize("case", CASES)
def test_same_function_as_upstream(case):
    config = make(case)
    upstream = build_upstream(config)
    assert config_from_upstream(upstream_options(config)) == config
    model = build_model(config)
    model.load_state_dict(state_from_upstream(config, upstream_state(upstream)))
    for atoms in inputs(config):
        reference = evaluate_upstream(upstream, config, atoms)
        energy, forces, stress = evaluate(model, atoms)
        close(energy.sum(), reference.energy, RELATIVE)
        close(energy, reference.energies, RELATIVE)
        close(forces, reference.forces, RELATIVE)
        if stress is not None:
            close(stress, reference.stress, RELATIVE)


def random_model(case: str):
    torch.manual_seed(11)
    return build_model(make(case)).eval()


@pytest.mark.parametrize("case", CASES)
def test_rotation_reflection_permutation(case):
    model = random_model(case)
    rng = np.random.default_rng(3)
    matrix = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    matrix[:, 0] *= -np.sign(np.linalg.det(matrix))  # a rotation with a reflection
    for atoms in inputs(model.config):
        energy, forces, stress = evaluate(model, atoms)
        order = rng.permutation(len(atoms))
        moved = atoms[order]
        moved.set_cell(atoms.cell[:] @ matrix.T)
        moved.positions = atoms.positions[order] @ matrix.T + rng.normal(size=3)
        moved_energy, moved_forces, moved_stress = evaluate(model, moved)
        close(moved_energy, energy[order], 1e-11)
        close(moved_forces, forces[order] @ matrix.T, 1e-10)
        if stress is not None:
            close(moved_stress, matrix @ stress @ matrix.T, 1e-10)


@pytest.mark.parametrize("case", CASES)
def test_forces_and_stress_by_finite_differences(case):
    model = random_model(case)
    h = 1e-4
    crystal, molecule = inputs(model.config)
    _, forces, _ = evaluate(model, molecule)
    rng = np.random.default_rng(4)
    direction = rng.normal(size=forces.shape)

    def along(t):
        moved = molecule.copy()
        moved.positions += t * direction
        return evaluate(model, moved)[0].sum()

    slope = (8 * (along(h) - along(-h)) - (along(2 * h) - along(-2 * h))) / (12 * h)
    assert abs(slope) > 1e-3
    assert slope == pytest.approx(-(forces * direction).sum(), rel=1e-7)

    _, _, stress = evaluate(model, crystal)
    strain = rng.normal(size=(3, 3))
    strain = strain + strain.T

    def strained(t):
        moved = crystal.copy()
        moved.set_cell(crystal.cell[:] @ (np.eye(3) + t * strain), scale_atoms=True)
        return evaluate(model, moved)[0].sum()

    slope = (8 * (strained(h) - strained(-h)) - (strained(2 * h) - strained(-2 * h))) / (12 * h)
    assert slope / crystal.cell.volume == pytest.approx((stress * strain).sum(), rel=1e-6)


@pytest.mark.parametrize("case", ["default", "no_parity", "spline", "zbl", "pair_cutoffs", "scales_by_type_trainable"])
def test_isolated_atom_and_distant_parts(case):
    model = random_model(case)
    for symbol, shift in zip(model.type_names, model.config.per_type("energy_shifts", 0.0)):
        energy, forces, _ = evaluate(model, single_atom(symbol))
        assert energy.tolist() == [shift]
        assert not forces.any()
    parts = distant_parts()
    for part in parts:
        part.set_chemical_symbols(["H" if s == "H" else "O" for s in part.get_chemical_symbols()])
    first, second, both = (evaluate(model, part) for part in parts)
    np.testing.assert_allclose(both[0], np.concatenate([first[0], second[0]]), rtol=1e-13)
    np.testing.assert_allclose(both[1], np.concatenate([first[1], second[1]]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", ["default", "spline", "zbl", "pair_cutoffs"])
def test_smooth_at_the_cutoff(case):
    """An atom that crosses the cutoff changes energy and force by less than its distance from the cutoff, cubed and squared."""
    model = random_model(case)
    cutoff = model.config.cutoff_matrix()[0][1]
    fixed = Atoms("HOH", positions=[[0, 0, 0], [0.0, 1.0, 0.3], [0.9, -0.4, 0.2]])

    def with_atom_at(distance):
        atoms = fixed + Atoms("O", positions=[[-distance, 0, 0]])
        energy, forces, _ = evaluate(model, atoms)
        return energy.sum(), forces[:3]

    outside, forces_outside = with_atom_at(cutoff + 1e-3)
    for delta in (1e-2, 1e-3, 1e-4):
        inside, forces_inside = with_atom_at(cutoff - delta)
        # other pairs still change with the fourth atom, smoothly: compare with the trend of a step outside
        assert abs(inside - outside) < 50 * (delta + 1e-3)
        assert np.abs(forces_inside - forces_outside).max() < 50 * (delta + 1e-3)
    just_inside, just_outside = with_atom_at(cutoff * (1 - 1e-9)), with_atom_at(cutoff * (1 + 1e-9))
    assert just_inside[0] == pytest.approx(just_outside[0], abs=1e-6)
    np.testing.assert_allclose(just_inside[1], just_outside[1], atol=1e-6)


def test_second_derivatives_for_training_on_forces():
    """d(force loss)/d(weight) against finite differences of the weights."""
    model = random_model("default").train()
    atoms = small_molecule()
    atoms.set_chemical_symbols(["H" if s == "H" else "O" for s in atoms.get_chemical_symbols()])
    graph = build_graph(Structure.from_ase(atoms, model.type_names), torch.tensor(model.config.cutoff_matrix()))

    def loss():
        _, gradient = energy_and_gradient(model, *graph.tensors, create_graph=True)
        return forces_from_gradient(graph, gradient).square().sum()

    loss().backward()
    for name, parameter in model.named_parameters():
        direction = torch.randn(parameter.shape, dtype=parameter.dtype, generator=torch.Generator().manual_seed(5))
        expected = (parameter.grad * direction).sum().item()
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                parameter += step * direction
            values.append(loss().item())
            with torch.no_grad():
                parameter -= step * direction
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(expected, rel=1e-5, abs=1e-6), name


def test_chunks_of_centres_give_the_whole():
    """The model is strictly local, so any set of centres can be evaluated alone with the same results."""
    model = random_model("default")
    graph = build_graph(
        Structure.from_ase(elongated_cell(), model.type_names), torch.tensor(model.config.cutoff_matrix())
    )
    energy, gradient = energy_and_gradient(model, *graph.tensors)
    parts = []
    n = graph.num_nodes
    for first, last in ((0, n // 3), (n // 3, n)):
        edges = slice(int(graph.row_ptr[first]), int(graph.row_ptr[last]))
        # the chunk's centres become nodes 0 ... and every atom is a ghost after them
        index = torch.stack([graph.edge_index[0, edges] - first, graph.edge_index[1, edges] + (last - first)])
        types = torch.cat([graph.node_types[first:last], graph.node_types])
        parts.append(
            energy_and_gradient(
                model, graph.edge_vectors[edges], index, graph.row_ptr[first : last + 1] - graph.row_ptr[first], types
            )
        )
    torch.testing.assert_close(torch.cat([p[0] for p in parts]), energy, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(torch.cat([p[1] for p in parts]), gradient, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ["small", "medium", "large"])
def test_presets_are_the_published_sizes(name):
    model = build_model(preset(name, type_names=["H", "O"], avg_num_neighbors=24.198))
    expected = {"small": (2, 2, 64, 256), "medium": (3, 2, 64, 256), "large": (3, 3, 128, 512)}[name]
    c = model.config
    assert (c.l_max, c.num_layers, c.num_tensor_features, c.allegro_mlp_width) == expected
    energy, forces, _ = evaluate(model, triclinic_crystal(("H", "O"), (1, 1, 1)))
    assert np.isfinite(energy).all() and np.abs(forces).max() > 0


def test_each_preset_has_more_weights_than_the_one_before():
    for names in (("nano", "tiny", "small", "medium", "large"), ("S", "M", "L", "XL")):
        counts = []
        for name in names:
            model = build_model(preset(name, type_names=["H", "O"], cutoff=5.0))
            counts.append(sum(p.numel() for p in model.parameters()))
        assert all(2 * a < b or name == "medium" for a, b, name in zip(counts, counts[1:], names[1:])), counts


def test_every_preset_has_a_model_kind():
    assert {preset(name, type_names=["H"], cutoff=5.0).kind for name in PRESETS} == {"allegro", "nequip"}
    with pytest.raises(ValueError, match="no preset 'huge'; there are nano, tiny, small, medium"):
        preset("huge", type_names=["H"])


def test_float32_and_float64_agree():
    double = random_model("l3_three_layers")
    single = with_dtype(double, "float32")
    for atoms in inputs(double.config):
        for got, expected in zip(evaluate(single, atoms)[:2], evaluate(double, atoms)[:2]):
            close(got, expected, 2e-5)
