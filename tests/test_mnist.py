"""README's claims about k-means on the real MNIST, over seeds, and a short autoencoder_best.

The whole autoencoder_best and the seed report's autoencoders take minutes; `make reproduce` runs
them and compares each number with README's.
"""

from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from digitlab.data.images import scale
from digitlab.data.mnist import load
from digitlab.models.digit_classifier import load_or_train

from .conftest import run_in_process

pytestmark = [pytest.mark.slow, pytest.mark.mnist]

SEEDS = range(2)


def run_seeds(mnist: Path, directory: Path, *words: str) -> list[dict[str, Any]]:
    """Run a command with each seed; return the metrics."""
    command = [*words, f"data.root={mnist}", "trainer.accelerator=cpu"]
    outcomes = [run_in_process([*command, f"seed={seed}"], directory / str(seed)) for seed in SEEDS]
    return [outcome["metrics"] for outcome in outcomes]


def test_q1b_agrees_with_the_report(mnist: Path, tmp_path: Path) -> None:
    """The report has a loss of 0.087 and a diagonal of 47.8 %.

    Over two seeds the means are within 0.084 to 0.089 and 36 to 50 %.
    """
    runs = run_seeds(mnist, tmp_path, "experiment=q1b")
    assert 0.084 <= mean(metrics["test/loss"] for metrics in runs) <= 0.089
    assert 0.36 <= mean(metrics["test/diagonal"] for metrics in runs) <= 0.50


def test_q1c_collapses_as_in_the_report(mnist: Path, tmp_path: Path) -> None:
    """The report has a loss of 0.21 with all digits in one cluster.

    The mean is within 0.205 to 0.22, and a single centre is active with each seed.
    """
    runs = run_seeds(mnist, tmp_path, "experiment=q1c")
    assert 0.205 <= mean(metrics["test/loss"] for metrics in runs) <= 0.22
    assert [metrics["active_centers"] for metrics in runs] == [1] * len(SEEDS)


def test_kmeans_best_reaches_the_best_of_many_lloyd_runs(mnist: Path, tmp_path: Path) -> None:
    """The mean training loss is at most 0.0502; the best of 20 full Lloyd runs has 0.05002."""
    runs = run_seeds(mnist, tmp_path, "experiment=kmeans_best")
    assert mean(metrics["train/loss"] for metrics in runs) <= 0.0502


def test_one_image_of_each_digit_is_a_good_start(mnist: Path, tmp_path: Path) -> None:
    """`model=kmeans init=digit` with its defaults has a test loss of at most 0.0525."""
    command = ["model=kmeans", "init=digit", f"data.root={mnist}"]
    metrics = run_in_process(command, tmp_path)["metrics"]
    assert metrics["test/loss"] <= 0.0525


def test_reassignment_prevents_the_collapse(mnist: Path, tmp_path: Path) -> None:
    """With init=random and each seed, ten centres are active and the test loss is 0.052 at most."""
    command = ["model=kmeans", "init=random", "model.reassignment_ratio=0.01"]
    for metrics in run_seeds(mnist, tmp_path, *command):
        assert metrics["active_centers"] == 10
        assert metrics["test/loss"] <= 0.052


def test_autoencoder_best_reconstructs_and_generates_digits_after_few_epochs(
    mnist: Path, tmp_path: Path, full_classifier: None
) -> None:
    """Five epochs of 7,000 images give a test loss at latent 16 of half of PCA's at most.

    Of its samples nine tenths as many are recognized as of real digits, and no class is missing.
    """
    sizes = ["data.train_size=8000", "data.val_size=1000", "trainer.max_epochs=5"]
    command = ["experiment=autoencoder_best", f"data.root={mnist}", *sizes]
    outcome = run_in_process(command, tmp_path)
    metrics = outcome["metrics"]
    assert metrics["test/loss"] <= 0.5 * outcome["baselines"]["pca"]
    assert metrics["generated/recognized"] >= 0.9 * metrics["generated/recognized_real"]
    assert 0.05 <= metrics["generated/rarest"] <= metrics["generated/commonest"] <= 0.16
    assert outcome["warnings"] == []


def test_the_digit_classifier_recognizes_the_test_images(
    mnist: Path, full_classifier: None
) -> None:
    """Trained on all training images, it is right for 98.5 % of the test images or more."""
    source = load(str(mnist))
    classifier = load_or_train(source)
    predictions = classifier.predict(scale(source.test.images))[1].argmax(1)
    assert (predictions == source.test.labels).float().mean() >= 0.985
