"""Level and utterance normalisation, over true samples and true frames only."""

from __future__ import annotations

import torch
from torch import Tensor


def frame_mask(x: Tensor, lengths: Tensor) -> Tensor:
    """True (B, T, 1) on the true frames of x (B, T, F)."""
    return (torch.arange(x.shape[1], device=x.device) < lengths[:, None])[..., None]


def normalize_utterance(x: Tensor, lengths: Tensor, eps: float = 1e-5) -> Tensor:
    """Each channel of each clip of x (B, T, F) to mean 0 and variance 1 over its true frames; zeros past them.

    `eps` is added to the variance (biased, as numpy's), so that a constant channel comes out as 0.
    """
    mask = frame_mask(x, lengths)
    count = lengths.clamp_min(1)[:, None, None]
    x = torch.where(mask, x - x[:, :1], 0)  # shifted, constant channels (digital silence) are exactly 0, not rounding
    centred = torch.where(mask, x - x.sum(1, keepdim=True) / count, 0)
    variance = centred.square().sum(1, keepdim=True) / count
    return centred * (variance + eps).rsqrt()


def set_level(waveforms: Tensor, lengths: Tensor, level_db: float) -> Tensor:
    """Scale each clip of waveforms (B, S), zero past its length, to an RMS of `level_db` dB re 1; silence stays."""
    energy = waveforms.square().sum(1, keepdim=True, dtype=torch.float64)  # exact, so no gain depends on the padding
    power = energy / lengths.clamp_min(1)[:, None]
    return waveforms * (10 ** (level_db / 20) * (power + 1e-20).rsqrt()).to(waveforms.dtype)
