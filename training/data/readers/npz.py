"""NumPy archives of one molecule's trajectory: the layouts of rMD17, and of sGDML, in which MD17 and MD22 come."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from nequip_md.errors import NequIPMDError
from nequip_md.training.data.units import ENERGY, LENGTH, Units

_LAYOUTS = {
    "rMD17": ("nuclear_charges", "coords", "energies", "forces"),
    "sGDML": ("z", "R", "E", "F"),
}
"""Names of atomic numbers [N], positions [n, N, 3], energies [n] or [n, 1], forces [n, N, 3]."""
_RMD17 = Units("kcal/mol", "angstrom")
"""As said in the readme of the data set (doi 10.6084/m9.figshare.12672038)."""
_SGDML_NAMES = {"ang": "angstrom"}


def frames(path: str, given: Units) -> Iterator[tuple[str, Atoms]]:
    """Frames in eV and angstrom.

    Args:
        given: units that the user has named, which precede those of the layout.

    Raises:
        NequIPMDError: another layout, arrays whose shapes do not fit together, units that nothing tells.
    """
    with np.load(path, allow_pickle=False) as archive:
        layout = next((name for name, keys in _LAYOUTS.items() if set(keys[:2]) <= set(archive.files)), None)
        if layout is None:
            known = "; ".join(f"{name}: {', '.join(keys)}" for name, keys in _LAYOUTS.items())
            raise NequIPMDError(f"it has the arrays {', '.join(archive.files)}; layouts that are known are {known}")
        units = _units(layout, archive, given)
        keys = _LAYOUTS[layout]
        numbers, positions, energies, forces = (archive[k] if k in archive.files else None for k in keys)
    count, shape = len(positions), (len(positions), len(numbers), 3)
    for key, array, size in ((keys[1], positions, None), (keys[2], energies, count), (keys[3], forces, None)):
        if array is not None and (array.size != size if size is not None else array.shape != shape):
            raise NequIPMDError(f"its array {key} has shape {array.shape}; {keys[0]} has {len(numbers)} atoms")
    for k in range(count):
        atoms = Atoms(numbers, positions[k].astype(float) * units.to_angstrom)
        results = {}
        if energies is not None:
            results["energy"] = float(energies.reshape(-1)[k]) * units.to_ev
        if forces is not None:
            results["forces"] = forces[k].astype(float) * units.to_ev_per_angstrom
        atoms.calc = SinglePointCalculator(atoms, **results)
        yield "", atoms


def _units(layout: str, archive: np.lib.npyio.NpzFile, given: Units) -> Units:
    if layout == "rMD17":
        energy, length = _RMD17.energy, _RMD17.length
    else:
        energy, length = (str(archive[key]) if key in archive.files else None for key in ("e_unit", "r_unit"))
        length = _SGDML_NAMES.get(str(length).lower(), length)
    units = replace(given, energy=given.energy or energy, length=given.length or length)
    if units.energy not in ENERGY or units.length not in LENGTH:
        raise NequIPMDError(
            f"its units are {units.energy or 'not given'} and {units.length or 'not given'}; name them in"
            f" data.energy_unit ({', '.join(ENERGY)}) and data.length_unit ({', '.join(LENGTH)})"
        )
    return units
