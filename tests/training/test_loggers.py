"""Trackers of a run beside its own files: what the loggers of conf/logger write, and lr_monitor."""

import csv
import importlib.util
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import ListConfig

from digitlab import RunFailed, app
from digitlab.config import validation
from digitlab.models.kmeans import MiniBatchKMeans
from digitlab.runs.provenance import make_run_id
from digitlab.training import callbacks, loggers
from hydra_plugins.resumable_sweeper import Pruned

from ..conftest import RunTrain, error_message, load_results, run_in_process

# The middle of a linear decay over three epochs of 25 steps: its rates at their starts.
DECAY = ["scheduler=linear", "optimizer.lr=3", "callbacks=lr_monitor"]
RATES = [3 * (1 - step / 75) for step in (0, 25, 50)]


def small(tiny: Path) -> list[str]:
    """The overrides of a k-means run of three epochs of 25 steps, each one block."""
    data = [f"data.root={tiny}", "data.verify=false", "data.source=files", "data.val_size=100"]
    return [*data, "data.batch_size=20", "trainer.max_epochs=3", "model=kmeans", "init=digit"]


def read_table(run: Path, name: str = "metrics.csv") -> list[dict[str, str]]:
    with (run / name).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def tracked(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job of the sweep q2c/rate with three trackers, cut in its third epoch, resumed to its end.

    `cut` has the table of the CSVLogger and the status in MLflow between the two.
    """
    folder = tmp_path_factory.mktemp("tracked")
    run = folder / "sweeps" / "q2c" / "rate" / "job"
    run.parent.mkdir(parents=True)
    (run.parent / "sweep.json").write_text("{}")
    command = [*small(tiny), *DECAY, "logger=[csv,wandb,mlflow]", "logger.wandb.offline=true"]
    command.append(f"logger.mlflow.tracking_uri=sqlite:///{folder}/store/mlflow.db")

    def interrupt(self: Any, trainer: Any, *_: Any) -> None:
        if trainer.current_epoch == 2:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks.DivergenceCheck, "on_train_batch_end", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_in_process(command, run)
    (found,) = find_mlflow_runs(folder)
    assert found.info.status == "KILLED"
    assert [row["step"] for row in read_table(run, "csv/metrics.csv")][-1] == "2"
    assert run_in_process(command, run)["status"] == "completed"
    assert "WANDB_MODE" not in os.environ
    return run


@pytest.mark.slow
def test_the_csv_logger_continues_its_file(tracked: Path) -> None:
    """Its rows are those of one run: each epoch's rate, losses and, last, the final metrics.

    A step is a block here. The rate of the third epoch, which was logged before the cut as well, is
    there once.
    """
    rows, own = read_table(tracked, "csv/metrics.csv"), read_table(tracked)
    assert [row["step"] for row in rows] == ["0", "0", "0", "1", "1", "1", "2", "2", "2", "75"]
    for name in ("val/loss", "train/loss"):
        assert [row[name] for row in rows if row[name]] == [row[name] for row in own]
    assert [float(row["lr-SGD"]) for row in rows if row["lr-SGD"]] == pytest.approx(RATES)
    for name, value in load_results(tracked)["metrics"].items():
        assert float(rows[-1][f"final/{name}"]) == value
    settings = yaml.safe_load((tracked / "csv" / "hparams.yaml").read_text())
    assert (settings["optimizer.lr"], settings["model.name"]) == (3, "kmeans")


@pytest.mark.slow
def test_wandb_works_offline_and_stays_one_run(tracked: Path) -> None:
    """Both parts have the run's id, its settings and the sweep as their group.

    Together they hold the losses of each epoch once; the first failed, the second did not.
    """
    pytest.importorskip("wandb")
    parts = sorted(tracked.glob("wandb/offline-run-*/*.wandb"))
    assert len(parts) == 2
    results, history, codes = load_results(tracked), [], []
    for part in parts:
        for record in read_wandb_records(part):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                assert record.run.run_id == results["run_id"]
                assert record.run.run_group == "q2c/rate"
                assert (record.run.project, record.run.display_name) == ("digitlab", "job")
            elif kind == "config" and record.config.update[0].key == "seed":
                settings = {item.key: item.value_json for item in record.config.update}
                assert settings["optimizer.lr"] == "3.0"
            elif kind == "history":
                row = {}
                for item in record.history.item:
                    row[item.nested_key[0]] = float(item.value_json)
                history.append(row)
            elif kind == "exit":
                codes.append(record.exit.exit_code)
    assert codes == [1, 0]
    for name in ("train/loss", "val/loss"):
        logged = [row[name] for row in history if name in row]
        assert logged == [float(row[name]) for row in read_table(tracked)]
    for name, value in results["metrics"].items():
        assert history[-1][f"final/{name}"] == value


def read_wandb_records(path: Path) -> Iterator[Any]:
    """The records of a file of W&B: LevelDB's log format behind seven bytes, without checksums."""
    records: Any = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    content, place, record = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        # A block of 32 KiB ends with padding that holds no header.
        if (left := 2**15 - place % 2**15) < 7:
            place += left
            continue
        size, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        record += content[place + 7 : place + 7 + size]
        place += 7 + size
        # A whole record, or the last part of one.
        if kind in (1, 4):
            yield records.Record.FromString(record)
            record = b""


def find_mlflow_runs(folder: Path) -> list[Any]:
    """The runs in the store of a folder."""
    tracking: Any = pytest.importorskip("mlflow.tracking")
    client = tracking.MlflowClient(f"sqlite:///{folder}/store/mlflow.db")
    experiment = client.get_experiment_by_name("digitlab")
    runs = list(client.search_runs([experiment.experiment_id]))
    for run in runs:
        names = ("val/loss", "lr-SGD", "final/test/loss")
        run.history = {name: client.get_metric_history(run.info.run_id, name) for name in names}
    return runs


@pytest.mark.slow
def test_mlflow_continues_its_run(tracked: Path) -> None:
    """There is one run, finished, with the settings and the metrics of each epoch."""
    (run,) = find_mlflow_runs(tracked.parents[3])
    results = load_results(tracked)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "job")
    assert run.data.tags["digitlab.run_id"] == results["run_id"]
    assert run.data.tags["sweep"] == "q2c/rate"
    assert (run.data.params["optimizer.lr"], run.data.params["model.init.name"]) == ("3.0", "digit")
    losses = [float(row["val/loss"]) for row in read_table(tracked)]
    assert [each.value for each in run.history["val/loss"]] == losses
    (final,) = run.history["final/test/loss"]
    assert (final.value, final.step) == (results["metrics"]["test/loss"], 75)
    # The interrupted epoch's start is logged again.
    assert [each.value for each in run.history["lr-SGD"]] == pytest.approx([*RATES, RATES[-1]])


@pytest.mark.slow
def test_a_failed_run_fails_in_its_tracker_and_a_finished_one_is_not_continued(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow has one run that failed in the evaluation and then finished, and one of `force`."""
    command = [*small(tiny), "trainer.max_epochs=1", "logger=mlflow"]
    command.append(f"logger.mlflow.tracking_uri=sqlite:///{tmp_path}/store/mlflow.db")

    def fail(*_: Any) -> None:
        raise RuntimeError("no evaluation")

    with monkeypatch.context() as patch:
        patch.setattr(MiniBatchKMeans, "evaluate", fail)
        with pytest.raises(RunFailed):
            run_in_process(command, tmp_path / "run")
    (run,) = find_mlflow_runs(tmp_path)
    assert run.info.status == "FAILED"
    run_in_process(command, tmp_path / "run")
    (again,) = find_mlflow_runs(tmp_path)
    assert (again.info.run_id, again.info.status) == (run.info.run_id, "FINISHED")
    run_in_process([*command, "force=true"], tmp_path / "run")
    assert [run.info.status for run in find_mlflow_runs(tmp_path)] == ["FINISHED"] * 2


@pytest.mark.slow
def test_a_tracker_says_how_a_run_ended(tmp_path: Path) -> None:
    """A pruned run is finished, one that a signal ended is killed, another one has failed."""
    uri = f"logger.mlflow.tracking_uri=sqlite:///{tmp_path}/store/mlflow.db"
    config = validation.to_plain(app.compose_config(["logger=mlflow", uri]))
    errors = {"FINISHED": Pruned(), "KILLED": KeyboardInterrupt(), "FAILED": ValueError()}
    for status, error in errors.items():
        results = {"run_id": status, "metrics": {}, "steps": 0}
        with (
            pytest.raises(type(error)),
            loggers.open_loggers(config, tmp_path / status, results),
        ):
            raise error
    statuses = {
        run.data.tags["digitlab.run_id"]: run.info.status for run in find_mlflow_runs(tmp_path)
    }
    assert statuses == {status: status for status in errors}


@pytest.mark.parametrize("logger", [[], ["logger=csv"]])
def test_lr_monitor_writes_the_rates_of_the_schedule(
    logger: list[str], tiny: Path, tmp_path: Path
) -> None:
    """lr-SGD in metrics.csv is the rate at the start of each epoch, also without a logger.

    A forced run starts the logger's file again.
    """
    command = [*small(tiny), *DECAY, *logger]
    for force in ("force=false", "force=true"):
        run_in_process([*command, force], tmp_path)
        assert [float(row["lr-SGD"]) for row in read_table(tmp_path)] == pytest.approx(RATES)
    assert (tmp_path / "csv").exists() == bool(logger)
    assert not logger or len(read_table(tmp_path, "csv/metrics.csv")) == 10


@pytest.mark.slow
def test_one_process_of_two_logs(tiny: Path, tmp_path: Path) -> None:
    """With DDP the table and the run of MLflow have the rows of one process, then the metrics."""
    command = [*small(tiny), "trainer.accelerator=cpu", "trainer.devices=2", "logger=[csv,mlflow]"]
    command.append(f"logger.mlflow.tracking_uri=sqlite:///{tmp_path}/store/mlflow.db")
    run_in_process(command, tmp_path)
    rows, losses = read_table(tmp_path, "csv/metrics.csv"), read_table(tmp_path)
    logged = [row["val/loss"] for row in rows if row["val/loss"]]
    assert logged == [row["val/loss"] for row in losses]
    assert rows[-1]["final/test/loss"]
    (run,) = find_mlflow_runs(tmp_path)
    assert run.info.status == "FINISHED"
    assert [str(each.value) for each in run.history["val/loss"]] == logged
    assert len(run.history["final/test/loss"]) == 1


def test_a_logger_is_no_setting_of_the_experiment(tiny: Path, tmp_path: Path) -> None:
    """It changes neither the run's id nor the sweep's name, and the results are bitwise the same.

    Without one, or with fast_dev_run, there is no trace of it.
    """
    plain, other = (
        validation.to_plain(app.compose_config(words)) for words in ([], ["logger=csv"])
    )
    assert "logger" not in plain
    assert other["logger"]["csv"]["save_dir"] == "{run_dir}"
    assert make_run_id(plain) == make_run_id(other) == make_run_id(plain | {"logger": {}})
    words = ["optimizer.lr=1,2", "logger=wandb", "logger.wandb.project=x"]
    assert app.sweep_name(ListConfig(words)) == "optimizer.lr"
    command = [*small(tiny), "trainer.max_epochs=1"]
    run_in_process(command, tmp_path / "plain")
    run_in_process([*command, "logger=csv"], tmp_path / "csv")
    centers = [(tmp_path / name / "centers.npy").read_bytes() for name in ("plain", "csv")]
    assert centers[0] == centers[1]
    run_in_process([*command, "logger=csv", "+trainer.fast_dev_run=true"], tmp_path / "short")
    assert not (tmp_path / "short" / "csv").exists()


OWN_LOGGER = """
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger


class Twice(CSVLogger):
    def log_metrics(self, metrics, step=None):
        super().log_metrics({name: 2 * value for name, value in metrics.items()}, step)
"""


@pytest.mark.slow
def test_a_logger_of_one_s_own_stays_with_a_resumed_run(
    tiny: Path, run_train: RunTrain, tmp_path: Path
) -> None:
    """A class of a plugin logs in the run's folder; `resume=` reads it from the run."""
    (tmp_path / "twice.py").write_text(OWN_LOGGER)
    (tmp_path / "conf" / "logger").mkdir(parents=True)
    values = {"_target_": "twice.Twice", "save_dir": "{run_dir}/own", "name": "{run_id}"}
    text = yaml.safe_dump({"twice": values | {"version": ""}})
    (tmp_path / "conf" / "logger" / "twice.yaml").write_text(text)
    own = ["--config-dir=conf", "plugins=[twice.py]", "logger=[tensorboard,twice]"]
    done = run_train(*own, *small(tiny), "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    results = load_results(tmp_path / "run")
    rows = read_table(tmp_path / "run" / "own" / results["run_id"])
    assert float(rows[-1]["final/test/loss"]) == 2 * results["metrics"]["test/loss"]
    done = run_train("resume=run", "plugins=[twice.py]", "force=true")
    assert done.returncode == 0, done.stderr
    assert load_results(tmp_path / "run")["config"]["logger"]["twice"]["_target_"] == "twice.Twice"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "logger=wandb logger.wandb.projct=x",
            "logger.wandb has no such key; did you mean logger.wandb.project?",
        ),
        ("logger=wandb logger.wandb.entity=x", "a new key takes a +, as +logger.wandb.entity=x"),
        (
            "logger=wandb +logger.wandb.projct=x",
            "WandbLogger has no such argument; did you mean logger.wandb.project?",
        ),
        ("logger=wandb", "nobody is logged in to Weights & Biases; run `wandb login`, or add"),
        ("logger=comet", "logger=comet: must be one of csv, mlflow, tensorboard, wandb"),
        ("+logger.a.x=1", "logger.a={'x': 1}: must have a _target_, as lightning.pytorch.loggers"),
        (
            "+logger.a._target_=os.system",
            "must be a class of lightning.pytorch.loggers, or of a file of your own",
        ),
        (
            "+logger.a._target_=lightning.pytorch.loggers.wandb.Path",
            "logger.a._target_=lightning.pytorch.loggers.wandb.Path: is no Logger",
        ),
        ("logger=csv +logger.csv.flush_logs_every_n_steps=x", "must be int"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_job(
    words: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line for a misspelt value, a class that is no logger, and an account that lacks."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    if "wandb" in words:
        pytest.importorskip("wandb")
    assert message in error_message(*words.split())


@pytest.mark.parametrize(
    ("logger", "module", "package"), [("wandb", "wandb", "wandb"), ("mlflow", "alembic", "mlflow")]
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    logger: str, module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line before the first job, not an ImportError within it."""

    def find(name: str) -> Any:
        return None if name == module else importlib.util.find_spec(name)

    monkeypatch.setattr(loggers, "find_spec", find)
    expected = f"logger.{logger}: {module} is not installed; pip install 'digitlab[{package}]'"
    assert error_message(f"logger={logger}") == expected
