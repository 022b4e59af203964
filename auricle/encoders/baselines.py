"""Encoders that learn nothing, for comparison: what a probe can do with plain features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from auricle.config import Config
from auricle.encoders.base import Encoder, Frames
from auricle.features.deltas import replicate_edges
from auricle.features.frontend import FrontEnd, FrontEndConfig


class BaselineConfig(Config):
    """Features taken as they are: neither normalised nor mean-subtracted, so that loudness and channel stay."""

    front_end: FrontEndConfig
    """The features."""


class FbankConfig(BaselineConfig):
    """80 log-mel energies as Kaldi computes them."""

    front_end: FrontEndConfig = FrontEndConfig(kind="kaldi", normalize="none")
    """The features."""


class FbankContextConfig(FbankConfig):
    """`FbankConfig` with the frames around each."""

    context: int = Field(10, ge=0)
    """Frames to either side; beyond the clip's ends its first and last frame repeat."""


class MfccConfig(BaselineConfig):
    """13 cepstral coefficients of 23 mel bands as Kaldi computes them, with deltas and theirs: 39 channels."""

    front_end: FrontEndConfig = FrontEndConfig(kind="mfcc", n_mels=23, deltas=2, normalize="none")
    """The features."""


class ChromaConfig(BaselineConfig):
    """Log energies of the twelve pitch classes, A1 to A7, in windows that tell semitones of the bass apart."""

    front_end: FrontEndConfig = FrontEndConfig(
        kind="chroma",
        window_ms=256.0,
        hop_ms=40.0,
        n_fft=8192,
        low_hz=55.0,
        high_hz=3520.0,
        log_floor=100.0,
        normalize="none",
    )
    """The features."""


class _Baseline(Encoder):
    """Features as the only layer."""

    def __init__(self, config: BaselineConfig):
        super().__init__()
        self.config = config
        self.front_end = FrontEnd(config.front_end)
        self.sample_rate, self.hop, self.offset = self.front_end.sample_rate, self.front_end.hop, self.front_end.offset
        self.dims: tuple[int, ...] = (self.front_end.dim,)
        self.name = self.family

    def features(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms (B, S) and lengths (B,) in samples to features (B, T, F) and lengths (B,) in frames."""
        x: Tensor
        x, lengths = self.front_end(waveforms, lengths)
        return x, lengths

    def encode(self, x: Tensor, lengths: Tensor, *, layers: Sequence[int] | None = None) -> Frames:
        """Features (B, T, F) as hidden states: layer 0, once for each time `layers` asks for it."""
        hidden_states = [x]
        return Frames(hidden_states if layers is None else [hidden_states[layer] for layer in layers], lengths)


class Fbank(_Baseline):
    """A frame of log-mel energies: 80 channels every 10 ms."""

    family = "fbank"
    config: FbankConfig


class FbankContext(_Baseline):
    """A frame of log-mel energies with ten neighbours to either side: 21 x 80 channels, the earliest frame first."""

    family = "fbank-context"
    config: FbankContextConfig

    def __init__(self, config: FbankContextConfig):
        super().__init__(config)
        self.dims = (self.front_end.dim * (2 * config.context + 1),)

    def encode(self, x: Tensor, lengths: Tensor, *, layers: Sequence[int] | None = None) -> Frames:
        """Features (B, T, F) with their neighbours (B, T, (2 context + 1) F) as the only hidden state."""
        width = 2 * self.config.context + 1
        padded = replicate_edges(x, lengths, self.config.context)
        neighbours = torch.cat([padded[:, shift : shift + x.shape[1]] for shift in range(width)], dim=-1)
        return super().encode(neighbours, lengths, layers=layers)


class Mfcc(_Baseline):
    """Cepstral coefficients with deltas: 39 channels every 10 ms."""

    family = "mfcc"
    config: MfccConfig


class Chroma(_Baseline):
    """How much of each pitch class sounds, whatever the octave: 12 channels, C first, every 40 ms."""

    family = "chroma"
    config: ChromaConfig
