"""Mockingjay: predict the spectral frames that were hidden, from both sides (Liu et al. 2020, arXiv:1910.12638).

TERA (Liu et al. 2021, arXiv:2007.06028) also hides frequency bands and adds noise; AudioALBERT (Chi et al. 2021,
arXiv:2005.08575) shares one layer's weights. All three are presets of this file. Where the paper, its authors' first
code (October 2019) and S3PRL, their later toolkit, disagree, the option's docstring says so; what it tells of the
papers is recalled, of the codes read.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from auricle.config import edit
from auricle.data.batching import Batch, DataNeeds
from auricle.encoders.mel_transformer import MelTransformer, MelTransformerConfig
from auricle.features.frontend import FrontEnd, FrontEndConfig
from auricle.methods.base import Method, RunConfig, Step
from auricle.nn.linear import Linear
from auricle.nn.losses import reconstruction_loss
from auricle.nn.masking import MaskConfig, interpolate, mask_frames
from auricle.nn.transformer import init_weights


class MockingjayConfig(MaskConfig):
    """What is hidden, what takes its place, and what has to be predicted."""

    crop_s: float = Field(15.0, gt=0)
    """Longest crop, seconds. S3PRL: 15 (LARGE: 5); the paper's code: whole utterances below 3000 frames, 37.5 s."""
    min_s: float = Field(2.0, ge=0)
    """Shorter clips are left out, seconds. S3PRL: 200 frames, 2 s; the paper's code: none."""
    loss: Literal["l1", "mse"] = "l1"
    """Mean absolute error (paper and both codes), or squared."""
    target: Literal["input", "linear_db", "linear_log"] = "input"
    """What is predicted: the clean features; or a linear-frequency spectrogram, in decibels (the paper's LARGE) or its
    logarithm (S3PRL's LARGE). The latter two need a front end of kind `stft`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.frequency_mask and self.target != "input":
            raise ValueError("frequency_mask: hides bands of the input, so it needs target 'input'")
        return self


class Mockingjay(Method):
    """Encoder and prediction head. The head runs on the frames to predict only."""

    encoder: MelTransformer

    def __init__(self, encoder: MelTransformerConfig, objective: MockingjayConfig) -> None:
        super().__init__()
        self.encoder = MelTransformer(encoder)
        self.config = objective
        self.needs = DataNeeds(self.encoder.sample_rate, crop_s=objective.crop_s, min_s=objective.min_s)
        self.target = None if objective.target == "input" else FrontEnd(_target(encoder.front_end, objective.target))
        self.head = nn.Sequential(
            Linear(encoder.dim, encoder.dim),
            nn.GELU(),
            nn.LayerNorm(encoder.dim, eps=encoder.norm_eps),
            Linear(encoder.dim, (self.target or self.encoder.front_end).dim),
        ).apply(init_weights)

    def forward(self, batch: Batch) -> Step:
        """Mean error over the scored values; `count` is their number.

        `trivial` interpolates each span linearly from the target's unmasked neighbours and predicts 0, the mean of
        normalised features, in masked bands.
        """
        features, lengths = self.encoder.features(batch.waveforms, batch.lengths)
        target = features if self.target is None else self.target(batch.waveforms, batch.lengths)[0]
        masked = mask_frames(features, lengths, self.config)
        wanted = _pick(target, masked.index)
        prediction = self.head(_pick(self._hidden(masked.x, lengths), masked.index))
        loss, count = reconstruction_loss(prediction, wanted, masked.scored, self.config.loss)
        if self.training:
            return Step(loss, count)
        guess = interpolate(target, masked.selected, lengths)
        if masked.bands is not None:
            guess = guess.masked_fill(masked.bands[:, None], 0.0)
        trivial, _ = reconstruction_loss(_pick(guess, masked.index), wanted, masked.scored, self.config.loss)
        return Step(loss, count, {"trivial": trivial})

    @torch.no_grad()
    def visualize(self, batch: Batch) -> dict[str, Tensor]:
        """`target`, `masked` input and `reconstruction` of the first clip, each (T, F), stacked frames unstacked."""
        waveform, samples = batch.waveforms[:1], batch.lengths[:1]
        features, lengths = self.encoder.features(waveform, samples)
        target = features if self.target is None else self.target(waveform, samples)[0]
        masked = mask_frames(features, lengths, self.config).x
        pictures = {"target": target, "masked": masked, "reconstruction": self.head(self._hidden(masked, lengths))}
        steps, stack = int(lengths[0]), self.encoder.config.front_end.stack
        return {name: picture[0, :steps].float().cpu().reshape(steps * stack, -1) for name, picture in pictures.items()}

    def _hidden(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.encoder.encode(x, lengths, layers=[len(self.encoder.dims) - 1]).hidden_states[0]


def _pick(x: Tensor, index: Tensor) -> Tensor:
    """Frames (B, N, D) of x (B, T, D) at index (B, N)."""
    return x.gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))


def _target(front_end: FrontEndConfig, target: Literal["linear_db", "linear_log"]) -> FrontEndConfig:
    """The front end of a linear-frequency target: same frames, no deltas."""
    if target == "linear_db":
        return edit(front_end, kind="linear", deltas=0)
    return edit(front_end, n_mels=0, deltas=0)


class MockingjayRun(RunConfig):
    """A Mockingjay, TERA or AudioALBERT run."""

    method: ClassVar[str] = "mockingjay"
    preset: str = "mockingjay_base"
    encoder: MelTransformerConfig = MelTransformerConfig()
    objective: MockingjayConfig = MockingjayConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.objective.target != "input" and self.encoder.front_end.kind != "stft":
            raise ValueError(
                f"objective.target: '{self.objective.target}' needs encoder.front_end.kind 'stft', "
                f"not '{self.encoder.front_end.kind}'"
            )
        return self

    def build(self) -> Mockingjay:
        """The method with fresh weights."""
        return Mockingjay(self.encoder, self.objective)


def mockingjay_base() -> MockingjayRun:
    """BASE (3 layers of 768) as S3PRL trains it on 960 h: batches of 4 x 8 crops of 15 s, a million steps."""
    train = {
        "steps": 1_000_000,
        "lr": 2e-4,
        "warmup": 0.07,
        "clip_norm": 5.0,
        "accumulate": 4,
        "checkpoint_every": 5000,
    }
    return edit(MockingjayRun(preset="mockingjay_base"), data={"batch_seconds": 120.0}, train=train)


def mockingjay_large() -> MockingjayRun:
    """LARGE (12 layers) as in S3PRL: predicts the log-linear spectrum of 201 bins from 80 mel bands, crops of 5 s."""
    return edit(
        mockingjay_base(),
        preset="mockingjay_large",
        encoder={"layers": 12, "chunk_frames": 500},
        objective={"crop_s": 5.0, "target": "linear_log"},
        data={"batch_seconds": 40.0},
    )


def mockingjay_tiny() -> MockingjayRun:
    """3 pre-norm layers of 256, a step every 20 ms, for two CPU cores: minutes of training on an hour of recordings.

    Small batches, because minutes hold few steps; spans of 200 ms, because a straight line bridges shorter ones well.
    """
    return edit(
        mockingjay_base(),
        preset="mockingjay_tiny",
        encoder={
            "front_end": {"stack": 2},
            "dim": 256,
            "heads": 4,
            "ffn": 1024,
            "norm": "pre",
            "norm_eps": 1e-5,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "position_jitter": 20,
            "chunk_frames": 250,
        },
        objective={"crop_s": 5.0, "min_s": 0.25, "mask_fraction": 0.3, "span_min": 10, "span_max": 10},
        data={"batch_seconds": 16.0},
        train={
            "steps": 4000,
            "lr": 1e-3,
            "clip_norm": 1.0,
            "accumulate": 1,
            "valid_every": 500,
            "checkpoint_every": 1000,
        },
    )


def mockingjay_paper_base() -> MockingjayRun:
    """BASE as the paper's authors' code of October 2019 trains it on 360 h: six utterances (about 74 s) a step.

    160 channels (80 librosa mel bands and slopes, 50 ms windows every 12.5 ms), the loss on span starts alone.
    Their BertAdam (no bias correction, each tensor clipped too) is AdamW here.
    """
    return edit(
        mockingjay_base(),
        preset="mockingjay_paper_base",
        encoder={
            "front_end": {
                "level_db": None,
                "window_ms": 50.0,
                "hop_ms": 12.5,
                "n_fft": 2048,
                "mel_scale": "slaney",
                "mel_norm": "slaney",
                "log_floor": 1e-6,
                "deltas": 1,
            },
            "chunk_frames": 3000,
        },
        objective={
            "crop_s": 37.5,
            "min_s": 0.0,
            "overlap": True,
            "rounding": "floor",
            "unused_starts": 2,
            "loss_positions": "starts",
        },
        data={"batch_seconds": 74.0},
        train={"steps": 500_000, "lr": 4e-4, "clip_norm": 1.0, "eps": 1e-6, "accumulate": 1},
    )


def mockingjay_paper_large() -> MockingjayRun:
    """LARGE of the same code: 12 layers over stacks of three frames, each a span, predicting 3 x 1025 decibels."""
    return edit(
        mockingjay_paper_base(),
        preset="mockingjay_paper_large",
        encoder={"layers": 12, "front_end": {"stack": 3}, "chunk_frames": 1000},
        objective={"span_min": 1, "span_max": 1, "target": "linear_db"},
    )


def tera_base() -> MockingjayRun:
    """TERA as S3PRL releases it: BASE with time and frequency masks and noise."""
    changes = {"frequency_mask": 0.2, "noise_probability": 0.15}
    return edit(mockingjay_base(), preset="tera_base", objective=changes)


def tera_tiny() -> MockingjayRun:
    """`mockingjay_tiny` with TERA's frequency mask."""
    return edit(mockingjay_tiny(), preset="tera_tiny", objective={"frequency_mask": 0.2})


def audio_albert_base() -> MockingjayRun:
    """AudioALBERT: BASE whose three layers share one layer's weights."""
    return edit(mockingjay_base(), preset="audio_albert_base", encoder={"shared_layers": True})
