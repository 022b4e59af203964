"""Triplets out of a batch of pairs: two views of every clip, and the negatives worth learning from."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from auricle.features.spectrum import full_precision_matmul


class Triplets(NamedTuple):
    """One for each of A anchors."""

    positive: Tensor
    """(A,) distance to the clip's other view."""
    negative: Tensor
    """(A,) distance to the mined negative."""
    mined: Tensor
    """(A,) number of that negative among all N views."""
    is_fallback: Tensor
    """(A,) bool: no negative was farther than the positive."""
    usable: Tensor
    """(A,) bool: there was a negative at all, that is, another clip."""
    accuracy: Tensor
    """(A,) share of all negatives that are farther than the positive, ties counting half."""


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """(A, N) between unit vectors x (A, D) and y (N, D), from 0 to 4; fp32 inside autocast too."""
    return (2 - 2 * full_precision_matmul(x, y.mT)).clamp_min(0)


def mine(distances: Tensor, clips: Tensor, first: int = 0) -> Triplets:
    """Semi-hard triplets (Schroff et al. 2015, arXiv:1503.03832): the closest negative farther than the positive.

    `distances` (A, N) stand between anchors and all views, of which the anchors are those from `first` on: first the
    one view of every clip, then the other one in the same order. `clips` (N,) numbers each view's clip. Views of other
    clips are negatives. Where none of them is farther than the positive, the closest of all stands in: the hardest.
    """
    anchors = len(distances)
    partner = first + (torch.arange(anchors, device=distances.device) + anchors // 2) % max(anchors, 1)
    positive = distances.gather(1, partner[:, None])  # (A, 1)
    is_negative = clips[first : first + anchors, None] != clips
    farther = is_negative & (distances > positive)
    is_fallback = ~farther.any(1)
    candidates = torch.where(is_fallback[:, None], is_negative, farther)
    mined = distances.detach().masked_fill(~candidates, torch.inf).argmin(1)
    wins = (farther + 0.5 * (is_negative & (distances == positive))).sum(1)
    return Triplets(
        positive=positive[:, 0],
        negative=distances.gather(1, mined[:, None])[:, 0],
        mined=mined,
        is_fallback=is_fallback,
        usable=is_negative.any(1),
        accuracy=wins / is_negative.sum(1).clamp_min(1),
    )
