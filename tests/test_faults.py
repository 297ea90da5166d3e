"""Generated faults of users, disks and untrusted files: none is accepted or ends in a traceback."""

import errno
import gzip
import hashlib
import importlib
import json
import os
import random
import re
import shutil
import signal
import sys
import time
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from digitlab import RunFailed
from digitlab.config import errors, validation
from digitlab.data.idx import DIGESTS
from digitlab.data.mnist import load
from digitlab.models import checkpoints
from digitlab.report import live, progress
from digitlab.report.page import write_report
from digitlab.runs.provenance import flatten, make_run_id
from digitlab.runs.restore import restore
from digitlab.runs.results import read_results, run_state
from hydra_plugins.resumable_sweeper.jobs import read_plan

from .conftest import (
    RunTrain,
    StartTrain,
    compose,
    copy_run,
    load_results,
    plan_jobs,
    run_in_process,
    small_run,
    write_idx,
)
from .training.test_experiment import assert_same

# Together they contain each key of every schema.
BASES = (
    "model=kmeans init=sample",
    "model=kmeans optimizer=inverse_count",
    "model=autoencoder optimizer=adamw scheduler=one_cycle prior=mixture",
    "model=autoencoder optimizer=sgd",
)
NOT_NUMBERS = (
    "abc",
    "''",
    "[1,2]",
    "{a:1}",
    "true1",
    "1e",
    "0x",
    "--1",
    "1,5x",
    "${nothing}",
    "${seed",
    "None",
    "-",
)
OUT_OF_RANGE = ("-1", "-0.5", "nan", "inf", "-inf", "-1e30", "1e400", "-999999999999999999999")
NOT_WORDS = (
    "abc",
    "''",
    "[1,2]",
    "{a:1}",
    "3",
    "-1",
    "nan",
    "null",
    "AUTO",
    "auto2",
    "../auto",
    "auto;rm",
)
NOT_BOOLS = ("abc", "[1]", "{a:1}", "2.5", "nan", "null", "tru", "''")
NOT_LISTS = (
    "abc",
    "3",
    "[]",
    "[0]",
    "[-1,4]",
    "[1.5]",
    "[a]",
    "[[1]]",
    "{a:1}",
    "[nan]",
    "[1,1,1,1,1,1]",
    "null",
)
SIGNS = "[]{}'\"\\,:=%#!@ az09"
# Any text is a valid path; test_plugins.py has the mistakes in plugins.
PATH_KEYS = ("data.root", "resume", "plugins")
GROUPS = (
    "model",
    "init",
    "channels",
    "prior",
    "optimizer",
    "scheduler",
    "data",
    "trainer",
    "experiment",
    "sweep",
)


def make_invalid_values(value: Any, rng: random.Random) -> list[str]:
    """Return values of wrong type or range for a key that has this valid value."""
    if isinstance(value, bool):
        invalid = [*NOT_BOOLS]
    elif isinstance(value, int | float) or value is None:
        invalid = [*NOT_NUMBERS, *OUT_OF_RANGE]
        if not isinstance(value, float):
            invalid += ["1.5", "true"]
        if value is None:
            invalid.remove("None")
        else:
            invalid.append("null")
    elif isinstance(value, list):
        invalid = [*NOT_LISTS]
    else:
        invalid = [*NOT_WORDS]
    for _ in range(4):
        invalid.append("".join(rng.choices(SIGNS, k=rng.randrange(2, 9))) + "[")
    return invalid


def make_invalid_overrides(key: str, value: Any, rng: random.Random) -> list[str]:
    """Return overrides with invalid values of a key, and with misspelt and misplaced keys."""
    overrides = [f"{key}={invalid}" for invalid in make_invalid_values(value, rng)]
    if key == "data.val_size":
        # A tenth.
        overrides.remove(f"{key}=null")
    at = rng.randrange(len(key))
    parent = key.rpartition(".")[0] or key
    return [
        *overrides,
        f"{key[:at]}{key[at + 1 :]}=1",
        f"{key[:at]}z{key[at:]}=1",
        f"{key}x=1",
        f"{key}.more=1",
        f"+{key}.more=1",
        f"~{key}",
        f"{key}=???",
        f"{parent}=null",
    ]


def make_invalid_commands() -> list[tuple[str, str]]:
    """Return commands of BASES with one invalid override for each key and group."""
    # Any text is a note.
    commands, seen, rng = [], {*PATH_KEYS, "note"}, random.Random(0)
    for base in BASES:
        (cfg,) = compose(*base.split())
        settings: Any = OmegaConf.to_container(cfg)
        for key, value in flatten(settings).items():
            if key not in seen:
                seen.add(key)
                overrides = make_invalid_overrides(key, value, rng)
                commands += [(base, override) for override in overrides]
    for group in GROUPS:
        commands += [(BASES[0], f"{group}={word}") for word in NOT_WORDS if word != "null"]
    return commands


@pytest.mark.slow
def test_no_invalid_override_is_accepted_or_ends_in_a_traceback() -> None:
    """Each of 150 invalid overrides is refused in at most two lines.

    They are drawn from more than a thousand, generated from the keys of the configurations.
    """
    commands = make_invalid_commands()
    assert len(commands) > 1000
    accepted, badly_worded = [], []
    for base, override in random.Random(1).sample(commands, 150):
        key = override.partition("=")[0]
        command = [word for word in base.split() if word.partition("=")[0] != key]
        command.append(override)
        try:
            for cfg in compose(*command):
                assert cfg is not None
        except Exception as error:
            if not errors.is_mistake(error):
                raise
            message = errors.format_error(error, command)
            if not 1 <= len(message.splitlines()) <= 2 or "Traceback" in message:
                badly_worded.append((override, message))
        else:
            accepted.append((base, override))
    assert accepted == []
    assert badly_worded == []


# -- data files --------------------------------------------------------------------------------


def damage_data_file(path: Path, kind: str, rng: random.Random) -> None:
    """Truncate or extend an IDX file, change its header, or flip one of its bits."""
    content = bytearray(path.read_bytes())
    is_compressed = path.suffix == ".gz"
    if kind == "truncated" or (is_compressed and kind == "extended"):
        content = content[: rng.randrange(len(content))]
    elif kind == "extended":
        content += bytes(rng.randrange(1, 50))
    elif is_compressed:
        content[rng.randrange(3)] ^= 1 << rng.randrange(8)
    elif kind == "header":
        content[rng.randrange(8)] ^= 1 << rng.randrange(8)
    else:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


@pytest.mark.parametrize("verify", [True, False])
def test_no_damaged_data_file_is_read(
    verify: bool, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of 160 files that are truncated, extended, or have a changed header is refused.

    With `verify`, which checks digests, so is a file with one bit flipped.
    """
    rng, names = random.Random(verify), sorted(path.name for path in tiny.iterdir())
    kinds = ["truncated", "extended", "header"]
    if verify:
        kinds.append("bit")
    paths = {name.removesuffix(".gz"): tiny / name for name in names}
    # The digest of the data set depends on the order of DIGESTS.
    digests = {name: hash_content(paths[name]) for name in DIGESTS}
    monkeypatch.setattr("digitlab.data.idx.DIGESTS", digests)
    assert len(load(str(tiny), "files", verify).train.labels) == 600, "undamaged files are read"
    for number in range(160):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name in names:
            (folder / name).write_bytes((tiny / name).read_bytes())
        path = folder / rng.choice(names)
        damage_data_file(path, rng.choice(kinds), rng)
        with pytest.raises(ValueError, match=re.escape(str(path))):
            load(str(folder), "files", verify)


def hash_content(path: Path) -> str:
    """Return the SHA-256 of an IDX file, decompressed."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("shape", [(20, 27, 28), (20, 32, 32), (20, 28, 28, 3), (0, 28, 28)])
def test_a_data_set_of_another_shape_is_refused(
    shape: tuple[int, ...], tiny: Path, tmp_path: Path
) -> None:
    """The error for images of another size, in colour, or for no images names the file."""
    for path in tiny.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", np.zeros(shape))
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(shape[0]))
    with pytest.raises(ValueError, match="train-images-idx3-ubyte"):
        load(str(tmp_path), "files", verify=False)


# -- files of a run ----------------------------------------------------------------------------

MODELS = ("kmeans", "autoencoder")


def flip_bit(content: bytearray, rng: random.Random) -> None:
    """Flip a random bit."""
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


@pytest.fixture(scope="module")
def completed(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Complete a run of each model; returns their directories."""
    small = [f"data.root={tiny}", "data.verify=false", "data.val_size=100", "data.batch_size=20"]
    small += ["trainer.accelerator=cpu", "trainer.max_epochs=2"]
    folder = tmp_path_factory.mktemp("completed")
    run_in_process(["model=kmeans", "init=digit", *small], folder / "kmeans")
    run_in_process(["model=autoencoder", "model.channels=[4,8]", *small], folder / "autoencoder")
    return {model: folder / model for model in MODELS}


@pytest.mark.parametrize("model", MODELS)
def test_no_damaged_run_counts_as_completed(model: str, completed: dict[str, Path]) -> None:
    """A run with a truncated, changed or deleted file is `damaged` or `new`, 120 of 120 times."""
    rng, run = random.Random(model), completed[model]
    assert run_state(run) == "completed"
    files = [run / name for name in load_results(run)["files"]]
    for _ in range(120):
        path = rng.choice([*files, run / "results.json"])
        content = path.read_bytes()
        damaged = bytearray(content)
        if path.name == "results.json" or rng.random() < 0.5:
            damaged = damaged[: rng.randrange(len(damaged) - 2)]
        else:
            flip_bit(damaged, rng)
        if rng.random() < 0.1:
            path.unlink()
        else:
            path.write_bytes(damaged)
        assert run_state(run) in ("damaged", "new"), f"{path.name} has changed"
        path.write_bytes(content)
    assert run_state(run) == "completed"


@pytest.mark.parametrize("model", MODELS)
def test_a_damaged_checkpoint_is_refused_or_has_the_same_weights(
    model: str, completed: dict[str, Path], tmp_path: Path
) -> None:
    """A checkpoint with a bit flipped or truncated anywhere gives a ValueError that names it.

    It may load, with the same weights, if the bit is in a part that zip does not need.
    """
    rng, path = random.Random(model), completed[model] / "checkpoints" / "best.ckpt"
    content, before = path.read_bytes(), checkpoints.load_model(path).state_dict()
    for _ in range(150):
        damaged = bytearray(content)
        if rng.random() < 0.3:
            damaged = damaged[: rng.randrange(len(damaged))]
        else:
            flip_bit(damaged, rng)
        (tmp_path / "one.ckpt").write_bytes(damaged)
        model_or_error = try_to_load(tmp_path / "one.ckpt")
        if isinstance(model_or_error, ValueError):
            assert "one.ckpt" in str(model_or_error)
        else:
            after = model_or_error.state_dict()
            assert all(torch.equal(after[key], value) for key, value in before.items())


def try_to_load(path: Path) -> LightningModule | ValueError:
    """Return the model of a checkpoint, or the error that refuses it."""
    try:
        return checkpoints.load_model(path)
    except ValueError as error:
        return error


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_a_crafted_checkpoint_is_refused_or_is_a_model(
    model: str, completed: dict[str, Path], tmp_path: Path
) -> None:
    """An entry, constructor argument or weight of another type gives a ValueError or a model."""
    path = completed[model] / "checkpoints" / "best.ckpt"
    content, tried = checkpoints.read_checkpoint(path), 0
    entries = ("model", "hyper_parameters", "state_dict")
    for part in (content, content["hyper_parameters"], content["state_dict"]):
        keys = list(part)
        if part is content:
            keys = [*entries]
        for key in keys:
            original = part[key]
            for value in (*INVALID, torch.zeros(2, 3), "os.system"):
                part[key] = value
                torch.save(content, tmp_path / "one.ckpt")
                tried += 1
                model_or_error = try_to_load(tmp_path / "one.ckpt")
                if isinstance(model_or_error, ValueError):
                    assert "one.ckpt" in str(model_or_error)
            part[key] = original
    assert tried > 100


MISSING = object()
INVALID: tuple[Any, ...] = (
    None,
    3,
    -1.5,
    "../../x",
    [],
    {},
    [1],
    {"a": 1},
    True,
    float("nan"),
    [[]],
    {"a": {"b": []}},
)


@pytest.mark.parametrize("model", ["kmeans", pytest.param("autoencoder", marks=pytest.mark.slow)])
def test_an_invalid_results_json_causes_no_traceback(
    model: str,
    completed: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A results.json in which a key is missing or invalid is skipped, shown or refused.

    This holds for reports, `resume`, evaluate.py, the progress and the page of a sweep.
    """
    content, evaluate = load_results(completed[model]), importlib.import_module("evaluate")
    assert content["status"] == "completed"
    rng, run = random.Random(model), tmp_path / "run"
    (run / "figures").mkdir(parents=True)
    monkeypatch.setattr(sys, "argv", ["evaluate.py", str(run)])
    plan_jobs(tmp_path, run="seed=0")
    settings = content["config"]
    parts = (content, settings, content["metrics"], settings["model"], settings["optimizer"])
    for part in parts:
        for key in list(part):
            original = part[key]
            for number, value in enumerate(rng.sample((*INVALID, MISSING), 2)):
                set_or_delete(part, key, value)
                (run / "results.json").write_text(json.dumps(content))
                # The sweep has a plan, the run alone has none.
                reported = (tmp_path, run)[number % 2]
                with suppress(ValueError):
                    write_report([reported], tmp_path / "report")
                with suppress(ValueError, OmegaConfBaseException):
                    validation.check(restore(str(run)))
                run_state(run)
                with pytest.raises(SystemExit):
                    evaluate.main()
                progress.standing(tmp_path, "run")
                live.render_page(tmp_path, read_plan(tmp_path), tmp_path, "", False)
            part[key] = original


def set_or_delete(content: dict[str, Any], key: str, value: Any) -> None:
    """Set a key, or delete it if the value is MISSING."""
    if value is MISSING:
        del content[key]
    else:
        content[key] = value


def test_an_invalid_metric_is_reported_as_different(
    completed: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """evaluate.py says that a missing or invalid metric differs from the checkpoint's.

    It may say instead that the folder holds no run. Both cases occur.
    """
    run, evaluate, codes = tmp_path / "run", importlib.import_module("evaluate"), set()
    shutil.copytree(completed["kmeans"], run)
    monkeypatch.setattr(sys, "argv", ["evaluate.py", str(run)])
    content = load_results(run)
    for key in content["metrics"]:
        for value in (*INVALID, MISSING):
            metrics = dict(content["metrics"])
            set_or_delete(metrics, key, value)
            (run / "results.json").write_text(json.dumps(content | {"metrics": metrics}))
            with pytest.raises(SystemExit) as end:
                evaluate.main()
            output = capsys.readouterr()
            expected = int("not as recorded" in output.out)
            if "holds no run" in output.err:
                expected = 2
            assert end.value.code == expected, output.err
            codes.add(end.value.code)
    assert {1, 2} <= codes


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        "3",
        '{"jobs": [{"name": [], "lines": ["a"]}]}',
        '{"jobs": [{"name": "a", "lines": ["a"], "epochs": 1}]}',
        '{"jobs": [{"name": "a", "lines": ["a"], "requested": "now"}]}',
        '{"jobs": [{"name": "a", "lines": "a"}]}',
    ],
)
def test_an_invalid_plan_of_a_sweep_has_no_jobs(text: str, tmp_path: Path) -> None:
    """A sweep.json that this program cannot have written has no jobs, and no report."""
    (tmp_path / "sweep.json").write_text(text)
    assert not read_plan(tmp_path)
    with pytest.raises(ValueError, match="holds no run"):
        write_report([tmp_path], tmp_path / "report")


def test_a_results_json_that_is_nested_too_deeply_is_no_run(tmp_path: Path) -> None:
    """A results.json nested deeper than Python's stack is no run, and causes no traceback."""
    (tmp_path / "results.json").write_text("[" * 200_000)
    assert read_results(tmp_path) is None
    with pytest.raises(ValueError, match="holds no run"):
        restore(str(tmp_path))


@pytest.fixture(scope="module")
def short_run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run k-means for an epoch; returns the directory."""
    run = tmp_path_factory.mktemp("short") / "run"
    run_in_process(["model=kmeans", *small_run(tiny, 1)], run)
    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["train.log", ".lock", ".hydra", "checkpoints", "figures/loss.png", "00000/latents", "loop"],
)
def test_a_link_that_leads_out_of_a_run_is_refused(
    name: str, short_run: Path, overrides: list[str], run_train: RunTrain, tmp_path: Path
) -> None:
    """Neither resume, a new start nor a sweep follows a link among the files of a run.

    A link that leads to itself does no harm.
    """
    command, outside = ["model=kmeans", *overrides, "trainer.max_epochs=1"], tmp_path / "outside"
    (cfg,) = compose(*command)
    run = copy_run(short_run, tmp_path / "sweep" / make_run_id(validation.to_plain(cfg)))
    link = run / name
    link.parent.mkdir(exist_ok=True)
    if link.exists():
        link.rename(tmp_path / "moved")
    is_loop = name == "loop"
    link.symlink_to(link if is_loop else outside)
    for arguments in (
        [f"resume={run}"],
        [*command, f"hydra.run.dir={run}"],
        ["-m", *command, f"hydra.sweep.dir={run.parent}"],
    ):
        done = run_train(*arguments)
        assert done.returncode == (0 if is_loop else 2)
        assert "Traceback" not in done.stdout + done.stderr
        assert is_loop or f"{link}: is a link that leads out of {run}" in done.stderr
    assert not outside.exists()


@pytest.mark.parametrize("name", ["sweep.json", "report", "report/runs.csv"])
def test_a_link_that_leads_out_of_a_sweep_is_refused(
    name: str, short_run: Path, overrides: list[str], run_train: RunTrain, tmp_path: Path
) -> None:
    """Neither a sweep nor its report writes through a link in the sweep's directory."""
    sweep_dir, outside = tmp_path / "sweep", tmp_path / "outside"
    copy_run(short_run, sweep_dir / "run")
    (sweep_dir / name).parent.mkdir(exist_ok=True)
    (sweep_dir / name).symlink_to(outside)
    done = run_train("-m", "model=kmeans", *overrides, f"hydra.sweep.dir={sweep_dir}")
    assert done.returncode == 2
    assert f"{sweep_dir / name}: is a link that leads out of {sweep_dir}" in done.stderr
    assert not outside.exists()


@pytest.mark.parametrize("name", ["evaluate", "generate", "report"])
def test_scripts_follow_no_link_out_of_a_run(
    name: str,
    completed: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """evaluate.py, generate.py and report.py refuse a run whose report is a link to the outside."""
    run = tmp_path / "run"
    shutil.copytree(completed["autoencoder"], run)
    (run / "report").symlink_to(tmp_path / "outside")
    monkeypatch.setattr(sys, "argv", [name, str(run)])
    with pytest.raises(SystemExit) as done:
        importlib.import_module(name).main()
    assert done.value.code == 2
    assert f"{run / 'report'}: is a link that leads out of {run}" in capsys.readouterr().err


def test_a_report_copies_no_figure_that_is_a_link(
    completed: dict[str, Path], tmp_path: Path
) -> None:
    """A report omits figures/latents.png if it is a link to another file of the user."""
    shutil.copytree(completed["autoencoder"], tmp_path / "run")
    latents = tmp_path / "run" / "figures" / "latents.png"
    latents.unlink()
    latents.symlink_to(__file__)
    write_report([tmp_path], tmp_path / "report")
    assert (tmp_path / "report" / "best_generated.png").is_file()
    assert not (tmp_path / "report" / "best_latents.png").exists()


def test_the_name_of_a_setting_is_no_path(completed: dict[str, Path], tmp_path: Path) -> None:
    """The figure of a setting named a/../../../x is in the report's directory."""
    content = load_results(completed["kmeans"])
    for number in (1, 2):
        config = content["config"] | {"a/../../../x": number}
        changed = content | {"run_id": str(number), "config": config}
        (tmp_path / "sweep" / str(number)).mkdir(parents=True)
        (tmp_path / "sweep" / str(number) / "results.json").write_text(json.dumps(changed))
    write_report([tmp_path / "sweep"], tmp_path / "sweep" / "deep" / "report")
    assert [path.name for path in tmp_path.rglob("*.png")] == ["effect_a-..-..-..-x.png"]
    assert (tmp_path / "sweep" / "deep" / "report" / "effect_a-..-..-..-x.png").is_file()


def test_a_results_json_cannot_read_the_environment(
    completed: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value ${oc.env:SECRET} in a results.json is refused, not resolved."""
    monkeypatch.setenv("SECRET", "hunter2")
    content = load_results(completed["kmeans"])
    content["config"]["data"]["root"] = "${oc.env:SECRET}"
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"holds no run .*its values hold \$\{\.\.\.\}"):
        restore(str(tmp_path))


def test_invalid_metric_names_and_numbers_cause_no_traceback(
    completed: dict[str, Path], tmp_path: Path
) -> None:
    """A report ignores metrics with the names of its columns.

    It skips runs with numbers beyond the range of floats, or without a seed.
    """
    content, sweep_dir = load_results(completed["kmeans"]), tmp_path / "sweep"
    names = (
        "run",
        "run_id",
        "status",
        "seed",
        "warnings",
        "setting",
        "score",
        "other",
        "repeats",
        "config.seed",
        "code",
    )
    (sweep_dir / "run").mkdir(parents=True)

    def write_results(results: dict[str, Any]) -> None:
        (sweep_dir / "run" / "results.json").write_text(json.dumps(results))

    for name in names:
        write_results(content | {"metrics": content["metrics"] | {name: 1.0}})
        assert "1 job: 1 completed." in write_report([sweep_dir], tmp_path / "report")
    for invalid in (
        content | {"metrics": content["metrics"] | {"val/loss": 10**400}},
        content | {"seed": 10**400},
        {key: value for key, value in content.items() if key != "seed"},
    ):
        write_results(invalid)
        with pytest.raises(ValueError, match="holds no run"):
            write_report([sweep_dir], tmp_path / "report")


def test_a_checkpoint_of_a_huge_or_another_model_is_refused(
    completed: dict[str, Path], tmp_path: Path
) -> None:
    """A small file that describes a network of terabytes is refused before it takes memory.

    So is one that names the digit classifier, which is no model of a run.
    """
    path = tmp_path / "a.ckpt"
    content = checkpoints.read_checkpoint(completed["autoencoder"] / "checkpoints" / "best.ckpt")
    content["hyper_parameters"] |= {"channels": [1_000_000, 1_000_000]}
    torch.save(content, path)
    with pytest.raises(
        ValueError, match=r"a\.ckpt: belongs to another model or another version of the code"
    ):
        checkpoints.load_model(path)
    torch.save(content | {"model": "judge"}, path)
    with pytest.raises(ValueError, match=r"a\.ckpt: is not a checkpoint of .* but of 'judge'"):
        checkpoints.load_model(path)


def test_a_checkpoint_that_expands_in_memory_is_refused(
    completed: dict[str, Path], tmp_path: Path
) -> None:
    """A weight that repeats one stored number is refused before it takes memory.

    So is a checkpoint whose entries are compressed.
    """
    source, path = completed["kmeans"] / "checkpoints" / "best.ckpt", tmp_path / "a.ckpt"
    content = checkpoints.read_checkpoint(source)
    shape = content["state_dict"]["centers"].shape
    content["state_dict"]["centers"] = torch.zeros(1).expand(shape)
    torch.save(content, path)
    with pytest.raises(ValueError, match="a weight claims more numbers than the file holds"):
        checkpoints.load_model(path)
    with (
        zipfile.ZipFile(source) as original,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as compressed,
    ):
        for entry in original.infolist():
            compressed.writestr(entry.filename, original.read(entry))
    with pytest.raises(ValueError, match="it is compressed, which torch's files are not"):
        checkpoints.load_model(path)


def test_huge_files_are_refused_before_they_take_memory(tiny: Path, tmp_path: Path) -> None:
    """A results.json, a plan and a raw IDX file of 64 GiB are refused immediately.

    The files are sparse, so they use no disk space.
    """
    for name in ("run/results.json", "sweep.json", "data/train-labels-idx1-ubyte"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        with (tmp_path / name).open("wb") as file:
            file.truncate(2**36)
    assert read_results(tmp_path / "run") is None
    assert not read_plan(tmp_path)
    with pytest.raises(ValueError, match="holds no run"):
        restore(str(tmp_path / "run"))
    for path in tiny.iterdir():
        if not (tmp_path / "data" / path.name).exists():
            shutil.copy(path, tmp_path / "data")
    with pytest.raises(ValueError, match="train-labels-idx1-ubyte: is not an IDX file"):
        load(str(tmp_path / "data"), "files", verify=False)
    with (tmp_path / "data" / "train-labels-idx1-ubyte").open("r+b") as file:
        file.write((tiny / "train-labels-idx1-ubyte").read_bytes())
    with pytest.raises(ValueError, match=r"holds \d+ bytes for the shape \(600,\)"):
        load(str(tmp_path / "data"), "files", verify=False)


# -- the machine -------------------------------------------------------------------------------


needs_sys = pytest.mark.skipif(
    not Path("/sys/kernel").is_dir(), reason="there is no file system that root cannot write to"
)


@needs_sys
@pytest.mark.parametrize(
    "command", ["hydra.run.dir=/sys/run", "-m seed=0,1 hydra.sweep.dir=/sys/sweep"]
)
def test_an_output_directory_that_cannot_be_written_is_refused(
    command: str, run_train: RunTrain, overrides: list[str]
) -> None:
    """A directory in /sys, where even root cannot write, gives exit code 2 and a remedy."""
    done = run_train(*command.split(), "model=kmeans", *overrides)
    assert done.returncode == 2
    assert "Error: /sys/" in done.stderr
    assert "choose another place" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@needs_sys
def test_a_data_folder_that_cannot_be_created_fails_the_run_with_a_remedy(
    run_train: RunTrain, overrides: list[str]
) -> None:
    """A run that must download into /sys fails, and says which files to put elsewhere."""
    done = run_train("model=kmeans", *overrides, "data.root=/sys/data", "data.source=download")
    assert done.returncode == 1
    assert "put train-images-idx3-ubyte, train-labels" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "ulimit -u"),
        (RuntimeError("can't start new thread"), "ulimit -u"),
        (
            RuntimeError(
                "unable to allocate shared memory(shm) for file </torch_1>: No space left"
            ),
            "/dev/shm",
        ),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "make room"),
        (
            AttributeError("'NoneType' object has no attribute 'shape'"),
            "train.log has the traceback",
        ),
    ],
)
def test_an_error_of_the_machine_fails_the_run_with_a_remedy(
    error: Exception,
    remedy: str,
    overrides: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The run says what to do about a full process table, shared memory, a quota and a bug.

    The same command then completes.
    """
    command = ["model=kmeans", *overrides, "trainer.max_epochs=1"]

    def fail(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("digitlab.training.fitting.Trainer.fit", fail)
        with pytest.raises(RunFailed):
            run_in_process(command, tmp_path)
    assert remedy in caplog.text
    assert run_state(tmp_path) == "failed"
    assert run_in_process(command, tmp_path)["status"] == "completed"


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_a_clock_that_jumps_changes_no_result(
    model: str, overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If each reading of the clock is a year off, bits stay the same and durations positive."""
    command = [f"model={model}", *overrides, "trainer.max_epochs=2"]
    run_in_process(command, tmp_path / "steady")
    real, rng = time.time, random.Random(0)
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: real() + rng.choice((-1, 1)) * 3e7)
        outcome = run_in_process(command, tmp_path / "jumping")
    assert outcome["seconds"] > 0
    assert outcome["fit_seconds"] > 0
    assert_same(tmp_path / "steady", tmp_path / "jumping")


# -- signals and full disks --------------------------------------------------------------------

SMALL = {
    "kmeans": ["model=kmeans", "init=digit"],
    "autoencoder": [
        "model=autoencoder",
        "model.channels=[4,8]",
        "optimizer=adamw",
        "prior=gaussian",
    ],
}


def test_ctrl_c_that_becomes_another_error_is_an_interrupt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A Ctrl-C that makes a library's clean-up fail gives exit code 130 and the usual line.

    OmegaConf raises such an error when it is interrupted between two steps.
    """

    def check(_: Any) -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            raise AttributeError("incomplete")

    monkeypatch.setattr("digitlab.config.validation.check", check)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    assert importlib.import_module("train").main() == 130
    assert capsys.readouterr().err == "Interrupted before a run started\n"


@pytest.mark.slow
@pytest.mark.parametrize("model", SMALL)
def test_a_run_killed_at_any_moment_ends_like_an_undisturbed_one(
    model: str, start_train: StartTrain, overrides: list[str], tmp_path: Path
) -> None:
    """A run that signals end at random moments ends, when it is repeated, with the same bits.

    Each model has 3 runs, each of which receives SIGKILL, SIGTERM and Ctrl-C.
    """
    command, rng = [*SMALL[model], *overrides, "trainer.max_epochs=4"], random.Random(model)
    undisturbed, output = tmp_path / "undisturbed", tmp_path / "output"
    start = time.monotonic()
    start_train([*command, f"hydra.run.dir={undisturbed}"]).join()
    duration, states = time.monotonic() - start, set()
    signals = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT]
    for number in range(3):
        run = tmp_path / str(number)
        for sent in rng.sample(signals, 3):
            process = start_train([*command, f"hydra.run.dir={run}"])
            time.sleep(rng.uniform(0.1, 1) * duration)
            # The process may have ended before.
            with suppress(ProcessLookupError):
                os.kill(process.pid, sent)
            process.join()
            state = run_state(run)
            states.add(state)
            assert state in ("new", "damaged", "interrupted", "completed")
        start_train([*command, f"hydra.run.dir={run}"]).join()
        assert_same(undisturbed, run)
    assert "interrupted" in states
    assert "Traceback" not in output.read_text()


def file_sizes(directory: Path) -> dict[Path, int]:
    """Return the sizes in bytes of all files in a directory."""
    return {path: path.stat().st_size for path in directory.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_events_that_cannot_be_written_fail_the_run(
    start_train: StartTrain, overrides: list[str], tmp_path: Path
) -> None:
    """A run fails if only the last byte of its events has no space.

    With 40 epochs the events of training are the largest file.
    """
    command = [*SMALL["kmeans"], *overrides, "trainer.max_epochs=40"]
    undisturbed, limited = tmp_path / "undisturbed", tmp_path / "limited"
    start_train([*command, f"hydra.run.dir={undisturbed}"]).join()
    sizes = file_sizes(undisturbed)
    largest = max(sizes, key=lambda path: sizes[path])
    assert largest == min(undisturbed.glob("events.*")), (
        "the events of training are not the largest file"
    )
    process = start_train([*command, f"hydra.run.dir={limited}"], sizes[largest] - 1)
    process.join()
    assert process.exitcode == 1
    assert load_results(limited)["status"] == "failed"


@pytest.mark.slow
@pytest.mark.parametrize("model", SMALL)
def test_a_full_disk_fails_the_run_with_a_remedy_and_loses_nothing(
    model: str, start_train: StartTrain, overrides: list[str], tmp_path: Path
) -> None:
    """A run whose files are limited to a number of bytes fails with a message and exit code 1 or 2.

    The same run without the limit then ends with the bits of an undisturbed one. The limits go
    from 0 bytes to the largest file of a run. Where only its page has no space, it completes.
    """
    command = [*SMALL[model], *overrides, "trainer.max_epochs=2"]
    undisturbed, output_file = tmp_path / "undisturbed", tmp_path / "output"
    start_train([*command, f"hydra.run.dir={undisturbed}"]).join()
    by_file = file_sizes(undisturbed)
    page = by_file.pop(undisturbed / "report.html")
    sizes = sorted(set(by_file.values()))
    limits = [0, 1, *(size - 1 for size in sizes if size > 2)]
    # Each costs seconds.
    limits = limits[:: 3 if model == "kmeans" else 6]
    for limit in limits:
        run = tmp_path / str(limit)
        output_file.unlink()
        process = start_train([*command, f"hydra.run.dir={run}"], limit)
        process.join()
        output = output_file.read_text()
        # The message itself needs about 200 bytes.
        assert "make room" in output or limit < 200, f"{limit} bytes: {output[-500:]}"
        assert process.exitcode in (1, 2), f"{limit} bytes: {output[-500:]}"
        assert "Traceback" not in output, f"{limit} bytes: {output[-3000:]}"
        assert run_state(run) != "completed"
        start_train([*command, f"hydra.run.dir={run}"]).join()
        assert_same(undisturbed, run)
    if model == "kmeans":
        # Its page, which holds its pictures, is the largest file.
        without_page = tmp_path / "without_page"
        output_file.unlink()
        process = start_train([*command, f"hydra.run.dir={without_page}"], page - 1)
        process.join()
        assert process.exitcode == 0
        assert "report.html was not written" in output_file.read_text()
        assert run_state(without_page) == "completed"
