"""Which constant step brings minibatch k-means closest to Lloyd's average (seed report Q1a)?

Lloyd's algorithm moves the centres c to the means mu of the points that each centre wins, over all
data. A minibatch of B points, of which centre k wins m_k, estimates this step. On the loss summed
over pixels and averaged over the batch,

    c_k' = c_k - eta g_k,
    g_k = 2/B (m_k c_k - s_k) = -2/B sum of the m_k points' (x - c_k)                            (1)

Let p = P(centre k wins a point), delta = |c_k - mu_k|^2, and sigma^2 = E|x - mu_k|^2 within the
cluster. The m_k are multinomial: E m = Bp, Var m = Bp(1 - p). As E g = -2p (mu - c), the error
c' - mu has

    bias^2   = delta (1 - 2 eta p)^2                                                             (2)
    variance = 4 eta^2 p/B ((1 - p) delta + sigma^2)                                             (3)

The first part of (3) comes from m_k, the second from the points drawn. Their sum is smallest at

    eta = 1 / (2p + (2/B) (sigma^2/delta + 1 - p))                                               (4)

For one eta common to all centres, (2) and (3) are summed over k, and the sum is smallest at

    eta = sum p delta / sum 2p (p delta + ((1 - p) delta + sigma^2)/B)                           (5)

For K equal clusters without spread (5) is 1/(2/K + (2/B)(1 - 1/K)): 4.38 for K = 10 and B = 64. All
of this is exact for points drawn with replacement. For points drawn without, as in an epoch, (3) is
multiplied by (N - B)/(N - 1). On the project's loss, the mean over D = 784 pixels, the same step is
optimizer.lr = 784 eta.
"""

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import NamedTuple

import command
import torch
from matplotlib.figure import Figure
from torch import Tensor

from digitlab.data.images import Images, scale
from digitlab.data.mnist import load
from digitlab.models.distances import nearest
from digitlab.models.initialization import draw_centers
from digitlab.models.kmeans import assign, gradient
from digitlab.runs.files import atomic_write
from digitlab.runtime.seeds import Stream, generator
from digitlab.runtime.threads import cpu_threads

SEED_REPORT = 4.5
# Ten epochs in minibatches of 64 take LENGTH steps.
LENGTH = 9380
STEPS = (0, 3, 10, 30, 100, 300, 938, 2814, 6000, 8500, 9300)
SHOWN = (0, 30, 938, 9300)
# Maps the number of steps taken to optimizer.lr.
Rate = Callable[[int], float]
RATES: dict[str, Rate] = {
    "lr 100": lambda step: 100,
    "lr 400": lambda step: 400,
    "lr 1000": lambda step: 1000,
    "lr 1000 decaying to 0 (kmeans_best)": lambda step: 1000 * (1 - step / LENGTH),
}


class Clusters(NamedTuple):
    """The moments of each cluster in (2) to (5), float64 (K,), and the means, (K, D).

    A centre that wins no point has p = 0.
    """

    p: Tensor
    delta: Tensor
    spread: Tensor  # sigma^2
    mean: Tensor


def measure_clusters(x: Tensor, centers: Tensor) -> Clusters:
    """Return Lloyd's average of x (N, D) for the centers (K, D), and the moments."""
    labels, _ = nearest(x, centers)
    counts = torch.bincount(labels, minlength=len(centers)).double()
    won = counts.clamp(min=1)
    sums = torch.zeros_like(centers).index_add_(0, labels, x)
    mean = torch.where(counts[:, None] > 0, sums / won[:, None].float(), centers)
    distances = (x - mean[labels]).square().sum(1)
    squared = x.new_zeros(len(centers)).index_add_(0, labels, distances)
    delta = (centers - mean).square().sum(1).double()
    return Clusters(counts / len(x), delta, squared / won, mean)


def expected_error(c: Clusters, eta: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
    """Return bias^2 (2) and variance (3), summed over the centres, for each eta (E,)."""
    eta = eta[:, None]
    bias = c.delta * (1 - 2 * eta * c.p) ** 2
    variance = 4 * eta**2 * c.p / batch_size * ((1 - c.p) * c.delta + c.spread)
    return bias.sum(1), variance.sum(1)


def best_eta(c: Clusters, batch_size: int) -> float:
    """Return equation (5), which is (4) for one centre; 0 if all centres are at their means."""
    noise = ((1 - c.p) * c.delta + c.spread) / batch_size
    return float((c.p * c.delta).sum() / (2 * c.p * (c.p * c.delta + noise)).sum())


class Measured(NamedTuple):
    """Bias^2 and variance for each eta, (E,), and the eta with the smallest sum."""

    bias: Tensor
    variance: Tensor
    best: float


def simulate(
    x: Tensor,
    centers: Tensor,
    mean_of: Tensor,
    eta: Tensor,
    batch_size: int,
    batches: int,
    rng: torch.Generator,
) -> Measured:
    """Measure what `expected_error` computes, over minibatches drawn with replacement.

    The mean step over the minibatches has itself an error of variance/batches, which is subtracted
    from the bias^2.

    Args:
        x: Points, (N, D).
        centers: Centres before the step, (K, D).
        mean_of: Lloyd's average of each centre, (K, D).
        eta: Step sizes, (E,).
        batch_size: Points in a minibatch.
        batches: Number of minibatches.
        rng: Draws the minibatches.
    """
    mean, squared = torch.zeros_like(centers, dtype=torch.float64), 0.0
    for _ in range(batches):
        drawn = x.index_select(0, torch.randint(len(x), (batch_size,), generator=rng))
        g = gradient(assign(drawn, centers), centers).double() * x.shape[1]
        mean += g / batches
        squared += float(g.square().sum()) / batches
    spread = (squared - float(mean.square().sum())) * batches / (batches - 1)
    gap = (centers - mean_of).double()
    bias = (gap - eta[:, None, None] * mean).square().sum((1, 2)) - eta**2 * spread / batches
    return Measured(bias, eta**2 * spread, float((gap * mean).sum()) / squared)


def train_centers(
    data: Images,
    x: Tensor,
    init: str,
    batch_size: int,
    seed: int,
    rate: Rate,
    steps: tuple[int, ...] = STEPS,
) -> dict[int, Tensor]:
    """Train by SGD and return the centres (10, 784) after each number of `steps`."""
    centers = draw_centers(init, data, 10, generator(seed, Stream.INIT))
    saved, step = {0: centers.clone()}, 0
    for epoch in count():
        order = torch.randperm(len(x), generator=generator(seed, Stream.ORDER, epoch))
        for rows in order.split(batch_size):
            if step == steps[-1]:
                return saved
            centers -= rate(step) * gradient(assign(x.index_select(0, rows), centers), centers)
            step += 1
            if step in steps:
                saved[step] = centers.clone()
    raise AssertionError


# -- figures ---------------------------------------------------------------------------------------


def draw_errors(cases: dict[str, tuple[Clusters, Tensor, Measured]], batch_size: int) -> Figure:
    """Draw the error against eta, one panel per case: measured (dots), by (2) and (3) (lines)."""
    figure = Figure(figsize=(14, 7.5), layout="constrained")
    panels = figure.subplots(2, 3).flat
    for axes, (title, (c, etas, measured)) in zip(panels, cases.items(), strict=True):
        fine = torch.linspace(0, float(etas[-1]), 200, dtype=torch.float64)
        bias, variance = expected_error(c, fine, batch_size)
        for name, dots, line, color in (
            ("bias²", measured.bias, bias, "tab:blue"),
            ("variance", measured.variance, variance, "tab:orange"),
            ("their sum", measured.bias + measured.variance, bias + variance, "black"),
        ):
            axes.plot(fine, line, color=color, label=name)
            axes.plot(etas, dots, "o", color=color, markersize=4)
        best, no_step = best_eta(c, batch_size), float(c.delta.sum())
        axes.axvline(best, color="tab:green", linestyle="--", label=f"best: {best:.3g}")
        label = f"the seed report's {SEED_REPORT}"
        axes.axvline(SEED_REPORT, color="tab:red", linestyle=":", label=label)
        axes.axhline(no_step, color="gray", linewidth=0.8, label="no step")
        axes.set(title=title, xlabel="eta", ylabel="squared distance to Lloyd's average")
        axes.set_ylim(0, 2.5 * no_step)
        axes.legend(fontsize=8)
    return figure


def draw_course(course: dict[str, list[list[float]]], batch_size: int, pixels: int) -> Figure:
    """Draw the best eta of the next step during training, one line per seed; dotted: rate / 2."""
    figure = Figure(figsize=(8, 5.2), layout="constrained")
    axes = figure.subplots()
    for number, (name, lines) in enumerate(course.items()):
        for etas in lines:
            axes.plot(STEPS, etas, marker="o", markersize=4, color=f"C{number}")
        axes.plot([], [], color=f"C{number}", marker="o", label=f"centres trained with {name}")
        halves = [RATES[name](step) / pixels / 2 for step in STEPS]
        axes.plot(STEPS, halves, color=f"C{number}", linestyle=":", linewidth=1)
    axes.plot([], [], color="gray", linestyle=":", linewidth=1, label="half of their rate")
    label = f"the seed report's {SEED_REPORT}"
    axes.axhline(SEED_REPORT, color="tab:red", linestyle="--", label=label)
    axes.set_xscale("symlog", linthresh=3)
    axes.set(yscale="log", xlabel="steps taken", ylabel="best eta for the next step")
    axes.set(xlim=(0, LENGTH), ylim=(3e-3, 8))
    axes.set_title(f"init=digit, minibatches of {batch_size}")
    axes.legend(fontsize=8, loc="lower left")
    return figure


@command.exit_on_error
def main() -> None:
    """Measure, draw the figures and print the tables."""
    parser = command.make_study_parser(__doc__, "outputs/step_size", "the figures")
    parser.add_argument(
        "--batch-size", type=int, default=64, help="images per minibatch (default 64)"
    )
    parser.add_argument(
        "--batches", type=int, default=2000, help="minibatches per simulation (default 2000)"
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds (default 0 1 2)"
    )
    options = parser.parse_args()
    if options.batch_size < 1 or options.batches < 2 or min(options.seeds) < 0:
        parser.error("--batch-size must be >= 1, --batches >= 2 and --seeds >= 0")
    data = load(options.root).train
    options.out.mkdir(parents=True, exist_ok=True)
    # Waking a second thread takes longer than products of this size.
    with cpu_threads(1):
        study(data, options.batch_size, options.batches, options.seeds, options.out)


def study(data: Images, batch_size: int, batches: int, seeds: list[int], out: Path) -> None:
    """Measure, draw the figures into `out` and print the tables."""
    x = scale(data.images).flatten(1)
    pixels = x.shape[1]
    courses = {
        name: [train_centers(data, x, "digit", batch_size, seed, rate) for seed in seeds]
        for name, rate in RATES.items()
    }
    noise = train_centers(data, x, "random", batch_size, seeds[0], RATES["lr 100"], (0, 938))
    shown = {f"init=digit, lr 100, {n:,} steps": courses["lr 100"][0][n] for n in SHOWN}
    shown |= {f"init=random, lr 100, {n:,} steps": noise[n] for n in (0, 938)}
    print(f"Best constant eta for one step with minibatches of {batch_size}, by equation (5) of")
    print("--help. The remaining distance to Lloyd's average is a share of that before the step.")
    print(f"The seed report's eta is {SEED_REPORT}.\n")
    print(f"{'centres':32}{'eta (5)':>9}{'measured':>10}{f'lr = {pixels} eta':>14}", end="")
    print(f"{'distance left':>15}{'with 4.5':>10}")
    cases = {}
    for title, centers in shown.items():
        c = measure_clusters(x, centers)
        best = best_eta(c, batch_size)
        etas = torch.linspace(0, max(2.5 * best, 1.2 * SEED_REPORT), 15, dtype=torch.float64)
        rng = generator(seeds[0], Stream.ORDER, 1, 1)
        measured = simulate(x, centers, c.mean, etas, batch_size, batches, rng)
        cases[title] = c, etas, measured
        both = torch.tensor([best, SEED_REPORT], dtype=torch.float64)
        left = sum(expected_error(c, both, batch_size)) / c.delta.sum()
        print(f"{title:32}{best:>9.3g}{measured.best:>10.3g}{pixels * best:>14.0f}", end="")
        print(f"{left[0]:>15.2f}{left[1]:>10.2f}")
    k = 10
    balanced = 1 / (2 / k + 2 / batch_size * (1 - 1 / k))
    title = "ten equal clusters without spread"
    print(f"{title:32}{balanced:>8.3g}{'':>10}{pixels * balanced:>14.0f}")
    first = [measure_clusters(x, centers[0]) for centers in courses["lr 100"]]
    without_spread = [c._replace(spread=0 * c.spread) for c in first]
    for title, some in (("", first), (" without spread", without_spread)):
        values = ", ".join(f"{best_eta(c, batch_size):.2f}" for c in some)
        print(f"init=digit{title}, 0 steps, seeds {', '.join(map(str, seeds))}: {values}")

    def best_etas(along: dict[int, Tensor]) -> list[float]:
        return [best_eta(measure_clusters(x, centers), batch_size) for centers in along.values()]

    course = {name: [best_etas(along) for along in some] for name, some in courses.items()}
    for name, figure in (
        ("errors", draw_errors(cases, batch_size)),
        ("course", draw_course(course, batch_size, pixels)),
    ):
        with atomic_write(out / f"{name}.png") as part:
            figure.savefig(part, dpi=100)
    print(f"\nFigures: {out}/errors.png and course.png")


if __name__ == "__main__":
    main()
