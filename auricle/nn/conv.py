"""Convolutions from waveform to frames, channels last: (B, T, C), so that every step is a matrix product over C."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ChannelNorm(nn.Module):
    """Each frame minus its mean over channels, over their standard deviation (unbiased variance), scaled and shifted.

    CPC_audio's `ChannelNorm`. It is layer normalisation but for the variance, which only changes scale and epsilon.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        share = (channels - 1) / channels  # the biased variance over the unbiased one
        self.scale, self.eps = math.sqrt(share), eps * share

    def forward(self, x: Tensor) -> Tensor:
        """x (..., C)."""
        return F.layer_norm(x, x.shape[-1:], self.weight * self.scale, self.bias, self.eps)


class ConvLayer(nn.Module):
    """Convolution over time, ChannelNorm, ReLU: (B, T, C_in) to (B, T', C_out)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, padding: int, bias: bool) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, kernel, stride, padding, bias=bias)
        self.norm = ChannelNorm(outputs)
        self.kernel, self.stride, self.padding = kernel, stride, padding

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, C_in), of at least one kernel's length, padding included."""
        product = _convolve if x.device.type == "cpu" and not torch.is_autocast_enabled("cpu") else _multiply
        return F.relu(self.norm(product(x, self.conv.weight, self.conv.bias, self.stride, self.padding)))

    def frames(self, lengths: Tensor) -> Tensor:
        """Frames out for frames in, both (B,); 0 where not even one kernel fits."""
        spare = lengths + 2 * self.padding - self.kernel
        return (torch.div(spare, self.stride, rounding_mode="floor") + 1).clamp_min(0)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """`F.conv1d` of x (B, T, C) as a convolution over a picture one row high, which oneDNN takes channels last.

    On the CPU in fp32 twice as fast as `F.conv1d` on (B, C, T), and no copy of x is made for the norm.
    """
    row = x.transpose(1, 2)[:, :, None]
    return F.conv2d(row, weight[:, :, None], bias, (1, stride), (0, padding))[:, :, 0].transpose(1, 2)


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """The same as one matrix product over blocks of `stride` frames, which overlap nowhere and so need no copies.

    A kernel spans m such blocks. Each block is multiplied with all m parts of the kernel, and the m results that belong
    to one frame are added. In bf16 on the CPU half as fast again as `_convolve`.
    """
    outputs, inputs, kernel = weight.shape
    if inputs == 1:  # the product would be small and the sums large: here the windows are copied
        return F.linear(F.pad(x[..., 0], (padding, padding)).unfold(1, kernel, stride), weight[:, 0], bias)
    parts = -(-kernel // stride)
    frames = (x.shape[1] + 2 * padding - kernel) // stride + 1
    blocks = F.pad(x, (0, 0, padding, (frames + parts - 1) * stride - padding - x.shape[1]))
    kernels = F.pad(weight, (0, parts * stride - kernel)).view(outputs, inputs, parts, stride)
    kernels = kernels.permute(2, 0, 3, 1).flatten(2).flatten(0, 1)  # (m C_out, stride C_in)
    products = F.linear(blocks.reshape(len(x), -1, stride * inputs), kernels)
    products = products.view(len(x), -1, parts, outputs)
    out = products[:, :frames, 0] if bias is None else products[:, :frames, 0] + bias
    for part in range(1, parts):
        out = out + products[:, part : part + frames, part]
    return out


class WaveformConvolutions(nn.Module):
    """A stack of `ConvLayer`s: waveforms (B, S) to frames (B, T, C), one every `hop` samples.

    A clip gives the same frames alone and in any batch: what lies past its end is zero before every convolution.
    """

    def __init__(
        self,
        channels: Sequence[int],
        kernels: Sequence[int],
        strides: Sequence[int],
        paddings: Sequence[int],
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        sizes = zip((1, *channels), channels, kernels, strides, paddings, strict=False)
        self.layers = nn.ModuleList(ConvLayer(*size, bias) for size in sizes)
        self.hop = math.prod(strides)
        """Samples between frames."""
        self.reach, first = 1, 0
        """Samples that a frame sees."""
        for kernel, stride, padding in reversed(list(zip(kernels, strides, paddings, strict=True))):
            self.reach, first = (self.reach - 1) * stride + kernel, first * stride - padding
        self.offset = first + (self.reach - 1) / 2
        """Samples from the clip's start to the centre of frame 0."""

    def forward(self, waveforms: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Frames of waveforms (B, S), and their numbers (B,), for `lengths` (B,) in samples.

        `lengths` None: no clip is padded. Frames past a clip's length are undefined.
        """
        x = F.pad(waveforms, (0, max(0, self.reach - waveforms.shape[1])))[..., None]
        for layer in self._layers():
            if lengths is not None:
                x = x * (torch.arange(x.shape[1], device=x.device) < lengths[:, None])[..., None]
                lengths = layer.frames(lengths)
            x = layer(x)
        return x, lengths

    def frames(self, lengths: Tensor) -> Tensor:
        """Numbers of frames (B,) of clips of `lengths` (B,) samples."""
        for layer in self._layers():
            lengths = layer.frames(lengths)
        return lengths

    def _layers(self) -> Iterator[ConvLayer]:
        return iter(cast(Iterable[ConvLayer], self.layers))
