"""Audio-MAE's encoder: a Vision Transformer on patches of a log-mel filter bank, of any length, in full or in part."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from auricle.config import Config
from auricle.encoders.base import Encoder, Frames, Stretch
from auricle.features.fbank import EPSILON
from auricle.features.frontend import FrontEnd, FrontEndConfig
from auricle.features.normalize import frame_mask
from auricle.features.spectrum import exporting
from auricle.nn.linear import Linear
from auricle.nn.patches import Tokens, gather_tokens, pad_frames, patch_steps, patchify
from auricle.nn.positions import GridPositions, Layout
from auricle.nn.transformer import Transformer
from auricle.nn.windows import encode_long, pieces


class VitConfig(Config):
    """Front end, patches and network. The defaults are Audio-MAE's ViT-B."""

    front_end: FrontEndConfig = FrontEndConfig(kind="kaldi", n_mels=128, window="hann", scale="unit", normalize="none")
    """Kaldi's log-mel filter bank, stored with the weights. (The original also subtracts the clip's mean from the
    waveform; Kaldi's own subtraction in every frame makes that void.)"""
    mean: float = -4.2677393
    """Subtracted from the log energies. Audio-MAE: -4.2677 (AudioSet), -6.6268 (ESC-50), -6.8460 (Speech Commands)."""
    std: float = Field(4.5689974, gt=0)
    """They are divided by twice this. Audio-MAE: 4.5690 (AudioSet), 5.3585 (ESC-50), 5.5655 (Speech Commands)."""
    fixed_frames: int | None = Field(None, ge=1)
    """The released run: shorter clips are followed, up to so many frames (1024), by log energy 0, which is loud, and
    attention sees it. None: attention sees true patches alone; what the last of them lacks is silence."""
    patch_frames: int = Field(16, ge=1)
    """Frames of a patch."""
    patch_mels: int = Field(16, ge=1)
    """Mel bands of a patch."""
    positions: Layout = "grid"
    """`grid`: sinusoids of step and band; `audiomae`: the released weights' table, made for the transposed grid and
    stored with them."""
    dim: int = Field(768, ge=4)
    """Channels of a token; a multiple of 4 and of `heads`."""
    layers: int = Field(12, ge=1)
    """Blocks."""
    heads: int = Field(12, ge=1)
    """Attention heads."""
    ffn: int = Field(3072, ge=1)
    """Width inside the feed-forward part."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """On what each block adds."""
    norm_eps: float = Field(1e-6, gt=0)
    """LayerNorm's epsilon, inside the root."""
    final_norm: bool = True
    """A LayerNorm after the last block; fine-tuned Audio-MAEs have theirs after pooling instead."""
    join: Literal["mean", "concat"] = "mean"
    """How the patches of one step become a frame: their mean, or side by side (bands times `dim` channels)."""
    chunk_frames: int = Field(1024, ge=4)
    """Longest stretch, in spectral frames, that attention sees at inference; longer clips are encoded in windows of
    this length that overlap by half, of which the centres are kept. Best the length of the crops in training."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        front_end = self.front_end
        if (front_end.kind, front_end.normalize, front_end.deltas, front_end.stack) != ("kaldi", "none", 0, 1):
            raise ValueError("front_end: patches are cut from kind 'kaldi', normalize 'none', deltas 0 and stack 1")
        if front_end.n_mels % self.patch_mels:
            raise ValueError(f"patch_mels: {front_end.n_mels} mel bands are no multiple of {self.patch_mels}")
        if self.dim % self.heads or self.dim % 4:
            raise ValueError(f"dim: {self.dim} is not a multiple of 4 and of heads, {self.heads}")
        if self.chunk_frames % self.patch_frames or self.chunk_frames < 4 * self.patch_frames:
            raise ValueError(f"chunk_frames: {self.chunk_frames} is not a multiple of patch_frames, four at least")
        return self

    @property
    def bands(self) -> int:
        """Patches in one step."""
        return self.front_end.n_mels // self.patch_mels

    @property
    def patch(self) -> tuple[int, int]:
        """Frames and mel bands of a patch."""
        return self.patch_frames, self.patch_mels


class Vit(Encoder):
    """Linear(patch → D) + positions behind a class token (layer 0), then a pre-norm Transformer (layers 1 to L).

    A frame is one step of the grid, `patch_frames` spectral frames: the mean over its patches (or all of them, `join`).
    A last patch that is partly past the clip's end counts, its remainder silent.
    """

    family: ClassVar[str] = "vit"
    config: VitConfig

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.config = config
        self.front_end = FrontEnd(config.front_end)
        self.sample_rate = self.front_end.sample_rate
        self.hop = self.front_end.hop * config.patch_frames
        self.offset = self.front_end.offset + self.front_end.hop * (config.patch_frames - 1) / 2
        self.dims = (config.dim * (config.bands if config.join == "concat" else 1),) * (config.layers + 1)
        self.project = Linear(config.patch_frames * config.patch_mels, config.dim)
        self.class_token = nn.Parameter(torch.empty(1, 1, config.dim))
        self.positions = GridPositions(
            config.dim, config.chunk_frames // config.patch_frames, config.bands, config.positions
        )
        self.transformer = Transformer(
            config.dim,
            config.layers,
            config.heads,
            config.ffn,
            dropout=config.dropout,
            attention_dropout=0.0,
            norm="pre",
            norm_eps=config.norm_eps,
        )
        if not config.final_norm:
            self.transformer.final_norm = nn.Identity()
        self.apply(init_vit)
        nn.init.normal_(self.class_token, std=0.02)

    def features(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Log energies (B, T, F), scaled, of waveforms (B, S), and lengths in frames; T is whole patches."""
        config = self.config
        x, lengths = self.front_end(waveforms, lengths)
        fill = math.log(EPSILON) if config.fixed_frames is None else 0.0
        x = torch.where(frame_mask(x, lengths), x, fill)
        x = pad_frames(x, config.patch_frames, fill, least=config.fixed_frames or 1)
        return (x - config.mean) / (2 * config.std), lengths

    def encode(
        self, x: Tensor, lengths: Tensor, *, layers: Sequence[int] | None = None, visible: Tokens | None = None
    ) -> Frames:
        """Hidden states of features (B, T, F), T whole patches, of clips of these `lengths` in frames.

        With `visible` only these patches are computed, and the hidden states (B, V, D) are theirs, one by one. Without,
        clips past `chunk_frames` are encoded in windows in evaluation mode.
        """
        layers = range(len(self.dims)) if layers is None else layers
        if visible is not None:
            states = self.encode_tokens(x, visible.counts, layers, visible.index)
            return Frames([state[:, 1:] for state in states], visible.counts)
        grid, seen, encode = self._grid(x), self.seen_steps(lengths), partial(self._encode, layers=layers)
        if self._is_long(grid):
            states = encode_long(encode, grid, seen, self._chunk, [self.dims[layer] for layer in layers])
        else:
            states = encode(grid, seen)
        return Frames(states, patch_steps(lengths, self.config.patch_frames))

    def encode_tokens(
        self, x: Tensor, counts: Tensor, layers: Sequence[int], index: Tensor | None = None
    ) -> list[Tensor]:
        """Hidden states (B, 1 + V, D) of the class token and the patches at `index` (B, V) of features (B, T, F).

        `counts` (B,) are the true ones. Without `index` all patches are taken, in their order.
        """
        patches = patchify(x, self.config.patch)
        codes = self.positions(patches.shape[1])
        if index is not None:
            patches, codes = gather_tokens(patches, index), gather_tokens(codes, index)
        tokens = self.project(patches)
        start = self.class_token.expand(x.shape[0], -1, -1).to(tokens.dtype)
        tokens = torch.cat([start, tokens + codes.to(tokens.dtype)], dim=1)
        return self.transformer(tokens, counts + 1, layers)  # type: ignore[no-any-return]

    def seen_steps(self, lengths: Tensor) -> Tensor:
        """How many steps of patches (B,) attention sees of clips of these `lengths` in frames."""
        return patch_steps(lengths.clamp_min(self.config.fixed_frames or 0), self.config.patch_frames)

    def stretches(self, waveforms: Tensor, lengths: Tensor, layers: Sequence[int] | None = None) -> Iterator[Stretch]:
        """What `forward` returns: all at once, or of clips past `chunk_frames` some windows at a time."""
        x, lengths = self.features(waveforms, lengths)
        grid = self._grid(x)
        if not self._is_long(grid):
            yield torch.arange(len(x)), self.encode(x, lengths, layers=layers)
            return
        encode = partial(self._encode, layers=range(len(self.dims)) if layers is None else layers)
        left = patch_steps(lengths, self.config.patch_frames).tolist()  # padding that attention sees is no frame
        for clip, states in pieces(encode, grid, self.seen_steps(lengths), self._chunk):
            true = min(left[clip], len(states[0]))
            left[clip] -= true
            yield torch.tensor([clip]), Frames([state[None] for state in states], torch.tensor([true]))

    @property
    def _chunk(self) -> int:
        return self.config.chunk_frames // self.config.patch_frames

    def _grid(self, x: Tensor) -> Tensor:
        """Features (B, T, F) as a row of values for each step, (B, steps, frames of a patch · F)."""
        return x.reshape(x.shape[0], -1, self.config.patch_frames * x.shape[2])

    def _is_long(self, grid: Tensor) -> bool:
        one_pass = self.training or exporting()
        return not one_pass and grid.shape[1] > self._chunk

    def _encode(self, grid: Tensor, steps: Tensor, layers: Sequence[int]) -> list[Tensor]:
        bands = self.config.bands
        x = grid.reshape(grid.shape[0], -1, self.config.front_end.n_mels)
        states = [state[:, 1:] for state in self.encode_tokens(x, steps * bands, layers)]
        if self.config.join == "concat":
            return [state.reshape(*grid.shape[:2], -1) for state in states]
        return [state.reshape(*grid.shape[:2], bands, -1).mean(2) for state in states]


def init_vit(module: nn.Module) -> None:
    """MAE's initialisation: linear weights Xavier-uniform, biases 0, norms 1 and 0. For `Module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
