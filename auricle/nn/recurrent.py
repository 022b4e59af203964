"""Recurrent networks in exported graphs: ONNX's own operators, since tracing would fix the number of steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

_GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}
"""Of PyTorch's order (i f g o, and r z n), what ONNX has first, second, ...: i o f c, and z r h."""


def onnx_recurrent(kind: Literal["LSTM", "GRU"], x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """One layer over x (B, T, F), from rest, to (B, T, D), while `torch.onnx` exports.

    `weights` are PyTorch's: of the input (n D, F) and of the state (n D, D), and their biases (n D,).
    """
    order = _GATES[kind]
    inputs, states, *biases = (torch.cat([w.chunk(len(order))[gate] for gate in order]) for w in weights)
    dim = states.shape[1]
    attributes: dict[str, Any] = {"hidden_size": dim} | ({"linear_before_reset": 1} if kind == "GRU" else {})
    out = torch.onnx.ops.symbolic(
        kind,
        [x.transpose(0, 1), inputs[None], states[None], torch.cat(biases)[None]],
        attributes,
        dtype=x.dtype,
        shape=(x.shape[1], 1, x.shape[0], dim),
    )
    return out[:, 0].transpose(0, 1)
