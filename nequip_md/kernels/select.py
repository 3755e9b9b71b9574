"""Which backend an export takes."""

from __future__ import annotations

import torch

from nequip_md.kernels.backend import Backend


def backend_for(device: str, precision: str, *, constant_weights: bool = True) -> Backend:
    """The backend for a device of this machine.

    Args:
        device: ``cpu`` or ``cuda``.
        precision: ``fp64``, ``fp32`` or ``tf32``.
        constant_weights: weights are constants of the graph. In training they are not, and the kernels for Hopper GPUs, which are
            made for given weights, do not serve.
    """
    if device == "cpu":
        from nequip_md.kernels.cpu.backend import CPUBackend

        return CPUBackend()
    # these import Triton
    if constant_weights and precision != "fp64" and is_hopper():
        from nequip_md.kernels.hopper.backend import HopperBackend

        return HopperBackend(precision)
    from nequip_md.kernels.triton.backend import TritonBackend

    return TritonBackend(precision)


def is_hopper() -> bool:
    """Whether PyTorch sees a GPU of compute capability 9.0, which the kernels for Hopper need."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
