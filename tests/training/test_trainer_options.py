"""Lightning's own features: options of the Trainer and callbacks, passed on or refused."""

import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from digitlab import app
from digitlab.config import schema, validation
from digitlab.config.trainer_options import NOT_WITH_BLOCKS, OWNED, PASSED
from digitlab.models import checkpoints
from digitlab.runs.provenance import make_run_id
from digitlab.runs.restore import restore
from digitlab.training import stages

from ..conftest import compose, error_message, load_results, run_in_process
from .test_experiment import interrupt, weights

SMALL = ["model=autoencoder", "model.channels=[4]", "trainer.precision=32-true"]


def test_every_option_of_the_trainer_is_passed_or_has_a_reason() -> None:
    """The lists together are the arguments of Lightning's Trainer, each in one of them."""
    known = {each.name for each in fields(schema.Trainer)}
    signature = {*inspect.signature(Trainer).parameters} - {"callbacks"}
    assert known | PASSED.keys() | OWNED.keys() == signature
    assert len(known) + len(PASSED) + len(OWNED) == len(signature)
    assert set(NOT_WITH_BLOCKS) <= PASSED.keys()


@pytest.mark.parametrize(
    ("words", "epochs", "steps"),
    [
        ("+trainer.max_steps=3", 1, 3),
        ("+trainer.max_steps=30", 2, 30),
        ("+trainer.fast_dev_run=2", 1, 2),
        ("+trainer.limit_train_batches=5", 3, 15),
        ("+trainer.accumulate_grad_batches=2", 3, 39),
        ("+trainer.limit_val_batches=1 +trainer.deterministic=true", 3, 75),
    ],
)
def test_options_decide_the_steps_and_the_schedule_follows(
    words: str, epochs: int, steps: int, overrides: list[str], tmp_path: Path
) -> None:
    """results.json counts optimizer steps, and a linear decay reaches 0 with the last of them.

    The run is completed: its objective is that of the held-out images.
    """
    command = [*SMALL, *overrides, *words.split(), "scheduler=linear"]
    outcome = run_in_process(command, tmp_path)
    assert (outcome["epochs"], outcome["steps"]) == (epochs, steps)
    last = checkpoints.read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    (optimizer,) = last["optimizer_states"]
    assert optimizer["param_groups"][0]["lr"] == pytest.approx(0, abs=1e-9)
    assert outcome["objective"]["name"] == "val/loss"
    assert outcome["objective"]["value"] == outcome["metrics"]["val/loss"]
    assert not torch.are_deterministic_algorithms_enabled()
    (cfg,) = compose(*command)
    assert validation.to_plain(restore(str(tmp_path))) == validation.to_plain(cfg)


def test_gradients_are_clipped(overrides: list[str], tmp_path: Path) -> None:
    """With a tiny limit and SGD the weights move by at most the rate times it a step."""
    command = [*SMALL, *overrides, "optimizer.lr=1", "trainer.max_epochs=1"]
    clipped = [*command, "+trainer.gradient_clip_val=1e-6"]
    run_in_process([*clipped, "+trainer.max_steps=1"], tmp_path / "one")
    run_in_process([*clipped, "+trainer.max_steps=25"], tmp_path / "many")
    one, many = (weights(tmp_path / name) for name in ("one", "many"))
    moved = torch.cat([(many[key] - one[key]).flatten() for key in one])
    assert 0 < moved.norm() <= 24 * 1e-6 * 1.01


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "+trainer.gradient_clip_vall=1",
            "trainer.gradient_clip_vall=1: Lightning's Trainer has no such option; did you mean"
            " trainer.gradient_clip_val?",
        ),
        ("trainer.max_epoch=3", "did you mean trainer.max_epochs?"),
        ("+trainer.max_steps=many", "trainer.max_steps=many: must be int"),
        ("+trainer.limit_train_batches=7.5", "invalid value 7.5 for limit_train_batches"),
        ("+trainer.gradient_clip_algorithm=up", "`gradient_clip_algorithm` up is invalid"),
        ("+trainer.overfit_batches=3", "is not passed on: data.train_size=N trains on N images"),
        ("+trainer.logger=true", "is not passed on: logger=csv, wandb or mlflow adds one"),
        ("+trainer.strategy=ddp", "is not passed on: trainer.devices=2 trains with DDP"),
        (
            "model=kmeans +trainer.accumulate_grad_batches=2",
            "the model steps by hand through blocks of minibatches, and Lightning counts blocks",
        ),
        ("callbacks=early", "callbacks=early: must be one of early_stopping, lr_monitor"),
        ("+trainer.callbacks=early_stopping", "must be callbacks by name (callbacks=...)"),
        ("+trainer.callbacks.a.patience=1", "must have a _target_, as lightning.pytorch.callbacks"),
        (
            "+trainer.callbacks.a._target_=os.system",
            "must be a class of lightning.pytorch.callbacks, or of a file of your own",
        ),
        (
            "+trainer.callbacks.a._target_=lightning.pytorch.callbacks.ModelCheckpoint",
            "saves checkpoints, which a run does itself; name another class",
        ),
        (
            "callbacks=early_stopping +trainer.callbacks.early_stopping.patienc=1",
            "EarlyStopping has no such argument; did you mean"
            " trainer.callbacks.early_stopping.patience?",
        ),
        (
            "callbacks=early_stopping trainer.callbacks.early_stopping.patience=x",
            "trainer.callbacks.early_stopping.patience=x: must be int",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_job(words: str, message: str) -> None:
    """One line for a misspelt option, a wrong value, and what a run or k-means decides itself."""
    assert message in error_message(*words.split())


def test_kmeans_takes_the_options_that_count_nothing(overrides: list[str], tmp_path: Path) -> None:
    """detect_anomaly and min_epochs work with blocks, and change no bit of the result."""
    command = ["model=kmeans", "init=sample", *overrides]
    run_in_process(command, tmp_path / "plain")
    options = ["+trainer.detect_anomaly=true", "+trainer.min_epochs=1"]
    run_in_process([*command, *options], tmp_path / "options")
    plain, other = (weights(tmp_path / name) for name in ("plain", "options"))
    assert torch.equal(plain["centers"], other["centers"])


@pytest.mark.parametrize("model", ["model=kmeans", "model=autoencoder"])
def test_a_run_that_was_stopped_early_does_not_train_on(
    model: str, overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EarlyStopping stops by the objective; interrupted after it and resumed, the run only ends.

    The rate is too small to improve by the required amount.
    """
    stopping = ["callbacks=early_stopping", "trainer.callbacks.early_stopping.patience=2"]
    stopping += ["trainer.callbacks.early_stopping.min_delta=0.01", "trainer.max_epochs=20"]
    command = [model, *overrides, *stopping, "optimizer.lr=1e-5"]
    with monkeypatch.context() as patch:
        patch.setattr(stages, "evaluate_and_save", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_in_process(command, tmp_path)
    assert load_results(tmp_path)["epochs"] == 3
    before = weights(tmp_path)
    outcome = run_in_process(command, tmp_path)
    assert (outcome["status"], outcome["epochs"]) == ("completed", 3)
    assert all(torch.equal(weights(tmp_path)[name], before[name]) for name in before)
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 4


def test_options_and_callbacks_are_part_of_the_run_s_id(tmp_path: Path) -> None:
    """They change results; without them the configuration holds no trace of them."""
    plain: dict[str, Any] = plain_config()
    assert set(plain["trainer"]) == {"max_epochs", "accelerator", "devices", "precision"}
    ids = {make_run_id(plain)}
    for words in (["+trainer.max_steps=3"], ["callbacks=early_stopping"]):
        ids.add(make_run_id(plain_config(*words)))
    assert len(ids) == 3


def plain_config(*words: str) -> dict[str, Any]:
    """The plain values of a command."""
    return validation.to_plain(app.compose_config(words))
