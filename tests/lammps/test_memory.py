"""Memory does not grow over ten thousand rebuilt neighbour lists."""

from __future__ import annotations

import subprocess
import sys

from support.lammps_systems import SYSTEMS, nequip

PIECES, STEPS = 20, 500
PROGRAM = """
import sys
from pathlib import Path
from nequip_md.lammps import start

lammps = start(args=["-screen", "none", "-log", "none"])
lammps.commands_string(Path(sys.argv[1]).read_text())
for _ in range({pieces}):
    lammps.command("run {steps} post no")
    print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmRSS")), flush=True)
print(lammps.extract_global("ntimestep"))
"""


def test_resident_memory_does_not_grow(lj_artifact, tmp_path):
    (tmp_path / "in.test").write_text(
        SYSTEMS["box smaller than cutoff"].start(tmp_path)
        + nequip(lj_artifact)
        + "velocity all create 60 87287 loop geom\nfix move all nve\nneighbor 0.2 bin\n"
        + "neigh_modify every 1 delay 0 check no\nthermo 1000\n"
    )
    program = PROGRAM.format(pieces=PIECES, steps=STEPS)
    done = subprocess.run(
        [sys.executable, "-c", program, "in.test"],
        cwd=tmp_path,
        text=True,
        timeout=300,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    *kilobytes, steps = (int(word) for word in done.stdout.split()[-PIECES - 1 :])
    assert steps == PIECES * STEPS
    # the first thousand steps fill caches
    assert max(kilobytes[2:]) - kilobytes[2] < 4096, kilobytes
