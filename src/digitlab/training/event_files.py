"""Event files that TensorBoard reads in the order in which they were written."""

import time
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter


def open_writer(directory: Path, **options: Any) -> SummaryWriter:
    """A SummaryWriter whose file sorts after the other event files of a directory.

    TensorBoard reads files in the order of their names, which end in the second, the process and a
    number. Within one second, file 10 sorts before file 9 and would never be read: then this waits
    for the next second.
    """
    earlier = set(directory.glob("events.out.tfevents.*"))
    writer = SummaryWriter(str(directory), **options)
    # On a full disk there may be no file.
    new = set(directory.glob("events.out.tfevents.*")) - earlier
    if not earlier or not new or max(new) > max(earlier):
        return writer
    writer.close()
    for path in new:
        path.unlink()
    time.sleep(1)
    return SummaryWriter(str(directory), **options)
