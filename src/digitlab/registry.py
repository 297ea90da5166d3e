"""Models, data sets, initializations and schedules by the names in configurations and checkpoints.

A decorator registers a class or a function, those of digitlab and those of a plugin alike:

    @register_model("my_vae")
    class MyVAE(Model): ...

digitlab's own names are also listed here with their modules, so that a name can be checked before
the module, which imports torch, is needed. Imports no torch.
"""

import difflib
import importlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T", bound=Callable[..., Any])


class Registry:
    """The choices of one group by name.

    Args:
        group: The config group.
        decorator: The name of its decorator, for messages.
        modules: The names that digitlab itself registers, with their modules.
    """

    def __init__(self, group: str, decorator: str, modules: Mapping[str, str]) -> None:
        self.group, self.decorator, self.modules = group, decorator, modules
        self._entries: dict[str, Any] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers a class or a function under a name.

        Raises:
            ValueError: The name is no name, or something else has it.
        """

        def decorate(entry: T) -> T:
            call = f"@{self.decorator}({name!r})"
            if not isinstance(name, str) or not name.strip():
                raise ValueError(f"{call}: must be a name, as @{self.decorator}('mine')")
            owner = self.modules.get(name, entry.__module__)
            earlier = self._entries.get(name, entry)
            if owner != entry.__module__ or _place(earlier) != _place(entry):
                other = owner if owner != entry.__module__ else ".".join(_place(earlier))
                raise ValueError(
                    f"{call} on {entry.__qualname__}: {other} already has this name; choose another"
                )
            self._entries[name] = entry
            return entry

        return decorate

    def names(self) -> list[str]:
        """All names, digitlab's own first."""
        return list({**self.modules, **self._entries})

    def is_builtin(self, name: Any) -> bool:
        """Whether digitlab itself registers a name."""
        return isinstance(name, str) and name in self.modules

    def check(self, key: str, name: Any) -> None:
        """Raise ValueError if nothing has the name that a configuration has at `key`."""
        names = self.names()
        if name in names:
            return
        close = difflib.get_close_matches(str(name), names, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(
            f"{key}={name}: must be one of {', '.join(names)}, or the {self.decorator} name of a"
            f" file of your own (plugins=[FILE.py], of a script --plugin FILE.py){hint}"
        )

    def find(self, name: str) -> Any:
        """Return what is registered under a name. Raises ValueError if nothing is."""
        self.check(self.group, name)
        if name not in self._entries:
            importlib.import_module(self.modules[name])
        return self._entries[name]


def _place(entry: Any) -> tuple[str, str]:
    """Where an entry is defined. A cell of a notebook that runs again replaces its entries."""
    return entry.__module__, entry.__qualname__


MODELS = Registry(
    "model",
    "register_model",
    {
        "kmeans": "digitlab.models.kmeans",
        "autoencoder": "digitlab.models.autoencoder",
        "vae": "digitlab.models.vae",
    },
)
INITS = Registry(
    "init",
    "register_init",
    dict.fromkeys(("random", "digit", "sample", "kmeans++"), "digitlab.models.initialization"),
)
SCHEDULES = Registry(
    "scheduler",
    "register_schedule",
    dict.fromkeys(
        ("constant", "linear", "cosine", "one_cycle", "one_cycle_linear"),
        "digitlab.models.optimizers",
    ),
)
DATASETS = Registry(
    "data",
    "register_dataset",
    {
        "mnist": "digitlab.data.mnist",
        "fashion_mnist": "digitlab.data.torchvision_sets",
        "kmnist": "digitlab.data.torchvision_sets",
        "emnist": "digitlab.data.torchvision_sets",
        "image_folder": "digitlab.data.own",
        "idx": "digitlab.data.own",
    },
)

register_model = MODELS.register
register_init = INITS.register
register_schedule = SCHEDULES.register
register_dataset = DATASETS.register
