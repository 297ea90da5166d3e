"""TensorBoard shows each run with its settings, metrics and images."""

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

from ..conftest import load_results, run_in_process
from .test_experiment import KMEANS

Request = Callable[..., Any]


@pytest.fixture
def request_page(tmp_path: Path) -> Iterator[Request]:
    """Start TensorBoard on tmp_path, and return a function that requests a page over HTTP.

    TensorBoard reads the files after the first request.
    """
    command = [
        sys.executable,
        "-m",
        "tensorboard.main",
        f"--logdir={tmp_path}",
        "--port=0",
        "--load_fast=false",
    ]
    url = ""

    def request(page: str, **content: Any) -> Any:
        nonlocal url
        if not url:
            assert process.stderr is not None
            matches = (re.search(r"http://\S+", line) for line in process.stderr)
            url = next(match[0] for match in matches if match)
        data = json.dumps(content).encode() if content else None
        message = urllib.request.Request(
            f"{url}data/plugin/{page}", data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(message, timeout=30) as response:
            return json.loads(response.read())

    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        yield request
        process.kill()


@pytest.mark.slow
def test_the_names_of_event_files_of_one_second_sort_in_the_order_of_writing(
    tmp_path: Path,
) -> None:
    """TensorBoard reads the files of a run by name, and skips one that sorts before a read one.

    A new process writes twelve files, of which the tenth would otherwise sort before the third.
    """
    script = (
        "import pathlib\n"
        "from digitlab.training.event_files import open_writer\n"
        "for n in range(12):\n"
        f"    writer = open_writer(pathlib.Path({str(tmp_path)!r}), filename_suffix=f'.{{n:02}}')\n"
        "    writer.close()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert [name[-2:] for name in names] == [f"{n:02}" for n in range(12)]


@pytest.mark.slow
def test_tensorboard_shows_every_run_with_its_settings_and_metrics(
    request_page: Request, overrides: list[str], tmp_path: Path
) -> None:
    """HParams lists a k-means and two autoencoder runs, with the columns of both models.

    A fourth run, which diverges, is listed as failed. Its loss is missing.
    """
    small = [*overrides, "trainer.max_epochs=1", "data.train_size=200"]
    run_in_process([*KMEANS, *small, "optimizer.lr=3"], tmp_path / "a")
    for rate in ("0.1", "0.2"):
        run_in_process([*small, "model.channels=[4,8]", f"optimizer.lr={rate}"], tmp_path / rate)
    with pytest.raises(RunFailed):
        run_in_process([*KMEANS, *small, "optimizer.lr=1e30"], tmp_path / "d")
    deadline, done = time.monotonic() + 60, False
    # TensorBoard reads the files in the background, the end of each run last.
    while not done and time.monotonic() < deadline:
        time.sleep(0.5)
        experiment = request_page("hparams/experiment", experimentName="")
        metrics = [{"metric": info["name"]} for info in experiment["metricInfos"]]
        statuses = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]
        response = request_page(
            "hparams/session_groups",
            colParams=metrics,
            allowedStatuses=statuses,
            startIndex=0,
            sliceSize=10,
        )
        groups = response["sessionGroups"]
        sessions = [group["sessions"][0] for group in groups]
        states = {session["name"]: session["status"] for session in sessions}
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
    assert "data.root" not in columns
    differs = [info.get("differs", False) for info in experiment["hparamInfos"]]
    assert differs == sorted(differs, reverse=True), "settings that differ stand first"
    assert experiment["metricInfos"][0]["name"]["tag"] == "Objective"
    tags = {info["name"]["tag"] for info in experiment["metricInfos"]}
    assert {
        "final/test/loss",
        "final/active_centers",
        "final/generated/fid",
        "train/loss",
        "val/loss",
    } <= tags
    assert "hp_metric" not in tags
    images = request_page("images/tags")
    assert "epochs/centers" in images["a"]
    assert "epochs/generated" in images["0.1"]
    losses = {}
    for group in groups:
        values = {value["name"]["tag"]: value["value"] for value in group["metricValues"]}
        losses[group["hparams"]["optimizer.lr"]] = values.get("final/test/loss")
    assert losses.pop(1e30) is None
    directories = {3: "a", 0.1: "0.1", 0.2: "0.2"}
    assert losses == {
        lr: pytest.approx(load_results(tmp_path / name)["metrics"]["test/loss"])
        for lr, name in directories.items()
    }
