"""The step as one compiled graph: forward pass, forces, loss and its gradient by every weight, with a device's kernels."""

from __future__ import annotations

import copy
import hashlib
import logging
import time
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from nequip_md.artifact.artifact_file import ArtifactFile
from nequip_md.artifact.loaded_code import Code
from nequip_md.atomic import write_atomically
from nequip_md.errors import NequIPMDError
from nequip_md.graph import Graph, pad_graph
from nequip_md.kernels import Backend, training_backend
from nequip_md.lowering.compile import compile_graph
from nequip_md.lowering.compile_time import few_collections
from nequip_md.lowering.trace import example_inputs, symbolic, trace_function
from nequip_md.model.potential import Potential
from nequip_md.training.config import LossConfig
from nequip_md.training.data.samples import Sample
from nequip_md.training.parallel import first_goes_first
from nequip_md.training.steps.loss import Prediction
from nequip_md.training.steps.step import EagerStep, StepResult, batch_of, loss_and_gradient, tensors_of, trained
from nequip_md.user_cache import cache_folder

log = logging.getLogger(__name__)

_DYNAMIC = {
    "edge_vectors": {0: "edges"},
    "edge_index": {1: "edges"},
    "row_ptr": {0: "atoms + 1"},
    "node_types": {0: "atoms"},
    "graph_ptr": {0: "frames + 1"},
    "energy": {0: "frames"},
    "forces": {0: "atoms"},
    "stress": {0: "frames"},
    "volume": {0: "frames"},
    "weight": {0: "frames"},
}
"""Which dimension of each tensor of a batch varies, and what its size is."""
_SMALLEST = 2
"""Edges, atoms and frames that a compiled graph needs; smaller batches are padded."""


def step_precision(model: Potential) -> str:
    """``fp64``, ``fp32``, or ``tf32`` where PyTorch may use TF32 for matrix products of the model."""
    if model.dtype == torch.float64:
        return "fp64"
    on_gpu = next(model.parameters()).device.type == "cuda"
    return "tf32" if on_gpu and torch.backends.cuda.matmul.allow_tf32 else "fp32"


class CompiledStep:
    """The step in compiled code.

    Sizes of batches are variables in it, so that it is compiled once. It is kept in a file, since that takes minutes. If it is made
    while PyTorch takes deterministic algorithms only, it repeats its results to the last digit.

    Attributes:
        with_stress: whether stresses are predicted as well.

    Args:
        model: float32 or float64, on the device to train on.
        folder: of compiled steps; by default ``training`` in :func:`~nequip_md.user_cache.cache_folder`.

    Raises:
        NequIPMDError: a compiler is missing or fails, or the model cannot be traced.
    """

    def __init__(self, model: Potential, config: LossConfig, *, with_stress: bool, folder: Path | None = None):
        self.weights = trained(model)
        self._names = [name for name, p in model.named_parameters() if p.requires_grad]
        self.cutoff = model.config.cutoff
        self.with_stress = with_stress
        device = self.weights[0].device
        path = _path(model, config, with_stress, folder)
        with first_goes_first():
            self._run = _loaded(path, device) if path.exists() else None
            if self._run is None:
                _compile(path, model, config, with_stress, device)
                self._run = _loaded(path, device)
            if self._run is None:
                raise NequIPMDError(f"the training step was compiled, but {path} does not load")

    def of(self, model: Potential) -> CompiledStep:
        """The same step with the weights of another model of the same configuration."""
        other = copy.copy(self)
        other.weights = [dict(model.named_parameters())[name] for name in self._names]
        return other

    def __call__(self, batch: Sample, counts: Tensor) -> StepResult:
        """As :meth:`nequip_md.training.steps.step.EagerStep.__call__`."""
        frames, atoms = batch.graph.num_graphs, batch.graph.num_nodes
        padded = pad_batch(batch, frames=_SMALLEST, atoms=_SMALLEST, edges=_SMALLEST, cutoff=self.cutoff)
        weights = [w.detach() for w in self.weights]
        found = self._run(*weights, *tensors_of(padded).values(), counts)
        loss, totals, failed, energy, forces, *gradients = found
        stress = gradients.pop(0)[:frames] if self.with_stress else None
        return StepResult(loss, gradients, Prediction(energy[:frames], forces[:atoms], stress), totals, failed)


def is_compiled(model: Potential, config: LossConfig, *, with_stress: bool, folder: Path | None = None) -> bool:
    """Whether :class:`CompiledStep` would find what it needs in its folder."""
    return _path(model, config, with_stress, folder).exists()


def pad_batch(batch: Sample, *, frames: int, atoms: int, edges: int, cutoff: float) -> Sample:
    """Append empty frames, phantom atoms and phantom edges, which add exactly 0 to a loss and its gradient.

    Args:
        frames, atoms, edges: numbers that the result has at least.
        cutoff: largest cutoff of the model, angstrom.
    """
    if frames <= batch.graph.num_graphs and atoms <= batch.graph.num_nodes and edges <= batch.graph.num_edges:
        return batch
    graph = pad_graph(batch.graph, edges, atoms, cutoff=cutoff)
    more_frames, more_atoms = max(0, frames - graph.num_graphs), graph.num_nodes - batch.graph.num_nodes
    graph = replace(graph, graph_ptr=torch.cat([graph.graph_ptr, graph.graph_ptr[-1:].expand(more_frames)]))

    def appended(values: Tensor, count: int, value: float) -> Tensor:
        return torch.cat([values, values.new_full((count, *values.shape[1:]), value)])

    nan = float("nan")
    return Sample(
        graph=graph,
        energy=appended(batch.energy, more_frames, nan),
        forces=appended(batch.forces, more_atoms, nan),
        stress=appended(batch.stress, more_frames, nan),
        volume=appended(batch.volume, more_frames, float("inf")),
        weight=appended(batch.weight, more_frames, 1.0),
        index=appended(batch.index, more_frames, -1),
    )


class CheckedStep:
    """A compiled step that is compared with the eager one on its first batch, and gives way to it where they differ or where it
    cannot be compiled; a warning says why."""

    def __init__(self, model: Potential, config: LossConfig, *, with_stress: bool):
        self.eager = EagerStep(model, config, with_stress=with_stress)
        self.tolerance = {"fp64": 1e-8, "fp32": 1e-3, "tf32": 3e-2}[step_precision(model)]
        self.checked = False
        try:
            self.compiled: CompiledStep | None = CompiledStep(model, config, with_stress=with_stress)
        except Exception as error:  # a compiler raises whatever it meets
            self._give_up(str(error) if isinstance(error, NequIPMDError) else f"{type(error).__name__}: {error}")

    def __call__(self, batch: Sample, counts: Tensor) -> StepResult:
        if self.compiled is None:
            return self.eager(batch, counts)
        result = self.compiled(batch, counts)
        if self.checked:
            return result
        expected = self.eager(batch, counts)
        self.checked = True
        difference = relative_difference(result, expected)
        if not difference <= self.tolerance:
            self._give_up(f"its gradient of the first batch is off by {difference:.1e} of its norm")
        return expected

    def _give_up(self, reason: str) -> None:
        self.compiled = None
        log.warning("warning: training goes on without the compiled step: %s", reason)


def relative_difference(result: StepResult, expected: StepResult) -> float:
    """Norm of the difference of two gradients by all weights, relative to the second one's."""
    pairs = list(zip(result.gradients, expected.gradients, strict=True))
    square = sum((a - b).to(torch.float64).square().sum() for a, b in pairs)
    return float((square / sum(b.to(torch.float64).square().sum() for _, b in pairs)).sqrt())


# ---- compilation ----------------------------------------------------------------------------------------------------


def _path(model: Potential, config: LossConfig, with_stress: bool, folder: Path | None = None) -> Path:
    device = next(model.parameters()).device
    return (folder or cache_folder("training")) / f"{_digest(model, config, with_stress, device)}.pt2"


def _loaded(path: Path, device: torch.device) -> Code | None:
    """The code of a compiled step; None if it is damaged."""
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    try:
        with ArtifactFile(path) as file:
            code = Code(file, device, recordable=True)
    except NequIPMDError as error:
        log.warning("warning: the compiled training step %s is damaged and is compiled again (%s)", path, error)
        return None
    log.info("the compiled training step is in %s", path)
    return code


def _compile(path: Path, model: Potential, config: LossConfig, with_stress: bool, device: torch.device) -> None:
    log.info("compiling the training step, which takes some minutes once")
    started = time.monotonic()
    content = _compiled(model, config, with_stress, device)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        raise NequIPMDError(
            f"cannot write the compiled training step {path}: {error.strerror or error};"
            " name another folder in XDG_CACHE_HOME"
        ) from error
    log.info("compiled it in %.0f s", time.monotonic() - started)


def _compiled(model: Potential, config: LossConfig, with_stress: bool, device: torch.device) -> memoryview:
    """The content of the package of a step."""
    backend = training_backend(device.type, step_precision(model))
    # the code that launches kernels is long and runs in little time: once, where a GPU's launches are recorded
    options: dict[str, Any] = {"aot_inductor.compile_wrapper_opt_level": "O0"}
    if torch.are_deterministic_algorithms_enabled():
        # Inductor would choose among kernels by their times, which differ from run to run
        options["deterministic"] = True
    graph, inputs = step_graph(model, config, with_stress, device, backend)
    return compile_graph(graph, inputs, backend, options)


@few_collections()
def step_graph(
    model: Potential, config: LossConfig, with_stress: bool, device: torch.device, backend: Backend
) -> tuple[torch.fx.GraphModule, list[Tensor]]:
    """The graph of a step in a device's kernels: (*weights, *tensors of a batch, counts) -> (loss, totals, failed, *prediction,
    *gradients); and inputs of usual size.

    Raises:
        NequIPMDError: the graph holds for some sizes alone.
    """
    weights = [w.detach() for w in trained(model)]
    model = copy.deepcopy(model)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    model.requires_grad_(False)
    example = _example(model, device)
    labels = list(example)

    def step(*inputs: Tensor) -> tuple[Tensor, ...]:
        weights = [w.detach().requires_grad_() for w in inputs[: len(names)]]
        batch, counts = batch_of(dict(zip(labels, inputs[len(names) : -1]))), inputs[-1]

        def network(*inputs: Tensor) -> Tensor:
            return functional_call(model, dict(zip(names, weights)), inputs)

        result = loss_and_gradient(network, weights, batch, counts, config, with_stress)
        found = result.prediction
        stress = [found.stress] if with_stress else []
        return result.loss, result.totals, result.failed, found.energy, found.forces, *stress, *result.gradients

    inputs = [*weights, *example.values(), torch.ones(3, dtype=torch.float64, device=device)]
    dynamic = [{}] * len(weights) + [_DYNAMIC[name] for name in labels] + [{}]
    return trace_function(step, symbolic(inputs, dynamic), backend), inputs


def _example(model: Potential, device: torch.device) -> dict[str, Tensor]:
    """The tensors of a batch of usual size, from which Inductor chooses how reductions are shared among threads."""
    owned, frames = 389, 7
    inputs = example_inputs(owned, 0, 31, len(model.type_names), model.config.cutoff, device=device.type)
    ptr = torch.linspace(0, owned, frames + 1, device=device).to(torch.int64)

    def label(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=device)

    return tensors_of(
        Sample(
            graph=Graph(*inputs, ptr),
            energy=label(frames),
            forces=label(owned, 3),
            stress=label(frames, 3, 3),
            volume=label(frames) + 1.0,
            weight=label(frames) + 1.0,
            index=torch.arange(frames),
        )
    )


def _digest(model: Potential, config: LossConfig, with_stress: bool, device: torch.device) -> str:
    """Names everything that the compiled code depends on."""
    digest = hashlib.sha256()
    trains = [name for name, p in model.named_parameters() if p.requires_grad]
    parts = [
        model.config.model_dump_json(),
        config.model_dump_json(),
        with_stress,
        step_precision(model),
        torch.are_deterministic_algorithms_enabled(),
        trains,
        torch.__version__,
        _machine(device),
    ]
    digest.update(repr(parts).encode())
    for name, tensor in model.state_dict().items():
        if name not in trains:  # a constant of the graph
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    for package in ("nequip_md", "nequip_md.training"):
        for path in sorted(Path(str(files(package))).rglob("*")):
            if path.suffix in (".py", ".cpp", ".h", ".cuh"):
                digest.update(path.read_bytes())
    return digest.hexdigest()[:24]


def _machine(device: torch.device) -> str:
    """What machine code is made for: a GPU's kind, or the processor's instructions."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
