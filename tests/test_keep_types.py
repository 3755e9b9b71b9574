"""Models with some of their types alone: the same function for structures of these types."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from nequip_md import NequIPMDError
from nequip_md.artifact import load_artifact, read_metadata
from nequip_md.checkpoint import save
from nequip_md.checkpoint.upstream_nequip import config_from_upstream, state_from_upstream
from nequip_md.export import cli
from nequip_md.graph import Structure, build_graph
from nequip_md.info import model_facts
from nequip_md.model import AllegroConfig, NequIPConfig, build_model, energy_and_gradient, keep_types
from support.physical_checks import close, evaluator
from support.structures import dense_box, triclinic_crystal, water_box

TYPES = ["C", "H", "N", "Si", "O"]
KEPT = ["H", "O"]  # in the model's order, which is not that of their first letters alone
TOLERANCE = 1e-12  # relative
MIN_FORCE = 1e-3  # eV/angstrom: less is no signal

SHARED = {"type_names": TYPES, "cutoff": 4.0, "dtype": "float64", "num_layers": 2, "avg_num_neighbors": 12.0}
BY_TYPE = {
    "avg_num_neighbors": {"C": 9.0, "H": 6.0, "N": 8.0, "Si": 5.0, "O": 14.0},
    "energy_scales": {"C": 0.9, "H": 1.7, "N": 1.1, "Si": 2.0, "O": 0.6},
    "energy_shifts": {"C": 1.0, "H": -2.0, "N": 3.0, "Si": -4.0, "O": 5.0},
    "energy_shifts_trainable": True,
    "pair_cutoffs": {"C": 3.0, "H": {"H": 2.9, "Si": 2.0}, "O": {"H": 3.1}, "N": {"H": 2.2}},
    "pair_potential": {"chemical_species": TYPES},
}
FOR_ALL = {"energy_scales": 1.3, "energy_shifts": -0.7, "energy_scales_trainable": True}
ALLEGRO = {**SHARED, "num_scalar_features": 8, "num_tensor_features": 4}
NEQUIP = {**SHARED, "num_features": 6, "radial_mlp_width": 8}
# with 4 features the whole model has more types than features, the smaller one has not
CASES = {
    "allegro": AllegroConfig(**ALLEGRO),
    "allegro, numbers for all types": AllegroConfig(**{**ALLEGRO, **FOR_ALL}),
    "allegro, numbers by type": AllegroConfig(**{**ALLEGRO, **BY_TYPE}),
    "allegro, no parity": AllegroConfig(**{**ALLEGRO, **BY_TYPE}, parity=False, readout_mlp_nonlinearity=None),
    "allegro, splines": AllegroConfig(**{**ALLEGRO, **BY_TYPE}, radial_embedding={"kind": "spline", "num_splines": 6}),
    "nequip": NequIPConfig(**NEQUIP),
    "nequip, numbers for all types": NequIPConfig(**{**NEQUIP, **FOR_ALL}),
    "nequip, numbers by type": NequIPConfig(**{**NEQUIP, **BY_TYPE}, type_embed_num_features=4),
    "nequip, no parity": NequIPConfig(**{**NEQUIP, **BY_TYPE}, l_max=2, parity=False),
}


def models(config, kept=KEPT):
    torch.manual_seed(3)
    whole = build_model(config).eval()
    return whole, keep_types(whole, kept)


def assert_same_function(whole, smaller, atoms, tolerance: float = TOLERANCE) -> None:
    results = []
    for model in (whole, smaller):
        graph = build_graph(Structure.from_ase(atoms, model.type_names), model.config.cutoff_matrix())
        results.append(energy_and_gradient(model, *graph.tensors))
    (energy, gradient), (kept_energy, kept_gradient) = results
    scale = float(gradient.abs().max())
    assert scale > MIN_FORCE
    torch.testing.assert_close(kept_energy, energy, rtol=tolerance, atol=tolerance * float(energy.abs().max()))
    torch.testing.assert_close(kept_gradient, gradient, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("case", CASES)
def test_same_function_for_the_types_that_are_kept(case):
    whole, smaller = models(CASES[case], KEPT[::-1])
    assert smaller.type_names == KEPT and not smaller.training
    for atoms in (water_box(2), triclinic_crystal(), dense_box()):
        assert_same_function(whole, smaller, atoms)
    sizes = [sum(t.numel() for t in model.state_dict().values()) for model in (whole, smaller)]
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize("case", ["allegro, splines", "nequip, numbers by type"])
def test_one_type(case):
    whole, smaller = models(CASES[case], ["O"])
    assert_same_function(whole, smaller, triclinic_crystal(("O", "O")))


def test_types_are_not_mixed_up():
    """Other types in the same places have other energies, or this file could not tell which rows were kept."""
    whole, _ = models(CASES["nequip, numbers by type"])
    other = keep_types(whole, ["C", "O"])
    atoms = water_box(2)
    with pytest.raises(NequIPMDError, match="H"):
        Structure.from_ase(atoms, other.type_names)
    atoms.symbols[atoms.symbols == "H"] = "C"
    energies = [evaluator(m, m.config)(a).energies.sum() for m, a in ((whole, water_box(2)), (other, atoms))]
    assert abs(energies[0] - energies[1]) > 1.0


def test_every_type_is_the_model_itself():
    whole, same = models(CASES["allegro"], TYPES[::-1])
    assert same is whole


def test_as_upstream_with_all_types():
    pytest.importorskip("nequip")
    from support.upstream_nequip import build_upstream, evaluate_upstream, upstream_options, upstream_state

    config = CASES["nequip, numbers by type"]
    upstream = build_upstream(config, seed=5)
    translated = config_from_upstream(upstream_options(config))
    whole = build_model(translated)
    whole.load_state_dict(state_from_upstream(translated, upstream_state(upstream)))
    smaller = keep_types(whole, KEPT)
    atoms = triclinic_crystal()
    expected = evaluate_upstream(upstream, config, atoms)
    actual = evaluator(smaller, smaller.config)(atoms)
    assert np.abs(expected.forces).max() > MIN_FORCE
    close(actual.energies, expected.energies, 1e-10)
    close(actual.forces, expected.forces, 1e-10)


BAD = {
    "unknown": (["H", "Fe"], "'Fe' is no type of the model.*types C H N Si O"),
    "case": (["h"], "'h' is no type of the model.*types C H N Si O"),
    "twice": (["H", "O", "H"], "'H' is given twice.*types C H N Si O"),
    "none": ([], "no type is kept.*types C H N Si O"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_names(case):
    names, message = BAD[case]
    with pytest.raises(NequIPMDError, match=message):
        models(CASES["nequip"], names)


@pytest.fixture(scope="module")
def exported(made_once):
    """(the whole model, its checkpoint, the artifact with two of its types)."""
    torch.manual_seed(3)
    # one layer: models of several are compared above
    whole = build_model(CASES["allegro, numbers by type"].model_copy(update={"num_layers": 1, "l_max": 1})).eval()

    def write(folder):
        folder.mkdir(exist_ok=True)
        closest = {"H": {"H": 1.5, "C": 1.0, "O": 0.9}, "O": {"H": 0.9, "O": 2.4}, "C": {"H": 1.0}}
        save(folder / "model.nqmd", whole, training={"statistics": {"closest_distances": closest}})
        arguments = [str(folder / "model.nqmd"), "--types", "O", "H", "-o", str(folder / "model.pt2")]
        assert cli.main([*arguments, "--precision", "fp64"]) == 0

    folder = made_once("kept_types", write)
    return whole, folder / "model.nqmd", folder / "model.pt2"


def test_artifact(exported):
    whole, _, path = exported
    artifact, atoms = load_artifact(path), water_box(2)
    assert artifact.type_names == KEPT
    graph = build_graph(Structure.from_ase(atoms, KEPT), artifact.pair_cutoffs)
    energy, gradient = artifact(graph)
    graph = build_graph(Structure.from_ase(atoms, TYPES), whole.config.cutoff_matrix())
    expected_energy, expected_gradient = energy_and_gradient(whole, *graph.tensors)
    scale = float(expected_gradient.abs().max())
    assert scale > MIN_FORCE
    torch.testing.assert_close(energy, expected_energy, rtol=TOLERANCE, atol=TOLERANCE)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=TOLERANCE * scale)


def test_artifact_says_what_was_kept(exported, small_models):
    _, checkpoint, path = exported
    metadata = read_metadata(path)
    assert metadata["type_names"] == "H O" and metadata["checkpoint_type_names"] == "C H N Si O"
    assert metadata["pair_cutoffs"] == "2.9 4.0 3.1 4.0" and metadata["closest_distances"] == "1.5 0.9 0.9 2.4"
    assert json.loads(metadata["config"])["energy_shifts"] == {"H": -2.0, "O": 5.0}
    facts, whole = model_facts(path), model_facts(checkpoint)
    assert facts["types_kept"] == "2 of the 5 types of the checkpoint" and facts["type_names"] == KEPT
    assert facts["checkpoint_sha256"] == whole["checkpoint_sha256"] and facts["parameters"] < whole["parameters"]
    assert "types_kept" not in whole
    complete = small_models("allegro_fp64")[1]
    assert "checkpoint_type_names" not in read_metadata(complete) and "types_kept" not in model_facts(complete)


def test_command_refuses_other_types(exported, tmp_path, capsys):
    _, checkpoint, _ = exported
    assert cli.main([str(checkpoint), "-o", str(tmp_path / "model.pt2"), "--types", "H", "Fe"]) == 1
    assert "'Fe' is no type of the model" in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())
