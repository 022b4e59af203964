"""Matrix products in fp32 on the CPU, by the faster of the two libraries behind PyTorch.

Linear layers go to MKL, which on AMD processors is half as fast as oneDNN, to which convolutions go (elsewhere the two
are level). A linear layer is a convolution over single points, in full precision.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_FEW = 128
"""Rows below which a product is left to MKL, whose start is quicker."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`: x (..., in) times weight (out, in), transposed, plus bias (out,), to (..., out)."""
    plain = x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu") or not x.numel()
    if torch.compiler.is_compiling() or plain:  # the compiler cannot lower the convolution at dynamic shapes
        return F.linear(x, weight, bias)
    out: Tensor = _Product.apply(x.reshape(-1, x.shape[-1]), weight, bias)  # type: ignore[no-untyped-call]
    return out.view(*x.shape[:-1], len(weight))


class Linear(nn.Linear):
    """`nn.Linear`, computed by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """x (..., in) to (..., out)."""
        return linear(input, self.weight, self.bias)


class _Product(torch.autograd.Function):
    """x (N, in) and weight (out, in) to (N, out)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _multiply(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            _multiply(gradient, weight.T) if of_x else None,
            _multiply(gradient.T, x.T) if of_weight else None,  # oneDNN's own way takes up to four times as long
            gradient.sum(0) if of_bias else None,
        )


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if len(x) < _FEW:
        return F.linear(x, weight, bias)
    points = x.contiguous()[None, :, None].permute(0, 3, 1, 2)  # (1, in, N, 1), channels last
    # A single point has no dilation; but asked for one, PyTorch leaves it to oneDNN even when there is one thread.
    out = F.conv2d(points, weight.contiguous()[:, :, None, None], bias, dilation=2)
    return out.permute(0, 2, 3, 1).reshape(len(x), -1)
