"""The reassignment of centres with small clusters, worked by hand and on random points."""

import pytest
import torch
from torch import Tensor

from digitlab.models.reassignment import reassign
from digitlab.runtime.seeds import Stream, generator


def make_rng() -> torch.Generator:
    return generator(0, Stream.INIT)


def line(*points: float) -> Tensor:
    """Points or centres on a line, (N, 1)."""
    return torch.tensor(points)[:, None]


def test_reassignment_worked_by_hand() -> None:
    """Points at -2, eight times, and at 8, twice; a centre at 0 wins all, one at 50 none.

    On -2 the idle centre would leave a loss of 2 (8 - 0)^2 = 128 of 160, on 8 a loss of
    8 (-2 - 0)^2 = 32. It moves onto 8.
    """
    x, centers = line(*[-2.0] * 8, 8.0, 8.0), line(0.0, 50.0)
    moves = reassign(x, centers, 0.01, make_rng())
    assert moves[0] == -1
    assert moves[1] in (8, 9)
    assert torch.equal(centers, line(0.0, 8.0))


@pytest.mark.parametrize(("ratio", "expected"), [(0.012, 3.0), (0.02, 10.0)])
def test_a_centre_with_few_points_moves_only_for_a_much_larger_gain(
    ratio: float, expected: float
) -> None:
    """A centre on a point at 3 lowers the loss by 3^2 = 9; on 10 it lowers it by 640.

    640 is 40 (10 - 6)^2, and 9/640 is 0.014: the centre moves at a ratio of 0.02, not at 0.012.
    """
    x, centers = line(*[0.0] * 100, 3.0, *[10.0] * 40), line(0.0, 3.0, 6.0)
    reassign(x, centers, ratio, make_rng())
    assert torch.equal(centers[:2], line(0.0, expected))


def test_a_small_cluster_far_from_the_others_keeps_its_centre() -> None:
    """A single point of a hundred is less than a tenth of 99, but no move lowers the loss."""
    x, centers = line(*torch.linspace(-1, 1, 99).tolist(), 30.0), line(0.0, 30.0)
    assert reassign(x, centers, 0.1, make_rng()).tolist() == [-1, -1]
    assert torch.equal(centers, line(0.0, 30.0))


def test_the_gain_of_a_centre_takes_earlier_moves_into_account() -> None:
    """Either of two centres at two far points could move; after the first, the second stays."""
    x = line(*torch.linspace(-1, 1, 98).tolist(), 30.0, 30.2)
    centers = line(0.0, 30.0, 30.2)
    reassign(x, centers, 0.5, make_rng())
    assert (centers > 20).sum() == 1


def test_no_centre_moves_if_no_move_lowers_the_loss() -> None:
    """With equal points and one centre on them, the other wins none at any place."""
    assert reassign(line(*[0.0] * 9), line(0.0, 0.0), 0.5, make_rng()).tolist() == [-1, -1]


@pytest.mark.parametrize("seed", range(5))
def test_each_reassignment_lowers_the_loss(seed: int) -> None:
    """With many small clusters of random points the loss falls; moved centres are on points."""
    rng = generator(seed, Stream.REASSIGN)
    x = torch.randn(500, 3, generator=rng).mul_(torch.rand(500, 1, generator=rng) ** 4)
    before = torch.randn(40, 3, generator=rng)
    centers = before.clone()
    moves = reassign(x, centers, 0.5, rng)
    moved = moves >= 0
    assert moved.sum() > 10
    assert torch.equal(centers[moved], x[moves[moved]])
    assert torch.equal(centers[~moved], before[~moved])
    loss_after, loss_before = (
        torch.cdist(x, c).square().min(1).values.sum() for c in (centers, before)
    )
    assert loss_after < loss_before
