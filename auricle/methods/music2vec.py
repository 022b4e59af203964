"""music2vec: data2vec on music, in the eight configurations of "On the effectiveness of speech self-supervised learning
for music" (Ma et al. 2023, arXiv:2307.05161; the first one also Li et al. 2022, arXiv:2212.02508), told by the names of
the models that its authors published, each of which differs from the vanilla one in what the name says.
"""

from __future__ import annotations

from typing import Any

from auricle.config import edit
from auricle.methods.data2vec import Data2VecRun, data2vec_base


def music2vec_vanilla() -> Data2VecRun:
    """music2vec as published: data2vec BASE on music, crops of 30 s, 65 % in spans of 10 frames, top 8 layers."""
    return edit(data2vec_base(), preset="music2vec_vanilla", objective={"crop_s": 30.0})


def _music2vec(preset: str, **changes: Any) -> Data2VecRun:
    return edit(music2vec_vanilla(), preset=preset, **changes)


def music2vec_800k() -> Data2VecRun:
    """music2vec, twice as long: 800000 steps."""
    return _music2vec("music2vec_800k", train={"steps": 800_000})


def music2vec_crop5s() -> Data2VecRun:
    """music2vec on crops of 5 s."""
    return _music2vec("music2vec_crop5s", objective={"crop_s": 5.0})


def music2vec_prob50() -> Data2VecRun:
    """music2vec, 50 % of the frames in spans."""
    return _music2vec("music2vec_prob50", objective={"mask": {"probability": 0.5}})


def music2vec_prob80() -> Data2VecRun:
    """music2vec, 80 % of the frames in spans."""
    return _music2vec("music2vec_prob80", objective={"mask": {"probability": 0.8}})


def music2vec_span5() -> Data2VecRun:
    """music2vec, spans of 5 frames (0.1 s)."""
    return _music2vec("music2vec_span5", objective={"mask": {"span": 5}})


def music2vec_span15() -> Data2VecRun:
    """music2vec, spans of 15 frames (0.3 s)."""
    return _music2vec("music2vec_span15", objective={"mask": {"span": 15}})


def music2vec_target12() -> Data2VecRun:
    """music2vec, targets of all 12 layers."""
    return _music2vec("music2vec_target12", objective={"top_layers": 12})


def music2vec_tiny() -> Data2VecRun:
    """Narrow convolutions and 4 layers, for two CPU cores: minutes of training on an hour of music."""
    return _music2vec(
        "music2vec_tiny",
        encoder={
            "channels": 64,
            "dim": 128,
            "layers": 4,
            "heads": 4,
            "ffn": 512,
            "position_layers": 3,
            "dropout": 0.0,
            "attention_dropout": 0.0,
        },
        objective={
            "crop_s": 8.0,
            "min_s": 0.5,
            "mask": {"span": 5},
            "top_layers": 4,
            "ema_steps": 2000,
            "convolution_rate": 0.03,
            "guard_after": 300,
        },
        data={"batch_seconds": 32.0},
        train={
            "steps": 800,
            "lr": 3e-4,
            "warmup": 0.1,
            "hold": 0.7,
            "clip_norm": 1.0,
            "accumulate": 1,
            "valid_every": 200,
            "checkpoint_every": 400,
        },
    )
