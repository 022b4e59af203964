"""data2vec: hide spans of a waveform's frames, tell what a slow copy of the network makes of them unhidden.

Baevski et al. 2022, arXiv:2202.03555. fairseq, the authors' code, was read; what is said of the paper is recalled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, NamedTuple, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from auricle.config import edit
from auricle.data.batching import Batch
from auricle.encoders.waveform import WaveformConfig
from auricle.features.normalize import frame_mask
from auricle.methods.base import RunConfig, Step
from auricle.methods.teacher import Taught, TeacherConfig, frame_std
from auricle.nn.linear import Linear
from auricle.nn.masking import SpanMaskConfig, span_mask


class Data2VecConfig(TeacherConfig):
    """What is hidden, and how far off a guess is. The defaults are fairseq's for BASE, on speech."""

    mask: SpanMaskConfig = SpanMaskConfig()
    """Frames to hide. (fairseq also equalises their number over the batch: `equalize: fairseq`.)"""
    convolution_rate: float = Field(1.0, gt=0, le=1)
    """Factor on the learning rate of the convolutions, which the teacher shares: in short runs slow ones keep what is
    hard to foretell, pitch for one. (fairseq's `feature_grad_mult` scales their gradient, which Adam undoes.)"""
    beta: float = Field(0.0, ge=0)
    """Errors below it are squared, larger ones count by their size (smooth L1); 0 squares all, without smooth L1's
    factor of a half."""


class _Guess(NamedTuple):
    """What a batch's frames are and what they were taken for."""

    frames: Tensor  # (B,): true ones
    mask: Tensor  # (B, T): hidden ones
    targets: Tensor  # (B, T, D), float32
    predictions: Tensor  # (B, T, D), float32
    features: Tensor  # (B, T, C): the convolutions' output


class Data2Vec(Taught):
    """Encoder, its teacher, and a linear head.

    The teacher is a moving average of the Transformer and the norm before it; it has the student's own positional
    convolutions, convolutions and projection, and sees every frame. Waveforms are normalised by the crop where the
    encoder's `normalize` says so; fairseq does it by the whole file.
    """

    config: Data2VecConfig
    copied: ClassVar[tuple[str, ...]] = ("positions",)

    def __init__(self, encoder: WaveformConfig, objective: Data2VecConfig) -> None:
        super().__init__(encoder, objective)
        self.head = Linear(encoder.dim, encoder.dim)

    def followed(self) -> nn.Module:
        """The Transformer with what stands before it."""
        return self.encoder.context

    def rates(self) -> Mapping[str, float]:
        """The convolutions' own."""
        names = (name for name, _ in self.named_parameters() if name.startswith("encoder.convolutions."))
        return dict.fromkeys(names, self.config.convolution_rate)

    def forward(self, batch: Batch) -> Step:
        """Squared distance between prediction and target over √D, the mean over hidden frames; `count` is their number.

        `trivial` predicts 0, which is each channel's mean (see `targets_over`): it is the targets' variance, summed
        over the D channels, over √D. `r2` is 1 less the squared error over that of predicting 0. `target_std`,
        `prediction_std` and `features_std` (what the convolutions give) are standard deviations over the batch's
        frames, hidden ones in the first two, the mean over channels: they fall when the network collapses. `masked` is
        the share of hidden frames.
        """
        guess = self._guess(batch)
        mask, targets, predictions = guess.mask[..., None], guess.targets, guess.predictions
        count = mask.sum().float()
        scale = 1 / (count.clamp_min(1) * math.sqrt(targets.shape[2]))
        error = torch.where(mask, predictions - targets, 0)
        wanted = torch.where(mask, targets, 0)
        loss = self._cost(error) * scale
        metrics = {
            "target_std": frame_std(targets, mask),
            "prediction_std": frame_std(predictions.detach(), mask),
            "features_std": frame_std(guess.features.detach().float(), frame_mask(guess.features, guess.frames)),
            "ema_decay": self.decay.clone(),
            "masked": count / guess.frames.sum().clamp_min(1),
            "r2": 1 - error.detach().square().sum() / wanted.square().sum().clamp_min(1e-9),
        }
        if not self.training:
            metrics["trivial"] = self._cost(wanted) * scale
        return Step(loss, count, metrics)

    def compile_networks(self) -> None:
        """The encoder, and what follows the projection in student and teacher."""
        super().compile_networks()
        for context in (self.encoder.context, self.teacher.module):
            context.forward = torch.compile(context.forward, dynamic=True)

    @torch.no_grad()
    def visualize(self, batch: Batch) -> dict[str, Tensor]:
        """`target` of the first clip, what of it was `hidden`, and the `prediction` of that, each (T, D)."""
        guess = self._guess(replace(batch, waveforms=batch.waveforms[:1], lengths=batch.lengths[:1]))
        mask, frames = guess.mask[..., None], int(guess.frames[0])
        pictures = {"target": guess.targets, "hidden": guess.targets * mask, "prediction": guess.predictions * mask}
        return {name: picture[0, :frames].cpu() for name, picture in pictures.items()}

    def _guess(self, batch: Batch) -> _Guess:
        config, encoder = self.config, self.encoder
        x, frames = encoder.features(batch.waveforms, batch.lengths)  # (B, T, C)
        projected = encoder.project(x)  # (B, T, D)
        targets = self.targets(self.teacher, projected.detach(), frames)
        mask = span_mask(frames, x.shape[1], config.mask)
        hidden = encoder.hidden(encoder.input_dropout(projected), mask)
        states = encoder.context(hidden, frames, [encoder.config.layers], keep=self.kept(batch))[0]
        return _Guess(frames, mask, targets, self.head(states).float(), x)

    def _cost(self, error: Tensor) -> Tensor:
        """The sum over errors, any shape."""
        if self.config.beta == 0:
            return error.square().sum()
        return F.smooth_l1_loss(error, torch.zeros_like(error), reduction="sum", beta=self.config.beta)


class Data2VecRun(RunConfig):
    """A data2vec or music2vec run."""

    method: ClassVar[str] = "data2vec"
    preset: str = "data2vec_base"
    encoder: WaveformConfig = WaveformConfig(
        conv_norm="layer",
        normalize=True,
        position_style="stacked",
        position_layers=5,
        position_kernel=19,
        input_dropout=0.0,
    )
    objective: Data2VecConfig = Data2VecConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.objective.top_layers > self.encoder.layers:
            raise ValueError(
                f"objective.top_layers: {self.objective.top_layers} are more than encoder.layers, {self.encoder.layers}"
            )
        return self

    def build(self) -> Data2Vec:
        """The method with fresh weights."""
        return Data2Vec(self.encoder, self.objective)


def data2vec_base() -> Data2VecRun:
    """data2vec BASE, on speech: 63 minutes a step, 400000 steps."""
    train = {
        "steps": 400_000,
        "lr": 5e-4,
        "schedule": "tri_stage",
        "warmup": 0.03,
        "hold": 0.9,
        "betas": (0.9, 0.98),
        "eps": 1e-6,
        "clip_norm": None,
        "accumulate": 16,
        "checkpoint_every": 5000,
    }
    return edit(Data2VecRun(preset="data2vec_base"), data={"batch_seconds": 237.5}, train=train)
