"""Plain PyTorch versions of what the methods' official codes do, one file a method, for `pretrain_step.py`.

Each file says beside which of our presets it stands (`PRESET`), on clips of which length (`SECONDS`, shortest and
longest), what its rows are (`ROWS`), which speed-up is aimed at, where not the usual (`TARGETS`), and what of the
preset is changed because it costs time before the first step alone (`EDITS`); makes the rows (`build(row, run)`: a
`Peer` of that run's sizes); and counts what a step has to compute (`operations(run, samples)`).
They follow published descriptions; no code is copied.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from auricle.data.batching import Batch
from auricle.features.spectrum import Window, mel_filters, window_function

RATE = 16000


class Peer(nn.Module):
    """A model whose forward pass is the loss () of a batch, and how it is updated."""

    clip_norm: float | None = None

    @abstractmethod
    def forward(self, batch: Batch) -> Tensor:
        """The loss of a batch."""

    @abstractmethod
    def optimizer(self) -> torch.optim.Optimizer:
        """As its authors set it; fused in the improved rows, else as PyTorch runs it by default."""


def clips(batch: Batch) -> list[Tensor]:
    """The waveforms (S,), without padding: data sets hand them over one by one."""
    return [waveform[:length] for waveform, length in zip(batch.waveforms, batch.lengths.tolist(), strict=True)]


def kaldi_fbank(waveform: Tensor, mels: int, window: Window) -> Tensor:
    """Kaldi's log-mel energies (T, F) of one clip (S,); like torchaudio's, it makes window and filters at each call."""
    device = waveform.device
    frames = waveform.unfold(0, 400, 160)
    frames = frames - frames.mean(1, keepdim=True)
    before = torch.cat([frames[:, :1], frames[:, :-1]], 1)
    frames = (frames - 0.97 * before) * window_function(window, 400, periodic=False).float().to(device)
    power = torch.fft.rfft(frames, 512).abs().square()
    filters = mel_filters("kaldi", RATE, 512, mels, 20.0, RATE / 2).float().to(device)
    return (power @ filters).clamp_min(torch.finfo(torch.float32).eps).log()


def standardise(x: Tensor) -> Tensor:
    """Each channel of one clip (T, F) to mean 0 and variance 1."""
    return (x - x.mean(0)) / (x.std(0) + 1e-10)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: float, fused: bool) -> Tensor:
    """Attention of q, k, v (B, H, T, d) with a bias on the scores: the products written out, or PyTorch's own."""
    if fused:
        return F.scaled_dot_product_attention(q, k, v, bias, dropout)
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if bias is not None:
        scores = scores + bias
    return F.dropout(scores.softmax(-1), dropout) @ v


class Block(nn.Module):
    """A Transformer block as timm (`pre`) and fairseq (post-norm, three products for q, k and v) write it."""

    def __init__(self, dim: int, heads: int, ffn: int, *, pre: bool, fused: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.pre, self.fused, self.p = heads, pre, fused, dropout
        self.qkv = nn.ModuleList([nn.Linear(dim, 3 * dim)] if pre else [nn.Linear(dim, dim) for _ in range(3)])
        self.out, self.fc1, self.fc2 = nn.Linear(dim, dim), nn.Linear(dim, ffn), nn.Linear(ffn, dim)
        self.norm1, self.norm2, self.dropout = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, D) to the same shape."""
        if self.pre:
            x = x + self.attend(self.norm1(x))
            return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        x = self.norm1(x + self.dropout(self.attend(x)))
        return self.norm2(x + self.dropout(self.fc2(F.gelu(self.fc1(x)))))

    def attend(self, x: Tensor) -> Tensor:
        parts = self.qkv[0](x).chunk(3, -1) if self.pre else [layer(x) for layer in self.qkv]
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        mixed = attend(q, k, v, None, self.p if self.training else 0.0, self.fused)
        return self.out(mixed.transpose(1, 2).flatten(2))


def frames_of(samples: NDArray[np.int64]) -> NDArray[np.float64]:
    """Kaldi's 10 ms frames in clips of these samples."""
    return 1.0 + (samples - 400) // 160


def block_operations(tokens: NDArray[np.float64], dim: int, ffn: int) -> float:
    """Forward operations of one Transformer block on sequences of these lengths."""
    return float(tokens.sum() * 2 * (4 * dim * dim + 2 * dim * ffn) + 4 * dim * np.square(tokens).sum())
