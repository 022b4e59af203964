"""Fixed sinusoidal position codes (Vaswani et al. 2017, section 3.5), interleaved as in BERT-style speech models."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def sinusoids(length: int, dim: int) -> Tensor:
    """Position codes (length, dim) float32: even channels sine, odd cosine, of t / 10000^(2 floor(i/2) / dim)."""
    channel = torch.arange(dim, dtype=torch.float64)
    angle = torch.arange(length, dtype=torch.float64)[:, None] / 10000 ** (2 * (channel // 2) / dim)
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float()


class SinusoidalPositions(nn.Module):
    """Adds `sinusoids` to a sequence of any length; the table of the first `length` positions is kept.

    `jitter` (positions): in training each clip starts at a random position in 0..jitter, so that the network
    cannot tie what it learns to absolute time.
    """

    table: Tensor

    def __init__(self, dim: int, length: int, jitter: int = 0) -> None:
        super().__init__()
        self.jitter = jitter
        self.register_buffer("table", sinusoids(length + jitter, dim), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, D) with its position code added, in x's dtype."""
        batch, frames, dim = x.shape
        jitter = self.jitter if self.training else 0
        table = self.table
        if frames + jitter > len(table):
            table = sinusoids(frames + jitter, dim).to(x.device)
        if not jitter:
            return x + table[:frames].to(x.dtype)
        start = torch.randint(jitter + 1, (batch, 1), device=x.device)
        return x + table[start + torch.arange(frames, device=x.device)].to(x.dtype)
