"""The digit classifier: its Fréchet distance, its scores, and its cache."""

from pathlib import Path
from typing import Any

import pytest
import torch

from digitlab.data.images import Images, Source
from digitlab.data.mnist import load
from digitlab.models import digit_classifier
from digitlab.models.digit_classifier import DigitClassifier
from digitlab.report.table import collect
from digitlab.runtime.seeds import Stream, generator

from ..conftest import run_in_process

AUTOENCODER = ["model=autoencoder", "model.channels=[4,8]", "model.latent_dim=4"]


def load_tiny(tiny: Path) -> Source:
    return load(str(tiny), "files", verify=False)


def assert_same_weights(first: DigitClassifier, second: DigitClassifier) -> None:
    others = second.state_dict()
    assert all(torch.equal(weight, others[name]) for name, weight in first.state_dict().items())


def test_frechet_distance_of_known_gaussians() -> None:
    """A shift by (3, 4) gives 25; scaling by 2 in each of F dimensions gives F."""
    x = torch.randn(50_000, 4, generator=generator(0, Stream.CLASSIFIER), dtype=torch.float64)
    shift = torch.tensor([3.0, 4.0, 0, 0])
    assert digit_classifier.frechet(x + shift, x) == pytest.approx(25, rel=0.01)
    assert digit_classifier.frechet(2 * x, x) == pytest.approx(4, rel=0.02)
    assert digit_classifier.frechet(x, x) == pytest.approx(0, abs=1e-3)


def test_a_frechet_distance_is_never_negative() -> None:
    """The distance of a set to itself is zero up to rounding."""
    for seed in range(20):
        x = torch.rand(30, 84, generator=generator(seed, Stream.CLASSIFIER))
        assert digit_classifier.frechet(x, x) >= 0


@pytest.mark.slow
def test_training_is_reproducible(tiny: Path, tmp_path: Path) -> None:
    """Loaded from the cache or trained again after damage to it, the weights are the same.

    Training does not change the global random state.
    """
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    trained = digit_classifier.load_or_train(load_tiny(tiny), tmp_path)
    assert torch.equal(torch.rand(3), expected)
    (path,) = tmp_path.glob("*.ckpt")
    loaded = digit_classifier.load_or_train(load_tiny(tiny), tmp_path)
    path.write_bytes(path.read_bytes()[:1000])
    retrained = digit_classifier.load_or_train(load_tiny(tiny), tmp_path)
    for other in (loaded, retrained):
        assert len(trained.state_dict()) == len(other.state_dict())
        assert_same_weights(trained, other)


@pytest.mark.slow
def test_a_classifier_that_cannot_be_saved_is_used_with_a_warning(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With a file in the place of the cache directory, the classifier is the same as otherwise."""
    (tmp_path / "judge").touch()
    unsaved = digit_classifier.load_or_train(load_tiny(tiny), tmp_path / "judge")
    saved = digit_classifier.load_or_train(load_tiny(tiny), tmp_path / "other")
    assert_same_weights(unsaved, saved)
    assert "the digit classifier cannot be saved in" in caplog.text


def test_scores_of_real_digits_and_of_noise(tiny: Path) -> None:
    """Real images score like the floor and contain all ten classes; noise is far away."""
    source = load_tiny(tiny)
    classifier = digit_classifier.load_or_train(source)
    images = source.test.images / 255
    real = digit_classifier.score_samples(classifier, images, source.train, source.test)
    assert real["fid"] == pytest.approx(0, abs=1e-2)
    assert real["recognized"] == real["recognized_real"]
    assert (real["classes"], real["rarest"], real["commonest"]) == pytest.approx((10, 0.1, 0.1))
    images = torch.rand(100, 1, 28, 28, generator=generator(0, Stream.CLASSIFIER))
    noise = digit_classifier.score_samples(classifier, images, source.train, source.test)
    assert noise["fid"] > 10 * max(real["fid_floor"], 0.1)


def test_the_floor_of_the_same_images_is_computed_once(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores from a kept floor are the same bits; damage and other images lead to a new one."""
    source = load_tiny(tiny)
    classifier = digit_classifier.load_or_train(source)
    classifier.cache = tmp_path
    numbers, predict = [], classifier.predict

    def record_number(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        numbers.append(len(images))
        return predict(images)

    monkeypatch.setattr(classifier, "predict", record_number)
    images = source.test.images / 255
    half = source.train.take(torch.arange(len(source.train.labels) // 2))

    def score(train: Images = source.train) -> tuple[dict[str, float], int]:
        numbers.clear()
        return digit_classifier.score_samples(classifier, images, train, source.test), sum(numbers)

    first, again = score(), score()
    assert first[0] == again[0]
    n = len(images)
    assert (first[1], again[1]) == (2 * n + len(source.train.labels) // n * n, 2 * n)
    assert score(half)[1] > 2 * n
    (path, _) = sorted(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    for damaged in ("{", "[]", '{"fid_floor": "x"}'):
        path.write_text(damaged)
        assert score() == first


@pytest.mark.slow
def test_a_slice_of_the_data_has_its_own_classifier(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run on 200 images trains the classifier on 200, the same ones for all seeds.

    results.json and a report show which classifier scored a run.
    """
    sizes, train = [], digit_classifier._train

    def record_size(recipe: dict[str, Any], images: Images) -> DigitClassifier:
        sizes.append(len(images.labels))
        return train(recipe, images)

    monkeypatch.setattr(digit_classifier, "_train", record_size)
    monkeypatch.setattr(digit_classifier, "CACHE", tmp_path / "judge")
    command = [*AUTOENCODER, *overrides, "trainer.precision=32-true", "trainer.max_epochs=1"]
    whole = run_in_process(command, tmp_path / "whole")
    part, other_seed = (
        run_in_process([*command, "data.train_size=200", f"seed={seed}"], tmp_path / str(seed))
        for seed in (0, 1)
    )
    assert sizes == [600, 200]
    assert part["classifier"] == other_seed["classifier"] != whole["classifier"]
    kmeans = run_in_process(["model=kmeans", *overrides], tmp_path / "kmeans")
    assert kmeans["classifier"] is None
    differences = collect([tmp_path]).set_index("run").other
    assert differences[str(tmp_path / "whole")].split() == ["classifier"]
    assert differences[str(tmp_path / "kmeans")] == ""
