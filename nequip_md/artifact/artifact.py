"""Load an artifact and evaluate it from Python."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from nequip_md.artifact.artifact_file import ArtifactFile
from nequip_md.artifact.exchange import Exchange
from nequip_md.artifact.loaded_code import Code
from nequip_md.artifact.metadata import checked_metadata, cpu_instructions, torch_version
from nequip_md.errors import NequIPMDError
from nequip_md.graph import Graph, pad_graph
from nequip_md.memory import keep_freed_memory
from nequip_md.precision import matmul_precision


class Artifact:
    """A compiled model. A call returns node energies and edge gradients.

    Attributes:
        metadata: the artifact's table of text (see :mod:`nequip_md.artifact.metadata`).
        type_names: names of the model's types, in the order of their indices.
        cutoff: largest cutoff, angstrom.
        pair_cutoffs: cutoff of each ordered pair ``[centre][neighbour]``, angstrom, float64 [T, T].
        message_passing_layers: 0 for strictly local models; with L > 1 layers, ghosts need :meth:`set_exchange`.
        device: the device that inputs must be on.
    """

    def __init__(self, file: ArtifactFile, metadata: dict[str, str], device: torch.device):
        self.path = file.path
        self.metadata = metadata
        self.device = device
        self.type_names = metadata["type_names"].split()
        self.cutoff = float(metadata["cutoff"])
        cutoffs = [float(r) for r in metadata["pair_cutoffs"].split()]
        self.pair_cutoffs = torch.tensor(cutoffs, dtype=torch.float64).view(len(self.type_names), -1)
        self.message_passing_layers = int(metadata["message_passing_layers"])
        self._code = Code(file, device)

    def set_exchange(self, exchange: Exchange | None) -> None:
        """Set the function that exchanges features of ghosts. Models with several message-passing layers need it if there are ghosts.

        Args:
            exchange: called as ``exchange(features, owned, reduce)``, once before each layer but the first, and once more
                for the gradient of each of these. ``features`` [N + G, width], on the artifact's device and in its dtype, is
                memory of the compiled code: the function changes it in place and must not keep it. Its first ``owned`` rows
                belong to the owned atoms (at least two: smaller graphs are padded with phantom atoms), the other rows to the
                ghosts. Without ``reduce``, the function fills the ghosts' rows with those of their owners; with ``reduce``, it
                adds the ghosts' rows to those of their owners. It is called without ghosts too, as other ranks may wait for
                this one. An exception ends the evaluation. None: no function.

        Raises:
            NequIPMDError: the model exchanges no features.
        """
        if not self._code.exchange.present:
            raise NequIPMDError(
                f"{self.path} exchanges no features of ghosts (it has {self.message_passing_layers} message-passing layers)"
            )
        self._code.exchange.set(exchange)

    def __call__(self, graph: Graph) -> tuple[Tensor, Tensor]:
        """Evaluate one graph of any size.

        Args:
            graph: a :class:`~nequip_md.graph.Graph`; a small one is padded to the smallest size that an artifact accepts.

        Returns:
            Energy of each owned atom, eV, float64 [N]; derivative of the total energy by each edge vector, eV/angstrom,
            float64 [E, 3].

        Raises:
            NequIPMDError: an input has the wrong shape, dtype or device (the compiled code checks none of these); there are
                ghosts, but no function that exchanges their features; or the exchange failed.
        """
        nodes, edges = graph.num_nodes, graph.num_edges
        self._check(graph)
        ghosts = graph.node_types.shape[0] - nodes
        if ghosts and self.metadata["ghosts"] == "no":
            raise NequIPMDError(
                f"{self.path} takes no ghosts, and this graph has {ghosts}; evaluate a graph without ghosts"
            )
        if ghosts and self.message_passing_layers > 1 and self._code.exchange.function is None:
            raise NequIPMDError(
                f"{self.path} passes messages in {self.message_passing_layers} layers, and this graph has {ghosts} ghosts, whose "
                "features nobody exchanges: call set_exchange first, or evaluate a graph without ghosts"
            )
        padded = pad_graph(graph, min_edges=2, min_nodes=2, cutoff=self.cutoff)
        with matmul_precision(self.metadata["precision"]):
            energy, gradient = self._code(*(t.contiguous() for t in padded.tensors))
        return energy[:nodes], gradient[:edges]

    def _check(self, graph: Graph) -> None:
        nodes, edges = graph.num_nodes, graph.num_edges
        expected = {
            "edge_vectors": (torch.float64, (edges, 3)),
            "edge_index": (torch.int64, (2, edges)),
            "row_ptr": (torch.int64, (nodes + 1,)),
            "node_types": (torch.int64, (max(nodes, graph.node_types.shape[0]),)),
        }
        for (name, (dtype, shape)), tensor in zip(expected.items(), graph.tensors):
            if tensor.dtype != dtype or tuple(tensor.shape) != shape:
                raise NequIPMDError(
                    f"{name} is {tensor.dtype} {list(tensor.shape)}; this graph needs {dtype} {list(shape)}"
                )
            if tensor.device.type != self.device.type:
                raise NequIPMDError(
                    f"{name} lies on {tensor.device}, the artifact runs on {self.device}; move the graph there"
                )


def load_artifact(path: str | Path, device: str | torch.device | None = None) -> Artifact:
    """Load a ``.pt2`` file that ``nequip-md-export`` wrote.

    A ``.pt2`` file holds machine code, and loading it runs that code: load files that you trust.

    Args:
        device: of the kind that the artifact was compiled for, which is the default (``cuda`` is the current device).

    Raises:
        NequIPMDError: the file is missing, damaged or no artifact; it has another format version, was compiled by another
            PyTorch release or for another device or processor; or the folder for temporary files (``TMPDIR``) is unusable.
    """
    with ArtifactFile(Path(path)) as file:
        metadata = checked_metadata(file.path, file.metadata())
        if metadata["device"] == "cpu":
            keep_freed_memory()
        return Artifact(file, metadata, _target(file.path, metadata, device))


def _target(path: Path, metadata: dict[str, str], device: str | torch.device | None) -> torch.device:
    """The device on which an artifact runs. Raises NequIPMDError if this process cannot run it."""
    again = "nequip-md-export MODEL -o OUT.pt2"
    if metadata["torch_version"] != torch_version():
        raise NequIPMDError(
            f"{path} was compiled with PyTorch {metadata['torch_version']}, this is {torch_version()}; "
            f"compile it again here: {again}"
        )
    here = cpu_instructions()
    # an illegal instruction would end the whole process
    if here and (missing := [name for name in metadata.get("cpu_instructions", "").split() if name not in here]):
        raise NequIPMDError(
            f"{path} was compiled on a processor with {' '.join(missing)}, which the one of this machine lacks; "
            f"compile it here, or on the oldest processor that shall run it: {again}"
        )
    built_for = metadata["device"]
    target = torch.device(device or built_for)
    if target.type != built_for:
        raise NequIPMDError(
            f"{path} was compiled for {built_for} and cannot run on {target.type}; "
            f"compile it for that device: {again} --device {target.type}"
        )
    if target.type == "cuda":
        if not torch.cuda.is_available():
            raise NequIPMDError(
                f"{path} was compiled for CUDA, and PyTorch finds no CUDA device here; compile it for the CPU: {again} --device cpu"
            )
        target = torch.device("cuda", torch.cuda.current_device() if target.index is None else target.index)
        here = ".".join(str(n) for n in torch.cuda.get_device_capability(target))
        if metadata["compute_capability"] != here:
            raise NequIPMDError(
                f"{path} was compiled for compute capability {metadata['compute_capability']}, {target} has {here}; "
                f"compile it on such a device: {again} --device cuda"
            )
    return target
