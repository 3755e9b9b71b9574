"""The nudged elastic band over partitions: the barrier of a vacancy's hop, by lj/cut and by the same potential as an artifact."""

from __future__ import annotations

import numpy as np
import pytest

from support.lammps_run import run_lammps
from support.lammps_systems import NATIVE, System, nequip

REPLICAS = 3
SPACING = 5.25
# as for any band, the ends are minima: the first by the minimisation, the last by symmetry
NEB = """
min_style cg
minimize 0 1e-8 100 400
reset_timestep 0
fix band all neb 1.0 parallel neigh
timestep 0.01
min_style quickmin
thermo 50
neb 0.0 1e-4 300 300 50 final {hop}
"""


def crystal_with_vacancy() -> tuple[System, str]:
    """31 argon atoms on 32 sites of a face-centred cubic crystal; and the line that takes a neighbour into the empty site."""
    base = np.array([[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    corners = np.stack(np.meshgrid(*[np.arange(2)] * 3, indexing="ij"), -1).reshape(-1, 1, 3)
    sites = SPACING * (corners + base).reshape(-1, 3) + 1.0
    positions = sites[1:]
    neighbour = int(np.argmin(np.linalg.norm(positions - sites[0], axis=1)))
    system = System(positions, np.ones(31, dtype=int), (2 * SPACING,) * 3, before="atom_modify map array sort 0 0.0")
    return system, f"1\n{neighbour + 1} " + " ".join(map(repr, map(float, sites[0]))) + "\n"


def alone(lj_artifact, eam_messages) -> tuple[str, str, float]:
    """Input for lj/cut, for the same potential as an artifact, and that artifact's energy of an isolated atom."""
    return NATIVE, nequip(lj_artifact), -1.5


def beside_messages(lj_artifact, eam_messages) -> tuple[str, str, float]:
    """lj/cut with a hundredth of an embedded-atom potential, whose artifact passes messages."""
    artifact, native = eam_messages
    tables = native.split()[-3]
    lines = (
        "pair_style hybrid/scaled 1.0 lj/cut 6.0 0.01 STYLE\npair_coeff * * STYLE FILE Ar Ne\n"
        "pair_coeff * * lj/cut 0.0104 3.4\npair_modify pair lj/cut shift yes\n"
    )
    native, ours = (
        lines.replace("STYLE", style).replace("FILE", str(file))
        for style, file in (("eam/alloy", tables), ("nequip", artifact))
    )
    return native, ours, -0.015


@pytest.mark.parametrize("potential, ranks", [(alone, 1), (beside_messages, 2)])
def test_barrier(potential, ranks, lj_artifact, eam_messages, tmp_path):
    """Each replica has its own ranks, which exchange features among themselves alone where the model passes messages."""
    native_lines, our_lines, isolated = potential(lj_artifact, eam_messages)
    system, hop = crystal_with_vacancy()
    (tmp_path / "hop").write_text(hop)
    script = "clear\n".join(
        system.start(tmp_path) + pair + NEB.format(hop=tmp_path / "hop") for pair in (native_lines, our_lines)
    )
    arguments = ("-partition", f"{REPLICAS}x{ranks}", "-screen", "none")
    outcome = run_lammps(script, tmp_path, ranks=REPLICAS * ranks, limit=240, arguments=arguments)
    assert outcome.status == 0, outcome.text
    log = (tmp_path / "log.lammps").read_text()
    # columns: step, forces (5), barriers forward and back, length of the path, then position and energy of each replica
    rows = [np.array(line.split(), dtype=float) for line in log.splitlines() if line.lstrip()[:1].isdigit()]
    rows = [row for row in rows if len(row) == 9 + 2 * REPLICAS]
    begins = [k for k, row in enumerate(rows) if row[0] == 0]
    assert len(begins) == 2, log
    native, ours = rows[begins[1] - 1], rows[-1]
    assert native[6] > 0.02 and abs(native[6] - native[7]) < 1e-6, "a hop to an equal place over a barrier"
    assert native[1] < 1e-4, "the band is not converged"
    np.testing.assert_allclose(ours[6:8], native[6:8], rtol=1e-7)
    # printed to eight digits, energies of isolated atoms among them
    np.testing.assert_allclose(ours[10::2] - 31 * isolated, native[10::2], rtol=0, atol=2e-6)
