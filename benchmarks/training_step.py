"""Time of one training step: this package's eager, compiled and recorded steps beside upstream's.

    python benchmarks/training_step.py --preset medium --device cuda --peers compile cuequivariance --output RESULTS.json
    python benchmarks/training_step.py --preset M --device cuda --peers compile openequivariance --output RESULTS.json

The batch is a number of drops of water, cut from the liquid, with random labels; energies and forces are in the loss, AdamW
takes the step. The two packages' models have the same weights, and their losses are compared first. Then all take turns; figures
are medians. More numbers after ``--frames`` are larger batches, for which time, memory and atoms per second are measured as well,
until memory is full. Peers: upstream ``eager``, with its ``compile_mode: compile``, and that with the tensor products of cuEquivariance
(Allegro) or OpenEquivariance (NequIP), where these are installed. ``--threads`` is for a CPU. Needs nequip-md[test].
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from datetime import date
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from torch import nn

from nequip_md.bench.measure import peak_bytes
from nequip_md.bench.peer import build_pair
from nequip_md.bench.structures import water_box
from nequip_md.model import PRESETS, preset
from nequip_md.training.config import LossConfig
from nequip_md.training.data.labels import FrameLabels
from nequip_md.training.data.samples import Sample, collate, make_sample
from nequip_md.training.steps.compiled_step import CompiledStep
from nequip_md.training.steps.loss import label_counts
from nequip_md.training.steps.recorded_step import RecordedStep, TalliedStep
from nequip_md.training.steps.step import EagerStep, Tally
from nequip_md.training.steps.update import RecordedUpdate, Update

LOSS = LossConfig(energy=1.0, force=1.0)
NEQUIP = ("S", "M", "L", "XL")
MODIFIERS = {"cuequivariance": "enable_CuEquivarianceContracter", "openequivariance": "enable_OpenEquivariance"}
"""Upstream's options of that name, by the package that they need."""


def molecules(count: int, size: int) -> list[Atoms]:
    """Drops of ``size`` water molecules from the liquid, without periodicity."""
    box = water_box(3000)
    oxygens = np.arange(0, len(box), 3)
    drops = []
    for centre in np.random.default_rng(0).choice(oxygens, count, replace=count > len(oxygens)):
        nearest = oxygens[np.argsort(box.get_distances(centre, oxygens, mic=True))[:size]]
        chosen = (nearest[:, None] + np.arange(3)).ravel()
        positions = box.positions[centre] + box.get_distances(centre, chosen, mic=True, vector=True)
        drops.append(Atoms(box.symbols[chosen], positions))
    return drops


class Ours:
    """One step of this package: ``eager``, ``compiled``, or ``recorded`` as CUDA graphs."""

    def __init__(self, model: nn.Module, samples: list, device: str, kind: str):
        self.model, self.device = deepcopy(model).to(device).train(), device
        self.take(collate(samples))
        step = (EagerStep if kind == "eager" else CompiledStep)(self.model, LOSS, with_stress=False)
        weights, on_gpu = list(self.model.parameters()), device == "cuda"
        optimizer = torch.optim.AdamW(weights, lr=1e-6, fused=on_gpu, capturable=on_gpu)
        self.update = Update(weights, optimizer, None, None, self.model)
        self.tally = Tally()
        if kind == "recorded":
            self.step, self.update = RecordedStep(step, self.tally), RecordedUpdate(self.update)
        else:
            self.step = TalliedStep(step, self.tally)
        self.results = step

    def take(self, batch: Sample, structures: list[Atoms] | None = None) -> None:
        """Take a batch for the next steps."""
        self.batch = batch.to(self.device)
        self.counts = label_counts(self.batch)

    def loss(self) -> torch.Tensor:
        return self.results(self.batch, self.counts).loss

    def gradient(self) -> torch.Tensor:
        return torch.cat([g.reshape(-1) for g in self.step(self.batch, self.counts)]).double()

    def __call__(self) -> None:
        for weight, gradient in zip(self.model.parameters(), self.step(self.batch, self.counts), strict=True):
            weight.grad = gradient
        self.update()


class Theirs:
    """One step of upstream's model, on the same labels."""

    def __init__(self, model: nn.Module, structures: list[Atoms], batch: Sample, config, device: str, kind: str):
        from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform
        from nequip.model.modify_utils import modify

        names = config.type_names
        mapper = ChemicalSpeciesToAtomTypeMapper(names, chemical_species_to_atom_type_map={n: n for n in names})
        lists = NeighborListTransform(r_max=config.cutoff, type_names=names)
        self.transform = lambda data: lists(mapper(data))
        self.device = device
        self.take(batch, structures)
        if kind in MODIFIERS:
            model = modify(model, [{"modifier": MODIFIERS[kind]}])
        self.model = model.to(device).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6, fused=device == "cuda")

    def take(self, batch: Sample, structures: list[Atoms]) -> None:
        """Take a batch for the next steps."""
        from nequip.data import AtomicDataDict, from_ase

        data = AtomicDataDict.batched_from_list([self.transform(from_ase(a)) for a in structures])
        self.data = {key: value.to(self.device) if torch.is_tensor(value) else value for key, value in data.items()}
        self.energy, self.forces = batch.energy.to(self.device), batch.forces.to(self.device)
        self.atoms = batch.num_atoms.to(self.device)

    def loss(self) -> torch.Tensor:
        found = self.model(dict(self.data))
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


def labelled(frames: int, size: int, config) -> tuple[list[Atoms], list[Sample]]:
    """Drops of water with random labels."""
    structures, rng = molecules(frames, size), np.random.default_rng(1)
    return structures, [
        make_sample(a, config, FrameLabels(float(rng.normal()), rng.normal(size=(len(a), 3)), None)) for a in structures
    ]


def larger(
    steps: dict[str, Ours | Theirs], counts: list[int], size: int, config, device: str, repeats: int
) -> list[dict]:
    """Time, memory and atoms per second for batches of so many frames; a step that runs out of memory takes no further ones."""
    rows, able = [], dict(steps)
    for frames in counts:
        structures, samples = labelled(frames, size, config)
        batch = collate(samples)
        atoms = batch.graph.num_nodes
        row = {"frames": frames, "atoms": atoms, "edges": batch.graph.num_edges}
        row |= {"step_s": {}, "atoms_per_s": {}, "peak_of_step_GB": {}}
        for key in list(able):
            try:
                able[key].take(batch, structures)
                for _ in range(3):
                    able[key]()
                seconds = median(able[key], repeats, device)
                row["step_s"][key], row["atoms_per_s"][key] = seconds, atoms / seconds
                if device == "cuda" and key != "ours, recorded":
                    row["peak_of_step_GB"][key] = peak_bytes(able[key]) / 1e9
            except torch.OutOfMemoryError:
                del able[key]
            if device == "cuda":
                torch.cuda.empty_cache()
        rows.append(row)
        print(
            f"{frames} frames, {atoms} atoms: "
            + ", ".join(f"{k} {v:,.0f} atoms/s" for k, v in row["atoms_per_s"].items())
        )
    return rows


def measure(name: str, device: str, counts: list[int], size: int, repeats: int, peers: list[str], report=print) -> dict:
    """Build all steps, compare their gradients, time them in turns; times in seconds.

    Args:
        counts: frames of the batch, and of larger ones.
    """
    options = {"cutoff": 6.0} if name in NEQUIP else {}
    config = preset(name, type_names=["H", "O"], avg_num_neighbors=30.0, **options)
    theirs, ours = build_pair(config)
    frames = counts[0]
    structures, samples = labelled(frames, size, config)
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

    for kind in ("eager", "compiled", "recorded") if device == "cuda" else ("eager", "compiled"):
        add(f"ours, {kind}", lambda: Ours(ours, samples, device, kind))
    state = theirs.state_dict()
    for kind in peers:
        model, _ = build_pair(config, "eager" if kind == "eager" else "compile")
        model.load_state_dict(state)
        add(f"upstream, {kind}", lambda: Theirs(model, structures, batch, config, device, kind))
    expected = losses["ours, eager"]
    differences = {key: abs(found - expected) / abs(expected) for key, found in losses.items()}
    report(f"relative differences of the loss: {differences}")
    gradients = {key: step.gradient() for key, step in steps.items() if isinstance(step, Ours)}
    wanted = gradients["ours, eager"]
    off = {key: float((found - wanted).norm() / wanted.norm()) for key, found in gradients.items()}
    report(f"relative differences of the gradient: {off}")
    memory = {}
    for key, step in steps.items():
        for _ in range(3):  # the second update of a recorded step records it
            step()
        # what a recording needs is set aside when it is made
        if device == "cuda" and key != "ours, recorded":
            memory[key] = peak_bytes(step) / 1e9
    times = {key: [] for key in steps}
    for _ in range(3):
        for key, step in steps.items():
            times[key].append(median(step, repeats, device))
    # eager steps would be measured no further than needed
    compiled = {key: step for key, step in steps.items() if "eager" not in key} if device == "cuda" else steps
    return {
        "work": f"{config.kind} {name}, fp32, {frames} drops of {size} water molecules, {batch.graph.num_nodes} atoms, "
        f"{batch.graph.num_edges} edges, energies and forces in the loss, AdamW",
        "step_s": {key: statistics.median(found) for key, found in times.items()},
        "until_first_loss_s": prepared,
        "loss_difference": differences,
        "gradient_difference": off,
        "peak_of_step_GB": memory,
        "larger_batches": larger(compiled, counts[1:], size, config, device, repeats),
        "machine": f"{torch.cuda.get_device_name() if device == 'cuda' else platform.processor() or platform.machine()}, "
        f"{torch.get_num_threads()} threads, PyTorch {torch.__version__.split('+')[0]}",
        "date": date.today().isoformat(),
        "command": "python " + " ".join(sys.argv),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="medium", choices=PRESETS)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--frames", type=int, nargs="+", default=[8])
    parser.add_argument("--molecules", type=int, default=16, help="water molecules in each frame")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--peers", nargs="*", default=["eager", "compile"], choices=("eager", "compile", *MODIFIERS))
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
