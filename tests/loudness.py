"""An encoder that hears one thing only, how loud each frame is, and clips whose loudness is their label."""

from typing import ClassVar

import numpy as np
import soundfile
import torch

from auricle.config import Config
from auricle.data.manifest import Manifest
from auricle.encoders.base import Encoder, Frames
from auricle.evaluation.run import evaluate

RATE = 16_000
LEVELS = 8
"""Loudness steps an encoder tells apart; a sample's step is round(10 · sample)."""


class Loudness(Encoder):
    """Layer 0 is noise that depends on the clip's length; the last is one-hot of the loudness at a frame's centre."""

    family: ClassVar[str] = "loudness"

    class Options(Config):
        hop: int = 160
        offset: int = 0
        scale: float = 1.0

    def __init__(self, name="loudness", **options):
        super().__init__()
        self.config = self.Options(**options)
        self.name, self.sample_rate = name, RATE
        self.hop, self.offset = self.config.hop, float(self.config.offset)
        self.dims = (4, LEVELS)
        self.calls = 0

    def features(self, waveforms, lengths):
        self.calls += 1
        centres = waveforms[:, self.config.offset :: self.hop]
        return centres, torch.div(lengths - self.config.offset - 1, self.hop, rounding_mode="floor") + 1

    def encode(self, x, lengths, *, layers=None):
        steps = (x * 10).round().long().clamp(0, LEVELS - 1)
        loud = torch.nn.functional.one_hot(steps, LEVELS).float() * self.config.scale
        noise = torch.sin(lengths[:, None, None] * torch.arange(1, 5) * 12.9898).expand(-1, x.shape[1], -1)
        states = [noise, loud]
        return Frames([states[layer] for layer in (range(2) if layers is None else layers)], lengths)


def write_clips(folder):
    """60 clips of constant loudness 0.1 to 0.6 in turn, of different lengths."""
    rng = np.random.default_rng(0)
    for clip in range(60):
        level = (1 + clip % 6) / 10
        soundfile.write(folder / f"{clip:02}.wav", np.full(rng.integers(2000, 6000), level), RATE, subtype="FLOAT")
    return folder


def manifest(audio, **columns):
    """A manifest of the clips, split 30, 12, 18 unless it says otherwise, with a column `loud` of the true classes."""
    number = np.arange(60)
    basic = {
        "path": [f"{clip:02}.wav" for clip in number],
        "split": ["train"] * 30 + ["dev"] * 12 + ["test"] * 18,
        "loud": [f"level {clip % 6}" for clip in number],
    }
    return Manifest.from_columns({key: value for key, value in (basic | columns).items() if value is not None}, audio)


def run(encoders, data, target, output, **options):
    options = options if "protocol" in options else {"lrs": (1e-2,)} | options
    return evaluate(encoders, data=data, target=target, output=output, progress=False, device="cpu", **options)
