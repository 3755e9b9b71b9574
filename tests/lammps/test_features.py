"""Features of LAMMPS under which a many-body pair style has to work: each is run with lj/cut or eam/alloy and with the same
potential as an artifact, on two ranks, and everything measured at the end must be the same.

A feature is a piece of input. ``{pair}`` stands for the pair style's lines where a feature needs them again, ``{folder}`` for
a folder of its own.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from support.lammps_compare import BY_MESSAGES, MANY_BODY, QUANTITIES, SHIFTS, assert_same
from support.lammps_run import measurement, read_measurement, run_lammps
from support.lammps_systems import NATIVE, SYSTEMS, nequip


class Feature(NamedTuple):
    """Input before and after the pair style's lines, the system, and the error that the run may multiply round-off to."""

    after: str
    before: str = ""
    system: str = "orthogonal"
    tolerance: float = 1e-9


MOVE = "neighbor 0.4 bin\nneigh_modify every 2 delay 0 check yes\ntimestep 0.002\nfix move all nve\n"
HEAT = "velocity all create 60 87287 loop geom dist gaussian\n"
RUN = MOVE + HEAT + "run 40\n"
PAIR_AGAIN = "{pair}"

FEATURES = {
    # decomposition
    "tiled and rebalanced": Feature(
        MOVE + HEAT + "fix balance all balance 10 0.9 rcb\nrun 40\n", before="comm_style tiled"
    ),
    "processor grid": Feature(RUN, before="processors 1 1 2"),
    "processors along z, comm cutoff by hand": Feature("comm_modify cutoff 12.0\n" + RUN, before="processors 1 1 *"),
    "sorted atoms": Feature("atom_modify sort 5 3.0\n" + RUN),
    "shrink-wrapped box": Feature(RUN, before="boundary s s s", system="cluster in a corner"),
    "slab": Feature(RUN, before="boundary p p s", system="cluster in a corner"),
    "replicated": Feature("replicate 1 2 1\n" + PAIR_AGAIN + RUN),
    "binned with small bins": Feature("neigh_modify binsize 1.7\n" + RUN),
    "full skin": Feature(
        "neighbor 3.0 bin\nneigh_modify every 10 delay 20 check yes\ntimestep 0.002\nfix move all nve\n"
        + HEAT
        + "run 40\n"
    ),
    # bookkeeping of atoms
    "deleted atoms, IDs with gaps": Feature("delete_atoms random fraction 0.2 yes all NULL 4711 compress no\n" + RUN),
    "deleted between runs": Feature(
        MOVE + HEAT + "run 20\ngroup some id 3:40:3\ndelete_atoms group some compress no\nrun 20\n"
    ),
    "created between runs": Feature(
        MOVE
        + HEAT
        + "run 20\ncreate_atoms 2 single 1.0 1.0 1.0 units box\nmass 2 40\ndelete_atoms overlap 2.2 all all\nrun 20\n"
    ),
    "large IDs": Feature("reset_atoms id\nset group all type 1\nset type 1 type/fraction 2 0.3 4711\n" + RUN),
    "types changed between runs": Feature(MOVE + HEAT + "run 10\ngroup odd id 1:99:2\nset group odd type 2\nrun 20\n"),
    "types swapped by Monte Carlo": Feature(
        MOVE + HEAT + "fix swap all atom/swap 5 3 29494 300.0 ke no types 1 2\nrun 20\n"
    ),
    "excluded pairs of a frozen group": Feature(
        "region half block INF 8 INF INF INF INF\ngroup still region half\nneigh_modify exclude none\n"
        + MOVE
        + HEAT
        + "velocity still set 0 0 0\nfix stop still setforce 0 0 0\nrun 40\n"
    ),
    "atoms taken out of all lists": Feature("group out id 1:9\nneigh_modify exclude group out all\n" + RUN),
    "group of moving atoms": Feature(
        "group light type 2\nneighbor 0.4 bin\ntimestep 0.002\nfix move light nve\n" + HEAT + "run 40\n"
    ),
    # boxes that change
    "NPT, isotropic": Feature(HEAT + "timestep 0.002\nfix move all npt temp 60 60 0.1 iso 0 0 1.0\nrun 40\n"),
    "NPT, triclinic": Feature(
        HEAT + "timestep 0.002\nfix move all npt temp 60 60 0.1 tri 0 0 1.0\nrun 40\n", system="triclinic"
    ),
    "sheared until the box flips": Feature(
        HEAT
        + "timestep 0.002\nfix shear all deform 1 xy erate 8.0 remap v flip yes\nfix move all nvt temp 60 60 0.1\nrun 60\n",
        system="triclinic",
        tolerance=1e-8,
    ),
    "deformed": Feature(MOVE + HEAT + "fix shrink all deform 1 x scale 0.95 y scale 1.04 remap x\nrun 40\n"),
    "box relaxed": Feature(
        "fix relax all box/relax iso 0.0 vmax 0.001\nminimize 0 1e-6 20 60\nunfix relax\n", tolerance=1e-7
    ),
    "change_box": Feature("change_box all x scale 1.02 y scale 0.99 remap\n" + RUN),
    "box smaller than the cutoff in NVE": Feature(RUN, system="box smaller than cutoff"),
    # what is run
    "minimised": Feature("minimize 0 1e-8 20 100\n", tolerance=1e-7),
    "minimised by fire": Feature("min_style fire\nminimize 0 1e-8 30 60\n", tolerance=1e-7),
    "Langevin": Feature(MOVE + HEAT + "fix bath all langevin 60 60 0.1 699483\nrun 40\n"),
    "rigid groups": Feature(
        "group a id 1:4\ngroup b id 20:24\ngroup rest subtract all a b\nneighbor 0.4 bin\ntimestep 0.002\n"
        + HEAT
        + "fix bodies a rigid single\nfix others rest nve\nrun 30\n"
    ),
    "run 0 twice": Feature("run 0\nrun 0\n"),
    "run in pieces": Feature(MOVE + HEAT + 'run 40 every 7 "print again"\n'),
    "run pre no post no": Feature(MOVE + HEAT + "run 20 post no\nrun 20 pre no post no\n"),
    "halted": Feature(MOVE + HEAT + "variable t equal step\nfix halt all halt 10 v_t > 25 error continue\nrun 40\n"),
    "rerun of a dump": Feature(
        MOVE + HEAT + "dump d all custom 10 {folder}/traj id type x y z ix iy iz\nrun 30\nundump d\nunfix move\n"
        "rerun {folder}/traj dump x y z box yes\n"
    ),
    "data written and read": Feature(
        RUN
        + "write_data {folder}/again.data nocoeff\nclear\nunits metal\nread_data {folder}/again.data\n"
        + PAIR_AGAIN
        + MOVE
        + "run 20\n"
    ),
    "restart written and read": Feature(
        RUN + "write_restart {folder}/again\nclear\nread_restart {folder}/again\n" + PAIR_AGAIN + MOVE + "run 20\n"
    ),
    "cleared and begun again": Feature("run 0\nclear\n{start}" + PAIR_AGAIN + RUN),
    # other forces beside the pair style
    "external field and wall": Feature(
        MOVE + HEAT + "fix wall all wall/harmonic zhi 30.0 0.001 1.0 25.0\nfix field all addforce 0.01 0 0\nrun 40\n",
        before="boundary p p s",
        system="cluster in a corner",
    ),
    "momentum zeroed": Feature(MOVE + HEAT + "fix zero all momentum 5 linear 1 1 1\nrun 40\n"),
    "respa at one level": Feature("run_style respa 2 2 pair 2\n" + RUN),
}


# atoms collapse here to densities beyond the tables of eam/alloy, so the local artifact takes its place
BEYOND_TABLES = ["minimised", "sheared until the box flips"]


@pytest.fixture(scope="module")
def measured(request, lj_artifact, tmp_path_factory):
    """``measured(potential, feature)``: what LAMMPS' own style and what the pair style measured after it."""

    def get(potential: str, name: str) -> tuple[dict, dict]:
        potential, _, own_search = potential.partition(", ")
        artifact, native = (lj_artifact, NATIVE) if potential == "lj" else request.getfixturevalue(potential)
        if potential == "eam_messages" and name in BEYOND_TABLES:
            native = nequip(request.getfixturevalue("eam")[0])
        keywords = "neighbors engine" if own_search else ""
        feature = FEATURES[name]
        folder = tmp_path_factory.mktemp("feature")
        system = SYSTEMS[feature.system]
        start = system.start(folder)
        if feature.before:
            start = start.replace("newton on", f"newton on\n{feature.before}")
            words = feature.before.split()[0]
            # a command of the feature takes the place of the system's own
            start = (
                "\n".join(line for line in start.splitlines() if not line.startswith(words) or line == feature.before)
                + "\n"
            )
        script = ""
        for who, pair in (("native", native), ("ours", nequip(artifact, keywords=keywords))):
            mine = folder / who
            mine.mkdir()
            lines = feature.after.replace("{pair}", pair).replace("{folder}", str(mine)).replace("{start}", start)
            script += f"clear\n{start}{pair}{lines}{measurement(who)}"
        outcome = run_lammps(script, folder, ranks=2)
        assert outcome.status == 0, outcome.text
        return read_measurement(folder, "native"), read_measurement(folder, "ours")

    return get


# the embedded-atom potential is many-body: forces on an atom depend on neighbours of neighbours, which live on other ranks;
# written with message passing it runs all features
LOCAL_MANY_BODY = [
    "tiled and rebalanced",
    "processor grid",
    "sorted atoms",
    "shrink-wrapped box",
    "deleted between runs",
    "types swapped by Monte Carlo",
    "NPT, triclinic",
    "deformed",
    "rerun of a dump",
    "box smaller than the cutoff in NVE",
]


# where neighbours are found by the engine, what changes atoms, boxes or the time of a rebuilt list
OWN_SEARCH = [
    "tiled and rebalanced",
    "processor grid",
    "sorted atoms",
    "shrink-wrapped box",
    "slab",
    "full skin",
    "deleted between runs",
    "created between runs",
    "types swapped by Monte Carlo",
    "group of moving atoms",
    "NPT, triclinic",
    "sheared until the box flips",
    "box smaller than the cutoff in NVE",
    "minimised",
    "run 0 twice",
    "rerun of a dump",
    "restart written and read",
    "cleared and begun again",
]


@pytest.mark.parametrize(
    ("potential", "feature"),
    [(p, f) for p in ("lj", "eam_messages") for f in FEATURES]
    + [("eam", f) for f in LOCAL_MANY_BODY]
    + [("lj, own search", f) for f in OWN_SEARCH],
)
def test_feature(potential, feature, measured):
    reference, result = measured(potential, feature)
    assert np.abs(reference["forces"]).max() > 1e-3, "without forces this shows nothing"
    np.testing.assert_array_equal(result["types"], reference["types"])
    quantities = {"eam": MANY_BODY, "eam_messages": BY_MESSAGES}.get(potential, QUANTITIES)
    # where both are artifacts, both have the energies of isolated atoms
    shifts = {1: 0.0, 2: 0.0} if potential == "eam_messages" and feature in BEYOND_TABLES else SHIFTS
    assert_same(result, reference, feature, FEATURES[feature].tolerance, quantities, shifts)
    np.testing.assert_allclose(result["positions"], reference["positions"], rtol=0, atol=1e-6)
