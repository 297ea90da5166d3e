"""Muon: orthogonalization by hand and by SVD, and its steps against those of torch."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim import Muon as TorchMuon

from digitlab.models.muon import orthogonalize
from digitlab.models.optimizers import make_optimizer, make_scheduler

OPTIONS: dict[str, Any] = {
    "name": "muon",
    "lr": 0.02,
    "momentum": 0.9,
    "weight_decay": 0.1,
    "ns_steps": 5,
    "adamw_lr": 0.003,
    "adamw_weight_decay": 0.01,
    "beta2": 0.99,
}


def test_a_step_of_newton_and_schulz_by_hand() -> None:
    """diag(3, 4) / 5 holds s = 0.6 and 0.8; as + bs^3 + cs^5 is 1.1933 and 0.9765."""
    result = orthogonalize(torch.diag(torch.tensor([3.0, 4.0])), 1)
    torch.testing.assert_close(
        result, torch.diag(torch.tensor([1.19326, 0.97648])), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("shape", [(8, 8), (16, 100), (100, 16)])
def test_singular_values_come_near_one_and_their_vectors_stay(shape: tuple[int, int]) -> None:
    """Five steps bring U = P S Q^T near P Q^T, for wide and for tall matrices."""
    torch.manual_seed(0)
    p, _, q = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    matrix = p @ torch.diag(torch.linspace(1, 3, min(shape))) @ q
    inner = p.T @ orthogonalize(matrix, 5) @ q.T
    values = inner.diagonal()
    assert 0.65 < values.min() < values.max() < 1.25
    torch.testing.assert_close(inner, torch.diag(values), atol=1e-4, rtol=0)


def test_steps_are_those_of_torch_on_flattened_weights() -> None:
    """Three steps equal torch's Muon, which computes in bfloat16, and its AdamW bit for bit."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    assert convolution.bias is not None
    matrix = nn.Parameter(convolution.weight.detach().flatten(1).clone())
    bias = nn.Parameter(convolution.bias.detach().clone())
    ours = make_optimizer(convolution.parameters(), **OPTIONS)
    muon = TorchMuon(
        [matrix], lr=0.02, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw"
    )
    adamw = AdamW([bias], lr=0.003, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    before: Tensor = matrix.detach().clone()
    for _ in range(3):
        convolution.weight.grad = torch.randn_like(convolution.weight)
        convolution.bias.grad = torch.randn_like(bias)
        matrix.grad, bias.grad = convolution.weight.grad.flatten(1), convolution.bias.grad.clone()
        for optimizer in (ours, muon, adamw):
            optimizer.step()
    assert torch.equal(convolution.bias, bias)
    moved, expected = convolution.weight.flatten(1) - before, matrix - before
    assert (moved - expected).norm() < 0.02 * expected.norm()


def test_a_schedule_drives_both_rates() -> None:
    """Halfway down a straight line, both rates are half of their own values."""
    optimizer = make_optimizer(nn.Linear(2, 2).parameters(), **OPTIONS)
    scheduler = make_scheduler(optimizer, "one_cycle_linear", total_steps=101, pct_start=0.5)
    assert scheduler is not None
    for _ in range(75):
        optimizer.step()
        scheduler.step()
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == pytest.approx([0.01, 0.0015], rel=0.03)
