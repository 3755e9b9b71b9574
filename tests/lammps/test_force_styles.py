"""Every file of ``force_styles/``: a potential by all the ways in which LAMMPS can come to it. A new potential is a new file."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from support.force_styles import FOLDER, STAGES, ForceStyle
from support.lammps_run import run_lammps, run_program

FILES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
NEWTON = ("on", "off")

# lines before the measurement, from what starts the system, gives the pair style, and the artifact
RESTART = "run 0\nwrite_restart kept\nclear\nnewton {newton}\nread_restart kept\n"
OTHER = {"on": "off", "off": "on"}
VARIANTS: dict[str, Callable[[ForceStyle, str, Path, Path], str]] = {
    "plain": lambda style, newton, folder, artifact: style.start(folder, newton) + style.pair(artifact),
    "restart": lambda style, newton, folder, artifact: (
        style.start(folder, newton) + style.pair(artifact) + RESTART.format(newton=newton)
    ),
    "restart, pair style again": lambda style, newton, folder, artifact: (
        style.start(folder, newton) + style.pair(artifact) + RESTART.format(newton=newton) + style.pair(artifact)
    ),
    "restart for the other newton": lambda style, newton, folder, artifact: (
        style.start(folder, OTHER[newton]) + style.pair(artifact) + RESTART.format(newton=newton)
    ),
    "data": lambda style, newton, folder, artifact: (
        style.start(folder, newton)
        + style.pair(artifact)
        + f"run 0\nwrite_data kept.data\nclear\nunits metal\nnewton {newton}\nread_data kept.data\n"
        + style.pair(artifact)
    ),
    "style again": lambda style, newton, folder, artifact: (
        style.start(folder, newton) + style.pair(artifact) + "run 0\n" + style.pair(artifact)
    ),
    "coefficients again": lambda style, newton, folder, artifact: (
        style.start(folder, newton) + style.pair(artifact) + "run 0\n" + style.coefficients(artifact)
    ),
    "another style between": lambda style, newton, folder, artifact: (
        style.start(folder, newton)
        + style.pair(artifact)
        + "run 0\npair_style zero 6.0\npair_coeff * *\nrun 0\n"
        + style.pair(artifact)
    ),
    "two threads": lambda style, newton, folder, artifact: (
        style.start(folder, newton, "package omp 2\nsuffix omp") + style.pair(artifact)
    ),
}
# two ranks of two threads each would be four for two cores
CASES = [(variant, ranks) for variant in VARIANTS for ranks in (1, 2) if (variant, ranks) != ("two threads", 2)]


@pytest.fixture(scope="module")
def measured(force_styles, artifacts, tmp_path_factory):
    """``measured(name, ranks)``: the folder where one start of LAMMPS has recorded every variant, newton on and off."""
    folders = {}

    def get(name: str, ranks: int) -> Path:
        if (name, ranks) not in folders:
            folder, style = tmp_path_factory.mktemp(f"{name}_{ranks}"), force_styles[name]
            folders[name, ranks] = folder
            script = "clear\n".join(
                lines(style, newton, folder, artifacts(name)) + style.measure(f"v{k}_{newton}")
                for newton in NEWTON
                for k, (variant, lines) in enumerate(VARIANTS.items())
                if (variant, ranks) in CASES
            )
            outcome = run_lammps(script, folder, ranks=ranks)
            assert outcome.status == 0, outcome.text
        return folders[name, ranks]

    return get


@pytest.mark.parametrize("newton", NEWTON)
@pytest.mark.parametrize("variant, ranks", CASES)
@pytest.mark.parametrize("name", FILES)
def test_force_style(name, variant, ranks, newton, force_styles, measured):
    style = force_styles[name]
    result = style.read(measured(name, ranks), f"v{list(VARIANTS).index(variant)}_{newton}")
    for stage in STAGES:
        expected = {key: np.array(value, dtype=float) for key, value in getattr(style, stage).items()}
        assert np.abs(expected["forces"]).max() > 1e-2, "without forces this shows nothing"
        for key, value in expected.items():
            np.testing.assert_allclose(
                result[stage][key].reshape(value.shape),
                value,
                rtol=0,
                atol=style.tolerance * np.abs(value).max(),
                err_msg=f"{stage} {key}",
            )
    moved = np.abs(np.array(style.run["forces"]) - style.init["forces"]).max()
    assert moved > 1e3 * style.tolerance * np.abs(style.init["forces"]).max(), "the atoms hardly moved"


EXTRACT = """
import json, sys
import nequip_md.lammps
lmp = nequip_md.lammps.start(args=["-log", "none", "-screen", "none"])
lmp.commands_string(open("in.extract").read())
print(json.dumps({key: lmp.extract_pair(key) for key in sys.argv[1:]}))
lmp.close()
"""


@pytest.mark.parametrize("name", FILES)
def test_extract(name, force_styles, artifacts, tmp_path):
    """Through LAMMPS' library interface; a keyword that the style does not have gives nothing, before and after a run."""
    style = force_styles[name]
    (tmp_path / "in.extract").write_text(style.start(tmp_path, "on") + style.pair(artifacts(name)) + "run 0 post no\n")
    (tmp_path / "extract.py").write_text(EXTRACT)
    outcome = run_program([sys.executable, "extract.py", *style.extract], tmp_path)
    assert outcome.status == 0, outcome.text
    assert json.loads(outcome.text.splitlines()[-1]) == style.extract
    assert None in style.extract.values() and len(style.extract) > 1


def test_files_are_checked(tmp_path):
    text = (FOLDER / "lj.yaml").read_text()
    for old, new, words in (("\nsteps:", "\nstep:", "unknown keys"), ("\nsteps: 6", "", "missing keys")):
        changed = text.replace(old, new)
        assert changed != text
        (tmp_path / "lj.yaml").write_text(changed)
        with pytest.raises(ValueError, match=words):
            ForceStyle.load(tmp_path / "lj.yaml")
