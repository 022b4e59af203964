"""The contract of an encoder: from waveforms to hidden states, front end inside.

An encoder of ours is a module with a config; it is saved as `config.json` + `model.safetensors`, which is all that
`auricle.load` needs. Encoders that only wrap (baselines, callables) subclass too, and leave out what they cannot do.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from auricle.audio.io import Audio, as_waveform
from auricle.config import Config
from auricle.errors import AudioError, CheckpointError, ConfigError, unknown

Pooling = Literal["mean", "meanstd"]
Layers = str | Sequence[int]
"""`last`, `all`, `mean` (the average of all), the name of one of the encoder's `outputs`, or layer numbers."""
WORDS = ("last", "all", "mean")


@dataclass(frozen=True)
class Frames:
    """What an encoder returns: `hidden_states`, a list of (B, T, D), and the true frame counts `lengths` (B,).

    All layers, index 0 being what enters the first block, or those asked for, in the order asked.
    Frames at or past a clip's length are undefined.
    """

    hidden_states: list[Tensor]
    lengths: Tensor


Stretch: TypeAlias = tuple[Tensor, Frames]
"""Row numbers (b,), on the CPU, of clips in a batch, and the next frames of each."""


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
    supervision: str = ""
    """What told its training who talks, where its method can be told: `none` or a kind of labels; "": not stated."""
    sample_rate: int
    """Hz."""
    hop: int
    """Samples between frames."""
    offset: float
    """Samples from the clip's start to the centre of frame 0."""
    dims: tuple[int, ...]
    """Channels of each layer, layer 0 first."""
    outputs: Mapping[str, int] = MappingProxyType({})
    """Layers known by a name of their own (TRILL's `layer19`), wherever layers are asked for: name → layer number."""
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

    def compile_networks(self) -> None:
        """Put under `torch.compile` what takes the time: `encode`, unless an encoder says more.

        Batches differ in shape, and exact resume wants one graph for them all: `dynamic=True`.
        """
        self.encode = torch.compile(self.encode, dynamic=True)  # type: ignore[method-assign]

    @property
    def has_streams(self) -> bool:
        """Whether the encoder tells talkers apart: whether it has `streams`."""
        return type(self).streams is not Encoder.streams

    def streams(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """The talkers in mixtures (B, S) of `lengths` (B,) samples: C unit vectors each, (B, C, E), in no order.

        Optional: most encoders give a clip one embedding, and raise `NotImplementedError`.
        """
        raise NotImplementedError(f"{self.name or self.family} does not tell talkers apart")

    def attention_entropy(self, frames: Frames) -> Tensor | None:
        """How widely attention looks, given `frames` of all layers: () from 0 (one frame) to 1 (all frames alike).

        The entropy of its weights over the logarithm of the clip's frames, averaged over clips, frames, heads and
        layers; None for an encoder without attention.
        """
        return None

    def stretches(self, waveforms: Tensor, lengths: Tensor, layers: Sequence[int] | None = None) -> Iterator[Stretch]:
        """What `forward` returns, in turn; all at once here.

        An encoder that takes long clips window by window yields the frames of each as they come, so that nobody who
        wants a clip's mean alone has to hold hours of frames.
        """
        yield torch.arange(len(waveforms)), self(waveforms, lengths, layers)

    def chosen(self, waveforms: Tensor, lengths: Tensor, layers: Layers) -> Iterator[Stretch]:
        """`stretches` of the layers asked for by word or number, in float32; `mean` makes them one.

        Raises `ConfigError` for a layer that is not there.
        """
        for rows, frames in self.stretches(waveforms, lengths, choose_layers(layers, self.dims, self.outputs)):
            states = [state.float() for state in frames.hidden_states]
            yield rows, Frames([torch.stack(states).mean(0)] if layers == "mean" else states, frames.lengths)

    def depths(self) -> dict[str, int]:
        """How deep each weight lies, by name: 0 before the first block, then the number of its block, 1 to the last.

        Fine-tuning trains the deepest alone, or lets rates fall with the distance from them. Told by names with
        `blocks.N.` or `grus.N.`, and what follows the last block belongs to it; an encoder built otherwise overrides.
        """
        depths, depth = {}, 0
        for name, _ in self.named_parameters():
            block = re.search(r"\b(?:blocks|grus)\.(\d+)\.", name)
            depth = int(block[1]) + 1 if block else depth
            depths[name] = depth
        return depths

    @property
    def device(self) -> torch.device:
        """Where the weights (or, without any, the buffers) lie."""
        tensor = next(self.parameters(), next(self.buffers(), None))
        return torch.device("cpu") if tensor is None else tensor.device

    @torch.inference_mode()
    def frames(self, audio: Audio, sample_rate: int | None = None, layers: Layers = "last") -> Tensor:
        """Frames (T, D) of one recording, of the last layer, their `mean` or a named output; else (L, T, D).

        `audio` is a path, or samples (S,) or (channels, S) with their `sample_rate` in Hz. Raises `AudioError`,
        and `ConfigError` for layers that are not there, or that do not stack because their widths differ.
        """
        return self._one(audio, sample_rate, layers, lambda stretches: join_stretches(stretches, 1))

    @torch.inference_mode()
    def clip(
        self, audio: Audio, sample_rate: int | None = None, layers: Layers = "last", pool: Pooling = "mean"
    ) -> Tensor:
        """One vector (D,) a recording: its frames' mean, or mean and standard deviation side by side (2 D,)."""
        return self._one(audio, sample_rate, layers, lambda stretches: pool_stretches(stretches, 1, pool))

    def _one(
        self,
        audio: Audio,
        sample_rate: int | None,
        layers: Layers,
        gather: Callable[[Iterator[Stretch]], tuple[Sequence[Any], Tensor]],
    ) -> Tensor:
        waveform = torch.from_numpy(as_waveform(audio, sample_rate, self.sample_rate)).to(self.device)
        training = self.training
        self.eval()
        try:
            length = torch.tensor([len(waveform)], device=self.device)
            states, counts = gather(self.chosen(waveform[None], length, layers))
        finally:
            self.train(training)
        if not counts[0]:
            raise AudioError(
                f"{audio if isinstance(audio, str | Path) else 'audio'}: shorter than one frame of {self.name}"
            )
        chosen = [torch.as_tensor(state[0]) for state in states]
        if is_single(layers):
            return chosen[0]
        if len({state.shape[-1] for state in chosen}) > 1:
            raise ConfigError(
                f"layers: those asked for have widths {[s.shape[-1] for s in chosen]}; ask for one a time"
            )
        return torch.stack(chosen)

    def fingerprint(self) -> str:
        """Sixteen hex digits over family, config (front end included) and weights; independent of paths."""
        digest = hashlib.sha256(json.dumps([self.family, self.config.model_dump(mode="json")], sort_keys=True).encode())
        hash_tensors(digest, self.state_dict())
        return digest.hexdigest()[:16]

    def save_pretrained(self, folder: Path | str) -> None:
        """Write `config.json` and `model.safetensors`: what `auricle.load` and `from_pretrained` read.

        Raises `CheckpointError` for an encoder that is somebody else's code.
        """
        from auricle.encoders.checkpoint import save  # which imports this module

        save(self, folder)

    @classmethod
    def from_pretrained(cls, name: Path | str, device: torch.device | str = "cpu") -> Self:
        """The encoder in a folder, or in the Hub's repository `user/name`; of this class or one derived from it.

        Raises `CheckpointError`, also for an encoder of another class.
        """
        from auricle.encoders.checkpoint import load

        encoder = load(f"hf:{name}", device)
        if not isinstance(encoder, cls):
            raise CheckpointError(f"{name}: holds a {type(encoder).__name__}, not a {cls.__name__}")
        return encoder

    def push_to_hub(self, repository: str, *, private: bool = False) -> str:
        """Save the encoder, with a card, as the Hub's repository `user/name`; returns its address.

        Raises `CheckpointError` when the Hub refuses or cannot be reached.
        """
        from auricle.encoders.hub import push

        return push(self, repository, private=private)

    def extra_repr(self) -> str:
        """Shown by `print(encoder)`."""
        return f"sample_rate={self.sample_rate}, hop={self.hop}, layers={len(self.dims)}, dim={self.dims[-1]}"


def hash_tensors(digest: hashlib._Hash, tensors: Mapping[str, Tensor]) -> None:
    """Feed names, shapes, types and bytes of tensors, in order of name, to a hashlib digest."""
    for key, value in sorted(tensors.items()):
        digest.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def is_single(layers: Layers) -> bool:
    """Whether `layers` asks for one result a frame, by a word or a name, rather than for several side by side."""
    return isinstance(layers, str) and layers != "all"


def choose_layers(
    layers: Layers, dims: tuple[int, ...], outputs: Mapping[str, int] = MappingProxyType({})
) -> list[int]:
    """Layer indices for `last`, `all`, `mean` (every layer), a name in `outputs`, or a sequence.

    Negative numbers count from the end. Raises `ConfigError` for a layer the encoder does not have, and for the mean
    of layers of several widths.
    """
    if isinstance(layers, str):
        if layers in outputs:
            return [outputs[layers]]
        if layers not in WORDS:
            raise ConfigError(f"layers: {unknown('output', layers, [*outputs, *WORDS])}, or layer numbers")
        if layers == "mean" and len(set(dims)) > 1:
            raise ConfigError(f"layers: this encoder's have widths {list(dims)}, which have no mean")
        return [len(dims) - 1] if layers == "last" else list(range(len(dims)))
    chosen = [int(layer) for layer in layers]
    for layer in chosen:
        if not -len(dims) <= layer < len(dims):
            raise ConfigError(f"layers: {layer} is not among this encoder's layers 0 to {len(dims) - 1}")
    return [layer % len(dims) for layer in chosen]


def join_stretches(stretches: Iterable[Stretch], clips: int) -> tuple[list[list[NDArray[np.float32]]], Tensor]:
    """All true frames: for each layer the (T, D) of B `clips`, on the CPU; and frame counts (B,)."""
    joined: list[list[NDArray[np.float32]]] = []
    counts = torch.zeros(clips, dtype=torch.int64)
    for rows, frames in stretches:
        lengths = frames.lengths.cpu().clamp_min(0)
        before, counts = counts[rows].tolist(), counts.index_add(0, rows, lengths)
        for layer, state in enumerate(frames.hidden_states):
            if layer == len(joined):
                joined.append([np.zeros((0, state.shape[2]), np.float32)] * clips)
            parts = zip(rows.tolist(), before, state.cpu().numpy(), lengths.tolist(), strict=True)
            for row, start, part, length in parts:
                if start and length:
                    joined[layer][row] = _extended(joined[layer][row], part[:length])
                elif length:
                    joined[layer][row] = part[:length]
    return joined, counts


def _extended(frames: NDArray[np.float32], more: NDArray[np.float32]) -> NDArray[np.float32]:
    """(T, D) and (t, D) as (T + t, D). An array of our own grows in place: hours of frames are never held twice."""
    if frames.base is not None:
        return np.concatenate([frames, more])
    frames.resize((len(frames) + len(more), more.shape[1]), refcheck=False)
    frames[len(frames) - len(more) :] = more
    return frames


def pool_stretches(stretches: Iterable[Stretch], clips: int, how: Pooling = "mean") -> tuple[list[Tensor], Tensor]:
    """`pool_frames` over all stretches: for each layer B `clips` (B, D), or (B, 2 D), on the CPU; frame counts (B,)."""
    counts = torch.zeros(clips, dtype=torch.int64)
    means: list[Tensor] = []
    squares: list[Tensor] = []  # summed distances from the mean; updated as Chan, Golub and LeVeque (1979) do
    for rows, frames in stretches:
        # In place: what a stretch leaves behind in memory would keep the heap from shrinking, hour after hour.
        lengths = frames.lengths.cpu().clamp_min(0)
        before, counts = counts[rows], counts.index_add(0, rows, lengths)
        share = (lengths.double() / counts[rows].clamp_min(1))[:, None]
        for layer, state in enumerate(frames.hidden_states):
            mean, *std = (
                pool_frames(state, frames.lengths, how).cpu().double().chunk(2 if how == "meanstd" else 1, dim=1)
            )
            if layer == len(means):
                means.append(torch.zeros(clips, mean.shape[1], dtype=torch.float64))
                squares.append(torch.zeros_like(means[layer]))
            shift = mean - means[layer][rows]
            means[layer].index_add_(0, rows, shift * share)
            if std:
                squares[layer].index_add_(
                    0, rows, std[0].square() * lengths[:, None] + shift.square() * share * before[:, None]
                )
    if how == "mean":
        return [mean.float() for mean in means], counts
    variances = [square / counts.clamp_min(1)[:, None] for square in squares]
    return [torch.cat([mean, var.sqrt()], 1).float() for mean, var in zip(means, variances, strict=True)], counts


def pool_frames(hidden: Tensor, lengths: Tensor, how: Pooling = "mean") -> Tensor:
    """Average hidden (B, T, D) over each clip's true frames: (B, D), or with `meanstd` (B, 2 D)."""
    valid = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None].to(hidden.device)
    weight = valid.float() / valid.sum(1, keepdim=True).clamp_min(1)
    hidden = hidden.float().masked_fill(~valid[:, :, None], 0.0)  # undefined frames may even be NaN
    with torch.autocast(hidden.device.type, enabled=False):  # it would round the frames, and the weights, to bfloat16
        mean = torch.einsum("btd,bt->bd", hidden, weight)
        if how == "mean":
            return mean
        variance = torch.einsum("btd,bt->bd", (hidden - mean[:, None]).square(), weight)
    return torch.cat([mean, variance.sqrt()], dim=-1)
