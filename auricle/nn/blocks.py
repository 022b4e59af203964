"""Masks of blocks in time, of which every clip gets an exact number of frames (data2vec 2.0, arXiv:2212.07525)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def block_mask(
    lengths: Tensor, frames: int, *, fraction: float, span: int, extra: float = 0.0, inverse: bool = False
) -> Tensor:
    """(B, T) boolean: the floor(`fraction` · T_b) frames to hide in each clip of true `lengths` (B,), padded to T.

    Blocks of `span` frames lie anywhere, overlap, and are cut at the ends; `extra` of the frames are drawn more than
    asked for, to make up for that. Frames at random are then given back or added until the number is exact. With
    `inverse` the blocks are what is kept.
    """
    batch, device, sizes = len(lengths), lengths.device, lengths[:, None].long()
    chosen = (sizes.double() * fraction).long()  # in blocks
    if inverse:
        chosen, fraction = sizes - chosen, 1 - fraction
    per_frame = (fraction + extra) / span
    centres = (torch.rand(batch, int(frames * per_frame), dtype=torch.float64, device=device) * sizes).long()
    drawn = torch.arange(centres.shape[1], device=device) < (sizes.double() * per_frame).long()
    marks = torch.zeros(batch, frames + 1, device=device)  # a place too many takes what is not drawn
    marks.scatter_(1, torch.where(drawn, centres, frames), 1.0)
    covered = F.max_pool1d(marks[:, None, :frames], span, stride=1, padding=span // 2)[:, 0, :frames]
    turn = torch.rand(batch, frames, device=device) + covered
    true = torch.arange(frames, device=device) < sizes
    first = turn.masked_fill(~true, -1.0).argsort(1, descending=True).argsort(1) < chosen
    return true & ~first if inverse else first
