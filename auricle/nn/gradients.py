"""What backward does otherwise than the forward says."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def scale_gradient(x: Tensor, scale: float) -> Tensor:
    """x itself, whose gradient is multiplied by `scale` on its way back."""
    return x if scale == 1 else _Scale.apply(x, scale)  # type: ignore[no-untyped-call]


class _Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.scale, None
