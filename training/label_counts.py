"""Which file has which labels on how many frames: a table, and warnings where labels are missing or not read."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms

from nequip_md.training.labels import GPA, FrameLabels, Labels, describe_names, similar_names

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


def count_labels(
    role: str, path: str, frames: Sequence[Atoms], found: Sequence[FrameLabels], names: Labels, isolated_atoms: int
) -> LabelCounts:
    """Count the labels of a file, and warn of frames without any and of names that look like labels but are not read.

    Args:
        frames: of the file, without isolated atoms.
        found: labels of these frames.
        names: under which they were looked for.
    """
    _warn_of_missing(path, frames, found, names)
    _warn_of_odd_values(path, frames, found)
    present = {kind: sum(getattr(f, kind) is not None for f in found) for kind in _KINDS}
    unused = sum(f.has_unused_stress for f in found)
    if unused:
        log.warning(
            "warning: %s: the stress of %d of %d frames is not used, because their cells have no volume (three vectors"
            " that are not coplanar)",
            path,
            unused,
            len(frames),
        )
    return LabelCounts(
        role,
        path,
        len(frames),
        **present,
        unused_stress=unused,
        isolated_atoms=isolated_atoms,
        names=describe_names(frames),
    )


def _warn_of_missing(path: str, frames: Sequence[Atoms], found: Sequence[FrameLabels], names: Labels) -> None:
    empty = [a for a, f in zip(frames, found, strict=True) if f.is_empty]
    if empty:
        log.warning(
            "warning: %s: %d of %d frames have no label that is read; they have %s. data.energy_key, force_key,"
            " stress_key and virial_key take a name or a list of names",
            path,
            len(empty),
            len(frames),
            describe_names(empty),
        )
    for kind in _KINDS:
        lacking = [
            a
            for a, f in zip(frames, found, strict=True)
            if getattr(f, kind) is None and not f.is_empty and not (kind == "stress" and f.has_unused_stress)
        ]
        if similar := similar_names(lacking, kind):
            key = "virial_key" if "virial" in similar[0].lower() else _KEYS[kind]
            used = getattr(names, "virial" if key == "virial_key" else kind)
            used = [kind] if used is None else [used] if isinstance(used, str) else list(used)
            log.warning(
                "warning: %s: %d of %d frames have no %s under the name %s, but they have %s;"
                " data.%s takes a name or a list of names",
                path,
                len(lacking),
                len(frames),
                kind,
                ", ".join(used),
                ", ".join(similar),
                key,
            )


def _warn_of_odd_values(path: str, frames: Sequence[Atoms], found: Sequence[FrameLabels]) -> None:
    stresses = [np.abs(f.stress).max() for f in found if f.stress is not None]
    if stresses and max(stresses) > LARGE_STRESS:
        log.warning(
            "warning: %s: the largest component of a stress is %.3g eV/Å³ (%.0f GPa); if that is not so, check its unit"
            " (eV/Å³) and its sign (positive under tension)",
            path,
            max(stresses),
            max(stresses) * GPA,
        )
    ignored = sorted({k for a in frames for k in a.info if re.fullmatch(r"config_\w+_weight", k)})
    if ignored:
        text = "warning: %s: %s is not used; one weight for a frame is (data.weight_key)"
        log.warning(text, path, ", ".join(ignored))


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
