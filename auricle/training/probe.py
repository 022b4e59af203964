"""A quick linear probe of the held-out clips' embeddings: the loss may fall while what is wanted of them is lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from auricle.data.manifest import Manifest
from auricle.errors import ConfigError, unknown
from auricle.training.health import LEAST_CLIPS

RIDGE = 0.1
"""Penalty, in units of the mean squared length of a standardised embedding."""


class OnlineProbe:
    """Ridge regression onto the classes of a label `column`, from each half of the held-out recordings to the other.

    Classes with a single recording are left out. Raises `ConfigError` when `held_out` lacks the column, or has too few
    clips of two classes.
    """

    def __init__(self, held_out: Manifest, column: str) -> None:
        self.column = column
        if column not in held_out.labels:
            raise ConfigError(f"train.probe: {unknown('column', column, held_out.labels)}")
        values = held_out.column(column)
        if any(isinstance(value, list | dict) for value in values):
            raise ConfigError(f"train.probe: column '{column}' holds no single label a clip; choose another")
        recordings: dict[str, str] = {}
        for path, value in zip(held_out.column("path"), values, strict=True):
            if value is not None:
                recordings.setdefault(path, str(value))
        common = {label for label, count in Counter(recordings.values()).items() if count > 1}
        seen: Counter[str] = Counter()
        half = {}
        for path, label in sorted(recordings.items()):
            half[path] = seen[label] % 2  # a class's recordings go to the halves in turn
            seen[label] += 1
        self.labels = {
            clip_id: (str(value), half[path])
            for clip_id, path, value in zip(held_out.column("clip_id"), held_out.column("path"), values, strict=True)
            if value is not None and str(value) in common
        }
        """Clip → its class and its recording's half."""
        if len(common) < 2 or len(self.labels) < LEAST_CLIPS:
            raise ConfigError(
                f"train.probe: of the {len(held_out)} held-out clips, {len(self.labels)} are of classes of '{column}' "
                f"with two recordings, in {len(common)} classes; at least {LEAST_CLIPS} in 2 are needed: "
                "raise data.valid_fraction or choose another column"
            )

    def scores(self, clip_ids: Sequence[str], layers: Sequence[Tensor]) -> dict[str, float]:
        """Accuracy, 0 to 1, on the clip embeddings (N, D) of each layer: `column_0` and so on.

        Empty when the clips (those that could be read) leave a half empty.
        """
        rows = [row for row, clip_id in enumerate(clip_ids) if clip_id in self.labels]
        names = [self.labels[clip_ids[row]][0] for row in rows]
        half = torch.tensor([self.labels[clip_ids[row]][1] for row in rows])
        if len(set(half.tolist())) < 2:
            return {}
        goal = torch.eye(len(set(names)), dtype=torch.float64)[np.unique(names, return_inverse=True)[1]]  # (N, K)
        scores = {}
        for layer, embeddings in enumerate(layers):
            x, right = embeddings[rows].double(), 0
            for fit, test in ((half == 0, half == 1), (half == 1, half == 0)):
                guess = _ridge(x[fit], goal[fit], x[test])
                right += int((guess.argmax(1) == goal[test].argmax(1)).sum())
            scores[f"{self.column}_{layer}"] = right / len(rows)
        return scores


def _ridge(x: Tensor, y: Tensor, test: Tensor) -> Tensor:
    """Predictions (M, K) for test (M, D) of the ridge regression of y (N, K) on x (N, D), both standardised by x."""
    mean, scale = x.mean(0), x.std(0, correction=0).clamp_min(1e-12)
    x, test = (x - mean) / scale, (test - mean) / scale
    gram = x @ x.T  # (N, N): there are fewer clips than channels
    penalty = RIDGE * gram.diagonal().mean().clamp_min(1e-12) * torch.eye(len(x), dtype=x.dtype)
    weights: Tensor = torch.linalg.solve(gram + penalty, y - y.mean(0))
    return y.mean(0) + test @ x.T @ weights
