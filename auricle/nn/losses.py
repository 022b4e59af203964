"""Losses over chosen elements, in fp32, without synchronising with the host."""

from __future__ import annotations

from typing import Literal

from torch import Tensor


def reconstruction_loss(
    prediction: Tensor, target: Tensor, chosen: Tensor, kind: Literal["l1", "mse"] = "l1"
) -> tuple[Tensor, Tensor]:
    """Mean error over the chosen elements and their count, both () float32; 0 and 0 where none is chosen.

    `prediction`, `target` (B, N, D); `chosen` a boolean that broadcasts to them, (B, N, 1) or (B, N, D).
    """
    error = prediction.float() - target.float()
    error = error.abs() if kind == "l1" else error.square()
    weight = chosen.float()
    count = weight.sum() * (error.numel() // weight.numel())
    return (error * weight).sum() / count.clamp_min(1), count
