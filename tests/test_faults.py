"""The worst that users, disks and strangers do, generated: no traceback of ours, nothing bad taken for good."""

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
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from digitlab import RunFailed
from digitlab.config import errors, validation
from digitlab.data.idx import DIGESTS
from digitlab.data.mnist import load
from digitlab.models import checkpoints
from digitlab.report import progress
from digitlab.report.page import write_report
from digitlab.runs.provenance import flatten, make_run_id
from digitlab.runs.restore import restore
from digitlab.runs.results import read_results, run_state
from hydra_plugins.resumable_sweeper.jobs import read_plan

from .conftest import Fork, Lab, compose, plan_jobs, results, run_here, write_idx
from .training.test_experiment import assert_same

# Each key of every schema is in one of these.
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
FREE = ("data.root", "resume")  # any text is a path


def bad_words() -> list[tuple[str, str]]:
    """Each key of the configurations of BASES, found from them, with values of wrong type and range."""
    found, seen, rng = [], set(FREE), random.Random(0)
    for base in BASES:
        (cfg,) = compose(*base.split())
        for key, value in flatten(OmegaConf.to_container(cfg)).items():  # type: ignore[arg-type]
            if key in seen:
                continue
            seen.add(key)
            if isinstance(value, bool):
                values: tuple[str, ...] = NOT_BOOLS
            elif isinstance(value, int | float) or value is None:
                values = NOT_NUMBERS + OUT_OF_RANGE
                values += ("1.5", "true") if not isinstance(value, float) else ()
                values += ("null",) if value is not None else ()
                values = tuple(v for v in values if not (value is None and v == "None"))
            else:
                values = NOT_LISTS if isinstance(value, list) else NOT_WORDS
            values += tuple(
                "".join(rng.choices(SIGNS, k=rng.randrange(2, 9))) + "[" for _ in range(4)
            )
            found += [(base, f"{key}={word}") for word in values]
            at = rng.randrange(len(key))
            found += [(base, f"{key[:at]}{key[at + 1 :]}=1"), (base, f"{key[:at]}z{key[at:]}=1")]
            parent = key.rpartition(".")[0] or key
            odd = (
                f"{key}x=1",
                f"{key}.more=1",
                f"+{key}.more=1",
                f"~{key}",
                f"{key}=???",
                f"{parent}=null",
            )
            found += [(base, word) for word in odd]
    groups = (
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
    return found + [
        (BASES[0], f"{group}={word}") for group in groups for word in NOT_WORDS if word != "null"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_no_bad_value_is_taken_and_none_ends_in_a_traceback(part: int) -> None:
    """More than a thousand words, made from the configurations' own keys: each refused in at most two lines."""
    words, taken, crude = bad_words(), [], []
    for base, word in words[part::4]:
        command = [
            each for each in base.split() if not word.startswith(each.partition("=")[0] + "=")
        ] + [word]
        try:
            for cfg in compose(*command):
                assert cfg is not None
        except (HydraException, OmegaConfBaseException, ValueError) as mistake:
            told = errors.format_error(mistake, command)
            if not 1 <= len(told.splitlines()) <= 2 or "Traceback" in told:
                crude.append((word, told))
        else:
            taken.append((base, word))
    assert len(words) > 1000
    assert taken == []
    assert crude == []


# -- data files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verify", [True, False])
def test_no_damaged_data_file_is_read(
    verify: bool, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """160 files cut short, grown, or with a changed header; where digests are checked, also with one bit flipped."""
    rng, names = random.Random(verify), sorted(path.name for path in tiny.iterdir())
    paths = {name.removesuffix(".gz"): tiny / name for name in names}
    digests = {
        name: digest_of(paths[name]) for name in DIGESTS
    }  # in the order that makes the digest of all
    monkeypatch.setattr("digitlab.data.idx.DIGESTS", digests)
    assert len(load(str(tiny), "files", verify).train.labels) == 600, "whole, they are read"
    for number in range(160):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name in names:
            (folder / name).write_bytes((tiny / name).read_bytes())
        path = folder / rng.choice(names)
        content = bytearray(path.read_bytes())
        packed = path.suffix == ".gz"
        kind = rng.choice(
            ("cut", "grown", "header", "flip") if verify else ("cut", "grown", "header")
        )
        if kind == "cut" or (packed and kind == "grown"):
            content = content[: rng.randrange(len(content))]
        elif kind == "grown":
            content += bytes(rng.randrange(1, 50))
        elif packed:
            content[rng.randrange(3)] ^= 1 << rng.randrange(8)
        elif kind == "header":
            content[rng.randrange(8)] ^= 1 << rng.randrange(8)
        else:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(str(path))):
            load(str(folder), "files", verify)


def digest_of(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha256(gzip.decompress(content) if path.suffix == ".gz" else content).hexdigest()


@pytest.mark.parametrize("shape", [(20, 27, 28), (20, 32, 32), (20, 28, 28, 3), (0, 28, 28)])
def test_a_data_set_of_another_shape_is_refused(
    shape: tuple[int, ...], tiny: Path, tmp_path: Path
) -> None:
    """Images of another size, in colour, or none at all: a line that names the file."""
    for path in tiny.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", np.zeros(shape))
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(shape[0]))
    with pytest.raises(ValueError, match="train-images-idx3-ubyte"):
        load(str(tmp_path), "files", verify=False)


# -- a run's files ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of each model."""
    small = [f"data.root={tiny}", "data.verify=false", "data.val_size=100", "data.batch_size=20"]
    small += ["trainer.accelerator=cpu", "trainer.max_epochs=2"]
    folder = tmp_path_factory.mktemp("finished")
    run_here(["model=kmeans", "init=digit", *small], folder / "kmeans")
    run_here(["model=autoencoder", "model.channels=[4,8]", *small], folder / "autoencoder")
    return {name: folder / name for name in ("kmeans", "autoencoder")}


@pytest.mark.parametrize("model", ["kmeans", "autoencoder"])
def test_no_damaged_run_is_taken_for_whole(
    model: str, finished: dict[str, Path], tmp_path: Path
) -> None:
    """120 times one of its files is cut short, has a bit flipped or is gone: its state is `damaged`, or `new`."""
    rng, run = random.Random(model), finished[model]
    assert run_state(run) == "completed"
    files = [run / name for name in results(run)["files"]]
    for _ in range(120):
        path = rng.choice([*files, run / "results.json"])
        content = path.read_bytes()
        change = bytearray(content)
        if path.name == "results.json" or rng.random() < 0.5:
            change = change[: rng.randrange(len(change) - 2)]
        else:
            change[rng.randrange(len(change))] ^= 1 << rng.randrange(8)
        if rng.random() < 0.1:
            path.unlink()
        else:
            path.write_bytes(change)
        assert run_state(run) in ("damaged", "new"), f"{path.name} is not what it was"
        path.write_bytes(content)
    assert run_state(run) == "completed"


@pytest.mark.parametrize("model", ["kmeans", "autoencoder"])
def test_a_damaged_checkpoint_is_refused_or_whole(
    model: str, finished: dict[str, Path], tmp_path: Path
) -> None:
    """150 times cut or flipped anywhere: a ValueError, or (in what zip does not need) the same weights."""
    rng, path = random.Random(model), finished[model] / "checkpoints" / "best.ckpt"
    content, before = path.read_bytes(), checkpoints.load_model(path).state_dict()
    for _ in range(150):
        change = bytearray(content)
        if rng.random() < 0.3:
            change = change[: rng.randrange(len(change))]
        else:
            change[rng.randrange(len(change))] ^= 1 << rng.randrange(8)
        (tmp_path / "one.ckpt").write_bytes(change)
        try:
            after = checkpoints.load_model(tmp_path / "one.ckpt").state_dict()
        except ValueError as mistake:
            told = str(mistake)
        else:
            assert all(torch.equal(after[key], value) for key, value in before.items())
            told = "one.ckpt"
        assert "one.ckpt" in told


@pytest.mark.parametrize("model", ["kmeans", "autoencoder"])
def test_a_crafted_checkpoint_is_refused_or_a_model(
    model: str, finished: dict[str, Path], tmp_path: Path
) -> None:
    """Each entry, constructor argument and weight replaced by another kind of thing: a ValueError, or a model."""
    path = finished[model] / "checkpoints" / "best.ckpt"
    good, tried = checkpoints.read_checkpoint(path), 0
    for part in (good, good["hyper_parameters"], good["state_dict"]):
        for key in ("model", "hyper_parameters", "state_dict") if part is good else list(part):
            kept = part[key]
            for value in (*STRANGE, torch.zeros(2, 3), "os.system"):
                part[key] = value
                torch.save(good, tmp_path / "one.ckpt")
                tried += 1
                try:
                    checkpoints.load_model(tmp_path / "one.ckpt")
                except ValueError as mistake:
                    told = str(mistake)
                else:
                    told = "one.ckpt"
                assert "one.ckpt" in told
            part[key] = kept
    assert tried > 100


GONE = object()
STRANGE: tuple[Any, ...] = (
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
def test_a_strange_results_json_is_no_traceback(
    model: str,
    finished: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each key of a results.json, also inside, gone or of another kind: skipped, shown, or refused in words."""
    good, evaluate = results(finished[model]), importlib.import_module("evaluate")
    assert good["status"] == "completed"
    run = tmp_path / "run"
    (run / "figures").mkdir(parents=True)
    monkeypatch.setattr(sys, "argv", ["evaluate.py", str(run)])
    plan_jobs(tmp_path, run="seed=0")
    settings = good["config"]
    parts = (good, settings, good["metrics"], settings["model"], settings["optimizer"])
    for part, key in [(each, key) for each in parts for key in each]:
        kept = part[key]
        for turn, value in enumerate((*STRANGE, GONE)):
            if value is GONE:
                del part[key]
            else:
                part[key] = value
            (run / "results.json").write_text(json.dumps(good))
            with suppress(ValueError):
                write_report(
                    [(tmp_path, run)[turn % 2]], tmp_path / "report"
                )  # with the plan, and without
            with suppress(ValueError, OmegaConfBaseException):
                validation.check(restore(str(run)))
            run_state(run)
            with pytest.raises(SystemExit):
                evaluate.main()
            progress.standing(tmp_path, "run")
        part[key] = kept


def test_strange_metrics_are_compared_in_words(
    finished: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each recorded metric gone or of another kind beside its checkpoint: told as differing, or the whole as no run."""
    run, evaluate, codes = tmp_path / "run", importlib.import_module("evaluate"), []
    shutil.copytree(finished["kmeans"], run)
    monkeypatch.setattr(sys, "argv", ["evaluate.py", str(run)])
    good = results(run)
    for key in good["metrics"]:
        for value in (*STRANGE, GONE):
            changed = {
                name: value if name == key else kept for name, kept in good["metrics"].items()
            }
            metrics = {name: kept for name, kept in changed.items() if kept is not GONE}
            (run / "results.json").write_text(json.dumps(good | {"metrics": metrics}))
            with pytest.raises(SystemExit) as end:
                evaluate.main()
            told = capsys.readouterr()
            codes.append(end.value.code)
            assert codes[-1] == (
                2 if "holds no run" in told.err else int("not as recorded" in told.out)
            ), told.err
    assert {1, 2} <= {*codes}


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        "3",
        '{"jobs": [{"run_id": [], "overrides": "a", "epochs": 1}]}',
        '{"jobs": [{"run_id": "a", "overrides": "a", "epochs": 1, "asked": []}]}',
    ],
)
def test_a_strange_plan_of_a_sweep_is_none(text: str, tmp_path: Path) -> None:
    """A sweep.json that this program cannot have written has no jobs, for its report and its progress alike."""
    (tmp_path / "sweep.json").write_text(text)
    assert not read_plan(tmp_path)
    with pytest.raises(ValueError, match="holds no run"):
        write_report([tmp_path], tmp_path / "report")


def test_a_results_json_of_endless_brackets_is_no_run(tmp_path: Path) -> None:
    """Nested deeper than Python's stack: no run for whoever reads it, and no traceback."""
    (tmp_path / "results.json").write_text("[" * 200_000)
    assert read_results(tmp_path) is None
    with pytest.raises(ValueError, match="holds no run"):
        restore(str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["train.log", ".lock", ".hydra", "checkpoints", "figures/loss.png", "00000/latents", "loop"],
)
def test_a_link_that_leads_out_of_a_run_is_refused(
    name: str, words: list[str], lab: Lab, tmp_path: Path
) -> None:
    """A stranger's run whose files are links: neither resume, a new start nor a sweep follows them.

    A link that leads to itself does no harm.
    """
    command, outside = ["model=kmeans", *words, "trainer.max_epochs=1"], tmp_path / "mine"
    (cfg,) = compose(*command)
    run = tmp_path / "sweep" / make_run_id(validation.to_plain(cfg))
    run_here(command, run)
    link = run / name
    link.parent.mkdir(exist_ok=True)
    if link.exists():
        link.rename(tmp_path / "away")
    link.symlink_to(link if name == "loop" else outside)
    for call in (
        [f"resume={run}"],
        [*command, f"hydra.run.dir={run}"],
        ["-m", *command, f"hydra.sweep.dir={run.parent}"],
    ):
        done = lab(*call)
        assert done.returncode == (0 if name == "loop" else 2)
        assert "Traceback" not in done.stdout + done.stderr
        assert name == "loop" or f"{link}: is a link that leads out of {run}" in done.stderr
    assert not outside.exists()


@pytest.mark.parametrize("name", ["sweep.json", "report", "report/runs.csv"])
def test_a_link_that_leads_out_of_a_sweep_is_refused(
    name: str, words: list[str], lab: Lab, tmp_path: Path
) -> None:
    """Neither a sweep nor its report writes through a link that a stranger left in the sweep's directory."""
    sweep_dir, outside = tmp_path / "sweep", tmp_path / "mine"
    run_here(["model=kmeans", *words, "trainer.max_epochs=1"], sweep_dir / "run")
    (sweep_dir / name).parent.mkdir(exist_ok=True)
    (sweep_dir / name).symlink_to(outside)
    done = lab("-m", "model=kmeans", *words, f"hydra.sweep.dir={sweep_dir}")
    assert done.returncode == 2
    assert f"{sweep_dir / name}: is a link that leads out of {sweep_dir}" in done.stderr
    assert not outside.exists()


@pytest.mark.parametrize("name", ["evaluate", "generate", "report"])
def test_scripts_follow_no_link_out_of_a_run(
    name: str,
    finished: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A stranger's run whose figure, or whose report, is a link: refused in a line."""
    run = tmp_path / "run"
    shutil.copytree(finished["autoencoder"], run)
    (run / "report").symlink_to(tmp_path / "outside")
    monkeypatch.setattr(sys, "argv", [name, str(run)])
    with pytest.raises(SystemExit) as done:
        importlib.import_module(name).main()
    assert done.value.code == 2
    assert f"{run / 'report'}: is a link that leads out of {run}" in capsys.readouterr().err


def test_a_report_shows_no_picture_that_a_link_names(
    finished: dict[str, Path], tmp_path: Path
) -> None:
    """figures/latents.png of a stranger's run is a link to a file of this user's: it is not copied."""
    shutil.copytree(finished["autoencoder"], tmp_path / "run")
    latents = tmp_path / "run" / "figures" / "latents.png"
    latents.unlink()
    latents.symlink_to(__file__)
    write_report([tmp_path], tmp_path / "report")
    assert (tmp_path / "report" / "best_generated.png").is_file()
    assert not (tmp_path / "report" / "best_latents.png").exists()


def test_names_of_a_stranger_s_settings_lead_nowhere(
    finished: dict[str, Path], tmp_path: Path
) -> None:
    """Two runs that differ in a setting named ../../x: its picture lies in the report all the same."""
    good = results(finished["kmeans"])
    for number in (1, 2):
        changed = good | {
            "run_id": str(number),
            "config": good["config"] | {"a/../../../x": number},
        }
        (tmp_path / "sweep" / str(number)).mkdir(parents=True)
        (tmp_path / "sweep" / str(number) / "results.json").write_text(json.dumps(changed))
    write_report([tmp_path / "sweep"], tmp_path / "sweep" / "deep" / "report")
    assert [path.name for path in tmp_path.rglob("*.png")] == ["effect_a-..-..-..-x.png"]
    assert (tmp_path / "sweep" / "deep" / "report" / "effect_a-..-..-..-x.png").is_file()


def test_a_stranger_s_run_does_not_read_the_environment(
    finished: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value ${oc.env:SECRET} in a results.json is refused, not resolved."""
    monkeypatch.setenv("SECRET", "hunter2")
    strange = results(finished["kmeans"])
    strange["config"]["data"]["root"] = "${oc.env:SECRET}"
    (tmp_path / "results.json").write_text(json.dumps(strange))
    with pytest.raises(ValueError, match=r"holds no run .*its values hold \$\{\.\.\.\}"):
        restore(str(tmp_path))


def test_names_and_numbers_that_no_run_has_are_no_traceback(
    finished: dict[str, Path], tmp_path: Path
) -> None:
    """Metrics named as a report's own columns, numbers beyond any float, no seed: skipped, or without those."""
    good, sweep_dir = results(finished["kmeans"]), tmp_path / "sweep"
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
    strange = [good | {"metrics": good["metrics"] | {name: 1.0}} for name in names]
    strange += [
        good | {"metrics": good["metrics"] | {"val/loss": 10**400}},
        good | {"seed": 10**400},
    ]
    strange += [{key: value for key, value in good.items() if key != "seed"}]
    (sweep_dir / "run").mkdir(parents=True)
    for number, content in enumerate(strange):
        (sweep_dir / "run" / "results.json").write_text(json.dumps(content))
        if number < len(names):
            assert "1 job: 1 completed." in write_report([sweep_dir], tmp_path / "report")
        else:
            with pytest.raises(ValueError, match="holds no run"):
                write_report([sweep_dir], tmp_path / "report")


def test_a_checkpoint_asks_for_no_more_memory_than_it_has(
    finished: dict[str, Path], tmp_path: Path
) -> None:
    """Small files that name a net of terabytes, or the judge where a model of a run is wanted: refused at once."""
    good, path = (
        checkpoints.read_checkpoint(finished["autoencoder"] / "checkpoints" / "best.ckpt"),
        tmp_path / "a.ckpt",
    )
    good["hyper_parameters"] |= {"channels": [1_000_000, 1_000_000]}
    torch.save(good, path)
    with pytest.raises(
        ValueError, match=r"a\.ckpt: belongs to another model or another version of the code"
    ):
        checkpoints.load_model(path)
    torch.save(good | {"model": "judge"}, path)
    with pytest.raises(ValueError, match=r"a\.ckpt: holds a judge, not kmeans or autoencoder"):
        checkpoints.load_model(path)


def test_a_checkpoint_does_not_unfold(finished: dict[str, Path], tmp_path: Path) -> None:
    """A weight of which one number is kept for all, and entries that are packed: refused, before they take memory."""
    source, path = finished["kmeans"] / "checkpoints" / "best.ckpt", tmp_path / "a.ckpt"
    good = checkpoints.read_checkpoint(source)
    good["state_dict"]["centers"] = torch.zeros(1).expand(good["state_dict"]["centers"].shape)
    torch.save(good, path)
    with pytest.raises(ValueError, match="a weight claims more numbers than the file holds"):
        checkpoints.load_model(path)
    with (
        zipfile.ZipFile(source) as whole,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in whole.infolist():
            packed.writestr(entry.filename, whole.read(entry))
    with pytest.raises(ValueError, match="it is compressed, which torch's files are not"):
        checkpoints.load_model(path)


def test_a_file_of_any_size_takes_no_memory(
    finished: dict[str, Path], tiny: Path, tmp_path: Path
) -> None:
    """Holes cost a disk nothing: a results.json, a plan and a raw IDX file of 64 GiB are refused at once."""
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


# -- the machine ---


@pytest.mark.skipif(
    not Path("/sys/kernel").is_dir(), reason="no file system here that nobody can write to"
)
@pytest.mark.parametrize(
    "command", ["hydra.run.dir=/sys/run", "-m seed=0,1 hydra.sweep.dir=/sys/sweep"]
)
def test_where_nothing_can_be_written_a_line_says_so(
    command: str, lab: Lab, words: list[str]
) -> None:
    """An output directory on a file system that even root cannot write to: exit code 2 and a remedy."""
    done = lab(*command.split(), "model=kmeans", *words)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: /sys/")
    assert "choose another place" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.skipif(
    not Path("/sys/kernel").is_dir(), reason="no file system here that nobody can write to"
)
def test_where_data_cannot_be_kept_a_line_says_so(lab: Lab, words: list[str]) -> None:
    """A folder for data that cannot be made: a run that has to download fails, and says where else they can lie."""
    done = lab("model=kmeans", *words, "data.root=/sys/data", "data.source=download")
    assert done.returncode == 1
    assert "put train-images-idx3-ubyte, train-labels" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("error", "told"),
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
def test_what_the_machine_refuses_is_told_with_a_remedy(
    error: Exception,
    told: str,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A full process table, no shared memory, a quota, a mistake in the code: the run fails with what to do next.

    The same again completes.
    """
    command = ["model=kmeans", *words, "trainer.max_epochs=1"]

    def refuse(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("digitlab.training.stages.Trainer.fit", refuse)
        with pytest.raises(RunFailed):
            run_here(command, tmp_path)
    assert told in caplog.text
    assert run_state(tmp_path) == "failed"
    assert run_here(command, tmp_path)["status"] == "completed"


@pytest.mark.parametrize("model", ["kmeans", "autoencoder"])
def test_a_clock_that_jumps_changes_nothing(
    model: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a clock that leaps a year back or forth at each look: the same bits, and no time below zero."""
    command = [f"model={model}", *words, "trainer.max_epochs=2"]
    run_here(command, tmp_path / "calm")
    real, rng = time.time, random.Random(0)
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: real() + rng.choice((-1, 1)) * 3e7)
        leapt = run_here(command, tmp_path / "leapt")
    assert leapt["seconds"] > 0
    assert leapt["fit_seconds"] > 0
    assert_same(tmp_path / "calm", tmp_path / "leapt")


# -- signals and full disks ---------------------------------------------------------------------------------

SMALL = {
    "kmeans": ["model=kmeans", "init=digit"],
    "autoencoder": [
        "model=autoencoder",
        "model.channels=[4,8]",
        "optimizer=adamw",
        "prior=gaussian",
    ],
}


def test_ctrl_c_that_another_error_replaced_is_an_interrupt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It fell between two steps of OmegaConf, whose clean-up then failed: 130 and a line, as for any Ctrl-C."""

    def check(_: Any) -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            raise AttributeError("half made")

    monkeypatch.setattr("digitlab.config.validation.check", check)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    assert importlib.import_module("train").main() == 130
    assert capsys.readouterr().err == "Interrupted before a run started\n"


@pytest.mark.slow
@pytest.mark.parametrize("model", SMALL)
def test_a_run_ended_at_any_moment_ends_as_one_left_alone(
    model: str, fork: Fork, words: list[str], tmp_path: Path
) -> None:
    """18 runs of each model, each ended once by SIGKILL, SIGTERM or Ctrl-C between start and end, and run again."""
    command, rng = [*SMALL[model], *words, "trainer.max_epochs=4"], random.Random(model)
    fork([*command, f"hydra.run.dir={tmp_path / 'first'}"]).join()  # makes the judge
    began = time.monotonic()
    fork([*command, f"hydra.run.dir={tmp_path / 'whole'}"]).join()
    length, cut = time.monotonic() - began, set()
    for number in range(18):
        run, sent = (
            tmp_path / str(number),
            (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)[number % 3],
        )
        process = fork([*command, f"hydra.run.dir={run}"])
        time.sleep(rng.uniform(0.1, 1) * length)
        with suppress(ProcessLookupError):  # it was faster this time
            os.kill(process.pid, sent)
        process.join()
        state = run_state(run)
        cut.add(state)
        assert state in ("new", "damaged", "interrupted", "completed")
        fork([*command, f"hydra.run.dir={run}"]).join()
        assert_same(tmp_path / "whole", run)
    assert "interrupted" in cut
    assert "Traceback" not in (tmp_path / "told").read_text()


@pytest.mark.slow
def test_events_that_found_no_room_fail_the_run(
    fork: Fork, words: list[str], tmp_path: Path
) -> None:
    """40 epochs make training's events the largest file: where only their last byte has no room, the run fails."""
    command = [*SMALL["kmeans"], *words, "trainer.max_epochs=40"]
    fork([*command, f"hydra.run.dir={tmp_path / 'whole'}"]).join()
    sizes = {
        path: path.stat().st_size for path in (tmp_path / "whole").rglob("*") if path.is_file()
    }
    largest = max(sizes, key=lambda path: sizes[path])
    assert largest == min((tmp_path / "whole").glob("events.*")), (
        "the events of training are not the largest file"
    )
    process = fork([*command, f"hydra.run.dir={tmp_path / 'cut'}"], sizes[largest] - 1)
    process.join()
    assert process.exitcode == 1
    assert results(tmp_path / "cut")["status"] == "failed"


@pytest.mark.slow
@pytest.mark.parametrize("model", SMALL)
def test_a_full_disk_is_told_and_loses_nothing(
    model: str, fork: Fork, words: list[str], tmp_path: Path
) -> None:
    """Files may have at most so many bytes, from 0 to the largest that a run writes: it fails in words, with exit
    code 1 or 2, and run again with room ends as one that always had it.
    """
    command = [*SMALL[model], *words, "trainer.max_epochs=2"]
    whole = tmp_path / "whole"
    fork([*command, f"hydra.run.dir={whole}"]).join()
    sizes = sorted({path.stat().st_size for path in whole.rglob("*") if path.is_file()})
    limits = [0, 1, *(size - 1 for size in sizes if size > 2)][
        :: 2 if model == "autoencoder" else 1
    ]
    for largest in limits:
        run = tmp_path / str(largest)
        (tmp_path / "told").unlink()
        process = fork([*command, f"hydra.run.dir={run}"], largest)
        process.join()
        told = (tmp_path / "told").read_text()
        assert "make room" in told or largest < 200, (
            f"{largest} bytes: {told[-500:]}"
        )  # below, not a word has room
        assert process.exitcode in (1, 2), f"{largest} bytes: {told[-500:]}"
        assert "Traceback" not in told, f"{largest} bytes: {told[told.index('Traceback') :][:3000]}"
        assert run_state(run) != "completed"
        fork([*command, f"hydra.run.dir={run}"]).join()
        assert_same(whole, run)
