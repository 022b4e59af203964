"""Our encoders out through the HEAR API: give `auricle.hear` to any kit that takes such a module.

    model = auricle.hear.load_model("runs/mockingjay")           # or any other name that `auricle.load` takes
    scenes = auricle.hear.get_scene_embeddings(audio, model)     # (B, D) of audio (B, S) at model.sample_rate
    frames, times = auricle.hear.get_timestamp_embeddings(audio, model)  # (B, T, D); (B, T), centres in milliseconds

HEAR's own kit passes options as `--model-options '{"layers": "mean"}'`.
"""

from __future__ import annotations

import hashlib
import logging

import torch
from torch import Tensor, nn

from auricle.encoders.base import Layers, Pooling, choose_layers, pool_stretches
from auricle.encoders.checkpoint import load
from auricle.encoders.hear import RATES
from auricle.errors import AudioError, ConfigError

log = logging.getLogger("auricle")


class Model(nn.Module):
    """An encoder with what the API asks of a model."""

    def __init__(self, name: str, layers: Layers = "last", pool: Pooling = "mean") -> None:
        super().__init__()
        self.encoder, self.layers, self.pool = load(name), layers, pool
        chosen = choose_layers(layers, self.encoder.dims, self.encoder.outputs)
        self.sample_rate = self.encoder.sample_rate
        """Hz, of the audio that it is given."""
        dims = [self.encoder.dims[layer] for layer in chosen]
        self.timestamp_embedding_size = dims[0] if layers == "mean" else sum(dims)
        self.scene_embedding_size = self.timestamp_embedding_size * (2 if pool == "meanstd" else 1)
        if self.sample_rate not in RATES:
            log.warning("%s: takes %d Hz, at which HEAR's tasks are not kept", name, self.sample_rate)

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits over the encoder and what is taken of it."""
        parts = f"{self.encoder.fingerprint()} {self.layers} {self.pool}"
        return hashlib.sha256(parts.encode()).hexdigest()[:16]


def load_model(model_file_path: str = "", *, layers: Layers = "last", pool: Pooling = "mean") -> Model:
    """The model of an encoder by any name that `auricle.load` takes, in evaluation mode on the CPU.

    `layers` are a word (`last`, `mean`, `all`), the name of an output, or numbers; several are laid side by side.
    `pool` makes frames a scene. Raises `ConfigError` without a name, and what `auricle.load` raises.
    """
    if not model_file_path:
        raise ConfigError(
            "auricle.hear: load_model needs a run folder, or another name of an encoder (hear:auricle.hear:RUN)"
        )
    return Model(model_file_path, layers, pool).eval()


@torch.no_grad()
def get_scene_embeddings(audio: Tensor, model: Model) -> Tensor:
    """Embeddings (B, D) float32 of audio (B, S) in [-1, 1] at the model's rate: the mean of its frames.

    Raises `AudioError` for audio shorter than one frame.
    """
    pooled, counts = pool_stretches(model.encoder.chosen(audio, _lengths(audio), model.layers), len(audio), model.pool)
    _refuse_short(int(counts.min()), model)
    return torch.cat(pooled, 1).to(audio.device)


@torch.no_grad()
def get_timestamp_embeddings(audio: Tensor, model: Model) -> tuple[Tensor, Tensor]:
    """Frames (B, T, D) float32 of audio (B, S), and their centres (B, T) in milliseconds from the start.

    Raises `AudioError` for audio shorter than one frame.
    """
    parts: list[list[Tensor]] = [[] for _ in audio]
    for rows, frames in model.encoder.chosen(audio, _lengths(audio), model.layers):
        for row, count, states in zip(
            rows.tolist(), frames.lengths.tolist(), torch.cat(frames.hidden_states, 2), strict=True
        ):
            parts[row].append(states[:count])
    embeddings = torch.stack([torch.cat(part) for part in parts])
    _refuse_short(embeddings.shape[1], model)
    encoder = model.encoder
    samples = encoder.offset + encoder.hop * torch.arange(embeddings.shape[1], dtype=torch.float64)
    times = (samples * (1000 / encoder.sample_rate)).float().to(audio.device)
    return embeddings, times.expand(len(audio), -1)


def _lengths(audio: Tensor) -> Tensor:
    return torch.full((len(audio),), audio.shape[1], device=audio.device)


def _refuse_short(frames: int, model: Model) -> None:
    if not frames:
        raise AudioError(f"audio: shorter than one frame of {model.encoder.name}")
