"""MAE-AST: encode the few tokens that are seen; rebuild and recognise the others.

Baade, Peng and Harwath 2022, arXiv:2203.16691. What is told of the code was read in the authors' release,
AlanBaade/MAE-AST-Public; what of the paper is recalled.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import ClassVar, Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from auricle.config import Config, edit
from auricle.data.batching import Batch, DataNeeds
from auricle.encoders.mae_ast import MaeAstEncoder, MaeAstEncoderConfig
from auricle.encoders.vit import init_vit
from auricle.methods.base import Method, RunConfig, Step
from auricle.nn.chunks import chunk_tokens
from auricle.nn.linear import Linear
from auricle.nn.losses import info_nce, reconstruction_loss
from auricle.nn.patches import (
    Tokens,
    gather_tokens,
    hidden_bound,
    random_tokens,
    scatter_tokens,
    select,
    unpatchify,
    visible_bound,
)
from auricle.nn.positions import SinusoidalPositions
from auricle.nn.transformer import Dropout, Transformer, init_weights


class MaeAstConfig(Config):
    """Which tokens are hidden, and how the loss weighs its two terms."""

    mask: Literal["random", "chunk"] = "chunk"
    """Hidden tokens: each on its own, or in squares on the grid of steps and bands (in runs, for frame tokens). The
    paper's best: `chunk` for patches, `random` for frames."""
    mask_ratio: float = Field(0.75, gt=0, lt=1)
    """Share of a clip's tokens that is hidden."""
    chunk_min: int = Field(3, ge=1)
    """Shortest side of a chunk, tokens; each clip draws one side. In the code one for the batch."""
    chunk_max: int = Field(5, ge=1)
    """Longest side of a chunk, tokens."""
    reconstruction: float = Field(10.0, ge=0)
    """Weight of the squared error."""
    contrastive: float = Field(1.0, ge=0)
    """Weight of the InfoNCE."""
    temperature: float = Field(1.0, gt=0)
    """Divides the logits of InfoNCE. 1 in the code; more (√256 = 16) keeps it from drowning the squared error early."""
    decoder_layers: int = Field(2, ge=1)
    """Blocks over all tokens, as wide as the encoder's."""
    crop_s: float = Field(15.625, gt=0)
    """Longest crop, seconds. 250,000 samples in the code."""
    min_s: float = Field(2.0, ge=0)
    """Shorter clips are left out, seconds. 32,000 samples in the code."""
    fit_batches: int = Field(100, ge=1)
    """Batches on which mean and variance of the filter bank are measured before the first step."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.chunk_min > self.chunk_max:
            raise ValueError(f"chunk_min: {self.chunk_min} is more than chunk_max, {self.chunk_max}")
        if not self.reconstruction + self.contrastive:
            raise ValueError("reconstruction, contrastive: one of them must be more than 0")
        return self


class Guess(NamedTuple):
    """A batch's hidden tokens, and what the heads make of them, each (B, M, P)."""

    tokens: Tensor  # (B, N, P): all of them
    seen: Tokens
    hidden: Tokens
    rebuilt: Tensor
    recognised: Tensor


class MaeAst(Method):
    """The encoder, a shallow decoder with an embedding for hidden tokens, and a linear head for each term."""

    encoder: MaeAstEncoder

    def __init__(self, encoder: MaeAstEncoderConfig, objective: MaeAstConfig) -> None:
        super().__init__()
        self.encoder = MaeAstEncoder(encoder)
        self.config = objective
        self.needs = DataNeeds(self.encoder.sample_rate, crop_s=objective.crop_s, min_s=objective.min_s)
        self.hidden_embedding = nn.Parameter(torch.randn(encoder.dim) * 0.02)
        self.positions = SinusoidalPositions(encoder.dim, encoder.chunk_frames * encoder.bands)
        self.norm = nn.LayerNorm(encoder.dim, eps=encoder.norm_eps)
        self.dropout = Dropout(encoder.dropout)
        self.decoder = Transformer(
            encoder.dim,
            objective.decoder_layers,
            encoder.heads,
            encoder.ffn,
            dropout=encoder.dropout,
            attention_dropout=encoder.attention_dropout,
            norm=encoder.norm,
            norm_eps=encoder.norm_eps,
        )
        self.decoder.apply(init_vit)
        self.rebuild = Linear(encoder.dim, self.encoder.token_dim).apply(init_weights)
        self.recognise = Linear(encoder.dim, self.encoder.token_dim).apply(init_weights)

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Measure mean and variance of the filter bank."""
        heard = islice(batches, self.config.fit_batches)
        self.encoder.fit((batch.waveforms, batch.lengths) for batch in heard)

    def forward(self, batch: Batch) -> Step:
        """The mean over hidden tokens of weighted squared error and InfoNCE; `count` is their number.

        `trivial` predicts each mel band's mean over the clip's seen tokens, and holds all hidden tokens of the clip for
        equally likely; its two terms stand beside it.
        """
        config, guess = self.config, self._guess(batch)
        counts = guess.hidden.counts
        wanted = gather_tokens(guess.tokens, guess.hidden.index)  # (B, M, P)
        valid = torch.arange(wanted.shape[1], device=wanted.device) < counts[:, None]
        error, _ = reconstruction_loss(guess.rebuilt, wanted, valid[:, :, None], "mse")
        nce = info_nce(guess.recognised / config.temperature, wanted, valid)
        loss = config.reconstruction * error + config.contrastive * nce
        count = counts.sum().float()
        metrics = {"mse": error, "info_nce": nce}
        if not self.training:
            means = band_means(guess.tokens, guess.seen, self.encoder.config.bands, self.encoder.patch)
            means = gather_tokens(means, guess.hidden.index % self.encoder.config.bands)
            mse, _ = reconstruction_loss(means, wanted, valid[:, :, None], "mse")
            chance = (counts * counts.clamp_min(1).log()).sum() / count.clamp_min(1)
            trivial = config.reconstruction * mse + config.contrastive * chance
            metrics |= {"trivial": trivial, "trivial_mse": mse, "trivial_info_nce": chance}
        return Step(loss, count, metrics)

    @torch.no_grad()
    def visualize(self, batch: Batch) -> dict[str, Tensor]:
        """`target`, `masked` (hidden tokens are 0) and `reconstruction` of the first clip, each (T, F)."""
        guess = self._guess(Batch(batch.waveforms[:1], batch.lengths[:1], batch.clip_ids[:1], batch.starts[:1]))
        tokens, hidden = guess.tokens.float(), guess.hidden
        pictures = {
            "target": tokens,
            "masked": scatter_tokens(torch.zeros_like(guess.rebuilt, dtype=tokens.dtype), hidden, tokens),
            "reconstruction": scatter_tokens(guess.rebuilt.to(tokens.dtype), hidden, tokens),
        }
        frames = int(guess.seen.counts[0] + hidden.counts[0]) // self.encoder.config.bands * self.encoder.patch[0]
        return {
            name: unpatchify(picture, self.encoder.config.bands, self.encoder.patch)[0, :frames].cpu()
            for name, picture in pictures.items()
        }

    def _guess(self, batch: Batch) -> Guess:
        x, lengths = self.encoder.features(batch.waveforms, batch.lengths)
        tokens, counts = self.encoder.tokens(x, lengths)
        total, ratio, bands = tokens.shape[1], self.config.mask_ratio, self.encoder.config.bands
        if self.config.mask == "random":
            kept = random_tokens(counts, total, ratio)
        else:
            sides = (self.config.chunk_min, self.config.chunk_max)
            kept = chunk_tokens(counts, total // bands, bands, ratio, sides)
        true = torch.arange(total, device=x.device) < counts[:, None]
        seen, hidden = select(kept, visible_bound(total, ratio)), select(true & ~kept, hidden_bound(total, ratio))
        last = self.encoder.config.layers
        states = self.encoder.encode(x, lengths, layers=[last], visible=seen).hidden_states[0]  # (B, V, D)
        embedding = self.hidden_embedding.expand(len(x), total, -1)
        decoded = self.positions(scatter_tokens(states, seen, embedding))  # (B, N, D)
        decoded = self.decoder(self.dropout(self.norm(decoded)), counts, [self.config.decoder_layers])[0]
        decoded = gather_tokens(decoded, hidden.index)  # (B, M, D)
        return Guess(tokens, seen, hidden, self.rebuild(decoded), self.recognise(decoded))


def band_means(tokens: Tensor, seen: Tokens, bands: int, patch: tuple[int, int]) -> Tensor:
    """Each mel band's mean over the seen tokens of (B, N, P), as a token for each height (B, bands, P); 0 if unseen."""
    picked = gather_tokens(tokens, seen.index)
    picked = picked.view(*seen.index.shape, *patch).mean(2)  # (B, V, mel bands of a token)
    valid = torch.arange(picked.shape[1], device=tokens.device) < seen.counts[:, None]
    height = (seen.index[:, :, None] % bands == torch.arange(bands, device=tokens.device)) & valid[:, :, None]
    sums = height.to(picked.dtype).transpose(1, 2) @ picked  # (B, bands, mel bands of a token)
    return (sums / height.sum(1)[:, :, None].clamp_min(1)).repeat(1, 1, patch[0])


class MaeAstRun(RunConfig):
    """A MAE-AST run."""

    method: ClassVar[str] = "mae_ast"
    preset: str = "mae_ast_patch_base"
    encoder: MaeAstEncoderConfig = MaeAstEncoderConfig()
    objective: MaeAstConfig = MaeAstConfig()

    def build(self) -> MaeAst:
        """The method with fresh weights."""
        return MaeAst(self.encoder, self.objective)


def mae_ast_patch_base() -> MaeAstRun:
    """12 + 2 layers on patches, chunked masks, as its authors train it: 524 s of audio a step on one GPU."""
    train = {"steps": 550_000, "lr": 1e-4, "warmup": 32 / 550, "betas": (0.9, 0.98), "eps": 1e-6, "clip_norm": 10.0}
    train |= {"checkpoint_every": 5000}
    return edit(MaeAstRun(preset="mae_ast_patch_base"), data={"batch_seconds": 2**23 / 16000}, train=train)


def mae_ast_frame_base() -> MaeAstRun:
    """12 + 2 layers on tokens of two frames (128 x 2), random masks: better than patches on speech."""
    return edit(
        mae_ast_patch_base(),
        preset="mae_ast_frame_base",
        encoder={"front_end": {"stack": 2}, "bands": 1, "chunk_frames": 781},
        objective={"mask": "random"},
    )


def mae_ast_patch_small() -> MaeAstRun:
    """6 + 2 layers on patches: the paper's smaller model."""
    return edit(mae_ast_patch_base(), preset="mae_ast_patch_small", encoder={"layers": 6})


def mae_ast_frame_small() -> MaeAstRun:
    """6 + 2 layers on tokens of two frames: the paper's smaller model."""
    return edit(mae_ast_frame_base(), preset="mae_ast_frame_small", encoder={"layers": 6})


def mae_ast_tiny() -> MaeAstRun:
    """3 + 1 pre-norm layers of 256 on tokens of two frames, for two CPU cores: minutes of training.

    Small batches, because minutes hold few steps; a high temperature, because otherwise they go into InfoNCE alone.
    """
    encoder = {"dim": 256, "layers": 3, "heads": 4, "ffn": 1024, "norm": "pre", "chunk_frames": 250}
    objective = {"decoder_layers": 1, "temperature": 16.0, "crop_s": 5.0, "min_s": 0.25, "fit_batches": 20}
    train = {"steps": 5000, "lr": 3e-4, "warmup": 0.07, "clip_norm": 1.0, "valid_every": 500}
    return edit(
        mae_ast_frame_base(),
        preset="mae_ast_tiny",
        encoder=encoder | {"dropout": 0.0, "attention_dropout": 0.0},
        objective=objective,
        data={"batch_seconds": 8.0},
        train=train | {"checkpoint_every": 1000},
    )
