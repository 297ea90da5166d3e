"""Signals that end a run: noted when they arrive, answered at the next safe point.

An exception that a handler raises inside a library's code may be swallowed there, or come out as
another error. Inside `deferred` a signal is therefore only noted. `safe_point`, which is called
after each batch and between the stages of a run, then calls the handler that would have answered
it at once: Python's, which raises KeyboardInterrupt, or a scheduler's, which may requeue the job.
Must not import torch: train.py uses it before any job.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any]

# Slurm sends SIGUSR1 or SIGUSR2, as it was asked to, some time before it ends a job.
ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name))
received = False  # whether this process has been asked to end, by a handler of this module


def interrupt(number: int, frame: FrameType | None) -> None:
    """Answer a signal as Python answers Ctrl-C."""
    global received
    received = True
    raise KeyboardInterrupt


def install() -> None:
    """Let every signal of ENDING that is not handled otherwise raise KeyboardInterrupt."""
    global received
    received = False
    for number in ENDING:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, interrupt)


class Deferred:
    """The signals that arrived inside a `deferred` block, and how they were answered."""

    def __init__(self) -> None:
        self.handlers: dict[int, Handler] = {}
        self.pending: list[int] = []
        self.at_once = False  # whether a signal is answered where it arrives
        self.answer: BaseException | None = None  # what a handler raised

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: the second that asks for an end gets it at once."""
        again = number in self.pending or _ends(self.handlers[number])
        if self.at_once or (self.pending and again):
            self._call(number, frame)
        else:
            self.pending.append(number)

    def safe_point(self) -> None:
        """Answer what was noted. Raises what the handlers raise."""
        if self.answer is not None:  # it was raised where somebody swallowed it
            raise self.answer
        while self.pending:
            self._call(self.pending.pop(0), None)

    def _call(self, number: int, frame: FrameType | None) -> None:
        try:
            self.handlers[number](number, frame)
        except BaseException as error:
            self.answer = self.answer or error
            raise


def _ends(handler: Any) -> bool:
    return handler in (interrupt, signal.default_int_handler)


_current: Deferred | None = None


@contextmanager
def deferred() -> Iterator[Deferred]:
    """Defer signals to safe points; the end of the block is one.

    After a signal whatever error ends the block counts as its doing: the block then raises what
    the handler raised, which stands in `answer`. Handlers are those found at the start, Python's
    KeyboardInterrupt where there is none; ignored signals stay ignored. In a thread other than
    the main one, which hears no signals, nothing is changed.
    """
    global _current
    state, outer = Deferred(), _current
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in ENDING}
    for number, handler in before.items():
        if handler == signal.SIG_DFL or callable(handler):
            state.handlers[number] = handler if callable(handler) else interrupt
            signal.signal(number, state.note)
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
def answered_at_once() -> Iterator[None]:
    """Answer signals where they arrive, for a wait that holds no safe point."""
    if _current is None:
        yield
        return
    _current.safe_point()
    _current.at_once = True
    try:
        yield
    finally:
        _current.at_once = False


def safe_point() -> None:
    """Let a signal that was noted end the run here. Raises what its handler raises."""
    if _current is not None:
        _current.safe_point()
