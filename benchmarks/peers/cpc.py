"""CPC as CPC_audio trains it: raw windows of 1.28 s, 12 predictors, 128 negatives shared by all of them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from auricle.data.batching import Batch
from auricle.methods.cpc import CpcRun
from peers import RATE, Peer, attend

PRESET = "cpc_base"
SECONDS = (1.28, 1.28)
ROWS = {"A": "CPC eager fp32, as CPC_audio", "B": "the same with SDPA, Adam fused"}
KERNELS, STRIDES, PADDINGS = (10, 8, 4, 4, 4), (5, 4, 2, 2, 2), (3, 2, 1, 1, 1)
HEADS, FFN = 8, 2048


class ChannelNorm(nn.Module):
    """Each frame of (B, C, T) to mean 0 and variance 1 over its channels, from primitive operations."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels, 1)), nn.Parameter(torch.zeros(channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True)
        return (x - mean) * torch.rsqrt(variance + 1e-5) * self.weight + self.bias


class Predictor(nn.Module):
    """One causal post-norm Transformer layer with learned relative positions, which the queries look at."""

    def __init__(self, dim: int, frames: int, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.q, self.k, self.v, self.out = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.relative = nn.Parameter(0.02 * torch.randn(dim // HEADS, frames))
        self.fc1, self.fc2 = nn.Linear(dim, FFN), nn.Linear(FFN, dim)
        self.norm1, self.norm2, self.dropout = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.Dropout(0.1)
        self.register_buffer("future", torch.full((frames, frames), -torch.inf).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, D) to the same shape."""
        q, k, v = (f(x).unflatten(2, (HEADS, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))  # (B, H, T, d)
        near = F.pad(q @ self.relative, (1, 0))  # scores by distance, then shifted so that columns are frames
        near = near.view(*near.shape[:2], near.shape[3], near.shape[2])[:, :, 1:] / q.shape[-1] ** 0.5
        mixed = attend(q, k, v, near + self.future, 0.1 * self.training, self.fused)
        x = self.norm1(x + self.out(mixed.transpose(1, 2).flatten(2)))
        return self.norm2(x + self.fc2(self.dropout(F.relu(self.fc1(x)))))


class PlainCPC(Peer):
    """A: explicit attention, and for each step ahead the positive copied in front of the 128 negatives, all multiplied
    with the prediction and averaged over channels. B: the same work with SDPA, Adam fused.
    """

    def __init__(self, run: CpcRun, improved: bool) -> None:
        super().__init__()
        self.improved, self.ahead, self.negatives = improved, run.objective.steps, run.objective.num_negatives
        dim, frames = run.encoder.context_dim, int(SECONDS[0] * RATE) // 160
        blocks = []
        for n, (kernel, stride, padding) in enumerate(zip(KERNELS, STRIDES, PADDINGS, strict=True)):
            blocks += [nn.Conv1d(dim if n else 1, dim, kernel, stride, padding), ChannelNorm(dim), nn.ReLU()]
        self.encoder, self.context = nn.Sequential(*blocks), nn.LSTM(dim, dim, batch_first=True)
        self.predictors = nn.ModuleList(Predictor(dim, frames - self.ahead, improved) for _ in range(self.ahead))

    def forward(self, batch: Batch) -> Tensor:
        z = self.encoder(batch.waveforms[:, None]).transpose(1, 2)  # (B, T, D)
        c, _ = self.context(z)
        size, frames, dim = z.shape
        used = frames - self.ahead
        # Negatives: any clip of the batch, which holds one speaker; any frame but the one they stand against.
        clip = torch.randint(size, (size, self.negatives, used), device=z.device)
        distance = torch.randint(1, frames, clip.shape, device=z.device)
        frame = (torch.arange(used, device=z.device) + distance) % frames
        negatives = z.flatten(0, 1)[(clip * frames + frame).flatten()].view(*clip.shape, dim)  # (B, 128, T - 12, D)
        label = torch.zeros(size, used, dtype=torch.long, device=z.device)
        losses = []
        for ahead, predictor in enumerate(self.predictors, 1):
            candidates = torch.cat([z[:, None, ahead : ahead + used], negatives], 1)  # (B, 129, T - 12, D)
            scores = (predictor(c[:, :used])[:, None] * candidates).mean(3)
            losses.append(F.cross_entropy(scores, label))
        return torch.stack(losses).sum()

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 2e-4, fused=self.improved or None)


def build(row: str, run: CpcRun) -> Peer:
    return PlainCPC(run, improved=row == "B")


def operations(run: CpcRun, samples: NDArray[np.int64]) -> float:
    """Of a step: three times the forward pass; attention and its positions on the past alone."""
    dim, ahead, total = run.encoder.context_dim, run.objective.steps, 0.0
    for length in samples.tolist():
        frames, channels = length, 1
        for kernel, stride in zip(KERNELS, STRIDES, strict=True):
            frames //= stride
            total += 2 * frames * kernel * channels * dim
            channels = dim
        used = frames - ahead
        total += 2 * frames * 8 * dim * dim  # the LSTM
        total += ahead * (2 * used * (4 * dim * dim + 2 * dim * FFN) + 3 * dim * used**2)
        total += ahead * 2 * used * (1 + run.objective.num_negatives) * dim
    return 3 * total
