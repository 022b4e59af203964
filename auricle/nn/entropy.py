"""How widely a Transformer's attention looks: a statistic of its health, computed from hidden states afterwards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from auricle.nn.transformer import Block, Transformer

WATCHED_CLIPS, WATCHED_FRAMES = 4, 128
"""Clips, and frames of each, whose attention is looked at."""


@torch.no_grad()
def attention_entropy(transformer: Transformer, states: Sequence[Tensor], lengths: Tensor) -> Tensor:
    """Entropy of attention weights over the log of a clip's frames: () from 0 (one frame) to 1 (all frames alike).

    The mean over layers, heads, and frames spread over the first clips; NaN when none of these has two frames. In a
    causal stack a frame counts the frames up to itself, and the first, which has no choice, counts not.
    `states` are all hidden states of `transformer`, each (B, T, D), and `lengths` (B,) their true frames.
    """
    entropies = []
    for layer, state in enumerate(states[:-1]):
        block = cast(Block, transformer.blocks[layer % len(transformer.blocks)])
        for clip, frames in zip(state, lengths.tolist()[:WATCHED_CLIPS], strict=False):
            if frames < 2:
                continue
            x = clip[:frames] if block.norm == "post" else block.attention_norm(clip[:frames])  # (T, D)
            q, k, _ = block.qkv(x).float().view(frames, 3, block.heads, -1).permute(1, 2, 0, 3)  # each (H, T, d)
            seen = torch.arange(frames, device=q.device)[:: math.ceil(frames / WATCHED_FRAMES)]
            scores = q[:, seen] @ k.transpose(1, 2) * k.shape[2] ** -0.5  # (H, t, T)
            count = torch.full_like(seen, frames)
            if transformer.causal:
                hidden = torch.arange(frames, device=q.device) > seen[:, None]
                count, scores = seen + 1, scores.masked_fill(hidden, -torch.inf)
            entropy = torch.special.entr(scores.softmax(-1)).sum(-1) / count.log()  # (H, t)
            entropies.append(entropy[:, count > 1].mean())
    return torch.stack(entropies).mean() if entropies else torch.tensor(torch.nan)
