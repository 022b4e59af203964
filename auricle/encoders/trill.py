"""TRILL's encoder: log-mel patches of 0.96 s through a residual network, or through MobileNet (its distilled form).

Shor et al. 2020, "Towards Learning a Universal Non-Semantic Representation of Speech" (arXiv:2002.12764). The front end
is that of their released code (`tf_frontend.py`); of the network they publish its kind (a ResNet-50 with the stem of
Hershey et al. 2017), a 512-channel `embedding`, and a `layer19` of 12288 = 6 x 4 x 512 channels, the last 512-channel
convolution before its ReLU. Where exactly that lies in the block, the normalisation, and the order within a flattened
`layer19` (time, frequency, channel) are ours; the whole has 24.55 M weights, theirs 98.1 MB in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import MappingProxyType
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from auricle.config import Config
from auricle.encoders.base import Encoder, Frames, Stretch
from auricle.features.frontend import FrontEnd, FrontEndConfig
from auricle.features.spectrum import exporting
from auricle.nn.linear import Linear
from auricle.nn.mobilenet import MobileNet
from auricle.nn.resnet import EXPANSION, STRIDE, Resnetish

BANDS = 4
"""Of the early layers, in frequency: as many as `layer19` tells apart."""
_PATCHES_AT_ONCE = 64
"""Patches that go through the network together in evaluation mode; bounds memory."""


class TrillConfig(Config):
    """Front end, patches and network. The defaults are the published TRILL."""

    front_end: FrontEndConfig = FrontEndConfig(
        kind="stft",
        n_mels=64,
        n_fft=512,
        low_hz=125.0,
        high_hz=7500.0,
        mel_scale="kaldi",
        power=1,
        log_floor=1e-3,
        centred=False,
        normalize="none",
    )
    """ln(mel + 0.001) of magnitudes under 64 triangles from 125 to 7500 Hz, 25 ms (in an FFT of 512) every 10 ms. Their
    floor of 1e-12 under mel cannot be told from 0 beside 0.001 in float32."""
    min_samples: int = Field(16000, ge=1)
    """Shorter clips are continued with zeros to this length."""
    patch_frames: int = Field(96, ge=16)
    """Frames of a patch: 0.96 s."""
    patch_hop: int = Field(17, ge=1)
    """Frames from one patch to the next, 170 ms in the released code; VGGish has 96. Only whole patches count."""
    network: Literal["resnetish", "mobilenet"] = "resnetish"
    """`resnetish`: TRILL's, with outputs `layer19` and `embedding`; `mobilenet`: the distilled one's, MobileNetV3-Small
    with output `embedding`."""
    width: int = Field(64, ge=8, multiple_of=8)
    """`resnetish`: channels of the stem, an eighth of `layer19`'s depth."""
    blocks: tuple[int, int, int, int] = (3, 4, 6, 3)
    """`resnetish`: bottleneck blocks of each stage; (3, 4, 6, 3) is ResNet-50."""
    alpha: float = Field(1.0, gt=0, le=4)
    """`mobilenet`: factor on all its widths."""
    embedding: int = Field(512, ge=1)
    """Channels of `embedding`: 512 in TRILL, 2048 in the distilled one."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if min(self.blocks) < 1:
            raise ValueError(f"blocks: every stage needs at least one, got {self.blocks}")
        if self.min_samples < self.patch_samples:
            raise ValueError(
                f"min_samples: {self.min_samples} is shorter than a patch of {self.patch_samples} samples; raise it "
                "or shorten patch_frames"
            )
        return self

    @property
    def patch_samples(self) -> int:
        """Samples that a patch sees."""
        return (self.patch_frames - 1) * self.front_end.hop_size + self.front_end.window_size


class Trill(Encoder):
    """A frame for each patch: its log-mel picture through a network that knows nothing of the other patches.

    Layer 0 is the stem's output and layers 1 to 3 those of the first stages, averaged over the patch's time and within
    four bands (ours, for probes); then come `layer19` and `embedding`. `mobilenet` has `embedding` alone.
    """

    family: ClassVar[str] = "trill"
    config: TrillConfig

    def __init__(self, config: TrillConfig) -> None:
        super().__init__()
        self.config = config
        self.front_end = FrontEnd(config.front_end)
        self.sample_rate = self.front_end.sample_rate
        self.hop = config.patch_hop * self.front_end.hop
        self.offset = self.front_end.offset + (config.patch_frames - 1) * self.front_end.hop / 2
        self.network: Resnetish | MobileNet
        if config.network == "resnetish":
            self.network = Resnetish(config.width, config.blocks)
            *early, last = self.network.channels
            cells = -(-config.patch_frames // STRIDE) * -(-self.front_end.dim // STRIDE)
            self.dims: tuple[int, ...] = (
                *(BANDS * channels for channels in early),
                cells * last // EXPANSION,
                config.embedding,
            )
            self.outputs = MappingProxyType({"layer19": len(early), "embedding": len(early) + 1})
        else:
            self.network = MobileNet(config.alpha)
            last = self.network.channels
            self.dims = (config.embedding,)
            self.outputs = MappingProxyType({"embedding": 0})
        self.project = Linear(last, config.embedding)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # several times faster

    def features(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Log-mel frames (B, T, 64) of waveforms (B, S) and their numbers; a clip of no samples has none."""
        least = self.config.min_samples
        waveforms = F.pad(waveforms, (0, max(0, least - waveforms.shape[1])))
        return self.front_end(waveforms, torch.where(lengths > 0, lengths.clamp_min(least), 0))  # type: ignore[no-any-return]

    def encode(self, x: Tensor, lengths: Tensor, *, layers: Sequence[int] | None = None) -> Frames:
        """Hidden states (B, P, D) of the P patches of log-mel x (B, T, 64).

        Patches that reach into padding are not computed, except on a GPU in training (and by `torch.compile`), where
        the host does not know them.
        """
        layers = range(len(self.dims)) if layers is None else layers
        patches, counts = self._patches(x, lengths)
        batch, most = patches.shape[:2]
        if torch.compiler.is_compiling() or (self.training and x.device.type != "cpu"):
            states = self._embed(patches.flatten(0, 1), layers)
            return Frames([state.view(batch, most, -1) for state in states], counts)
        true = torch.arange(most, device=x.device) < counts[:, None]  # (B, P)
        found = self._embed(patches[true], layers)
        states = [state.new_zeros(batch, most, state.shape[1]) for state in found]
        for state, rows in zip(states, found, strict=True):
            state[true] = rows
        return Frames(states, counts)

    def stretches(self, waveforms: Tensor, lengths: Tensor, layers: Sequence[int] | None = None) -> Iterator[Stretch]:
        """What `forward` returns, in turn; a long clip's patches some at a time, so that memory stays bounded."""
        x, lengths = self.features(waveforms, lengths)
        patches, counts = self._patches(x, lengths)
        if patches.shape[1] <= _PATCHES_AT_ONCE:
            yield torch.arange(len(x)), self.encode(x, lengths, layers=layers)
            return
        layers = range(len(self.dims)) if layers is None else layers
        for clip, count in enumerate(counts.tolist()):
            for part in torch.split(patches[clip, :count], _PATCHES_AT_ONCE):
                states = [state[None] for state in self._embed(part, layers)]
                yield torch.tensor([clip]), Frames(states, torch.tensor([len(part)]))

    def _patches(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, T, F) as overlapping patches (B, P, patch_frames, F), a view, and the true number of each clip (B,)."""
        size, hop = self.config.patch_frames, self.config.patch_hop
        patches = x.unfold(1, size, hop).transpose(2, 3)
        return patches, ((lengths - size) // hop + 1).clamp_min(0)

    def _embed(self, patches: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """The outputs `layers` of patches (N, patch_frames, F), each (N, D); in evaluation mode in bounded groups."""
        together = self.training or exporting()
        groups = [patches] if together else torch.split(patches, _PATCHES_AT_ONCE)
        states = [self._outputs(group[:, None], layers) for group in groups]
        return [torch.cat(parts) for parts in zip(*states, strict=True)]

    def _outputs(self, x: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """The outputs `layers` of patches (N, 1, patch_frames, F), each (N, D)."""
        x = x.contiguous(memory_format=torch.channels_last)
        if isinstance(self.network, MobileNet):
            embedding = self.project(self.network(x).mean((2, 3)))
            return [embedding for _ in layers]
        stages, inner = self.network(x)
        makers: list[Callable[[], Tensor]] = [partial(_in_bands, stage) for stage in stages[:-1]]
        makers += [partial(_flat, inner), lambda: self.project(stages[-1].mean((2, 3)))]
        return [makers[layer]() for layer in layers]


def _in_bands(x: Tensor) -> Tensor:
    """Channels (N, C, H, W) averaged over time and within `BANDS` bands: (N, BANDS C)."""
    return _flat(F.adaptive_avg_pool2d(x, (1, BANDS)))


def _flat(x: Tensor) -> Tensor:
    """(N, C, H, W) to (N, H W C): time, frequency, channel."""
    return x.permute(0, 2, 3, 1).flatten(1)
