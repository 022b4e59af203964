"""Spectrograms of the STFT: log-mel, log-linear, and the decibel spectrogram of the Tacotron family."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from auricle.features.spectrum import (
    MelNorm,
    MelScale,
    Window,
    as_float,
    filter_energies,
    map_frames,
    mel_filters,
    rfft,
    whole_frames,
    window_function,
)


class Stft(nn.Module):
    """Base of the spectrograms; the window is periodic.

    Centred, frame t lies around sample t * hop, T = 1 + S // hop: each clip is continued past both its own ends by
    reflection, so padding in a batch never enters a frame, and the window of `window_size` samples stands in the middle
    of `n_fft`. Otherwise frame t begins at sample t * hop, and only whole ones count: T = 1 + (S - window_size) // hop.
    """

    window: Tensor

    def __init__(self, n_fft: int, window_size: int, hop: int, window: Window, centred: bool = True):
        super().__init__()
        self.n_fft, self.hop, self.centred = n_fft, hop, centred
        left = (n_fft - window_size) // 2 if centred else 0
        right = n_fft - window_size - left if centred else 0
        padded = F.pad(window_function(window, window_size, periodic=True), (left, right))
        self.register_buffer("window", padded.float(), persistent=False)

    def frames(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The overlapping pieces of the signal (B, T, n), a view, and their true number (B,), 0 for no samples.

        n is the transform's size, or if not centred the window's.
        """
        if not self.centred:
            return whole_frames(waveforms, lengths, len(self.window), self.hop)
        before = self.n_fft // 2
        padded = reflect_edges(waveforms, lengths, before, self.n_fft - before)
        return padded.unfold(1, self.n_fft, self.hop), torch.where(lengths > 0, 1 + lengths // self.hop, 0)


class LogSpectrogram(Stft):
    """log(mel energies + `log_floor`); with `n_mels` 0 the energies of all n_fft // 2 + 1 linear bins.

    `power` 2 sums power, 1 magnitude. The defaults are S3PRL's online path; Mockingjay's original code, after librosa,
    has scale and norm `slaney`, n_fft 2048, window 800, hop 200 and floor 1e-6. `high_hz` 0 is the Nyquist frequency.
    """

    filters: Tensor | None

    def __init__(
        self,
        sample_rate: int = 16000,
        n_mels: int = 80,
        n_fft: int = 400,
        window_size: int = 400,
        hop: int = 160,
        window: Window = "hann",
        low_hz: float = 0.0,
        high_hz: float = 0.0,
        mel_scale: MelScale = "htk",
        mel_norm: MelNorm = "none",
        power: float = 2.0,
        log_floor: float = 1e-10,
        centred: bool = True,
    ):
        super().__init__(n_fft, window_size, hop, window, centred)
        self.dim, self.power, self.log_floor = n_mels or n_fft // 2 + 1, power, log_floor
        filters = None
        if n_mels:
            high_hz = high_hz or sample_rate / 2
            filters = mel_filters(mel_scale, sample_rate, n_fft, n_mels, low_hz, high_hz, mel_norm).float()
        self.register_buffer("filters", filters, persistent=False)

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms (B, S) and samples (B,) to log energies (B, T, dim) and frames (B,)."""
        frames, counts = self.frames(as_float(waveforms), lengths)
        return map_frames(self._log_energies, frames), counts

    def _log_energies(self, frames: Tensor) -> Tensor:
        windowed = frames * self.window.to(frames.dtype)
        energies: Tensor
        if self.filters is None:
            energies = rfft(windowed, self.n_fft).abs().pow(self.power)
        else:
            energies = filter_energies(windowed, self.n_fft, self.filters, self.power)
        return (energies + self.log_floor).log()


class DecibelSpectrogram(Stft):
    """Linear magnitudes of the pre-emphasised signal in decibels, -100 dB to 0 dB around a reference mapped to [0, 1].

    The target of Mockingjay's LARGE model in its authors' first code: pre-emphasis 0.97, reference 20 dB.
    """

    PREEMPHASIS, REFERENCE_DB, RANGE_DB = 0.97, 20.0, 100.0

    def __init__(self, n_fft: int = 2048, window_size: int = 800, hop: int = 200, window: Window = "hann"):
        super().__init__(n_fft, window_size, hop, window)
        self.dim = n_fft // 2 + 1

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms (B, S) and samples (B,) to values in [0, 1] (B, T, n_fft // 2 + 1) and frames (B,)."""
        waveforms = as_float(waveforms)
        before = F.pad(waveforms, (1, 0))[:, :-1]
        frames, counts = self.frames(torch.sub(waveforms, before, alpha=self.PREEMPHASIS), lengths)
        return map_frames(self._decibels, frames), counts

    def _decibels(self, frames: Tensor) -> Tensor:
        magnitudes: Tensor = rfft(frames * self.window.to(frames.dtype), self.n_fft).abs()
        decibels = 20 * magnitudes.clamp_min(10 ** (-self.RANGE_DB / 20)).log10() - self.REFERENCE_DB
        return (1 + decibels / self.RANGE_DB).clamp(0, 1)


def reflect_edges(waveforms: Tensor, lengths: Tensor, before: int, after: int) -> Tensor:
    """Continue each clip by its mirror image: (B, S) to (B, before + S + after), zeros past each clip's `after`.

    The mirrors stand on the clip's own first and last sample and repeat where the clip is shorter than the margin,
    as `numpy.pad(mode="reflect")` does.
    """
    batch = waveforms.shape[0]
    waveforms = F.pad(waveforms, (0, max(0, 1 - waveforms.shape[1])))
    start = torch.arange(-before, 0, device=lengths.device).expand(batch, before)
    end = lengths[:, None] + torch.arange(after, device=lengths.device)
    outside = torch.cat([start, end], dim=1)  # (B, before + after) positions to fill, in samples of the clip
    period = (2 * (lengths - 1)).clamp_min(1)[:, None]
    phase = outside.remainder(period)
    mirrored = waveforms.gather(1, torch.minimum(phase, period - phase))
    return F.pad(waveforms, (before, after)).scatter(1, outside + before, mirrored)
