"""What a task's answers are, as training takes them and as dev measures them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from auricle.data.batching import Batch
from auricle.embedding.extract import GRID_S
from auricle.encoders.base import Encoder
from auricle.evaluation.answers import Answers
from auricle.evaluation.prepare import UNLABELLED, Prepared


def clip_targets(ready: Prepared, standard: tuple[float, float]) -> Tensor:
    """(N, K) bytes, 0 or 1, of classes or labels; (N, 1) values standardised by mean and deviation; none by frame."""
    if ready.task.level == "frame":
        return torch.empty(0)
    if ready.task.kind == "values":
        return torch.from_numpy((ready.targets[:, None] - standard[0]) / standard[1]).float()
    if ready.task.kind == "labels":
        return torch.from_numpy(ready.targets)
    return torch.eye(len(ready.classes), dtype=torch.uint8)[torch.from_numpy(ready.targets)]


def frame_targets(ready: Prepared, rows: NDArray[np.int64], batch: Batch, encoder: Encoder) -> Tensor:
    """(B, T) codes at the centres of the frames of crops, T a bound on them: those of the 10 ms cells they fall in."""
    frames = np.arange(batch.waveforms.shape[1] // encoder.hop + 2)
    centres = batch.starts.numpy()[:, None] + encoder.offset + frames * encoder.hop  # (B, T) samples of the clip
    cells = np.floor(centres / encoder.sample_rate / GRID_S + 1e-6).astype(np.int64)
    targets = np.full(cells.shape, UNLABELLED)
    for place, row in enumerate(rows.tolist()):
        codes = ready.targets[row]
        inside = cells[place] < len(codes)
        targets[place, inside] = codes[cells[place, inside]]
    return torch.from_numpy(targets)


def loss(ready: Prepared, answers: Answers) -> float:
    """Of answers: mean cross-entropy or squared error; the share of wrong ones by frame."""
    if answers.outputs is None:
        return 1 - float(answers.correct.sum() / max(answers.total.sum(), 1))
    outputs, targets = answers.outputs[0], ready.targets[answers.rows]
    if ready.task.kind == "values":
        return float(np.square(outputs - targets).mean())
    if ready.task.kind == "classes":
        outputs = outputs[np.arange(len(outputs)), targets]
    else:
        outputs = np.where(targets > 0, outputs, 1 - outputs)
    return float(-np.log(outputs.clip(1e-12)).mean())
