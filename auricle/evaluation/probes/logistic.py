"""Multinomial logistic regression with hardly any regularisation, to convergence.

On embeddings the problem is badly conditioned, and where the classes can be separated the weights grow until the
penalty stops them. Newton's method stands that: its steps are found by conjugate gradients on a preconditioner, the
Gram matrix of the features weighted by how undecided each row is, which is made anew when it serves badly. The line
search is exact and costs no matrix product, since scores are linear along it. Gradients are in float64; steps, which
need be no better than roughly right, are found in float32, or in float64 where that proves too rough.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from auricle.errors import EvaluationError
from auricle.evaluation.probes.lda import Linear, Matrix

Rough = NDArray[np.float32] | Matrix

ENOUGH = 3e-4
"""Share of the objective that the last step was expected to gain; what is left is some thirty times less."""
FORCING = 0.2
"""How far conjugate gradients shrink the residual's norm (the preconditioner's) before a step is taken."""
REFRESH = 12
"""Conjugate gradient steps after which the next Newton step gets a new preconditioner."""
FLOOR = 0.01
"""Weight of decided rows in the preconditioner, as a share of the mean."""
MAX_NEWTON, MAX_CG = 100, 100


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


def fit_logistic(
    x: Matrix, targets: NDArray[np.int64], weights: Matrix | None = None, c: float = 1e5, start: Linear | None = None
) -> Linear:
    """The minimum of `objective` for x (N, D) with targets (N,) in 0..K-1, each of which occurs, and weights (N,).

    `start` saves steps: discriminants, or the solution for other weights.
    """
    mean = x.mean(0)
    centred = x - mean
    basis, features = _reduced(centred)
    unit = float(np.sqrt(np.square(features).mean())) or 1.0
    features = np.concatenate([features, np.full((len(x), 1), unit)], 1)  # the last one's weights are the intercept
    classes = int(targets.max()) + 1
    w = np.zeros((classes, features.shape[1]))
    if start is not None:
        first = start.weights if basis is None else linalg.solve_triangular(basis, centred @ start.weights, lower=True)
        w[:, :-1], w[:, -1] = first.T, (start.bias + mean @ start.weights) / unit
    penalty = np.full(w.shape[1], (2.0 if classes == 2 else 1.0) / c)
    penalty[-1] = 0
    w = _Problem(features, targets, np.ones(len(x)) if weights is None else weights, penalty).minimise(w)
    bias, w = w[:, -1] * unit, w[:, :-1].T
    w = w if basis is None else centred.T @ linalg.solve_triangular(basis, w, lower=True, trans="T")
    return Linear(w, bias - mean @ w)


def _reduced(x: Matrix) -> tuple[Matrix | None, Matrix]:
    """x (N, D) itself, or with fewer rows than features the Cholesky factor (N, N) of x xᵀ, twice.

    Weights in the span of the rows of x are as long as those of the factor's columns with the same scores, and at the
    minimum they lie there: the smaller problem is the same one.
    """
    if len(x) >= x.shape[1]:
        return None, x
    gram = x @ x.T
    factor = _cholesky(gram, 1e-13)
    return factor, factor


def _cholesky(gram: NDArray[Any], ridge: float) -> NDArray[Any]:
    """Lower factor of a Gram matrix, with the least of a growing share of its mean diagonal added that allows it."""
    corner = np.diag_indices_from(gram)
    size = gram[corner].mean()
    while ridge < 1:
        gram[corner] += ridge * size
        try:
            return np.asarray(linalg.cholesky(gram, lower=True, check_finite=False))
        except linalg.LinAlgError:
            ridge *= 10
    raise EvaluationError("logistic regression: the embeddings are constant or not finite")


class _Problem:
    """Features x (N, D + 1), targets and weights s (N,), and the penalty (D + 1,) of each feature's squared weights.

    Arrays are (K, N) and (K, D + 1): sums over the classes then run along contiguous rows.
    """

    def __init__(self, x: Matrix, targets: NDArray[np.int64], s: Matrix, penalty: Matrix) -> None:
        self.x, self.targets, self.s, self.penalty = x, targets, s, penalty
        self.rough: Any = x.astype(np.float32)

    def minimise(self, w: Matrix) -> Matrix:
        """Weights (K, D + 1) at the minimum, from w."""
        z = self.margins(w @ self.x.T)
        factor, count = None, 0
        for _ in range(MAX_NEWTON):
            p, value = self.probabilities(w, z)
            gradient = self.gradient(w, p)
            if factor is None or count > REFRESH:
                factor = self.preconditioner(p)
            direction, count = self.newton(p, gradient, factor)
            gain = -float(np.vdot(gradient, direction))
            if (count == MAX_CG or not gain > 0) and self.rough is not self.x:  # more than float32 can do
                self.rough, factor = self.x, None
                continue
            if not gain > 0:  # at the minimum, but for rounding
                return w
            along = self.margins(direction @ self.x.T)
            length = self.line(w, z, along, direction, 1.0)
            w = w + length * direction
            z = z + length * along
            if gain < ENOUGH * value:
                return w
        return w

    def margins(self, scores: Matrix) -> Matrix:
        """Scores (K, N), less each row's of its own class, so that they stay precise where classes are far apart."""
        return scores - scores[self.targets, np.arange(scores.shape[1])]

    def probabilities(self, w: Matrix, z: Matrix) -> tuple[Matrix, float]:
        """Of the classes (K, N) at margins z (K, N), and the objective."""
        top = z.max(0)
        p = np.exp(z - top)
        total = p.sum(0)
        p /= total
        return p, float(self.s @ (np.log(total) + top)) + 0.5 * float(np.square(w).sum(0) @ self.penalty)

    def gradient(self, w: Matrix, p: Matrix) -> Matrix:
        """(K, D + 1), where the probabilities are p (K, N)."""
        slope = p * self.s
        slope[self.targets, np.arange(p.shape[1])] -= self.s
        return np.asarray(slope @ self.x + self.penalty * w)

    def preconditioner(self, p: Matrix) -> Rough:
        """Cholesky factor (D + 1, D + 1) of the features' Gram matrix, rows weighted by how undecided they are."""
        kind = self.rough.dtype
        undecided = self.s * (1 - np.square(p).sum(0))
        undecided += FLOOR * undecided.mean()
        size = undecided.mean()
        rows = self.rough * np.sqrt(undecided / size)[:, None].astype(kind)
        gram = rows.T @ rows
        gram[np.diag_indices_from(gram)] += (self.penalty / size).astype(kind)
        return _cholesky(gram, 1e-7 if kind == np.float32 else 1e-12)

    def newton(self, p: Matrix, gradient: Matrix, factor: Rough) -> tuple[Matrix, int]:
        """Newton's step (K, D + 1), about, by preconditioned conjugate gradients, and how many steps they took."""
        kind = self.rough.dtype
        size = float(np.abs(gradient).max()) or 1.0
        probabilities, curvature = p.astype(kind), (p * self.s / size).astype(kind)  # in float32's range
        penalty = (self.penalty / size).astype(kind)
        residual = (-gradient / size).astype(kind)
        direction = np.zeros_like(residual)
        solved = search = self.solve(factor, residual)
        product = first = float(np.vdot(residual, solved))
        count = 0
        while count < MAX_CG:
            count += 1
            scores = search @ self.rough.T
            scores -= (probabilities * scores).sum(0)
            bent = (curvature * scores) @ self.rough + penalty * search
            length = kind.type(product / float(np.vdot(search, bent)))
            direction += length * search
            residual -= length * bent
            solved = self.solve(factor, residual)
            before, product = product, float(np.vdot(residual, solved))
            if product <= FORCING**2 * first:
                break
            search = solved + kind.type(product / before) * search
        return direction.astype(np.float64), count

    def solve(self, factor: Rough, v: Rough) -> Any:
        """The preconditioner's inverse times v (K, D + 1)."""
        solved: Any = linalg.cho_solve((factor, True), v.T, check_finite=False)
        return np.asarray(solved.T, v.dtype)

    def line(self, w: Matrix, z: Matrix, along: Matrix, direction: Matrix, length: float) -> float:
        """How far to go along a direction to minimise the objective: Newton's method, begun at `length`."""
        slope, bend = (float((v * direction).sum(0) @ self.penalty) for v in (w, direction))
        low, high = 0.0, math.inf
        for _ in range(50):
            p = z + length * along
            p -= p.max(0)
            np.exp(p, out=p)
            total = p.sum(0)
            p *= along
            mean = p.sum(0) / total
            p *= along
            first = slope + length * bend + float(self.s @ mean)
            second = bend + float(self.s @ (p.sum(0) / total - mean**2))
            low, high = (length, high) if first < 0 else (low, length)
            goal = length - first / second if second > 0 else math.inf
            if abs(goal - length) < 0.1 * length:
                return goal
            if not low < goal < high:  # Newton's method may jump to and fro where the curvature changes much
                goal = (low + high) / 2 if high < math.inf else 4 * length
            length = min(goal, 4 * length)
        return length
