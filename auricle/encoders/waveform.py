"""The speech models' encoder, for music too: convolutions over the waveform, then a Transformer (HuBERT, data2vec).

wav2vec 2.0 (Baevski et al. 2020, arXiv:2006.11477) brought the network, HuBERT (Hsu et al. 2021, arXiv:2106.07447) kept
it, data2vec (Baevski et al. 2022, arXiv:2202.03555) changed the norms and the positions. What is said of fairseq and of
transformers was read in their code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from auricle.config import Config
from auricle.encoders.base import Encoder, Frames, Stretch
from auricle.features.spectrum import exporting
from auricle.nn.conv import Moments, WaveformConvolutions
from auricle.nn.entropy import attention_entropy
from auricle.nn.linear import Linear
from auricle.nn.positional import PositionalConvolutions, PositionStyle
from auricle.nn.transformer import Dropout, Taps, Transformer
from auricle.nn.windows import Cut, encode_long, pieces

_CACHED_FRAMES = 200
"""Frames whose convolutions are computed together on the CPU."""


class WaveformConfig(Config):
    """The network. The defaults are HuBERT's BASE."""

    sample_rate: PositiveInt = 16_000
    """Hz. With the default strides 16 kHz gives 50 frames a second, 24 kHz (MERT) 75."""
    channels: PositiveInt = 512
    """Of every convolution. The first see the longest sequences: narrow ones save most of the time."""
    kernels: tuple[PositiveInt, ...] = (10, 3, 3, 3, 3, 2, 2)
    """Samples, then frames, that each convolution sees."""
    strides: tuple[PositiveInt, ...] = (5, 2, 2, 2, 2, 2, 2)
    """Samples, then frames, between its places; their product, 320, is the hop."""
    conv_norm: Literal["group", "layer"] = "group"
    """Normalise each channel of the first convolution over the clip (HuBERT BASE), or each frame of every convolution
    over its channels (data2vec, the LARGE models)."""
    conv_bias: bool = False
    """The convolutions add a bias; so in the LARGE models."""
    normalize: bool = False
    """What the network is given (in training a crop, else a clip) gets mean 0 and variance 1: so data2vec and the LARGE
    models. fairseq does it to whole files before they are cropped."""
    normalize_eps: float = Field(1e-5, gt=0)
    """Added to that variance: fairseq 1e-5, transformers 1e-7."""
    dim: PositiveInt = 768
    """Channels of every hidden state; a multiple of `heads` and `position_groups`."""
    layers: PositiveInt = 12
    """Blocks of the Transformer."""
    heads: PositiveInt = 12
    """Attention heads."""
    ffn: PositiveInt = 3072
    """Width inside the feed-forward part."""
    norm: Literal["post", "pre"] = "post"
    """LayerNorm after each residual sum, or before each part and at the end (the LARGE models; steadier when deep)."""
    norm_eps: float = Field(1e-5, gt=0)
    """LayerNorm's epsilon, inside the root."""
    position_style: PositionStyle = "weight_norm"
    """Where a frame is told by a convolution over its neighbours, added to it: `weight_norm` one of weights whose norm
    is learned apart (HuBERT, wav2vec 2.0); `stacked` several, with LayerNorm in between (data2vec); `batch_norm` one
    behind a batch norm of fixed statistics (transformers' `conv_pos_batch_norm`)."""
    position_layers: PositiveInt = 1
    """How many of them: data2vec 5, the other styles 1."""
    position_kernel: PositiveInt = 128
    """Frames that each sees: HuBERT 128, data2vec 19."""
    position_groups: PositiveInt = 16
    """Groups of channels, each convolved by itself."""
    input_dropout: float = Field(0.1, ge=0, lt=1)
    """On the projected features: HuBERT 0.1, data2vec 0."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """On the Transformer's input and on what each part of a block adds."""
    attention_dropout: float = Field(0.1, ge=0, lt=1)
    """On the attention weights."""
    activation_dropout: float = Field(0.0, ge=0, lt=1)
    """Inside the feed-forward part."""
    padding: Literal["exact", "transformers"] = "exact"
    """What becomes of padding in a batch. `exact`: nothing, a clip gets the same frames as alone. `transformers`: as
    there, where the group norm counts it, and all but the first of stacked positional convolutions see it."""
    chunk_frames: int = Field(1500, ge=4)
    """Longest stretch, in frames, that attention sees at inference; longer clips are encoded in windows of this length
    that overlap by half, of which the centres are kept. Best the length of the crops in training."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.dim % self.heads or self.dim % self.position_groups:
            raise ValueError(
                f"dim: {self.dim} is not a multiple of heads, {self.heads}, and position_groups, {self.position_groups}"
            )
        if not self.kernels or len(self.kernels) != len(self.strides):
            raise ValueError(f"kernels: {len(self.kernels)} of them for {len(self.strides)} strides")
        if any(kernel < stride for kernel, stride in zip(self.kernels, self.strides, strict=True)):
            raise ValueError("strides: longer than the kernel, a convolution would skip samples")
        if self.position_layers > 1 and self.position_style != "stacked":
            raise ValueError(f"position_layers: style '{self.position_style}' has one; 'stacked' takes several")
        return self


class Context(nn.Module):
    """What follows the projection: positions, a norm, the Transformer. data2vec's teacher is a copy of this."""

    def __init__(self, config: WaveformConfig) -> None:
        super().__init__()
        self.positions = PositionalConvolutions(
            config.dim,
            config.position_layers,
            config.position_kernel,
            config.position_groups,
            config.position_style,
            leak=config.padding == "transformers",
        )
        post = config.norm == "post"
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps) if post else nn.Identity()
        self.dropout = Dropout(config.dropout)
        self.transformer = Transformer(
            config.dim,
            config.layers,
            config.heads,
            config.ffn,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
            activation_dropout=config.activation_dropout,
            norm=config.norm,
            norm_eps=config.norm_eps,
        )

    def forward(
        self,
        x: Tensor,
        lengths: Tensor | None,
        layers: Sequence[int] | None = None,
        *,
        taps: Taps = "block",
        keep: Tensor | None = None,
    ) -> list[Tensor]:
        """Projected features x (B, T, D), and lengths (B,), None where no clip is padded, to hidden states (B, T, D).

        Layer 0 is what enters the first block. `layers`, `taps` and `keep` as in `Transformer`.
        """
        x = self.dropout(self.norm(x + self.positions(x, lengths)))
        return self.transformer(x, lengths, layers, taps=taps, keep=keep)  # type: ignore[no-any-return]


class WaveformEncoder(Encoder):
    """Convolutions, LayerNorm and Linear(C → D), positions and norm (layer 0), a Transformer (layers 1 to L).

    Initialised as in fairseq: convolutions Kaiming normal, the Transformer as BERT, the projection as PyTorch does.
    """

    family: ClassVar[str] = "waveform"
    config: WaveformConfig

    def __init__(self, config: WaveformConfig) -> None:
        super().__init__()
        self.config = config
        count = len(config.kernels)
        self.convolutions = WaveformConvolutions(
            [config.channels] * count,
            config.kernels,
            config.strides,
            [0] * count,
            bias=config.conv_bias,
            norm=config.conv_norm,
            activation=F.gelu,
        )
        for module in self.convolutions.modules():
            if isinstance(module, nn.Conv1d):
                nn.init.kaiming_normal_(module.weight)
        self.projection = nn.Sequential(
            nn.LayerNorm(config.channels, eps=config.norm_eps), Linear(config.channels, config.dim)
        )
        self.mask_vector = nn.Parameter(torch.rand(config.dim))
        self.input_dropout = Dropout(config.input_dropout)
        self.context = Context(config)
        self.sample_rate = config.sample_rate
        self.hop = self.convolutions.hop
        self.offset = self.convolutions.offset
        self.dims = (config.dim,) * (config.layers + 1)

    def features(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """What the last convolution gives, raw, (B, T, C), of waveforms (B, S); and lengths in frames (B,)."""
        waveforms, seen, frames = self._prepared(waveforms, lengths)
        whole = waveforms.device.type != "cpu" and not self._is_long(waveforms)
        if whole or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.convolutions(waveforms, seen)[0], frames
        cut = self._cutter(waveforms, seen)
        return pad_sequence([cut(clip, 0, max(count, 1)) for clip, count in enumerate(frames.tolist())], True), frames

    def project(self, x: Tensor) -> Tensor:
        """What `features` gives (B, T, C) to the Transformer's width, (B, T, D); no dropout."""
        return self.projection(x)  # type: ignore[no-any-return]

    def hidden(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x (B, T, D) with the learned `mask_vector` in the place of the frames in `mask` (B, T), if there is one."""
        return x if mask is None else torch.where(mask[..., None], self.mask_vector.to(x.dtype), x)

    def encode(
        self,
        x: Tensor,
        lengths: Tensor,
        *,
        layers: Sequence[int] | None = None,
        taps: Taps = "block",
        mask: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Frames:
        """Hidden states of features (B, T, C); in evaluation mode clips past `chunk_frames` are encoded in windows.

        Frames in `mask` (B, T) are hidden from the network. `taps` and `keep` (L,) as in `Transformer`.
        """
        layers = range(len(self.dims)) if layers is None else layers
        x = self.hidden(self.input_dropout(self.project(x)), mask)
        encode = partial(self.context, layers=layers, taps=taps, keep=keep)
        one_pass = self.training or exporting()
        if not one_pass and x.shape[1] > self.config.chunk_frames:
            dims = [self.dims[layer] for layer in layers]
            return Frames(encode_long(encode, x, lengths, self.config.chunk_frames, dims), lengths)
        return Frames(encode(x, lengths), lengths)

    def compile_networks(self) -> None:
        """The convolutions too, whose norms and activations cost as much as their products when left apart."""
        self.features = torch.compile(self.features, dynamic=True)  # type: ignore[method-assign]
        super().compile_networks()

    def attention_entropy(self, frames: Frames) -> Tensor | None:
        """As the contract says; a clip past `chunk_frames` is looked at as a whole."""
        return attention_entropy(self.context.transformer, frames.hidden_states, frames.lengths)

    def stretches(self, waveforms: Tensor, lengths: Tensor, layers: Sequence[int] | None = None) -> Iterator[Stretch]:
        """What `forward` returns: all at once, or of clips past `chunk_frames` some windows at a time."""
        if not self._is_long(waveforms):
            yield torch.arange(len(waveforms)), self(waveforms, lengths, layers)
            return
        layers = range(len(self.dims)) if layers is None else layers
        waveforms, seen, frames = self._prepared(waveforms, lengths)

        def encode(x: Tensor, lengths: Tensor) -> list[Tensor]:
            return self.context(self.project(x), lengths, layers)  # type: ignore[no-any-return]

        for clip, states in pieces(encode, self._cutter(waveforms, seen), frames, self.config.chunk_frames):
            yield torch.tensor([clip]), Frames([state[None] for state in states], torch.tensor([len(states[0])]))

    def _is_long(self, waveforms: Tensor) -> bool:
        return not self.training and waveforms.shape[1] >= self.hop * self.config.chunk_frames + self.convolutions.reach

    def _prepared(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Waveforms as the convolutions take them, the lengths (B,) that a group norm sees, and frame counts (B,)."""
        seen = lengths if self.config.padding == "exact" else torch.full_like(lengths, waveforms.shape[1])
        return self._normalized(waveforms, lengths), seen, self.convolutions.frames(lengths)

    def _cutter(self, waveforms: Tensor, seen: Tensor) -> Cut:
        """Frames of the convolutions' output, computed when they are asked for, some at a time.

        On the CPU so few that their activations stay in its cache: the first convolution's alone are 100 times the
        waveform, and fetching them from memory would take longer than the products.
        """
        waveforms = F.pad(waveforms, (0, max(0, self.convolutions.reach - waveforms.shape[1])))
        moments = self.convolutions.moments(waveforms, seen)
        step = _CACHED_FRAMES if waveforms.device.type == "cpu" else self.config.chunk_frames

        def cut(clip: int, start: int, stop: int) -> Tensor:
            of_clip = None if moments is None else Moments(*(moment[clip : clip + 1] for moment in moments))
            parts = []
            for begin in range(start, max(stop, start + 1), step):
                end = (min(begin + step, stop) - 1) * self.hop + self.convolutions.reach
                parts.append(self.convolutions(waveforms[clip : clip + 1, begin * self.hop : end], None, of_clip)[0][0])
            return torch.cat(parts)[: stop - start]

        return cut

    def _normalized(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """With `normalize`, each clip with mean 0 and variance 1 over its true samples, and zeros past them."""
        if not self.config.normalize:
            return waveforms
        valid = torch.arange(waveforms.shape[1], device=waveforms.device) < lengths[:, None]
        count = lengths.clamp_min(1)[:, None]
        centred = torch.where(valid, waveforms - torch.where(valid, waveforms, 0).sum(1, keepdim=True) / count, 0)
        variance = centred.square().sum(1, keepdim=True) / count
        return centred * (variance + self.config.normalize_eps).rsqrt()
