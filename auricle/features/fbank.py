"""Kaldi's log-mel filter bank, batched and differentiable."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from auricle.features.spectrum import (
    Window,
    as_float,
    filter_energies,
    map_frames,
    mel_filters,
    whole_frames,
    window_function,
)

Scale = Literal["int16", "unit"]
EPSILON = float(torch.finfo(torch.float32).eps)
"""Kaldi's floor of every energy before its logarithm."""


class KaldiFbank(nn.Module):
    """Kaldi's `compute-fbank-feats` without dither: T = 1 + (S - window) // hop frames of `n_mels` log energies.

    Each frame (only whole ones, `snip_edges`) has its mean removed, is pre-emphasised, windowed, padded to a power of
    two and transformed; energies under Kaldi's mel triangles are floored at float32's epsilon.
    `window_size` and `hop` are in samples, `high_hz` 0 is the Nyquist frequency. With scale `int16` samples in [-1, 1]
    are multiplied by 32768, as Kaldi reads them: log energies stand 2 ln 32768 = 20.794 above those of `unit`.
    """

    window: Tensor
    filters: Tensor

    def __init__(
        self,
        sample_rate: int = 16000,
        n_mels: int = 80,
        window_size: int = 400,
        hop: int = 160,
        window: Window = "povey",
        low_hz: float = 20.0,
        high_hz: float = 0.0,
        scale: Scale = "int16",
        power: float = 2.0,
        preemphasis: float = 0.97,
    ):
        super().__init__()
        self.dim, self.window_size, self.hop = n_mels, window_size, hop
        self.n_fft = 1 << (window_size - 1).bit_length()
        self.power, self.preemphasis = power, preemphasis
        self.gain = 32768.0 if scale == "int16" else 1.0
        filters = mel_filters("kaldi", sample_rate, self.n_fft, n_mels, low_hz, high_hz or sample_rate / 2)
        self.register_buffer("window", window_function(window, window_size, periodic=False).float(), persistent=False)
        self.register_buffer("filters", filters.float(), persistent=False)

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms (B, S) and samples (B,) to log energies (B, max(T, 1), n_mels) and frames (B,).

        A clip shorter than one window has 0 frames; values past a clip's frames are undefined.
        """
        frames, counts = self.frames(waveforms, lengths)
        return map_frames(self._log_energies, frames), counts

    def frames(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The overlapping pieces of the signal (B, max(T, 1), window), a view, and their true number (B,)."""
        return whole_frames(as_float(waveforms), lengths, self.window_size, self.hop)

    def log_frame_energy(self, frames: Tensor) -> Tensor:
        """Log energy (B, T, 1) of frames (B, T, window) before pre-emphasis and window: Kaldi's `raw_energy`."""
        return map_frames(
            lambda x: (self.gain * _centre(x)).square().sum(-1, keepdim=True).clamp_min(EPSILON).log(), frames
        )

    def _log_energies(self, frames: Tensor) -> Tensor:
        frames = _centre(frames)
        before = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)  # Kaldi: the first sample precedes itself
        emphasised = torch.sub(frames, before, alpha=self.preemphasis)
        windowed = emphasised * (self.gain * self.window.to(frames.dtype))
        return filter_energies(windowed, self.n_fft, self.filters, self.power).clamp_min(EPSILON).log()


def _centre(frames: Tensor) -> Tensor:
    """Frames less their mean: twice, since a large mean's rounding error would drown a faint signal's low bands."""
    frames = frames - frames.mean(-1, keepdim=True)
    return frames - frames.mean(-1, keepdim=True)
