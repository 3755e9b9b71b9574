"""Small crystals of an analytic potential, and ``nequip-md-train`` on them."""

import ase.io
import numpy as np
import torch
import yaml
from ase.build import bulk
from ase.calculators.lj import LennardJones

from nequip_md import checkpoint
from nequip_md.model.config import AllegroConfig
from nequip_md.training.cli import main
from nequip_md.training.data.samples import collate, make_sample

MODEL = {
    "kind": "allegro", "type_names": ["Ar"], "cutoff": 1.8, "l_max": 1, "num_layers": 1,
    "num_scalar_features": 8, "num_tensor_features": 4, "two_body_mlp_width": 16,
    "allegro_mlp_width": 16, "readout_mlp_width": 8, "dtype": "float64",
}  # fmt: skip


def crystals(count, seed, *, periodic=True, cells=2):
    """Rattled and strained fcc crystals of 4 atoms per cell with Lennard-Jones energies, forces and stresses (reduced units)."""
    rng = np.random.default_rng(seed)
    frames = []
    for _ in range(count):
        atoms = bulk("Ar", "fcc", a=1.6, cubic=True).repeat((cells, 1, 1))
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.uniform(-0.04, 0.04, (3, 3))), scale_atoms=True)
        atoms.positions += rng.normal(scale=0.05, size=(len(atoms), 3))
        atoms.pbc = periodic
        atoms.calc = LennardJones(sigma=1.0, epsilon=0.5, rc=1.8, ro=1.4, smooth=True)
        atoms.get_forces()
        if periodic:
            atoms.get_stress()
        frames.append(atoms)
    return frames


def write_data(folder):
    """``train.extxyz`` and ``test.extxyz`` in a folder, which is returned."""
    ase.io.write(folder / "train.extxyz", crystals(24, 1))
    ase.io.write(folder / "test.extxyz", crystals(6, 2))
    return folder


def write_config(folder, output, **sections):
    """A training file for :func:`write_data`'s folder with some sections changed; returns its path."""
    content = {
        "model": MODEL,
        "data": {"train": "train.extxyz", "validation_split": 4, "test": "test.extxyz", "batch_size": 4},
        "loss": {"energy": 10.0, "force": 1.0, "stress": 10.0},
        "optimizer": {"learning_rate": 0.02, "ema_decay": 0.95, "gradient_clip": 100.0},
        "schedule": {"kind": "plateau", "patience": 0, "factor": 0.5},
        "stop": {"max_epochs": 3},
        "seed": 5,
        "compile": "no",  # these runs have few steps
        "report_page": False,  # drawing takes longer than these runs
    }
    for name, change in sections.items():
        merge = isinstance(change, dict) and (name == "optimizer" or "kind" not in change)
        content[name] = {**content.get(name, {}), **change} if merge else change
        content = {key: value for key, value in content.items() if value is not None}
    path = folder / f"{output.name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def batch_of(frames):
    """One batch of labelled structures, for a model with :data:`MODEL`."""
    return collate([make_sample(a, AllegroConfig(**MODEL)) for a in frames])


def run(folder, output, *flags, **sections):
    """``nequip-md-train`` on the crystals; returns the exit status."""
    return main([str(write_config(folder, output, **sections)), "--output", str(output), *flags])


def assert_identical(a, b):
    """Assert that two nests of dicts and lists hold the same values and bit-identical tensors."""
    if isinstance(a, torch.Tensor):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_identical(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for one, other in zip(a, b):
            assert_identical(one, other)
    else:
        assert a == b


def assert_same_end(one, other):
    """Assert that two output folders have bit-identical weights, optimizer, schedule, random state and best model."""
    a, b = (torch.load(path / "last.ckpt", weights_only=True) for path in (one, other))
    assert a["epoch"] == b["epoch"] and a["global_step"] == b["global_step"]
    for key in ("state_dict", "optimizer_states"):
        assert_identical(a[key], b[key])
    assert a["nequip_md"]["schedule"] == b["nequip_md"]["schedule"]
    torch.testing.assert_close(a["nequip_md"]["rng"], b["nequip_md"]["rng"], rtol=0, atol=0)
    first, second = (checkpoint.load(path / "best.nqmd").state_dict() for path in (one, other))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
