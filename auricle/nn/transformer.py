"""A Transformer encoder stack, which on the CPU computes true frames only.

There the frames of a batch are packed into (N, D), N being the sum of the clips' lengths, and each clip attends to
itself alone; its scores then stay in cache. Other devices, and `torch.compile`, take the padded batch (B, T, D) and a
bias on padded keys, so that the host need not know the lengths. A causal stack, whose frames see none that come after
them, needs no such bias: padding comes last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from auricle.nn.linear import Linear

Norm = Literal["post", "pre"]

Taps = Literal["block", "ffn"]
"""What a layer's hidden state is: its block's output, or that of the block's feed-forward part alone, before dropout,
residual and norm."""

_PADDED = -1e9
"""Score added to padded keys: their weight is exactly 0, yet a clip without any frame stays finite."""


CPU_SCORES = 1 << 22
"""Attention scores computed at once on the CPU: few enough to stay in its cache, enough to feed its cores."""


def init_weights(module: nn.Module) -> None:
    """BERT's initialisation of a linear layer: weights N(0, 0.02), bias 0. For `Module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def padding_bias(lengths: Tensor, frames: int) -> Tensor:
    """Scores (B, 1, 1, T) to add to attention logits: 0 on true frames, a large negative number on padding."""
    padded = torch.arange(frames, device=lengths.device) >= lengths[:, None]
    return padded[:, None, None, :] * _PADDED


class Dropout(nn.Module):
    """Inverted dropout: `F.dropout`, with cheaper random bits on the CPU.

    There, 16 bits decide each element, four to a draw, so `p` is exact to 2^-16; `F.dropout` makes a draw for each.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """x, any shape."""
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        bits = words.view(torch.int16)[: x.numel()].view(x.shape)
        least = min(max(round(self.p * 2**16), 1), 2**16 - 1) - 2**15
        kept = bits.clamp_(least - 1, least).sub_(least - 1)  # 0 or 1: `bits >= least`, several times faster
        return x * kept.to(x.dtype).mul_(1 / (1 - self.p))

    def extra_repr(self) -> str:
        """Shown by `print(module)`."""
        return f"p={self.p}"


Mix = Callable[[Tensor, int, Dropout], Tensor]
"""Attention over the frames of each clip: packed projections (..., 3 D), heads and dropout to (..., D)."""


def mix_padded(qkv: Tensor, heads: int, dropout: Dropout, bias: Tensor | None, causal: bool = False) -> Tensor:
    """`Mix` of a padded batch: qkv (B, T, 3 D) and the padding's bias (B, 1, 1, T), or None, to (B, T, D)."""
    q, k, v = qkv.view(*qkv.shape[:2], 3, heads, qkv.shape[2] // (3 * heads)).permute(2, 0, 3, 1, 4)
    return attention(q, k, v, bias, dropout, causal).transpose(1, 2).flatten(2)


def mix_packed(qkv: Tensor, heads: int, dropout: Dropout, lengths: Sequence[int], causal: bool = False) -> Tensor:
    """`Mix` of clips of these `lengths`, one behind the other: qkv (N, 3 D) to (N, D)."""
    mixed = []
    for clip in torch.split(qkv.view(len(qkv), 3, heads, qkv.shape[1] // (3 * heads)), list(lengths)):
        together = max(1, CPU_SCORES // max(1, len(clip)) ** 2)  # heads
        parts = zip(*(part.split(together) for part in clip.permute(1, 2, 0, 3)), strict=True)
        states = torch.cat([attention(q, k, v, None, dropout, causal) for q, k, v in parts])  # (H, T, d)
        mixed.append(states.transpose(0, 1).flatten(1))
    return torch.cat(mixed)


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: Dropout, causal: bool = False) -> Tensor:
    """Scaled dot-product attention: q, k, v (..., H, T, d) and bias (B, 1, 1, T) or None to (..., H, T, d).

    With `causal`, which takes no bias, each frame attends to itself and to those before it.
    On the CPU plain products where weights are dropped (the fused kernel has no dropout there) and in bfloat16 (whose
    matrix products beat the fused kernel, forward and backward: 2 to 3 times up to 800 frames, less at 1500);
    the fused kernel, whose memory is linear in T, everywhere else.
    """
    dropping = dropout.training and dropout.p > 0
    bias = None if bias is None else bias.to(q.dtype)
    if q.device.type == "cpu" and (dropping or q.dtype == torch.bfloat16):
        if causal:
            bias = q.new_full((q.shape[-2], q.shape[-2]), -torch.inf).triu_(1)
        return _plain_attention(q, k, v, bias, dropout)
    p = dropout.p if dropping else 0.0
    if q.ndim == 3:  # without a batch PyTorch takes three times as long
        return attention(q[None], k[None], v[None], bias, dropout, causal)[0]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=p, is_causal=causal)


def _plain_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: Dropout) -> Tensor:
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()  # or the products copy, the transposed one slowly
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if bias is not None:
        scores += bias  # in place: at (B, H, T, T) a copy costs as much as the product
    weights: Tensor = dropout(scores.softmax(-1))
    return weights @ v


class Block(nn.Module):
    """Self-attention and feed-forward, each with dropout and residual; LayerNorm after (`post`) or before (`pre`)."""

    def __init__(
        self,
        dim: int,
        heads: int,
        ffn: int,
        dropout: float,
        attention_dropout: float,
        activation_dropout: float,
        norm: Norm,
        norm_eps: float,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.norm = norm
        self.qkv = Linear(dim, 3 * dim)
        self.attention_out = Linear(dim, dim)
        self.attention_norm = nn.LayerNorm(dim, eps=norm_eps)
        self.ffn_in = Linear(dim, ffn)
        self.ffn_out = Linear(ffn, dim)
        self.ffn_norm = nn.LayerNorm(dim, eps=norm_eps)
        self.dropout = Dropout(dropout)
        self.attention_dropout = Dropout(attention_dropout)
        self.activation_dropout = Dropout(activation_dropout)

    def forward(self, x: Tensor, mix: Mix) -> tuple[Tensor, Tensor]:
        """x (B, T, D), or packed (N, D), to the same shape, and the feed-forward part's output, of that shape too.

        `mix` is the attention that fits x.
        """
        if self.norm == "pre":
            x = x + self.dropout(self._attend(self.attention_norm(x), mix))
            ffn = self._feed_forward(self.ffn_norm(x))
            return x + self.dropout(ffn), ffn
        x = self.attention_norm(x + self.dropout(self._attend(x, mix)))
        ffn = self._feed_forward(x)
        return self.ffn_norm(x + self.dropout(ffn)), ffn

    def _attend(self, x: Tensor, mix: Mix) -> Tensor:
        return self.attention_out(mix(self.qkv(x), self.heads, self.attention_dropout))  # type: ignore[no-any-return]

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.ffn_out(self.activation_dropout(F.gelu(self.ffn_in(x))))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """A stack of `layers` blocks of width `dim`; with `shared` one block's weights serve them all (ALBERT).

    `norm="post"` is the original arrangement; `"pre"` adds a final LayerNorm after the last block. In a `causal` stack
    no frame sees those that come after it. With `state_norms` every hidden state but the last is returned through a
    LayerNorm of its own, which the next block does not see.
    """

    def __init__(
        self,
        dim: int,
        layers: int,
        heads: int,
        ffn: int,
        *,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        activation_dropout: float = 0.0,
        norm: Norm = "post",
        norm_eps: float = 1e-12,
        shared: bool = False,
        causal: bool = False,
        state_norms: bool = False,
    ) -> None:
        super().__init__()
        self.layers = layers
        self.causal = causal
        self.blocks = nn.ModuleList(
            Block(dim, heads, ffn, dropout, attention_dropout, activation_dropout, norm, norm_eps)
            for _ in range(1 if shared else layers)
        )
        self.final_norm = nn.LayerNorm(dim, eps=norm_eps) if norm == "pre" else nn.Identity()
        self.state_norms = nn.ModuleList(nn.LayerNorm(dim, eps=norm_eps) for _ in range(layers if state_norms else 0))
        self.apply(init_weights)

    def forward(
        self,
        x: Tensor,
        lengths: Tensor | None,
        layers: Sequence[int] | None = None,
        *,
        taps: Taps = "block",
        keep: Tensor | None = None,
    ) -> list[Tensor]:
        """x (B, T, D) and true lengths (B,), None where no clip is padded, to hidden states, each (B, T, D).

        All `layers + 1` of them, 0 being x itself, or those asked for in that order; blocks above the last are not run.
        Frames past a clip's length are undefined. Where `keep` (L,) is False, a block passes its input on (layer drop);
        it is computed all the same, so that the graph does not change and every weight has a gradient, be it zero.
        """
        layers = range(self.layers + 1) if layers is None else layers
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            bias = None if lengths is None or self.causal else padding_bias(lengths, x.shape[1])
            return self._run(x, layers, partial(mix_padded, bias=bias, causal=self.causal), taps, keep)
        sizes = [x.shape[1]] * len(x) if lengths is None else lengths.tolist()
        packed = torch.cat([clip[:size] for clip, size in zip(x, sizes, strict=True)])  # (N, D)
        states = self._run(packed, layers, partial(mix_packed, lengths=sizes, causal=self.causal), taps, keep)
        return [x if state is packed else _unpack(state, sizes, x.shape[1]) for state in states]

    def _run(
        self, x: Tensor, layers: Sequence[int], mix: Mix, taps: Taps = "block", keep: Tensor | None = None
    ) -> list[Tensor]:
        # Layers not asked for are left empty. (To the compiler numbers may be symbols, which `in` and dicts mistake.)
        asked = [any(layer == each for each in layers) for layer in range(self.layers + 1)]
        states = [x]
        for layer in range(1, max(layers) + 1):
            block, ffn = self.blocks[(layer - 1) % len(self.blocks)](x, mix)
            x = block if keep is None else torch.where(keep[layer - 1], block, x)
            if layer == self.layers:
                x = self.final_norm(x)
            state = x if taps == "block" else ffn
            states.append(state if asked[layer] else state[:0])
        for layer, norm in enumerate(self.state_norms):
            if asked[layer] and taps == "block":
                states[layer] = norm(states[layer])
        return [states[layer] for layer in layers]


def _unpack(x: Tensor, lengths: list[int], frames: int) -> Tensor:
    """Packed frames (N, D) of clips of these `lengths` to (B, T, D), zeros past each clip."""
    return torch.stack([F.pad(clip, (0, 0, 0, frames - len(clip))) for clip in torch.split(x, lengths)])
