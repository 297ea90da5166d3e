"""A run on disk: its identity, results.json, who works on it. Every file appears whole or not at all."""

import csv
import hashlib
import io
import json
import math
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

# -- files ----------------------------------------------------------------------------------------------


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file to write beside `path`, which takes its place when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-", suffix=path.suffix)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        part.chmod(0o644)  # mkstemp's own is 0600
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON; a number that is not finite becomes null, as JSON has none."""
    with whole(path) as part:
        part.write_text(json.dumps(_finite(content), indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def write_csv(path: Path, header: Sequence[Any], rows: Sequence[Sequence[Any]]) -> None:
    """Write a table with one header line."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    with whole(path) as part:
        part.write_text(text.getvalue())


# -- identity -------------------------------------------------------------------------------------------


def run_id(config: Mapping[str, Any]) -> str:
    """Twelve hex digits that two resolved configurations share if they differ only in what changes no result.

    That is where the data lies, and whether the run was resumed.
    """
    kept = {key: value for key, value in config.items() if key != "resume"}
    kept["data"] = {key: value for key, value in config["data"].items() if key != "root"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


def code_version() -> dict[str, Any]:
    """The git commit of the code that runs, and whether it was changed since; None where git cannot tell."""

    def git(*words: str) -> str:
        here = Path(__file__).parent
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {
            "sha": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.CalledProcessError):
        return {"sha": None, "dirty": None}


def library_versions() -> dict[str, str]:
    """The versions that results depend on."""
    names = ("digitlab", "torch", "lightning", "hydra-core", "numpy", "scikit-learn")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def read_results(run: Path) -> dict[str, Any] | None:
    """results.json of a run, or None where there is none or it is damaged."""
    try:
        content = json.loads((run / "results.json").read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and "status" in content else None
