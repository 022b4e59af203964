"""What the device counts between two log lines, so that the host need not look at every step."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from auricle.methods.base import Step


def sums_of(step: Step, audio_s: Tensor) -> Tensor:
    """Sums (3 + M,) over a micro-batch's items, float32: loss, items, seconds of audio `audio_s` (), M metrics."""
    count = step.count.float()
    values = [value.detach().float() * count for value in (step.loss, *step.metrics.values())]
    return torch.stack([values[0], count, audio_s, *values[1:]])


class Tally:
    """Sums since the last log line, and gated updates since step 0. Gated updates leave no other trace."""

    def __init__(self, device: torch.device) -> None:
        self.gates = torch.zeros(3, dtype=torch.int64, device=device)
        """(3,) gated updates: in all, in a row up to now, most in a row."""
        self.window: Tensor | None = None
        """(5 + M,) updates and sum of gradient norms, then `sums_of`."""
        self.names: list[str] = []
        """Of the M metrics."""

    def add(self, sums: Tensor, norm: Tensor, gated: Tensor, names: list[str]) -> None:
        """Count one update: its sums (3 + M,) over micro-batches and processes, gradient norm (), whether gated ()."""
        row = torch.cat([torch.stack([torch.ones_like(norm), norm]), sums]).masked_fill(gated, 0.0)
        self.window = row if self.window is None else self.window + row
        in_a_row = (self.gates[1] + 1) * gated
        self.gates = torch.stack([self.gates[0] + gated, in_a_row, torch.maximum(self.gates[2], in_a_row)])
        self.names = names

    def read(self) -> dict[str, float]:
        """Means over the window (NaN where every update was gated), with the sum `audio_s`; the window starts anew."""
        assert self.window is not None
        updates, norm, loss, count, audio_s, *metrics = self.window.tolist()
        self.window = None
        if not count:
            return {"loss": math.nan, "grad_norm": math.nan, "audio_s": audio_s}
        means = {name: value / count for name, value in zip(self.names, metrics, strict=True)}
        return {"loss": loss / count, "grad_norm": norm / updates, "audio_s": audio_s} | means

    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint, with `names`."""
        return {"gates": self.gates} | ({} if self.window is None else {"window": self.window})

    def load(self, tensors: dict[str, Tensor], names: list[str]) -> None:
        """Go on from what `tensors` gave."""
        self.gates = tensors["gates"].to(self.gates.device)
        self.window = tensors["window"].to(self.gates.device) if "window" in tensors else None
        self.names = names
