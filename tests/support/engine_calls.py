"""Calls of the engine through its C header: the atoms of an evaluation, and reference results."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_double, c_int

import numpy as np
import torch

from support.analytic import LennardJones
from support.engine import (
    Results,
    System,
    c_array,
)


class Atoms:
    """Arguments of one evaluation; attributes may be changed before :meth:`evaluate`."""

    def __init__(self, positions, types, centres=None, type_map=(-1, 0, 1), owner=None):
        self.positions = np.array(positions, dtype=float).reshape(-1, 3)
        self.types, self.type_map, self.owner = list(types), list(type_map), owner
        self.centres = list(range(len(types))) if centres is None else list(centres)
        self.neighbours = [[j for j in range(len(types)) if j != i] for i in range(len(types))]
        self.lists_changed, self.mask = 1, 0
        self.overrides: dict = {}

    def evaluate(self, library, handle):
        n = len(self.types)
        self.forces, self.energies = c_array([0.0] * 3 * n, c_double), c_array([0.0] * n, c_double)
        self.virials, self.centroid = c_array([0.0] * 6 * n, c_double), c_array([0.0] * 9 * n, c_double)
        rows = [c_array(row, c_int) for row in self.neighbours]
        pointers = (POINTER(c_int) * max(n, 1))(*(ctypes.cast(row, POINTER(c_int)) for row in rows))
        fields = dict(
            num_all=n,
            positions=c_array(self.positions.ravel(), c_double),
            types=c_array(self.types, c_int),
            num_caller_types=len(self.type_map),
            type_map=c_array(self.type_map, c_int),
            num_centres=len(self.centres),
            centres=c_array(self.centres, c_int),
            num_neighbours=c_array([len(row) for row in self.neighbours], c_int),
            neighbours=pointers,
            neighbour_mask=self.mask,
            lists_changed=self.lists_changed,
            owner=None if self.owner is None else c_array(self.owner, c_int),
        )
        system = self.system = System(**{k: v for k, v in {**fields, **self.overrides}.items() if v is not None})
        results = Results(
            forces=self.forces, atom_energies=self.energies, atom_virials=self.virials, centroid_virials=self.centroid
        )
        self.status = library.nequip_md_evaluate(handle, byref(system), byref(results))
        self.energy, self.virial, self.failed_atom = results.energy, np.array(results.virial), results.failed_atom
        self.message = library.nequip_md_last_error(handle).decode()
        self.warning = library.nequip_md_last_warning(handle).decode()
        self.warned = results.warned_atom, results.warned_neighbour
        return self


def reference(model: LennardJones, atoms: Atoms):
    """Energies and forces of an open system by a dense sum and autograd."""
    x = torch.tensor(atoms.positions, requires_grad=True)
    types = torch.tensor([atoms.type_map[t] for t in atoms.types], dtype=torch.int64)
    edges = [(i, j) for i in atoms.centres for j in range(len(types)) if j != i]
    index = torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).T
    row_ptr = torch.zeros(len(types) + 1, dtype=torch.int64)
    energy = model(x[index[1]] - x[index[0]], index, row_ptr, types)
    energy = energy[atoms.centres]
    gradient = torch.autograd.grad(energy.sum(), x, materialize_grads=True)[0]
    return energy.detach().numpy(), -gradient.numpy()


def some_atoms(count: int, **options) -> Atoms:
    generator = np.random.default_rng(count)
    positions = 3.1 * np.array([[k % 3, k // 3 % 3, k // 9] for k in range(count)], dtype=float).reshape(-1, 3)
    return Atoms(
        positions + generator.uniform(-0.2, 0.2, positions.shape), [1 + k % 2 for k in range(count)], **options
    )


def found_by_engine(atoms: Atoms, skin: float) -> Atoms:
    atoms.overrides |= {"neighbours": None, "num_neighbours": None, "skin": skin}
    return atoms


def repeated(atoms: Atoms, length: float) -> Atoms:
    """The same atoms in a cubic cell, whose images the engine makes."""
    atoms.overrides |= {"neighbours": None, "num_neighbours": None, "periodic": (1, 1, 1), "skin": 0.4}
    atoms.overrides["cell"] = c_array((np.eye(3) * length).ravel(), c_double)
    return atoms
