"""Names of types against their masses: a warning where pair_coeff names them in another order than the data file."""

from __future__ import annotations

import pytest

from support.lammps_run import run_lammps

BOX = """
units metal
atom_style {style}
region box block 0 20 0 20 0 20
create_box {count} box
create_atoms 1 single 5 5 5
{masses}
pair_style nequip
pair_coeff * * {path} {names}
run 0 post no
run 0 post no
"""
SPHERES = "\n".join(f"create_atoms {t} single {4 * t} 9 9" for t in (1, 2)) + (
    "\nset type 1 mass 20.18\nset type 2 mass 39.948"
)

# name: (masses, names, types that are warned of, words)
CASES = {
    "right order": ("mass 1 39.948\nmass 2 20.18", "Ar Ne", [], ""),
    "reversed order": ("mass 1 20.18\nmass 2 39.948", "Ar Ne", [1, 2], "it is that of Ne; check the order"),
    "rounded": ("mass 1 40\nmass 2 20", "Ar Ne", [], ""),
    "isotope": ("mass 1 36.97\nmass 2 22", "Ar Ne", [], ""),
    "all the same": ("mass * 40", "Ar Ne", [2], "it is that of Ar"),
    "far from its element": ("mass 1 1.0\nmass 2 20.18", "Ar Ne", [1], "is 1 where that of the element is 39.948;"),
    "two types of one name": ("mass 1 20.18\nmass 2 39.948", "Ar Ar", [1], "it is that of Ne"),
    "no mass is near": ("mass 1 30\nmass 2 20.18", "Ar Ne", [], ""),
    "mass of each atom": (SPHERES, "Ar Ne", [1, 2], "it is that of Ne"),
    "reversed, names of no elements": ("mass 1 20.18\nmass 2 39.948", "solvent salt", [], ""),
    "deuterium": ("mass 1 15.999\nmass 2 2.014", "O H", [], ""),
    "water reversed": ("mass 1 15.999\nmass 2 1.008", "H O", [1, 2], "calls atom type 1 H, but its mass is 15.999"),
    "repartitioned masses": ("mass 1 9.95\nmass 2 4.032", "O H", [], ""),
}


@pytest.mark.parametrize("case", CASES)
def test_masses(case, doctored, lj_artifact, tmp_path):
    masses, names, types, words = CASES[case]
    path = lj_artifact if "Ar" in names else doctored(type_names=" ".join(sorted(names.split())))
    style = "sphere" if masses == SPHERES else "atomic"
    outcome = run_lammps(BOX.format(style=style, count=2, masses=masses, path=path, names=names), tmp_path)
    assert outcome.status == 0, outcome.text
    warnings = [line for line in outcome.text.splitlines() if "Pair_coeff calls atom type" in line]
    assert [int(line.split("atom type ")[1].split()[0]) for line in warnings] == types, outcome.text
    assert words in "\n".join(warnings)
