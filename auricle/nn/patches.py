"""Spectrograms as grids of rectangular patches, and the choice of the patches that a masked autoencoder sees.

A patch covers p_t frames and p_f channels. Tokens stand in time-major order: of a grid of `bands` patches in height,
token k is step k // bands and band k % bands. A clip's true tokens are the first of its row; nothing here synchronises
with the host, so what differs from clip to clip is padded to a bound that follows from shapes alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from auricle.features.spectrum import as_float
from auricle.nn.masking import masked_positions


@dataclass(frozen=True)
class Tokens:
    """Some tokens of each clip, ascending: numbers `index` (B, V), of which the first `counts` (B,) of a row are true.

    The others are 0.
    """

    index: Tensor
    counts: Tensor


def patchify(x: Tensor, size: tuple[int, int] = (16, 16)) -> Tensor:
    """x (B, T, F), T and F multiples of `size` (p_t, p_f), to patches (B, T / p_t · F / p_f, p_t · p_f).

    Inside a patch values stand frame by frame.
    """
    batch, frames, channels = x.shape
    grid = x.reshape(batch, frames // size[0], size[0], channels // size[1], size[1])
    return grid.transpose(2, 3).reshape(batch, -1, size[0] * size[1])


def unpatchify(patches: Tensor, bands: int, size: tuple[int, int] = (16, 16)) -> Tensor:
    """The inverse of `patchify`: patches (B, N, p_t · p_f) of a grid of `bands` in height to x (B, T, F)."""
    batch, total, _ = patches.shape
    grid = patches.reshape(batch, total // bands, bands, *size).transpose(2, 3)
    return grid.reshape(batch, total // bands * size[0], bands * size[1])


def patch_steps(frames: Tensor, length: int = 16) -> Tensor:
    """How many steps of `length` frames cover so many `frames` (B,): the last may be partly padding."""
    return (frames + length - 1) // length


def pad_frames(x: Tensor, length: int, value: float, least: int = 1) -> Tensor:
    """x (B, T, F) with frames of `value` behind it, up to a multiple of `length` and to `least` frames."""
    most = torch.sym_max(x.shape[1], least)  # type: ignore[no-untyped-call]  # a size may be a symbol
    missing = (most + length - 1) // length * length - x.shape[1]
    return F.pad(x, (0, 0, 0, missing), value=value)


def normalize_patches(patches: Tensor, eps: float = 1e-6) -> Tensor:
    """Each patch (..., P) to mean 0 and variance 1 (unbiased, plus `eps`), in float32; a constant one becomes 0."""
    patches = as_float(patches)
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) * (variance + eps).rsqrt()


def visible_bound(total: int, ratio: float) -> int:
    """How many of `total` tokens are seen when a share `ratio` is hidden: int(total · (1 - ratio)), at least 1."""
    return max(1, int(total * (1 - ratio)))


def hidden_bound(total: int, ratio: float) -> int:
    """The most tokens hidden in a clip of at most `total`."""
    return total - int(total * (1 - ratio))


def random_tokens(counts: Tensor, total: int, ratio: float) -> Tensor:
    """(B, total) boolean: the tokens each clip keeps, at random among its first `counts` (B,).

    A clip of n keeps int(n · (1 - ratio)), at least 1; one without tokens none.
    """
    counts = counts[:, None]
    kept = torch.minimum((counts.double() * (1 - ratio)).long().clamp_min(1), counts)
    order = torch.rand(len(counts), total, device=counts.device)
    order = order.masked_fill(torch.arange(total, device=counts.device) >= counts, 2.0)  # padding goes last
    return order.argsort(1).argsort(1) < kept


def select(chosen: Tensor, bound: int) -> Tokens:
    """The tokens where `chosen` (B, N) is true; no row may hold more than `bound`."""
    index, _ = masked_positions(chosen, bound)
    return Tokens(index, chosen.sum(1))


def split_tokens(counts: Tensor, total: int, ratio: float) -> tuple[Tokens, Tokens]:
    """The visible and the hidden ones of each clip's first `counts` (B,) of `total` tokens, see `random_tokens`."""
    seen = random_tokens(counts, total, ratio)
    return _split(seen, counts, visible_bound(total, ratio), hidden_bound(total, ratio))


def split_grid(steps: Tensor, longest: int, bands: int, in_time: float, in_frequency: float) -> tuple[Tokens, Tokens]:
    """The same where shares of all steps and of all bands are hidden: of clips of `steps` (B,), `longest` at most.

    Visible are the crossings of the steps and the bands that are kept.
    """
    kept_steps = random_tokens(steps, longest, in_time)
    kept_bands = random_tokens(torch.full_like(steps, bands), bands, in_frequency)
    height = visible_bound(bands, in_frequency)
    hidden = longest * bands - (longest - hidden_bound(longest, in_time)) * height
    seen = (kept_steps[:, :, None] & kept_bands[:, None]).flatten(1)
    return _split(seen, steps * bands, visible_bound(longest, in_time) * height, hidden)


def _split(seen: Tensor, counts: Tensor, visible: int, hidden: int) -> tuple[Tokens, Tokens]:
    true = torch.arange(seen.shape[1], device=seen.device) < counts[:, None]
    return select(seen, visible), select(true & ~seen, hidden)


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """Rows (B, V, D) of x (B, N, D), or of one table (N, D) for all clips, at index (B, V)."""
    return x[index] if x.ndim == 2 else x.gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))


def scatter_tokens(x: Tensor, tokens: Tokens, fill: Tensor) -> Tensor:
    """The reverse of gathering: (B, N, D) like `fill`, with x (B, V, D) at the true places of `tokens`."""
    batch, total, dim = fill.shape
    true = torch.arange(x.shape[1], device=x.device) < tokens.counts[:, None]
    place = torch.where(true, tokens.index, total)[:, :, None].expand_as(x)  # one row too many takes the others
    rows = torch.cat([fill.to(x.dtype), fill.new_zeros(batch, 1, dim, dtype=x.dtype)], dim=1)
    return rows.scatter(1, place, x)[:, :total]
