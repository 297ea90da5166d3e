"""The command line, before and around Hydra: resumed runs, the whole grid checked first.

Imported before any job: it must not import torch.
"""

import hashlib
import re
import textwrap
import threading
from pathlib import Path
from typing import NamedTuple

from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from digitlab import config, schema
from digitlab.mistakes import misnamed
from digitlab.runs import refuse_links

MULTIRUN = {"-m", "--multirun"}
NAMELESS = ("seed", "force", "dry_run", "data.root", "data.verify")  # not what a sweep is about, nor is Hydra's own
PLACES = {"init": "model.init", "prior": "model.prior"}  # of groups that are not at the top


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
    refuse(words, flags)
    if flags - MULTIRUN:  # --help and the like run no job
        return Command([], None, False, words)
    overrides = [word for word in words if word not in flags]
    multirun = bool(flags) or any(word.startswith("sweep=") for word in words)
    with initialize_config_dir(str(schema.CONF), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        grid, directory, joblib, workers = [overrides], None, False, 1
        if multirun:
            parsed = OverridesParser.create().parse_overrides(overrides)
            if any(override.key_or_group == "sweep" and override.is_sweep_override() for override in parsed):
                raise ValueError("sweep: names one grid; run several one after the other")
            if not any(override.key_or_group == "hydra.sweep.dir" for override in parsed):
                overrides = [*overrides, f"hydra.sweep.dir='outputs/sweeps/{sweep_name(parsed)}'"]
            cfg = compose(hydra, overrides, RunMode.MULTIRUN)
            node = cfg.hydra
            if node.launcher._target_.endswith(".RayLauncher") and node.launcher.ray.init.get("address"):
                # The plugin asks for an object store of its own, which Ray refuses where the cluster is there already.
                overrides.append("++hydra.launcher.ray.init.object_store_memory=null")
            directory, words = Path(node.sweep.dir), [*overrides, *(flags or {"-m"})]
            if joblib := node.launcher._target_.endswith(".JoblibLauncher"):
                from joblib import effective_n_jobs

                workers = effective_n_jobs(node.launcher.n_jobs)
            if not node.sweeper._target_.endswith(".BasicSweeper"):  # another one decides on its jobs as it goes
                if cfg.dry_run:
                    raise ValueError("dry_run=true: this sweeper has no list of jobs; leave out hydra/sweeper")
                return Command([], directory, multirun, words, workers)
            params = [f"{key}={value}" for key, value in (node.sweeper.params or {}).items()]
            parsed = OverridesParser.create().parse_overrides(params + overrides)
            grid = [list(job) for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]
        jobs = [Job(compose(hydra, job, RunMode.RUN), job) for job in grid]
        for job in jobs if joblib else ():
            if (devices := job.cfg.trainer.devices) > 1:
                raise ValueError(
                    f"trainer.devices={devices}: joblib's workers cannot start processes of their own;"
                    " leave out hydra/launcher=joblib, or choose ray or submitit_local"
                )
    if directory is None:
        directory = Path(jobs[0].cfg.hydra.run.dir)
        refuse_links(directory)
    for key in ("root", "verify"):
        values = dict.fromkeys(str(job.cfg.data[key]) for job in jobs)
        if len(values) > 1:  # jobs that differ in nothing else have one name
            told = "a sweep reads one data set; run one for each, with a hydra.sweep.dir of its own"
            raise ValueError(f"data.{key}={','.join(values)}: {told}")
    for job in jobs:
        check_names(job)
        with open_dict(job.cfg):
            del job.cfg["hydra"]
    return Command(jobs, directory, multirun, words, workers)


def refuse(words: list[str], flags: set[str]) -> None:
    """Raise ValueError for a flag that Hydra does not know, and for what it would let a word change behind our back."""
    known = get_args_parser()._option_string_actions
    for flag in flags:
        if flag.partition("=")[0] not in known and not re.match("-[a-zA-Z]", flag):
            raise ValueError(f"{flag}: there is no such flag; a value is key=value, as trainer.max_epochs=5")
    for word in words:
        if word.lstrip("+").startswith("hydra.mode="):
            raise ValueError(f"{word}: cannot be chosen; leave it out, -m asks for a sweep")
        if word.lstrip("+").startswith("hydra.sweep.subdir="):
            raise ValueError(f"{word}: cannot be chosen; a job is found again by the name that its configuration gives")


def check_names(job: Job) -> None:
    """Raise ValueError for a YAML that was copied and not renamed inside: it would be its model under a new name.

    `adamw_slow.yaml` may be adamw with other values.
    """
    for group, choice in job.cfg.hydra.runtime.choices.items():
        if group not in ("optimizer", "scheduler", *PLACES) or not isinstance(choice, str):
            continue
        path = PLACES.get(group, group)
        name, told = OmegaConf.select(job.cfg, f"{path}.name"), choice.rpartition("/")[2]
        if any(word.lstrip("+~").startswith(f"{path}.name") for word in job.overrides):
            continue
        if isinstance(name, str) and told != name and not told.startswith(f"{name}_"):
            own = f"call the file {name}.yaml or {name}_....yaml, or mend the name"
            raise ValueError(f"{group}={choice}: its YAML says name: {name}; {own}")


def require_threads(workers: int) -> None:
    """Raise ValueError where so many workers' threads do not start: joblib would wait for them without end."""
    from joblib import cpu_count

    needed = 8 * workers + cpu_count()  # each has some of its own, and its share of the cores to compute on
    over, started = threading.Event(), []
    try:
        for _ in range(needed):
            thread = threading.Thread(target=over.wait)
            thread.start()
            started.append(thread)
    except RuntimeError as error:
        raise ValueError(
            f"hydra/launcher=joblib: its workers need some {needed} processes and threads, {len(started)} start here;"
            " end others, raise `ulimit -u`, or leave the launcher out"
        ) from error
    finally:
        over.set()
        for thread in started:
            thread.join()


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
        raise ValueError(misnamed(words) or f"{' '.join(words)}: {told}") from error


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

    Raises ValueError for a folder that holds no run, and for other values beside it.
    """
    named = [word.partition("=")[2] for word in words if word.lstrip("+").startswith("resume=")]
    run = named[-1] if named else "null"
    if run == "null":
        return words
    config.restore(run)
    other = [word for word in words if not word.lstrip("+").startswith(("-", "resume=", "hydra."))]
    if other or MULTIRUN & set(words):
        raise ValueError(
            f"resume={run}: goes on with the configuration of that run; leave out"
            f" {' '.join(other) or '--multirun'}, or start a new run"
        )
    folder = run.replace("'", "\\'")
    return [*words, f"hydra.run.dir='{folder}'", "hydra.output_subdir=null"]


def choices_text() -> str:
    """What conf/ offers, a paragraph for each group, for --help."""
    groups = sorted(path.name for path in schema.CONF.iterdir() if path.is_dir() and path.name != "pairing")
    told = [f"{f'{group}:':<12}{', '.join(schema.choices(group))}" for group in groups]
    return "\n".join(textwrap.fill(line, 110, initial_indent="  ", subsequent_indent=" " * 14) for line in told)
