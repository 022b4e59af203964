"""Autoregressive predictive coding: predict the frame some steps ahead from all before it (Chung et al. 2019).

arXiv:1904.03240. The presets follow the authors' code, S3PRL, and the baseline that Mockingjay (arXiv:1910.12638) was
compared with; what is said of codes was read in them, what is said of papers is recalled.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from auricle.config import Config, edit
from auricle.data.batching import Batch, DataNeeds
from auricle.encoders.apc import ApcEncoder, ApcEncoderConfig
from auricle.features.normalize import frame_mask
from auricle.methods.base import Method, RunConfig, Step
from auricle.nn.linear import Linear
from auricle.nn.losses import reconstruction_loss

STATISTICS_BATCHES = 50
"""Batches that the channels' mean and scale are taken from, where clips are not normalised on their own."""


class ApcConfig(Config):
    """What is predicted."""

    ahead: int = Field(3, ge=1)
    """n: steps from the last frame seen to the frame predicted. Released models: 1, 2, 3, 5, 10 and 20; S3PRL: 5;
    Mockingjay's baseline: 3."""
    loss: Literal["l1", "mse"] = "l1"
    """Mean absolute error (paper and codes), or squared."""
    crop_s: float = Field(16.0, gt=0)
    """Longest crop, seconds. Official: 1600 frames, 16 s."""
    min_s: float = Field(0.1, ge=0)
    """Shorter clips are left out, seconds."""


class Apc(Method):
    """Encoder and a linear head on its last layer."""

    encoder: ApcEncoder

    def __init__(self, encoder: ApcEncoderConfig, objective: ApcConfig) -> None:
        super().__init__()
        self.encoder = ApcEncoder(encoder)
        self.config = objective
        self.needs = DataNeeds(self.encoder.sample_rate, crop_s=objective.crop_s, min_s=objective.min_s)
        self.head = Linear(encoder.dim, self.encoder.front_end.dim)

    @torch.no_grad()
    def prepare(self, batches: Iterable[Batch]) -> None:
        """Without utterance normalisation: each channel's mean and scale over the first crops."""
        if self.encoder.config.front_end.normalize == "utterance":
            return
        found = [
            x[frame_mask(x, lengths)[..., 0]].double()
            for x, lengths in (
                self.encoder.front_end(batch.waveforms, batch.lengths) for batch in islice(batches, STATISTICS_BATCHES)
            )
        ]
        frames = torch.cat(found)  # (N, F)
        self.encoder.mean.copy_(frames.mean(0))
        self.encoder.scale.copy_((frames.var(0, correction=0) + 1e-5).rsqrt())

    def forward(self, batch: Batch) -> Step:
        """Mean error of each frame's prediction of the one `ahead`, where the clip has one; `count` is its values.

        `trivial` copies the last frame seen.
        """
        x, lengths = self.encoder.features(batch.waveforms, batch.lengths)
        wanted = F.pad(x, (0, 0, 0, self.config.ahead))[:, self.config.ahead :]  # (B, T, F)
        chosen = frame_mask(x, lengths - self.config.ahead)
        loss, count = reconstruction_loss(self._predict(x, lengths), wanted, chosen, self.config.loss)
        if self.training:
            return Step(loss, count)
        trivial, _ = reconstruction_loss(x, wanted, chosen, self.config.loss)
        return Step(loss, count, {"trivial": trivial})

    @torch.no_grad()
    def visualize(self, batch: Batch) -> dict[str, Tensor]:
        """`target` and its `prediction` of the first clip, each (T, F), stacked frames unstacked.

        Predictions stand where their targets do; the first frames, which nothing comes before, are left at 0.
        """
        x, lengths = self.encoder.features(batch.waveforms[:1], batch.lengths[:1])
        steps, stack = int(lengths[0]), self.encoder.config.front_end.stack
        prediction = F.pad(self._predict(x, lengths), (0, 0, self.config.ahead, 0))
        pictures = {"target": x, "prediction": prediction}
        return {name: picture[0, :steps].float().cpu().reshape(steps * stack, -1) for name, picture in pictures.items()}

    def _predict(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Of features x (B, T, F), at each frame, the one `ahead` (B, T, F)."""
        states = self.encoder.encode(x, lengths, layers=[len(self.encoder.dims) - 1]).hidden_states
        return self.head(states[0])  # type: ignore[no-any-return]


class ApcRun(RunConfig):
    """An APC run."""

    method: ClassVar[str] = "apc"
    preset: str = "apc_base"
    encoder: ApcEncoderConfig = ApcEncoderConfig()
    objective: ApcConfig = ApcConfig()

    def build(self) -> Apc:
        """The method with fresh weights."""
        return Apc(self.encoder, self.objective)


def apc_base() -> ApcRun:
    """Three GRUs of 512 as the authors' code trains them on 360 h: 32 utterances a step, 100 epochs, n = 3."""
    train = {
        "steps": 325_000,
        "lr": 1e-4,
        "warmup": 0.0,
        "schedule": "constant",
        "weight_decay": 0.0,
        "clip_norm": 1.0,
        "checkpoint_every": 5000,
    }
    return edit(ApcRun(preset="apc_base"), data={"batch_seconds": 400.0}, train=train)


def apc_s3prl() -> ApcRun:
    """Three GRUs of 512 as in S3PRL, on 960 h: a Hamming window, dropout on every layer, n = 5."""
    return edit(
        apc_base(),
        preset="apc_s3prl",
        encoder={"front_end": {"window": "hamming"}, "dropout": 0.1, "drop_last": True},
        objective={"ahead": 5},
        train={"steps": 880_000, "clip_norm": 5.0},
    )


def apc_mockingjay_paper() -> ApcRun:
    """The baseline in Mockingjay's paper: three GRUs of 768 on its 160 channels, a step every 12.5 ms, n = 3."""
    return edit(
        apc_base(),
        preset="apc_mockingjay_paper",
        encoder={
            "front_end": {
                "kind": "stft",
                "window_ms": 50.0,
                "hop_ms": 12.5,
                "n_fft": 2048,
                "mel_scale": "slaney",
                "mel_norm": "slaney",
                "log_floor": 1e-6,
                "deltas": 1,
            },
            "dim": 768,
            "dropout": 0.1,
        },
        objective={"crop_s": 37.5},
        train={"steps": 500_000, "lr": 1e-3},
    )


def apc_tiny() -> ApcRun:
    """A causal Transformer, 3 layers of 256, a step every 20 ms, for two CPU cores: minutes on an hour of audio."""
    return edit(
        apc_base(),
        preset="apc_tiny",
        encoder={
            "front_end": {"kind": "stft", "level_db": -25.0, "stack": 2},
            "core": "causal_transformer",
            "dim": 256,
            "heads": 4,
            "ffn": 1024,
            "position_jitter": 20,
            "chunk_frames": 250,
        },
        objective={"ahead": 3, "crop_s": 5.0, "min_s": 0.25},
        data={"batch_seconds": 16.0},
        train={
            "steps": 2000,
            "lr": 1e-3,
            "warmup": 0.07,
            "schedule": "linear",
            "weight_decay": 0.01,
            "valid_every": 500,
            "checkpoint_every": 1000,
        },
    )
