"""Run the real LAMMPS under the real mpiexec, in a process of its own and with a time limit."""

from __future__ import annotations

import os
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SCRIPTS = Path(sysconfig.get_path("scripts"))

GLOBAL = ("pe", "press", "pxx", "pyy", "pzz", "pxy", "pxz", "pyz")
PER_ATOM = {
    "forces": ["fx", "fy", "fz"],
    "energies": ["c_energy"],
    "virials": [f"c_virial[{k}]" for k in range(1, 7)],
    "centroid": [f"c_centroid[{k}]" for k in range(1, 10)],
}

MEASURE = f"""
compute energy all pe/atom pair
compute virial all stress/atom NULL pair
compute centroid all centroid/stress/atom NULL pair
compute total all reduce sum c_energy c_virial[*] c_centroid[*]
thermo_style custom step {" ".join(GLOBAL)} c_total[1]
"""
RECORD = f"""
write_dump all custom NAME.dump id type x y z {" ".join(sum(PER_ATOM.values(), []))} modify sort id format float %.17g
print "{" ".join(f"$({key}:%.17g)" for key in GLOBAL)}" file NAME.thermo
"""


@dataclass
class Outcome:
    """Result of a finished run: exit status, all output, and the folder in which it ran."""

    status: int
    text: str
    folder: Path


def run_program(
    command: list, folder: Path, *, ranks: int = 1, limit: float = 120, threads: int = 1, env: dict | None = None
) -> Outcome:
    """Run ``command`` on some ranks. A run that takes more than ``limit`` seconds fails the test, since a rank hangs."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), **(env or {})}
    process = subprocess.run(
        [SCRIPTS / "mpiexec", "-n", str(ranks), *map(str, command)],
        cwd=folder,
        env=environment,
        timeout=limit,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    return Outcome(process.returncode, process.stdout, folder)


def run_lammps(script: str, folder: Path, *, ranks: int = 1, arguments: tuple = (), **options) -> Outcome:
    """Run a LAMMPS input as users do: ``mpiexec -n RANKS lmp -in FILE``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "in.test").write_text(script)
    return run_program([SCRIPTS / "lmp", "-in", "in.test", *arguments], folder, ranks=ranks, **options)


def measurement(name: str) -> str:
    """Input lines that compute everything that a pair style provides and write it to files called ``name``."""
    return MEASURE + "run 0 post no" + RECORD.replace("NAME", name)


def read_measurement(folder: Path, name: str) -> dict[str, np.ndarray]:
    """Read the files of :func:`measurement`: global values, per-atom arrays sorted by atom ID, ``types`` and ``positions``."""
    lines = (folder / f"{name}.dump").read_text().splitlines()
    start = next(k for k, line in enumerate(lines) if line.startswith("ITEM: ATOMS"))
    columns = lines[start].split()[2:]
    table = np.array([line.split() for line in lines[start + 1 :]], dtype=float).reshape(-1, len(columns))
    result = {key: table[:, [columns.index(c) for c in names]] for key, names in PER_ATOM.items()}
    result["types"] = table[:, columns.index("type")].astype(int)
    result["positions"] = table[:, [columns.index(c) for c in "xyz"]]
    values = np.array((folder / f"{name}.thermo").read_text().split(), dtype=float)
    result["energy"], result["pressure"] = values[:1], values[1:]
    return result
