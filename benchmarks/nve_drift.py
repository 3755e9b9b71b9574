"""Energy drift of liquid water in LAMMPS, NVE, with the example's potential or another one.

    python benchmarks/nve_drift.py --precision fp32 --picoseconds 10 --output benchmarks/results/nve_fp32.json
    python benchmarks/nve_drift.py --device cuda --repeat 2 --precision fp32 tf32 fp64 --jobs 3 --picoseconds 50 \\
        --model benchmarks/nve_water/water.nqmd --output nve.json --plot nve.png

Starts from examples/lammps/water/water.data, 192 atoms, repeated if asked for; 0.5 fs steps. Before the clock starts, 1 ps with a
thermostat brings it to 300 K. The drift is the slope of a straight line through the total energy. Needs
nequip-md[lammps] and a built plugin. The result of several precisions is a list.

A potential may be wrong for configurations that it was not trained on. Then atoms may collapse onto each other, in any precision and on
any device, which ends the trajectory. Only the part before that is used (``until_ps``), and the reason is recorded (``ended``). The
example's potential, trained on frames of 192 atoms for half an hour, lasts about 10 ps with 1,536 atoms; nve_water/water.nqmd was made
for this benchmark.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import date, timedelta
from pathlib import Path

import numpy as np

from nequip_md.bench.lammps_run import failure, run_lammps
from nequip_md.bench.measure import machine
from nequip_md.bench.report import check_files
from nequip_md.cli import exit_status
from nequip_md.errors import NequIPMDError
from nequip_md.export import export_checkpoint

ROOT = Path(__file__).resolve().parents[1]
WATER = ROOT / "examples" / "lammps" / "water"
ATOMS = 192
PICOSECONDS_PER_STEP = 0.0005
EQUILIBRATION = 2000
"""Steps with a thermostat before the measurement."""
BROKEN = 1.0
"""Change of the energy per atom, meV, beyond which a trajectory has broken down; fluctuations are much smaller."""

INPUT = """
units metal
atom_style atomic
read_data {data}
replicate {repeat} {repeat} {repeat}
mass 1 15.999
mass 2 1.008
pair_style nequip
pair_coeff * * {artifact} O H
neighbor 1.0 bin
timestep 0.0005
velocity all create 300.0 8841 dist gaussian
fix nve all nve
fix thermostat all langevin 300.0 300.0 0.1 8841
run {equilibration}
unfix thermostat
velocity all zero linear
reset_timestep 0
thermo 20
thermo_style custom step etotal temp
thermo_modify format float %.10g
log nve.log
timer timeout {limit}
run {steps}
"""


def conserved_rows(energy: np.ndarray) -> int:
    """Number of energies (meV/atom) before a breakdown."""
    # "not less or equal" and not "greater", which is false for NaN
    broken = ~(np.abs(energy - energy[:1]) <= BROKEN)
    return int(broken.argmax()) if broken.any() else len(energy)


def trajectory(precision: str, options: argparse.Namespace) -> tuple[np.ndarray, float, str | None]:
    """Run LAMMPS: returns step, total energy (eV) and temperature (K) every 20 steps, [rows, 3]; LAMMPS' total time, s; and how it ended.

    Rows after a breakdown are left out.

    Raises:
        NequIPMDError: the artifact cannot be made, or LAMMPS failed before there was anything to fit.
    """
    steps = round(options.picoseconds / PICOSECONDS_PER_STEP)
    limit = str(timedelta(seconds=options.seconds)) if options.seconds else "off"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export_checkpoint(options.model, folder / "water.pt2", device=options.device, precision=precision, report=print)
        script = INPUT.format(
            data=WATER / "water.data",
            artifact="water.pt2",
            equilibration=EQUILIBRATION,
            limit=limit,
            steps=steps,
            repeat=options.repeat,
        )
        start = time.perf_counter()
        done = run_lammps(script, folder, ranks=options.ranks, threads=1)
        seconds = time.perf_counter() - start
        log = folder / "nve.log"
        lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    atoms = ATOMS * options.repeat**3
    table = np.array([[float(w) for w in words] for words in lines if len(words) == 3 and words[0].isdigit()]).reshape(
        -1, 3
    )
    failed = failure(done, atoms) if done.returncode else None
    count = conserved_rows(table[:, 1] / atoms * 1000)
    if count < 3:
        raise failed or NequIPMDError(
            f"{precision}: the energy is not conserved from the first steps on; is the potential for water?"
        )
    if count < len(table):
        when = table[count, 0] * PICOSECONDS_PER_STEP
        return table[:count], seconds, f"after {when} ps the energy had changed by more than {BROKEN} meV/atom"
    if not failed and table[-1, 0] < steps - 20:
        return table, seconds, f"--seconds {options.seconds} ended it"
    return table, seconds, str(failed) if failed else None


def summary(precision: str, table: np.ndarray, seconds: float, ended: str | None, options: argparse.Namespace) -> dict:
    atoms = ATOMS * options.repeat**3
    time_ps, energy = table[:, 0] * PICOSECONDS_PER_STEP, table[:, 1] / atoms * 1000
    slope, offset = np.polyfit(time_ps, energy, 1)
    facts = machine(options.device)
    return {
        "work": f"NVE, {atoms} atoms of water, {options.picoseconds} ps of 0.5 fs steps, {precision}",
        "until_ps": time_ps[-1],
        "ended": ended,
        "drift_meV_per_atom_per_ps": slope,
        "end_minus_start_meV_per_atom": energy[-10:].mean() - energy[:10].mean(),
        "rms_fluctuation_meV_per_atom": float(np.std(energy - slope * time_ps - offset)),
        "mean_temperature_K": table[:, 2].mean(),
        "seconds": seconds,
        "ranks": options.ranks,
        "machine": facts["gpu"] or facts["cpu"],
        "torch": facts["torch"].split("+")[0],
        "date": date.today().isoformat(),
        "command": "python " + " ".join(sys.argv),
    }


def plot(path: Path, tables: dict[str, np.ndarray], results: list[dict], atoms: int) -> None:
    """Plot the energy per atom, relative to its first value, over time, one line for each precision."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for (precision, table), result in zip(tables.items(), results):
        energy = (table[:, 1] - table[0, 1]) / atoms * 1000
        label = f"{precision}: {result['drift_meV_per_atom_per_ps']:+.1e} meV/atom/ps"
        axes.plot(table[:, 0] * PICOSECONDS_PER_STEP, energy, linewidth=0.8, label=label)
    axes.set(xlabel="time, ps", ylabel="total energy - start, meV/atom")
    axes.set_title(f"NVE, {atoms:,} atoms of water, {results[0]['machine']}", fontsize="medium")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=("fp32", "fp64", "tf32"), nargs="+", default=["fp32"])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--model", type=Path, default=WATER / "water.nqmd", help="checkpoint, types H and O (default: the example's)"
    )
    parser.add_argument(
        "--repeat", type=int, default=1, help="n: n^3 times the example's 192 atoms (default 1; 2: 1,536 atoms)"
    )
    parser.add_argument("--picoseconds", type=float, default=10.0)
    parser.add_argument("--seconds", type=int, help="end a trajectory that takes longer; what there is then is used")
    parser.add_argument("--ranks", type=int, help="default: 2 on the CPU, 1 on CUDA")
    parser.add_argument("--jobs", type=int, default=1, help="precisions at the same time (default 1)")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--plot", type=Path, help="picture of the energy over time")
    options = parser.parse_args()
    options.ranks = options.ranks or (1 if options.device == "cuda" else 2)

    def program() -> None:
        if options.repeat < 1 or options.jobs < 1 or options.picoseconds < 0.02:
            raise NequIPMDError(
                "--repeat and --jobs must be 1 or more, --picoseconds 0.02 or more: there is nothing to fit otherwise"
            )
        if options.output:
            options.output.parent.mkdir(parents=True, exist_ok=True)
        check_files(options.output, options.plot)
        tables, results = {}, []
        with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
            running = {
                precision: pool.submit(trajectory, precision, options) for precision in dict.fromkeys(options.precision)
            }
            for precision, future in running.items():
                tables[precision], seconds, ended = future.result()
                results.append(summary(precision, tables[precision], seconds, ended, options))
                print(json.dumps(results[-1], indent=2), flush=True)
                if options.output:
                    options.output.write_text(json.dumps(results if len(results) > 1 else results[0], indent=2) + "\n")
                if options.plot:
                    plot(options.plot, tables, results, ATOMS * options.repeat**3)

    sys.exit(exit_status(program))


if __name__ == "__main__":
    main()
