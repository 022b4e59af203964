"""HuBERT: hide spans of a waveform's frames, tell the clusters that they were of (Hsu et al. 2021, arXiv:2106.07447).

The clusters are those of cepstra at first, then of a layer of the network that has learned them. musicHuBERT (Ma et al.
2023, arXiv:2307.05161) does it with music. fairseq, the authors' code, was read; what is said of papers is recalled.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import ClassVar, NamedTuple, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from auricle.config import edit
from auricle.data.batching import Batch, DataNeeds
from auricle.encoders.waveform import WaveformConfig, WaveformEncoder
from auricle.features.fbank import KaldiFbank
from auricle.features.normalize import frame_mask
from auricle.methods.base import Method, RunConfig, Step
from auricle.methods.labels import LabelConfig, Labels
from auricle.nn.gradients import scale_gradient
from auricle.nn.linear import Linear
from auricle.nn.masking import SpanMaskConfig, kept_layers, masked_positions, most_masked, span_mask
from auricle.nn.patches import gather_tokens


class HubertConfig(LabelConfig):
    """What is hidden, which clusters have to be told, and how. The defaults are fairseq's for BASE."""

    crop_s: float = Field(15.625, gt=0)
    """Longest crop, seconds: 250000 samples."""
    min_s: float = Field(2.0, ge=0)
    """Shorter clips are left out, seconds."""
    mask: SpanMaskConfig = SpanMaskConfig(probability=0.8, min_spans=2)
    """Frames to hide. (fairseq also equalises their number over the batch: `equalize: fairseq`.)"""
    layer_drop: float = Field(0.05, ge=0, lt=1)
    """Probability that a step passes a block by."""
    gradient_scale: float = Field(0.1, gt=0)
    """Factor on what the convolutions get of the gradient."""
    penalty: float = Field(10.0, ge=0)
    """Weight of the mean square of the convolutions' output."""
    masked_weight: float = Field(1.0, gt=0)
    """Weight of hidden frames in the loss."""
    unmasked_weight: float = Field(0.0, ge=0)
    """Weight of the others; at 0 nothing is computed for them."""
    temperature: float = Field(0.1, gt=0)
    """Cosines are divided by it."""
    head_dim: int = Field(256, ge=1)
    """Channels in which frames and clusters are compared."""


class _Guess(NamedTuple):
    """A batch's frames, of which N a clip are asked for."""

    labels: Tensor  # (B, T)
    frames: Tensor  # (B,): true ones
    mask: Tensor  # (B, T): hidden ones
    asked: Tensor  # (B, N): where the N are
    valid: Tensor  # (B, N)
    logits: Tensor  # (B, N, K), float32
    penalty: Tensor  # (): mean square of the convolutions' output


class Hubert(Method):
    """Encoder, head, an embedding for each cluster; and the labels."""

    encoder: WaveformEncoder
    step: Tensor

    def __init__(self, encoder: WaveformConfig, objective: HubertConfig) -> None:
        super().__init__()
        self.encoder = WaveformEncoder(encoder)
        self.config = objective
        self.needs = DataNeeds(
            encoder.sample_rate, crop_s=objective.crop_s, min_s=objective.min_s, align=self.encoder.hop
        )
        self.labels = Labels(self.encoder, objective)
        self.head = Linear(encoder.dim, objective.head_dim)
        self.embeddings = nn.Parameter(torch.rand(objective.kmeans.clusters, objective.head_dim))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Fit the clusters. Raises as `Labels.fit` does."""
        self.labels.fit(batches)

    def forward(self, batch: Batch) -> Step:
        """Cross-entropy of the labels of hidden frames, and the penalty; `count` is the number of frames asked for.

        `trivial` foretells each label by its frequency in training data.
        """
        config, guess = self.config, self._guess(batch)
        labels, hidden = guess.labels.gather(1, guess.asked), guess.mask.gather(1, guess.asked)
        weight = torch.where(hidden, config.masked_weight, config.unmasked_weight) * guess.valid
        count = guess.valid.sum().float()
        entropy = F.cross_entropy(guess.logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(weight)
        loss = (entropy * weight).sum() / count.clamp_min(1) + config.penalty * guess.penalty
        metrics = {"penalty": guess.penalty, "masked": guess.mask.sum() / guess.frames.sum().clamp_min(1)}
        right = guess.logits.argmax(2) == labels
        for name, kind in {"masked": hidden, "unmasked": ~hidden}.items():
            if name == "masked" or config.unmasked_weight:
                chosen = kind & guess.valid
                metrics[f"{name}_accuracy"] = (right & chosen).sum() / chosen.sum().clamp_min(1)
        if not self.training:
            metrics["trivial"] = (self.labels.clusters.surprise(labels) * weight).sum() / count.clamp_min(1)
        return Step(loss, count, metrics)

    def on_optimizer_step(self, step: int) -> None:
        """Count the steps, for layer drop."""
        self.step.fill_(step)

    @torch.no_grad()
    def visualize(self, batch: Batch) -> dict[str, Tensor]:
        """Of the first clip, from 0 to 1: `log_mel` (T, 80), its `labels` (T, K), halved where they are not hidden, and
        the `probability` (T, K) of each label. Clusters stand in the order of their centroids' first channel."""
        guess = self._guess(replace(batch, waveforms=batch.waveforms[:1], lengths=batch.lengths[:1]), everywhere=True)
        frames, order = int(guess.frames[0]), self.labels.clusters.centroids[:, 0].argsort()
        reach, hop = self.encoder.convolutions.reach, self.encoder.hop
        fbank = KaldiFbank(self.needs.sample_rate, window_size=reach, hop=hop).to(self.encoder.device)
        mel = fbank(batch.waveforms[:1], batch.lengths[:1])[0][0, :frames]
        labels = F.one_hot(guess.labels[0, :frames], len(order)) * (0.5 + 0.5 * guess.mask[0, :frames, None])
        pictures = {"log_mel": (mel - mel.amin()) / (mel.amax() - mel.amin()).clamp_min(1e-9)}
        pictures |= {"labels": labels[:, order], "probability": guess.logits[0, :frames].softmax(1)[:, order]}
        return {name: picture.float().cpu() for name, picture in pictures.items()}

    def _guess(self, batch: Batch, everywhere: bool = False) -> _Guess:
        """Labels of all frames, and logits of those that the loss asks for, or of all."""
        config, encoder = self.config, self.encoder
        x, frames = encoder.features(batch.waveforms, batch.lengths)  # (B, T, C)
        x = scale_gradient(x, config.gradient_scale)
        true = frame_mask(x, frames)
        penalty = torch.where(true, x.float(), 0).square().sum() / (true.sum() * x.shape[2]).clamp_min(1)
        mask, total = span_mask(frames, x.shape[1], config.mask), x.shape[1]
        everywhere = everywhere or config.unmasked_weight > 0
        index, valid = masked_positions(
            true[..., 0] if everywhere else mask, total if everywhere else most_masked(total, config.mask)
        )
        keep = None
        if self.training and config.layer_drop:
            keep = kept_layers(encoder.config.layers, config.layer_drop, batch.seed, self.step, x.device)
        states = encoder.encode(x, frames, layers=[encoder.config.layers], mask=mask, keep=keep).hidden_states[0]
        said = self.head(gather_tokens(states, index))  # (B, N, head_dim)
        with torch.autocast(x.device.type, enabled=False):
            cosines = F.normalize(said.float(), dim=-1) @ F.normalize(self.embeddings.float(), dim=-1).T
        return _Guess(self.labels(batch), frames, mask, index, valid, cosines / config.temperature, penalty)


class HubertRun(RunConfig):
    """A HuBERT or musicHuBERT run."""

    method: ClassVar[str] = "hubert"
    preset: str = "hubert_base"
    encoder: WaveformConfig = WaveformConfig()
    objective: HubertConfig = HubertConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.objective.check_frames(self.encoder)
        return self

    def check_ready(self) -> None:
        """Raise `ConfigError` for a second iteration without a first."""
        self.objective.check_quantizer()

    def build(self) -> Hubert:
        """The method with fresh weights; an earlier encoder's come with `prepare`."""
        return Hubert(self.encoder, self.objective)


ADAM = {"lr": 5e-4, "warmup": 0.08, "betas": (0.9, 0.98), "eps": 1e-6, "clip_norm": 10.0}


def hubert_base() -> HubertRun:
    """HuBERT BASE, first iteration: 100 clusters of MFCC, 47 minutes of speech a step, 250000 steps."""
    return edit(
        HubertRun(preset="hubert_base"),
        objective={"kmeans": {"clusters": 100}},
        data={"batch_seconds": 87.5},
        train={**ADAM, "steps": 250_000, "accumulate": 32, "checkpoint_every": 5000},
    )


def hubert_base_iter2() -> HubertRun:
    """HuBERT BASE, second iteration: 500 clusters of block 6 of the first (--quantizer RUN), 400000 steps."""
    second = {"kmeans": {"clusters": 500}, "quantizer_layer": 6}
    return edit(hubert_base(), preset="hubert_base_iter2", objective=second, train={"steps": 400_000})


def musichubert_k500() -> HubertRun:
    """musicHuBERT: 500 clusters of 39 MFCC channels, 400000 steps."""
    clusters = {"kmeans": {"clusters": 500}}
    return edit(hubert_base(), preset="musichubert_k500", objective=clusters, train={"steps": 400_000})


def musichubert_k500_mfcc60() -> HubertRun:
    """musicHuBERT: 500 clusters of 60 MFCC channels."""
    return edit(musichubert_k500(), preset="musichubert_k500_mfcc60", objective={"cepstra": 20})


def musichubert_k2000_iter1() -> HubertRun:
    """musicHuBERT: 2000 clusters of MFCC."""
    return edit(musichubert_k500(), preset="musichubert_k2000_iter1", objective={"kmeans": {"clusters": 2000}})


def musichubert_k2000_iter2() -> HubertRun:
    """musicHuBERT: 2000 clusters of block 6 of the first iteration (--quantizer RUN)."""
    return edit(musichubert_k2000_iter1(), preset="musichubert_k2000_iter2", objective={"quantizer_layer": 6})


def hubert_tiny() -> HubertRun:
    """3 pre-norm layers of 192 behind 64 convolution channels, 100 clusters of MFCC, for two CPU cores: minutes.

    Small batches, because minutes hold few steps; frames in the open count too, from which the convolutions learn fast.
    """
    network = {"channels": 64, "dim": 192, "layers": 3, "heads": 4, "ffn": 768, "norm": "pre", "position_kernel": 32}
    quiet = {"input_dropout": 0.0, "dropout": 0.0, "attention_dropout": 0.0}
    kmeans = {"rows": 4000, "batches": 50, "inits": 5}
    weights = {"unmasked_weight": 1.0, "penalty": 0.1, "gradient_scale": 1.0, "layer_drop": 0.0}
    return edit(
        hubert_base(),
        preset="hubert_tiny",
        encoder={**network, **quiet, "chunk_frames": 250},
        objective={"crop_s": 5.0, "min_s": 0.5, "kmeans": kmeans, **weights},
        data={"batch_seconds": 8.0},
        train={"steps": 6000, "lr": 6e-4, "clip_norm": 1.0, "accumulate": 1, "valid_every": 500},
    )


def musichubert_tiny() -> HubertRun:
    """`hubert_tiny` with 200 clusters of 40 cepstra of 80 mel bands with slopes, which tell pitches apart better."""
    clusters = {"cepstra": 40, "mel_bands": 80, "kmeans": {"clusters": 200}}
    return edit(hubert_tiny(), preset="musichubert_tiny", objective=clusters)


def musichubert_tiny_iter2() -> HubertRun:
    """The second iteration of `musichubert_tiny`: clusters of its block 2 (--quantizer RUN)."""
    return edit(musichubert_tiny(), preset="musichubert_tiny_iter2", objective={"quantizer_layer": 2})
