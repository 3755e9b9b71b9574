"""Exchange of ghosts' features while an artifact runs: connects compiled code to a Python function."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

import torch
from torch import Tensor

Exchange = Callable[[Tensor, int, bool], None]
"""``exchange(features, owned, reduce)``; see :meth:`nequip_md.artifact.Artifact.set_exchange`."""

_SYMBOL = "nequip_md_artifact_set_exchange"
_ANSWER = ctypes.CFUNCTYPE(
    ctypes.c_int,  # 0, or the evaluation fails
    ctypes.c_void_p,  # context, which Python does without
    ctypes.c_int,  # reduce
    ctypes.c_void_p,  # features
    ctypes.c_int64,  # owned
    ctypes.c_int64,  # ghosts
    ctypes.c_int64,  # width
    ctypes.c_int,  # bytes of a number
    ctypes.c_void_p,  # stream
)


class ExchangeHook:
    """The Python function that loaded code calls to exchange features of ghosts.

    Attributes:
        function: the function, or None.
        error: the exception that the function raised, if any. The code then fails, and its caller raises this exception.
    """

    def __init__(self, library: str, device: torch.device):
        """
        Args:
            library: path of the shared library, which must be loaded already.
        """
        self.function: Exchange | None = None
        self.error: BaseException | None = None
        loaded = ctypes.CDLL(library, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        # gives up the reference that this handle holds, so that the code is unloaded with its runner
        ctypes.CDLL(None).dlclose(ctypes.c_void_p(loaded._handle))
        self._register = getattr(loaded, _SYMBOL, None)
        self._device = device
        self._answer = None

    @property
    def present(self) -> bool:
        """Whether the code exchanges features."""
        return self._register is not None

    def set(self, function: Exchange | None) -> None:
        """Let the code call this function from now on."""
        before, self._answer = self._answer, _ANSWER(self._call) if function else _ANSWER()
        self._register(self._answer, None)
        self.function = function
        del before  # not released before, as the code could call it until now

    def _call(self, _, reduce, address, owned, ghosts, width, bytes_each, stream) -> int:
        try:
            features = _tensor(address, (owned + ghosts, width), bytes_each, self._device)
            self.function(features, owned, bool(reduce))
            return 0
        except BaseException as error:  # an exception must not pass through compiled code
            self.error = error
            return 1


class _OnGPU:
    """Memory of a GPU that belongs to other code, described by the attribute that PyTorch reads."""

    def __init__(self, address: int, shape: tuple[int, int], bytes_each: int):
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": f"<f{bytes_each}",
            "data": (address, False),
            "version": 2,
        }


def _tensor(address: int, shape: tuple[int, int], bytes_each: int, device: torch.device) -> Tensor:
    """A tensor that views the memory at an address."""
    if device.type == "cuda":
        return torch.as_tensor(_OnGPU(address, shape, bytes_each), device=device)
    memory = (ctypes.c_char * (shape[0] * shape[1] * bytes_each)).from_address(address)
    return torch.frombuffer(memory, dtype=torch.float64 if bytes_each == 8 else torch.float32).view(shape)
