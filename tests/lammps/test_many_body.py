"""A many-body potential, local and with message passing, against LAMMPS' own eam/alloy: forces reach over two cutoffs and cross ranks."""

from __future__ import annotations

import pytest

from support.lammps_compare import BY_MESSAGES, MANY_BODY, assert_same
from support.lammps_run import measurement, read_measurement, run_lammps
from support.lammps_systems import SYSTEMS, nequip

RELATIVE = 1e-9
"""Tolerance relative to the largest value; eam/alloy interpolates tables."""


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("potential", ["eam", "eam_messages"])
def test_equals_eam(potential, ranks, request, tmp_path):
    artifact, native = request.getfixturevalue(potential)
    other_way, quantities = ("max_edges 700", MANY_BODY) if potential == "eam" else ("neighbors engine", BY_MESSAGES)
    cases = [(name, newton) for name in SYSTEMS for newton in ("on", "off")]
    script = ""
    for k, (name, newton) in enumerate(cases):
        start = "clear\n" + SYSTEMS[name].start(tmp_path / f"case{k}", newton)
        script += start + nequip(artifact, keywords=other_way if newton == "off" else "") + measurement(f"ours{k}")
        if ranks == 1:
            script += start + native + measurement(f"native{k}")
    outcome = run_lammps(script, tmp_path, ranks=ranks, limit=240)
    assert outcome.status == 0, outcome.text
    if ranks > 1:  # the reference on one rank
        script = "".join(
            "clear\n" + SYSTEMS[name].start(tmp_path / f"case{k}", newton) + native + measurement(f"native{k}")
            for k, (name, newton) in enumerate(cases)
        )
        outcome = run_lammps(script, tmp_path / "native")
        assert outcome.status == 0, outcome.text
    for k, (name, newton) in enumerate(cases):
        reference = read_measurement(tmp_path if ranks == 1 else tmp_path / "native", f"native{k}")
        result = read_measurement(tmp_path, f"ours{k}")
        assert_same(result, reference, f"{name}, newton {newton}, {ranks} ranks", RELATIVE, quantities)
