"""Read the files of a run for a page: pictures, the course of metrics, the end of the log.

A run may come from somebody else. A link out of its directory is not followed, and of a file that
is too large nothing or only the end is read.
"""

import csv
import math
import re
from base64 import b64encode
from pathlib import Path

from digitlab.runs.provenance import CODE_DIFF
from digitlab.runs.results import PROFILES

BEST_RUN_FIGURES = ("centers", "confusion_matrix", "reconstructions", "generated", "latents")
# The course of training and the layers, which do not show what the model can do.
OTHER_FIGURES = ("loss", "shapes")
MAX_FIGURES = 20
MAX_TEXTS = 5
# A page holds at most so many bytes of pictures; the largest of MNIST has 300 kB.
LARGEST_PICTURES = 2**21
PNG = b"\x89PNG\r\n\x1a\n"
LARGEST_CSV = 2**22  # bytes
LOG_BYTES, LOG_LINES, LOG_WIDTH = 2**13, 15, 300


def is_inside(path: Path, run: Path) -> bool:
    """Whether a path is a file of the run: a link in a foreign run may name any file."""
    return path.is_file() and path.resolve().is_relative_to(run.resolve())


def list_figures(run: Path) -> list[str]:
    """List the figures of a run that a report shows: those that we know, then a model's own."""
    # A name in a foreign run may contain anything.
    names = [path.stem for path in sorted(run.glob("figures/*.png"))]
    own = [name for name in names if re.fullmatch(r"[\w.+-]+", name)]
    own = [name for name in own if name not in (*BEST_RUN_FIGURES, *OTHER_FIGURES)]
    return [*BEST_RUN_FIGURES, *own[:MAX_FIGURES]]


def find_pictures(run: Path) -> dict[str, Path]:
    """Find the figures of a run that a report shows, by name."""
    paths = {name: run / "figures" / f"{name}.png" for name in list_figures(run)}
    return {name: path for name, path in paths.items() if is_inside(path, run)}


def embed_pictures(run: Path) -> dict[str, str]:
    """Return the pictures of a run as data URIs by name, as many as a page has room for."""
    pictures, room = {}, LARGEST_PICTURES
    for name, path in find_pictures(run).items():
        size = path.stat().st_size
        content = path.read_bytes() if size <= room else b""
        if content.startswith(PNG):
            pictures[name] = f"data:image/png;base64,{b64encode(content).decode()}"
            room -= size
    return pictures


def list_texts(run: Path) -> list[str]:
    """List the texts of a run that a page links to: uncommitted code, a profile."""
    paths = [*run.glob(CODE_DIFF), *sorted(run.glob(f"{PROFILES}.txt"))]
    return [path.name for path in paths[:MAX_TEXTS] if is_inside(path, run)]


def read_history(run: Path) -> dict[str, list[float]]:
    """Read the columns of metrics.csv, NaN where a value is missing; empty without epochs."""
    path = run / "metrics.csv"
    if not is_inside(path, run) or path.stat().st_size > LARGEST_CSV:
        return {}
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        try:
            rows = list(csv.DictReader(file))
        except csv.Error:
            return {}
    names = [name for name in (rows[0] if rows else ()) if name]
    columns = {name: [to_number(row.get(name)) for row in rows] for name in names}
    return columns if "epoch" in columns else {}


def to_number(text: str | None) -> float:
    """A number of a table; NaN if it is missing, infinite or none."""
    try:
        number = float(text or "nan")
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def read_log_end(run: Path) -> list[str]:
    """Return the last lines of train.log, without control characters."""
    path = run / "train.log"
    if not is_inside(path, run):
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LOG_BYTES))
        text = file.read(LOG_BYTES).decode(errors="replace")
    lines = [re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "", line) for line in text.splitlines()]
    return [line[:LOG_WIDTH] for line in lines if line.strip()][-LOG_LINES:]
