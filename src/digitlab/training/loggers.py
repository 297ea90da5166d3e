"""Loggers of Lightning or of a plugin, by the values of conf/logger.

They add to the files that a run writes itself. The run's id is that of its tracker, so that a
resumed run stays one run there.
"""

import csv
import inspect
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import loggers
from lightning.pytorch.core.saving import save_hparams_to_yaml
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from digitlab.config.arguments import arguments, convert
from digitlab.runs.files import write_csv
from digitlab.runs.provenance import determining_values, flatten
from digitlab.training.own_callbacks import find_class
from hydra_plugins.resumable_sweeper import Pruned

log = logging.getLogger(__name__)

PACKAGES = ("lightning.pytorch.loggers", __name__)
# The modules that a class of Lightning's needs, and what installs them.
REQUIRED: dict[type[Logger], tuple[tuple[str, ...], str]] = {
    loggers.WandbLogger: (("wandb",), "'digitlab[wandb]'"),
    loggers.MLFlowLogger: (("mlflow", "sqlalchemy", "alembic"), "'digitlab[mlflow]'"),
}


class Table:
    """What Lightning's CSVLogger calls its experiment: metrics.csv and hparams.yaml.

    Lightning's own deletes the earlier file of a resumed run. Here the rows before the first new
    step stay; later ones were logged after the checkpoint that the run continues from.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.hparams = folder, dict[str, Any]()
        # Those that are not written yet.
        self.metrics: list[dict[str, Any]] = []
        self.columns: list[str] = []

    def log_hparams(self, params: dict[str, Any]) -> None:
        """Write the hyperparameters."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.hparams |= params
        save_hparams_to_yaml(self.folder / "hparams.yaml", self.hparams)

    def log_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        """Add a row."""
        self.metrics.append(
            {name: float(value) for name, value in metrics.items()} | {"step": step}
        )

    def save(self) -> None:
        """Write the new rows: at the end of the file, unless they have new columns."""
        if not self.metrics:
            return
        path, rows = self.folder / "metrics.csv", self.metrics
        names = {name for row in rows for name in row}
        if names <= set(self.columns):
            with path.open("a", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows(self._in_columns(rows))
        else:
            earlier = self._read(path)
            if not self.columns:
                earlier = [row for row in earlier if int(row["step"]) < rows[0]["step"]]
            self.columns = sorted(names.union(*earlier))
            write_csv(path, self.columns, self._in_columns(earlier + rows))
        self.metrics = []

    def _in_columns(self, rows: list[dict[str, Any]]) -> list[list[Any]]:
        return [[row.get(name, "") for name in self.columns] for row in rows]

    def _read(self, path: Path) -> list[dict[str, Any]]:
        """The rows of an earlier file; a killed process may have left half a line."""
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return list(csv.DictReader(line for line in lines if line.endswith("\n")))


class CSVLogger(loggers.CSVLogger):
    """Lightning's CSVLogger, which here continues the file of a resumed run, see `Table`."""

    def __init__(self, save_dir: str, **options: Any) -> None:
        super().__init__(save_dir, **options)
        self._table = Table(Path(self.log_dir))

    @property
    def experiment(self) -> Any:
        """The table; there is one process that logs."""
        return self._table

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the last rows."""
        self.save()


class MLFlowLogger(loggers.MLFlowLogger):
    """Lightning's MLFlowLogger, which here continues the run of MLflow that has the same tag.

    MLflow chooses the ids of its runs itself. A finished run is not continued: what runs again is a
    new run of MLflow.

    Args:
        run_tag: The value of the tag `digitlab.run_id`.
        tracking_uri: The store; the folder of an SQLite file is made.
        experiment_name: The experiment, which is made if there is none.
        run_name: The name of a new run.
        tags: Tags of a new run.
        options: Other options of Lightning's MLFlowLogger.
    """

    def __init__(
        self,
        run_tag: str,
        tracking_uri: str,
        experiment_name: str = "digitlab",
        run_name: str | None = None,
        tags: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        from mlflow.tracking import MlflowClient

        # Creating the tables of a new store takes many lines.
        for name in ("mlflow.store.db", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        artifacts = None
        if tracking_uri.startswith("sqlite:///"):
            folder = Path(tracking_uri.removeprefix("sqlite:///")).absolute().parent
            folder.mkdir(parents=True, exist_ok=True)
            artifacts = (folder / "artifacts").as_uri()
        client = MlflowClient(tracking_uri)
        experiment = _find_experiment(client, experiment_name, artifacts)
        key = "digitlab.run_id"
        query = f"tags.`{key}` = '{run_tag}' and attributes.status != 'FINISHED'"
        runs = client.search_runs([experiment], query, max_results=1)
        if runs:
            run = runs[0]
            client.update_run(run.info.run_id, status="RUNNING")
        else:
            tags = {**(tags or {}), key: run_tag}
            run = client.create_run(experiment, tags=tags, run_name=run_name)
        options["run_id"] = run.info.run_id
        super().__init__(experiment_name, tracking_uri=tracking_uri, **options)

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """End the run, but not at the end of training (`success`): its evaluation follows."""
        if status != "success":
            super().finalize({"interrupted": "KILLED"}.get(status, status))


def _find_experiment(client: Any, name: str, artifacts: str | None) -> str:
    """The id of an experiment of MLflow, which is made if there is none."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifacts))
        except MlflowException:
            # Another job of the sweep may have made it since.
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    return str(experiment.experiment_id)


def check_loggers(choices: Any) -> None:
    """Check the values of loggers by name, each with `_target_`, and that they can be imported.

    Raises:
        ValueError: A class or a value does not fit, or a package is missing.
    """
    for name, cls, options in _find_classes(choices):
        if issubclass(cls, loggers.WandbLogger):
            _check_login(name, options)


def _find_classes(choices: Any) -> Iterator[tuple[str, type[Logger], dict[str, Any]]]:
    """Yield the name, the class and the converted options of each logger."""
    if not isinstance(choices, Mapping):
        raise ValueError(f"logger={choices}: must be loggers by name (logger=csv)")
    for name, values in choices.items():
        key = f"logger.{name}"
        if not isinstance(values, Mapping) or "_target_" not in values:
            raise ValueError(f"{key}={values}: must have a _target_, as {PACKAGES[0]}.CSVLogger")
        options = {option: value for option, value in values.items() if option != "_target_"}
        cls = find_class(f"{key}._target_", values["_target_"], Logger, PACKAGES)
        for base, (modules, package) in REQUIRED.items():
            missing = [module for module in modules if find_spec(module) is None]
            if issubclass(cls, base) and missing:
                raise ValueError(f"{key}: {missing[0]} is not installed; pip install {package}")
        passed = {}
        if issubclass(cls, loggers.WandbLogger):
            import wandb

            known = inspect.signature(wandb.init).parameters.keys() - arguments(cls).keys()
            passed = {option: options.pop(option) for option in known & options.keys()}
        yield name, cls, convert(cls, options, key) | passed


def _check_login(name: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError if Weights & Biases would ask for an account."""
    import wandb

    # The variable is wandb's own way to choose a mode.
    mode = options.get("mode") or os.environ.get("WANDB_MODE") or "online"
    is_online = mode == "online" and not options.get("offline")
    if is_online and not wandb.login(prompt=False, verify=False):
        raise ValueError(
            f"logger.{name}.offline=false: nobody is logged in to Weights & Biases; run"
            f" `wandb login`, or add logger.{name}.offline=true"
        )


@contextmanager
def open_loggers(
    config: Mapping[str, Any], directory: Path, results: dict[str, Any]
) -> Iterator[list[Logger]]:
    """Make the loggers of a run, and give them its configuration; at the end, its metrics.

    With `fast_dev_run` there are none, as in Lightning.

    Args:
        config: The configuration as plain values.
        directory: The run's directory.
        results: The content of results.json; its metrics are logged as `final/...`.

    Yields:
        The loggers for Lightning's Trainer.
    """
    choices = config.get("logger", {})
    if config["trainer"].get("fast_dev_run"):
        choices = {}
    # By a scheduler's variable, Lightning may believe that another process logs.
    only: Any = rank_zero_only
    only.rank = 0
    mode = os.environ.get("WANDB_MODE")
    opened: list[Logger] = []
    status = "failed"
    try:
        for name, cls, options in _find_classes(_fill(choices, _places(directory, results))):
            try:
                opened.append(cls(**options))
            except (MisconfigurationException, ModuleNotFoundError, TypeError) as error:
                raise ValueError(f"logger.{name}: {error}") from error
            opened[-1].log_hyperparams(flatten(determining_values(config)))
        yield opened
        final = {f"final/{name}": value for name, value in results["metrics"].items()}
        for logger in opened:
            logger.log_metrics(final, results["steps"])
            logger.save()
        status = "finished"
    except Pruned:
        # A search gave the run up, which is no failure.
        status = "finished"
        raise
    except BaseException as error:
        status = "failed" if isinstance(error, Exception) else "interrupted"
        raise
    finally:
        for logger in opened:
            _close(logger, status)
        # Lightning sets it for wandb's offline mode.
        os.environ.pop("WANDB_MODE", None)
        if mode is not None:
            os.environ["WANDB_MODE"] = mode


def _places(directory: Path, results: Mapping[str, Any]) -> dict[str, str]:
    """The values of a run that its loggers' values may name in braces."""
    sweep = ""
    if (directory.parent / "sweep.json").is_file():
        # As on the command line: sweep=q2c/learning_rate writes to outputs/sweeps/q2c/...
        outputs, _, sweep = directory.absolute().parent.as_posix().rpartition("/sweeps/")
        sweep = sweep if outputs else directory.parent.name
    return {
        "{run_dir}": str(directory),
        "{run_id}": results["run_id"],
        "{run_name}": directory.name,
        "{sweep}": sweep,
    }


def _fill(value: Any, places: Mapping[str, str]) -> Any:
    """A copy of plain values with the run's own in place of braces; without those it lacks."""
    if isinstance(value, Mapping):
        filled = {key: _fill(item, places) for key, item in value.items()}
        return {key: item for key, item in filled.items() if value[key] == "" or item != ""}
    if isinstance(value, list):
        return [_fill(item, places) for item in value]
    if isinstance(value, str):
        for name, text in places.items():
            value = value.replace(name, text)
    return value


def _close(logger: Logger, status: str) -> None:
    """End a run in its tracker; an error there changes nothing in the run."""
    try:
        logger.finalize(status)
        if isinstance(logger, loggers.WandbLogger):
            logger.experiment.finish(exit_code=0 if status == "finished" else 1)
    except Exception as error:
        log.warning("WARNING: %s was not ended: %s", type(logger).__name__, error)
        log.debug("Traceback:", exc_info=True)
