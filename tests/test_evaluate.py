"""``nequip-md-evaluate``: its numbers against NumPy's from the predictions of the ASE calculator, its files and its refusals."""

from __future__ import annotations

import json
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
import yaml
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

import nequip_md
from nequip_md import NequIPMDCalculator, NequIPMDError
from nequip_md.training.evaluation.cli import main
from nequip_md.training.evaluation.error_groups import force_errors_by_size, statistics_of, worst_frames
from nequip_md.training.evaluation.predictions import Predictions
from support.structures import triclinic_crystal, water_box

UPSTREAM = Path(__file__).resolve().parent / "data" / "upstream"
WATER = Path(__file__).resolve().parents[1] / "examples" / "lammps" / "water" / "water.nqmd"


def labelled(atoms: Atoms, config_type: str, *, stress: bool = True) -> Atoms:
    """A copy with ASE's effective medium theory as labels."""
    atoms = atoms.copy()
    atoms.calc = EMT()
    results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
    if stress:
        results["stress"] = atoms.get_stress()
    atoms.calc = SinglePointCalculator(atoms, **results)
    atoms.info["config_type"] = config_type
    return atoms


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """``boxes.extxyz`` (water, with stress, one frame without any label) and ``mixed.extxyz`` (crystals, a molecule)."""
    folder = tmp_path_factory.mktemp("evaluate")
    boxes = [labelled(water_box(2, seed), "water") for seed in range(4)]
    boxes[2].calc = None
    gas = molecule("H2O")
    gas.rattle(0.05, seed=3)
    crystals = [labelled(triclinic_crystal(repeat=(n, 2, 2)), "crystal") for n in (2, 3)]
    ase.io.write(folder / "boxes.extxyz", boxes)
    ase.io.write(folder / "mixed.extxyz", [*crystals, labelled(gas, "gas", stress=False)])
    return folder


@pytest.fixture(scope="module")
def files(folder):
    return [folder / "boxes.extxyz", folder / "mixed.extxyz"]


@pytest.fixture(scope="module")
def differences(files, small_models):
    """Prediction of the ASE calculator minus label, by NumPy: a list of frames, with what they belong to."""
    calculator = NequIPMDCalculator(small_models("allegro_fp64")[1], guard=False)
    found = []
    for path in files:
        for k, atoms in enumerate(ase.io.read(path, ":")):
            results = atoms.calc.results if atoms.calc is not None else {}
            other = atoms.copy()
            other.calc = calculator
            energy, forces = other.get_potential_energy(), other.get_forces()
            frame = {"file": str(path), "index": k, "config_type": atoms.info["config_type"], "atoms": atoms}
            frame["prediction"] = {"energy": energy, "forces": forces}
            if "energy" in results:
                frame["energy"] = energy - results["energy"]
                frame["forces"] = forces - results["forces"]
            if "stress" in results:
                frame["prediction"]["stress"] = other.get_stress(voigt=False)
                frame["stress"] = frame["prediction"]["stress"] - atoms.get_stress(voigt=False)
            found.append(frame)
    return found


def expected_errors(frames):
    """``mae``, ``rmse`` and ``max`` by quantity, from the differences of some frames."""
    labelled = [f for f in frames if "energy" in f]
    arrays = {
        "energy_per_atom": [np.array([f["energy"] / len(f["atoms"])]) for f in labelled],
        "energy": [np.array([f["energy"]]) for f in labelled],
        "force": [f["forces"].ravel() for f in labelled],
        "stress": [f["stress"].ravel() for f in frames if "stress" in f],
    }
    result = {}
    for name, parts in arrays.items():
        if parts:
            values = np.concatenate(parts)
            result[name] = {
                "count": len(values),
                "mae": np.mean(np.abs(values)),
                "rmse": np.sqrt(np.mean(values**2)),
                "max": np.max(np.abs(values)),
            }
    return result


def assert_errors(found, expected):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, rel=1e-8), name


@pytest.mark.parametrize("kind", ["artifact", "checkpoint"])
def test_errors_are_those_of_the_calculator(kind, files, differences, small_models):
    checkpoint, artifact = small_models("allegro_fp64")
    result = nequip_md.evaluate(artifact if kind == "artifact" else checkpoint, files, batch_size=3)
    assert (result.frames, result.isolated_atoms) == (7, 0)
    assert result.atoms == sum(len(f["atoms"]) for f in differences)
    assert result.all["energy_per_atom"]["rmse"] > 1e-3 and result.all["stress"]["rmse"] > 1e-5, "nothing to compare"
    assert_errors(result.all, expected_errors(differences))
    for key, groups in (("file", result.by_file), ("config_type", result.by_group)):
        assert list(groups) == list(dict.fromkeys(f[key] for f in differences))
        for name, errors in groups.items():
            assert_errors(errors, expected_errors([f for f in differences if f[key] == name]))

    known = [f for f in differences if "forces" in f]
    for symbol, errors in result.by_element.items():
        values = np.concatenate([f["forces"][np.array(f["atoms"].get_chemical_symbols()) == symbol] for f in known])
        assert errors["rmse"] == pytest.approx(np.sqrt(np.mean(values**2)), rel=1e-8) and errors["count"] == values.size
    assert list(result.by_element) == ["H", "O"]

    force = [np.sqrt(np.mean(f["forces"] ** 2)) if "forces" in f else -1.0 for f in differences]
    energy = [abs(f["energy"]) / len(f["atoms"]) if "energy" in f else -1.0 for f in differences]
    for quantity, values in (("force", force), ("energy_per_atom", energy)):
        order = np.argsort(values)[::-1][:5]
        assert [(w["file"], w["index"]) for w in result.worst[quantity]] == [
            (differences[k]["file"], differences[k]["index"]) for k in order
        ]
        assert [w["error"] for w in result.worst[quantity]] == pytest.approx([values[k] for k in order], rel=1e-8)


@pytest.mark.parametrize("kind", ["allegro", "nequip"])
def test_labels_that_are_upstreams_predictions_have_no_error(kind, tmp_path):
    """Checkpoints of upstream against energies and forces that upstream computed from them."""
    checkpoint = UPSTREAM / f"nequip-0.16.2_allegro-0.8.1_{kind}.ckpt"
    frames = []
    for record in json.loads(checkpoint.with_suffix(".json").read_text())["frames"]:
        atoms = Atoms(record["symbols"], record["positions"], cell=record["cell"], pbc=record["pbc"])
        atoms.calc = SinglePointCalculator(atoms, energy=record["energy"], forces=np.array(record["forces"]))
        frames.append(atoms)
    ase.io.write(tmp_path / "frames.traj", frames)
    result = nequip_md.evaluate(checkpoint, tmp_path / "frames.traj", batch_size=2)
    largest = max(np.abs(atoms.get_forces()).max() for atoms in frames)
    assert largest > 0.01 and result.frames == 3
    assert result.all["force"]["max"] < 1e-5 * largest and result.all["energy_per_atom"]["max"] < 1e-5


def test_predictions_are_written_beside_the_labels(files, differences, small_models, tmp_path):
    output = tmp_path / "predictions.extxyz"
    nequip_md.evaluate(small_models("allegro_fp64")[1], files, output=output, batch_size=2)
    written = ase.io.read(output, ":")
    assert len(written) == len(differences) and [p.name for p in tmp_path.iterdir()] == [output.name]
    for atoms, frame in zip(written, differences):
        expected = frame["prediction"]
        assert atoms.info["nequip_md_energy"] == pytest.approx(expected["energy"], rel=1e-9)
        np.testing.assert_allclose(atoms.arrays["nequip_md_forces"], expected["forces"], atol=1e-7)
        if "stress" in expected:
            np.testing.assert_allclose(atoms.info["nequip_md_stress"], expected["stress"], atol=1e-9)
        assert ("nequip_md_stress" in atoms.info) == (frame["config_type"] != "gas")
        np.testing.assert_allclose(atoms.positions, frame["atoms"].positions, atol=1e-7)
        if "forces" in frame:
            assert atoms.get_potential_energy() == pytest.approx(frame["atoms"].get_potential_energy(), rel=1e-9)
            np.testing.assert_allclose(atoms.get_forces(), frame["atoms"].get_forces(), atol=1e-7)
        else:
            assert atoms.calc is None


def test_the_command_writes_tables_and_json(files, small_models, tmp_path, capsys):
    checkpoint = small_models("allegro_fp64")[0]
    report = tmp_path / "errors.json"
    assert main([str(checkpoint), *map(str, files), "--json", str(report), "--worst", "2"]) == 0
    text = capsys.readouterr().out
    for words in (
        "energy per atom",
        "stress component",
        "RMSE by config_type",
        "crystal",
        "Worst frames by force RMSE",
    ):
        assert words in text
    found = json.loads(report.read_text())
    assert found == json.loads(json.dumps(nequip_md.evaluate(checkpoint, files, worst=2).as_dict()))
    assert f"{1000 * found['by_element']['O']['rmse']:.3f}" in text and len(found["worst"]["force"]) == 2


def test_labels_of_other_names_and_groups(folder, small_models, tmp_path):
    checkpoint = small_models("allegro_fp64")[0]
    frames = ase.io.read(folder / "mixed.extxyz", ":2")
    renamed = []
    for k, atoms in enumerate(frames):
        other = atoms.copy()
        other.info |= {f"REF{k}_energy": atoms.get_potential_energy(), "batch": f"b{k}"}
        other.info["my_virial"] = -atoms.get_volume() * atoms.get_stress(voigt=False)
        other.arrays["REF_forces"] = atoms.get_forces()
        renamed.append(other)
    ase.io.write(tmp_path / "renamed.extxyz", renamed)
    ase.io.write(tmp_path / "plain.extxyz", frames)
    plain = nequip_md.evaluate(checkpoint, tmp_path / "plain.extxyz")
    other = nequip_md.evaluate(
        checkpoint,
        tmp_path / "renamed.extxyz",
        energy_key=["REF0_energy", "REF1_energy"],
        force_key="REF_forces",
        virial_key="my_virial",
        group_key="batch",
    )
    assert list(other.by_group) == ["b0", "b1"] and list(plain.by_group) == ["crystal"]
    assert other.all.keys() == plain.all.keys() == {"energy_per_atom", "energy", "force", "stress"}
    for quantity, errors in plain.all.items():
        assert other.all[quantity] == pytest.approx(errors, rel=1e-6)

    # the same in units of their own, by a training file
    for k, atoms in enumerate(renamed):
        atoms.info["energy_in_hartree"] = atoms.info.pop(f"REF{k}_energy") / units.Hartree
        atoms.arrays["forces_in_au"] = atoms.arrays.pop("REF_forces") * units.Bohr / units.Hartree
        atoms.info["stress_in_gpa"] = atoms.info.pop("my_virial") / atoms.get_volume() / units.GPa
    ase.io.write(tmp_path / "renamed.extxyz", renamed)
    data = {
        "train": "renamed.extxyz",
        "validation_split": 1,
        "energy_key": "energy_in_hartree",
        "force_key": "forces_in_au",
        "stress_key": "stress_in_gpa",
        "energy_unit": "hartree",
        "force_unit": "hartree/bohr",
        "stress_unit": "GPa",
        "stress_sign": "compression",
    }
    file = tmp_path / "train.yaml"
    file.write_text(yaml.safe_dump({"data": data, "model": {"preset": "small", "type_names": ["H", "O"]}}))
    other = nequip_md.evaluate(checkpoint, tmp_path / "renamed.extxyz", train_file=file)
    assert other.all.keys() == plain.all.keys()
    for quantity, errors in plain.all.items():
        assert other.all[quantity] == pytest.approx(errors, rel=1e-5)
    with pytest.raises(NequIPMDError, match="gives the names of the labels; leave train_file or the names out"):
        nequip_md.evaluate(checkpoint, tmp_path / "renamed.extxyz", train_file=file, energy_key="energy")


def test_isolated_atoms_are_left_out(folder, tmp_path, caplog):
    frames = ase.io.read(folder / "mixed.extxyz", ":1")
    atom = Atoms("H", info={"config_type": "IsolatedAtom"})
    atom.calc = SinglePointCalculator(atom, energy=-13.6)
    ase.io.write(tmp_path / "both.extxyz", [atom, *frames])
    ase.io.write(tmp_path / "atom.extxyz", atom)
    with caplog.at_level("INFO"):
        result = nequip_md.evaluate(WATER, tmp_path / "both.extxyz", worst=1)
    assert (result.frames, result.isolated_atoms) == (1, 1) and "1 frames of isolated atoms" in caplog.text
    assert result.worst["force"][0]["index"] == 1, "indices are those in the file"
    with pytest.raises(NequIPMDError, match="all frames are isolated atoms"):
        nequip_md.evaluate(WATER, tmp_path / "atom.extxyz")


def write_bad(folder: Path) -> None:
    water = labelled(water_box(1), "water")
    other = molecule("CH4")
    other.calc = SinglePointCalculator(other, energy=1.0)
    same = water.copy()
    same.positions[1] = same.positions[0]
    same.calc = SinglePointCalculator(same, energy=1.0)
    unlabelled = water.copy()
    unlabelled.info["REF_energy"] = 1.5
    ase.io.write(folder / "good.extxyz", water)
    ase.io.write(folder / "methane.extxyz", [water, other])
    ase.io.write(folder / "same.extxyz", [water, water, same])
    ase.io.write(folder / "unlabelled.extxyz", unlabelled)
    (folder / "text.extxyz").write_text("nothing of use\n")
    (folder / "good.graphs").write_bytes(b"")


REFUSED = {
    "no such model": ("absent.nqmd", ["good.extxyz"], {}, "checkpoint absent.nqmd does not exist"),
    "no model": ("good.extxyz", ["good.extxyz"], {}, "good.extxyz is not a checkpoint"),
    "no such file": (None, ["absent.extxyz"], {}, "data file absent.extxyz does not exist; check the path"),
    "no file": (None, [], {}, "there is no data file"),
    "store": (None, ["good.graphs"], {}, "good.graphs is a store of graphs, which has no positions"),
    "twice": (None, ["good.extxyz", "good.extxyz"], {}, "good.extxyz is given twice"),
    "not a structure": (None, ["text.extxyz"], {}, "ASE cannot read .*the data file text.extxyz"),
    "other element": (None, ["methane.extxyz"], {}, "frame 1 of methane.extxyz: the model has no type for C"),
    "coincident": (None, ["same.extxyz"], {}, "frame 2 of same.extxyz: atoms 0 and 1 are 0 Å apart"),
    "no label": (None, ["unlabelled.extxyz"], {}, r"no frame has an energy.*--energy-key.*numbers \[REF_energy\]"),
    "group": (None, ["good.extxyz"], {"group_key": "phase"}, "no frame has phase to group by; .* have config_type"),
    "device": (None, ["good.extxyz"], {"device": "tpu"}, "device is 'tpu'; give cpu or cuda"),
    "batch size": (None, ["good.extxyz"], {"batch_size": 0}, "the batch size is 0; give 1 or more"),
    "worst": (None, ["good.extxyz"], {"worst": -1}, "the number of worst frames is -1"),
    "no folder": (None, ["good.extxyz"], {"output": "no/x.extxyz"}, "cannot write no/x.extxyz: there is no folder no;"),
    "onto itself": (None, ["good.extxyz"], {"output": "good.extxyz"}, "good.extxyz is a data file itself"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused(case, tmp_path, monkeypatch):
    model, data, options, message = REFUSED[case]
    write_bad(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NequIPMDError, match=message):
        nequip_md.evaluate(WATER if model is None else model, data, **options)


def test_a_folder_of_json_that_is_not_there(tmp_path, capsys):
    write_bad(tmp_path)
    assert main([str(WATER), str(tmp_path / "good.extxyz"), "--json", str(tmp_path / "no" / "errors.json")]) == 1
    done = capsys.readouterr()
    assert done.err.startswith("error: cannot write ") and done.out == "", "nothing was evaluated in vain"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_device_that_is_not_there(tmp_path, small_models):
    write_bad(tmp_path)
    with pytest.raises(NequIPMDError, match="has no CUDA device"):
        nequip_md.evaluate(WATER, tmp_path / "good.extxyz", device="cuda")
    with pytest.raises(NequIPMDError, match="was compiled for cpu and cannot run on cuda"):
        nequip_md.evaluate(small_models("allegro_fp64")[1], tmp_path / "good.extxyz", device="cuda")


def test_an_interrupted_evaluation_leaves_the_old_predictions(tmp_path):
    write_bad(tmp_path)
    output = tmp_path / "predictions.extxyz"
    output.write_text("old")
    with pytest.raises(NequIPMDError, match="frame 2 of"):
        nequip_md.evaluate(WATER, tmp_path / "same.extxyz", output=output, batch_size=1)
    assert output.read_text() == "old" and not list(tmp_path.glob(".*unfinished*"))


def test_predictions_without_labels(tmp_path):
    """With an output, structures need no label."""
    write_bad(tmp_path)
    output = tmp_path / "predictions.extxyz"
    result = nequip_md.evaluate(WATER, tmp_path / "unlabelled.extxyz", output=output)
    assert result.all == {} and result.worst == {"force": [], "energy_per_atom": []} and result.by_force == []
    assert np.abs(ase.io.read(output).arrays["nequip_md_forces"]).max() > 0.01


def random_predictions(frames: int = 40, atoms: int = 25, seed: int = 0) -> Predictions:
    """Forces over four decades with errors of a tenth; some atoms and frames without labels."""
    rng = np.random.default_rng(seed)
    force = rng.normal(size=(frames * atoms, 3)) * 10 ** rng.uniform(-2, 2, (frames * atoms, 1))
    force[::7] = np.nan
    energy = rng.normal(size=frames)
    energy[3:4] = np.nan
    nothing = np.full((frames, 3, 3), np.nan)
    return Predictions(
        type_names=("A", "B"),
        num_atoms=np.full(frames, atoms),
        types=rng.integers(0, 2, frames * atoms),
        energy=rng.normal(size=frames),
        energy_label=energy,
        forces=np.nan_to_num(force) * 1.1 + 0.01,
        force_label=force,
        stress=nothing,
        stress_label=nothing,
    )


def test_intervals_of_force_hold_every_labelled_atom_once():
    predictions = random_predictions()
    sizes = np.linalg.norm(predictions.force_label, axis=1)
    error = predictions.forces - predictions.force_label
    rows = force_errors_by_size(predictions)
    assert sum(row["count"] for row in rows) == 3 * np.isfinite(sizes).sum() and len(rows) > 10
    for row in rows:
        chosen = error[(sizes >= row["from"]) & (sizes < row["to"])]
        assert row["count"] == chosen.size > 0
        assert row["rmse"] == pytest.approx(np.sqrt(np.mean(chosen**2)), rel=1e-12)
    assert [row["to"] for row in rows[:-1]] == [row["from"] for row in rows[1:]]


@pytest.mark.parametrize("largest", [0.0, 1.0, 2.0, 0.1, 4.9e-3, 7e4])
def test_the_last_interval_holds_the_largest_force(largest):
    predictions = random_predictions(2, 5)
    label = np.zeros_like(predictions.force_label)
    label[:5, 0] = largest * np.linspace(0.2, 1, 5)
    rows = force_errors_by_size(Predictions(**{**vars(predictions), "force_label": label}))
    assert sum(row["count"] for row in rows) == label.size
    assert rows[0]["from"] == 0 and rows[-1]["from"] <= largest < rows[-1]["to"]


def test_frames_without_labels_are_never_the_worst():
    predictions = random_predictions(6, 4)
    predictions.force_label[8:12] = np.nan
    worst = worst_frames(predictions, 10)
    assert 2 not in [k for k, _ in worst["force"]] and len(worst["force"]) == 5
    assert 3 not in [k for k, _ in worst["energy_per_atom"]] and len(worst["energy_per_atom"]) == 5
    assert statistics_of(np.array([np.nan])) is None
