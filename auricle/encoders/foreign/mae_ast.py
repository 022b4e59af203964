"""Checkpoints of MAE-AST, in fairseq's names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from auricle.encoders.base import Encoder
from auricle.encoders.foreign.weights import count, entry, fill, pairs, per_layer, state_dict, weight
from auricle.encoders.mae_ast import MaeAstEncoder, MaeAstEncoderConfig
from auricle.errors import CheckpointError

KEEP = ("model", "cfg")

MELS = 128
LONGEST_FRAMES = 1561
"""Spectral frames of the longest clip in the original's training, 250 000 samples."""
_BLOCK = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention_out": "self_attn.out_proj",
    "attention_norm": "self_attn_layer_norm",
    "ffn_in": "fc1",
    "ffn_out": "fc2",
    "ffn_norm": "final_layer_norm",
}
_OTHERS = (
    r"decoder|encoder_mask_emb$|final_proj_|batch_norm\.num_batches_tracked$|layer_norm\.|(enc|dec)_sine_pos_embed\.pe$"
)
"""The decoder, the heads, a norm that is never used, and tables of sinusoids."""


def convert(entries: Mapping[str, Any], place: str) -> Encoder:
    """A `MaeAstEncoder` with the encoder's weights. Raises `CheckpointError` or `ConfigError`."""
    weights = state_dict(entries, "model", place)
    options = entry(entry(entries, "cfg", place), "model", place)
    if options.get("layer_norm_first", False):
        raise CheckpointError(f"{place}: a pre-norm MAE-AST (layer_norm_first) cannot be converted")
    dim, values = weight(weights, "post_extract_proj.weight", place, 2).shape
    frames, bands = _tokens(options, values, place)
    config = MaeAstEncoderConfig.parse(
        {
            "front_end": MaeAstEncoderConfig().front_end.model_dump() | {"n_mels": MELS, "stack": frames},
            "bands": bands,
            "dim": dim,
            "layers": (layers := count(weights, "encoder.layers.", place)),
            "heads": int(options.get("encoder_attention_heads", max(1, dim // 64))),
            "ffn": len(weight(weights, "encoder.layers.0.fc1.weight", place, 2)),
            "dropout": float(options.get("dropout", 0.1)),
            "attention_dropout": float(options.get("attention_dropout", 0.1)),
            "chunk_frames": LONGEST_FRAMES // frames,
        },
        place,
    )
    for name in ("batch_norm.running_mean", "batch_norm.running_var"):
        weights[name] = weight(weights, name, place, 1)[0]
    names = pairs(
        {"project": "post_extract_proj", "norm": "encoder.layer_norm"}
        | per_layer("transformer.blocks", "encoder.layers", layers, _BLOCK)
    ) | {"mean": "batch_norm.running_mean", "variance": "batch_norm.running_var"}
    encoder = MaeAstEncoder(config)
    fill(encoder, weights, names, place, ignored=_OTHERS)
    return encoder


def _tokens(options: Mapping[str, Any], values: int, place: str) -> tuple[int, int]:
    """Frames that a token covers, and tokens in a step: weights of patches and of frames have the same shapes."""
    if "ast_kernel_size_chan" in options:
        mels = int(options["ast_kernel_size_chan"])
    elif kind := re.search("patch|frame", Path(place).name.lower()):
        mels = 16 if kind[0] == "patch" else MELS
    else:
        raise CheckpointError(
            f"{place}: does not say whether its tokens are patches or frames; keep 'cfg' beside 'model', or put "
            f"'patch' or 'frame' into the file's name, as the released ones have it"
        )
    if mels < 1 or MELS % mels or values % mels or not values:
        raise CheckpointError(f"{place}: tokens of {values} values and {mels} mel bands cannot be converted")
    return values // mels, MELS // mels
