"""Losses as text: four decimal places for MNIST's, significant digits for small ones."""

import subprocess
import sys

import numpy as np
import pytest

from digitlab.formatting import format_loss, format_spread


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        (0.0523, "0.0523"),
        (0.0049, "0.0049"),
        (0.00100, "0.0010"),
        (0.00012345, "0.000123"),
        (1.23456e-06, "1.23e-06"),
        (0.00012, "0.000120"),
        (1e-6, "1.00e-06"),
        (0.0, "0.00"),
        (9.99994, "9.9999"),
        (12345678.9, "1.235e+07"),
        (10.0, "10"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
    ],
)
def test_a_loss_has_four_places_or_significant_digits(loss: float, text: str) -> None:
    """MNIST's losses have four places, small ones three digits, large ones four digits."""
    assert format_loss(loss) == text


def test_losses_from_a_thousandth_to_ten_have_four_places() -> None:
    """MNIST's losses are in this range."""
    for loss in np.geomspace(0.001, 9.9999, 1000):
        assert format_loss(loss) == f"{loss:.4f}"


@pytest.mark.parametrize(
    ("spread", "text"),
    [
        (0.0114, "0.0114"),
        (0.00041, "0.00041"),
        (1.26e-8, "1.3e-08"),
        (0.0, "0"),
        (1.5e7, "1.5e+07"),
        (float("nan"), ""),
    ],
)
def test_a_small_spread_has_two_digits(spread: float, text: str) -> None:
    """NaN, the spread of a single run, is an empty string."""
    assert format_spread(spread) == text


def test_formatting_imports_nothing_slow() -> None:
    """A sweep's progress line is written without torch, numpy or matplotlib."""
    script = "import sys, digitlab.formatting; print(sorted(sys.modules))"
    command = [sys.executable, "-c", script]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not any(f"'{name}'" in process.stdout for name in ("torch", "numpy", "matplotlib"))
