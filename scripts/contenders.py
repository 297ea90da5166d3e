"""What benchmark.py times: digitlab's training, and peers that do the same work. Losses are on all training images."""

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

from digitlab import cli
from digitlab.config import validation
from digitlab.data.images import PIXELS, Images, Split, scale, split
from digitlab.data.mnist import load
from digitlab.models import baselines
from digitlab.models.autoencoder import Autoencoder
from digitlab.models.base import Model
from digitlab.models.initialization import draw_centers
from digitlab.models.kmeans import MiniBatchKMeans as Ours
from digitlab.models.kmeans import assign, gradient
from digitlab.models.optimizers import make_optimizer, make_scheduler
from digitlab.runtime.seeds import Stream, generator
from digitlab.runtime.threads import cpu_threads, keep_freed_memory
from digitlab.training import stages

ROOT = Path(__file__).resolve().parents[1]
logging.getLogger().addHandler(logging.NullHandler())  # training tells its epochs where somebody listens
Outcome = dict[str, float]  # seconds, MiB, and where it says something loss
Contender = Callable[[], Outcome]


def plain(words: list[str]) -> dict[str, Any]:
    """The configuration of a command line, with all training images, on the CPU unless it says otherwise."""
    validation.register()
    return validation.to_plain(cli.parse(["trainer.accelerator=cpu", "data.val_size=0", *words]).jobs[0].cfg)


def read(root: str) -> Split:
    """All of the data, nothing held out."""
    return split(load(root), None, 0, None, seed=0)


def outcome(seconds: float, loss: float | None = None) -> Outcome:
    """What a contender took, with the most memory that its process has had."""
    told = {"seconds": seconds, "MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    return told if loss is None else told | {"loss": loss}


def ours(words: list[str], root: str, copies: int = 1) -> Outcome:
    """Seconds that train.py trains for: Lightning, checkpoints, TensorBoard and all."""
    wanted, data = plain(words), read(root)
    if copies > 1:
        data = data._replace(train=Images(data.train.images.repeat(copies, 1, 1), data.train.labels.repeat(copies)))
    if size := wanted["data"]["train_size"]:
        data = data._replace(train=Images(*(part[:size] for part in data.train)))
    model, seconds = trained(wanted, data)
    return outcome(seconds, model.predict(data.train)[1] if isinstance(model, Ours) else None)


def trained(wanted: dict[str, Any], data: Split) -> tuple[Model, float]:
    """A model trained as train.py does, and the seconds of that."""
    results: dict[str, Any] = {
        "fit_seconds": 0.0,
        "seconds": 0.0,
        "baselines": {"mean_image": baselines.mean_image(data)},
    }
    model = stages.build_model(wanted)
    with tempfile.TemporaryDirectory() as folder, cpu_threads(model.threads):
        stages.fit(model, data, wanted, Path(folder), results)
    return model, float(results["fit_seconds"])


# -- k-means ------------------------------------------------------------------------------------------------


def bare_kmeans(words: list[str], root: str) -> Outcome:
    """The same update written out in PyTorch: no framework, no logging, no validation."""
    wanted, data = plain(words), read(root).train
    began = time.perf_counter()
    with cpu_threads(1), torch.no_grad():
        centers = draw_centers("digit", data, 10, generator(0, Stream.INIT))
        for epoch in range(wanted["trainer"]["max_epochs"]):
            order = torch.randperm(len(data.labels), generator=generator(0, Stream.ORDER, epoch))
            for rows in order.split(wanted["data"]["batch_size"]):
                x = scale(data.images.index_select(0, rows)).flatten(1)
                centers -= wanted["optimizer"]["lr"] * gradient(assign(x, centers), centers)
        seconds = time.perf_counter() - began
        x = scale(data.images).flatten(1)
        return outcome(seconds, float(assign(x, centers).squared) / x.numel())


def floats(images: Images) -> np.ndarray:
    """Images as float32 (N, 784)."""
    x: np.ndarray = scale(images.images).flatten(1).numpy()
    return x


def scikit_learn(words: list[str], root: str, early_stop: bool = False) -> Outcome:
    """MiniBatchKMeans with the same batches and epochs; its early stop is off unless asked for."""
    wanted, patience = plain(words), {} if early_stop else {"max_no_improvement": None}
    x, size, epochs = floats(read(root).train), wanted["data"]["batch_size"], wanted["trainer"]["max_epochs"]
    peer = MiniBatchKMeans(10, batch_size=size, max_iter=epochs, n_init=1, random_state=0, **patience)
    began = time.perf_counter()
    peer.fit(x)
    return outcome(time.perf_counter() - began, -peer.score(x) / x.size)


def lloyd(root: str, iterations: int) -> Outcome:
    """scikit-learn's KMeans, over all images at each step."""
    x = floats(read(root).train)
    peer = KMeans(10, n_init=1, max_iter=iterations, random_state=0)
    with warnings.catch_warnings(action="ignore"):  # that it has not converged
        began = time.perf_counter()
        peer.fit(x)
    return outcome(time.perf_counter() - began, peer.inertia_ / x.size)


def faiss(root: str, iterations: int) -> Outcome:
    """The library of that name, whose k-means is Lloyd's, on all images."""
    library: Any = importlib.import_module("faiss")
    x = floats(read(root).train)
    peer = library.Kmeans(PIXELS, 10, niter=iterations, seed=0, max_points_per_centroid=len(x))
    began = time.perf_counter()
    peer.train(x)
    return outcome(time.perf_counter() - began, float(peer.index.search(x, 1)[0].sum()) / x.size)


class Tutorial(LightningModule):
    """A model as most tutorials would train it: one loss a minibatch, logged at each step, in float32."""

    def __init__(self, optimizer: dict[str, Any]) -> None:
        super().__init__()
        self.optimizer = optimizer

    def loss(self, x: Tensor) -> Tensor:
        """The mean squared error of one minibatch."""
        raise NotImplementedError

    def training_step(self, batch: tuple[Tensor, ...], _: int) -> Tensor:
        """Of a minibatch that begins with the images."""
        loss = self.loss(batch[0])
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        """As ours."""
        return make_optimizer(self.parameters(), **self.optimizer)


def tutorial(module: Tutorial, dataset: Any, wanted: dict[str, Any]) -> float:
    """Seconds of Lightning over a DataLoader."""
    warnings.filterwarnings("ignore", module="lightning")  # that its DataLoader might have workers
    loader = DataLoader(dataset, wanted["data"]["batch_size"], shuffle=True)
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    epochs = wanted["trainer"]["max_epochs"]
    trainer = Trainer(max_epochs=epochs, accelerator="cpu", enable_progress_bar=False, **quiet)
    began = time.perf_counter()
    trainer.fit(module, loader)
    return time.perf_counter() - began


class TutorialKMeans(Tutorial):
    """K-means by automatic differentiation."""

    def __init__(self, centers: Tensor, optimizer: dict[str, Any]) -> None:
        super().__init__(optimizer)
        self.centers = nn.Parameter(centers)

    def loss(self, x: Tensor) -> Tensor:
        """Equation (1) of digitlab.models.kmeans."""
        return torch.cdist(x, self.centers).square().min(1).values.mean() / x.shape[1]


def tutorial_kmeans(words: list[str], root: str) -> Outcome:
    """Lightning over a DataLoader of tensors."""
    wanted, x = plain(words), torch.from_numpy(floats(read(root).train))
    centers = draw_centers("digit", read(root).train, 10, generator(0, Stream.INIT))
    with cpu_threads(1):
        module = TutorialKMeans(centers, wanted["optimizer"])
        seconds = tutorial(module, TensorDataset(x), wanted)
        return outcome(seconds, module.loss(x).item())


# -- autoencoder --------------------------------------------------------------------------------------------


def net(wanted: dict[str, Any]) -> nn.Sequential:
    """Encoder and decoder as configured."""
    model = stages.build_model(wanted)
    assert isinstance(model, Autoencoder)
    return nn.Sequential(model.encoder, model.decoder)


def bare_autoencoder(words: list[str], root: str) -> Outcome:
    """A plain loop over the same tensors, in the same precision, memory format and use of memory."""
    torch.manual_seed(0)
    wanted, data = plain(words), read(root).train
    keep_freed_memory()
    device = torch.device("cuda" if wanted["trainer"]["accelerator"] == "gpu" else "cpu")
    model, images = net(wanted).to(device), data.images.to(device)
    optimizer = make_optimizer(model.parameters(), **wanted["optimizer"])
    epochs, size = wanted["trainer"]["max_epochs"], wanted["data"]["batch_size"]
    batches = [rows.to(device) for _ in range(epochs) for rows in torch.randperm(len(images)).split(size)]
    scheduler = make_scheduler(optimizer, total_steps=len(batches), **wanted["scheduler"])
    assert scheduler is not None
    bf16 = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
    began = time.perf_counter()
    for rows in batches:
        x = scale(images.index_select(0, rows))[:, None].contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            y = model(x)
        loss = (y.float() - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    loss.item()  # waits for a GPU
    return outcome(time.perf_counter() - began)


class TutorialAutoencoder(Tutorial):
    """The same net, contiguous."""

    def __init__(self, wanted: dict[str, Any]) -> None:
        super().__init__(wanted["optimizer"])
        self.net = net(wanted).to(memory_format=torch.contiguous_format)

    def loss(self, x: Tensor) -> Tensor:
        """The mean squared error of the reconstructions."""
        return nn.functional.mse_loss(self.net(x), x)


def tutorial_autoencoder(words: list[str], root: str) -> Outcome:
    """Lightning over DataLoader(torchvision MNIST with ToTensor)."""
    wanted, data = plain(words), read(root).train
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for part in ("train", "t10k"):  # torchvision asks for both
            for kind, array in (("images-idx3", data.images), ("labels-idx1", data.labels)):
                header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape)
                (raw / f"{part}-{kind}-ubyte").write_bytes(header + array.to(torch.uint8).numpy().tobytes())
        return outcome(tutorial(TutorialAutoencoder(wanted), MNIST(folder, transform=ToTensor()), wanted))
