"""TRILL as its paper and the released front end tell it (its training code is not public): ResNet-50 on two windows."""

from __future__ import annotations

import torch
from numpy import int64
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from auricle.data.batching import Batch
from auricle.encoders.trill import TrillConfig
from auricle.features.spectrum import mel_filters
from auricle.methods.trill import TrillRun
from peers import RATE, Peer, clips

PRESET = "trill_base"
SECONDS = (10.0, 10.0)  # AudioSet's clips
ROWS = {"A": "TRILL eager fp32, as published", "B": "channels last, fp32 windows only, Adam fused"}
MARGIN = 0.1


class Bottleneck(nn.Module):
    """As in ResNet-50, with batch norms."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        sizes = ((inputs, width, 1, 1), (width, width, 3, stride), (width, 4 * width, 1, 1))
        self.layers = nn.ModuleList(convolution(*size) for size in sizes)
        plain = stride == 1 and inputs == 4 * width
        self.shortcut = nn.Identity() if plain else convolution(inputs, 4 * width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.layers[0](x))
        y = F.relu(self.layers[1](y))
        return F.relu(self.layers[2](y) + self.shortcut(x))


class PlainTrill(Peer):
    """A: magnitude spectra of whole clips in float64, as the released front end computes them, then two windows cut out
    of each; a ResNet-50 whose stem has no stride; Adam as PyTorch runs it by default.
    B (nothing attends here): spectra of the two windows only, in float32, convolutions channels last, Adam fused.
    """

    def __init__(self, run: TrillRun, improved: bool) -> None:
        super().__init__()
        size = run.encoder
        self.improved, self.frames = improved, size.patch_frames
        self.network = resnet(size)
        self.register_buffer("window", torch.hann_window(400, dtype=torch.float64))
        self.register_buffer("filters", mel_filters("htk", RATE, 512, size.front_end.n_mels, 125.0, 7500.0))
        if improved:
            self.network.to(memory_format=torch.channels_last)

    def forward(self, batch: Batch) -> Tensor:
        x = torch.stack([window for clip in clips(batch) for window in self.windows(clip)])[:, None]  # (2 B, 1, T, F)
        if self.improved:
            x = x.contiguous(memory_format=torch.channels_last)
        z = F.normalize(self.network(x).float())
        distances = (z[:, None] - z).square().sum(2)  # (2 B, 2 B)
        window = torch.arange(len(z), device=z.device)
        clip, positive = window // 2, distances[window, window ^ 1][:, None]
        others = distances.masked_fill(clip[:, None] == clip, torch.inf)
        farther = others.masked_fill(others <= positive, torch.inf)  # semi-hard: the nearest behind the positive
        hard = torch.where(farther.isinf().all(1), others.min(1).values, farther.min(1).values)
        return F.relu(positive[:, 0] - hard + MARGIN).mean()

    def windows(self, clip: Tensor) -> list[Tensor]:
        """Log-mel spectra (T, F) of two windows of a clip."""
        whole = 1 + (len(clip) - 400) // 160
        starts = torch.randint(whole - self.frames + 1, (2,)).tolist()
        if self.improved:
            length = (self.frames - 1) * 160 + 400
            return [self.log_mel(clip[160 * start : 160 * start + length]) for start in starts]
        x = self.log_mel(clip.double())
        return [x[start : start + self.frames] for start in starts]

    def log_mel(self, samples: Tensor) -> Tensor:
        frames = samples.unfold(0, 400, 160) * self.window.to(samples.dtype)
        mel = torch.fft.rfft(frames, 512).abs() @ self.filters.to(samples.dtype)
        return (mel.clamp_min(1e-12) + 0.001).log().float()

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-4, fused=self.improved or None)


def convolution(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    """One that keeps the size, divided by the stride, and its batch norm."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs))


def resnet(size: TrillConfig) -> nn.Sequential:
    """Pictures (N, 1, T, F) to embeddings (N, D): ResNet-50 without the stride of its stem."""
    layers = [convolution(1, size.width, 7, 1), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels = size.width
    for stage, count in enumerate(size.blocks):
        for index in range(count):
            layers.append(Bottleneck(channels, size.width << stage, 2 if stage and not index else 1))
            channels = 4 * (size.width << stage)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, size.embedding))


def build(row: str, run: TrillRun) -> Peer:
    return PlainTrill(run, improved=row == "B")


def operations(run: TrillRun, samples: NDArray[int64]) -> float:
    """Of a step: three times the network's forward pass on two windows of each clip."""
    with torch.device("meta"):
        network = resnet(run.encoder).eval()
        picture = torch.empty(1, 1, run.encoder.patch_frames, run.encoder.front_end.n_mels)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(picture)
    return 3.0 * 2 * len(samples) * counter.get_total_flops()
