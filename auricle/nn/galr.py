"""Globally attentive, locally recurrent networks (GALR; Lam, Wang, Su and Yu 2021, arXiv 2101.05014).

A long sequence is cut into segments that overlap by half. Segments lie place by place, (K, B, S, D): K places in each
of the S segments of B clips. So the steps of the recurrent network are slices, what mixes places is one matrix product,
and what attends over segments finds them side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from auricle.features.spectrum import exporting
from auricle.nn.linear import Linear
from auricle.nn.positions import SinusoidalPositions
from auricle.nn.recurrent import onnx_recurrent
from auricle.nn.transformer import Dropout, attention, padding_bias


def segment(x: Tensor, size: int) -> Tensor:
    """Frames (B, L, D) in segments of an even `size` K that overlap by half: (K, B, S, D), S = ceil(L / (K/2)) + 1.

    Half a segment of zeros before the first frame, and zeros after the last, so that every frame lies in two segments.
    """
    half = size // 2
    blocks = (
        F.pad(x, (0, 0, half, half + -x.shape[1] % half)).view(x.shape[0], -1, half, x.shape[2]).permute(2, 0, 1, 3)
    )
    return torch.cat([blocks[:, :, :-1], blocks[:, :, 1:]])


def overlap_add(segments: Tensor, length: int) -> Tensor:
    """The inverse of `segment`: (K, B, S, D) to the first `length` frames (B, L, D), means of the two that hold it."""
    first, second = segments.chunk(2)
    return ((first[:, :, 1:] + second[:, :, :-1]) / 2).permute(1, 2, 0, 3).flatten(1, 2)[:, :length]


def count_segments(frames: Tensor, size: int) -> Tensor:
    """How many segments of `size` clips of so many frames (B,) have; none without frames."""
    return torch.where(frames > 0, (frames + size // 2 - 1) // (size // 2) + 1, 0)


class SegmentNorm(nn.Module):
    """GroupNorm with one group: each clip to mean 0 and variance 1 over its true segments; scaled and shifted."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.eps = eps

    def forward(self, x: Tensor, counts: Tensor | None) -> Tensor:
        """x (K, B, S, D), in fp32 (float64 stays), zeros past true segments (B,); None: all are true."""
        true = None if counts is None else torch.arange(x.shape[2], device=x.device) < counts[:, None]  # (B, S)
        x = x if x.dtype == torch.float64 else x.float()
        return _Normalize.apply(x, self.weight, self.bias, true, self.eps)  # type: ignore[no-any-return, no-untyped-call]


class _Normalize(torch.autograd.Function):
    """`SegmentNorm` in a few passes each way; PyTorch's sums over these axes take some ten times as long on CPUs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, true: Tensor | None, eps: float) -> Tensor:
        true = None if true is None else true[None, :, :, None].to(x.dtype)
        places = x.shape[0] * x.shape[3]
        number = places * (x.shape[2] if true is None else true.sum((0, 2, 3)).clamp_min(1))  # of values in a clip
        x = x if true is None else x * true
        out = x - _of_clips(x.flatten(2).sum(2).sum(0) / number)
        out = out if true is None else out.mul_(true)
        scale = _of_clips((torch.linalg.vector_norm(out.flatten(2), dim=2).square().sum(0) / number + eps).rsqrt())
        out *= scale
        ctx.save_for_backward(out, scale, weight, true)
        ctx.number = number
        return torch.addcmul(bias if true is None else bias * true, out, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        out, scale, weight, true = ctx.saved_tensors
        grad = grad if true is None else grad * true
        sums, products = grad.sum(2).sum(0), (grad * out).sum(2).sum(0)  # (B, D)
        mean, slope = (_of_clips(each @ weight / ctx.number) for each in (sums, products))
        d_x = torch.addcmul(-mean, grad, weight).addcmul_(out, slope, value=-1).mul_(scale)
        return d_x if true is None else d_x.mul_(true), products.sum(0), sums.sum(0), None, None


def _of_clips(x: Tensor) -> Tensor:
    """A number a clip (B,) beside (K, B, S, D)."""
    return x[None, :, None, None]


CPU_SEQUENCES = 64
"""Sequences that an LSTM on a CPU takes at once: with more, much of the time goes into fresh pages of memory."""


class BiLstm(nn.LSTM):
    """One LSTM layer each way, from rest; sequences lie step by step, (K, N, F)."""

    def __init__(self, input_dim: int, dim: int) -> None:
        super().__init__(input_dim, dim, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """x (K, N, F), N sequences of K steps, to the states (K, N, 2 H) of both directions side by side."""
        if not exporting():
            some = CPU_SEQUENCES if x.device.type == "cpu" else max(1, x.shape[1])
            return torch.cat([super(BiLstm, self).forward(part)[0] for part in torch.split(x, some, 1)], 1)
        x, (after, before) = x.transpose(0, 1), self.all_weights
        states = [onnx_recurrent("LSTM", x, after), onnx_recurrent("LSTM", x.flip(1), before).flip(1)]
        return torch.cat(states, -1).transpose(0, 1)


class GALR(nn.Module):
    """A block: an LSTM both ways inside each segment, then self-attention across segments; each adds to its input.

    Attention works on `low` mixtures of a segment's `size` places. Its residual is the ordinary one, of the attention's
    input, where the released code adds the attention's output to itself.
    """

    def __init__(self, dim: int, hidden: int, size: int, low: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.lstm = BiLstm(dim, hidden)
        self.local_out = Linear(2 * hidden, dim)
        self.local_norm = SegmentNorm(dim)
        self.reduce = nn.Linear(size, low)
        self.input_norm = nn.LayerNorm(dim)
        self.positions = SinusoidalPositions(dim, 512)
        self.qkv = Linear(dim, 3 * dim)
        self.attention_out = Linear(dim, dim)
        self.attention_norm = nn.LayerNorm(dim)
        self.expand = nn.Linear(low, size)
        self.global_norm = SegmentNorm(dim)
        self.dropout = Dropout(dropout)
        self.attention_dropout = Dropout(dropout)

    def forward(self, x: Tensor, counts: Tensor | None = None) -> Tensor:
        """x (K, B, S, D) to the same shape; true segments (B,), None: all of them."""
        local = self.local_out(self.lstm(x.flatten(1, 2))).view(x.shape)
        x = x + cast(Tensor, self.local_norm(local, counts))
        attended = self._attend(_mix_places(self.reduce, x), counts)
        return x + cast(Tensor, self.global_norm(_mix_places(self.expand, attended), counts))

    def _attend(self, x: Tensor, counts: Tensor | None) -> Tensor:
        """x (Q, B, S, D) to the same shape: every row attends over the segments of its clip."""
        low, batch, segments, _ = x.shape
        x = self.positions(self.input_norm(x).flatten(0, 1)).view(x.shape)
        bias = None if counts is None else padding_bias(counts, segments)
        qkv = self.qkv(x).view(low, batch, segments, 3, self.heads, -1).permute(3, 1, 0, 4, 2, 5)
        q, k, v = qkv.flatten(2, 3)  # (B, Q H, S, d)
        mixed = attention(q, k, v, bias, self.attention_dropout).view(batch, low, self.heads, segments, -1)
        out = self.attention_out(mixed.permute(1, 0, 3, 2, 4).flatten(3))
        return cast(Tensor, self.attention_norm(x + self.dropout(out)))


def _mix_places(layer: nn.Linear, x: Tensor) -> Tensor:
    """A linear layer over the places of x (K, B, S, D): (Q, B, S, D)."""
    mixed = layer.weight @ x.flatten(1)
    return mixed.view(-1, *x.shape[1:]) + layer.bias[:, None, None, None]


class GalrStack(nn.Module):
    """`layers` GALR blocks, called as a `Transformer` is."""

    def __init__(
        self, layers: int, dim: int, hidden: int, size: int, low: int, heads: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(GALR(dim, hidden, size, low, heads, dropout) for _ in range(layers))

    def forward(self, x: Tensor, counts: Tensor | None, layers: Sequence[int] | None = None) -> list[Tensor]:
        """x (K, B, S, D) and true segments (B,), None: all of them, to hidden states of that shape.

        All of them, 0 being x itself, or those asked for in that order; blocks above the last are not run.
        """
        layers = range(len(self.blocks) + 1) if layers is None else layers
        states = {0: x}
        for layer in range(1, max(layers) + 1):
            x = self.blocks[layer - 1](x, counts)
            if layer in layers:
                states[layer] = x
        return [states[layer] for layer in layers]
