"""Models of Hugging Face as encoders, and our waveform encoder as one of theirs.

Hubert, Wav2Vec2 and Data2VecAudio are one network, `WaveformEncoder`; their folders are read and written here, without
transformers. Whatever else has hidden states of audio runs inside transformers (`auricle.encoders.wrapped`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import auricle
from auricle.encoders.base import Encoder
from auricle.encoders.checkpoint import CONFIG, FORMAT, WEIGHTS, load_folder
from auricle.encoders.foreign.weights import fill, pairs, per_layer, read
from auricle.encoders.hub import fetch
from auricle.encoders.waveform import WaveformConfig, WaveformEncoder
from auricle.errors import CheckpointError, ConfigError

PREPROCESSOR, OBJECTIVE = "preprocessor_config.json", "objective.safetensors"
PREFIXES = {"hubert": "hubert.", "wav2vec2": "wav2vec2.", "data2vec-audio": "data2vec_audio."}
"""Models that our network is, and where it lies in those with a head."""
SHAPE = {
    "dim": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "ffn": "intermediate_size",
    "norm_eps": "layer_norm_eps",
    "kernels": "conv_kernel",
    "strides": "conv_stride",
    "conv_bias": "conv_bias",
    "position_groups": "num_conv_pos_embedding_groups",
    "dropout": "hidden_dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "input_dropout": "feat_proj_dropout",
}
"""Options of ours and theirs that mean the same."""
OWN = ("normalize_eps", "padding", "chunk_frames")
"""Options of ours that they have none for: kept under a key of our own."""
DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-5,
    "conv_dim": (512,) * 7,
    "conv_kernel": (10, 3, 3, 3, 3, 2, 2),
    "conv_stride": (5, 2, 2, 2, 2, 2, 2),
    "conv_bias": False,
    "feat_extract_norm": "group",
    "num_conv_pos_embedding_groups": 16,
    "hidden_dropout": 0.1,
    "attention_dropout": 0.1,
    "activation_dropout": 0.1,
    "feat_proj_dropout": 0.0,
}
"""What transformers takes where a config.json is silent."""
_ALMOST_NEVER = 1e-9
"""Probability of masking in transformers' own training loop. It is to mask nothing by itself, as ours masks by the
method's rule; at 0 it would leave the mask vector out."""
_BLOCK = {
    "qkv": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    "attention_out": "attention.out_proj",
    "attention_norm": "layer_norm",
    "ffn_in": "feed_forward.intermediate_dense",
    "ffn_out": "feed_forward.output_dense",
    "ffn_norm": "final_layer_norm",
}
_LEGACY = {".weight_g": ".parametrizations.weight.original0", ".weight_v": ".parametrizations.weight.original1"}
"""Weight norm's names before PyTorch 2.0's."""
_log = logging.getLogger(__name__)


def load_huggingface(name: str) -> Encoder:
    """The encoder in a folder or repository: ours, one of `PREFIXES`, or any that transformers can run.

    Raises `CheckpointError` when it is missing, damaged, or has no hidden states of audio, `MissingDependencyError`
    where it takes huggingface_hub or transformers to get it.
    """
    folder = fetch(name)
    options = _read_json(folder / CONFIG) if (folder / CONFIG).exists() else {}
    if not options or "family" in options:  # a run or a checkpoint of ours, or nothing
        return load_folder(folder)
    kind = options.get("model_type")
    try:
        config = _our_config(name, folder, options) if kind in PREFIXES else None
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise CheckpointError(f"{folder / CONFIG}: holds options that cannot be understood ({error})") from None
    if config is None:
        from auricle.encoders.wrapped import load_wrapped

        return load_wrapped(folder, f"hf:{name}")
    encoder = WaveformEncoder(config)
    weights = _plain(read_weights(folder), PREFIXES[options["model_type"]], encoder)
    fill(encoder, weights, names(config), str(folder))
    return encoder


def _our_config(name: str, folder: Path, options: Mapping[str, Any]) -> WaveformConfig | None:
    if obstacle := _obstacle(options):
        _log.warning("hf:%s: %s is not in auricle's own network; it runs inside transformers", name, obstacle)
        return None
    return import_config(options, _preprocessor(folder), str(folder / CONFIG))


def import_config(options: Mapping[str, Any], preprocessor: Mapping[str, Any] | None, place: str) -> WaveformConfig:
    """Our config from a `config.json` and a `preprocessor_config.json` of theirs. Raises `ConfigError`."""
    given = DEFAULTS | dict(options)
    data2vec = given["model_type"] == "data2vec-audio"
    conv_norm = "layer" if data2vec else given["feat_extract_norm"]
    if preprocessor is None:
        preprocessor = {"do_normalize": conv_norm == "layer"}  # so it is in all that fairseq's authors released
        _log.warning("%s: no %s beside it; taken for granted: 16000 Hz, %s", place, PREPROCESSOR, preprocessor)
    own = options.get("auricle", {}).get("encoder", {})
    values: dict[str, Any] = {ours: given[theirs] for ours, theirs in SHAPE.items()}
    values |= {
        "sample_rate": preprocessor.get("sampling_rate", 16_000),
        "normalize": preprocessor.get("do_normalize", True),
        "normalize_eps": 1e-7,
        "channels": given["conv_dim"][0],
        "conv_norm": conv_norm,
        "norm": "pre" if not data2vec and given.get("do_stable_layer_norm") else "post",
    }
    if data2vec:
        values |= {
            "position_style": "stacked",
            "position_layers": given.get("num_conv_pos_embeddings", 5),
            "position_kernel": given.get("conv_pos_kernel_size", 19),
        }
    else:
        values |= {
            "position_style": "batch_norm" if given.get("conv_pos_batch_norm") else "weight_norm",
            "position_kernel": given.get("num_conv_pos_embeddings", 128),
        }
    return WaveformConfig.parse(values | {key: own[key] for key in OWN if key in own}, place)


def export_config(config: WaveformConfig, layerdrop: float = 0.0) -> dict[str, Any]:
    """Their `config.json` for our config: of a HubertModel, or of a Data2VecAudioModel where the positions are stacked.

    Raises `CheckpointError` for a network that neither of them is.
    """
    stacked = config.position_style == "stacked"
    if stacked and (config.conv_norm, config.norm) != ("layer", "post"):
        raise CheckpointError(
            "Data2VecAudioModel, which has stacked positions, has conv_norm 'layer' and norm 'post'; this encoder has "
            f"conv_norm '{config.conv_norm}' and norm '{config.norm}', which transformers knows of no model for"
        )
    positions: dict[str, Any] = {
        "conv_pos_batch_norm": config.position_style == "batch_norm",
        "num_conv_pos_embeddings": config.position_kernel,
        "do_stable_layer_norm": config.norm == "pre",
        "feat_extract_norm": config.conv_norm,
    }
    if stacked:
        positions = {
            "num_conv_pos_embeddings": config.position_layers,
            "conv_pos_kernel_size": config.position_kernel,
        }
    values = config.model_dump(mode="json")
    return {
        "architectures": ["Data2VecAudioModel" if stacked else "HubertModel"],
        "model_type": "data2vec-audio" if stacked else "hubert",
        **{theirs: values[ours] for ours, theirs in SHAPE.items()},
        "conv_dim": [config.channels] * len(config.kernels),
        **positions,
        "hidden_act": "gelu",
        "feat_extract_activation": "gelu",
        "layerdrop": layerdrop,
        "apply_spec_augment": True,
        "mask_time_prob": _ALMOST_NEVER,
        "mask_time_min_masks": 0,
        "mask_feature_prob": 0.0,
        "auricle": {
            "format": FORMAT,
            "version": auricle.__version__,
            "encoder": {key: values[key] for key in OWN},
        },
    }


def names(config: WaveformConfig) -> dict[str, Any]:
    """Our weights' names → theirs; several of theirs lie behind each other in ours."""
    modules: dict[str, Any] = {
        "projection.0": "feature_projection.layer_norm",
        "projection.1": "feature_projection.projection",
        "context.norm" if config.norm == "post" else "context.transformer.final_norm": "encoder.layer_norm",
    }
    modules |= per_layer("context.transformer.blocks", "encoder.layers", config.layers, _BLOCK)
    numbers = range(len(config.kernels))
    ours, theirs = "convolutions.layers", "feature_extractor.conv_layers"
    modules |= {f"{ours}.{layer}.conv": f"{theirs}.{layer}.conv" for layer in numbers}
    modules |= {
        f"{ours}.{layer}.norm": f"{theirs}.{layer}.layer_norm"
        for layer in numbers
        if layer == 0 or config.conv_norm == "layer"
    }
    for layer in range(config.position_layers):
        inside = f".layers.{layer}" if config.position_style == "stacked" else ""
        modules[f"context.positions.layers.{layer}.conv"] = f"encoder.pos_conv_embed{inside}.conv"
    found = {"mask_vector": "masked_spec_embed"} | pairs(modules)
    if not config.conv_bias:
        found = {key: value for key, value in found.items() if not key.endswith("conv.bias") or "positions" in key}
    first, embed = "context.positions.layers.0", "encoder.pos_conv_embed"
    if config.position_style == "weight_norm":
        found[f"{first}.gain"] = f"{embed}.conv.parametrizations.weight.original0"
        found[f"{first}.conv.weight"] = f"{embed}.conv.parametrizations.weight.original1"
    if config.position_style == "batch_norm":
        kinds = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        found |= {f"{first}.norm.{kind}": f"{embed}.batch_norm.{kind}" for kind in kinds}
    return found


def write(
    encoder: Encoder,
    folder: Path | str,
    extras: Mapping[str, Tensor] | None = None,
    *,
    layerdrop: float = 0.0,
    about: Mapping[str, Any] | None = None,
) -> None:
    """A folder that transformers' `from_pretrained` opens as a HubertModel or Data2VecAudioModel, and `hf:` as ours.

    `extras`, tensors that the network does not need (heads, teacher, clusters), are kept beside it in
    `objective.safetensors`; `about` (method, step, ...) goes into config.json, under `auricle`. `layerdrop`, in 0..1,
    is what it was trained with. Raises `CheckpointError` for an encoder that transformers has no model for.
    """
    if not isinstance(encoder, WaveformEncoder):
        raise CheckpointError(
            f"{encoder.name or encoder.family}: only encoders of family 'waveform' have a model in transformers"
        )
    options = export_config(encoder.config, layerdrop)
    options["auricle"] |= dict(about or {})
    state, theirs = encoder.state_dict(), dict[str, Tensor]()
    for ours, found in names(encoder.config).items():
        parts = [found] if isinstance(found, str) else found
        values = state[ours].detach().cpu()
        for name, part in zip(parts, values.chunk(len(parts)) if len(parts) > 1 else [values], strict=True):
            theirs[name] = part.clone()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(theirs, folder / WEIGHTS, metadata={"format": "pt"})
    _write_json(folder / CONFIG, options)
    _write_json(
        folder / PREPROCESSOR,
        {
            "feature_extractor_type": "Wav2Vec2FeatureExtractor",
            "feature_size": 1,
            "sampling_rate": encoder.sample_rate,
            "do_normalize": encoder.config.normalize,
            "padding_side": "right",
            "padding_value": 0.0,
            "return_attention_mask": encoder.config.conv_norm == "layer",
        },
    )
    if extras:
        plain = {name: value.detach().cpu().clone().contiguous() for name, value in extras.items()}
        metadata = {"format": str(FORMAT), "auricle": auricle.__version__}
        save_file(plain, folder / OBJECTIVE, metadata=metadata)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All weights in a folder: of safetensors, else of `torch.save`, in one file or several. `CheckpointError`."""
    for whole in (WEIGHTS, "pytorch_model.bin"):
        index = folder / f"{whole}.index.json"
        files = [folder / whole] if (folder / whole).is_file() else []
        if not files and index.is_file():
            parts = _read_json(index).get("weight_map")
            if not isinstance(parts, dict):
                raise CheckpointError(f"{index}: 'weight_map' is missing")
            files = [folder / Path(str(part)).name for part in sorted(set(parts.values()))]
        if files:
            weights: dict[str, Tensor] = {}
            for file in files:
                weights |= _read_file(file)
            return weights
    raise CheckpointError(f"{folder}: holds neither {WEIGHTS} nor pytorch_model.bin")


def _read_file(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".bin":
        entries = read(file, ())
        return {name: value for name, value in entries.items() if isinstance(value, Tensor)}
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: damaged or unreadable ({str(error).strip().splitlines()[0]})") from None


def _plain(weights: Mapping[str, Tensor], prefix: str, encoder: WaveformEncoder) -> dict[str, Tensor]:
    """The network's own weights, in today's names: of a model with a head the head is left out.

    A model that was saved without a mask vector gets one of zeros.
    """
    if any(name.startswith(prefix) for name in weights):
        weights = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    plain = {"masked_spec_embed": torch.zeros_like(encoder.mask_vector)}
    for name, value in weights.items():
        legacy = next((end for end in _LEGACY if name.endswith(end)), None)
        plain[name.removesuffix(legacy) + _LEGACY[legacy] if legacy else name] = value
    return plain


def _obstacle(options: Mapping[str, Any]) -> str | None:
    """What our network lacks of a model whose type it is, if anything."""
    for key in ("hidden_act", "feat_extract_activation"):
        if options.get(key, "gelu") != "gelu":
            return f"{key} '{options[key]}'"
    for key in ("add_adapter", "adapter_attn_dim"):
        if options.get(key):
            return key
    if not options.get("feat_proj_layer_norm", True):
        return "feat_proj_layer_norm false"
    channels = options.get("conv_dim", DEFAULTS["conv_dim"])
    return "conv_dim of several widths" if len(set(channels)) > 1 else None


def _preprocessor(folder: Path) -> Mapping[str, Any] | None:
    if (folder / PREPROCESSOR).is_file():
        return _read_json(folder / PREPROCESSOR)
    processor = folder / "processor_config.json"  # where newer models with a tokenizer have it
    return _read_json(processor).get("feature_extractor") if processor.is_file() else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: is missing") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged or unreadable ({str(error).splitlines()[0]})") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: holds a {type(values).__name__}; expected options by name")
    return values


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
