"""Checks of a pair style that a YAML file describes, after the scheme of LAMMPS' own force-style tests.

The keys of a file: how the artifact is made (``model``), LAMMPS input (``pre_commands``, ``pair_style``, ``pair_coeff``,
``data``, ``timestep`` in ps, ``steps``), what ``extract`` must find, a relative ``tolerance``, and the numbers to expect at the
start (``init``) and after ``steps`` steps of NVE from rest (``run``): energy (eV), stress (virial part of the pressure tensor,
bar, xx yy zz xy xz yz) and forces (eV/angstrom, sorted by atom ID). ``reference`` is the source of these numbers: input lines of
LAMMPS' own style, or the eager model in float64.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import yaml

from support import analytic

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "tests" / "lammps" / "force_styles"
STAGES = ("init", "run")

RECORD = """
write_dump all custom {name}.dump id fx fy fz modify sort id format float %.17g
print "$(pe:%.17g) $(c_stress[1]:%.17g) $(c_stress[2]:%.17g) $(c_stress[3]:%.17g) $(c_stress[4]:%.17g) $(c_stress[5]:%.17g) &
$(c_stress[6]:%.17g)" file {name}.thermo
"""


@dataclass(frozen=True)
class ForceStyle:
    """One YAML file; the docstring of the module explains its keys."""

    name: str
    model: dict
    reference: dict
    pair_style: str
    pair_coeff: str
    data: str
    timestep: float
    steps: int
    tolerance: float
    extract: dict
    pre_commands: str = ""
    init: dict | None = None
    run: dict | None = None

    @classmethod
    def load(cls, path: Path) -> ForceStyle:
        """Raises ValueError for a key that is missing or unknown."""
        content = yaml.safe_load(path.read_text())
        known = {field.name for field in fields(cls)} - {"name"}
        required = known - {"pre_commands", *STAGES}
        if unknown := content.keys() - known:
            raise ValueError(f"{path.name}: unknown keys {sorted(unknown)}")
        if missing := required - content.keys():
            raise ValueError(f"{path.name}: missing keys {sorted(missing)}")
        return cls(name=path.stem, **content)

    def analytic_model(self):
        return getattr(analytic, self.model["analytic"])(**self.model["arguments"])

    def write_artifact(self, path: Path) -> None:
        """Export the artifact as users do."""
        from nequip_md.export import artifact_metadata, export_checkpoint, write_artifact

        if "checkpoint" in self.model:
            export_checkpoint(ROOT / self.model["checkpoint"], path, device="cpu", precision=self.model["precision"])
        else:
            write_artifact(self.analytic_model(), path, artifact_metadata(**self.model["metadata"]))

    def start(self, folder: Path, newton: str, before: str = "") -> str:
        """Input lines that read the structure."""
        path = folder / f"{self.name}.data"
        path.write_text(self.data)
        return f"{before}\nunits metal\nnewton {newton}\n{self.pre_commands}\nread_data {path}\n"

    def pair(self, artifact: Path) -> str:
        return f"pair_style {self.pair_style}\n{self.coefficients(artifact)}"

    def coefficients(self, artifact: Path) -> str:
        return f"pair_coeff {self.pair_coeff}\n".replace("{artifact}", str(artifact))

    def measure(self, name: str, reset: str = "") -> str:
        """Input lines that record both stages as ``name_init`` and ``name_run``."""
        return (
            f"compute stress all pressure NULL virial\nthermo_style custom step pe c_stress[*]\ntimestep {self.timestep}\n"
            + "run 0 post no\n"
            + RECORD.format(name=f"{name}_init")
            + reset
            + "fix move all nve\n"
            + f"run {self.steps}\n"
            + RECORD.format(name=f"{name}_run")
        )

    def read(self, folder: Path, name: str) -> dict[str, dict[str, np.ndarray]]:
        """What :meth:`measure` recorded, by stage."""
        result = {}
        for stage in STAGES:
            values = np.array((folder / f"{name}_{stage}.thermo").read_text().split(), dtype=float)
            table = np.loadtxt(folder / f"{name}_{stage}.dump", skiprows=9, ndmin=2)
            result[stage] = {"energy": values[:1], "stress": values[1:], "forces": table[:, 1:]}
        return result
