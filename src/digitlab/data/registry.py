"""Data sets by name: the functions behind the choices of conf/data. Imports no torch by itself."""

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from digitlab.config.schema import Data, data_name, keys_of

if TYPE_CHECKING:
    from digitlab.data.images import Source

Loader = TypeVar("Loader", bound=Callable[..., Any])
# The modules that register what comes with digitlab; they import torch.
MODULES = {
    "mnist": "digitlab.data.mnist",
    "fashion_mnist": "digitlab.data.torchvision_sets",
    "kmnist": "digitlab.data.torchvision_sets",
    "emnist": "digitlab.data.torchvision_sets",
    "image_folder": "digitlab.data.own",
    "idx": "digitlab.data.own",
}
DATASETS: dict[str, Callable[..., "Source"]] = {}


def register_dataset(name: str) -> Callable[[Loader], Loader]:
    """Register a function as the data set `name` of a YAML in conf/data.

    The function takes the keys of the YAML, but for the sizes and `name`, and returns a `Source`.
    """

    def register(function: Loader) -> Loader:
        if name in DATASETS:
            raise ValueError(
                f"@register_dataset({name!r}): {DATASETS[name].__name__} already has this name;"
                " choose another"
            )
        DATASETS[name] = function
        return function

    return register


def find_dataset(name: str) -> Callable[..., "Source"]:
    """Return the function of a data set. Raises ValueError if there is none."""
    if name in MODULES:
        import_module(MODULES[name])
    if name not in DATASETS:
        known = ", ".join([*MODULES, *(other for other in DATASETS if other not in MODULES)])
        raise ValueError(
            f"data.name={name}: must be one of {known}, or one that @register_dataset adds"
        )
    return DATASETS[name]


def own_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a data set's YAML that its function takes."""
    common = keys_of(Data) - {"root"}
    return {key: value for key, value in options.items() if key not in {"name", *common}}


def check_options(options: Mapping[str, Any]) -> None:
    """Raise ValueError if the function of a data set does not take the values of its YAML."""
    name = data_name(options)
    signature = inspect.signature(find_dataset(name))
    try:
        signature.bind(**own_options(options))
    except TypeError as error:
        raise ValueError(f"data.name={name}: {error}; it takes {signature}") from error


def load_data(options: Mapping[str, Any]) -> "Source":
    """Load the data set of a configuration.

    Args:
        options: The values of `data`.

    Raises:
        ValueError: The data is missing, damaged or malformed.
    """
    name = data_name(options)
    source = find_dataset(name)(**own_options(options))
    source.check(name)
    return source
