"""Attention inside small windows of a time-frequency grid: Audio-MAE's local decoder (Huang et al. 2022, section 3).

Its blocks are those of Swin Transformer V2 (Liu et al. 2022, arXiv:2111.09883): LayerNorm on what a block adds, cosine
attention with a temperature for each head, and a small network that maps a displacement to a score. Every other layer
shifts its windows by half their length, in time only.

Tokens are brought once into rows of one window's height, frame by frame, in which a window is a run of neighbours and
a shift is one roll: no layer partitions and reverses anything.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from auricle.features.spectrum import as_float
from auricle.nn.linear import Linear

_WRAPPED, _PADDED = -100.0, -1e9
"""Scores added between the two halves of a window that joins a clip's ends, and to padded keys."""


class LocalBlock(nn.Module):
    """x + LN(attention(x)), then x + LN(feed-forward(x)), over rows of windows, each a run of tokens."""

    displacements: Tensor
    pairs: Tensor

    def __init__(
        self,
        dim: int,
        heads: int,
        ffn: int,
        window: tuple[int, int],
        norm_eps: float,
        bias_dim: int,
        bias_dropout: float,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.size = window[0] * window[1]
        self.qkv = Linear(dim, 3 * dim)
        self.attention_out = Linear(dim, dim)
        self.attention_norm = nn.LayerNorm(dim, eps=norm_eps)
        self.ffn_in = Linear(dim, ffn)
        self.ffn_out = Linear(ffn, dim)
        self.ffn_norm = nn.LayerNorm(dim, eps=norm_eps)
        self.tau = nn.Parameter(torch.ones(heads))
        self.bias_in = nn.Linear(2, bias_dim)
        self.bias_dropout = nn.Dropout(bias_dropout)
        self.bias_out = nn.Linear(bias_dim, heads)
        displacements, pairs = _displacements(window)
        self.register_buffer("displacements", displacements, persistent=False)
        self.register_buffer("pairs", pairs, persistent=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Rows x (B, R, L, D) and the mask (B, 1, L / n, 1, n or 1, n) of their windows of n tokens to new rows."""
        x = x + self.attention_norm(self._attend(x, mask))
        return x + self.ffn_norm(self.ffn_out(F.gelu(self.ffn_in(x))))  # type: ignore[no-any-return]

    def bias(self) -> Tensor:
        """Score (heads, n, n) of each pair of places in a window, a function of their displacement."""
        scores = self.bias_out(self.bias_dropout(F.relu(self.bias_in(self.displacements))))
        return as_float(scores)[self.pairs].permute(2, 0, 1)

    def _attend(self, x: Tensor, mask: Tensor) -> Tensor:
        windows = self.qkv(x).view(*x.shape[:2], -1, self.size, 3, self.heads, x.shape[3] // self.heads)
        q, k, v = windows.permute(4, 0, 1, 2, 5, 3, 6)  # each (B, R, L / n, heads, n, d)
        with torch.autocast(x.device.type, enabled=False):
            q = F.normalize(as_float(q), dim=-1, eps=1e-6) / self.tau.clamp_min(0.01)[:, None, None]
            scores = q @ F.normalize(as_float(k), dim=-1, eps=1e-6).transpose(-1, -2)
            weights = (scores + self.bias() + mask).softmax(-1).to(v.dtype)
        return self.attention_out((weights @ v).transpose(3, 4).reshape(x.shape))  # type: ignore[no-any-return]


class LocalTransformer(nn.Module):
    """A stack of `layers` such blocks and a LayerNorm, on grids of any length.

    They are `bands` patches in height, a multiple of the height of a `window` (steps, bands).
    """

    def __init__(
        self,
        dim: int,
        layers: int,
        heads: int,
        ffn: int,
        bands: int,
        *,
        window: tuple[int, int] = (4, 4),
        norm_eps: float = 1e-6,
        bias_dim: int = 384,
        bias_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.bands, self.window = bands, window
        self.blocks = nn.ModuleList(
            LocalBlock(dim, heads, ffn, window, norm_eps, bias_dim, bias_dropout) for _ in range(layers)
        )
        self.final_norm = nn.LayerNorm(dim, eps=norm_eps)

    def forward(self, x: Tensor, steps: Tensor) -> Tensor:
        """Tokens x (B, N, D), time-major, of clips of true `steps` (B,) to the same; undefined past a clip's steps."""
        length, height = self.window
        batch, tokens, dim = x.shape
        x = x.reshape(batch, tokens // self.bands, self.bands // height, height, dim)
        x = F.pad(x, (0, 0, 0, 0, 0, 0, 0, -x.shape[1] % length))
        padded = x.shape[1]
        rows = x.transpose(1, 2).flatten(2, 3)  # (B, bands / height, T · height, D)
        shift = length // 2 * height
        masks = [window_mask(steps, padded, self.window, shifted) for shifted in (False, True)]
        for layer, block in enumerate(self.blocks):
            if layer:  # odd layers see the rows from half a window on, even ones from their start
                rows = rows.roll(-shift if layer % 2 else shift, dims=2)
            rows = block(rows, masks[layer % 2])
        if len(self.blocks) % 2 == 0:
            rows = rows.roll(shift, dims=2)
        rows = rows.view(batch, -1, padded, height, dim).transpose(1, 2)
        return self.final_norm(rows.reshape(batch, -1, dim)[:, :tokens])  # type: ignore[no-any-return]


def window_mask(steps: Tensor, length: int, window: tuple[int, int], shifted: bool) -> Tensor:
    """Scores (B, 1, W, 1, n, n) to add in each of the W windows of n tokens over `length` steps in time.

    Large and negative for keys at or past a clip's `steps` (B,); -100 between the parts of the window that joins the
    grid's end and start when windows are `shifted`.
    """
    half = window[0] // 2
    time = torch.arange(length, device=steps.device)
    time = time.roll(-half) if shifted else time
    time = time.repeat_interleave(window[1]).view(-1, window[0] * window[1])  # (W, n)
    padded = time >= steps[:, None, None]  # (B, W, n)
    mask = padded[:, None, :, None, None] * _PADDED
    if not shifted:
        return mask
    start = time < half  # wrapped round into the last window
    return mask + (start[:, None, :, None] ^ start[:, None, None]) * _WRAPPED


def _displacements(window: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """All displacements d in a window, (K, 2) as sign(d) log(1 + |d|), and the number of each pair's (n, n)."""
    place = torch.cartesian_prod(*(torch.arange(size) for size in window))  # (n, 2)
    between = place[:, None] - place[None]  # (n, n, 2)
    spread = [2 * size - 1 for size in window]
    every = torch.cartesian_prod(*(torch.arange(count) - count // 2 for count in spread)).float()
    pairs = (between[..., 0] + window[0] - 1) * spread[1] + between[..., 1] + window[1] - 1
    return every.sign() * every.abs().log1p(), pairs
