"""Predictors of what comes next, K at once, one for each step ahead; and how they score candidates."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from auricle.nn.linear import Linear
from auricle.nn.transformer import Dropout, attention


class LinearPredictors(nn.Module):
    """K linear maps without bias (van den Oord et al. 2018, section 2.2)."""

    def __init__(self, context: int, dim: int, steps: int) -> None:
        super().__init__()
        self.maps = Linear(context, steps * dim, bias=False)
        self.steps = steps

    def forward(self, context: Tensor) -> Tensor:
        """Context (B, T, C) to predictions (B, T, K, D)."""
        return self.maps(context).unflatten(2, (self.steps, -1))  # type: ignore[no-any-return]


class TransformerPredictors(nn.Module):
    """K causal Transformers of one post-norm layer and learned relative positions (Rivière et al. 2020), side by side.

    Their weights lie in tensors (K, ...), so that each of their products is one of all K. `frames` is the longest T.
    """

    def __init__(self, dim: int, steps: int, frames: int, heads: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = _stack(steps, dim, 3 * dim)
        self.distances = nn.Parameter(torch.empty(steps, dim // heads, frames).normal_(std=(heads / dim) ** 0.5))
        self.attention_out = _stack(steps, dim, dim)
        self.attention_norm = _Norms(steps, dim)
        self.ffn_in, self.ffn_in_bias = _stack(steps, dim, ffn), nn.Parameter(torch.zeros(steps, 1, ffn))
        self.ffn_out, self.ffn_out_bias = _stack(steps, ffn, dim), nn.Parameter(torch.zeros(steps, 1, dim))
        self.ffn_norm = _Norms(steps, dim)
        self.dropout = Dropout(dropout)

    def forward(self, context: Tensor) -> Tensor:
        """Context (B, T, D) to predictions (B, T, K, D)."""
        batch, frames, dim = context.shape
        steps = len(self.qkv)
        x = context.reshape(1, -1, dim).expand(steps, -1, -1)  # (K, N, D), N = B T
        qkv = torch.bmm(x, self.qkv).view(steps * batch, frames, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (K B, H, T, d)
        mixed = attention(q, k, v, self._bias(q), self.dropout).transpose(1, 2).reshape(steps, -1, dim)
        x = self.attention_norm(x + torch.bmm(mixed, self.attention_out))
        hidden = self.dropout(F.relu(torch.bmm(x, self.ffn_in) + self.ffn_in_bias))
        x = self.ffn_norm(x + torch.bmm(hidden, self.ffn_out) + self.ffn_out_bias)
        return x.view(steps, batch, frames, dim).permute(1, 2, 0, 3)  # type: ignore[no-any-return]

    def _bias(self, q: Tensor) -> Tensor:
        """Scores (K B, H, T, T) for how far back a frame lies, minus infinity where it lies ahead."""
        heads, frames, width = q.shape[1:]
        by_step = q.reshape(len(self.distances), -1, width) / math.sqrt(width)
        scores = torch.bmm(by_step, self.distances[..., :frames].flip(-1)).view(-1, heads, frames, frames)
        # Row t holds distances T-1 ... 0 and has to move left by T-1-t: read with rows one longer, each does.
        shifted = F.pad(scores, (1, 0)).view(-1, heads, frames + 1, frames)[:, :, 1:]
        ahead = torch.ones(frames, frames, dtype=torch.bool, device=q.device).triu(1)
        return shifted.masked_fill(ahead, -math.inf)


def _stack(steps: int, inputs: int, outputs: int) -> nn.Parameter:
    """Weights (K, in, out), each drawn as `nn.Linear`'s are."""
    bound = 1 / math.sqrt(inputs)
    return nn.Parameter(torch.empty(steps, inputs, outputs).uniform_(-bound, bound))


class _Norms(nn.Module):
    """K layer norms."""

    def __init__(self, steps: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(steps * dim))  # flat, so that it does not decay
        self.bias = nn.Parameter(torch.zeros(steps * dim))

    def forward(self, x: Tensor) -> Tensor:
        """x (K, N, D)."""
        shape = (len(x), 1, x.shape[2])
        return F.layer_norm(x, x.shape[-1:]) * self.weight.view(shape) + self.bias.view(shape)


def scores_within(predicted: Tensor, frames: Tensor, candidates: Tensor, windows: int) -> Tensor:
    """Dot products (B W, T, K, N) of predictions (B W, T, K, D) with candidates from their own clip.

    `frames` (B W, M, D) are those of B clips of W = `windows`; `candidates` (B W, T, N) are numbers among them all, one
    set for the K predictions of a position. A clip's frames are all scored by one product, and no frame is copied: a
    fifth of the time of `scores_across` where a clip is one window.
    """
    dim, held = frames.shape[2], windows * frames.shape[1]
    per_clip = frames.reshape(-1, held, dim)  # (B, W M, D)
    scores = predicted.reshape(len(per_clip), -1, dim) @ per_clip.transpose(1, 2)
    index = (candidates % held)[:, :, None].expand(-1, -1, predicted.shape[2], -1)
    return scores.view(*predicted.shape[:3], held).gather(3, index)


def scores_across(predicted: Tensor, frames: Tensor, candidates: Tensor, windows: int) -> Tensor:
    """The same with candidates from anywhere: one product a position, of its candidates and all K predictions."""
    chosen = F.embedding(candidates.flatten(0, 1), frames.flatten(0, 1))  # (B W T, N, D)
    scores = chosen @ predicted.flatten(0, 1).transpose(1, 2)
    return scores.transpose(1, 2).reshape(*predicted.shape[:3], -1)
