"""Checkpoints of Audio-MAE, pre-trained or fine-tuned, in timm's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from auricle.encoders.base import Encoder
from auricle.encoders.foreign.weights import count, entry, fill, pairs, per_layer, state_dict, weight
from auricle.encoders.vit import Vit, VitConfig
from auricle.errors import CheckpointError

KEEP = ("model", "args")

PATCH, BANDS = 16, 8
HEAD_DIM = 64
"""Channels of an attention head in ViT-S, B and L; files do not say."""
STATISTICS = {
    "audioset": (1024, -4.2677393, 4.5689974),
    "esc50": (512, -6.6268077, 5.358466),
    "speechcommands": (128, -6.845978, 5.5654526),
}
"""Frames, mean and standard deviation of the log energies, by what a model was trained on."""
_BLOCK = {
    "attention_norm": "norm1",
    "qkv": "attn.qkv",
    "attention_out": "attn.proj",
    "ffn_norm": "norm2",
    "ffn_in": "mlp.fc1",
    "ffn_out": "mlp.fc2",
}


def convert(entries: Mapping[str, Any], place: str) -> Encoder:
    """A `Vit` that hears as the released model did. Raises `CheckpointError` or `ConfigError`.

    It keeps the stored position codes, pads shorter clips with log energy 0 (loud) to the model's length, and lets
    attention see that. A fine-tuned model's head, and the norm of pooled tokens before it, are left out.
    """
    weights = state_dict(entries, "model", place)
    patches, codes = (weight(weights, name, place, dims) for name, dims in _TENSORS)
    dim, tokens = patches.shape[0], codes.shape[1] - 1
    frames, mean, std = _statistics(entries, tokens, place)
    config = VitConfig.parse(
        {
            "mean": mean,
            "std": std,
            "fixed_frames": frames,
            "chunk_frames": frames,
            "positions": "audiomae",
            "dim": dim,
            "layers": (layers := count(weights, "blocks.", place)),
            "heads": max(1, dim // HEAD_DIM),
            "ffn": len(weight(weights, "blocks.0.mlp.fc1.weight", place, 2)),
            "final_norm": (final_norm := "fc_norm.weight" not in weights),
        },
        place,
    )
    names: dict[str, Any] = pairs(
        {"project": "patch_embed.proj", **({"transformer.final_norm": "norm"} if final_norm else {})}
        | per_layer("transformer.blocks", "blocks", layers, _BLOCK)
    )
    weights["patch_embed.proj.weight"] = patches.flatten(1)
    weights["cls_token"] = weight(weights, "cls_token", place) + codes[:, :1]
    weights["pos_embed"] = codes[0, 1:]
    names |= {"class_token": "cls_token", "positions.table": "pos_embed"}
    encoder = Vit(config)
    fill(encoder, weights, names, place, ignored=r"decoder_|mask_token$|fc_norm\.|head\.")
    return encoder


_TENSORS = (("patch_embed.proj.weight", 4), ("pos_embed", 3))


def _statistics(entries: Mapping[str, Any], tokens: int, place: str) -> tuple[int, float, float]:
    """Frames, mean and deviation of the model: of the data named in the file's `args`, or that have its length."""
    frames = tokens // BANDS * PATCH
    known = [row for row in STATISTICS.values() if row[0] == frames and tokens % BANDS == 0]
    if not known:
        raise CheckpointError(
            f"{place}: pos_embed has {tokens} tokens; only models of 512, 256 or 64 patches of 16 x 16 can be converted"
        )
    _, mean, std = STATISTICS.get(str(entry(entries, "args", place).get("dataset")), known[0])
    return frames, mean, std
