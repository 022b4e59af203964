"""data2vec: hide spans of a waveform's frames, tell what a slow copy of the network makes of them unhidden.

Baevski et al. 2022, arXiv:2202.03555. fairseq, the authors' code, was read; what is said of the paper is recalled.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import ClassVar, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from auricle.config import Config, edit
from auricle.data.batching import Batch, DataNeeds
from auricle.encoders.waveform import WaveformConfig, WaveformEncoder
from auricle.features.normalize import frame_mask, normalize_batch, normalize_utterance
from auricle.methods.base import Method, RunConfig, Step
from auricle.nn.ema import Ema, ramp
from auricle.nn.linear import Linear
from auricle.nn.masking import SpanMaskConfig, kept_layers, span_mask


class Data2VecConfig(Config):
    """What is hidden, and who tells the targets. The defaults are fairseq's for BASE, on speech."""

    crop_s: float = Field(20.0, gt=0)
    """Longest crop, seconds: 320000 samples. (fairseq crops all clips of a batch to its shortest; here padding is
    hidden from the network, and clips keep their length.)"""
    min_s: float = Field(2.0, ge=0)
    """Shorter clips are left out, seconds."""
    mask: SpanMaskConfig = SpanMaskConfig()
    """Frames to hide. (fairseq also equalises their number over the batch: `equalize: fairseq`.)"""
    top_layers: int = Field(8, ge=1)
    """Targets are the mean of this many of the teacher's last layers: of each the feed-forward part's output, with mean
    0 and variance 1 in each channel."""
    targets_over: Literal["clip", "batch"] = "clip"
    """The frames that have this mean and variance: a clip's, or all of the micro-batch (fairseq's
    `batch_norm_target_layer`), which leaves in the targets what lasts as long as the clip: a note's pitch, a voice."""
    ema_decay: float = Field(0.999, ge=0, le=1)
    """Share of itself that the teacher keeps at each step, at first."""
    ema_end_decay: float = Field(0.9999, ge=0, le=1)
    """The same after `ema_steps`, up to which it rises linearly."""
    ema_steps: int = Field(30_000, ge=1)
    """Steps of that rise."""
    layer_drop: float = Field(0.05, ge=0, lt=1)
    """Probability that a step passes a block of the student by."""
    convolution_rate: float = Field(1.0, gt=0, le=1)
    """Factor on the learning rate of the convolutions, which the teacher shares: in short runs slow ones keep what is
    hard to foretell, pitch for one. (fairseq's `feature_grad_mult` scales their gradient, which Adam undoes.)"""
    beta: float = Field(0.0, ge=0)
    """Errors below it are squared, larger ones count by their size (smooth L1); 0 squares all, without smooth L1's
    factor of a half."""
    least_target_std: float = Field(0.1, ge=0)
    """Targets whose standard deviation, the mean over channels, is below this have collapsed; at this fairseq ends."""
    least_prediction_std: float = Field(0.01, ge=0)
    """The same of predictions."""
    guard_after: int = Field(5000, ge=0)
    """Steps before which nobody looks at that."""


class _Guess(NamedTuple):
    """What a batch's frames are and what they were taken for."""

    frames: Tensor  # (B,): true ones
    mask: Tensor  # (B, T): hidden ones
    targets: Tensor  # (B, T, D), float32
    predictions: Tensor  # (B, T, D), float32
    features: Tensor  # (B, T, C): the convolutions' output


class Data2Vec(Method):
    """Encoder, its teacher, and a linear head.

    The teacher is a moving average of the Transformer and the norm before it; it has the student's own positional
    convolutions, convolutions and projection, and sees every frame. Waveforms are normalised by the crop where the
    encoder's `normalize` says so; fairseq does it by the whole file.
    """

    encoder: WaveformEncoder
    step: Tensor
    decay: Tensor

    def __init__(self, encoder: WaveformConfig, objective: Data2VecConfig) -> None:
        super().__init__()
        self.encoder = WaveformEncoder(encoder)
        self.config = objective
        self.needs = DataNeeds(encoder.sample_rate, crop_s=objective.crop_s, min_s=objective.min_s)
        self.head = Linear(encoder.dim, encoder.dim)
        self.teacher = Ema(self.encoder.context, copied=("positions",))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("decay", torch.tensor(objective.ema_decay))

    def prepare(self, batches: Iterable[Batch]) -> None:
        """The teacher begins as the encoder is, whatever weights that was given."""
        self.teacher.copy(self.encoder.context)

    def on_optimizer_step(self, step: int) -> None:
        """The teacher follows."""
        config = self.config
        decay = ramp(step, config.ema_decay, config.ema_end_decay, config.ema_steps)
        self.teacher.follow(self.encoder.context, decay)
        self.step.fill_(step)
        self.decay.fill_(decay)

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
            "target_std": _std(targets, mask),
            "prediction_std": _std(predictions.detach(), mask),
            "features_std": _std(guess.features.detach().float(), frame_mask(guess.features, guess.frames)),
            "ema_decay": self.decay.clone(),
            "masked": count / guess.frames.sum().clamp_min(1),
            "r2": 1 - error.detach().square().sum() / wanted.square().sum().clamp_min(1e-9),
        }
        if not self.training:
            metrics["trivial"] = self._cost(wanted) * scale
        return Step(loss, count, metrics)

    def alarms(self, held_out: Mapping[str, float]) -> dict[str, str]:
        """Targets that hardly vary are all alike for a teacher that has collapsed, predictions for a student."""
        guards = {"target": self.config.least_target_std, "prediction": self.config.least_prediction_std}
        return {
            f"collapse of {name}s": f"{name}s hardly vary any more: their standard deviation fell to {std:.2g}, below "
            f"objective.least_{name}_std = {least:g}: lower train.lr or lengthen train.warmup"
            for name, least in guards.items()
            if int(self.step) >= self.config.guard_after and (std := held_out.get(f"{name}_std", math.inf)) < least
        }

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
        targets = self._targets(projected.detach(), frames)
        mask, keep = span_mask(frames, x.shape[1], config.mask), None
        last = encoder.config.layers
        if self.training and config.layer_drop:
            keep = kept_layers(last, config.layer_drop, batch.seed, self.step, x.device)
        hidden = encoder.hidden(encoder.input_dropout(projected), mask)
        states = encoder.context(hidden, frames, [last], keep=keep)[0]
        return _Guess(frames, mask, targets, self.head(states).float(), x)

    @torch.no_grad()
    def _targets(self, x: Tensor, lengths: Tensor) -> Tensor:
        """What the teacher makes of projected features x (B, T, D): (B, T, D) float32, zeros past each clip."""
        last = self.encoder.config.layers
        layers = [last - i for i in range(self.config.top_layers)]  # a list: the compiler takes no range
        normalize = normalize_utterance if self.config.targets_over == "clip" else normalize_batch
        total = torch.zeros(x.shape, device=x.device)
        for state in self.teacher(x, lengths, layers, taps="ffn"):
            total += normalize(state.float(), lengths)
        return total / len(layers)

    def _cost(self, error: Tensor) -> Tensor:
        """The sum over errors, any shape."""
        if self.config.beta == 0:
            return error.square().sum()
        return F.smooth_l1_loss(error, torch.zeros_like(error), reduction="sum", beta=self.config.beta)


def _std(x: Tensor, chosen: Tensor) -> Tensor:
    """Standard deviation of x (B, T, D) over chosen frames (B, T, 1), the mean over channels."""
    count = chosen.sum().clamp_min(1)
    mean = torch.where(chosen, x, 0).sum((0, 1)) / count
    return (torch.where(chosen, x - mean, 0).square().sum((0, 1)) / count).sqrt().mean()


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
