"""How fast is training? Ratios against peers that do the same work, measured in turn in the same run."""

import argparse
import os
import statistics
import struct
import tempfile
import time
import warnings
from collections.abc import Callable
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
from digitlab.autoencoder import build
from digitlab.data import Images, Split, scale, split
from digitlab.kmeans import assign, draw_centers, gradient
from digitlab.model import cpu_threads, make_optimizer, make_scheduler
from digitlab.seeds import Stream, generator
from digitlab.sources import load

CONF = Path(__file__).resolve().parents[1] / "conf"
Contenders = dict[str, Callable[[], float]]


def ours(data: Split, words: list[str]) -> float:
    """Seconds that train.py trains for: Lightning, checkpoints, TensorBoard and all."""
    cfg = cli.parse([*words, "trainer.accelerator=cpu", "data.val_size=0"], CONF).jobs[0].cfg
    plain: Any = config.to_plain(cfg)
    results: dict[str, Any] = {"fit_seconds": 0.0, "baselines": {"mean_image": baselines.mean_image(data)}}
    with tempfile.TemporaryDirectory() as folder:
        train.fit(train.build_model(plain), data, plain, Path(folder), results)
    return float(results["fit_seconds"])


# -- k-means ------------------------------------------------------------------------------------------------

EPOCHS, BATCH = 10, 64


def bare_kmeans(data: Images) -> float:
    """Seconds of the same update written out in PyTorch: no framework, no logging, no validation."""
    began = time.perf_counter()
    with cpu_threads(1), torch.no_grad():
        centers = draw_centers("digit", data, 10, generator(0, Stream.INIT))
        for epoch in range(EPOCHS):
            order = torch.randperm(len(data.labels), generator=generator(0, Stream.ORDER, epoch))
            for rows in order.split(BATCH):
                centers -= 4.5 * gradient(assign(scale(data.images[rows]).flatten(1), centers), centers)
    return time.perf_counter() - began


def scikit_learn(data: Images) -> float:
    """Seconds of MiniBatchKMeans with the same batches and epochs, without its early stop."""
    x = scale(data.images).flatten(1).numpy()
    peer = MiniBatchKMeans(10, batch_size=BATCH, max_iter=EPOCHS, max_no_improvement=None, n_init=1, random_state=0)
    began = time.perf_counter()
    peer.fit(x)
    return time.perf_counter() - began


# -- autoencoder: one epoch of experiment=autoencoder_best ---------------------------------------------------

NET: dict[str, Any] = {"channels": [32, 64, 128], "latent_dim": 16, "hidden": 256}
NET |= {"norm": "group", "activation": "silu", "output": "sigmoid"}  # as conf/experiment/autoencoder_best.yaml
NET_BATCH = 128
RATE: dict[str, Any] = {"name": "adamw", "lr": 0.005, "weight_decay": 0.01, "beta2": 0.99}


def bare_autoencoder(data: Images) -> float:
    """Seconds of a plain loop over the same tensors, in the same precision and memory format."""
    torch.manual_seed(0)
    model = nn.Sequential(*build(**NET)).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model.parameters(), **RATE)
    batches = torch.randperm(len(data.labels)).split(NET_BATCH)
    scheduler = make_scheduler(optimizer, "one_cycle", len(batches), pct_start=0.1)
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

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(*build(**NET))

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """The mean squared error of one minibatch."""
        loss = nn.functional.mse_loss(self.net(batch[0]), batch[0])
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW as ours."""
        return make_optimizer(self.parameters(), **RATE)


def usual_autoencoder(data: Images) -> float:
    """Seconds of Lightning over DataLoader(torchvision MNIST with ToTensor), as most tutorials have it."""
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for part in ("train", "t10k"):  # torchvision asks for both
            for kind, array in (("images-idx3", data.images), ("labels-idx1", data.labels)):
                header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape)
                (raw / f"{part}-{kind}-ubyte").write_bytes(header + array.to(torch.uint8).numpy().tobytes())
        loader = DataLoader(MNIST(folder, transform=ToTensor()), batch_size=NET_BATCH, shuffle=True)
        quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
        trainer = Trainer(max_epochs=1, accelerator="cpu", enable_progress_bar=False, **quiet)
        began = time.perf_counter()
        trainer.fit(Usual(), loader)
        return time.perf_counter() - began


def compare(title: str, contenders: Contenders, rounds: int) -> None:
    """Run each in turn, some rounds, and print medians and ratios to the first."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            seconds[name].append(contender())
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
        data = split(load(options.root), None, 0, None, seed=0)
    except ValueError as mistake:
        parser.error(str(mistake))
    warnings.filterwarnings("ignore", module="lightning")
    config.register()
    if options.only != "autoencoder":
        contenders: Contenders = {
            "digitlab": lambda: ours(data, ["model=kmeans", "init=digit"]),
            "bare PyTorch loop": lambda: bare_kmeans(data.train),
            "scikit-learn MiniBatchKMeans": lambda: scikit_learn(data.train),
        }
        compare(
            f"k-means, {len(data.train.labels):,} images, batch size {BATCH}, {EPOCHS} epochs",
            contenders,
            options.rounds,
        )
    if options.only != "kmeans":
        contenders = {
            "digitlab": lambda: ours(data, ["experiment=autoencoder_best", "trainer.max_epochs=1"]),
            "bare PyTorch loop": lambda: bare_autoencoder(data.train),
            "Lightning, torchvision, float32": lambda: usual_autoencoder(data.train),
        }
        compare(
            f"autoencoder, {len(data.train.labels):,} images, batch size {NET_BATCH}, 1 epoch",
            contenders,
            options.rounds,
        )


if __name__ == "__main__":
    main()
