"""The jobs of a sweep: composed, named by their values, recorded on disk.

A grid of overrides becomes jobs whose directories are named by a digest of their configuration, so
that the same values lead to the same directory from any command. The plan, a file in the sweep's
directory, is the union of all commands given for it. Unless the application says how a job stands,
each job keeps a record and a lock in its directory.
"""

import errno
import hashlib
import itertools
import json
import logging
import os
import pickle
import platform
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from hydra_plugins.resumable_sweeper._trial import Pruned

log = logging.getLogger(__name__)
# An application that reports the failures of its jobs itself can silence this logger.
failures = log.getChild("failures")

# Set when a signal ends the sweep. Python drops the exception of a signal's handler if it is raised
# while an object is freed, so the next job of this process has to see that it must not start.
interrupted = threading.Event()

# Bytes of a plan with 300,000 jobs; nobody needs a larger one.
LARGEST = 2**26
PLAN = "sweep.json"
RECORD = ".job.json"
LOCK = ".job.lock"
PLAN_LOCK = ".sweep.json.lock"
ONLY_JOB = "(the only job)"
# Hydra's default, which names no configuration.
HYDRA_SUBDIR = "${hydra.job.num}"
# Interpolations whose values differ from command to command, or with the job's directory.
TRANSIENT = re.compile(r"\$\{(?=now:|hydra:(job\.(id|num)|run\.|runtime\.output_dir|sweep\.))")


# -- a grid ------------------------------------------------------------------------------------


def expand(parsed: Iterable[Override]) -> list[list[str]]:
    """The override lines of every job: all combinations, the last key varying fastest.

    Of two overrides of one key the later one counts. Raises ValueError for a continuous range, and
    for a key without any value.
    """
    values: dict[str, list[str]] = {}
    for override in parsed:
        key = override.get_key_element()
        if not override.is_sweep_override():
            values[key] = [override.input_line or f"{key}={override.get_value_element_as_str()}"]
        elif override.is_discrete_sweep():
            values[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            raise ValueError(
                f"{override.input_line}: a grid needs a list of values; write 1,2,3 or range(1,4),"
                " or search with hydra/sweeper=resumable_optuna hydra.sweeper.n_trials=40"
            )
        if not values[key]:
            raise ValueError(f"{override.input_line}: has no value; give it at least one")
    return [list(lines) for lines in itertools.product(*values.values())]


class Composer:
    """Composes the jobs of one sweep: Hydra once for each set of choices, values on copies.

    Hydra's own composition takes a tenth of a second or more. The defaults list follows from the
    choices of config groups alone, so jobs with the same choices differ in plain values only.
    """

    def __init__(self, loader: ConfigLoader, master: DictConfig) -> None:
        self.loader, self.master = loader, master
        self.parser = OverridesParser.create()
        self.groups: dict[str, bool] = {}
        self.templates: dict[tuple[str, ...], bytes] = {}

    def compose(self, lines: list[str]) -> DictConfig:
        """The configuration that Hydra composes for a job, in less time.

        Raises what Hydra raises for overrides that do not fit.
        """
        parsed = self.parser.parse_overrides(lines)
        values = [override for override in parsed if self._is_plain(override)]
        choices = tuple(line for line, o in zip(lines, parsed, strict=True) if o not in values)
        if choices not in self.templates:
            template = self.loader.load_sweep_config(self.master, list(choices))
            self.templates[choices] = pickle.dumps(template)
        cfg: DictConfig = pickle.loads(self.templates[choices])
        try:
            for override in values:
                OmegaConf.update(cfg, override.key_or_group, override.value(), merge=True)
        except Exception:
            # Hydra's message says what is wrong.
            return self.loader.load_sweep_config(self.master, lines)
        application = [override for override in parsed if not override.is_hydra_override()]
        cfg.hydra.overrides.task = [override.input_line for override in application]
        # From Hydra 1.4 on it is an interpolation, which needs no update.
        if not OmegaConf.is_interpolation(cfg.hydra.job, "override_dirname"):
            cfg.hydra.job.override_dirname = override_dirname(cfg, application)
        OmegaConf.copy_cache(from_config=self.master, to_config=cfg)
        return cfg

    def _is_plain(self, override: Override) -> bool:
        """Whether an override changes a value and cannot change the defaults list."""
        key = override.key_or_group
        if override.type != OverrideType.CHANGE or override.package is not None:
            return False
        if override.is_hydra_override():
            return False
        if key not in self.groups:
            self.groups[key] = bool(self.loader.get_group_options(key, results_filter=None))
        return not self.groups[key]


def override_dirname(cfg: DictConfig, parsed: Sequence[Override]) -> str:
    """`hydra.job.override_dirname` for these overrides, as Hydra makes it."""
    options = cfg.hydra.job.config.override_dirname
    lines = [o.input_line or "" for o in parsed if o.key_or_group not in options.exclude_keys]
    joined: str = options.item_sep.join(sorted(lines)).replace("=", options.kv_sep)
    return joined


# -- identity ----------------------------------------------------------------------------------


@contextmanager
def hydra_settings(cfg: DictConfig | None) -> Iterator[None]:
    """Let `${hydra:...}` read the settings of a job that does not run yet; None: of none."""
    instance: Any = HydraConfig.instance()
    before, instance.cfg = instance.cfg, cfg
    try:
        yield
    finally:
        instance.cfg = before


def task_values(cfg: DictConfig, ignored: Iterable[str] = ()) -> dict[str, Any]:
    """The application's resolved values, without `hydra` and without the ignored keys.

    An interpolation stays as it is written if it depends on the time or on the job's directory, or
    if nothing resolves it before the job runs: it must not make each command's jobs new ones.
    """
    nodes = {key: node for key, node in cfg.items_ex(resolve=False) if key != "hydra"}
    text = {key: _to_plain(node) for key, node in nodes.items()}
    has_transient = TRANSIENT.search(repr(text)) is not None
    values: Any = None
    with hydra_settings(cfg):
        try:
            if not has_transient:
                values = {key: _to_plain(cfg[key], resolve=True) for key in nodes}
        except OmegaConfBaseException:
            # A value is missing, or something in the job itself resolves it.
            pass
        if values is None:
            values = _resolved_where_possible(cfg, [*nodes], has_transient)
    for key in ignored:
        *parents, last = key.split(".")
        branch = values
        for parent in parents:
            branch = branch.get(parent) if isinstance(branch, dict) else None
        if isinstance(branch, dict):
            branch.pop(last, None)
    return dict(values)


def _to_plain(value: Any, *, resolve: bool = False) -> Any:
    return OmegaConf.to_container(value, resolve=resolve) if OmegaConf.is_config(value) else value


def _resolved_where_possible(cfg: DictConfig, keys: list[Any], has_transient: bool) -> Any:
    """The values of these keys; as written what is transient or cannot be resolved."""
    node: Any = OmegaConf.masked_copy(cfg, keys)
    if has_transient:
        text = OmegaConf.to_container(node)
        node = OmegaConf.create(_without_transient(text), flags={"allow_objects": True})
    try:
        return OmegaConf.to_container(node, resolve=True)
    except OmegaConfBaseException:
        return _resolved(node)


def _without_transient(value: Any) -> Any:
    """A copy of plain values in which transient interpolations are ordinary text."""
    if isinstance(value, dict):
        return {key: _without_transient(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_transient(item) for item in value]
    return TRANSIENT.sub("{", value) if isinstance(value, str) else value


def _resolved(node: Any) -> Any:
    """The values of a node; the text of those that cannot be resolved."""
    if not isinstance(node, DictConfig | ListConfig):
        return node
    texts: Any = OmegaConf.to_container(node)
    keys: Iterable[Any] = node if isinstance(node, DictConfig) else range(len(node))
    values: dict[Any, Any] = {}
    for key in keys:
        try:
            values[key] = _resolved(node[key])
        except OmegaConfBaseException:
            values[key] = texts[key]
    return values if isinstance(node, DictConfig) else list(values.values())


def digest(cfg: DictConfig, ignored: Iterable[str] = ()) -> str:
    """Twelve hex digits that configurations share if they differ in ignored keys alone."""
    values = _with_text_keys(task_values(cfg, ignored))
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _with_text_keys(value: Any) -> Any:
    """A copy of plain values that JSON can sort: OmegaConf has keys of other types as well."""
    if isinstance(value, dict):
        return {str(key): _with_text_keys(item) for key, item in value.items()}
    return [_with_text_keys(item) for item in value] if isinstance(value, list) else value


@dataclass
class Job:
    """One run of the application."""

    name: str
    """Its directory within the sweep's."""
    lines: list[str]
    """Its overrides, as the launcher gets them."""
    cfg: DictConfig = field(repr=False)
    """Its whole configuration, `hydra` included."""
    digest: str


def directory_name(cfg: DictConfig, identity: str, number: int) -> str:
    """The name that the application chose for a job's directory, or else the job's digest."""
    settings: Any = OmegaConf.to_container(cfg.hydra.sweep)
    if settings["subdir"] == HYDRA_SUBDIR:
        return identity
    with read_write(cfg.hydra), open_dict(cfg.hydra):
        cfg.hydra.job.num = number
        cfg.hydra.job.id = str(number)
    with hydra_settings(cfg):
        return str(cfg.hydra.sweep.subdir)


def place(cfg: DictConfig, directory: Path, name: str, ignored: Sequence[str]) -> None:
    """Fix a job's directory in its configuration, and the values of the ignored keys.

    What depends on the place or the time of the command is resolved here, since a worker may have
    another environment.
    """
    for key in ignored:
        try:
            # What depends on the job's directory is left to the job.
            with hydra_settings(None):
                value = OmegaConf.select(cfg, key)
            if value is not None:
                OmegaConf.update(cfg, key, value)
        except OmegaConfBaseException:
            continue
    with read_write(cfg.hydra):
        cfg.hydra.sweep.dir = str(directory)
        cfg.hydra.sweep.subdir = name


def unique(jobs: Iterable[Job], ignored: Sequence[str]) -> list[Job]:
    """The jobs without repetitions.

    Raises:
        ValueError: Two configurations would share one directory.
    """
    by_name: dict[str, Job] = {}
    for job in jobs:
        first = by_name.setdefault(job.name, job)
        if first.digest != job.digest:
            raise ValueError(
                f"hydra.sweep.subdir={job.name}: two configurations share this directory"
                f" ({' '.join(first.lines)}; {' '.join(job.lines)});"
                " leave it out, or name every key"
            )
        if first is job:
            continue
        for key in ignored:
            values = [_select(each.cfg, key) for each in (first, job)]
            if values[0] != values[1]:
                raise ValueError(
                    f"{key}={values[0]},{values[1]}: jobs must not differ in this key alone;"
                    " give it one value, and run a sweep of its own for each other value"
                )
    return list(by_name.values())


def _select(cfg: DictConfig, key: str) -> Any:
    """A value of a job; None where only the job can resolve it."""
    try:
        return OmegaConf.select(cfg, key)
    except OmegaConfBaseException:
        return None


# -- files -------------------------------------------------------------------------------------


def write_text(path: Path, text: str) -> None:
    """Write a file that appears whole or not at all."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    part = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        part.chmod(0o644)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON that appears whole or not at all."""
    write_text(path, json.dumps(content, indent=1))


def read_json(path: Path) -> Any:
    """The content of a file that this module wrote; None where there is no such file."""
    try:
        if path.stat().st_size > LARGEST:
            return None
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


@contextmanager
def hold_lock(path: Path, timeout: float = -1) -> Iterator[bool]:
    """Whether this process holds a lock until the block ends; -1 waits without limit.

    The system releases the lock of a process that dies.

    Raises:
        OSError: The file cannot be made, or its file system has no locks.
    """
    # The fallback, a file that somebody has to delete, would outlive a killed process.
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=timeout)
    except Timeout:
        yield False
        return
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        reason = getattr(error, "strerror", None) or error
        rule = f"file locks do not work on this file system ({reason})"
        raise OSError(errno.ENOLCK, rule, str(path)) from error
    try:
        yield True
    finally:
        lock.release()


@dataclass(frozen=True)
class Planned:
    """A job in the plan, as the last command that requested it left it."""

    name: str
    lines: list[str]
    digest: str = ""
    requested: float = 0.0
    """When a command last requested it, in seconds since the epoch."""
    since: float = 0.0
    """`force` runs it again if it was last started before this moment; 0 if nothing is forced."""


def read_plan(directory: Path) -> dict[str, Planned]:
    """The jobs of all commands given for a directory, by name."""
    content = read_json(directory / PLAN)
    try:
        jobs = [Planned(**job) for job in content["jobs"]]
    except (KeyError, TypeError):
        return {}
    return {job.name: job for job in jobs if _is_written_here(job)}


def _is_written_here(job: Planned) -> bool:
    """Whether the values of a job in the plan have the types that this module writes."""
    texts, times = (job.name, job.digest), (job.requested, job.since)
    return (
        isinstance(job.lines, list)
        and all(isinstance(text, str) for text in (*texts, *job.lines))
        and all(isinstance(moment, float | int) for moment in times)
    )


def short_lines(jobs: Mapping[str, Planned]) -> dict[str, str]:
    """For each job the overrides that not all jobs have."""
    common = set.intersection(*({*job.lines} for job in jobs.values())) if jobs else set()
    lines = {}
    for name, job in jobs.items():
        lines[name] = " ".join(line for line in job.lines if line not in common) or ONLY_JOB
    return lines


def planned_name(directory: Path, lines: Sequence[str]) -> str | None:
    """The directory that the command gave to a job with these overrides."""
    matches = [job for job in read_plan(directory).values() if job.lines == list(lines)]
    return max(matches, key=lambda job: job.requested).name if matches else None


def extend_plan(directory: Path, jobs: Sequence[Job], *, force: bool) -> dict[str, Planned]:
    """Add a command's jobs to the plan on disk; returns these jobs as they stand there.

    With `force` jobs started before now are to run again, except for those that an earlier
    forced command, interrupted or still running, has already run.
    """
    directory.mkdir(parents=True, exist_ok=True)
    now = time.time()
    with hold_lock(directory / PLAN_LOCK):
        plan = read_plan(directory)
        mine = {}
        for job in jobs:
            since = plan[job.name].since if job.name in plan else 0.0
            mine[job.name] = Planned(job.name, job.lines, job.digest, now, since)
        _write_plan(directory, plan | mine)
        if force:
            # The clock of the file system also dates the jobs' files.
            moment = (directory / PLAN).stat().st_mtime
            mine = {name: replace(job, since=job.since or moment) for name, job in mine.items()}
            _write_plan(directory, plan | mine)
    return mine


def close_plan(directory: Path, mine: Mapping[str, Planned]) -> None:
    """Note that these jobs had their turn, unless another command has requested them since."""
    with hold_lock(directory / PLAN_LOCK):
        plan = read_plan(directory)
        done = {
            name: replace(job, since=0.0) for name, job in mine.items() if plan.get(name) == job
        }
        _write_plan(directory, plan | done)


def _write_plan(directory: Path, plan: Mapping[str, Planned]) -> None:
    write_json(directory / PLAN, {"jobs": [asdict(job) for job in plan.values()]})


def started_since(directory: Path, moment: float) -> bool:
    """Whether Hydra started a job after a moment; never after 0."""
    for path in (directory / ".hydra" / "config.yaml", directory):
        if path.exists():
            return 0 < moment <= path.stat().st_mtime
    return False


# -- how a job stands, where the application does not say --------------------------------------

# States in which a job needs no further run.
FINISHED = ("completed", "pruned")


def recorded_state(directory: Path, name: str) -> str:
    """`new`, `running`, or the status in a job's record; `interrupted` where its process died."""
    record = read_json(directory / RECORD)
    if not isinstance(record, dict):
        return "new"
    if is_locked(directory):
        return "running"
    status = str(record.get("status"))
    return "interrupted" if status == "running" else status


def recorded_value(directory: Path) -> Any:
    """What a completed job returned, if it is a number."""
    record = read_json(directory / RECORD)
    return record.get("value") if isinstance(record, dict) else None


def is_locked(directory: Path) -> bool:
    """Whether a process is running the job in a directory."""
    if not (directory / LOCK).exists():
        return False
    with hold_lock(directory / LOCK, timeout=0) as acquired:
        return not acquired


def current_class(cls: type) -> Any:
    """The class that stands in a module now under the name of `cls`.

    Hydra executes plugin modules again at each start, in a launcher's worker too, so the class of
    an object may be another one than the module has, and cannot be pickled by reference.
    """
    return getattr(sys.modules[cls.__module__], cls.__name__)


class SweepTask:
    """The application's task, as a job of a sweep.

    With `keeps_record` the job has a record and a lock in its directory: a job that another
    process is running, or has completed in the meantime, is not run.
    """

    def __init__(self, task: Callable[[Any], Any], *, keeps_record: bool) -> None:
        self.task, self.keeps_record = task, keeps_record

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the class by its name."""
        make = partial(current_class(type(self)), keeps_record=self.keeps_record)
        return make, (self.task,)

    def __call__(self, cfg: DictConfig) -> Any:
        """Run the task in the directory that Hydra made for it."""
        if interrupted.is_set():
            raise KeyboardInterrupt
        settings = HydraConfig.get()
        directory = Path(settings.runtime.output_dir)
        planned = read_plan(Path(settings.sweep.dir)).get(settings.sweep.subdir)
        if planned is None:
            # A worker made this directory where the others do not see it.
            reason = f"{settings.sweep.dir}: has no plan of this sweep on {platform.node()}"
            log.error("Failed: %s; all workers need the file system of the sweep", reason)
            raise FileNotFoundError(reason)
        try:
            if self.keeps_record:
                return self.run_recorded(cfg, directory, planned)
            return self.task(cfg)
        except Pruned as stop:
            log.info("Pruned: %s", str(stop) or " ".join(planned.lines))
            return None
        except Exception:
            failures.exception("Failed: %s", " ".join(planned.lines))
            raise

    def run_recorded(self, cfg: DictConfig, directory: Path, planned: Planned) -> Any:
        """Run the task unless another process runs it or has completed it."""
        # Another process may only be reading the state, for which it holds the lock briefly.
        with hold_lock(directory / LOCK, timeout=1) as acquired:
            if not acquired or _is_finished_since(directory, planned.since):
                return None
            with _record(directory, planned.digest) as record:
                result = self.task(cfg)
                record["value"] = _number(result)
                return result


def _number(result: Any) -> float | None:
    """What a job returned as a number, if it is one."""
    try:
        return None if isinstance(result, str) else float(result)
    except (TypeError, ValueError):
        return None


def _is_finished_since(directory: Path, moment: float) -> bool:
    """Whether the record of a job says that it finished, and not before a moment."""
    record = read_json(directory / RECORD)
    if not isinstance(record, dict) or record.get("status") not in FINISHED:
        return False
    return (directory / RECORD).stat().st_mtime >= moment


@contextmanager
def _record(directory: Path, digest: str) -> Iterator[dict[str, Any]]:
    """Record how a job ends; the block may set the `value` that it returned."""
    content: dict[str, Any] = {"digest": digest, "value": None}

    def write(status: str, error: BaseException | None = None) -> None:
        message = f"{type(error).__name__}: {error}" if error else None
        ending = {"status": status, "error": message, "time": time.time()}
        write_json(directory / RECORD, content | ending)

    write("running")
    try:
        yield content
    except Pruned:
        write("pruned")
        raise
    except Exception as error:
        write("failed", error)
        raise
    except BaseException as error:
        write("interrupted", error)
        raise
    write("completed")
