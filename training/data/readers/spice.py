"""The SPICE data set (github.com/openmm/spice-dataset) as it is distributed: one HDF5 group for each molecule.

A group holds ``atomic_numbers`` [N], ``conformations`` [n, N, 3] (bohr), ``dft_total_energy`` [n] (hartree),
``dft_total_gradient`` [n, N, 3] (hartree/bohr), ``formation_energy`` [n] (hartree), ``subset`` [1], ``smiles`` [1].
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from nequip_md.errors import NequIPMDError, install_command
from nequip_md.training.data.units import Units

if TYPE_CHECKING:
    import h5py

_ATOMIC = Units("hartree", "bohr")
_UNITS = {
    "conformations": "bohr",
    "dft_total_energy": "hartree",
    "dft_total_gradient": "hartree/bohr",
    "formation_energy": "hartree",
}


def frames(path: str, _: Units) -> Iterator[tuple[str, Atoms]]:
    """Frames in eV and angstrom, a molecule's conformations after each other.

    ``Atoms.info`` has ``molecule`` (the group), ``smiles``, ``subset``, ``charge`` (of the SMILES, elementary charges),
    ``fragments`` (molecules in the SMILES) and ``formation_energy`` (eV, for ``data.energy_key``).

    Raises:
        NequIPMDError: another layout or other units, shapes that do not fit together, h5py is not installed.
    """
    try:
        import h5py
    except ModuleNotFoundError:
        raise NequIPMDError(f"HDF5 files need the package h5py: {install_command('train')}") from None
    with h5py.File(path, "r") as file:
        for molecule in file:
            group = file[molecule]
            if not isinstance(group, h5py.Group) or not {"atomic_numbers", "conformations"} <= set(group):
                raise NequIPMDError(
                    f"{molecule} is not a group with atomic_numbers and conformations, as the files of the SPICE data"
                    " set have; convert other HDF5 files to extended XYZ first"
                )
            for k, atoms in enumerate(_conformations(molecule, group)):
                yield f"conformation {k} of {molecule}", atoms


def _conformations(molecule: str, group: h5py.Group) -> Iterator[Atoms]:
    numbers = group["atomic_numbers"][()]
    arrays = {name: _array(molecule, group, name, len(numbers)) for name in _UNITS if name in group}
    info = {"molecule": molecule}
    for name in ("smiles", "subset"):
        if name in group:
            info[name] = _text(group[name])
    if "smiles" in info:
        info["charge"] = formal_charge(info["smiles"])
        info["fragments"] = info["smiles"].count(".") + 1
    for k, positions in enumerate(arrays["conformations"]):
        atoms = Atoms(numbers, positions * _ATOMIC.to_angstrom, info=info)
        results = {}
        if "dft_total_energy" in arrays:
            results["energy"] = float(arrays["dft_total_energy"][k]) * _ATOMIC.to_ev
        if "dft_total_gradient" in arrays:
            results["forces"] = -arrays["dft_total_gradient"][k] * _ATOMIC.to_ev_per_angstrom
        if "formation_energy" in arrays:
            atoms.info["formation_energy"] = float(arrays["formation_energy"][k]) * _ATOMIC.to_ev
        atoms.calc = SinglePointCalculator(atoms, **results)
        yield atoms


def _array(molecule: str, group: h5py.Group, name: str, num_atoms: int) -> np.ndarray:
    data = group[name]
    unit = data.attrs.get("units", _UNITS[name])
    unit = unit.decode() if isinstance(unit, bytes) else unit
    count = len(group["conformations"])
    shape = (count,) if name.endswith("energy") else (count, num_atoms, 3)
    if unit != _UNITS[name] or data.shape != shape:
        raise NequIPMDError(
            f"{name} of {molecule} has shape {data.shape} and unit {unit}; SPICE has {shape} and {_UNITS[name]} there"
        )
    return data[()].astype(np.float64)


def _text(data: h5py.Dataset) -> str:
    value = np.asarray(data[()]).reshape(-1)[0]
    return value.decode() if isinstance(value, bytes) else str(value)


def formal_charge(smiles: str) -> int:
    """Sum of the formal charges of a SMILES string, elementary charges: ``[NH4+:1]`` has 1, ``[Mg+2]`` and ``[Mg++]`` 2."""
    charge = 0
    for atom in re.findall(r"\[([^\]]*)\]", smiles):
        if found := re.search(r"([+-]+)(\d*)(?::\d+)?$", atom):
            signs, number = found.groups()
            charge += (1 if signs[0] == "+" else -1) * (int(number) if number else len(signs))
    return charge
