"""Linear discriminant analysis with a Ledoit-Wolf covariance for each class, from few matrix products.

The same discriminants as scikit-learn's `LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Linear:
    """A linear classifier of K classes."""

    weights: Matrix
    """(D, K)"""
    bias: Matrix
    """(K,)"""

    def scores(self, x: Matrix) -> Matrix:
        """x (N, D) to (N, K); their softmax are the probabilities."""
        return np.asarray(x @ self.weights + self.bias)

    def predict_proba(self, x: Matrix) -> Matrix:
        """Probabilities (N, K) of x (N, D)."""
        return softmax(self.scores(x))


def softmax(scores: Matrix) -> Matrix:
    """Of scores (N, K), over the classes."""
    shares: Matrix = np.exp(scores - scores.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    return shares


def fit_lda(x: Matrix, targets: NDArray[np.int64]) -> Linear:
    """Discriminants of x (N, D) with targets (N,) in 0..K-1, each of which occurs; priors are the classes' shares.

    The covariance is the mean, weighted by priors, of the classes' own, each shrunk towards its diagonal by the formula
    of Ledoit & Wolf (2004) on standardised features. It enters as one product over all rows, each scaled by its class's
    share that is kept. The shrinkage needs the squared norm of a class's covariance, which is that of its (n, n) Gram
    matrix too: the smaller one is computed.
    """
    order = np.argsort(targets, kind="stable")
    targets, x = targets[order], x[order]
    counts = np.bincount(targets)
    ends = np.cumsum(counts)
    means = np.add.reduceat(x, ends - counts, axis=0) / counts[:, None]
    centred = x - means[targets]
    diagonal = np.zeros(x.shape[1])
    for start, end, mean in zip(ends - counts, ends, means, strict=True):
        part = centred[start:end]
        spread = _spread(part, mean)
        shrinkage, level = _ledoit_wolf(part / spread)
        diagonal += (end - start) / len(x) * shrinkage * level * spread**2
        part *= np.sqrt((1 - shrinkage) / len(x))
    covariance = centred.T @ centred
    covariance[np.diag_indices_from(covariance)] += diagonal
    weights = _solve(covariance, means.T)
    return Linear(weights, np.log(counts / len(x)) - 0.5 * (means.T * weights).sum(0))


def _spread(centred: Matrix, mean: Matrix) -> Matrix:
    """Standard deviations (D,) of centred rows; 1 for features that are constant but for rounding."""
    count, eps = len(centred), np.finfo(np.float64).eps
    variance = np.einsum("nd,nd->d", centred, centred) / count
    constant = variance <= count * eps * variance + (count * mean * eps) ** 2
    return np.where(constant, 1.0, np.sqrt(variance))


def _ledoit_wolf(z: Matrix) -> tuple[float, float]:
    """Shrinkage, from 0 to 1, of the covariance of centred rows z (n, D), and the level it is shrunk to."""
    count, dim = z.shape
    energies = np.einsum("nd,nd->n", z, z)
    level = float(energies.sum()) / count / dim
    if dim == 1:
        return 0.0, level
    gram = z @ z.T if count < dim else z.T @ z
    norm = float(np.vdot(gram, gram)) / count**2  # squared Frobenius norm of the covariance
    noise = (float(energies @ energies) / count - norm) / (dim * count)
    distance = norm / dim - level**2
    noise = min(noise, distance)
    return (0.0 if noise == 0 else noise / distance), level


def _solve(covariance: Matrix, means: Matrix) -> Matrix:
    """Covariance (D, D) into means (D, K), by Cholesky; the shortest solution where it is singular."""
    eps = len(covariance) * np.finfo(np.float64).eps
    try:
        factor = linalg.cho_factor(covariance, lower=True, check_finite=False)
        pivots = np.diag(factor[0])
        if (pivots.min() / pivots.max()) ** 2 > eps:
            return np.asarray(linalg.cho_solve(factor, means, check_finite=False))
    except linalg.LinAlgError:
        pass
    return np.asarray(linalg.lstsq(covariance, means)[0])
