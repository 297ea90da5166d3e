"""What Hydra would let a command line ask for, and must not: each is refused with what to do instead.

Imported before any job: it must not import torch.
"""

import re
import threading
from collections.abc import Sequence
from pathlib import Path

from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig, OmegaConf

from digitlab.config import schema
from digitlab.runs.provenance import DATA_PLACE
from digitlab.runs.results import is_foreign

MULTIRUN = {"-m", "--multirun"}
OTHER_CONF = {"--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn", "--package", "-p"}
OTHER_CONF |= {"--experimental-rerun"}
PRINT = {"--cfg", "-c", "--info", "-i"}
UNREAD = OTHER_CONF | {"--run", "-r"}  # beside these Hydra composes and runs what `parse` has not seen
FOR_SWEEPS = ("hydra/launcher", "hydra.launcher.", "hydra/sweeper", "hydra.sweeper.", "hydra.sweep.dir")
SET = {  # what no word may change, with what to do instead
    "hydra.mode": "leave it out, -m asks for a sweep",
    "hydra.sweep.subdir": "a job is found again by the name that its configuration gives",
    "pairing": "it follows from model and optimizer",
    "hydra.run": "its folder is hydra.run.dir=...",
    "hydra.sweep": "its folder is hydra.sweep.dir=...",
    "hydra.launcher": "a launcher is a choice, hydra/launcher=joblib",
    "hydra.sweeper": "a sweeper is a choice, hydra/sweeper=basic",
    "hydra.sweeper.params": "several values are words of their own, as seed=0,1",
    "hydra.output_subdir": "a run's settings are in .hydra",
    "hydra/job_logging": "a run's log is train.log",
    "hydra/hydra_logging": "what a command says goes to the terminal",
}
PAIRED = ("model", "optimizer")
PLACES = {"init": "model.init", "prior": "model.prior"}  # of groups that are not at the top


def used(run: Path) -> bool:
    """Whether there is a run in a directory, or what is none of ours."""
    return (run / "results.json").exists() or is_foreign(run)


def check_words(words: list[str], flags: set[str]) -> None:
    """Raise ValueError for a flag that Hydra does not know, and for what it would let a word change behind our back."""
    known = get_args_parser()._option_string_actions
    multirun = flags & MULTIRUN or any(word.startswith("sweep=") for word in words)
    names = {flag.partition("=")[0] for flag in flags}
    for flag in flags:
        name = flag.partition("=")[0]
        if name not in known and ("=" in flag or not re.match("-[a-zA-Z]", flag)):
            meant = name.lstrip("-").replace("-", "_")
            known_here = meant in schema.groups() or meant in ("resume", "force", "dry_run", "seed")
            told = f"did you mean {meant}=...?" if known_here else "a value is key=value, as trainer.max_epochs=5"
            raise ValueError(f"{flag}: there is no such flag; {told}")
        if name in OTHER_CONF and multirun:
            raise ValueError(f"{flag}: a sweep is composed of conf/ alone; put your file there, or leave out -m")
    chosen: dict[str, str] = {}
    for word in words:
        key = word.lstrip("+").partition("=")[0]
        if key in chosen:  # of a value the last one counts, as Hydra has it; a choice brings others with it
            raise ValueError(f"{chosen[key]} {word}: choose one; several are {key}=A,B and -m, a grid one at a time")
        if "=" in word and key in schema.groups():
            chosen[key] = word
        if word.startswith("+") and key in schema.groups():
            raise ValueError(f"{word}: leave out the +, {key} is there to be chosen")
        if key.startswith("hydra.sweeper.params."):
            key = "hydra.sweeper.params"
        if word != "hydra.output_subdir=null" and (remedy := SET.get(key.lstrip("~"))):
            raise ValueError(f"{word}: cannot be chosen; {remedy}")
        if key in ("~experiment", "~sweep"):
            raise ValueError(f"{word}: none is chosen unless you do; leave it out")
        if word.startswith("~") and (options := schema.choices(word[1:].partition("=")[0])):
            raise ValueError(f"{word}: cannot be taken away; choose one of {', '.join(options)}")
        value = word.partition("=")[2].strip("'\"")
        if key in ("hydra.run.dir", "hydra.sweep.dir") and not value:
            raise ValueError(f"{word}: must name a folder")
        unread = " ".join(names & UNREAD)
        if key == "resume" and (beside := " ".join(names & (UNREAD | PRINT))):
            raise ValueError(f"{beside}: a run goes on with its own configuration, in its results.json; leave it out")
        if unread and key == "hydra.run.dir" and not names & PRINT and used(Path(value)):
            told = f"holds a run, which is not compared with the command beside {unread}"
            raise ValueError(f"{word}: {told}; name a new folder, or go on with resume={value}")
        if not flags - MULTIRUN and (key == "hydra.run.dir" if multirun else key.startswith(FOR_SWEEPS)):
            raise ValueError(
                f"{word}: is for {'one run; leave out -m' if multirun else 'a sweep; add -m'}, or leave it out"
            )


def check_place(cfg: DictConfig) -> None:
    """Raise ValueError for a job that would change its directory, from which other data would be read."""
    if cfg.hydra.job.chdir:
        raise ValueError("hydra.job.chdir=true: leave it out, paths are relative to where the command is run")


def check_grid(cfgs: Sequence[DictConfig], *, joblib: bool) -> None:
    """Raise ValueError for what the jobs of a sweep cannot differ in, and for what joblib's workers cannot do."""
    for cfg in cfgs if joblib else ():
        if (devices := cfg.trainer.devices) > 1:
            raise ValueError(
                f"trainer.devices={devices}: joblib's workers cannot start processes of their own;"
                " leave out hydra/launcher=joblib, or choose ray or submitit_local"
            )
    for key in ("force", "dry_run"):
        if len({cfg[key] for cfg in cfgs}) > 1:
            raise ValueError(f"{key}: is for the whole sweep; give it one value")
    for key in DATA_PLACE:
        values = dict.fromkeys(str(OmegaConf.select(cfg, key)) for cfg in cfgs)
        if len(values) > 1:  # jobs that differ in nothing else have one name
            told = "a sweep reads one data set; run one for each, with a hydra.sweep.dir of its own"
            raise ValueError(f"{key}={','.join(values)}: {told}")


def check_resume(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Raise ValueError where a YAML resumes a run: the words beside would be read, and count for nothing."""
    if cfg.resume is not None and not any(word.lstrip("+").startswith("resume=") for word in overrides):
        raise ValueError(f"resume={cfg.resume}: is for the command line; leave it out of the YAML")


def check_names(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Raise ValueError for a YAML that was copied and not renamed inside: it would be its model under a new name.

    `adamw_slow.yaml` may be adamw with other values.
    """
    for group, choice in cfg.hydra.runtime.choices.items():
        if group not in ("optimizer", "scheduler", *PLACES) or not isinstance(choice, str):
            continue
        path = PLACES.get(group, group)
        name, told = OmegaConf.select(cfg, f"{path}.name"), choice.rpartition("/")[2]
        if any(word.lstrip("+~").startswith(f"{path}.name") for word in overrides):
            continue
        if isinstance(name, str) and told != name and not told.startswith(f"{name}_"):
            own = f"call the file {name.lower()}.yaml or {name.lower()}_....yaml, or mend the name"
            if name.lower() == told.lower():
                own = "write both in small letters"
            raise ValueError(f"{group}={choice}: its YAML says name: {name}; {own}")


def check_rate(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Raise ValueError for k-means with a copy of sgd.yaml, or a copy of kmeans.yaml, at the autoencoder's rate.

    conf/pairing has k-means' own, and goes by the names of the files.
    """
    chosen = cfg.hydra.runtime.choices
    pair, names = (chosen.model, chosen.optimizer), [OmegaConf.select(cfg, f"{key}.name") for key in PAIRED]
    if names != ["kmeans", "sgd"] or pair == ("kmeans", "sgd"):
        return
    default = OmegaConf.load(schema.CONF / "optimizer" / "sgd.yaml").lr
    if cfg.optimizer.lr == default and not any("optimizer.lr=" in word for word in overrides):
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
