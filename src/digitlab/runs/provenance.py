"""The inputs of a result: its configuration, the code and the libraries."""

import hashlib
import json
import platform
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from digitlab import plugins
from digitlab.runs.files import atomic_write

# Where the data lies and whether it is checked; these change no result.
DATA_PLACE = ("data.root", "data.verify")
PACKAGE = Path(__file__).parents[1]
# The uncommitted changes of the code, in the directory of a run.
CODE_DIFF = "code.diff"
LARGEST_DIFF = 10**6  # bytes


def make_run_id(config: Mapping[str, Any]) -> str:
    """Twelve hex digits that identify the values which determine a result."""
    text = json.dumps(determining_values(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def determining_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values which determine a result: not where the data lies or what else logs the run."""
    kept = without_loggers(config)
    kept["data"] = {
        key: value for key, value in config["data"].items() if f"data.{key}" not in DATA_PLACE
    }
    return kept


def without_loggers(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without its loggers, which are no settings of the experiment."""
    return {key: value for key, value in config.items() if key != "logger"}


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested values to dotted keys, as on a command line; lists stay lists."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


# Cached because the loaded code stays the same while its files may change.
@cache
def code_version() -> dict[str, Any]:
    """Identify the code.

    Returns:
        `digest` of the package's files, `sha` of the git commit, and `dirty`: whether the files
        differ from it. `sha` and `dirty` are None outside a checkout.
    """
    content = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        content.update(f"{name} {path.stat().st_size}\n".encode() + path.read_bytes())

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        done = subprocess.run(command, cwd=PACKAGE, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    commit: dict[str, Any] = {"sha": None, "dirty": None}
    with suppress(OSError, subprocess.CalledProcessError):
        # An installed package may lie inside the checkout of another project.
        git("ls-files", "--error-unmatch", "__init__.py")
        sha = git("rev-parse", "HEAD")
        commit = {"sha": sha, "dirty": bool(git("status", "--porcelain", "--", "*.py"))}
    return commit | {"digest": content.hexdigest()[:12]}


def save_code_diff(run: Path) -> None:
    """Write the uncommitted changes of the code into a run; without any, remove earlier ones.

    A run does not fail for want of it.
    """
    path = run / CODE_DIFF
    with suppress(OSError):
        if changes := code_diff():
            with atomic_write(path) as part:
                part.write_bytes(changes)
        else:
            path.unlink(missing_ok=True)


# Cached as `code_version` is.
@cache
def code_diff() -> bytes:
    """`git diff HEAD` of the checkout that holds the code, at most LARGEST_DIFF bytes of it.

    Empty without a checkout or changes. Raises OSError without git.
    """
    if code_version()["sha"] is None:
        return b""
    # Neither programs nor colours nor a part of the tree that the user's settings choose.
    plain = ("--no-ext-diff", "--no-textconv", "--no-color", "--no-relative")
    command = ["git", "--no-optional-locks", "diff", *plain, "HEAD"]
    silent = subprocess.DEVNULL
    with subprocess.Popen(
        command, cwd=PACKAGE, stdin=silent, stdout=subprocess.PIPE, stderr=silent
    ) as process:
        assert process.stdout is not None
        changes = process.stdout.read(LARGEST_DIFF + 1)
        is_cut = len(changes) > LARGEST_DIFF
        if is_cut:
            process.kill()
    if is_cut:
        lines = changes[:LARGEST_DIFF].rpartition(b"\n")[0]
        return lines + f"\n\nCut here: the diff is longer than {LARGEST_DIFF:,} bytes.\n".encode()
    return changes if process.returncode == 0 else b""


def describe_other_code(results: Mapping[str, Any]) -> str:
    """Say which other code made a run; empty if the code is the same.

    Only the package's files and the plugins count: a commit to other files changes no result. A
    plugin that is loaded now, but was not then, did not make the run.
    """
    code, now = results.get("code") or {}, code_version()
    if code.get("digest") == now["digest"]:
        earlier, loaded = code.get("plugins"), plugins.digests()
        others = []
        for name, digest in earlier.items() if isinstance(earlier, Mapping) else ():
            if loaded.get(name, digest) != digest:
                others.append(str(name))
        return f"by other code of the plugin {', '.join(others)}" if others else ""
    if not code.get("sha"):
        return "by other code"
    sha = str(code["sha"])[:12]
    # Equal commits with different files: one of the two had uncommitted changes.
    changes = " with other changes" if str(now["sha"]).startswith(sha) else ""
    return f"by other code, commit {sha}{changes}"


@cache
def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that results depend on."""
    names = ("digitlab", "torch", "lightning", "hydra-core", "numpy", "scikit-learn")
    return {"python": platform.python_version()} | {name: version(name) for name in names}
