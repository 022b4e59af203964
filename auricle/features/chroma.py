"""Chroma: the energy of each of the twelve pitch classes, of all octaves together."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from auricle.features.melspec import Stft
from auricle.features.spectrum import Window, as_float, filter_energies, map_frames

CLASSES = 12
TUNING_HZ, TUNING_PITCH = 440.0, 69
"""The concert pitch A and its MIDI number."""
CLOSE = 1e-6
"""Semitones by which a limit may be missed."""


class Chromagram(Stft):
    """log(energies of the pitch classes C, C#, ..., B + `log_floor`).

    Under each semitone whose pitch lies in [`low_hz`, `high_hz`] stands a triangle that falls to 0 at its neighbours',
    straight in semitones, so that what is out of tune by less than half of one stays nearest to its own class. The
    octaves of a class are summed, and then compressed (Müller and Ewert 2011, Chroma Toolbox, compress each pitch
    first): what is far below `log_floor` does not count. A sine of amplitude a has 3/32 a² window_size n_fft.
    """

    filters: Tensor

    def __init__(
        self,
        sample_rate: int = 16000,
        n_fft: int = 8192,
        window_size: int = 4096,
        hop: int = 640,
        window: Window = "hann",
        low_hz: float = 55.0,
        high_hz: float = 3520.0,
        power: float = 2.0,
        log_floor: float = 100.0,
        centred: bool = True,
    ):
        super().__init__(n_fft, window_size, hop, window, centred)
        self.dim, self.power, self.log_floor = CLASSES, power, log_floor
        filters = chroma_filters(sample_rate, n_fft, low_hz, high_hz)
        self.register_buffer("filters", filters.float(), persistent=False)

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms (B, S) and samples (B,) to log energies (B, T, 12), C first, and frames (B,)."""
        frames, counts = self.frames(as_float(waveforms), lengths)
        return map_frames(self._log_energies, frames), counts

    def _log_energies(self, frames: Tensor) -> Tensor:
        windowed = frames * self.window.to(frames.dtype)
        return (filter_energies(windowed, self.n_fft, self.filters, self.power) + self.log_floor).log()


def chroma_filters(sample_rate: int, n_fft: int, low_hz: float, high_hz: float) -> Tensor:
    """Triangles (n_fft // 2 + 1, 12), float64, of all semitones from `low_hz` to `high_hz`, folded to an octave."""
    bins = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)[:, None]
    low, high = hz_to_pitch(torch.tensor([low_hz, high_hz], dtype=torch.float64)).tolist()
    pitches = torch.arange(math.ceil(low - CLOSE), math.floor(high + CLOSE) + 1)
    triangles = (1 - (hz_to_pitch(bins) - pitches).abs()).clamp_min(0)
    return triangles.new_zeros(len(bins), CLASSES).index_add_(1, pitches % CLASSES, triangles)


def hz_to_pitch(hz: Tensor) -> Tensor:
    """Frequencies as MIDI numbers, with fractions; 0 Hz is minus infinity."""
    return TUNING_PITCH + CLASSES * torch.log2(hz / TUNING_HZ)
