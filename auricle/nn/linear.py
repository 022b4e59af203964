"""Matrix products in fp32 on the CPU, by the faster of the two libraries behind PyTorch.

Linear layers go to MKL, which on AMD processors is half as fast as oneDNN, to which convolutions go (with more than one
thread; elsewhere the two are level). A linear layer is a convolution over single points, in full precision.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`: x (..., in) times weight (out, in), transposed, plus bias (out,), to (..., out)."""
    plain = x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu") or not x.numel()
    if torch.compiler.is_compiling() or plain:  # the compiler cannot lower the convolution at dynamic shapes
        return F.linear(x, weight, bias)
    points = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)  # (1, in, N, 1), channels last
    out = F.conv2d(points, weight[:, :, None, None], bias)
    return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], len(weight))


class Linear(nn.Linear):
    """`nn.Linear`, computed by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """x (..., in) to (..., out)."""
        return linear(input, self.weight, self.bias)
