"""``nequip-md-train`` on several processes, which are forked from one that has imported it: most of a small run is its imports."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from pathlib import Path


def _train(environment: dict[str, str], arguments: list[str], log: Path) -> None:
    os.environ.update(environment)
    with open(log, "w") as stream:
        for output in (sys.stdout, sys.stderr):
            os.dup2(stream.fileno(), output.fileno())
    import torch

    from nequip_md.training.cli import main

    torch.set_num_threads(1)
    sys.exit(main(arguments))


def train_on(processes: int, arguments: list, folder: Path) -> tuple[list[int], str]:
    """Run the command on some processes, with what ``torchrun`` sets in their environment.

    Args:
        folder: for what they print.

    Returns:
        The exit status of each process, and what they printed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["nequip_md.training.run"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    sizes = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "GROUP_RANK": "0"}
    started, logs = [], [folder / f"process{rank}.log" for rank in range(processes)]
    for rank, log in enumerate(logs):
        environment = {**address, **sizes, "RANK": str(rank), "LOCAL_RANK": str(rank), "TORCHELASTIC_RUN_ID": "tests"}
        started.append(context.Process(target=_train, args=(environment, [*map(str, arguments)], log)))
        started[-1].start()
    for process in started:
        process.join(300)
    ended = [process.exitcode for process in started]
    for process in started:
        process.kill()
    return ended, "".join(log.read_text() for log in logs)
