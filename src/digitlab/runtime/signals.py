"""Signals that end a run: recorded when they arrive, handled at the next safe point.

A library may swallow an exception that a handler raises inside it, or turn it into another error.
Inside `deferred` a signal is therefore only recorded. `safe_point`, which runs after each batch and
between the stages of a run, then calls the original handler: Python's, which raises
KeyboardInterrupt, or a scheduler's, which may requeue the job.
This module must not import torch: train.py uses it before any job.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any]

# Slurm sends SIGUSR1 or SIGUSR2, as the user chooses, some time before it ends a job.
ENDING = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)
# Whether `interrupt` has received a signal since `install`.
received = False


def interrupt(number: int, frame: FrameType | None) -> None:
    """Handle a signal as Python handles Ctrl-C."""
    global received
    received = True
    raise KeyboardInterrupt


def install() -> None:
    """Let every signal of ENDING that has only a default handler raise KeyboardInterrupt."""
    global received
    received = False
    for number in ENDING:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, interrupt)


class Deferred:
    """The signals that arrived inside a `deferred` block, and the exception of their handlers."""

    def __init__(self) -> None:
        self.handlers: dict[int, Handler] = {}
        self.pending: list[int] = []
        self.immediate = False
        self.exception: BaseException | None = None

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Record a signal; a second one that asks for an end is handled at once."""
        again = number in self.pending or _is_interrupt(self.handlers[number])
        if self.immediate or (self.pending and again):
            self._call(number, frame)
        else:
            self.pending.append(number)

    def safe_point(self) -> None:
        """Handle the recorded signals. Raises what their handlers raise."""
        # An exception that a library swallowed when it was first raised.
        if self.exception is not None:
            raise self.exception
        while self.pending:
            self._call(self.pending.pop(0), None)

    def _call(self, number: int, frame: FrameType | None) -> None:
        try:
            self.handlers[number](number, frame)
        except BaseException as error:
            self.exception = self.exception or error
            raise


def _is_interrupt(handler: Any) -> bool:
    return handler in (interrupt, signal.default_int_handler)


_current: Deferred | None = None


@contextmanager
def deferred() -> Iterator[Deferred]:
    """Defer signals to safe points; the end of the block is one.

    After a signal, any error that ends the block counts as its consequence: the block raises what
    the handler raised, which the yielded object holds as `exception`. Signals keep the handlers
    that they had before the block; KeyboardInterrupt replaces the default action, and ignored
    signals stay ignored. Outside the main thread, which alone receives signals, nothing changes.
    """
    global _current
    state, outer = Deferred(), _current
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in ENDING}
    for number, handler in before.items():
        if handler == signal.SIG_DFL or callable(handler):
            state.handlers[number] = handler if callable(handler) else interrupt
            signal.signal(number, state.receive)
    _current = state
    try:
        try:
            yield state
        except BaseException:
            state.safe_point()
            raise
        state.safe_point()
    finally:
        _current = outer
        for number in state.handlers:
            signal.signal(number, before[number])


@contextmanager
def immediate() -> Iterator[None]:
    """Handle signals when they arrive, for a wait that contains no safe point."""
    if _current is None:
        yield
        return
    _current.safe_point()
    _current.immediate = True
    try:
        yield
    finally:
        _current.immediate = False


def safe_point() -> None:
    """Let a recorded signal end the run here. Raises what its handler raises."""
    if _current is not None:
        _current.safe_point()
