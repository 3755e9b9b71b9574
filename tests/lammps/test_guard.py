"""Warnings of configurations unlike the training data, close contacts and huge forces, in LAMMPS and in the engine."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from support.lammps_compare import assert_same
from support.lammps_run import measurement, read_measurement, run_lammps
from support.lammps_systems import NATIVE, SYSTEMS, nequip

# argon is the first type, neon the second; the closest contacts are 3.2 (Ar-Ar), 3.0 (Ar-Ne) and unknown (Ne-Ne)
KNOWN = {"closest_distances": "3.2 3.0 3.0 0", "largest_force": ""}

PAIR = """
units metal
{before}
region box block 0 30 0 30 0 30
create_box 2 box
mass 1 40
mass 2 20
create_atoms {first} single 1.0 15 15
create_atoms {second} single {x} 15 15
pair_style nequip {options}
pair_coeff * * {model} Ar Ne
timestep 0.0001
run 1
run 1
"""


def warnings(folder, model, *, first=1, second=1, distance=2.0, options="", before="", ranks=1):
    """Warnings of LAMMPS in two runs of two atoms at a distance, the second atom behind the periodic boundary."""
    script = PAIR.format(first=first, second=second, x=31.0 - distance, options=options, before=before, model=model)
    outcome = run_lammps(script, folder, ranks=ranks)
    assert outcome.status == 0, outcome.text
    return [line for line in outcome.text.splitlines() if "WARNING: Pair style nequip" in line]


# (types, distance, closest known distance or None); 0.9 of a known distance is reported
CONTACTS = {
    "argon, far too close": (1, 1, 2.5, "3.2"),
    "argon, as close as training": (1, 1, 2.95, None),
    "both, too close": (1, 2, 2.6, "3"),
    "both, close enough": (1, 2, 2.75, None),
    "neon, nothing is known": (2, 2, 2.0, None),
}


@pytest.mark.parametrize("case", CONTACTS)
def test_contacts(doctored, tmp_path, case):
    first, second, distance, known = CONTACTS[case]
    said = warnings(tmp_path, doctored(**KNOWN), first=first, second=second, distance=distance)
    if known is None:
        assert said == []
        return
    assert len(said) == 1, "once in two runs"
    assert f"are {distance:g} angstrom apart" in said[0] and f"training data {known};" in said[0]
    assert set(re.search(r"atom ID (\d) and (\d)", said[0]).groups()) == {"1", "2"}


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("way", ["engine", "lammps"])
def test_both_neighbour_searches_and_ranks(doctored, tmp_path, way, ranks):
    said = warnings(tmp_path, doctored(**KNOWN), options=f"neighbors {way}", ranks=ranks)
    # on two ranks each atom may have the other one as a ghost
    assert 1 <= len(said) <= ranks and all("atom ID" in line for line in said)


def test_forces(doctored, tmp_path):
    # the force of lj/cut at 2.5 angstrom, eV/angstrom
    ratio = (3.4 / 2.5) ** 6
    force = 24 * 0.0104 * (2 * ratio**2 - ratio) / 2.5
    small, large = (doctored(closest_distances="", largest_force=repr(f * force)) for f in (0.099, 0.101))
    said = warnings(tmp_path / "small", small, distance=2.5)
    assert (
        len(said) == 1
        and f"is {force:.3g}, the largest one in the training data {0.099 * force:.3g}" in said[0]
        and re.search(r"atom ID [12],", said[0])
    )
    assert warnings(tmp_path / "large", large, distance=2.5) == []


def test_off_or_unknown(doctored, lj_artifact, tmp_path):
    assert warnings(tmp_path / "off", doctored(**KNOWN), options="guard no") == []
    assert warnings(tmp_path / "old", lj_artifact) == []


def test_units_real(doctored, tmp_path):
    """The sentence is in the model's units."""
    said = warnings(tmp_path, doctored(**KNOWN), before="units real")
    assert len(said) == 1 and "are 2 angstrom apart" in said[0]


@pytest.mark.parametrize(
    "changes", [{"closest_distances": "1 2 3"}, {"closest_distances": "1 -2 3 4"}, {"largest_force": "nan"}]
)
def test_damaged_metadata_is_refused(doctored, tmp_path, changes):
    script = PAIR.format(first=1, second=1, x=29, options="", before="", model=doctored(**changes))
    outcome = run_lammps(script, tmp_path)
    assert outcome.status != 0 and next(iter(changes)) in outcome.text and "export the model again" in outcome.text


@pytest.mark.parametrize("ranks", [1, 4])
@pytest.mark.parametrize("newton", ["on", "off"])
@pytest.mark.parametrize("style, divide", [("brick", ""), ("tiled", "balance 1.0 rcb")])
def test_looking_at_forces_changes_none(doctored, tmp_path, newton, ranks, style, divide):
    """The style collects whole forces before LAMMPS does so, with newton on, on steps with new lists."""
    system = replace(SYSTEMS["triclinic"], before=f"comm_style {style}", after=divide)
    model = doctored(closest_distances="", largest_force="100")
    script = "".join(
        f"clear\n{system.start(tmp_path, newton)}{lines}{measurement(name)}"
        for name, lines in (("ours", nequip(model)), ("native", NATIVE))
    )
    outcome = run_lammps(script, tmp_path, ranks=ranks)
    assert outcome.status == 0, outcome.text
    assert_same(read_measurement(tmp_path, "ours"), read_measurement(tmp_path, "native"))
