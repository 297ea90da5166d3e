"""Define what benchmark.py times: the training of digitlab, and peers that do the same work.

Losses are those on all training images.
"""

import importlib
import logging
import resource
import struct
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from sklearn.cluster import KMeans, MiniBatchKMeans
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets import MNIST
from torchvision.transforms import ToTensor

from digitlab import app
from digitlab.config import validation
from digitlab.data.images import Images, Split, scale, split
from digitlab.data.mnist import load
from digitlab.models import baselines
from digitlab.models.autoencoder import Autoencoder
from digitlab.models.base import Model
from digitlab.models.initialization import draw_centers
from digitlab.models.kmeans import MiniBatchKMeans as DigitlabKMeans
from digitlab.models.kmeans import assign, gradient
from digitlab.models.optimizers import make_optimizer, make_scheduler
from digitlab.runtime.seeds import Stream, generator
from digitlab.runtime.threads import cpu_threads, keep_freed_memory
from digitlab.training import fitting

ROOT = Path(__file__).resolve().parents[1]
# Without a handler Python would print training's warnings.
logging.getLogger().addHandler(logging.NullHandler())
# Keys: seconds, MiB and, for k-means, loss.
Outcome = dict[str, float]
Contender = Callable[[], Outcome]


def plain(words: list[str]) -> dict[str, Any]:
    """Compose a configuration with all training images, on the CPU by default."""
    cfg = app.compose_config(["trainer.accelerator=cpu", "data.val_size=0", *words])
    return validation.to_plain(cfg)


def load_split(root: str) -> Split:
    """Load all images, with none held out."""
    return split(load(root), None, 0, None, seed=0)


def make_outcome(seconds: float, loss: float | None = None) -> Outcome:
    """Combine the time with the peak memory of this process and the loss, if there is one."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MiB
    outcome = {"seconds": seconds, "MiB": peak}
    return outcome if loss is None else outcome | {"loss": loss}


def run_digitlab(words: list[str], root: str, copies: int = 1) -> Outcome:
    """Time the training of train.py, with Lightning, checkpoints and TensorBoard."""
    config, data = plain(words), load_split(root)
    images, labels = data.train
    if copies > 1:
        images, labels = images.repeat(copies, 1, 1, 1), labels.repeat(copies)
    if size := config["data"]["train_size"]:
        images, labels = images[:size], labels[:size]
    data = data._replace(train=Images(images, labels))
    model, seconds = train(config, data)
    loss = model.predict(data.train)[1] if isinstance(model, DigitlabKMeans) else None
    return make_outcome(seconds, loss)


def train(config: dict[str, Any], data: Split) -> tuple[Model, float]:
    """Train a model as train.py does; returns it and the seconds of training."""
    results: dict[str, Any] = {
        "fit_seconds": 0.0,
        "seconds": 0.0,
        "baselines": {"mean_image": baselines.mean_image(data)},
        "objective": {"name": "train/loss", "direction": "min"},
    }
    model = fitting.build_model(config, data)
    assert isinstance(model, Model)
    with tempfile.TemporaryDirectory() as folder, cpu_threads(model.threads):
        fitting.fit(model, data, config, Path(folder), results)
    return model, float(results["fit_seconds"])


# -- k-means ---------------------------------------------------------------------------------------


def run_pytorch_kmeans(words: list[str], root: str) -> Outcome:
    """Time the same update in plain PyTorch, without framework, logging or validation."""
    config, data = plain(words), load_split(root).train
    start = time.perf_counter()
    with cpu_threads(1), torch.no_grad():
        centers = draw_centers("digit", data, 10, generator(0, Stream.INIT))
        for epoch in range(config["trainer"]["max_epochs"]):
            order = torch.randperm(len(data.labels), generator=generator(0, Stream.ORDER, epoch))
            for rows in order.split(config["data"]["batch_size"]):
                x = scale(data.images.index_select(0, rows)).flatten(1)
                centers -= config["optimizer"]["lr"] * gradient(assign(x, centers), centers)
        seconds = time.perf_counter() - start
        x = scale(data.images).flatten(1)
        return make_outcome(seconds, float(assign(x, centers).squared) / x.numel())


def to_array(images: Images) -> np.ndarray:
    """Convert images to float32 (N, 784)."""
    x: np.ndarray = scale(images.images).flatten(1).numpy()
    return x


def run_sklearn_minibatch(words: list[str], root: str, early_stop: bool = False) -> Outcome:
    """Time scikit-learn's MiniBatchKMeans with the same batches and epochs."""
    config, x = plain(words), to_array(load_split(root).train)
    estimator = MiniBatchKMeans(
        10,
        batch_size=config["data"]["batch_size"],
        max_iter=config["trainer"]["max_epochs"],
        n_init=1,
        random_state=0,
    )
    if not early_stop:
        estimator.set_params(max_no_improvement=None)
    start = time.perf_counter()
    estimator.fit(x)
    return make_outcome(time.perf_counter() - start, -estimator.score(x) / x.size)


def run_lloyd(root: str, iterations: int) -> Outcome:
    """Time scikit-learn's KMeans, which uses all images in each step."""
    x = to_array(load_split(root).train)
    estimator = KMeans(10, n_init=1, max_iter=iterations, random_state=0)
    # It warns that it has not converged.
    with warnings.catch_warnings(action="ignore"):
        start = time.perf_counter()
        estimator.fit(x)
    return make_outcome(time.perf_counter() - start, estimator.inertia_ / x.size)


def run_faiss(root: str, iterations: int) -> Outcome:
    """Time the k-means of faiss, Lloyd's algorithm on all images."""
    library: Any = importlib.import_module("faiss")
    x = to_array(load_split(root).train)
    options = {"niter": iterations, "seed": 0, "max_points_per_centroid": len(x)}
    estimator = library.Kmeans(x.shape[1], 10, **options)
    start = time.perf_counter()
    estimator.train(x)
    seconds = time.perf_counter() - start
    return make_outcome(seconds, float(estimator.index.search(x, 1)[0].sum()) / x.size)


class TutorialModel(LightningModule):
    """Train as most tutorials do: one loss per minibatch, logged at each step, in float32."""

    def __init__(self, optimizer: dict[str, Any]) -> None:
        super().__init__()
        self.optimizer = optimizer

    def loss(self, x: Tensor) -> Tensor:
        """Return the mean squared error of one minibatch."""
        raise NotImplementedError

    def training_step(self, batch: tuple[Tensor, ...], _: int) -> Tensor:
        """Return and log the loss; the batch starts with the images."""
        loss = self.loss(batch[0])
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        """Create the same optimizer as digitlab."""
        return make_optimizer(self.parameters(), **self.optimizer)


def time_lightning(model: TutorialModel, dataset: Any, config: dict[str, Any]) -> float:
    """Return the seconds that Lightning trains with a DataLoader."""
    # Lightning recommends more workers for the DataLoader.
    warnings.filterwarnings("ignore", module="lightning")
    loader = DataLoader(dataset, config["data"]["batch_size"], shuffle=True)
    trainer = Trainer(
        max_epochs=config["trainer"]["max_epochs"],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    start = time.perf_counter()
    trainer.fit(model, loader)
    return time.perf_counter() - start


class TutorialKMeans(TutorialModel):
    """K-means by automatic differentiation."""

    def __init__(self, centers: Tensor, optimizer: dict[str, Any]) -> None:
        super().__init__(optimizer)
        self.centers = nn.Parameter(centers)

    def loss(self, x: Tensor) -> Tensor:
        """Return the loss (1) of digitlab.models.kmeans."""
        return torch.cdist(x, self.centers).square().min(1).values.mean() / x.shape[1]


def run_lightning_kmeans(words: list[str], root: str) -> Outcome:
    """Time Lightning with a DataLoader of tensors."""
    config, data = plain(words), load_split(root).train
    x = torch.from_numpy(to_array(data))
    centers = draw_centers("digit", data, 10, generator(0, Stream.INIT))
    with cpu_threads(1):
        model = TutorialKMeans(centers, config["optimizer"])
        seconds = time_lightning(model, TensorDataset(x), config)
        return make_outcome(seconds, model.loss(x).item())


# -- autoencoder -----------------------------------------------------------------------------------


def make_network(config: dict[str, Any], data: Split) -> nn.Sequential:
    """Build the configured encoder and decoder for images of the shape of the data."""
    model = fitting.build_model(config, data)
    assert isinstance(model, Autoencoder)
    return nn.Sequential(model.encoder, model.decoder)


def run_pytorch_autoencoder(words: list[str], root: str) -> Outcome:
    """Time a plain loop with the same tensors, precision, memory format and use of memory."""
    torch.manual_seed(0)
    config, data = plain(words), load_split(root)
    keep_freed_memory()
    device = torch.device("cuda" if config["trainer"]["accelerator"] == "gpu" else "cpu")
    model, images = make_network(config, data).to(device), data.train.images.to(device)
    optimizer = make_optimizer(model.parameters(), **config["optimizer"])
    batches: list[Tensor] = []
    for _ in range(config["trainer"]["max_epochs"]):
        order = torch.randperm(len(images))
        batches += [rows.to(device) for rows in order.split(config["data"]["batch_size"])]
    scheduler = make_scheduler(optimizer, total_steps=len(batches), **config["scheduler"])
    assert scheduler is not None
    bf16 = device.type == "cuda" or torch.cpu.get_capabilities().get("avx512_bf16", False)
    start = time.perf_counter()
    for rows in batches:
        x = scale(images.index_select(0, rows))
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            y = model(x)
        loss = (y.float() - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    # Wait for the GPU to finish.
    loss.item()
    return make_outcome(time.perf_counter() - start)


class TutorialAutoencoder(TutorialModel):
    """The same network in the contiguous memory format."""

    def __init__(self, config: dict[str, Any], data: Split) -> None:
        super().__init__(config["optimizer"])
        self.network = make_network(config, data).to(memory_format=torch.contiguous_format)

    def loss(self, x: Tensor) -> Tensor:
        """Return the mean squared error of the reconstructions."""
        return nn.functional.mse_loss(self.network(x), x)


def run_lightning_autoencoder(words: list[str], root: str) -> Outcome:
    """Time Lightning with a DataLoader of torchvision's MNIST and ToTensor."""
    config, data = plain(words), load_split(root)
    images, labels = data.train
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for kind, array in (("images-idx3", images[:, 0]), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape)
            content = header + array.to(torch.uint8).numpy().tobytes()
            # torchvision requires the files of both parts.
            for part in ("train", "t10k"):
                (raw / f"{part}-{kind}-ubyte").write_bytes(content)
        dataset = MNIST(folder, transform=ToTensor())
        return make_outcome(time_lightning(TutorialAutoencoder(config, data), dataset, config))
