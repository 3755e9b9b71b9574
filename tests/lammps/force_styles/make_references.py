"""Write the expected numbers into the YAML files beside this one: python make_references.py FILE ...

They come from LAMMPS' own pair styles or from eager models in float64, never from an artifact.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import ase
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from support.force_styles import ROOT, STAGES, ForceStyle  # noqa: E402
from support.lammps_run import run_lammps  # noqa: E402

MARK = "# From here on written by make_references.py.\n"
BAR = 1.6021765e6  # LAMMPS' values of 1 eV/angstrom^3 in bar, and of 1 g/mol (angstrom/ps)^2 in eV
KINETIC = 1.0364269e-4


def from_lammps(style: ForceStyle) -> dict:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = style.reference["lammps"]
        if "{setfl}" in lines:
            names = style.model["metadata"]["type_names"]
            style.analytic_model().write_setfl(folder / "tables.setfl", names)
            lines = lines.replace("{setfl}", str(folder / "tables.setfl"))
        outcome = run_lammps(style.start(folder, "on") + lines + style.measure("native"), folder)
        assert outcome.status == 0, outcome.text
        results = style.read(folder, "native")
    # LAMMPS' styles know no energies of isolated atoms
    names, shifts = style.model["metadata"]["type_names"], style.model["arguments"]["shifts"]
    given = style.pair_coeff.split()[3:]
    isolated = sum(shifts[names.index(name)] for name in read_data(style.data, given)[0].symbols)
    for result in results.values():
        result["energy"] = result["energy"] + isolated
    return results


def from_eager(style: ForceStyle) -> dict:
    """Velocity Verlet by the eager model."""
    import nequip_md
    from nequip_md.graph import Structure, build_graph, forces_from_gradient, stress_from_gradient
    from nequip_md.model import energy_and_gradient, with_dtype

    model = with_dtype(nequip_md.load_checkpoint(ROOT / style.model["checkpoint"]), "float64")
    atoms, masses = read_data(style.data, style.reference["eager"].split())

    def evaluate() -> dict:
        graph = build_graph(Structure.from_ase(atoms, model.type_names), model.config.cutoff_matrix())
        energies, gradient = energy_and_gradient(model, *graph.tensors)
        stress = -BAR * stress_from_gradient(graph, gradient, atoms.get_volume())[0].numpy()
        return {
            "energy": energies.sum()[None].detach().numpy(),
            "stress": stress[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]],
            "forces": forces_from_gradient(graph, gradient).numpy(),
        }

    now = first = evaluate()
    velocities = np.zeros((len(atoms), 3))
    for _ in range(style.steps):
        velocities += 0.5 * style.timestep * now["forces"] / (KINETIC * masses[:, None])
        atoms.positions += style.timestep * velocities
        now = evaluate()
        velocities += 0.5 * style.timestep * now["forces"] / (KINETIC * masses[:, None])
    return dict(zip(STAGES, (first, now)))


def read_data(text: str, names: list[str]) -> tuple[ase.Atoms, np.ndarray]:
    """Atoms by ID, and their masses, from a data file of style atomic with a box from the origin."""
    header, masses, atoms = text.replace("Atoms # atomic", "Masses").split("Masses")
    words = [line.split() for line in header.splitlines()]
    lx, ly, lz = (float(next(w[1] for w in words if w[-1:] == [f"{axis}hi"])) for axis in "xyz")
    xy, xz, yz = next(([float(x) for x in w[:3]] for w in words if w[-1:] == ["yz"]), (0.0, 0.0, 0.0))
    mass = {int(line.split()[0]): float(line.split()[1]) for line in masses.splitlines() if line.strip()}
    table = np.array([line.split() for line in atoms.splitlines() if line.strip()], dtype=float)
    table = table[np.argsort(table[:, 0])]
    types = table[:, 1].astype(int)
    cell = [[lx, 0, 0], [xy, ly, 0], [xz, yz, lz]]
    elements = [names[t - 1] for t in types]
    return ase.Atoms(elements, table[:, 2:], cell=cell, pbc=True), np.array([mass[t] for t in types])


def main() -> None:
    for path in map(Path, sys.argv[1:]):
        style = ForceStyle.load(path)
        results = from_lammps(style) if "lammps" in style.reference else from_eager(style)
        lines = [MARK]
        for stage in STAGES:
            result = results[stage]
            lines.append(f"{stage}:\n  energy: {float(result['energy'][0])!r}\n")
            lines.append(f"  stress: [{', '.join(repr(float(x)) for x in result['stress'])}]\n  forces:\n")
            lines += [f"  - [{', '.join(repr(float(x)) for x in force)}]\n" for force in result["forces"]]
        path.write_text(path.read_text().split(MARK)[0] + "".join(lines))


if __name__ == "__main__":
    main()
