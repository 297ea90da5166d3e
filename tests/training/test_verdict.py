"""The last lines of a run: the verdict, the warnings, then the numbers."""

from pathlib import Path
from typing import Any

import pytest

from digitlab.training.verdict import log_results


def make_results(loss: float, **changes: Any) -> dict[str, Any]:
    return {
        "model": "autoencoder",
        "epochs": 2,
        "steps": 20,
        "fit_seconds": 1.5,
        "data": {"source": "files"},
        "objective": {"name": "val/loss", "value": loss, "direction": "min"},
        "metrics": {"val/loss": loss, "test/loss": loss},
        "baselines": {"mean_image": 0.0675, "pca": 0.0269},
        "warnings": ["Some pixels are dark."],
    } | changes


@pytest.mark.parametrize(
    ("loss", "verdict"),
    [
        (
            0.0049,
            "Better than predicting the mean image (0.0675) and PCA with the same latent size"
            " (0.0269): test loss 0.0049.",
        ),
        (
            0.05,
            "Better than predicting the mean image (0.0675), but not than PCA with the same latent"
            " size (0.0269): test loss 0.0500.",
        ),
        (
            0.0675,
            "WARNING: Not better than predicting the mean image: test loss 0.0675, the mean image"
            " alone gives 0.0675.",
        ),
    ],
)
def test_a_run_ends_with_its_verdict_before_the_numbers(
    loss: float, verdict: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The comparison with the baselines stands first and once, then come the other warnings."""
    caplog.set_level("INFO")
    results = make_results(loss)
    if verdict.startswith("WARNING"):
        results["warnings"].append(verdict.removeprefix("WARNING: "))
    log_results(results, Path("run"))
    assert caplog.messages == [
        verdict,
        "WARNING: Some pixels are dark.",
        "autoencoder, epochs: 2, steps: 20, in 1.5 s of training (data: files)",
        f"  {'val/loss':27} {loss:<8.4g}",
        f"  {'test/loss':27} {loss:<8.4g}  (mean image 0.0675, pca 0.0269)",
        "Results and figures: run",
    ]


def test_a_model_without_baselines_has_no_verdict(caplog: pytest.LogCaptureFixture) -> None:
    """A plugin's model may have none: its warnings stand first."""
    caplog.set_level("INFO")
    log_results(make_results(0.05, baselines={}), Path("run"))
    assert caplog.messages[0] == "WARNING: Some pixels are dark."
    assert "test/loss" in caplog.messages[3]
