"""Work that other processes do, and their end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import chain, islice
from multiprocessing.connection import wait
from typing import TypeVar

import torch

from nequip_md.errors import NequIPMDError
from nequip_md.interrupt import uninterrupted

START = "fork" if sys.platform == "linux" else "spawn"
"""How processes begin; a new interpreter would need seconds to import PyTorch."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def map_in_order(
    function: Callable[[_Item], _Result], items: Iterable[_Item], workers: int, *, alone: int = 0
) -> Iterator[_Result]:
    """``map`` by several processes. Results come in the order of the items, a few of which are held at a time.

    Items and results have to be picklable. The processes ignore Ctrl-C and SIGTERM, which a terminal or a scheduler sends
    to all of them, and end with this generator (``close`` it after an error elsewhere) or with this process.

    Args:
        workers: number of processes; 1 does all the work in this one.
        alone: items at the beginning that this process takes, so that little work starts no others.

    Raises:
        NequIPMDError: a process has died.
        Exception: what ``function`` raises, at the place of the item.
    """
    items = iter(items)
    yield from map(function, items if workers < 2 else islice(items, alone))
    first = list(islice(items, 1))
    if not first:
        return
    waiting: deque[Future[_Result]] = deque()
    with without_children():
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context(START), _begin)
        try:
            for item in chain(first, items):
                with _blocked_signals():  # submitting starts processes, which inherit it
                    waiting.append(pool.submit(function, item))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            pool.shutdown(wait=False, cancel_futures=True)  # others may wait for a lock that the dead one has held
            raise NequIPMDError(
                f"one of {workers} processes has died, most often because the memory is full; take fewer processes"
            ) from None
        except BaseException:
            # they take what was sent to them: the pool's thread that sends would wait for ever for processes that were killed
            with uninterrupted():
                pool.shutdown(cancel_futures=True)
            raise
        pool.shutdown()


@contextmanager
def without_children() -> Iterator[None]:
    """End the processes that the block has started and left, such as readers of data after an error.

    They ignore the signal by which Python would end them at its exit, where it would wait for them for ever.
    """
    before = multiprocessing.active_children()
    try:
        yield
    finally:
        for process in multiprocessing.active_children():
            if process not in before:
                process.kill()
                process.join()


@contextmanager
def _blocked_signals() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin() -> None:
    """A new process takes one core, and will end when the process that has started it does, even if it is killed."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
