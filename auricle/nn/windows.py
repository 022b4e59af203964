"""Long clips through networks that see a limited stretch: overlapping windows, kept where they have seen enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

WINDOWS_AT_ONCE = 8
"""Windows of a long clip that are encoded together; bounds memory."""

Encode = Callable[[Tensor, Tensor], list[Tensor]]
"""A network: x (B, T, F) and lengths (B,) in frames to hidden states, each (B, T, D)."""

Cut = Callable[[int, int, int], Tensor]
"""A clip's number, start and stop to these frames of it, (t, F)."""


def windows(length: int, size: int, causal: bool = False) -> Iterator[tuple[int, int, int, int]]:
    """(start, stop, keep, until) of windows half a `size` apart: each is encoded whole and kept from `keep` to `until`.

    Kept parts tile 0..length. Away from the clip's ends each has a quarter of `size` around it as context; with
    `causal`, for networks that look back only, half of `size` before it.
    """
    hop = size // 2
    margin = size - hop if causal else size // 4
    last = max(0, -(-(length - size) // hop))
    for number in range(last + 1 if length else 0):
        start = number * hop
        yield (
            start,
            min(start + size, length),
            start + margin if number else 0,
            start + margin + hop if number < last else length,
        )


def pieces(
    encode: Encode, x: Tensor | Cut, lengths: Tensor, size: int, causal: bool = False
) -> Iterator[tuple[int, list[Tensor]]]:
    """A clip's number and its next frames (t, D) of each layer, clip by clip and some `windows` at a time.

    x (B, T, F), or what cuts it when it is needed, and lengths (B,) are in frames. A clip's windows, and with them its
    frames, depend on itself alone.
    """
    cut: Cut = (lambda clip, start, stop: x[clip, start:stop]) if isinstance(x, Tensor) else x
    for clip, length in enumerate(lengths.tolist()):
        every = list(windows(length, size, causal))
        for first in range(0, len(every), WINDOWS_AT_ONCE):
            group = every[first : first + WINDOWS_AT_ONCE]
            begin = group[0][0]
            stretch = cut(clip, begin, group[-1][1])
            parts = [stretch[start - begin : stop - begin] for start, stop, _, _ in group]
            sizes = torch.tensor([len(part) for part in parts], device=stretch.device)
            states = encode(pad_sequence(parts, batch_first=True), sizes)
            kept = [(keep - start, until - start) for start, _, keep, until in group]
            yield clip, [torch.cat([row[a:b] for row, (a, b) in zip(state, kept, strict=True)]) for state in states]


@torch.compiler.disable  # type: ignore[untyped-decorator]  # its loop over clips reads their lengths
def encode_long(
    encode: Encode, x: Tensor, lengths: Tensor, size: int, dims: Sequence[int], causal: bool = False
) -> list[Tensor]:
    """All `pieces` put together: hidden states (B, T, D), of `dims` channels each, zeros past each clip."""
    states = [x.new_zeros(*x.shape[:2], dim) for dim in dims]
    filled = [0] * len(x)
    for clip, parts in pieces(encode, x, lengths, size, causal):
        start, filled[clip] = filled[clip], filled[clip] + len(parts[0])
        for state, part in zip(states, parts, strict=True):
            state[clip, start : filled[clip]] = part
    return states
