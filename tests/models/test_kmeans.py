"""The mathematics of k-means by hand and against autograd, its warnings and its scores."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from digitlab.data.images import Images, Split, scale
from digitlab.models.base import sentence
from digitlab.models.distances import nearest
from digitlab.models.kmeans import MiniBatchKMeans, agreement, assign, gradient, rate_factors
from digitlab.models.optimizers import make_bare_step
from digitlab.runtime.seeds import Stream, generator


def make_rng() -> torch.Generator:
    return generator(0, Stream.INIT)


def test_assignment_worked_by_hand() -> None:
    """Points 0, 1, 5 on a line, centres 0 and 4: two go left, one right, distances^2 0 + 1 + 1."""
    wins = assign(torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([[0.0], [4.0]]))
    assert wins.counts.tolist() == [2, 1]
    assert wins.sums.tolist() == [[1], [5]]
    assert wins.squared.item() == 2


def test_gradient_worked_by_hand() -> None:
    """dL/dc = 2/(B D) (m c - s): for the points above 2/3 (2*0 - 1) and 2/3 (1*4 - 5)."""
    centers = torch.tensor([[0.0], [4.0]])
    result = gradient(assign(torch.tensor([[0.0], [1.0], [5.0]]), centers), centers)
    torch.testing.assert_close(result, torch.tensor([[-2 / 3], [-2 / 3]]))


def test_gradient_equals_autograd() -> None:
    """The closed form is the derivative of the mean squared distance to the nearest centre."""
    x = torch.rand(64, 30, generator=make_rng(), dtype=torch.float64)
    centers = torch.rand(7, 30, generator=make_rng(), dtype=torch.float64, requires_grad=True)
    loss = torch.cdist(x, centers).square().min(1).values.sum() / x.numel()
    loss.backward()
    wins = assign(x, centers.detach())
    torch.testing.assert_close(gradient(wins, centers.detach()), centers.grad)
    torch.testing.assert_close(wins.squared / x.numel(), loss.detach())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("inverse_count", [0.25, 4.5]),
        ("sqrt_share", [(2 / 3) ** 0.5 * 0.5, 4 + (1 / 3) ** 0.5]),
    ],
)
def test_rates_by_centre_worked_by_hand(name: str, expected: list[float]) -> None:
    """The centre at 0 wins the points 0 and 1, the centre at 4 the point 5.

    With inverse_count, a centre moves by 1/n_k of the summed differences, with n = 4 and 2. With
    sqrt_share it moves by the roots of 2/3 and 1/3 of the way to the means 0.5 and 5.
    """
    centers = torch.tensor([[0.0], [4.0]])
    wins = assign(torch.tensor([[0.0], [1.0], [5.0]]), centers)
    factors = rate_factors(name, wins, torch.tensor([4.0, 2.0]))
    step = gradient(wins, centers) * factors[:, None]
    torch.testing.assert_close(centers - step, torch.tensor(expected)[:, None])


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_a_bare_step_is_that_of_the_optimizer(decay: float) -> None:
    """With plain SGD both give the same bits, also while the rate falls; momentum has no other."""
    start = torch.rand(10, 784, generator=make_rng())
    parameters = [nn.Parameter(start.clone()) for _ in range(2)]
    optimizers = [SGD([parameter], lr=3.0, weight_decay=decay) for parameter in parameters]
    steps = [make_bare_step(optimizers[0], parameters[0]), optimizers[1].step]
    assert steps[0] != optimizers[0].step
    for rate in (3.0, 0.7):
        for step, optimizer, parameter in zip(steps, optimizers, parameters, strict=True):
            optimizer.param_groups[0]["lr"] = rate
            parameter.grad = (start * rate).sin()
            with torch.no_grad():
                step()
    assert torch.equal(*parameters)
    assert not torch.equal(parameters[0], start)
    heavy = SGD([parameters[0]], lr=1.0, momentum=0.9)
    assert make_bare_step(heavy, parameters[0]) == heavy.step


def test_a_centre_without_points_has_no_gradient() -> None:
    """This is why uniform noise collapses: a centre that wins no point never moves."""
    centers = torch.tensor([[0.0], [100.0]])
    wins = assign(torch.rand(5, 1, generator=make_rng()), centers)
    assert gradient(wins, centers)[1].item() == 0


def test_wins_add_up_over_parts_of_a_minibatch() -> None:
    """The sum over two halves is that of the whole, so processes exchange only counts and sums."""
    x, centers = torch.rand(20, 4, generator=make_rng()), torch.rand(3, 4, generator=make_rng())
    parts = [assign(half, centers) for half in x.split(13)]
    for whole, first, second in zip(assign(x, centers), *parts, strict=True):
        torch.testing.assert_close(first + second, whole)


def test_nearest_ignores_the_norm_of_the_points() -> None:
    """Leaving |x|^2 out does not change the nearest centre."""
    x, centers = torch.rand(50, 9, generator=make_rng()), torch.rand(6, 9, generator=make_rng())
    assert torch.equal(nearest(x, centers)[0], torch.cdist(x, centers).argmin(1))


def test_scores_worked_by_hand() -> None:
    """Digits 0 0 0 1 1, centres 1 1 0 0 0: 4 of 5 agree if matched crosswise, 1 on the diagonal."""
    scores = agreement(torch.tensor([0, 0, 0, 1, 1]), torch.tensor([1, 1, 0, 0, 0]), 10)
    assert scores["accuracy"] == pytest.approx(4 / 5)
    assert scores["diagonal"] == pytest.approx(1 / 5)
    assert scores["purity"] == pytest.approx(4 / 5)


def test_best_and_worst_scores() -> None:
    """The numbering of centres does not matter; one centre for all images scores lowest.

    The diagonal exists for 10 centres only.
    """
    digits = torch.arange(100) % 10
    best = agreement(digits, (digits + 3) % 10, 10)
    assert [best[name] for name in ("accuracy", "nmi", "ari", "diagonal")] == pytest.approx(
        [1, 1, 1, 0]
    )
    worst = agreement(digits, torch.zeros(100).long(), 4)
    assert [worst[name] for name in ("accuracy", "nmi", "ari")] == pytest.approx([0.1, 0, 0])
    assert "diagonal" not in worst


def make_model(**changes: Any) -> MiniBatchKMeans:
    options: dict[str, Any] = {
        "n_clusters": 10,
        "init": {"name": "random"},
        "reassignment_ratio": 0.0,
        "optimizer": {"name": "sgd", "lr": 1.0},
        "scheduler": {"name": "constant"},
        "seed": 0,
    }
    return MiniBatchKMeans(**options | changes)


def get_warnings(
    model: MiniBatchKMeans, active: int, loss: float = 0.05, mean_image: float = 0.0675
) -> list[str]:
    metrics = {"active_centers": active, "test/loss": loss}
    return model.warnings(metrics, {"mean_image": mean_image})


def test_collapse_gives_a_warning_with_its_remedy() -> None:
    """With a single active centre, the warning says so, and what to do."""
    (warning,) = get_warnings(make_model(), active=1, loss=0.0675)
    for part in ("one centre holds all the points", "the other 9 win none", "init=digit"):
        assert part in warning


def test_idle_centres_give_a_warning() -> None:
    """Three idle centres of ten are counted; ten active ones, and a single one, give no warning."""
    (warning,) = get_warnings(make_model(), active=7)
    assert warning.startswith("3 of 10 centres win no training image")
    assert get_warnings(make_model(), active=10) == []
    assert get_warnings(make_model(n_clusters=1), active=1, loss=0.0675) == []


REVIVE = "revive idle centres (model.reassignment_ratio=0.01)"
OTHER_IMAGES = "start from images that differ more (init=kmeans++)"
SMALLER_STEPS = "lower optimizer.lr, or let it decay (scheduler=linear),"


@pytest.mark.parametrize(
    ("changes", "choices"),
    [
        ({}, ["start from data (init=digit, init=kmeans++)", REVIVE]),
        ({"n_clusters": 20}, ["start from data (init=kmeans++)", REVIVE]),
        ({"init": {"name": "digit"}}, [OTHER_IMAGES, REVIVE]),
        ({"init": {"name": "sample"}, "reassignment_ratio": 0.1}, [OTHER_IMAGES]),
        ({"init": {"name": "kmeans++"}}, [REVIVE]),
        ({"reassignment_ratio": 0.01}, ["start from data (init=digit, init=kmeans++)"]),
        (
            {"init": {"name": "kmeans++"}, "reassignment_ratio": 0.01},
            [SMALLER_STEPS, "use fewer clusters (model.n_clusters)"],
        ),
    ],
)
def test_the_remedy_for_idle_centres_differs_from_the_run(
    changes: dict[str, Any], choices: list[str]
) -> None:
    """It names no init or ratio that the run has, and no init for ten centres if there are 20."""
    remedy = sentence(" or ".join(choices))
    for active in (1, 7):
        (warning,) = get_warnings(make_model(**changes), active, loss=0.0675)
        assert warning.endswith(f" none. {remedy}" if active == 1 else f" image. {remedy}")


def test_too_few_distinct_images_are_a_reason_for_idle_centres() -> None:
    """Ten centres can win at most six images that occur fifty times each.

    If they win fewer, another warning says so.
    """
    distinct = random_images(6)
    data = distinct.take(torch.arange(300) % 6)
    split = Split(data, data.take(torch.arange(0)), data)
    kmeans = make_model(init={"name": "kmeans++"})
    images, far = scale(distinct.images).flatten(1), torch.full((9, 784), 9.0)
    reason = "10 centres for 6 distinct training images: {} win none."
    remedy = "Use fewer clusters (model.n_clusters=6)."
    for centers, idle, n_others in ((images, 4, 0), (images[:1], 9, 1)):
        kmeans.centers.data = torch.cat([centers, far])[:10]
        first, *others = kmeans.warnings(kmeans.evaluate(split), {"mean_image": 0.1})
        assert first == f"{reason.format(idle)} {remedy}"
        assert [warning.partition(":")[0] for warning in others] == ["Collapsed"] * n_others


def test_smaller_steps_are_possible_with_the_run_s_optimizer_and_schedule() -> None:
    """The advice is a lower rate or a decay, and only a lower rate if there is a decay already.

    The rate 1/n_k cannot be lowered; the advice is another optimizer.
    """
    expected = "lower optimizer.lr, or let it decay (scheduler=linear)"
    assert make_model().steadier_steps() == expected
    assert make_model(scheduler={"name": "cosine"}).steadier_steps() == "lower optimizer.lr"
    without_lr = make_model(scheduler={"name": "linear"}, optimizer={"name": "inverse_count"})
    assert without_lr.steadier_steps() == "choose optimizer=sgd and lower its lr"


def random_images(n: int = 40, low: int = 0, high: int = 255) -> Images:
    """Images of random grey values from low to high."""
    images = torch.randint(low, high + 1, (n, 28, 28), generator=make_rng(), dtype=torch.uint8)
    return Images(images, torch.arange(n) % 10)


def test_prediction_agrees_with_numpy() -> None:
    """Labels and mean loss are those of the definition, over more images than one chunk holds."""
    data = random_images(3000)
    kmeans = make_model()
    kmeans.centers.data = torch.rand(10, 784, generator=make_rng())
    labels, loss = kmeans.predict(data)
    x = data.images.numpy().reshape(-1, 784) / 255
    squared = ((x[:, None] - kmeans.centers.detach().numpy()[None]) ** 2).sum(2)
    assert labels.tolist() == squared.argmin(1).tolist()
    assert loss == pytest.approx(np.mean(squared.min(1)) / 784, rel=1e-5)


def predict_by_definition(images: Tensor, centers: Tensor) -> tuple[np.ndarray, float]:
    """Labels and mean loss in float64, from the differences themselves."""
    x, c = (part.detach().double().flatten(1).numpy() for part in (images, centers))
    squared = np.stack([((x / 255 - center) ** 2).mean(1) for center in c])  # (K, N)
    return squared.argmin(0), float(squared.min(0).mean())


@pytest.mark.parametrize(("low", "high"), [(250, 251), (200, 203), (0, 1), (0, 255)])
def test_prediction_distinguishes_images_that_differ_little(low: int, high: int) -> None:
    """Labels and loss are those of float64.

    With grey values 250 and 251, |x|^2 is a million times the loss, and float32 has seven digits.
    """
    data, kmeans = random_images(300, low, high), make_model()
    # Each centre has its own weights, or an image could be equally near to two centres.
    mixing = torch.rand(10, 300, generator=make_rng()).softmax(1)
    kmeans.centers.data = mixing @ scale(data.images).flatten(1)
    labels, loss = kmeans.predict(data)
    expected_labels, expected_loss = predict_by_definition(data.images, kmeans.centers)
    assert labels.tolist() == expected_labels.tolist()
    assert loss == pytest.approx(expected_loss, rel=1e-6)


def test_a_loss_is_not_negative() -> None:
    """If the images are the centres, the loss is only rounding."""
    data, kmeans = random_images(500), make_model()
    for start in range(0, 500, 10):
        part = data.take(torch.arange(start, start + 10))
        kmeans.centers.data = scale(part.images).flatten(1)
        assert 0 <= kmeans.predict(part)[1] < 1e-6
