"""The contract of an encoder: from waveforms to hidden states, front end inside.

An encoder of ours is a module with a config; it is saved as `config.json` + `model.safetensors`, which is all that
`auricle.load` needs. Encoders that only wrap (baselines, callables) subclass too, and leave out what they cannot do.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from auricle.audio.io import Audio, as_waveform
from auricle.config import Config
from auricle.errors import AudioError, ConfigError

Pooling = Literal["mean", "meanstd"]
Layers = Literal["last", "all", "mean"] | Sequence[int]


@dataclass(frozen=True)
class Frames:
    """What an encoder returns: `hidden_states`, a list of (B, T, D), and the true frame counts `lengths` (B,).

    All layers, index 0 being what enters the first block, or those asked for, in the order asked.
    Frames at or past a clip's length are undefined.
    """

    hidden_states: list[Tensor]
    lengths: Tensor


class Encoder(nn.Module):
    """Waveforms (B, S) in [-1, 1] at `sample_rate` to hidden states, a frame every `hop` samples.

    A clip gives the same frames alone and in any batch (1e-4 in fp32); an outside encoder that cannot promise it sets
    `pads_safely = False` and is fed clips of equal length.
    """

    family: ClassVar[str]
    """Key in the table of encoder families; written into checkpoints."""
    config: Config
    name: str = ""
    """What tables call it: the path or name it was loaded by."""
    sample_rate: int
    """Hz."""
    hop: int
    """Samples between frames."""
    offset: float
    """Samples from the clip's start to the centre of frame 0."""
    dims: tuple[int, ...]
    """Channels of each layer, layer 0 first."""
    pads_safely: bool = True

    def features(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Front end: waveforms (B, S) and lengths (B,) in samples to x (B, T, F) and lengths (B,) in frames."""
        raise NotImplementedError

    def encode(self, x: Tensor, lengths: Tensor, *, layers: Sequence[int] | None = None) -> Frames:
        """Network: features (B, T, F) to hidden states of all layers, or of `layers` in that order."""
        raise NotImplementedError

    def forward(self, waveforms: Tensor, lengths: Tensor, layers: Sequence[int] | None = None) -> Frames:
        """`encode(*features(waveforms, lengths))`: the seam between the two is where methods work."""
        return self.encode(*self.features(waveforms, lengths), layers=layers)

    @property
    def device(self) -> torch.device:
        """Where the weights (or, without any, the buffers) lie."""
        tensor = next(self.parameters(), next(self.buffers(), None))
        return torch.device("cpu") if tensor is None else tensor.device

    @torch.inference_mode()
    def frames(self, audio: Audio, sample_rate: int | None = None, layers: Layers = "last") -> Tensor:
        """Frames (T, D) of one recording; `layers="all"` gives (L, T, D), `"mean"` their average.

        `audio` is a path, or samples (S,) or (channels, S) with their `sample_rate` in Hz. Raises `AudioError`.
        """
        return self._hidden(audio, sample_rate, layers)

    @torch.inference_mode()
    def clip(
        self, audio: Audio, sample_rate: int | None = None, layers: Layers = "last", pool: Pooling = "mean"
    ) -> Tensor:
        """One vector (D,) a recording: its frames' mean, or mean and standard deviation side by side (2 D,)."""
        hidden = self._hidden(audio, sample_rate, layers)
        lengths = torch.tensor([hidden.shape[-2]]).expand(hidden[..., 0, 0].numel())
        return pool_frames(hidden.reshape(-1, *hidden.shape[-2:]), lengths, pool).reshape(*hidden.shape[:-2], -1)

    def _hidden(self, audio: Audio, sample_rate: int | None, layers: Layers) -> Tensor:
        waveform = torch.from_numpy(as_waveform(audio, sample_rate, self.sample_rate)).to(self.device)
        training = self.training
        self.eval()
        try:
            out = self(
                waveform[None], torch.tensor([len(waveform)], device=self.device), choose_layers(layers, self.dims)
            )
        finally:
            self.train(training)
        count = int(out.lengths[0])
        if count < 1:
            raise AudioError(
                f"{audio if isinstance(audio, str | Path) else 'audio'}: shorter than one frame of {self.name}"
            )
        states = [state[0, :count].float().cpu() for state in out.hidden_states]
        return combine_layers(states, layers)

    def fingerprint(self) -> str:
        """Sixteen hex digits over family, config (front end included) and weights; independent of paths."""
        digest = hashlib.sha256(json.dumps([self.family, self.config.model_dump(mode="json")], sort_keys=True).encode())
        hash_tensors(digest, self.state_dict())
        return digest.hexdigest()[:16]

    def extra_repr(self) -> str:
        """Shown by `print(encoder)`."""
        return f"sample_rate={self.sample_rate}, hop={self.hop}, layers={len(self.dims)}, dim={self.dims[-1]}"


def hash_tensors(digest: hashlib._Hash, tensors: Mapping[str, Tensor]) -> None:
    """Feed names, shapes, types and bytes of tensors, in order of name, to a hashlib digest."""
    for key, value in sorted(tensors.items()):
        digest.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def choose_layers(layers: Layers, dims: tuple[int, ...]) -> list[int]:
    """Layer indices for `last`, `all`, `mean` (every layer) or a sequence; negative ones count from the end.

    Raises `ConfigError` for an index the encoder does not have.
    """
    if layers == "last":
        return [len(dims) - 1]
    if layers in ("all", "mean"):
        return list(range(len(dims)))
    chosen = [int(layer) for layer in layers]
    for layer in chosen:
        if not -len(dims) <= layer < len(dims):
            raise ConfigError(f"layers: {layer} is not among this encoder's layers 0 to {len(dims) - 1}")
    return [layer % len(dims) for layer in chosen]


def combine_layers(states: list[Tensor], layers: Layers) -> Tensor:
    """Chosen layers (each (T, D)) as one tensor: `last` (T, D), `mean` (T, D), else stacked (L, T, D)."""
    if layers == "last":
        return states[0]
    stacked = torch.stack(states)
    return stacked.mean(0) if layers == "mean" else stacked


def pool_frames(hidden: Tensor, lengths: Tensor, how: Pooling = "mean") -> Tensor:
    """Average hidden (B, T, D) over each clip's true frames: (B, D), or with `meanstd` (B, 2 D)."""
    valid = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None].to(hidden.device)
    weight = valid.float() / valid.sum(1, keepdim=True).clamp_min(1)
    hidden = hidden.float().masked_fill(~valid[:, :, None], 0.0)  # undefined frames may even be NaN
    mean = torch.einsum("btd,bt->bd", hidden, weight)
    if how == "mean":
        return mean
    variance = torch.einsum("btd,bt->bd", (hidden - mean[:, None]).square(), weight)
    return torch.cat([mean, variance.sqrt()], dim=-1)
