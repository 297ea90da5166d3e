"""A wheel works outside the checkout, as the command `digitlab`."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from digitlab.config import schema

from .conftest import OPTIONS, ROOT, load_results

pytestmark = pytest.mark.slow

Command = Callable[..., "subprocess.CompletedProcess[str]"]


def execute(*command: str | Path, folder: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """Run a program without the checkout on its path, and without a network."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [str(word) for word in command],
        env=environment | {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        cwd=folder,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of its sources, which leaves nothing in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("src", "conf"):
        shutil.copytree(ROOT / name, source / name, symlinks=True)
    flags = ["--no-build-isolation", "--no-deps", "--wheel-dir"]
    done = execute(sys.executable, "-m", "pip", "wheel", *flags, folder, source)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def command(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """Install the wheel into a new environment that takes only its libraries from this one.

    Returns:
        A function that runs `digitlab ...` there, in a folder.
    """
    environment = tmp_path_factory.mktemp("environment")
    done = execute(sys.executable, "-m", "venv", "--without-pip", environment)
    assert done.returncode == 0, done.stderr
    python = environment / "bin" / "python"
    done = execute(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", wheel)
    assert done.returncode == 0, done.stderr
    (packages,) = environment.glob("lib/python*/site-packages")
    # A .pth file adds the folder itself, but not what the .pth files in it add, such as a checkout.
    libraries = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "libraries.pth").write_text("\n".join(libraries))
    done = execute(python, "-c", "import digitlab; print(digitlab.__file__)", folder=environment)
    assert Path(done.stdout.strip()).is_relative_to(packages), done.stderr

    def run(*words: str, folder: Path) -> "subprocess.CompletedProcess[str]":
        return execute(environment / "bin" / "digitlab", *words, folder=folder)

    return run


def test_the_wheel_holds_every_package_and_choice(wheel: Path) -> None:
    """All modules and templates of src/ and all choices of conf/ are in it, and no other files."""
    expected = {path.relative_to(ROOT / "src").as_posix() for path in ROOT.glob("src/**/*.py")}
    expected |= {f"digitlab/{path.relative_to(ROOT)}" for path in schema.CONF.glob("**/*.yaml")}
    templates = ROOT.glob("src/digitlab/report/templates/*")
    expected |= {path.relative_to(ROOT / "src").as_posix() for path in templates}
    expected.add("hydra_plugins/resumable_sweeper/py.typed")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == expected


def test_the_installed_command_is_the_command(
    command: Command, overrides: list[str], tmp_path: Path
) -> None:
    """Help, runs, sweeps, own choices and mistakes work in a folder without a checkout.

    Messages name `digitlab`; outputs/ is in the working directory; no commit is recorded.
    """
    text = command("--help", folder=tmp_path).stdout
    assert "  digitlab model=kmeans init=digit\n" in text
    assert "train.py" not in text
    for option in OPTIONS:
        group, name = option.split("=")
        assert re.search(rf"^ *{group}: [^:]*{re.escape(name)}", text, re.MULTILINE), option
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    text = "# @package _global_\ndefaults: [override /model: kmeans, override /init: digit]\n"
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text(text)
    small = [*overrides, "data.train_size=300", "trainer.max_epochs=1"]
    done = command("--config-dir=own", "experiment=mine", *small, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    (run,) = (tmp_path / "outputs" / "runs").iterdir()
    results = load_results(run)
    assert (results["model"], results["status"]) == ("kmeans", "completed")
    assert results["code"]["sha"] is None
    hydra = yaml.safe_load((run / ".hydra" / "hydra.yaml").read_text())["hydra"]
    assert hydra["job"]["name"] == "train"
    assert (run / "train.log").is_file()
    sweep = ["-m", "model=kmeans", "init=digit,sample", *small, "hydra.sweep.dir=sweep"]
    done = command(*sweep, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("sweep/*/results.json"))) == 2
    done = command("model=kmean", folder=tmp_path)
    expected = (
        "Error: model=kmean: must be one of autoencoder, kmeans, vae; did you mean model=kmeans?\n"
    )
    assert (done.returncode, done.stderr) == (2, expected)
    assert {path.name for path in tmp_path.iterdir()} == {"outputs", "own", "sweep"}
