"""What a method asks of the data (`DataNeeds`), what it gets (`Batch`), and in which order."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from auricle.config import Config
from auricle.data.columns import Skip

__all__ = ["Batch", "DataConfig", "DataNeeds", "Skip", "crop_positions", "plan_buckets", "plan_epoch", "plan_groups"]

JITTER = 0.1
"""Lengths are compared after a random factor of 1 ± this, so that each epoch puts other clips side by side."""


@dataclass(frozen=True)
class DataNeeds:
    """What a method asks of the data path, which never branches on the method."""

    sample_rate: int
    """Hz."""
    crop_s: float
    """Longest crop, seconds; longer clips are cropped at a random place, shorter ones are taken whole."""
    min_s: float = 0.0
    """Clips shorter than this many seconds are left out; they are no skips, since nothing is wrong with them. It is
    at least what `disjoint` crops need."""
    columns: tuple[str, ...] = ()
    """Label columns that come as codes in `Batch.labels`; `path`, which is no label, tells recordings apart."""
    group_by: str | None = None
    """One of `columns`: a batch holds clips of one value of it (those without a value make batches of their own)."""
    columns_optional: bool = False
    """Whether a column, or a clip's value in it, may be missing: its code is then -1."""
    align: int = 1
    """Crops start at multiples of this many samples, so that a network with that hop meets the same frames in each."""
    crops: int = 1
    """Crops of each clip, rows side by side."""
    disjoint: bool = False
    """Whether no two crops of a clip overlap; all of them last `crop_s` then."""
    min_clips: int = 1
    """Clips that a batch holds, over budget if it must; fewer only where a group has no more, or some are skipped."""

    def __post_init__(self) -> None:
        if self.disjoint:
            object.__setattr__(self, "min_s", max(self.min_s, self.crops * self.spacing / self.sample_rate))

    @property
    def spacing(self) -> int:
        """Samples from a disjoint crop's start to the next one's, at least: a crop, up to a multiple of `align`."""
        return -(-int(self.crop_s * self.sample_rate) // self.align) * self.align


class DataConfig(Config):
    """How recordings become batches."""

    batch_seconds: float = Field(120.0, gt=0)
    """Seconds of audio in a micro-batch, padding included; a longer clip makes a batch alone."""
    workers: int = Field(0, ge=0)
    """Processes that read audio; 0 reads in the training process. The batches are the same whatever the number."""
    max_skipped: float = Field(0.01, ge=0, le=1)
    """Fraction of the clips that may prove unusable before the run fails."""
    valid_fraction: float = Field(0.05, ge=0, lt=1)
    """Fraction of the clips held out, by whole recordings, for the held-out loss: at least 1 clip, at most 200."""


@dataclass(frozen=True)
class Batch:
    """Crops of recordings, padded with zeros to a common length; those of one clip (`DataNeeds.crops`) side by side."""

    waveforms: Tensor
    """(B, S) float32 in [-1, 1] at the model's rate."""
    lengths: Tensor
    """(B,) true samples."""
    clip_ids: list[str]
    starts: Tensor
    """(B,) first sample of each crop in its clip, at the model's rate."""
    labels: dict[str, Tensor] = field(default_factory=dict)
    """Columns asked for, each (B,) int64: equal codes for equal values of the manifest, -1 where unknown."""
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


def plan_epoch(
    durations_s: NDArray[np.float64],
    needs: DataNeeds,
    batch_seconds: float,
    seed: int,
    epoch: int,
    groups: NDArray[np.int64] | None = None,
) -> list[NDArray[np.int64]]:
    """Row numbers of each batch of an epoch: every clip once, crops of like length together, batches in random order.

    `durations_s` (N,) are the clips' lengths. A batch's padded crops fill at most `batch_seconds`, unless those of
    `needs.min_clips` are longer; with `groups` (N,) its clips are of one group. Depends on nothing but its arguments.
    """
    rng = np.random.default_rng([seed, epoch, 0])
    lengths = needs.crops * np.minimum(durations_s, needs.crop_s)
    keys = lengths * rng.uniform(1 - JITTER, 1 + JITTER, len(lengths))
    batches = plan_groups(lengths, batch_seconds, groups, keys, needs.min_clips)
    return [batches[index] for index in rng.permutation(len(batches))]


def plan_groups(
    lengths: NDArray[np.float64],
    budget: float,
    groups: NDArray[np.int64] | None,
    keys: NDArray[np.float64] | None = None,
    least: int = 1,
) -> list[NDArray[np.int64]]:
    """`plan_buckets` of each of `groups` (N,) in turn, or of all rows where there are none."""
    if groups is None:
        return plan_buckets(lengths, budget, keys, least)
    order = np.argsort(groups, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    keys = lengths if keys is None else keys
    return [part[bucket] for part in parts for bucket in plan_buckets(lengths[part], budget, keys[part], least)]


def plan_buckets(
    lengths: NDArray[np.float64], budget: float, keys: NDArray[np.float64] | None = None, least: int = 1
) -> list[NDArray[np.int64]]:
    """Row numbers of batches whose padded size (rows times longest) stays within `budget`, longest first.

    Rows are taken in descending order of `keys` (N,), by default their `lengths` (N,). At least `least` rows go
    together even over budget: none alone where there are `least` in all.
    """
    order = np.argsort(-(lengths if keys is None else keys), kind="stable")
    sorted_lengths = lengths[order]
    batches, first = [], 0
    while first < len(order):
        room = int(budget / max(sorted_lengths[first], 1e-9)) + 1  # more rows than this cannot fit behind the first
        longest = np.maximum.accumulate(sorted_lengths[first : first + room])
        fitting = int(np.searchsorted(longest * np.arange(1, len(longest) + 1), budget * (1 + 1e-9), side="right"))
        taken, left = max(least, fitting), len(order) - first
        if 0 < left - taken < least:  # too few would be left for a batch of their own
            taken = left - least if left >= 2 * least else left
        batches.append(order[first : first + taken])
        first += len(batches[-1])
    return batches


def crop_positions(num_clips: int, crops: int, seed: int, epoch: int) -> NDArray[np.float64]:
    """(N, `crops`) where each clip's crops lie this epoch, from 0 (at its start) to 1 (at its end)."""
    return np.random.default_rng([seed, epoch, 1]).random((num_clips, crops))
