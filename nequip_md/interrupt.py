"""One exception for the signals that ask a program to end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class _Gate:
    """Whether signals wait, and the one that does.

    Attributes:
        holds: number of :func:`hold` without their :func:`release`.
        waiting: the first signal that came since; None if none did.
        handlers: of :func:`interruptible`, by signal.
    """

    def __init__(self):
        self.holds, self.waiting = 0, None
        self.handlers: dict[int, Callable] = {}


_gate = _Gate()


class Interrupted(BaseException):
    """The process was asked to end.

    Like ``KeyboardInterrupt`` it passes handlers of errors; it is another class because Lightning takes
    ``KeyboardInterrupt`` for itself and ends the process with status 1.

    Attributes:
        signal: SIGTERM (``kill``, ``scancel``, the time limit of a job) or SIGINT (Ctrl-C).
        status: exit status of the program, 128 + the number of the signal, as a shell reports it.
        note: what was saved and how to go on, for the user; empty if there is nothing to say.
    """

    def __init__(self, number: int, note: str = ""):
        super().__init__(number, note)
        self.signal, self.note = signal.Signals(number), note

    @property
    def status(self) -> int:
        return 128 + self.signal

    def __str__(self) -> str:
        name = "Ctrl-C" if self.signal == signal.SIGINT else self.signal.name
        return f"ended by {name}: {self.note}" if self.note else f"ended by {name}"


def hold() -> None:
    """Let the signals of :func:`interruptible` wait until :func:`release`, so that what belongs together is done as a whole."""
    _gate.holds += 1


def release() -> None:
    """End the last :func:`hold`.

    Raises:
        Interrupted: a signal has waited, and no other hold keeps it waiting.
    """
    _gate.holds -= 1
    if _gate.holds == 0 and _gate.waiting is not None:
        number, _gate.waiting = _gate.waiting, None
        raise Interrupted(number)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """The signals of :func:`interruptible` wait until the block ends; they go before an error in the block.

    Raises:
        Interrupted: a signal came within the block, and no :func:`hold` around it keeps it waiting.
    """
    hold()
    try:
        yield
    finally:
        release()


def waiting() -> int | None:
    """The signal that a :func:`hold` keeps waiting; None if there is none."""
    return _gate.waiting


def take_back_signals() -> None:
    """Let the handlers of the :func:`interruptible` around it be the only ones, where a library has put others before them."""
    if threading.current_thread() is threading.main_thread():
        for number, handler in _gate.handlers.items():
            signal.signal(number, handler)


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise :class:`Interrupted` in the main thread when SIGTERM or SIGINT comes within the block.

    A signal that is ignored stays ignored (a shell does so with SIGINT for its background jobs), and other threads
    than the main one change nothing, because Python runs handlers in the main thread.
    """

    def handle(number, frame):
        if not _gate.holds:
            raise Interrupted(number)
        _gate.waiting = _gate.waiting or number

    previous = {}
    if threading.current_thread() is threading.main_thread():
        previous = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    # None: a handler that was not installed from Python and could not be put back
    previous = {n: handler for n, handler in previous.items() if handler not in (None, signal.SIG_IGN)}
    before = vars(_gate).copy()
    _gate.holds, _gate.waiting, _gate.handlers = 0, None, dict.fromkeys(previous, handle)
    try:
        take_back_signals()
        yield
    finally:
        vars(_gate).update(before)
        for number, handler in previous.items():
            signal.signal(number, handler)
