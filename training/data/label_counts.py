"""Which file has which labels on how many frames: a table, and warnings where labels are missing or not read."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from ase import Atoms

from nequip_md.training.data.labels import GPA, FrameLabels, Labels, NamesSeen

log = logging.getLogger(__name__)

LARGE_STRESS = 1.0
"""eV/angstrom^3 (160 GPa): above this, units and sign should be looked at."""

_KINDS = ("energy", "forces", "stress")
_KEYS = {"energy": "energy_key", "forces": "force_key", "stress": "stress_key"}


@dataclass(frozen=True)
class LabelCounts:
    """Labels of one file.

    Attributes:
        role: what the file is for (``train``, ...).
        path: of the file.
        frames: number of frames.
        energy, forces, stress: frames with that label, as it is used in training.
        unused_stress: frames whose stress is not used, because their cells have no volume.
        isolated_atoms: frames of isolated atoms, which are not among ``frames``.
        names: what the frames have, for messages.
        left_out: frames that were left out, by reason.
    """

    role: str
    path: str
    frames: int
    energy: int
    forces: int
    stress: int
    unused_stress: int
    isolated_atoms: int
    names: str
    left_out: dict[str, int] = field(default_factory=dict)


class LabelCounter:
    """Counts the labels of a file, one frame after the other, and warns of what seems to be forgotten.

    Attributes:
        role: what the file is for (``train``, ...).
        path: of the file.
    """

    def __init__(self, role: str, path: str, names: Labels):
        """``names`` are those under which labels are looked for."""
        self.role, self.path, self._names = role, path, names
        self._frames = self._empty = self._unused_stress = self._isolated_atoms = 0
        self._present, self._lacking, self._left_out = Counter(), Counter(), Counter()
        self._seen, self._seen_in_empty = NamesSeen(), NamesSeen()
        self._seen_without = {kind: NamesSeen() for kind in _KINDS}
        self._largest_stress = 0.0
        self._ignored: set[str] = set()

    def add(self, atoms: Atoms, found: FrameLabels) -> None:
        """Count a frame that is no isolated atom, and the labels that were found."""
        self._frames += 1
        self._seen.add(atoms)
        self._unused_stress += found.has_unused_stress
        self._ignored.update(k for k in atoms.info if re.fullmatch(r"config_\w+_weight", k))
        if found.stress is not None:
            self._largest_stress = max(self._largest_stress, np.abs(found.stress).max())
        if found.is_empty:
            self._empty += 1
            self._seen_in_empty.add(atoms)
        for kind in _KINDS:
            if getattr(found, kind) is not None:
                self._present[kind] += 1
            elif not found.is_empty and not (kind == "stress" and found.has_unused_stress):
                self._lacking[kind] += 1
                self._seen_without[kind].add(atoms)

    def add_isolated_atom(self) -> None:
        self._isolated_atoms += 1

    def leave_out(self, reason: str) -> None:
        """Count a frame that is left out."""
        self._left_out[reason] += 1

    def add_counts(self, later: LabelCounter) -> None:
        """Add what another one has counted of the frames that follow in the same file."""
        for name in ("_frames", "_empty", "_unused_stress", "_isolated_atoms"):
            setattr(self, name, getattr(self, name) + getattr(later, name))
        for name in ("_present", "_lacking", "_left_out", "_ignored", "_seen", "_seen_in_empty"):
            getattr(self, name).update(getattr(later, name))
        for kind, seen in self._seen_without.items():
            seen.update(later._seen_without[kind])
        self._largest_stress = max(self._largest_stress, later._largest_stress)

    def result(self) -> LabelCounts:
        """The counts; warns of frames without any label and of names that look like labels but are not read."""
        self._warn_of_missing()
        self._warn_of_odd_values()
        if self._unused_stress:
            log.warning(
                "warning: %s: the stress of %d of %d frames is not used, because their cells have no volume (three"
                " vectors that are not coplanar)",
                self.path,
                self._unused_stress,
                self._frames,
            )
        return LabelCounts(
            self.role,
            self.path,
            self._frames,
            **{kind: self._present[kind] for kind in _KINDS},
            unused_stress=self._unused_stress,
            isolated_atoms=self._isolated_atoms,
            names=self._seen.describe(),
            left_out=dict(self._left_out),
        )

    def _warn_of_missing(self) -> None:
        if self._empty:
            log.warning(
                "warning: %s: %d of %d frames have no label that is read; they have %s. data.energy_key, force_key,"
                " stress_key and virial_key take a name or a list of names",
                self.path,
                self._empty,
                self._frames,
                self._seen_in_empty.describe(),
            )
        for kind in _KINDS:
            if similar := self._seen_without[kind].similar_to(kind):
                key = "virial_key" if "virial" in similar[0].lower() else _KEYS[kind]
                used = getattr(self._names, "virial" if key == "virial_key" else kind)
                used = [kind] if used is None else [used] if isinstance(used, str) else list(used)
                log.warning(
                    "warning: %s: %d of %d frames have no %s under the name %s, but they have %s;"
                    " data.%s takes a name or a list of names",
                    self.path,
                    self._lacking[kind],
                    self._frames,
                    kind,
                    ", ".join(used),
                    ", ".join(similar),
                    key,
                )

    def _warn_of_odd_values(self) -> None:
        if self._largest_stress > LARGE_STRESS:
            log.warning(
                "warning: %s: the largest component of a stress is %.3g eV/Å³ (%.0f GPa); if that is not so, check its"
                " unit (data.stress_unit) and its sign (data.stress_sign)",
                self.path,
                self._largest_stress,
                self._largest_stress * GPA,
            )
        if self._ignored:
            text = "warning: %s: %s is not used; one weight for a frame is (data.weight_key)"
            log.warning(text, self.path, ", ".join(sorted(self._ignored)))


def log_label_table(counts: Sequence[LabelCounts]) -> None:
    """Log the labels of every file as a table."""
    heading = ("data", "frames", "energy", "forces", "stress", "isolated atoms", "file")
    cells = [(c.role, c.frames, c.energy, c.forces, c.stress, c.isolated_atoms, c.path) for c in counts]
    rows = [heading, *(tuple(map(str, row)) for row in cells)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    log.info("frames with each label:")
    for role, *numbers, path in rows:
        columns = [f"{n:>{w}}" for n, w in zip(numbers, widths[1:-1], strict=True)]
        log.info("  %s", "  ".join([f"{role:<{widths[0]}}", *columns, path]))
