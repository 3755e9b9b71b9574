"""Steps that tally what they see, on a GPU recorded as CUDA graphs; and which kind of step a run takes."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import torch
from torch import Tensor

from nequip_md.model.potential import Potential
from nequip_md.training.config import LossConfig
from nequip_md.training.data.samples import Sample
from nequip_md.training.steps.compiled_step import CheckedStep, CompiledStep, is_compiled, pad_batch
from nequip_md.training.steps.step import EagerStep, StepResult, Tally, batch_of, tensors_of

log = logging.getLogger(__name__)

FEW_STEPS = 2000
"""A run of fewer steps is over before a compiled step would pay, unless an earlier run has compiled it."""
MOST_RECORDINGS = 64
"""Sizes of batches that are recorded; batches of further sizes run as compiled code without a recording."""
EDGES_OF_A_PHANTOM = 64
"""Most phantom edges of a phantom atom, so that it takes no longer than other atoms."""


class TalliedStep:
    """A step whose results a tally takes up."""

    def __init__(self, step: Callable[[Sample, Tensor], StepResult], tally: Tally):
        self.step, self.tally = step, tally

    def __call__(self, batch: Sample, counts: Tensor) -> list[Tensor]:
        """The gradient by each weight, with the arguments of :meth:`~nequip_md.training.steps.step.EagerStep.__call__`."""
        result = self.step(batch, counts)
        self.tally.add(result, batch)
        return result.gradients


class RecordedStep:
    """A compiled step, with its tally, as a CUDA graph for each size of batches.

    Batches are padded to few sizes. The gradients are in the same memory after each step.

    Attributes:
        gradients: one for each weight, in memory that stays.
    """

    def __init__(self, step: CompiledStep, tally: Tally):
        self.step = step
        self._tallied = TalliedStep(step, tally)
        sizes = [weight.numel() for weight in step.weights]
        self._flat = torch.zeros(sum(sizes), dtype=step.weights[0].dtype, device=step.weights[0].device)
        self.gradients = [g.view_as(w) for g, w in zip(self._flat.split(sizes), step.weights, strict=True)]
        self._recordings: dict[tuple[int, int, int], tuple[torch.cuda.CUDAGraph, list[Tensor]]] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, batch: Sample, counts: Tensor) -> list[Tensor]:
        """The gradient, with the arguments of :meth:`TalliedStep.__call__`."""
        frames, atoms, edges = padded_sizes(batch.graph.num_graphs, batch.graph.num_nodes, batch.graph.num_edges)
        padded = pad_batch(batch, frames=frames, atoms=atoms, edges=edges, cutoff=self.step.cutoff)
        inputs = [*tensors_of(padded).values(), padded.index, counts]
        recording = self._recordings.get((frames, atoms, edges))
        if recording is not None:
            graph, buffers = recording
            torch._foreach_copy_(buffers, inputs)
            graph.replay()
        else:
            self._run(padded, counts)
            if len(self._recordings) < MOST_RECORDINGS:
                self._recordings[frames, atoms, edges] = self._record(padded, [t.clone() for t in inputs])
        return self.gradients

    def _run(self, batch: Sample, counts: Tensor) -> None:
        torch.cat([g.reshape(-1) for g in self._tallied(batch, counts)], out=self._flat)

    def _record(self, batch: Sample, buffers: list[Tensor]) -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
        """Record a step on these buffers, which hold a batch that has run; the recording runs nothing."""
        *tensors, index, counts = buffers
        still = batch_of(dict(zip(tensors_of(batch), tensors, strict=True)), index)
        graph = torch.cuda.CUDAGraph()
        # other threads, such as NCCL's, may ask the device for their events meanwhile
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            self._run(still, counts)
        return graph, buffers


def padded_sizes(frames: int, atoms: int, edges: int) -> tuple[int, int, int]:
    """Numbers of frames, atoms and edges to pad a batch to: each up to an eighth more, a multiple of a power of two."""
    more_edges = _round_up(max(edges, 2))
    phantoms = math.ceil((more_edges - edges) / EDGES_OF_A_PHANTOM)
    return max(frames, 2), _round_up(max(atoms + phantoms, 2)), more_edges


def _round_up(size: int) -> int:
    unit = 1 << max(3, size.bit_length() - 4)
    return -(-size // unit) * unit


class CheckedRecordedStep:
    """A recorded step whose first batch is checked against the eager step, which takes over where it has to.

    Args:
        checked: the compiled step.
    """

    def __init__(self, checked: CheckedStep, tally: Tally):
        self.checked = checked
        self._tallied = TalliedStep(checked, tally)
        self.recorded = RecordedStep(checked.compiled, tally)
        self.gradients = self.recorded.gradients

    def __call__(self, batch: Sample, counts: Tensor) -> list[Tensor]:
        """The gradient, with the arguments of :meth:`TalliedStep.__call__`."""
        if self.checked.compiled is not None and self.checked.checked:
            return self.recorded(batch, counts)
        torch._foreach_copy_(self.gradients, self._tallied(batch, counts))
        return self.gradients


def make_step(
    model: Potential, config: LossConfig, tally: Tally, *, with_stress: bool, compiled: str, steps: int
) -> TalliedStep | CheckedRecordedStep:
    """The step that a training file asks for.

    Args:
        compiled: ``auto``, ``yes`` or ``no``, see :class:`~nequip_md.training.config.TrainingConfig`.
        steps: about how many the run may take.
    """
    if compiled == "auto":
        pays = steps >= FEW_STEPS or is_compiled(model, config, with_stress=with_stress)
        compiled = "yes" if pays else "no"
    if compiled == "no":
        return TalliedStep(EagerStep(model, config, with_stress=with_stress), tally)
    checked = CheckedStep(model, config, with_stress=with_stress)
    on_gpu = next(model.parameters()).device.type == "cuda"
    return (
        CheckedRecordedStep(checked, tally) if on_gpu and checked.compiled is not None else TalliedStep(checked, tally)
    )


def validation_step(
    step: TalliedStep | CheckedRecordedStep, model: Potential, tally: Tally
) -> TalliedStep | RecordedStep | None:
    """A step for validation by the code of a training step, whose gradients nobody reads; None if that is not compiled.

    Args:
        model: of the same configuration, whose weights count.
    """
    checked = step.checked if isinstance(step, CheckedRecordedStep) else step.step
    if not isinstance(checked, CheckedStep) or checked.compiled is None:
        return None
    compiled = checked.compiled.of(model)
    return RecordedStep(compiled, tally) if isinstance(step, CheckedRecordedStep) else TalliedStep(compiled, tally)
