"""Signals end a run at a safe point, whatever the library does into which they fall."""

import importlib
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from digitlab.runs.results import run_state
from digitlab.runtime import signals

from ..conftest import results, run_here
from ..training.test_experiment import KMEANS, assert_same

AUTOENCODER = [
    *("model=autoencoder", "model.channels=[4,8]", "model.latent_dim=4"),
    *("prior=mixture", "model.prior.n_components=3", "trainer.precision=32-true"),
]


def send(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


def ended_by(block: Callable[[], Any]) -> BaseException | None:
    """What a deferring block ends by; checks that the answer of a signal is told from other errors."""
    state, end = signals.Deferred(), None
    try:
        with signals.deferred() as state:
            block()
    except BaseException as error:
        end = error
    assert state.answer is (None if type(end) is ValueError else end)
    return end


def test_a_signal_waits_for_a_safe_point() -> None:
    """Nothing is raised where it arrives; the next safe point raises, and handlers are as before."""
    reached = []

    def block() -> None:
        send()
        reached.append("after the signal")
        signals.safe_point()
        reached.append("after the safe point")

    assert isinstance(ended_by(block), KeyboardInterrupt)
    assert reached == ["after the signal"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signals.safe_point()  # outside a block it does nothing


def test_the_end_of_the_block_is_a_safe_point() -> None:
    """A signal in the last stage is not lost."""
    assert isinstance(ended_by(lambda: send(signal.SIGINT)), KeyboardInterrupt)


def test_an_error_after_a_signal_counts_as_the_interruption() -> None:
    """A library that turned the signal into an error of its own, or failed for another reason."""

    def block() -> None:
        send()
        raise ValueError("Invalid bounding box")

    assert isinstance(ended_by(block), KeyboardInterrupt)


def test_without_a_signal_an_error_stays_itself() -> None:
    """It is no interruption."""

    def block() -> None:
        raise ValueError("mine")

    assert str(ended_by(block)) == "mine"


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_block_at_once(second: int) -> None:
    """Whoever asks twice does not want to wait for a safe point."""

    def block() -> None:
        send()
        send(second)
        time.sleep(20)

    began = time.monotonic()
    assert isinstance(ended_by(block), KeyboardInterrupt)
    assert time.monotonic() - began < 10


def test_a_second_signal_that_is_swallowed_ends_the_block_at_the_next_safe_point() -> None:
    """As where it falls into a destructor, whose exceptions Python drops."""

    def block() -> None:
        send()
        with suppress(KeyboardInterrupt):
            send()
        signals.safe_point()
        pytest.fail("not reached")

    assert isinstance(ended_by(block), KeyboardInterrupt)


def test_a_scheduler_s_handler_answers_at_the_safe_point() -> None:
    """It sees what was saved until then, and what it raises, to say that it requeued the job, comes out."""
    heard = []

    def requeue(number: int, frame: Any) -> None:
        heard.append(number)
        sys.exit(144)

    def block() -> None:
        send(signal.SIGUSR2)
        assert heard == []
        raise RuntimeError("of a library")

    signal.signal(signal.SIGUSR2, requeue)
    end = ended_by(block)
    assert isinstance(end, SystemExit)
    assert (heard, end.code) == ([signal.SIGUSR2], 144)


def test_a_handler_that_returns_stops_nothing() -> None:
    """As submitit's of SIGTERM, after which Slurm sends the signal that counts."""
    heard = []
    signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    signal.signal(signal.SIGUSR2, lambda number, _: heard.append(number))

    def block() -> None:
        send(signal.SIGTERM)
        send(signal.SIGUSR2)
        assert heard == []

    assert ended_by(block) is None
    assert heard == [signal.SIGTERM, signal.SIGUSR2]


def test_an_ignored_signal_stays_ignored() -> None:
    """As Ctrl-C of what a shell runs in the background."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert ended_by(lambda: send(signal.SIGINT)) is None


@pytest.mark.parametrize("early", [False, True])
def test_a_wait_without_safe_points_is_ended_at_once(early: bool) -> None:
    """As for the processes of DDP; what was noted before ends it as it begins."""

    def block() -> None:
        if early:
            send()
        with signals.answered_at_once():
            assert not early, "it began"
            send()
            pytest.fail("it went on")

    assert isinstance(ended_by(block), KeyboardInterrupt)


def as_a_library(original: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with a signal inside that it turns into an error of its own."""

    def call(*args: Any, **options: Any) -> Any:
        try:
            send()
            time.sleep(0.01)
        except BaseException as error:
            raise ValueError("Invalid bounding box") from error
        return original(*args, **options)

    return call


# Where the signal falls: figures, checkpoints, evaluation, the fit of the mixture, its classifier.
STAGES = [
    *((KMEANS, place) for place in ("digitlab.figures.loss", "digitlab.figures.centers")),
    (KMEANS, "digitlab.models.checkpoints.write_checkpoint"),
    (KMEANS, "digitlab.training.artifacts.write_csv"),
    (KMEANS, "digitlab.models.kmeans.MiniBatchKMeans.evaluate"),
    (KMEANS, "digitlab.models.kmeans.nearest"),
    (KMEANS, "digitlab.models.baselines.mean_image"),
    (AUTOENCODER, "digitlab.figures.latents"),
    (AUTOENCODER, "digitlab.models.prior.Prior.fit"),
    (AUTOENCODER, "digitlab.models.autoencoder.score_samples"),
    (AUTOENCODER, "digitlab.training.artifacts.SummaryWriter"),
]


@pytest.mark.parametrize(("command", "place"), STAGES)
def test_a_signal_that_falls_into_a_library_interrupts_the_run(
    command: list[str],
    place: str,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The run is interrupted, not failed, and ends with the bits of an undisturbed one when run again."""
    command = [*command, *words, "trainer.max_epochs=2"]
    name, _, attribute = place.rpartition(".")
    with monkeypatch.context() as patch:
        target = _resolve(name)
        patch.setattr(target, attribute, as_a_library(getattr(target, attribute)))
        with pytest.raises(KeyboardInterrupt):
            run_here(command, tmp_path / "cut")
    assert results(tmp_path / "cut")["status"] == "interrupted"
    assert results(tmp_path / "cut")["error"] is None
    run_here(command, tmp_path / "cut")
    run_here(command, tmp_path / "whole")
    assert_same(tmp_path / "whole", tmp_path / "cut")
    assert run_state(tmp_path / "cut") == "completed"


def _resolve(name: str) -> Any:
    """A module, or a class in one."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        module, _, attribute = name.rpartition(".")
        return getattr(importlib.import_module(module), attribute)
