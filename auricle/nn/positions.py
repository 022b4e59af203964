"""Fixed sinusoidal position codes: of a sequence (Vaswani et al. 2017, section 3.5, interleaved), and of a grid."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from auricle.errors import ConfigError
from auricle.features.spectrum import exporting


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
        if exporting() or frames + jitter > len(table):
            table = sinusoids(frames + jitter, dim).to(x.device)
        if not jitter:
            return x + table[:frames].to(x.dtype)
        start = torch.randint(jitter + 1, (batch, 1), device=x.device)
        return x + table[start + torch.arange(frames, device=x.device)].to(x.dtype)


Layout = Literal["grid", "audiomae"]


def grid_sinusoids(steps: int, bands: int, dim: int, layout: Layout = "grid") -> Tensor:
    """Position codes (steps · bands, dim) float32 of a time-frequency grid, a row a token (see `nn.patches`).

    `dim`, a multiple of 4, holds sine and cosine of the band in its first half, of the step in its second, at
    frequencies 10000^(-4 i / dim). Layout `audiomae` is the released Audio-MAE's: its table was made for the transposed
    grid, so that token k has the code of band k mod steps and step k div steps; still another for each token.
    """
    columns = bands if layout == "grid" else steps
    token = torch.arange(steps * bands)
    frequency = 10000 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    angles = [place[:, None] * frequency for place in (token % columns, token // columns)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1).float()


class GridPositions(nn.Module):
    """Codes of a time-frequency grid's tokens: those of the first `steps` are kept, more are computed when needed.

    With layout `audiomae` the table is a weight that is stored and never computed anew, and `steps` is the limit.
    """

    table: Tensor

    def __init__(self, dim: int, steps: int, bands: int, layout: Layout = "grid") -> None:
        super().__init__()
        self.bands, self.layout = bands, layout
        self.register_buffer("table", grid_sinusoids(steps, bands, dim, layout), persistent=layout == "audiomae")

    def forward(self, tokens: int) -> Tensor:
        """The codes (tokens, dim) of the first so many tokens, whole steps of them."""
        if exporting() and self.layout == "audiomae":
            return self.table[torch.arange(tokens)]  # too many fail where the graph runs
        if not exporting() and tokens <= len(self.table):
            return self.table[:tokens]
        if self.layout == "audiomae":
            raise ConfigError(f"positions: 'audiomae' holds {len(self.table)} tokens, and {tokens} are asked for")
        return grid_sinusoids(tokens // self.bands, self.bands, self.table.shape[1]).to(self.table.device)
