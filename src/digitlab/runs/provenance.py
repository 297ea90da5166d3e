"""What a result depends on: its configuration, the code and the libraries."""

import hashlib
import json
import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

DATA_PLACE = ("data.root", "data.verify")  # where the data lies and whether it is checked: changes no result


def make_run_id(config: Mapping[str, Any]) -> str:
    """Twelve hex digits that two resolved configurations share if they differ only in what changes no result."""
    kept = dict(config)
    kept["data"] = {key: value for key, value in config["data"].items() if f"data.{key}" not in DATA_PLACE}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by their dotted keys, as a command line writes them; lists stay lists."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= flatten(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


@cache  # the code that was loaded, whatever its files become meanwhile
def code_version() -> dict[str, Any]:
    """The digest of the package's files; the git commit, and if they differ from it: None where git cannot tell."""
    package, content = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).as_posix()
        content.update(f"{name} {path.stat().st_size}\n".encode() + path.read_bytes())

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=package, capture_output=True, text=True, check=True).stdout.strip()

    try:
        found = {"sha": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--", "*.py"))}
    except (OSError, subprocess.CalledProcessError):
        found = {"sha": None, "dirty": None}
    return found | {"digest": content.hexdigest()[:12]}


def describe_other_code(results: Mapping[str, Any]) -> str:
    """By what other code a run was made than runs now, in words; empty where by the same.

    That is a matter of the package's files: a commit of other files changes no result.
    """
    code, now = results.get("code") or {}, code_version()
    if code.get("digest") == now["digest"]:
        return ""
    sha = str(code.get("sha"))[:12]
    return f"by other code, commit {sha}" + (", changed since or before" if str(now["sha"]).startswith(sha) else "")


@cache
def library_versions() -> dict[str, str]:
    """The versions that results depend on."""
    names = ("digitlab", "torch", "lightning", "hydra-core", "numpy", "scikit-learn")
    return {"python": platform.python_version()} | {name: version(name) for name in names}
