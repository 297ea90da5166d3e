"""The small classifier that scores generated digits (in the manner of LeNet-5, LeCun et al., 1998).

Samples are compared with real digits in the space of its last hidden layer, as the Frechet Inception Distance
does with another network (Heusel et al., 2017), and by what it recognises. N images, F features.
"""

import hashlib
import json
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import seed_everything
from torch import Tensor, nn
from torch.nn import functional

from digitlab.data.images import Images, Source, Split, hold_out, scale
from digitlab.data.loaders import Batch, MNISTData
from digitlab.models import checkpoints
from digitlab.models.base import Model
from digitlab.runs.files import directory_lock
from digitlab.runtime.seeds import Stream, generator
from digitlab.runtime.threads import cpu_threads
from digitlab.runtime.trainer import make_trainer

log = logging.getLogger(__name__)

CACHE = Path("outputs") / "judge"
CONFIDENT = 0.9  # a digit counts as recognised above this softmax probability
RECIPE: dict[str, Any] = {
    "features": 84,
    "optimizer": {"name": "adamw", "lr": 0.003, "weight_decay": 0.01, "beta2": 0.999},
    "scheduler": {"name": "one_cycle", "pct_start": 0.2},
    "seed": 0,
}
EPOCHS, BATCH_SIZE = 4, 128
STEPS = 300  # at least: of 2,000 images four epochs are 63 steps, after which it is sure of no digit
PRECISION: Any = "bf16-mixed" if torch.cpu._is_avx512_bf16_supported() else "32-true"


class DigitClassifier(Model):
    """Two convolutions, one hidden layer of F features, ten classes."""

    identity = ""  # what `load_or_train` knows it by

    def __init__(self, features: int, optimizer: dict[str, Any], scheduler: dict[str, Any], seed: int) -> None:
        super().__init__(optimizer, scheduler, seed)
        self.save_hyperparameters(logger=False)
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 5, padding=2),  # (N, 16, 28, 28)
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 5),  # (N, 32, 10, 10)
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 5 * 5, features),
            nn.ReLU(),
        )
        self.classes = nn.Linear(features, 10)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 10) of images (N, 1, 28, 28) in [0, 1]."""
        logits: Tensor = self.classes(self.features(x))
        return logits

    def loss(self, batch: Batch) -> Tensor:
        """The cross entropy of one minibatch."""
        x = scale(batch.images)[:, None].contiguous(memory_format=torch.channels_last)
        return functional.cross_entropy(self(x).float(), batch.labels)

    @torch.no_grad()
    def look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, F) and class probabilities (N, 10) of images (N, 28, 28) in [0, 1]."""
        parts = [self.features(part[:, None]) for part in images.split(1000)]
        return torch.cat(parts), torch.cat([self.classes(part).softmax(1) for part in parts])


def load_or_train(source: Source, cache: Path | None = None, *, train_size: int | None = None) -> DigitClassifier:
    """The judge for a data set: from the cache where its recipe and data are known, else trained now.

    A run on a slice of the data (`train_size` images) gets a judge that learns from as many, the
    same for all seeds. Its attribute `identity` is equal for equal judges alone.
    """
    train = source.train
    if train_size is not None and train_size < len(train.labels):
        _, train = hold_out(train, train_size, generator(0, Stream.CLASSIFIER))
    with torch.random.fork_rng(devices=[]):
        layers = repr(DigitClassifier(**RECIPE))
    told = [layers, RECIPE, EPOCHS, STEPS, BATCH_SIZE, PRECISION, source.digest, len(train.labels)]
    identity = hashlib.sha256(json.dumps([*told, torch.__version__]).encode()).hexdigest()[:16]
    path = (cache or CACHE) / f"{identity}.ckpt"
    judge: Model | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with directory_lock(path.parent, wait=True):  # of several processes one trains it for all
            try:
                judge = checkpoints.load_model(path, ("judge",))
            except ValueError:  # not there yet, or damaged: it is remade in less than a minute
                log.info("Training the judge of generated digits, once for this data (half a minute)")
                judge = _train(train)
                content = {"model": "judge", "hyper_parameters": RECIPE, "state_dict": judge.state_dict()}
                checkpoints.write_checkpoint(path, content)
    except OSError as error:  # no reason to lose what was trained for minutes
        reason = error.strerror or str(error)
        log.warning("WARNING: the judge of generated digits cannot be kept in %s: %s", path.parent, reason)
    judge = judge or _train(train)
    assert isinstance(judge, DigitClassifier)
    judge.identity = identity
    return judge.eval()


def _train(train: Images) -> DigitClassifier:
    """Train on these images; leaves torch's global random numbers as they were."""
    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as nowhere:
        seed_everything(RECIPE["seed"], verbose=False)
        judge = DigitClassifier(**RECIPE)
        nothing = train.take(torch.arange(0))
        batches = MNISTData(
            Split(train, nothing, nothing), batch_size=BATCH_SIZE, block=DigitClassifier.block, seed=RECIPE["seed"]
        )
        trainer = make_trainer(
            Path(nowhere),  # it keeps no files, and none of another program's is to be read
            max_epochs=max(EPOCHS, round(STEPS / batches.steps)),
            accelerator="cpu",  # the same weights with or without a GPU
            precision=PRECISION,
            devices=1,
            enable_checkpointing=False,
            limit_val_batches=0,
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*no `validation_step`")  # nothing is held out here
            with cpu_threads(1):  # the same weights on any number of cores
                trainer.fit(judge, batches)
    return judge


def score_samples(judge: DigitClassifier, samples: Tensor, train: Images, test: Images) -> dict[str, float]:
    """Score samples (N, 28, 28) in [0, 1] beside real digits.

    fid: Frechet distance to the test images on the judge's features. fid_floor: that of as many
    training images, the mean over disjoint draws; the distance depends on their number, so there
    may be no more samples than training images. The judge has learned from the training images,
    and from those that a run holds out. recognized: the share told with a confidence above 0.9;
    recognized_real: of the test images. classes: how many digits appear among what is told; rarest
    and commonest: their shares, 0.1 at best.
    """
    assert len(samples) <= len(train.labels)
    real, probabilities = judge.look(scale(test.images.cpu()))
    parts = torch.randperm(len(train.labels), generator=generator(0, Stream.CLASSIFIER)).split(len(samples))
    whole = [part for part in parts if len(part) == len(parts[0])]
    floors = [frechet(judge.look(scale(train.images.cpu()[part]))[0], real) for part in whole]
    features, told = judge.look(samples)
    shares = torch.bincount(told.argmax(1), minlength=10) / len(samples)
    return {
        "fid": frechet(features, real),
        "fid_floor": sum(floors) / len(floors),
        "recognized": float((told.max(1).values > CONFIDENT).float().mean()),
        "recognized_real": float((probabilities.max(1).values > CONFIDENT).float().mean()),
        "classes": int((shares > 0).sum()),
        "rarest": float(shares.min()),
        "commonest": float(shares.max()),
    }


def frechet(features: Tensor, reference: Tensor) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of two sets of features (N, F), by torchmetrics."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    identity = nn.Identity()
    identity.num_features = features.shape[1]  # type: ignore[assignment]
    distance = FrechetInceptionDistance(feature=identity)
    distance.update(reference, real=True)
    distance.update(features, real=False)
    return max(0.0, float(distance.compute()))  # below it by rounding alone
