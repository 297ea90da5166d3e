"""How fast is training? Ratios against peers that do the same work, each in a process of its own, in turn."""

import argparse
import multiprocessing
import os
import statistics
import struct
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.datasets import MNIST
from torchvision.transforms import ToTensor

from digitlab import baselines, cli, config, train
from digitlab.autoencoder import Autoencoder
from digitlab.data import Split, scale, split
from digitlab.kmeans import assign, draw_centers, gradient
from digitlab.model import make_optimizer, make_scheduler
from digitlab.process import cpu_threads, keep_freed_memory
from digitlab.seeds import Stream, generator
from digitlab.sources import load

CONF = Path(__file__).resolve().parents[1] / "conf"
KMEANS = ["model=kmeans", "init=digit"]
AUTOENCODER = ["experiment=autoencoder_best", "trainer.max_epochs=2"]
Contenders = dict[str, Callable[[], float]]


def plain(words: list[str]) -> dict[str, Any]:
    """The configuration of a command line, on the CPU and with all training images."""
    config.register()
    return config.to_plain(cli.parse([*words, "trainer.accelerator=cpu", "data.val_size=0"], CONF).jobs[0].cfg)


def read(root: str) -> Split:
    """All of the data, nothing held out."""
    return split(load(root), None, 0, None, seed=0)


def ours(words: list[str], root: str) -> float:
    """Seconds that train.py trains for: Lightning, checkpoints, TensorBoard and all."""
    wanted, data = plain(words), read(root)
    results: dict[str, Any] = {"fit_seconds": 0.0, "baselines": {"mean_image": baselines.mean_image(data)}}
    model = train.build_model(wanted)
    with tempfile.TemporaryDirectory() as folder, cpu_threads(model.threads):
        train.fit(model, data, wanted, Path(folder), results)
    return float(results["fit_seconds"])


# -- k-means ------------------------------------------------------------------------------------------------


def bare_kmeans(words: list[str], root: str) -> float:
    """Seconds of the same update written out in PyTorch: no framework, no logging, no validation."""
    wanted, data = plain(words), read(root).train
    began = time.perf_counter()
    with cpu_threads(1), torch.no_grad():
        centers = draw_centers("digit", data, 10, generator(0, Stream.INIT))
        for epoch in range(wanted["trainer"]["max_epochs"]):
            order = torch.randperm(len(data.labels), generator=generator(0, Stream.ORDER, epoch))
            for rows in order.split(wanted["data"]["batch_size"]):
                x = scale(data.images[rows]).flatten(1)
                centers -= wanted["optimizer"]["lr"] * gradient(assign(x, centers), centers)
    return time.perf_counter() - began


def scikit_learn(words: list[str], root: str, early_stop: bool = False) -> float:
    """Seconds of MiniBatchKMeans with the same batches and epochs; its early stop is off unless asked for."""
    wanted, patience = plain(words), {} if early_stop else {"max_no_improvement": None}
    x = scale(read(root).train.images).flatten(1).numpy()
    size, epochs = wanted["data"]["batch_size"], wanted["trainer"]["max_epochs"]
    peer = MiniBatchKMeans(10, batch_size=size, max_iter=epochs, n_init=1, random_state=0, **patience)
    began = time.perf_counter()
    peer.fit(x)
    return time.perf_counter() - began


# -- autoencoder --------------------------------------------------------------------------------------------


def net(wanted: dict[str, Any]) -> nn.Sequential:
    """Encoder and decoder as configured."""
    model = train.build_model(wanted)
    assert isinstance(model, Autoencoder)
    return nn.Sequential(model.encoder, model.decoder)


def bare_autoencoder(words: list[str], root: str) -> float:
    """Seconds of a plain loop over the same tensors, in the same precision, memory format and use of memory."""
    torch.manual_seed(0)
    wanted, data = plain(words), read(root).train
    keep_freed_memory()
    model = net(wanted)
    optimizer = make_optimizer(model.parameters(), **wanted["optimizer"])
    epochs, size = wanted["trainer"]["max_epochs"], wanted["data"]["batch_size"]
    batches = [rows for _ in range(epochs) for rows in torch.randperm(len(data.labels)).split(size)]
    scheduler = make_scheduler(optimizer, total_steps=len(batches), **wanted["scheduler"])
    assert scheduler is not None
    bf16 = torch.cpu._is_avx512_bf16_supported()
    began = time.perf_counter()
    for rows in batches:
        x = scale(data.images[rows])[:, None].contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            y = model(x)
        loss = (y.float() - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    return time.perf_counter() - began


class Usual(LightningModule):
    """The same net as most tutorials would train it: float32, contiguous."""

    def __init__(self, wanted: dict[str, Any]) -> None:
        super().__init__()
        self.wanted = wanted
        self.net = net(wanted).to(memory_format=torch.contiguous_format)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """The mean squared error of one minibatch."""
        loss = nn.functional.mse_loss(self.net(batch[0]), batch[0])
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        """As ours."""
        return make_optimizer(self.parameters(), **self.wanted["optimizer"])


def usual_autoencoder(words: list[str], root: str) -> float:
    """Seconds of Lightning over DataLoader(torchvision MNIST with ToTensor), as most tutorials have it."""
    warnings.filterwarnings("ignore", module="lightning")  # that its DataLoader might have workers
    wanted, data = plain(words), read(root).train
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for part in ("train", "t10k"):  # torchvision asks for both
            for kind, array in (("images-idx3", data.images), ("labels-idx1", data.labels)):
                header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape)
                (raw / f"{part}-{kind}-ubyte").write_bytes(header + array.to(torch.uint8).numpy().tobytes())
        loader = DataLoader(MNIST(folder, transform=ToTensor()), wanted["data"]["batch_size"], shuffle=True)
        quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
        trainer = Trainer(
            max_epochs=wanted["trainer"]["max_epochs"], accelerator="cpu", enable_progress_bar=False, **quiet
        )
        began = time.perf_counter()
        trainer.fit(Usual(wanted), loader)
        return time.perf_counter() - began


def compare(title: str, contenders: Contenders, rounds: int) -> None:
    """Run each in turn, some rounds, and print medians and ratios to the first."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            # A new process each time: none finds memory, threads or caches as another left them.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                seconds[name].append(pool.submit(contender).result())
    first = next(iter(seconds.values()))
    print(f"{title}, {rounds} rounds\n{'':34}{'median s':>10}{'min':>8}{'max':>8}{'digitlab / it':>16}")
    for name, times in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(first, times, strict=True))
        print(f"{name:34}{statistics.median(times):>10.2f}{min(times):>8.2f}{max(times):>8.2f}{ratio:>16.2f}")


def main() -> None:
    """Time both models."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="times that each is run (default 3)")
    parser.add_argument("--only", choices=("kmeans", "autoencoder"), help="leave the other model out")
    parser.add_argument("--root", default=os.environ.get("DIGITLAB_DATA", "data"), help="folder of MNIST's files")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: must be >= 1")
    try:
        images = len(read(options.root).train.labels)
    except ValueError as mistake:
        parser.error(str(mistake))
    if options.only != "autoencoder":
        contenders: Contenders = {
            "digitlab": partial(ours, KMEANS, options.root),
            "bare PyTorch loop": partial(bare_kmeans, KMEANS, options.root),
            "scikit-learn MiniBatchKMeans": partial(scikit_learn, KMEANS, options.root),
            "the same, stopping early": partial(scikit_learn, KMEANS, options.root, early_stop=True),
        }
        compare(f"k-means (python train.py {' '.join(KMEANS)}), {images:,} images", contenders, options.rounds)
    if options.only != "kmeans":
        contenders = {
            "digitlab": partial(ours, AUTOENCODER, options.root),
            "bare PyTorch loop": partial(bare_autoencoder, AUTOENCODER, options.root),
            "Lightning, torchvision, float32": partial(usual_autoencoder, AUTOENCODER, options.root),
        }
        compare(f"autoencoder (python train.py {' '.join(AUTOENCODER)}), {images:,} images", contenders, options.rounds)


if __name__ == "__main__":
    main()
