"""Engine and pair style under AddressSanitizer and UndefinedBehaviorSanitizer: ordinary runs and refusals must be clean."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from support.changed_plugin import ChangedPlugin
from support.lammps_compare import assert_same
from support.lammps_run import SCRIPTS, Outcome, measurement, read_measurement, run_program
from support.lammps_systems import NATIVE, SYSTEMS, nequip

pytestmark = pytest.mark.slow

# LAMMPS, MPI and torch are not instrumented and keep memory until the end; what our code does to memory is seen all the same
ASAN_OPTIONS = "detect_leaks=0:detect_stack_use_after_return=1:exitcode=66"
REPORT = re.compile(r"AddressSanitizer|runtime error:")

MOVE = """
neighbor 0.3 bin
neigh_modify every 1 delay 0 check yes
velocity all create 200 87287 loop geom
fix move all nve
run 10
"""


def runtime(name: str) -> str:
    path = subprocess.run(
        ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(path).is_absolute():
        pytest.skip(f"the compiler has no {name} (Debian and Ubuntu: it comes with g++)")
    return path


@pytest.fixture(scope="module")
def instrumented(tmp_path_factory) -> Callable:
    """``instrumented(mutation)``: a function that runs LAMMPS with a plugin that checks itself, or with a fault in it."""
    # the program comes first, its libraries next: what it loads later can rely on both
    preload = " ".join(runtime(name) for name in ("libasan.so", "libstdc++.so.6"))
    plugin = ChangedPlugin(
        tmp_path_factory.mktemp("sanitizers"),
        "-DNEQUIP_MD_SANITIZE=ON",
        "-DCMAKE_CXX_FLAGS_RELEASE=-O0",
    )

    def build(*fault: str) -> Callable[..., Outcome]:
        cache = plugin.build(*fault)

        def run(script: str, where: Path, ranks: int = 1) -> Outcome:
            where.mkdir(parents=True, exist_ok=True)
            (where / "in.test").write_text(script)
            # the launcher itself runs without the sanitizer
            command = [
                "env",
                f"LD_PRELOAD={preload}",
                f"ASAN_OPTIONS={ASAN_OPTIONS}",
                "UBSAN_OPTIONS=print_stacktrace=1",
                SCRIPTS / "lmp",
                "-in",
                "in.test",
            ]
            outcome = run_program(command, where, ranks=ranks, env={"XDG_CACHE_HOME": str(cache)})
            assert str(cache) in outcome.text, "another plugin was loaded"
            return outcome

        return run

    return build


@pytest.fixture(scope="module")
def clean(instrumented) -> Callable[..., Outcome]:
    return instrumented()


@pytest.mark.parametrize("ranks", [1, 2])
def test_runs(ranks, clean, lj_artifact, doctored, tmp_path):
    """Every virial, both settings of newton, ranks without atoms, pieces, hybrids, rebuilt lists, a restart, a second model."""
    systems = ["orthogonal", "triclinic", "tiled", "box smaller than cutoff", "one atom on each side", "isolated atom"]
    script = ""
    for newton in ("on", "off"):
        for k, name in enumerate(systems):
            start = "clear\n" + SYSTEMS[name].start(tmp_path / str(k), newton)
            script += start + NATIVE + measurement(f"native_{k}_{newton}")
            keywords = "threads 2 max_edges 700" if k == 0 else ""
            script += start + nequip(lj_artifact, keywords=keywords) + measurement(f"ours_{k}_{newton}")
        start = "clear\n" + SYSTEMS["orthogonal"].start(tmp_path, newton)
        script += (
            start
            + nequip(lj_artifact)
            + MOVE
            + f"write_restart kept\nclear\nnewton {newton}\nread_restart kept\nrun 2\n"
        )
        script += f'pair_coeff * * "{lj_artifact}" Ne Ar\nrun 2\n'
        script += (
            start + "pair_style hybrid/overlay nequip lj/cut 6.0\n" + f'pair_coeff * * nequip "{lj_artifact}" Ar NULL\n'
        )
        script += "pair_coeff * 2 lj/cut 0.006 3.0\n" + MOVE
        if ranks == 1:
            script += start + nequip(doctored(message_passing_layers="2")) + MOVE
    outcome = clean(script, tmp_path, ranks)
    assert not REPORT.search(outcome.text), outcome.text
    assert outcome.status == 0, outcome.text
    for newton in ("on", "off"):
        for k, name in enumerate(systems):
            ours, native = (read_measurement(tmp_path, f"{who}_{k}_{newton}") for who in ("ours", "native"))
            assert_same(ours, native, f"{name}, newton {newton}")


REFUSALS = {  # name: (input lines, words of the message)
    "missing file": ("pair_style nequip\npair_coeff * * nowhere.pt2 Ar Ne", "cannot open model file"),
    "truncated file": ("pair_style nequip\npair_coeff * * {truncated} Ar Ne", "damaged"),
    "bad metadata": ("pair_style nequip\npair_coeff * * {cutoffs} Ar Ne", "'pair_cutoffs'"),
    "wrong element": ("pair_style nequip\npair_coeff * * {lj} Ar Xe", "'Xe'"),
    "no value": ("pair_style nequip threads", "has no value"),
    "no number": ("pair_style nequip\npair_coeff * * {lj} Ar Ne\nset atom 7 x 1e300\nrun 0", "atom"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case, clean, lj_artifact, doctored, tmp_path):
    lines, words = REFUSALS[case]
    truncated = tmp_path / "truncated.pt2"
    truncated.write_bytes(lj_artifact.read_bytes()[:20_000])
    lines = lines.format(lj=lj_artifact, truncated=truncated, cutoffs=doctored(pair_cutoffs="6.0 5.5"))
    outcome = clean(SYSTEMS["orthogonal"].start(tmp_path) + lines + "\nrun 0\n", tmp_path)
    assert not REPORT.search(outcome.text), outcome.text
    assert outcome.status not in (0, 66) and words in outcome.text, outcome.text


FAULTS = {
    "write beyond an array": (
        "lammps/pair_nequip_comm.cpp",
        "values.assign(static_cast<size_t>(natoms) * width, 0.0);",
        "values.assign(static_cast<size_t>(natoms), 0.0);",
        "heap-buffer-overflow",
    ),
    "signed overflow": (
        "lammps/pair_nequip_comm.cpp",
        "  const int size = n * communicated->width;",
        "  volatile int large = 2147483647;\n  const int size = n * communicated->width + (large + 1 == 7);",
        "signed integer overflow",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_seen(fault, instrumented, lj_artifact, tmp_path):
    """The sanitizers detect a fault; otherwise clean runs would prove nothing."""
    file, before, after, words = FAULTS[fault]
    outcome = instrumented(file, before, after)(
        SYSTEMS["orthogonal"].start(tmp_path, "off") + nequip(lj_artifact) + measurement("x"), tmp_path
    )
    assert outcome.status != 0 and words in outcome.text, outcome.text
