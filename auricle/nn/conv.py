"""Convolutions from waveform to frames, channels last: (B, T, C), so that every step is a matrix product over C."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from auricle.features.spectrum import exporting
from auricle.nn.linear import linear

ConvNorm = Literal["channel", "layer", "group"]
"""After every convolution `ChannelNorm` or LayerNorm; or after the first alone a `ClipNorm`."""


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
    """Convolution over time, a norm, an activation: (B, T, C_in) to (B, T', C_out)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int,
        padding: int,
        bias: bool,
        norm: Callable[[int], nn.Module] = ChannelNorm,
        activation: Callable[[Tensor], Tensor] = F.relu,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, kernel, stride, padding, bias=bias)
        self.norm = norm(outputs)
        self.activation = activation
        self.kernel, self.stride, self.padding = kernel, stride, padding

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, C_in), of at least one kernel's length, padding included."""
        return self.activation(self.norm(convolve(x, self.conv.weight, self.conv.bias, self.stride, self.padding)))

    def frames(self, lengths: Tensor) -> Tensor:
        """Frames out for frames in, both (B,); 0 where not even one kernel fits."""
        spare = lengths + 2 * self.padding - self.kernel
        return (torch.div(spare, self.stride, rounding_mode="floor") + 1).clamp_min(0)


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 1, padding: int = 0, groups: int = 1
) -> Tensor:
    """`F.conv1d`, channels last: x (B, T, C_in) and weight (C_out, C_in / groups, K) to (B, T', C_out).

    On CPUs by oneDNN, whose convolutions reach the speed of its matrix products (and so twice that of `_multiply` in
    bf16, three times in fp32), elsewhere by matrix products.
    """
    if exporting():
        return F.conv1d(x.mT, weight, bias, stride, padding, groups=groups).mT
    if x.shape[2] == 1:  # a waveform's windows are small enough to be copied
        return F.linear(F.pad(x[..., 0], (padding, padding)).unfold(1, weight.shape[2], stride), weight[:, 0], bias)
    if x.device.type != "cpu" and groups == 1:
        return _multiply(x, weight, bias, stride, padding)
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    return _convolve(x, weight, bias, stride, padding, groups)  # type: ignore[no-any-return]


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """A convolution as one matrix product over blocks of `stride` frames, which overlap nowhere: no copies are made.

    A kernel spans m such blocks. Each block is multiplied with all m parts of the kernel, and the m results that belong
    to one frame are added.
    """
    outputs, inputs, kernel = weight.shape
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


@torch.library.custom_op("auricle::convolve", mutates_args=())
def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, groups: int) -> Tensor:
    """The convolution of PyTorch's libraries, opaque to the compiler, which would tie it to one length."""
    x, weight, numbers = _for_library(x, weight, stride, padding)
    return _as_frames(torch.convolution(x, weight, bias, *numbers, groups))


@torch.library.custom_op("auricle::convolve_backward", mutates_args=())
def _convolve_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, groups: int
) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the weight.

    On the CPU the latter as matrix products, one for each place of the kernel: oneDNN's own takes 5 times as long in
    fp32 where the stride is 2 and the kernel 3.
    """
    products = x.device.type == "cpu" and groups == 1
    wanted = (True, not products, False)
    picture, kernel, numbers = _for_library(x, weight, stride, padding)
    flat, *_ = _for_library(gradient, weight, stride, padding)
    of_x, of_weight, _ = torch.ops.aten.convolution_backward(flat, picture, kernel, None, *numbers, groups, wanted)
    if not products:
        return _as_frames(of_x), of_weight.view(weight.shape).contiguous()
    rows, x = gradient.flatten(0, 1), F.pad(x, (0, 0, padding, padding)) if padding else x
    seen = (x[:, place::stride][:, : gradient.shape[1]].flatten(0, 1) for place in range(weight.shape[2]))
    return _as_frames(of_x), torch.stack([linear(rows.mT, part.mT) for part in seen], 2)


def _for_library(
    x: Tensor, weight: Tensor, stride: int, padding: int
) -> tuple[Tensor, Tensor, tuple[list[int], list[int], list[int], bool, list[int]]]:
    """x (B, T, C), the weight and the numbers, as `torch.convolution` takes them.

    On the CPU a picture one row high, which oneDNN takes channels last: without a copy, and twice as fast in fp32 as a
    sequence (B, C, T).
    """
    x = x.mT
    if x.device.type != "cpu":
        return x, weight, ([stride], [padding], [1], False, [0])
    return x[:, :, None], weight[:, :, None], ([1, stride], [0, padding], [1, 1], False, [0, 0])


def _as_frames(x: Tensor) -> Tensor:
    """Back to (B, T, C)."""
    return x.flatten(2).mT.contiguous()


@_convolve.register_fake
def _shape(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, groups: int) -> Tensor:
    return x.new_empty(x.shape[0], (x.shape[1] + 2 * padding - weight.shape[2]) // stride + 1, weight.shape[0])


@_convolve_backward.register_fake
def _shapes(gradient: Tensor, x: Tensor, weight: Tensor, *numbers: int) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, *ctx.numbers = inputs
    ctx.save_for_backward(x, weight)


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    of_bias = gradient.sum((0, 1)) if ctx.needs_input_grad[2] else None
    return *_convolve_backward(gradient, *ctx.saved_tensors, *ctx.numbers), of_bias, None, None, None


_convolve.register_autograd(_gradients, setup_context=_remember)


class Moments(NamedTuple):
    """Of the K samples that the first convolution sees, over all its places in a clip; float64."""

    mean: Tensor
    """(B, K)"""
    covariance: Tensor
    """(B, K, K)"""


class ClipNormLayer(ConvLayer):
    """A waveform's convolution, each channel normalised over the clip (GroupNorm, a group a channel), an activation.

    The convolution is linear, so its output's mean and variance follow from the `Moments` of the samples under the
    kernel, and with them the norm goes into the weights: one matrix product, and its large output is never read for
    statistics. In float64, because where samples hardly differ from their neighbours the variance is a small rest.
    """

    def __init__(self, outputs: int, kernel: int, stride: int, bias: bool, activation: Callable[[Tensor], Tensor]):
        super().__init__(
            1, outputs, kernel, stride, 0, bias, lambda channels: nn.GroupNorm(channels, channels), activation
        )

    def moments(self, waveforms: Tensor, lengths: Tensor | None) -> Moments:
        """Moments of waveforms (B, S), of the windows that lie inside each clip's `lengths` (B,); None: all."""
        count = waveforms.new_full((waveforms.shape[0],), waveforms.shape[1]) if lengths is None else lengths
        count = self.frames(count)
        windows, start = waveforms.unfold(1, self.kernel, self.stride), 0  # (B, T, K)
        total = product = torch.zeros((), dtype=torch.float64, device=waveforms.device)
        for part in (windows,) if torch.compiler.is_compiling() else torch.split(windows, _WINDOWS_AT_ONCE, 1):
            place = torch.arange(part.shape[1], device=part.device) + start
            start += part.shape[1]
            part = torch.where((place < count[:, None])[..., None], part.double(), 0)
            total, product = total + part.sum(1), product + part.mT @ part
        count = count.clamp_min(1)[:, None].double()
        mean = total / count
        return Moments(mean, product / count[..., None] - mean[:, :, None] * mean[:, None])

    def forward(self, x: Tensor, moments: Moments | None = None) -> Tensor:
        """x (B, S, 1) with the moments of the clips that it is a part of; None: of x itself, all of it."""
        x = x[..., 0]
        mean, covariance = self.moments(x, None) if moments is None else moments
        norm, weight = cast(nn.GroupNorm, self.norm), self.conv.weight[:, 0].double()  # (C, K)
        variance = ((weight @ covariance) * weight).sum(-1).clamp_min(0)  # (B, C)
        scale = norm.weight * (variance + norm.eps).rsqrt()
        level = mean.mean(1, keepdim=True)  # subtracted before the product, which may be in bfloat16
        shift = norm.bias - (mean - level) @ weight.T * scale
        if self.conv.bias is not None:
            shift = shift + (self.conv.bias - self.conv.bias) * scale  # the norm undoes it: a gradient, of zeros
        kernels = torch.cat([weight * scale[..., None], shift[..., None]], 2).to(x.dtype)  # (B, C, K + 1)
        windows = (x - level.to(x.dtype)).unfold(1, self.kernel, self.stride)
        return self.activation(F.pad(windows, (0, 1), value=1.0) @ kernels.mT)


_WINDOWS_AT_ONCE = 1 << 20
"""Windows of long clips that are copied at once; bounds memory."""


class WaveformConvolutions(nn.Module):
    """A stack of `ConvLayer`s: waveforms (B, S) to frames (B, T, C), one every `hop` samples.

    A clip gives the same frames alone and in any batch: what lies past its end is zero before every convolution that
    sees it.
    """

    def __init__(
        self,
        channels: Sequence[int],
        kernels: Sequence[int],
        strides: Sequence[int],
        paddings: Sequence[int],
        *,
        bias: bool = True,
        norm: ConvNorm = "channel",
        activation: Callable[[Tensor], Tensor] = F.relu,
    ) -> None:
        super().__init__()
        norms: dict[ConvNorm, Callable[[int], nn.Module]] = {
            "channel": ChannelNorm,
            "layer": nn.LayerNorm,
            "group": lambda channels: nn.Identity(),
        }
        sizes = zip((1, *channels), channels, kernels, strides, paddings, strict=False)
        self.layers = nn.ModuleList(ConvLayer(*size, bias, norms[norm], activation) for size in sizes)
        if norm == "group":
            self.layers[0] = ClipNormLayer(channels[0], kernels[0], strides[0], bias, activation)
        self.hop = math.prod(strides)
        """Samples between frames."""
        self.reach, first = 1, 0
        """Samples that a frame sees."""
        for kernel, stride, padding in reversed(list(zip(kernels, strides, paddings, strict=True))):
            self.reach, first = (self.reach - 1) * stride + kernel, first * stride - padding
        self.offset = first + (self.reach - 1) / 2
        """Samples from the clip's start to the centre of frame 0."""

    def forward(
        self, waveforms: Tensor, lengths: Tensor | None, moments: Moments | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Frames of waveforms (B, S), and their numbers (B,), for `lengths` (B,) in samples.

        `lengths` None: no clip is padded. `moments`: those of the whole clips, if these are parts of them.
        Frames past a clip's length are undefined.
        """
        if waveforms.shape[1] < self.reach:
            waveforms = F.pad(waveforms, (0, self.reach - waveforms.shape[1]))
        x = waveforms[..., None]
        moments = self.moments(x[..., 0], lengths) if moments is None else moments
        for layer in self._layers():
            if lengths is not None:
                if layer.padding:
                    x = x * (torch.arange(x.shape[1], device=x.device) < lengths[:, None])[..., None]
                lengths = layer.frames(lengths)
            x = layer(x, moments) if isinstance(layer, ClipNormLayer) else layer(x)
        return x, lengths

    def moments(self, waveforms: Tensor, lengths: Tensor | None) -> Moments | None:
        """What a norm over the clip needs to know of whole clips, as in `forward`; None where there is no such norm."""
        first = self.layers[0]
        return first.moments(waveforms, lengths) if isinstance(first, ClipNormLayer) else None

    def frames(self, lengths: Tensor) -> Tensor:
        """Numbers of frames (B,) of clips of `lengths` (B,) samples."""
        for layer in self._layers():
            lengths = layer.frames(lengths)
        return lengths

    def _layers(self) -> Iterator[ConvLayer]:
        return iter(cast(Iterable[ConvLayer], self.layers))
