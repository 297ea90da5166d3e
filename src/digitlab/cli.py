"""The command line, before and around Hydra: resumed runs, the whole grid checked first.

Imported before any job: it must not import torch.
"""

import copy
import hashlib
import re
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from digitlab import refusals
from digitlab.config import schema, validation
from digitlab.config.errors import misnamed
from digitlab.refusals import MULTIRUN
from digitlab.runs.provenance import DATA_PLACE

NAMELESS = ("seed", "force", "dry_run", *DATA_PLACE)  # not what a sweep is about, nor is Hydra's own
UNNAMED = "outputs/sweeps/<name>"  # conf/config.yaml's place for a sweep, which no sweep gives a name to


class Job(NamedTuple):
    """One run that a command line asks for."""

    cfg: DictConfig
    overrides: list[str]


class Command(NamedTuple):
    """What a command line asks for."""

    jobs: list[Job]  # none where it asks for something else, as --help does, or for a sweeper that makes its own
    directory: Path | None  # of the run or the sweep
    multirun: bool
    words: list[str]  # for Hydra, the sweep's directory among them
    workers: int = 1  # processes that joblib starts for the jobs


def parse(words: list[str]) -> Command:
    """Compose the configuration of every job of a command line.

    As Hydra's own sweeper will, so that the last job's mistake is told before the first job runs.
    """
    flags = {word for word in words if word.startswith("-")}
    refusals.check_words(words, flags)
    if flags - MULTIRUN:  # --help and the like run no job
        return Command([], None, False, words)
    overrides = [word for word in words if word not in flags]
    multirun = bool(flags) or any(word.startswith("sweep=") for word in words)
    with initialize_config_dir(str(schema.CONF), job_name="train", version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        if multirun:
            command = parse_sweep(hydra, overrides, sorted(flags) or ["-m"])
        else:
            cfg = compose(hydra, [*overrides, "hydra.mode=RUN"], RunMode.RUN)
            refusals.check_place(cfg)
            command = Command([Job(cfg, overrides)], Path(cfg.hydra.run.dir), False, words)
    for job in command.jobs:
        refusals.check_resume(job.cfg, job.overrides)
        refusals.check_names(job.cfg, job.overrides)
        refusals.check_rate(job.cfg, job.overrides)
        with open_dict(job.cfg):
            del job.cfg["hydra"]
    return command._replace(jobs=[job._replace(cfg=validation.resumed(job.cfg, job.overrides)) for job in command.jobs])


def parse_sweep(hydra: Hydra, overrides: list[str], flags: list[str]) -> Command:
    """What a command line with -m asks for."""
    parser = OverridesParser.create(config_loader=hydra.config_loader)  # which finds what glob(...) names
    parsed = parser.parse_overrides(overrides)
    if any(override.key_or_group == "sweep" and override.is_sweep_override() for override in parsed):
        raise ValueError("sweep: names one grid; run several one after the other")
    place = next((str(word.value()) for word in parsed if word.key_or_group == "hydra.sweep.dir"), "")
    if place and "${" not in place:  # a worker in another folder would find another
        overrides = placed(overrides, place)
    cfg = compose(hydra, [*overrides, "hydra.mode=MULTIRUN"], RunMode.MULTIRUN)
    unresolved: Any = OmegaConf.to_container(cfg.hydra.sweep)
    if not place or "${" in place:
        place = unresolved["dir"]
        if place == UNNAMED:
            place = f"outputs/sweeps/{sweep_name(parsed)}"
        elif "${" in place:  # each job would find a place of its own by ${now:...}
            place = cfg.hydra.sweep.dir
        overrides = placed(overrides, place)
        cfg = compose(hydra, [*overrides, "hydra.mode=MULTIRUN"], RunMode.MULTIRUN)
    if cfg.hydra.launcher._target_.endswith(".RayLauncher"):
        # The plugin asks for an object store of its own, which Ray refuses where there is a cluster already.
        overrides = [*overrides, "++hydra.launcher.ray.init.object_store_memory=null"]
        cfg = compose(hydra, [*overrides, "hydra.mode=MULTIRUN"], RunMode.MULTIRUN)
    node = cfg.hydra
    refusals.check_place(cfg)
    directory, words, workers = Path(place), [*overrides, *flags], 1
    if joblib := node.launcher._target_.endswith(".JoblibLauncher"):
        from joblib import effective_n_jobs

        if not node.launcher.n_jobs:
            raise ValueError("hydra.launcher.n_jobs=0: must be >= 1, or -1 for all cores")
        workers = effective_n_jobs(node.launcher.n_jobs)
    if not node.sweeper._target_.endswith(".BasicSweeper"):  # another one decides on its jobs as it goes
        if cfg.dry_run:
            raise ValueError("dry_run=true: this sweeper has no list of jobs; leave out hydra/sweeper")
        return Command([], directory, True, words, workers)
    params = [f"{key}={value}" for key, value in (node.sweeper.params or {}).items()]
    parsed = parser.parse_overrides([*params, *node.overrides.task])
    grid = [list(job) for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]
    if not grid:
        empty = next(
            (each.input_line for each in parsed if each.is_sweep_override() and not [*each.sweep_iterator()]), ""
        )
        raise ValueError(f"{empty}: names no value, so that there is no job to run")
    # In the order in which Hydra's launchers will ask for them: see compose_once.
    jobs = [Job(compose(hydra, [*node.overrides.hydra, *job], RunMode.RUN), job) for job in grid]
    refusals.check_grid([job.cfg for job in jobs], joblib=joblib)
    return Command(jobs, directory, True, words, workers)


def placed(overrides: list[str], place: str) -> list[str]:
    """The words with the sweep's folder spelt out from the root on."""
    kept = [word for word in overrides if word.lstrip("+").partition("=")[0] != "hydra.sweep.dir"]
    return [*kept, f"hydra.sweep.dir={quoted(str(Path.cwd() / place))}"]


def refuse_mode(words: list[str]) -> None:
    """Raise ValueError where a YAML makes a run a sweep: Hydra would run one that `parse` has not looked at."""
    with initialize_config_dir(str(schema.CONF), job_name="train", version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        if hydra.get_mode("config", words) == RunMode.MULTIRUN:  # Hydra asks the same again: see compose_once
            raise ValueError("hydra.mode=MULTIRUN: leave it out of the YAML; -m asks for a sweep")


def compose(hydra: Hydra, words: list[str], mode: RunMode) -> DictConfig:
    """The configuration that Hydra makes of these words.

    Raises its errors, or ValueError for what it did not foresee, as `model=[1,2]` or `model.channels.a=1`.
    """
    try:
        return hydra.compose_config("config", words, run_mode=mode)
    except (TypeError, ValueError) as error:
        if isinstance(error, OmegaConfBaseException | UnicodeDecodeError):
            raise
        told = f"{error}; a choice is a name that --help lists, a value is as docs/usage.md says"
        typed = " ".join(word for word in words if not word.startswith("hydra.mode="))
        raise ValueError(misnamed(words) or f"{typed}: {told}") from error


def compose_once() -> None:
    """Let Hydra have what `parse` composed for the same words: to compose it again takes 0.07 s a job."""
    original = ConfigLoaderImpl.load_configuration
    kept: dict[tuple[object, ...], DictConfig] = {}

    def load(
        self: ConfigLoaderImpl, config_name: str, overrides: list[str], run_mode: RunMode, **options: bool
    ) -> DictConfig:
        key = run_mode, options.get("validate_sweep_overrides", True), *overrides
        if key in kept:
            return kept.pop(key)
        kept[key] = original(self, config_name, overrides, run_mode, **options)
        return copy.deepcopy(kept[key])

    ConfigLoaderImpl.load_configuration = load  # type: ignore[method-assign,assignment]


def sweep_name(overrides: list[Override]) -> str:
    """The name of a sweep: that of its group, else what is fixed and what is swept, so that more values extend it."""
    names = []
    for override in overrides:
        key = override.key_or_group
        if key in NAMELESS or key.startswith("hydra"):
            continue
        if override.is_sweep_override():
            names.append(key)
        elif key == "sweep":
            return override.get_value_element_as_str()
        else:
            names.append(f"{key}-{override.get_value_element_as_str()}")
    name = re.sub(r"[^\w.+-]+", "-", "_".join(sorted(names))).strip("-") or "defaults"
    return name if len(name) <= 100 else f"{name[:80]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def in_place(words: list[str]) -> list[str]:
    """The command line with `resume=RUN` turned towards RUN's own directory and configuration.

    RUN may be in quotes, but need not, whatever signs are in it. Raises ValueError for a folder that holds no run, and
    for other values beside it.
    """
    named = [word.partition("=")[2] for word in words if word.lstrip("+").startswith("resume=")]
    run = named[-1] if named else "null"
    if run == "null":
        return words
    if len(run) > 1 and run[0] == run[-1] and run[0] in "'\"":
        run = run[1:-1]
    validation.restore(run)
    kept = [word for word in words if not word.lstrip("+").startswith("resume=")]
    beside = ("-", "hydra.", "force=", "dry_run=", "data.root=")
    values = [word for word in kept if "=" in word or word.startswith("~")]  # others belong to a flag
    other = [word for word in values if not word.lstrip("+").startswith(beside) or "hydra.run.dir=" in word]
    if other or MULTIRUN & set(words):
        raise ValueError(
            f"resume={run}: goes on with the configuration of that run; leave out"
            f" {' '.join(other) or '--multirun'}, or start a new run"
        )
    return [*kept, f"resume={quoted(run)}", f"hydra.run.dir={quoted(run)}", "hydra.output_subdir=null"]


def quoted(text: str) -> str:
    """A value as Hydra reads it with any sign in it: there a backslash counts where a quote or ${ follows."""
    return "'" + re.sub(r"(\\*)('|\$\{|$)", lambda found: 2 * found[1] + (found[2] and "\\" + found[2]), text) + "'"


def at_home(words: list[str]) -> list[str]:
    """The words with the ~ of a folder spelt out: behind a key with a dot no shell does.

    Without those that choose no experiment or sweep, which is what the defaults do.
    """
    words = [word for word in words if word not in ("experiment=null", "sweep=null")]
    folders = r"^(\+*(?:data\.root|resume|hydra\.run\.dir|hydra\.sweep\.dir)=['\"]?)~(?=['\"/]|$)"
    return [re.sub(folders, lambda found: found[1] + str(Path.home()), word) for word in words]


def choices_text() -> str:
    """What conf/ offers, a paragraph for each group, for --help."""
    told = [f"{f'{group}:':<12}{', '.join(schema.choices(group))}" for group in schema.groups()]
    return "\n".join(textwrap.fill(line, 110, initial_indent="  ", subsequent_indent=" " * 14) for line in told)
