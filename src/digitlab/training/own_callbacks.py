"""Callbacks of Lightning or of a plugin, by the values of conf/callbacks (`trainer.callbacks`).

A class comes from Lightning or from a plugin that the command loads, since the values may come from
a file of results, which names no code.
"""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping

from digitlab import plugins
from digitlab.config.arguments import convert
from digitlab.runs.results import LOSS, Objective

LIGHTNING = "lightning.pytorch.callbacks"


def make_callbacks(choices: Any, objective: Objective = LOSS) -> list[Callback]:
    """Make callbacks from their values by name, each with `_target_`.

    Raises:
        ValueError: A class or a value does not fit.
    """
    if not isinstance(choices, Mapping):
        raise ValueError(f"trainer.callbacks={choices}: must be callbacks by name (callbacks=...)")
    made = []
    for name, values in choices.items():
        key = f"trainer.callbacks.{name}"
        if not isinstance(values, Mapping) or "_target_" not in values:
            raise ValueError(f"{key}={values}: must have a _target_, as {LIGHTNING}.EarlyStopping")
        options = {option: value for option, value in values.items() if option != "_target_"}
        cls = find_class(f"{key}._target_", values["_target_"], Callback, (LIGHTNING,))
        if issubclass(cls, Checkpoint):
            raise ValueError(
                f"{key}._target_={values['_target_']}: saves checkpoints, which a run does itself;"
                " name another class"
            )
        if issubclass(cls, EarlyStopping) and options.get("monitor") is None:
            options |= {"monitor": objective.name, "mode": objective.direction}
        try:
            made.append(cls(**convert(cls, options, key)))
        except (MisconfigurationException, TypeError) as error:
            raise ValueError(f"{key}: {error}") from error
    return made


def find_class(key: str, target: Any, base: type, packages: Sequence[str]) -> Any:
    """Import a class from one of some packages, or from a plugin.

    Raises:
        ValueError: It is in none of them, or does not derive from `base`.
    """
    module, _, name = str(target).rpartition(".")
    is_in_package = any(f"{module}.".startswith(f"{package}.") for package in packages)
    if not is_in_package and module not in plugins.digests():
        raise ValueError(
            f"{key}={target}: must be a class of {packages[0]}, or of a file of your own"
            " (plugins=[FILE.py] and FILE.Class)"
        )
    try:
        cls = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        raise ValueError(f"{key}={target}: {error}; name a class of {packages[0]}") from error
    if cls is None:
        raise ValueError(f"{key}={target}: {module} has no {name}; name a class that it has")
    if not isinstance(cls, type) or not issubclass(cls, base):
        raise ValueError(f"{key}={target}: is no {base.__name__}; name another class")
    return cls
