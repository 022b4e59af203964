"""What training varies: mixtures of waveforms, the features, the order of clips. Draws from torch's generator."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Draw = tuple[NDArray[np.int64], NDArray[np.float64]]
"""Row numbers (B,) of a batch, and where each is cropped (B,): 0 at its start, 1 at its end."""


def mix_waveforms(
    waveforms: Tensor, lengths: Tensor, targets: Tensor, probability: float, beta: float
) -> tuple[Tensor, Tensor]:
    """Mixup (Zhang et al. 2018) of waveforms (B, S) and targets (B, K), as Audio-MAE does it.

    With `probability` each clip becomes λ itself + (1 - λ) another of the batch, λ ~ Beta(beta, beta), with its targets
    mixed alike; the other is cut to the clip's length (B,), or ends before it. The mixture's mean is taken out.
    """
    count = len(waveforms)
    share = torch.distributions.Beta(beta, beta).sample((count,)).to(waveforms)
    share = torch.where(torch.rand(count, device=waveforms.device) < probability, share, 1.0)[:, None]
    further = 1 + torch.randint(max(count - 1, 1), (count,), device=waveforms.device)
    other = (torch.arange(count, device=waveforms.device) + further) % count
    inside = torch.arange(waveforms.shape[1], device=lengths.device) < lengths[:, None]
    mixed = (share * waveforms + (1 - share) * waveforms[other]).masked_fill(~inside, 0.0)
    centred = (mixed - mixed.sum(1, keepdim=True) / lengths.clamp_min(1)[:, None]).masked_fill(~inside, 0.0)
    targets = share * targets + (1 - share) * targets[other]
    return torch.where(share < 1, centred, waveforms), targets


def mask_features(x: Tensor, lengths: Tensor, time: int, frequency: int) -> Tensor:
    """SpecAugment (Park et al. 2019): in x (B, T, F) one stretch of frames and one of channels a clip become 0.

    Their widths are uniform on 0 to `time` (at most half the clip's frames, by `lengths` (B,)) and 0 to `frequency`.
    """
    if time:
        x = x.masked_fill(_stretch(lengths, (lengths // 2).clamp(max=time), x.shape[1])[:, :, None], 0.0)
    if frequency:
        channels = torch.full_like(lengths, x.shape[2])
        x = x.masked_fill(_stretch(channels, channels.clamp(max=frequency), x.shape[2])[:, None, :], 0.0)
    return x


def add_noise(x: Tensor, most: float) -> Tensor:
    """x (B, T, F) plus noise uniform on 0 to b, b uniform on 0 to `most` for each clip: Audio-MAE's code has 0.1."""
    bound = most * torch.rand(len(x), 1, 1, device=x.device)
    return x + (bound * torch.rand(x.shape, device=x.device)).to(x.dtype)


def roll_frames(x: Tensor, lengths: Tensor, most: int) -> Tensor:
    """x (B, T, F), the true frames of each clip (B,) moved on cyclically by -most to `most` places, at random."""
    shift = torch.randint(-most, most + 1, (len(x), 1), device=x.device)
    index = torch.arange(x.shape[1], device=x.device).expand(len(x), -1)
    rolled = (index - shift) % lengths.clamp_min(1)[:, None]
    return x.take_along_dim(torch.where(index < lengths[:, None], rolled, index)[:, :, None], 1)


def _stretch(sizes: Tensor, widest: Tensor, count: int) -> Tensor:
    """(B, count) true on a stretch of 0 to `widest` (B,) places, anywhere in the first `sizes` (B,)."""
    width, place = (torch.rand(len(sizes), device=sizes.device) for _ in range(2))
    width = (width * (widest + 1)).long()
    start = (place * (sizes - width + 1)).long()
    index = torch.arange(count, device=sizes.device)
    return (index >= start[:, None]) & (index < (start + width)[:, None])


def draws(
    clips: NDArray[np.int64], batch: int, seed: int, start: int = 0, weights: NDArray[np.float64] | None = None
) -> Iterator[Draw]:
    """Endless batches of rows from `clips` (N,), from batch number `start` on; each depends on seed and number alone.

    Every epoch shuffles the clips, or with `weights` (N,) draws N of them with replacement, and parts them into batches
    of `batch` or one less.
    """
    per_epoch = steps_per_epoch(len(clips), batch)
    epoch, skipped = divmod(start, per_epoch)
    while True:
        rng = np.random.default_rng([seed, epoch])
        shares = None if weights is None else weights / weights.sum()
        order = rng.permutation(clips) if shares is None else rng.choice(clips, len(clips), p=shares)
        places = rng.random(len(clips))
        yield from list(zip(np.array_split(order, per_epoch), np.array_split(places, per_epoch), strict=True))[skipped:]
        epoch, skipped = epoch + 1, 0


def steps_per_epoch(clips: int, batch: int) -> int:
    """Batches an epoch."""
    return -(-clips // batch)


def balanced_weights(hits: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(N,) how often to draw each clip with labels hits (N, K) in {0, 1}: the sum of 1 / count over its labels.

    Clips without any label are drawn like those of the commonest.
    """
    counts = np.maximum(hits.sum(0), 1)
    weights: NDArray[np.float64] = np.einsum("nk,k->n", hits, 1 / counts)  # converts a part at a time
    return np.where(weights > 0, weights, 1 / counts.max())
