"""Checkpoints: written whole, read without running anything in them, turned back into models."""

import importlib
import io
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from digitlab.models.base import Model
from digitlab.runs.files import atomic_write

RUN_MODELS = ("kmeans", "autoencoder")
# The models that a checkpoint may name. A name outside this table is never imported.
MODELS = {
    "kmeans": ("digitlab.models.kmeans", "MiniBatchKMeans"),
    "autoencoder": ("digitlab.models.autoencoder", "Autoencoder"),
    "judge": ("digitlab.models.digit_classifier", "DigitClassifier"),
}


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, written whole: beside their place, then moved there."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write the file beside its place, then move it there."""
        write_checkpoint(Path(path), checkpoint)


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint whole. Raises OSError where there is no room (torch would speak of its zip container)."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic_write(path) as part:
        part.write_bytes(buffer.getbuffer())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of this project's, with nothing in it run. Raises ValueError for any other file."""
    if not path.is_file():
        raise ValueError(f"{path}: is not there; the run has not finished an epoch yet, or this is no run")
    try:
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("it is compressed, which torch's files are not")
            if broken := archive.testzip():  # a bit that flipped on the disk; torch does not look
                raise ValueError(f"{broken} has not the checksum it was written with")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a stranger's bytes can raise in the reading has no end
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path}: is damaged or not a checkpoint ({reason}); train the run again") from error
    name = content.get("model") if isinstance(content, dict) else None
    if not isinstance(content, dict) or not isinstance(name, str) or name not in MODELS:
        raise ValueError(f"{path}: is not a digitlab checkpoint (model={name!r}; known are {', '.join(MODELS)})")
    return content


def model_class(name: str) -> type[Model]:
    """The class of a name in MODELS."""
    module, attribute = MODELS[name]
    found: type[Model] = getattr(importlib.import_module(module), attribute)
    return found


def load_model(path: Path, kinds: tuple[str, ...] = RUN_MODELS) -> Model:
    """Rebuild a model from its checkpoint alone, on the CPU, in evaluation mode; `kinds` are the models wanted.

    Raises ValueError for a file that is damaged, foreign, or whose weights do not fit its model.
    """
    content = read_checkpoint(path)
    if content["model"] not in kinds:
        raise ValueError(f"{path}: holds a {content['model']}, not {' or '.join(kinds)}")
    try:
        kind, weights = model_class(content["model"]), content["state_dict"]
        if any(weight.untyped_storage().nbytes() < weight.nbytes for weight in weights.values()):
            raise ValueError("a weight claims more numbers than the file holds")
        with torch.device("meta"):  # no memory yet: a stranger's arguments may ask for any amount
            kind(**content["hyper_parameters"]).load_state_dict(weights, assign=True)
        model = kind(**content["hyper_parameters"])
        model.load_state_dict(weights)
    except Exception as error:  # a stranger's arguments can fail in any way
        lines = (str(error).strip() or type(error).__name__).splitlines()[:2]  # torch tells what is wrong in the second
        reason = " ".join(line.strip()[:200] for line in lines)
        raise ValueError(f"{path}: is of another model or other code ({reason}); train the run again") from error
    return model.eval()


def read_rows(path: Path) -> list[dict[str, float]]:
    """The row of each epoch up to a checkpoint of training.

    Raises ValueError where there is none, or nothing for training to go on from.
    """
    content = read_checkpoint(path)
    try:
        rows: list[dict[str, float]] = content["callbacks"]["Record"]["rows"]
        known = all({"epoch", "steps"} <= row.keys() for row in rows)
    except (KeyError, TypeError, AttributeError):
        rows, known = [], False
    if not rows or not known or not {"global_step", "loops", "optimizer_states", "lr_schedulers"} <= content.keys():
        raise ValueError(f"{path}: holds no state of training; train the run again")
    return rows


def save_weights(path: Path, model: Model) -> None:
    """Replace the weights in a checkpoint by the model's."""
    content = read_checkpoint(path)
    content["state_dict"] = model.state_dict()
    write_checkpoint(path, content)
