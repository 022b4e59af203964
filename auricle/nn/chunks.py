"""Masks that hide chunks of a grid of tokens (SSAST, Gong et al. 2022, section 3.1, and MAE-AST)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def chunk_tokens(counts: Tensor, steps: int, bands: int, ratio: float, sides: tuple[int, int]) -> Tensor:
    """(B, steps · bands) boolean: what each clip keeps when chunks are hidden among its first `counts` (B,) tokens.

    Each clip draws the side of its squares from `sides` (inclusive); they lie anywhere, overlap, and are cut at the
    edges. They are hidden one after the other until the clip has its share; of the last, tokens at random. A clip of n
    keeps int(n · (1 - ratio)), at least 1.
    """
    batch, device, (least, most) = len(counts), counts.device, sides
    # A square has a random turn; a token's turn is the earliest among the squares that cover it.
    turns = torch.rand(batch, 1, steps + most - 1, bands + most - 1, device=device)
    earliest = torch.stack(
        [-F.max_pool2d(-turns[..., : steps + c - 1, : bands + c - 1], c, stride=1) for c in range(least, most + 1)]
    )  # (sides, B, 1, steps, bands)
    side = torch.randint(most - least + 1, (batch,), device=device)
    turn = earliest[side, torch.arange(batch, device=device)].flatten(1).double()
    turn = turn + torch.rand_like(turn) * 2.0**-25  # less than squares differ by: decides within the last one
    turn = turn.masked_fill(torch.arange(steps * bands, device=device) >= counts[:, None], -1.0)
    kept = torch.minimum((counts.double() * (1 - ratio)).long().clamp_min(1), counts)
    return turn.argsort(1, descending=True).argsort(1) < kept[:, None]
