"""Which backend an export or a training takes."""

from __future__ import annotations

import torch

from nequip_md.kernels.backend import Backend


def backend_for(device: str, precision: str) -> Backend:
    """The backend for an export on a device of this machine.

    Args:
        device: ``cpu`` or ``cuda``.
        precision: ``fp64``, ``fp32`` or ``tf32``.
    """
    if device == "cpu":
        from nequip_md.kernels.cpu.backend import CPUBackend

        return CPUBackend()
    # these import Triton
    if precision != "fp64" and is_hopper():
        from nequip_md.kernels.hopper.backend import HopperBackend

        return HopperBackend(precision)
    from nequip_md.kernels.triton.backend import TritonBackend

    return TritonBackend(precision)


def training_backend(device: str, precision: str) -> Backend:
    """The backend for training steps on a device of this machine, in which weights change and there are no ghosts.

    Args: as :func:`backend_for`. The kernels for Hopper GPUs, which are made for given weights, are not among these.
    """
    if device == "cpu":
        return backend_for(device, precision).for_training()
    from nequip_md.kernels.triton.backend import TritonBackend  # imports Triton

    return TritonBackend(precision).for_training()


def is_hopper() -> bool:
    """Whether PyTorch sees a GPU of compute capability 9.0, which the kernels for Hopper need."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
