"""MobileNetV3-Small (Howard et al. 2019, arXiv:1905.02244) over patches of a spectrogram."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from auricle.nn.resnet import conv, group_norm, init_convolutions

BLOCKS = (
    # kernel, expanded, out, squeeze and excite, hard swish, stride: Table 2 of the paper
    (3, 16, 16, True, False, 2),
    (3, 72, 24, False, False, 2),
    (3, 88, 24, False, False, 1),
    (5, 96, 40, True, True, 2),
    (5, 240, 40, True, True, 1),
    (5, 240, 40, True, True, 1),
    (5, 120, 48, True, True, 1),
    (5, 144, 48, True, True, 1),
    (5, 288, 96, True, True, 2),
    (5, 576, 96, True, True, 1),
    (5, 576, 96, True, True, 1),
)
STEM, LAST = 16, 576
"""Channels of the first and the last convolution."""


def scaled(channels: float, least: int = 8) -> int:
    """The nearest multiple of 8, but at least `least` and never more than a tenth below: MobileNet's rounding."""
    rounded = max(least, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


class SqueezeExcite(nn.Module):
    """Channels weighed by what their means say (Hu et al. 2018), a quarter of them in between."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, scaled(channels / 4), 1)
        self.excite = nn.Conv2d(scaled(channels / 4), channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) to the same shape."""
        means = x.mean((2, 3), keepdim=True)
        return x * F.hardsigmoid(self.excite(F.relu(self.squeeze(means))))


class InvertedResidual(nn.Module):
    """Expand, convolve each channel alone (with the stride), weigh, and project; with a shortcut where shapes agree."""

    def __init__(self, kernel: int, inputs: int, expanded: int, outputs: int, excite: bool, swish: bool, stride: int):
        super().__init__()
        self.activation: Callable[[Tensor], Tensor] = F.hardswish if swish else F.relu
        self.expand = nn.Sequential(conv(inputs, expanded), group_norm(expanded)) if expanded != inputs else None
        self.depthwise = conv(expanded, expanded, kernel, stride, groups=expanded)
        self.depthwise_norm = group_norm(expanded)
        self.excite = SqueezeExcite(expanded) if excite else nn.Identity()
        self.project, self.project_norm = conv(expanded, outputs), group_norm(outputs)
        self.has_shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) to (N, outputs, ⌈H / stride⌉, ⌈W / stride⌉)."""
        hidden = x if self.expand is None else self.activation(self.expand(x))
        hidden = self.excite(self.activation(self.depthwise_norm(self.depthwise(hidden))))
        out: Tensor = self.project_norm(self.project(hidden))
        return x + out if self.has_shortcut else out


class MobileNet(nn.Module):
    """The trunk of MobileNetV3-Small for one input channel, `alpha` times as wide; normalised in groups: ours."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        channels = scaled(STEM * alpha)
        self.stem, self.stem_norm = conv(1, channels, 3, 2), group_norm(channels)
        self.blocks = nn.ModuleList()
        for kernel, expanded, outputs, excite, swish, stride in BLOCKS:
            outputs = scaled(outputs * alpha)
            block = InvertedResidual(kernel, channels, scaled(expanded * alpha), outputs, excite, swish, stride)
            self.blocks.append(block)
            channels = outputs
        self.channels = scaled(LAST * alpha)
        self.last, self.last_norm = conv(channels, self.channels), group_norm(self.channels)
        self.apply(init_convolutions)

    def forward(self, x: Tensor) -> Tensor:
        """Patches (N, 1, T, F) to (N, channels, ⌈T / 32⌉, ⌈F / 32⌉)."""
        x = F.hardswish(self.stem_norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return F.hardswish(self.last_norm(self.last(x)))
