"""A residual network over patches of a spectrogram: ResNet-50's bottlenecks, without the stride of its stem."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

from torch import Tensor, nn
from torch.nn import functional as F

EXPANSION = 4
"""A block's output channels over those of its 3 x 3 convolution."""
STRIDE = 16
"""Of the whole network, in time and in frequency: the pooling and three stages, 2 each."""


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation by groups of 16 channels (Wu & He 2018, arXiv:1803.08494), or of the most that divide both.

    In place of batch normalisation: a patch's output never depends on its batch, in training too, so that micro-batches
    and processes may be of any size, and there are no running statistics that a bad batch could spoil.
    """
    return nn.GroupNorm(channels // math.gcd(channels, 16), channels)


def conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A square convolution that keeps the size (divided by the stride, rounded up); no bias, since a norm follows."""
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)


def init_convolutions(module: nn.Module) -> None:
    """He et al.'s initialisation of a convolution (2015, arXiv:1502.01852). For `Module.apply`."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 (with the stride) and 1 x 1 convolutions, each normalised, beside a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.reduce, self.reduce_norm = conv(inputs, width), group_norm(width)
        self.spread, self.spread_norm = conv(width, width, 3, stride), group_norm(width)
        self.expand, self.expand_norm = conv(width, EXPANSION * width), group_norm(EXPANSION * width)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != EXPANSION * width:
            self.shortcut = nn.Sequential(conv(inputs, EXPANSION * width, 1, stride), group_norm(EXPANSION * width))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, C, H, W) to the 3 x 3 convolution's output before its ReLU (N, width, h, w), and the block's own."""
        # In place, which spares memory traffic: no norm's gradient needs the norm's output, nor ReLU's its input.
        inner = self.spread_norm(self.spread(F.relu_(self.reduce_norm(self.reduce(x)))))
        out = self.expand_norm(self.expand(F.relu(inner)))
        return inner, F.relu_(out.add_(self.shortcut(x)))


class Resnetish(nn.Module):
    """ResNet-50 (He et al. 2016) of one input channel and a stem of stride 1, as Hershey et al. 2017 change it.

    `blocks` are the bottlenecks of each stage, (3, 4, 6, 3) there, whose 3 x 3 convolutions have `width`, 2 `width`,
    4 `width`, ... channels; `channels` are those of the stem's and the stages' outputs. Normalised in groups, where
    theirs is over the batch: ours.
    """

    def __init__(self, width: int, blocks: Sequence[int]) -> None:
        super().__init__()
        self.stem, self.stem_norm = conv(1, width, 7), group_norm(width)
        self.blocks = nn.ModuleList()
        self.channels = [width]
        for stage, count in enumerate(blocks):
            for index in range(count):
                stride = 2 if stage and not index else 1
                inputs = EXPANSION * (width << stage) if index else self.channels[-1]
                self.blocks.append(Bottleneck(inputs, width << stage, stride))
            self.channels.append(EXPANSION * (width << stage))
        self.ends = list(accumulate(blocks))
        self.apply(init_convolutions)

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Patches (N, 1, T, F) to the outputs of the stem and of each stage, and the last 3 x 3 convolution's.

        Stem and first stage have (N, C, ⌈T / 2⌉, ⌈F / 2⌉), each later stage half of that in both. The convolution's
        output, before its ReLU, has a quarter of the last stage's channels.
        """
        x = F.max_pool2d(F.relu_(self.stem_norm(self.stem(x))), 3, 2, 1)
        stages, inner = [x], x
        for number, block in enumerate(self.blocks, 1):
            inner, x = block(x)
            if number in self.ends:
                stages.append(x)
        return stages, inner
