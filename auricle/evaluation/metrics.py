"""Scores of probes, their 95 % intervals, and paired comparisons of encoders.

Intervals are percentile bootstraps over *units*: whole clips, or speakers, voices and the like where a task generalises
over them; never single frames, which are not independent. A metric is therefore a function of unit weights, and the
score itself is its value where every unit weighs 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from auricle.errors import EvaluationError, unknown
from auricle.evaluation.beats import BEAT_METRICS
from auricle.evaluation.events import EVENT_ERRORS, EVENT_METRICS
from auricle.evaluation.verification.metrics import MEASURES, trial_scorer

Kind = Literal["classes", "labels", "values"]
Array = NDArray[np.float64]
Score = Callable[[Array], Array]
"""From weights (R, U), a row per resample and a column per unit, to scores (R,); NaN where a resample has none."""

METRICS: dict[str, Kind] = {
    "accuracy": "classes",
    "balanced_accuracy": "classes",
    "error_rate": "classes",
    "weighted_key": "classes",
    "map": "labels",
    "roc_auc": "labels",
    "r2": "values",
    "mae": "values",
    **dict.fromkeys(EVENT_METRICS, "classes"),
    **dict.fromkeys(BEAT_METRICS, "classes"),
}
"""Name → what it scores. `map` and `roc_auc` are means over labels, `balanced_accuracy` over classes."""

LOWER_IS_BETTER = frozenset({"error_rate", "per", "mae", *MEASURES, *EVENT_ERRORS})
DEFAULTS: dict[Kind, str] = {"classes": "accuracy", "labels": "map", "values": "r2"}
"""The metric of a task that names none."""

CELLS = 2**22
"""Numbers in a block of weights; bounds the memory of a bootstrap."""


@dataclass(frozen=True)
class Outcomes:
    """What heads of S seeds did on N test clips: all that a metric needs."""

    unit: NDArray[np.int64]
    """(N,) unit of each clip, 0 to U - 1."""
    target: NDArray[np.generic]
    """(N,) classes, (N, K) labels in {0, 1}, or (N,) values; unused for frames."""
    correct: Array
    """(N,) right answers, mean over seeds."""
    total: Array
    """(N,) answers: 1, or the frames scored."""
    outputs: Array | None = None
    """(S, N, K) probabilities of labels, (S, N) predicted values, or (1, N) scores of trials."""
    other: NDArray[np.int64] | None = None
    """(N,) of trials: the unit of the second side."""

    @property
    def units(self) -> int:
        """U, the number of units."""
        return int(max(part.max() for part in (self.unit, self.other) if part is not None)) + 1


@dataclass(frozen=True)
class Difference:
    """How much better one encoder is than another on the same units (positive: better)."""

    mean: float
    low: float
    high: float

    @property
    def significant(self) -> bool:
        """Whether the 95 % interval excludes 0."""
        return self.low > 0 or self.high < 0


def scorer(metric: str, outcomes: Outcomes) -> Score:
    """The metric of some outcomes as a function of unit weights; the mean over seeds. Raises `EvaluationError`."""
    if metric in MEASURES:
        assert outcomes.outputs is not None and outcomes.other is not None  # noqa: PT018
        return trial_scorer(metric, outcomes.outputs[0], outcomes.target, outcomes.unit, outcomes.other)
    if metric not in METRICS and metric != "per":
        raise EvaluationError(unknown("metric", metric, METRICS))
    if metric in ("map", "roc_auc"):
        return _ranking(_average_precision if metric == "map" else _roc_auc, outcomes)
    if metric == "balanced_accuracy":
        return _balanced(outcomes)
    if metric in ("r2", "mae"):
        return _regression(metric, outcomes)
    sums = _sum_by_unit(np.stack([outcomes.correct, outcomes.total], 1), outcomes)
    if metric in ("error_rate", "per"):  # of phones, right ones are those of the reference less the edits
        sums[:, 0] = sums[:, 1] - sums[:, 0]

    def score(weights: Array) -> Array:
        drawn = weights @ sums
        return _divide(drawn[:, 0], drawn[:, 1])

    return score


def bootstrap(score: Score, units: int, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile interval of a score over `units` resampled with replacement.

    Over few units (ten speakers, say) it is too narrow by nature, since so few cannot show how much units differ.
    """
    values = np.concatenate([score(weights) for weights in _resamples(units, resamples, seed)])
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def paired_bootstrap(
    a: Score, b: Score, units: int, *, lower_is_better: bool = False, resamples: int = 1000, seed: int = 0
) -> Difference:
    """How much better `a` is than `b` when both scored the same units: each resample weighs both alike."""
    sign = -1.0 if lower_is_better else 1.0
    one = np.ones((1, units))
    gaps = sign * np.concatenate([a(weights) - b(weights) for weights in _resamples(units, resamples, seed)])
    low, high = np.nanpercentile(gaps, [2.5, 97.5])
    return Difference(float(sign * (a(one) - b(one))[0]), float(low), float(high))


def chance(metric: str, target: NDArray[np.generic], weight: Array | None = None) -> float:
    """What the best constant answer scores on these targets (the majority class, the share of positives, the median).

    `target` is as in `Outcomes`; `weight` (N,) counts repeated classes, for example the frames of each.
    """
    if metric in ("accuracy", "error_rate"):
        counts = np.bincount(target.astype(np.int64), weights=weight)
        majority = float(counts.max() / counts.sum())
        return majority if metric == "accuracy" else 1 - majority
    if metric == "per":  # no phone at all
        return 1.0
    if metric in EVENT_METRICS:  # no event at all
        return 1.0 if metric in EVENT_ERRORS else 0.0
    if metric == "balanced_accuracy":
        return 1 / len(np.unique(target))
    if metric == "map":
        shares = target.astype(np.float64).mean(0)
        return float(shares[shares > 0].mean())
    if metric == "mae":
        values = target.astype(np.float64)
        return float(np.abs(values - np.median(values)).mean())
    return 0.5 if metric == "roc_auc" else 0.0


def _resamples(units: int, resamples: int, seed: int) -> Iterator[Array]:
    """Blocks (r, U) of how often each unit was drawn, r rows at a time; the draws do not depend on the block size."""
    rng = np.random.default_rng(seed)
    block = max(1, CELLS // units)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = [np.bincount(rng.integers(units, size=units), minlength=units) for _ in range(rows)]
        yield np.stack(drawn).astype(np.float64)


def _sum_by_unit(values: Array, outcomes: Outcomes) -> Array:
    """Rows (N, M) of clips summed into rows (U, M) of units."""
    sums = np.zeros((outcomes.units, values.shape[1]))
    np.add.at(sums, outcomes.unit, values)
    return sums


def _divide(numerator: Array, denominator: Array) -> Array:
    out: Array = np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0)
    return out


def _balanced(outcomes: Outcomes) -> Score:
    classes, code = np.unique(outcomes.target, return_inverse=True)
    cells = outcomes.unit * len(classes) + code
    size = outcomes.units * len(classes)
    right = np.bincount(cells, outcomes.correct, size).reshape(outcomes.units, -1)
    total = np.bincount(cells, outcomes.total, size).reshape(outcomes.units, -1)

    def score(weights: Array) -> Array:
        recall = _divide(weights @ right, weights @ total)  # (R, K); a class may be absent from a resample
        present = ~np.isnan(recall)
        return _divide(np.where(present, recall, 0.0).sum(1), present.sum(1).astype(float))

    return score


def _regression(metric: str, outcomes: Outcomes) -> Score:
    """Of several values, targets (N, K), the mean over them."""
    assert outcomes.outputs is not None
    if outcomes.target.ndim > 1:
        values = zip(outcomes.target.T, outcomes.outputs.transpose(2, 0, 1), strict=True)
        each = [_regression(metric, replace(outcomes, target=one, outputs=told)) for one, told in values]
        return lambda weights: np.mean([score(weights) for score in each], axis=0)
    y = outcomes.target.astype(np.float64)
    y = y - y.mean()
    error = outcomes.outputs - outcomes.target.astype(np.float64)  # (S, N)
    rows = [np.ones_like(y), np.abs(error).mean(0), np.square(error).mean(0), y, y * y]
    sums = _sum_by_unit(np.stack(rows, 1), outcomes)

    def score(weights: Array) -> Array:
        n, absolute, squared, first, second = np.split(weights @ sums, 5, axis=1)
        if metric == "mae":
            return _divide(absolute, n)[:, 0]
        return 1 - _divide(squared, second - first * first / n)[:, 0]

    return score


def _ranking(metric: Callable[[NDArray[np.bool_], NDArray[np.int64], Array], Array], outcomes: Outcomes) -> Score:
    """Mean over seeds and labels of a metric of ranked answers; undefined ones in a resample are left out."""
    assert outcomes.outputs is not None
    ranked = []
    for outputs in outcomes.outputs:
        for label in range(outputs.shape[1]):
            order = np.argsort(-outputs[:, label], kind="stable")
            _, group = np.unique(-outputs[order, label], return_inverse=True)  # equal outputs are one step
            ranked.append((order, outcomes.target[order, label] > 0, group))
    rows = max(1, CELLS // len(outcomes.unit))

    def score(weights: Array) -> Array:
        if len(weights) > rows:
            return np.concatenate([score(weights[start : start + rows]) for start in range(0, len(weights), rows)])
        clips = weights[:, outcomes.unit]
        values = np.stack([metric(hit, group, clips[:, order]) for order, hit, group in ranked])
        present = ~np.isnan(values)
        return _divide(np.where(present, values, 0.0).sum(0), present.sum(0).astype(float))

    return score


def _steps(hit: NDArray[np.bool_], group: NDArray[np.int64], weights: Array) -> tuple[Array, Array, Array]:
    """Weights of positives and negatives in each step of equal outputs, best first (R, G), and of all positives."""
    first = np.flatnonzero(np.diff(group, prepend=-1))
    positives = np.add.reduceat(weights * hit, first, axis=1)
    negatives = np.add.reduceat(weights * ~hit, first, axis=1)
    return positives, negatives, positives.sum(1)


def _average_precision(hit: NDArray[np.bool_], group: NDArray[np.int64], weights: Array) -> Array:
    positives, negatives, found = _steps(hit, group, weights)
    above = positives.cumsum(1)
    precision = above / np.maximum(above + negatives.cumsum(1), 1)
    return _divide((precision * positives).sum(1), found)


def _roc_auc(hit: NDArray[np.bool_], group: NDArray[np.int64], weights: Array) -> Array:
    positives, negatives, found = _steps(hit, group, weights)
    below = negatives.sum(1, keepdims=True) - negatives.cumsum(1)
    return _divide((positives * (below + negatives / 2)).sum(1), found * negatives.sum(1))
