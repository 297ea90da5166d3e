"""What TensorBoard shows of the runs."""

import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from digitlab import RunFailed

from ..conftest import results, run_here
from .test_experiment import KMEANS

Ask = Callable[..., Any]


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Ask]:
    """A real TensorBoard on tmp_path, asked over HTTP; it reads the files when it is asked first."""
    command = [
        sys.executable,
        "-m",
        "tensorboard.main",
        f"--logdir={tmp_path}",
        "--port=0",
        "--load_fast=false",
    ]
    url = ""

    def ask(page: str, **content: Any) -> Any:
        nonlocal url
        if not url:
            assert process.stderr is not None
            url = next(
                found[0] for line in process.stderr if (found := re.search(r"http://\S+", line))
            )
        data = json.dumps(content).encode() if content else None
        request = urllib.request.Request(
            f"{url}data/plugin/{page}", data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())

    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        yield ask
        process.kill()


def test_events_files_of_one_second_are_named_in_the_order_that_they_are_written_in(
    tmp_path: Path,
) -> None:
    """Twelve in a new process: else the tenth would stand before the third, and TensorBoard leave it out."""
    script = (
        "import time\nfrom digitlab.training.callbacks import SummaryWriter\n"
        "time.time = lambda: 1.0\n"
        f"for n in range(12):\n    SummaryWriter({str(tmp_path)!r}, filename_suffix=f'.{{n:02}}').close()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert [name[-2:] for name in names] == [f"{n:02}" for n in range(12)]
    assert len({name.split(".")[3] for name in names}) == 1, "all of one second"


def test_tensorboard_shows_every_run_with_its_settings_and_metrics(
    board: Ask, words: list[str], tmp_path: Path
) -> None:
    """A real TensorBoard over HTTP: a k-means and two autoencoder runs in HParams, with both models' columns.

    A fourth run that diverged is told as failed.
    """
    small = [*words, "trainer.max_epochs=1", "data.train_size=200"]
    run_here([*KMEANS, *small, "optimizer.lr=3"], tmp_path / "a")
    for rate in ("0.1", "0.2"):
        run_here([*small, "model.channels=[4,8]", f"optimizer.lr={rate}"], tmp_path / rate)
    with pytest.raises(RunFailed):
        run_here([*KMEANS, *small, "optimizer.lr=1e30"], tmp_path / "d")
    deadline, done = time.monotonic() + 60, False
    while (
        not done and time.monotonic() < deadline
    ):  # it reads the files in the background, each run's end last
        time.sleep(0.5)
        experiment = board("hparams/experiment", experimentName="")
        wanted = [{"metric": info["name"]} for info in experiment["metricInfos"]]
        allowed = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]
        answer = board(
            "hparams/session_groups",
            colParams=wanted,
            allowedStatuses=allowed,
            startIndex=0,
            sliceSize=10,
        )
        groups = answer["sessionGroups"]
        states = {group["sessions"][0]["name"]: group["sessions"][0]["status"] for group in groups}
        done = "STATUS_UNKNOWN" not in states.values() and len(states) == 4
    assert states == dict.fromkeys(("a", "0.1", "0.2"), "STATUS_SUCCESS") | {"d": "STATUS_FAILURE"}
    columns = {info["name"] for info in experiment["hparamInfos"]}
    assert {
        "optimizer.lr",
        "model.init.name",
        "model.channels",
        "model.latent_dim",
        "seed",
    } <= columns
    tags = {info["name"]["tag"] for info in experiment["metricInfos"]}
    assert {
        "final/test/loss",
        "final/active_centers",
        "final/generated/fid",
        "train/loss",
        "val/loss",
    } <= tags
    assert "hp_metric" not in tags
    images = board("images/tags")
    assert "epochs/centers" in images["a"]
    assert "epochs/generated" in images["0.1"]
    shown = {}
    for group in groups:
        values = {value["name"]["tag"]: value["value"] for value in group["metricValues"]}
        shown[group["hparams"]["optimizer.lr"]] = values.get("final/test/loss")
    assert shown.pop(1e30) is None
    expected = {3: "a", 0.1: "0.1", 0.2: "0.2"}
    assert shown == {
        lr: pytest.approx(results(tmp_path / n)["metrics"]["test/loss"])
        for lr, n in expected.items()
    }
