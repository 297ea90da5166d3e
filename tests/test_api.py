"""digitlab from Python: runs, models, tables, and the page that documents them."""

import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobRuntime
from hydra.version import getbase
from omegaconf import OmegaConf

import digitlab
from digitlab import Results, RunFailed
from digitlab.data.images import Images, as_images, in_layout
from digitlab.models import digit_classifier
from digitlab.report.table import typed_column
from digitlab.training.callbacks import Progress

from .conftest import ROOT, error_message, load_results, make_digits, read_outputs

KMEANS = ["model=kmeans", "init=digit"]
AUTOENCODER = ["model=autoencoder", "model.channels=[4,8]", "trainer.max_epochs=1"]
IMAGES = make_digits(30, seed=2)[0]


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)


def process_state() -> dict[str, Any]:
    """What a run must leave as it was."""
    log = logging.getLogger("digitlab")
    return {
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "folder": Path.cwd(),
        "hydra": (GlobalHydra.instance().is_initialized(), HydraConfig.initialized()),
        "job": (JobRuntime.instance().get("name"), getbase()),
        "logging": (log.level, log.propagate, list(log.handlers), list(logging.root.handlers)),
        "random": (torch.rand(3).tolist(), np.random.rand(3).tolist()),
        "threads": (torch.get_num_threads(), torch.get_default_dtype()),
    }


def seeded_state() -> dict[str, Any]:
    """The state of the process, with the random numbers that follow a seed of the user's."""
    torch.manual_seed(5)
    np.random.seed(5)
    return process_state()


# -- runs --------------------------------------------------------------------------------------


def test_a_run_from_python_is_the_command_s(
    kmeans_run: Path, overrides: list[str], tmp_path: Path
) -> None:
    """Two runs in a row have the bits of the command line, each in a new folder with all files.

    Results hold what results.json holds; nothing else in the process changes.
    """
    expected = read_outputs(kmeans_run)
    seeded_state()
    before = process_state()
    seeded_state()
    runs = [digitlab.run([*KMEANS, *overrides]) for _ in range(2)]
    assert process_state() == before
    assert runs[0].directory != runs[1].directory
    for results in runs:
        assert results.directory.parent == tmp_path / "outputs" / "runs"
        for path, content in expected.items():
            if path.suffix in (".npy", ".csv", ".png"):
                assert (results.directory / path.relative_to(kmeans_run)).read_bytes() == content
        recorded = load_results(results.directory)
        assert results.status == "completed"
        assert (results.metrics, results.config) == (recorded["metrics"], recorded["config"])
        assert (results.objective_name, results.objective) == (
            "val/loss",
            results.metrics["val/loss"],
        )
        saved = {path.name for path in (results.directory / ".hydra").iterdir()}
        assert saved == {"config.yaml", "hydra.yaml", "overrides.yaml"}
        words: Any = OmegaConf.load(results.directory / ".hydra" / "overrides.yaml")
        assert list(words) == [*KMEANS, *overrides]
        assert "epoch 3/3" in (results.directory / "train.log").read_text()


def test_the_user_s_logging_decides_what_is_shown(
    overrides: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Lines of epochs reach the user's handlers at level INFO only, debug lines never."""
    with caplog.at_level(logging.WARNING):
        digitlab.run([*KMEANS, *overrides], directory="quiet")
        assert not [record for record in caplog.records if record.name.startswith("digitlab")]
    with caplog.at_level(logging.INFO), pytest.raises(RunFailed):
        digitlab.run([*KMEANS, *overrides, "optimizer.lr=1e30"], directory="loud")
    assert "Diverged: train/loss is" in caplog.text
    assert "Traceback" not in caplog.text
    assert "Traceback" in Path("loud/train.log").read_text()


@pytest.mark.parametrize(
    "command",
    ["model=kmean", "optimizer.lr=-1", "optimizer.lrr=1", "a b", "seed=0,1", "resume=nowhere"],
)
def test_a_mistake_has_the_message_of_the_command(command: str, tmp_path: Path) -> None:
    """A mistake is a ValueError with the line that the command prints; nothing is written."""
    with pytest.raises(ValueError, match=r"\w") as caught:
        digitlab.run([command])
    if command != "resume=nowhere":
        assert str(caught.value) == error_message(command)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["-m", "seed=0,1"], "-m: is an option of the command; digitlab.run takes key=value"),
        (["sweep=kmeans/init"], "digitlab.run makes one run; the command `digitlab` runs sweeps"),
        (["dry_run=true"], "dry_run=true: only the command lists what it would do"),
        (
            ["hydra/launcher=joblib"],
            "hydra/launcher=joblib: of Hydra's settings digitlab.run reads",
        ),
        (["hydra.run.dir=x"], "directory=here: hydra.run.dir=x names it already; leave one out"),
        ("model=kmeans init=digit", r"must be a list, as \['model=kmeans', 'init=digit'\]"),
    ],
)
def test_what_only_the_command_does_is_refused(command: Any, message: str) -> None:
    """Sweeps, dry runs and Hydra's other settings are refused instead of being ignored."""
    with pytest.raises(ValueError, match=message):
        digitlab.run(command, directory="here")
    assert not Path("here").exists()


def test_another_configuration_in_the_directory_is_refused(overrides: list[str]) -> None:
    """A directory keeps its run: the same one is returned at once, another one is refused."""
    first = digitlab.run([*KMEANS, *overrides], directory="run")
    written = (first.directory / "results.json").stat().st_mtime_ns
    assert digitlab.run([*KMEANS, *overrides], directory="run") == first
    assert (first.directory / "results.json").stat().st_mtime_ns == written
    with pytest.raises(ValueError, match="run: holds a run of another configuration"):
        digitlab.run([*KMEANS, *overrides, "seed=1"], directory="run")


def test_a_failed_run_raises_its_error(overrides: list[str]) -> None:
    """Missing data is the failure of a run, as exit code 1 of the command."""
    with pytest.raises(RunFailed, match="nowhere: is not a folder"):
        digitlab.run([*KMEANS, *overrides, "data.root=nowhere"], directory="run")
    assert load_results(Path("run"))["status"] == "failed"


def test_an_interrupted_run_continues(
    overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C raises KeyboardInterrupt; `resume` then ends with the bits of an undisturbed run."""
    undisturbed = digitlab.run([*KMEANS, *overrides], directory="undisturbed")

    def interrupt(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    before = process_state()
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "on_train_epoch_end", interrupt)
        with pytest.raises(KeyboardInterrupt):
            digitlab.run([*KMEANS, *overrides], directory="run")
    assert process_state()["signals"] == before["signals"]
    assert load_results(Path("run"))["status"] == "interrupted"
    resumed = digitlab.run(["resume=run"])
    assert resumed.directory == Path.cwd() / "run"
    assert (resumed.metrics, resumed.run_id) == (undisturbed.metrics, undisturbed.run_id)
    centers = [Path(name, "centers.npy").read_bytes() for name in ("run", "undisturbed")]
    assert centers[0] == centers[1]


def test_a_run_works_in_a_thread_and_inside_another_hydra_application(
    overrides: list[str], tmp_path: Path
) -> None:
    """In a thread, while another application uses Hydra, a run works; that one's state stays."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").write_text("answer: 42\n")
    done: list[Results] = []

    def train() -> None:
        done.append(digitlab.run([*KMEANS, *overrides], directory="run"))

    with initialize_config_dir(str(tmp_path / "conf"), job_name="mine", version_base="1.2"):
        thread = threading.Thread(target=train)
        thread.start()
        thread.join()
        assert done[0].status == "completed"
        assert compose("config", return_hydra_config=True).hydra.job.name == "mine"
        assert compose("config") == {"answer": 42}
        assert str(getbase()) == "1.2"


LIGHT = """
import sys, digitlab
print(sorted({"hydra", "torch", "pandas", "numpy"} & set(sys.modules)))
try:
    digitlab.run(["model=kmean"])
except ValueError as error:
    print(error)
print(sorted({"torch", "pandas"} & set(sys.modules)))
"""


def test_the_import_and_a_mistake_need_no_slow_imports() -> None:
    """`import digitlab` imports no library, and a mistake is answered without torch."""
    done = subprocess.run(
        [sys.executable, "-c", LIGHT], capture_output=True, text=True, timeout=60, check=True
    )
    lines = done.stdout.splitlines()
    assert (lines[0], lines[2]) == ("[]", "[]")
    assert lines[1].startswith("model=kmean: must be one of autoencoder, kmeans, vae")
    with pytest.raises(AttributeError, match="no attribute 'sweep'"):
        digitlab.sweep  # noqa: B018


# -- models and images -------------------------------------------------------------------------

FORMS: dict[str, Callable[[], Any]] = {
    "bytes with a channel": lambda: IMAGES[:, None],
    "float64": lambda: IMAGES / 255,
    "float32": lambda: (IMAGES / 255).astype(np.float32),
    "big-endian": lambda: (IMAGES / 255).astype(">f4"),
    "tensor of bytes": lambda: torch.from_numpy(IMAGES),
    "tensor of floats": lambda: torch.from_numpy(IMAGES)[:, None] / 255,
    "reversed twice": lambda: np.ascontiguousarray(IMAGES[:, ::-1])[:, ::-1],
    "not writable": lambda: np.frombuffer(IMAGES.tobytes(), np.uint8).reshape(IMAGES.shape),
}


@pytest.mark.parametrize("form", FORMS)
def test_images_have_one_meaning_in_every_form(form: str) -> None:
    """Bytes and floats, arrays and tensors, with and without a channel give the same pixels."""
    pixels = as_images(FORMS[form](), (1, 28, 28))
    assert pixels.shape == (30, 1, 28, 28)
    expected = torch.from_numpy(IMAGES)[:, None]
    if pixels.is_floating_point():
        assert torch.equal((pixels * 255).round().byte(), expected)
    else:
        assert torch.equal(pixels, expected)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES.astype(float), "images with values from 0 to 2..: must be uint8 from 0 to 255, or"),
        (torch.full((1, 28, 28), -0.5), "images with values from -0.5 to -0.5: must be"),
        (np.full((1, 28, 28), np.nan), "images with values from nan to nan: must be"),
        (IMAGES.astype(int), "images of type int64: must be uint8"),
        (torch.from_numpy(IMAGES).long(), "images of type int64: must be uint8"),
        (IMAGES > 9, "images of type bool: must be uint8"),
        (IMAGES[0], r"images of shape \(28, 28\): must be \(N, 28, 28\) or \(N, 1, 28, 28\); one"),
        (IMAGES[:, :, :27], r"images of shape \(30, 28, 27\): must be"),
        (["a"], "images of type <U1: must be uint8"),
    ],
)
def test_other_images_are_refused(images: Any, message: str) -> None:
    """Unscaled floats, other types and other shapes are refused with the rule."""
    with pytest.raises(ValueError, match=message):
        as_images(images, (1, 28, 28))


def test_images_in_colour_have_their_channels_first_or_last() -> None:
    """Both mean the same; a reconstruction comes back in the layout of the images."""
    first = torch.randint(0, 256, (4, 3, 5, 6), dtype=torch.uint8)
    last = first.permute(0, 2, 3, 1).numpy()
    assert torch.equal(as_images(first, (3, 5, 6)), first)
    assert torch.equal(as_images(last, (3, 5, 6)), first)
    for images in (first, last):
        assert np.array_equal(in_layout(first, images), images)
    for shape in ((4, 5, 6), (4, 1, 5, 6), (4, 6, 5, 3), (4, 5, 6, 4)):
        message = rf"\({', '.join(map(str, shape))}\): must be \(N, 3, 5, 6\) or \(N, 5, 6, 3\)"
        with pytest.raises(ValueError, match=message):
            as_images(np.zeros(shape, np.uint8), (3, 5, 6))


def test_models_take_the_images_of_users(overrides: list[str]) -> None:
    """A loaded model maps bytes and floats to the same values, with the run's test loss."""
    kmeans_run = digitlab.run([*KMEANS, *overrides])
    run = digitlab.run([*AUTOENCODER, *overrides, "trainer.max_epochs=1"])
    kmeans: Any = digitlab.load_model(kmeans_run.directory)
    autoencoder: Any = digitlab.load_model(run.directory / "checkpoints" / "best.ckpt")
    assert not autoencoder.training
    floats, test_images = IMAGES / 255, make_digits(100, seed=1)[0]
    labels, _ = kmeans.predict(Images(torch.from_numpy(IMAGES), torch.zeros(30)))
    assert torch.equal(kmeans.assign(IMAGES), labels)
    assert torch.equal(kmeans.assign(floats), labels)
    assert kmeans.assign(IMAGES[:0]).shape == (0,)
    torch.testing.assert_close(autoencoder.encode(floats), autoencoder.encode(IMAGES))
    assert autoencoder.encode(IMAGES).shape == (30, autoencoder.latent_dim)
    for model, results in ((kmeans, kmeans_run), (autoencoder, run)):
        restored = model.reconstruct(test_images).numpy()
        assert torch.equal(model.reconstruct(test_images[:, None])[:, 0], torch.tensor(restored))
        loss = ((restored - test_images / 255) ** 2).mean()
        assert loss == pytest.approx(results.metrics["test/loss"], rel=1e-4)


def test_what_holds_no_model_is_refused(tmp_path: Path) -> None:
    """A folder without a checkpoint, a missing path and another file raise ValueError."""
    (tmp_path / "notes.txt").write_text("a")
    for path, message in (
        (tmp_path, "holds no checkpoint"),
        (tmp_path / "nowhere", "does not exist"),
        (tmp_path / "notes.txt", "is damaged or not a checkpoint"),
    ):
        with pytest.raises(ValueError, match=f"{re.escape(str(path))}: {message}"):
            digitlab.load_model(path)


# -- the table ---------------------------------------------------------------------------------


def test_the_table_has_typed_columns(overrides: list[str]) -> None:
    """Settings keep their types, with missing values where a run has no such setting."""
    digitlab.run([*KMEANS, *overrides, "data.train_size=500"])
    digitlab.run([*AUTOENCODER, *overrides, "trainer.max_epochs=1"])
    table = digitlab.runs_table()
    types = {name: str(table[name].dtype) for name in table}
    assert (
        types
        | {
            "seed": "int64",
            "epochs": "int64",
            "status": "category",
            "test/loss": "float64",
            "active_centers": "Int64",
            "written": "datetime64[ns, UTC]",
            "config.seed": "int64",
            "config.data.verify": "bool",
            "config.data.train_size": "Int64",
            "config.data.batch_size": "int64",
            "config.optimizer.lr": "float64",
            "config.model.name": "category",
            "config.model.channels": "category",
            "config.model.latent_dim": "Int64",
            "config.model.compile": "boolean",
        }
        == types
    )
    rows = table.set_index("config.model.name")
    assert rows.loc["kmeans", "config.data.train_size"] == 500
    assert rows.loc["autoencoder", "config.model.channels"] == "[4,8]"
    assert pd.isna(rows.loc["kmeans", "config.model.compile"])
    assert abs(table.written.max() - pd.Timestamp.now("UTC")) < pd.Timedelta(minutes=5)
    with pytest.raises(ValueError, match="nowhere: holds no run"):
        digitlab.runs_table("nowhere")


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([True, False], "bool"),
        ([True, None], "boolean"),
        ([1, 2], "int64"),
        ([1, None], "Int64"),
        ([1, 2.5], "float64"),
        ([0.5, None], "float64"),
        ([1, "auto"], "category"),
        ([True, 1], "category"),
        ([2**70, 1], "category"),
        ([10**400, 0.5], "category"),
        ([[8, 16], None], "category"),
        ([None, None], "category"),
    ],
)
def test_a_column_has_the_type_that_its_values_share(values: list[Any], dtype: str) -> None:
    """Whole numbers and booleans keep their types in a column with missing values."""
    column = typed_column(values)
    assert str(column.dtype) == dtype
    assert column.isna().tolist() == [value is None for value in values]


# -- the page ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_snippets_of_the_page_run_as_written(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The code of docs/python.md runs from top to bottom, in an empty folder."""
    # The tests' 30 epochs are for a tenth of these images.
    monkeypatch.setattr(digit_classifier, "EPOCHS", 2)
    page = (ROOT / "docs" / "python.md").read_text()
    snippets = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(snippets) >= 7
    names: dict[str, Any] = {}
    with caplog.at_level(logging.INFO):
        for snippet in snippets:
            exec(compile(snippet, "docs/python.md", "exec"), names)
    assert "epoch 2/2" in caplog.text
    assert names["latents"].shape == (5000, 16)
    assert names["loss"] < 0.1
    assert set(names["best"].index) == {"autoencoder", "kmeans"}
    assert len(names["wide"]) == len(names["table"]) == 2
    fields = Results.__dataclass_fields__
    table = page[page.index("| field |") : page.index("`directory=` names")]
    assert set(
        re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| ([^|]*) \|", table, re.MULTILINE)))
    ) == set(fields)
