"""What a method asks of the data (`DataNeeds`), what it gets (`Batch`), and in which order."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from auricle.config import Config


@dataclass(frozen=True)
class DataNeeds:
    """What a method asks of the data path, which never branches on the method."""

    sample_rate: int
    """Hz."""
    crop_s: float
    """Longest crop, seconds; longer clips are cropped at a random place, shorter ones are taken whole."""
    min_s: float = 0.0
    """Clips shorter than this many seconds are left out (and counted)."""


class DataConfig(Config):
    """Which recordings a run hears, and how they are batched."""


@dataclass(frozen=True)
class Skip:
    """A clip that could not be used, and why."""

    clip_id: str
    path: str
    reason: str


@dataclass(frozen=True)
class Batch:
    """Crops of recordings, padded with zeros to a common length."""

    waveforms: Tensor
    """(B, S) float32 in [-1, 1] at the model's rate."""
    lengths: Tensor
    """(B,) true samples."""
    clip_ids: list[str]
    starts: Tensor
    """(B,) first sample of each crop in its clip, at the model's rate."""
    labels: dict[str, Tensor] = field(default_factory=dict)
    """Columns asked for, each (B,); -1 where unknown."""
    epoch: int = 0
    seed: int = 0
    skipped: list[Skip] = field(default_factory=list)
    """Clips of this batch that could not be read; they have no row."""

    def to(self, device: torch.device | str) -> Batch:
        """The batch with its tensors on `device`."""
        return replace(
            self,
            waveforms=self.waveforms.to(device, non_blocking=True),
            lengths=self.lengths.to(device, non_blocking=True),
            starts=self.starts.to(device, non_blocking=True),
            labels={name: value.to(device, non_blocking=True) for name, value in self.labels.items()},
        )
