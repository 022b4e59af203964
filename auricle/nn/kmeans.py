"""K-means over rows that come in a stream and never lie in memory as a whole, and clusters as labels to learn.

The recipe is scikit-learn's `MiniBatchKMeans` as HuBERT sets it (Hsu et al. 2021, arXiv:2106.07447, and its code): the
best of 20 seedings by k-means++ (Arthur and Vassilvitskii 2007), then means updated a mini-batch at a time (Sculley
2010). Here the seedings run side by side, all of it on the rows' device; draws come from torch's global generator.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from itertools import chain, islice

import torch
from pydantic import Field
from torch import Tensor, nn

from auricle.config import Config
from auricle.errors import TrainingError

logger = logging.getLogger("auricle")

SEEDING_BATCHES = 3
"""Mini-batches that the seeds are drawn from, as in scikit-learn; more when the clusters are many."""
SMOOTHING = 0.05
"""Weight of the newest mini-batch in the running inertia that tells when to stop."""
COUNTED_BATCHES, COUNTED_ROWS = 10, 30
"""Mini-batches, and rows a cluster, at least, that the histogram of labels is counted over."""
LEAST_ENTROPY, MOST_EMPTY = 0.25, 0.5
"""Labels are refused with less entropy than this, as a share of log K, or with a larger share of empty clusters."""


class KMeansConfig(Config):
    """How many clusters, and how much work goes into finding them. The defaults are HuBERT's."""

    clusters: int = Field(500, ge=2)
    """Number of clusters K, the classes to predict. Speech: 100, then 500; music: 500 or 2000."""
    rows: int = Field(10_000, ge=1)
    """Frames in a mini-batch."""
    batches: int = Field(1000, ge=1)
    """Most mini-batches; their number is what bounds the time, whatever the size of the corpus."""
    inits: int = Field(20, ge=1)
    """Seedings, of which the best is taken."""
    patience: int = Field(100, ge=1)
    """Mini-batches without a smaller running inertia that end it."""


def fit(blocks: Iterable[Tensor], config: KMeansConfig) -> Tensor:
    """Centroids (K, D) float32 of mini-batches (n, D), of which no more are drawn than are needed.

    A centroid that no row has chosen yet moves to a row of the mini-batch, drawn as k-means++ draws.
    """
    blocks = iter(blocks)
    first = next(blocks)
    seeding = max(SEEDING_BATCHES, math.ceil(SEEDING_BATCHES * config.clusters / len(first)))
    sample = [first, *islice(blocks, seeding - 1)]
    centroids = seeds(torch.cat(sample), config.clusters, config.inits)
    counts = torch.zeros(config.clusters, device=centroids.device)
    running, best, waited = math.nan, math.inf, 0
    for block in islice(chain(sample, blocks), config.batches):
        labels, distances = nearest(block, centroids)
        chosen = labels.bincount(minlength=config.clusters)
        counts += chosen
        sums = torch.zeros_like(centroids).index_add_(0, labels, block)
        centroids = centroids + (sums - chosen[:, None] * centroids) / counts.clamp_min(1)[:, None]
        centroids = torch.where(counts[:, None] > 0, centroids, block[_draw(distances, config.clusters)])

        inertia = float(distances.mean())
        running = inertia if math.isnan(running) else running + SMOOTHING * (inertia - running)
        waited = 0 if running < best else waited + 1
        best = min(best, running)
        if waited == config.patience:
            break
    return centroids


def nearest(x: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest of centroids (K, D) to each row of x (..., D), and its squared distance, both (...); in float32."""
    with torch.autocast(x.device.type, enabled=False):
        middle = centroids.mean(0)  # from here, or small distances would drown in the rounding of large squares
        x, centroids = x.float() - middle, centroids - middle
        least, labels = (centroids.square().sum(1) - 2 * x @ centroids.T).min(-1)
        return labels, (least + x.square().sum(-1)).clamp_min(0)


def seeds(rows: Tensor, clusters: int, inits: int) -> Tensor:
    """Greedy k-means++: the best, by inertia, of `inits` choices of K of the rows (N, D), as (K, D).

    Each next seed is the best of 2 + ln K rows that are drawn with a probability proportional to their squared distance
    from the seeds there are (scikit-learn's number).
    """
    trials, every = 2 + int(math.log(clusters)), torch.arange(inits, device=rows.device)
    x = rows - rows.mean(0)
    squares = x.square().sum(1)  # (N,)

    def distances(index: Tensor) -> Tensor:  # (..., N)
        return (squares[index][..., None] + squares - 2 * x[index] @ x.T).clamp_min(0)

    chosen = torch.empty(inits, clusters, dtype=torch.long, device=rows.device)
    chosen[:, 0] = torch.randint(len(rows), (inits,), device=rows.device)
    left = distances(chosen[:, 0])  # (inits, N)
    for number in range(1, clusters):
        drawn = _draw(left, trials)
        after = torch.minimum(distances(drawn), left[:, None])  # (inits, trials, N)
        best = after.sum(2).argmin(1)
        chosen[:, number], left = drawn[every, best], after[every, best]
    return rows[chosen[left.sum(1).argmin()]]


def _draw(distances: Tensor, count: int) -> Tensor:
    """Numbers (..., count) into distances (..., N), drawn in proportion to them, uniformly where all are 0."""
    return torch.multinomial(distances + torch.finfo(distances.dtype).tiny, count, replacement=True)


def in_blocks(parts: Iterable[Tensor], rows: int) -> Iterator[Tensor]:
    """Rows that come in parts (n, D) of any sizes, as blocks (rows, D); the last may be shorter."""
    held: list[Tensor] = []
    for part in parts:
        held.append(part)
        while sum(map(len, held)) >= rows:
            block, rest = torch.cat(held).tensor_split([rows])
            held = [rest]
            yield block
    if sum(map(len, held)):
        yield torch.cat(held)


def _finite(rows: Tensor) -> Tensor:
    if not rows.isfinite().all():
        raise TrainingError("labels: the features they are made of are not finite; is the quantizer damaged?")
    return rows


class Clusters(nn.Module):
    """Centroids, once fitted, and how often each is the nearest: labels for features (..., D), with their unigram."""

    centroids: Tensor
    """(K, D)"""
    counts: Tensor
    """(K,) frames of each label, of those counted after the fit."""

    def __init__(self, dim: int, config: KMeansConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("centroids", torch.zeros(config.clusters, dim))
        self.register_buffer("counts", torch.zeros(config.clusters, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """Labels (...) of x (..., D)."""
        return nearest(x, self.centroids)[0]

    def fit(self, parts: Iterable[Tensor]) -> None:
        """Fit to rows that come in parts (n, D), without end. Raises `TrainingError` when the labels teach nothing."""
        config = self.config
        blocks = in_blocks(map(_finite, parts), config.rows)
        self.centroids.copy_(fit(blocks, config))
        counted = max(COUNTED_BATCHES, math.ceil(COUNTED_ROWS * config.clusters / config.rows))
        self.counts.zero_()
        for block in islice(blocks, counted):
            self.counts += self(block).bincount(minlength=config.clusters)
        self._check()

    def surprise(self, labels: Tensor) -> Tensor:
        """Minus the logarithm of each label's share of the frames counted, nats, as one more of each had been seen."""
        return -((self.counts + 1) / (self.counts + 1).sum()).log()[labels]

    def _check(self) -> None:
        clusters, shares = self.config.clusters, self.counts / self.counts.sum()
        entropy, largest = float(torch.special.entr(shares).sum()), float(shares.max())
        empty = int((self.counts == 0).sum())
        if entropy < LEAST_ENTROPY * math.log(clusters):
            raise TrainingError(
                f"labels: {largest:.0%} of the frames are of one of {clusters} clusters (entropy {entropy:.2f} of "
                f"{math.log(clusters):.2f} nats), so there is little to predict; is the audio silence, or the "
                "quantizer collapsed?"
            )
        if empty > MOST_EMPTY * clusters:
            raise TrainingError(
                f"labels: {empty} of {clusters} clusters are empty; lower objective.kmeans.clusters, or give more audio"
            )
        logger.info(
            "labels: entropy %.2f of at most %.2f nats, largest of %d clusters %.1f %%, empty %d",
            *(entropy, math.log(clusters), clusters, 100 * largest, empty),
        )
