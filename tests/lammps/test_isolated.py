"""Keyword isolated: energies of isolated atoms are left out of all energies, which Monte Carlo moves require."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import nequip_md
from support.lammps_compare import RELATIVE, assert_same
from support.lammps_run import measurement, read_measurement, run_lammps
from support.lammps_systems import NATIVE, SYSTEMS, nequip

NOTHING = {1: 0.0, 2: 0.0}
SYSTEM = SYSTEMS["triclinic"]


def test_energies_equal_native(lj_artifact, tmp_path):
    """Without the energies of isolated atoms, total and per-atom energies equal those of lj/cut, which has none."""
    runs = {
        "native": SYSTEM.start(tmp_path) + NATIVE,
        "newton_on": SYSTEM.start(tmp_path) + nequip(lj_artifact, keywords="isolated no"),
        "newton_off": SYSTEM.start(tmp_path, "off") + nequip(lj_artifact, keywords="isolated no"),
        "engine": SYSTEM.start(tmp_path) + nequip(lj_artifact, keywords="isolated no neighbors engine"),
        "restart": SYSTEM.start(tmp_path)
        + nequip(lj_artifact, keywords="isolated no")
        + "write_restart file\nclear\nread_restart file\n",
    }
    script = "".join(f"clear\n{lines}{measurement(name)}" for name, lines in runs.items())
    # fix pair takes energies of atoms too
    script += (
        "clear\n"
        + SYSTEM.start(tmp_path)
        + nequip(lj_artifact, keywords="isolated no")
        + "compute e all pe/atom pair\nfix keep all pair 1 nequip energy 1\nrun 0\n"
        'compute both all reduce sum c_e f_keep\nrun 0\nprint "sums $(c_both[1]:%.12f) $(c_both[2]:%.12f)"\n'
    )
    outcome = run_lammps(script, tmp_path, ranks=2)
    assert outcome.status == 0, outcome.text
    assert outcome.text.count("energies of isolated atoms left out") == 6
    reference = read_measurement(tmp_path, "native")
    for name in runs:
        assert_same(read_measurement(tmp_path, name), reference, name, relative=RELATIVE, shifts=NOTHING)
    sums = [float(x) for x in outcome.text.split("sums ")[-1].split()[:2]]
    np.testing.assert_allclose(sums, reference["energy"][0], rtol=1e-10)


@pytest.mark.parametrize("name", ["allegro_fp64", "nequip_fp64"])
def test_real_models(name, small_models, plugin_folder, tmp_path):
    """For both kinds of models, the energies left out are those of the eager model for an atom without edges."""
    checkpoint, artifact = small_models(name)
    script = ""
    for case in ("yes", "no"):
        for system in ("triclinic", "out of reach"):
            start = SYSTEMS[system].start(tmp_path / system[:3])
            script += (
                f"clear\n{start}{nequip(artifact, 'H O', f'isolated {case}')}{measurement(f'{system[:3]}_{case}')}"
            )
    outcome = run_lammps(script, tmp_path)
    assert outcome.status == 0, outcome.text
    model = nequip_md.load_checkpoint(checkpoint)
    none = torch.zeros(2, 0, dtype=torch.int64)
    alone = model(torch.zeros(0, 3, dtype=torch.float64), none, torch.zeros(3, dtype=torch.int64), torch.tensor([0, 1]))
    alone = alone.detach().numpy()
    assert np.abs(alone).min() > 0.1 and abs(alone[0] - alone[1]) > 0.1
    for system in ("tri", "out"):
        whole, rest = (read_measurement(tmp_path, f"{system}_{case}") for case in ("yes", "no"))
        np.testing.assert_allclose((whole["energies"] - rest["energies"])[:, 0], alone[whole["types"] - 1], rtol=1e-12)
        np.testing.assert_allclose(whole["energy"] - rest["energy"], alone[whole["types"] - 1].sum(), rtol=1e-12)
        np.testing.assert_array_equal(whole["forces"], rest["forces"])
    assert np.abs(rest["energies"]).max() < 1e-12  # atoms that are out of each other's reach


GAS = """
units metal
atom_style molecular
region box block 0 20 0 20 0 20
create_box 2 box
lattice sc 5.0
mass 1 40
mass 2 20.18
special_bonds lj 1 1 1
molecule dimer dimer.mol
neigh_modify every 1 delay 0 check yes
timestep 0.002
"""
DIMER = "two atoms\n\n2 atoms\n\nCoords\n\n1 0 0 0\n2 3.6 0 0\n\nTypes\n\n1 1\n2 2\n"
SIX = (3.2 / 3.6) ** 6, (3.2 / 5.5) ** 6
DIMER_ENERGY = 4 * 0.008 * (SIX[0] ** 2 - SIX[0] - SIX[1] ** 2 + SIX[1])
RECORD = (
    "compute_modify thermo_temp dynamic/dof yes\nthermo 20\n"
    "thermo_style custom step atoms f_gc[3] f_gc[4] f_gc[5] f_gc[6] pe\n"
)
ATOMS = (
    "create_atoms 1 box\nvelocity all create 100 4711\nfix mv all nve\n"
    "fix gc all gcmc 1 20 20 1 29494 150.0 -0.12 0.5 full_energy\n"
    + RECORD
    + 'variable n equal atoms\nfix av all ave/time 1 150 200 v_n\nrun 200\nprint "MEAN $(f_av)"\n'
)
MOLECULES = (
    f"fix gc all gcmc 1 20 0 0 29494 300.0 0.0 0.5 mol dimer pressure 200.0 fugacity_coeff 1.0 "
    f"intra_energy {DIMER_ENERGY!r} full_energy\n" + RECORD + "run 30\nrun 20\n"
)
IONS = (
    "fix mv all nve\n"
    "fix gc all charge/regulation 1 2 nevery 1 nmc 20 pIp -1 pIm -1 temp 300 seed 4711 lunit_nm 0.1\n"
    + RECORD.replace("f_gc[3] f_gc[4] f_gc[5] f_gc[6]", "f_gc[1] f_gc[2] f_gc[7] f_gc[8]")
    + "run 30\nrun 20\n"
)
GAS_OF_IONS = GAS.replace("style molecular", "style charge").replace("special_bonds", "#").replace("molecule", "#")
ENSEMBLES = {"atoms": (GAS, ATOMS), "molecules": (GAS, MOLECULES), "ions": (GAS_OF_IONS, IONS)}


def counts(text: str) -> list[list[str]]:
    """Step, atoms and four counts of the fix, of every line of thermodynamic output."""
    rows = [line.split() for line in text.splitlines()]
    return [row[:6] for row in rows if len(row) == 7 and all(part.isdigit() for part in row[:6])]


@pytest.mark.parametrize("case, ranks", [("atoms", 1), ("molecules", 1), ("molecules", 2), ("ions", 1)])
def test_grand_canonical(case, ranks, lj_artifact, tmp_path):
    """The fixes make the same decisions with lj/cut and with an artifact of it that has energies of isolated atoms."""
    (tmp_path / "dimer.mol").write_text(DIMER)
    gas, lines = ENSEMBLES[case]
    script = gas + NATIVE + lines + "clear\n" + gas + nequip(lj_artifact, keywords="isolated no") + lines
    outcome = run_lammps(script, tmp_path, ranks=ranks)
    assert outcome.status == 0, outcome.text
    native, ours = (counts(part) for part in outcome.text.split("Pair style nequip:"))
    assert len(native) > 3 and ours == native
    assert int(native[-1][3]) > 10 and int(native[-1][5]) > 10, "nothing happened"
    if case == "atoms":  # the mean over steps 51 to 200
        means = [float(part.split()[0]) for part in outcome.text.split("MEAN ")[1:]]
        assert means == [pytest.approx(70.3, abs=0.05)] * 2


REFUSED = {
    "gcmc": ("", ATOMS, "fix gcmc gives wrong numbers of atoms|use pair_style nequip isolated no"),
    "gcmc, engine": (
        "isolated no neighbors engine",
        ATOMS,
        "neighbors engine cannot be used with fix gcmc|use neighbors lammps",
    ),
    "charge/regulation": (
        "",
        IONS,
        "fix charge/regulation gives wrong numbers of atoms|use pair_style nequip isolated no",
    ),
    "exclusion after the run was set up": (
        "neighbors engine",
        "create_atoms 1 box\nneigh_modify check no\nfix mv all nve\nrun 1\n"
        "neigh_modify exclude type 1 1\nrun 1 pre no post no\n",
        "neigh_modify exclude came when the run was already set up|use pair_style nequip neighbors lammps",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, lj_artifact, tmp_path):
    (tmp_path / "dimer.mol").write_text(DIMER)
    keywords, lines, words = REFUSED[case]
    gas = GAS_OF_IONS if lines == IONS else GAS
    outcome = run_lammps(gas + nequip(lj_artifact, keywords=keywords) + lines, tmp_path, ranks=2, limit=60)
    assert outcome.status != 0
    for word in ("ERROR", *words.split("|")):
        assert word in outcome.text, outcome.text


EXCLUDED = {
    "group all": "group some id 1:5\nneigh_modify exclude group some all\n",
    "fix widom": "fix w all widom 1 2 1 29494 150.0 full_energy\n",
    "frozen atoms": "group some id 1:5\nneigh_modify exclude group some some\n",
}


@pytest.mark.parametrize("case", EXCLUDED)
def test_warning(case, lj_artifact, tmp_path):
    """Atoms that are taken out of all lists keep the energy of an isolated atom, which is said once in a run."""
    (tmp_path / "dimer.mol").write_text(DIMER)
    lines = "create_atoms 1 box\n" + EXCLUDED[case] + "run 3\n"
    script = GAS + nequip(lj_artifact) + lines + "clear\n" + GAS + nequip(lj_artifact, keywords="isolated no") + lines
    outcome = run_lammps(script, tmp_path)
    assert outcome.status == 0, outcome.text
    expected = 0 if case == "frozen atoms" else 1
    assert outcome.text.count("gives them the energies of isolated atoms") == expected, outcome.text
