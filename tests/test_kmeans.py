"""K-means against scikit-learn's, on blobs whose places are known, and on streams that go wrong."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor

from auricle.errors import TrainingError
from auricle.nn.kmeans import Clusters, KMeansConfig, fit, in_blocks, nearest, seeds


def blobs(count: int, dim: int, rows: int, spread: float = 0.05, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Places (count, dim) at least 1 apart, rows (N, dim) around them, and of which each row is."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.randn(count, dim, generator=generator) * 8
    assert torch.pdist(places).min() > 1
    owner = torch.randint(count, (rows,), generator=generator)
    return places, places[owner] + spread * torch.randn(rows, dim, generator=generator), owner


def shuffled_forever(rows: Tensor, size: int = 97) -> itertools.chain:
    """The rows in parts, in another order each time round."""
    generator = torch.Generator().manual_seed(1)
    epochs = (rows[torch.randperm(len(rows), generator=generator)].split(size) for _ in itertools.count())
    return itertools.chain.from_iterable(epochs)


def inertia(rows: Tensor, centroids: Tensor) -> float:
    return float(torch.cdist(rows.double(), centroids.double()).square().amin(1).mean())


@pytest.mark.parametrize("middle", [0, 20, 3000])
def test_nearest_is_the_nearest(middle):
    torch.manual_seed(0)
    rows, centroids = torch.randn(7, 50, 5) * 3 + middle, torch.randn(11, 5) * 3 + middle
    labels, distances = nearest(rows, centroids)
    slow = torch.stack([(rows.double() - centroid.double()).square().sum(-1) for centroid in centroids], -1)
    assert torch.equal(labels, slow.argmin(-1))
    torch.testing.assert_close(distances.double(), slow.amin(-1), rtol=1e-3, atol=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest(rows, centroids)[0], labels)


def test_planted_blobs_are_found():
    places, rows, owner = blobs(20, 6, 4000)
    torch.manual_seed(0)
    centroids = fit(in_blocks(shuffled_forever(rows), 500), KMeansConfig(clusters=20, rows=500, inits=3, batches=30))
    distance, match = torch.cdist(places, centroids).min(1)
    assert len(set(match.tolist())) == 20
    assert distance.max() < 0.03  # standard error of a mean of some 750 rows: 0.05 / sqrt(750) a channel
    assert torch.equal(nearest(rows, centroids)[0], match[owner])


@pytest.mark.parametrize("kind", ["noise", "heavy tails"])
def test_as_good_as_scikit_learn(kind):
    torch.manual_seed(0)
    rows = torch.randn(12_000, 12) @ torch.randn(12, 12)
    if kind == "heavy tails":
        rows = rows * torch.rand(len(rows), 1).pow(-0.4)
    theirs = MiniBatchKMeans(
        40, batch_size=1000, max_iter=100, n_init=5, tol=0.0, max_no_improvement=100, reassignment_ratio=0.0,
        random_state=0,
    ).fit(rows.numpy())  # fmt: skip
    found = [
        inertia(rows, fit(in_blocks(shuffled_forever(rows), 1000), KMeansConfig(clusters=40, rows=1000, inits=5)))
        for _ in range(2)
    ]
    wanted = inertia(rows, torch.from_numpy(theirs.cluster_centers_))
    assert max(found) < 1.02 * wanted
    random = inertia(rows, rows[torch.randperm(len(rows))[:40]])
    assert random > 1.15 * wanted  # control: the bound above tells good centroids from any


def test_seeds_are_rows_spread_as_the_blobs_are():
    places, rows, owner = blobs(30, 4, 1500)
    torch.manual_seed(0)
    chosen = seeds(rows, 30, inits=4)
    numbers = (chosen[:, None] == rows).all(2).nonzero()[:, 1]
    assert len(numbers) == 30  # each is a row
    assert len(set(owner[numbers].tolist())) == 30  # of a blob of its own
    assert torch.cdist(places, chosen).amin(1).max() < 0.5


def test_more_seedings_are_no_worse():
    torch.manual_seed(0)
    rows = torch.randn(800, 3) * torch.rand(800, 1).pow(-0.7)

    def mean(inits: int) -> float:
        return sum(inertia(rows, seeds(rows, 12, inits)) for _ in range(10)) / 10

    assert mean(12) < mean(1)


def test_the_generator_decides():
    _, rows, _ = blobs(9, 3, 900, spread=1.0)
    config = KMeansConfig(clusters=9, rows=200, inits=2, batches=20)

    def found(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return fit(in_blocks(shuffled_forever(rows), 200), config)

    assert torch.equal(found(0), found(0))
    assert not torch.equal(found(0), found(1))


def test_a_centroid_nobody_chose_moves_where_rows_are():
    """The seeds are all one point, as of digital silence; what comes later is spread out."""
    places, rows, _ = blobs(8, 3, 2000)
    silence = [torch.zeros(100, 3)] * 3
    torch.manual_seed(0)
    stream = itertools.chain(silence, shuffled_forever(rows))
    centroids = fit(in_blocks(stream, 100), KMeansConfig(clusters=20, rows=100, inits=2, batches=60))
    assert torch.cdist(places, centroids).amin(1).max() < 0.3
    assert centroids.abs().amax(1).min() < 0.5  # silence keeps one, less the rows it took before others came


def test_it_stops_when_nothing_improves_or_when_told():
    _, rows, _ = blobs(4, 2, 400)
    taken = []

    def counted():
        for block in in_blocks(shuffled_forever(rows), 50):
            taken.append(len(block))
            yield block

    fit(counted(), KMeansConfig(clusters=4, rows=50, inits=1, batches=17))
    assert len(taken) == 17
    taken.clear()
    fit(counted(), KMeansConfig(clusters=4, rows=50, inits=1, batches=10_000, patience=5))
    assert len(taken) < 1000


@pytest.mark.parametrize("sizes", [[3, 1, 8, 2], [20], [1] * 11, [0, 5, 0]])
def test_blocks_hold_the_same_rows(sizes):
    parts = [torch.randn(size, 2) for size in sizes]
    blocks = list(in_blocks(parts, 4))
    assert all(len(block) == 4 for block in blocks[:-1])
    assert 0 < len(blocks[-1]) <= 4
    assert torch.equal(torch.cat(blocks), torch.cat(parts))


def test_clusters_label_and_count():
    places, rows, owner = blobs(6, 4, 3000)
    rows, owner = rows[owner > 1], owner[owner > 1]  # four blobs, unequal: one of them half as often
    keep = (owner != 2) | (torch.arange(len(owner)) % 2 == 0)
    rows, owner = rows[keep], owner[keep]
    torch.manual_seed(0)
    clusters = Clusters(4, KMeansConfig(clusters=4, rows=200, inits=4, batches=50))
    clusters.fit(shuffled_forever(rows))
    match = clusters(places[2:])
    assert torch.equal(match[owner - 2], clusters(rows))
    assert clusters.counts.sum() >= 10 * 200
    shares = torch.bincount(clusters(rows), minlength=4) / len(rows)
    torch.testing.assert_close(clusters.surprise(torch.arange(4)), -shares.log(), atol=0.15, rtol=0)
    total = clusters.counts.sum()
    torch.testing.assert_close(clusters.surprise(torch.tensor([1]))[0], -((clusters.counts[1] + 1) / (total + 4)).log())
    assert (clusters.surprise(torch.arange(4)).neg().exp().sum() - 1).abs() < 1e-6


def test_a_label_never_counted_has_a_finite_surprise():
    clusters = Clusters(2, KMeansConfig(clusters=3))
    clusters.counts.copy_(torch.tensor([98, 0, 0]))
    assert clusters.surprise(torch.tensor([1])).item() == pytest.approx(math.log(101), abs=1e-6)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (torch.zeros(500, 3), "100% of the frames are of one of 8 clusters"),
        (torch.cat([torch.zeros(990, 3), torch.randn(10, 3)]), "frames are of one of 8 clusters"),
        (torch.eye(3).repeat(200, 1), "5 of 8 clusters are empty; lower objective.kmeans.clusters"),
        (torch.full((500, 3), torch.nan), "not finite"),
    ],
    ids=["silence", "nearly silence", "three points", "nan"],
)
def test_labels_that_teach_nothing_are_refused(rows, words):
    torch.manual_seed(0)
    clusters = Clusters(3, KMeansConfig(clusters=8, rows=100, inits=2, batches=10))
    with pytest.raises(TrainingError, match=words):
        clusters.fit(shuffled_forever(rows))
