"""The position of a run within an epoch, as Lightning counts it."""

from __future__ import annotations

from typing import Any


def between_steps(loops: dict[str, Any], *, epochs: int, batches: int) -> dict[str, Any]:
    """The counters of Lightning's loops between two steps of an epoch, with which Lightning continues it.

    They begin with the batch that was taken last, so that at least one is left of every epoch; its step is left out.

    Args:
        loops: as Lightning saves them, at any time of the epoch.
        epochs: number of complete epochs.
        batches: number of batches that were taken since.
    """
    fit = dict(loops["fit_loop"])
    fit["epoch_progress"] = {
        name: {**counts, "ready": epochs + 1, "started": epochs + 1, "processed": epochs, "completed": epochs}
        for name, counts in fit["epoch_progress"].items()
    }
    total = fit["epoch_loop.batch_progress"]["total"]["ready"] - fit["epoch_loop.batch_progress"]["current"]["ready"]
    fit["epoch_loop.batch_progress"] = {
        "total": dict.fromkeys(("ready", "started", "processed", "completed"), total + batches - 1),
        "current": dict.fromkeys(("ready", "started", "processed", "completed"), batches - 1),
        "is_last_batch": False,
    }
    validation = dict.fromkeys(("ready", "started", "processed", "completed"), 0)
    fit["epoch_loop.val_loop.batch_progress"] = {"total": validation, "current": validation, "is_last_batch": False}
    return {**loops, "fit_loop": fit}
