"""Timing of evaluations on prepared inputs, and what a result holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from statistics import median

import torch
from ase import Atoms
from torch import Tensor

import nequip_md
from nequip_md.artifact import Artifact
from nequip_md.errors import NequIPMDError
from nequip_md.graph import Structure, build_graph
from nequip_md.info.installation import cpu_name

WARM_UP = 3
TOGETHER = 0.1
"""Time of the evaluations that are timed together on CUDA, s."""
OURS = f"nequip-md {nequip_md.__version__}"


@dataclass
class Row:
    """One line of the results. Numbers that were not measured are None, and so are most where there is an error."""

    engine: str
    """``graph``: evaluation of the artifact alone; ``lammps``: a whole step of molecular dynamics."""
    who: str
    precision: str
    atoms: int
    edges_per_atom: float | None = None
    ms_per_step: float | None = None
    """Median of the evaluations, or the mean of LAMMPS' steps."""
    us_per_atom_step: float | None = None
    steps_per_s: float | None = None
    memory_gib: float | None = None
    """Engine graph on CUDA: inputs, outputs and intermediates at their peak, without weights and the CUDA context."""
    pair_ms_per_step: float | None = None
    """Engine lammps: the pair style's share."""
    error: str | None = None

    def timed(self, seconds: float) -> None:
        """Fill in what follows from the time of one step, s."""
        self.ms_per_step, self.us_per_atom_step, self.steps_per_s = (
            1e3 * seconds,
            1e6 * seconds / self.atoms,
            1 / seconds,
        )


def machine(device: str) -> dict[str, str | int | None]:
    """What the numbers depend on."""
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    return {"gpu": gpu, "cpu": cpu_name(), "torch": torch.__version__, "threads": torch.get_num_threads()}


def failure_of(action: Callable[[], object]) -> str | None:
    """Run ``action``. If it runs out of memory or fails in PyTorch, the reason, so that others can still be measured.

    Raises:
        NequIPMDError: from ``action``.
    """

    def ooms() -> int:
        return torch.cuda.memory_stats().get("num_ooms", 0) if torch.cuda.is_initialized() else 0

    before = ooms()
    try:
        action()
    except NequIPMDError:
        raise
    except (MemoryError, RuntimeError) as error:
        text = str(error) or type(error).__name__
        # compiled code says no more than "API call failed"; the allocator knows whether it was memory
        if (
            isinstance(error, MemoryError)
            or ooms() > before
            or "out of memory" in text
            or "can't allocate memory" in text
        ):
            return "out of memory"
        return text.splitlines()[0]
    return None


def _seconds(call: Callable[[], object], device: str, count: int = 1) -> float:
    """For one of ``count`` calls that follow each other."""
    if device == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        for _ in range(count):
            call()
        end.record()
        torch.cuda.synchronize()
        return 1e-3 * begin.elapsed_time(end) / count
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def peak_bytes(call: Callable[[], object]) -> int:
    """Memory of the GPU that a call takes at most, beside what is allocated before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def time_alternately(
    calls: Mapping[Hashable, Callable[[], object]], device: str, repeats: int
) -> dict[Hashable, tuple[float, float | None] | str]:
    """Time several evaluations in turn, after warming up each.

    On CUDA a short evaluation is timed as a mean of several in a row, as many as take 0.1 s: a single one would count the time in
    which the GPU waits for its first kernels.

    Returns:
        For each, the median time, s, and the most memory that a call allocates, GiB (None on the CPU), or why it failed.
    """
    times: dict[Hashable, list[float]] = {key: [] for key in calls}
    peaks: dict[Hashable, float | None] = dict.fromkeys(calls)
    failures: dict[Hashable, str] = {}
    in_a_row = dict.fromkeys(calls, 1)
    contended = device == "cuda" and len(calls) > 1

    def warm_up(key: Hashable) -> None:
        for _ in range(WARM_UP):
            if device == "cuda":
                peaks[key] = peak_bytes(calls[key]) / 2**30
            else:
                calls[key]()
        if device == "cuda":
            in_a_row[key] = max(1, round(TOGETHER / _seconds(calls[key], device)))

    def measure(key: Hashable) -> None:
        if contended:
            calls[key]()  # untimed: close to the limit, the allocator must first take back what another call had cached
        times[key].append(_seconds(calls[key], device, in_a_row[key]))

    for step in [warm_up] + [measure] * repeats:
        for key in [key for key in calls if key not in failures]:
            if failure := failure_of(lambda: step(key)):
                failures[key] = failure
            if contended and (failure or step is warm_up):
                torch.cuda.empty_cache()
    return {key: failures.get(key) or (median(times[key]), peaks[key]) for key in calls}


def graph_rows(artifacts: Mapping[str, Artifact], peers: Mapping, atoms: Atoms, device: str, repeats: int) -> list[Row]:
    """Time every artifact on the graph of one structure: evaluation alone, neighbours are searched beforehand.

    Args:
        artifacts: by precision, all of the same model.
        peers: :class:`nequip_md.bench.peer.PeerArtifact` by precision.
    """
    rows = {("ours", p): Row("graph", OURS, p, len(atoms)) for p in artifacts}
    rows |= {("peer", p): Row("graph", peer.name, p, len(atoms)) for p, peer in peers.items()}
    calls: dict[Hashable, Callable[[], object]] = {}
    inputs: dict[str, list[Tensor]] = {}

    def prepare_ours() -> None:
        first = next(iter(artifacts.values()))
        graph = build_graph(Structure.from_ase(atoms, first.type_names), first.pair_cutoffs).to(device)
        inputs["ours"] = list(graph.tensors)
        calls.update({("ours", p): lambda artifact=artifact: artifact(graph) for p, artifact in artifacts.items()})
        for row in rows.values():
            row.edges_per_atom = graph.num_edges / len(atoms)

    def prepare_peer() -> None:
        inputs["peer"] = next(iter(peers.values())).inputs(atoms)
        calls.update({("peer", p): lambda peer=peer: peer(inputs["peer"]) for p, peer in peers.items()})

    failures = {"ours": failure_of(prepare_ours), "peer": failure_of(prepare_peer) if peers else None}
    results = time_alternately(calls, device, repeats)
    for (side, precision), row in rows.items():
        result = failures[side] or results[side, precision]
        if isinstance(result, str):
            row.error = result
            continue
        seconds, peak = result
        row.timed(seconds)
        if peak is not None:
            row.memory_gib = peak + sum(t.nbytes for t in inputs[side]) / 2**30
    return list(rows.values())
