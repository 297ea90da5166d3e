"""The data set of a configuration, by its name. Imports no torch by itself."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from digitlab.config.arguments import convert
from digitlab.config.schema import data_name, own_values
from digitlab.registry import DATASETS

if TYPE_CHECKING:
    from digitlab.data.images import Source


def load_data(options: Mapping[str, Any]) -> "Source":
    """Load the data set of a configuration.

    Args:
        options: The values of `data`.

    Raises:
        ValueError: The data is missing, damaged or malformed.
    """
    name, values = data_name(options), own_values(options, "data")
    load = DATASETS.find(name)
    if not DATASETS.is_builtin(name):
        values = convert(load, values, "data")
    source: Source = load(**values)
    source.check(name)
    return source


def has_sources(options: Mapping[str, Any]) -> bool:
    """Whether `data.source` says where the files come from; data of a plugin may use it otherwise.

    Args:
        options: The values of `data`.
    """
    return "source" in options and DATASETS.is_builtin(data_name(options))
