"""Which constant step size brings one minibatch step closest to Lloyd's average (seed report Q1a)?

From centres c, Lloyd's step goes to the means mu of the points each centre wins. A minibatch step on the
loss summed over pixels and averaged over the batch goes to c - eta g, with g = 2/B (m_k c_k - s_k). Then

    E|c - eta g - mu|^2  =  |c - mu|^2 - 2 eta <c - mu, E g> + eta^2 E|g|^2

is bias^2 plus variance, least at eta = <c - mu, E g> / E|g|^2. The means over minibatches are measured.
For K equal clusters without spread this is 1 / (2/K + (2/B)(1 - 1/K)), 4.38 for K = 10, B = 64.
On the project's loss, the mean over D = 784 pixels, the same step is optimizer.lr = 784 eta.
"""

import argparse
import os

import torch

from digitlab.data import IMAGE_SHAPE, scale
from digitlab.kmeans import assign, draw_centers, gradient
from digitlab.seeds import Stream, generator
from digitlab.sources import load

PIXELS = IMAGE_SHAPE[0] * IMAGE_SHAPE[1]


def best_eta(x: torch.Tensor, centers: torch.Tensor, batch_size: int, rng: torch.Generator) -> float:
    """The eta above at these centres (K, D), over one epoch of minibatches of x (N, D)."""
    wins = assign(x, centers)
    mu = torch.where(wins.counts[:, None] > 0, wins.sums / wins.counts.clamp(min=1)[:, None], centers)
    mean, squared, batches = torch.zeros_like(centers), 0.0, 0
    for rows in torch.randperm(len(x), generator=rng).split(batch_size)[: len(x) // batch_size]:
        g = gradient(assign(x[rows], centers), centers) * PIXELS
        mean, squared, batches = mean + g, squared + float(g.square().sum()), batches + 1
    return float(((centers - mu) * mean).sum()) / squared


def main() -> None:
    """Print the best eta at the first centres and after some full Lloyd steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=64, help="images a minibatch (default 64)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds (default 0 1 2)")
    parser.add_argument("--root", default=os.environ.get("DIGITLAB_DATA", "data"), help="folder of MNIST's files")
    options = parser.parse_args()
    if not 1 <= options.batch_size <= 4000 or min(options.seeds) < 0:
        parser.error("--batch-size must be from 1 to 4000 and --seeds >= 0")
    try:
        train = load(options.root).train
    except ValueError as mistake:
        parser.error(str(mistake))
    x = scale(train.images).flatten(1)
    print(f"Best constant eta for one minibatch step, batch size {options.batch_size}, init=digit")
    print("Lloyd steps before" + "".join(f"{f'seed {seed}':>10}" for seed in options.seeds) + "    lr = 784 eta")
    centers = {s: draw_centers("digit", train, 10, generator(s, Stream.INIT)) for s in options.seeds}
    done = 0
    for target in (0, 1, 2, 5, 10, 20):
        for seed in options.seeds:
            for _ in range(target - done):
                wins = assign(x, centers[seed])
                centers[seed] = wins.sums / wins.counts[:, None]
        done = target
        etas = [best_eta(x, centers[s], options.batch_size, generator(s, Stream.ORDER)) for s in options.seeds]
        rates = ", ".join(f"{PIXELS * eta:.0f}" for eta in etas)
        print(f"{target:>18}" + "".join(f"{eta:>10.2f}" for eta in etas) + f"    {rates}")
    k, b = 10, options.batch_size
    print(f"Equal clusters without spread: {1 / (2 / k + 2 / b * (1 - 1 / k)):.2f}")


if __name__ == "__main__":
    main()
