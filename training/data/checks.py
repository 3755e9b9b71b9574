"""Frames that are probably wrong: what to look at before hours are spent on training."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms

from nequip_md.errors import NequIPMDError
from nequip_md.graph import Structure, build_graph
from nequip_md.training.data import readers
from nequip_md.training.data.label_counts import LabelCounter, LabelCounts
from nequip_md.training.data.labels import FrameLabels, Labels, is_isolated_atom
from nequip_md.training.data.samples import MIN_DISTANCE, labels_in

log = logging.getLogger(__name__)

LARGE_FORCE = 100.0
"""eV/angstrom; few data sets have such forces on purpose."""
OUTLIER = 10.0
"""Robust standard deviations between an energy and the fit by composition, beyond which a frame is suspicious."""
_SMALLEST_SIGMA = 1e-6
"""eV/atom, taken where most frames lie on the fit."""
_MAD_TO_SIGMA = 1.4826
"""Standard deviation of a normal distribution in units of its median absolute deviation."""


@dataclass(frozen=True)
class Suspicion:
    """What is odd about a frame.

    Attributes:
        frame: its name, with file and number.
        reason: in words.
    """

    frame: str
    reason: str

    def __str__(self) -> str:
        return f"{self.frame}: {self.reason}"


def check_files(files: Sequence[str], labels: Labels) -> tuple[list[LabelCounts], list[Suspicion]]:
    """The labels of some files, and their suspicious frames in the order of the frames.

    A frame that training would refuse is one of them; one that cannot be read ends its file. Frames may be anywhere in
    the files, so that a duplicate of another file's frame is found.
    """
    counts, found = [], []
    energies = _Energies()
    seen: dict[bytes, str] = {}
    for path in files:
        counter = LabelCounter("check", path, labels)
        try:
            names = labels_in(path, labels)
            for name, atoms in readers.read(path, labels.units):
                found += [Suspicion(name, reason) for reason in _frame(name, atoms, names, counter, energies, seen)]
        except NequIPMDError as error:
            found.append(Suspicion(path, str(error).removeprefix(f"{path}: ")))
        counts.append(counter.result())
    return counts, found + energies.outliers()


def _frame(
    name: str, atoms: Atoms, labels: Labels, counter: LabelCounter, energies: _Energies, seen: dict[bytes, str]
) -> Iterator[str]:
    first = seen.setdefault(_structure_hash(atoms), name)
    if first != name:
        yield f"the same structure as {first}"
    try:
        found = labels.of(atoms)
    except NequIPMDError as error:
        yield str(error)
        return
    if is_isolated_atom(atoms):
        counter.add_isolated_atom()
        return
    counter.add(atoms, found)
    energies.add(name, atoms, found)
    if found.forces is not None and len(atoms):
        norms = np.linalg.norm(found.forces, axis=1)
        if norms.max() > LARGE_FORCE:
            yield f"the force on atom {norms.argmax()} ({atoms.symbols[norms.argmax()]}) is {norms.max():.4g} eV/Å"
    try:
        structure = Structure(atoms.positions, atoms.cell[:], atoms.pbc, np.zeros(len(atoms), dtype=np.int64))
        graph = build_graph(structure, MIN_DISTANCE)
    except NequIPMDError as error:
        yield str(error)
        return
    if graph.num_edges:
        i, j = graph.edge_index[:, 0].tolist()
        yield f"atoms {i} and {j} are {graph.edge_vectors[0].norm():.3g} Å apart (periodic images counted)"


def _structure_hash(atoms: Atoms) -> bytes:
    digest = hashlib.blake2b(atoms.numbers.tobytes(), digest_size=16)
    for array in (atoms.positions, atoms.cell.array):
        digest.update((np.round(array, 6) + 0.0).tobytes())  # + 0.0: no negative zero
    digest.update(atoms.pbc.tobytes())
    return digest.digest()


class _Energies:
    """Energies of all frames against one least squares fit by composition."""

    def __init__(self):
        self._names: list[str] = []
        self._compositions: list[np.ndarray] = []
        self._energies: list[float] = []

    def add(self, name: str, atoms: Atoms, found: FrameLabels) -> None:
        # atoms alone have no bonds, which the fit of other frames takes for a part of their energies
        if found.energy is not None and (len(atoms) > 1 or atoms.pbc.any()):
            self._names.append(name)
            self._compositions.append(np.bincount(atoms.numbers, minlength=119).astype(np.int16))
            self._energies.append(found.energy)

    def outliers(self) -> list[Suspicion]:
        """Frames far from the fit, which is repeated without them until they stay the same."""
        if len(self._energies) < 3:
            return []
        composition = np.array(self._compositions, dtype=float)
        composition = composition[:, composition.any(axis=0)]
        atoms = composition.sum(axis=1)
        rows, energies = composition / atoms[:, None], np.array(self._energies) / atoms
        kept = np.ones(len(energies), dtype=bool)
        for _ in range(20):
            shifts = np.linalg.lstsq(rows[kept], energies[kept], rcond=None)[0]
            residual = energies - rows @ shifts
            residual -= np.median(residual)
            sigma = max(_MAD_TO_SIGMA * float(np.median(np.abs(residual))), _SMALLEST_SIGMA)
            before, kept = kept, np.abs(residual) <= OUTLIER * sigma
            if (kept == before).all():
                break
        return [
            Suspicion(
                self._names[k],
                f"its energy is {residual[k]:+.4g} eV/atom off the fit by composition, {abs(residual[k]) / sigma:.0f}"
                f" times the usual {sigma:.3g} eV/atom",
            )
            for k in np.flatnonzero(~kept)
        ]
