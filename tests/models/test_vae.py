"""The variational autoencoder: its loss by hand, its noise, its warnings, and a complete run."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from digitlab.data.images import Images
from digitlab.models import checkpoints
from digitlab.models.autoencoder import mean_squared_error
from digitlab.models.vae import VAE, Posterior
from digitlab.runtime.seeds import Stream, generator
from digitlab.training import callbacks

from ..conftest import load_results, run_in_process
from ..training.test_experiment import assert_same
from .test_autoencoder import OPTIONS

SMALL = ["model=vae", "model.channels=[4,8]", "model.latent_dim=4", "trainer.precision=32-true"]


def make_model(**changes: Any) -> VAE:
    torch.manual_seed(0)
    return VAE(**OPTIONS | {"beta": 0.1, "flow": 0} | changes)


def make_batch(number: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return torch.rand(number, 1, 28, 28, generator=rng), torch.zeros(number).long()


def set_posterior(model: VAE, log_variance: float) -> None:
    """Give every image the same log variance."""
    torch.nn.init.zeros_(model.log_variance.weight)
    torch.nn.init.constant_(model.log_variance.bias, log_variance)


def record_log(model: Any) -> dict[str, torch.Tensor]:
    """Let a model log into a dictionary, which is returned."""
    logged: dict[str, torch.Tensor] = {}
    model.log = lambda name, value, **_: logged.update({name: value})
    return logged


def step(model: VAE, batch: Any, seed: int = 0) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Compute the training loss of a batch, and what the step logs."""
    logged = record_log(model)
    torch.manual_seed(seed)
    return model.training_step(batch, 0), logged


def test_the_divergence_by_hand() -> None:
    """N(1, 1) is 1/2 from N(0, 1); N(0, e) is (e - 2)/2; N(0, 1) itself is 0."""
    posterior = Posterior(torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]]))
    expected = torch.tensor([[0.5, (math.e - 2) / 2, 0.0]])
    torch.testing.assert_close(posterior.divergence(), expected)


def test_the_loss_is_the_squared_error_and_beta_times_the_divergence() -> None:
    """With mean 0 and log variance 1, the 3 dimensions add beta x 3 (e - 2)/2 over 784 pixels.

    With beta = 0 and hardly any noise, the loss is that of the autoencoder.
    """
    model, batch = make_model(beta=0.0), make_batch()
    set_posterior(model, -60.0)
    loss, logged = step(model, batch)
    torch.testing.assert_close(loss, mean_squared_error(model(batch[0]), batch[0]))
    torch.testing.assert_close(loss, logged["train/loss"])

    model.beta = 20.0
    set_posterior(model, 1.0)
    for parameter in model.encoder.get_submodule("latent").parameters():
        torch.nn.init.zeros_(parameter)
    loss, logged = step(model, batch)
    torch.testing.assert_close(logged["train/kl"], torch.tensor(1.5 * (math.e - 2)))
    torch.testing.assert_close(loss - logged["train/loss"], 20 / 784 * logged["train/kl"])


def test_a_drawn_z_has_the_mean_and_the_variance_of_its_image() -> None:
    """100,000 draws of N(3, 4) and N(-1, 1/4); other noise for another seed of torch."""
    mean = torch.tensor([[3.0, -1.0]]).expand(100_000, 2)
    posterior = Posterior(mean, torch.tensor([[math.log(4), math.log(0.25)]]).expand_as(mean))
    z = posterior.sample(torch.Generator().manual_seed(0))
    torch.testing.assert_close(z.mean(0), mean[0], atol=0.03, rtol=0)
    torch.testing.assert_close(z.var(0), torch.tensor([4.0, 0.25]), atol=0, rtol=0.02)
    model, batch = make_model(), make_batch()
    first, again, other = (float(step(model, batch, seed)[0].detach()) for seed in (0, 0, 1))
    assert first == again != other


def test_the_gradient_flows_through_the_noise_to_all_weights() -> None:
    """The encoder's weights get a gradient by both terms of the loss, and the decoder's by one."""
    model, batch = make_model(), make_batch()
    loss, _ = step(model, batch)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@torch.no_grad()
def test_validation_restores_from_the_means() -> None:
    """val/loss has no noise: it is that of `reconstruct` and `mean_loss`."""
    model, (images, labels) = make_model(), make_batch()
    logged = record_log(model)
    model.eval().validation_step((images, labels), 0)
    assert float(logged["val/loss"]) == pytest.approx(model.mean_loss(Images(images, labels)))
    divergence = model.encode_posterior(images).divergence().sum(1).mean()
    torch.testing.assert_close(logged["val/kl"], divergence)
    torch.testing.assert_close(model.encode(images), model.encode_posterior(images).mean)


def test_densities_are_fitted_to_drawn_latents() -> None:
    """They have the variance of q(z|x) around the means; the same seed draws the same ones."""
    model, (images, _) = make_model().eval(), make_batch(500)
    set_posterior(model, math.log(9))
    difference = model.latents_to_fit(images) - model.encode(images)
    torch.testing.assert_close(difference.var(0), torch.full((3,), 9.0), atol=0, rtol=0.2)
    assert model.latents_to_fit(images).equal(model.latents_to_fit(images))


def test_posterior_collapse_gives_a_warning_with_its_remedy() -> None:
    """Dimensions that no image uses are counted, and less than half of them used is warned of."""
    model, batch = make_model(latent_dim=5).eval(), make_batch()
    to_mean: Any = model.encoder.get_submodule("latent")
    torch.nn.init.normal_(to_mean.weight, std=10)
    assert model.active_units(Images(*batch)) == 5
    torch.nn.init.zeros_(to_mean.weight[1:])
    assert model.active_units(Images(*batch)) == 1

    def get_warnings(active: int, loss: float = 0.01, recognized: float = 0.9) -> list[str]:
        scores = {"generated/recognized": recognized, "generated/recognized_real": 0.98}
        metrics = {"test/loss": loss, "test/active_units": active, **scores}
        return model.warnings(metrics, {"mean_image": 0.0675, "pca": 0.027})

    assert get_warnings(3) == []
    (collapse,) = get_warnings(1)
    assert collapse == (
        "Posterior collapse: only 1 of 5 latent dimensions vary with the image."
        " Lower model.beta (0.1), or choose a smaller model.latent_dim."
    )
    collapse, fog = get_warnings(0, loss=0.0675)
    assert "none of 5" in collapse
    assert "(experiment=vae_best). A lower model.beta than 0.1 restores more." in fog
    (exploded,) = get_warnings(0, loss=2.0)
    assert exploded.startswith("The loss exploded")
    (illegible,) = get_warnings(5, recognized=0.3)
    assert "put a flow between N(0, I) and z, model.flow=8, or draw z from where" in illegible


def test_an_interrupted_run_ends_with_the_same_bits_and_has_its_metrics(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted in its second epoch and run again, it draws the noise of an undisturbed run."""
    command = [*SMALL, *overrides, "optimizer=adamw", "trainer.max_epochs=2"]
    outcome = run_in_process(command, tmp_path / "uninterrupted")

    def interrupt(self: Any, trainer: Any, *_: Any) -> None:
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.DivergenceCheck, "on_train_batch_end", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_in_process(command, tmp_path / "resumed")
    assert load_results(tmp_path / "resumed")["epochs"] == 1
    run_in_process(command, tmp_path / "resumed")
    assert_same(tmp_path / "uninterrupted", tmp_path / "resumed")

    assert outcome["objective"]["name"] == "val/loss"
    header, *_ = (tmp_path / "uninterrupted" / "metrics.csv").read_text().splitlines()
    assert header == "epoch,steps,train/kl,train/loss,val/kl,val/loss"
    assert {"test/kl", "test/active_units", "generated/fid"} <= set(outcome["metrics"])
    model = checkpoints.load_model(tmp_path / "resumed" / "checkpoints" / "best.ckpt")
    assert isinstance(model, VAE)
    for prior in ("standard_normal", "gaussian"):
        assert model.generate(3, 0, prior).shape == (3, 1, 28, 28)


def test_with_a_flow_one_drawn_z_estimates_the_divergence() -> None:
    """A new flow is the identity: over many z the estimate has the mean of the closed form."""
    plain, model = make_model(), make_model(flow=2)
    mean, log_variance = torch.tensor([[1.0, 0.0, -0.5]]), torch.tensor([[0.0, 1.0, -1.0]])
    posterior = Posterior(mean.expand(50_000, 3), log_variance.expand(50_000, 3))
    z = posterior.sample(torch.Generator().manual_seed(0))
    expected = plain.divergence(posterior, z)
    torch.testing.assert_close(model.divergence(posterior, z), expected, atol=0.02, rtol=0)
    loss, _ = step(model, make_batch())
    loss.backward()
    flow: Any = model.priors["standard_normal"]
    assert all(weight.grad is not None for weight in flow.parameters())
    assert model.generate(4, 0).equal(model.decode(flow.sample(4, generator(0, Stream.PRIOR))))
