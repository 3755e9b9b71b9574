"""Labels of training files: names, virials, slabs, units, weights, isolated atoms, and what is said of missing ones."""

import logging
import re
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.build import bulk
from ase.calculators.fd import calculate_numerical_stress
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from ase.neighborlist import neighbor_list

from nequip_md.errors import NequIPMDError
from nequip_md.graph import Structure, build_graph
from nequip_md.model.build import build_model
from nequip_md.model.config import AllegroConfig
from nequip_md.model.potential import energy_and_gradient
from nequip_md.training.cli import main
from nequip_md.training.config import LossConfig, check_config
from nequip_md.training.data.data_module import AtomsData, collate, make_sample
from nequip_md.training.data.labels import Labels
from nequip_md.training.data.statistics import compute_statistics
from nequip_md.training.divergence import FirstFailure
from nequip_md.training.evaluation.metrics import ErrorMetrics
from nequip_md.training.prepare import prepare, resolved, suggest_repulsion
from nequip_md.training.steps.loss import Prediction, errors, label_counts, loss, predict

MODEL = {
    "kind": "allegro", "type_names": ["Ar"], "cutoff": 4.5, "l_max": 1, "num_layers": 1, "num_scalar_features": 4,
    "num_tensor_features": 2, "dtype": "float64",
}  # fmt: skip
CONFIG = AllegroConfig(**MODEL)
LJ = {"sigma": 3.4, "epsilon": 0.0104, "rc": 4.5, "ro": 3.5, "smooth": True}


def crystals(count, seed, pbc=True):
    """Rattled and strained argon with the labels energy (eV), forces (eV/angstrom) and stress (eV/angstrom^3)."""
    rng = np.random.default_rng(seed)
    frames = []
    for _ in range(count):
        atoms = bulk("Ar", "fcc", a=5.0, cubic=True)
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.uniform(-0.05, 0.05, (3, 3))), scale_atoms=True)
        atoms.positions += rng.normal(scale=0.1, size=(4, 3))
        atoms.pbc = pbc
        atoms.calc = LennardJones(**LJ)
        results = {
            "energy": atoms.get_potential_energy(),
            "forces": atoms.get_forces(),
            "stress": calculate_numerical_stress(atoms, eps=1e-5, force_consistent=False),
        }
        atoms.calc = SinglePointCalculator(atoms, **results)
        frames.append(atoms)
    return frames


def renamed(frames, **names):
    """The frames with results under names of the file's own, so that ASE does not find them."""
    out = []
    for atoms in frames:
        results, copy = atoms.calc.results, atoms.copy()
        for label, name in names.items():
            value = results["energy" if label == "free_energy" else label]
            (copy.arrays if label == "forces" else copy.info)[name] = value
        out.append(copy)
    return out


def data_config(**data):
    return check_config({"model": MODEL, "data": {"validation_split": 1, **data}}, Path("."))


@pytest.fixture(autouse=True)
def info(caplog):
    caplog.set_level(logging.INFO)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def log_of(caplog, level=logging.INFO):
    return "\n".join(r.getMessage() for r in caplog.records if r.levelno >= level and r.name.startswith("nequip_md"))


@pytest.mark.parametrize(
    ("names", "keys"),
    [
        ({}, {}),
        ({}, {"energy_key": "energy", "force_key": "forces", "stress_key": "stress"}),
        ({"energy": "E", "forces": "F", "stress": "S"}, {"energy_key": "E", "force_key": "F", "stress_key": "S"}),
        (
            {"energy": "E", "forces": "F", "stress": "S"},
            {"energy_key": ["x", "E"], "force_key": ["F", "f"], "stress_key": "S"},
        ),
        ({"energy": "free_energy", "forces": "forces", "stress": "stress"}, {"energy_key": "free_energy"}),
    ],
)
def test_every_name_of_a_label_is_found(here, names, keys):
    frames = crystals(3, 0)
    ase.io.write("data.xyz", renamed(frames, **names) if names else frames)
    data = AtomsData(data_config(train="data.xyz", **keys).data, CONFIG)
    samples = {data.names[k][i]: s for k in ("train", "validation") for i, s in enumerate(getattr(data, k))}
    assert len(samples) == 3
    for k, atoms in enumerate(frames):
        (sample,) = (s for name, s in samples.items() if name.startswith(f"frame {k} of "))
        assert sample.energy.item() == pytest.approx(atoms.get_potential_energy(), abs=1e-12)
        np.testing.assert_allclose(sample.forces.numpy(), atoms.get_forces(), atol=1e-7)
        np.testing.assert_allclose(sample.stress[0].numpy(), atoms.get_stress(voigt=False), atol=1e-12)


def test_two_files_with_different_names(here, caplog):
    ase.io.write("std.xyz", crystals(4, 1))
    ase.io.write("ref.xyz", renamed(crystals(3, 2), energy="REF_energy", forces="REF_forces"))
    AtomsData(data_config(train=["std.xyz", "ref.xyz"]).data, CONFIG)
    text = log_of(caplog)
    rows = {line.split()[-1].rpartition("/")[2]: line.split()[:-1] for line in text.splitlines() if ".xyz" in line}
    assert rows["std.xyz"] == ["train", "4", "4", "4", "4", "0"]
    assert rows["ref.xyz"] == ["train", "3", "0", "0", "0", "0"]
    (warning,) = log_of(caplog, logging.WARNING).splitlines()
    assert "ref.xyz: 3 of 3 frames have no label that is read" in warning
    assert "REF_energy" in warning and "REF_forces" in warning and "data.energy_key" in warning

    caplog.clear()
    keys = {"energy_key": ["REF_energy", "energy"], "force_key": ["REF_forces", "forces"]}
    data = AtomsData(data_config(train=["std.xyz", "ref.xyz"], **keys).data, CONFIG)
    assert all(s.energy.isfinite().all() and s.forces.isfinite().all() for s in data.train)
    assert not log_of(caplog, logging.WARNING)

    AtomsData(data_config(train=["std.xyz", "ref.xyz"], energy_key="REF_energy", force_key="REF_forces").data, CONFIG)
    warnings = log_of(caplog, logging.WARNING)
    assert "std.xyz: 4 of 4 frames have no energy under the name REF_energy, but they have energy" in warnings
    assert "std.xyz: 4 of 4 frames have no forces under the name REF_forces, but they have forces" in warnings


def test_a_virial_is_the_sum_of_r_and_f(here):
    """W = sum over pairs of r (x) f, by loops over ASE's pairs; the stress from differences of the energy by strain."""
    (atoms,) = crystals(1, 3)
    vectors, lengths = neighbor_list("Dd", atoms, LJ["rc"])
    virial = np.zeros((3, 3))
    for r, d in zip(vectors, lengths):
        pairs = [Atoms("Ar2", [[0, 0, 0], [x, 0, 0]], calculator=LennardJones(**LJ)) for x in (d - 1e-6, d + 1e-6)]
        below, above = (pair.get_potential_energy() for pair in pairs)
        virial += 0.5 * np.outer(r, -(above - below) / 2e-6 * r / d)  # the force on the neighbour, by this atom
    assert np.abs(virial).max() > 0.05
    for stored in (virial, virial.ravel(), virial.ravel()[[0, 4, 8, 5, 2, 1]]):
        atoms.info["REF_virial"] = stored
        found = Labels(virial="REF_virial").of(atoms)
        np.testing.assert_allclose(found.stress, atoms.get_stress(voigt=False), atol=2e-7)
    atoms.info["virial"] = virial
    ase.io.write("v.xyz", atoms)  # ASE has a format of its own for this name
    np.testing.assert_allclose(Labels(virial=["v", "virial"]).of(ase.io.read("v.xyz")).stress, found.stress, atol=1e-9)
    assert Labels().of(atoms).stress == pytest.approx(atoms.get_stress(voigt=False))


def test_the_stress_of_a_slab_is_used_and_predicted(here, caplog):
    slab = crystals(3, 4, pbc=[True, True, False])
    ase.io.write("slab.xyz", slab)
    config = check_config(
        {"model": MODEL, "data": {"train": "slab.xyz", "validation_split": 1}, "loss": {"stress": 100}}, here
    )
    data, _ = prepare(config)
    assert data.has("stress") and not log_of(caplog, logging.WARNING)

    sample = make_sample(slab[0], CONFIG)
    np.testing.assert_allclose(sample.stress[0].numpy(), slab[0].get_stress(voigt=False), rtol=1e-12)
    torch.manual_seed(0)
    model = build_model(CONFIG)

    def energy(strain):
        atoms = slab[0].copy()
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
        graph = build_graph(Structure.from_ase(atoms, ["Ar"]), CONFIG.cutoff_matrix())
        return energy_and_gradient(model, *graph.tensors)[0].sum().item()

    found = predict(model, sample, with_stress=True).stress[0].detach().numpy()
    expected = np.zeros((3, 3))
    for a in range(3):
        for b in range(3):
            strain = np.zeros((3, 3))
            strain[a, b] = 1e-5
            expected[a, b] = (energy(strain) - energy(-strain)) / 2e-5 / abs(np.linalg.det(slab[0].cell.array))
    assert np.abs(expected).max() > 1e-4
    np.testing.assert_allclose(found, expected, atol=1e-8)


@pytest.mark.parametrize("cell", [None, [[10, 0, 0], [0, 10, 0], [10, 10, 0]]], ids=["no cell", "coplanar"])
def test_a_stress_without_a_volume_is_counted(here, caplog, cell):
    frames = [Atoms("Ar2", [[0, 0, 0], [3.6, 0, 0]], cell=cell) for _ in range(3)]
    for atoms in frames:
        atoms.calc = SinglePointCalculator(atoms, energy=0.1, forces=np.zeros((2, 3)), stress=np.full(6, 0.01))
    ase.io.write("molecules.xyz", frames)
    content = {"model": MODEL, "data": {"train": "molecules.xyz", "validation_split": 1}}
    prepare(check_config(content, here))
    expected = "molecules.xyz: the stress of 3 of 3 frames is not used, because their cells have no volume"
    assert expected in log_of(caplog, logging.WARNING)
    with pytest.raises(NequIPMDError, match="no training frame has a stress that can be used; .*no volume"):
        prepare(check_config({**content, "loss": {"stress": 1.0}}, here))


def with_stress(value, **info):
    (atoms,) = crystals(1, 5)
    atoms.calc.results["stress"] = np.array([value, 0, 0, 0, 0, 0])
    atoms.info.update(info)
    return atoms


@pytest.mark.parametrize(
    ("atoms", "labels", "expected"),
    [
        (with_stress(-10.1), Labels(), "10.1 eV/Å³.*1618 GPa.*kbar.*1602.18.*GPa.*160.218.*VASP's.*sign.*virial_key"),
        (with_stress(0, v=np.eye(3) * 1300.0), Labels(virial="v"), "the virial divided by the volume"),
        (with_stress(0, E="-3 eV"), Labels(energy="E"), "its energy is '-3 eV', which is not a number"),
        (with_stress(0, w=-1.0), Labels(weight="w"), "its w is -1.0; a weight is one number that is not negative"),
        (with_stress(0, w=np.nan), Labels(weight="w"), "a value of its w is not finite"),
        (Atoms("Ar2", [[1, 1, 1], [1, 1, 1]]), Labels(), "atoms 0 and 1 are 0 Å apart"),
        (Atoms("Ar2", [[0, 1, 1], [9.95, 1, 1]], cell=[10] * 3, pbc=True), Labels(), "atoms 0 and 1 are 0.05 Å apart"),
    ],
)
def test_a_label_or_a_frame_that_must_be_wrong_is_refused(atoms, labels, expected):
    with pytest.raises(NequIPMDError, match=expected):
        make_sample(atoms, CONFIG, labels)


def test_a_stress_of_hundreds_of_gigapascal_is_questioned(here, caplog):
    """Stresses of a relaxed crystal in kbar are below the limit that is refused."""
    ase.io.write("kbar.xyz", [with_stress(5.0) for _ in range(3)])
    AtomsData(data_config(train="kbar.xyz").data, CONFIG)
    assert "the largest component of a stress is 5 eV/Å³ (801 GPa)" in log_of(caplog, logging.WARNING)


def test_a_stress_key_that_names_a_virial_is_refused():
    with pytest.raises(NequIPMDError, match="data.stress_key: 'REF_virials' seems to be a virial.*virial_key"):
        data_config(train="a.xyz", stress_key="REF_virials")
    assert data_config(train="a.xyz", stress_key="virial_stress").data.stress_key == ["virial_stress"]


def test_weights_of_frames_scale_their_part_of_the_loss(here, caplog):
    frames = crystals(3, 6)
    weights = [0.25, 1.0, 4.0]
    for atoms, weight in zip(frames, weights):
        atoms.info["config_weight"] = weight
        atoms.info["config_energy_weight"] = 2.0
    del frames[1].info["config_weight"]
    ase.io.write("data.xyz", frames)
    data = AtomsData(data_config(train="data.xyz", validation="data.xyz", validation_split=None).data, CONFIG)
    assert "weights of the training frames (config_weight): 0.25 to 4" in log_of(caplog)
    assert "config_energy_weight is not used" in log_of(caplog, logging.WARNING)

    torch.manual_seed(0)
    model = build_model(CONFIG)
    batch = collate(data.train)
    prediction = predict(model, batch, with_stress=True)
    found = errors(prediction, batch)
    energy, force, stress = (
        [np.square(x) for x in parts]
        for parts in (
            [(prediction.energy[k].item() - a.get_potential_energy()) / 4 for k, a in enumerate(frames)],
            [prediction.forces[4 * k : 4 * k + 4].detach().numpy() - a.get_forces() for k, a in enumerate(frames)],
            [prediction.stress[k].detach().numpy() - a.get_stress(voigt=False) for k, a in enumerate(frames)],
        )
    )
    terms = [2 * e + 3 * np.mean(f) + 5 * np.mean(s) for e, f, s in zip(energy, force, stress)]
    value = loss(found, LossConfig(energy=2.0, force=3.0, stress=5.0), label_counts(batch)).item()
    assert value == pytest.approx(np.mean(np.multiply(weights, terms)), rel=1e-6)  # the file has 8 digits
    metrics = ErrorMetrics(LossConfig(), with_stress=True)
    metrics.update(found)
    assert metrics.compute()["force_rmse"] == pytest.approx(np.sqrt(np.mean(force)), rel=1e-6)
    unweighted = AtomsData(data_config(train="data.xyz", weight_key=None).data, CONFIG)
    assert all(s.weight.item() == 1 for s in unweighted.train)


def isolated_atom(energy):
    atoms = Atoms("Ar", [[0, 0, 0]], cell=[20, 20, 20], pbc=True)
    atoms.info["config_type"] = "IsolatedAtom"
    atoms.calc = SinglePointCalculator(atoms, **({} if energy is None else {"energy": energy}))
    return atoms


def test_isolated_atoms_among_the_frames_give_the_shifts(here, caplog):
    ase.io.write("data.xyz", [*crystals(2, 7), isolated_atom(-0.75), *crystals(2, 8)])
    config = data_config(train="data.xyz")
    data, statistics = prepare(config)
    assert len(data.train) == 3 and statistics.num_atoms == {"Ar": 12}
    assert resolved(config, data, statistics).energy_shifts == {"Ar": -0.75}
    assert any(line.split()[:-1] == ["train", "4", "4", "4", "4", "1"] for line in log_of(caplog).splitlines())
    assert "frame 2 of" not in " ".join([*data.names["train"], *data.names["validation"]])


@pytest.mark.parametrize(
    ("energies", "shifts", "expected"),
    [
        ([-0.75, -0.5], "auto", "Ar has two energies"),
        ([None], "auto", "frame 4 of .*IsolatedAtom.*energy None"),
        ([None], 0.1, None),
    ],
)
def test_isolated_atoms_that_cannot_be_used(here, energies, shifts, expected):
    ase.io.write("data.xyz", [*crystals(4, 9), *map(isolated_atom, energies)])
    model = {**MODEL, "energy_shifts": shifts}
    config = check_config({"model": model, "data": {"train": "data.xyz", "validation_split": 1}}, here)
    prepared = prepare(config)
    if expected is None:
        assert resolved(config, *prepared).energy_shifts == shifts
        return
    with pytest.raises(NequIPMDError, match=expected):
        resolved(config, *prepared)


def check(folder, data, **sections):
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump({"model": MODEL, "data": {"validation_split": 1, **data}, **sections}))
    return main([str(path), "--check", "--output", str(folder / "run")])


def test_check_reads_the_data(here, capsys):
    ase.io.write("data.xyz", crystals(4, 10))
    assert check(here, {"train": "data.xyz"}) == 0
    text = capsys.readouterr().out
    for expected in ("frames with each label", "training data: 3 frames", "model.energy_shifts", "train.yaml: ok"):
        assert expected in text
    assert not (here / "run").exists()


@pytest.mark.parametrize(
    ("data", "sections", "expected"),
    [
        ({"train": "absent.xyz"}, {}, "absent.xyz does not exist"),
        ({"train": "neon.xyz"}, {}, "frame 0 of .*neon.xyz: the model has no type for Ne"),
        ({"validation_split": 4}, {}, "leave none to train on"),
        ({"test": "bare.xyz"}, {}, r"no frame of the test data .*bare.xyz has numbers \[\]"),
        ({"energy_key": "REF"}, {}, r"loss.energy is 1.0, but no training frame has energy.*numbers \[energy\]"),
        ({"stress_key": "S"}, {"loss": {"stress": 1.0}}, r"no training frame has stress.*virial_key.*\[stress\]"),
    ],
)
def test_check_refuses_data_that_cannot_be_trained_on(here, capsys, data, sections, expected):
    ase.io.write("data.xyz", crystals(4, 11))
    ase.io.write("bare.xyz", [Atoms("Ar", [[0, 0, 0]])])
    ase.io.write("neon.xyz", [Atoms("Ne", [[0, 0, 0]])])
    assert check(here, {"train": "data.xyz", **data}, **sections) == 1
    captured = capsys.readouterr()
    assert re.search(expected, captured.err) and "ok" not in captured.out


def test_a_repulsion_is_suggested_where_close_contacts_are_missing(caplog):
    config = AllegroConfig(type_names=["H", "O"], cutoff=3.0)
    water = Atoms("OHHO", [[0, 0, 0], [0.97, 0, 0], [-0.24, 0.93, 0], [2.6, 0, 0]])
    suggest_repulsion(compute_statistics([make_sample(water, config)], ["H", "O"]), config)
    assert "H-H 1.53 Å, H-O 0.96 Å, O-O 2.60 Å" in log_of(caplog) and "chemical_species: [H, O]" in log_of(caplog)
    caplog.clear()
    close = Atoms("OHHO", [[0, 0, 0], [0.6, 0, 0], [0.4, 0.3, 0], [0, 0.8, 0]])  # all within 0.7 of the radii
    suggest_repulsion(compute_statistics([make_sample(close, config)], ["H", "O"]), config)
    zbl = AllegroConfig(type_names=["H", "O"], cutoff=3.0, pair_potential={"chemical_species": ["H", "O"]})
    suggest_repulsion(compute_statistics([make_sample(water, config)], ["H", "O"]), zbl)
    assert not log_of(caplog)


def test_the_first_frame_that_fails_is_remembered():
    batches = [[4, 7], [1, 9, 3], [2, 5]]
    frames = crystals(7, 12)
    energy, force = FirstFailure(), FirstFailure()
    for step, indices in enumerate(batches):
        samples = [make_sample(frames[k], CONFIG, index=index) for k, index in enumerate(indices)]
        batch = collate(samples)
        good = Prediction(torch.zeros(len(samples)), torch.zeros(4 * len(samples), 3), None)
        bad_energy, bad_forces = good.energy.clone(), good.forces.clone()
        if step > 0:
            bad_energy[1] = torch.nan
            bad_forces[4 * 2 - 1, 0] = torch.inf
        energy.update(Prediction(bad_energy, good.forces, None), batch, step)
        force.update(Prediction(good.energy, bad_forces, None), batch, step)
        for failure in (energy, force):
            assert failure.find(torch.device("cpu")) == ((None, None) if step == 0 else (1, 9))
