"""BEST-RQ as SpeechBrain's recipe trains it, around our network's sizes."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from auricle.data.batching import Batch
from auricle.features.spectrum import mel_filters
from auricle.methods.best_rq import BestRqRun
from auricle.nn.positions import sinusoids
from peers import RATE, Block, Peer, block_operations, clips, standardise

PRESET = "best_rq_base"
SECONDS = (15.0, 15.0)
ROWS = {"A": "BEST-RQ eager fp32, as SpeechBrain", "B": "SDPA, products for labels, AdamW fused"}
EDITS = {"objective": {"count_batches": 1}}
HOP = 160


class PlainBestRq(Peer):
    """A: features and masks a clip at a time, the distance of every frame to every code written out, explicit
    attention, the head on all frames, AdamW as PyTorch runs it by default. B: labels of hidden frames alone, by one
    matrix product, SDPA, the head on hidden frames, AdamW fused.
    """

    clip_norm = 10.0

    def __init__(self, run: BestRqRun, improved: bool) -> None:
        super().__init__()
        self.improved, self.objective, size = improved, run.objective, run.encoder
        self.stack, mels = size.front_end.stack, size.front_end.n_mels
        channels = mels * self.stack
        self.project, self.norm = nn.Linear(channels, size.dim), nn.LayerNorm(size.dim)
        self.blocks = nn.Sequential(
            *(Block(size.dim, size.heads, size.ffn, pre=True, fused=improved) for _ in range(size.layers)),
            nn.LayerNorm(size.dim),
        )
        self.head = nn.Linear(size.dim, self.objective.codes)
        self.register_buffer("projection", nn.init.xavier_uniform_(torch.empty(channels, self.objective.code_dim)))
        self.register_buffer("codes", F.normalize(torch.randn(self.objective.codes, self.objective.code_dim)))
        self.register_buffer("positions", sinusoids(2000, size.dim))
        self.register_buffer("window", torch.hann_window(400))
        self.register_buffer("filters", mel_filters("htk", RATE, 400, mels, 0.0, RATE / 2).float())

    def forward(self, batch: Batch) -> Tensor:
        features = [self.features(waveform) for waveform in clips(batch)]
        x = pad_sequence(features, batch_first=True)  # (B, T, F)
        hidden = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        for number, clip in enumerate(features):
            span = self.objective.span
            starts = torch.randperm(len(clip) // span)[: round(len(clip) * self.objective.mask_fraction / span)] * span
            for start in starts.tolist():
                hidden[number, start : start + span] = True
        noise = self.objective.noise_std * torch.randn_like(x)
        masked = torch.where(hidden[:, :, None], noise, x)
        y = self.blocks(self.norm(self.project(masked) + self.positions[: x.shape[1]]))
        if self.improved:
            labels = ((x[hidden] @ self.projection) @ self.codes.T).argmax(1)
            return F.cross_entropy(self.head(y[hidden]), labels)
        projected = F.normalize(x @ self.projection, dim=2)
        labels = torch.stack([(self.codes[:, None] - clip).norm(dim=2).argmin(0) for clip in projected])
        return F.cross_entropy(self.head(y)[hidden], labels[hidden])

    def features(self, waveform: Tensor) -> Tensor:
        """One clip (S,) at -25 dB to normalised log-mel energies, consecutive frames side by side, (T, F)."""
        waveform = waveform * (10 ** (-25 / 20) / waveform.square().mean().sqrt())
        spectrum = torch.stft(waveform, 400, HOP, window=self.window, return_complex=True).abs().square()
        x = standardise((spectrum.T @ self.filters + 1e-10).log())
        return x[: len(x) // self.stack * self.stack].reshape(len(x) // self.stack, -1)

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 5e-4, (0.9, 0.98), 1e-6, 0.01, fused=self.improved or None)


def build(row: str, run: BestRqRun) -> Peer:
    return PlainBestRq(run, improved=row == "B")


def operations(run: BestRqRun, samples: NDArray[np.int64]) -> float:
    """Of a step: three times the forward pass on true frames, the head on hidden ones; labels left out."""
    size, objective = run.encoder, run.objective
    steps = (1.0 + samples // HOP) // size.front_end.stack
    channels, hidden = size.front_end.n_mels * size.front_end.stack, objective.mask_fraction * steps.sum()
    head = 2 * hidden * size.dim * objective.codebooks * objective.codes
    blocks = size.layers * block_operations(steps, size.dim, size.ffn)
    return 3 * (2 * steps.sum() * channels * size.dim + blocks + head)
