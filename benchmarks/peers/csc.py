"""CSC in plain PyTorch: no code of it is public, so this does our own step as GALR's and other separators' codes would.

`--preset csc_mel_base` puts the Transformer over log-mel frames in GALR's place.
"""

from __future__ import annotations

import math
from itertools import permutations
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from auricle.audio.mixing import active_power
from auricle.data.batching import Batch
from auricle.encoders.csc import CscConfig
from auricle.features.spectrum import mel_filters
from auricle.methods.csc import CscRun
from auricle.nn.positions import sinusoids
from peers import Peer, block_operations

PRESET = "csc_galr_base"
SECONDS = (1.5, 1.5)  # of the preset's 4, for one CPU
ROWS = {"A": "CSC eager fp32", "B": "the same with SDPA, Adam fused"}
TARGETS = {"D over A": "2", "C over A": "1.2", "C over B": ""}


class GalrBlock(nn.Module):
    """LSTM inside segments, attention across them, on the layout (B, D, K, S) of the released code."""

    def __init__(self, size: CscConfig, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.lstm = nn.LSTM(size.dim, size.hidden, batch_first=True, bidirectional=True)
        self.local_out, self.local_norm = nn.Linear(2 * size.hidden, size.dim), nn.GroupNorm(1, size.dim)
        self.reduce, self.input_norm = nn.Linear(size.segment, size.low), nn.LayerNorm(size.dim)
        self.attention = nn.MultiheadAttention(size.dim, size.heads, size.dropout)
        self.attention_norm = nn.LayerNorm(size.dim)
        self.expand, self.global_norm = nn.Linear(size.low, size.segment), nn.GroupNorm(1, size.dim)
        self.dropout = nn.Dropout(size.dropout)
        self.register_buffer("positions", sinusoids(512, size.dim)[:, None])

    def forward(self, x: Tensor) -> Tensor:
        """x (B, D, K, S) to the same shape."""
        batch, dim, places, segments = x.shape
        local, _ = self.lstm(x.permute(0, 3, 2, 1).reshape(-1, places, dim))  # (B S, K, 2 H)
        local = self.local_out(local).view(batch, segments, places, dim).permute(0, 3, 2, 1)
        x = x + self.local_norm(local.contiguous())
        y = self.reduce(x.permute(0, 1, 3, 2)).permute(2, 0, 3, 1)  # (S, B, Q, D)
        y = self.input_norm(y.reshape(segments, -1, dim)) + self.positions[:segments]
        attended, _ = self.attention(y, y, y, need_weights=not self.fused)
        y = self.attention_norm(y + self.dropout(attended)).view(segments, batch, -1, dim)
        return x + self.global_norm(self.expand(y.permute(1, 3, 0, 2)).permute(0, 1, 3, 2).contiguous())


class MelBlock(nn.Module):
    """A pre-norm Transformer block."""

    def __init__(self, size: CscConfig, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.attention = nn.MultiheadAttention(size.dim, size.heads, size.dropout, batch_first=True)
        self.norm1, self.fc1, self.fc2 = (
            nn.LayerNorm(size.dim),
            nn.Linear(size.dim, size.ffn),
            nn.Linear(size.ffn, size.dim),
        )
        self.norm2, self.dropout = nn.LayerNorm(size.dim), nn.Dropout(size.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, D) to the same shape."""
        y = self.norm1(x)
        x = x + self.dropout(self.attention(y, y, y, need_weights=not self.fused)[0])
        return x + self.dropout(self.fc2(F.gelu(self.fc1(self.norm2(x)))))


class Waves(nn.Module):
    """Convolutions over the waveform and back, and their frames in segments."""

    def __init__(self, size: CscConfig) -> None:
        super().__init__()
        self.bins, self.hop, self.half = size.dim, size.window // 2, size.segment // 2
        convolution = {"kernel_size": size.window, "stride": self.hop, "padding": self.hop, "bias": False}
        self.analysis = nn.Conv1d(1, size.dim, **convolution)
        self.bottleneck = nn.Conv1d(size.dim, size.dim, 1, bias=False)
        self.synthesis = nn.ConvTranspose1d(size.dim, 1, **convolution)

    def analyse(self, waveforms: Tensor) -> Tensor:
        """Waveforms (B, S) to frames (B, D, L)."""
        return F.relu(self.analysis(F.pad(waveforms, (0, -waveforms.shape[1] % self.hop))[:, None]))

    def synthesise(self, frames: Tensor, samples: int) -> Tensor:
        """Masked frames (B, C, D, L) to waveforms (B, C, S)."""
        return self.synthesis(frames.flatten(0, 1)).view(*frames.shape[:2], -1)[..., :samples]

    def enter(self, waveforms: Tensor, frames: Tensor) -> Tensor:
        """Frames (B, D, L) in segments that overlap by half (B, D, K, S)."""
        x = self.bottleneck(frames)
        x = F.pad(x, (self.half, self.half + -x.shape[2] % self.half))
        return x.unfold(2, 2 * self.half, self.half).transpose(2, 3).contiguous()

    def leave(self, hidden: Tensor, frames: int) -> Tensor:
        """Segments (B, D, K, S) to frames (B, D, L), means of the two that hold each."""
        first, second = hidden.chunk(2, 2)
        both = (first[..., 1:] + second[..., :-1]) / 2
        return both.transpose(2, 3).flatten(2)[..., :frames]

    def pool(self, hidden: Tensor) -> Tensor:
        """Segments (B, D, K, S) to their means (B, S, D)."""
        return hidden.mean(2).transpose(1, 2)


class Mels(nn.Module):
    """Log-mel frames, and an STFT with the same frames."""

    def __init__(self, size: CscConfig) -> None:
        super().__init__()
        self.hop = int(size.sample_rate * size.hop_ms / 1000)
        self.bins = self.hop + 1
        self.project, self.norm = nn.Linear(size.n_mels, size.dim), nn.LayerNorm(size.dim)
        self.dropout = nn.Dropout(size.dropout)
        filters = mel_filters("htk", size.sample_rate, 2 * self.hop, size.n_mels, 0.0, size.sample_rate / 2)
        self.register_buffer("filters", filters.float())
        self.register_buffer("positions", sinusoids(512, size.dim))
        self.register_buffer("hann", torch.hann_window(2 * self.hop))
        self.register_buffer("sine", self.hann.sqrt())

    def analyse(self, waveforms: Tensor) -> Tensor:
        """Waveforms (B, S) to spectra (B, F, T)."""
        x = F.pad(waveforms, (0, -waveforms.shape[1] % self.hop))
        return torch.stft(x, 2 * self.hop, self.hop, window=self.sine, pad_mode="constant", return_complex=True)

    def synthesise(self, spectra: Tensor, samples: int) -> Tensor:
        """Masked spectra (B, C, F, T) to waveforms (B, C, S)."""
        sound = torch.istft(spectra.flatten(0, 1), 2 * self.hop, self.hop, window=self.sine, length=samples)
        return sound.view(*spectra.shape[:2], -1)

    def enter(self, waveforms: Tensor, spectra: Tensor) -> Tensor:
        """Log-mel frames, projected (B, T, D)."""
        x = F.pad(waveforms, (0, -waveforms.shape[1] % self.hop))
        power = torch.stft(x, 2 * self.hop, self.hop, window=self.hann, return_complex=True).abs().square()
        x = self.project((power.transpose(1, 2) @ self.filters + 1e-3).log())
        return self.dropout(self.norm(x + self.positions[: x.shape[1]]))

    def leave(self, hidden: Tensor, frames: int) -> Tensor:
        """Hidden states (B, T, D) are frames (B, D, T)."""
        return hidden.transpose(1, 2)

    def pool(self, hidden: Tensor) -> Tensor:
        """Hidden states (B, T, D) are what is pooled."""
        return hidden


class Mixed(NamedTuple):
    """Mixtures of I recordings under M conditions."""

    mixture: Tensor  # (I, M, S)
    sources: Tensor  # (I, M, C, S)
    recording: Tensor  # (I, M, C), which of the I each source is
    crop: Tensor  # (I, M, C), which of its M crops


class PlainCsc(Peer):
    """A: mixtures made one by one in NumPy, as a data loader makes them; nn.LSTM, GroupNorm and nn.MultiheadAttention
    with its default arguments; each order of the talkers scored anew; distances to all vectors written out; Adam as
    PyTorch runs it by default. B: the same with SDPA, Adam fused.
    """

    clip_norm = 5.0

    def __init__(self, run: CscRun, improved: bool) -> None:
        super().__init__()
        size = run.encoder
        self.improved, self.size, self.objective = improved, size, run.objective
        self.rng = np.random.default_rng(0)
        self.front = Waves(size) if size.trunk == "galr" else Mels(size)
        self.shared = stack(size, size.shared_blocks, improved)
        self.separation = stack(size, size.separation_blocks, improved)
        self.separation_act = nn.PReLU()
        self.masks = nn.Conv1d(size.dim, size.sources * self.front.bins, 1)
        self.speaker = stack(size, size.speaker_blocks, improved)
        self.speaker_act, self.who = nn.PReLU(), nn.Linear(size.dim, size.sources * size.embedding)
        self.query, self.key, self.value = (nn.Linear(size.embedding, size.embedding, bias=False) for _ in range(3))
        self.a = nn.Parameter(torch.tensor(run.objective.alpha).expm1().log())

    def forward(self, batch: Batch) -> Tensor:
        return self.loss(self.mix(batch))

    def mix(self, batch: Batch) -> Mixed:
        """Each crop with crops of other recordings over it: equalised, at a drawn ratio of powers and a drawn peak."""
        conditions, talkers, rng = self.objective.crops, self.size.sources, self.rng
        crops = batch.waveforms.cpu().numpy()
        recordings = len(crops) // conditions
        sources, recording, crop = [], [], []
        for row in range(len(crops)):
            others = np.setdiff1d(np.arange(recordings), row // conditions)
            who = [row // conditions, *rng.choice(others, talkers - 1, replace=False)]
            which = [row % conditions, *rng.integers(conditions, size=talkers - 1)]
            sources.append(self.sources([crops[i * conditions + m] for i, m in zip(who, which, strict=True)]))
            recording.append(who)
            crop.append(which)
        device, shape = batch.waveforms.device, (recordings, conditions, talkers)
        sounds = torch.from_numpy(np.stack(sources)).to(device).unflatten(0, shape[:2])
        numbers = (torch.tensor(np.array(each), device=device).view(shape) for each in (recording, crop))
        return Mixed(sounds.sum(2), sounds, *numbers)

    def sources(self, crops: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        """The sources (C, S) of one mixture, the target first."""
        mix, rate, rng = self.objective.mix, self.size.sample_rate, self.rng
        sounds = [self.equalise(crop) for crop in crops] if mix.eq_db else crops
        target, *others = sounds
        power = active_power(target, rate)
        for other in others:
            other *= np.sqrt(power / active_power(other, rate) / 10 ** (rng.uniform(*mix.sir_db) / 10))
        sources = np.stack(sounds)
        return sources * np.float32(10 ** (rng.uniform(*mix.gain_db) / 20) / np.abs(sources.sum(0)).max())

    def equalise(self, crop: NDArray[np.float32]) -> NDArray[np.float32]:
        """A crop (S,) under gains drawn at eight points evenly spaced in mel, straight lines between."""
        most, size = self.objective.mix.eq_db, len(crop) + self.size.sample_rate // 10
        mel = np.log1p(np.fft.rfftfreq(size, 1 / self.size.sample_rate) / 700)
        gains_db = np.interp(mel, np.linspace(0, mel[-1], 8), self.rng.uniform(-most, most, 8))
        return np.fft.irfft(np.fft.rfft(crop, size) * 10 ** (gains_db / 20), size)[: len(crop)].astype(np.float32)

    def loss(self, mixed: Mixed) -> Tensor:
        """Separation, and both contrasts."""
        objective, (recordings, conditions, talkers) = self.objective, mixed.recording.shape
        estimates, z = self.separate(mixed.mixture.flatten(0, 1))  # (I M, C, S), (I M, C, E)
        sources, orders = mixed.sources.flatten(0, 1), list(permutations(range(talkers)))
        scores = torch.stack([si_snr(estimates[:, order], sources).mean(1) for order in orders])  # (C!, I M)
        best, found = scores.max(0)
        z = torch.stack([streams[list(orders[order])] for streams, order in zip(z, found.tolist(), strict=True)])
        z = z.view(recordings, conditions, talkers, -1)
        c = torch.stack([self.attend(z[:, :, 0], m) for m in range(conditions)], 1)  # (I, M, E)
        attended, bottom_up = [], []
        for m in range(conditions):
            attended.append(self.contrast(c[:, m], z[None, :, m, 0], mixed.recording[:, m, 0]))
            for talker in range(talkers):
                known = c[:, mixed.crop[:, m, talker]].transpose(0, 1)  # (I, I, E): made without this crop
                bottom_up.append(self.contrast(z[:, m, talker], known, mixed.recording[:, m, talker]))
        contrasts = (
            objective.contrastive * torch.stack(attended).mean() + objective.bottom_up * torch.stack(bottom_up).mean()
        )
        return contrasts - objective.separation * best.mean()

    def separate(self, mixture: Tensor) -> tuple[Tensor, Tensor]:
        """Estimates (B, C, S) and embeddings (B, C, E) of mixtures (B, S)."""
        level = mixture.square().mean(1, keepdim=True).sqrt()
        frames = self.front.analyse(mixture / level)
        shared = self.shared(self.front.enter(mixture / level, frames))
        hidden = self.front.leave(self.separation_act(self.separation(shared)), frames.shape[2])  # (B, D, L)
        masks = self.masks(hidden).unflatten(1, (self.size.sources, -1)).softmax(1)  # (B, C, bins, L)
        estimates = self.front.synthesise(frames[:, None] * masks, mixture.shape[1]) * level[:, None]
        tokens = self.who(self.front.pool(self.speaker_act(self.speaker(shared))))  # (B, T, C E)
        return estimates, F.normalize(tokens.mean(1).unflatten(1, (self.size.sources, -1)), dim=2)

    def attend(self, z: Tensor, m: int) -> Tensor:
        """What the other conditions say of each target in condition m: z (I, M, E) to (I, E)."""
        others = torch.cat([z[:, :m], z[:, m + 1 :]], 1)
        weights = (self.query(z[:, m : m + 1]) @ self.key(others).transpose(1, 2) / math.sqrt(z.shape[2])).softmax(2)
        return F.normalize((weights @ self.value(others))[:, 0], dim=1)

    def contrast(self, x: Tensor, known: Tensor, who: Tensor) -> Tensor:
        """Minus the log-probability () of talkers `who` (I,) of x (I, E), by distances to vectors (I or 1, I, E)."""
        distances = (x[:, None] - known).square().sum(2)
        return F.cross_entropy(-(0.1 + F.softplus(self.a)) * distances, who)

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-3, fused=self.improved or None)


def si_snr(estimate: Tensor, source: Tensor) -> Tensor:
    """Scale-invariant signal-to-noise ratio (..., S) to (...), dB."""
    estimate, source = (x - x.mean(-1, keepdim=True) for x in (estimate, source))
    target = (estimate * source).sum(-1, keepdim=True) / source.square().sum(-1, keepdim=True) * source
    return 10 * (target.square().sum(-1) / (estimate - target).square().sum(-1)).log10()


def stack(size: CscConfig, blocks: int, fused: bool) -> nn.Sequential:
    """Blocks, and what a pre-norm Transformer ends with."""
    if size.trunk == "galr":
        return nn.Sequential(*(GalrBlock(size, fused) for _ in range(blocks)))
    return nn.Sequential(*(MelBlock(size, fused) for _ in range(blocks)), nn.LayerNorm(size.dim))


def build(row: str, run: CscRun) -> Peer:
    return PlainCsc(run, improved=row == "B")


def operations(run: CscRun, samples: NDArray[np.int64]) -> float:
    """Of a step: three times the network's forward pass."""
    size = run.encoder
    dim, out = size.dim, size.sources * size.embedding
    blocks = size.shared_blocks + size.separation_blocks + size.speaker_blocks
    if size.trunk == "mel":
        frames = 1.0 + np.ceil(samples / int(size.sample_rate * size.hop_ms / 1000))
        bins = int(size.sample_rate * size.hop_ms / 1000) + 1
        outside = 2 * dim * (size.n_mels + size.sources * bins) + 2 * dim * out
        return 3 * (blocks * block_operations(frames, dim, size.ffn) + float(frames.sum()) * outside)
    frames = 1.0 + np.ceil(2 * samples / size.window)
    segments = 1 + np.ceil(2 * frames / size.segment)
    lstm = 2 * 2 * 4 * size.hidden * (dim + size.hidden) + 2 * 2 * size.hidden * dim  # and the layer behind it
    place = size.segment * lstm + 2 * 2 * size.segment * size.low * dim + size.low * 2 * 4 * dim * dim
    block = float(segments.sum()) * place + 4 * size.low * dim * float(np.square(segments).sum())
    ends = 2 * dim * ((1 + size.sources) * size.window + dim + size.sources * dim)
    return 3 * (blocks * block + float(frames.sum()) * ends + float(segments.sum()) * 2 * dim * out)
