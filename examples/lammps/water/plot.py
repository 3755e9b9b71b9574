"""Draw what in.water wrote: the O-O radial distribution function, temperature and conserved energy over time.

Ends with status 1 if the water is not a sane liquid: first g_OO peak near 2.8 angstrom, temperature near 300 K.
"""

import sys
from contextlib import suppress
from itertools import takewhile
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OUT = Path(__file__).parent / "out"
SIZES = (192, 1536)


def thermo(path):
    """Columns of a LAMMPS log's run, by name."""
    lines = path.read_text().splitlines()
    start = next(k for k, line in enumerate(lines) if line.split()[:2] == ["Step", "Time"])
    names = lines[start].split()
    rows = []
    for line in takewhile(lambda line: not line.startswith("Loop time"), lines[start + 1 :]):
        with suppress(ValueError):  # warnings stand between the rows
            rows.append([float(word) for word in line.split()])
    return dict(zip(names, np.array(rows).T))


def rdf(path):
    """Distances and g(r) of the last block that fix ave/time wrote."""
    lines = [line.split() for line in path.read_text().splitlines() if not line.startswith("#")]
    bins = int(lines[0][1])
    table = np.array(lines[1 : 1 + bins], dtype=float)
    return table[:, 1], table[:, 2]


def main():
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    failures = []
    for size, colour in zip(SIZES, ("C0", "C3")):
        run = thermo(OUT / f"log.{size}")
        r, g = rdf(OUT / f"rdf_{size}.dat")
        time = run["Time"] - run["Time"][0]
        drift = (run["Econserve"] - run["Econserve"][0]) / size * 1000
        left.plot(r, g, colour, label=f"{size} atoms")
        middle.plot(time, run["Temp"], colour, lw=0.8)
        right.plot(time, drift, colour, lw=0.8)
        peak, height, temperature = r[g.argmax()], g.max(), run["Temp"][len(time) // 4 :].mean()
        print(
            f"{size} atoms, {time[-1]:.2f} ps: g_OO peak {height:.2f} at {peak:.2f} angstrom, {temperature:.0f} K, "
            f"conserved energy moved by {drift[-1]:+.2f} meV/atom"
        )
        if not 2.6 < peak < 3.0 or not 2.0 < height < 4.5:
            failures.append(f"{size} atoms: g_OO has its peak of {height:.2f} at {peak:.2f} angstrom, not near 2.8")
        if not 260 < temperature < 340:
            failures.append(f"{size} atoms: mean temperature {temperature:.0f} K, not near 300 K")
    left.set(xlabel="r (Å)", ylabel="g$_{OO}$(r)", xlim=(2, 6))
    left.axhline(1, color="0.7", lw=0.8)
    left.legend(frameon=False)
    middle.set(xlabel="time (ps)", ylabel="temperature (K)")
    right.set(xlabel="time (ps)", ylabel="conserved energy − start (meV/atom)")
    figure.savefig(OUT / "water.png", dpi=120)
    print(f"picture: {OUT / 'water.png'}")
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
