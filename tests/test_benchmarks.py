"""The step benchmark: every row of every method runs, and operations are counted right."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from auricle.config import edit
from auricle.data.batching import Batch
from auricle.methods import preset
from auricle.methods.base import RunConfig

SMALL = {"dim": 64, "layers": 2, "heads": 4, "ffn": 256}
DECODER = {"decoder_dim": 64, "decoder_layers": 2, "decoder_heads": 4, "crop_s": 2.0}
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "mockingjay": {"encoder": SMALL},
    "apc": {"encoder": {"dim": 64, "layers": 2}, "objective": {"crop_s": 2.0}},
    "cpc": {
        "encoder": {"channels": (64,) * 5, "context_dim": 64},
        "objective": {"steps": 3, "num_negatives": 8},
    },
    "audio_mae": {"encoder": SMALL, "objective": DECODER},
    "audio_mae_global": {"encoder": SMALL, "objective": DECODER},
    "mae_ast": {"encoder": SMALL, "objective": {"decoder_layers": 1}},
    "trill": {"encoder": {"width": 16, "blocks": (1, 1, 1, 1), "embedding": 16}},
}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module("pretrain_step")


def small(bench: Any, method: str) -> tuple[Any, RunConfig, Batch]:
    """The method's peers, a run of few weights, and a batch of two clips of at most 2 s."""
    peer = importlib.import_module(f"peers.{method}")
    seconds = min(peer.SECONDS, (1.5, 2.0))  # windows of one length, or clips of several
    (batch,) = bench.draw_batches(seconds, clips=2, count=1, seed=0, bucketed=False)
    return peer, edit(preset(peer.PRESET), **SIZES[method]), batch


def test_every_method_is_tested(bench: Any) -> None:
    assert set(bench.METHODS) == set(SIZES)


@pytest.mark.parametrize("method", SIZES)
def test_every_row_takes_a_step(bench: Any, method: str) -> None:
    peer, run, batch = small(bench, method)
    for row in bench.row_names(peer):
        step = bench.build(row, peer, run, torch.device("cpu"), seed=0)
        before, after = step(batch), step(batch)
        assert before.isfinite(), row
        assert after != before, row


@pytest.mark.parametrize("method", SIZES)
def test_operations_are_those_of_our_forward_pass(bench: Any, method: str) -> None:
    """PyTorch counts the products that our forward pass runs, features aside; a little of them is waste."""
    peer, run, batch = small(bench, method)
    model = run.build().train()
    with FlopCounterMode(display=False, depth=3) as counter:
        model(batch)
    counts = {name: sum(flops.values()) for name, flops in counter.get_flop_counts().items()}
    features = sum(flops for name, flops in counts.items() if name.endswith(".front_end"))
    found = peer.operations(run, batch.lengths.numpy()) / 3 / (counts["Global"] - features)
    assert 0.8 < found < 1.1
