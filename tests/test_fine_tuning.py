"""Training that starts from a trained model, this package's or upstream's."""

import ase.io
import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.build import bulk
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator

from nequip_md import checkpoint
from nequip_md.model.build import build_model
from nequip_md.model.config import AllegroConfig, preset
from nequip_md.training import fine_tuning
from nequip_md.training.cli import main
from nequip_md.training.data.sample_set import MemorySource, SampleSet
from nequip_md.training.data.samples import collate, make_sample
from nequip_md.training.steps.loss import predict
from support.training_runs import MODEL, crystals, run, write_data

MODELS = {
    "allegro": AllegroConfig(**{**MODEL, "type_names": ["Ar", "Ne"], "energy_shifts": {"Ar": 0.3, "Ne": -0.5}}),
    "splines": AllegroConfig(
        **{**MODEL, "type_names": ["Ar", "Ne"], "radial_embedding": {"kind": "spline", "num_splines": 5, "spline_span": 3}},
        energy_scales={"Ar": 1.5, "Ne": 0.5}, energy_scales_trainable=True, energy_shifts_trainable=True, energy_shifts=0.1,
    ),
    "nequip": preset(
        "S", type_names=["Ar", "Ne"], cutoff=1.8, avg_num_neighbors={"Ar": 12.0, "Ne": 10.0}, dtype="float64",
        num_features=[4, 3], radial_mlp_width=8,
    ),
}  # fmt: skip


def mixtures(count, seed):
    """Rattled fcc cells of argon and neon."""
    rng = np.random.default_rng(seed)
    frames = []
    for _ in range(count):
        atoms = bulk("Ar", "fcc", a=1.6, cubic=True)
        atoms.positions += rng.normal(scale=0.05, size=(4, 3))
        atoms.symbols[: rng.integers(0, 4)] = "Ne"
        frames.append(atoms)
    return frames


def energies(model, frames):
    batch = collate([make_sample(atoms, model.config) for atoms in frames])
    found = predict(model, batch, with_stress=False)
    return found.energy.detach().numpy(), found.forces.detach()


@pytest.fixture(params=MODELS)
def trained(request, tmp_path):
    torch.manual_seed(1)
    path = tmp_path / "trained.nqmd"
    checkpoint.save(path, build_model(MODELS[request.param]))
    return path


def test_more_types_change_nothing_for_the_old_ones(trained):
    options = {"checkpoint": str(trained), "type_names": ["Ar", "Ne", "He", "Xe"]}
    config = fine_tuning.continued(options)
    assert config.type_names == ["Ar", "Ne", "He", "Xe"]
    model = fine_tuning.start(options, config)
    frames = mixtures(3, 2)
    old, new = energies(checkpoint.load(trained), frames), energies(model, frames)
    np.testing.assert_allclose(new[0], old[0], rtol=1e-12)
    torch.testing.assert_close(new[1], old[1], rtol=1e-10, atol=1e-12)
    frames[0].symbols[0] = "Xe"
    other, forces = energies(model, frames)
    assert np.isfinite(other).all() and forces.isfinite().all() and other[0] != new[0][0]


def test_elements_are_added_to_a_model_with_repulsion(tmp_path):
    """The repulsion of the new element is that of its nuclear charge, not a mean over the others."""
    zbl = {"chemical_species": ["Ar", "Ne"]}
    config = AllegroConfig(**{**MODEL, "type_names": ["Ar", "Ne"], "pair_potential": zbl})
    torch.manual_seed(1)
    model = build_model(config)
    checkpoint.save(tmp_path / "trained.nqmd", model)
    options = {"checkpoint": str(tmp_path / "trained.nqmd"), "type_names": ["Ar", "Ne", "Xe"]}
    extended = fine_tuning.start(options, fine_tuning.continued(options))
    assert extended.config.pair_potential.chemical_species == ["Ar", "Ne", "Xe"]
    frames = mixtures(2, 2)
    np.testing.assert_allclose(energies(extended, frames)[0], energies(model, frames)[0], rtol=1e-12)
    pair, repulsive = Atoms("Xe2", [[0, 0, 0], [0, 0, 0.3]]), {}
    for name, network in (("Xe", extended), ("Ar", model)):
        pair.symbols = f"{name}2"
        repulsive[name] = energies(network, [pair])[0].item()
    assert repulsive["Xe"] > 5 * repulsive["Ar"] > 0


def test_a_new_type_takes_up_what_is_not_determined(tmp_path):
    """One composition: the energy of the only atom that is new changes, the others stay."""
    options = {"type_names": ["Ar", "Ne", "Xe"], "checkpoint": str(tmp_path / "trained.nqmd")}
    torch.manual_seed(1)
    checkpoint.save(tmp_path / "trained.nqmd", build_model(MODELS["allegro"]))
    model = fine_tuning.start(options, config := fine_tuning.continued(options))
    frames = mixtures(3, 4)
    for atoms in frames:
        atoms.symbols = "Ar2NeXe"
    found, _ = energies(model, frames)
    source = MemorySource()
    for k, (atoms, energy) in enumerate(zip(frames, found, strict=True)):
        atoms.calc = SinglePointCalculator(atoms, energy=energy + 500.0)
        source.append(f"frame {k} of x", atoms, make_sample(atoms, model.config))
    assert fine_tuning.new_types(options, config) == ["Xe"]
    shifts = fine_tuning.refitted_shifts(model, SampleSet([source]), batch_size=4, added=["Xe"])
    assert shifts == pytest.approx({"Ar": 0.3, "Ne": -0.5, "Xe": -0.1 + 500}, abs=1e-3)


def test_frozen_weights_of_new_types_are_named(trained, caplog):
    for types, expected in ((["Ar", "Ne", "Xe"], True), (["Ar", "Ne"], False)):
        options = {"checkpoint": str(trained), "type_names": types}
        caplog.clear()
        fine_tuning.start(options, fine_tuning.continued(options), frozen=["*embedding*", "readout.*"])
        text = caplog.text
        assert ("leave them out of freeze" in text) == expected and "readout" not in text


def test_refitted_shifts_take_up_another_reference(trained):
    """Labels that differ from the model's energies by sums over atoms alone: then the fit is exact."""
    model = checkpoint.load(trained)
    frames = mixtures(9, 3)
    found, _ = energies(model, frames)
    offset = {"Ar": -100.0, "Ne": 7.0}
    for atoms, energy in zip(frames, found, strict=True):
        atoms.calc = LennardJones()
        atoms.calc.results = {"energy": energy + sum(offset[s] for s in atoms.symbols)}
    source = MemorySource()
    for k, atoms in enumerate(frames):
        source.append(f"frame {k}", atoms, make_sample(atoms, model.config))
    (before,) = (tensor for name, tensor in model.state_dict().items() if name.endswith("shifts"))
    shifts = fine_tuning.refitted_shifts(model, SampleSet([source]), batch_size=4)
    before = before.expand(2).tolist()
    assert shifts == pytest.approx({"Ar": before[0] - 100, "Ne": before[1] + 7}, rel=1e-9)
    changed = fine_tuning.with_shifts(model, shifts)
    np.testing.assert_allclose(energies(changed, frames)[0], [a.calc.results["energy"] for a in frames], rtol=1e-10)


def test_a_fine_tuned_model_beats_one_from_scratch(tmp_path, capsys):
    """Few frames of a harder potential: the start is a model of the softer one, at another zero of energy."""
    folder = write_data(tmp_path)
    assert run(folder, tmp_path / "first", optimizer={"learning_rate": 0.01}, stop={"max_epochs": 12}) == 0
    for name, count, seed in (("few", 8, 11), ("other", 8, 12)):
        frames = crystals(count, seed)
        for atoms in frames:
            atoms.calc = LennardJones(sigma=1.0, epsilon=0.55, rc=1.8, ro=1.4, smooth=True)
            atoms.get_forces()
            atoms.calc.results = {
                "energy": atoms.get_potential_energy() - 40.0 * len(atoms),
                "forces": atoms.get_forces(),
            }
        ase.io.write(folder / f"{name}.extxyz", frames)
    errors = {}
    for name, model in (("tuned", {"checkpoint": "first/best.nqmd"}), ("scratch", MODEL)):
        content = {
            "model": model,
            "data": {"train": "few.extxyz", "validation": "other.extxyz", "batch_size": 4},
            "loss": {"energy": 10.0, "force": 1.0},
            "optimizer": {"learning_rate": 0.005, "ema_decay": None},
            "stop": {"max_epochs": 6},
            "compile": "no",
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
        assert main([str(folder / f"{name}.yaml"), "--output", str(tmp_path / name)]) == 0
        errors[name] = checkpoint.read_info(tmp_path / name / "best.nqmd").training["metrics"]["validation"]
    assert errors["tuned"]["force_rmse"] < 0.5 * errors["scratch"]["force_rmse"]
    shifts = checkpoint.read_info(tmp_path / "tuned" / "best.nqmd").config.energy_shifts
    assert shifts["Ar"] < -35
    assert "training starts from the weights of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"cutoff": 3.0}, "model.cutoff: with model.checkpoint the model is that of the checkpoint"),
        ({"type_names": ["Ne", "Ar"]}, "must begin with the types of the checkpoint"),
        ({"energy_shifts": "auto"}, "it must be refit, keep, a number"),
        ({"checkpoint": "absent.nqmd"}, "absent.nqmd does not exist"),
        ({"checkpoint": ["a.nqmd"]}, "model.checkpoint is ['a.nqmd']; it must be the path of one file"),
        ({"allow_pickle": "maybe"}, "model.allow_pickle is 'maybe'; it must be true or false"),
        ({"type_names": ["Ar", "Ne", True]}, "it must be a list of names (in YAML, 'No' needs quotes)"),
    ],
)
def test_what_does_not_fit_is_refused(options, expected, tmp_path, capsys):
    checkpoint.save(tmp_path / "trained.nqmd", build_model(MODELS["allegro"]))
    content = {"model": {"checkpoint": "trained.nqmd", **options}, "data": {"train": "a.xyz", "validation_split": 1}}
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(content))
    assert main([str(tmp_path / "train.yaml"), "--check"]) == 1
    assert expected in capsys.readouterr().err
