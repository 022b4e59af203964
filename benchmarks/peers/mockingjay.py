"""Mockingjay as S3PRL trains it, around transformers' Bert blocks."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import BertConfig, BertModel

from auricle.data.batching import Batch
from auricle.features.spectrum import mel_filters
from auricle.methods.mockingjay import MockingjayRun
from auricle.nn.positions import sinusoids
from peers import RATE, Peer, block_operations, clips, standardise

PRESET = "mockingjay_base"
SECONDS = (2.0, 15.0)  # LibriSpeech's utterances, cropped at 15 s
ROWS = {"A": "Bert eager fp32, as S3PRL", "B": "Bert SDPA fp32, masked head"}
TARGETS = {"D over A": "4", "D over B": "2"}
HOP, SPAN = 160, 7


class BertMockingjay(Peer):
    """A: features and masks a clip at a time, batches padded, explicit attention, the head on all frames, a boolean
    masked_select in the loss, AdamW as PyTorch runs it by default. B: SDPA, the head on masked frames, AdamW fused.
    """

    clip_norm = 5.0

    def __init__(self, run: MockingjayRun, improved: bool) -> None:
        super().__init__()
        self.improved, size = improved, run.encoder
        config = BertConfig(
            hidden_size=size.dim,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            intermediate_size=size.ffn,
            hidden_dropout_prob=0.1,
            attention_probs_dropout_prob=0.1,
            layer_norm_eps=1e-12,
            attn_implementation="sdpa" if improved else "eager",
        )
        dim, mels = size.dim, size.front_end.n_mels
        self.project = nn.Linear(mels, dim)
        self.norm, self.dropout = nn.LayerNorm(dim, eps=1e-12), nn.Dropout(0.1)
        self.encoder = BertModel(config, add_pooling_layer=False).encoder
        self.head = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.LayerNorm(dim, eps=1e-12), nn.Linear(dim, mels))
        self.register_buffer("positions", sinusoids(1 + int(SECONDS[1] * RATE) // HOP, dim))
        self.register_buffer("window", torch.hann_window(400))
        self.register_buffer("filters", mel_filters("htk", RATE, 400, mels, 0.0, RATE / 2).float())

    def forward(self, batch: Batch) -> Tensor:
        features = [self.features(waveform) for waveform in clips(batch)]
        target = pad_sequence(features, batch_first=True)  # (B, T, F)
        masked, selected = self.mask(target, [len(clip) for clip in features])
        lengths = torch.tensor([len(clip) for clip in features], device=target.device)
        padded = torch.arange(target.shape[1], device=target.device) >= lengths[:, None]
        bias = (padded * -10000.0)[:, None, None, :]
        hidden = self.dropout(self.norm(self.project(masked) + self.positions[: target.shape[1]]))
        hidden = self.encoder(hidden, attention_mask=bias.to(hidden.dtype)).last_hidden_state
        if self.improved:
            return F.l1_loss(self.head(hidden[selected[:, :, 0]]), target[selected[:, :, 0]])
        return F.l1_loss(self.head(hidden).masked_select(selected), target.masked_select(selected))

    def features(self, waveform: Tensor) -> Tensor:
        """One clip (S,) at -25 dB to normalised log-mel energies (T, F)."""
        waveform = waveform * (10 ** (-25 / 20) / waveform.square().mean().sqrt())
        spectrum = torch.stft(waveform, 400, HOP, window=self.window, return_complex=True).abs().square()
        return standardise((spectrum.T @ self.filters + 1e-10).log())

    def mask(self, target: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor]:
        """Masked copy of the features (B, T, F) and which values were selected, drawn a clip at a time."""
        masked, selected = target.clone(), torch.zeros_like(target, dtype=torch.bool)
        for number, length in enumerate(lengths):
            starts = torch.randperm(length - SPAN)[: round(length * 0.15 / SPAN)]
            chosen = (starts[:, None] + torch.arange(SPAN)).flatten()
            dice = float(torch.rand(()))
            if dice < 0.8:
                masked[number, chosen] = 0
            elif dice < 0.9:
                starts = torch.randperm(length - SPAN)[: len(starts)]
                masked[number, chosen] = target[number, (starts[:, None] + torch.arange(SPAN)).flatten()]
            selected[number, chosen] = True
        return masked, selected

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 2e-4, fused=self.improved or None)


def build(row: str, run: MockingjayRun) -> Peer:
    return BertMockingjay(run, improved=row == "B")


def operations(run: MockingjayRun, samples: NDArray[np.int64]) -> float:
    """Of a step: three times the forward pass on true frames, the head on the masked 15 %."""
    size, frames = run.encoder, 1.0 + samples // HOP
    dim, mels = size.dim, size.front_end.n_mels
    ends = 2 * mels * dim + 0.15 * 2 * (dim * dim + dim * mels)
    return 3 * (frames.sum() * ends + size.layers * block_operations(frames, dim, size.ffn))
