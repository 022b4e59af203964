"""Cepstra that stand at the frames of a waveform network, to make labels of."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from auricle.features.deltas import add_deltas
from auricle.features.fbank import KaldiFbank
from auricle.features.mfcc import KaldiMfcc

WINDOW_MS = 25


class AlignedMfcc(nn.Module):
    """Kaldi's cepstra, slopes and theirs, for each frame of a network that sees `reach` samples every `hop` samples.

    They are computed every 10 ms, or as near to it as parts of the hop come, so that the slopes are those of speech
    recognition; then every n-th is taken. At 16 kHz with a hop of 320 and a reach of 400, frame i of both covers
    samples [320 i, 320 i + 400). A window (25 ms) of another length than the reach shares its centre. No mean is
    removed, and samples are in [-1, 1], as HuBERT's code has it.
    """

    def __init__(self, sample_rate: int, hop: int, reach: int, cepstra: int = 13, mel_bands: int = 23) -> None:
        super().__init__()
        window = sample_rate * WINDOW_MS // 1000
        self.every = next(n for n in range(max(1, hop * 100 // sample_rate), 0, -1) if hop % n == 0)
        before = (window - reach) // 2
        self.margins = (before, window - reach - before)
        fbank = KaldiFbank(sample_rate, mel_bands, window, hop // self.every, scale="unit")
        self.mfcc = KaldiMfcc(fbank, cepstra)
        self.dim = 3 * cepstra

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms (B, S) and samples (B,) to features (B, T, 3 cepstra) and frames (B,)."""
        x, frames = self.mfcc(F.pad(waveforms, self.margins), lengths + sum(self.margins))
        return add_deltas(x, frames, 2)[:, :: self.every], -(-frames // self.every)
