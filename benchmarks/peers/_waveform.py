"""What the peers of waveform Transformers share: transformers' models as containers, its masks, and the operations."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers import Data2VecAudioConfig, Data2VecAudioModel
from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices

from auricle.data.batching import Batch
from auricle.encoders.waveform import WaveformConfig
from peers import Peer, block_operations

DECAY = 0.999
"""Share of itself that a teacher keeps at each step."""


def options(size: WaveformConfig, layer_drop: float, fused: bool) -> dict[str, Any]:
    """The part of transformers' configuration that its HuBERT and data2vec have in common; `fused`: SDPA."""
    return {
        "hidden_size": size.dim,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "intermediate_size": size.ffn,
        "conv_dim": (size.channels,) * len(size.kernels),
        "conv_kernel": size.kernels,
        "conv_stride": size.strides,
        "conv_bias": size.conv_bias,
        "num_conv_pos_embedding_groups": size.position_groups,
        "hidden_dropout": size.dropout,
        "attention_dropout": size.attention_dropout,
        "activation_dropout": size.activation_dropout,
        "feat_proj_dropout": size.input_dropout,
        "layerdrop": layer_drop,
        "mask_time_prob": 1.0,  # gives the model its mask vector; masks are drawn by the peer
        "attn_implementation": "sdpa" if fused else "eager",
    }


def cut(batch: Batch) -> Tensor:
    """Waveforms (B, S), all cut to the shortest: fairseq trains without padding."""
    return batch.waveforms[:, : int(batch.lengths.min())]


class Data2VecPeer(Peer):
    """A student, and a teacher: a deep copy of its positions and Transformer, in whose feed-forward layers hooks hear
    the targets.

    Not `improved`: explicit attention, the teacher follows weight by weight, AdamW as PyTorch runs it by default.
    `improved`: SDPA, the teacher follows all weights at once, AdamW fused.
    """

    def __init__(self, size: WaveformConfig, layer_drop: float, top_layers: int, improved: bool) -> None:
        super().__init__()
        self.improved = improved
        config = Data2VecAudioConfig(
            **options(size, layer_drop, improved),
            num_conv_pos_embeddings=size.position_layers,
            conv_pos_kernel_size=size.position_kernel,
        )
        self.model = Data2VecAudioModel(config)
        self.teacher = copy.deepcopy(self.model.encoder).requires_grad_(False)
        self.heard: list[Tensor] = []
        for block in self.teacher.layers[-top_layers:]:
            block.feed_forward.register_forward_hook(lambda module, given, output: self.heard.append(output))

    def project(self, waveforms: Tensor) -> Tensor:
        """Waveforms (B, S), normalised, to projected features (B, T, D)."""
        x = self.model.feature_extractor(F.layer_norm(waveforms, waveforms.shape[1:]))
        return self.model.feature_projection(x.transpose(1, 2))[0]

    @torch.no_grad()
    def targets(self, x: Tensor) -> Tensor:
        """The mean of the last blocks' feed-forward outputs (B, T, D), each channel of a clip normalised over time."""
        self.heard.clear()
        self.teacher.eval()(x.clone())
        normal = [F.instance_norm(each.float().transpose(1, 2)) for each in self.heard]
        return torch.stack(normal).mean(0).transpose(1, 2)

    @torch.no_grad()
    def follow(self, *_: Any) -> None:
        """The teacher's Transformer moves towards the student's; its positions are copied."""
        student = dict(self.model.encoder.named_parameters())
        if self.improved:
            pairs = [(old, student[name]) for name, old in self.teacher.named_parameters() if "pos_conv" not in name]
            torch._foreach_lerp_([old for old, _ in pairs], [new for _, new in pairs], 1 - DECAY)
        for name, old in self.teacher.named_parameters():
            if "pos_conv" in name:
                old.copy_(student[name])
            elif not self.improved:
                old.mul_(DECAY).add_(student[name], alpha=1 - DECAY)

    def optimizer(self) -> torch.optim.Optimizer:
        learned = [weight for weight in self.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(learned, 5e-4, (0.9, 0.98), 1e-6, 0.01, fused=self.improved or None)
        optimizer.register_step_post_hook(self.follow)
        return optimizer


def span_mask(x: Tensor, probability: float, span: int, least: int) -> Tensor:
    """Masked frames (B, T) of x (B, T, D) by transformers' sampler, which draws them with numpy on the host."""
    mask = _compute_mask_indices(tuple(x.shape[:2]), probability, span, min_masks=least)
    return torch.from_numpy(mask).to(x.device)


def masked_share(probability: float) -> float:
    """Share of the frames that spans cover which may overlap: as many spans as `probability` pays for."""
    return 1 - math.exp(-probability)


def frames_of(size: WaveformConfig, samples: NDArray[np.int64]) -> NDArray[np.float64]:
    """Frames of clips of these samples."""
    frames = samples
    for kernel, stride in zip(size.kernels, size.strides, strict=True):
        frames = (frames - kernel) // stride + 1
    return frames.astype(np.float64)


def convolution_operations(size: WaveformConfig, samples: NDArray[np.int64]) -> float:
    """Forward operations from waveform to projected frames."""
    frames, channels, total = samples, 1, 0.0
    for kernel, stride in zip(size.kernels, size.strides, strict=True):
        frames = (frames - kernel) // stride + 1
        total += 2.0 * frames.sum() * kernel * channels * size.channels
        channels = size.channels
    return total + 2.0 * frames.sum() * channels * size.dim


def context_operations(
    size: WaveformConfig, frames: NDArray[np.float64], seen: NDArray[np.float64] | None = None
) -> float:
    """Forward operations of positional convolutions and Transformer on sequences of these lengths; of the latter on
    those that are `seen`, if not all are.
    """
    positions = 2 * size.position_layers * size.position_kernel * size.dim * size.dim / size.position_groups
    blocks = size.layers * block_operations(frames if seen is None else seen, size.dim, size.ffn)
    return float(frames.sum() * positions) + blocks
