"""HuBERT as fairseq trains it, around transformers' HubertModel."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import HubertConfig, HubertModel

from auricle.data.batching import Batch
from auricle.methods.hubert import HubertRun
from peers import Peer
from peers._waveform import (
    context_operations,
    convolution_operations,
    cut,
    frames_of,
    masked_share,
    options,
    span_mask,
)

PRESET = "hubert_base"
SECONDS = (15.6, 15.6)  # LibriSpeech's longest crops
ROWS = {"A": "HubertModel eager fp32, explicit NCE", "B": "HubertModel SDPA fp32, cosine logits"}
EDITS = {"objective": {"kmeans": {"batches": 3, "inits": 1}}}
TARGETS = {"D over A": "", "D over B": "3", "C over B": "1.3"}
TEMPERATURE, GRADIENT_SCALE, PENALTY = 0.1, 0.1, 10.0


class TransformersHubert(Peer):
    """A: explicit attention; noise contrastive estimation with a copy of all label vectors for each masked frame, the
    right one in front; AdamW as PyTorch runs it by default.
    B: SDPA, one matrix product for the same logits, AdamW fused.

    Both take their labels for granted, as fairseq reads them from files; our step computes its own.
    """

    clip_norm = 10.0

    def __init__(self, run: HubertRun, improved: bool) -> None:
        super().__init__()
        self.improved, self.objective, size = improved, run.objective, run.encoder
        config = HubertConfig(
            **options(size, self.objective.layer_drop, improved),
            feat_extract_norm=size.conv_norm,
            num_conv_pos_embeddings=size.position_kernel,
            do_stable_layer_norm=size.norm == "pre",
        )
        self.model = HubertModel(config)
        self.project = nn.Linear(size.dim, run.objective.head_dim)
        self.labels = nn.Parameter(torch.rand(run.objective.kmeans.clusters, run.objective.head_dim))

    def forward(self, batch: Batch) -> Tensor:
        model, mask = self.model, self.objective.mask
        x = model.feature_extractor(cut(batch)).transpose(1, 2)  # (B, T, C)
        x.register_hook(lambda gradient: GRADIENT_SCALE * gradient)
        penalty = x.float().square().mean()
        hidden = model.feature_projection(x)
        masked = span_mask(hidden, mask.probability, mask.span, mask.min_spans)
        hidden[masked] = model.masked_spec_embed.to(hidden.dtype)
        y = self.project(model.encoder(hidden).last_hidden_state[masked])  # (N, head_dim)
        label = torch.randint(len(self.labels), (len(y),), device=y.device)
        loss = self.cosine_logits(y, label) if self.improved else self.explicit_nce(y, label)
        return loss + PENALTY * penalty

    def cosine_logits(self, y: Tensor, label: Tensor) -> Tensor:
        logits = F.normalize(y.float(), dim=1) @ F.normalize(self.labels.float(), dim=1).T
        return F.cross_entropy(logits / TEMPERATURE, label)

    def explicit_nce(self, y: Tensor, label: Tensor) -> Tensor:
        right = self.labels[label]  # (N, head_dim)
        candidates = torch.cat([right[None], self.labels[:, None].expand(-1, len(y), -1)])  # (K + 1, N, head_dim)
        logits = torch.cosine_similarity(y.float(), candidates.float(), dim=2) / TEMPERATURE
        twice = (candidates[1:] == right).all(2)  # the right one stands among the others too
        logits[1:] = logits[1:].masked_fill(twice, -torch.inf)
        return F.cross_entropy(logits.T, torch.zeros_like(label))

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 5e-4, (0.9, 0.98), 1e-6, 0.01, fused=self.improved or None)


def build(row: str, run: HubertRun) -> Peer:
    return TransformersHubert(run, improved=row == "B")


def operations(run: HubertRun, samples: NDArray[np.int64]) -> float:
    """Of a step: three times the forward pass, the head on masked frames; labels left out."""
    size, objective = run.encoder, run.objective
    frames = frames_of(size, samples)
    masked = masked_share(objective.mask.probability) * frames.sum()
    head = masked * 2 * objective.head_dim * (size.dim + objective.kmeans.clusters)
    return 3 * (convolution_operations(size, samples) + context_operations(size, frames) + head)
