"""Positions by convolution: what tells a frame where it is are its neighbours (wav2vec 2.0, HuBERT, data2vec)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from auricle.nn.conv import convolve

PositionStyle = Literal["weight_norm", "stacked", "batch_norm"]


class PositionalConvolution(nn.Module):
    """A grouped convolution over time that keeps the length, (B, T, D) to (B, T, D), with its norm; then GELU.

    `weight_norm`: the weights have norm `gain` at each of the kernel's K places, over all channels; `conv.weight` is
    their direction. `stacked`: a LayerNorm without weights follows. `batch_norm`: one comes before. Its statistics are
    fixed, since those of the batch would make a clip's frames depend on it.
    """

    def __init__(self, dim: int, kernel: int, groups: int, style: PositionStyle) -> None:
        super().__init__()
        self.style = style
        self.conv = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=groups)
        if style != "stacked":  # fairseq's initial weights; those of `stacked` are PyTorch's
            nn.init.normal_(self.conv.weight, std=math.sqrt(4 / (kernel * dim)))
            nn.init.zeros_(cast(Tensor, self.conv.bias))
        if style == "weight_norm":
            self.gain = nn.Parameter(_norm(self.conv.weight.detach()))  # (1, 1, K)
        if style == "batch_norm":
            self.norm = nn.BatchNorm1d(dim)

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """x (B, T, D), taken for zero outside of `valid` (B, T, 1)."""
        if self.style == "batch_norm":
            norm = self.norm
            x = F.batch_norm(x.mT, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps).mT
        if valid is not None:
            x = torch.where(valid, x, 0)
        weight = self._weight()
        padding = weight.shape[2] // 2  # so that an even kernel sees one frame more before than after
        x = convolve(x, weight, self.conv.bias, padding=padding, groups=self.conv.groups)[:, : x.shape[1]]
        if self.style == "stacked":
            x = F.layer_norm(x, x.shape[-1:])
        return F.gelu(x)

    def _weight(self) -> Tensor:
        weight = self.conv.weight
        return weight * (self.gain / _norm(weight)) if self.style == "weight_norm" else weight


class PositionalConvolutions(nn.Module):
    """One or several `PositionalConvolution`s, one after the other: (B, T, D) to what is added to it.

    With `leak` padding is zero before the first alone, as in transformers, and reaches true frames through the others.
    """

    def __init__(
        self, dim: int, layers: int, kernel: int, groups: int, style: PositionStyle, leak: bool = False
    ) -> None:
        super().__init__()
        self.leak = leak
        self.layers = nn.ModuleList(PositionalConvolution(dim, kernel, groups, style) for _ in range(layers))

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """x (B, T, D) and lengths (B,) in frames; None where no clip is padded."""
        valid = None
        if lengths is not None:
            valid = (torch.arange(x.shape[1], device=x.device) < lengths[:, None])[..., None]
        if self.leak and valid is not None:
            x, valid = torch.where(valid, x, 0), None
        for layer in cast(Iterable[PositionalConvolution], self.layers):
            x = layer(x, valid)
        return x


def _norm(weight: Tensor) -> Tensor:
    """Of weights (out, in, K) at each place of the kernel: (1, 1, K)."""
    return weight.square().sum((0, 1), keepdim=True).sqrt()
