"""MAE-AST as its authors' fairseq code trains it: a chunk of the patches is seen, masked ones are told and drawn."""

from __future__ import annotations

import random

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from auricle.data.batching import Batch
from auricle.methods.mae_ast import MaeAstRun
from auricle.nn.positions import sinusoids
from peers import Block, Peer, block_operations, clips, frames_of, kaldi_fbank

PRESET = "mae_ast_patch_base"
SECONDS = (10.0, 10.0)  # AudioSet's clips
ROWS = {"A": "MAE-AST eager fp32, as its code", "B": "the same with SDPA, AdamW fused"}
PATCH, BANDS, MASKED = 16, 8, 0.75


class PlainMAEAST(Peer):
    """A: clips cut to the shortest of the batch, all patches projected, masks, selection and losses in Python loops,
    three products for q, k and v, explicit attention, AdamW as PyTorch runs it by default. B: the same with SDPA,
    AdamW fused.
    """

    clip_norm = 10.0

    def __init__(self, run: MaeAstRun, improved: bool) -> None:
        super().__init__()
        self.improved, size = improved, run.encoder
        dim = size.dim

        def stack(layers: int) -> nn.Sequential:
            blocks = (
                Block(dim, size.heads, size.ffn, pre=False, fused=improved, dropout=size.dropout) for _ in range(layers)
            )
            return nn.Sequential(nn.LayerNorm(dim), nn.Dropout(size.dropout), *blocks)

        self.normalise, self.project = nn.BatchNorm2d(1, affine=False), nn.Linear(PATCH**2, dim)
        self.encoder, self.decoder = stack(size.layers), stack(run.objective.decoder_layers)
        self.hidden = nn.Parameter(torch.randn(dim))
        self.draw, self.tell = nn.Linear(dim, PATCH**2), nn.Linear(dim, PATCH**2)
        self.register_buffer("places", sinusoids(48_000, dim))

    def forward(self, batch: Batch) -> Tensor:
        shortest = int(batch.lengths.min())
        x = torch.stack([kaldi_fbank(clip[:shortest], PATCH * BANDS, "povey") for clip in clips(batch)])
        x = 0.5 * self.normalise(x[:, None])  # (B, 1, T, 128)
        patches = F.unfold(x, PATCH, stride=PATCH).transpose(1, 2)  # (B, N, 256), time-major
        size, count = patches.shape[:2]
        tokens = self.project(patches) + self.places[:count]
        masks = [chunks(count)] * size  # one mask for the whole batch
        visible = [sorted(set(range(count)) - set(mask)) for mask in masks]
        seen = self.encoder(torch.stack([tokens[clip, index] for clip, index in enumerate(visible)]))
        filled = self.hidden.repeat(size, count, 1)
        for clip, index in enumerate(visible):
            filled[clip, index] = seen[clip]
        y = self.decoder(filled + self.places[:count])
        y = torch.stack([y[clip, mask] for clip, mask in enumerate(masks)])
        target = torch.stack([patches[clip, mask] for clip, mask in enumerate(masks)])
        told, losses = self.tell(y), []
        for clip in range(size):  # which of the clip's masked patches is it?
            scores = told[clip] @ target[clip].T
            losses.append(F.cross_entropy(scores, torch.arange(len(scores), device=x.device)))
        return 10 * F.mse_loss(self.draw(y), target) + torch.stack(losses).mean()

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-4, (0.9, 0.98), 1e-6, 0.01, fused=self.improved or None)


def chunks(count: int) -> list[int]:
    """75 % of the patches, in squares of 3 to 5 at random places."""
    masked: set[int] = set()
    while len(masked) < int(count * MASKED):
        side, start = random.randint(3, 5), random.randrange(count)
        masked |= {start + band + BANDS * time for time in range(side) for band in range(side)} & set(range(count))
    return sorted(masked)[: int(count * MASKED)]


def build(row: str, run: MaeAstRun) -> Peer:
    return PlainMAEAST(run, improved=row == "B")


def operations(run: MaeAstRun, samples: NDArray[np.int64]) -> float:
    """Of a step: three times the forward pass, the encoder on visible patches, the decoder on all, the heads on the
    masked ones.
    """
    size = run.encoder
    patches = frames_of(samples) // PATCH * BANDS
    masked = np.floor(patches * MASKED)
    total = (patches - masked).sum() * 2 * PATCH**2 * size.dim
    total += size.layers * block_operations(patches - masked, size.dim, size.ffn)
    total += run.objective.decoder_layers * block_operations(patches, size.dim, size.ffn)
    total += masked.sum() * 4 * size.dim * PATCH**2 + 2 * PATCH**2 * np.square(masked).sum()
    return float(3 * total)
