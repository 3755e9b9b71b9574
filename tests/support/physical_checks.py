"""Checks of properties that the exact energy of atoms has, for any model.

``evaluate(atoms)`` gives the energy (eV), the energies of the atoms [N], the forces (eV/angstrom [N, 3]) and the stress
(eV/angstrom^3 [3, 3], or None without periodicity). Every check asserts a minimum signal: zeros cannot pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from ase import Atoms
from scipy.spatial.transform import Rotation

from nequip_md.graph import Structure, build_graph, forces_from_gradient, stress_from_gradient
from nequip_md.model import energy_and_gradient

MINIMUM_SIGNAL = 1e-3  # eV/angstrom


class Result(NamedTuple):
    """Results of one structure: energy, energies of atoms, forces, stress."""

    energy: float
    energies: np.ndarray
    forces: np.ndarray
    stress: np.ndarray | None


Evaluate = Callable[[Atoms], Result]


def evaluator(model: torch.nn.Module, config) -> Evaluate:
    """A function that evaluates the eager model on structures."""

    def evaluate(atoms: Atoms) -> Result:
        graph = build_graph(Structure.from_ase(atoms, config.type_names), config.cutoff_matrix())
        energies, gradient = energy_and_gradient(model, *graph.tensors)
        forces = forces_from_gradient(graph, gradient)
        stress = stress_from_gradient(graph, gradient, atoms.get_volume())[0].numpy() if atoms.pbc.all() else None
        return Result(energies.sum().item(), energies.numpy(), forces.numpy(), stress)

    return evaluate


def close(actual, expected, tolerance: float) -> None:
    """Assert that the difference is small relative to the largest expected number."""
    scale = max(np.abs(expected).max(), MINIMUM_SIGNAL)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


def check_rotation(evaluate: Evaluate, atoms: Atoms, seed: int = 0) -> None:
    """Energy is invariant, forces and stress turn with the atoms, also under a rotation with reflection."""
    plain = evaluate(atoms)
    assert np.abs(plain.forces).max() > MINIMUM_SIGNAL
    for sign in (1, -1):
        turn = sign * Rotation.random(rng=np.random.default_rng(seed)).as_matrix()
        turned = atoms.copy()
        turned.set_cell(atoms.cell[:] @ turn.T)
        turned.positions = atoms.positions @ turn.T
        result = evaluate(turned)
        close(result.energies, plain.energies, 1e-11)
        close(result.forces, plain.forces @ turn.T, 1e-10)
        if plain.stress is not None:
            close(result.stress, turn @ plain.stress @ turn.T, 1e-10)


def check_permutation(evaluate: Evaluate, atoms: Atoms, seed: int = 0) -> None:
    """Results do not depend on the order of atoms, on a common translation, or on the choice of periodic images."""
    rng = np.random.default_rng(seed)
    plain, order = evaluate(atoms), rng.permutation(len(atoms))
    moved = atoms[order]
    moved.positions += rng.normal(size=3)
    if atoms.pbc.all():
        moved.positions += rng.integers(-1, 2, size=(len(atoms), 3)) @ atoms.cell[:]
    result = evaluate(moved)
    close(result.energies, plain.energies[order], 1e-11)
    close(result.forces, plain.forces[order], 1e-10)


def check_size_consistency(evaluate: Evaluate, first: Atoms, second: Atoms, both: Atoms) -> None:
    """Parts that are far apart have the same results together as alone."""
    parts, whole = [evaluate(first), evaluate(second)], evaluate(both)
    close(whole.energy, sum(part.energy for part in parts), 1e-11)
    close(whole.forces, np.concatenate([part.forces for part in parts]), 1e-11)


def check_finite_differences(evaluate: Evaluate, atoms: Atoms, tolerance: float = 1e-8, seed: int = 0) -> None:
    """Forces and stress are the energy's derivatives along a random displacement and a random symmetric strain."""
    rng = np.random.default_rng(seed)
    plain = evaluate(atoms)

    def derivative(move: Callable[[float], Atoms], step: float = 2e-4) -> float:
        """Five-point rule, error of order step^4."""
        energies = [evaluate(move(k * step)).energy for k in (-2, -1, 1, 2)]
        return (energies[0] - 8 * energies[1] + 8 * energies[2] - energies[3]) / (12 * step)

    # partly along the forces and the stress, so that the derivatives are not small
    direction = rng.normal(size=(len(atoms), 3)) + plain.forces / np.sqrt(np.mean(plain.forces**2))

    def displaced(step: float) -> Atoms:
        moved = atoms.copy()
        moved.positions += step * direction
        return moved

    expected = -(plain.forces * direction).sum()
    assert abs(expected) > MINIMUM_SIGNAL
    close(derivative(displaced), expected, tolerance)
    if plain.stress is None:
        return
    close(plain.stress, plain.stress.T, 1e-10)
    strain = rng.normal(size=(3, 3))
    strain = 0.5 * (strain + strain.T) + plain.stress / np.sqrt(np.mean(plain.stress**2))

    def strained(step: float) -> Atoms:
        moved = atoms.copy()
        moved.set_cell(atoms.cell[:] @ (np.eye(3) + step * strain), scale_atoms=True)
        return moved

    expected = atoms.get_volume() * (plain.stress * strain).sum()
    assert abs(expected) > MINIMUM_SIGNAL
    close(derivative(strained), expected, tolerance)


def check_smooth_cutoff(evaluate: Evaluate, symbols: str, cutoff: float) -> None:
    """A pair's energy goes to zero at least as (1 - x)^3, so its force and that force's slope are continuous."""
    apart = [
        evaluate(Atoms(symbols, [[0, 0, 0], [0, 0, distance]])) for distance in (cutoff, cutoff + 1e-6, 2 * cutoff)
    ]
    alone = [evaluate(Atoms(symbol, [[0, 0, 0]])).energy for symbol in Atoms(symbols).get_chemical_symbols()]
    for result in apart:
        close(result.energies, np.array(alone), 1e-13)
        assert not result.forces.any()
    direction = np.array([0.36, 0.48, 0.8])

    def near(gap: float) -> Result:
        return evaluate(Atoms(symbols, [[0, 0, 0], cutoff * (1 - gap) * direction]))

    assert abs(near(0.5).energy - sum(alone)) > MINIMUM_SIGNAL
    wide, narrow = near(2e-3), near(1e-3)
    # 8 and 4 for the third power, less corrections of relative order ``gap``
    assert (wide.energy - sum(alone)) / (narrow.energy - sum(alone)) > 7.5
    assert wide.forces[1, 2] / narrow.forces[1, 2] > 3.7
