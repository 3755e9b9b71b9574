"""Strict readers of upstream's configurations and state dictionaries: what is not understood is refused by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from nequip_md.checkpoint.limits import shortened
from nequip_md.errors import NequIPMDError

_REQUIRED = object()


class Options:
    """One section of an upstream configuration, read option by option.

    Args:
        section: the options.
        name: of the section, for messages, e.g. ``allegro.model.AllegroModel``.
    """

    def __init__(self, section: Mapping[str, Any], name: str):
        self._left = dict(section)
        self.name = name
        self._left.pop("_target_", None)

    def take(self, key: str, default: Any = _REQUIRED) -> Any:
        """The value of an option that this package implements."""
        if default is _REQUIRED and key not in self._left:
            raise NequIPMDError(f"upstream model {self.name}: option {key!r} is missing; the checkpoint is incomplete")
        return self._left.pop(key, default)

    def require(self, key: str, implemented: Iterable[Any], default: Any) -> Any:
        """As :meth:`take`, for an option of which only some values are implemented."""
        value = self.take(key, default)
        implemented = list(implemented)
        if not any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in implemented):
            self.refuse(key, value, f"implemented: {', '.join(map(repr, implemented))}")
        return value

    def ignore(self, *keys: str) -> None:
        """Options that do not change what the model computes."""
        for key in keys:
            self._left.pop(key, None)

    def refuse(self, key: str, value: Any, reason: str = "") -> None:
        """Raise the error for an option that is not implemented."""
        raise NequIPMDError(
            f"upstream model {self.name}: option {key!r} with value {shortened(repr(value))} is not implemented by nequip-md"
            + (f" ({reason})" if reason else "")
            + ". Train without this option, or compile the model with upstream's own nequip-compile."
        )

    def finish(self) -> None:
        """Refuse the first option that nobody has asked for."""
        for key, value in self._left.items():
            self.refuse(key, value)


def common_options(options: Options) -> dict[str, Any]:
    """The options that Allegro and NequIP share, as keyword arguments of a ``PotentialConfig``."""
    options.ignore("seed", "compile_mode", "do_derivatives")
    names = list(options.take("type_names"))
    result = {
        "type_names": names,
        "cutoff": options.take("r_max"),
        "pair_cutoffs": options.take("per_edge_type_cutoff", None),
        "avg_num_neighbors": options.take("avg_num_neighbors", None),
        "dtype": options.require("model_dtype", ("float32", "float64"), "float32"),
        "pair_potential": _pair_potential(options),
    }
    for ours, theirs in (("energy_scales", "per_type_energy_scales"), ("energy_shifts", "per_type_energy_shifts")):
        value = options.take(theirs, None)
        trainable = bool(options.take(f"{theirs}_trainable", False)) and value is not None
        if isinstance(value, list):
            options.refuse(theirs, value, "give a number or a mapping by type name")
        if trainable and not isinstance(value, dict):
            value = {name: float(value) for name in names}
        result[ours], result[f"{ours}_trainable"] = value, trainable
    return result


def _pair_potential(options: Options) -> dict[str, Any] | None:
    section = options.take("pair_potential", None)
    if section is None:
        return None
    target = section.get("_target_", "")
    if target.rpartition(".")[2] != "ZBL":
        options.refuse("pair_potential", target, "implemented: 'nequip.nn.pair_potential.ZBL'")
    zbl = Options(section, target)
    zbl.require("units", ("metal",), None)
    zbl.require("polynomial_cutoff_p", (6, 6.0), 6.0)
    species = zbl.take("chemical_species")
    zbl.ignore("type_names")
    zbl.finish()
    return {"chemical_species": list(species)}


class State:
    """An upstream state dictionary, read tensor by tensor.

    Args:
        tensors: the dictionary; keys start at the network's own modules (no ``model.func.`` before them).
    """

    def __init__(self, tensors: Mapping[str, Tensor]):
        self._left = dict(tensors)

    def __contains__(self, key: str) -> bool:
        return key in self._left

    def take(self, key: str) -> Tensor:
        """A tensor that the model needs.

        Raises:
            NequIPMDError: it is not there.
        """
        if key not in self._left:
            raise NequIPMDError(
                f"upstream checkpoint: tensor {key!r} is missing; weights and configuration do not agree"
            )
        return self._left.pop(key)

    def constant(self, key: str, expected: Tensor | None = None) -> None:
        """Skip a tensor that follows from the configuration; where ``expected`` is given, hold it to that."""
        value = self._left.pop(key, None)
        if value is None or expected is None:
            return
        have, want = value.double().flatten(), expected.double().flatten()
        if have.shape != want.shape or not torch.allclose(have, want, rtol=1e-6):
            raise NequIPMDError(
                f"upstream checkpoint: {key!r} holds {shortened(str(have.tolist()))}, but the configuration gives "
                f"{shortened(str(want.tolist()))}; "
                "weights and configuration do not agree"
            )

    def constants(self, suffix: str) -> None:
        """Skip every tensor with this ending."""
        for key in [key for key in self._left if key.endswith(suffix)]:
            del self._left[key]

    def finish(self) -> None:
        """Refuse tensors that nobody has asked for."""
        if self._left:
            names = ", ".join(repr(key) for key in sorted(self._left)[:5])
            raise NequIPMDError(
                f"upstream checkpoint: {len(self._left)} tensor(s) belong to nothing that nequip-md implements: "
                f"{names}. Compile this model with upstream's own nequip-compile."
            )


def mlp_weights(state: State, ours: str, theirs: str, depth: int, nonlinearity: str | None) -> dict[str, Tensor]:
    """The matrices of an MLP with ``depth`` hidden layers, under our names (upstream joins purely linear chains)."""
    joined = nonlinearity is None and depth > 0
    pattern = f"{theirs}.mlp.weights.{{0}}" if joined else f"{theirs}.mlp.{{1}}.weight"
    return {f"{ours}.weights.{k}": state.take(pattern.format(k, 2 * k)) for k in range(depth + 1)}


def scale_shift(state: State) -> dict[str, Tensor]:
    """Energy scales and shifts; upstream stores an empty tensor where there are none."""
    result = {}
    for name, default in (("scales", 1.0), ("shifts", 0.0)):
        value = state.take(f"per_type_energy_scale_shift.{name}").to(torch.float64).flatten()
        result[f"scale_shift.{name}"] = value if value.numel() else torch.tensor([default], dtype=torch.float64)
    return result


def cutoff_reciprocals(matrix: list[list[float]], pair_cutoffs: dict | None) -> Tensor:
    """What upstream stores for the cutoffs: 1 / r_max, or 1 / cutoff for each ordered pair of types."""
    values = torch.tensor(matrix, dtype=torch.float64)
    return values.reciprocal().flatten() if pair_cutoffs is not None else values[0, 0].reciprocal()
