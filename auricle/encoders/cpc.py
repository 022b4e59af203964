"""The encoder of contrastive predictive coding: convolutions over the waveform, then a recurrent network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from auricle.config import Config
from auricle.encoders.base import Encoder, Frames, Stretch
from auricle.features.spectrum import exporting
from auricle.nn.conv import WaveformConvolutions
from auricle.nn.recurrent import onnx_recurrent

SAMPLE_RATE = 16_000
_KERNELS, _STRIDES, _PADDINGS = (10, 8, 4, 4, 4), (5, 4, 2, 2, 2), (3, 2, 1, 1, 1)
_STRETCH = 3000
"""Frames of a long clip that are computed at once; bounds memory."""


class CpcEncoderConfig(Config):
    """The network. The defaults are CPC_audio's."""

    channels: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (256, 256, 256, 256, 256)
    """Of the five convolutions, which take 5, 4, 2, 2, 2 samples or frames a step. The paper: 512 each. The first see
    the longest sequences, so narrow ones save most of the time."""
    context: Literal["lstm", "gru"] = "lstm"
    """Recurrent network over the frames: LSTM (CPC_audio), or GRU (the paper)."""
    context_dim: int = Field(256, ge=1)
    """Its width; 256 in both."""
    context_layers: int = Field(1, ge=1)
    """Its depth; 1 in both."""


class CpcEncoder(Encoder):
    """Layer 0 is z, the convolutions' output, 100 frames a second; layer 1 is c, the context up to each frame."""

    family: ClassVar[str] = "cpc"
    config: CpcEncoderConfig

    def __init__(self, config: CpcEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.convolutions = WaveformConvolutions(config.channels, _KERNELS, _STRIDES, _PADDINGS)
        network = nn.LSTM if config.context == "lstm" else nn.GRU
        self.context = network(config.channels[-1], config.context_dim, config.context_layers, batch_first=True)
        self.sample_rate = SAMPLE_RATE
        self.hop = self.convolutions.hop
        self.offset = self.convolutions.offset
        self.dims = (config.channels[-1], config.context_dim)

    def depths(self) -> dict[str, int]:
        """The blocks are the context's layers; the convolutions come before them."""
        names = [name for name, _ in self.named_parameters()]
        return {name: int(name.rpartition("_l")[2]) + 1 if name.startswith("context.") else 0 for name in names}

    def features(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """z (B, T, C) of waveforms (B, S), and lengths in frames."""
        parts = list(self._parts(waveforms, lengths))
        return torch.cat(parts, 1), self.convolutions.frames(lengths)

    def encode(self, x: Tensor, lengths: Tensor, *, layers: Sequence[int] | None = None) -> Frames:
        """z itself and its context c (B, T, D). The context is causal, so padding behind a clip does not reach it."""
        layers = range(len(self.dims)) if layers is None else layers
        context = self._context(x) if 1 in layers else x
        return Frames([context if layer else x for layer in layers], lengths)

    def stretches(self, waveforms: Tensor, lengths: Tensor, layers: Sequence[int] | None = None) -> Iterator[Stretch]:
        """What `forward` returns, half a minute at a time: the recurrent state is carried over, so it is the same."""
        layers = range(len(self.dims)) if layers is None else layers
        left, state = self.convolutions.frames(lengths), None
        for x in self._parts(waveforms, lengths):
            context = x
            if 1 in layers:
                context, state = self.context(x, state)
            states = [context if layer else x for layer in layers]
            yield torch.arange(len(x)), Frames(states, left.clamp(0, x.shape[1]))
            left = left - x.shape[1]

    def _context(self, x: Tensor) -> Tensor:
        if not exporting():
            return self.context(x)[0]  # type: ignore[no-any-return]
        for weights in self.context.all_weights:
            x = onnx_recurrent(self.context.mode, x, weights)  # type: ignore[arg-type]
        return x

    def _parts(self, waveforms: Tensor, lengths: Tensor) -> Iterator[Tensor]:
        """z in parts (B, t, C). Each is computed with what its frames see to either side, so that no seam shows."""
        if exporting():
            yield self.convolutions(waveforms, lengths)[0]
            return
        margin = -(-self.convolutions.reach // self.hop)
        total = int(self.convolutions.frames(torch.tensor(waveforms.shape[1])))
        for start in range(0, max(1, total), _STRETCH):
            first = max(0, start - margin)
            part = waveforms[:, first * self.hop : (start + _STRETCH + margin) * self.hop]
            x, _ = self.convolutions(part, (lengths - first * self.hop).clamp(0, part.shape[1]))
            yield x[:, start - first :][:, :_STRETCH]
