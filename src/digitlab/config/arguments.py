"""The values of a user's own YAML, checked by the annotations of what they are passed to.

digitlab's own models have schemas instead (`schema`), which need no torch.
"""

import difflib
import inspect
from collections.abc import Mapping
from dataclasses import make_dataclass
from enum import EnumType
from functools import cache
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

# What digitlab passes to every model besides the values of its YAML.
COMMON = ("optimizer", "scheduler", "seed", "image_shape", "n_classes")


class Argument(NamedTuple):
    """An argument that takes a value of a YAML."""

    annotation: Any
    is_required: bool


@cache
def arguments(target: Any) -> dict[str, Argument]:
    """The arguments of a class or a function by name.

    A constructor with `**options` passes these on, so that the arguments of its base class count as
    well.
    """
    found: dict[str, Argument] = {}
    for function in _constructors(target) if isinstance(target, type) else [target]:
        try:
            hints = get_type_hints(function)
        # An annotation may name what only a type checker imports.
        except Exception:
            hints = {}
        passes_on = False
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                passes_on = True
            elif parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                is_required = parameter.default is parameter.empty
                found.setdefault(name, Argument(hints.get(name, Any), is_required))
        if not passes_on:
            break
    found.pop("self", None)
    return found


def _constructors(cls: type) -> list[Any]:
    """The constructors of a class and its bases, in the order in which they call one another."""
    return [vars(base)["__init__"] for base in cls.__mro__ if "__init__" in vars(base)]


def convert(target: Any, values: Mapping[str, Any], group: str, given: int = 0) -> dict[str, Any]:
    """Convert values to the types of the arguments that they are passed to.

    Args:
        target: A class or a function.
        values: The values by argument, without `name`.
        group: The config group, for messages.
        given: The number of first arguments that are passed by position.

    Raises:
        ValueError: A key, a type or a missing value does not fit; the message has a line for each.
    """
    known = {}
    for place, (name, argument) in enumerate(arguments(target).items()):
        if place >= given and not (group == "model" and name in COMMON):
            known[name] = argument
    errors, converted = [], {}
    for key, value in values.items():
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            remedy = f"it has {', '.join(known) or 'none'}"
            if close:
                remedy = f"did you mean {group}.{close[0]}?"
            errors.append(
                f"{group}.{key}={value}: {target.__name__} has no such argument; {remedy}"
            )
            continue
        try:
            converted[key] = convert_value(value, known[key].annotation)
        except ValueError as error:
            errors.append(f"{group}.{key}={value}: {error}")
    for key, argument in known.items():
        if argument.is_required and key not in values:
            errors.append(f"{group}.{key}: has no value, and {target.__name__} needs one")
    if errors:
        raise ValueError("\n".join(errors))
    return converted


def convert_value(value: Any, annotation: Any) -> Any:
    """Convert a value to a type. Raises ValueError if it does not fit."""
    if get_origin(annotation) is Literal:
        if value not in get_args(annotation):
            raise ValueError(f"must be one of {', '.join(map(str, get_args(annotation)))}")
        return value
    try:
        schema = _schema(annotation)
    # A type that no YAML can hold, or that OmegaConf does not know.
    except OmegaConfBaseException:
        return value
    try:
        config: Any = OmegaConf.merge(OmegaConf.structured(schema), {"value": value})
        plain: Any = OmegaConf.to_container(config)
        return plain["value"]
    except OmegaConfBaseException as error:
        if isinstance(annotation, EnumType):
            rule = f"one of {', '.join(annotation.__members__)}"
        else:
            rule = annotation.__name__ if isinstance(annotation, type) else str(annotation)
            # A generic type is a type with arguments.
            rule = str(annotation) if get_args(annotation) else rule
        raise ValueError(f"must be {rule}") from error


@cache
def _schema(annotation: Any) -> Any:
    """A schema with one value. Raises OmegaConfBaseException for a type that it cannot have."""
    schema = make_dataclass("Value", [("value", annotation, MISSING)])
    OmegaConf.structured(schema)
    return schema
