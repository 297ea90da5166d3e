"""Minibatch k-means by stochastic gradient descent (Bottou and Bengio, 1995; Sculley, 2010).

With B images x of D pixels, K centres c, and k(x) the centre nearest to x, the loss is

    L = 1/(B D) * sum_x |x - c_k(x)|^2                                                              (1)

Its gradient needs only how many points each centre won, m_k, and their sum, s_k:

    dL/dc_k = 2/(B D) * (m_k c_k - s_k)                                                             (2)

so under DDP these are all that the processes exchange. Two rates are a centre's own: Bottou and Bengio's
(their eq. 6), with n_k the points that centre k has won so far, and Schwartzman's (2023),

    c_k -= 1/n_k (m_k c_k - s_k)           c_k -= sqrt(m_k/B) (c_k - s_k/m_k)                       (3)

The nearest centre is found by |c|^2 - 2 x.c, one matrix product. In float32 its digits cancel where
images differ far less than they differ from black. So images and centres are first moved, both by
the same vector, to where the images' mean is near 0: this changes no distance, gradient or k(x).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from matplotlib.figure import Figure
from torch import Tensor, nn

from digitlab.data.images import IMAGE_SHAPE, PIXELS, Images, Source, Split, scale
from digitlab.data.loaders import Batch, Chunks
from digitlab.models.base import Model, sentence
from digitlab.runtime.seeds import Stream, generator

# Points tried as a centre's place. Ten centres placed one by one like this end, after ten epochs at
# lr 4.5, at a test loss of 0.0531 with 1 (mean of 5 seeds), 0.0511 with 4, 0.0506 with 10, 0.0505
# with 30.
TRIES = 10
GLANCE = 10_000  # images that show whether any cluster is small


class Wins(NamedTuple):
    """What one minibatch says about the centres; all of it adds up over parts of the minibatch."""

    counts: Tensor  # (K,) float: points won, m_k
    sums: Tensor  # (K, D): their sum, s_k
    squared: Tensor  # (): sum of the squared distances to the nearest centre


def nearest(x: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Each point's nearest centre, int64 (B,), and |x - c|^2 - |x|^2, float (B,).

    x is (B, D), its mean near 0, and centers (K, D). Without |x|^2, which no choice of centre
    changes, it is one product.
    """
    scores = torch.addmm(centers.square().sum(1, keepdim=True), centers, x.T, alpha=-2)  # (K, B)
    distances, labels = scores.min(0)
    return labels, distances


def squared_distances(x: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Each point's nearest centre, int64 (B,), and |x - c|^2 from the difference, float (B,)."""
    labels, _ = nearest(x, centers)
    return labels, centers[labels].sub_(x).square_().sum(1)


def assign(x: Tensor, centers: Tensor) -> Wins:
    """Give each point of x (B, D) to the nearest of centers (K, D)."""
    labels, distances = nearest(x, centers)
    one_hot = x.new_zeros(len(centers), len(x)).scatter_(0, labels[None], 1)  # (K, B)
    return Wins(one_hot.sum(1), one_hot @ x, x.square().sum() + distances.sum())


def gradient(wins: Wins, centers: Tensor) -> Tensor:
    """Equation (2): the gradient of the loss (1) by the centres, (K, D)."""
    counts = wins.counts[:, None]
    return (counts * centers - wins.sums).div_(wins.counts.sum() * (centers.shape[1] / 2))


def own_rate(name: str, wins: Wins, won: Tensor) -> Tensor:
    """What the gradient (2) is multiplied by to be a step (3), (K,). `won` are the n_k, this minibatch included."""
    size = wins.counts.sum()
    n = won if name == "inverse_count" else (wins.counts * size).sqrt()
    return size * (wins.sums.shape[1] / 2) / n.clamp(min=1)


def smallest_cluster(labels: Tensor, candidates: Tensor, ratio: float) -> int | None:
    """The candidate with the smallest cluster, if that has fewer points than `ratio` x the largest.

    labels: each point's cluster, int64 (N,); candidates: bool (K,).
    """
    sizes = torch.bincount(labels, minlength=len(candidates))
    k = int(sizes.masked_fill(~candidates, len(labels)).argmin())
    return k if candidates[k] and sizes[k] < ratio * sizes.max() else None


def nearest_but(k: int, x: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """As `squared_distances`, to the centres other than k."""
    others = torch.arange(len(centers), device=x.device)
    others = others[others != k]
    labels, squared = squared_distances(x, centers[others])
    return others[labels], squared


@torch.no_grad()
def reassign(x: Tensor, centers: Tensor, ratio: float, rng: torch.Generator) -> Tensor:
    """Move centres with small clusters to where they are of more use, one by one.

    A cluster is small if it has fewer points than `ratio` x the largest (scikit-learn's
    reassignment_ratio). The centre with the smallest one comes first, and each at most once. Ten
    random points are tried as its place, as in greedy k-means++. It moves onto the best of them if
    there it lowers the loss (1) over all of x, and here by less than `ratio` x as much. So an idle
    centre is revived, and a centre with a few points of its own kind keeps them. (Random swaps,
    Fränti, 2018, but for that margin: the loss is to stay lower when the centres have settled.)

    Args:
        x: The points, (N, D), their mean near 0.
        centers: (K, D); moved in place.
        ratio: In [0, 1).
        rng: Draws the points that are tried.

    Returns:
        The point that each centre was moved onto, int64 (K,), or -1.
    """
    norms = torch.linalg.vector_norm(x, dim=1, keepdim=True).square()  # (N, 1)

    def draw_places() -> tuple[Tensor, Tensor]:
        """The points that are tried, (TRIES,), and all squared distances to them, (N, TRIES)."""
        rows = torch.randint(len(x), (TRIES,), generator=rng).to(x.device)
        squared = torch.addmm(norms, x, x[rows].T, alpha=-2).add_(norms[rows].T)
        return rows, squared.clamp_(min=0)

    chunks = [nearest(part, centers) for part in x.split(10_000)]
    labels, squared = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    squared.add_(norms[:, 0]).clamp_(min=0)
    moves = torch.full((len(centers),), -1, device=x.device)
    waiting = moves < 0
    places, distances = draw_places()
    while (k := smallest_cluster(labels, waiting, ratio)) is not None:
        waiting[k] = False
        mine = labels == k
        labels_without, squared_without = labels.clone(), squared.clone()
        labels_without[mine], squared_without[mine] = nearest_but(k, x[mine], centers)
        # By how much the sum of all squared distances falls with the centre here, and there.
        worth_here = (squared_without - squared).sum()
        worth_there, best = (squared_without[:, None] - distances).clamp_(min=0).sum(0).max(0)
        if worth_here < ratio * worth_there:
            moves[k], centers[k] = places[best], x[places[best]]
            labels = labels_without.masked_fill(distances[:, best] < squared_without, k)
            squared = torch.minimum(distances[:, best], squared_without)
            places, distances = draw_places()  # a second centre there would be of less use
    return moves


Draw = Callable[[Images, int, torch.Generator], Tensor]
INITS: dict[str, Draw] = {}


def init(name: str) -> Callable[[Draw], Draw]:
    """Make a function the choice `name` of conf/init.

    It gets the training images (uint8; `scale` brings them to [0, 1]), K, and the run's random numbers, and returns K
    centres, float (K, 784) in [0, 1].
    """

    def enter(function: Draw) -> Draw:
        if name in INITS:
            raise ValueError(f"@init({name!r}): {INITS[name].__name__} has this name; give another")
        INITS[name] = function
        return function

    return enter


def find_init(name: str) -> Draw:
    """The function of a choice of conf/init. Raises ValueError where it has none."""
    if name not in INITS:
        raise ValueError(
            f"init={name}: digitlab.models.kmeans has {', '.join(INITS)}; write a function @init({name!r}) there"
        )
    return INITS[name]


def draw_centers(name: str, data: Images, n_clusters: int, rng: torch.Generator) -> Tensor:
    """The first centres, float (K, 784), by a choice of conf/init.

    Raises ValueError where there is no such choice, the training images do not allow it, or it gives no such centres.
    """
    centers = find_init(name)(data, n_clusters, rng)
    if not isinstance(centers, Tensor) or not centers.numel():
        what = "nothing" if centers is None or isinstance(centers, Tensor) else f"a {type(centers).__name__}"
        raise ValueError(f"init={name}: gives {what}, must be a tensor of {n_clusters, PIXELS} in [0, 1]")
    if centers.shape != (n_clusters, PIXELS) or not 0 <= centers.min() <= centers.max() <= 1:
        shape, low, high = tuple(centers.shape), float(centers.min()), float(centers.max())
        raise ValueError(f"init={name}: gives {shape} from {low:g} to {high:g}, must be {n_clusters, PIXELS} in [0, 1]")
    return centers


@init("random")
def noise(data: Images, n_clusters: int, rng: torch.Generator) -> Tensor:
    """Uniform in [0, 1)."""
    return torch.rand(n_clusters, PIXELS, generator=rng)


@init("digit")
def one_of_each(data: Images, n_clusters: int, rng: torch.Generator) -> Tensor:
    """A random image of each digit, in their order."""
    chosen = []
    for digit in range(10):
        members = (data.labels == digit).nonzero().flatten()
        if not len(members):
            raise ValueError(f"init=digit: no training image shows a {digit}; use init=sample or more data")
        chosen.append(members[torch.randint(len(members), (), generator=rng)])
    return scale(data.images[torch.stack(chosen)]).flatten(1)


@init("sample")
def forgy(data: Images, n_clusters: int, rng: torch.Generator) -> Tensor:
    """Distinct random images (Forgy, 1965)."""
    enough("sample", data, n_clusters)
    return scale(data.images[torch.randperm(len(data.images), generator=rng)[:n_clusters]]).flatten(1)


@init("kmeans++")
def plus_plus(data: Images, n_clusters: int, rng: torch.Generator) -> Tensor:
    """Images, each next one drawn with probability proportional to D(x)^2 (Arthur and Vassilvitskii, 2007)."""
    enough("kmeans++", data, n_clusters)
    # In whole grey values every product is an integer, and every sum below 2^24 exact in float32:
    # equal images are at distance 0, however bright they are.
    grey = data.images.flatten(1).float()
    grey -= grey.mean(0).round()
    norms = grey.square().sum(1)
    weights = torch.ones(len(grey))
    chosen: list[Tensor] = []
    for _ in range(n_clusters):
        if not weights.any():  # fewer distinct images than centres
            weights = torch.ones(len(grey))
        drawn = torch.multinomial(weights, 1, generator=rng)
        _, distances = nearest(grey, grey[drawn])
        squared = (norms + distances).clamp_(min=0)
        weights = torch.minimum(weights, squared) if chosen else squared
        chosen.append(drawn)
    return scale(data.images[torch.cat(chosen)]).flatten(1)


def enough(name: str, data: Images, n_clusters: int) -> None:
    """Raise ValueError where there are fewer images than centres."""
    if n_clusters > (n := len(data.images)):
        raise ValueError(f"model.n_clusters={n_clusters}: init={name} needs as many images, here are {n}")


class MiniBatchKMeans(Model):
    """K-means whose centres are the parameters of a gradient descent."""

    block = 64
    threads = 1  # products of 64 x 784 x 10 are over sooner than a second thread has woken

    def __init__(
        self,
        n_clusters: int,
        init: dict[str, Any],
        reassignment_ratio: float,
        optimizer: dict[str, Any],
        scheduler: dict[str, Any],
        seed: int,
    ) -> None:
        super().__init__(optimizer, scheduler, seed)
        self.save_hyperparameters(logger=False)
        self.n_clusters, self.init, self.reassignment_ratio = n_clusters, init, reassignment_ratio
        self.centers = nn.Parameter(torch.zeros(n_clusters, PIXELS))
        self.register_buffer("won", torch.zeros(n_clusters))  # n_k, for the rate 1/n_k
        self.won: Tensor
        # Minus about the training images' mean. No checkpoint needs it: `setup` finds it again.
        self.register_buffer("shift", torch.zeros(PIXELS), persistent=False)
        self.shift: Tensor
        self.confusion: np.ndarray | None = None  # of the training images, int (10, K); `evaluate` finds it
        # How many training images differ; `evaluate` finds it where centres are idle.
        self.distinct: int | None = None

    @torch.no_grad()
    def setup(self, stage: str) -> None:
        """Draw the first centres; a checkpoint that is resumed from replaces them afterwards."""
        if stage == "fit":
            rng = generator(self.seed, Stream.INIT)
            train = Images(*(part.cpu() for part in self.batches.train))
            # The mean of a thousand images is near enough.
            some = train.images[:: 1 + len(train.images) // 1000]
            self.shift.copy_(-scale(some).mean(0).flatten())
            self.centers.copy_(draw_centers(self.init["name"], train, self.n_clusters, rng))

    def on_train_epoch_start(self) -> None:
        """Reassign centres where the configuration says so."""
        super().on_train_epoch_start()
        if self.reassignment_ratio > 0:
            self._reassign()

    def shifted(self, images: Tensor) -> Tensor:
        """Uint8 (n, 28, 28) as points (n, D) in [0, 1], moved by `shift`, in one pass."""
        return torch.add(self.shift, images.flatten(1).float(), alpha=1 / 255)

    def training_step(self, block: Batch, index: int) -> Tensor:
        """Take one step for each minibatch of the block; returns their mean loss."""
        parameter, shift, name = self.centers, self.shift, self.optimizer["name"]
        optimizer, scheduler = self.descent()
        squared = self.won.new_zeros(())
        won = torch.zeros_like(self.won)
        with torch.no_grad():
            for batch in self.minibatches(block):
                centers = parameter + shift  # (K, D)
                wins = self._reduce(assign(self.shifted(batch.images), centers))
                parameter.grad = gradient(wins, centers)
                won += wins.counts
                if name != "sgd":
                    parameter.grad *= own_rate(name, wins, self.won + won)[:, None]
                optimizer.step()
                if scheduler is not None:
                    scheduler.step()
                squared += wins.squared
            self.won += won
        loss = squared.clamp(min=0) / (won.sum() * PIXELS)
        self.accumulate_loss(loss, block.total)
        return loss

    def _reduce(self, wins: Wins) -> Wins:
        """Under DDP add up what the processes saw of the minibatch, in one message."""
        if self.trainer.world_size == 1:
            return wins
        packed = torch.cat([wins.counts, wins.sums.flatten(), wins.squared[None]])
        dist.all_reduce(packed)
        k = self.n_clusters
        return Wins(packed[:k], packed[k:-1].view(k, -1), packed[-1])

    @torch.no_grad()
    def _reassign(self) -> None:
        """Move centres with small clusters: each process has all images, and moves the same."""
        images, centers = self.batches.train.images, self.centers + self.shift
        rng = generator(self.seed, Stream.REASSIGN, self.current_epoch)
        # Most often there is no small cluster, which some images show sooner than all.
        some = torch.randperm(len(images), generator=rng)[:GLANCE].to(images.device)
        labels, _ = nearest(self.shifted(images.index_select(0, some)), centers)
        every = torch.ones(self.n_clusters, dtype=torch.bool, device=labels.device)
        if smallest_cluster(labels, every, self.reassignment_ratio) is None:
            return
        moves = reassign(self.shifted(images), centers, self.reassignment_ratio, rng)
        moved = moves >= 0
        self.centers[moved] = scale(images.index_select(0, moves[moved])).flatten(1)
        self.won[moved] = 0
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        momentum = optimizer.state[self.centers].get("momentum_buffer")
        if momentum is not None:
            momentum[moved] = 0

    def validation_step(self, chunk: Batch, _: int) -> None:
        """Log the loss of held-out images."""
        x, centers = self.shifted(chunk.images), self.centers + self.shift
        squared = squared_distances(x, centers)[1]
        sums = torch.stack([squared.sum(), squared.new_tensor(len(x))])
        distributed = self.trainer.world_size > 1  # all have the same already; without the word Lightning warns
        if distributed:
            dist.all_reduce(sums)
        n = int(sums[1])
        self.log("val/loss", sums[0] / (n * PIXELS), batch_size=n, sync_dist=distributed)

    @torch.no_grad()
    def predict(self, data: Images) -> tuple[Tensor, float]:
        """The centre of each image, int64 (N,) on the CPU, and the mean loss (1)."""
        labels, total = [], 0.0
        # In float64, where no digit that matters cancels: a loaded model knows no mean to move by.
        centers = self.centers.double()
        for chunk in Chunks(data, size=256):  # of less than a cache, where there is one
            x = chunk.images.to(self.device).flatten(1).double().div_(255)
            chosen, squared = squared_distances(x, centers)
            labels.append(chosen.cpu())
            # A loss beyond float32 is infinite, as it is in training.
            total += float(squared.float().sum(dtype=torch.double))
        return torch.cat(labels), total / (len(data.labels) * PIXELS)

    def evaluate(self, source: Source, data: Split) -> dict[str, float]:
        """The metrics of the finished model; the centres that win a training image count as active."""
        labels, train_loss = self.predict(data.train)
        self.confusion = count_pairs(data.train.labels, labels, self.n_clusters)
        metrics = {"train/loss": train_loss}
        if len(data.val.labels):
            metrics["val/loss"] = self.predict(data.val)[1]
        test_labels, metrics["test/loss"] = self.predict(data.test)
        scores = agreement(data.test.labels, test_labels, self.n_clusters)
        metrics |= {f"test/{name}": value for name, value in scores.items()}
        active = len(labels.unique())
        if active < self.n_clusters:
            self.distinct = count_distinct(data.train.images)
        return metrics | {"active_centers": active}

    def warnings(self, metrics: dict[str, float], baselines: dict[str, float]) -> list[str]:
        """A sentence, with its remedy, where centres lie idle."""
        k, active, found = self.n_clusters, int(metrics["active_centers"]), []
        most = k if self.distinct is None else min(k, self.distinct)
        if most < k:
            found.append(
                f"{k} centres for {most} distinct training images: {k - active} win none."
                f" Use fewer clusters (model.n_clusters={most})."
            )
        if active == 1 < most:
            idle = f"Collapsed: one centre holds all the points, the other {k - 1} win none."
            found.append(f"{idle} {self._idle_remedy()}")
        elif active < most:
            idle = f"{k - active} of {k} centres win no training image."
            found.append(f"{idle} {self._idle_remedy()}")
        return found

    def _idle_remedy(self) -> str:
        """What could wake idle centres and is not set already."""
        choices = []
        match self.init["name"]:
            case "kmeans++":
                pass
            case "digit" | "sample":
                choices.append("start from images that differ more (init=kmeans++)")
            case _:
                # One image of each digit makes ten centres.
                digit = "init=digit, " if self.n_clusters == 10 else ""
                choices.append(f"start from data ({digit}init=kmeans++)")
        if self.reassignment_ratio == 0:
            choices.append("revive idle centres (model.reassignment_ratio=0.01)")
        if not choices:
            choices = [self.steadier_steps() + ",", "use fewer clusters (model.n_clusters)"]
        return sentence(" or ".join(choices))

    def pictures(self) -> dict[str, Tensor | Figure]:
        """The centres as images (K, 1, 28, 28), for TensorBoard."""
        return {"centers": self.centers.detach().view(-1, 1, *IMAGE_SHAPE).clamp(0, 1).cpu()}


def count_distinct(images: Tensor) -> int:
    """How many of the images (N, 28, 28), uint8, differ from all before them."""
    return len({image.tobytes() for image in images.cpu().numpy()})


def count_pairs(digits: Tensor, labels: Tensor, n_clusters: int) -> np.ndarray:
    """The confusion matrix, int (10, K): how many images of digit i went to centre k."""
    return torch.bincount(digits * n_clusters + labels, minlength=10 * n_clusters).view(10, n_clusters).numpy()


def agreement(digits: Tensor, labels: Tensor, n_clusters: int) -> dict[str, float]:
    """How well a clustering agrees with the digits, each from 0 to 1 (ari from -0.5).

    accuracy: share on the best one-to-one match of centres and digits. diagonal (K = 10 only): share with
    centre i on digit i. purity: share that shows its centre's commonest digit. nmi, ari: normalised mutual
    information and adjusted Rand index (scikit-learn).
    """
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    confusion = count_pairs(digits, labels, n_clusters)
    n = confusion.sum()
    scores = {"accuracy": confusion[linear_sum_assignment(confusion, maximize=True)].sum() / n}
    if n_clusters == 10:
        scores["diagonal"] = confusion.trace() / n
    scores["purity"] = confusion.max(0).sum() / n
    scores["nmi"] = normalized_mutual_info_score(digits, labels)
    scores["ari"] = adjusted_rand_score(digits, labels)
    return {name: float(score) for name, score in scores.items()}
