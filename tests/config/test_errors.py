"""Each mistake in a command or a YAML is reported in one line with its key, value and rule."""

import re
import shutil
from pathlib import Path

import pytest

from digitlab.config import schema

from ..conftest import HYDRA_14, RunTrain, error_message, write_rmsprop

INITS = ", ".join(schema.choices("init"))


@pytest.mark.parametrize(
    ("command", "expected"),
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
            "model.latent_dim=0: must be >= 1",
        ),
        ("model=vae model.beta=-1", "model.beta=-1.0: must be >= 0 and finite"),
        (
            "model=vae model.flow=4 model.latent_dim=1",
            "model.flow=4: splits z in halves and needs model.latent_dim >= 2",
        ),
        ("model=autoencoder model.latent_dim=785", "model.latent_dim=785: must be from 1 to 784"),
        (
            "model=autoencoder model.channels=[]",
            "model.channels=[]: must be 1 layer or more of >= 1 channels",
        ),
        (
            "model=autoencoder model.channels=[4,0]",
            "model.channels=[4, 0]: must be 1 layer or more of >= 1 channels",
        ),
        (
            "model=autoencoder model.channels=[{channels:4,kernels:4}]",
            "must be 1 layer or more of >= 1 channels, each a number or as {channels: 32, kernel:",
        ),
        (
            "model=autoencoder model.channels=[{channels:4,kernel:4},4,4,4,4,4]",
            "28 x 28 can be halved 5 times (14, 7, 4, 2, 1)",
        ),
        (
            "model=autoencoder model.hidden={width:8,blocks:-1}",
            "must be >= 1, or null for none, or as {width: 128, blocks: 2}",
        ),
        ("optimizer=muon optimizer.ns_steps=0", "optimizer.ns_steps=0: must be from 1 to 100"),
        (
            "model=kmeans optimizer=muon",
            "optimizer=muon: with model=kmeans it must be one of sgd, inverse_count, sqrt_share",
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
            (
                "experiment/kmeans_best.yaml: at optimizer.lr: Key 'lr' not in 'InverseCount'; "
                "leave out optimizer=inverse"
            ),
        ),
        (
            "experiment=autoencoder_best model=kmeans",
            (
                "experiment/autoencoder_best.yaml: chooses prior, which needs model=autoencoder or"
                " model=vae; leave out model=kmeans"
            ),
        ),
        (
            "-m seed=range(1,3),5",
            (
                "seed=range(1,3),5: range(1,3) and the like cannot stand in a list; write the "
                "values, as 1,2,5"
            ),
        ),
        (
            "-m hydra/launcher=ray hydra.launcher.ray.remote.num_cpus=2",
            (
                "hydra.launcher.ray.remote has no such key; a new key takes a +, as "
                "+hydra.launcher.ray.remote.num_cpus=2"
            ),
        ),
        (
            "hydra.job.env_set.FOO=1",
            "has no such key; a new key takes a +, as +hydra.job.env_set.FOO=1",
        ),
        (
            "optimizer.lr=[1",
            (
                "optimizer.lr=[1: is not key=value; leave out spaces around =, close brackets "
                "and quotes"
            ),
        ),
        ("data.root=~/mnist", "data.root=~/mnist: is not key=value"),
        ("init=digits", f"init=digits: must be one of {INITS}; did you mean init=digit?"),
        ("sweep=learning_rate", "; did you mean sweep=kmeans/learning_rate?"),
        (
            "model=kmean",
            "model=kmean: must be one of autoencoder, kmeans, vae; did you mean model=kmeans?",
        ),
        ("kmeans", "kmeans: is not key=value; did you mean model=kmeans?"),
        ("dry_run", "dry_run: is not key=value; did you mean dry_run=true?"),
        (
            "-m seed=[0,1]",
            (
                "could not be converted to Integer; several values are seed=1,2 with -m, in the "
                "YAML of a"
            ),
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
            "seed=interval(0,3): a grid needs a list of values; write 1,2,3 or range(1,4),"
            " or search with hydra/sweeper=digitlab_search hydra.sweeper.n_trials=40",
        ),
        pytest.param(
            "-m hydra.launcher=joblib",
            "hydra.launcher=joblib: a launcher is a choice; write hydra/launcher=joblib",
            # A process says so there as well: digitlab checks before Hydra compares launchers.
            marks=pytest.mark.skipif(HYDRA_14, reason="1.4.0rc3 raises AttributeError itself"),
        ),
        (
            "-m hydra/launcher=joblib hydra.launcher.n_jobs=0",
            "hydra.launcher.n_jobs=0: must be >= 1, or -1 for all",
        ),
        ("-m seed=range(2,2)", "seed=range(2,2): has no value; give it at least one"),
        ("-m seed=${hydra:job.num},1", "HydraConfig was not set"),
        (
            "channels=wide",
            "channels=wide: is not available; channels needs model=autoencoder or model=vae",
        ),
        ("optimizer=[sgd,adamw]", "optimizer=[sgd,adamw]: must be one of adamw"),
        ("seed=null", "seed=null: field 'seed' is not Optional; must be from 0 to 4294967295"),
        (
            "-m data.root=a,b",
            (
                "data.root=a,b: jobs must not differ in this key alone; give it one value, and "
                "run a sweep"
            ),
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
            (
                "optimizer.lr=1,2: optimizer=inverse_count has no such key; sweep optimizers "
                "with different keys one by"
            ),
        ),
        ("data.root=''", "data.root=: must name a folder; unset DIGITLAB_DATA for data/"),
        ("data=/some/where", "data=/some/where: must be one of emnist, fashion_mnist, idx,"),
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
            "'hydra.sweeper' must be configured before the sweep starts"
            if HYDRA_14
            else "a job cannot change hydra.sweeper, which holds for the",
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
            (
                "optimizer=adam: must be one of adamw, inverse_count, muon, sgd, sqrt_share; "
                "another of torch.optim"
            ),
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
    command: str, expected: str
) -> None:
    """An unknown key, a wrong type or a value out of range gives one line, before any job."""
    default = [] if "model=" in command else ["model=kmeans"]
    message = error_message(*default, *command.split())
    assert expected in message
    assert len(message.splitlines()) == 1


def test_a_sweep_and_an_experiment_of_different_models_are_refused() -> None:
    """The remedy is to leave out the sweep of the other model, not to change the experiment."""
    message = (
        "experiment/q1b.yaml: chooses init, which needs model=kmeans; leave out sweep=q2c/latent"
    )
    assert error_message("sweep=q2c/latent", "experiment=q1b") == message


def test_a_path_with_a_space_and_an_equals_sign_needs_quotes() -> None:
    """The error shows the path in quotes, and does not treat its parts as two settings."""
    remedy = """quote other characters, as hydra.sweep.dir='"/a b/x=y"'"""
    assert error_message("-m", "hydra.sweep.dir=/a b/x=y").endswith(remedy)


def test_a_folder_as_an_override_suggests_resume(tmp_path: Path) -> None:
    """The error of `train.py outputs/runs/RUN` suggests `resume=outputs/runs/RUN`."""
    assert (
        error_message(str(tmp_path))
        == f"{tmp_path}: is a folder; resume={tmp_path} continues the run in it"
    )


def test_all_values_out_of_range_are_reported_together() -> None:
    """A command with two mistakes gives two lines."""
    assert error_message("optimizer.lr=-1", "data.batch_size=0").splitlines() == [
        "optimizer.lr=-1.0: must be > 0 and finite",
        "data.batch_size=0: must be >= 1 and at most 10000000",
    ]


def test_a_mistake_in_the_last_job_of_a_grid_is_reported_before_the_first_starts() -> None:
    """All jobs of a 2 x 2 grid are checked; only the last epoch count is wrong."""
    assert (
        error_message("-m", "optimizer.lr=1,2", "trainer.max_epochs=1,0")
        == "trainer.max_epochs=0: must be >= 1"
    )


# -- YAMLs of users ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
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
def test_an_incomplete_experiment_is_refused_with_the_missing_part(
    text: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names a missing first line, a missing `override` or a missing slash."""
    shutil.copytree(schema.CONF, tmp_path / "conf")
    monkeypatch.setattr(schema, "CONF", tmp_path / "conf")
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(text)
    message = error_message("experiment=mine")
    assert expected in message
    assert len(message.splitlines()) == 1


def test_an_init_without_its_package_line_is_refused_with_that_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error shows the `@package` line, which tells Hydra where the values belong."""
    shutil.copytree(schema.CONF, tmp_path / "conf")
    monkeypatch.setattr(schema, "CONF", tmp_path / "conf")
    (tmp_path / "conf" / "init" / "mine.yaml").write_text("name: mine\n")
    assert error_message("model=kmeans", "init=mine").endswith(
        "; begin it with the line `# @package model.init`"
    )


@pytest.mark.parametrize(
    ("command", "expected"),
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
            (
                "optimizer=soap: must be one of torch.optim's adadelta, adafactor, adagrad, "
                "adam, adamax, adamw, asgd"
            ),
        ),
        ("optimizer.name=optimizer", "optimizer=optimizer: must be one of torch.optim's adadelta"),
        (
            "optimizer.name=muon",
            "optimizer.name=muon: has values of its own; choose optimizer=muon instead",
        ),
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
    command: str, expected: str, tmp_path: Path
) -> None:
    """A value that its constructor or its step refuses gives one line, before any job."""
    message = error_message("optimizer=rmsprop_tested", *command.split(), write_rmsprop(tmp_path))
    assert expected in message
    assert len(message.splitlines()) == 1


MISSING_COLON, TAB, TWICE = ("lr 0.1\nalpha: 0.9\n", "lr:\t0.1\n\tb: 1\n", "lr: 0.1\nlr: 0.2\n")


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        (MISSING_COLON, []),
        (TAB, []),
        (TWICE, []),
        (TAB, ["-m", "seed=0,1"]),
        (TWICE, ["--cfg", "job"]),
    ],
)
def test_a_yaml_that_cannot_be_read_is_named_with_the_line(
    text: str, arguments: list[str], run_train: RunTrain, tmp_path: Path
) -> None:
    """A missing colon, a tab or a repeated key gives one line with the file and its line number."""
    search_path = write_rmsprop(tmp_path / "mine")
    file = tmp_path / "mine" / "optimizer" / "rmsprop_tested.yaml"
    file.write_text("name: rmsprop\n" + text)
    done = run_train(*arguments, "optimizer=rmsprop_tested", search_path)
    assert done.returncode == 2
    assert re.fullmatch(
        rf"Error: {re.escape(str(file))}, line [23]: .*; correct the file\n", done.stderr
    ), done.stderr


@pytest.mark.parametrize(
    ("group", "content", "expected"),
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
            (
                "^init/rmsprop_mine.yaml: at init: Key 'init' not in 'Config'; compare .* with "
                "its neighbours"
            ),
        ),
        (
            "scheduler",
            b"name: rmsprop_mine\ngamma: 1\n",
            "^scheduler.name=rmsprop_mine: must be one of constant, linear, cosine",
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
def test_a_copied_yaml_that_does_not_fit_is_refused_with_a_remedy(
    group: str, content: bytes, expected: str, tmp_path: Path
) -> None:
    """One line says what to change in a YAML that was copied and edited wrongly.

    Examples are another encoding, a remaining schema, a missing package line and an unknown key.
    """
    (tmp_path / group).mkdir()
    (tmp_path / group / "rmsprop_mine.yaml").write_bytes(content)
    model = "kmeans" if group == "init" else "autoencoder"
    message = error_message(
        f"model={model}", f"{group}=rmsprop_mine", f"hydra.searchpath=[file://{tmp_path}]"
    )
    assert re.search(expected, message)
    assert len(message.splitlines()) == 1


def test_a_choice_with_the_ending_yml_is_refused_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hydra does not read mine.yml; the error says that the file must be mine.yaml."""
    shutil.copytree(schema.CONF, tmp_path / "conf")
    (tmp_path / "conf" / "optimizer" / "mine.yml").write_text("name: rmsprop\n")
    monkeypatch.setattr(schema, "CONF", tmp_path / "conf")
    assert error_message("optimizer=mine") == (
        "Unsupported config file extension '.yml'. Hydra config files must use the '.yaml'"
        " extension. Rename the file."
        if HYDRA_14
        else "optimizer=mine: conf/optimizer/mine.yml must end in .yaml; rename it"
    )
