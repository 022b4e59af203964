"""MAE-AST's encoder: tokens of a standardised filter bank, sinusoids, a Transformer that may see some tokens only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from auricle.encoders.base import Frames
from auricle.encoders.mel_transformer import MelTransformer, MelTransformerConfig
from auricle.encoders.vit import init_vit
from auricle.features.frontend import FrontEndConfig
from auricle.features.normalize import frame_mask
from auricle.nn.linear import Linear
from auricle.nn.patches import Tokens, gather_tokens, patchify
from auricle.nn.positions import SinusoidalPositions

EPSILON = 1e-5
"""Added to the variance of the filter bank, as batch norms do."""


class MaeAstEncoderConfig(MelTransformerConfig):
    """Front end, tokens and network. The defaults are the 12-layer patch model."""

    front_end: FrontEndConfig = FrontEndConfig(kind="kaldi", n_mels=128, scale="unit", normalize="none", stack=16)
    """Kaldi's filter bank of 128 bands, not normalised; `stack` is the frames that a token covers: 16 for patches, 2
    for frame tokens."""
    bands: int = Field(8, ge=1)
    """Tokens in one step, one above the other: 8 patches of 16 mel bands each; 1 for frame tokens."""
    mean: float = -4.27
    """What the mean of the filter bank is taken for until it is measured on what is heard (about AudioSet's)."""
    std: float = Field(4.57, gt=0)
    """The same of its standard deviation."""
    join: Literal["mean", "concat"] = "mean"
    """How the tokens of one step become a frame: their mean, or side by side (`bands` times `dim` channels)."""
    layers: int = Field(12, ge=1)
    """Blocks: 12, or 6 in the smaller models."""
    norm_eps: float = Field(1e-5, gt=0)
    """LayerNorm's epsilon, inside the root."""
    chunk_frames: int = Field(97, ge=4)
    """Longest stretch, in steps, that attention sees at inference; longer clips are encoded in windows of this length
    that overlap by half, of which the centres are kept. Best the length of the crops in training."""

    @model_validator(mode="after")
    def _tokens(self) -> Self:
        if self.front_end.n_mels % self.bands:
            raise ValueError(f"bands: {self.front_end.n_mels} mel bands are no multiple of {self.bands}")
        if self.front_end.normalize != "none":
            raise ValueError("front_end.normalize: 'none' here, since the whole filter bank gets one mean and variance")
        return self


class MaeAstEncoder(MelTransformer):
    """Mockingjay's network on tokens of a filter bank that has mean 0 and standard deviation 0.5 over all channels.

    A frame is a step of `front_end.stack` spectral frames; it holds `bands` tokens, low frequencies first. What the
    original's batch norm tracks while training (`mean`, `variance`) is measured once, before it (`fit`): then a clip's
    loss depends on no other clip.
    """

    family: ClassVar[str] = "mae_ast"
    config: MaeAstEncoderConfig
    mean: Tensor
    variance: Tensor

    def __init__(self, config: MaeAstEncoderConfig) -> None:
        super().__init__(config)
        self.patch = (config.front_end.stack, self.front_end.dim // config.front_end.stack // config.bands)
        self.token_dim = self.patch[0] * self.patch[1]
        self.dims = (config.dim * (config.bands if config.join == "concat" else 1),) * (config.layers + 1)
        self.project = Linear(self.token_dim, config.dim)
        self.apply(init_vit)
        self.positions = SinusoidalPositions(config.dim, config.chunk_frames * config.bands, config.position_jitter)
        self.register_buffer("mean", torch.tensor(config.mean))
        self.register_buffer("variance", torch.tensor(config.std**2 - EPSILON))

    def features(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised filter bank (B, T, F), each step's spectral frames side by side; and lengths in steps (B,)."""
        x, lengths = self.front_end(waveforms, lengths)
        x = (x - self.mean) * (0.5 * (self.variance + EPSILON).rsqrt())
        return torch.where(frame_mask(x, lengths), x, 0), lengths

    @torch.no_grad()
    def fit(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Measure `mean` and `variance` over all true values of waveforms (B, S) with lengths (B,) in samples."""
        count = total = squares = torch.zeros((), dtype=torch.float64)
        for waveforms, samples in batches:
            x, lengths = self.front_end(waveforms, samples)
            x = x[frame_mask(x, lengths)[:, :, 0]].double().cpu() - self.config.mean
            count, total, squares = count + x.numel(), total + x.sum(), squares + x.square().sum()
        shift = total / count.clamp_min(1)
        self.mean.copy_(self.config.mean + shift)
        self.variance.copy_(squares / count.clamp_min(1) - shift.square())

    def tokens(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, T, F) as tokens (B, T · bands, P), those of a step one after the other; their counts (B,)."""
        frames = x.reshape(x.shape[0], -1, x.shape[2] // self.patch[0])  # (B, T · stack, mel bands)
        return patchify(frames, self.patch), lengths * self.config.bands

    def encode(
        self, x: Tensor, lengths: Tensor, *, layers: Sequence[int] | None = None, visible: Tokens | None = None
    ) -> Frames:
        """Hidden states of features (B, T, F): frames (B, T, D), or with `visible` (B, V, D) those tokens, unjoined.

        Only the tokens that are `visible` are computed. Without it, in evaluation mode, clips past `chunk_frames` are
        encoded in windows.
        """
        if visible is None:
            return super().encode(x, lengths, layers=layers)
        tokens, _ = self.tokens(x, lengths)
        codes = self.positions(x.new_zeros(*tokens.shape[:2], self.config.dim))
        seen = self.project(gather_tokens(tokens, visible.index)), gather_tokens(codes, visible.index)
        return Frames(self._blocks(*seen, visible.counts, layers), visible.counts)

    def attention_entropy(self, frames: Frames) -> Tensor | None:
        """As the contract says; None where a frame is no token."""
        return super().attention_entropy(frames) if self.config.bands == 1 else None

    def _encode(self, x: Tensor, lengths: Tensor, layers: Sequence[int]) -> list[Tensor]:
        x, counts = self.tokens(x, lengths)
        x = self.project(x)
        states = self._blocks(x, self.positions(torch.zeros_like(x)), counts, layers)
        steps = [state.view(x.shape[0], -1, self.config.bands, self.config.dim) for state in states]
        return [step.flatten(2) if self.config.join == "concat" else step.mean(2) for step in steps]

    def _blocks(self, x: Tensor, codes: Tensor, counts: Tensor, layers: Sequence[int] | None) -> list[Tensor]:
        """Projected tokens (B, N, D) and their position codes, of which `counts` (B,) are true, to hidden states."""
        x = self.dropout(self.norm(self.dropout(x) + codes))
        return self.transformer(x, counts, layers)  # type: ignore[no-any-return]
