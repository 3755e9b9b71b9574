"""``nequip-md-data``: conversion, filters, suspicious frames, summaries and splits, on files that ASE and h5py write."""

import re
from pathlib import Path

import ase.io
import h5py
import numpy as np
import pytest
import yaml
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from matplotlib.image import imread

from nequip_md.errors import NequIPMDError
from nequip_md.training.data.cli import main
from nequip_md.training.data.files import part_sizes
from nequip_md.training.data.readers import read
from nequip_md.training.data.store import GraphStore
from support.training_runs import MODEL, crystals

HARTREE, BOHR = 27.211386, 0.529177211


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def molecules(count, seed=0, energy=None):
    """Water and hydrogen peroxide with energies near a sum over atoms, eV."""
    rng = np.random.default_rng(seed)
    frames = []
    for k in range(count):
        symbols, base = (("OHH", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]]), ("OOHH", [[0, 0, 0], [1.45, 0, 0], [-0.2, 0.95, 0], [1.65, 0.6, 0.75]]))[k % 2]  # fmt: skip
        atoms = Atoms(symbols, np.array(base) + rng.normal(scale=0.02, size=(len(base), 3)))
        total = -2000.0 * symbols.count("O") - 15.0 * symbols.count("H") + rng.normal(scale=0.05)
        forces = rng.normal(size=(len(atoms), 3))
        atoms.calc = SinglePointCalculator(atoms, energy=total, forces=forces)
        frames.append(atoms)
    return frames


def train_file(**data):
    content = {"model": MODEL, "data": {"train": "x.extxyz", "validation_split": 1, **data}}
    Path("train.yaml").write_text(yaml.safe_dump(content))
    return "train.yaml"


def test_convert_to_a_store_by_a_training_file(here, capsys):
    frames = crystals(5, 1)
    written = []
    for atoms in frames:
        copy = atoms.copy()
        copy.info["E"], copy.arrays["F"] = atoms.get_potential_energy() / HARTREE, atoms.get_forces() / HARTREE
        written.append(copy)
    ase.io.write("data.extxyz", written)
    train_file(energy_key="E", force_key="F", energy_unit="hartree")
    assert main(["convert", "data.extxyz", "-o", "data.graphs", "--train-file", "train.yaml"]) == 0
    assert re.search(r"data.graphs: 5 frames, 0\.\d MB", capsys.readouterr().out)
    store = GraphStore("data.graphs")
    energies = [store[k].energy.item() for k in range(5)]
    np.testing.assert_allclose(energies, [a.get_potential_energy() for a in frames], rtol=1e-7)
    assert store.metadata.cutoffs == [[1.8]] and store.metadata.label_names["energy"] == ["E"]
    # and back: extended XYZ with ASE's names and units
    assert main(["convert", "data.extxyz", "-o", "new.extxyz", "--train-file", "train.yaml"]) == 0
    for atoms, new in zip(frames, ase.io.read("new.extxyz", ":"), strict=True):
        assert new.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), rel=1e-7)
        np.testing.assert_allclose(new.get_forces(), atoms.get_forces(), atol=1e-6)


def test_stresses_survive_the_way_through_extended_xyz(here):
    frames = crystals(2, 3)
    for atoms in frames:
        atoms.calc = SinglePointCalculator(atoms, stress=np.linspace(-0.3, 0.4, 6), energy=1.0)
    ase.io.write("data.traj", frames)
    assert main(["convert", "data.traj", "-o", "new.extxyz"]) == 0
    for new in ase.io.read("new.extxyz", ":"):
        np.testing.assert_allclose(new.get_stress(), np.linspace(-0.3, 0.4, 6), atol=1e-9)


def test_weights_are_multiplied_and_labels_left_out(here):
    """Also labels under names of their own, which another training file may ask for."""
    train_file(energy_key="E", force_key="F", virial_key="W")
    frames = [atoms.copy() for atoms in crystals(3, 3)]
    for k, atoms in enumerate(frames):
        atoms.info |= {"E": 1.0, "W": np.eye(3), "config_weight": 1.0 + k}
        atoms.arrays["F"] = np.ones((len(atoms), 3))
    del frames[0].info["config_weight"]
    ase.io.write("data.extxyz", frames)
    command = ["convert", "data.extxyz", "--train-file", "train.yaml", "-o"]
    assert main([*command, "weight.extxyz", "--weight", "0.5"]) == 0
    new = ase.io.read("weight.extxyz", ":")
    assert [atoms.info["config_weight"] for atoms in new] == [0.5, 1.0, 1.5]
    assert all({"energy", "forces", "stress"} <= atoms.calc.results.keys() for atoms in new)
    for label, name in (("energy", "E"), ("forces", "F"), ("stress", "W")):
        assert main([*command, "less.extxyz", "--without", label]) == 0
        for atoms in ase.io.read("less.extxyz", ":"):
            assert {"energy", "forces", "stress"} - atoms.calc.results.keys() == {label}
            assert {"E", "F", "W"} - atoms.info.keys() - atoms.arrays.keys() == {name}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-o", "x.extxyz", "--within", "0"], "--within is 0.0; it must be a distance above 0"),
        (["-o", "x.extxyz", "--workers", "2"], "--workers is for stores"),
        (["-o", "x.extxyz", "--weight", "-1"], "--weight is -1.0; it must be a number that is not negative"),
        (["-o", "x.graphs", "--cutoff", "3", "--types", "O", "H", "--without", "energy"], "give -o OUT.extxyz"),
        (["-o", "x.h5"], "x.h5 is named neither .graphs .* nor .extxyz"),
        (["-o", "x.graphs"], "needs types and cutoffs of a model: give --train-file, or --cutoff and --types"),
        (["-o", "x.graphs", "--cutoff", "3"], "give --train-file, or --cutoff and --types"),
        (["-o", "x.graphs", "--cutoff", "-3", "--types", "O", "H"], "cutoffs must be positive"),
        (["-o", "x.graphs", "--cutoff", "3", "--types", "O"], "frame 0 of data.extxyz: the model has no type for H"),
        (["-o", "x.graphs", "--train-file", "train.yaml", "--cutoff", "3"], "leave --cutoff out"),
        (["-o", "x.graphs", "--train-file", "data.extxyz"], "is not a YAML file|must hold keys"),
        (["-o", "x.extxyz", "--charge", "0"], "frame 0 of data.extxyz: --charge needs the entry charge"),
        (["-o", "x.graphs", "--cutoff", "3", "--types", "O", "H", "--charge", "0"], "frame 0 of data.extxyz: --charge"),
        (["-o", "x.extxyz", "--max-force", "1e-9"], "no frame of data.extxyz is left to write to x.extxyz"),
    ],
)
def test_conversions_that_cannot_be(here, capsys, arguments, expected):
    ase.io.write("data.extxyz", molecules(3))
    train_file()
    before = sorted(here.iterdir())
    assert main(["convert", "data.extxyz", *arguments]) == 1
    error = capsys.readouterr().err
    assert re.search(expected, error) and "Traceback" not in error
    assert sorted(here.iterdir()) == before


def write_spice():
    """Water, its dimer, a hydroxide ion and methane, the forces growing with the conformation."""
    systems = {
        "water": ("OHH", "[H:2][O:1][H:3]"),
        "dimer": ("OHHOHH", "[H:2][O:1][H:3].[H:5][O:4][H:6]"),
        "hydroxide": ("OH", "[O-:1][H:2]"),
        "methane": ("CHHHH", "[C:1]([H:2])([H:3])([H:4])[H:5]"),
    }
    rng = np.random.default_rng(0)
    with h5py.File("SPICE.hdf5", "w") as file:
        for name, (symbols, smiles) in systems.items():
            group, n = file.create_group(name), len(symbols)
            group.create_dataset("subset", data=["SPICE Test"], dtype=h5py.string_dtype())
            group.create_dataset("smiles", data=[smiles], dtype=h5py.string_dtype())
            group["atomic_numbers"] = Atoms(symbols).numbers.astype(np.int16)
            group["conformations"] = (3 * np.arange(3 * n).reshape(n, 3) + rng.normal(size=(4, n, 3))).astype("f4")
            group["dft_total_energy"] = rng.normal(size=4)
            gradient = np.zeros((4, n, 3), dtype="f4")
            gradient[:, 0, 2] = np.array([1.0, 2.0, 3.0, 4.0]) * BOHR / HARTREE  # 1 to 4 eV/angstrom
            group["dft_total_gradient"] = gradient


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ([], {"dimer": 4, "hydroxide": 4, "methane": 4, "water": 4}),
        (["--charge", "0"], {"dimer": 4, "methane": 4, "water": 4}),
        (["--elements", "O", "H"], {"dimer": 4, "hydroxide": 4, "water": 4}),
        (["--fragments", "single", "--max-force", "2.5"], {"hydroxide": 2, "methane": 2, "water": 2}),
    ],
)
def test_filters_of_spice(here, capsys, arguments, names):
    write_spice()
    output = "out.extxyz"
    assert main(["convert", "SPICE.hdf5", "-o", output, *arguments]) == 0
    found = [atoms.info["molecule"] for atoms in ase.io.read(output, ":")]
    assert {name: found.count(name) for name in set(found)} == names
    text = capsys.readouterr().out
    dropped = [int(n) for n in re.findall(r"left out: (\d+) frames", text)]
    assert sum(dropped) == 16 - len(found)
    assert main(["convert", "SPICE.hdf5", "-o", "o.graphs", "--cutoff", "2", "--types", "H", "C", "O", *arguments]) == 0
    assert len(GraphStore("o.graphs")) == len(found)


def test_frames_with_an_atom_far_from_all_others_are_left_out(here, capsys):
    frames = [Atoms("H2", [[0, 0, 0], [0, 0, d]]) for d in (5.0, 7.0)]
    frames += [Atoms("H", cell=[a, 20, 20], pbc=True) for a in (5.0, 7.0)]  # the nearest atom is an image
    for k, atoms in enumerate(frames):
        atoms.calc = SinglePointCalculator(atoms, energy=float(k))
    ase.io.write("data.extxyz", frames)
    assert main(["convert", "data.extxyz", "-o", "new.extxyz", "--within", "6"]) == 0
    assert [atoms.get_potential_energy() for atoms in ase.io.read("new.extxyz", ":")] == [0.0, 2.0]
    assert "left out: 2 frames with an atom too far from all others" in capsys.readouterr().out


def spoiled(frames):
    """Frames of which some are wrong, and what is said of each."""
    frames[3].calc.results["energy"] += 40.0
    frames[5].calc.results["forces"][1] = [0, 300.0, 0]
    frames[8].positions[2] = frames[8].positions[1] + [0, 0, 0.06]
    frames[11] = frames[4].copy()
    frames[11].calc = frames[4].calc
    frames[14].calc.results["forces"][0, 0] = np.nan
    frames[17].set_cell([30, 30, 30])
    frames[17].calc.results["stress"] = np.array([0, 0, 20.0, 0, 0, 0])
    for k in (8, 17):  # results of another structure are not written
        frames[k].calc = SinglePointCalculator(frames[k], **frames[k].calc.results)
    return {
        3: r"energy is \+\d\d?(\.\d+)? eV/atom off the fit by composition, \d+ times",
        5: r"the force on atom 1 \(\w\) is 300 eV/Å",
        8: "atoms 1 and 2 are 0.06 Å apart",
        11: "the same structure as frame 4 of data.traj",
        14: "a value of its forces is not finite",
        17: "a component of its stress is 20 eV/Å³",
    }


def test_suspicious_frames_are_named(here, capsys):
    frames = molecules(60)
    expected = spoiled(frames)
    ase.io.write("data.traj", frames)
    assert main(["check", "data.traj"]) == 1
    lines = capsys.readouterr().out.splitlines()
    found = [line for line in lines if line.startswith("suspicious: ")]
    assert len(found) == len(expected) and f"{len(expected)} suspicions in 58 frames" in lines
    for number, text in expected.items():
        (line,) = [line for line in found if line.startswith(f"suspicious: frame {number} of data.traj: ")]
        assert re.search(text, line), line
    assert any(line.split()[:5] == ["check", "58", "58", "58", "0"] for line in lines)


def test_good_frames_are_not_suspicious(here, capsys):
    frames = molecules(60, seed=4)
    ase.io.write("data.extxyz", frames[:30])
    ase.io.write("more.extxyz", [*frames[30:], Atoms("O", [[0, 0, 0]])])
    assert main(["check", "data.extxyz", "more.extxyz"]) == 0
    assert "nothing suspicious" in capsys.readouterr().out
    ase.io.write("again.extxyz", frames[7:8])
    assert main(["check", "data.extxyz", "again.extxyz"]) == 1
    assert "frame 0 of again.extxyz: the same structure as frame 7 of data.extxyz" in capsys.readouterr().out


def test_check_goes_on_after_a_file_that_is_cut_off(here, capsys):
    ase.io.write("data.extxyz", molecules(4))
    text = Path("data.extxyz").read_text()
    Path("cut.extxyz").write_text(text[: len(text) // 2 + 80])
    assert main(["check", "cut.extxyz", "data.extxyz"]) == 1
    output = capsys.readouterr().out
    assert re.search("suspicious: cut.extxyz: ASE cannot read frame 2 of .*the file ends within", output)
    assert re.search(r"check +4 .*data.extxyz", output)


def test_many_suspicions_are_cut_short(here, capsys):
    frames = molecules(2)
    ase.io.write("data.extxyz", [*frames, *frames[:1] * 60])
    assert main(["check", "data.extxyz"]) == 1
    assert "and 10 more (--all)" in capsys.readouterr().out
    assert main(["check", "data.extxyz", "--all"]) == 1
    assert capsys.readouterr().out.count("suspicious: ") == 60


def test_summary(here, capsys):
    frames = molecules(40)
    ase.io.write("data.traj", frames)
    assert main(["summary", "data.traj", "--plot", "picture.png"]) == 0
    rows = {}
    for line in capsys.readouterr().out.splitlines():
        if line.startswith("│"):
            name, *cells = (cell.strip() for cell in line.strip("│").split("│"))
            rows[name] = cells
    per_atom = [a.get_potential_energy() / len(a) for a in frames]
    assert rows["atoms in a frame"][:4] == ["40", "3", "3.5", "4"]
    numbers = [float(x) for x in rows["energy per atom"][1:4]]
    assert numbers == pytest.approx([min(per_atom), np.mean(per_atom), max(per_atom)], rel=1e-5)
    forces = np.concatenate([a.get_forces() for a in frames])
    assert float(rows["force component, RMS"][2]) == pytest.approx(np.sqrt(np.mean(forces**2)), rel=1e-3)
    assert float(rows["force on an atom"][3]) == pytest.approx(np.linalg.norm(forces, axis=1).max(), rel=1e-3)
    closest = min(a.get_all_distances()[a.numbers == 8][:, a.numbers == 1].min() for a in frames)
    assert float(rows["distance H-O"][1]) == pytest.approx(closest, abs=6e-4)
    assert rows["with O"][0] == "40" and rows["periodic"][0] == "0"
    picture = imread("picture.png")
    assert picture.shape[0] > 500 and picture[..., :3].std() > 0.1


def test_a_picture_of_unknown_kind(here, capsys):
    ase.io.write("data.traj", molecules(3))
    assert main(["summary", "data.traj", "--plot", "picture.docx"]) == 1
    assert "cannot draw picture.docx: Format 'docx' is not supported" in capsys.readouterr().err
    assert [p.name for p in here.iterdir()] == ["data.traj"]


def test_summary_of_real_data(here, capsys, data_folder):
    path = data_folder / "water" / "test.extxyz"
    assert main(["summary", str(path), "--reach", "3"]) == 0
    frames = ase.io.read(path, ":")
    assert len(frames) == 80
    closest = min(np.min(a.get_all_distances(mic=True)[np.triu_indices(192, 1)]) for a in frames)
    assert re.search(rf"distance H-O +│ +│ +{closest:.3f} ", capsys.readouterr().out)


def test_real_data_are_not_suspicious(here, capsys, data_folder):
    files = [str(data_folder / name) for name in ("3bpa/train_300K.extxyz", "3bpa/isolated_atoms.extxyz")]
    assert main(["check", *files]) == 0
    assert "nothing suspicious" in capsys.readouterr().out


def test_split(here, capsys):
    frames = molecules(41)
    for k, atoms in enumerate(frames):
        atoms.info["number"] = k
    alone = Atoms("O", [[0, 0, 0]], info={"config_type": "IsolatedAtom", "number": 41})
    ase.io.write("data.extxyz", [*frames, alone])
    for folder, seed in (("one", 0), ("same", 0), ("other", 1)):
        options = ["--fractions", "0.8", "0.1", "0.1", "--seed", str(seed), "-o", folder]
        assert main(["split", "data.extxyz", *options]) == 0
    assert "one/train.extxyz: 34 frames" in capsys.readouterr().out
    numbers = {
        folder: [[a.info["number"] for a in ase.io.read(f"{folder}/{part}.extxyz", ":")] for part in ("train", "validation", "test")]
        for folder in ("one", "same", "other")
    }  # fmt: skip
    assert [len(part) for part in numbers["one"]] == [34, 4, 4] and 41 in numbers["one"][0]
    assert sorted(sum(numbers["one"], [])) == list(range(42))
    assert all(part == sorted(part) for part in numbers["one"])
    assert numbers["one"] == numbers["same"] != numbers["other"]
    # the text of the file, digit by digit
    whole = Path("data.extxyz").read_text()
    parts = [Path(f"one/{part}.extxyz").read_text() for part in ("train", "validation", "test")]
    assert sorted("".join(parts).splitlines()) == sorted(whole.splitlines())
    assert main(["split", "data.extxyz", "-o", "one"]) == 1
    assert "one/train.extxyz, one/validation.extxyz, one/test.extxyz exists already" in capsys.readouterr().err


def test_split_of_another_format(here):
    frames = crystals(6, 2)
    ase.io.write("data.traj", frames)
    assert main(["split", "data.traj", "--fractions", "0.5", "0.5", "-o", "parts"]) == 0
    energies = [atoms.get_potential_energy() for p in ("train", "validation") for _, atoms in read(f"parts/{p}.extxyz")]
    np.testing.assert_allclose(sorted(energies), sorted(a.get_potential_energy() for a in frames))


def test_sizes_of_parts():
    assert part_sizes(1000, [0.9, 0.05, 0.05]) == [900, 50, 50]
    assert part_sizes(7, [0.5, 0.25, 0.25]) == [3, 2, 2]
    assert part_sizes(100, [0.1, 0.2]) == [10, 20]
    for fractions in ([0.9, 0.2], [1.0, -0.1], [0.0, 0.5]):
        with pytest.raises(NequIPMDError, match="fractions are positive and at most 1 in all"):
            part_sizes(10, fractions)
    with pytest.raises(NequIPMDError, match="the parts of 10 frames would have 10 0"):
        part_sizes(10, [0.99, 0.01])


def test_a_store_is_no_data_file(here, capsys):
    (here / "data.graphs").write_bytes(b"x")
    for command in (["check"], ["summary"]):
        main([*command, "data.graphs"])
        assert "data.graphs is a store of graphs" in "".join(capsys.readouterr())
