"""How an encoder is fine-tuned, and the recipes that papers have published."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import tyro
from pydantic import Field

from auricle.config import Config, edit
from auricle.errors import ConfigError, unknown
from auricle.methods.base import TrainConfig


class FinetuneConfig(Config):
    """What is trained, for how long, and how its input is varied. Dev and test hear whole clips, unvaried."""

    recipe: Annotated[str, tyro.conf.Suppress] = "default"
    """The recipe this began as."""
    blocks: int | None = Field(None, ge=0)
    """Last blocks of the encoder that are trained; None: all of it, 0: none of it, the head alone."""
    head: Literal["linear", "mlp"] = "linear"
    """After LayerNorm (and, for clips, the mean over frames before it): one linear map, or a hidden layer first."""
    hidden: int = Field(256, ge=1)
    """Units in the hidden layer (GELU) of `mlp`."""
    epochs: int = Field(30, ge=1)
    """Passes over the train clips."""
    batch: int = Field(32, ge=1)
    """Clips an optimizer step."""
    batch_seconds: float = Field(120.0, gt=0)
    """Padded seconds of audio on the device at once; a step with more is computed in parts."""
    crop_s: float = Field(10.0, gt=0)
    """Longest crop in training, seconds; longer clips are cropped at a random place."""
    lr: float = Field(5e-4, gt=0)
    """Peak learning rate, of the head."""
    layer_decay: float = Field(0.75, gt=0, le=1)
    """Factor on the learning rate from each block to the one below it; the last block has it once."""
    warmup: float = Field(0.1, ge=0, le=1)
    """Fraction of the steps over which the learning rate rises linearly from 0."""
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    """How the learning rate falls to 0 after warm-up (`constant`: not at all)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the first and second moment."""
    weight_decay: float = Field(0.05, ge=0)
    """AdamW's decoupled weight decay; biases and norms are left out."""
    clip_norm: float | None = Field(1.0, gt=0)
    """Gradients are scaled down to this global norm; None: they are not."""
    mixup: float = Field(0.0, ge=0, le=1)
    """Probability that a clip is mixed with another of its batch, waveforms and targets alike; not by frame."""
    mixup_beta: float = Field(10.0, gt=0)
    """The share of the clip itself in a mixture is drawn from Beta(b, b)."""
    time_mask: int = Field(0, ge=0)
    """SpecAugment: one stretch of up to so many feature frames (at most half the clip) is set to 0."""
    frequency_mask: int = Field(0, ge=0)
    """SpecAugment: one stretch of up to so many feature channels is set to 0."""
    drop_time: float = Field(0.0, ge=0, lt=1)
    """Share of a patch encoder's columns of tokens that are dropped in training."""
    drop_frequency: float = Field(0.0, ge=0, lt=1)
    """Share of a patch encoder's rows of tokens that are dropped in training."""
    drop_path: float = Field(0.0, ge=0, lt=1)
    """Stochastic depth: probability that a clip passes by a residual branch (attention, feed-forward) of the last
    block in training; it falls linearly to 0 at the first block."""
    noise: float = Field(0.0, ge=0)
    """Uniform noise is added to the features, on 0 to a bound that is itself uniform on 0 to this, clip by clip."""
    roll: int = Field(0, ge=0)
    """A clip's feature frames are moved cyclically by up to so many, either way; not by frame."""
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """For classes by clip: cross-entropy, or binary cross-entropy of each class by itself. (Labels always have the
    latter.)"""
    balanced: bool = False
    """Draw clips with replacement, each by the sum over its labels of 1 / (clips with that label), so that classes are
    heard equally often."""
    valid_every: int | None = Field(None, ge=1)
    """Steps between measurements on dev, each of which leaves a checkpoint; None: an epoch."""
    patience: int = Field(10, ge=1)
    """Measurements in a row without a better one after which training stops; the best weights are kept."""
    seed: int = Field(0, ge=0)
    """Decides the head's first weights, order of clips, crops, mixtures, masks and dropout."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Of training: `auto` is bf16 where the hardware multiplies it natively, else fp32. Answers are given in fp32."""
    device: str = "auto"
    """`auto` (a GPU if there is one), or a torch device such as `cpu` or `cuda:0`."""
    workers: int = Field(0, ge=0)
    """Processes that read audio; 0 reads in the training process."""
    max_skipped: float = Field(0.01, ge=0, le=1)
    """Fraction of the clips that may prove unusable before the run fails."""

    def train(self, steps: int) -> TrainConfig:
        """The optimisation of a run of so many steps, as the optimizer takes it."""
        return TrainConfig(
            steps=steps, seed=self.seed, lr=self.lr, warmup=self.warmup, schedule=self.schedule, betas=self.betas,
            weight_decay=self.weight_decay, clip_norm=self.clip_norm or NO_CLIPPING, precision=self.precision,
            device=self.device,
        )  # fmt: skip


NO_CLIPPING = 1e30
FREE = ("device", "workers", "max_skipped", "batch_seconds")
"""Options that do not decide what is learned, but for rounding: a resumed run may change them."""


def default() -> FinetuneConfig:
    """Whole encoder, layer decay 0.75, 30 epochs, no augmentation: a start for small collections."""
    return FinetuneConfig()


def mockingjay_two_epochs() -> FinetuneConfig:
    """Mockingjay's FT2 (Liu et al. 2020): encoder and head together for two epochs, peak rate 4e-3, batches of 12.

    Warm-up over 7 % of the steps, then a linear fall, one rate for all layers.
    """
    return FinetuneConfig(
        recipe="mockingjay-two-epochs", epochs=2, batch=12, crop_s=15.0, lr=4e-3, layer_decay=1.0, warmup=0.07,
        schedule="linear", weight_decay=0.01,
    )  # fmt: skip


def audio_mae() -> FinetuneConfig:
    """Audio-MAE on small sets of sounds (Huang et al. 2022, table 3, ESC-50): 60 epochs, 4 of them warm-up, batch 64.

    Peak rate 1e-3 × batch / 256, SpecAugment 96 / 24, no mixup, no clipping; from the released scripts layer decay 0.75
    and tokens dropped at 0.2 / 0.2 (paper: 0.3 / 0.3). Stochastic depth 0.1.
    """
    return FinetuneConfig(
        recipe="audio-mae", epochs=60, batch=64, crop_s=5.0, lr=1e-3 * 64 / 256, layer_decay=0.75, warmup=4 / 60,
        betas=(0.9, 0.95), weight_decay=1e-4, clip_norm=None, time_mask=96, frequency_mask=24, drop_time=0.2,
        drop_frequency=0.2, drop_path=0.1, patience=60,
    )  # fmt: skip


def audio_mae_as20k() -> FinetuneConfig:
    """Audio-MAE on AudioSet's balanced set (table 3, AS-20K): batch 32, 10 s, SpecAugment 192 / 48, mixup 0.5.

    Binary cross-entropy, as in the two recipes below.
    """
    return edit(
        audio_mae(), recipe="audio-mae-as20k", batch=32, crop_s=10.0, lr=1e-3 * 32 / 256, mixup=0.5, time_mask=192,
        frequency_mask=48, loss="sigmoid",
    )  # fmt: skip


def audio_mae_as2m() -> FinetuneConfig:
    """Audio-MAE on all of AudioSet (table 3, AS-2M): 100 epochs, 20 of warm-up, batch 512, classes weighted.

    The paper's epoch is 200 000 clips drawn without replacement; ours is as many as there are, with replacement.
    """
    return edit(
        audio_mae_as20k(), recipe="audio-mae-as2m", epochs=100, batch=512, lr=2e-4 * 512 / 256, warmup=0.2,
        balanced=True,
    )  # fmt: skip


def audio_mae_keywords() -> FinetuneConfig:
    """Audio-MAE on Speech Commands (table 3, SPC-2): batch 256, 1 s, SpecAugment 48 / 48, mixup 0.5, noise.

    The noise is that of the released code, with its shift of 10 frames; the paper tells of 20 dB.
    """
    return edit(
        audio_mae(), recipe="audio-mae-keywords", batch=256, crop_s=1.0, lr=1e-3, mixup=0.5, time_mask=48,
        frequency_mask=48, noise=0.1, roll=10, loss="sigmoid",
    )  # fmt: skip


def noss() -> FinetuneConfig:
    """TRILL's fine-tuning (Shor et al. 2020): Adam at a constant 1e-3, crops of 1 s, stopped early on dev."""
    return FinetuneConfig(
        recipe="noss", crop_s=1.0, lr=1e-3, layer_decay=1.0, warmup=0.0, schedule="constant", weight_decay=0.0,
        clip_norm=None,
    )  # fmt: skip


RECIPES: dict[str, Callable[[], FinetuneConfig]] = {
    "default": default,
    "mockingjay-two-epochs": mockingjay_two_epochs,
    "audio-mae": audio_mae,
    "audio-mae-as20k": audio_mae_as20k,
    "audio-mae-as2m": audio_mae_as2m,
    "audio-mae-keywords": audio_mae_keywords,
    "noss": noss,
}


def recipe(name: str) -> FinetuneConfig:
    """A recipe by name. Raises `ConfigError` with the near miss."""
    if name not in RECIPES:
        raise ConfigError(unknown("recipe", name, RECIPES))
    return RECIPES[name]()
