"""Models, inits and schedules of the user's own, as files in a folder outside the checkout."""

import importlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule

from digitlab import plugins
from digitlab.config import schema
from digitlab.config.arguments import COMMON, arguments, convert
from digitlab.models import checkpoints
from digitlab.registry import MODELS, Registry
from digitlab.runs.results import read_results

from .conftest import (
    ROOT,
    RunScript,
    RunTrain,
    StartTrain,
    find_jobs,
    load_results,
)
from .training.test_experiment import assert_same, weights

CLASSIFIER = """
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.nn import functional

from digitlab.models import Model, register_init, register_model, register_schedule


@register_model("own_classifier")
class Classifier(Model):
    objective = ("val/accuracy", "max")

    def __init__(self, width: int, dropout: float = 0.1, **options):
        super().__init__(**options)
        channels, height, pixels = self.image_shape
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * height * pixels, width),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(width, self.n_classes),
        )

    def training_step(self, batch, index):
        images, labels = batch
        loss = functional.cross_entropy(self.layers(images), labels)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, index):
        images, labels = batch
        logits = self.layers(images)
        self.log("val/loss", functional.cross_entropy(logits, labels))
        self.log("val/accuracy", (logits.argmax(1) == labels).float().mean())

    def baselines(self, data):
        commonest = torch.bincount(data.train.labels).argmax()
        return {"majority_class": float((data.test.labels == commonest).float().mean())}


@register_init("own_first")
def first(data, n_clusters, rng):
    return data.images[:n_clusters].flatten(1) / 255


@register_schedule("own_step")
def step(optimizer, total_steps, share: float, gamma: float = 0.1):
    return torch.optim.lr_scheduler.StepLR(optimizer, max(1, int(share * total_steps)), gamma)


class StopAfter(Callback):
    def __init__(self, epochs: int):
        self.epochs = epochs

    def on_train_epoch_end(self, trainer, module):
        if trainer.current_epoch + 1 == self.epochs:
            trainer.should_stop = True
"""
# A LightningModule as it stands in Lightning's documentation.
PLAIN = """
import torch
from lightning.pytorch import LightningModule

from digitlab.models import register_model


@register_model("own_plain")
class Plain(LightningModule):
    def __init__(self, hidden: int = 8, lr: float = 0.01):
        super().__init__()
        self.lr = lr
        # Names that digitlab's own models use for something else.
        self.threads = torch.nn.Linear(784, hidden)
        self.figures = torch.nn.Linear(hidden, 784)

    def loss(self, batch):
        images, _ = batch
        x = images.flatten(1)
        return (self.figures(self.threads(x)) - x).square().mean()

    def training_step(self, batch, index):
        return self.loss(batch)

    def validation_step(self, batch, index):
        self.log("val/loss", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)
"""
YAMLS = {
    "model/own.yaml": "name: own_classifier\nwidth: 16\n",
    "model/unnamed.yaml": "width: 16\n",
    "model/plain.yaml": "name: own_plain\n",
    "scheduler/own_step.yaml": "name: own_step\nshare: 0.5\n",
    "callbacks/stop.yaml": "# @package trainer.callbacks\n"
    "stop: {_target_: own_digits.StopAfter, epochs: 2}\n",
    "init/own_first.yaml": "# @package model.init\nname: own_first\n",
}


@pytest.fixture
def own(tmp_path: Path, overrides: list[str]) -> list[str]:
    """Write a user's files to tmp_path; returns the first words of a command there."""
    (tmp_path / "own_digits.py").write_text(CLASSIFIER)
    (tmp_path / "own_plain.py").write_text(PLAIN)
    for name, content in YAMLS.items():
        path = tmp_path / "conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return ["--config-dir=conf", "plugins=[own_digits.py]", *overrides]


def test_a_classifier_of_one_s_own_is_ranked_by_its_accuracy(
    own: list[str], run_train: RunTrain, run_script: RunScript, tmp_path: Path
) -> None:
    """Its metrics, baseline and figures are recorded; nothing speaks of mean images.

    evaluate.py recomputes its metrics, and generate.py says that it generates nothing.
    """
    run = tmp_path / "run"
    done = run_train(*own, "model=own", "scheduler=own_step", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    assert "mean image" not in done.stdout + done.stderr
    outcome = load_results(run)
    assert set(outcome["metrics"]) == {
        "train/loss",
        "val/accuracy",
        "val/loss",
        "test/loss",
        "test/accuracy",
    }
    assert outcome["objective"]["name"] == "val/accuracy"
    assert outcome["metrics"]["test/accuracy"] > 2 * outcome["baselines"]["majority_class"]
    table = np.genfromtxt(run / "metrics.csv", delimiter=",", names=True, deletechars="")
    best = table["val/accuracy"].max()
    assert outcome["metrics"]["val/accuracy"] == pytest.approx(best)
    assert {path.stem for path in run.glob("figures/*.png")} == {"loss", "accuracy"}
    assert "plugins" not in outcome["config"]
    assert list(outcome["code"]["plugins"]) == ["own_digits"]

    checkpoint = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert checkpoint["model"] == "own_classifier"
    assert checkpoint["hyper_parameters"]["width"] == 16
    done = run_script("scripts/evaluate.py", run, "--plugin", "own_digits.py")
    assert done.returncode == 0, done.stderr
    assert "test/accuracy" in done.stdout
    for script, message in (
        (
            "scripts/evaluate.py",
            "model.name=own_classifier: must be one of kmeans, autoencoder, vae, or",
        ),
        (
            "scripts/generate.py",
            "is not a checkpoint of kmeans, autoencoder, vae but of 'own_classifier'",
        ),
    ):
        done = run_script(script, run)
        assert (done.returncode, done.stderr.count("\n") <= 2) == (2, True), done.stderr
        assert message in done.stderr
        assert "--plugin FILE.py" in done.stderr
    done = run_script("scripts/generate.py", run, "--plugin", "own_digits.py")
    assert (done.returncode, "its model generates no images" in done.stderr) == (2, True)


@pytest.mark.slow
def test_a_killed_run_of_one_s_own_model_resumes_to_equal_bits(
    own: list[str], run_train: RunTrain, start_train: StartTrain, tmp_path: Path
) -> None:
    """SIGKILL in the middle, then resume=RUN with the plugin; without it that is refused."""
    run, command = tmp_path / "cut", [*own, "model=own", "trainer.max_epochs=40"]
    process = start_train([*command, "hydra.run.dir=cut"])
    deadline = time.monotonic() + 120
    while not (read_results(run) or {}).get("epochs") and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.join()
    assert load_results(run)["status"] == "interrupted"
    refused = run_train("resume=cut")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "model.name=own_classifier: must be one of kmeans, autoencoder, vae" in refused.stderr
    done = run_train("resume=cut", "plugins=[own_digits.py]")
    assert done.returncode == 0, done.stderr
    assert "Resuming from" in done.stdout
    assert run_train(*command, "hydra.run.dir=whole").returncode == 0
    assert_same(run, tmp_path / "whole")


def test_a_callback_of_one_s_own_is_called(
    own: list[str], run_train: RunTrain, tmp_path: Path
) -> None:
    """It stands in a plugin, and a YAML names it. Listed by --help, as all of the user's files."""
    done = run_train(*own, "model=own", "callbacks=stop", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    assert load_results(tmp_path / "run")["epochs"] == 2
    text = run_train(*own, "--help").stdout
    assert re.search(r"callbacks: +early_stopping, lr_monitor, stop\n", text)
    assert re.search(r"init: [^:]*\bown_first\b", text)
    assert re.search(r"model: +autoencoder, kmeans, own, plain, unnamed, vae\n", text)


def test_results_load_no_code(
    own: list[str], run_train: RunTrain, run_script: RunScript, tmp_path: Path
) -> None:
    """Plugins that results.json names, at any key, are not imported."""
    run_train(*own, "model=own", "hydra.run.dir=run", "trainer.max_epochs=1")
    (tmp_path / "own_evil.py").write_text("open('was_run', 'w')\n")
    path = tmp_path / "run" / "results.json"
    results = json.loads(path.read_text())
    results["status"] = "interrupted"
    results["config"]["plugins"] = ["own_evil.py"]
    results["code"]["plugins"] = {"own_evil": "0"}
    path.write_text(json.dumps(results))
    assert run_train("resume=run").returncode == 2
    assert run_script("scripts/evaluate.py", "run").returncode == 2
    assert not (tmp_path / "was_run").exists()


def test_a_plain_lightning_module_works_as_it_is(
    own: list[str], run_train: RunTrain, tmp_path: Path
) -> None:
    """It gets only the arguments that it names; val/loss is its objective, test/loss its result."""
    command = [*own, "plugins=own_plain.py", "model=plain", "+model.lr=0.02"]
    done = run_train(*command, "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    outcome = load_results(tmp_path / "run")
    assert outcome["objective"]["name"] == "val/loss"
    assert set(outcome["metrics"]) == {"val/loss", "test/loss"}
    assert outcome["baselines"] == {}
    assert outcome["metrics"]["test/loss"] < 0.1
    done = run_train(*own, "plugins=own_plain.py", "model=plain", "+model.width=3")
    message = "Error: model.width=3: Plain has no such argument; it has hidden, lr\n"
    assert (done.returncode, done.stderr) == (2, message)


@pytest.mark.slow
def test_two_processes_train_one_s_own_model_as_one_does(
    own: list[str], run_train: RunTrain, tmp_path: Path
) -> None:
    """The processes that DDP starts know model and schedule; a short last batch is weighted.

    A user's own init is known there as well.
    """
    command = [*own, "model=own", "scheduler=own_step", "data.val_size=85", "+model.dropout=0.0"]
    assert run_train(*command, "hydra.run.dir=single").returncode == 0
    two = ["trainer.devices=2"]
    done = run_train(*command, *two, "hydra.run.dir=double")
    assert done.returncode == 0, done.stdout + done.stderr
    single, double = (weights(tmp_path / name) for name in ("single", "double"))
    for name, weight in single.items():
        torch.testing.assert_close(double[name], weight, rtol=0, atol=1e-5)
    first, second = (
        np.loadtxt(tmp_path / name / "metrics.csv", delimiter=",", skiprows=1)
        for name in ("single", "double")
    )
    np.testing.assert_allclose(first, second, rtol=1e-3)
    kmeans = ["model=kmeans", "init=own_first", "trainer.max_epochs=1"]
    done = run_train(*own, *kmeans, *two, "hydra.run.dir=kmeans")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_a_sweep_in_joblib_s_workers_knows_the_plugin(
    own: list[str], run_train_process: RunTrain, run_train: RunTrain, tmp_path: Path
) -> None:
    """Each worker loads it. A changed file is other code of the same experiment."""
    command = ["-m", *own, "model=own", "model.width=4,8", "trainer.max_epochs=1"]
    command += ["hydra.sweep.dir=sweep"]
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    done = run_train_process(*command, *launcher, threads=1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(find_jobs(tmp_path / "sweep")) == 2
    listed = run_train(*command, "dry_run=true").stdout
    assert "other code" not in listed
    (tmp_path / "own_digits.py").write_text(CLASSIFIER + "\n# changed\n")
    listed = run_train(*command, "dry_run=true").stdout
    assert listed.count("by other code of the plugin own_digits") == 2
    wrong = run_train(*command[:-1], "+model.depth=1", "hydra.sweep.dir=wrong")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "model.depth=1: Classifier has no such argument; did you mean" in wrong.stderr
    assert not (tmp_path / "wrong").exists()


MISTAKES = {
    "model=own model.width=x": "model.width=x: must be int",
    "model=own +model.widht=3": "model.widht=3: Classifier has no such argument; did you mean "
    "model.width?",
    "model=own ~model.width": "model.width: has no value, and Classifier needs one",
    "model=own model.name=own_clasifier": "did you mean own_classifier?",
    "model=own optimizer=inverse_count": "model=own_classifier it must be one of adamw, muon, sgd",
    "scheduler=own_step scheduler.share=much": "scheduler.share=much: must be float",
    "scheduler=own_step +scheduler.rate=1": "scheduler.rate=1: step has no such argument; it has "
    "share, gamma",
    "+scheduler.rate=1": "scheduler.rate=1: nothing reads this key",
    "model=unnamed": "model.name: has no value; its YAML must hold one, as name: mine",
    "model=own model.name=[1]": "model.name=[1]: must be one of kmeans, autoencoder, vae, ",
    "plugins=[own_nothing.py]": "plugins=own_nothing.py: is no file; name a .py file (here ",
    "plugins=[own_nothing]": "plugins=own_nothing: ModuleNotFoundError: No module named",
    "plugins=[1]": "plugins=[1]: must be a list of files or modules, as [my/vae.py]",
    "plugins=[json.py]": "json/__init__.py is the module json already; rename the file",
    "plugins=[own-dash.py]": "must be named by letters, digits and _",
    "plugins=[own_error.py]": "plugins=own_error.py: ZeroDivisionError: division by zero (",
    "plugins=[own_syntax.py]": "SyntaxError: invalid syntax (",
    "plugins=[own_exit.py]": "plugins=own_exit.py: SystemExit: 3 (",
    "plugins=[own_builtin.py]": "@register_model('kmeans') on Mine: digitlab.models.kmeans already "
    "has this name; choose another (",
    "plugins=[own_digits.py,own_twice.py]": "@register_model('own_classifier') on Other: "
    "own_digits.Classifier already has this name; choose another (",
}
BROKEN = {
    "json.py": "",
    "own-dash.py": "",
    "own_error.py": "\nx = 1 / 0\n",
    "own_syntax.py": "def f(:\n",
    "own_exit.py": "import sys\nsys.exit(3)\n",
    "own_builtin.py": "from digitlab.models import register_model\n"
    "@register_model('kmeans')\nclass Mine: pass\n",
    "own_twice.py": "from digitlab.models import register_model\n"
    "@register_model('own_classifier')\nclass Other: pass\n",
}


# An argument, a name, and a plugin.
SWEPT = ["model=own model.width=x", "model=own model.name=own_clasifier", "plugins=[own_exit.py]"]


@pytest.mark.parametrize(
    ("flags", "command"),
    [
        *(([], command) for command in MISTAKES),
        *((["-m"], f"{command} seed=0,1") for command in SWEPT),
    ],
)
def test_a_mistake_in_files_of_one_s_own_is_told_before_the_first_job(
    flags: list[str], command: str, own: list[str], run_train: RunTrain, tmp_path: Path
) -> None:
    """One line, exit code 2, no directory and no traceback, in a run and in a sweep."""
    for name, content in BROKEN.items():
        (tmp_path / name).write_text(content)
    done = run_train(*flags, *own, *command.split())
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert MISTAKES[command.removesuffix(" seed=0,1")] in done.stderr
    assert done.stderr.startswith("Error: ")
    assert not (tmp_path / "outputs").exists()


def test_plugins_change_no_run_id(own: list[str], run_train: RunTrain, tmp_path: Path) -> None:
    """A model of digitlab has the same id with and without plugins, in a run and in a sweep."""
    command = [*own[2:], "model=kmeans", "dry_run=true"]
    plain = run_train(*command).stdout.split()[0]
    assert re.fullmatch("[0-9a-f]{12}", plain)
    assert run_train(*command, "plugins=[own_digits.py]").stdout.split()[0] == plain
    sweeps = [run_train("-m", *command, *words).stdout for words in ([], [own[1]])]
    assert sweeps[0] == sweeps[1] != ""


def test_an_installed_package_registers_by_its_entry_point(
    own: list[str], tmp_path: Path, overrides: list[str]
) -> None:
    """Its modules are plugins of every command."""
    site = tmp_path / "site"
    info = site / "own_package-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[digitlab.plugins]\nmine = own_package\n")
    (site / "own_package.py").write_text(CLASSIFIER)
    command = ["--config-dir=conf", *overrides, "model=own", "dry_run=true"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *command],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(site), *sys.path])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "1 job in a new folder" in done.stdout


# -- the pieces --------------------------------------------------------------------------------


def test_values_are_converted_by_annotations() -> None:
    """Numbers become floats, lists stay lists; what no YAML can hold passes unchanged."""

    class Base:
        def __init__(self, seed: int, depth: int = 1) -> None: ...

    class Own(Base):
        def __init__(
            self,
            rate: float,
            sizes: list[int],
            kind: Literal["a", "b"] = "a",
            most: int | None = None,
            anything: Any = None,
            other: Callable[[int], int] | None = None,
            **options: Any,
        ) -> None: ...

    assert list(arguments(Own))[-2:] == ["seed", "depth"], "arguments that are passed on"
    values: dict[str, Any] = {"rate": 1, "sizes": [1, 2], "most": None, "other": "x", "depth": 2}
    converted = convert(Own, values, "model")
    assert converted == values
    assert isinstance(converted["rate"], float)
    for key, value, rule in (
        ("rate", "fast", "must be float"),
        ("sizes", 3, r"must be list\[int\]"),
        ("kind", "c", "must be one of a, b"),
        ("most", "x", r"must be int \| None"),
        ("deptt", 1, "did you mean model.depth?"),
        ("seed", 1, "has no such argument"),
    ):
        with pytest.raises(ValueError, match=rf"^model\.{key}={value}: .*{rule}"):
            convert(Own, values | {key: value}, "model")


@pytest.mark.parametrize(
    ("name", "values"),
    [("kmeans", schema.KMeans), ("autoencoder", schema.Autoencoder), ("vae", schema.VAE)],
)
def test_the_schema_of_a_model_agrees_with_its_constructor(name: str, values: type) -> None:
    """Its keys are the arguments of the class, all of them required, with the same types."""
    own = {key: each for key, each in arguments(MODELS.find(name)).items() if key not in COMMON}
    types: dict[str, Any] = {each.name: each.type for each in fields(values)}
    del types["name"]
    assert set(types) == set(own)
    for key, argument in own.items():
        assert argument.is_required, key
        if key not in ("init", "prior"):
            assert argument.annotation == types[key], key


def test_a_registry_knows_its_own_names_without_importing_them() -> None:
    """Two entries cannot share a name, but a cell of a notebook may run again."""
    registry = Registry("thing", "register_thing", {"slow": "own_module_that_is_missing"})
    assert registry.names() == ["slow"]
    registry.check("thing", "slow")

    def make(value: int) -> Any:
        def mine() -> int:
            return value

        return mine

    registry.register("mine")(make(1))
    registry.register("mine")(make(2))
    assert registry.find("mine")() == 2
    with pytest.raises(ValueError, match=r"@register_thing\('mine'\) on dict: .*mine already has"):
        registry.register("mine")(dict)
    with pytest.raises(ValueError, match=r"thing=mind: .*did you mean mine\?"):
        registry.find("mind")


def test_a_plugin_is_loaded_once_and_a_checkpoint_of_it_loads(
    own: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a relative or an absolute name; load_model then rebuilds its class, typed as before."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_loaded.py").write_text(PLAIN.replace('"own_plain"', '"own_loaded"'))
    before = list(sys.path)
    for entry in ("own_loaded.py", str(tmp_path / "own_loaded.py"), "own_loaded"):
        plugins.load([entry])
    assert len(plugins.digests()["own_loaded"]) == 12
    monkeypatch.setattr(sys, "path", before)
    cls: Any = MODELS.find("own_loaded")
    assert cls is importlib.import_module("own_loaded").Plain
    values = {"hidden": 3, "lr": 1, "optimizer": {}, "seed": 0}
    model = checkpoints.build(cls, values)
    content = {"model": "own_loaded", "hyper_parameters": values, "state_dict": model.state_dict()}
    checkpoints.write_checkpoint(tmp_path / "a.ckpt", content)
    loaded = checkpoints.load_model(tmp_path / "a.ckpt")
    assert isinstance(loaded, LightningModule)
    assert loaded.lr == 1.0
