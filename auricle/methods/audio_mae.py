"""Audio-MAE: reconstruct most of a spectrogram's patches from the few that are seen (Huang et al. 2022).

"Masked Autoencoders that Listen", arXiv:2207.06405. Where the paper and its released code (2023) disagree, the option's
docstring says so.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from auricle.config import Config, edit
from auricle.data.batching import Batch, DataNeeds
from auricle.encoders.vit import Vit, VitConfig, init_vit
from auricle.methods.base import Method, RunConfig, Step
from auricle.nn.linear import Linear
from auricle.nn.losses import reconstruction_loss
from auricle.nn.patches import (
    Tokens,
    gather_tokens,
    normalize_patches,
    patchify,
    scatter_tokens,
    split_grid,
    split_tokens,
    unpatchify,
)
from auricle.nn.positions import GridPositions
from auricle.nn.swin import LocalTransformer
from auricle.nn.transformer import Transformer

WINDOW = (4, 4)
"""Steps and bands of the local decoder's windows."""


class AudioMaeConfig(Config):
    """What is heard, what of it is hidden, and the decoder that fills it in."""

    crop_s: float = Field(10.0, gt=0)
    """Longest crop, seconds."""
    min_s: float = Field(0.5, ge=0.05)
    """Shorter clips are left out, seconds."""
    masking: Literal["random", "time", "frequency", "time+frequency"] = "random"
    """Hides single patches (the paper's best for pre-training), whole steps, whole bands, or both of these."""
    mask_ratio: float = Field(0.8, gt=0, lt=1)
    """Share of the patches that `random` hides."""
    time_ratio: float = Field(0.7, gt=0, lt=1)
    """Share of the steps hidden by `time` and `time+frequency`. 0.7 in the code."""
    frequency_ratio: float = Field(0.3, gt=0, lt=1)
    """Share of the bands hidden by `frequency` and `time+frequency`. 0.3 in the code."""
    normalize_target: bool = True
    """Each patch to predict has mean 0 and variance 1, as in the paper's best models; else it stays as it is."""
    roll: bool = True
    """Rotate each crop in time by a random amount, as the paper says. The released run's rotation is always by 0."""
    gain: Literal["beta", "decibels", "none"] = "beta"
    """Random gain of each crop: Beta(10, 10) + 0.5 (the code), uniform in ±6 dB (the paper), or none."""
    decoder: Literal["local", "global"] = "local"
    """Attention inside windows of 4 x 4 patches, every other layer's shifted in time; or over the whole clip."""
    decoder_dim: int = Field(512, ge=4)
    """Channels of a token in the decoder; a multiple of 4 and of `decoder_heads`."""
    decoder_layers: int = Field(16, ge=1)
    """The decoder's blocks: 16 if local, 8 if global (paper and code)."""
    decoder_heads: int = Field(16, ge=1)
    """Attention heads of the decoder."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.decoder_dim % self.decoder_heads or self.decoder_dim % 4:
            raise ValueError(
                f"decoder_dim: {self.decoder_dim} is not a multiple of 4 and of {self.decoder_heads} heads"
            )
        return self


class AudioMae(Method):
    """Encoder of visible patches, decoder of all, and a linear map to the values of the hidden ones."""

    encoder: Vit

    def __init__(self, encoder: VitConfig, objective: AudioMaeConfig) -> None:
        super().__init__()
        self.encoder = Vit(encoder)
        self.config = objective
        self.needs = DataNeeds(self.encoder.sample_rate, crop_s=objective.crop_s, min_s=objective.min_s)
        dim, layers, heads = objective.decoder_dim, objective.decoder_layers, objective.decoder_heads
        self.embed = Linear(encoder.dim, dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim))
        self.positions = GridPositions(
            dim, encoder.chunk_frames // encoder.patch_frames, encoder.bands, encoder.positions
        )
        self.decoder: LocalTransformer | Transformer
        if objective.decoder == "local":
            self.decoder = LocalTransformer(dim, layers, heads, 4 * dim, encoder.bands, window=WINDOW)
        else:
            self.decoder = Transformer(
                dim, layers, heads, 4 * dim, dropout=0.0, attention_dropout=0.0, norm="pre", norm_eps=1e-6
            )
        self.predict = Linear(dim, encoder.patch_frames * encoder.patch_mels)
        for part in (self.embed, self.decoder, self.predict):
            part.apply(init_vit)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, batch: Batch) -> Step:
        """Mean squared error over the values of hidden patches; `count` is their number.

        `trivial` predicts 0: 255/256 for normalised patches of 256 values, less where some are constant.
        """
        x, lengths = self.encoder.features(self._augment(batch), batch.lengths)
        visible, hidden = self._draw(self.encoder.seen_steps(lengths), x)
        wanted = gather_tokens(patchify(x, self.encoder.config.patch), hidden.index)
        if self.config.normalize_target:
            wanted = normalize_patches(wanted)
        prediction = self.predict(gather_tokens(self._decode(x, lengths, visible), hidden.index))
        scored = (torch.arange(wanted.shape[1], device=x.device) < hidden.counts[:, None])[:, :, None]
        loss, count = reconstruction_loss(prediction, wanted, scored, "mse")
        if self.training:
            return Step(loss, count)
        trivial, _ = reconstruction_loss(torch.zeros_like(wanted), wanted, scored, "mse")
        return Step(loss, count, {"trivial": trivial})

    def compile_networks(self) -> None:
        """Both Transformers, which see a batch's tokens and not its spectrograms."""
        self.encoder.transformer.compile(dynamic=True)
        self.decoder.compile(dynamic=True)

    @torch.no_grad()
    def visualize(self, batch: Batch) -> dict[str, Tensor]:
        """`target`, `masked` and `reconstruction` of the first clip, each (T, F).

        Hidden patches are black in `masked`. A reconstruction of normalised patches gets each one's true mean and
        variance, as the paper's pictures do; what was seen is shown as it is.
        """
        x, lengths = self.encoder.features(batch.waveforms[:1], batch.lengths[:1])
        visible, _ = self._draw(self.encoder.seen_steps(lengths), x)
        patches = patchify(x, self.encoder.config.patch)
        guess = self.predict(self._decode(x, lengths, visible)).float()
        if self.config.normalize_target:
            variance, mean = torch.var_mean(patches, dim=2, keepdim=True)
            guess = guess * (variance + 1e-6).sqrt() + mean
        seen = gather_tokens(patches, visible.index)
        pictures = {
            "target": patches,
            "masked": scatter_tokens(seen, visible, torch.full_like(patches, float(x.min()))),
            "reconstruction": scatter_tokens(seen, visible, guess),
        }
        config = self.encoder.config
        return {
            name: unpatchify(picture, config.bands, config.patch)[0, : int(lengths[0])].cpu()
            for name, picture in pictures.items()
        }

    def _augment(self, batch: Batch) -> Tensor:
        """The waveforms (B, S), in training each rotated and amplified at random."""
        waveforms, lengths = batch.waveforms, batch.lengths[:, None]
        if not self.training:
            return waveforms
        if self.config.roll:
            time = torch.arange(waveforms.shape[1], device=waveforms.device)
            start = (torch.rand(len(waveforms), 1, device=waveforms.device) * lengths).long()
            waveforms = waveforms.gather(1, torch.where(time < lengths, (time + start) % lengths.clamp_min(1), time))
        if self.config.gain == "beta":
            ten = torch.tensor(10.0, device=waveforms.device)
            waveforms = waveforms * (
                torch.distributions.Beta(ten, ten, validate_args=False).sample((len(waveforms), 1)) + 0.5
            )
        elif self.config.gain == "decibels":
            waveforms = waveforms * 10 ** (torch.empty_like(waveforms[:, :1]).uniform_(-6, 6) / 20)
        return waveforms

    def _draw(self, steps: Tensor, x: Tensor) -> tuple[Tokens, Tokens]:
        """The visible and the hidden patches of features x (B, T, F), of which attention sees `steps` (B,)."""
        config, encoder = self.config, self.encoder.config
        longest = x.shape[1] // encoder.patch_frames
        if config.masking == "random":
            return split_tokens(steps * encoder.bands, longest * encoder.bands, config.mask_ratio)
        in_time = config.time_ratio if "time" in config.masking else 0.0
        in_frequency = config.frequency_ratio if "frequency" in config.masking else 0.0
        return split_grid(steps, longest, encoder.bands, in_time, in_frequency)

    def _decode(self, x: Tensor, lengths: Tensor, visible: Tokens) -> Tensor:
        """The decoder's states (B, N, D) of all patches of features x (B, T, F) whose `visible` ones are encoded."""
        encoded = self.encoder.encode_tokens(x, visible.counts, [self.encoder.config.layers], visible.index)[0]
        latent = self.embed(encoded)
        steps, bands = self.encoder.seen_steps(lengths), self.encoder.config.bands
        codes = self.positions(x.shape[1] // self.encoder.config.patch_frames * bands)
        gaps = self.mask_token.to(latent.dtype).expand(len(x), len(codes), -1)
        tokens = scatter_tokens(latent[:, 1:], visible, gaps) + codes.to(latent.dtype)
        if isinstance(self.decoder, LocalTransformer):
            return self.decoder(tokens, steps)  # type: ignore[no-any-return]
        tokens = torch.cat([latent[:, :1], tokens], dim=1)  # the class token is behind none of the grid's places
        return self.decoder(tokens, steps * bands + 1, [self.decoder.layers])[0][:, 1:]  # type: ignore[no-any-return]


class AudioMaeRun(RunConfig):
    """An Audio-MAE run."""

    method: ClassVar[str] = "audio_mae"
    preset: str = "audio_mae_base"
    encoder: VitConfig = VitConfig()
    objective: AudioMaeConfig = AudioMaeConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        encoder, objective = self.encoder, self.objective
        if objective.decoder == "local" and encoder.bands % WINDOW[1]:
            raise ValueError(
                f"objective.decoder: 'local' needs a multiple of {WINDOW[1]} patches in one step, not {encoder.bands}"
            )
        frames = max(math.ceil(objective.crop_s * 1000 / encoder.front_end.hop_ms), encoder.fixed_frames or 0)
        if encoder.positions == "audiomae" and frames > encoder.chunk_frames:
            raise ValueError(f"objective.crop_s: positions 'audiomae' end after {encoder.chunk_frames} spectral frames")
        return self

    def build(self) -> AudioMae:
        """The method with fresh weights."""
        return AudioMae(self.encoder, self.objective)


def audio_mae_base() -> AudioMaeRun:
    """Audio-MAE as in the paper: ViT-B, 80 % hidden, local decoder; 32 epochs of AudioSet-2M, 512 clips a step.

    The rate 4e-4 is the paper's base rate, 2e-4, for 512 clips (times 512/256). No gradient is clipped.
    """
    return AudioMaeRun.parse(
        {
            "data": {"batch_seconds": 1280.0},
            "train": {
                "steps": 122_500,
                "lr": 4e-4,
                "warmup": 3 / 32,
                "schedule": "cosine",
                "betas": (0.9, 0.95),
                "weight_decay": 1e-4,
                "clip_norm": 1e9,
                "accumulate": 4,
            },
        }
    )


def audio_mae_small() -> AudioMaeRun:
    """Audio-MAE with ViT-S."""
    return edit(audio_mae_base(), preset="audio_mae_small", encoder={"dim": 384, "heads": 6, "ffn": 1536})


def audio_mae_large() -> AudioMaeRun:
    """Audio-MAE with ViT-L."""
    size = {"dim": 1024, "layers": 24, "heads": 16, "ffn": 4096}
    return edit(audio_mae_base(), preset="audio_mae_large", encoder=size)


def audio_mae_base_global() -> AudioMaeRun:
    """Audio-MAE with ViT-B and a decoder of 8 blocks with global attention, as in MAE for images."""
    decoder = {"decoder": "global", "decoder_layers": 8}
    return edit(audio_mae_base(), preset="audio_mae_base_global", objective=decoder)


def audio_mae_released() -> AudioMaeRun:
    """Audio-MAE as the released run did it: transposed positions, loud padding to 1024 frames, no rotation."""
    return edit(
        audio_mae_base(),
        preset="audio_mae_released",
        encoder={"positions": "audiomae", "fixed_frames": 1024},
        objective={"roll": False},
    )


def audio_mae_tiny() -> AudioMaeRun:
    """For two CPU cores and minutes of audio: patches of 20 ms and all of 64 mel bands, a small global decoder.

    Patches are rebuilt as they are, without gain and rotation: trials with longer patches and these fell behind their
    untrained twins.
    """
    return edit(
        audio_mae_base(),
        preset="audio_mae_tiny",
        encoder={
            "front_end": {"n_mels": 64},
            "patch_frames": 2,
            "patch_mels": 64,
            "dim": 256,
            "layers": 3,
            "heads": 4,
            "ffn": 1024,
            "chunk_frames": 512,
        },
        objective={
            "crop_s": 5.0,
            "min_s": 0.25,
            "mask_ratio": 0.75,
            "normalize_target": False,
            "roll": False,
            "gain": "none",
            "decoder": "global",
            "decoder_dim": 128,
            "decoder_layers": 2,
            "decoder_heads": 4,
        },
        data={"batch_seconds": 8.0},
        train={
            "steps": 5000,
            "lr": 3e-4,
            "clip_norm": 1.0,
            "accumulate": 1,
            "valid_every": 500,
            "checkpoint_every": 1000,
        },
    )
