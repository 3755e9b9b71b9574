"""The labels of a frame (energy, forces, stress and weight), found by their names in the file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress, voigt_6_to_full_3x3_stress

from nequip_md.errors import NequIPMDError
from nequip_md.graph import cell_volume
from nequip_md.training.config import DataConfig
from nequip_md.training.data.units import ASE_UNITS, Units

MAX_STRESS = 10.0
"""eV/angstrom^3 (1602 GPa). A stress with a larger component is refused, as its unit or sign must be wrong."""
GPA = 160.2176634
"""GPa in 1 eV/angstrom^3."""

Names = str | Sequence[str] | None
"""One name, or several, of which the first that a frame has is used; None means ASE's own result."""

_LOOK_LIKE = {"energy": "energ", "forces": "forc", "stress": "stress|virial"}
_NOT_LABELS = ("numbers", "positions", "momenta")


@dataclass(frozen=True)
class FrameLabels:
    """Labels of one frame; a label that it does not have is None.

    Attributes:
        energy: eV.
        forces: eV/angstrom [N, 3].
        stress: eV/angstrom^3, positive under tension [3, 3].
        weight: factor of the frame's contribution to the loss.
        has_unused_stress: the frame has a stress or a virial, but no volume to use it with.
    """

    energy: float | None
    forces: np.ndarray | None
    stress: np.ndarray | None
    weight: float = 1.0
    has_unused_stress: bool = False

    @property
    def is_empty(self) -> bool:
        return self.energy is None and self.forces is None and self.stress is None and not self.has_unused_stress


@dataclass(frozen=True)
class Labels:
    """Names of labels in ``Atoms.info``, ``Atoms.arrays`` and the results of ``Atoms.calc``.

    When ASE reads a file, it stores values with its own names (``energy``, ``free_energy``, ``forces``, ``stress``) in the
    results, so such names are looked up in both places.

    Attributes:
        energy, forces, stress: names; None means ``energy``, ``forces`` and ``stress`` among ASE's results.
        virial: names of the virial W = sum of r (x) F, eV, positive under compression; the stress of a frame that has
            one is -W / V.
        weight: name in ``Atoms.info`` of the frame's weight in the loss; None means no weights.
        units: units of the values in the file.
    """

    energy: Names = None
    forces: Names = None
    stress: Names = None
    virial: Names = None
    weight: str | None = None
    units: Units = ASE_UNITS

    @classmethod
    def from_config(cls, config: DataConfig) -> Labels:
        keys = (config.energy_key, config.force_key, config.stress_key, config.virial_key, config.weight_key)
        return cls(*keys, Units.from_config(config))

    def of(self, atoms: Atoms) -> FrameLabels:
        """The labels of a frame, in eV and angstrom.

        Raises:
            NequIPMDError: a label has the wrong shape or is not finite, a weight is negative, or a stress is too large.
        """
        results = atoms.calc.results if atoms.calc is not None else {}

        def find(names: Names, stored: dict[str, Any], default: str | None) -> Any:
            if names is None:
                return results.get(default)
            names = [names] if isinstance(names, str) else names
            return next((place[n] for n in names for place in (stored, results) if place.get(n) is not None), None)

        energy = _numbers(find(self.energy, atoms.info, "energy"), "energy")
        forces = _numbers(find(self.forces, atoms.arrays, "forces"), "forces")
        virial = _numbers(find(self.virial, atoms.info, None), "virial")
        stress = _numbers(find(self.stress, atoms.info, "stress"), "stress")
        weight = _numbers(atoms.info.get(self.weight, 1.0), str(self.weight))
        if energy is not None and energy.size != 1:
            raise NequIPMDError(f"its energy is not one number but {energy.tolist()!r}")
        if forces is not None and forces.shape != (len(atoms), 3):
            raise NequIPMDError(f"its forces have shape {forces.shape}; {len(atoms)} atoms need {(len(atoms), 3)}")
        if weight.size != 1 or weight < 0:
            raise NequIPMDError(f"its {self.weight} is {weight.tolist()}; a weight is one number that is not negative")
        source, tensor = ("stress", stress) if virial is None else ("virial", virial)
        if tensor is not None:
            tensor = tensor * (self.units.to_ev if source == "virial" else self.units.to_ase_stress)
        stress = None if tensor is None else _stress(tensor, source, atoms)
        return FrameLabels(
            energy=None if energy is None else float(energy.squeeze()) * self.units.to_ev,
            forces=None if forces is None else forces * self.units.to_ev_per_angstrom,
            stress=stress,
            weight=float(weight.squeeze()),
            has_unused_stress=tensor is not None and stress is None,
        )


def _numbers(value: Any, name: str) -> np.ndarray | None:
    if value is None:
        return None
    try:
        value = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise NequIPMDError(f"its {name} is {value!r}, which is not a number or an array of numbers") from None
    if not np.isfinite(value).all():
        raise NequIPMDError(f"a value of its {name} is not finite; leave the frame out")
    return value


def _stress(value: np.ndarray, source: str, atoms: Atoms) -> np.ndarray | None:
    """The stress [3, 3] from a ``stress`` or ``virial`` of 6 or 9 components; None if the cell has no volume."""
    if value.size not in (6, 9):
        raise NequIPMDError(f"its {source} has {value.size} components; it needs 6 (xx yy zz yz xz xy) or 9")
    value = voigt_6_to_full_3x3_stress(value.ravel()) if value.size == 6 else value.reshape(3, 3)
    volume = cell_volume(atoms.cell[:])
    if volume is None:
        return None
    stress = -value / volume if source == "virial" else value
    if np.abs(stress).max() > MAX_STRESS:
        raise NequIPMDError(_too_large(np.abs(stress).max(), source))
    return stress


def _too_large(value: float, source: str) -> str:
    message = (
        f"a component of its stress is {value:.4g} eV/Å³ ({value * GPA:.4g} GPa), and more than {MAX_STRESS:g} eV/Å³ is"
        " taken for an error: "
    )
    if source == "virial":
        return message + "it is the virial divided by the volume; check the unit (data.energy_unit) and the cell"
    return message + (
        "check its unit and sign. Values in kbar (1602.18 in 1 eV/Å³) need data.stress_unit: kbar, those in GPa (160.218"
        " in 1 eV/Å³) data.stress_unit: GPa, and those of VASP's sign data.stress_sign: compression; for a virial give"
        " data.virial_key instead of data.stress_key"
    )


def with_labels(atoms: Atoms, found: FrameLabels) -> Atoms:
    """A copy of a frame with the labels as ASE's results, under ASE's names; ``info`` and ``arrays`` are unchanged."""
    copy = atoms.copy()
    results = {name: getattr(found, name) for name in ("energy", "forces", "stress")}
    if results["stress"] is not None:
        results["stress"] = full_3x3_to_voigt_6_stress(results["stress"])
    copy.calc = SinglePointCalculator(copy, **{name: value for name, value in results.items() if value is not None})
    return copy


def is_isolated_atom(atoms: Atoms) -> bool:
    """Whether a file marks the frame as an isolated atom (``config_type=IsolatedAtom``)."""
    return atoms.info.get("config_type") == "IsolatedAtom"


class NamesSeen:
    """Names in frames, sorted by the label that the shape of their values suggests: energy, forces, stress (or virial)."""

    def __init__(self):
        self._found: dict[str, dict[str, None]] = {
            "energy": {},
            "forces": {},
            "stress": {},
        }  # dictionaries keep the order

    def add(self, atoms: Atoms) -> None:
        """Add the names in a frame."""
        results = atoms.calc.results if atoms.calc is not None else {}
        shapes = {(): "energy", (6,): "stress", (9,): "stress", (3, 3): "stress"}
        places = [(results | atoms.info, shapes), (results | atoms.arrays, {(len(atoms), 3): "forces"})]
        for place, kinds in places:
            for name, value in place.items():
                kind = kinds.get(np.shape(value)) if isinstance(value, (int, float, np.number, np.ndarray)) else None
                if kind and name not in _NOT_LABELS and np.asarray(value).dtype.kind in "if":
                    self._found[kind][name] = None

    def update(self, later: NamesSeen) -> None:
        """Add the names that another one has seen in later frames."""
        for kind, names in later._found.items():
            self._found[kind].update(names)

    def similar_to(self, label: str) -> list[str]:
        """Names that resemble the label ``energy``, ``forces`` or ``stress`` in spelling and shape."""
        return [n for n in self._found[label] if re.search(_LOOK_LIKE[label], n, re.IGNORECASE)]

    def describe(self) -> str:
        """A list of the names for error messages."""
        parts = [
            f"{what} [{', '.join(self._found[kind])}]"
            for kind, what in (("energy", "numbers"), ("forces", "arrays of N x 3"), ("stress", "6 or 9 numbers"))
        ]
        return ", ".join(parts)


def describe_names(frames: Iterable[Atoms]) -> str:
    """A list of the names in some frames for error messages."""
    seen = NamesSeen()
    for atoms in frames:
        seen.add(atoms)
    return seen.describe()
