"""Error rates of accepting and refusing trials: equal error rate, detection cost, DET curve, speaker bootstrap.

A trial is accepted where its score exceeds a threshold t: FNR(t) = P(target ≤ t), FPR(t) = P(non-target > t), with t at
−∞ and at every distinct score, so that trials of equal score are accepted or refused together.

- Equal error rate: FNR and FPR where they cross, interpolated linearly between the two thresholds on either side of
  the sign change of FNR − FPR (neither their mean nor their maximum, which others report, at the nearest threshold).
- Detection cost, normalised: min over t of [p FNR + (1 − p) FPR] / min(p, 1 − p), for a prior p of targets and costs
  of 1; a system that hears nothing has 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from auricle.errors import EvaluationError

Array = NDArray[np.float64]
PRIORS = {"min_dcf_0.01": 0.01, "min_dcf_0.05": 0.05}
"""Detection costs by name, and the prior of targets in each."""
MEASURES = ("eer", *PRIORS)
CELLS = 2**22
"""Numbers in a block of trial weights; bounds the memory of a bootstrap."""


@dataclass(frozen=True)
class Det:
    """Detection error trade-off: error rates at G + 1 thresholds, −∞ and the distinct scores in ascending order."""

    thresholds: Array
    """(G + 1,)."""
    fnr: Array
    """(G + 1,) share of target trials refused: from 0 to 1."""
    fpr: Array
    """(G + 1,) share of non-target trials accepted: from 1 to 0."""


def det_curve(scores: ArrayLike, target: ArrayLike) -> Det:
    """The curve of N trials' `scores` (N,), `target` (N,) telling same from different speakers. One sort, O(N) memory.

    Raises `EvaluationError` for scores that are not finite, and without trials of both kinds.
    """
    ranked = _Ranked.of(scores, target)
    fnr, fpr = ranked.rates(np.ones((1, len(ranked.same))), np.ones((1, len(ranked.other))))
    return Det(ranked.thresholds, fnr[0], fpr[0])


def equal_error_rate(scores: ArrayLike, target: ArrayLike) -> float:
    """The equal error rate, 0 to 1, by the rule above; arguments and errors as `det_curve`."""
    curve = det_curve(scores, target)
    return float(_crossing(curve.fnr[None], curve.fpr[None])[0])


def min_dcf(scores: ArrayLike, target: ArrayLike, prior: float = 0.01) -> float:
    """The least normalised detection cost, 0 to 1, at a `prior` of targets; arguments and errors as `det_curve`."""
    curve = det_curve(scores, target)
    return float(_least_cost(curve.fnr[None], curve.fpr[None], prior)[0])


def trial_scorer(
    metric: str, scores: Array, target: NDArray[Any], enrol: NDArray[np.int64], test: NDArray[np.int64]
) -> Callable[[Array], Array]:
    """`eer`, `min_dcf_0.01` or `min_dcf_0.05` as a function of speaker weights (R, U) to (R,).

    `enrol` and `test` (N,) are the speakers, 0 to U − 1, of a trial's sides. Resampling goes both ways at once: a
    speaker drawn w times stands for w people, so that a target trial counts w times and a non-target one of speakers
    a and b counts w_a · w_b times. A resample without trials of both kinds scores NaN.
    """
    ranked = _Ranked.of(scores, target)
    same, one, other = enrol[ranked.same], enrol[ranked.other], test[ranked.other]
    rows = max(1, CELLS // len(scores))

    def score(weights: Array) -> Array:
        values = []
        for start in range(0, len(weights), rows):
            block = weights[start : start + rows]
            fnr, fpr = ranked.rates(block[:, same], block[:, one] * block[:, other])
            values.append(_crossing(fnr, fpr) if metric == "eer" else _least_cost(fnr, fpr, PRIORS[metric]))
        return np.concatenate(values)

    return score


@dataclass(frozen=True)
class _Ranked:
    """Target and non-target trials, each in ascending order of score, and the thresholds between them."""

    same: NDArray[np.int64]
    """(N₁,) target trials."""
    other: NDArray[np.int64]
    """(N₀,) non-target trials."""
    thresholds: Array
    """(G + 1,)."""
    same_refused: NDArray[np.int64]
    """(G + 1,) how many target trials score at most a threshold."""
    other_refused: NDArray[np.int64]
    """(G + 1,) how many non-target trials do."""

    @classmethod
    def of(cls, scores: ArrayLike, target: ArrayLike) -> _Ranked:
        values, hit = np.asarray(scores, np.float64), np.asarray(target, bool)
        if not np.isfinite(values).all():
            raise EvaluationError("trials: there are scores that are NaN or infinite")
        if hit.all() or not hit.any():
            raise EvaluationError("trials: target and non-target trials are needed, and all are of one kind")
        order = np.argsort(values)
        ranked, hit = values[order], hit[order]
        last = np.flatnonzero(np.append(np.diff(ranked) > 0, True))  # trials of equal score are one step
        targets = np.cumsum(hit)[last]
        thresholds = np.concatenate([[-np.inf], ranked[last]])
        same_refused, other_refused = (np.concatenate([[0], count]) for count in (targets, last + 1 - targets))
        return cls(order[hit], order[~hit], thresholds, same_refused, other_refused)

    def rates(self, same: Array, other: Array) -> tuple[Array, Array]:
        """FNR and FPR (R, G + 1) where the trials weigh (R, N₁) and (R, N₀); NaN in rows that lack a kind."""
        with np.errstate(invalid="ignore"):
            fnr = _share(same)[:, self.same_refused]
            fpr = 1 - _share(other)[:, self.other_refused]
        return fnr, fpr


def _share(weights: Array) -> Array:
    """The share (R, N + 1) of all weight (R, N) that the first 0, 1, ... N have."""
    total = np.cumsum(weights, axis=1)
    share: Array = np.concatenate([np.zeros((len(total), 1)), total], 1) / total[:, -1:]
    return share


def _crossing(fnr: Array, fpr: Array) -> Array:
    """Where the rates (R, G + 1) are equal: (R,)."""
    gap = fnr - fpr  # from −1 to 1, never falling
    after = (gap >= 0).argmax(1)[:, None]
    before = np.maximum(after - 1, 0)
    low, high = np.take_along_axis(gap, before, 1), np.take_along_axis(gap, after, 1)
    start, end = np.take_along_axis(fnr, before, 1), np.take_along_axis(fnr, after, 1)
    with np.errstate(invalid="ignore"):
        rate: Array = (start + (end - start) * -low / (high - low))[:, 0]
    return np.where(np.isnan(gap).any(1), np.nan, rate)


def _least_cost(fnr: Array, fpr: Array, prior: float) -> Array:
    cost: Array = (prior * fnr + (1 - prior) * fpr).min(1) / min(prior, 1 - prior)
    return cost
