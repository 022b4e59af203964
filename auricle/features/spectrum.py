"""What all front ends share: windows, mel filters, and spectra computed a cache-full of frames at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Window = Literal["povey", "hann", "hamming"]
MelScale = Literal["kaldi", "htk", "slaney"]
MelNorm = Literal["none", "slaney"]

CPU_FRAMES = 1024
"""Frames worked on at once on a CPU: their spectra (4 MB) stay in cache, which more than halves the time."""
GPU_FRAMES = 65536


def window_function(name: Window, size: int, periodic: bool) -> Tensor:
    """A window (size,), float64: symmetric, as Kaldi has it, or periodic, as STFTs do; `povey` is Hann's ** 0.85."""
    if name == "hamming":
        return torch.hamming_window(size, periodic, dtype=torch.float64)
    hann = torch.hann_window(size, periodic, dtype=torch.float64)
    return hann**0.85 if name == "povey" else hann


def mel_filters(
    scale: MelScale, sample_rate: int, n_fft: int, n_mels: int, low_hz: float, high_hz: float, norm: MelNorm = "none"
) -> Tensor:
    """Triangular filters (n_fft // 2 + 1, n_mels), float64, evenly spaced in mel between `low_hz` and `high_hz`.

    `kaldi` and `htk` share a mel scale; Kaldi's triangles (and TensorFlow's) have straight sides in mel, those of
    `htk` and `slaney` (librosa's default) in Hz. The norm `slaney` gives each triangle unit area in Hz; with
    `none` its peak is 1.
    """
    edges = torch.tensor([low_hz, high_hz], dtype=torch.float64)
    low, high = _hz_to_mel(edges, scale).tolist()
    corners = torch.linspace(low, high, n_mels + 2, dtype=torch.float64)
    bins = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)[:, None]
    if scale == "kaldi":
        bins = _hz_to_mel(bins, scale)
    else:
        corners = _mel_to_hz(corners, scale)
    left, centre, right = corners[:-2], corners[1:-1], corners[2:]
    filters = torch.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)).clamp_min(0)
    return filters * 2 / (right - left) if norm == "slaney" else filters


def whole_frames(waveforms: Tensor, lengths: Tensor, size: int, hop: int) -> tuple[Tensor, Tensor]:
    """The pieces (B, max(T, 1), size) of the signal that begin every `hop` samples, a view, and each clip's whole ones.

    Waveforms (B, S) hold `lengths` (B,) samples; a clip shorter than `size` has none.
    """
    waveforms = F.pad(waveforms, (0, max(0, size - waveforms.shape[1])))
    return waveforms.unfold(1, size, hop), ((lengths - size) // hop + 1).clamp_min(0)


def map_frames(function: Callable[[Tensor], Tensor], frames: Tensor) -> Tensor:
    """`function`, from (b, t, n) to (b, t, m), over all frames (B, T, n), some at a time.

    `frames` is a view into the signal: the copies that `function` makes are never large, however long the clip.
    """
    if exporting():  # lengths are unknown then
        return function(frames)
    limit = CPU_FRAMES if frames.device.type == "cpu" else GPU_FRAMES
    clips = torch.split(frames, max(1, limit // frames.shape[1]))
    return torch.cat([torch.cat([function(part) for part in torch.split(clip, limit, dim=1)], dim=1) for clip in clips])


def filter_energies(frames: Tensor, n_fft: int, filters: Tensor, power: float) -> Tensor:
    """Windowed frames (..., n) to the sums (..., M) of power (2) or magnitude (1) spectra under filters (F, M)."""
    spectrum = rfft(frames, n_fft)
    if power == 1:
        return full_precision_matmul(spectrum.abs(), filters)
    squares = torch.view_as_real(spectrum).square().flatten(-2)  # real and imaginary parts add up in the product
    return full_precision_matmul(squares, filters.repeat_interleave(2, dim=0))


def rfft(frames: Tensor, n_fft: int) -> Tensor:
    """`torch.fft.rfft` of frames (..., n), n at most `n_fft`.

    In exported graphs a matrix product in float64: onnxruntime's DFT of 400 samples loses four digits.
    """
    if not exporting():
        return torch.fft.rfft(frames, n_fft)  # type: ignore[no-any-return]
    turns = np.outer(np.arange(frames.shape[-1]), np.arange(n_fft // 2 + 1)) % n_fft / n_fft
    waves = np.stack([np.cos(2 * np.pi * turns), -np.sin(2 * np.pi * turns)], axis=-1).reshape(len(turns), -1)
    products = (frames.double() @ torch.from_numpy(waves)).to(frames.dtype)
    return torch.view_as_complex(products.reshape(*frames.shape[:-1], -1, 2))


def full_precision_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """`x @ weight` in the precision of `x`, inside autocast too."""
    with torch.autocast(x.device.type, enabled=False):
        return x @ weight.to(x.dtype)


def exporting() -> bool:
    """Whether a graph is being exported, in which neither loops over lengths nor kernels of ours have a place."""
    return torch.compiler.is_exporting() if hasattr(torch.compiler, "is_exporting") else False  # torch >= 2.7


def as_float(waveforms: Tensor) -> Tensor:
    """Waveforms in float64 where they are, else in float32: the precision that features are computed in."""
    return waveforms if waveforms.dtype == torch.float64 else waveforms.float()


def _hz_to_mel(hz: Tensor, scale: MelScale) -> Tensor:
    if scale == "slaney":  # linear below 1 kHz, logarithmic above
        return torch.where(hz < 1000, 3 * hz / 200, 15 + 27 * (hz.clamp_min(1000) / 1000).log() / math.log(6.4))
    return (hz / 700).log1p()


def _mel_to_hz(mel: Tensor, scale: MelScale) -> Tensor:
    if scale == "slaney":
        return torch.where(mel < 15, 200 * mel / 3, 1000 * ((mel - 15) * math.log(6.4) / 27).exp())
    return 700 * mel.expm1()
