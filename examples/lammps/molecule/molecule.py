"""The Python half of run.sh writes LAMMPS' input from the first frame of a file, and draws the run beside the file's frames.

Ends with status 1 if the run is not a sane one: a bond broken, atoms bound that were not, a wrong temperature.
"""

import sys
from contextlib import suppress
from itertools import takewhile
from pathlib import Path

import ase.io
import matplotlib
import numpy as np
from ase.data import atomic_masses, atomic_numbers, covalent_radii

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OUT = Path(__file__).parent / "out"
BOUND = 1.3
"""Atoms are bound that are nearer than this times the sum of their covalent radii; LONGEST is where a bond counts as broken."""
LONGEST = 1.6


def prepare(frames):
    atoms = ase.io.read(frames, 0)
    atoms.pbc = False
    atoms.center(vacuum=10.0)
    elements = sorted(set(atoms.symbols))
    ase.io.write(
        OUT / "molecule.data", atoms, format="lammps-data", specorder=elements, atom_style="atomic", masses=False
    )
    lines = [f"mass {k} {atomic_masses[atomic_numbers[e]]:.4f}" for k, e in enumerate(elements, start=1)]
    lines += ["pair_style nequip", f"pair_coeff * * out/molecule.pt2 {' '.join(elements)}"]
    (OUT / "molecule.in").write_text("\n".join(lines) + "\n")
    (OUT / "elements.in").write_text(f"dump_modify frames sort id element {' '.join(elements)}\n")


def thermo(path):
    """Columns of a LAMMPS log's run, by name."""
    lines = path.read_text().splitlines()
    start = next(k for k, line in enumerate(lines) if line.split()[:2] == ["Step", "Time"])
    rows = []
    for line in takewhile(lambda line: not line.startswith("Loop time"), lines[start + 1 :]):
        with suppress(ValueError):  # warnings stand between the rows
            rows.append([float(word) for word in line.split()])
    return dict(zip(lines[start].split(), np.array(rows).T))


def distances(frames):
    """Distances of all pairs of atoms, angstrom [frames, pairs]."""
    first, second = np.triu_indices(len(frames[0]), 1)
    positions = np.array([atoms.positions for atoms in frames])
    return np.linalg.norm(positions[:, first] - positions[:, second], axis=2)


def draw(frames, temperature):
    reference, run = ase.io.read(frames, ":"), thermo(OUT / "log.molecule")
    found = ase.io.read(OUT / "molecule.xyz", ":", format="xyz")
    radii = covalent_radii[reference[0].numbers]
    first, second = np.triu_indices(len(radii), 1)
    sums = radii[first] + radii[second]
    expected, got = distances(reference), distances(found)
    bonds = expected[0] < BOUND * sums
    failures = []
    longest, closest = (got / sums)[:, bonds].max(), (got / sums)[:, ~bonds].min()
    mean = run["Temp"][len(run["Temp"]) // 10 :].mean()
    print(
        f"{run['Time'][-1]:.1f} ps: {mean:.0f} K, potential energy {run['PotEng'].min():.2f} to {run['PotEng'].max():.2f} eV;"
        f" longest bond {longest:.2f}, closest other pair {closest:.2f} times the sum of radii"
        f" (in the data {(expected / sums)[:, bonds].max():.2f}, {(expected / sums)[:, ~bonds].min():.2f})"
    )
    if longest > LONGEST:
        failures.append(f"a bond was stretched to {longest:.2f} times the sum of its radii")
    if closest < BOUND * 0.9:
        failures.append(f"atoms that are not bound came as near as {closest:.2f} times the sum of their radii")
    if not 0.85 < mean / temperature < 1.15:
        failures.append(f"mean temperature {mean:.0f} K, not near {temperature:.0f} K")

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    left.plot(run["Time"], run["PotEng"] - run["PotEng"].min(), lw=0.7)
    left.set(xlabel="time (ps)", ylabel="potential energy − its lowest (eV)")
    middle.plot(run["Time"], run["Temp"], lw=0.7)
    middle.set(xlabel="time (ps)", ylabel="temperature (K)")
    bins = np.linspace(0.8, 6.0, 261)
    for values, label, colour in (
        (expected, f"{len(reference)} frames of the data", "0.5"),
        (got[len(got) // 10 :], "dynamics", "C3"),
    ):
        right.hist(values.ravel(), bins, density=True, histtype="step", color=colour, label=label)
    right.set(xlabel="distance of two atoms (Å)", ylabel="density")
    right.legend(frameon=False)
    figure.savefig(OUT / "molecule.png", dpi=120)
    print(f"picture: {OUT / 'molecule.png'}")
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return bool(failures)


if __name__ == "__main__":
    if sys.argv[1] == "prepare":
        prepare(sys.argv[2])
    else:
        sys.exit(draw(sys.argv[2], float(sys.argv[3])))
