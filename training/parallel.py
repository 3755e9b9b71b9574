"""Training on several processes: one for each GPU, or several on processors.

``torchrun`` and Slurm's ``srun`` start the processes. Each has a copy of the model and takes batches of its own; the gradients of
a step are summed over all of them, so that the weights stay the same everywhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, distributed

from nequip_md.errors import NequIPMDError
from nequip_md.interrupt import Interrupted, waiting


@dataclass(frozen=True)
class Processes:
    """The processes of this run.

    Attributes:
        rank: of this process among all.
        size: number of processes.
        local_size: number of processes on this machine.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1

    @classmethod
    def of_this_run(cls) -> Processes:
        """As the environment says: what ``torchrun`` sets, or ``srun`` for a step of several tasks.

        A batch job of several tasks whose script starts the command without ``srun`` is one process.

        Raises:
            NequIPMDError: the processes are spread unevenly over machines.
        """
        _take_from_slurm(os.environ)
        if "WORLD_SIZE" not in os.environ or "RANK" not in os.environ:
            return cls()
        size, local_size = int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        if size % local_size:
            raise NequIPMDError(
                f"{local_size} of {size} processes run on this machine; start the same number on each machine"
            )
        return cls(int(os.environ["RANK"]), size, local_size)

    @property
    def machines(self) -> int:
        return self.size // self.local_size


def _take_from_slurm(environment: os._Environ) -> None:
    """Set what ``torchrun`` would set, from the variables of a step that ``srun`` started with several tasks."""
    size = int(environment.get("SLURM_STEP_NUM_TASKS", 1))
    if size == 1 or "WORLD_SIZE" in environment:
        return
    nodes = int(environment.get("SLURM_STEP_NUM_NODES", 1))
    first = SLURMEnvironment.resolve_root_node_address(environment.get("SLURM_STEP_NODELIST", "127.0.0.1"))
    environment.update(
        RANK=environment["SLURM_PROCID"],
        WORLD_SIZE=str(size),
        LOCAL_RANK=environment["SLURM_LOCALID"],
        LOCAL_WORLD_SIZE=str(-(-size // nodes)),
        GROUP_RANK=environment.get("SLURM_NODEID", "0"),
        MASTER_ADDR=environment.get("MASTER_ADDR", first),
        # the same in all processes of the job, and another one for each job of a machine
        MASTER_PORT=environment.get("MASTER_PORT", str(15000 + int(environment.get("SLURM_JOB_ID", "0")) % 10000)),
    )


class Replicas(DDPStrategy):
    """A copy of the model in each process, without PyTorch's wrapper: :func:`sum_over_processes` is all that they share."""

    def configure_ddp(self) -> None:
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            distributed.broadcast(tensor.data, 0)

    def barrier(self, name: str | None = None) -> None:
        # one process writes the state, and does so alone when the run is interrupted
        if name != "Trainer.save_checkpoint":
            super().barrier(name)


def are_connected() -> bool:
    """Whether this process can exchange messages with others of its run."""
    return distributed.is_available() and distributed.is_initialized()


@contextmanager
def first_goes_first() -> Iterator[None]:
    """The first process runs the block while the others wait; they run it after that."""
    together = are_connected()
    if together and distributed.get_rank() > 0:
        distributed.barrier()
    try:
        yield
    finally:
        if together and distributed.get_rank() == 0:
            distributed.barrier()


def sum_over_processes(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The sum of each tensor over all processes, by one message; the tensors themselves where there is one process.

    Args:
        tensors: of one dtype and device, of the same shapes in every process.
    """
    if not are_connected():
        return list(tensors)
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    distributed.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def stop_together(device: torch.device) -> None:
    """Called by all processes between two steps, while they hold signals: all end if a signal waits in any of them.

    Without this, one would end in one step and leave the others waiting for it in the next.

    Args:
        device: where processes exchange tensors.

    Raises:
        Interrupted: with the same signal in all processes.
    """
    number = torch.tensor(waiting() or 0, device=device)
    distributed.all_reduce(number, distributed.ReduceOp.MAX)
    if number > 0:
        raise Interrupted(int(number))
