"""Checkpoints of S3PRL: Mockingjay, TERA and AudioALBERT (`states-N.ckpt`), APC; and those of APC's authors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from auricle.encoders.apc import ApcEncoder, ApcEncoderConfig
from auricle.encoders.base import Encoder
from auricle.encoders.foreign.weights import count, entry, fill, pairs, per_layer, state_dict, weight
from auricle.encoders.mel_transformer import MelTransformer, MelTransformerConfig
from auricle.errors import CheckpointError

KEEP = ("Transformer", "Upstream_Config", "Config", "model", "config")

_BLOCK = {
    "qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention_out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "ffn_in": "intermediate.dense",
    "ffn_out": "output.dense",
    "ffn_norm": "output.LayerNorm",
}
"""Our names of a block's modules and theirs."""
_ALIASES = r"encoder\.layer\.\d+\.(attention\.)?LayerNorm\."
"""Second names of a pre-norm model's norms."""
_MOCKINGJAY_2019 = {"window_ms": 50.0, "hop_ms": 12.5, "n_fft": 2048, "mel_scale": "slaney", "mel_norm": "slaney",
                    "log_floor": 1e-6, "deltas": 1}  # fmt: skip
"""Features of models that name none: they were made by files of their own, of 160 channels."""
_FBANK_FIXED = {"dither": 0, "energy_floor": 1, "use_energy": False, "preemphasis_coefficient": 0.97,
                "remove_dc_offset": True, "round_to_power_of_two": True, "snip_edges": True, "subtract_mean": False,
                "use_log_fbank": True, "use_power": True, "vtln_warp": 1.0, "blackman_coeff": 0.42, "min_duration": 0,
                "sample_frequency": 16000}  # fmt: skip
"""Options of torchaudio's Kaldi filter bank that our front end has no other value for."""
_FBANK_FREE = ("num_mel_bins", "frame_length", "frame_shift", "window_type", "low_freq", "high_freq", "channel",
               "htk_compat", "vtln_high", "vtln_low")  # fmt: skip


def convert(entries: Mapping[str, Any], place: str) -> Encoder:
    """A `MelTransformer` or `ApcEncoder` with the weights of a file. Raises `CheckpointError` or `ConfigError`."""
    if "Transformer" in entries:
        return _transformer(entries, place)
    return _apc(entries, place)


def _transformer(entries: Mapping[str, Any], place: str) -> Encoder:
    weights = {
        name.replace("gamma", "weight").replace("beta", "bias"): value  # as TensorFlow, and early files, call them
        for name, value in state_dict(entries, "Transformer", place).items()
    }
    options = entry(entries, "Upstream_Config", place) or entry(entries, "Config", place)
    model = entry(options, "transformer", place)
    if model.get("hidden_act", "gelu") != "gelu":
        raise CheckpointError(f"{place}: hidden_act is {model['hidden_act']}; only gelu can be converted")
    layers = count(weights, "encoder.layer.", place)
    shared, pre = bool(model.get("share_layer", False)), "encoder.LayerNorm.0.weight" in weights
    projection = weight(weights, "input_representations.spec_transform.weight", place, 2)
    dim = projection.shape[0]
    chunk = int(entry(options, "task", place).get("sequence_length", 0))
    config = MelTransformerConfig.parse(
        {
            "front_end": front_end(options, place) | {"stack": int(model.get("downsample_rate", 1))},
            "dim": dim,
            "layers": layers,
            "heads": int(model.get("num_attention_heads", max(1, dim // 64))),
            "ffn": len(weight(weights, "encoder.layer.0.intermediate.dense.weight", place, 2)),
            "dropout": float(model.get("hidden_dropout_prob", 0.1)),
            "attention_dropout": float(model.get("attention_probs_dropout_prob", 0.1)),
            "norm": "pre" if pre else "post",
            "state_norms": pre,
            "norm_eps": float(model.get("layer_norm_eps", 1e-12)),
            "shared_layers": shared,
            **({"chunk_frames": chunk} if chunk > 0 else {}),
        },
        place,
    )
    encoder = MelTransformer(config)
    if encoder.front_end.dim != projection.shape[1]:
        raise CheckpointError(
            f"{place}: its network takes {projection.shape[1]} channels, the front end it names has "
            f"{encoder.front_end.dim}; features made outside S3PRL cannot be converted"
        )
    if shared:
        weights = _unshared(weights, place)
    modules: dict[str, Any] = {
        "project": "input_representations.spec_transform",
        "norm": "input_representations.LayerNorm",
    }
    modules |= per_layer("transformer.blocks", "encoder.layer", 1 if shared else layers, _BLOCK)
    if pre:
        modules |= {f"transformer.state_norms.{layer}": f"encoder.LayerNorm.{layer}" for layer in range(layers)}
        modules["transformer.final_norm"] = f"encoder.LayerNorm.{layers}"
    fill(encoder, weights, pairs(modules), place, ignored=_ALIASES if pre else "(?!)")
    return encoder


def _unshared(weights: Mapping[str, torch.Tensor], place: str) -> dict[str, torch.Tensor]:
    """The weights without the repetitions of layer 0 under the other layers' names."""
    first, kept = "encoder.layer.0.", {}
    for name, value in weights.items():
        head, _, rest = name.removeprefix("encoder.layer.").partition(".")
        if not name.startswith("encoder.layer.") or head == "0":
            kept[name] = value
        elif first + rest not in weights or not torch.equal(value, weights[first + rest]):
            raise CheckpointError(f"{place}: share_layer is set, yet {name} is not layer 0's")
    return kept


def _apc(entries: Mapping[str, Any], place: str) -> Encoder:
    bare = any(isinstance(value, torch.Tensor) for value in entries.values())
    weights = state_dict({"model": entries} if bare else entries, "model", place)
    authors = "rnns.0.weight_ih_l0" in weights
    theirs = "rnns" if authors else "rnn_layers"
    options = {} if authors else entry(entries, "config", place)
    audio = entry(entry(options, "data", place), "audio", place)
    model = entry(entry(options, "model", place), "paras", place)
    layers = count(weights, f"{theirs}.", place)
    _, bands = weight(weights, f"{theirs}.0.weight_ih_l0", place, 2).shape
    config = ApcEncoderConfig.parse(
        {
            "front_end": {"kind": "kaldi", "n_mels": bands} if authors else _hamming(audio, bands, place),
            "dim": weight(weights, f"{theirs}.0.weight_hh_l0", place, 2).shape[1],
            "layers": layers,
            "dropout": float(model.get("dropout", 0.0 if authors else 0.1)),
            "residual": bool(model.get("residual", True)),
            "drop_last": not authors,
        },
        place,
    )
    encoder = ApcEncoder(config)
    if config.front_end.normalize == "none":  # then features pass through statistics of the training data
        weights |= {"mean": torch.zeros(bands), "scale": torch.ones(bands)}
    names = {name: name.replace("core.grus", theirs) for name in encoder.state_dict()}
    fill(encoder, weights, names, place, ignored=r"postnet\.|final_linear\.|vq_layers\.")
    return encoder


def _hamming(audio: Mapping[str, Any], bands: int, place: str) -> dict[str, Any]:
    """The front end of S3PRL's APC: its own options beside those of the Kaldi filter bank."""
    own = ("feat_type", "feat_dim", "decode_wav", "cmvn")
    if audio.get("feat_type", "fbank") != "fbank":
        raise CheckpointError(f"{place}: features '{audio['feat_type']}' cannot be converted; only fbank can")
    fbank = {name: value for name, value in audio.items() if name not in own}
    return kaldi_fbank(fbank | {"num_mel_bins": bands, "window_type": "hamming"}, place) | {
        "normalize": "unbiased" if audio.get("cmvn", True) else "none"
    }


def front_end(options: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The front end that a configuration names, as values of our `FrontEndConfig`. Raises `CheckpointError`."""
    audio = entry(options, "audio", place)
    if not audio:
        return {"kind": "stft", **_MOCKINGJAY_2019}
    return _kaldi(audio, place) if "kaldi" in audio else _online(audio, place)


def _online(audio: Mapping[str, Any], place: str) -> dict[str, Any]:
    chosen = entry(audio, "input", place) or audio
    kind = chosen.get("feat_type", "mel")
    if kind not in ("mel", "linear") or not chosen.get("log", True):
        raise CheckpointError(f"{place}: features '{kind}' cannot be converted; only the log of mel and linear can")
    return {
        "kind": "stft",
        "level_db": audio.get("target_level"),
        "sample_rate": audio.get("sample_rate", 16000),
        "window_ms": audio.get("win_ms", 25),
        "hop_ms": audio.get("hop_ms", 10),
        "n_fft": 2 * (int(audio.get("n_freq", 201)) - 1),
        "n_mels": audio.get("n_mels", 40) if kind == "mel" else 0,
        "deltas": int(chosen.get("delta", 0)),
        "normalize": "unbiased" if chosen.get("cmvn", False) else "none",
    }


def _kaldi(audio: Mapping[str, Any], place: str) -> dict[str, Any]:
    kaldi, delta = entry(audio, "kaldi", place), entry(audio, "delta", place)
    if (kind := kaldi.get("feat_type", "fbank")) != "fbank":
        raise CheckpointError(f"{place}: Kaldi features '{kind}' cannot be converted; only fbank can")
    if delta.get("win_length", 5) != 5:
        raise CheckpointError(f"{place}: deltas over {delta['win_length']} frames cannot be converted; only over 5")
    return kaldi_fbank(entry(kaldi, "fbank", place), place) | {
        "deltas": int(delta.get("order", 2)),
        "normalize": "unbiased" if entry(audio, "cmvn", place).get("use_cmvn", True) else "none",
    }


def kaldi_fbank(options: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Options of `torchaudio.compliance.kaldi.fbank` as values of our `FrontEndConfig`. Raises `CheckpointError`."""
    for name, value in options.items():
        if name not in _FBANK_FREE and (name not in _FBANK_FIXED or value != _FBANK_FIXED[name]):
            raise CheckpointError(f"{place}: a Kaldi filter bank of {name} {value} cannot be converted")
    return {
        "kind": "kaldi",
        "scale": "unit",
        "n_mels": options.get("num_mel_bins", 23),
        "window_ms": options.get("frame_length", 25.0),
        "hop_ms": options.get("frame_shift", 10.0),
        "window": {"hanning": "hann"}.get(name := options.get("window_type", "povey"), name),
        "low_hz": options.get("low_freq", 20.0),
        "high_hz": options.get("high_freq", 0.0),
    }
