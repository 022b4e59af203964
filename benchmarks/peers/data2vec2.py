"""data2vec 2.0 as fairseq trains it, around transformers' Data2VecAudioModel; without ALiBi, as ours."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from auricle.data.batching import Batch
from auricle.methods.data2vec2 import Data2Vec2Run
from peers import Peer
from peers._waveform import Data2VecPeer, context_operations, convolution_operations, cut, frames_of

PRESET = "data2vec2_base"
SECONDS = (5.0, 5.0)
ROWS = {"A": "Data2VecAudio eager fp32", "B": "Data2VecAudio SDPA fp32"}
TARGETS = {"D over A": "", "D over B": "3", "C over B": "1.3"}


class TransformersData2Vec2(Data2VecPeer):
    """Several masked copies of a clip share convolutions and teacher; the Transformer computes the frames that are
    seen; grouped convolutions fill in the others. Rows A and B differ as those of data2vec.
    """

    def __init__(self, run: Data2Vec2Run, improved: bool) -> None:
        super().__init__(run.encoder, run.objective.layer_drop, run.objective.top_layers, improved)
        self.objective, self.rng = run.objective, np.random.default_rng(0)
        size, width, kernel = run.encoder.dim, run.objective.decoder_dim, run.objective.decoder_kernel
        self.decoder = nn.ModuleList(
            nn.Conv1d(width if n else size, width, kernel, padding=kernel // 2, groups=run.objective.decoder_groups)
            for n in range(run.objective.decoder_layers)
        )
        self.head = nn.Linear(width, size)

    def forward(self, batch: Batch) -> Tensor:
        objective, encoder = self.objective, self.model.encoder
        x = self.project(cut(batch))
        target = self.targets(x)
        x, target = (each.repeat_interleave(objective.copies, 0) for each in (x, target))  # (C, T, D)
        hidden = torch.from_numpy(self.masks(*x.shape[:2])).to(x.device)  # (C, T)
        order = hidden.int().argsort(dim=1, stable=True)[:, : x.shape[1] - int(hidden[0].sum())]  # (C, V)
        index = order[:, :, None].expand(-1, -1, x.shape[2])
        x = x.masked_fill(hidden[:, :, None], 0)
        y = encoder.dropout(encoder.layer_norm((x + encoder.pos_conv_embed(x)).gather(1, index)))
        for block in encoder.layers:
            if torch.rand(()) >= objective.layer_drop:
                y = block(y)
        y = F.dropout(y, objective.decoder_dropout)
        y = (objective.noise_std * torch.randn_like(x)).to(y.dtype).scatter(1, index, y)
        for layer in self.decoder:
            z = layer(y.transpose(1, 2)).transpose(1, 2)
            z = F.gelu(F.layer_norm(z, z.shape[2:]))
            y = y + z if y.shape == z.shape else z
        error = self.head(y[hidden]).float() - target[hidden]
        return error.square().sum(1).mean() / error.shape[1] ** 0.5

    def masks(self, copies: int, frames: int) -> NDArray[np.bool_]:
        """Hidden frames, drawn a copy at a time: blocks anywhere, then single frames until their number is exact."""
        objective, masks = self.objective, np.zeros((copies, frames), bool)
        wanted = int(frames * objective.mask_fraction)
        blocks = int(frames * (objective.mask_fraction + objective.mask_extra) / objective.span)
        for mask in masks:
            starts = self.rng.integers(0, frames, blocks) - objective.span // 2
            covered = (starts[:, None] + np.arange(objective.span)).clip(0, frames - 1)
            mask[covered.ravel()] = True
            surplus = int(mask.sum()) - wanted
            mask[self.rng.choice(np.flatnonzero(mask == (surplus > 0)), abs(surplus), replace=False)] = surplus < 0
        return masks


def build(row: str, run: Data2Vec2Run) -> Peer:
    return TransformersData2Vec2(run, improved=row == "B")


def operations(run: Data2Vec2Run, samples: NDArray[np.int64]) -> float:
    """Of a step: three times the forward pass, convolutions once for all copies, blocks on frames that are seen, the
    head on the others; and the teacher's pass once.
    """
    size, objective = run.encoder, run.objective
    frames = frames_of(size, samples)
    hidden = np.floor(objective.mask_fraction * frames)
    width, previous, decoder = objective.decoder_dim, size.dim, 0.0
    for _ in range(objective.decoder_layers):
        decoder += 2 * frames.sum() * objective.decoder_kernel * previous * width / objective.decoder_groups
        previous = width
    copy = context_operations(size, frames, frames - hidden) + decoder + 2 * hidden.sum() * width * size.dim
    student = convolution_operations(size, samples) + objective.copies * copy
    return 3 * student + context_operations(size, frames)
