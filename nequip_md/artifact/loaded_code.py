"""The compiled code of an artifact, loaded into this process.

PyTorch's C++ runner loads it. PyTorch's loader for Python is not used, since it imports the compiler, which compiles test programs
and uses a folder that other users may have prepared, and since it unpacks the file without verifying checksums.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nequip_md.artifact.artifact_file import ArtifactFile
from nequip_md.artifact.code_folder import CodeFolder
from nequip_md.artifact.exchange import ExchangeHook
from nequip_md.errors import NequIPMDError


class Code:
    """The compiled function of an artifact or of another package that AOTInductor wrote, which maps tensors to tensors.

    Attributes:
        exchange: connection to the function that exchanges features of ghosts.
    """

    def __init__(self, file: ArtifactFile, device: torch.device, *, recordable: bool = False):
        """
        Args:
            device: with an index, if it is a GPU.
            recordable: run without the events that PyTorch puts between runs, which CUDA graphs cannot record.

        Raises:
            NequIPMDError: the file is damaged, the folder for temporary files is unusable, or the code cannot be loaded.
        """
        self._folder: CodeFolder | None = CodeFolder(file.size)
        try:
            library = str(file.unpack(self._folder))
            try:
                if device.type == "cpu":
                    self._runner = torch._C._aoti.AOTIModelContainerRunnerCpu(library, 1)
                else:
                    self._runner = torch._C._aoti.AOTIModelContainerRunnerCuda(
                        library, 1, str(device), str(self._folder.path), recordable
                    )
            except RuntimeError as error:
                raise NequIPMDError(
                    f"the compiled code in {file.path} does not load ({str(error).splitlines()[0]}); "
                    "compile it again on a machine like this one: nequip-md-export MODEL -o OUT.pt2"
                ) from error
            self.exchange = ExchangeHook(library, device)
        except BaseException:
            self._folder.delete()
            raise
        # a GPU's kernels are loaded from files of the folder when they are first needed
        if device.type == "cpu":
            self._delete_folder()

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """
        Raises:
            NequIPMDError: the exchange of ghosts' features raised an exception.
        """
        try:
            outputs = self._runner.run(list(inputs))
        except RuntimeError:
            error, self.exchange.error = self.exchange.error, None
            if error is None:
                raise
            if not isinstance(error, Exception):  # Ctrl-C
                raise error from None
            raise NequIPMDError(f"the exchange of ghosts' features failed ({type(error).__name__}: {error})") from error
        self._delete_folder()
        return outputs

    def _delete_folder(self) -> None:
        """Delete the folder, which loaded code does not need any more, so that no file is left behind if the process is killed."""
        if self._folder:
            self._folder.delete()
            self._folder = None
