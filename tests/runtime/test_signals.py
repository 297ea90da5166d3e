"""Signals end a run at a safe point, even if they arrive inside a library."""

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

from ..conftest import load_results, run_in_process, small_run
from ..training.test_experiment import KMEANS, assert_same

AUTOENCODER = [
    *("model=autoencoder", "model.channels=[4,8]", "model.latent_dim=4"),
    *("prior=mixture", "model.prior.n_components=3", "trainer.precision=32-true"),
]


def send(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


def ended_by(block: Callable[[], Any]) -> BaseException | None:
    """Return the exception that ends a deferred block.

    Also checks that the state holds the exceptions of handlers and no others.
    """
    state, end = signals.Deferred(), None
    try:
        with signals.deferred() as state:
            block()
    except BaseException as error:
        end = error
    assert state.exception is (None if type(end) is ValueError else end)
    return end


def test_a_signal_waits_for_a_safe_point() -> None:
    """Its arrival raises nothing, the next safe point does, and the old handlers are restored."""
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
    # Outside a block it does nothing.
    signals.safe_point()


def test_the_end_of_the_block_is_a_safe_point() -> None:
    """A signal in the last stage is not lost."""
    assert isinstance(ended_by(lambda: send(signal.SIGINT)), KeyboardInterrupt)


def test_an_error_after_a_signal_counts_as_the_interruption() -> None:
    """As when a library turns the signal into an error of its own, or fails for another reason."""

    def block() -> None:
        send()
        raise ValueError("Invalid bounding box")

    assert isinstance(ended_by(block), KeyboardInterrupt)


def test_without_a_signal_an_error_is_unchanged() -> None:
    """It does not count as an interruption."""

    def block() -> None:
        raise ValueError("unrelated")

    assert str(ended_by(block)) == "unrelated"


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_block_at_once(second: int) -> None:
    """A user who interrupts twice does not want to wait for a safe point."""

    def block() -> None:
        send()
        send(second)
        time.sleep(20)

    start = time.monotonic()
    assert isinstance(ended_by(block), KeyboardInterrupt)
    assert time.monotonic() - start < 10


def test_a_swallowed_second_signal_ends_the_block_at_the_next_safe_point() -> None:
    """As when it arrives in a destructor, whose exceptions Python ignores."""

    def block() -> None:
        send()
        with suppress(KeyboardInterrupt):
            send()
        signals.safe_point()
        pytest.fail("not reached")

    assert isinstance(ended_by(block), KeyboardInterrupt)


def test_the_handler_of_a_scheduler_runs_at_the_safe_point() -> None:
    """It sees everything saved until then, and its exception, for a requeued job, is raised."""
    received = []

    def requeue(number: int, frame: Any) -> None:
        received.append(number)
        sys.exit(144)

    def block() -> None:
        send(signal.SIGUSR2)
        assert received == []
        raise RuntimeError("of a library")

    signal.signal(signal.SIGUSR2, requeue)
    end = ended_by(block)
    assert isinstance(end, SystemExit)
    assert (received, end.code) == ([signal.SIGUSR2], 144)


def test_a_handler_that_returns_does_not_end_the_block() -> None:
    """As submitit's handler of SIGTERM, which Slurm follows with another signal."""
    received = []
    signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    signal.signal(signal.SIGUSR2, lambda number, _: received.append(number))

    def block() -> None:
        send(signal.SIGTERM)
        send(signal.SIGUSR2)
        assert received == []

    assert ended_by(block) is None
    assert received == [signal.SIGTERM, signal.SIGUSR2]


def test_an_ignored_signal_stays_ignored() -> None:
    """As Ctrl-C is in a process that a shell runs in the background."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert ended_by(lambda: send(signal.SIGINT)) is None


@pytest.mark.parametrize("early", [False, True])
def test_a_wait_without_safe_points_is_ended_at_once(early: bool) -> None:
    """As the wait for the processes of DDP; an earlier signal ends it before it starts."""

    def block() -> None:
        if early:
            send()
        with signals.immediate():
            assert not early, "the wait started"
            send()
            pytest.fail("the wait continued")

    assert isinstance(ended_by(block), KeyboardInterrupt)


def interrupted_library(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function so that it receives a signal and turns it into an error of its own."""

    def call(*args: Any, **options: Any) -> Any:
        try:
            send()
            time.sleep(0.01)
        except BaseException as error:
            raise ValueError("Invalid bounding box") from error
        return original(*args, **options)

    return call


# The function that the signal interrupts: figures, checkpoints, evaluation, mixture, classifier.
STAGES = [
    (KMEANS, "digitlab.figures.training_curve"),
    (KMEANS, "digitlab.figures.centers"),
    (KMEANS, "digitlab.models.checkpoints.write_checkpoint"),
    (KMEANS, "digitlab.models.kmeans.write_csv"),
    (KMEANS, "digitlab.models.kmeans.MiniBatchKMeans.evaluate"),
    (KMEANS, "digitlab.models.kmeans.nearest"),
    (KMEANS, "digitlab.models.baselines.mean_image"),
    (AUTOENCODER, "digitlab.figures.latents"),
    (AUTOENCODER, "digitlab.models.prior.Prior.fit"),
    (AUTOENCODER, "digitlab.models.autoencoder.score_samples"),
    (AUTOENCODER, "digitlab.training.stages.open_writer"),
]


@pytest.fixture(scope="module")
def uninterrupted(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run each command of STAGES without a signal; returns the directories by model."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    for command in (KMEANS, AUTOENCODER):
        run_in_process([*command, *small_run(tiny, 2)], folder / command[0])
    return {command[0]: folder / command[0] for command in (KMEANS, AUTOENCODER)}


@pytest.mark.slow
@pytest.mark.parametrize(("command", "place"), STAGES)
def test_a_signal_inside_a_library_interrupts_the_run(
    command: list[str],
    place: str,
    uninterrupted: dict[str, Path],
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The run is interrupted, not failed; run again, it equals an undisturbed run bitwise."""
    expected, command = uninterrupted[command[0]], [*command, *small_run(tiny, 2)]
    name, _, attribute = place.rpartition(".")
    with monkeypatch.context() as patch:
        target = _resolve(name)
        patch.setattr(target, attribute, interrupted_library(getattr(target, attribute)))
        with pytest.raises(KeyboardInterrupt):
            run_in_process(command, tmp_path / "cut")
    assert load_results(tmp_path / "cut")["status"] == "interrupted"
    assert load_results(tmp_path / "cut")["error"] is None
    run_in_process(command, tmp_path / "cut")
    assert_same(expected, tmp_path / "cut")
    assert run_state(tmp_path / "cut") == "completed"


def _resolve(name: str) -> Any:
    """Import a module, or a class from one."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        module, _, attribute = name.rpartition(".")
        return getattr(importlib.import_module(module), attribute)
