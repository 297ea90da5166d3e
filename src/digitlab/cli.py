"""The command line, before and around Hydra: resumed runs, the whole grid checked first, words for mistakes.

Imported before any job: it must not import torch.
"""

import difflib
import hashlib
import re
import textwrap
import threading
from pathlib import Path
from typing import Any, NamedTuple

from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from digitlab import config, schema
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
    if flags - MULTIRUN:  # --help and the like run no job
        known = get_args_parser()._option_string_actions
        for flag in flags:
            if flag.partition("=")[0] not in known and not re.match("-[a-zA-Z]", flag):
                raise ValueError(f"{flag}: there is no such flag; a value is key=value, as trainer.max_epochs=5")
        return Command([], None, False, words)
    overrides = [word for word in words if word not in flags]
    for word in overrides:
        if word.lstrip("+").startswith("hydra.mode="):
            raise ValueError(f"{word}: cannot be chosen; leave it out, -m asks for a sweep")
        if word.lstrip("+").startswith("hydra.sweep.subdir="):
            raise ValueError(f"{word}: cannot be chosen; a job is found again by the name that its configuration gives")
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
    for job in jobs:
        check_names(job)
        with open_dict(job.cfg):
            del job.cfg["hydra"]
    return Command(jobs, directory, multirun, words, workers)


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
            raise ValueError(f"{group}={choice}: its YAML says name: {name}; write name: {told}, or call it {name}_...")


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
        raise ValueError(f"{' '.join(words)}: {told}") from error


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


def explain(error: BaseException, words: list[str]) -> str:
    """One or two lines for a mistake that was found in the command line `words`, in a file of conf/ or on the disk.

    What Hydra and OmegaConf say is longer, and names neither the value nor what to do.
    """
    cause = error.__cause__ or error
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem_mark.name}, line {error.problem_mark.line + 1}: {error.problem}; mend the file"
    if isinstance(error, YAMLError):  # a character that no text has
        return f"{' '.join(str(error).split())}; mend the file"
    if isinstance(error, UnicodeDecodeError):  # does not say of which file
        near = error.object[max(0, error.start - 30) : error.end]
        return f"a YAML holds {near!r}, which is not UTF-8; save it as UTF-8"
    if isinstance(error, MissingConfigException):
        missing = str(error.missing_cfg_file)
        group, _, name = missing.partition("/")
        word = next((word for word in words if word.replace("=", "/", 1) == missing), f"{group}={name}")
        if group == "schema":
            return f"{missing}: a YAML's `defaults` name it, and there is no such schema; leave `defaults` out"
        options = error.options or schema.choices(group)
        rule = f"must be one of {', '.join(options)}" if options else "there is no such choice; see --help"
        return f"{word}: {rule}"
    if isinstance(error, OverrideParseException):
        told = "is no key=value; leave out spaces about =, close brackets and quotes, and put other signs in quotes"
        return f"{error.override}: {told}, as key='\"a b\"'"
    if isinstance(error, ConfigCompositionException) and lines[0].startswith("In '"):
        return _misfit(lines)
    if isinstance(error, ConfigCompositionException) and "No match in the defaults list" in str(error):
        word = _word(words, lines[0].split("'")[1])
        return f"{word}: this model has no such choice; init needs model=kmeans, channels and prior model=autoencoder"
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and cause.parent_node is not None:
        return _stranger(str(cause.full_key), cause.parent_node, words)
    if isinstance(cause, OmegaConfBaseException):
        reason = str(cause).strip().splitlines()[0]
        return f"{_word(words, str(cause.full_key))}: {reason}" if cause.full_key else reason
    if "Ambiguous value for argument" in str(error):
        word = lines[0].split("'")[1]
        return f"{word}: several values are a sweep, which -m asks for; a list is key=[1,2]"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}; choose another place, as with hydra.run.dir or hydra.sweep.dir"
    if isinstance(error, OSError) and error.errno is None:  # OmegaConf's, for a file that holds a number
        return f"{error}: a YAML holds no keys; mend the file"
    if isinstance(error, OSError):
        return f"{error}: nothing could be written; make room on the disk, or choose another hydra.run.dir"
    if isinstance(error, HydraException):
        return "; ".join(lines[:2])
    return str(error)


def _misfit(lines: list[str]) -> str:
    """What Hydra found inside a file of conf/, told by the file."""
    file, _, found = lines[0].removeprefix("In '").partition("': ")
    if len(lines) > 1:
        key = next((line.partition(":")[2] for line in lines if line.strip().startswith("full_key:")), "")
        found = f"at{key}: {lines[1].strip()}" if key else lines[1].strip()
    of_many = file.startswith(("experiment/", "sweep/"))  # a file that makes choices
    remedy = "leave out the choice beside it, or mend the file"
    other = "compare its keys, and its first lines, with the files beside it"
    return f"{file}.yaml: {found.rstrip('.')}; {remedy if of_many else other}"


def _stranger(key: str, parent: Any, words: list[str]) -> str:
    """A key that the part of the configuration `parent` lacks, with the nearest that there is."""
    keys, (stem, _, last) = [str(each) for each in parent], key.rpartition(".")
    inner = [f"{name}.{each}" for name in keys if isinstance(parent.get(name), DictConfig) for each in parent[name]]
    close = difflib.get_close_matches(last, keys, n=1) or [word for word in inner if last in word.partition(".")[2]]
    remedy = f"did you mean {close[0]}?" if close else f"it has {', '.join(keys)}"
    if stem == "optimizer" and OmegaConf.get_type(parent) is dict:
        remedy = f"+{key}=... gives it one that torch.optim has"
    where, name = stem or "the configuration", parent.get("name")  # of the choice: the word may fit another job's
    return f"{_word(words, key)}: {f'{where}={name}' if name else where} has no such key; {remedy}"


def _word(words: list[str], key: str) -> str:
    """The word of the command line that sets `key`."""
    return next((word for word in words if f"{word.lstrip('+~').partition('=')[0]}.".startswith(f"{key}.")), key)
