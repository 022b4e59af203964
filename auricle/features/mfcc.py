"""Kaldi's mel-frequency cepstral coefficients."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from auricle.features.fbank import KaldiFbank
from auricle.features.spectrum import full_precision_matmul


class KaldiMfcc(nn.Module):
    """Kaldi's `compute-mfcc-feats`: `n_ceps` cosines of a Kaldi filter bank's log energies, liftered.

    `lifter` 0 leaves the coefficients as they are. With `use_energy` coefficient 0 is the frame's log energy instead.
    """

    cosines: Tensor

    def __init__(self, fbank: KaldiFbank, n_ceps: int = 13, lifter: float = 22.0, use_energy: bool = False):
        super().__init__()
        self.fbank, self.dim, self.use_energy = fbank, n_ceps, use_energy
        mel, order = torch.arange(fbank.dim, dtype=torch.float64), torch.arange(n_ceps, dtype=torch.float64)
        cosines = torch.cos(math.pi / fbank.dim * (mel[:, None] + 0.5) * order) * math.sqrt(2 / fbank.dim)
        cosines[:, 0] = math.sqrt(1 / fbank.dim)  # the orthonormal DCT-II
        if lifter:
            cosines *= 1 + lifter / 2 * torch.sin(math.pi * order / lifter)
        self.register_buffer("cosines", cosines.float(), persistent=False)

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms (B, S) and samples (B,) to coefficients (B, max(T, 1), n_ceps) and frames (B,)."""
        log_energies, counts = self.fbank(waveforms, lengths)
        x = full_precision_matmul(log_energies, self.cosines)
        if self.use_energy:
            frames, _ = self.fbank.frames(waveforms, lengths)
            x = torch.cat([self.fbank.log_frame_energy(frames), x[..., 1:]], dim=-1)
        return x, counts
