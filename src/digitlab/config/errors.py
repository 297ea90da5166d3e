"""Messages for the mistakes of users: each names the value received, the rule and the remedy.

What Hydra and OmegaConf say themselves rarely names all three.
"""

import difflib
import re
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from digitlab.config import schema

# The groups that only some models have, and these models.
NEEDS = {
    "init": ("kmeans",),
    "channels": ("autoencoder", "vae"),
    "prior": ("autoencoder", "vae"),
}
# How to write values with commas, for the keys that take them.
COMMAS = {
    "channels": "a list is model.channels=[8,16]",
    "model.channels": "a list is model.channels=[8,16]",
    "tags": "a list is tags=[a,b]",
    "note": """a text with a comma needs quotes, as note='"a, b"'""",
}
QUOTING = "leave out spaces around =, close brackets and quotes, and quote other characters"


def is_mistake(error: BaseException) -> bool:
    """Whether a user can correct what raised an error."""
    if isinstance(
        error, HydraException | OmegaConfBaseException | YAMLError | ValueError | OSError
    ):
        return True
    # Values that Hydra does not foresee, such as `model=[1,2]`, raise TypeError in its composition.
    return isinstance(error, TypeError) and _is_raised_by_hydra(error)


def _is_raised_by_hydra(error: BaseException) -> bool:
    place = traceback.extract_tb(error.__traceback__)[-1].filename
    return "/hydra/" in place or "/omegaconf/" in place


def format_error(error: BaseException, overrides: Sequence[str]) -> str:
    """One or two lines for a mistake in the overrides of a command, in a YAML or on the disk."""
    # The plugin names its own sweeper; ours adds the hooks.
    return _format(error, overrides).replace("=resumable_optuna", "=digitlab_search")


def _format(error: BaseException, overrides: Sequence[str]) -> str:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    cause = error.__cause__ or error
    if isinstance(error, YAMLError | UnicodeDecodeError):
        return _format_file_error(error)
    if isinstance(error, MissingConfigException):
        return _format_unknown_choice(error, overrides)
    if isinstance(error, OverrideParseException):
        return _format_syntax_error(error.override)
    if isinstance(error, ConfigCompositionException) and (
        message := _format_composition_error(str(error), overrides)
    ):
        return message
    if "Config group override must be" in first:
        return _find_unknown_choice(overrides) or first
    if "Unexpected type annotation" in first:
        call = next((word for word in overrides if re.search(r"\w\(.*\)", word)), first)
        return f"{call}: range(1,3) and the like cannot stand in a list; write the values, as 1,2,5"
    if isinstance(cause, ConfigKeyError | ConfigAttributeError):
        parent = cause.parent_node
        if isinstance(parent, DictConfig) and OmegaConf.to_container(parent) is not None:
            return _format_unknown_key(str(cause.full_key), parent, overrides)
    if isinstance(cause, OmegaConfBaseException):
        return _format_value_error(cause, overrides)
    if "Ambiguous value for argument" in first:
        word = first.split("'")[1]
        key = word.partition("=")[0]
        hint = f"; {COMMAS[key]}" if key in COMMAS else ""
        return f"{word}: several values are a sweep, for which add -m{hint}"
    if isinstance(error, OSError):
        return _format_os_error(error)
    if isinstance(error, HydraException):
        return _find_unknown_choice(overrides) or "; ".join(str(error).strip().splitlines()[:2])
    if _is_raised_by_hydra(error):
        hint = "choices are names that --help lists, docs/usage.md describes values"
        return _find_unknown_choice(overrides) or f"{' '.join(overrides)}: {error}; {hint}"
    return str(error)


def _format_file_error(error: YAMLError | UnicodeDecodeError) -> str:
    if isinstance(error, UnicodeDecodeError):
        # The error does not name the file.
        text = error.object[max(0, error.start - 30) : error.end]
        return f"a YAML holds {text!r}, which is not UTF-8; save it as UTF-8"
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{mark.name}, line {mark.line + 1}: {error.problem}; correct the file"
    return f"{' '.join(str(error).split())}; correct the file"


def _format_os_error(error: OSError) -> str:
    if error.filename is not None:
        remedy = "choose another place, as with hydra.run.dir, hydra.sweep.dir or --out"
        return f"{error.filename}: {error.strerror}; {remedy}"
    if "'.yml'" in str(error):
        return f"{' '.join(str(error).split())} Rename the file."
    if error.errno is None:
        # OmegaConf's, for a file that holds a number.
        return f"{error}: a YAML must hold keys; correct the file"
    return f"{error}: cannot write; make room on the disk, or choose another hydra.run.dir"


def _format_syntax_error(word: str) -> str:
    """A word that Hydra's grammar does not accept."""
    if Path(word).is_dir():
        return f"{word}: is a folder; resume={word} continues the run in it"
    groups = [group for group in schema.groups() if word in schema.choices(group)]
    if groups:
        return f"{word}: is not key=value; did you mean {groups[0]}={word}?"
    if word in ("force", "dry_run"):
        return f"{word}: is not key=value; did you mean {word}=true?"
    key, _, value = word.partition("=")
    example = "data.root='\"/a b\"'"
    if re.search("[ =~]", value) and not re.search("['\"]", value) and key == key.strip():
        example = f"{key}='\"{value}\"'"
    return f"{word}: is not key=value; {QUOTING}, as {example}"


def _format_unknown_choice(error: MissingConfigException, overrides: Sequence[str]) -> str:
    """A choice that conf/ lacks, with those that it has."""
    if error.missing_cfg_file is None:
        return " ".join(str(error).split())
    missing = str(error.missing_cfg_file)
    group, _, name = missing.partition("/")
    word = f"{group}={name}"
    if group == "schema":
        return f"{missing}: a YAML's `defaults` name this schema, which does not exist; remove them"
    if (schema.CONF / f"{missing}.yml").is_file():
        return f"{word}: conf/{missing}.yml must end in .yaml; rename it"
    options = error.options or schema.choices(group)
    if not options:
        return f"{word}: does not exist; --help lists the choices"
    rule = f"must be one of {', '.join(options)}"
    if group == "optimizer":
        rule += "; another of torch.optim takes a YAML (docs/usage.md)"
    close = [option for option in options if option.endswith(f"/{name}")]
    close += difflib.get_close_matches(name, options, n=1)
    return f"{word}: {rule}" + (f"; did you mean {group}={close[0]}?" if close else "")


def _find_unknown_choice(overrides: Sequence[str]) -> str:
    """The message for an override whose group has no such choice, as `channels=8`, or nothing."""
    for word in overrides:
        group, _, names = word.partition("=")
        # A sweep may say choice(...) or glob(...).
        options = schema.choices(group) if "(" not in names else []
        if options and any(name not in options for name in names.split(",")):
            return f"{word}: must be one of {', '.join(options)}"
    return ""


def _format_composition_error(text: str, overrides: Sequence[str]) -> str:
    """An override or a YAML that does not fit the others; empty if the text tells enough."""
    first = text.strip().splitlines()[0]
    key = first.split("'")[1] if "'" in first else ""
    if first.startswith("In '"):
        return _format_file_conflict(text.strip().splitlines(), overrides)
    if "Could not append" in first:
        return f"{_find_override(overrides, key)}: leave out the +, since {key} exists already"
    if "No match in the defaults list" in text:
        needed = _models_with(key) if key in NEEDS else "another model"
        return f"{_find_override(overrides, key)}: is not available; {key} needs {needed}"
    if first.startswith("Multiple values for"):
        group = first.removeprefix("Multiple values for ").partition(".")[0]
        if (word := _find_override(overrides, group)).startswith("+"):
            return f"{word}: leave out the +, since {group} exists already"
        return f"{first.partition('.')[0]}; in a YAML write `override /model: kmeans`, with slash"
    return ""


def _format_file_conflict(lines: list[str], overrides: Sequence[str]) -> str:
    """A YAML of conf/ that does not fit the choices of the command."""
    file, _, reason = lines[0].removeprefix("In '").partition("': ")
    if len(lines) > 1:
        keys = [line.partition(":")[2] for line in lines if line.strip().startswith("full_key:")]
        reason = f"at{keys[0]}: {lines[1].strip()}" if keys else lines[1].strip()
    reason = reason.rstrip(".")
    group, path = file.partition("/")[0], schema.CONF / f"{file}.yaml"
    has_package = not path.is_file() or "@package" in path.read_text()
    if group in ("init", "prior") and not has_package:
        return f"{file}.yaml: {reason}; begin it with the line `# @package model.{group}`"
    if group not in ("experiment", "sweep"):
        return f"{file}.yaml: {reason}; compare its keys and first lines with its neighbours"
    # Hydra 1.3 says `Could not override 'init'`, 1.4 `No earlier Group Default for 'init'`.
    match = re.search(r"(?:Could not override|No earlier Group Default for) '([^']+)'", reason)
    choice = match[1] if match else ""
    if choice in NEEDS:
        remedy = f"add `override /model: {NEEDS[choice][0]}` above it"
        for key in ("model", "sweep"):
            words = [word for word in overrides if word.startswith(f"{key}=")]
            remedy = f"leave out {words[0]}" if words else remedy
        return f"{file}.yaml: chooses {choice}, which needs {_models_with(choice)}; {remedy}"
    if not has_package:
        remedy = "begin it with the line `# @package _global_`"
    elif "Did you mean to override" in reason or choice.startswith(f"{group}/"):
        remedy = "write `override /model: kmeans`, with the slash"
    else:
        part = reason.removeprefix("at ").partition(":")[0].rpartition(".")[0].rpartition(".")[2]
        words = [word for word in overrides if word.startswith(f"{part}=")]
        remedy = f"leave out {words[0] if words else 'the other choice'}, or correct the file"
    return f"{file}.yaml: {reason}; {remedy}"


def _format_value_error(error: OmegaConfBaseException, overrides: Sequence[str]) -> str:
    """A value of a type that its key does not take."""
    key, reason = str(error.full_key or ""), str(error).strip().splitlines()[0]
    if not key:
        return reason
    group = key.rpartition(".")[2]
    rules = [rule for ruled, _, rule in schema.RULES if ruled == key]
    if "is not a ListConfig" in reason:
        reason = f"must be a list, as {key}={'[a,b]' if key == 'tags' else '[8,16,32]'}"
    elif "of type 'list'" in reason:
        reason += f"; several values are {key}=1,2 with -m, in the YAML of a sweep '1,2'"
    elif "does not support deletion" in reason:
        reason = "cannot be deleted; give it another value"
    elif schema.choices(group):
        options = ", ".join(schema.choices(group))
        reason = f"is chosen by {group}=..., which must be one of {options}"
    elif rules:
        reason += f"; {rules[0]}"
    return f"{_find_override(overrides, key)}: {reason}"


def _format_unknown_key(key: str, parent: DictConfig, overrides: Sequence[str]) -> str:
    """A key that a part of the configuration lacks, with the nearest that it has."""
    stem, _, last = key.rpartition(".")
    word, keys = _find_override(overrides, key), [str(each) for each in parent]
    nested: list[str] = []
    name: Any
    for name, value in parent.items_ex(resolve=False):
        if isinstance(value, DictConfig):
            nested += [f"{name}.{inner}" for inner in map(str, value)]
    is_logger = stem.startswith("logger.")
    close = difflib.get_close_matches(last, keys, n=1)
    close += [name for name in nested if last in name.partition(".")[2]]
    if not stem and last in ("init", "prior"):
        value = word.lstrip("+~")
        remedy = f"a value of the choice is model.{value}, the choice itself {last}=..."
    elif not keys or (is_logger and not close):
        remedy = f"a new key takes a +, as +{word.lstrip('+~')}"
    elif close:
        remedy = f"did you mean {stem}{'.' if stem else ''}{close[0]}?"
    elif stem == "optimizer" and OmegaConf.get_type(parent) is dict:
        remedy = f"+{key}=... adds one that torch.optim has"
    elif any(each.startswith(f"{stem}=") and "," in each for each in overrides):
        remedy = f"sweep {stem}s with different keys one by one, into the same hydra.sweep.dir"
    elif stem == "hydra.launcher":
        remedy = "name the launcher that has it, as hydra/launcher=joblib"
    elif stem == "model" and last in NEEDS:
        remedy = f"{last} needs {_models_with(last)}"
    else:
        remedy = f"it has {', '.join(keys)}"
    owner, name = stem or "the configuration", parent.get("name")
    if is_logger:
        # The name there is that of its run.
        name = None
    return f"{word}: {f'{owner}={name}' if name else owner} has no such key; {remedy}"


def _models_with(group: str) -> str:
    """The overrides that choose a model with a group, as `model=autoencoder or model=vae`."""
    return " or ".join(f"model={name}" for name in NEEDS[group])


def _find_override(overrides: Sequence[str], key: str) -> str:
    """The override that sets a key; of several the one that names most of it, else the key."""
    best, length = key, -1
    for word in overrides:
        name = word.lstrip("+~").partition("=")[0]
        if f"{name}.".startswith(f"{key}.") and len(name) > length:
            best, length = word, len(name)
    return best
