"""i-PI with an artifact: its own program, in its process and over sockets, beside ASE and LAMMPS."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import time
from importlib.util import find_spec
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import units
from ase.md.verlet import VelocityVerlet
from ipi.pes import load_pes
from ipi.utils.units import unit_to_internal, unit_to_user

from nequip_md import NequIPMDCalculator, NequIPMDError
from support.structures import water_box

SCRIPTS = Path(sysconfig.get_path("scripts"))
DRIVER = Path(find_spec("nequip_md.calculators.ipi_driver").origin)
STEPS, TIMESTEP = 4, 0.5  # fs

INPUT = """<simulation verbosity='low'>
  <output prefix='run'>
    <properties stride='1' filename='out'> [ step, potential{{electronvolt}}, conserved{{electronvolt}}, pressure_md ] </properties>
    <trajectory stride='1' filename='positions' format='ase'> positions </trajectory>
  </output>
  <total_steps> {steps} </total_steps>
  <prng> <seed> 4 </seed> </prng>
  {forcefield}
  <system>
    <initialize nbeads='{beads}'> <file mode='ase'> start.xyz </file> {velocities} </initialize>
    <forces> <force forcefield='model'/> </forces>
    <motion mode='dynamics'> <dynamics mode='nve'> <timestep units='femtosecond'> {timestep} </timestep> </dynamics> </motion>
    <ensemble> <temperature units='kelvin'> 300 </temperature> </ensemble>
  </system>
</simulation>
"""
IN_PROCESS = """<ffdirect name='model'>
    <pes> custom </pes> <pes_path> {driver} </pes_path> <batch_size> {batch} </batch_size>
    <parameters> {{artifact: {artifact}, template: start.xyz}} </parameters>
  </ffdirect>"""
SOCKET = "<ffsocket name='model' mode='unix'> <address> {address} </address> <latency> 1e-4 </latency> </ffsocket>"
THERMAL = "<velocities mode='thermal' units='kelvin'> 300 </velocities>"


@pytest.fixture(scope="module")
def artifact(small_models) -> Path:
    return small_models("nequip_fp64")[1]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def write_input(folder: Path, forcefield: str, *, beads: int = 1, velocities: str = "") -> None:
    folder.mkdir(exist_ok=True)
    ase.io.write(folder / "start.xyz", water_box(2))
    content = INPUT.format(steps=STEPS, timestep=TIMESTEP, forcefield=forcefield, beads=beads, velocities=velocities)
    (folder / "input.xml").write_text(content)


def run_ipi(folder: Path, client: list | None = None, address: str = "") -> np.ndarray:
    """Run i-PI and a program that computes forces for it, if there is one; the rows of its output."""
    log, programs = folder / "log", []
    socket = Path(f"/tmp/ipi_{address}")  # i-PI's name of it
    with open(log, "w") as output:

        def start(command: list) -> None:
            options = {"cwd": folder, "env": environment(), "stdout": output, "stderr": subprocess.STDOUT}
            programs.append(subprocess.Popen([*map(str, command)], **options))

        try:
            start([SCRIPTS / "i-pi", "input.xml"])
            if client:
                until = time.monotonic() + 60
                while not socket.exists():
                    assert time.monotonic() < until and programs[0].poll() is None, log.read_text()
                    time.sleep(0.05)
                start(client)
            # LAMMPS ends with an error when i-PI tells it to end
            assert programs[0].wait(timeout=120) == 0, log.read_text()
        finally:
            for program in programs:
                program.kill()
            if client:
                socket.unlink(missing_ok=True)
    return np.loadtxt(folder / "run.out", ndmin=2)


def in_process(artifact: Path, batch: int = 1) -> str:
    return IN_PROCESS.format(driver=DRIVER, artifact=artifact, batch=batch)


@pytest.fixture(scope="module")
def driver(artifact, tmp_path_factory):
    path = tmp_path_factory.mktemp("driver") / "start.xyz"
    ase.io.write(path, water_box(2))
    return load_pes("custom", str(DRIVER))(artifact=str(artifact), template=str(path))


def moved(count: int) -> list[ase.Atoms]:
    """Beads: atoms displaced at random, in sheared cells."""
    rng, beads = np.random.default_rng(3), []
    for _ in range(count):
        atoms = water_box(2)
        atoms.set_cell(atoms.cell @ (np.eye(3) + np.tril(rng.uniform(-0.03, 0.03, (3, 3)))), scale_atoms=True)
        atoms.positions += rng.uniform(-0.1, 0.1, atoms.positions.shape)
        beads.append(atoms)
    return beads


def test_units_and_signs(driver, artifact):
    """A list of structures and one of them give what the ASE calculator gives; the virial is that of i-PI's ASE driver."""
    beads = moved(3)
    cells = [unit_to_internal("length", "angstrom", atoms.cell.array.T) for atoms in beads]
    positions = [unit_to_internal("length", "angstrom", atoms.positions) for atoms in beads]
    together = driver(cells, positions)
    assert len(together) == 3
    for atoms, result, cell, given in zip(beads, together, cells, positions):
        atoms.calc = NequIPMDCalculator(artifact)
        alone = driver(cell, given)
        virial = -atoms.get_volume() * atoms.get_stress(voigt=False)
        expected = (atoms.get_potential_energy(), atoms.get_forces(), virial.T)
        assert np.abs(expected[1]).max() > 0.05 and np.abs(virial).max() > 0.05
        for name, unit, value, one, of_list in zip(
            ("energy", "force", "virial"), ("electronvolt", "ev/ang", "electronvolt"), expected, alone, result
        ):
            quantity = "energy" if name == "virial" else name
            for found in (one, of_list):
                np.testing.assert_allclose(
                    unit_to_user(quantity, unit, found), value, rtol=0, atol=1e-10 * np.abs(value).max(), err_msg=name
                )


def test_dynamics_of_ase(artifact, tmp_path):
    """NVE from rest: i-PI's potential energies, conserved quantity and positions are those of ASE's velocity Verlet."""
    write_input(tmp_path, in_process(artifact))
    rows = run_ipi(tmp_path)
    atoms = water_box(2)
    atoms.calc = NequIPMDCalculator(artifact)
    md, energies = VelocityVerlet(atoms, TIMESTEP * units.fs), []
    for _ in range(STEPS + 1):
        energies.append(atoms.get_potential_energy())
        last = atoms.positions.copy()
        md.run(1)
    # the two have slightly different values of their units
    np.testing.assert_allclose(rows[:, 1], energies, rtol=1e-7)
    assert np.ptp(rows[:, 1]) > 1e3 * np.ptp(rows[:, 2]) > 0
    (trajectory,) = tmp_path.glob("run.positions*")
    np.testing.assert_allclose(ase.io.read(trajectory, "-1").positions, last, atol=1e-6)


@pytest.mark.parametrize("beads", [4])
def test_beads_together(beads, artifact, tmp_path):
    """Path integrals: all beads in one evaluation and one after the other are the same run."""
    runs = []
    for batch in (1, beads):
        folder = tmp_path / str(batch)
        write_input(folder, in_process(artifact, batch), beads=beads, velocities=THERMAL)
        runs.append(run_ipi(folder))
    np.testing.assert_allclose(runs[0][:, 1:], runs[1][:, 1:], rtol=1e-10)
    assert np.ptp(runs[0][:, 1]) > 0.01


def test_over_sockets(artifact, tmp_path):
    """i-PI's own driver program with this potential, and LAMMPS with fix ipi, beside the run in i-PI's process."""
    write_input(tmp_path / "direct", in_process(artifact))
    direct = run_ipi(tmp_path / "direct")

    address = f"nequip_md_{os.getpid()}"
    write_input(tmp_path / "driver", SOCKET.format(address=address))
    driver = [SCRIPTS / "i-pi-py_driver", "-u", "-a", address, "-m", "custom", "-P", DRIVER]
    over_socket = run_ipi(tmp_path / "driver", [*driver, "-o", f"artifact={artifact},template=start.xyz"], address)
    np.testing.assert_allclose(over_socket[:, 1:], direct[:, 1:], rtol=1e-10)

    address += "_lammps"
    write_input(tmp_path / "lammps", SOCKET.format(address=address))
    from nequip_md.bench.lammps_run import write_data

    write_data(tmp_path / "lammps" / "water.data", water_box(2), ["H", "O"])
    (tmp_path / "lammps" / "in.water").write_text(
        f"units metal\nread_data water.data\npair_style nequip\npair_coeff * * {artifact} H O\n"
        f"neighbor 1.0 bin\nneigh_modify every 1 delay 0 check yes\nfix i all ipi {address} 1 unix\nrun 100\n"
    )
    lammps = run_ipi(tmp_path / "lammps", [SCRIPTS / "lmp", "-in", "in.water", "-log", "none"], address)
    np.testing.assert_allclose(lammps[:, 1], direct[:, 1], rtol=1e-6)


BAD_ARGUMENTS = {
    "no template": ({"template": "nowhere.xyz"}, "nowhere.xyz cannot be read"),
    "no artifact": ({"artifact": "nowhere.pt2"}, "nowhere.pt2"),
    "an element that the model lacks": ({"template": "argon.xyz"}, "Ar"),
    "an unknown parameter": ({"skinn": 0.5}, "'skinn', which is not known; known are artifact"),
    "a negative skin": ({"skin": -1.0}, "skin"),
    "a device that is not there": ({"device": "cuda"}, "cuda"),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_arguments(case, artifact, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ase.io.write("start.xyz", water_box(2))
    ase.io.write("argon.xyz", ase.Atoms("Ar"))
    arguments, words = BAD_ARGUMENTS[case]
    with pytest.raises(NequIPMDError, match=words):
        load_pes("custom", str(DRIVER))(**{"artifact": str(artifact), "template": "start.xyz", **arguments})


def test_another_number_of_atoms(driver):
    with pytest.raises(NequIPMDError, match="i-PI has 5 atoms, but the template has"):
        driver(np.eye(3) * 20, np.zeros((5, 3)))


def test_path_of_the_file():
    done = subprocess.run(
        [sys.executable, "-m", "nequip_md.calculators.ipi_driver"], capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()).samefile(DRIVER)
