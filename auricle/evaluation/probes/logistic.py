"""Multinomial logistic regression with hardly any regularisation, to convergence.

On embeddings the problem is badly conditioned, and where the classes can be separated the weights grow until the
penalty stops them. L-BFGS stands that, given the inverse of the features' Gram matrix as first guess of the curvature
and a short memory, since the curvature changes as the margins grow. The line search is exact and costs no matrix
product: scores are linear along it. Products are in float32, or in float64 where that proves too rough; all else is in
float64. In the loop NumPy alone does them: another library's threads would wait for the cores that its own hold.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack
from threadpoolctl import threadpool_limits

from auricle.errors import EvaluationError
from auricle.evaluation.probes.lda import Linear, Matrix

ENOUGH = 1e-4
"""Share of the objective that may be left, by a bound; what is left is some four times less."""
IDLE, STALLED = 10, 2e-5
"""Where the bound is loose: steps that together gained less than this share of the objective end the descent."""
SMALL = 10**8
"""Multiplications of a product below which threads would wait for each other longer than they work."""
MEMORY = 5
"""Steps whose curvature is remembered."""
RIDGE = 0.3
"""Added to the Gram matrix's diagonal, as a share of its mean."""
FLAT = 0.1
"""Slope at which the line search ends, as a share of the first."""
MAX_STEPS = 2000


def balanced_weights(targets: NDArray[np.int64]) -> Matrix:
    """Weights (N,) that give each class of targets (N,) the same total, and 1 on average."""
    counts = np.bincount(targets)
    weights: Matrix = len(targets) / (np.count_nonzero(counts) * counts[targets])
    return weights


def objective(model: Linear, x: Matrix, targets: NDArray[np.int64], weights: Matrix, c: float) -> float:
    """What is minimised: weighted cross-entropy, summed over rows, plus ||w||² / 2c (scikit-learn's, divided by C).

    The intercept is free. Two classes have one weight vector, the difference of `model`'s two.
    """
    scores = model.scores(x)
    top = scores.max(1)
    losses = np.log(np.exp(scores - top[:, None]).sum(1)) + top - scores[np.arange(len(x)), targets]
    penalty = float((model.weights**2).sum()) * (2 if model.weights.shape[1] == 2 else 1)
    return float(weights @ losses) + penalty / (2 * c)


def fit_logistic(x: Matrix, targets: NDArray[np.int64], *weights: Matrix, c: float = 1e5) -> list[Linear]:
    """The minimum of `objective` for x (N, D), targets (N,) in 0..K-1, all of which occur, for each of `weights` (N,).

    Each begins at the last one's solution and shares its matrices, which saves most of the work.
    """
    few = x.size * (int(targets.max()) + 1) < SMALL
    with threadpool_limits(1 if few else None, user_api="blas"):
        mean = x.mean(0)
        centred = x - mean
        unit = float(np.sqrt(np.square(centred).mean())) or 1.0
        centred /= unit
        basis = None if 2 * len(x) >= x.shape[1] else _factor(centred @ centred.T)
        features = np.concatenate(
            [centred if basis is None else basis, np.ones((len(x), 1))], 1
        )  # the intercept's is 1
        classes = int(targets.max()) + 1
        problem = _Problem(features, targets, (2.0 if classes == 2 else 1.0) / c / unit**2)
        w = np.zeros((classes, features.shape[1]))
        models = []
        for s in weights:
            w = problem.minimise(w, s)
            vectors = (w[:, :-1] if basis is None else np.linalg.solve(basis.T, w[:, :-1].T).T @ centred).T / unit
            models.append(Linear(vectors, w[:, -1] - mean @ vectors))
        return models


def _factor(gram: Matrix) -> Matrix:
    """Lower Cholesky factor (N, N) of x xᵀ for x (N, D), with the least ridge that allows it: it may stand for x.

    Weights in the span of the rows of x are as long as those of the factor's columns with the same scores, and at the
    minimum they lie there: with few rows, the smaller problem is the same one.
    """
    corner = np.diag_indices_from(gram)
    size, ridge = gram[corner].mean(), 1e-13
    while ridge < 1:
        gram[corner] += ridge * size
        try:
            return np.asarray(np.linalg.cholesky(gram))
        except np.linalg.LinAlgError:
            ridge *= 10
    raise EvaluationError("logistic regression: the embeddings are constant or not finite")


class _Problem:
    """Features x (N, D), the last of them 1, targets (N,), and the penalty of each squared weight but the last.

    Weights and gradients are (K, D), scores (K, N): sums over the classes then run along contiguous rows.
    """

    def __init__(self, x: Matrix, targets: NDArray[np.int64], penalty: float) -> None:
        self.exact, self.own = x, (targets, np.arange(len(x)))
        self.x: Any = x.astype(np.float32)
        self.penalty = np.append(np.full(x.shape[1] - 1, penalty), 0.0)
        gram = self.x.T @ self.x
        gram[np.diag_indices_from(gram)] += np.float32(RIDGE) * gram.diagonal().mean()
        lower = lapack.spotri(lapack.spotrf(gram.T, lower=True)[0], lower=True)[0]
        self.inverse: Any = np.tril(lower) + np.tril(lower, -1).T

    def minimise(self, w: Matrix, s: Matrix) -> Matrix:
        """Weights (K, D) at the minimum for rows weighted by s (N,), from w."""
        memory = _Memory(w.size)
        z, step = self.margins(w), w
        values: list[float] = []
        before = None
        for _ in range(MAX_STEPS):
            slope, value = self.slope(w, z, s)
            gradient = self.gradient(w, slope)
            solved = self.solve(gradient)
            if before is not None:
                memory.add(step, gradient - before[0], solved - before[1])
            direction = -memory.times(gradient, solved)
            values.append(value)
            bound = float(np.square(gradient[:, :-1]).sum()) / (2 * self.penalty[0])  # the penalty's curvature is known
            idle = len(values) > IDLE and values[-1 - IDLE] - value < STALLED * value
            descends = float(np.vdot(gradient, direction)) < 0
            if bound < ENOUGH * value or idle or not descends:
                if self.x is self.exact or (descends and self.precise(w, gradient, s)):
                    return w
                self.x, before, memory, values = self.exact, None, _Memory(w.size), []
                z = self.margins(w)
                continue
            along = self.margins(direction)
            length = self.line(w, z, s, along, direction, -float(np.vdot(gradient, direction)))
            before, step = (gradient, solved), length * direction
            w = w + step
            z += length * along
        return w

    def margins(self, w: Matrix) -> Matrix:
        """Scores (K, N), less each row's of its own class, so that they stay precise where classes are far apart."""
        scores: Matrix = (w.astype(self.x.dtype) @ self.x.T).astype(np.float64)
        scores -= scores[self.own]
        return scores

    def slope(self, w: Matrix, z: Matrix, s: Matrix) -> tuple[Matrix, float]:
        """Of the losses by the scores (K, N) at margins z (K, N), and the objective."""
        top = z.max(0)
        slope = np.exp(z - top)
        total = slope.sum(0)
        slope *= s / total
        slope[self.own] -= s
        return slope, float(s @ (np.log(total) + top)) + 0.5 * float(np.square(w).sum(0) @ self.penalty)

    def gradient(self, w: Matrix, slope: Matrix) -> Matrix:
        """(K, D), of the objective by the weights."""
        size = float(np.abs(slope).max()) or 1.0  # in float32's range
        return np.asarray((slope / size).astype(self.x.dtype) @ self.x * size + self.penalty * w)

    def solve(self, gradient: Matrix) -> Matrix:
        """The inverse of the Gram matrix times a gradient (K, D)."""
        size = float(np.abs(gradient).max()) or 1.0
        return np.asarray((gradient / size).astype(np.float32) @ self.inverse * size, np.float64)

    def precise(self, w: Matrix, gradient: Matrix, s: Matrix) -> bool:
        """Whether the gradient by float32 is that by float64, but for less than its half."""
        rough, self.x = self.x, self.exact
        exact = self.gradient(w, self.slope(w, self.margins(w), s)[0])
        self.x = rough
        error = exact - gradient
        return float(np.vdot(error, self.solve(error))) < 0.25 * float(np.vdot(exact, self.solve(exact)))

    def line(self, w: Matrix, z: Matrix, s: Matrix, along: Matrix, direction: Matrix, steep: float) -> float:
        """How far to go along a direction that descends by `steep` at first: Newton's method for the lowest point."""
        slope, bend = (float((v * direction).sum(0) @ self.penalty) for v in (w, direction))
        length, low, high = 1.0, 0.0, math.inf
        for _ in range(50):
            p = z + length * along
            p -= p.max(0)
            np.exp(p, out=p)
            total = p.sum(0)
            p *= along
            mean = p.sum(0) / total
            p *= along
            first = slope + length * bend + float(s @ mean)
            second = bend + float(s @ (p.sum(0) / total - mean**2))
            low, high = (length, high) if first < 0 else (low, length)
            if abs(first) < FLAT * steep:
                return length
            goal = length - first / second if second > 0 else math.inf
            if not low < goal < high:  # Newton's method may jump to and fro where the curvature changes much
                goal = (low + high) / 2 if high < math.inf else 4 * length
            length = min(goal, 4 * length)
        return length


class _Memory:
    """The inverse curvature by the last steps and what they did to the gradient (Byrd, Nocedal & Schnabel 1994).

    It is begun by a matrix H; `solved` is H times what stands before it. Pairs are scaled to a product of 1.
    """

    def __init__(self, size: int) -> None:
        self.steps, self.changes, self.solved = np.zeros((3, 0, size), np.float32)

    def add(self, step: Matrix, change: Matrix, solved: Matrix) -> None:
        """Remember a step, unless rounding hides its curvature, and forget the oldest of too many."""
        product = float(np.vdot(step, change))
        if product > 0:
            rows = (self.steps, step), (self.changes, change), (self.solved, solved)
            self.steps, self.changes, self.solved = (
                np.concatenate([old[1 - MEMORY :], (new / math.sqrt(product)).astype(np.float32).reshape(1, -1)])
                for old, new in rows
            )

    def times(self, gradient: Matrix, solved: Matrix) -> Matrix:
        """The inverse curvature times a gradient."""
        if not len(self.steps):
            return solved
        size = float(np.abs(gradient).max())  # in float32's range
        flat, hit = ((v / size).astype(np.float32).ravel() for v in (gradient, solved))
        upper = np.triu(self.steps @ self.changes.T).astype(np.float64)
        bends = (self.solved @ self.changes.T).astype(np.float64)
        scale = 1 / bends[-1, -1]
        first = np.linalg.solve(upper, self.steps @ flat)
        inner = (np.diag(upper.diagonal()) + scale * bends) @ first - scale * (self.solved @ flat)
        outer = np.linalg.solve(upper.T, inner)
        found = scale * hit + outer.astype(np.float32) @ self.steps - (scale * first).astype(np.float32) @ self.solved
        return np.asarray(found * size, np.float64).reshape(gradient.shape)
