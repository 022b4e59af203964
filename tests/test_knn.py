"""Nearest neighbours against a loop and scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from auricle.evaluation.probes.heads import Examples, ProbeConfig
from auricle.evaluation.probes.knn import knn


def by_hand(train: np.ndarray, goals: np.ndarray, x: np.ndarray) -> np.ndarray:
    distance, rows = NearestNeighbors(n_neighbors=10, metric="cosine").fit(train).kneighbors(x)
    weights = np.exp((1 - distance) / 0.07)
    weights /= weights.sum(1, keepdims=True)
    return np.einsum("nk,nkc->nc", weights, goals[rows])


@pytest.mark.parametrize("kind", ["classes", "labels", "values"])
def test_answers_are_those_of_scikit_learns_neighbours(kind):
    rng = np.random.default_rng(0)
    codes = rng.integers(3, size=90)
    x = rng.standard_normal((90, 6)) + 2 * np.eye(6)[codes]
    goals = {"classes": np.eye(3)[codes], "labels": (rng.random((90, 4)) < 0.4) * 1.0, "values": x[:, :1]}[kind]
    targets = torch.from_numpy(codes if kind == "classes" else goals.squeeze()).to(
        torch.int64 if kind == "classes" else torch.float32
    )
    noise = torch.from_numpy(rng.standard_normal((90, 6))).float()
    layers = {0: noise, 1: torch.from_numpy(x).float()}
    parts = [
        Examples({layer: values[rows] for layer, values in layers.items()}, targets[rows])
        for rows in (slice(0, 50), slice(50, 90))
    ]
    fitted = knn(ProbeConfig(layers=(1,) if kind == "labels" else "all")).fit(
        kind, *parts, balanced=False, device="cpu"
    )
    assert fitted.layers == (1,)
    expected = by_hand(x[:50], goals[:50], x[50:])
    found = fitted.predict(parts[1].layers)[0]
    np.testing.assert_allclose(found if kind != "values" else found[:, None], expected, atol=1e-4)
    if kind == "classes":
        accuracy = (expected.argmax(1) == codes[50:]).mean()
        assert fitted.choice.dev == pytest.approx((accuracy,))
    np.testing.assert_allclose(np.linalg.norm(fitted.view(parts[1].layers), axis=1), 1, atol=1e-6)


def test_of_ties_the_earlier_examples_count():
    x = torch.tensor([[1.0, 0.0]] * 14 + [[0.0, 1.0]] * 3)
    targets = torch.tensor([0] * 9 + [1] * 5 + [2] * 3)
    part = Examples({0: x}, targets)
    found = knn(ProbeConfig()).fit("classes", part, part).predict({0: torch.tensor([[2.0, 0.0]])})
    np.testing.assert_allclose(found[0, 0], [0.9, 0.1, 0.0], atol=1e-6)


def test_fewer_examples_than_neighbours():
    part = Examples({0: torch.eye(3)}, torch.arange(3))
    fitted = knn(ProbeConfig()).fit("classes", part, part)
    assert fitted.choice.dev == (1.0,)
    assert fitted.predict({0: torch.zeros(0, 3)}).shape == (1, 0, 3)
