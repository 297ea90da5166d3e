"""The autoencoder: its shapes and warnings, a complete run, and the scripts that use it."""

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

from digitlab import RunFailed
from digitlab.config.layers import edge_lengths
from digitlab.data.images import Images
from digitlab.models import autoencoder, digit_classifier
from digitlab.models.autoencoder import Autoencoder
from digitlab.models.convolutional import Residual, Stages

from ..conftest import ROOT, load_results, make_digits, run_in_process, write_idx

AUTOENCODER = [
    "model=autoencoder",
    "model.channels=[4,8]",
    "model.latent_dim=4",
    "trainer.precision=32-true",
]


# The constructor's values of a small model.
OPTIONS: dict[str, Any] = {
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


def make_model(**changes: Any) -> Autoencoder:
    return Autoencoder(**OPTIONS | changes)


def test_edge_lengths_are_halved_and_rounded_up() -> None:
    """28 pixels become 14, 7, 4, 2 and 1."""
    assert edge_lengths(28, [3] * 5) == [28, 14, 7, 4, 2, 1]


@pytest.mark.parametrize(
    "channels", [[1], [4, 8], [3, 5, 7], [16, 8, 4, 2], [2, 2, 2, 2, 2], [16, 32, 16]]
)
@pytest.mark.parametrize(
    ("hidden", "norm", "activation"),
    [(None, "none", "relu"), (12, "group", "silu"), (None, "group", "hardswish")],
)
def test_the_decoder_inverts_the_encoder_stage_by_stage(
    channels: list[int], hidden: int | None, norm: str, activation: str
) -> None:
    """With any valid channels, each decoder stage restores the input shape of its encoder stage."""
    model = make_model(
        channels=channels, hidden=hidden, norm=norm, activation=activation, latent_dim=5
    )
    rows = model.shape_table()
    assert rows[0].outer == (1, 28, 28)
    assert rows[-1].inner == (5,)
    assert all(row.inner == next_row.outer for row, next_row in pairwise(rows))
    assert [row.inner[0] for row in rows[: len(channels)]] == channels
    assert len(rows) == len(channels) + 2 + (hidden is not None)


@pytest.mark.parametrize(
    ("kernels", "edges"),
    [([4, 4, 3], [14, 7, 4]), ([4, 4, 4, 4], [14, 7, 3, 1]), ([2, 5], [14, 7])],
)
def test_even_kernels_round_down_and_blocks_keep_the_shape(
    kernels: list[int], edges: list[int]
) -> None:
    """The decoder inverts such an encoder as well, residual blocks included."""
    layers = [{"channels": 4, "kernel": kernel, "blocks": i} for i, kernel in enumerate(kernels)]
    model = make_model(channels=layers, hidden={"width": 6, "blocks": 2}, norm="group")
    rows = model.shape_table()
    assert [row.inner for row in rows[: len(edges)]] == [(4, edge, edge) for edge in edges]
    assert rows[0].outer == (1, 28, 28)


def test_a_residual_block_adds_to_its_input() -> None:
    """x + 0.5x is 1.5x."""
    half = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(half.weight, 0.5)
    assert Residual(half)(torch.tensor([2.0])).item() == 3


def test_a_convolution_has_a_bias_unless_normalisation_adds_one() -> None:
    """With [4, 1, 8] and group norm, 4 and 8 channels have no bias; 1 channel and the image do."""

    def has_biases(stages: Stages) -> list[bool]:
        convolutions = [stage for name, stage in stages.named_children() if "conv" in name]
        return [stage.get_submodule("0").bias is not None for stage in convolutions]

    model = make_model(channels=[4, 1, 8], norm="group")
    assert has_biases(model.encoder) == [False, True, False]
    assert has_biases(model.decoder) == [True, False, True]


def test_the_memory_format_does_not_change_the_reconstruction() -> None:
    """Channels-last and contiguous weights reconstruct the same images."""
    torch.manual_seed(0)
    first = make_model(channels_last=True).eval()
    second = make_model(channels_last=False).eval()
    second.load_state_dict(first.state_dict())
    images = torch.randint(0, 256, (7, 1, 28, 28), dtype=torch.uint8)
    torch.testing.assert_close(first.reconstruct(images), second.reconstruct(images))


def test_mean_loss_is_over_pixels_and_images() -> None:
    """With weights of zero every pixel is sigmoid(0) = 1/2, which gives 1/4 on black images."""
    model = make_model()
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    black = Images(torch.zeros(2100, 1, 28, 28, dtype=torch.uint8), torch.zeros(2100).long())
    assert model.mean_loss(black) == pytest.approx(0.25)


@pytest.mark.slow
def test_as_many_digits_are_generated_as_the_floor_is_computed_from(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """500 training images give a floor at 500, so 500 digits are scored instead of 10,000.

    The distance decreases with the number of images.
    """
    monkeypatch.setattr(autoencoder, "SCORED_SAMPLES", 10_000)
    sizes, score_samples = [], digit_classifier.score_samples

    def record_sizes(
        classifier: Any, samples: torch.Tensor, train: Images, test: Images
    ) -> dict[str, float]:
        sizes.append((len(samples), len(train.labels)))
        return score_samples(classifier, samples, train, test)

    monkeypatch.setattr(autoencoder, "score_samples", record_sizes)
    run_in_process([*AUTOENCODER, *overrides, "trainer.max_epochs=1"], tmp_path)
    assert sizes == [(500, 500)]


@pytest.mark.slow
def test_a_run_writes_all_its_files_and_warns_of_a_poor_model(
    overrides: list[str], tmp_path: Path
) -> None:
    """An untrained decoder is no better than the mean image, which gives a warning."""
    # The run writes the projector's files next to it.
    other_file = tmp_path / "00000" / "mine.png"
    other_file.parent.mkdir()
    other_file.touch()
    command = [*AUTOENCODER, *overrides, "optimizer.lr=1e-6", "trainer.max_epochs=2"]
    outcome = run_in_process(command, tmp_path)
    assert other_file.exists()
    assert outcome["status"] == "completed"
    assert set(outcome["baselines"]) == {"mean_image", "pca"}
    start = "Not better than predicting the mean image"
    assert any(warning.startswith(start) for warning in outcome["warnings"])
    walks = ("traversals", "interpolations")
    for name in ("shapes", "loss", "reconstructions", "generated", "latents", "errors", *walks):
        assert (tmp_path / "figures" / f"{name}.png").stat().st_size > 0
    scores = ("fid", "fid_floor", "recognized", "recognized_real", "classes", "rarest", "commonest")
    for name in scores:
        assert f"generated/{name}" in outcome["metrics"]


def test_each_failure_of_an_autoencoder_gives_a_warning_with_its_remedy() -> None:
    """White fog, a loss above PCA's and illegible digits have a warning; a good model has none."""
    baselines = {"mean_image": 0.0675, "pca": 0.027}
    adamw, cycle = {"name": "adamw", "lr": 0.1}, {"name": "one_cycle"}

    def get_warnings(
        loss: float, recognized: float, real: float = 0.98, **changes: Any
    ) -> list[str]:
        scores = {"generated/recognized": recognized, "generated/recognized_real": real}
        return make_model(**changes).warnings({"test/loss": loss, **scores}, baselines)

    (fog,) = get_warnings(0.0676, 0.0)
    assert "at best it outputs the mean image" in fog
    assert "experiment=autoencoder_best" in fog
    for changes, advice in (
        ({}, ", or try optimizer=muon scheduler=one_cycle_linear (experiment=autoencoder_best)"),
        ({"optimizer": adamw}, ", or try scheduler=one_cycle_linear (experiment=autoencoder_best)"),
        ({"scheduler": cycle}, ", or try optimizer=muon (experiment=autoencoder_best)"),
        ({"optimizer": adamw, "scheduler": cycle}, ""),
        # The choices of autoencoder_best itself.
        ({"optimizer": {"name": "muon"}, "scheduler": {"name": "one_cycle_linear"}}, ""),
    ):
        # White fog, and a loss above PCA's.
        for loss in (0.0676, 0.03):
            assert get_warnings(loss, 0.9, **changes)[0].endswith(f" Train longer{advice}.")
    (worse,) = get_warnings(0.03, 0.9)
    slightly_better = worse.replace("0.0300", "0.0269")
    assert get_warnings(0.0269, 0.9) == [slightly_better], "within 1 % is no better"
    assert worse.startswith(
        "No better than PCA with the same 3 numbers an image: test loss 0.0300, PCA 0.0270. Train"
    )
    (illegible,) = get_warnings(0.005, 0.3)
    assert illegible.startswith(
        "Only 30% of the generated digits are recognised (98% of real ones)"
    )
    assert illegible.endswith("draw z from where the encoder puts the data, prior=mixture.")
    (illegible,) = get_warnings(0.005, 0.3, prior={"name": "gaussian"})
    assert illegible.endswith("follow the shape of the data's latents, prior=mixture.")
    mixture = {"name": "mixture", "n_components": 2, "temperature": 1.0}
    (coarse,) = get_warnings(0.005, 0.3, prior=mixture)
    assert "model.prior.n_components too few" in coarse
    assert get_warnings(0.005, 0.9) == []
    (unreliable,) = get_warnings(0.005, 0.0, 0.49)
    assert unreliable.startswith(
        "The digit classifier recognises only 49% of real digits: the generated/... metrics mean"
        " little"
    )


@pytest.fixture(scope="module")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a short run with a mixture."""
    run = tmp_path_factory.mktemp("trained")
    command = [
        *AUTOENCODER,
        f"data.root={tiny}",
        "data.verify=false",
        "data.val_size=100",
        "data.batch_size=20",
        "trainer.accelerator=cpu",
        "trainer.max_epochs=8",
        "optimizer=adamw",
        "scheduler=one_cycle",
        "prior=mixture",
        "model.prior.n_components=10",
    ]
    run_in_process(command, run)
    return run


def test_training_beats_the_mean_image(trained: Path) -> None:
    """Eight epochs learn squares in nine places: the loss is far lower, without that warning."""
    outcome = load_results(trained)
    assert outcome["metrics"]["test/loss"] < 0.5 * outcome["baselines"]["mean_image"]
    assert not any("mean image" in warning for warning in outcome["warnings"])


def test_tensorboard_has_pictures_projector_and_one_chart(trained: Path) -> None:
    """Each epoch has reconstructions, generated digits and latents; one chart has all losses."""
    events = EventAccumulator(str(trained), size_guidance={"images": 0})
    events.Reload()
    for name in ("reconstructions", "generated", "latents"):
        assert {event.step for event in events.Images(f"epochs/{name}")} == set(range(9))
        assert events.Images(name)
    assert "custom_scalars__config__" in events.Tags()["tensors"]
    tensor = events.Tensors("custom_scalars__config__")[0].tensor_proto
    layout = Layout.FromString(tensor.string_val[0])
    patterns = layout.category[0].chart[0].multiline.tag
    for name in ("train/loss", "val/loss", "baseline/mean_image", "baseline/pca"):
        assert any(re.fullmatch(pattern, name) for pattern in patterns)
        assert name in events.Tags()["scalars"]
    assert list(trained.glob("**/sprite.png"))
    assert (trained / "projector_config.pbtxt").read_text().count("embeddings") == 1


RunScript = Callable[..., tuple[Any, str]]


@pytest.fixture
def run_script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunScript:
    """A function that runs a script in this process; returns its exit code and its output."""

    def run(name: str, *words: str | Path) -> tuple[Any, str]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        with pytest.raises(SystemExit) as exit_info:
            importlib.import_module(name).main()
        printed = capsys.readouterr()
        code = exit_info.value.code
        return code, f"{code}{printed.err}{printed.out}"

    return run


@pytest.mark.slow
# torch's tracer reads the gradient of a tensor that is no leaf.
@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_compiling_does_not_change_the_metrics(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With model.compile=true, torch.compile gets encoder and decoder; the metrics agree."""
    compiled, torch_compile = [], torch.compile

    def trace(function: Any, *args: Any, **options: Any) -> Any:
        compiled.append(function.__self__)
        # The default backend compiles C++ code for half a minute.
        return torch_compile(function, backend="eager")

    monkeypatch.setattr(torch, "compile", trace)
    command = [*AUTOENCODER, *overrides, "trainer.max_epochs=1"]
    plain = run_in_process(command, tmp_path / "plain")
    assert compiled == []
    outcome = run_in_process([*command, "model.compile=true"], tmp_path / "compiled")
    assert [type(part).__name__ for part in compiled] == ["Stages", "Stages"]
    assert outcome["metrics"] == pytest.approx(plain["metrics"], rel=1e-3)


@pytest.mark.slow
def test_generate_needs_only_the_checkpoint(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory with only best.ckpt gives a PNG, and thousands of digits as .npz.

    The same seed gives the same digits.
    """
    (tmp_path / "checkpoints").mkdir()
    checkpoint = (trained / "checkpoints" / "best.ckpt").read_bytes()
    (tmp_path / "checkpoints" / "best.ckpt").write_bytes(checkpoint)
    script = [sys.executable, "-X", "importtime", str(ROOT / "scripts" / "generate.py")]
    missing = tmp_path / "no"
    failed = subprocess.run([*script, str(missing)], capture_output=True, text=True, check=False)
    assert failed.stderr.splitlines()[-1] == (
        f"Error: {missing}: holds no checkpoint;"
        " name the directory of a completed run, as outputs/runs/NAME"
    )
    assert re.search(r"\| +pathlib\n", failed.stderr), "the imports are listed"
    assert not re.search(r"\| +torch\n", failed.stderr), "none of them takes seconds"
    monkeypatch.setattr(sys, "argv", ["generate.py", str(tmp_path)])
    importlib.import_module("generate").main()
    with Image.open(tmp_path / "generated_mixture_n20_seed0.png") as picture:
        size = (3 * (10 * 29 + 1), 3 * (2 * 29 + 1))
        assert (picture.size, picture.mode) == (size, "L"), "two rows of ten, enlarged"
    for name, prior in (("a", "mixture"), ("b", "mixture"), ("c", "standard_normal")):
        out = tmp_path / f"{name}.npz"
        options = ["--n", "3000", "--prior", prior, "--seed", "3", "--out", str(out)]
        monkeypatch.setattr(sys, "argv", ["generate.py", str(tmp_path), *options])
        importlib.import_module("generate").main()
    a, b, c = (np.load(tmp_path / f"{name}.npz")["images"] for name in "abc")
    assert (a.shape, a.dtype) == ((3000, 28, 28), np.uint8)
    assert (a == b).all()
    assert (a != c).any()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--n", "0"], "--n must be from 1 to 100000"),
        (["--out", "x.gif"], "must end in .png or .npz"),
        (["--prior", "flow"], "invalid choice"),
        (
            ["--out", "/dev/null/x.png"],
            "Error: /dev/null: File exists; choose another place, as with",
        ),
    ],
)
def test_generate_reports_wrong_options(
    words: list[str], message: str, trained: Path, run_script: RunScript
) -> None:
    """Each mistake gives a message and exit code 2."""
    code, output = run_script("generate", trained, *words)
    assert code == 2
    assert message in output


def test_a_prior_that_is_not_fitted_is_refused() -> None:
    """A run without a mixture names its priors; an interrupted run has to be completed first."""
    with pytest.raises(ValueError, match=r"not fitted yet: complete the run"):
        make_model().generate(5, 0, "gaussian")
    message = r"prior=mixture: this run has standard_normal, gaussian; train one with"
    with pytest.raises(ValueError, match=message):
        make_model().generate(5, 0, "mixture")


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -1.0])
def test_a_prior_with_invalid_weights_is_refused(weight: float) -> None:
    """A foreign checkpoint may have any weights; the error is not one of torch's."""
    model = make_model(prior={"name": "gaussian"})
    model.priors["gaussian"].weights.fill_(weight)  # type: ignore[operator]
    with pytest.raises(ValueError, match="not fitted yet"):
        model.generate(5, 0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["prior=mixture", "model.prior.n_components=501"],
            "model.prior.n_components=501: needs 501 training images",
        ),
        (
            ["prior=gaussian", "data.train_size=101"],
            "data.train_size: a density of the latents needs 2 training images",
        ),
    ],
)
def test_too_few_images_for_the_prior_are_an_error_before_training(
    words: list[str], message: str, tiny: Path, tmp_path: Path
) -> None:
    """500 images cannot give 501 components; no epoch is trained."""
    data = [f"data.root={tiny}", "data.verify=false", "data.val_size=100", "data.batch_size=20"]
    with pytest.raises(RunFailed, match=message):
        run_in_process([*AUTOENCODER, *data, *words], tmp_path)
    assert not (tmp_path / "metrics.csv").exists()


def test_evaluate_agrees_with_results(trained: Path, tmp_path: Path, run_script: RunScript) -> None:
    """The metrics of best.ckpt are those of results.json; a changed one gives exit code 1."""
    code, output = run_script("evaluate", trained)
    assert code == 0
    # A heading, the metrics, and the conclusion.
    assert len(output.splitlines()) == 2 + len(load_results(trained)["metrics"])
    shutil.copytree(trained, tmp_path / "run")
    for name, factor in (("test/loss", 1.01), ("train/loss", None)):
        changed = load_results(trained)
        changed["metrics"][name] = factor and changed["metrics"][name] * factor
        (tmp_path / "run" / "results.json").write_text(json.dumps(changed))
        code, output = run_script("evaluate", tmp_path / "run")
        assert code == 1
        lines = [line for line in output.splitlines() if line.endswith("differs")]
        assert [line.split()[0] for line in lines] == [name]


def test_evaluate_compares_clusters_of_pixels_and_of_latents(
    trained: Path, overrides: list[str], tmp_path: Path, run_script: RunScript
) -> None:
    """It prints a row for each; the run of a k-means, which has no latents, is refused."""
    code, output = run_script("evaluate", trained, "--clusters")
    assert code == 0
    rows = [line.split() for line in output.splitlines()[-3:-1]]
    assert [row[:2] for row in rows] == [["pixels", "784"], ["latents", "4"]]
    run_in_process(["model=kmeans", "init=digit", *overrides], tmp_path)
    code, output = run_script("evaluate", tmp_path, "--clusters")
    assert code == 2
    assert "--clusters: this model has no latents; name a run of an autoencoder" in output


def test_evaluate_reports_what_is_not_a_completed_run(
    trained: Path, tmp_path: Path, run_script: RunScript
) -> None:
    """An empty directory and unfinished runs give exit code 2; 1 is for metrics that differ."""
    code, output = run_script("evaluate", tmp_path)
    assert (code, "holds no run; name its directory, as outputs/runs/NAME" in output) == (2, True)
    run = tmp_path / "cut"
    run.mkdir()
    remedy = f"not completed; complete it with train.py resume={run}"
    for status, words in ("interrupted", remedy), ("diverged", "diverged; name a completed run"):
        (run / "results.json").write_text(json.dumps(load_results(trained) | {"status": status}))
        code, output = run_script("evaluate", run)
        assert (code, output.endswith(f"Error: {run}: the run has {words}\n")) == (2, True)


def test_evaluate_reports_other_data(
    trained: Path, tiny: Path, tmp_path: Path, run_script: RunScript
) -> None:
    """No data, and a test set that differs in one image, give exit code 2."""
    code, output = run_script("evaluate", trained, "--root", tmp_path)
    message = "has no MNIST file, and with data.verify=false nothing is downloaded"
    assert (code, message in output) == (2, True)
    shutil.copytree(tiny, tmp_path / "other")
    images, _ = make_digits(100, 1)
    images[0] = 0
    write_idx(tmp_path / "other" / "t10k-images-idx3-ubyte.gz", images)
    code, output = run_script("evaluate", trained, "--root", tmp_path / "other")
    assert code == 2
    assert (
        "holds other data than this run started with; name the folder of the run's data with --root"
        in output
    )
