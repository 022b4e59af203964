"""Rows of all processes side by side, for losses that look across the batch."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F


def gather_rows(x: Tensor) -> tuple[list[Tensor], int]:
    """x (n, D) of every process, in order of ranks, and this one's rank; alone [x] and 0.

    The numbers of rows may differ. Gradients flow back: a process's x receives the sum of what all processes' losses
    ask of it. The hosts tell each other the numbers of rows, so that no host waits for a device.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return [x], 0
    sizes = torch.zeros(dist.get_world_size(), dtype=torch.int64)
    sizes[dist.get_rank()] = len(x)
    dist.all_reduce(sizes, group=_hosts())
    most = int(sizes.max())
    padded: Tensor = _AllGather.apply(F.pad(x, (0, 0, 0, most - len(x))))  # type: ignore[no-untyped-call]
    return [rows[:size] for rows, size in zip(padded, sizes.tolist(), strict=True)], dist.get_rank()


@cache
def _hosts() -> Any:
    return dist.new_group(backend="gloo")


class _AllGather(torch.autograd.Function):
    """x (n, D), of one shape everywhere, to (processes, n, D)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        rows = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(rows, x)
        return torch.stack(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        summed = gradients[0].contiguous()
        dist.all_reduce(summed)
        return summed[dist.get_rank()]
