"""The structure that every engine and every data set hands over: positions, cell, periodicity and model types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from nequip_md.errors import NequIPMDError

FARTHEST = 1e9
"""Angstrom from the origin, beyond which a position is refused: float64 resolves 1e-7 angstrom there."""

_FLAT = 1e-6
"""Smallest singular value of unit vectors that still span an area or a volume."""

_REMEDY = "the run has probably diverged; lower the time step or check the structure"


@dataclass(frozen=True, eq=False)
class Structure:
    """N atoms by model type, in a cell that is periodic in any of its directions.

    The arrays are NumPy's, as the neighbour search is SciPy's. They are copied, checked and made read-only when the
    structure is made, so that what takes a structure need not check it again.

    Attributes:
        positions: angstrom, float64 [N, 3], not necessarily inside the cell.
        cell: cell vectors in rows, angstrom, float64 [3, 3]; vectors of open directions may be zero.
        pbc: which directions are periodic, bool [3].
        types: model types, int64 [N].
        invertible_cell: ``cell`` with unit normals in place of the vectors of open directions, float64 [3, 3].

    Raises:
        NequIPMDError: an array of another shape or kind, a negative type, positions or a cell that are not finite or
            beyond 1e9 angstrom, a periodic direction without a cell vector, periodic cell vectors that are linearly
            dependent.
    """

    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    types: np.ndarray
    invertible_cell: np.ndarray = field(init=False, repr=False)

    def __post_init__(self):
        positions = _array("positions", self.positions, np.float64, (None, 3))
        cell = _array("cell", self.cell, np.float64, (3, 3))
        pbc = _array("pbc", self.pbc, np.bool_, (3,))
        types = _array("types", self.types, np.int64, (len(positions),))
        if (types < 0).any():
            raise NequIPMDError(f"atom {np.argmin(types)} has type {types.min()}; types are counted from 0")
        bad = np.flatnonzero(~(np.abs(positions) <= FARTHEST).all(axis=1))
        if bad.size:
            raise NequIPMDError(
                f"the position of atom {bad[0]} is {positions[bad[0]].tolist()} ({bad.size} of {len(positions)} atoms"
                f" are not finite, or farther than {FARTHEST:g} angstrom from the origin): {_REMEDY}"
            )
        arrays = {"positions": positions, "cell": cell, "pbc": pbc, "types": types}
        arrays["invertible_cell"] = _invertible_cell(cell, pbc)
        for name, array in arrays.items():
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    @classmethod
    def from_ase(cls, atoms: Atoms, type_names: Sequence[str], type_map: Mapping[str, str] | None = None) -> Structure:
        """The structure of ``atoms``, with types by chemical symbol.

        Args:
            type_names: the model's types; usually chemical symbols.
            type_map: chemical symbol to type name, where they differ, see :func:`atom_types`.

        Raises:
            NequIPMDError: an element that the model has no type for, or what :class:`Structure` refuses.
        """
        return cls(atoms.positions, atoms.cell[:], atoms.pbc, atom_types(atoms, type_names, type_map))

    @property
    def num_atoms(self) -> int:
        return len(self.types)

    @property
    def volume(self) -> float | None:
        """Volume of the cell, angstrom^3, see :func:`cell_volume`."""
        return cell_volume(self.cell)


def atom_types(atoms: Atoms, type_names: Sequence[str], type_map: Mapping[str, str] | None = None) -> np.ndarray:
    """Index into ``type_names`` of each atom, int64 [N].

    Args:
        type_names: the model's types; usually chemical symbols.
        type_map: chemical symbol to type name, where they differ; symbols that it does not hold stand for themselves.
            None where the caller takes none: then the message does not propose it.

    Raises:
        NequIPMDError: a symbol without a type, or a mapping to a type that the model lacks.
    """
    remedy = "type_names must list every element when a model is trained"
    if type_map is not None:
        remedy += "; if its types are not named by chemical symbols, give type_map"
    type_map = type_map or {}
    names = ", ".join(type_names)
    for symbol, name in type_map.items():
        if name not in type_names:
            raise NequIPMDError(
                f"type_map gives {name!r} for {symbol}, which is no type of the model; its types are {names}"
            )
    index = {name: k for k, name in enumerate(type_names)}
    elements, element_of_atom = np.unique(atoms.numbers, return_inverse=True)
    symbols = [chemical_symbols[z] for z in elements]
    unknown = sorted(s for s in symbols if type_map.get(s, s) not in index)
    if unknown:
        raise NequIPMDError(f"the model has no type for {', '.join(unknown)}; its types are {names}: {remedy}")
    return np.array([index[type_map.get(s, s)] for s in symbols], dtype=np.int64)[element_of_atom]


def cell_volume(cell: np.ndarray) -> float | None:
    """Volume of a cell, angstrom^3, whatever is periodic; None where its vectors span none (absent or coplanar).

    Args:
        cell: vectors in rows, angstrom [3, 3].
    """
    lengths = np.linalg.norm(cell, axis=1)
    if not lengths.all() or np.linalg.svd(cell / lengths[:, None], compute_uv=False)[-1] < _FLAT:
        return None
    return float(abs(np.linalg.det(cell)))


def _array(name: str, value: Any, dtype: type, shape: tuple[int | None, ...]) -> np.ndarray:
    """A copy of ``value`` as an array of this shape, None standing for any length.

    Raises:
        NequIPMDError: another shape, or values that the type does not hold exactly.
    """
    try:
        given = np.asarray(value)
        array = given.astype(dtype)  # a copy
        exact = dtype in (np.float64, given.dtype) or array.size == 0 or np.array_equal(array, given)
    except (TypeError, ValueError, OverflowError):
        exact = False
    if not exact:
        raise NequIPMDError(f"the {name} of a structure must be an array of {np.dtype(dtype).name}")
    if array.ndim != len(shape) or any(n not in (None, m) for n, m in zip(shape, array.shape)):
        wanted = ", ".join("N" if n is None else str(n) for n in shape)
        raise NequIPMDError(f"a structure's {name} must have shape [{wanted}], not {list(array.shape)}")
    return array


def _invertible_cell(cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """``cell`` with unit normals in place of the vectors of open directions, [3, 3]."""
    if not (np.abs(cell) <= FARTHEST).all():
        raise NequIPMDError(f"the cell {cell.tolist()} is not finite, or longer than {FARTHEST:g} angstrom: {_REMEDY}")
    if not pbc.any():
        return np.eye(3)
    lengths = np.linalg.norm(cell, axis=1)
    for axis in np.flatnonzero(pbc & (lengths == 0)):
        raise NequIPMDError(
            f"the structure is periodic along cell vector {axis + 1}, which is zero: give the cell or set pbc to"
            " False there"
        )
    _, sizes, directions = np.linalg.svd(cell[pbc] / lengths[pbc, None])
    if sizes[-1] < _FLAT:
        raise NequIPMDError(
            f"the periodic cell vectors {cell[pbc].tolist()} are linearly dependent: the cell has no volume"
        )
    completed = cell.copy()
    completed[~pbc] = directions[pbc.sum() :]
    return completed
