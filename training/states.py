"""Files with the state of a run, from which it can be resumed."""

from __future__ import annotations

import io
import logging
import pickle
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO

from nequip_md.atomic import write_atomically
from nequip_md.errors import NequIPMDError
from nequip_md.training.folder import LAST, PREVIOUS
from nequip_md.training.lightning_module import STATE_KEY
from nequip_md.verified_zip import verified_copy

log = logging.getLogger(__name__)


def read_state(path: Path) -> dict[str, Any]:
    """Read a state that ``nequip-md-train`` has written, to the CPU.

    Raises:
        NequIPMDError: the file is missing, damaged (checksums are compared), or of another program.
    """
    try:
        state = torch.load(verified_copy(path), map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise NequIPMDError(f"{path} does not exist") from None
    except OSError as error:
        raise NequIPMDError(f"{path} cannot be read: {error.strerror}") from None
    except pickle.UnpicklingError:
        raise NequIPMDError(f"{path} was not written by nequip-md-train: it holds objects of other kinds") from None
    except Exception as error:  # zipfile and torch raise many types of exceptions for damaged files
        raise NequIPMDError(f"{path} is damaged ({type(error).__name__}: {error})") from None
    ours = state.get(STATE_KEY) if isinstance(state, dict) else None
    if not isinstance(ours, dict) or not {"config", "record"} <= ours.keys():
        raise NequIPMDError(f"{path} was not written by nequip-md-train")
    return state


class StateFiles(CheckpointIO):
    """Writes and reads the states of one run for Lightning: ``last.ckpt``, and ``previous.ckpt``, the state before it.

    Attributes:
        source: the file that was last read or written, from which a run can be resumed; None at first.
        epochs: number of complete epochs of the state in that file.
        batches: number of batches that each process has taken in the epoch after those.
    """

    def __init__(self, folder: Path):
        self.last, self.previous = folder / LAST, folder / PREVIOUS
        self.source: Path | None = None
        self.epochs: int | None = None
        self.batches = 0

    def read(self) -> dict[str, Any]:
        """The last state or, with a warning, the state before it if the last is missing or damaged.

        Raises:
            NequIPMDError: neither state can be used.
        """
        try:
            state, self.source = read_state(self.last), self.last
        except NequIPMDError as error:
            try:
                state, self.source = read_state(self.previous), self.previous
            except NequIPMDError as second:
                raise NequIPMDError(
                    f"there is no run to resume: {error}, and {second}; copy one of them back,"
                    " or start again without --resume"
                ) from None
            log.warning("%s; resuming from %s, the state before it", error, self.previous)
        self._take_note(state)
        return state

    def _take_note(self, state: dict[str, Any]) -> None:
        self.batches = state[STATE_KEY].get("batches", 0)
        self.epochs = state["epoch"] + (self.batches == 0)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        content = io.BytesIO()
        torch.save(checkpoint, content)
        # a damaged file is not kept: it must not take the place of the good one that this run came from
        keep_as = self.previous if self.source == self.last else None
        try:
            write_atomically(Path(path), content.getbuffer(), keep_as=keep_as)
        except OSError as error:
            raise NequIPMDError(f"cannot write {path}: {error.strerror}; {self.note()}") from None
        self.source = self.last
        self._take_note(checkpoint)

    def load_checkpoint(self, path: str | Path, *_, **__) -> dict[str, Any]:
        return read_state(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)

    def note(self) -> str:
        """A sentence for a run that ends early: what is saved, and how to continue."""
        if self.epochs is None:
            return "no state was saved, so there is nothing to resume; start again"
        place = f"batch {self.batches} of epoch {self.epochs + 1}" if self.batches else f"epoch {self.epochs}"
        return f"the state after {place} is saved in {self.source}; --resume continues from there"
