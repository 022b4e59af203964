"""A light decoder of sequences, thrown away after training (data2vec 2.0, Baevski et al. 2022, arXiv:2212.07525)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from auricle.features.normalize import frame_mask


class ConvDecoder(nn.Module):
    """Grouped convolutions over time, each with LayerNorm without weights, GELU and a residual where widths agree."""

    def __init__(self, dim: int, width: int, layers: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv1d(width if layer else dim, width, kernel, padding=kernel // 2, groups=groups)
            for layer in range(layers)
        )

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x (B, T, D) and lengths (B,) in frames to (B, T, width); padding is zero before every convolution."""
        true = frame_mask(x, lengths)
        for convolution in self.convolutions:
            y = convolution(torch.where(true, x, 0).mT).mT
            y = F.gelu(F.layer_norm(y, y.shape[-1:]))
            x = x + y if y.shape == x.shape else y
        return x
