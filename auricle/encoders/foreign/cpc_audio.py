"""Checkpoints of CPC_audio."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from auricle.encoders.base import Encoder
from auricle.encoders.cpc import CpcEncoder, CpcEncoderConfig
from auricle.encoders.foreign.weights import count, fill, pairs, state_dict, weight
from auricle.errors import CheckpointError

KEEP = ("gEncoder",)

_CONVOLUTIONS = 5
_GATES = {4: "lstm", 3: "gru"}


def convert(entries: Mapping[str, Any], place: str) -> Encoder:
    """A `CpcEncoder` with the weights of a file: z and c. Raises `CheckpointError` or `ConfigError`."""
    weights = state_dict(entries, "gEncoder", place)
    if "gEncoder.batchNorm0.running_mean" in weights:
        raise CheckpointError(f"{place}: its convolutions have batch norms; only channel norms can be converted")
    names: dict[str, Any] = pairs(
        {f"convolutions.layers.{layer}.conv": f"gEncoder.conv{layer}" for layer in range(_CONVOLUTIONS)}
        | {f"convolutions.layers.{layer}.norm": f"gEncoder.batchNorm{layer}" for layer in range(_CONVOLUTIONS)}
    )
    for layer in range(_CONVOLUTIONS):
        for kind in ("weight", "bias"):  # (1, C, 1)
            norm = weight(weights, name := f"gEncoder.batchNorm{layer}.{kind}", place, 3)
            weights[name] = norm[0, :, 0]
    rows, dim = weight(weights, "gAR.baseNet.weight_hh_l0", place, 2).shape
    context = next((kind for gates, kind in _GATES.items() if rows == gates * dim), None)
    if context is None:
        raise CheckpointError(f"{place}: its context is neither an LSTM nor a GRU; no other can be converted")
    config = CpcEncoderConfig.parse(
        {
            "channels": [
                len(weight(weights, f"gEncoder.conv{layer}.weight", place, 3)) for layer in range(_CONVOLUTIONS)
            ],
            "context": context,
            "context_dim": dim,
            "context_layers": count(weights, "gAR.baseNet.weight_hh_l", place),
        },
        place,
    )
    encoder = CpcEncoder(config)
    names |= {f"context.{name}": f"gAR.baseNet.{name}" for name in encoder.context.state_dict()}
    fill(encoder, weights, names, place)
    return encoder
