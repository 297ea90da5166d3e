"""A run on disk: its identity, results.json, its checkpoints. Every file appears whole or not at all."""

import csv
import hashlib
import importlib
import io
import json
import math
import os
import pickle
import platform
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from digitlab.model import Model

# The models that a checkpoint may name. A name outside this table is never imported.
MODELS = {
    "kmeans": ("digitlab.kmeans", "MiniBatchKMeans"),
    "autoencoder": ("digitlab.autoencoder", "Autoencoder"),
    "judge": ("digitlab.judge", "Judge"),
}


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


# -- checkpoints ----------------------------------------------------------------------------------------


class WholeFileIO(TorchCheckpointIO):
    """Lightning's checkpoint files, written whole: beside their place, then moved there."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write the file beside its place, then move it there."""
        with whole(Path(path)) as part:
            torch.save(checkpoint, part)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of this project's, with nothing in it run. Raises ValueError for any other file."""
    if not path.is_file():
        raise ValueError(f"{path}: is not there; the run has not finished an epoch yet, or this is no run")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path}: is damaged or not a checkpoint ({reason}); train the run again") from error
    if not isinstance(content, dict) or content.get("model") not in MODELS:
        name = content.get("model") if isinstance(content, dict) else None
        raise ValueError(f"{path}: is not a digitlab checkpoint (model={name!r}; known are {', '.join(MODELS)})")
    return content


def model_class(name: str) -> type[Model]:
    """The class of a name in MODELS."""
    module, attribute = MODELS[name]
    found: type[Model] = getattr(importlib.import_module(module), attribute)
    return found


def load_model(path: Path) -> Model:
    """Rebuild a model from its checkpoint alone, on the CPU, in evaluation mode.

    Raises ValueError for a file that is damaged, foreign, or whose weights do not fit its model.
    """
    content = read_checkpoint(path)
    try:
        model = model_class(content["model"])(**content["hyper_parameters"])
        model.load_state_dict(content["state_dict"])
    except (KeyError, TypeError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{path}: does not fit the model {content['model']!r} ({reason})") from error
    return model.eval()


def save_weights(path: Path, model: Model) -> None:
    """Replace the weights in a checkpoint by the model's."""
    content = read_checkpoint(path)
    content["state_dict"] = model.state_dict()
    with whole(path) as part:
        torch.save(content, part)
