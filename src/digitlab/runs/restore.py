"""The configuration of an earlier run. Imports no torch."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from digitlab.config.schema import MNIST, SCHEMAS
from digitlab.config.validation import ACTIONS, empty_config, name_of
from digitlab.runs.files import read_json


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
        rule = "belongs on the command line; remove it from the YAML"
        raise ValueError(f"resume={cfg.resume}: {rule}")
    allowed = (*ACTIONS, "data.root")
    others = [word for word, key in zip(overrides, keys, strict=True) if key not in allowed]
    if others:
        raise ValueError(
            f"resume={cfg.resume}: continues with the configuration of that run;"
            f" leave out {' '.join(others)}, or start a new run"
        )
    saved = restore(cfg.resume)
    saved.force, saved.dry_run = cfg.force, cfg.dry_run
    saved.plugins, saved.tags, saved.note = cfg.plugins, cfg.tags, cfg.note
    if "data.root" in keys:
        saved.data.root = cfg.data.root
    return saved


def restore(run: str) -> DictConfig:
    """The configuration of an earlier run, with the types of the schemas.

    Raises:
        ValueError: The folder holds no run.
        OmegaConfBaseException: A value has another type than today's schema.
    """
    path = Path(run) / "results.json"
    try:
        plain = dict(read_json(path)["config"])
        if "${" in json.dumps(plain):
            # Ours are resolved. An untrusted one could read this user's environment.
            raise ValueError("its values hold ${...}")
        saved = OmegaConf.create(plain)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = getattr(error, "strerror", error)
        remedy = "name its directory, as outputs/runs/NAME"
        # pathlib raises for a name that is too long.
        if os.path.isfile(f"{run}/sweep.json"):  # noqa: PTH113
            remedy = "it is a sweep, which its own command continues"
        elif os.path.isfile(f"outputs/runs/{run}/{path.name}"):  # noqa: PTH113
            remedy = f"did you mean resume=outputs/runs/{run}?"
        raise ValueError(f"resume={run}: holds no run ({path.name}: {reason}); {remedy}") from error
    cfg = empty_config()
    for group, schemas in SCHEMAS.items():
        for schema in schemas:
            name = OmegaConf.select(saved, f"{group}.name")
            if name == name_of(schema) or (name is None and schema is MNIST):
                OmegaConf.update(cfg, group, OmegaConf.structured(schema), merge=False)
    merged = OmegaConf.merge(cfg, saved)
    assert isinstance(merged, DictConfig)
    # Only a command names code to import.
    merged.plugins = []
    return merged
