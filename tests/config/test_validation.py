"""Values of configurations: those that compose, those within range, and those of resumed runs."""

import json
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from digitlab import app
from digitlab.config import schema, validation
from digitlab.runs.restore import restore, resumed

from ..conftest import OPTIONS, RunTrain, compose

# These optimizers of k-means cannot train an autoencoder.
KMEANS_OPTIMIZERS = ("optimizer=inverse_count", "optimizer=sqrt_share")
# The key that holds the name of each of these groups.
NAME_KEYS = {
    "model": "model.name",
    "init": "model.init.name",
    "prior": "model.prior.name",
    "optimizer": "optimizer.name",
    "scheduler": "scheduler.name",
}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_yaml_composes_and_has_valid_values(option: str) -> None:
    """Each option of each group gives a configuration whose values are complete and in range.

    The name in a YAML is the name of its file or the start of it, in case the YAML is a copy.
    """
    command = [option]
    if option.startswith("init=") or option in KMEANS_OPTIMIZERS:
        command.append("model=kmeans")
    if option == "logger=wandb":
        # Without an account.
        command.append("logger.wandb.offline=true")
    group, file_name = option.split("=")
    for cfg in compose(*command):
        validation.check(cfg)
        assert not OmegaConf.missing_keys(cfg)
        if group in NAME_KEYS:
            name = OmegaConf.select(cfg, NAME_KEYS[group])
            assert file_name == name or file_name.startswith(f"{name}_")


def test_a_grid_has_every_combination() -> None:
    """Two rates and three epoch counts give six jobs, in which the last key varies fastest."""
    grid = compose("-m", "optimizer.lr=1,2", "trainer.max_epochs=1,2,3")
    assert [(cfg.optimizer.lr, cfg.trainer.max_epochs) for cfg in grid] == [
        (1.0, 1), (1.0, 2), (1.0, 3), (2.0, 1), (2.0, 2), (2.0, 3)
    ]  # fmt: skip


def test_a_glob_selects_choices() -> None:
    """`init=glob(*)` gives a job for each file of conf/init."""
    jobs = compose("-m", "model=kmeans", "init=glob(*)", "optimizer.lr=1")
    assert [job.model.init.name for job in jobs] == schema.choices("init")


def test_seed_0_and_other_false_values_are_used() -> None:
    """Values that Python treats as false do not fall back to a default."""
    (cfg,) = compose("seed=0", "data.val_size=0", "data.verify=false")
    assert (cfg.seed, cfg.data.val_size, cfg.data.verify) == (0, 0, False)


def test_kmeans_has_its_own_default_rate() -> None:
    """The default is the seed report's eta for k-means, which the command line overrides."""
    assert compose("model=kmeans")[0].optimizer.lr == 4.5
    assert compose("model=kmeans", "optimizer.lr=0.01")[0].optimizer.lr == 0.01


def test_data_root_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """DIGITLAB_DATA names the folder of the data; without it the folder is data/."""
    monkeypatch.delenv("DIGITLAB_DATA", raising=False)
    assert compose()[0].data.root == "data"
    monkeypatch.setenv("DIGITLAB_DATA", "/elsewhere")
    assert compose()[0].data.root == "/elsewhere"


@pytest.mark.parametrize("name", schema.choices("prior"))
def test_the_best_autoencoder_accepts_any_prior(name: str) -> None:
    """The experiment has no values of a prior, which would fit one prior only."""
    (cfg,) = compose("experiment=autoencoder_best", f"prior={name}")
    validation.check(cfg)
    assert cfg.model.prior.name == name


# -- resumed runs ------------------------------------------------------------------------------


def test_resume_accepts_no_other_values_and_needs_a_run(tmp_path: Path) -> None:
    """A folder without a run, and a changed value together with `resume`, are refused."""
    cfg = app.compose_config(["model=kmeans", f"resume={tmp_path}"])
    with pytest.raises(ValueError, match=r"holds no run"):
        resumed(cfg, [f"resume={tmp_path}"])
    saved = validation.to_plain(cfg)
    (tmp_path / "results.json").write_text(json.dumps({"config": saved}))
    for override in ("seed=1", "~seed", "+experiment=q1b"):
        message = re.escape(f"leave out {override}, or start a new run")
        with pytest.raises(ValueError, match=message):
            resumed(cfg, [f"resume={tmp_path}", override])
    again = resumed(cfg, [f"resume={tmp_path}", "force=true", "data.root=there"])
    assert validation.to_plain(again) == saved | {"data": saved["data"] | {"root": cfg.data.root}}


def test_a_yaml_cannot_resume_a_run(run_train: RunTrain, tmp_path: Path) -> None:
    """`resume` in an experiment is refused, because it would ignore the command's overrides."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nresume: there\n")
    done = run_train("experiment=mine", "seed=5", f"hydra.searchpath=[file://{tmp_path}]")
    assert done.returncode == 2
    assert (
        done.stderr == "Error: resume=there: belongs on the command line; remove it from the YAML\n"
    )


def test_resume_of_a_sweep_or_a_partial_path_has_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says how to continue a sweep, and which run has the given name in outputs/runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "outputs" / "runs" / "mine" / "results.json").write_text("{}")
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(ValueError, match=r"; it is a sweep, which its own command continues$"):
        restore(".")
    with pytest.raises(ValueError, match=r"; did you mean resume=outputs/runs/mine\?$"):
        restore("mine")


def test_resume_of_a_folder_without_a_run_names_the_folder_once() -> None:
    """The error names the folder, what is missing in it, and the remedy.

    The same holds for a name that is too long for a file.
    """
    with pytest.raises(
        ValueError,
        match=r"^resume=no: holds no run \(results.json: No such file or directory\); name its",
    ):
        restore("no")
    with pytest.raises(
        ValueError, match=r"^resume=n+: holds no run \(results.json: File name too long\); name its"
    ):
        restore("n" * 300)
