"""The command line and its configuration: what composes, what is refused and in which words."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from digitlab import app
from digitlab.config import errors, schema, validation
from digitlab.data.mnist import load
from digitlab.runs.restore import restore, resumed

from ..conftest import ROOT, Lab, compose

OPTIONS = [f"{group}={name}" for group in schema.groups() for name in schema.choices(group)]
INITS = ", ".join(schema.choices("init"))
OWN_RATES = (
    "optimizer=inverse_count",
    "optimizer=sqrt_share",
)  # k-means', of which an autoencoder has none


MISTAKES = (HydraException, OmegaConfBaseException, YAMLError, ValueError, OSError)


def refusal(*words: str) -> str:
    """What main() would print for these words, which must be refused before any job."""
    with pytest.raises(MISTAKES) as caught:
        compose(*words)
    return errors.format_error(caught.value, list(words))


@pytest.mark.parametrize("option", OPTIONS)
def test_every_yaml_composes_and_is_in_range(option: str) -> None:
    """Each option of each group gives a configuration whose values are all set and all within their rules."""
    companion = ["model=kmeans"] if option.startswith("init=") or option in OWN_RATES else []
    for cfg in compose(*companion, option):
        validation.check(cfg)
        assert not OmegaConf.missing_keys(cfg)
        group, name = option.split("=")
        if group in (
            "model",
            "init",
            "prior",
            "optimizer",
            "scheduler",
        ):  # copied from a neighbour, and not renamed
            told = OmegaConf.select(
                cfg, f"model.{group}" if group in ("init", "prior") else group
            ).name
            assert name == told or name.startswith(f"{told}_")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            "optimizer.lrr=1",
            "optimizer.lrr=1: optimizer=sgd has no such key; did you mean optimizer.lr?",
        ),
        (
            "optimiser.lr=1",
            "optimiser.lr=1: the configuration has no such key; did you mean optimizer?",
        ),
        (
            "optimizer.lr=abc",
            "optimizer.lr=abc: Value 'abc' of type 'str' could not be converted to Float",
        ),
        (
            "trainer.max_epochs=1.5",
            "trainer.max_epochs=1.5: Value '1.5' of type 'float' could not be converted",
        ),
        ("optimizer.lr=0", "optimizer.lr=0.0: must be > 0 and finite"),
        ("optimizer.lr=nan", "optimizer.lr=nan: must be > 0 and finite"),
        ("data.batch_size=0", "data.batch_size=0: must be >= 1"),
        ("model.n_clusters=0", "model.n_clusters=0: must be >= 1"),
        (
            "model=autoencoder model.latent_dim=0",
            "model.latent_dim=0: must be from 1 to 784, the pixels of an image",
        ),
        ("model=autoencoder model.latent_dim=785", "model.latent_dim=785: must be from 1 to 784"),
        (
            "model=autoencoder model.channels=[]",
            "model.channels=[]: must be 1 to 5 layers of >= 1 channels",
        ),
        (
            "model=autoencoder model.channels=[4,0]",
            "model.channels=[4, 0]: must be 1 to 5 layers of >= 1 channels",
        ),
        (
            "model=autoencoder model.channels=[2,2,2,2,2,2]",
            "28 x 28 can be halved 5 times (14, 7, 4, 2, 1)",
        ),
        ("seed=-1", "seed=-1: must be from 0 to 4294967295"),
        (
            "init=digit model.n_clusters=9",
            "model.n_clusters=9: init=digit takes one image of each digit and needs 10",
        ),
        (
            "model.channels.a=1 model=autoencoder",
            "model.channels.a=1 model=autoencoder: invalid literal for int()",
        ),
        (
            "experiment=kmeans_best optimizer=inverse_count",
            "experiment/kmeans_best.yaml: at optimizer.lr: Key 'lr' not in 'InverseCount'; leave out optimizer=inverse",
        ),
        (
            "experiment=autoencoder_best model=kmeans",
            "experiment/autoencoder_best.yaml: chooses prior, which needs model=autoencoder; leave out model=kmeans",
        ),
        (
            "-m seed=range(1,3),5",
            "seed=range(1,3),5: range(1,3) and the like cannot stand in a list; write the values, as 1,2,5",
        ),
        (
            "-m hydra/launcher=ray hydra.launcher.ray.remote.num_cpus=2",
            "hydra.launcher.ray.remote has no such key; a new key takes a +, as +hydra.launcher.ray.remote.num_cpus=2",
        ),
        (
            "hydra.job.env_set.FOO=1",
            "has no such key; a new key takes a +, as +hydra.job.env_set.FOO=1",
        ),
        (
            "optimizer.lr=[1",
            "optimizer.lr=[1: is not key=value; leave out spaces around =, close brackets and quotes",
        ),
        ("data.root=~/mnist", "data.root=~/mnist: is not key=value"),
        ("init=digits", f"init=digits: must be one of {INITS}; did you mean init=digit?"),
        ("sweep=learning_rate", "; did you mean sweep=kmeans/learning_rate?"),
        (
            "model=kmean",
            "model=kmean: must be one of autoencoder, kmeans; did you mean model=kmeans?",
        ),
        ("kmeans", "kmeans: is not key=value; did you mean model=kmeans?"),
        ("dry_run", "dry_run: is not key=value; did you mean dry_run=true?"),
        (
            "-m seed=[0,1]",
            "could not be converted to Integer; several values are seed=1,2 with -m, in the YAML of a",
        ),
        (
            "model.init=digit",
            "model.init=digit: is chosen by init=..., which must be one of digit, kmeans++, random",
        ),
        (
            "model.init=digit model=autoencoder",
            "model.init=digit: model=autoencoder has no such key; init needs model",
        ),
        (
            "init=digit init.name=digit",
            "init.name=digit: the configuration has no such key; a value of the choice is model",
        ),
        ("+seed=0", "+seed=0: leave out the +, since seed exists already"),
        (
            "-m +optimizer.lr=1,2",
            "+optimizer.lr=1,2: leave out the +, since optimizer.lr exists already",
        ),
        ("+experiment=q1b", "+experiment=q1b: leave out the +, since experiment exists already"),
        (
            "~init=random",
            "model.init.name: has no value; give it one, or leave out what takes it away",
        ),
        (
            "~model.n_clusters",
            "~model.n_clusters: cannot be deleted; give it another value",
        ),
        (
            "-m seed=interval(0,3)",
            "seed=interval(0,3): a grid needs a list of values; write 1,2,3 or range(1,4)",
        ),
        (
            "-m hydra.launcher=joblib",
            "hydra.launcher=joblib: a launcher is a choice; write hydra/launcher=joblib",
        ),
        (
            "-m hydra/launcher=joblib hydra.launcher.n_jobs=0",
            "hydra.launcher.n_jobs=0: must be >= 1, or -1 for all",
        ),
        ("-m seed=range(2,2)", "seed=range(2,2): has no value; give it at least one"),
        ("-m seed=${hydra:job.num},1", "HydraConfig was not set"),
        (
            "channels=wide",
            "channels=wide: is not available; channels needs model=autoencoder",
        ),
        ("optimizer=[sgd,adamw]", "optimizer=[sgd,adamw]: must be one of adamw"),
        ("seed=null", "seed=null: field 'seed' is not Optional; must be from 0 to 4294967295"),
        (
            "-m data.root=a,b",
            "data.root=a,b: jobs must not differ in this key alone; give it one value, and run a sweep",
        ),
        (
            "-m data.verify=true,false",
            "data.verify=True,False: jobs must not differ in this key alone",
        ),
        (
            "model.channels=8 model=autoencoder",
            "model.channels=8: must be a list, as model.channels=[8,16,32]",
        ),
        ("channels=8 model=autoencoder", "channels=8: must be one of base, deep, wide"),
        ("-m trainer=cpu,5", "trainer=cpu,5: must be one of cpu, ddp, default, gpu"),
        (
            "-m hydra.launcher.n_jobs=2",
            "hydra.launcher.n_jobs=2: hydra.launcher has no such key; name the launcher",
        ),
        (
            "-m optimizer=sgd,inverse_count optimizer.lr=1,2",
            "optimizer.lr=1,2: optimizer=inverse_count has no such key; sweep optimizers with different keys one by",
        ),
        ("data.root=''", "data.root=: must name a folder; unset DIGITLAB_DATA for data/"),
        ("data=/some/where", "data=/some/where: must be one of mnist, smoke"),
        (
            "-m sweep=kmeans/inits",
            "sweep=kmeans/inits: must be one of kmeans/init, kmeans/learning_rate, q2c/batch_size",
        ),
        (
            "epochs=5",
            "epochs=5: the configuration has no such key; did you mean trainer.max_epochs?",
        ),
        ("lr=1", "lr=1: the configuration has no such key; did you mean optimizer.lr?"),
        (
            "init=digit model=autoencoder",
            "init=digit: is not available; init needs model=kmeans",
        ),
        ("init=nonsense", f"init=nonsense: must be one of {INITS}"),
        (
            "optimizer=inverse_count optimizer.lr=1",
            "optimizer.lr=1: optimizer=inverse_count has no such key",
        ),
        (
            "-m optimizer=adamw,sgd model=autoencoder optimizer.beta2=0.9",
            "optimizer.beta2=0.9: optimizer=sgd has no",
        ),
        ("scheduler.name=step", "scheduler.name=step: must be one of constant, linear, cosine"),
        (
            "optimizer.name=inverse_count",
            "has the values of optimizer=sgd; choose another optimizer",
        ),
        ("+optimizer.nesterov=true", "optimizer.nesterov=True: nothing reads this key"),
        ("optimizer.lr=1,2", "optimizer.lr=1,2: several values are a sweep, for which add -m"),
        (
            "sweep=kmeans/init,kmeans/learning_rate",
            "a job cannot change hydra.sweeper, which holds for the",
        ),
        (
            "-m seed=0,1 hydra.sweep.subdir=a",
            "hydra.sweep.subdir=a: two configurations share this directory",
        ),
        (
            "-m seed=0,1 force=true,false",
            "a job cannot change hydra.sweeper, which holds for the whole sweep; give it one value",
        ),
        (
            "optimizer=adam",
            "optimizer=adam: must be one of adamw, inverse_count, sgd, sqrt_share; another of torch.optim",
        ),
        ("optimizer=adamw", "with model=kmeans it must be one of sgd, inverse_count, sqrt_share"),
        ("+colour=red", "colour=red: nothing reads this key"),
        ("trainer.devices=3", "data.batch_size=64: is split among trainer.devices=3"),
        (
            "data.train_size=100 data.val_size=100",
            "data.val_size=100: is held out of data.train_size=100",
        ),
        (
            "trainer.precision=bf16-mixed model=kmeans",
            "trainer.precision=bf16-mixed: k-means counts in float32",
        ),
    ],
)
def test_a_mistake_is_refused_in_one_line_that_names_key_value_and_rule(
    words: str, told: str
) -> None:
    """Unknown keys, wrong types and values out of range end before any job, each in a line of its own."""
    default = [] if "model=" in words else ["model=kmeans"]
    message = refusal(*default, *words.split())
    assert told in message
    assert len(message.splitlines()) == 1


def test_a_sweep_and_an_experiment_of_two_models_are_told_apart() -> None:
    """The experiment's file is in order, and needs no line more: the grid beside it is of the other model."""
    told = "experiment/q1b.yaml: chooses init, which needs model=kmeans; leave out sweep=q2c/latent"
    assert refusal("sweep=q2c/latent", "experiment=q1b") == told


def test_a_folder_with_a_space_and_an_equals_sign_is_told_its_quotes() -> None:
    """Its parts are no words of their own; two settings in one pair of quotes are."""
    told = """quote other characters, as hydra.sweep.dir='"/a b/x=y"'"""
    assert refusal("-m", "hydra.sweep.dir=/a b/x=y").endswith(told)


def test_a_folder_for_a_word_is_a_run_to_go_on_with(tmp_path: Path) -> None:
    """`train.py outputs/runs/RUN`: the word that was meant."""
    assert (
        refusal(str(tmp_path))
        == f"{tmp_path}: is a folder; resume={tmp_path} continues the run in it"
    )


def test_all_values_out_of_range_are_told_at_once() -> None:
    """Two mistakes in one command need one attempt to find, not two."""
    assert refusal("optimizer.lr=-1", "data.batch_size=0").splitlines() == [
        "optimizer.lr=-1.0: must be > 0 and finite",
        "data.batch_size=0: must be >= 1 and at most 10000000",
    ]


def test_a_mistake_in_the_last_job_of_a_grid_is_told_before_the_first() -> None:
    """The grid 2 x 2 is composed whole; only its last epoch count is wrong."""
    assert (
        refusal("-m", "optimizer.lr=1,2", "trainer.max_epochs=1,0")
        == "trainer.max_epochs=0: must be >= 1"
    )


def test_a_grid_has_every_combination() -> None:
    """Two rates by three epoch counts are six jobs, the last key varying fastest."""
    grid = compose("-m", "optimizer.lr=1,2", "trainer.max_epochs=1,2,3")
    assert [(cfg.optimizer.lr, cfg.trainer.max_epochs) for cfg in grid] == [
        (1.0, 1), (1.0, 2), (1.0, 3), (2.0, 1), (2.0, 2), (2.0, 3)
    ]  # fmt: skip


def test_seed_0_and_other_false_values_survive() -> None:
    """Values that Python takes for false are values all the same."""
    (cfg,) = compose("seed=0", "data.val_size=0", "data.verify=false")
    assert (cfg.seed, cfg.data.val_size, cfg.data.verify) == (0, 0, False)


def test_kmeans_has_its_own_default_rate() -> None:
    """The seed report's eta for k-means; a rate given on the command line wins over it."""
    assert compose("model=kmeans")[0].optimizer.lr == 4.5
    assert compose("model=kmeans", "optimizer.lr=0.01")[0].optimizer.lr == 0.01


def test_data_root_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """DIGITLAB_DATA names the folder; without it, data/."""
    monkeypatch.delenv("DIGITLAB_DATA", raising=False)
    assert compose()[0].data.root == "data"
    monkeypatch.setenv("DIGITLAB_DATA", "/elsewhere")
    assert compose()[0].data.root == "/elsewhere"


def test_resume_accepts_no_other_values_and_needs_a_run(tmp_path: Path) -> None:
    """A folder that holds no run, and a changed value with a resumed one, are refused."""
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


@pytest.mark.parametrize("words", ["--help", "--cfg job", "optimizer.lr=-1", "optimizer.lrr=1"])
def test_nothing_heavy_is_imported_for_help_or_a_mistake(words: str, tmp_path: Path) -> None:
    """These answer at once because torch, which takes seconds, stays unimported; a mistake leaves no directory."""
    script = (
        "import runpy, sys\n"
        f"sys.argv = ['train.py', *{words.split()!r}]\n"
        f"try:\n    runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')\n"
        "except SystemExit as done:\n    print('exit', done.code or 0)\n"
        "print('heavy', sorted({'torch', 'lightning', 'numpy', 'matplotlib', 'sklearn'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert "heavy []" in done.stdout, done.stdout + done.stderr
    assert f"exit {2 if 'optimizer' in words else 0}" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "defaults:\n  - override /model: kmeans\n",
            "begin it with the line `# @package _global_`",
        ),
        (
            "# @package _global_\ndefaults:\n  - override model: kmeans\n",
            "write `override /model: kmeans`",
        ),
        ("# @package _global_\ndefaults:\n  - /model: kmeans\n", "write `override /model: kmeans`"),
        (
            "# @package _global_\ndefaults:\n  - override /init: digit\n",
            "add `override /model: kmeans` above it",
        ),
    ],
)
def test_an_experiment_of_one_s_own_is_told_what_it_lacks(
    text: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first line, the word override, the slash: each that is missing is named, in a line."""
    shutil.copytree(schema.CONF, tmp_path / "conf")
    monkeypatch.setattr(schema, "CONF", tmp_path / "conf")
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(text)
    message = refusal("experiment=mine")
    assert told in message
    assert len(message.splitlines()) == 1


def test_an_init_of_one_s_own_is_told_its_first_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its YAML without the line that Hydra places it by: the line is named."""
    shutil.copytree(schema.CONF, tmp_path / "conf")
    monkeypatch.setattr(schema, "CONF", tmp_path / "conf")
    (tmp_path / "conf" / "init" / "mine.yaml").write_text("name: mine\n")
    assert refusal("model=kmeans", "init=mine").endswith(
        "; begin it with the line `# @package model.init`"
    )


def test_a_glob_names_choices() -> None:
    """`init=glob(*)` is a job for each file of conf/init."""
    jobs = compose("-m", "model=kmeans", "init=glob(*)", "optimizer.lr=1")
    assert [job.model.init.name for job in jobs] == schema.choices("init")


def test_a_yaml_may_make_a_run_a_sweep(lab: Lab, words: list[str], tmp_path: Path) -> None:
    """`hydra.mode: MULTIRUN` in an experiment of --config-dir: planned, named and reported as any sweep."""
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    text = "# @package _global_\nhydra: {mode: MULTIRUN, sweeper: {params: {seed: '0,1'}}}\n"
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text(text)
    command = ["--config-dir=own", "experiment=mine", "model=kmeans", *words, "dry_run=true"]
    done = lab(*command)
    assert done.returncode == 0, done.stderr
    place = tmp_path / "outputs" / "sweeps"
    assert f"2 jobs in {place}/" in done.stdout
    assert done.stdout.endswith(": 2 to run\n")


@pytest.mark.slow
def test_hydra_s_flags_work_and_overwrite_no_run(
    lab: Lab, words: list[str], tmp_path: Path
) -> None:
    """--config-dir and --config-name compose as Hydra documents; a run that is there is not overwritten."""
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 7\n")
    (tmp_path / "own" / "other.yaml").write_text("defaults: [config]\nseed: 9\n")
    small = ["model=kmeans", *words, "trainer.max_epochs=1"]
    assert lab(*small, "hydra.run.dir=run").returncode == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    refused = lab("--config-dir=own", *small, "experiment=mine", "hydra.run.dir=run")
    assert refused.returncode == 2
    assert refused.stderr.startswith("Error: run: holds a run of another configuration")
    assert before == {
        path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()
    }
    done = lab(
        "-m",
        "--config-dir=own",
        *small,
        "experiment=mine",
        "init=digit,sample",
        "hydra.sweep.dir=sweep",
    )
    assert done.returncode == 0, done.stderr
    seeds = [json.loads(path.read_text())["seed"] for path in tmp_path.glob("sweep/*/results.json")]
    assert seeds == [7, 7]
    done = lab("--config-dir=own", "--config-name=other", *small, "hydra.run.dir=named")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "named" / "results.json").read_text())["seed"] == 9


@pytest.mark.slow
def test_hydra_s_own_sweeper_runs_the_jobs(lab: Lab, words: list[str], tmp_path: Path) -> None:
    """hydra/sweeper=basic trains each job in a directory of its own; dry_run needs digitlab's sweeper."""
    command = [
        "-m",
        "hydra/sweeper=basic",
        "model=kmeans",
        *words,
        "trainer.max_epochs=1",
        "seed=0,1",
    ]
    refused = lab(*command, "hydra.sweep.dir=dry", "dry_run=true")
    assert refused.returncode == 2
    assert "dry_run=true: only hydra/sweeper=digitlab lists its jobs" in refused.stderr
    done = lab(*command, "hydra.sweep.dir=sweep")
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("sweep/*/results.json"))) == 2
    failed = lab(*command, "hydra.sweep.dir=sweep", "optimizer.lr=1e30")
    assert failed.returncode == 1
    assert "Traceback" not in failed.stdout + failed.stderr


def test_a_callback_of_one_s_own_is_called(lab: Lab, words: list[str], tmp_path: Path) -> None:
    """`hydra.callbacks` of the command line works as Hydra documents, together with digitlab's."""
    callback = "+hydra.callbacks.log={_target_: hydra.experimental.callbacks.LogJobReturnCallback}"
    done = lab("model=kmeans", *words, "trainer.max_epochs=1", "hydra.run.dir=run", callback)
    assert done.returncode == 0, done.stderr
    assert "Succeeded with return value" in done.stdout


@pytest.mark.parametrize("name", schema.choices("prior"))
def test_the_best_autoencoder_takes_any_prior(name: str) -> None:
    """The values of a prior are in its YAML, not in the experiment's, where they would fit one alone."""
    (cfg,) = compose("experiment=autoencoder_best", f"prior={name}")
    validation.check(cfg)
    assert cfg.model.prior.name == name


def test_a_grid_of_plain_values_is_composed_once(words: list[str], tmp_path: Path) -> None:
    """Hydra composes the mode, the sweep and one job of six; the others are copies with other values."""
    script = (
        "import runpy, sys\n"
        "from hydra._internal.config_loader_impl import ConfigLoaderImpl\n"
        "compose = ConfigLoaderImpl._load_configuration_impl\n"
        "def count(self, *arguments, **options):\n"
        "    print('composed')\n"
        "    return compose(self, *arguments, **options)\n"
        "ConfigLoaderImpl._load_configuration_impl = count\n"
        "sys.argv[:] = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    values = ["-m", "model=kmeans", *words, "seed=3,4,5", "optimizer.lr=1,2", "dry_run=true"]
    command = [sys.executable, "-c", script, str(ROOT / "train.py"), *values]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("composed\n") == 3
    assert done.stdout.endswith(": 6 to run\n")


def test_help_names_every_group_and_option(lab: Lab) -> None:
    """The help text lists what conf/ offers."""
    told = lab("--help").stdout
    for option in OPTIONS:
        group, name = option.split("=")
        assert re.search(rf"^ *{group}: [^:]*\b{re.escape(name)}", told, re.MULTILINE), option


def test_a_conf_that_is_not_there_is_told(lab: Lab) -> None:
    """Hydra's own look at --config-path, in a line that names it."""
    done = lab("--config-path", "/nowhere")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "/nowhere" in done.stderr


def test_completion_is_as_the_docs_say_and_runs_no_other_script(tmp_path: Path) -> None:
    """The line of docs/usage.md in bash: behind train.py TAB completes, behind another script it runs nothing."""
    (line,) = re.findall(r"^    (eval .*)$", (ROOT / "docs" / "usage.md").read_text(), re.MULTILINE)
    (tmp_path / "other.py").write_text("open('was_run', 'w')")

    def tab(words: str) -> str:
        pressed = f'COMP_LINE="{words}" COMP_POINT={len(words)} COMP_CWORD=2 COMPREPLY=(); hydra_bash_completion'
        return f"cd {tmp_path if 'other' in words else ROOT} && {pressed}; echo ${{COMPREPLY[@]}}"

    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    script = f"cd {ROOT} && {line} && {tab('python train.py init=k')}; {tab('python other.py x')}"
    done = subprocess.run(
        ["bash", "-c", script], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "init=kmeans++\n\n", done.stderr
    assert not (tmp_path / "was_run").exists()


# -- choices of one's own -----------------------------------------------------------------------------------


def rmsprop(folder: Path) -> str:
    """Write an optimizer of torch.optim as one YAML file; returns the word that lets Hydra find it."""
    (folder / "optimizer").mkdir(parents=True, exist_ok=True)
    (folder / "optimizer" / "rmsprop_tested.yaml").write_text(
        "name: rmsprop\nlr: 0.001\nalpha: 0.9\n"
    )
    return f"hydra.searchpath=[file://{folder}]"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("optimizer.lr=abc", "optimizer.lr=abc: must be > 0 and finite"),
        ("optimizer.alpha=-1", "optimizer=rmsprop: Invalid alpha value: -1"),
        ("optimizer.alpha=x", "optimizer.alpha=x: must be a number"),
        (
            "+optimizer.nesterov=true",
            "optimizer=rmsprop: RMSprop has no nesterov; it has lr, alpha, eps",
        ),
        (
            "optimizer.nesterov=true",
            "optimizer.nesterov=true: optimizer=rmsprop has no such key; +optimizer.nesterov=...",
        ),
        (
            "optimizer.alpah=1",
            "optimizer.alpah=1: optimizer=rmsprop has no such key; did you mean optimizer.alpha?",
        ),
        ("optimizer.name=adam", "optimizer=adam: Adam has no alpha; it has lr, betas"),
        (
            "~optimizer.alpha optimizer.name=nadam +optimizer.betas=[0.5]",
            "(with lr=0.001 betas=[0.5])",
        ),
        ("optimizer.name=NAdam", "did you mean nadam? (with lr=0.001 alpha=0.9)"),
        (
            "optimizer.name=sgd",
            "optimizer.name=sgd: has values of its own; choose optimizer=sgd instead",
        ),
        (
            "optimizer.name=soap",
            "optimizer=soap: must be one of torch.optim's adadelta, adafactor, adagrad, adam, adamax, adamw, asgd",
        ),
        ("optimizer.name=optimizer", "optimizer=optimizer: must be one of torch.optim's adadelta"),
        ("optimizer.name=muon", "optimizer=muon: must be one of torch.optim's adadelta"),
        ("optimizer.lr=true", "optimizer.lr=True: must be > 0 and finite"),
        ("~optimizer.name", "optimizer.name=None: its YAML must name a class of torch.optim"),
        ("optimizer.name=[a]", "optimizer.name=['a']: its YAML must name a class of torch.optim"),
        ("optimizer.name=lbfgs", "optimizer=lbfgs: must be one of torch.optim's adadelta"),
        (
            "model=kmeans",
            "optimizer=rmsprop: with model=kmeans it must be one of sgd, inverse_count, sqrt_share",
        ),
    ],
)
def test_an_optimizer_without_a_schema_is_checked_by_torch(
    words: str, told: str, tmp_path: Path
) -> None:
    """Whatever its constructor or its step would refuse is told before any job, in one line."""
    message = refusal("optimizer=rmsprop_tested", *words.split(), rmsprop(tmp_path))
    assert told in message
    assert len(message.splitlines()) == 1


@pytest.mark.slow
def test_an_optimizer_is_one_yaml_and_an_init_one_function_and_one_yaml(
    words: list[str], tmp_path: Path
) -> None:
    """In a copy of the program with nothing else changed both are found by --help, train, and end in results."""
    for part in ("conf", "src"):
        shutil.copytree(ROOT / part, tmp_path / part)
    shutil.copy(ROOT / "train.py", tmp_path)
    rmsprop(tmp_path / "conf")
    (tmp_path / "conf" / "init" / "first.yaml").write_text("# @package model.init\nname: first\n")

    def train(*more: str, expected: int = 0) -> str:
        command = [sys.executable, "train.py", *more]
        env = os.environ | {"PYTHONPATH": str(tmp_path / "src")}
        done = subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == expected, done.stderr
        return done.stdout + done.stderr

    told = train("-m", "model=kmeans", "init=digit,first", *words, expected=2)
    assert re.fullmatch(r"Error: init=first: .*; write a function @init\('first'\) there\n", told)
    with (tmp_path / "src" / "digitlab" / "models" / "initialization.py").open("a") as file:
        file.write(
            '@init("first")\ndef first(data, n_clusters, rng):\n    return scale(data.images[:n_clusters]).flatten(1)\n'
        )
    listed = train("--help")
    assert re.search(r"init: [^:]*\bfirst\b", listed)
    assert re.search(r"optimizer: [^:]*\brmsprop_tested\b", listed)
    data = [*words, "data.val_size=0"]
    train("model=kmeans", "init=first", "optimizer.lr=1e-9", "hydra.run.dir=kmeans", *data)
    images = load(str(Path(words[0].partition("=")[2])), "files", verify=False).train.images
    assert np.allclose(np.load(tmp_path / "kmeans" / "centers.npy"), images[:10] / 255, atol=1e-6)
    train("optimizer=rmsprop_tested", "optimizer.alpha=0.5", "hydra.run.dir=net", *data)
    losses = [
        float(line.split(",")[2])
        for line in (tmp_path / "net" / "metrics.csv").read_text().splitlines()[1:]
    ]
    assert losses[-1] < losses[0]
    told = train("-m", "optimizer=rmsprop_tested", "optimizer.alpha=0.5,-1", *data, expected=2)
    error = "Error: optimizer=rmsprop: Invalid alpha value: -1 (with lr=0.001 alpha=-1)\n"
    assert told.endswith(error)
    assert not (tmp_path / "outputs" / "sweeps").exists()


@pytest.mark.parametrize(
    "text", ["lr 0.1\nalpha: 0.9\n", "lr:\t0.1\n\tb: 1\n", "lr: 0.1\nlr: 0.2\n"]
)
@pytest.mark.parametrize("words", [[], ["-m", "seed=0,1"], ["--cfg", "job"]])
def test_a_yaml_that_cannot_be_read_is_named_with_the_line(
    text: str, words: list[str], lab: Lab, tmp_path: Path
) -> None:
    """A colon forgotten, a tab, a key twice in a file of one's own: one line that names the file, no traceback."""
    word = rmsprop(tmp_path / "mine")
    file = tmp_path / "mine" / "optimizer" / "rmsprop_tested.yaml"
    file.write_text("name: rmsprop\n" + text)
    done = lab(*words, "optimizer=rmsprop_tested", word)
    assert done.returncode == 2
    assert re.fullmatch(
        rf"Error: {re.escape(str(file))}, line [23]: .*; correct the file\n", done.stderr
    ), done.stderr


@pytest.mark.parametrize(
    ("group", "content", "told"),
    [
        ("optimizer", b"defaults: [/schema/mine@_here_]\nname: rmsprop\n", "remove them$"),
        (
            "optimizer",
            b"name: rmsprop\n# caf\xe9\n",
            r"a YAML holds b'.*caf\\xe9', which is not UTF-8",
        ),
        (
            "optimizer",
            b"defaults: [/schema/adamw@_here_]\nname: rmsprop\nlr: 1\nweight_decay: 0\nbeta2: 0\n",
            "in a YAML of your own leave out `defaults`",
        ),
        (
            "init",
            b"name: rmsprop_mine\n",
            "^init/rmsprop_mine.yaml: at init: Key 'init' not in 'Config'; compare .* with its neighbours",
        ),
        (
            "scheduler",
            b"name: rmsprop_mine\ngamma: 1\n",
            "^scheduler/rmsprop_mine.yaml: at scheduler.gamma: Key 'gamma' not in",
        ),
        ("optimizer", b"name: rmsprop\non: 1\n", r"optimizer=rmsprop: .* \(with True=1\)"),
        ("optimizer", b"5\n", "a YAML must hold keys; correct the file"),
        (
            "optimizer",
            b"name: a\n# \x01\n",
            "unacceptable character #x0001: .*rmsprop_mine.yaml.*; correct the file",
        ),
    ],
)
def test_a_copied_yaml_that_does_not_fit_is_told_by_what_to_mend(
    group: str, content: bytes, told: str, tmp_path: Path
) -> None:
    """Another encoding, a schema kept, the package line forgotten, a key too many: one line with the remedy."""
    (tmp_path / group).mkdir()
    (tmp_path / group / "rmsprop_mine.yaml").write_bytes(content)
    model = "kmeans" if group == "init" else "autoencoder"
    message = refusal(
        f"model={model}", f"{group}=rmsprop_mine", f"hydra.searchpath=[file://{tmp_path}]"
    )
    assert re.search(told, message)
    assert len(message.splitlines()) == 1


def test_a_yaml_of_another_ending_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra finds no mine.yml; the line says that it must be mine.yaml."""
    shutil.copytree(schema.CONF, tmp_path / "conf")
    (tmp_path / "conf" / "optimizer" / "mine.yml").write_text("name: rmsprop\n")
    monkeypatch.setattr(schema, "CONF", tmp_path / "conf")
    assert (
        refusal("optimizer=mine")
        == "optimizer=mine: conf/optimizer/mine.yml must end in .yaml; rename it"
    )


def test_a_sweep_and_a_run_named_by_half_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """resume= of a sweep's folder, or of a run without outputs/runs/ before it: the line says what to do."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "outputs" / "runs" / "mine" / "results.json").write_text("{}")
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(ValueError, match=r"; it is a sweep, which its own command continues$"):
        restore(".")
    with pytest.raises(ValueError, match=r"; did you mean resume=outputs/runs/mine\?$"):
        restore("mine")


def test_a_resumed_folder_without_a_run_is_named_once() -> None:
    """The line names the folder, what it lacks and what to name instead; so for a name that no file can have."""
    with pytest.raises(
        ValueError,
        match=r"^resume=no: holds no run \(results.json: No such file or directory\); name its",
    ):
        restore("no")
    with pytest.raises(
        ValueError, match=r"^resume=n+: holds no run \(results.json: File name too long\); name its"
    ):
        restore("n" * 300)
