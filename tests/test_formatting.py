"""Losses as text: MNIST's as ever, small ones with digits that say something."""

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
    """Four places of MNIST's, three digits of small ones, four of exploded ones."""
    assert format_loss(loss) == text


def test_losses_of_the_size_of_mnist_s_have_four_places() -> None:
    """From 0.001 to 10, where nothing changes."""
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
def test_a_spread_has_two_digits_where_it_is_small(spread: float, text: str) -> None:
    """And is nothing where there is none."""
    assert format_spread(spread) == text


def test_it_imports_nothing_slow() -> None:
    """The line on a sweep's progress is written without torch, numpy or matplotlib."""
    script = "import sys, digitlab.formatting; print(sorted(sys.modules))"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not any(f"'{name}'" in done.stdout for name in ("torch", "numpy", "matplotlib"))
