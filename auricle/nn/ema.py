"""Teachers that are moving averages of their students."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Self

import torch
from torch import nn


class Ema(nn.Module):
    """A copy of `source`, called as it is, whose weights follow the source's: an exponential moving average.

    It is in evaluation mode for good, gets no gradient, gives none, and is kept in float32 whatever the source is in.
    Buffers, and the weights of the submodules named in `copied`, are not averaged but taken over as they are.
    """

    def __init__(self, source: nn.Module, copied: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.module = deepcopy(source).float().requires_grad_(False).eval()
        self.copied = tuple(f"{name}." for name in copied)

    def train(self, mode: bool = True) -> Self:
        """Nothing: a teacher neither drops units nor layers."""
        return self

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the averaged module returns."""
        return self.module(*args, **kwargs)

    def copy(self, source: nn.Module) -> None:
        """Become as the source is."""
        self.module.load_state_dict(source.state_dict())

    @torch.no_grad()
    def follow(self, source: nn.Module, decay: float) -> None:
        """Each weight becomes `decay` of itself and the rest of the source's; those that are copied, the source's."""
        mine, theirs = self.module.state_dict(), source.state_dict()
        weights = [name for name, _ in source.named_parameters() if not name.startswith(self.copied)]
        torch._foreach_lerp_(
            [mine.pop(name) for name in weights], [theirs[name].float() for name in weights], 1 - decay
        )
        for name, value in mine.items():
            value.copy_(theirs[name])


def ramp(step: int, first: float, last: float, steps: int) -> float:
    """`first` at step 0, `last` from step `steps` on, and the straight line in between."""
    return last + (first - last) * max(0.0, 1 - step / steps)
