"""Bonds, whenever and wherever they come from: bonded atoms count as full neighbours, or the run stops."""

from __future__ import annotations

import numpy as np
import pytest

from support.lammps_run import run_lammps
from support.lammps_systems import nequip

BOX = """
units metal
atom_style {style}
{before}
region box block 0 20 0 20 0 20
create_box 2 box bond/types 1 extra/bond/per/atom 12 extra/special/per/atom 60
mass 1 39.948
mass 2 20.18
bond_style zero
bond_coeff * 3.6
"""
DIMER = """bonded atoms

2 atoms
1 bonds

Coords

1 0 0 0
2 3.6 0 0

Types

1 1
2 1

Bonds

1 1 1 2

Special Bond Counts

1 1 0 0
2 1 0 0

Special Bonds

1 2
2 1
"""
RECORD = 'fix mv all nve\nthermo_style custom step atoms pe\nrun {steps}\nprint "energy $(pe:%.12f)"\n'
HINT = "special_bonds lj 1 1 1"


def phi(r: float, epsilon: float = 0.0104, sigma: float = 3.4, cutoff: float = 6.0) -> float:
    """Energy of a pair, eV, as lj/cut with shift yes."""
    near, far = (sigma / r) ** 6, (sigma / cutoff) ** 6
    return 4 * epsilon * (near**2 - near - far**2 + far)


def start(tmp_path, style: str = "bond", before: str = "molecule m dimer.mol") -> str:
    (tmp_path / "dimer.mol").write_text(DIMER)
    return BOX.format(style=style, before=before)


def energy(outcome) -> float:
    assert outcome.status == 0, outcome.text
    return float(outcome.text.split("energy ")[-1].split()[0])


def assert_refused(outcome):
    assert outcome.status != 0
    for word in ("ERROR: Pair style nequip needs bonded atoms as full neighbors", "of atom ID ", HINT):
        assert word in outcome.text, outcome.text


# name: (atom style, input lines that make a bonded pair of atoms 3.6 angstrom apart before or during 4 steps)
SOURCES = {
    "create_bonds": (
        "bond",
        "create_atoms 1 single 5 5 5\ncreate_atoms 1 single 8.6 5 5\ncreate_bonds single/bond 1 1 2\n",
    ),
    "create_atoms mol": ("bond", "create_atoms 0 single 5 5 5 mol m 4711 rotate 0 0 0 1\n"),
    "template": ("template m", "create_atoms 0 single 5 5 5 mol m 4711 rotate 0 0 0 1\n"),
    "fix deposit mol": (
        "molecular",
        "region all block 1 19 1 19 1 19\ngroup new empty\n"
        "fix dep new deposit 1 0 1 4711 mol m region all vx 0 0 vy 0 0 vz 0 0\n",
    ),
    "fix bond/create": (
        "bond",
        "create_atoms 1 single 5 5 5\ncreate_atoms 1 single 8.6 5 5\nfix b all bond/create 2 1 1 3.8 1\n",
    ),
}


@pytest.mark.parametrize("source, neighbors", [*((s, "lammps") for s in SOURCES), ("fix bond/create", "engine")])
def test_sources_of_bonds(source, neighbors, lj_artifact, tmp_path):
    """LAMMPS' default factors of 0 stop the run at the step of the bond; with 1 the pair has its energy."""
    style, lines = SOURCES[source]
    begin = start(tmp_path, style)
    if style.startswith("template"):  # the molecule comes before the atom style
        begin = begin.replace("units metal\n", "units metal\nmolecule m dimer.mol\n")
        begin = begin.replace("molecule m dimer.mol\nregion", "atom_modify map array\nregion")
    script = begin + lines + nequip(lj_artifact, keywords=f"isolated no neighbors {neighbors}")
    # as short as a step can be, so that the distance stays what it was
    script += "neigh_modify every 1 delay 0 check yes\ntimestep 1e-9\n" + RECORD.format(steps=4)
    assert_refused(run_lammps(script, tmp_path, ranks=2, limit=60))
    whole = energy(run_lammps(script.replace("bond_style", "special_bonds lj 1 1 1\nbond_style", 1), tmp_path))
    assert whole == pytest.approx(phi(3.6), abs=1e-9)


CRYSTAL = """
units metal
atom_style bond
lattice fcc 5.2
region box block 0 3 0 3 0 3
create_box 1 box bond/types 1 extra/bond/per/atom 12 extra/special/per/atom 60
create_atoms 1 box
mass 1 40
velocity all create 60 4711 loop geom
special_bonds lj 1 1 1
bond_style zero
bond_coeff * 3.5
{pair}
fix b all bond/create 2 1 1 3.68 1
fix mv all nve
timestep 0.001
thermo 4
thermo_style custom step pe etotal f_b[2]
run 12
"""


def test_bonds_created_in_a_crystal(lj_artifact, tmp_path):
    """The trajectory of lj/cut: the number of bonds and the energies."""
    native = "pair_style lj/cut 6.0\npair_modify shift yes\npair_coeff * * 0.0104 3.4"
    ours = nequip(lj_artifact, "Ar", "isolated no")
    outcome = run_lammps(CRYSTAL.format(pair=native) + "clear\n" + CRYSTAL.format(pair=ours), tmp_path)
    assert outcome.status == 0, outcome.text
    rows = [line.split() for line in outcome.text.splitlines()]
    rows = [row for row in rows if len(row) == 4 and row[0] in ("0", "4", "8", "12")]
    table = np.array(rows, dtype=float).reshape(2, 4, 4)
    np.testing.assert_allclose(table[1], table[0], rtol=1e-7)
    np.testing.assert_allclose(table[1, [0, 3], 1], [-5.9937, -5.9819], atol=1e-4)
    assert table[1, 3, 3] > 100, "there are no bonds"


MIXED = """
create_atoms 1 single 5 5 5
create_atoms 1 single 8.6 5 5
create_atoms 2 single 5 9 5
create_atoms 2 single 8.6 9 5
{bonds}
special_bonds lj/coul {factors}
pair_style hybrid {pair} lj/cut 6.0
pair_modify pair lj/cut shift yes
{coefficients}
pair_coeff 1 2 lj/cut 0.008 3.2
pair_coeff 2 2 lj/cut 0.006 3.0
"""
BONDS = "create_bonds single/bond 1 1 2\ncreate_bonds single/bond 1 3 4\n"
CROSSING = "create_bonds single/bond 1 1 3\n"
SPECIAL = "pair_modify pair nequip special lj/coul 1 1 1\n"
WITHOUT_1_2 = [(0, 2), (0, 3), (1, 2), (1, 3)]  # pairs of atoms of different types

# name: (bonds, factors, lines after the pair style, pairs of the lj/cut part that count; None: refused)
HYBRID = {
    "no bonds": ("", "0 0 0", "", [*WITHOUT_1_2, (2, 3)]),
    "bonds on both sides, factors overridden": (BONDS, "1e-50 1e-50 1e-50", SPECIAL, WITHOUT_1_2),
    "bonds on both sides, factors for all": (BONDS, "1e-50 1e-50 1e-50", "", None),
    "bonds on both sides, no neighbours": (BONDS, "0 0 0", "", None),
    "bonds of the model removed": (
        BONDS,
        "0 0 0",
        "group ml type 1\ndelete_bonds ml multi remove special\n",
        WITHOUT_1_2,
    ),
    "bonds elsewhere": ("create_bonds single/bond 1 3 4\n", "0 0.5 0.5", "", WITHOUT_1_2),
    "a bond between the parts": (CROSSING, "0 0 0", "", [(0, 3), (1, 2), (1, 3), (2, 3)]),
    "factors of other kinds of partners": (BONDS, "1 0.5 0.5", "", [*WITHOUT_1_2, (2, 3)]),
}


@pytest.mark.parametrize("case", HYBRID)
def test_hybrid(case, lj_artifact, tmp_path):
    """A model beside lj/cut: what applies is the factor for this style, and bonds between atoms of the model."""
    bonds, factors, after, pairs = HYBRID[case]
    script = start(tmp_path) + MIXED.format(
        bonds=bonds,
        factors=factors,
        pair="nequip isolated no",
        coefficients=f"pair_coeff * * nequip {lj_artifact} Ar NULL",
    )
    outcome = run_lammps(script + after + RECORD.format(steps=0), tmp_path, ranks=2, limit=60)
    if pairs is None:
        return assert_refused(outcome)
    x = np.array([[5, 5, 5], [8.6, 5, 5], [5, 9, 5], [8.6, 9, 5]])
    expected = phi(3.6)
    for i, j in pairs:
        parameters = (0.006, 3.0) if (i, j) == (2, 3) else (0.008, 3.2)
        expected += phi(np.linalg.norm(x[i] - x[j]), *parameters)
    assert energy(outcome) == pytest.approx(expected, abs=1e-10)
