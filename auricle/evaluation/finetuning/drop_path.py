"""Stochastic depth: in training, clips pass some parts of the network by."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from auricle.encoders.base import Encoder
from auricle.errors import ConfigError
from auricle.nn.transformer import Block, Transformer


def add_drop_path(encoder: Encoder, rate: float) -> None:
    """Give every residual branch of the encoder's Transformer blocks a `DropPath`: rates from 0, the first, to `rate`.

    Raises `ConfigError` for an encoder without blocks of their own.
    """
    stacks = [module for module in encoder.modules() if isinstance(module, Transformer) and len(module.blocks) > 1]
    if not stacks:
        raise ConfigError(f"drop_path: {encoder.name} has no Transformer of several blocks to drop; set it to 0")
    for stack in stacks:
        clips = Clips()
        stack.register_forward_pre_hook(clips.note)
        rates = torch.linspace(0, rate, len(stack.blocks)).tolist()
        for block, p in zip(cast(Iterable[Block], stack.blocks), rates, strict=True):
            block.register_module("dropout", nn.Sequential(block.dropout, DropPath(p, clips)))


class Clips:
    """How many rows of a Transformer's states belong to each clip of its batch, as `note`d when it is called."""

    def note(self, transformer: nn.Module, args: tuple[Tensor, Tensor | None]) -> None:
        """Forward pre-hook of a `Transformer`, of states x (B, T, D) and true lengths (B,) or None."""
        x, lengths = args[:2]
        self.sizes = torch.full((len(x),), x.shape[1], device=x.device) if lengths is None else lengths


class DropPath(nn.Module):
    """Drops a branch for a clip with probability p; else divides it by 1 - p (Huang et al. 2016, arXiv:1603.09382)."""

    def __init__(self, p: float, clips: Clips) -> None:
        super().__init__()
        self.p, self.clips = p, clips

    def forward(self, x: Tensor) -> Tensor:
        """The branch's output (B, T, D), or packed (N, D), one clip's true frames behind the other's."""
        if not self.training or self.p == 0:
            return x
        sizes = self.clips.sizes
        share = (torch.rand(len(sizes), device=x.device) >= self.p).to(x.dtype) / (1 - self.p)  # (B,)
        return x * (share[:, None, None] if x.ndim == 3 else share.repeat_interleave(sizes)[:, None])

    def extra_repr(self) -> str:
        """Shown by `print(module)`."""
        return f"p={self.p:g}"
