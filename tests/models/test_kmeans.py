"""The mathematics of k-means by hand and against autograd, its first centres, and its scores."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from digitlab import figures
from digitlab.config import schema
from digitlab.data.images import Images, Source, Split, scale
from digitlab.models import kmeans
from digitlab.models.base import sentence
from digitlab.models.kmeans import (
    MiniBatchKMeans,
    agreement,
    assign,
    draw_centers,
    gradient,
    nearest,
    own_rate,
    reassign,
)
from digitlab.runtime.seeds import Stream, generator


def rng() -> torch.Generator:
    return generator(0, Stream.INIT)


def test_assignment_worked_by_hand() -> None:
    """Points 0, 1, 5 on a line, centres 0 and 4: two go left, one right, squared distances 0 + 1 + 1."""
    wins = assign(torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([[0.0], [4.0]]))
    assert wins.counts.tolist() == [2, 1]
    assert wins.sums.tolist() == [[1], [5]]
    assert wins.squared.item() == 2


def test_gradient_worked_by_hand() -> None:
    """dL/dc = 2/(B D) (m c - s): for the points above 2/3 (2*0 - 1) and 2/3 (1*4 - 5)."""
    centers = torch.tensor([[0.0], [4.0]])
    slope = gradient(assign(torch.tensor([[0.0], [1.0], [5.0]]), centers), centers)
    torch.testing.assert_close(slope, torch.tensor([[-2 / 3], [-2 / 3]]))


def test_gradient_equals_autograd() -> None:
    """The closed form is the derivative of the mean squared distance to the nearest centre."""
    x = torch.rand(64, 30, generator=rng(), dtype=torch.float64)
    centers = torch.rand(7, 30, generator=rng(), dtype=torch.float64, requires_grad=True)
    loss = torch.cdist(x, centers).square().min(1).values.sum() / x.numel()
    loss.backward()
    wins = assign(x, centers.detach())
    torch.testing.assert_close(gradient(wins, centers.detach()), centers.grad)
    torch.testing.assert_close(wins.squared / x.numel(), loss.detach())


@pytest.mark.parametrize(
    ("name", "expected"), [("inverse_count", [0.25, 4.5]), ("sqrt_share", [(2 / 3) ** 0.5 * 0.5, 4 + (1 / 3) ** 0.5])]
)
def test_the_centres_own_rates_worked_by_hand(name: str, expected: list[float]) -> None:
    """Points 0, 1 for the centre at 0 and 5 for that at 4: 1/n_k of their differences with n = 4 and 2, or, of the
    way to their means 0.5 and 5, the root of two thirds and of one third.
    """
    centers = torch.tensor([[0.0], [4.0]])
    wins = assign(torch.tensor([[0.0], [1.0], [5.0]]), centers)
    step = gradient(wins, centers) * own_rate(name, wins, torch.tensor([4.0, 2.0]))[:, None]
    torch.testing.assert_close(centers - step, torch.tensor(expected)[:, None])


def test_a_centre_without_points_has_no_gradient() -> None:
    """Why uniform noise collapses: whoever wins nothing never moves."""
    centers = torch.tensor([[0.0], [100.0]])
    assert gradient(assign(torch.rand(5, 1, generator=rng()), centers), centers)[1].item() == 0


def test_wins_add_up_over_parts_of_a_minibatch() -> None:
    """Counts and sums are all that processes need to exchange: those of two halves give those of the whole."""
    x, centers = torch.rand(20, 4, generator=rng()), torch.rand(3, 4, generator=rng())
    parts = [assign(half, centers) for half in x.split(13)]
    for whole, first, second in zip(assign(x, centers), *parts, strict=True):
        torch.testing.assert_close(first + second, whole)


def test_nearest_is_the_nearest() -> None:
    """Dropping |x|^2 changes no choice."""
    x, centers = torch.rand(50, 9, generator=rng()), torch.rand(6, 9, generator=rng())
    assert torch.equal(nearest(x, centers)[0], torch.cdist(x, centers).argmin(1))


def some_images(number: int = 40) -> Images:
    images = torch.randint(0, 256, (number, 28, 28), generator=rng(), dtype=torch.uint8)
    return Images(images, torch.arange(number) % 10)


def test_init_digit_takes_one_image_of_each_class() -> None:
    """Centre i is a training image that shows digit i."""
    data = some_images()
    for digit, center in enumerate(draw_centers("digit", data, 10, rng())):
        members = data.images[data.labels == digit].flatten(1) / 255
        assert (members == center).all(1).any()


@pytest.mark.parametrize("init", ["sample", "kmeans++"])
def test_init_from_images_takes_distinct_training_images(init: str) -> None:
    """Each centre is a training image and none is drawn twice."""
    data = some_images()
    centers = draw_centers(init, data, 12, rng())
    matches = (centers[:, None] == data.images.flatten(1)[None] / 255).all(2)  # (K, N)
    assert matches.sum() == 12
    assert len(matches.nonzero()[:, 1].unique()) == 12


def test_kmeans_plus_plus_prefers_what_is_far() -> None:
    """39 equal black images and one white: two centres are always one of each."""
    images = torch.zeros(40, 28, 28, dtype=torch.uint8)
    images[17] = 255
    for seed in range(5):
        centers = draw_centers("kmeans++", Images(images, torch.zeros(40).long()), 2, generator(seed, Stream.INIT))
        assert sorted(centers.mean(1).tolist()) == [0, 1]


def test_kmeans_plus_plus_survives_fewer_distinct_images_than_centres() -> None:
    """Where all images are equal, so are the centres; nothing divides by zero."""
    images = torch.full((5, 28, 28), 51, dtype=torch.uint8)
    centers = draw_centers("kmeans++", Images(images, torch.zeros(5).long()), 3, rng())
    torch.testing.assert_close(centers, torch.full((3, 784), 0.2))


def test_init_random_is_uniform_noise() -> None:
    """Pixels in [0, 1) with mean 1/2, as in the seed report."""
    centers = draw_centers("random", some_images(), 10, rng())
    assert centers.min() >= 0
    assert centers.max() < 1
    assert abs(centers.mean().item() - 0.5) < 0.02


def test_init_refuses_what_the_images_cannot_give() -> None:
    """More centres than images, or no image of some digit, end in words."""
    data = some_images()
    with pytest.raises(ValueError, match=r"n_clusters=41: init=sample needs as many images, here are 40"):
        draw_centers("sample", data, 41, rng())
    with pytest.raises(ValueError, match=r"no training image shows a 9"):
        draw_centers("digit", data.take(data.labels != 9), 10, rng())


@pytest.mark.parametrize(("shape", "height"), [((3, 784), 255), ((784,), 1), ((3, 28, 28), 1), ((2, 784), 1)])
def test_an_init_of_one_s_own_that_gives_no_centres_is_refused(
    shape: tuple[int, ...], height: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes that were not scaled, one centre for all, images, too few: each would be copied without a word."""
    monkeypatch.setattr(kmeans, "INITS", {"mine": lambda data, k, rng: torch.full(shape, height)})
    images = Images(torch.zeros(5, 28, 28, dtype=torch.uint8), torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"init=mine: gives \(.*must be \(3, 784\) in \[0, 1\]"):
        draw_centers("mine", images, 3, generator(0, Stream.INIT))
    for nothing in (None, [[0.0] * 784] * 3, np.zeros((3, 784)), torch.zeros(0)):
        monkeypatch.setattr(kmeans, "INITS", {"mine": lambda data, k, rng, given=nothing: given})
        with pytest.raises(ValueError, match=r"init=mine: gives .* must be a tensor of \(3, 784\)"):
            draw_centers("mine", images, 3, generator(0, Stream.INIT))


def test_the_inits_that_are_known_without_the_code_are_in_it() -> None:
    """Those of schema.INITS, which a check passes without importing torch, have their functions."""
    assert set(schema.INITS) <= set(kmeans.INITS)


def test_two_inits_cannot_share_a_name() -> None:
    """The second would take the place of the first in silence."""
    with pytest.raises(ValueError, match=r"@init\('digit'\): one_of_each has this name; give another"):
        kmeans.init("digit")(lambda data, k, rng: torch.zeros(k, 784))
    assert kmeans.INITS["digit"].__name__ == "one_of_each"


def test_scores_worked_by_hand() -> None:
    """Digits 0 0 0 1 1, centres 1 1 0 0 0: matched crosswise 4 of 5 agree, the diagonal holds 1."""
    scores = agreement(torch.tensor([0, 0, 0, 1, 1]), torch.tensor([1, 1, 0, 0, 0]), 10)
    assert scores["accuracy"] == pytest.approx(4 / 5)
    assert scores["diagonal"] == pytest.approx(1 / 5)
    assert scores["purity"] == pytest.approx(4 / 5)


def test_scores_at_their_ends() -> None:
    """Renaming the centres changes nothing; one centre for all tells nothing; without 10 centres no diagonal."""
    digits = torch.arange(100) % 10
    perfect = agreement(digits, (digits + 3) % 10, 10)
    assert (perfect["accuracy"], perfect["nmi"], perfect["ari"], perfect["diagonal"]) == pytest.approx((1, 1, 1, 0))
    nothing = agreement(digits, torch.zeros(100).long(), 4)
    assert (nothing["accuracy"], nothing["nmi"], nothing["ari"]) == pytest.approx((0.1, 0, 0))
    assert "diagonal" not in nothing


def model(**changes: Any) -> MiniBatchKMeans:
    options: dict[str, Any] = {
        "n_clusters": 10,
        "init": {"name": "random"},
        "reassignment_ratio": 0.0,
        "optimizer": {"name": "sgd", "lr": 1.0},
        "scheduler": {"name": "constant"},
        "seed": 0,
    }
    return MiniBatchKMeans(**options | changes)


def test_collapse_is_named_with_its_remedy() -> None:
    """One active centre: the warning says so, and what to do."""
    (warning,) = model().warnings({"active_centers": 1, "test/loss": 0.0675}, {"mean_image": 0.0675})
    for words in ("one centre holds all the points", "the other 9 win none", "init=digit"):
        assert words in warning


def test_idle_centres_are_named_and_a_full_house_is_not() -> None:
    """Three idle centres of ten are counted; ten active ones need no warning, nor does a model of one centre."""
    (warning,) = model().warnings({"active_centers": 7, "test/loss": 0.05}, {"mean_image": 0.0675})
    assert warning.startswith("3 of 10 centres win no training image")
    assert model().warnings({"active_centers": 10, "test/loss": 0.05}, {"mean_image": 0.0675}) == []
    assert model(n_clusters=1).warnings({"active_centers": 1, "test/loss": 0.0675}, {"mean_image": 0.0675}) == []


REVIVE = "revive idle centres (model.reassignment_ratio=0.01)"
FURTHER = "start from images that differ more (init=kmeans++)"
SMALLER = "lower optimizer.lr, or let it decay (scheduler=linear),"


@pytest.mark.parametrize(
    ("changes", "choices"),
    [
        ({}, ["start from data (init=digit, init=kmeans++)", REVIVE]),
        ({"n_clusters": 20}, ["start from data (init=kmeans++)", REVIVE]),
        ({"init": {"name": "digit"}}, [FURTHER, REVIVE]),
        ({"init": {"name": "sample"}, "reassignment_ratio": 0.1}, [FURTHER]),
        ({"init": {"name": "kmeans++"}}, [REVIVE]),
        ({"reassignment_ratio": 0.01}, ["start from data (init=digit, init=kmeans++)"]),
        (
            {"init": {"name": "kmeans++"}, "reassignment_ratio": 0.01},
            [SMALLER, "use fewer clusters (model.n_clusters)"],
        ),
    ],
)
def test_idle_centres_have_another_remedy(changes: dict[str, Any], choices: list[str]) -> None:
    """No init or ratio is advised that the run has, and for twenty centres none that has ten."""
    remedy = sentence(" or ".join(choices))
    for active in (1, 7):
        kmeans = model(**changes)
        metrics = {"active_centers": active, "test/loss": 0.0675}
        (warning,) = kmeans.warnings(metrics, {"mean_image": 0.0675})
        assert warning.endswith(f" none. {remedy}" if active == 1 else f" image. {remedy}")


def test_too_few_distinct_images_are_named_as_the_reason_for_idle_centres() -> None:
    """Six images, fifty times each: ten centres have six at most to win. Where they win fewer it is
    said besides.
    """
    some = some_images(6)
    data = some.take(torch.arange(300) % 6)
    split, source = Split(data, data.take(torch.arange(0)), data), Source("", "", data, data)
    kmeans = model(init={"name": "kmeans++"})
    images, far = scale(some.images).flatten(1), torch.full((9, 784), 9.0)
    reason = "10 centres for 6 distinct training images: {} win none."
    fewer = "Use fewer clusters (model.n_clusters=6)."
    for centers, idle, others in ((images, 4, 0), (images[:1], 9, 1)):
        kmeans.centers.data = torch.cat([centers, far])[:10]
        first, *rest = kmeans.warnings(kmeans.evaluate(source, split), {"mean_image": 0.1})
        assert first == f"{reason.format(idle)} {fewer}"
        assert [warning.partition(":")[0] for warning in rest] == ["Collapsed"] * others


def test_a_rate_that_decays_or_is_none_is_not_advised_to() -> None:
    """Smaller steps: by a lower rate or a decay, where there is a decay by a lower rate alone; and
    not by a rate that 1/n_k lacks.
    """
    assert model().steadier_steps() == "lower optimizer.lr, or let it decay (scheduler=linear)"
    assert model(scheduler={"name": "cosine"}).steadier_steps() == "lower optimizer.lr"
    own = model(scheduler={"name": "linear"}, optimizer={"name": "inverse_count"})
    assert own.steadier_steps() == "choose optimizer=sgd, whose lr can be lowered"


def test_prediction_agrees_with_numpy() -> None:
    """Labels and mean loss over more images than one chunk holds, against the definition."""
    data = some_images(3000)
    kmeans = model()
    kmeans.centers.data = torch.rand(10, 784, generator=rng())
    labels, loss = kmeans.predict(data)
    x = data.images.numpy().reshape(-1, 784) / 255
    squared = ((x[:, None] - kmeans.centers.detach().numpy()[None]) ** 2).sum(2)
    assert labels.tolist() == squared.argmin(1).tolist()
    assert loss == pytest.approx(np.mean(squared.min(1)) / 784, rel=1e-5)


def like_images(low: int, high: int, number: int = 300) -> Images:
    """Images of grey values from low to high: they differ far less than they differ from black."""
    images = torch.randint(low, high + 1, (number, 28, 28), generator=rng(), dtype=torch.uint8)
    return Images(images, torch.arange(number) % 10)


def by_definition(images: Tensor, centers: Tensor) -> tuple[np.ndarray, float]:
    """Labels and mean loss in float64, by the differences themselves."""
    x, c = (part.detach().double().flatten(1).numpy() for part in (images, centers))
    squared = np.stack([((x / 255 - center) ** 2).mean(1) for center in c])  # (K, N)
    return squared.argmin(0), float(squared.min(0).mean())


@pytest.mark.parametrize(("low", "high"), [(250, 251), (200, 203), (0, 1), (0, 255)])
def test_images_that_differ_little_are_told_apart(low: int, high: int) -> None:
    """Of grey values 250 and 251 |x|^2 is a million times the loss, and float32 has seven digits:
    labels and loss are those of float64.
    """
    data, kmeans = like_images(low, high), model()
    # Weights of their own, lest an image be as near to two centres.
    mixing = torch.rand(10, 300, generator=rng()).softmax(1)
    kmeans.centers.data = mixing @ scale(data.images).flatten(1)
    labels, loss = kmeans.predict(data)
    expected, mean = by_definition(data.images, kmeans.centers)
    assert labels.tolist() == expected.tolist()
    assert loss == pytest.approx(mean, rel=1e-6)


def test_kmeans_plus_plus_sees_that_bright_images_are_equal() -> None:
    """Six images of 250 and 251, fifty times each: the six centres are those, copies being at 0."""
    data = like_images(250, 251, 6)
    copies = data.take(torch.arange(300) % 6)
    for seed in range(5):
        centers = draw_centers("kmeans++", copies, 6, generator(seed, Stream.INIT))
        assert len(centers.unique(dim=0)) == 6


def test_a_loss_is_not_below_zero() -> None:
    """Of images that are the centres, where rounding alone speaks."""
    data, kmeans = some_images(500), model()
    for part in range(0, 500, 10):
        ten = data.take(torch.arange(part, part + 10))
        kmeans.centers.data = scale(ten.images).flatten(1)
        assert 0 <= kmeans.predict(ten)[1] < 1e-6


def line(*points: float) -> Tensor:
    """Points or centres on a line, (N, 1)."""
    return torch.tensor(points)[:, None]


def test_a_reassignment_worked_by_hand() -> None:
    """Points at -2, eight times, and at 8, twice; a centre at 0 wins all, one at 50 none. On -2 it
    would leave a loss of 2 (8 - 0)^2 = 128 of 160, on 8 one of 8 (-2 - 0)^2 = 32: it goes onto 8.
    """
    x, centers = line(*[-2.0] * 8, 8.0, 8.0), line(0.0, 50.0)
    moves = reassign(x, centers, 0.01, rng())
    assert moves[0] == -1
    assert moves[1] in (8, 9)
    assert torch.equal(centers, line(0.0, 8.0))


@pytest.mark.parametrize(("ratio", "place"), [(0.012, 3.0), (0.02, 10.0)])
def test_a_centre_of_few_points_moves_for_many_times_its_worth(ratio: float, place: float) -> None:
    """A point at 3, whose centre lowers the loss by 3^2 = 9. On 10 that would lower it by
    40 (10 - 6)^2 = 640, of which 9 is 0.014: it moves at a ratio of 0.02 and stays at 0.012.
    """
    x, centers = line(*[0.0] * 100, 3.0, *[10.0] * 40), line(0.0, 3.0, 6.0)
    reassign(x, centers, ratio, rng())
    assert torch.equal(centers[:2], line(0.0, place))


def test_a_small_cluster_that_earns_its_centre_keeps_it() -> None:
    """One point of a hundred, far from all others: less than a tenth of 99, yet no move helps."""
    x, centers = line(*torch.linspace(-1, 1, 99).tolist(), 30.0), line(0.0, 30.0)
    assert reassign(x, centers, 0.1, rng()).tolist() == [-1, -1]
    assert torch.equal(centers, line(0.0, 30.0))


def test_a_centre_is_judged_without_those_that_moved_before_it() -> None:
    """Two centres at two far points, of which either could go: when one has, the other stays."""
    x = line(*torch.linspace(-1, 1, 98).tolist(), 30.0, 30.2)
    centers = line(0.0, 30.0, 30.2)
    reassign(x, centers, 0.5, rng())
    assert (centers > 20).sum() == 1


def test_where_no_move_helps_none_is_made() -> None:
    """Equal points, one centre on them: the other wins none wherever it goes."""
    assert reassign(line(*[0.0] * 9), line(0.0, 0.0), 0.5, rng()).tolist() == [-1, -1]


@pytest.mark.parametrize("seed", range(5))
def test_each_reassignment_lowers_the_loss(seed: int) -> None:
    """Many small clusters of random points: the loss falls, each moved centre is on its point."""
    rng = generator(seed, Stream.REASSIGN)
    x = torch.randn(500, 3, generator=rng).mul_(torch.rand(500, 1, generator=rng) ** 4)
    before = torch.randn(40, 3, generator=rng)
    centers = before.clone()
    moves = reassign(x, centers, 0.5, rng)
    moved = moves >= 0
    assert moved.sum() > 10
    assert torch.equal(centers[moved], x[moves[moved]])
    assert torch.equal(centers[~moved], before[~moved])
    after, then = (torch.cdist(x, c).square().min(1).values.sum() for c in (centers, before))
    assert after < then


def test_numbers_drawn_as_glyphs_look_like_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The confusion matrix is what Matplotlib's own texts would give, to the shade of a pixel; no digit may differ."""
    table = np.random.default_rng(0).integers(0, 6000, (10, 10))
    table[2, :3], table[np.diag_indices(10)] = 0, 90000  # numbers of one digit, and white ones

    def text(figure: Figure, axes: Axes, table: np.ndarray, colors: np.ndarray) -> None:
        for (row, column), number in np.ndenumerate(table):
            axes.text(column, row, str(number), ha="center", va="center", fontsize=8, color=colors[row, column])

    def drawn(write: Callable[..., None]) -> np.ndarray:
        monkeypatch.setattr(figures, "write_numbers", write)
        return figures.render(figures.confusion_matrix(table, "")).astype(int)

    glyphs, texts = drawn(figures.write_numbers), drawn(text)
    one_more = drawn(lambda figure, axes, table, colors: text(figure, axes, table + (table == 0), colors))
    assert np.abs(glyphs - texts).max() < 40 < 100 < np.abs(one_more - texts).max()


def test_thousands_of_centres_are_drawn_in_part() -> None:
    """A sheet for each of 5,000 would be higher than matplotlib draws: the first hundred, and shades for all counts."""
    many = np.ones((10, 5000), dtype=int)
    sheet = figures.render(figures.centers(np.zeros((5000, 28, 28)), many, "Final centres"))
    assert max(sheet.shape) < 5000
    assert max(figures.render(figures.confusion_matrix(many, "")).shape) < 5000


@pytest.mark.parametrize("heading", ["Final centres", "Final centres\nno better"])
@pytest.mark.parametrize("k", [10, 20, 30, 100])
def test_a_heading_stands_close_above_the_centres(k: int, heading: str) -> None:
    """However many rows they have: in a tall sheet matplotlib's own place for it lies among the images."""
    figure = figures.centers(np.zeros((k, 28, 28)), np.ones((10, k), dtype=int), heading)
    figures.render(figure)
    gap = figure._suptitle.get_window_extent().y0 - figure.axes[0].get_window_extent().y1  # type: ignore[attr-defined]
    assert 0 <= gap / figure.dpi < 0.2  # inches
