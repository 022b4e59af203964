"""The edit distance (Levenshtein 1966) of many pairs of sequences at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

CELLS = 2**22
"""Numbers in a block of pairs; bounds the memory."""

Codes = NDArray[np.int64]


def edit_distances(hypotheses: Sequence[Codes], references: Sequence[Codes]) -> Codes:
    """(N,) fewest substitutions, deletions and insertions that make each hypothesis its reference; codes are >= 0."""
    widest = max((len(reference) for reference in references), default=0) + 1
    block = max(1, CELLS // widest)
    starts = range(0, len(references), block)
    blocks = [_distances(hypotheses[start : start + block], references[start : start + block]) for start in starts]
    return np.concatenate([np.empty(0, np.int64), *blocks])


def _distances(hypotheses: Sequence[Codes], references: Sequence[Codes]) -> Codes:
    """One row of the usual table for all pairs side by side; a step of the loop is a symbol of the hypotheses.

    Insertions run along the row: d[j] = min over i <= j of c[i] + (j - i), which is a running minimum of c[i] - i.
    """
    lengths = np.array([len(hypothesis) for hypothesis in hypotheses])
    order = np.argsort(-lengths, kind="stable")  # then the pairs that have a symbol left stand in front
    hypothesis, reference = _padded([hypotheses[row] for row in order]), _padded([references[row] for row in order])
    columns = np.arange(reference.shape[1] + 1)
    table = np.tile(columns, (len(order), 1))
    for step in range(hypothesis.shape[1]):
        left = int((lengths > step).sum())
        before = table[:left]
        now = before + 1
        np.minimum(now[:, 1:], before[:, :-1] + (reference[:left] != hypothesis[:left, step, None]), out=now[:, 1:])
        table[:left] = np.minimum.accumulate(now - columns, axis=1) + columns
    distances = np.empty(len(order), np.int64)
    distances[order] = table[np.arange(len(order)), [len(references[row]) for row in order]]
    return distances


def _padded(sequences: Sequence[Codes]) -> Codes:
    """(N, longest), -1 past the ends; what stands there reaches no distance that is read."""
    padded = np.full((len(sequences), max(map(len, sequences), default=0)), -1, np.int64)
    for row, sequence in enumerate(sequences):
        padded[row, : len(sequence)] = sequence
    return padded
