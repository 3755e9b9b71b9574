"""Data files of each format against the libraries that wrote them, and units against CODATA's constants in SciPy."""

import gzip
import re

import ase.db
import ase.io
import h5py
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from scipy import constants

from nequip_md.errors import NequIPMDError
from nequip_md.model.config import AllegroConfig
from nequip_md.training.config import DataConfig
from nequip_md.training.data import readers
from nequip_md.training.data.data_module import AtomsData
from nequip_md.training.data.readers.spice import formal_charge
from nequip_md.training.data.units import Units

EV = constants.e
HARTREE = constants.value("Hartree energy") / EV
RYDBERG = constants.value("Rydberg constant times hc in J") / EV
BOHR = constants.value("Bohr radius") * 1e10
KCAL_PER_MOL = 1e3 * constants.calorie / constants.N_A / EV
GPA = 1e9 * 1e-30 / EV
CODATA = 2e-8
"""Relative difference of ASE's constants (CODATA 2014) from SciPy's newer ones."""

ARGON = AllegroConfig(type_names=["Ar"], cutoff=4.5)
WATER = AllegroConfig(type_names=["H", "O"], cutoff=3.0)


def argon(count=3, seed=0):
    """Periodic frames with labels of ASE's Lennard-Jones calculator, eV and angstrom."""
    rng = np.random.default_rng(seed)
    frames = []
    for _ in range(count):
        atoms = Atoms("Ar4", cell=[5.0, 5.1, 5.2], pbc=True, scaled_positions=[[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])  # fmt: skip
        atoms.positions += rng.normal(scale=0.1, size=(4, 3))
        lj = LennardJones(sigma=3.4, epsilon=0.0104, rc=4.5, smooth=True)
        atoms.calc = lj
        results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces(), "stress": atoms.get_stress()}
        atoms.calc = SinglePointCalculator(atoms, **results)
        frames.append(atoms)
    return frames


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def samples_of(path, potential=ARGON, **keys):
    """The samples of a file in its order."""
    config = DataConfig(train=[str(path)], validation=[str(path)], **keys)
    return AtomsData(config, potential).validation


def assert_same(samples, frames, rtol=1e-12, atol=1e-7):
    """Labels and edge vectors are those of the frames; a label that a frame lacks is NaN."""
    assert len(samples) == len(frames) > 0
    for sample, atoms in zip(samples, frames, strict=True):
        results = atoms.calc.results
        assert sample.energy.item() == pytest.approx(results.get("energy", np.nan), rel=rtol, abs=1e-12, nan_ok=True)
        np.testing.assert_allclose(sample.forces, results.get("forces", np.full((len(atoms), 3), np.nan)), rtol, atol)
        if "stress" in results:
            np.testing.assert_allclose(sample.stress[0], atoms.get_stress(voigt=False), rtol, 1e-12)
        else:
            assert sample.stress.isnan().all()
        found = np.sort(sample.graph.edge_vectors.norm(dim=1))
        distances = atoms.get_all_distances() if not atoms.pbc.any() else None
        if distances is not None:
            limit = WATER.cutoff
            np.testing.assert_allclose(found, np.sort(distances[(distances > 0) & (distances < limit)]), rtol, atol)


@pytest.mark.parametrize("name", ["data.extxyz", "data.xyz", "data.traj", "data.db", "data.json", "data.extxyz.gz"])
def test_what_ase_writes_is_read(here, name):
    frames = argon()
    ase.io.write(name, frames)
    assert_same(samples_of(name), frames)
    assert [n for n, _ in readers.read(name)][2].startswith(f"frame 2 of {name}")


def test_a_part_of_a_file(here):
    frames = argon(5)
    ase.io.write("data.extxyz", frames)
    ase.io.write("data.db", frames)
    assert_same(samples_of("data.extxyz@1:3"), frames[1:3])
    assert_same(samples_of("data.db@2:"), frames[2:])
    assert_same(samples_of("data.db@3"), frames[3:4])
    with pytest.raises(NequIPMDError, match="@first names no frames of data.extxyz, as @10:20 does"):
        list(readers.read("data.extxyz@first"))
    with pytest.raises(NequIPMDError, match="data.db@::2: rows of a database .* not with a step of 2"):
        list(readers.read("data.db@::2"))


@pytest.mark.parametrize("name", ["data.db", "data.aselmdb"])
def test_columns_of_a_database(here, name):
    """Labels may be key-value pairs or data of a row."""
    if name.endswith("aselmdb"):
        pytest.importorskip("ase_db_backends", reason="ase-db-backends is not installed")
    frames = argon()
    with ase.db.connect(name) as database:
        for atoms in frames:
            bare = atoms.copy()
            results = atoms.calc.results
            database.write(bare, ref_energy=results["energy"], data={"ref_forces": results["forces"]})
    for atoms in frames:
        del atoms.calc.results["stress"]
    assert_same(samples_of(name, energy_key="ref_energy", force_key="ref_forces"), frames)


def test_a_database_in_lmdb_without_its_package(here, monkeypatch):
    import sys

    (here / "data.aselmdb").write_bytes(b"anything")
    monkeypatch.setitem(sys.modules, "ase_db_backends.aselmdb", None)
    with pytest.raises(NequIPMDError, match="data.aselmdb: .*pip install ase-db-backends"):
        list(readers.read("data.aselmdb"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (lambda t: t[: len(t) // 2 + 40], r"frame 1 of .*the file ends within the frame of 4 atoms that begins in line 7"),
        (lambda t: t.replace("\n4\n", "\nfour\n", 1), "frame 1 of .*line 7 should be a number of atoms, it is 'four'"),
        (lambda t: t.replace("\n4\n", "\n\n4\n", 1), "frame 1 of .*line 7 is empty, but '4' follows"),
        (lambda t: re.sub(r"(?s)(.*)Ar ", r"\1Xq ", t), "frame 2 of .*Xq"),
        (lambda t: "", "data.extxyz holds no frame"),
    ],
)  # fmt: skip
def test_a_corrupt_frame_is_named(here, text, expected):
    ase.io.write("data.extxyz", argon())
    path = here / "data.extxyz"
    path.write_text(text(path.read_text()))
    with pytest.raises(NequIPMDError, match=expected):
        list(readers.read("data.extxyz"))


def test_frames_are_read_one_at_a_time(here):
    """Frames before a corrupt one come out, whatever follows, and an empty line at the end is none."""
    ase.io.write("data.extxyz", argon())
    with open("data.extxyz", "a") as file:
        file.write("\n\n")
    assert len(list(readers.read("data.extxyz"))) == 3
    with open("data.extxyz", "a") as file:
        file.write("garbage\n")
    frames = readers.read("data.extxyz")
    assert [next(frames)[0] for _ in range(2)] == ["frame 0 of data.extxyz", "frame 1 of data.extxyz"]


@pytest.mark.parametrize(
    ("keys", "energy", "length", "force"),
    [
        ({"energy_unit": "kcal/mol"}, KCAL_PER_MOL, 1, KCAL_PER_MOL),
        ({"energy_unit": "hartree", "length_unit": "bohr"}, HARTREE, BOHR, HARTREE / BOHR),
        ({"energy_unit": "rydberg", "length_unit": "bohr"}, RYDBERG, BOHR, RYDBERG / BOHR),
        ({"energy_unit": "hartree", "force_unit": "hartree/bohr"}, HARTREE, 1, HARTREE / BOHR),
        ({"energy_unit": "kJ/mol", "length_unit": "nm"}, KCAL_PER_MOL / 4.184, 10, KCAL_PER_MOL / 41.84),
        ({"force_unit": "meV/angstrom"}, 1, 1, 1e-3),
    ],
)
def test_units(here, keys, energy, length, force):
    frames = argon()
    written = []
    for atoms in frames:
        copy = Atoms(atoms.numbers, atoms.positions / length, cell=atoms.cell.array / length, pbc=True)
        results = {"energy": atoms.calc.results["energy"] / energy, "forces": atoms.get_forces() / force}
        copy.calc = SinglePointCalculator(copy, **results)
        copy.info["virial"] = -atoms.get_stress(voigt=False) * atoms.get_volume() / energy
        written.append(copy)
    ase.io.write("data.traj", written)
    samples = samples_of("data.traj", virial_key="virial", **keys)
    assert_same(samples, frames, rtol=3 * CODATA)
    volumes = [s.volume.item() for s in samples]
    np.testing.assert_allclose(volumes, [a.get_volume() for a in frames], rtol=4 * CODATA)


@pytest.mark.parametrize(
    ("keys", "factor"),
    [
        ({"stress_unit": "kbar", "stress_sign": "compression"}, -0.1 * GPA),
        ({"stress_unit": "GPa"}, GPA),
        ({"stress_sign": "compression"}, -1),
        ({"stress_unit": "eV/angstrom^3", "stress_sign": "tension"}, 1),
    ],
)
def test_units_and_signs_of_stresses(here, keys, factor):
    frames, written = argon(), []
    for atoms in frames:
        copy = atoms.copy()
        copy.calc = SinglePointCalculator(copy, **{**atoms.calc.results, "stress": atoms.get_stress() / factor})
        written.append(copy)
    ase.io.write("data.traj", written)
    assert_same(samples_of("data.traj", **keys), frames, rtol=CODATA)


def test_the_limit_of_stresses_counts_after_conversion(here):
    (atoms,) = argon(1)
    atoms.calc.results["stress"] = np.array([200.0, 0, 0, 0, 0, 0])
    ase.io.write("data.traj", [atoms])
    with pytest.raises(NequIPMDError, match="frame 0 of data.traj.*data.stress_unit: kbar.*compression"):
        samples_of("data.traj")
    assert samples_of("data.traj", stress_unit="kbar")[0].stress[0, 0, 0].item() == pytest.approx(20 * GPA, rel=1e-6)


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("energy_unit", "kcal", "eV, meV, hartree, rydberg, kcal/mol, kJ/mol"),
        ("length_unit", "pm", "angstrom, bohr, nm"),
        ("force_unit", "hartree", "hartree/bohr"),
        ("stress_unit", "bar", "eV/angstrom.3, kbar, GPa"),
        ("stress_sign", "minus", "tension, compression"),
    ],
)
def test_an_unknown_unit_is_refused(key, value, allowed):
    with pytest.raises(ValueError, match=f"(?s){key}.*is one of .*{allowed}.*not '{value}'"):
        DataConfig(train=["a"], validation=["b"], **{key: value})


def write_rmd17(path, frames, energy, names=("nuclear_charges", "coords", "energies", "forces"), **more):
    arrays = (
        frames[0].numbers.astype(np.uint8),
        np.array([a.positions for a in frames]),
        np.array([a.get_potential_energy() for a in frames]) / energy,
        np.array([a.get_forces() for a in frames]) / energy,
    )
    np.savez_compressed(path, **dict(zip(names, arrays, strict=True)), **more)


def waters(count=4, seed=1):
    rng = np.random.default_rng(seed)
    frames = []
    for _ in range(count):
        atoms = molecule("H2O")
        atoms.positions += rng.normal(scale=0.05, size=(3, 3))
        atoms.calc = SinglePointCalculator(atoms, energy=-2000 + rng.normal(), forces=rng.normal(size=(3, 3)))
        frames.append(atoms)
    return frames


def test_rmd17_is_in_kcal_per_mol(here):
    frames = waters()
    write_rmd17("rmd17_water.npz", frames, KCAL_PER_MOL, md17_energies=np.zeros(4), old_indices=np.arange(4))
    assert_same(samples_of("rmd17_water.npz", WATER), frames, rtol=CODATA)
    write_rmd17("mine.npz", frames, 1.0)
    assert_same(samples_of("mine.npz", WATER, energy_unit="eV"), frames)


def test_sgdml_says_its_units_or_is_refused(here):
    frames, names = waters(), ("z", "R", "E", "F")
    write_rmd17("said.npz", frames, KCAL_PER_MOL, names, e_unit="kcal/mol", r_unit="Ang")
    assert_same(samples_of("said.npz", WATER), frames, rtol=CODATA)
    write_rmd17("silent.npz", frames, HARTREE, names)
    with pytest.raises(NequIPMDError, match=r"silent.npz: its units are not given and not given; .*data.energy_unit"):
        samples_of("silent.npz", WATER)
    given = {"energy_unit": "hartree", "length_unit": "angstrom"}
    assert_same(samples_of("silent.npz", WATER, **given), frames, rtol=CODATA)


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"x": np.zeros(3)}, "bad.npz: it has the arrays x; layouts that are known are rMD17"),
        ({"nuclear_charges": [8, 1], "coords": np.zeros((2, 3, 3))}, r"array coords has shape \(2, 3, 3\)"),
        ({"nuclear_charges": [8], "coords": np.zeros((2, 1, 3)), "energies": [1.0]}, r"energies has shape \(1,\)"),
    ],
)
def test_an_archive_of_another_layout_is_refused(here, arrays, expected):
    np.savez("bad.npz", **arrays)
    with pytest.raises(NequIPMDError, match=expected):
        list(readers.read("bad.npz"))


def write_spice(path, frames_of, smiles):
    """The layout of SPICE's own downloader script."""
    with h5py.File(path, "w") as file:
        for name, frames in frames_of.items():
            group = file.create_group(name)
            group.create_dataset("subset", data=["SPICE Test"], dtype=h5py.string_dtype())
            group.create_dataset("smiles", data=[smiles[name]], dtype=h5py.string_dtype())
            group.create_dataset("atomic_numbers", data=frames[0].numbers, dtype=np.int16)
            values = {
                "conformations": (np.array([a.positions for a in frames]) / BOHR, "bohr", np.float32),
                "formation_energy": (np.arange(len(frames)) * 0.25, "hartree", np.float64),
                "dft_total_energy": ([a.get_potential_energy() / HARTREE for a in frames], "hartree", np.float64),
                "dft_total_gradient": (
                    -np.array([a.get_forces() for a in frames]) * BOHR / HARTREE, "hartree/bohr", np.float32,
                ),
            }  # fmt: skip
            for key, (data, unit, dtype) in values.items():
                group.create_dataset(key, data=np.array(data), dtype=dtype).attrs["units"] = unit


def test_spice(here):
    water, ion = waters(3), waters(2, seed=5)
    smiles = {"103": "[H:2][O:1][H:3]", "h2o ion": "[O-:1][H:2].[H+:3]"}
    write_spice("SPICE.hdf5", {"103": water, "h2o ion": ion}, smiles)
    assert_same(samples_of("SPICE.hdf5", WATER), [*water, *ion], rtol=3e-7, atol=3e-6)  # float32 in the file
    found = list(readers.read("SPICE.hdf5"))
    assert [name for name, _ in found][3] == "frame 3 of SPICE.hdf5 (conformation 0 of h2o ion)"
    info = found[4][1].info
    assert (info["charge"], info["fragments"], info["subset"], info["smiles"]) == (
        0,
        2,
        "SPICE Test",
        smiles["h2o ion"],
    )
    formation = samples_of("SPICE.hdf5", WATER, energy_key="formation_energy")
    energies = [s.energy.item() for s in formation]
    np.testing.assert_allclose(energies, np.array([0, 0.25, 0.5, 0, 0.25]) * HARTREE, rtol=CODATA)


def test_other_units_than_those_of_spice_are_refused(here):
    write_spice("SPICE.hdf5", {"103": waters()}, {"103": "O"})
    with h5py.File("SPICE.hdf5", "a") as file:
        file["103/conformations"].attrs["units"] = "angstrom"
    with pytest.raises(NequIPMDError, match="SPICE.hdf5: conformations of 103 has .*unit angstrom; SPICE has .*bohr"):
        list(readers.read("SPICE.hdf5"))
    with h5py.File("other.h5", "w") as file:
        file["positions"] = np.zeros(3)
    with pytest.raises(NequIPMDError, match="positions is not a group with atomic_numbers and conformations"):
        list(readers.read("other.h5"))


@pytest.mark.parametrize(
    ("smiles", "charge"),
    [
        ("[H:2][O:1][H:3]", 0), ("[NH4+:1]", 1), ("[Mg+2:1].[Cl-:2]", 1), ("[Ca++]", 2), ("[O-:1][S:2](=[O:3])[O-]", -2),
        ("[C@@H:1]([N+:2])[C:3](=O)[O-:4]", 0), ("CC(=O)O", 0), ("[13C-]#[O+]", 0), ("[Fe---]", -3),
    ],
)  # fmt: skip
def test_formal_charges(smiles, charge):
    assert formal_charge(smiles) == charge


VASPRUN = """<?xml version="1.0" encoding="ISO-8859-1"?>
<modeling>
 <kpoints><varray name="kpointlist"><v>0 0 0</v></varray><varray name="weights"><v>1.0</v></varray></kpoints>
 <atominfo><array name="atoms"><set><rc><c>Ar</c><c>1</c></rc><rc><c>Ar</c><c>1</c></rc></set></array></atominfo>
 <structure name="initialpos"><crystal><varray name="basis"><v>5 0 0</v><v>0 5 0</v><v>0 0 5</v></varray></crystal>
  <varray name="positions"><v>0 0 0</v><v>0.5 0.5 0.5</v></varray></structure>
 <calculation>
  <scstep><energy><i name="e_fr_energy">-7.5</i><i name="e_wo_entrp">-7.1</i><i name="e_0_energy">-7.3</i></energy></scstep>
  <structure><crystal><varray name="basis"><v>5 0 0</v><v>0 5 0</v><v>0 0 5</v></varray></crystal>
   <varray name="positions"><v>0 0 0</v><v>0.5 0.5 0.52</v></varray></structure>
  <varray name="forces"><v>0.1 0.2 0.3</v><v>-0.1 -0.2 -0.3</v></varray>
  <varray name="stress"><v>10 4 6</v><v>4 20 5</v><v>6 5 30</v></varray>
  <energy><i name="e_fr_energy">-7.5</i><i name="e_wo_entrp">-7.1</i><i name="e_0_energy">-7.3</i></energy>
 </calculation>
</modeling>
"""


def test_vasprun(here):
    """VASP's stress is in kbar, positive under compression; ``energy`` is E0, ``free_energy`` is F."""
    (here / "vasprun.xml").write_text(VASPRUN)
    expected = -0.1 * GPA * np.array([[10, 4, 6], [4, 20, 5], [6, 5, 30]])
    # the keys for files without units change nothing: ASE converts, as the format has units
    for keys in ({}, {"stress_unit": "kbar", "energy_unit": "hartree", "length_unit": "bohr"}):
        (sample,) = samples_of("vasprun.xml", **keys)
        np.testing.assert_allclose(sample.stress[0], expected, rtol=CODATA)
        assert sample.energy.item() == pytest.approx(-7.3) and sample.volume.item() == pytest.approx(125)
        np.testing.assert_allclose(sample.forces, [[0.1, 0.2, 0.3], [-0.1, -0.2, -0.3]])
    (sample,) = samples_of("vasprun.xml", energy_key="free_energy")
    assert sample.energy.item() == pytest.approx(-7.5)


DUMP = """ITEM: UNITS
{units}
ITEM: TIMESTEP
10
ITEM: NUMBER OF ATOMS
2
ITEM: BOX BOUNDS pp pp ff
0 6.0
0 6.0
0 6.0
ITEM: ATOMS id {element} x y z fx fy fz
2 {second} 1.0 2.0 3.0 0.5 0.25 0.125
1 {first} 1.5 2.0 3.5 -0.5 -0.25 -0.125
"""


def dump(units="metal", element="element", first="O", second="H"):
    return DUMP.format(units=units, element=element, first=first, second=second)


def test_lammps_dump(here):
    """Atoms by id, forces as labels, and no energy, where ASE's reader gives 0."""
    text = dump().removeprefix("ITEM: UNITS\nmetal\n")
    (here / "run.lammpstrj").write_text(text + text.replace("\n10\n", "\n20\n"))
    forces = np.array([[-0.5, -0.25, -0.125], [0.5, 0.25, 0.125]])
    for scale, keys in ((1, {}), (HARTREE / BOHR, {"force_unit": "hartree/bohr"})):
        first, second = samples_of("run.lammpstrj", WATER, **keys)
        assert first.graph.node_types.tolist() == [1, 0] and first.energy.isnan().all()
        np.testing.assert_allclose(second.forces, scale * forces, rtol=CODATA)
        assert first.graph.edge_vectors.norm(dim=1).tolist() == pytest.approx([np.sqrt(0.5)] * 2)
    names = [name for name, _ in readers.read("run.lammpstrj")]
    assert names[1] == "frame 1 of run.lammpstrj (time step 20)"
    (here / "real.dump").write_text(dump("real"))
    (sample,) = samples_of("real.dump", WATER, force_unit="hartree/bohr")  # the file has units
    np.testing.assert_allclose(sample.forces, KCAL_PER_MOL * forces, rtol=1e-6)


def test_types_of_a_dump_are_not_taken_for_elements(here):
    (here / "types.dump").write_text(dump(element="type", first="2", second="1"))
    with pytest.raises(NequIPMDError, match="types.dump: .*id type x y z.*dump_modify ID element"):
        list(readers.read("types.dump"))
    (here / "cut.dump").write_text(dump() + dump().removeprefix("ITEM: UNITS\nmetal\n")[:-60])
    with pytest.raises(NequIPMDError, match="ASE cannot read frame 1 of the data file cut.dump"):
        list(readers.read("cut.dump"))


def test_a_file_of_unknown_kind_is_refused(here):
    (here / "data.bin").write_bytes(b"\0\1\2\3" * 50)
    with pytest.raises(NequIPMDError, match="data.bin"):
        list(readers.read("data.bin"))
    with gzip.open("text.xyz.gz", "wt") as file:
        file.write("not a structure\n")
    with pytest.raises(NequIPMDError, match="ASE cannot read frame 0 of the data file text.xyz.gz"):
        list(readers.read("text.xyz.gz"))


def test_isolated_atoms_are_converted(here):
    atom = Atoms("Ar", [[0, 0, 0]], info={"config_type": "IsolatedAtom", "E": -2.0})
    frames = argon(3)
    for atoms in frames:
        atoms.info["E"] = atoms.calc.results["energy"] / HARTREE
    ase.io.write("data.extxyz", [*frames, atom])
    config = DataConfig(train=["data.extxyz"], validation_split=1, energy_key="E", energy_unit="hartree")
    ((_, isolated),) = AtomsData(config, ARGON).isolated_atoms
    assert isolated.get_potential_energy() == pytest.approx(-2 * HARTREE, rel=CODATA)


def test_units_name_their_factors():
    units = Units("hartree", "bohr", stress="GPa", stress_sign="compression")
    assert units.to_ev_per_angstrom == pytest.approx(HARTREE / BOHR, rel=CODATA)
    assert units.to_ase_stress == pytest.approx(-GPA, rel=CODATA) and not units.are_ase and Units().are_ase
