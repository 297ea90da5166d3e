"""What an experiment asks of the process that it runs in: threads and memory. All but memory is given back."""

import ctypes
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

log = logging.getLogger(__name__)
THREADS = torch.get_num_threads()  # of a new process


@contextmanager
def cpu_threads(number: int | None) -> Iterator[None]:
    """Let torch use so many threads (None: as many as before) inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def busy_cores_warning() -> str:
    """A sentence where the cores are busy and torch would use several threads, which then wait for one another."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if torch.get_num_threads() == 1 or load <= 1.25 * cores:  # the job before may just have had all of them
        return ""
    return (
        f"The cores are busy (a load of {load:.1f} on {cores}): OMP_NUM_THREADS=1 before the command may make it many"
        " times as fast, with other last digits."
    )


def keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors: to map it anew at each step costs a CPU a tenth of its time."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: a tensor of less than 1 GiB comes from the heap
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the heap does not shrink


@contextmanager
def initial_torch_state() -> Iterator[None]:
    """Let torch compute as in a new process, whatever ran before in this one."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with cpu_threads(THREADS):
            yield
    finally:
        torch.set_default_dtype(dtype)


@contextmanager
def quiet_threads() -> Iterator[None]:
    """Let no thread print a traceback: TensorBoard's raises its error in the caller as well."""

    def note(failed: threading.ExceptHookArgs) -> None:
        log.debug("In a thread:", exc_info=failed.exc_value)

    before, threading.excepthook = threading.excepthook, note
    try:
        yield
    finally:
        threading.excepthook = before
