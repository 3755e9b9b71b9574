"""Systems of two atom types as LAMMPS data files, and two ways to give them Lennard-Jones forces."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class System:
    """Atoms in a box.

    Attributes:
        positions: [n, 3], angstrom.
        types: [n], LAMMPS types from 1.
        lengths, tilts: lx ly lz and xy xz yz, angstrom.
        before: input lines before the box is made.
        after: input lines after that.
    """

    positions: np.ndarray
    types: np.ndarray
    lengths: tuple[float, float, float]
    tilts: tuple[float, float, float] = (0.0, 0.0, 0.0)
    before: str = ""
    after: str = ""

    def start(
        self,
        folder: Path,
        newton: str = "on",
        units: str = "metal",
        num_types: int = 2,
        types: np.ndarray | None = None,
    ) -> str:
        """Input lines that read this system; its data file is written to ``folder``."""
        types = self.types if types is None else types
        path = folder / f"system_{num_types}.data"
        lines = ["test", f"{len(types)} atoms", f"{num_types} atom types"]
        lines += [f"0 {length!r} {axis}lo {axis}hi" for axis, length in zip("xyz", self.lengths)]
        lines += ["{!r} {!r} {!r} xy xz yz".format(*self.tilts)] if any(self.tilts) else []
        lines += ["", "Masses", ""] + [f"{t} 40" for t in range(1, num_types + 1)] + ["", "Atoms # atomic", ""]
        lines += [
            f"{k + 1} {t} " + " ".join(repr(float(c)) for c in x) for k, (t, x) in enumerate(zip(types, self.positions))
        ]
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
        return f"\nunits {units}\nnewton {newton}\n{self.before}\nread_data {path}\n{self.after}\n"


def _fcc(
    spacing: float, cells: tuple[int, int, int], tilts=(0.0, 0.0, 0.0), corner=0.0, lengths=None, **options
) -> System:
    """A sheared and randomly displaced face-centred cubic crystal with about 40 % of type 2."""
    generator = np.random.default_rng(7)
    base = np.array([[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    corners = np.stack(np.meshgrid(*map(np.arange, cells), indexing="ij"), -1).reshape(-1, 1, 3)
    positions = spacing * (corners + base).reshape(-1, 3)
    size = spacing * np.array(cells)
    shear = np.diag(size)
    shear[1, 0], shear[2, 0], shear[2, 1] = tilts
    positions = (positions / size) @ shear + corner + generator.uniform(-0.2, 0.2, positions.shape) + 0.3
    types = 1 + (generator.random(len(positions)) < 0.4).astype(int)
    return System(positions, types, tuple(map(float, lengths or size)), tilts, **options)


def _few(positions, types, lengths=(40.0, 30.0, 30.0), **options) -> System:
    return System(np.array(positions, dtype=float), np.array(types), lengths, **options)


SYSTEMS = {
    "orthogonal": _fcc(5.4, (4, 3, 3)),
    "triclinic": _fcc(5.4, (3, 3, 3), tilts=(2.1, -1.7, 1.3)),
    "tiled": _fcc(5.4, (3, 3, 3), lengths=(24.0, 16.2, 16.2), before="comm_style tiled", after="balance 1.0 rcb"),
    "box smaller than cutoff": _fcc(5.1, (1, 1, 1)),
    "cluster in a corner": _fcc(5.2, (2, 2, 2), lengths=(60.0, 20.0, 20.0), before="boundary f f f\nprocessors * 1 1"),
    "one atom on each side": _few([[18.3, 10, 11], [21.1, 11, 10]], [1, 2], before="boundary f p p\nprocessors * 1 1"),
    "isolated atom": _few([[10, 10, 10]], [2], before="boundary f f f"),
    "out of reach": _few([[1, 10, 10], [30, 10, 10]], [1, 2]),
}

NATIVE = """
pair_style lj/cut 6.0
pair_modify shift yes
pair_coeff 1 1 0.0104 3.4 6.0
pair_coeff 1 2 0.008 3.2 5.5
pair_coeff 2 2 0.006 3.0 5.0
"""


def nequip(path: Path, types: str = "Ar Ne", keywords: str = "") -> str:
    """Input lines for our pair style with the artifact at ``path``."""
    return f'\npair_style nequip {keywords}\npair_coeff * * "{path}" {types}\n'
