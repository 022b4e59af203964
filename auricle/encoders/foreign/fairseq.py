"""Checkpoints of fairseq: HuBERT, data2vec (audio) and wav2vec 2.0, pre-trained or fine-tuned."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from auricle.encoders.base import Encoder
from auricle.encoders.foreign.weights import count, entry, fill, pairs, per_layer, state_dict, weight
from auricle.encoders.waveform import WaveformConfig, WaveformEncoder
from auricle.errors import CheckpointError

KEEP = ("model", "args", "cfg")

HEAD_DIM = 64
"""Channels of an attention head in all released models; weights do not say."""
STRIDES = {(10, 3, 3, 3, 3, 2, 2): (5, 2, 2, 2, 2, 2, 2)}
"""Of the kernels that all released models have; weights do not say."""
_PREFIX = "w2v_encoder.w2v_model."
"""Where the network lies in a model fine-tuned for CTC."""
_BLOCK = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention_out": "self_attn.out_proj",
    "attention_norm": "self_attn_layer_norm",
    "ffn_in": "fc1",
    "ffn_out": "fc2",
    "ffn_norm": "final_layer_norm",
}
_HEADS = r"final_proj|label_embs_concat$|quantizer\.|project_q\.|target_glu\."
"""Heads and their classes, of which HuBERT's hold four more than there are clusters: fairseq's special symbols."""


def convert(entries: Mapping[str, Any], place: str) -> Encoder:
    """A `WaveformEncoder` with the network's weights, without heads and teacher. Raises `CheckpointError`.

    Sizes are read from the weights. What they do not tell is taken from the file's options, where it has them, else
    from what all released models have in common: heads of 64 channels, norms before the blocks where every
    convolution has a LayerNorm and there is one positional convolution, and waveforms normalised with such norms.
    """
    model = entries.get("model")
    if isinstance(model, Mapping):  # data2vec's teacher lies in the midst of the weights
        entries = {**entries, "model": {name: value for name, value in model.items() if not name.endswith("_ema")}}
    weights = state_dict(entries, "model", place)
    if any(name.startswith(_PREFIX) for name in weights):
        weights = {name.removeprefix(_PREFIX): value for name, value in weights.items() if name.startswith(_PREFIX)}
    config = _config(weights, entries, place)
    encoder = WaveformEncoder(config)
    fill(encoder, weights, _names(config), place, ignored=_HEADS)
    return encoder


def _config(weights: Mapping[str, Tensor], entries: Mapping[str, Any], place: str) -> WaveformConfig:
    options, task = _options(entries, place)
    convolutions = [
        weight(weights, f"feature_extractor.conv_layers.{layer}.0.weight", place, 3)
        for layer in range(count(weights, "feature_extractor.conv_layers.", place))
    ]
    kernels = tuple(each.shape[2] for each in convolutions)
    if len({len(each) for each in convolutions}) > 1:
        raise CheckpointError(f"{place}: its convolutions have several widths; only one can be converted")
    conv_norm = "layer" if "feature_extractor.conv_layers.0.2.1.weight" in weights else "group"
    stacked = "encoder.pos_conv.0.0.weight" in weights
    position = weight(weights, f"encoder.pos_conv.0.{'0.weight' if stacked else 'weight_v'}", place, 3)
    dim = len(position)
    pre = conv_norm == "layer" and not stacked
    return WaveformConfig.parse(
        {
            "sample_rate": int(task.get("sample_rate", 16_000)),
            "channels": len(convolutions[0]),
            "kernels": kernels,
            "strides": _strides(options, kernels, place),
            "conv_norm": conv_norm,
            "conv_bias": "feature_extractor.conv_layers.0.0.bias" in weights,
            "normalize": bool(task.get("normalize", conv_norm == "layer")),
            "dim": dim,
            "layers": count(weights, "encoder.layers.", place),
            "heads": int(options.get("encoder_attention_heads", max(1, dim // HEAD_DIM))),
            "ffn": len(weight(weights, "encoder.layers.0.fc1.weight", place, 2)),
            "norm": "pre" if options.get("layer_norm_first", pre) else "post",
            "position_style": "stacked" if stacked else "weight_norm",
            "position_layers": count(weights, "encoder.pos_conv.", place) if stacked else 1,
            "position_kernel": position.shape[2],
            "position_groups": dim // position.shape[1],
            "input_dropout": float(options.get("dropout_input", 0.0)),
            "dropout": float(options.get("dropout", 0.1)),
            "attention_dropout": float(options.get("attention_dropout", 0.1)),
            "activation_dropout": float(options.get("activation_dropout", 0.0)),
        },
        place,
    )


def _options(entries: Mapping[str, Any], place: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Of the network, and of the data; of a fine-tuned model those it was pre-trained with, where they are kept."""
    config, arguments = entry(entries, "cfg", place), entry(entries, "args", place)
    options, task = entry(config, "model", place) or arguments, entry(config, "task", place) or arguments
    if inner := entry(options, "w2v_args", place):
        return entry(inner, "model", place) or inner, entry(inner, "task", place) or task
    return options, task


def _strides(options: Mapping[str, Any], kernels: tuple[int, ...], place: str) -> tuple[int, ...]:
    """From `conv_feature_layers`, text such as "[(512,10,5)] + [(512,3,2)] * 4"; else those of all released models."""
    layers: list[tuple[str, str]] = []
    for terms, times in re.findall(r"\[([^\]]*)\](?:\s*\*\s*(\d+))?", str(options.get("conv_feature_layers", ""))):
        layers += re.findall(r"\(\s*\d+\s*,\s*(\d+)\s*,\s*(\d+)\s*\)", terms) * int(times or 1)
    if tuple(int(kernel) for kernel, _ in layers) == kernels:
        return tuple(int(stride) for _, stride in layers)
    if kernels not in STRIDES:
        raise CheckpointError(
            f"{place}: convolutions of kernels {kernels}, whose strides the file does not tell; keep 'cfg' or 'args' "
            "with conv_feature_layers beside 'model'"
        )
    return STRIDES[kernels]


def _names(config: WaveformConfig) -> dict[str, Any]:
    modules: dict[str, Any] = {
        "projection.0": "layer_norm",
        "projection.1": "post_extract_proj",
        "context.norm" if config.norm == "post" else "context.transformer.final_norm": "encoder.layer_norm",
    }
    modules |= per_layer("context.transformer.blocks", "encoder.layers", config.layers, _BLOCK)
    for layer in range(len(config.kernels)):
        ours, theirs = f"convolutions.layers.{layer}", f"feature_extractor.conv_layers.{layer}"
        modules[f"{ours}.conv"] = f"{theirs}.0"
        if layer == 0 or config.conv_norm == "layer":
            modules[f"{ours}.norm"] = f"{theirs}.2.1" if config.conv_norm == "layer" else f"{theirs}.2"
    stacked = config.position_style == "stacked"
    for layer in range(config.position_layers):
        modules[f"context.positions.layers.{layer}.conv"] = f"encoder.pos_conv.{layer}" + ".0" * stacked
    found = {"mask_vector": "mask_emb"} | pairs(modules)
    if not stacked:
        found["context.positions.layers.0.gain"] = "encoder.pos_conv.0.weight_g"
        found["context.positions.layers.0.conv.weight"] = "encoder.pos_conv.0.weight_v"
    return found
