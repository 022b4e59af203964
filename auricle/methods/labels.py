"""Labels for the frames of a waveform network: clusters of cepstra, or of a layer of a network trained before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Self

import torch
import tyro
from pydantic import Field, model_validator
from torch import Tensor, nn

from auricle.config import Config
from auricle.data.batching import Batch
from auricle.encoders.base import Encoder
from auricle.encoders.checkpoint import load
from auricle.encoders.waveform import WaveformConfig, WaveformEncoder
from auricle.errors import ConfigError
from auricle.features.aligned import AlignedMfcc
from auricle.features.normalize import frame_mask
from auricle.nn.kmeans import Clusters, KMeansConfig


class LabelConfig(Config):
    """What the clusters are of, and how they are found."""

    kmeans: KMeansConfig = KMeansConfig()
    """The clusters, fitted to crops of the training recordings before the first step."""
    cepstra: int = Field(13, ge=1)
    """Clusters of so many Kaldi cepstra with slopes and theirs: 13 make 39 channels, 20 make 60."""
    mel_bands: int = Field(23, ge=1, le=128)
    """Mel bands that the cepstra are of: Kaldi's 23. More of both tell pitches apart."""
    quantizer: Annotated[str, tyro.conf.arg(aliases=["--quantizer"])] = ""
    """Or clusters of a layer of this trained encoder, for a second iteration: the run folder of the first, or what else
    `auricle.load` takes. The run keeps its weights: it needs the folder once."""
    quantizer_layer: Annotated[int, tyro.conf.arg(aliases=["--layer"])] = Field(0, ge=0)
    """Which of its blocks, counted from 1 (HuBERT: 6, then 9); 0: cepstra."""
    quantizer_encoder: Annotated[WaveformConfig | None, tyro.conf.Suppress] = None
    """Its config; found out, not set."""

    @model_validator(mode="before")
    @classmethod
    def _find_quantizer(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("quantizer") and not values.get("quantizer_encoder"):
            found = load(values["quantizer"])
            if not isinstance(found, WaveformEncoder):
                raise ConfigError(f"objective.quantizer: {values['quantizer']} is no encoder of waveforms")
            return {**values, "quantizer_encoder": found.config}
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.cepstra > self.mel_bands:
            raise ValueError(f"cepstra: {self.cepstra} cannot come of {self.mel_bands} mel_bands")
        if self.quantizer_encoder and not 1 <= self.quantizer_layer <= self.quantizer_encoder.layers:
            blocks = self.quantizer_encoder.layers
            raise ValueError(f"quantizer_layer: {self.quantizer_layer} is none of the blocks 1 to {blocks}")
        return self

    def check_quantizer(self) -> None:
        """Raise `ConfigError` where a layer of an earlier encoder is asked for, and none is named."""
        if self.quantizer_layer and self.quantizer_encoder is None:
            raise ConfigError("objective.quantizer: missing; name the run of the first iteration (--quantizer RUN)")

    def check_frames(self, encoder: WaveformConfig) -> None:
        """Raise `ValueError` unless the quantizer's frames are those of `encoder`."""
        for name in ("sample_rate", "kernels", "strides"):
            if self.quantizer_encoder and getattr(self.quantizer_encoder, name) != getattr(encoder, name):
                raise ValueError(
                    f"encoder.{name}: {getattr(encoder, name)} is not the quantizer's, "
                    f"{getattr(self.quantizer_encoder, name)}: their frames have to be the same"
                )


class Labels(nn.Module):
    """Features of the frames of an encoder (`quantizer`), and their `clusters`. Neither is ever trained."""

    def __init__(self, encoder: WaveformEncoder, config: LabelConfig) -> None:
        super().__init__()
        self.config = config
        config.check_quantizer()
        earlier = config.quantizer_encoder
        self.quantizer: FrozenLayer | AlignedMfcc = (
            AlignedMfcc(encoder.sample_rate, encoder.hop, encoder.convolutions.reach, config.cepstra, config.mel_bands)
            if earlier is None
            else FrozenLayer(earlier, config.quantizer_layer)
        )
        self.clusters = Clusters(self.quantizer.dim, config.kmeans)

    def fit(self, batches: Iterable[Batch]) -> None:
        """Take over the earlier encoder's weights, if there is one, and fit the clusters to as many batches as needed.

        Raises `TrainingError` where the labels would teach nothing, `ConfigError` where that encoder is another.
        """
        if isinstance(self.quantizer, FrozenLayer):
            found = load(self.config.quantizer, self.clusters.centroids.device)
            if found.config != self.config.quantizer_encoder:
                raise ConfigError(
                    f"{self.config.quantizer}: is not of the kind that objective.quantizer_encoder describes; leave "
                    "that option out, and it will be found"
                )
            self.quantizer.take(found)
        self.clusters.fit(self._described(batches))

    @torch.no_grad()
    def forward(self, batch: Batch) -> Tensor:
        """The cluster of each frame (B, T)."""
        return self.clusters(self.quantizer(batch.waveforms, batch.lengths)[0])  # type: ignore[no-any-return]

    @torch.no_grad()
    def _described(self, batches: Iterable[Batch]) -> Iterator[Tensor]:
        """The true frames (n, D) of each batch."""
        for batch in batches:
            x, frames = self.quantizer(batch.waveforms, batch.lengths)
            yield x[frame_mask(x, frames)[..., 0]]


class FrozenLayer(nn.Module):
    """The first `layer` blocks (counted from 1) of an encoder, without those above: never trained, without dropout."""

    def __init__(self, config: WaveformConfig, layer: int) -> None:
        super().__init__()
        self.encoder, self.layer, self.dim = WaveformEncoder(config), layer, config.dim
        transformer = self.encoder.context.transformer
        transformer.blocks = transformer.blocks[:layer]
        if layer < config.layers:
            transformer.final_norm = nn.Identity()  # it follows the last block
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Evaluation mode, whatever is asked."""
        return super().train(False)

    def take(self, encoder: Encoder) -> None:
        """Copy the weights of the whole encoder, which has the config given."""
        weights = encoder.state_dict()
        self.encoder.load_state_dict({name: weights[name] for name in self.encoder.state_dict()})

    @torch.no_grad()
    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms (B, S) and samples (B,) to the layer's frames (B, T, D), float32, and their numbers (B,)."""
        found = self.encoder(waveforms, lengths, layers=[self.layer])
        return found.hidden_states[0].float(), found.lengths
