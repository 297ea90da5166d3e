"""The flow: it is invertible, its determinant is exact, and it starts as N(0, I)."""

import pytest
import torch

from digitlab.models.flow import Coupling, Flow, normal_log_density


def make_flow(latent_dim: int) -> Flow:
    """Make a flow of three couplings that is not the identity."""
    torch.manual_seed(0)
    flow = Flow(latent_dim, 3).double()
    for coupling in flow.couplings:
        assert isinstance(coupling, Coupling)
        last = coupling.network.get_submodule("4")
        for parameter in last.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return flow


@pytest.mark.parametrize("latent_dim", [2, 5])
def test_a_flow_is_invertible_and_its_determinant_is_that_of_its_jacobian(latent_dim: int) -> None:
    """Halves of equal and of different sizes."""
    flow = make_flow(latent_dim)
    z = torch.randn(6, latent_dim, dtype=torch.double)
    u, log_determinant = flow(z)
    assert (u - z).abs().mean() > 0.1
    torch.testing.assert_close(flow.inverse(u), z)
    for row, expected in zip(z, log_determinant, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda x: flow(x[None])[0][0], row)
        torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, expected)


def test_a_flow_starts_as_the_standard_normal() -> None:
    """log N(0; 0, I) of two dimensions is -log(2 pi); samples are reproducible."""
    flow, z = Flow(2, 4), torch.zeros(1, 2)
    torch.testing.assert_close(flow.log_density(z), torch.tensor([-1.8378771]))
    torch.testing.assert_close(flow.log_density(z), normal_log_density(z))
    first, again = (flow.sample(5, torch.Generator().manual_seed(1)) for _ in range(2))
    assert first.equal(again)
    torch.testing.assert_close(
        flow(first)[0], torch.randn(5, 2, generator=torch.Generator().manual_seed(1))
    )


def test_a_flow_learns_two_clusters() -> None:
    """Their density rises from that of N(0, I), by 1.5 nats or more; the same seed, the same flow.

    Two clusters of spread 0.1 at -2 and 2 have log 2 + log(2 pi e 0.01) = -1.07 nats of entropy.
    """
    rng = torch.Generator().manual_seed(0)
    latents = torch.randn(2000, 2, generator=rng) * 0.1
    latents[:1000, 0] += 2
    latents[1000:, 0] -= 2
    weights = []
    for _ in range(2):
        torch.manual_seed(0)
        flow = Flow(2, 4)
        before = float(flow.log_density(latents).mean().detach())
        flow.fit(lambda rows: latents[rows], 2000, torch.Generator().manual_seed(1))
        weights.append(torch.cat([weight.detach().flatten() for weight in flow.parameters()]))
    assert float(flow.log_density(latents).mean().detach()) > before + 1.5
    assert weights[0].equal(weights[1])
