"""A composed configuration: checked, made plain, restored from an earlier run.

Imported before any job: it must not import torch, but for an optimizer without a dataclass or an init of one's own.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from os.path import isfile  # says False where pathlib's raises, as of a name too long
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from digitlab.config.schema import INITS, OWN_RATES, RULES, SCHEMAS, Config, choices
from digitlab.runs.files import read_json


def register() -> None:
    """Put the types where the defaults lists of conf/ find them, as `schema` and `/schema/<name>`."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for schemas in SCHEMAS.values():
        for schema in schemas:
            store.store(group="schema", name=getattr(schema, "name"), node=schema)  # noqa: B009


def _holds(rule: Callable[[Any], bool], value: Any) -> bool:
    """False, too, for a value of a kind that the rule is not about: an optimizer without a schema may have such."""
    try:
        return not isinstance(value, bool) and rule(value)
    except TypeError:
        return False


def _strangers(node: DictConfig, path: str = "") -> Iterator[str]:
    """A sentence for each key that its schema lacks (`+key=value` adds such) or needs, and each renamed choice."""
    schema = OmegaConf.get_type(node)
    known = {field.name for field in fields(schema)} if is_dataclass(schema) else set(node)
    key: Any
    for key, value in node.items_ex(resolve=False):
        if not path and key == "hydra":
            continue
        if key not in known:
            yield f"{path}{key}={value}: nothing reads this key; leave it out"
        elif isinstance(value, DictConfig) and value._is_none():
            yield f"{path}{key}=null: must be a choice; leave it out for the default"
        elif isinstance(value, DictConfig):
            yield from _strangers(value, f"{path}{key}.")
    name, group = getattr(schema, "name", MISSING), path[:-1].rpartition(".")[2]
    if name not in (MISSING, node.get("name")):
        yield (
            f"{path}name={node.get('name')}: has the values of {group}={name}; choose another {group},"
            " or in a YAML of your own leave out `defaults`"
        )
        return
    for key in sorted(known, key=str):
        if key not in node or OmegaConf.is_missing(node, key):
            yield f"{path}{key}: has no value; give it one, or leave out what takes it away"
    own = [getattr(option, "name") for option in SCHEMAS.get(path[:-1], ())]  # noqa: B009
    if name == MISSING and node.get("name") in own:
        yield f"{path}name={node.name}: has values of its own; choose {group}={node.name} instead"


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

    An optimizer without a schema is tried, as its constructor alone knows what it takes, and the function of an init
    that did not come with k-means is looked for; both import torch.
    """
    for group in ("model", "optimizer", "scheduler", "data", "trainer"):
        if not isinstance(cfg.get(group), DictConfig):
            raise ValueError(f"{group}={cfg.get(group)}: must be a choice of conf/{group}")
    if not isinstance(cfg.optimizer.get("name"), str):
        raise ValueError(
            f"optimizer.name={cfg.optimizer.get('name')}: its YAML must name a class of torch.optim, as name: rmsprop"
        )
    wrong = list(_strangers(cfg))
    for key, holds, rule in RULES:
        value = OmegaConf.select(cfg, key, default=MISSING)
        if value != MISSING and not _holds(holds, value):
            wrong.append(f"{key}={value}: {rule}")
    wrong = wrong or list(_relations(cfg))
    if wrong:
        raise ValueError("\n".join(wrong))
    if not is_dataclass(OmegaConf.get_type(cfg.optimizer)):
        from digitlab.models.optimizers import try_optimizer

        try_optimizer(to_plain(cfg)["optimizer"])
    if cfg.model.name == "kmeans" and cfg.model.init.name not in INITS:
        from digitlab.models.initialization import find_init

        find_init(cfg.model.init.name)


def to_plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved values of the experiment in plain dicts and lists, without what to do about it."""
    wanted = [str(key) for key in cfg if key not in ("hydra", "resume", "force", "dry_run")]
    plain: Any = OmegaConf.to_container(OmegaConf.masked_copy(cfg, wanted), resolve=True)
    return dict(plain)


def resumed(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The configuration of the run that `cfg.resume` names.

    Args:
        cfg: The configuration of the command.
        overrides: The overrides of the command line.

    Raises:
        ValueError: The folder holds no run, or the command changes what the run has fixed.
    """
    keys = [override.lstrip("+~").partition("=")[0] for override in overrides]
    if "resume" not in keys:
        raise ValueError(f"resume={cfg.resume}: belongs on the command line; remove it from the YAML")
    others = [
        override
        for override, key in zip(overrides, keys, strict=True)
        if key not in ("resume", "force", "dry_run", "data.root")
    ]
    if others:
        raise ValueError(
            f"resume={cfg.resume}: continues with the configuration of that run;"
            f" leave out {' '.join(others)}, or start a new run"
        )
    saved = restore(cfg.resume)
    saved.force, saved.dry_run = cfg.force, cfg.dry_run
    if "data.root" in keys:
        saved.data.root = cfg.data.root
    return saved


def restore(run: str) -> DictConfig:
    """The configuration of an earlier run, under the types again.

    Raises ValueError where the folder holds no run, or an error of OmegaConf's where the types have changed.
    """
    path = Path(run) / "results.json"
    try:
        plain = dict(read_json(path)["config"])
        if "${" in json.dumps(
            plain
        ):  # ours are resolved; a stranger's would read this user's environment
            raise ValueError("its values hold ${...}")
        saved = OmegaConf.create(plain)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = getattr(error, "strerror", error)
        remedy = "name its directory, as outputs/runs/NAME"
        if isfile(f"{run}/sweep.json"):  # noqa: PTH113
            remedy = "it is a sweep, which goes on with its own command"
        elif isfile(f"outputs/runs/{run}/{path.name}"):  # noqa: PTH113
            remedy = f"did you mean resume=outputs/runs/{run}?"
        raise ValueError(f"resume={run}: holds no run ({path.name}: {reason}); {remedy}") from error
    cfg = OmegaConf.structured(Config)
    for group, schemas in SCHEMAS.items():
        name = OmegaConf.select(saved, f"{group}.name")
        for schema in schemas:
            if name == getattr(schema, "name"):  # noqa: B009
                OmegaConf.update(cfg, group, OmegaConf.structured(schema), merge=False)
    cfg = OmegaConf.merge(cfg, saved)
    assert isinstance(cfg, DictConfig)
    return cfg
