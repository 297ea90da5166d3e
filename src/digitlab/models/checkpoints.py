"""Checkpoints: written atomically, read without executing their content, turned into models."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule

from digitlab.config.arguments import COMMON, arguments, convert
from digitlab.models.base import Model
from digitlab.registry import MODELS
from digitlab.runs.files import atomic_write


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write Lightning's checkpoint files atomically."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write the file under a temporary name, then move it to its place."""
        write_checkpoint(Path(path), checkpoint)


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint atomically. Raises OSError if the disk is full."""
    # torch.save to a file would report a full disk as an error of its zip container.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic_write(path) as part:
        part.write_bytes(buffer.getbuffer())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a digitlab checkpoint without executing its content.

    Raises:
        ValueError: The file does not exist, is damaged, or was written by another program.
    """
    if not path.is_file():
        raise ValueError(
            f"{path}: does not exist; the run has not finished an epoch yet, or this is not a run"
        )
    try:
        _check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    # Damaged bytes raise exceptions of many unrelated classes.
    except Exception as error:
        lines = str(error).strip().splitlines()
        reason = lines[0] if lines else type(error).__name__
        raise ValueError(
            f"{path}: is damaged or not a checkpoint ({reason}); train the run again"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), str):
        raise ValueError(f"{path}: is not a digitlab checkpoint; train the run again")
    return content


def _check_archive(path: Path) -> None:
    """Raise an exception if the zip archive of a checkpoint is compressed or damaged."""
    with zipfile.ZipFile(path) as archive:
        # A compressed entry could expand to any amount of memory.
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("it is compressed, which torch's files are not")
        # torch does not verify the checksums.
        if damaged := archive.testzip():
            raise ValueError(f"{damaged} has a wrong checksum")


def build(cls: Any, values: Mapping[str, Any]) -> LightningModule:
    """Build a model of class `cls` from plain values, of its YAML and of `COMMON`.

    A LightningModule that is no `Model` gets those of `COMMON` that its constructor names.
    """
    own = {key: value for key, value in values.items() if key not in COMMON}
    named = COMMON if issubclass(cls, Model) else arguments(cls)
    common = {key: values[key] for key in COMMON if key in values and key in named}
    model = cls(**convert(cls, own, "model"), **common)
    assert isinstance(model, LightningModule)
    return model


def load_model(path: Path, classes: Mapping[str, type[Model]] | None = None) -> LightningModule:
    """Rebuild a model from its checkpoint, on the CPU, in evaluation mode.

    Args:
        path: The checkpoint.
        classes: The classes that the caller accepts, by the name in the checkpoint; by default
            the registered models.

    Raises:
        ValueError: The file is damaged, holds another model, or weights that do not fit.
    """
    content = read_checkpoint(path)
    name, known = content["model"], MODELS.names() if classes is None else list(classes)
    if name not in known:
        raise ValueError(
            f"{path}: is not a checkpoint of {', '.join(known)} but of {name!r}; for a model of"
            " your own name its file (plugins=[FILE.py], of a script --plugin FILE.py)"
        )
    cls = MODELS.find(name) if classes is None else classes[name]
    try:
        values, weights = content["hyper_parameters"], content["state_dict"]
        if any(weight.untyped_storage().nbytes() < weight.nbytes for weight in weights.values()):
            raise ValueError("a weight claims more numbers than the file holds")
        # The arguments in the file may describe a model of any size. On the meta device the weights
        # are compared with it before any memory is allocated.
        with torch.device("meta"):
            build(cls, values).load_state_dict(weights, assign=True)
        model = build(cls, values)
        model.load_state_dict(weights)
    # Foreign arguments raise exceptions of many unrelated classes.
    except Exception as error:
        # torch gives the reason in the second line.
        lines = (str(error).strip() or type(error).__name__).splitlines()[:2]
        reason = " ".join(line.strip()[:200] for line in lines)
        raise ValueError(
            f"{path}: belongs to another model or another version of the code ({reason});"
            " train the run again"
        ) from error
    return model.eval()


def read_rows(path: Path) -> list[dict[str, float]]:
    """Read the metrics of each epoch up to a training checkpoint.

    Raises:
        ValueError: There is no checkpoint, or training cannot resume from it.
    """
    content = read_checkpoint(path)
    try:
        rows: list[dict[str, float]] = content["callbacks"]["Record"]["rows"]
        complete = all({"epoch", "steps"} <= row.keys() for row in rows)
    except (KeyError, TypeError, AttributeError):
        rows, complete = [], False
    state = {"global_step", "loops", "optimizer_states", "lr_schedulers"}
    if not rows or not complete or not state <= content.keys():
        raise ValueError(f"{path}: holds no training state; train the run again")
    return rows


def save_weights(path: Path, model: LightningModule) -> None:
    """Replace the weights in a checkpoint by those of the model."""
    content = read_checkpoint(path)
    content["state_dict"] = model.state_dict()
    write_checkpoint(path, content)
