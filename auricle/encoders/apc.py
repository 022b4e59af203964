"""APC's encoder: spectral frames, then a network that looks back only, recurrent or a causal Transformer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from auricle.config import Config
from auricle.encoders.base import Encoder, Frames, Stretch
from auricle.features.frontend import FrontEnd, FrontEndConfig
from auricle.features.normalize import frame_mask
from auricle.features.spectrum import exporting
from auricle.nn.entropy import attention_entropy
from auricle.nn.gru import GruStack
from auricle.nn.linear import Linear
from auricle.nn.positions import SinusoidalPositions
from auricle.nn.transformer import Dropout, Transformer, init_weights
from auricle.nn.windows import encode_long, pieces

STRETCH = 4000
"""Frames of long clips that the GRUs take at once; bounds memory, and changes nothing."""


class ApcEncoderConfig(Config):
    """Front end and network. The defaults are the paper's: three GRUs of 512."""

    front_end: FrontEndConfig = FrontEndConfig(kind="kaldi")
    """Spectral features, stored with the weights. `normalize: utterance` (papers and codes) takes mean and variance
    from the whole clip, so that features know of its end, though the network does not; with `none`, each channel is
    normalised by its statistics over the training data instead, and no frame knows of any that comes after it. (Nor may
    `level_db` be set then: the level, too, is the whole clip's.)"""
    core: Literal["gru", "causal_transformer"] = "gru"
    """`gru`: the paper's; its state runs through clips of any length. `causal_transformer`: faster to train where there
    are few cores or short clips."""
    dim: int = Field(512, ge=2)
    """Channels of every hidden state past layer 0: 512 in the paper and S3PRL, 768 in Mockingjay's baseline."""
    layers: int = Field(3, ge=1)
    """GRUs, or Transformer blocks."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """On each GRU's output, before the residual sum; on the embedding and on what each Transformer block adds. 0 in the
    official code, 0.1 in S3PRL."""
    residual: bool = True
    """`gru`: every layer but the first adds its input. Off by default in the official code, on in its releases."""
    drop_last: bool = False
    """`gru`: dropout on the last layer too, as in S3PRL; the official code leaves it out."""
    heads: int = Field(8, ge=1)
    """`causal_transformer`: attention heads."""
    ffn: int = Field(2048, ge=1)
    """`causal_transformer`: width inside the feed-forward part."""
    position_jitter: int = Field(0, ge=0)
    """`causal_transformer`: in training every clip's positions start at a random step in 0..position_jitter."""
    chunk_frames: int = Field(1600, ge=4)
    """`causal_transformer`: longest stretch, in steps, that attention sees at inference; longer clips are encoded in
    windows of this length that overlap by half, of which the second halves are kept. Best the length of the crops."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.core == "causal_transformer" and self.dim % self.heads:
            raise ValueError(f"dim: {self.dim} is not a multiple of heads, {self.heads}")
        return self


class ApcEncoder(Encoder):
    """Layer 0 enters the first block: the features before GRUs (F channels), their embedding before a Transformer."""

    family: ClassVar[str] = "apc"
    config: ApcEncoderConfig
    mean: Tensor
    scale: Tensor

    def __init__(self, config: ApcEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.front_end = FrontEnd(config.front_end)
        self.sample_rate = self.front_end.sample_rate
        self.hop = self.front_end.hop
        self.offset = self.front_end.offset
        self.core: GruStack | CausalTransformer
        if config.core == "gru":
            self.core = GruStack(
                self.front_end.dim,
                config.dim,
                config.layers,
                residual=config.residual,
                dropout=config.dropout,
                drop_last=config.drop_last,
            )
        else:
            self.core = CausalTransformer(self.front_end.dim, config)
        first = self.front_end.dim if config.core == "gru" else config.dim
        self.dims = (first,) + (config.dim,) * config.layers
        if config.front_end.normalize == "none":
            self.register_buffer("mean", torch.zeros(self.front_end.dim))
            self.register_buffer("scale", torch.ones(self.front_end.dim))

    def features(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised spectral features (B, T, F) of waveforms (B, S), and lengths in steps."""
        x, lengths = self.front_end(waveforms, lengths)
        if self.config.front_end.normalize == "none":
            x = torch.where(frame_mask(x, lengths), (x - self.mean) * self.scale, 0)
        return x, lengths

    def encode(self, x: Tensor, lengths: Tensor, *, layers: Sequence[int] | None = None) -> Frames:
        """Hidden states of features (B, T, F), each frame's from it and those before it.

        In evaluation mode the Transformer takes clips past `chunk_frames` in windows.
        """
        layers = range(len(self.dims)) if layers is None else layers
        if isinstance(self.core, GruStack):
            states, _ = self.core(x, lengths, self.core.initial(x.shape[0], x), layers)
            return Frames(states, lengths)
        if self._is_long(x):
            dims = [self.dims[layer] for layer in layers]
            run = partial(self.core, layers=layers)
            return Frames(encode_long(run, x, lengths, self.config.chunk_frames, dims, causal=True), lengths)
        return Frames(self.core(x, lengths, layers), lengths)

    def stretches(self, waveforms: Tensor, lengths: Tensor, layers: Sequence[int] | None = None) -> Iterator[Stretch]:
        """What `forward` returns, some frames of long clips at a time: the state runs on, windows follow each other."""
        x, lengths = self.features(waveforms, lengths)
        layers = range(len(self.dims)) if layers is None else layers
        if isinstance(self.core, GruStack):
            state = self.core.initial(len(x), x)
            for start in range(0, x.shape[1], STRETCH):
                part = x[:, start : start + STRETCH]
                found = (lengths - start).clamp(0, part.shape[1])
                states, state = self.core(part, found, state, layers)
                yield torch.arange(len(x)), Frames(states, found)
        elif self._is_long(x):
            run = partial(self.core, layers=layers)
            for clip, states in pieces(run, x, lengths, self.config.chunk_frames, causal=True):
                yield torch.tensor([clip]), Frames([state[None] for state in states], torch.tensor([len(states[0])]))
        else:
            yield torch.arange(len(x)), self.encode(x, lengths, layers=layers)

    def attention_entropy(self, frames: Frames) -> Tensor | None:
        """As the contract says; a clip past `chunk_frames` is looked at as a whole."""
        if isinstance(self.core, GruStack):
            return None
        return attention_entropy(self.core.transformer, frames.hidden_states, frames.lengths)

    def _is_long(self, x: Tensor) -> bool:
        one_pass = self.training or exporting()
        return not one_pass and x.shape[1] > self.config.chunk_frames


class CausalTransformer(nn.Module):
    """Linear(F → D) + sinusoids, LayerNorm and dropout (layer 0), then a pre-norm causal Transformer."""

    def __init__(self, input_dim: int, config: ApcEncoderConfig) -> None:
        super().__init__()
        self.project = Linear(input_dim, config.dim).apply(init_weights)
        self.positions = SinusoidalPositions(config.dim, config.chunk_frames, config.position_jitter)
        self.norm = nn.LayerNorm(config.dim)
        self.dropout = Dropout(config.dropout)
        self.transformer = Transformer(
            config.dim,
            config.layers,
            config.heads,
            config.ffn,
            dropout=config.dropout,
            attention_dropout=config.dropout,
            norm="pre",
            norm_eps=1e-5,
            causal=True,
        )

    def forward(self, x: Tensor, lengths: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """x (B, T, F) and true lengths (B,) to the hidden states asked for, each (B, T, D)."""
        x = self.dropout(self.norm(self.positions(self.project(x))))
        return self.transformer(x, lengths, layers)  # type: ignore[no-any-return]
