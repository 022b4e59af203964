"""Judging estimates of the sources of a mixture: SI-SNR, and which estimate is which source."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

_FEW = 3
"""Sources up to which all orders are tried, on the device; beyond, the Hungarian algorithm on the CPU."""


def si_snr(estimate: Tensor, source: Tensor) -> Tensor:
    """Scale-invariant signal-to-noise ratio, dB: (..., S) of both, which broadcast, to (...).

    Of the mean-free estimate, the part along the mean-free source over the rest (Luo and Mesgarani 2018; Le Roux et
    al. 2019, as SI-SDR). In fp32 inside autocast too. A silent source gives a low finite value without a gradient.
    """
    with torch.autocast(estimate.device.type, enabled=False):
        estimate, source = (x if x.dtype == torch.float64 else x.float() for x in (estimate, source))
        estimate, source = (x - x.mean(-1, keepdim=True) for x in (estimate, source))
        eps = torch.finfo(estimate.dtype).eps ** 2
        scale = (estimate * source).sum(-1, keepdim=True) / (source.square().sum(-1, keepdim=True) + eps)
        target = scale * source
        noise = (estimate - target).square().sum(-1)
        return 10 * ((target.square().sum(-1) + eps) / (noise + eps)).log10()


def pairwise_si_snr(estimates: Tensor, sources: Tensor) -> Tensor:
    """Scores (B, C, C) of estimate i against source j at [:, i, j], dB, of estimates and sources (B, C, S)."""
    return si_snr(estimates[:, :, None], sources[:, None])


def best_permutation(scores: Tensor) -> Tensor:
    """Which estimate is which source, so that their scores sum to the most: (B, C, C) to (B, C), without gradient.

    `scores[:, i, j]` is that of estimate i as source j; the answer holds at [:, j] the estimate of source j, so that
    `in_order(estimates, permutation)` lie as the sources do. Of equals the first in lexicographic order for C <= 3.
    """
    count = scores.shape[-1]
    scores = scores.detach()
    if count <= _FEW:
        orders = torch.tensor(list(itertools.permutations(range(count))), device=scores.device)  # (C!, C)
        totals = scores[:, orders, torch.arange(count, device=scores.device)].sum(-1)  # (B, C!)
        return orders[totals.argmax(1)]
    from scipy.optimize import linear_sum_assignment

    found = [linear_sum_assignment(pairs.T, maximize=True)[1].tolist() for pairs in scores.double().cpu().numpy()]
    return torch.tensor(found, dtype=torch.int64, device=scores.device).view(-1, count)


def in_order(streams: Tensor, permutation: Tensor) -> Tensor:
    """Streams (B, C, ...) in the order (B, C) that `best_permutation` found."""
    return streams[torch.arange(len(streams), device=streams.device)[:, None], permutation]
