"""Losses over chosen elements, in fp32, without synchronising with the host."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

_EXCLUDED = -1e9
"""Logit of a candidate that is padding: its probability is exactly 0."""


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


def info_nce(prediction: Tensor, wanted: Tensor, valid: Tensor) -> Tensor:
    """Mean cross-entropy () of recognising each wanted token (B, M, P) among the valid (B, M) ones of its own clip.

    Logits are plain products with `prediction` (B, M, P), in float32; 0 where nothing is valid.
    """
    with torch.autocast(prediction.device.type, enabled=False):
        logits = prediction.float() @ wanted.float().transpose(1, 2)  # (B, M, M): prediction i, candidate j
    own = logits.diagonal(dim1=1, dim2=2)
    loss = logits.masked_fill(~valid[:, None], _EXCLUDED).logsumexp(2) - own
    return loss.masked_fill(~valid, 0.0).sum() / valid.sum().clamp_min(1)
