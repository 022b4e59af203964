"""Delta coefficients, and the context beyond a clip's ends that they need."""

from __future__ import annotations

import torch
from torch import Tensor


def replicate_edges(x: Tensor, lengths: Tensor, frames: int) -> Tensor:
    """(B, T, F) to (B, frames + T + frames, F): each clip's first frame before it, its last true frame after it."""
    last = (lengths - 1).clamp_min(0)[:, None]
    steps = torch.arange(-frames, x.shape[1] + frames, device=x.device)
    index = torch.minimum(steps.clamp_min(0), last)  # (B, T + 2 frames)
    return x[torch.arange(x.shape[0], device=x.device)[:, None], index]


def deltas(x: Tensor, lengths: Tensor) -> Tensor:
    """Slopes (B, T, F) of the regression lines through five frames of x (B, T, F), edges replicated at the true ends.

    Kaldi's `add-deltas` of order 1. A second order is the deltas' deltas, as torchaudio computes it; Kaldi's own second
    order differs from it in the first and last two frames.
    """
    window = replicate_edges(x, lengths, 2)
    return (2 * (window[:, 4:] - window[:, :-4]) + window[:, 3:-1] - window[:, 1:-3]) / 10


def add_deltas(x: Tensor, lengths: Tensor, order: int) -> Tensor:
    """x (B, T, F) with its deltas up to `order` beside it: (B, T, (1 + order) F)."""
    parts = [x]
    for _ in range(order):
        parts.append(deltas(parts[-1], lengths))
    return torch.cat(parts, dim=-1)
