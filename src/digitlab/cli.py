"""The command line, before and around Hydra: resumed runs, the whole grid checked first.

Imported before any job: it must not import torch.
"""

import copy
import hashlib
import re
import textwrap
import threading
from pathlib import Path
from typing import Any, NamedTuple

from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
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
from digitlab.runs import foreign

MULTIRUN = {"-m", "--multirun"}
NAMELESS = ("seed", "force", "dry_run", "data.root", "data.verify")  # not what a sweep is about, nor is Hydra's own
OTHER_CONF = {"--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn", "--package", "-p"}
OTHER_CONF |= {"--experimental-rerun"}
PRINT = {"--cfg", "-c", "--info", "-i"}
UNREAD = OTHER_CONF | {"--run", "-r"}  # beside these Hydra composes and runs what `parse` has not seen
FOR_SWEEPS = ("hydra/launcher", "hydra.launcher.", "hydra/sweeper", "hydra.sweeper.", "hydra.sweep.dir")
UNNAMED = "outputs/sweeps/unnamed"  # conf/config.yaml's place for a sweep
CHDIR = "leave it out, paths are relative to where the command is run"
SET = {  # what no word may change, with what to do instead
    "hydra.mode": "leave it out, -m asks for a sweep",
    "hydra.sweep.subdir": "a job is found again by the name that its configuration gives",
    "pairing": "it follows from model and optimizer",
    "hydra.run": "its folder is hydra.run.dir=...",
    "hydra.sweep": "its folder is hydra.sweep.dir=...",
    "hydra.launcher": "a launcher is a choice, hydra/launcher=joblib",
    "hydra.sweeper": "a sweeper is a choice, hydra/sweeper=basic",
}
PAIRED = ("model", "optimizer")
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
    with initialize_config_dir(str(schema.CONF), job_name="train", version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        if multirun:
            command = parse_sweep(hydra, overrides, sorted(flags) or ["-m"])
        else:
            cfg = compose(hydra, [*overrides, "hydra.mode=RUN"], RunMode.RUN)
            if cfg.hydra.job.chdir:
                raise ValueError(f"hydra.job.chdir=true: {CHDIR}")
            command = Command([Job(cfg, overrides)], Path(cfg.hydra.run.dir), False, words)
    for job in command.jobs:
        check_names(job)
        check_rate(job)
        with open_dict(job.cfg):
            del job.cfg["hydra"]
    return command._replace(jobs=[job._replace(cfg=config.resumed(*job)) for job in command.jobs])


def parse_sweep(hydra: Hydra, overrides: list[str], flags: list[str]) -> Command:
    """What a command line with -m asks for."""
    parser = OverridesParser.create(config_loader=hydra.config_loader)  # which finds what glob(...) names
    parsed = parser.parse_overrides(overrides)
    if any(override.key_or_group == "sweep" and override.is_sweep_override() for override in parsed):
        raise ValueError("sweep: names one grid; run several one after the other")
    cfg = compose(hydra, [*overrides, "hydra.mode=MULTIRUN"], RunMode.MULTIRUN)
    unresolved: Any = OmegaConf.to_container(cfg.hydra.sweep)
    place = unresolved["dir"]
    if place == UNNAMED or "${" in place:  # each job would find a place of its own by ${now:...}
        fixed = f"outputs/sweeps/{sweep_name(parsed)}" if place == UNNAMED else cfg.hydra.sweep.dir
        overrides = [word for word in overrides if word.lstrip("+").partition("=")[0] != "hydra.sweep.dir"]
        return parse_sweep(hydra, [*overrides, f"hydra.sweep.dir={quoted(fixed)}"], flags)
    node = cfg.hydra
    if node.job.chdir:
        raise ValueError(f"hydra.job.chdir=true: {CHDIR}")
    if node.launcher._target_.endswith(".RayLauncher") and node.launcher.ray.init.get("address"):
        # The plugin asks for an object store of its own, which Ray refuses where the cluster is there already.
        overrides = [*overrides, "++hydra.launcher.ray.init.object_store_memory=null"]
    directory, words, workers = Path(node.sweep.dir), [*overrides, *flags], 1
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
    for job in jobs if joblib else ():
        if (devices := job.cfg.trainer.devices) > 1:
            raise ValueError(
                f"trainer.devices={devices}: joblib's workers cannot start processes of their own;"
                " leave out hydra/launcher=joblib, or choose ray or submitit_local"
            )
    for key in ("force", "dry_run"):
        if len({job.cfg[key] for job in jobs}) > 1:
            raise ValueError(f"{key}: is for the whole sweep; give it one value")
    for key in ("root", "verify"):
        values = dict.fromkeys(str(job.cfg.data[key]) for job in jobs)
        if len(values) > 1:  # jobs that differ in nothing else have one name
            told = "a sweep reads one data set; run one for each, with a hydra.sweep.dir of its own"
            raise ValueError(f"data.{key}={','.join(values)}: {told}")
    return Command(jobs, directory, True, words, workers)


def refuse_mode(words: list[str]) -> None:
    """Raise ValueError where a YAML makes a run a sweep: Hydra would run one that `parse` has not looked at."""
    with initialize_config_dir(str(schema.CONF), job_name="train", version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        if hydra.get_mode("config", words) == RunMode.MULTIRUN:  # Hydra asks the same again: see compose_once
            raise ValueError("hydra.mode=MULTIRUN: leave it out of the YAML; -m asks for a sweep")


def used(run: Path) -> bool:
    """Whether there is a run in a directory, or what is none of ours."""
    return (run / "results.json").exists() or foreign(run)


def refuse(words: list[str], flags: set[str]) -> None:
    """Raise ValueError for a flag that Hydra does not know, and for what it would let a word change behind our back."""
    known = get_args_parser()._option_string_actions
    multirun = flags & MULTIRUN or any(word.startswith("sweep=") for word in words)
    names = {flag.partition("=")[0] for flag in flags}
    for flag in flags:
        name = flag.partition("=")[0]
        if name not in known and not re.match("-[a-zA-Z]", flag):
            raise ValueError(f"{flag}: there is no such flag; a value is key=value, as trainer.max_epochs=5")
        if name in OTHER_CONF and multirun:
            raise ValueError(f"{flag}: a sweep is composed of conf/ alone; put your file there, or leave out -m")
    for word in words:
        key = word.lstrip("+").partition("=")[0]
        if remedy := SET.get(key.lstrip("~")):
            raise ValueError(f"{word}: cannot be chosen; {remedy}")
        if key in ("~experiment", "~sweep"):
            raise ValueError(f"{word}: none is chosen unless you do; leave it out")
        if word.startswith("~") and (options := schema.choices(word[1:].partition("=")[0])):
            raise ValueError(f"{word}: cannot be taken away; choose one of {', '.join(options)}")
        value = word.partition("=")[2].strip("'\"")
        if key in ("hydra.run.dir", "hydra.sweep.dir") and not value:
            raise ValueError(f"{word}: must name a folder")
        unread = " ".join(names & UNREAD)
        if unread and key == "resume":
            raise ValueError(f"{unread}: a run goes on with its own configuration; leave it out")
        if unread and key == "hydra.run.dir" and not names & PRINT and used(Path(value)):
            told = f"holds a run, which is not compared with the command beside {unread}"
            raise ValueError(f"{word}: {told}; name a new folder, or go on with resume={value}")
        if not flags - MULTIRUN and (key == "hydra.run.dir" if multirun else key.startswith(FOR_SWEEPS)):
            raise ValueError(
                f"{word}: is for {'one run; leave out -m' if multirun else 'a sweep; add -m'}, or leave it out"
            )


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
            if name.lower() == told.lower():
                own = "write both in small letters"
            raise ValueError(f"{group}={choice}: its YAML says name: {name}; {own}")


def check_rate(job: Job) -> None:
    """Raise ValueError for k-means with a copy of sgd.yaml, or a copy of kmeans.yaml, at the autoencoder's rate.

    conf/pairing has k-means' own, and goes by the names of the files.
    """
    cfg, chosen = job.cfg, job.cfg.hydra.runtime.choices
    pair, names = (chosen.model, chosen.optimizer), [OmegaConf.select(cfg, f"{key}.name") for key in PAIRED]
    if names != ["kmeans", "sgd"] or pair == ("kmeans", "sgd"):
        return
    default = OmegaConf.load(schema.CONF / "optimizer" / "sgd.yaml").lr
    if cfg.optimizer.lr == default and not any("optimizer.lr=" in word for word in job.overrides):
        own = " and ".join(f"{key}={name}" for key, name in zip(PAIRED, pair, strict=True))
        raise ValueError(
            f"optimizer.lr={default}: is the autoencoder's; with {own} say k-means' own, as optimizer.lr=4.5,"
            " or on the command line the same, if it is meant"
        )


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
    config.restore(run)
    kept = [word for word in words if not word.lstrip("+").startswith("resume=")]
    beside = ("-", "hydra.", "force=", "dry_run=", "data.root=")
    other = [word for word in kept if not word.lstrip("+").startswith(beside) or "hydra.run.dir=" in word]
    if other or MULTIRUN & set(words):
        raise ValueError(
            f"resume={run}: goes on with the configuration of that run; leave out"
            f" {' '.join(other) or '--multirun'}, or start a new run"
        )
    return [*kept, f"resume={quoted(run)}", f"hydra.run.dir={quoted(run)}", "hydra.output_subdir=null"]


def quoted(text: str) -> str:
    """A value as Hydra reads it with any sign in it."""
    return "'" + text.replace("'", "\\'") + "'"


def at_home(words: list[str]) -> list[str]:
    """The words with the ~ of a folder spelt out: behind a key no shell does."""
    folders = r"^(\+*(?:data\.root|resume|hydra\.run\.dir|hydra\.sweep\.dir)=['\"]?)~(?=/)"
    return [re.sub(folders, lambda found: found[1] + str(Path.home()), word) for word in words]


def choices_text() -> str:
    """What conf/ offers, a paragraph for each group, for --help."""
    groups = sorted(path.name for path in schema.CONF.iterdir() if path.is_dir() and path.name != "pairing")
    told = [f"{f'{group}:':<12}{', '.join(schema.choices(group))}" for group in groups]
    return "\n".join(textwrap.fill(line, 110, initial_indent="  ", subsequent_indent=" " * 14) for line in told)
