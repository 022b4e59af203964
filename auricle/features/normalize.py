"""Level and utterance normalisation, over true samples and true frames only."""

from __future__ import annotations

import torch
from torch import Tensor

from auricle.features.spectrum import exporting

_SAMPLES = 1 << 20
"""Squared at once: their float64 copies stay small, however long the clip."""


def frame_mask(x: Tensor, lengths: Tensor) -> Tensor:
    """True (B, T, 1) on the true frames of x (B, T, F)."""
    return (torch.arange(x.shape[1], device=x.device) < lengths[:, None])[..., None]


def normalize_utterance(x: Tensor, lengths: Tensor, eps: float = 1e-5, unbiased: bool = False) -> Tensor:
    """Each channel of each clip of x (B, T, F) to mean 0 and variance 1 over its true frames; zeros past them.

    `eps` is added to the variance (biased, as numpy's; or `unbiased`, as torch's), so that a constant channel comes
    out as 0.
    """
    mask = frame_mask(x, lengths)
    count = lengths.clamp_min(1)[:, None, None]
    x = (x - x[:, :1]).masked_fill_(~mask, 0)  # shifted, constant channels (silence) are exactly 0, not rounding
    x = (x - x.sum(1, keepdim=True) / count).masked_fill_(~mask, 0)
    variance = x.square().sum(1, keepdim=True) / ((count - 1).clamp_min(1) if unbiased else count)
    return x * (variance + eps).rsqrt()


def normalize_batch(x: Tensor, lengths: Tensor, eps: float = 1e-5) -> Tensor:
    """Each channel of x (B, T, F) to mean 0 and variance 1 over the true frames of all clips; zeros past them."""
    mask, count = frame_mask(x, lengths), lengths.sum().clamp_min(1)
    x = (x - x.masked_fill(~mask, 0).sum((0, 1)) / count).masked_fill(~mask, 0)
    return x * (x.square().sum((0, 1)) / count + eps).rsqrt()


def level_gain(waveforms: Tensor, lengths: Tensor, level_db: float) -> Tensor:
    """Factors (B, 1) that bring clips of waveforms (B, S), zero past their lengths, to an RMS of `level_db` dB re 1.

    Digital silence stays so.
    """
    energy = torch.zeros(waveforms.shape[0], 1, dtype=torch.float64, device=waveforms.device)
    parts = [waveforms] if exporting() else torch.split(waveforms, _SAMPLES, dim=1)
    for part in parts:
        energy = energy + part.square().sum(1, keepdim=True, dtype=torch.float64)  # exact: no gain depends on padding
    power = energy / lengths.clamp_min(1)[:, None]
    return (10 ** (level_db / 20) * (power + 1e-20).rsqrt()).to(waveforms.dtype)
