"""The Mockingjay family's encoder: spectral frames, a projection with sinusoidal positions, a Transformer stack."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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
from auricle.nn.linear import Linear
from auricle.nn.positions import SinusoidalPositions
from auricle.nn.transformer import Dropout, Transformer, init_weights
from auricle.nn.windows import encode_long, pieces


class MelTransformerConfig(Config):
    """Front end and network. The defaults are BASE: 3 layers of 768."""

    front_end: FrontEndConfig = FrontEndConfig(kind="stft", level_db=-25.0)
    """Spectral features, stored with the weights. Default: S3PRL's online path, 80 log-mel bands, 25 ms every 10 ms."""
    standardize: bool = False
    """Each channel gets mean 0 and variance 1 over training data, by statistics that are measured before the first step
    and stored with the weights. It takes `front_end.normalize` 'none', and unlike 'utterance' leaves in a clip what
    lasts as long as the clip: a note's pitch, a voice."""
    dim: int = Field(768, ge=2)
    """Channels of every hidden state; a multiple of `heads`."""
    layers: int = Field(3, ge=1)
    """Blocks: 3 in BASE, 12 in LARGE."""
    heads: int = Field(12, ge=1)
    """Attention heads."""
    ffn: int = Field(3072, ge=1)
    """Width inside the feed-forward part."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """On the embedding and on what each block adds. 0.1 in Mockingjay and TERA's release; 0.3 in many TERA recipes."""
    attention_dropout: float = Field(0.1, ge=0, lt=1)
    """On the attention weights."""
    norm: Literal["post", "pre"] = "post"
    """LayerNorm after each residual sum (paper and code), or before each part and at the end (steadier when deep)."""
    norm_eps: float = Field(1e-12, gt=0)
    """LayerNorm's epsilon, inside the root."""
    state_norms: bool = False
    """Every hidden state but the last is returned through a LayerNorm of its own, as in S3PRL's pre-norm models."""
    shared_layers: bool = False
    """One block's weights serve all layers (AudioALBERT)."""
    position_jitter: int = Field(0, ge=0)
    """In training every clip's positions start at a random frame in 0..position_jitter; 0 in the papers."""
    chunk_frames: int = Field(1500, ge=4)
    """Longest stretch, in frames, that attention sees at inference; longer clips are encoded in windows of this length
    that overlap by half, of which the centres are kept. Best the length of the crops in training."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.dim % self.heads:
            raise ValueError(f"dim: {self.dim} is not a multiple of heads, {self.heads}")
        if self.standardize and self.front_end.normalize != "none":
            raise ValueError(f"standardize: front_end.normalize '{self.front_end.normalize}' has done it by the clip")
        return self


class MelTransformer(Encoder):
    """Linear(F → D) + sinusoids, LayerNorm and dropout (layer 0), then a Transformer (layers 1 to L)."""

    family: ClassVar[str] = "mel_transformer"
    config: MelTransformerConfig
    mean: Tensor
    scale: Tensor

    def __init__(self, config: MelTransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.front_end = FrontEnd(config.front_end)
        self.sample_rate = self.front_end.sample_rate
        self.hop = self.front_end.hop
        self.offset = self.front_end.offset
        self.dims = (config.dim,) * (config.layers + 1)
        self.project = Linear(self.front_end.dim, config.dim)
        self.project.apply(init_weights)
        self.positions = SinusoidalPositions(config.dim, config.chunk_frames, config.position_jitter)
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.dropout = Dropout(config.dropout)
        self.transformer = Transformer(
            config.dim,
            config.layers,
            config.heads,
            config.ffn,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
            norm=config.norm,
            norm_eps=config.norm_eps,
            shared=config.shared_layers,
            state_norms=config.state_norms,
        )
        if config.standardize:
            self.register_buffer("mean", torch.zeros(self.front_end.dim))
            self.register_buffer("scale", torch.ones(self.front_end.dim))

    def features(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Spectral features (B, T, F) of waveforms (B, S), and lengths in frames."""
        x, lengths = self.front_end(waveforms, lengths)
        if self.config.standardize:
            x = torch.where(frame_mask(x, lengths), (x - self.mean) * self.scale, 0)
        return x, lengths

    @torch.no_grad()
    def fit(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Measure each channel's mean and scale on waveforms (B, S) with lengths (B,), if it is to `standardize`."""
        if self.config.standardize:
            spectra = (self.front_end(*batch) for batch in batches)
            frames = torch.cat([x[frame_mask(x, lengths)[..., 0]].double() for x, lengths in spectra])  # (N, F)
            self.mean.copy_(frames.mean(0))
            self.scale.copy_((frames.var(0, correction=0) + 1e-5).rsqrt())

    def encode(self, x: Tensor, lengths: Tensor, *, layers: Sequence[int] | None = None) -> Frames:
        """Hidden states of features (B, T, F); in evaluation mode clips past `chunk_frames` are encoded in windows."""
        layers = range(len(self.dims)) if layers is None else layers
        encode = partial(self._encode, layers=layers)
        if self._is_long(x):
            dims = [self.dims[layer] for layer in layers]
            return Frames(encode_long(encode, x, lengths, self.config.chunk_frames, dims), lengths)
        return Frames(encode(x, lengths), lengths)

    def attention_entropy(self, frames: Frames) -> Tensor | None:
        """As the contract says; a clip past `chunk_frames` is looked at as a whole. None with `state_norms`."""
        if self.config.state_norms:
            return None
        return attention_entropy(self.transformer, frames.hidden_states, frames.lengths)

    def stretches(self, waveforms: Tensor, lengths: Tensor, layers: Sequence[int] | None = None) -> Iterator[Stretch]:
        """What `forward` returns: all at once, or of clips past `chunk_frames` some windows at a time."""
        x, lengths = self.features(waveforms, lengths)
        if not self._is_long(x):
            yield torch.arange(len(x)), self.encode(x, lengths, layers=layers)
            return
        encode = partial(self._encode, layers=range(len(self.dims)) if layers is None else layers)
        for clip, states in pieces(encode, x, lengths, self.config.chunk_frames):
            yield torch.tensor([clip]), Frames([state[None] for state in states], torch.tensor([len(states[0])]))

    def _is_long(self, x: Tensor) -> bool:
        one_pass = self.training or exporting()
        return not one_pass and x.shape[1] > self.config.chunk_frames

    def _encode(self, x: Tensor, lengths: Tensor, layers: Sequence[int]) -> list[Tensor]:
        x = self.dropout(self.norm(self.positions(self.project(x))))
        return self.transformer(x, lengths, layers)  # type: ignore[no-any-return]
