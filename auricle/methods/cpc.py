"""Contrastive predictive coding: tell the frames to come from others (van den Oord et al. 2018, arXiv:1807.03748).

The defaults are those of CPC_audio (Rivière et al. 2020, arXiv:2002.02848): channel norm, LSTM, Transformers as
predictors. What is said of the paper is recalled, what is said of CPC_audio was read in its code.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from auricle.config import Config, edit
from auricle.data.batching import Batch, DataNeeds
from auricle.encoders.cpc import SAMPLE_RATE, CpcEncoder, CpcEncoderConfig
from auricle.methods.base import Method, RunConfig, Step
from auricle.nn.prediction import LinearPredictors, TransformerPredictors, scores_across, scores_within


class CpcConfig(Config):
    """What is predicted, by what, and told from what."""

    window_s: float = Field(1.28, gt=0)
    """Stretch that is predicted within, seconds; shorter clips are left out. 20480 samples, 128 frames, in both."""
    crop_s: float = Field(1.28, gt=0)
    """Longest crop, seconds, cut into as many windows as fit. More windows a crop: less reading, but fewer clips."""
    steps: int = Field(12, ge=1)
    """Steps ahead (10 ms each) that are predicted, each by a predictor of its own; 12 in both."""
    predictor: Literal["transformer", "linear"] = "transformer"
    """Causal Transformers of one layer (CPC_audio), or linear maps (the paper)."""
    heads: int = Field(8, ge=1)
    """Attention heads of a Transformer."""
    ffn: int = Field(2048, ge=1)
    """Width inside its feed-forward part."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """In it, on attention weights and inside the feed-forward part."""
    score: Literal["mean", "dot"] = "mean"
    """How a prediction and a frame compare: by the mean of their elementwise product (CPC_audio), or its sum (the
    paper). The sum has gradients D times as large where scores are still small: short runs need it."""
    negatives: Literal["recording", "speaker", "batch"] = "recording"
    """Where the frames come from that the true one is told from: the same recording, the same speaker, or any clip of
    the batch. CPC_audio: speaker, its batches being of one speaker. `recording` needs no labels and makes features
    rather of what is said; `batch` keeps more of who says it."""
    num_negatives: int = Field(128, ge=1)
    """Of them, for each position; all steps ahead share them."""
    spare_positives: bool = True
    """Negatives come from none of the steps predicted. CPC_audio (false) only leaves out the position itself, so that
    the true frame may be among its own negatives."""
    speaker_column: str = "speaker"
    """Column of the manifest that tells speakers apart; for negatives of the same speaker."""
    without_speaker: Literal["error", "recording"] = "error"
    """Where that column, or a clip's entry in it, is missing: refuse to begin, or take negatives of its recording."""
    over_steps: Literal["mean", "sum"] = "mean"
    """The loss is the mean over the steps ahead (the paper), or their sum (CPC_audio); a matter of scale."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.window_s * 100 < self.steps + 2:
            raise ValueError(f"window_s: {self.window_s:g} s hold no {self.steps} steps of 10 ms and two more")
        if self.crop_s < self.window_s:
            raise ValueError(f"crop_s: {self.crop_s:g} s hold no window of {self.window_s:g} s")
        return self


class Cpc(Method):
    """Encoder and predictors."""

    encoder: CpcEncoder

    def __init__(self, encoder: CpcEncoderConfig, objective: CpcConfig) -> None:
        super().__init__()
        self.encoder = CpcEncoder(encoder)
        self.config = objective
        self.window = int(objective.window_s * SAMPLE_RATE)  # samples
        self.frames = int(self.encoder.convolutions.frames(torch.tensor(self.window)))
        self.positions = self.frames - objective.steps
        dim, context = self.encoder.dims
        self.scale = 1 / dim if objective.score == "mean" else 1.0
        columns = (objective.speaker_column,) if objective.negatives == "speaker" else ()
        self.needs = DataNeeds(
            SAMPLE_RATE,
            crop_s=objective.crop_s,
            min_s=objective.window_s,
            columns=columns,
            group_by=objective.speaker_column if columns else None,
            columns_optional=objective.without_speaker == "recording",
        )
        self.predictors: nn.Module = LinearPredictors(context, dim, objective.steps)
        if objective.predictor == "transformer":
            self.predictors = TransformerPredictors(
                dim, objective.steps, self.positions, objective.heads, objective.ffn, objective.dropout
            )

    def forward(self, batch: Batch) -> Step:
        """InfoNCE over positions and steps ahead; `count` is the number of positions.

        `accuracy_k` is the share of positions whose true frame, k steps ahead, scores above all of its negatives.
        """
        waveforms, valid = self._windows(batch)
        positive, negative = self._scores(waveforms, self._draw(batch, valid), len(valid))
        weight = valid.flatten()[:, None, None].float()
        count = weight.sum() * self.positions

        def mean(values: Tensor) -> Tensor:  # over positions: (B W, T, K) to (K,)
            return (values * weight).sum((0, 1)) / count.clamp_min(1)

        loss = mean(_cross_entropy(positive, negative))
        accuracy = mean((positive > negative.amax(-1)).float())
        metrics = {f"accuracy_{step}": value for step, value in enumerate(accuracy.unbind(), 1)}
        if not self.training:
            chance = torch.full_like(loss, math.log(1 + self.config.num_negatives))
            metrics = {"trivial": self._over_steps(chance), **metrics}
        return Step(self._over_steps(loss), count, metrics)

    @torch.no_grad()
    def visualize(self, batch: Batch) -> dict[str, Tensor]:
        """Of the first clip's first window: `frames` z (T, C), `context` c (T, D), and the `probability` (T, K) that
        the true frame has among negatives from its own recording."""
        first = replace(batch, waveforms=batch.waveforms[:1], lengths=batch.lengths[:1], labels={})
        waveforms, valid = self._windows(first)
        z = self.encoder.convolutions(waveforms[:1], None)[0]
        context = self.encoder.encode(z, valid.sum(1) * self.frames, layers=[1]).hidden_states[0]
        probability = _cross_entropy(*self._scores(waveforms, self._draw(first, valid), 1)).neg().exp()
        pictures = {"frames": z, "context": context, "probability": probability}
        return {name: picture[0].float().cpu() for name, picture in pictures.items()}

    def _over_steps(self, values: Tensor) -> Tensor:
        return values.sum() if self.config.over_steps == "sum" else values.mean()

    def _windows(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Windows (B W, S) side by side in each clip, from a random place on, and which of them it holds: (B, W)."""
        waveforms, lengths, device = batch.waveforms, batch.lengths, batch.waveforms.device
        held = lengths // self.window  # (B,)
        most = max(1, waveforms.shape[1] // self.window)  # W
        slack = lengths - held * self.window
        start = (torch.rand(len(lengths), device=device) * (slack + 1)).long() if self.training else slack // 2
        index = start[:, None] + torch.arange(most * self.window, device=device)
        windows = waveforms.gather(1, index.clamp_max(waveforms.shape[1] - 1)).view(-1, self.window)
        return windows, torch.arange(most, device=device) < held[:, None]

    def _draw(self, batch: Batch, valid: Tensor) -> Tensor:
        """Which frames are negatives: numbers (B W, T, N) into the B W T frames of all windows, `valid` being (B, W).

        First a window of the position's own group, then a time in it that lies at none of the steps predicted.
        """
        clips, most = valid.shape
        device, shape = valid.device, (clips * most, self.positions, self.config.num_negatives)
        alone = torch.arange(clips, device=device)
        group = alone if self.config.negatives == "recording" else torch.zeros_like(alone)
        if self.config.negatives == "speaker":
            speaker = batch.labels.get(self.config.speaker_column, torch.full_like(alone, -1))
            group = torch.where(speaker < 0, alone, clips + speaker)
        group = torch.where(valid, group[:, None], -1).flatten()  # (B W,); no clip's windows draw from what is void
        ordered, order = group.sort()
        first = torch.searchsorted(ordered, group)
        size = torch.searchsorted(ordered, group, right=True) - first
        pick = (torch.rand(shape, device=device) * size[:, None, None]).long()
        window = order[first[:, None, None] + torch.minimum(pick, size[:, None, None] - 1)]
        spared = self.config.steps + 1 if self.config.spare_positives else 1
        shift = torch.randint(spared, self.frames, shape, device=device)
        time = (torch.arange(self.positions, device=device)[:, None] + shift) % self.frames
        return window * self.frames + time

    def _scores(self, waveforms: Tensor, negatives: Tensor, clips: int) -> tuple[Tensor, Tensor]:
        """Scores of the true frames (B W, T, K) and of the negatives (B W, T, K, N), float32."""
        z, _ = self.encoder.convolutions(waveforms, None)  # (B W, frames, D)
        lengths = torch.full((len(z),), self.positions, device=z.device)
        context = self.encoder.encode(z[:, : self.positions], lengths, layers=[1]).hidden_states[0]
        predicted = self.predictors(context)  # (B W, T, K, D)
        with torch.autocast(z.device.type, enabled=False):
            z, predicted = z.float(), predicted.float() * self.scale
            frame = torch.arange(z.shape[0] * self.frames, device=z.device).view(-1, self.frames)
            truth = frame[:, 1:].unfold(1, self.config.steps, 1)  # (B W, T, K)
            positive = (predicted * F.embedding(truth, z.flatten(0, 1))).sum(3)
            score = scores_within if self.config.negatives == "recording" else scores_across
            return positive, score(predicted, z, negatives, len(z) // clips)


def _cross_entropy(positive: Tensor, negative: Tensor) -> Tensor:
    """Minus the log-probability of the true frame: scores (..., K) and (..., K, N) to (..., K)."""
    return torch.logaddexp(positive, negative.logsumexp(-1)) - positive


class CpcRun(RunConfig):
    """A CPC run."""

    method: ClassVar[str] = "cpc"
    preset: str = "cpc_base"
    encoder: CpcEncoderConfig = CpcEncoderConfig()
    objective: CpcConfig = CpcConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        channels, dim = self.encoder.channels[-1], self.encoder.context_dim
        if self.objective.predictor == "transformer" and (channels != dim or dim % self.objective.heads):
            raise ValueError(
                f"objective.predictor: a Transformer needs an encoder.context_dim ({dim}) that is a multiple of "
                f"objective.heads ({self.objective.heads}) and equals the last of encoder.channels ({channels})"
            )
        return self

    def build(self) -> Cpc:
        """The method with fresh weights."""
        return Cpc(self.encoder, self.objective)


def cpc_base() -> CpcRun:
    """CPC_audio's: 256 channels, LSTM, Transformers predict; negatives of the speaker, else recording."""
    return edit(
        CpcRun(preset="cpc_base"),
        objective={"negatives": "speaker", "without_speaker": "recording"},
        data={"batch_seconds": 64 * 1.28},
        train={
            "steps": 300_000,
            "lr": 2e-4,
            "warmup": 0.0,
            "schedule": "constant",
            "weight_decay": 0.0,
            "checkpoint_every": 5000,
        },
    )


def cpc_paper() -> CpcRun:
    """The paper's: 512 channels, GRU of 256, linear maps; channel norm, where the paper names no norm."""
    return edit(
        cpc_base(),
        preset="cpc_paper",
        encoder={"channels": (512,) * 5, "context": "gru"},
        objective={"predictor": "linear", "score": "dot"},
    )


def cpc_tiny() -> CpcRun:
    """Narrow first convolutions and linear maps, for two CPU cores: minutes of training on an hour of speech."""
    return edit(
        cpc_base(),
        preset="cpc_tiny",
        encoder={"channels": (32, 64, 128, 256, 256)},
        objective={"predictor": "linear", "score": "dot", "negatives": "recording"},
        data={"batch_seconds": 16 * 1.28},
        train={"steps": 1500, "lr": 1e-3, "warmup": 0.07, "schedule": "linear", "clip_norm": 1.0, "valid_every": 500},
    )
