"""What data2vec and its second version share: a teacher that follows the student, its targets, signs of collapse."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from auricle.config import Config
from auricle.data.batching import Batch, DataNeeds
from auricle.encoders.waveform import WaveformConfig, WaveformEncoder
from auricle.features.normalize import normalize_batch, normalize_utterance
from auricle.methods.base import Method
from auricle.nn.ema import Ema, ramp
from auricle.nn.masking import kept_layers


class TeacherConfig(Config):
    """Who tells the targets, of what. The defaults are fairseq's for data2vec BASE, on speech."""

    crop_s: float = Field(20.0, gt=0)
    """Longest crop, seconds: 320000 samples. (fairseq crops all clips of a batch to its shortest; here padding is
    hidden from the network, and clips keep their length.)"""
    min_s: float = Field(2.0, ge=0)
    """Shorter clips are left out, seconds."""
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
    least_target_std: float = Field(0.1, ge=0)
    """Targets whose standard deviation, the mean over channels, is below this have collapsed; at this fairseq ends."""
    least_prediction_std: float = Field(0.01, ge=0)
    """The same of predictions."""
    guard_after: int = Field(5000, ge=0)
    """Steps before which nobody looks at that."""


class Taught(Method):
    """An encoder of waveforms, and its `teacher`: a moving average of the part of it that `followed` names."""

    encoder: WaveformEncoder
    config: TeacherConfig
    copied: ClassVar[tuple[str, ...]] = ()
    """Submodules that the teacher takes over as they are."""
    step: Tensor
    decay: Tensor

    def __init__(self, encoder: WaveformConfig, objective: TeacherConfig) -> None:
        super().__init__()
        self.encoder = WaveformEncoder(encoder)
        self.config = objective
        self.needs = DataNeeds(encoder.sample_rate, crop_s=objective.crop_s, min_s=objective.min_s)
        self.teacher = Ema(self.followed(), self.copied)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("decay", torch.tensor(objective.ema_decay))

    @abstractmethod
    def followed(self) -> nn.Module:
        """The part of the student that the teacher averages."""

    def prepare(self, batches: Iterable[Batch]) -> None:
        """The teacher begins as the encoder is, whatever weights that was given."""
        self.teacher.copy(self.followed())

    def on_optimizer_step(self, step: int) -> None:
        """The teacher follows."""
        config = self.config
        decay = ramp(step, config.ema_decay, config.ema_end_decay, config.ema_steps)
        self.teacher.follow(self.followed(), decay)
        self.step.fill_(step)
        self.decay.fill_(decay)

    def alarms(self, held_out: Mapping[str, float]) -> dict[str, str]:
        """Targets that hardly vary are all alike for a teacher that has collapsed, predictions for a student."""
        guards = {"target": self.config.least_target_std, "prediction": self.config.least_prediction_std}
        return {
            f"collapse of {name}s": f"{name}s hardly vary any more: their standard deviation fell to {std:.2g}, below "
            f"objective.least_{name}_std = {least:g}: lower train.lr or lengthen train.warmup"
            for name, least in guards.items()
            if int(self.step) >= self.config.guard_after and (std := held_out.get(f"{name}_std", math.inf)) < least
        }

    def kept(self, batch: Batch) -> Tensor | None:
        """Which blocks of the student this step runs, (L,), or None for all."""
        if not (self.training and self.config.layer_drop):
            return None
        layers = self.encoder.config.layers
        return kept_layers(layers, self.config.layer_drop, batch.seed, self.step, batch.waveforms.device)

    @torch.no_grad()
    def targets(self, context: nn.Module, x: Tensor, lengths: Tensor) -> Tensor:
        """What a teacher's `context` makes of projected features x (B, T, D): (B, T, D) float32, 0 past each clip."""
        last = self.encoder.config.layers
        layers = [last - i for i in range(self.config.top_layers)]  # a list: the compiler takes no range
        normalize = normalize_utterance if self.config.targets_over == "clip" else normalize_batch
        total = torch.zeros(x.shape, device=x.device)
        for state in context(x, lengths, layers, taps="ffn"):
            total += normalize(state.float(), lengths)
        return total / len(layers)


def frame_std(x: Tensor, chosen: Tensor) -> Tensor:
    """Standard deviation () of x (B, T, D) over chosen frames (B, T, 1), the mean over channels."""
    count = chosen.sum().clamp_min(1)
    mean = torch.where(chosen, x, 0).sum((0, 1)) / count
    return (torch.where(chosen, x - mean, 0).square().sum((0, 1)) / count).sqrt().mean()
