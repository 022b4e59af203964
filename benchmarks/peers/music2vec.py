"""data2vec on music as fairseq trains it, around transformers' Data2VecAudioModel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from auricle.data.batching import Batch
from auricle.methods.data2vec import Data2VecRun
from peers import Peer
from peers._waveform import (
    Data2VecPeer,
    context_operations,
    convolution_operations,
    cut,
    frames_of,
    masked_share,
    span_mask,
)

PRESET = "music2vec_crop5s"
SECONDS = (5.0, 5.0)
ROWS = {"A": "Data2VecAudio eager fp32", "B": "Data2VecAudio SDPA fp32"}
TARGETS = {"D over A": "", "D over B": "3", "C over B": "1.3"}


class TransformersData2Vec(Data2VecPeer):
    """The student sees a mask vector in the place of hidden frames, whose targets a linear head foretells."""

    def __init__(self, run: Data2VecRun, improved: bool) -> None:
        super().__init__(run.encoder, run.objective.layer_drop, run.objective.top_layers, improved)
        self.mask = run.objective.mask
        self.head = nn.Linear(run.encoder.dim, run.encoder.dim)

    def forward(self, batch: Batch) -> Tensor:
        hidden = self.project(cut(batch))
        target = self.targets(hidden)
        masked = span_mask(hidden, self.mask.probability, self.mask.span, self.mask.min_spans)
        hidden[masked] = self.model.masked_spec_embed.to(hidden.dtype)
        y = self.head(self.model.encoder(hidden).last_hidden_state[masked])  # (N, D)
        return (y.float() - target[masked]).square().sum(1).mean() / y.shape[1] ** 0.5


def build(row: str, run: Data2VecRun) -> Peer:
    return TransformersData2Vec(run, improved=row == "B")


def operations(run: Data2VecRun, samples: NDArray[np.int64]) -> float:
    """Of a step: three times the student's forward pass, the head on masked frames, and the teacher's pass once."""
    size = run.encoder
    frames = frames_of(size, samples)
    context = context_operations(size, frames)
    head = masked_share(run.objective.mask.probability) * frames.sum() * 2 * size.dim**2
    return 3 * (convolution_operations(size, samples) + context + head) + context
