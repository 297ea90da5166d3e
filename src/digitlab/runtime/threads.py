"""Threads and memory settings of the process. Every context manager restores what it changes."""

import ctypes
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

log = logging.getLogger(__name__)
# The number of torch's threads in a new process.
THREADS = torch.get_num_threads()


@contextmanager
def cpu_threads(number: int | None) -> Iterator[None]:
    """Let torch use `number` threads inside the block; None keeps the present number."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def busy_cores_warning() -> str:
    """Return a warning if torch's threads would wait for one another on busy cores, else ""."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    # The load average may still include a previous job that used every core: hence 1.25.
    if torch.get_num_threads() == 1 or load <= 1.25 * cores:
        return ""
    return (
        f"The cores are busy (a load of {load:.1f} on {cores}): OMP_NUM_THREADS=1 before the"
        " command may make it many times faster, with different last digits."
    )


def keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors for the rest of the process.

    Mapping it again at each step costs a CPU a tenth of its time.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        # M_MMAP_THRESHOLD: tensors below 1 GiB come from the heap.
        libc.mallopt(-3, 1 << 30)
        # M_TRIM_THRESHOLD: the heap does not shrink.
        libc.mallopt(-1, 2**31 - 1)


@contextmanager
def initial_torch_state() -> Iterator[None]:
    """Give torch the state of a new process, independent of earlier work.

    It is the dtype, the threads and whether only deterministic algorithms are used.
    """
    dtype, deterministic = torch.get_default_dtype(), torch.get_deterministic_debug_mode()
    torch.set_default_dtype(torch.float32)
    torch.set_deterministic_debug_mode(0)
    try:
        with cpu_threads(THREADS):
            yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_deterministic_debug_mode(deterministic)


@contextmanager
def quiet_threads() -> Iterator[None]:
    """Keep threads from printing tracebacks: TensorBoard also raises its error in the caller."""

    def log_failure(failed: threading.ExceptHookArgs) -> None:
        log.debug("In a thread:", exc_info=failed.exc_value)

    before, threading.excepthook = threading.excepthook, log_failure
    try:
        yield
    finally:
        threading.excepthook = before
