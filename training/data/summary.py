"""What is in data files: numbers for a table, and a picture."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import combinations_with_replacement

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from rich.table import Table

from nequip_md.atomic import replacing
from nequip_md.errors import NequIPMDError
from nequip_md.graph import Structure, build_graph
from nequip_md.training.data.labels import FrameLabels, is_isolated_atom

_FORCE_BINS = np.logspace(-4, 4, 161)
_BIN = 0.02
"""Angstrom; width of the bins of distances."""
_MOST_PAIRS = 10
"""Pairs of elements in the picture, the most frequent ones."""


class Summary:
    """Collects what is in frames; memory grows by a few numbers for each.

    Attributes:
        reach: distances up to here are collected, angstrom.
        num_atoms: of each frame.
        energies: eV/atom, of the frames that have one.
        frames_of: frames that hold each element, by its symbol.
        forces: counts of force norms in bins.
        closest: smallest distance of each pair of elements, angstrom.
    """

    def __init__(self, reach: float = 5.0):
        self.reach = reach
        self.num_atoms: list[int] = []
        self.energies: list[float] = []
        self.frames_of: dict[str, int] = {}
        self.forces = np.zeros(len(_FORCE_BINS) - 1, dtype=np.int64)
        self.closest: dict[tuple[str, str], float] = {}
        self.isolated_atoms = self.periodic = 0
        self._distances: dict[tuple[str, str], np.ndarray] = {}
        self._force_squares = self._force_count = self._largest_force = 0.0
        self._stresses: list[float] = []

    def add(self, atoms: Atoms, found: FrameLabels) -> None:
        if is_isolated_atom(atoms):
            self.isolated_atoms += 1
            return
        self.num_atoms.append(len(atoms))
        self.periodic += bool(atoms.pbc.any())
        for symbol in set(atoms.symbols):
            self.frames_of[symbol] = self.frames_of.get(symbol, 0) + 1
        if found.energy is not None:
            self.energies.append(found.energy / len(atoms))
        if found.stress is not None:
            self._stresses.append(float(np.abs(found.stress).max()))
        if found.forces is not None:
            norms = np.linalg.norm(found.forces, axis=1)
            self.forces += np.histogram(np.clip(norms, _FORCE_BINS[0], _FORCE_BINS[-1]), _FORCE_BINS)[0]
            self._force_squares += float((norms**2).sum())
            self._force_count += 3 * len(norms)
            self._largest_force = max(self._largest_force, float(norms.max()))
        self._add_distances(atoms)

    def _add_distances(self, atoms: Atoms) -> None:
        structure = Structure(atoms.positions, atoms.cell[:], atoms.pbc, atoms.numbers)
        graph = build_graph(structure, self.reach)
        lengths = graph.edge_vectors.norm(dim=1).numpy()
        first, second = np.sort(atoms.numbers[graph.edge_index.numpy()], axis=0)
        keys = first * 128 + second
        for key in np.unique(keys):
            pair = chemical_symbols[key // 128], chemical_symbols[key % 128]
            chosen = lengths[keys == key]
            counts = np.bincount((chosen / _BIN).astype(int), minlength=round(self.reach / _BIN) + 1)
            self._distances[pair] = self._distances.get(pair, 0) + counts
            self.closest[pair] = min(self.closest.get(pair, np.inf), float(chosen.min()))

    @property
    def table(self) -> Table:
        """A row for each quantity: smallest, mean, largest."""
        table = Table(title=f"{len(self.num_atoms)} frames, {sum(self.num_atoms)} atoms")
        for heading in ("quantity", "frames", "smallest", "mean", "largest", "unit"):
            table.add_column(heading, justify="left" if heading in ("quantity", "unit") else "right")
        frames = len(self.num_atoms)
        rows = [("atoms in a frame", self.num_atoms, ""), ("energy per atom", self.energies, "eV")]
        rows.append(("largest stress component", self._stresses, "eV/Å³"))
        for name, values, unit in rows:
            if values:
                numbers = [f"{f(values):.6g}" for f in (np.min, np.mean, np.max)]
                table.add_row(name, str(len(values)), *numbers, unit)
        if self._force_count:
            rms = np.sqrt(self._force_squares / self._force_count)
            table.add_row("force component, RMS", "", "", f"{rms:.4g}", "", "eV/Å")
            table.add_row("force on an atom", "", "", "", f"{self._largest_force:.4g}", "eV/Å")
        table.add_row("periodic", str(self.periodic), "", "", "", "")
        table.add_row("isolated atoms", str(self.isolated_atoms), "", "", "", "")
        for symbol in sorted(self.frames_of, key=chemical_symbols.index):
            table.add_row(f"with {symbol}", str(self.frames_of[symbol]), "", "", "", "")
        for a, b in sorted(self.closest):
            table.add_row(f"distance {a}-{b}", "", f"{self.closest[a, b]:.3f}", "", "", "Å")
        table.caption = f"distances up to {self.reach:g} Å" if frames else None
        return table

    def plot(self, path: str | os.PathLike) -> None:
        """Draw numbers of atoms, energies, force norms and distances to a picture (.png, .pdf, .svg).

        Raises:
            NequIPMDError: Matplotlib is not installed, or does not know the kind of picture.
        """
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
            from matplotlib.ticker import MaxNLocator
        except ModuleNotFoundError:
            raise NequIPMDError("--plot needs the package matplotlib: pip install matplotlib") from None
        figure = Figure(figsize=(10, 7), layout="constrained")
        canvas = FigureCanvasAgg(figure)
        axes = figure.subplots(2, 2)
        smallest, largest = min(self.num_atoms, default=0), max(self.num_atoms, default=0)
        width = -(-(largest - smallest + 1) // 50)  # bins of whole numbers, 50 at most
        axes[0, 0].hist(self.num_atoms, np.arange(smallest, largest + 2 * width, width) - 0.5, color="tab:blue")
        axes[0, 0].set(xlabel="atoms in a frame", ylabel="frames", xlim=(smallest - 2.5, largest + 2.5))
        axes[0, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
        axes[0, 1].hist(self.energies, bins=int(np.clip(2 * np.sqrt(len(self.energies)), 5, 60)), color="tab:orange")
        axes[0, 1].set(xlabel="energy per atom, eV", ylabel="frames")
        axes[0, 1].ticklabel_format(axis="x", useOffset=False)
        axes[0, 1].xaxis.set_major_locator(MaxNLocator(4))
        axes[1, 0].stairs(self.forces, _FORCE_BINS, fill=True, color="tab:green")
        used = np.flatnonzero(self.forces)
        if used.size:
            axes[1, 0].set_xlim(_FORCE_BINS[used[0]], _FORCE_BINS[used[-1] + 1])
        axes[1, 0].set(xscale="log", xlabel="force on an atom, eV/Å", ylabel="atoms")
        for (a, b), density in self._densities():
            axes[1, 1].plot(_BIN * (np.arange(len(density)) + 0.5), density, label=f"{a}-{b}", linewidth=1)
        if self._distances:
            axes[1, 1].legend(ncols=2, fontsize="small", loc="upper right")
        axes[1, 1].set(xlabel="distance, Å", ylabel="pairs in a frame, per Å", xlim=(0, self.reach), ylim=(0, None))
        try:
            with replacing(path) as unfinished:
                canvas.print_figure(unfinished, dpi=120)
        except ValueError as error:
            raise NequIPMDError(f"cannot draw {path}: {error}") from None

    def _densities(self) -> Iterable[tuple[tuple[str, str], np.ndarray]]:
        symbols = sorted(self.frames_of, key=chemical_symbols.index)
        pairs = [p for p in combinations_with_replacement(symbols, 2) if p in self._distances]
        pairs = sorted(pairs, key=lambda p: -self._distances[p].sum())[:_MOST_PAIRS]
        for pair in pairs:
            # each pair of atoms is an edge in both directions
            yield pair, self._distances[pair][:-1] / (2 * _BIN * len(self.num_atoms))
