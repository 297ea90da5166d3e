"""Plugins: modules of the user's own, which register models, data sets and more on import.

They come from `plugins=[FILE.py or MODULE]` of a command and from the entry points
`digitlab.plugins` of installed packages, never from a file of results. A file is imported as Python
imports one from its folder, so that the processes of a run find it as well. Imports no torch
itself.
"""

import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from digitlab.runtime import signals

# The digest of each loaded plugin's content, by the name of its module.
_digests: dict[str, str] = {}


def load(entries: str | Iterable[str]) -> None:
    """Import the plugins of installed packages and these, unless they are loaded already.

    Args:
        entries: Files (relative ones to the working directory) or modules.

    Raises:
        ValueError: A plugin does not exist, cannot be imported, or takes a name that is taken.
    """
    # An interrupted import raises unrelated errors.
    with signals.deferred():
        for point in entry_points(group="digitlab.plugins"):
            _import(point.module, f"entry point digitlab.plugins={point.name}")
        for entry in [entries] if isinstance(entries, str) else entries:
            message = f"plugins={entry}"
            if entry.endswith(".py") or os.sep in entry:
                _import_file(Path(os.path.expanduser(entry)).absolute(), message)  # noqa: PTH111
            else:
                _import(entry, message)


def digests() -> dict[str, str]:
    """The digest of each loaded plugin's content, by the name of its module.

    A process that inherits sys.path can `load` these names.
    """
    return dict(_digests)


def _import_file(path: Path, message: str) -> None:
    """Import a file by its name, with its folder at the end of sys.path."""
    if not path.is_file():
        raise ValueError(f"{message}: is no file; name a .py file (here {path}) or a module")
    name, folder = path.stem, str(path.parent)
    # A package is found in the folder above it.
    if path.name == "__init__.py":
        name, folder = path.parent.name, str(path.parents[1])
    if not name.isidentifier():
        rule = "must be named by letters, digits and _, as Python modules are"
        raise ValueError(f"{message}: {rule}; rename it")
    if folder not in sys.path:
        sys.path.append(folder)
        importlib.invalidate_caches()
    other = _find_file(name)
    if other is None or not path.samefile(other):
        found = other or "Python itself"
        raise ValueError(f"{message}: {found} is the module {name} already; rename the file")
    _import(name, message)


def _find_file(name: str) -> Path | None:
    """The file that a module is imported from, or was; None if it has none."""
    if name in sys.modules:
        place = getattr(sys.modules[name], "__file__", None)
    else:
        spec = importlib.util.find_spec(name)
        place = spec.origin if spec is not None and spec.has_location else None
    return Path(place) if place else None


def _import(name: str, message: str) -> None:
    """Import a module and note the digest of its content."""
    if name in _digests:
        return
    try:
        module = importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    # A plugin may raise anything, SystemExit too.
    except BaseException as error:
        raise ValueError(f"{message}: {_describe(error, name)}; correct it") from error
    _digests[name] = _digest(module)


def _describe(error: BaseException, module: str) -> str:
    """An error in one line, with the line of the module where it was raised."""
    reason = (str(error).strip() or "no reason given").splitlines()[0]
    file, line = str(_find_file(module)), None
    if isinstance(error, SyntaxError):
        reason, file, line = error.msg, str(error.filename), error.lineno
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename == file:
            line = frame.lineno
    place = f" ({file}, line {line})" if line else ""
    return f"{type(error).__name__}: {reason}{place}"


def _digest(module: ModuleType) -> str:
    """Twelve hex digits of a file's content, of a package's files."""
    content = hashlib.sha256()
    if not module.__file__:
        return ""
    path = Path(module.__file__)
    paths = sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]
    for each in paths:
        content.update(each.read_bytes())
    return content.hexdigest()[:12]
