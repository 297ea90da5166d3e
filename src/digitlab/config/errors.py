"""A line or two for each mistake of a user: what Hydra and OmegaConf say names neither the value nor what to do.

Imported before any job: it must not import torch.
"""

import difflib
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from digitlab.config import schema

NEEDS = {"init": "model=kmeans", "channels": "model=autoencoder", "prior": "model=autoencoder"}


def format_error(error: BaseException, words: list[str]) -> str:
    """The line for a mistake that was found in the command line `words`, in a file of conf/ or on the disk."""
    cause = error.__cause__ or error
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem_mark.name}, line {error.problem_mark.line + 1}: {error.problem}; mend the file"
    if isinstance(error, YAMLError):  # a character that no text has
        return f"{' '.join(str(error).split())}; mend the file"
    if isinstance(error, UnicodeDecodeError):  # does not say of which file
        near = error.object[max(0, error.start - 30) : error.end]
        return f"a YAML holds {near!r}, which is not UTF-8; save it as UTF-8"
    if "Unexpected type annotation" in lines[0]:
        called = next((word for word in words if re.search(r"\w\(.*\)", word)), lines[0])
        return f"{called}: a function such as range(1,3) stands alone, not in a list; name the values, as 1,2,5"
    if isinstance(error, MissingConfigException):
        return _unknown_choice(error, words)
    if isinstance(error, OverrideParseException) and Path(error.override).is_dir():
        return f"{error.override}: is a folder; resume={error.override} goes on with the run in it"
    if isinstance(error, OverrideParseException) and (meant := _meant(error.override)):
        return f"{error.override}: is no key=value; {meant}"
    if isinstance(error, OverrideParseException):
        told = "is no key=value; leave out spaces about =, close brackets and quotes, and put other signs in quotes"
        key, _, value = error.override.partition("=")
        quoted = "data.root='\"/a b\"'"
        if re.search("[ =]", value) and not re.search("['\"]", value) and key == key.strip():
            quoted = f"{key}='\"{value}\"'"
        return f"{error.override}: {told}, as {quoted}"
    if isinstance(error, ConfigCompositionException) and lines[0].startswith("In '"):
        return _misfit(lines, words)
    if isinstance(error, ConfigCompositionException) and "Could not append" in lines[0]:
        word = _word(words, key := lines[0].split("'")[1])
        return f"{word}: leave out the +, {key} is there to be changed"
    if isinstance(error, ConfigCompositionException) and "No match in the defaults list" in str(error):
        group = lines[0].split("'")[1]
        return f"{_word(words, group)}: there is no such choice here; {group} needs {NEEDS.get(group, 'another model')}"
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and cause.parent_node is not None:
        return _stranger(str(cause.full_key), cause.parent_node, words)
    if isinstance(cause, OmegaConfBaseException):
        key, reason = str(cause.full_key or ""), str(cause).strip().splitlines()[0]
        if "is not a ListConfig" in reason:
            reason = f"must be a list, as {key}=[8,16,32]"
        elif "of type 'list'" in reason:
            reason = f"{reason}; several values are {key}=1,2 and -m, in the YAML of a sweep '1,2'"
        elif "does not support deletion" in reason:
            reason = "nothing can be taken away; give it another value"
        elif key and (options := schema.choices(group := key.rpartition(".")[2])):
            reason = f"is chosen by {group}=..., which must be one of {', '.join(options)}"
        elif rule := next((rule for ruled, _, rule in schema.RULES if ruled == key), ""):
            reason = f"{reason}; {rule}"
        return f"{_word(words, key)}: {reason}" if key else reason
    if "Ambiguous value for argument" in str(error):
        word = lines[0].split("'")[1]
        also = "; a list is model.channels=[8,16]" if "channels" in word else ""
        return f"{word}: several values are a sweep, which -m asks for{also}"
    if isinstance(error, OSError):
        return _of_the_disk(error)
    if "does not support sweep type" in lines[0]:
        word = next((word for word in words if "interval(" in word), lines[0])
        return f"{word}: has no list of values; name them, as 1,2,3 or range(1,4)"
    if lines[0].startswith("Multiple values for"):
        return f"{lines[0].partition('.')[0]}; in a YAML's defaults write `override /model: kmeans`, with the slash"
    if isinstance(error, HydraException):
        return misnamed(words) or "; ".join(lines[:2])
    return str(error)


def _unknown_choice(error: MissingConfigException, words: list[str]) -> str:
    """A choice that conf/ lacks, with those that there are."""
    if error.missing_cfg_file is None:  # as of --config-path
        return " ".join(str(error).split())
    missing = str(error.missing_cfg_file)
    group, _, name = missing.partition("/")
    word = next((word for word in words if word.replace("=", "/", 1) == missing), f"{group}={name}")
    if group == "schema":
        return f"{missing}: a YAML's `defaults` name it, and there is no such schema; leave `defaults` out"
    if (schema.CONF / f"{missing}.yml").is_file():
        return f"{word}: conf/{missing}.yml must end in .yaml; rename it"
    options = error.options or schema.choices(group)
    rule = f"must be one of {', '.join(options)}" if options else "there is no such choice; see --help"
    if group == "optimizer":
        rule += "; another of torch.optim takes a YAML (docs/usage.md)"
    alike = [each for each in options if each.endswith(f"/{name}")] or difflib.get_close_matches(name, options, n=1)
    if alike:
        rule += f"; did you mean {group}={alike[0]}?"
    return f"{word}: {rule}"


def _of_the_disk(error: OSError) -> str:
    if error.filename is not None:
        remedy = "choose another place, as with hydra.run.dir, hydra.sweep.dir or --out"
        return f"{error.filename}: {error.strerror}; {remedy}"
    if error.errno is None:  # OmegaConf's, for a file that holds a number
        return f"{error}: a YAML holds no keys; mend the file"
    return f"{error}: nothing could be written; make room on the disk, or choose another hydra.run.dir"


def _meant(word: str) -> str:
    """What somebody meant by a word without an equals sign, or with several; empty where it could be anything."""
    groups = [group for group in schema.groups() if word in schema.choices(group)]
    if groups:
        return f"did you mean {groups[0]}={word}?"
    if word in ("force", "dry_run"):
        return f"did you mean {word}=true?"
    if " " in word.strip() and all(_is_setting(part) for part in word.split()):
        return "in one pair of quotes stand several words; leave the quotes out"
    return ""


def _is_setting(word: str) -> bool:
    """Whether a word sets something that there is, as far as its first name tells."""
    key, equals, _ = word.lstrip("+~").partition("=")
    known = {*schema.groups(), *(field.name for field in fields(schema.Config)), "hydra"}
    return bool(equals) and key.partition(".")[0].partition("/")[0] in known


def misnamed(words: list[str]) -> str:
    """The line for a word whose group has no choice of that name, as `channels=8`; empty where all have."""
    for word in words:
        group, _, names = word.partition("=")
        options = schema.choices(group) if "(" not in names else []  # of a sweep's choice(...) or glob(...)
        if options and any(name not in options for name in names.split(",")):
            return f"{word}: must be one of {', '.join(options)}"
    return ""


def _misfit(lines: list[str], words: list[str]) -> str:
    """What Hydra found inside a file of conf/, told by the file."""
    file, _, found = lines[0].removeprefix("In '").partition("': ")
    if len(lines) > 1:
        key = next((line.partition(":")[2] for line in lines if line.strip().startswith("full_key:")), "")
        found = f"at{key}: {lines[1].strip()}" if key else lines[1].strip()
    of_many = file.startswith(("experiment/", "sweep/"))  # a file that makes choices
    group = found.removeprefix("at ").partition(":")[0].rpartition(".")[0].rpartition(".")[2]
    beside = next((word for word in words if word.startswith(f"{group}=")), "the choice beside it")
    remedy = f"leave out {beside}, or mend the file"
    for choice, needed in NEEDS.items():
        if of_many and f"Could not override '{choice}'" in found:
            chosen = [word for word in words if word.startswith("model=")]
            if grid := next((word for word in words if word.startswith("sweep=")), ""):
                return f"{file}.yaml: chooses {choice}, which needs {needed}; {grid} is of another model"
            above = f"add `override /{needed.replace('=', ': ')}` above it"
            return (
                f"{file}.yaml: chooses {choice}, which needs {needed}; {f'leave out {chosen[0]}' if chosen else above}"
            )
    path = schema.CONF / f"{file}.yaml"
    within = file.partition("/")[0]
    if within in ("init", "prior") and path.is_file() and "@package" not in path.read_text():
        return f"{file}.yaml: {found.rstrip('.')}; begin it with the line `# @package model.{within}`"
    if of_many and path.is_file() and "@package _global_" not in path.read_text():
        remedy = "begin it with the line `# @package _global_`"
    elif "Did you mean to override" in found or f"Could not override '{file.partition('/')[0]}/" in found:
        remedy = "write `override /model: kmeans`, with the slash"
    other = "compare its keys, and its first lines, with the files beside it"
    return f"{file}.yaml: {found.rstrip('.')}; {remedy if of_many else other}"


def _stranger(key: str, parent: Any, words: list[str]) -> str:
    """A key that the part of the configuration `parent` lacks, with the nearest that there is."""
    keys, (stem, _, last) = [str(each) for each in parent], key.rpartition(".")
    inner = [f"{name}.{each}" for name in keys if isinstance(parent.get(name), DictConfig) for each in parent[name]]
    close = difflib.get_close_matches(last, keys, n=1) or [word for word in inner if last in word.partition(".")[2]]
    remedy = f"it has {', '.join(keys)}"
    if not keys:
        remedy = f"a new key takes a +, as +{_word(words, key).lstrip('+~')}"
    elif close:
        remedy = f"did you mean {f'{stem}.' if stem else ''}{close[0]}?"
    elif stem == "optimizer" and OmegaConf.get_type(parent) is dict:
        remedy = f"+{key}=... gives it one that torch.optim has"
    elif any(word.startswith(f"{stem}=") and "," in word for word in words):
        remedy = f"sweep {stem}s with keys of their own one by one: one hydra.sweep.dir=... gives them one report"
    elif stem == "hydra.launcher":
        remedy = "name the launcher that has it, as hydra/launcher=joblib"
    elif stem == "model" and last in NEEDS:
        remedy = f"{last} needs {NEEDS[last]}"
    if not stem and last in ("init", "prior"):
        remedy = f"a value of the choice is model.{_word(words, key).lstrip('+~')}, the choice itself {last}=..."
    where, name = stem or "the configuration", parent.get("name")  # of the choice: the word may fit another job's
    return f"{_word(words, key)}: {f'{where}={name}' if name else where} has no such key; {remedy}"


def _word(words: list[str], key: str) -> str:
    """The word of the command line that sets `key`, or of several the one that says most of it."""
    keys = {word: word.lstrip("+~").partition("=")[0] for word in words}
    return max(
        (word for word in words if f"{keys[word]}.".startswith(f"{key}.")), key=lambda w: len(keys[w]), default=key
    )
