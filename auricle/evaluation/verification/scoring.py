"""Scores of trials: cosines of clip embeddings, of the best pair of streams, and their adaptive normalisation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from auricle.errors import EvaluationError

Vectors = NDArray[np.float32]
"""(N, C, E): of each clip C unit vectors, one where the talkers are not told apart; NaN where there is none."""
Array = NDArray[np.float64]
NUMBERS = 2**22
"""Numbers compared at once; bounds memory."""


def unit(vectors: Vectors, mean: Vectors | None = None) -> Vectors:
    """(N, C, E) divided by their lengths, after `mean` (E,) is subtracted; a vector of zeros stays."""
    shifted = vectors if mean is None else vectors - mean
    length = np.linalg.norm(shifted, axis=-1, keepdims=True)
    return np.asarray(shifted / np.maximum(length, np.finfo(np.float32).tiny), np.float32)


def cosines(enrol: Vectors, test: Vectors, pairs: NDArray[np.int64]) -> Array:
    """Scores (n,) of `pairs` (n, 2), rows of `enrol` and `test`: the greatest cosine of any stream with any stream.

    NaN streams do not take part; a pair with no streams on a side scores NaN.
    """
    block = max(1, NUMBERS // (enrol.shape[1] * enrol.shape[2] + test.shape[1] * test.shape[2]))
    scores = np.empty(len(pairs))
    for start in range(0, len(pairs), block):
        one, other = pairs[start : start + block].T
        products = np.einsum("nce,nde->ncd", enrol[one], test[other], dtype=np.float64)
        scores[start : start + block] = _greatest(products.reshape(len(one), -1))
    return scores


def nearest_stream(mixed: Vectors, clean: Vectors) -> Vectors:
    """Of each mixture's streams (N, C, E) the one nearest to any stream of its target's recording alone: (N, 1, E)."""
    products = np.einsum("nce,nde->ncd", mixed, clean).max(2)
    return np.take_along_axis(mixed, products.argmax(1)[:, None, None], 1)


def cohort_statistics(vectors: Vectors, cohort: Vectors, top: int) -> tuple[Array, Array]:
    """Mean and standard deviation (N,) of each clip's `top` highest scores against the cohort (M, C, E)."""
    if not 2 <= top <= len(cohort):
        raise EvaluationError(f"as_norm: {top} is not between 2 and the {len(cohort)} clips of the cohort")
    count, streams, _ = vectors.shape
    flat = cohort.reshape(-1, cohort.shape[2]).T  # (E, M * C)
    mean, std = np.empty(count), np.empty(count)
    block = max(1, NUMBERS // (streams * flat.shape[1]))
    for start in range(0, count, block):
        some = vectors[start : start + block].astype(np.float64)
        products = (some @ flat).reshape(len(some), streams, len(cohort), -1)
        scores = _greatest(products.swapaxes(1, 2).reshape(len(some) * len(cohort), -1)).reshape(len(some), -1)
        highest = np.partition(scores, -top, axis=1)[:, -top:]
        mean[start : start + block], std[start : start + block] = highest.mean(1), highest.std(1)
    return mean, std


def as_norm(scores: Array, pairs: NDArray[np.int64], enrol: tuple[Array, Array], test: tuple[Array, Array]) -> Array:
    """Adaptive symmetric normalisation of `scores` (n,): the mean of both sides' distances from what is usual there.

    `enrol` and `test` are `cohort_statistics` of the sides' clips, of a cohort of utterances (means of speakers would
    need labels). Matejka et al. 2017, Analysis of score normalization in multilingual speaker recognition, Interspeech.
    """
    normalised = np.zeros(len(scores))
    for (mean, std), rows in zip((enrol, test), pairs.T, strict=True):
        normalised += (scores - mean[rows]) / np.maximum(std[rows], 1e-9) / 2
    return normalised


def _greatest(values: Array) -> Array:
    """The maximum (n,) of rows (n, K), NaN aside; NaN where all are."""
    filled = np.where(np.isnan(values), -np.inf, values).max(1)
    return np.where(np.isneginf(filled), np.nan, filled)
