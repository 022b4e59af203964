"""What a report draws of trials: a DET curve an encoder, and how scores of same and different speakers are spread."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from auricle.evaluation.verification.metrics import det_curve
from auricle.report.scores import Board, Column

RATES = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
"""Ticks of a DET curve, whose axes run in normal deviates from the first to the last."""
POINTS, BINS = 120, 48
SIDE, WIDTH, HEIGHT = 400, 400, 110
"""Of the pictures' own units."""


@dataclass(frozen=True)
class Spread:
    """Histograms of an encoder's scores, as SVG paths; one area each."""

    encoder: str
    same: str
    different: str
    low: str
    high: str
    """Ends of the axis."""


@dataclass(frozen=True)
class Verification:
    """The pictures of a task of trials."""

    title: str
    ticks: list[tuple[float, str]]
    """(place, label) along both axes of the DET curve; the vertical one counts from below."""
    curves: list[tuple[str, str, float]]
    """(encoder, SVG points, place of its equal error rate on both axes)."""
    spreads: list[Spread]


def verifications(board: Board) -> list[Verification]:
    """Pictures of every task of trials on the board."""
    return [_draw(column) for column in board.columns if column.first.level == "trial"]


def _draw(column: Column) -> Verification:
    curves, spreads = [], []
    for name, table in column.predictions.items():
        scores, target = _scores(table)
        curve = det_curve(scores, target)
        deviates = np.linspace(_deviate(RATES[0]), _deviate(RATES[-1]), POINTS)
        fpr = np.array([NormalDist().cdf(deviate) for deviate in deviates])
        fnr = np.interp(fpr, curve.fpr[::-1], curve.fnr[::-1])
        drawn = [(x, y) for x, y in zip(fpr, fnr, strict=True) if RATES[0] <= y <= RATES[-1]]
        points = " ".join(f"{_place(x):.1f},{SIDE - _place(y):.1f}" for x, y in drawn)
        curves.append((name, points, round(_place(column.rows[name].score), 1)))
        spreads.append(_spread(name, scores, target))
    ticks = [(round(_place(rate), 1), f"{100 * rate:g}") for rate in RATES]
    return Verification(column.title, ticks, curves, spreads)


def _scores(table: pa.Table) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    return table["score"].to_numpy(), np.asarray(table["target"].to_numpy(), bool)


def _deviate(rate: float) -> float:
    return NormalDist().inv_cdf(rate)


def _place(rate: float) -> float:
    """Where a rate stands on an axis, from 0 to `SIDE`; rates beyond stand at its ends."""
    low, high = _deviate(RATES[0]), _deviate(RATES[-1])
    return SIDE * (_deviate(min(max(float(rate), RATES[0]), RATES[-1])) - low) / (high - low)


def _spread(encoder: str, scores: NDArray[np.float64], target: NDArray[np.bool_]) -> Spread:
    edges = np.histogram_bin_edges(scores, BINS)
    shares: Any = [np.histogram(scores[kind], edges)[0] / kind.sum() for kind in (target, ~target)]
    top = max(share.max() for share in shares)
    areas = []
    for share in shares:
        y = HEIGHT * (1 - share / top)
        steps = " ".join(
            f"H{WIDTH * k / BINS:.1f}V{height:.1f}H{WIDTH * (k + 1) / BINS:.1f}" for k, height in enumerate(y)
        )
        areas.append(f"M0,{HEIGHT} {steps} V{HEIGHT}Z")
    return Spread(encoder, areas[0], areas[1], f"{edges[0]:.2f}", f"{edges[-1]:.2f}")
