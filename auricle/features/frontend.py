"""The whole way from waveforms to what a network reads, in one flat configuration."""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from auricle.config import Config
from auricle.features.chroma import Chromagram
from auricle.features.deltas import add_deltas
from auricle.features.fbank import KaldiFbank, Scale
from auricle.features.melspec import DecibelSpectrogram, LogSpectrogram
from auricle.features.mfcc import KaldiMfcc
from auricle.features.normalize import frame_mask, level_gain, normalize_utterance
from auricle.features.spectrum import MelNorm, MelScale, Window, as_float, exporting

MAX_N_FFT = 1 << 16
STRETCH = 1 << 14
"""Frames whose waveforms are worked on at once: what is copied on the way stays small, however long the clip."""


class FrontEndConfig(Config):
    """What becomes of a waveform: level, spectrogram, deltas, normalisation, stacking, in this order."""

    kind: Literal["kaldi", "mfcc", "stft", "linear", "chroma"] = "kaldi"
    """`kaldi`: Kaldi's log-mel filter bank; `mfcc`: Kaldi's cepstra; `stft`: log-mel of the STFT (n_mels 0: its
    linear bins); `linear`: pre-emphasised magnitudes in decibels, scaled to [0, 1]; `chroma`: log energies of the
    twelve pitch classes."""
    sample_rate: int = Field(16000, ge=1000)
    """Hz."""
    n_mels: int = Field(80, ge=0, le=1024)
    """Mel bands; not for `linear` and `chroma`."""
    window_ms: float = Field(25.0, gt=0)
    """Window, milliseconds, cut to whole samples."""
    hop_ms: float = Field(10.0, gt=0)
    """From one frame to the next, milliseconds, cut to whole samples."""
    window: Window | None = None
    """Window function; None: `povey` for Kaldi's kinds, `hann` for the others."""
    n_fft: int | None = Field(None, ge=2, le=MAX_N_FFT)
    """Transform size, samples; None: the window. Kaldi's kinds take the next power of two."""
    low_hz: float | None = Field(None, ge=0)
    """Lower edge of the mel bands, or the lowest pitch; None: 20 for Kaldi's kinds, 55 for `chroma`, 0 for `stft`."""
    high_hz: float = Field(0.0, ge=0)
    """Upper edge of the mel bands, or the highest pitch; 0: half the sample rate."""
    centred: bool = True
    """`stft` and `chroma`: frame t is centred on sample t * hop, clips being continued by reflection; False: frame t
    begins there, and only whole windows count, as in Kaldi and `tf.signal`."""
    mel_scale: MelScale = "htk"
    """Mel scale of `stft`; `slaney` is librosa's default; `kaldi` is HTK's scale with triangles straight in mel rather
    than in Hz, as Kaldi and `tf.signal` have them."""
    mel_norm: MelNorm = "none"
    """Area norm of the mel triangles of `stft`; `slaney` is librosa's default."""
    power: Literal[1, 2] = 2
    """Bands sum magnitudes (1) or powers (2)."""
    log_floor: float = Field(1e-10, gt=0)
    """Added to energies before the logarithm. Kaldi's kinds floor at float32's epsilon instead."""
    scale: Scale = "int16"
    """Kaldi's kinds: samples as Kaldi reads them (`int16`, [-1, 1] times 32768) or as they are (`unit`)."""
    level_db: float | None = Field(None, ge=-100, le=0)
    """Bring each clip to this RMS level first, dB re 1; None: leave it."""
    n_ceps: int = Field(13, ge=1)
    """Cepstral coefficients of `mfcc`, the zeroth included."""
    use_energy: bool = False
    """`mfcc`: the frame's log energy in place of coefficient 0."""
    deltas: int = Field(0, ge=0, le=2)
    """Append slopes over time (1), and theirs (2)."""
    normalize: Literal["utterance", "unbiased", "none"] = "utterance"
    """Each channel to mean 0 and variance 1 over the frames that are given: in training the crop, else the clip;
    `unbiased` divides by the sample's standard deviation (T - 1), as S3PRL does."""
    stack: int = Field(1, ge=1, le=64)
    """Consecutive frames joined into one step; a remainder at the end is dropped."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        kaldi = self.kind in ("kaldi", "mfcc")
        nyquist = self.sample_rate / 2
        low, high = self.lowest_hz, self.high_hz or nyquist
        if self.window_size < 2 or self.hop_size < 1:
            raise ValueError(f"window_ms and hop_ms: shorter than two and one samples at {self.sample_rate} Hz")
        if self.window_size > MAX_N_FFT:
            raise ValueError(f"window_ms: {self.window_ms:g} ms is more than {MAX_N_FFT} samples")
        if kaldi and self.n_fft is not None:
            raise ValueError(f"n_fft: kind '{self.kind}' takes the power of two above its window; leave n_fft out")
        if self.n_fft is not None and self.n_fft < self.window_size:
            raise ValueError(f"n_fft: {self.n_fft} is less than the window's {self.window_size} samples")
        if not kaldi and self.window == "povey":
            raise ValueError(f"window: 'povey' is Kaldi's; kind '{self.kind}' takes 'hann' or 'hamming'")
        if self.kind != "linear" and not low < high <= nyquist:
            raise ValueError(f"low_hz, high_hz: bands from {low:g} to {high:g} Hz do not fit in 0 to {nyquist:g} Hz")
        if self.kind == "chroma" and low == 0:
            raise ValueError("low_hz: kind 'chroma' needs a lowest pitch above 0 Hz")
        if kaldi and self.n_mels == 0:
            raise ValueError(f"n_mels: kind '{self.kind}' needs at least one")
        if self.kind == "mfcc" and self.n_ceps > self.n_mels:
            raise ValueError(f"n_ceps: {self.n_ceps} coefficients cannot come of {self.n_mels} mel bands")
        return self

    @property
    def is_centred(self) -> bool:
        """Whether frame 0 is centred on sample 0, rather than begun there."""
        return self.kind == "linear" or (self.kind in ("stft", "chroma") and self.centred)

    @property
    def window_size(self) -> int:
        """The window in samples."""
        return int(self.sample_rate * self.window_ms / 1000)

    @property
    def hop_size(self) -> int:
        """The hop in samples, before stacking."""
        return int(self.sample_rate * self.hop_ms / 1000)

    @property
    def lowest_hz(self) -> float:
        """Lower edge of the mel bands, or the lowest pitch, Hz."""
        return {"kaldi": 20.0, "mfcc": 20.0, "chroma": 55.0}.get(self.kind, 0.0) if self.low_hz is None else self.low_hz


class FrontEnd(nn.Module):
    """Waveforms (B, S) in [-1, 1] to features (B, T, dim), a step every `hop` samples; it has no weights.

    A clip gives the same features alone and in any batch. `offset` is where the centre of step 0 stands, in samples,
    sample i filling [i, i + 1): half the window for Kaldi's kinds, whose frame 0 fills [0, window); 0 for the centred
    ones; with stacking, the centre of the stack. Computes in float32 (float64 if given), inside autocast too.
    """

    def __init__(self, config: FrontEndConfig):
        super().__init__()
        self.config = config
        self.spectrogram = _spectrogram(config)
        self.sample_rate = config.sample_rate
        self.hop = config.hop_size * config.stack
        first = 0.0 if config.is_centred else config.window_size / 2
        self.offset = first + config.hop_size * (config.stack - 1) / 2
        self.dim = self.spectrogram.dim * (1 + config.deltas) * config.stack

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms (B, S), zero past their lengths (B,) in samples, to x (B, T, dim) and lengths (B,) in steps.

        x is zero past each clip's steps; T is at least 1. A clip too short for one step has length 0.
        """
        config = self.config
        x, lengths = self._spectra(as_float(waveforms), lengths)
        if config.normalize != "none":
            x = normalize_utterance(x, lengths, unbiased=config.normalize == "unbiased")
        if config.stack > 1:
            x, lengths = stack_frames(x, lengths, config.stack)
        return torch.where(frame_mask(x, lengths), x, 0), lengths

    def _spectra(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Level, spectrogram and deltas, stretch by stretch, each with a margin of frames that see its ends."""
        config, hop = self.config, self.config.hop_size
        gain = None if config.level_db is None else level_gain(waveforms, lengths, config.level_db)
        if exporting():  # a graph has no loop over a length it does not know
            x, counts = self.spectrogram(waveforms if gain is None else waveforms * gain, lengths)
            return add_deltas(x, counts, config.deltas), counts
        margin = -(-max(config.n_fft or 0, config.window_size) // hop) + 2 * config.deltas
        parts, counts = [], torch.zeros_like(lengths)
        for first in range(0, waveforms.shape[1] // hop + 1, STRETCH):
            begin = max(0, first - margin)
            piece = waveforms[:, begin * hop : (first + STRETCH + margin) * hop]
            held = (lengths - begin * hop).clamp(0, piece.shape[1])
            x, found = self.spectrogram(piece if gain is None else piece * gain, held)
            parts.append(add_deltas(x, found, config.deltas)[:, first - begin :][:, :STRETCH])
            counts = counts + (found - (first - begin)).clamp(0, STRETCH)
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1), counts

    def extra_repr(self) -> str:
        """Shown by `print(front_end)`."""
        return f"kind={self.config.kind}, sample_rate={self.sample_rate}, hop={self.hop}, dim={self.dim}"


def stack_frames(x: Tensor, lengths: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`count` consecutive frames of x (B, T, F) into one step (B, max(T // count, 1), count F); drops the remainder."""
    x = F.pad(x, (0, 0, 0, max(0, count - x.shape[1])))
    steps = x.shape[1] // count
    return x[:, : steps * count].reshape(x.shape[0], steps, count * x.shape[2]), lengths // count


def _spectrogram(config: FrontEndConfig) -> KaldiFbank | KaldiMfcc | LogSpectrogram | DecibelSpectrogram | Chromagram:
    size, hop = config.window_size, config.hop_size
    if config.kind in ("kaldi", "mfcc"):
        fbank = KaldiFbank(
            config.sample_rate,
            config.n_mels,
            size,
            hop,
            config.window or "povey",
            config.lowest_hz,
            config.high_hz,
            config.scale,
            config.power,
        )
        return fbank if config.kind == "kaldi" else KaldiMfcc(fbank, config.n_ceps, use_energy=config.use_energy)
    n_fft, window = config.n_fft or size, config.window or "hann"
    if config.kind == "linear":
        return DecibelSpectrogram(n_fft, size, hop, window)
    if config.kind == "chroma":
        return Chromagram(
            config.sample_rate,
            n_fft,
            size,
            hop,
            window,
            config.lowest_hz,
            config.high_hz or config.sample_rate / 2,
            config.power,
            config.log_floor,
            config.centred,
        )
    return LogSpectrogram(
        config.sample_rate,
        config.n_mels,
        n_fft,
        size,
        hop,
        window,
        config.lowest_hz,
        config.high_hz,
        config.mel_scale,
        config.mel_norm,
        config.power,
        config.log_floor,
        config.centred,
    )
