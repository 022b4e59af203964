"""Labels for frames from random projections that nothing trains (Chiu et al. 2022, arXiv:2202.01855, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_ROWS = 1 << 12
"""Frames compared with all codes at once: their products, not the labels, take the memory."""


class RandomProjectionQuantizer(nn.Module):
    """Frames (..., F) to labels: each codebook projects them to `code_dim` channels and takes the nearest code.

    Projections (Xavier) and codes (standard normal, each of length 1) are drawn once and stay: they are buffers, stored
    with the weights. Nearest is by angle. Channels should have mean 0 and variance 1, or few codes are ever nearest.
    """

    projection: Tensor
    codes: Tensor

    def __init__(self, dim: int, codes: int = 8192, code_dim: int = 16, codebooks: int = 1) -> None:
        super().__init__()
        projections = [nn.init.xavier_uniform_(torch.empty(dim, code_dim)) for _ in range(codebooks)]
        self.register_buffer("projection", torch.stack(projections))  # (G, F, d)
        self.register_buffer("codes", F.normalize(torch.randn(codebooks, codes, code_dim), dim=2))  # (G, V, d)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """x (..., F) to labels (..., G), numbers of codes; in the precision of x, inside autocast too."""
        with torch.autocast(x.device.type, enabled=False):
            labels = [self._nearest(rows) for rows in torch.split(x.reshape(-1, x.shape[-1]), _ROWS)]
        return torch.cat(labels).view(*x.shape[:-1], -1)

    def _nearest(self, x: Tensor) -> Tensor:
        projected = x @ self.projection.to(x.dtype)  # (G, N, d); its length scales all cosines of a frame alike
        return (projected @ self.codes.to(x.dtype).transpose(1, 2)).argmax(2).T  # (N, G)
