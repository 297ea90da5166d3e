"""The autoencoder's shapes, its priors and judge, and what a whole run of it says and leaves."""

import importlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from digitlab import RunFailed, figures
from digitlab.data.images import Images, Split
from digitlab.data.mnist import load
from digitlab.models import autoencoder, baselines, digit_classifier
from digitlab.models.autoencoder import Autoencoder, sizes
from digitlab.models.prior import Prior
from digitlab.report.table import collect
from digitlab.runtime.seeds import Stream, generator

from ..conftest import ROOT, digits, results, run_here, write_idx

AUTOENCODER = ["model=autoencoder", "model.channels=[4,8]", "model.latent_dim=4", "trainer.precision=32-true"]


def model(**changes: Any) -> Autoencoder:
    options: dict[str, Any] = {
        "channels": [4, 8],
        "latent_dim": 3,
        "hidden": None,
        "norm": "none",
        "activation": "relu",
        "output": "sigmoid",
        "channels_last": True,
        "compile": False,
        "prior": {"name": "standard_normal"},
        "optimizer": {"name": "sgd", "lr": 0.1},
        "scheduler": {"name": "constant"},
        "seed": 0,
    }
    return Autoencoder(**options | changes)


def test_edges_are_halved_upwards() -> None:
    """28 pixels become 14, 7, 4, 2 and 1: an odd edge keeps its middle."""
    assert sizes(5) == [28, 14, 7, 4, 2, 1]


@pytest.mark.parametrize("channels", [[1], [4, 8], [3, 5, 7], [16, 8, 4, 2], [2, 2, 2, 2, 2], [16, 32, 16]])
@pytest.mark.parametrize(
    ("hidden", "norm", "activation"), [(None, "none", "relu"), (12, "group", "silu"), (None, "group", "hardswish")]
)
def test_the_decoder_inverts_the_encoder_stage_by_stage(
    channels: list[int], hidden: int | None, norm: str, activation: str
) -> None:
    """For every admissible list of channels each decoder stage gives back the shape its partner took."""
    rows = model(channels=channels, hidden=hidden, norm=norm, activation=activation, latent_dim=5).shape_table()
    assert rows[0].outside == (1, 28, 28)
    assert rows[-1].inside == (5,)
    assert all(row.inside == below.outside for row, below in pairwise(rows))
    assert [row.inside[0] for row in rows[: len(channels)]] == channels
    assert len(rows) == len(channels) + 2 + (hidden is not None)


def test_a_convolution_has_a_bias_just_where_no_normalisation_adds_one() -> None:
    """Of [4, 1, 8] with group norm: none on 4 and 8 channels, but on the one that is not normalised and the image."""
    net = model(channels=[4, 1, 8], norm="group")
    down = [stage.get_submodule("0").bias is not None for name, stage in net.encoder.named_children() if "conv" in name]
    up = [stage.get_submodule("0").bias is not None for name, stage in net.decoder.named_children() if "conv" in name]
    assert (down, up) == ([False, True, False], [True, False, True])


def test_the_memory_format_does_not_change_the_answer() -> None:
    """Channels-last and contiguous weights reconstruct the same images."""
    torch.manual_seed(0)
    first = model(channels_last=True).eval()
    second = model(channels_last=False).eval()
    second.load_state_dict(first.state_dict())
    images = torch.randint(0, 256, (7, 28, 28), dtype=torch.uint8)
    torch.testing.assert_close(first.reconstruct(images), second.reconstruct(images))


def test_mean_loss_is_over_pixels_and_images() -> None:
    """An encoder of zeros answers the sigmoid of zero, 1/2, everywhere: on black images the loss is 1/4."""
    half = model()
    for parameter in half.parameters():
        torch.nn.init.zeros_(parameter)
    black = Images(torch.zeros(2100, 28, 28, dtype=torch.uint8), torch.zeros(2100).long())
    assert half.mean_loss(black) == pytest.approx(0.25)


def test_the_standard_normal_is_one() -> None:
    """As constructed, a prior draws z with mean 0 and covariance I."""
    z = Prior(1, 3, fitted=True).sample(20_000, generator(0, Stream.PRIOR))
    torch.testing.assert_close(z.mean(0), torch.zeros(3), rtol=0, atol=0.03)
    torch.testing.assert_close(z.T.cov(), torch.eye(3), rtol=0, atol=0.04)


def test_a_fitted_gaussian_has_the_moments_of_its_latents() -> None:
    """Mean and covariance of what it draws are those of what it was fitted to."""
    mixing = torch.tensor([[2.0, 0.0], [1.0, 0.5]])
    latents = torch.randn(20_000, 2, generator=generator(1, Stream.PRIOR)) @ mixing.T + torch.tensor([3.0, -1.0])
    prior = Prior(1, 2)
    prior.fit(latents, seed=0)
    z = prior.sample(20_000, generator(0, Stream.PRIOR))
    torch.testing.assert_close(z.mean(0), latents.mean(0), rtol=0, atol=0.06)
    torch.testing.assert_close(z.T.cov(), latents.T.cov(), rtol=0, atol=0.15)


def test_a_mixture_keeps_to_its_clusters() -> None:
    """Two far clusters of 3 : 1: draws fall into them in that ratio, none between, where one Gaussian puts many."""
    rng = generator(2, Stream.PRIOR)
    latents = torch.cat([torch.randn(3000, 2, generator=rng) * 0.1 - 5, torch.randn(1000, 2, generator=rng) * 0.1 + 5])
    mixture, gaussian = Prior(2, 2), Prior(1, 2)
    for prior in (mixture, gaussian):
        prior.fit(latents, seed=0)
    z = mixture.sample(4000, rng)
    assert (z.abs() > 4).all()
    assert float((z[:, 0] < 0).float().mean()) == pytest.approx(0.75, abs=0.03)
    assert (gaussian.sample(4000, rng).abs() < 4).any(1).float().mean() > 0.3


def test_a_latent_that_never_varies_is_drawn_as_it_is() -> None:
    """A covariance of no full rank has no Cholesky factor; a grain of variance keeps the draw at the constant."""
    latents = torch.cat([torch.randn(500, 1, generator=generator(0, Stream.PRIOR)), torch.full((500, 1), 7.0)], dim=1)
    prior = Prior(1, 2)
    prior.fit(latents, seed=0)
    torch.testing.assert_close(
        prior.sample(50, generator(0, Stream.PRIOR))[:, 1], torch.full((50,), 7.0), rtol=0, atol=0.01
    )


def test_a_mixture_of_more_parts_than_images_is_refused() -> None:
    """30 components cannot be fitted to 20 latents."""
    with pytest.raises(
        ValueError, match=r"model\.prior\.n_components=30: needs 30 training images or more, here are 20"
    ):
        Prior(30, 2).fit(torch.randn(20, 2), seed=0)


def test_frechet_distance_of_known_gaussians() -> None:
    """Shifted by (3, 4) the distance is 25; scaled from 1 to 2 in each of F dimensions it is F."""
    x = torch.randn(50_000, 4, generator=generator(0, Stream.CLASSIFIER), dtype=torch.float64)
    assert digit_classifier.frechet(x + torch.tensor([3.0, 4.0, 0, 0]), x) == pytest.approx(25, rel=0.01)
    assert digit_classifier.frechet(2 * x, x) == pytest.approx(4, rel=0.02)
    assert digit_classifier.frechet(x, x) == pytest.approx(0, abs=1e-3)


def tiny_source(tiny: Path) -> Any:
    return load(str(tiny), "files", verify=False)


def test_the_judge_is_the_same_every_time(tiny: Path, tmp_path: Path) -> None:
    """Trained twice it has the same weights and leaves the global random numbers alone; a damaged cache is remade."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = digit_classifier.load_or_train(tiny_source(tiny), tmp_path)
    assert torch.equal(torch.rand(3), expected)
    (cached,) = tmp_path.glob("*.ckpt")
    again = digit_classifier.load_or_train(tiny_source(tiny), tmp_path)
    cached.write_bytes(cached.read_bytes()[:1000])
    remade = digit_classifier.load_or_train(tiny_source(tiny), tmp_path)
    for other in (again, remade):
        assert all(
            torch.equal(a, b) for a, b in zip(first.state_dict().values(), other.state_dict().values(), strict=True)
        )


def test_a_judge_that_cannot_be_kept_is_told(tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file where its folder should be: what was trained for minutes is judged all the same."""
    (tmp_path / "judge").touch()
    arbiter = digit_classifier.load_or_train(tiny_source(tiny), tmp_path / "judge")
    kept = digit_classifier.load_or_train(tiny_source(tiny), tmp_path / "other")
    assert all(torch.equal(weight, kept.state_dict()[name]) for name, weight in arbiter.state_dict().items())
    assert "the judge of generated digits cannot be kept in" in caplog.text


def test_scores_of_real_digits_and_of_noise(tiny: Path) -> None:
    """Real images score like the floor and hold all ten classes; grey noise is far off."""
    source = tiny_source(tiny)
    arbiter = digit_classifier.load_or_train(source)
    real = digit_classifier.score_samples(arbiter, source.test.images / 255, source.train, source.test)
    assert real["fid"] == pytest.approx(0, abs=1e-2)
    assert real["recognized"] == real["recognized_real"]
    assert (real["classes"], real["rarest"], real["commonest"]) == pytest.approx((10, 0.1, 0.1))
    noise = torch.rand(100, 28, 28, generator=generator(0, Stream.CLASSIFIER))
    assert digit_classifier.score_samples(arbiter, noise, source.train, source.test)["fid"] > 10 * max(
        real["fid_floor"], 0.1
    )


def test_baselines_worked_by_hand() -> None:
    """Two training images, black and white: the mean is grey, and one component restores any even grey."""
    flat = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1).expand(2, 28, 28)
    train = Images(flat, torch.tensor([0, 1]))
    grey = Images(torch.full((1, 28, 28), 51, dtype=torch.uint8), torch.tensor([0]))
    data = Split(train, train, grey)
    assert baselines.mean_image(data) == pytest.approx((0.5 - 0.2) ** 2)
    assert baselines.pca(data, 1) == pytest.approx(0, abs=1e-6)


def test_pca_looks_at_a_million_images_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """25,000 test images, of which no more than 10,000 are floats at a time; the loss is numpy's."""
    rng, parts = np.random.default_rng(0), []
    train, test = (torch.from_numpy(rng.integers(0, 256, (n, 28, 28)).astype(np.uint8)) for n in (50, 25_000))

    def scaled(images: torch.Tensor) -> torch.Tensor:
        parts.append(len(images))
        return images.float() / 255

    monkeypatch.setattr(baselines, "scale", scaled)
    data = Split(*(Images(images, torch.zeros(len(images), dtype=torch.long)) for images in (train, train, test)))
    found = baselines.pca(data, 3)
    assert max(parts) <= 10_000
    x = train.numpy().reshape(50, -1) / 255
    basis = np.linalg.svd(x - x.mean(0))[2][:3]
    y = test.numpy().reshape(25_000, -1)[::50] / 255 - x.mean(0)
    assert found == pytest.approx(((y - y @ basis.T @ basis) ** 2).mean(), rel=1e-2)  # of each 50th


def test_generated_digits_are_as_many_as_their_floor_s(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """500 training images give a floor at 500, so 500 digits are scored, not 10,000: the distance falls with them."""
    monkeypatch.setattr(autoencoder, "SCORED", 10_000)
    numbers, score = [], digit_classifier.score_samples

    def count(arbiter: Any, samples: torch.Tensor, train: Images, test: Images) -> dict[str, float]:
        numbers.append((len(samples), len(train.labels)))
        return score(arbiter, samples, train, test)

    monkeypatch.setattr(autoencoder, "score_samples", count)
    run_here([*AUTOENCODER, *words, "trainer.max_epochs=1"], tmp_path)
    assert numbers == [(500, 500)]


def test_a_frechet_distance_is_never_below_zero() -> None:
    """Of a set to itself it is zero but for rounding."""
    for seed in range(20):
        x = torch.rand(30, 84, generator=generator(seed, Stream.CLASSIFIER))
        assert digit_classifier.frechet(x, x) >= 0


def test_a_slice_has_a_judge_of_its_own_size(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run on 200 of the images trains it on as many; results.json and a report tell whose scores are whose."""
    sizes, train_judge = [], digit_classifier._train

    def count(images: Images) -> digit_classifier.DigitClassifier:
        sizes.append(len(images.labels))
        return train_judge(images)

    monkeypatch.setattr(digit_classifier, "_train", count)
    monkeypatch.setattr(digit_classifier, "CACHE", tmp_path / "judge")
    command = [*AUTOENCODER, *words, "trainer.max_epochs=1"]
    whole = run_here(command, tmp_path / "whole")
    part, again = (run_here([*command, "data.train_size=200", f"seed={seed}"], tmp_path / str(seed)) for seed in (0, 1))
    assert sizes == [600, 200]
    assert part["classifier"] == again["classifier"] != whole["classifier"]
    assert run_here(["model=kmeans", *words], tmp_path / "kmeans")["classifier"] is None
    table = collect([tmp_path])
    assert table.set_index("run").other[str(tmp_path / "whole")].split() == ["classifier"]
    assert table.set_index("run").other[str(tmp_path / "kmeans")] == ""


def test_a_run_leaves_all_its_files_and_names_its_fog(words: list[str], tmp_path: Path) -> None:
    """An untrained decoder is no better than the mean image: said, and every figure is there."""
    mine = tmp_path / "00000" / "mine.png"  # where the projector's files go
    mine.parent.mkdir()
    mine.touch()
    outcome = run_here([*AUTOENCODER, *words, "optimizer.lr=1e-6", "trainer.max_epochs=2"], tmp_path)
    assert mine.exists()
    assert outcome["status"] == "completed"
    assert set(outcome["baselines"]) == {"mean_image", "pca"}
    assert any(warning.startswith("Not better than predicting the mean image") for warning in outcome["warnings"])
    for name in ("shapes", "loss", "reconstructions", "generated", "latents"):
        assert (tmp_path / "figures" / f"{name}.png").stat().st_size > 0
    for name in ("fid", "fid_floor", "recognized", "recognized_real", "classes", "rarest", "commonest"):
        assert f"generated/{name}" in outcome["metrics"]


def test_each_failure_of_an_autoencoder_is_named_with_its_remedy() -> None:
    """Fog, worse than PCA, digits that cannot be read: a sentence for each; a good model has none."""
    trivial = {"mean_image": 0.0675, "pca": 0.027}
    adamw, cycle = {"name": "adamw", "lr": 0.1}, {"name": "one_cycle"}

    def told(loss: float, recognized: float, real: float = 0.98, **changes: Any) -> list[str]:
        scores = {"generated/recognized": recognized, "generated/recognized_real": real}
        return model(**changes).warnings({"test/loss": loss, **scores}, trivial)

    (fog,) = told(0.0676, 0.0)
    assert "at best it paints the mean of all" in fog
    assert "experiment=autoencoder_best" in fog
    for changes, advice in (
        ({}, ", or try optimizer=adamw scheduler=one_cycle (experiment=autoencoder_best)"),
        ({"optimizer": adamw}, ", or try scheduler=one_cycle (experiment=autoencoder_best)"),
        ({"scheduler": cycle}, ", or try optimizer=adamw (experiment=autoencoder_best)"),
        ({"optimizer": adamw, "scheduler": cycle}, ""),  # as autoencoder_best itself
    ):
        for loss in (0.0676, 0.03):  # of the fog, and worse than PCA
            assert told(loss, 0.9, **changes)[0].endswith(f" Train longer{advice}.")
    (worse,) = told(0.03, 0.9)
    assert told(0.0269, 0.9) == [worse.replace("0.0300", "0.0269")], "within 1 % is no better"
    assert worse.startswith("No better than PCA with the same 3 numbers an image: test loss 0.0300, PCA 0.0270. Train")
    (unread,) = told(0.005, 0.3)
    assert unread.startswith("Only 30% of the generated digits are recognised (98% of real ones)")
    assert unread.endswith("draw z from where the encoder puts the data, prior=mixture.")
    (unread,) = told(0.005, 0.3, prior={"name": "gaussian"})
    assert unread.endswith("follow the shape of the data's latents, prior=mixture.")
    (coarse,) = told(0.005, 0.3, prior={"name": "mixture", "n_components": 2, "temperature": 1.0})
    assert "model.prior.n_components too few" in coarse
    assert told(0.005, 0.9) == []
    (unable,) = told(0.005, 0.0, 0.49)
    assert unable.startswith("The judge of generated digits recognises only 49% of real ones: generated/... say little")


@pytest.fixture(scope="module")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run with a mixture."""
    run = tmp_path_factory.mktemp("trained")
    command = [f"data.root={tiny}", "data.verify=false", "data.val_size=100", "data.batch_size=20"]
    command += ["trainer.accelerator=cpu", "trainer.max_epochs=8"]
    command += ["optimizer=adamw", "scheduler=one_cycle", "prior=mixture", "model.prior.n_components=10"]
    run_here([*AUTOENCODER, *command], run)
    return run


def test_training_beats_the_baseline_it_should(trained: Path) -> None:
    """Squares in nine places are learnt in eight epochs: far below the mean image, without that warning."""
    outcome = results(trained)
    assert outcome["metrics"]["test/loss"] < 0.5 * outcome["baselines"]["mean_image"]
    assert not any("mean image" in warning for warning in outcome["warnings"])


def test_tensorboard_has_pictures_by_epoch_projector_and_one_chart(trained: Path) -> None:
    """Reconstructions, generated digits and latents of each epoch; baselines beside the losses in one layout."""
    events = EventAccumulator(str(trained), size_guidance={"images": 0})
    events.Reload()
    for name in ("reconstructions", "generated", "latents"):
        assert {event.step for event in events.Images(f"epochs/{name}")} == set(range(9))
        assert events.Images(name)
    assert "custom_scalars__config__" in events.Tags()["tensors"]
    layout = Layout.FromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    patterns = layout.category[0].chart[0].multiline.tag
    for name in ("train/loss", "val/loss", "baseline/mean_image", "baseline/pca"):
        assert any(re.fullmatch(pattern, name) for pattern in patterns)
        assert name in events.Tags()["scalars"]
    assert list(trained.glob("**/sprite.png"))
    assert (trained / "projector_config.pbtxt").read_text().count("embeddings") == 1


@pytest.mark.parametrize(("images", "columns", "rows"), [(5, 5, 2), (10, 10, 2), (25, 10, 4)])
def test_each_image_stands_over_its_reconstruction(images: int, columns: int, rows: int) -> None:
    """Image i is i / 100 bright, its reconstruction 0.5 more: in a column, whatever their number."""
    bright = np.repeat(np.arange(images) / 100, 784).reshape(-1, 28, 28)
    (axes,) = figures.reconstructions(bright, bright + 0.5, "").axes
    (picture,) = axes.images
    paper = np.asarray(picture.get_array())
    assert paper.shape == (rows * 30, columns * 30)
    for row in range(0, rows, 2):
        upper, lower = paper[row * 30, ::30], paper[(row + 1) * 30, ::30]
        assert upper.tolist() == pytest.approx([(row // 2 * columns + i) / 100 for i in range(columns)])
        assert lower - upper == pytest.approx(0.5)
    assert [text.get_text() for text in axes.texts] == ["original", "restored"] * (rows // 2)


Ends = Callable[..., tuple[Any, str]]


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ends:
    """A function that runs a script in this process until it exits: what with, and all that it says."""

    def call(name: str, *words: str | Path) -> tuple[Any, str]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        with pytest.raises(SystemExit) as done:
            importlib.import_module(name).main()
        printed = capsys.readouterr()
        return done.value.code, f"{done.value.code}{printed.err}{printed.out}"

    return call


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's tracer asks a tensor for it
def test_compiling_changes_no_figure(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """model.compile=true hands encoder and decoder to torch.compile; traced, not translated, they compute the same."""
    compiled, compile_ = [], torch.compile

    def trace(function: Any, *more: Any, **options: Any) -> Any:
        compiled.append(function.__self__)
        return compile_(function, backend="eager")  # the usual one translates into C++, for half a minute

    monkeypatch.setattr(torch, "compile", trace)
    command = [*AUTOENCODER, *words, "trainer.max_epochs=1"]
    plain = run_here(command, tmp_path / "plain")
    assert compiled == []
    other = run_here([*command, "model.compile=true"], tmp_path / "compiled")
    assert [type(part).__name__ for part in compiled] == ["Stages", "Stages"]
    assert other["metrics"] == pytest.approx(plain["metrics"], rel=1e-3)


def test_generate_draws_from_the_checkpoint_alone(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder with nothing but best.ckpt gives a PNG, and thousands of digits as .npz; a seed repeats them."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.ckpt").write_bytes((trained / "checkpoints" / "best.ckpt").read_bytes())
    command = [sys.executable, "-X", "importtime", str(ROOT / "scripts" / "generate.py"), str(tmp_path)]
    nothing = subprocess.run([*command[:-1], str(tmp_path / "no")], capture_output=True, text=True, check=False)
    assert nothing.stderr.splitlines()[-1] == (
        f"Error: {tmp_path / 'no'}: holds no checkpoint; name the directory of a completed run, as outputs/runs/NAME"
    )
    assert re.search(r"\| +pathlib\n", nothing.stderr), "imports are told"
    assert not re.search(r"\| +torch\n", nothing.stderr), "none of them takes seconds"
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "generated_mixture_n20_seed0.png") as sheet:
        assert (sheet.size, sheet.mode) == ((3 * (10 * 29 + 1), 3 * (2 * 29 + 1)), "L"), "two rows of ten, enlarged"
    for name, prior in (("a", "mixture"), ("b", "mixture"), ("c", "standard_normal")):
        words = ["--n", "3000", "--prior", prior, "--seed", "3", "--out", str(tmp_path / f"{name}.npz")]
        monkeypatch.setattr(sys, "argv", ["generate.py", str(tmp_path), *words])
        importlib.import_module("generate").main()
    a, b, c = (np.load(tmp_path / f"{name}.npz")["images"] for name in "abc")
    assert (a.shape, a.dtype) == ((3000, 28, 28), np.uint8)
    assert (a == b).all()
    assert (a != c).any()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--n", "0"], "--n must be from 1 to 100000"),
        (["--out", "x.gif"], "must end in .png or .npz"),
        (["--prior", "flow"], "invalid choice"),
        (["--out", "/dev/null/x.png"], "Error: /dev/null: File exists; choose another place, as with"),
    ],
)
def test_generate_refuses_in_words(words: list[str], told: str, trained: Path, ends: Ends) -> None:
    """Mistakes end in a line and an exit code, not in another error."""
    code, printed = ends("generate", trained, *words)
    assert code == 2
    assert told in printed


def test_a_prior_that_was_not_fitted_is_refused() -> None:
    """A run without a mixture says which priors it has; one that was cut short, that it is not complete."""
    with pytest.raises(ValueError, match=r"not fitted yet: complete the run"):
        model().generate(5, 0, "gaussian")
    with pytest.raises(ValueError, match=r"prior=mixture: this run has standard_normal, gaussian; train one with"):
        model().generate(5, 0, "mixture")


def test_a_prior_of_weights_that_are_none_is_refused() -> None:
    """A stranger's checkpoint may hold any numbers: not finite or negative, a line and no error of torch's."""
    for weight in (float("nan"), float("inf"), -1.0):
        strange = model(prior={"name": "gaussian"})
        strange.priors["gaussian"].weights.fill_(weight)  # type: ignore[operator]
        with pytest.raises(ValueError, match="not fitted yet"):
            strange.generate(5, 0)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["prior=mixture", "model.prior.n_components=501"], "model.prior.n_components=501: needs 501 training images"),
        (
            ["prior=gaussian", "data.train_size=101"],
            "data.train_size: a density of the latents needs 2 training images",
        ),
    ],
)
def test_too_few_images_for_the_prior_are_told_before_training(
    words: list[str], told: str, tiny: Path, tmp_path: Path
) -> None:
    """500 images cannot give 501 components: no epoch is trained before that is said."""
    small = [f"data.root={tiny}", "data.verify=false", "data.val_size=100", "data.batch_size=20"]
    with pytest.raises(RunFailed, match=told):
        run_here([*AUTOENCODER, *small, *words], tmp_path)
    assert not (tmp_path / "metrics.csv").exists()


def test_evaluate_agrees_with_results(trained: Path, tmp_path: Path, ends: Ends) -> None:
    """Recomputed from best.ckpt the metrics are those of results.json; a number changed there is told, exit code 1."""
    code, told = ends("evaluate", trained)
    assert code == 0
    assert len(told.splitlines()) == 2 + len(results(trained)["metrics"])  # a heading, and the verdict
    shutil.copytree(trained, tmp_path / "run")
    for name, factor in (("test/loss", 1.01), ("train/loss", None)):
        changed = results(trained)
        changed["metrics"][name] = factor and changed["metrics"][name] * factor
        (tmp_path / "run" / "results.json").write_text(json.dumps(changed))
        code, told = ends("evaluate", tmp_path / "run")
        assert code == 1
        assert [line.split()[0] for line in told.splitlines() if line.endswith("differs")] == [name]


def test_evaluate_says_what_is_no_run_or_not_its_data(trained: Path, tiny: Path, tmp_path: Path, ends: Ends) -> None:
    """An empty folder is no completed run, nor the run's data, and nor is a test set that differs in one image; exit
    code 2, as 1 is for figures that differ.
    """
    code, told = ends("evaluate", tmp_path)
    assert (code, "holds no run; name its directory, as outputs/runs/NAME" in told) == (2, True)
    (tmp_path / "cut").mkdir()
    remedy = f"not ended; complete it with train.py resume={tmp_path / 'cut'}"
    for status, words in ("interrupted", remedy), ("diverged", "diverged; name a completed run"):
        (tmp_path / "cut" / "results.json").write_text(json.dumps(results(trained) | {"status": status}))
        code, told = ends("evaluate", tmp_path / "cut")
        assert (code, told.endswith(f"Error: {tmp_path / 'cut'}: its run has {words}\n")) == (2, True)
    code, told = ends("evaluate", trained, "--root", tmp_path)
    assert (code, "has no MNIST file, and with data.verify=false nothing is downloaded" in told) == (2, True)
    shutil.copytree(tiny, tmp_path / "other")
    images, _ = digits(100, 1)
    images[0] = 0
    write_idx(tmp_path / "other" / "t10k-images-idx3-ubyte.gz", images)
    code, told = ends("evaluate", trained, "--root", tmp_path / "other")
    assert code == 2
    assert "holds other data than this run started with; name the folder of the run's data with --root" in told
