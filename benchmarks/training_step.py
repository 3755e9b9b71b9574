"""Time of one training step: this package's eager and compiled steps beside upstream's, eager and with ``torch.compile``.

    python benchmarks/training_step.py --preset medium --device cuda --output benchmarks/results/h200_training_step.json

The batch is a number of molecules of water, cut from the liquid, with random labels; energies and forces are in the loss, AdamW
takes the step. The two packages' models have the same weights, and their losses are compared
first. Then all take turns; figures are medians. ``--threads`` is for a CPU. Needs nequip-md[test].
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from torch import nn

from nequip_md.bench.peer import build_pair
from nequip_md.bench.structures import water_box
from nequip_md.model import preset
from nequip_md.training.compiled_step import CompiledStep
from nequip_md.training.config import LossConfig
from nequip_md.training.labels import FrameLabels
from nequip_md.training.loss import label_counts
from nequip_md.training.samples import collate, make_sample
from nequip_md.training.step import EagerStep, StepResult

LOSS = LossConfig(energy=1.0, force=1.0)


def molecules(count: int, size: int) -> list[Atoms]:
    """Drops of ``size`` water molecules from the liquid, without periodicity."""
    box = water_box(3000)
    oxygens = np.arange(0, len(box), 3)
    drops = []
    for centre in np.random.default_rng(0).choice(oxygens, count, replace=False):
        nearest = oxygens[np.argsort(box.get_distances(centre, oxygens, mic=True))[:size]]
        chosen = (nearest[:, None] + np.arange(3)).ravel()
        positions = box.positions[centre] + box.get_distances(centre, chosen, mic=True, vector=True)
        drops.append(Atoms(box.symbols[chosen], positions))
    return drops


class Ours:
    """One step of this package."""

    def __init__(self, model: nn.Module, samples: list, device: str, compiled: bool):
        self.model = model.to(device).train()
        self.batch = collate(samples).to(device)
        self.counts = label_counts(self.batch)
        self.step = (CompiledStep if compiled else EagerStep)(self.model, LOSS, with_stress=False)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6, fused=device == "cuda")

    def gradient(self) -> StepResult:
        return self.step(self.batch, self.counts)

    def loss(self) -> torch.Tensor:
        return self.gradient().loss

    def __call__(self) -> None:
        for weight, gradient in zip(self.model.parameters(), self.gradient().gradients, strict=True):
            weight.grad = gradient
        self.optimizer.step()


class Theirs:
    """One step of upstream's model, on the same labels."""

    def __init__(self, model: nn.Module, frames: list[Atoms], batch, config, device: str, compiled: bool):
        from nequip.data import AtomicDataDict, from_ase
        from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform

        names = config.type_names
        mapper = ChemicalSpeciesToAtomTypeMapper(names, chemical_species_to_atom_type_map={n: n for n in names})
        lists = NeighborListTransform(r_max=config.cutoff, type_names=names)
        data = AtomicDataDict.batched_from_list([lists(mapper(from_ase(frame))) for frame in frames])
        self.data = {key: value.to(device) if torch.is_tensor(value) else value for key, value in data.items()}
        self.model = model.to(device).train()
        self.run = torch.compile(self.model, dynamic=True) if compiled else self.model
        self.energy, self.forces = batch.energy.to(device), batch.forces.to(device)
        self.atoms = batch.num_atoms.to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6, fused=device == "cuda")

    def loss(self) -> torch.Tensor:
        found = self.run(dict(self.data))
        energy = (found["total_energy"].squeeze(-1) - self.energy) / self.atoms
        return energy.square().mean() + (found["forces"] - self.forces).square().mean()

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.loss().backward()
        self.optimizer.step()


def median(step: Callable[[], None], repeats: int, device: str) -> float:
    """Seconds of one step."""
    times = []
    for _ in range(repeats):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(name: str, device: str, frames: int, size: int, repeats: int, peers: list[str], report=print) -> dict:
    """Build all steps, compare their gradients, time them in turns; times in seconds."""
    config = preset(name, type_names=["H", "O"], avg_num_neighbors=30.0)
    theirs, ours = build_pair(config)
    structures = molecules(frames, size)
    rng = np.random.default_rng(1)
    samples = [
        make_sample(a, config, FrameLabels(float(rng.normal()), rng.normal(size=(len(a), 3)), None)) for a in structures
    ]
    batch = collate(samples)
    steps: dict[str, Ours | Theirs] = {}
    prepared: dict[str, float] = {}
    losses: dict[str, float] = {}

    def add(key: str, make: Callable[[], Ours | Theirs]) -> None:
        start = time.perf_counter()
        steps[key] = make()
        losses[key] = float(steps[key].loss().detach())  # at the weights that all begin with
        prepared[key] = time.perf_counter() - start
        report(f"{key}: {prepared[key]:.1f} s until the first loss")

    add("ours, eager", lambda: Ours(ours, samples, device, compiled=False))
    add("ours, compiled", lambda: Ours(ours, samples, device, compiled=True))
    for kind in peers:
        add(f"upstream, {kind}", lambda: Theirs(theirs, structures, batch, config, device, compiled=kind == "compile"))
    expected = losses["ours, eager"]
    differences = {key: abs(found - expected) / abs(expected) for key, found in losses.items()}
    report(f"relative differences of the loss: {differences}")
    for step in steps.values():
        step()
    times = {key: [] for key in steps}
    for _ in range(3):
        for key, step in steps.items():
            times[key].append(median(step, repeats, device))
    return {
        "work": f"Allegro {name}, fp32, {frames} drops of {size} water molecules, {batch.graph.num_nodes} atoms, "
        f"{batch.graph.num_edges} edges, energies and forces in the loss, AdamW",
        "step_s": {key: statistics.median(found) for key, found in times.items()},
        "until_first_loss_s": prepared,
        "loss_difference": differences,
        "machine": f"{torch.cuda.get_device_name() if device == 'cuda' else platform.processor() or platform.machine()}, "
        f"{torch.get_num_threads()} threads, PyTorch {torch.__version__.split('+')[0]}",
        "date": date.today().isoformat(),
        "command": "python " + " ".join(sys.argv),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="medium", choices=("small", "medium", "large"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--molecules", type=int, default=16, help="water molecules in each frame")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--peers", nargs="*", default=["eager", "compile"], choices=("eager", "compile"))
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    result = measure(options.preset, options.device, options.frames, options.molecules, options.repeats, options.peers)
    for key, seconds in result["step_s"].items():
        print(f"{key}: {1e3 * seconds:.2f} ms a step")
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
