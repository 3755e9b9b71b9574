"""Energy drift of liquid water in LAMMPS, NVE, with the example's potential.

    python benchmarks/nve_drift.py --precision fp32 --picoseconds 10 --output benchmarks/results/nve_fp32.json

Starts from examples/lammps/water/water.data at 300 K, 192 atoms, 0.5 fs steps; 0.5 ps before the clock starts are for
equilibration. The drift is the slope of a straight line through the total energy. Needs nequip-md[lammps] and a built plugin.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch

from nequip_md.export.cli import export

ROOT = Path(__file__).resolve().parents[1]
WATER = ROOT / "examples" / "lammps" / "water"
SCRIPTS = Path(sysconfig.get_path("scripts"))

INPUT = """
units metal
atom_style atomic
read_data {data}
mass 1 15.999
mass 2 1.008
pair_style nequip
pair_coeff * * {artifact} O H
neighbor 1.0 bin
timestep 0.0005
velocity all create 300.0 8841 dist gaussian
fix nve all nve
run 1000
reset_timestep 0
thermo 20
thermo_style custom step etotal temp
thermo_modify format float %.10g
log nve.log
run {steps}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=("fp32", "fp64"), default="fp32")
    parser.add_argument("--picoseconds", type=float, default=10.0)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    steps = round(arguments.picoseconds / 0.0005)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export(WATER / "water.nqmd", folder / "water.pt2", device="cpu", precision=arguments.precision)
        (folder / "in.nve").write_text(INPUT.format(data=WATER / "water.data", artifact="water.pt2", steps=steps))
        start = time.perf_counter()
        subprocess.run([SCRIPTS / "mpiexec", "-n", str(arguments.ranks), SCRIPTS / "lmp", "-in", "in.nve", "-screen", "none"], cwd=folder,
                       env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
        seconds = time.perf_counter() - start
        rows = []
        for line in (folder / "nve.log").read_text().splitlines():
            words = line.split()
            if len(words) == 3 and words[0].isdigit():
                rows.append([float(w) for w in words])
    table = np.array(rows)
    time_ps, energy = table[:, 0] * 0.0005, table[:, 1] / 192 * 1000
    slope, offset = np.polyfit(time_ps, energy, 1)
    result = {
        "work": f"NVE, 192 atoms of water, {arguments.picoseconds} ps of 0.5 fs steps, {arguments.precision}",
        "drift_meV_per_atom_per_ps": slope, "end_minus_start_meV_per_atom": energy[-10:].mean() - energy[:10].mean(),
        "rms_fluctuation_meV_per_atom": float(np.std(energy - slope * time_ps - offset)), "mean_temperature_K": table[:, 2].mean(),
        "seconds": seconds, "ranks": arguments.ranks, "torch": torch.__version__.split("+")[0], "date": date.today().isoformat(),
        "command": "python " + " ".join(sys.argv),
    }
    print(json.dumps(result, indent=2))
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
