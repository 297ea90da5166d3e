"""The small classifier that scores generated images (similar to LeNet-5, LeCun et al., 1998).

Generated images are compared with real ones by the Fréchet distance in the space of its last hidden
layer, as the Fréchet Inception Distance does with another network (Heusel et al., 2017), and by the
classes that it predicts. N images, F features.
"""

import hashlib
import json
import logging
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, seed_everything
from torch import Tensor, nn
from torch.nn import functional

from digitlab.data.images import Images, Source, Split, hold_out, scale
from digitlab.data.loaders import MNISTData
from digitlab.models import checkpoints
from digitlab.models.base import Model
from digitlab.runs.files import directory_lock, read_json, write_json
from digitlab.runtime.seeds import Stream, generator
from digitlab.runtime.threads import cpu_threads
from digitlab.runtime.trainer import make_trainer

log = logging.getLogger(__name__)

CACHE = Path("outputs") / "judge"
# A digit counts as recognized above this softmax probability.
CONFIDENT = 0.9
RECIPE: dict[str, Any] = {
    "features": 84,
    "optimizer": {"name": "adamw", "lr": 0.003, "weight_decay": 0.01, "beta2": 0.999},
    "scheduler": {"name": "one_cycle", "pct_start": 0.2},
    "seed": 0,
}
EPOCHS, BATCH_SIZE = 4, 128
# The smallest edge that leaves a pixel after two convolutions and poolings; smaller images get a
# frame.
SMALLEST = 12
# The least number of steps. Four epochs of 2,000 images are 63 steps, after which the classifier is
# confident of no digit.
STEPS = 300
HAS_BF16: bool = torch.cpu.get_capabilities().get("avx512_bf16", False)
PRECISION: Any = "bf16-mixed" if HAS_BF16 else "32-true"


class DigitClassifier(Model):
    """Two convolutions, one hidden layer of F features, the classes."""

    # Equal for equal classifiers only, and where floors are kept; `load_or_train` sets both.
    identity = ""
    cache: Path | None = None

    def __init__(self, features: int, **options: Any) -> None:
        super().__init__(**options)
        c, *edges = self.image_shape
        height, width = (max(edge, SMALLEST) for edge in edges)
        # A frame of black pixels.
        missing = (0, width - edges[1], 0, height - edges[0])
        frame = [nn.ZeroPad2d(missing)] if any(missing) else []
        self.features = nn.Sequential(
            *frame,
            nn.Conv2d(c, 16, 5, padding=2),  # (N, 16, H, W), 28 x 28 for MNIST
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 5),  # (N, 32, 10, 10) for MNIST
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * ((height // 2 - 4) // 2) * ((width // 2 - 4) // 2), features),
            nn.ReLU(),
        )
        self.classes = nn.Linear(features, self.n_classes)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits (N, classes) of images (N, C, H, W) in [0, 1]."""
        logits: Tensor = self.classes(self.features(x))
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Compute the cross entropy of one minibatch."""
        images, labels = batch
        logits = self(images.contiguous(memory_format=torch.channels_last))
        return functional.cross_entropy(logits.float(), labels)

    @torch.no_grad()
    def predict(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the features and the classes of images.

        Args:
            images: (N, C, H, W) in [0, 1].

        Returns:
            The features (N, F) and the class probabilities (N, classes).
        """
        # As many images as a thousand of MNIST's are large.
        size = max(1, 1000 * 784 // self.pixels)
        parts = [self.features(part) for part in images.split(size)]
        return torch.cat(parts), torch.cat([self.classes(part).softmax(1) for part in parts])


def load_or_train(
    source: Source, cache: Path | None = None, *, train_size: int | None = None
) -> DigitClassifier:
    """Load the classifier for a data set from the cache, or train it now.

    Args:
        source: The data set.
        cache: The directory of the trained classifiers; by default outputs/judge.
        train_size: Train on this number of images, the same ones for all seeds; None: on all.

    Returns:
        The classifier in evaluation mode. Its `identity` is a digest of the recipe and the data.
    """
    train = source.train
    if train_size is not None and train_size < len(train.labels):
        _, train = hold_out(train, train_size, generator(0, Stream.CLASSIFIER))
    recipe = RECIPE | {"image_shape": source.shape, "n_classes": len(source.classes)}
    identity = _identify(recipe, source.digest, len(train.labels))
    path = (cache or CACHE) / f"{identity}.ckpt"
    classifier: LightningModule | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # One of several processes trains; the others wait and load.
        with directory_lock(path.parent, wait=True):
            try:
                classifier = checkpoints.load_model(path, {"judge": DigitClassifier})
            except ValueError:
                # The file does not exist, or is damaged and replaced in less than a minute.
                log.info("Training the digit classifier, once for this data (half a minute)")
                classifier = _train(recipe, train)
                weights = classifier.state_dict()
                content = {"model": "judge", "hyper_parameters": recipe, "state_dict": weights}
                checkpoints.write_checkpoint(path, content)
    except OSError as error:
        # A run that has trained for minutes does not fail because of the cache.
        reason = error.strerror or str(error)
        log.warning("WARNING: the digit classifier cannot be saved in %s: %s", path.parent, reason)
    classifier = classifier or _train(recipe, train)
    assert isinstance(classifier, DigitClassifier)
    classifier.identity, classifier.cache = identity, path.parent
    return classifier.eval()


def _identify(recipe: dict[str, Any], data_digest: str, train_size: int) -> str:
    """A digest of all that determines the weights."""
    with torch.random.fork_rng(devices=[]):
        layers = repr(DigitClassifier(**recipe))
    training = [RECIPE, EPOCHS, STEPS, BATCH_SIZE, PRECISION]
    content = [layers, *training, data_digest, train_size, torch.__version__]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _train(recipe: dict[str, Any], train: Images) -> DigitClassifier:
    """Train on these images; leave torch's global random state unchanged."""
    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as directory:
        seed_everything(RECIPE["seed"], verbose=False)
        classifier = DigitClassifier(**recipe)
        empty = train.take(torch.arange(0))
        parts = Split(train, empty, empty)
        data = MNISTData(parts, batch_size=BATCH_SIZE, seed=RECIPE["seed"])
        # An empty directory, since the trainer must not read the files of other programs.
        # On the CPU the weights are the same with or without a GPU.
        trainer = make_trainer(
            Path(directory),
            max_epochs=max(EPOCHS, round(STEPS / data.steps)),
            accelerator="cpu",
            precision=PRECISION,
            devices=1,
            enable_checkpointing=False,
            limit_val_batches=0,
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*no `validation_step`")
            # One thread: the same weights on any number of cores.
            with cpu_threads(1):
                trainer.fit(classifier, data)
    return classifier


def score_samples(
    classifier: DigitClassifier, samples: Tensor, train: Images, test: Images
) -> dict[str, float]:
    """Score generated digits in comparison with real ones.

    Args:
        classifier: Trained on the training and the held-out images of the run.
        samples: The generated images, (N, C, H, W) in [0, 1]; not more than training images.
        train: The training images.
        test: The test images.

    Returns:
        fid: The Fréchet distance between samples and test images on the classifier's features.
        fid_floor: The distance between N training images and the test images, the mean over
            disjoint draws. Since the distance depends on N, it is the lowest value to expect.
        recognized: The share of samples classified with a confidence above 0.9.
        recognized_real: The same share of the test images.
        classes: The number of classes among the predicted classes.
        rarest, commonest: The smallest and the largest share of a class.
    """
    assert len(samples) <= len(train.labels)
    real, real_probabilities = classifier.predict(scale(test.images.cpu()))
    floor = find_floor(classifier, len(samples), train, test, real)
    features, probabilities = classifier.predict(samples)
    shares = torch.bincount(probabilities.argmax(1), minlength=classifier.n_classes) / len(samples)
    return {
        "fid": frechet(features, real),
        "fid_floor": floor,
        "recognized": _share_confident(probabilities),
        "recognized_real": _share_confident(real_probabilities),
        "classes": int((shares > 0).sum()),
        "rarest": float(shares.min()),
        "commonest": float(shares.max()),
    }


def find_floor(
    classifier: DigitClassifier, n: int, train: Images, test: Images, real: Tensor
) -> float:
    """Compute the floor of `score_samples`, or read what an earlier run computed.

    It needs a prediction for each training image, which takes longer than all other scores.

    Args:
        classifier: As for `score_samples`, as `train` and `test`.
        n: The number of samples.
        real: The features of the test images, (N, F).
    """
    # Another number of threads may change the last digit.
    digest = hashlib.sha256(f"{n} {torch.get_num_threads()}".encode())
    for part in (train, test):
        digest.update(part.images.cpu().contiguous().numpy().data)
    name = f"{classifier.identity}-{digest.hexdigest()[:16]}.json"
    path = classifier.cache / name if classifier.cache is not None else None
    if path is not None:
        with suppress(OSError, ValueError, KeyError, TypeError):
            return float(read_json(path)["fid_floor"])
    order = torch.randperm(len(train.labels), generator=generator(0, Stream.CLASSIFIER))
    floors = []
    for rows in order.split(n):
        if len(rows) == n:
            features, _ = classifier.predict(scale(train.images.cpu()[rows]))
            floors.append(frechet(features, real))
    floor = sum(floors) / len(floors)
    if path is not None:
        # `load_or_train` has said that nothing can be saved there.
        with suppress(OSError):
            write_json(path, {"fid_floor": floor})
    return floor


def _share_confident(probabilities: Tensor) -> float:
    """The share of images (N, classes) with a class above the confidence limit."""
    return float((probabilities.max(1).values > CONFIDENT).float().mean())


def frechet(features: Tensor, reference: Tensor) -> float:
    """Compute the Fréchet distance of two sets of features (N, F), by torchmetrics.

    It is |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), with means m and covariances S.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    identity = nn.Identity()
    identity.num_features = features.shape[1]  # type: ignore[assignment]
    distance = FrechetInceptionDistance(feature=identity)
    distance.update(reference, real=True)
    distance.update(features, real=False)
    # Rounding alone can make it negative.
    return max(0.0, float(distance.compute()))
