"""The benchmarks at tiny sizes: every row runs and does the work it is said to do, operations are counted right."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import loudness
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from auricle.config import differences, edit
from auricle.data.batching import Batch
from auricle.methods import PRESETS, preset
from auricle.methods.base import RunConfig
from auricle.nn import conv  # noqa: F401  # its operators are counted

SMALL = {"dim": 64, "layers": 2, "heads": 4, "ffn": 256}
DECODER = {"decoder_dim": 64, "decoder_layers": 2, "decoder_heads": 4, "crop_s": 2.0}
WAVEFORM = SMALL | {"channels": 64, "position_kernel": 15}
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
    "best_rq": {"encoder": SMALL, "objective": {"codes": 64}},
    "hubert": {"encoder": WAVEFORM, "objective": {"kmeans": {"clusters": 8}, "head_dim": 32}},
    "music2vec": {"encoder": WAVEFORM, "objective": {"top_layers": 2}},
    "data2vec2": {"encoder": WAVEFORM, "objective": {"top_layers": 2, "copies": 2, "decoder_dim": 32}},
    "csc": {
        "encoder": {
            "dim": 16,
            "heads": 2,
            "hidden": 16,
            "shared_blocks": 1,
            "separation_blocks": 1,
            "speaker_blocks": 1,
        }
    },
}


SCRIPTS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """A benchmark as a module, by its name."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module


@pytest.fixture
def bench(script: Callable[[str], Any]) -> Any:
    pytest.importorskip("transformers")
    return script("pretrain_step")


def convolve_operations(x: Sequence[int], weight: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> int:
    """Of our own operator; PyTorch does not look inside. Nor does it count its CPU's attention."""
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


def convolve_backward_operations(
    gradient: Sequence[int], x: Sequence[int], weight: Sequence[int], *_: Any, **__: Any
) -> int:
    """Twice those of the way there: one product for x, one for the weight."""
    return 2 * 2 * math.prod(gradient) * math.prod(weight[1:])


def recurrent_operations(x: Sequence[int], weight: Sequence[int], states: Sequence[int], *_: Any, **__: Any) -> int:
    """Of an LSTM one way, step by step and both products; PyTorch does not count its CPU's."""
    return 2 * math.prod(x[:2]) * (math.prod(weight) + math.prod(states))


def recurrent_backward_operations(
    x: Sequence[int], weight: Sequence[int], states: Sequence[int], *_: Any, **__: Any
) -> int:
    """Twice those of the way there."""
    return 2 * recurrent_operations(x, weight, states)


OPERATORS = {
    torch.ops.aten.mkldnn_rnn_layer: recurrent_operations,
    torch.ops.aten.mkldnn_rnn_layer_backward: recurrent_backward_operations,
    torch.ops.auricle.convolve: convolve_operations,
    torch.ops.auricle.convolve_backward: convolve_backward_operations,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda gradient, q, k, v, *_, **__: sdpa_backward_flop_count(gradient, q, k, v)
    ),
}


def small(bench: Any, method: str) -> tuple[Any, RunConfig, Batch]:
    """The method's peers, a run of few weights, and a batch of two clips of at most 2 s, or four to mix."""
    peer = importlib.import_module(f"peers.{method}")
    seconds = min(peer.SECONDS, (1.5, 2.0))  # windows of one length, or clips of several
    (batch,) = bench.draw_batches(seconds, clips=4 if method == "csc" else 2, count=1, seed=0, bucketed=False)
    return peer, edit(edit(preset(peer.PRESET), **getattr(peer, "EDITS", {})), **SIZES[method]), batch


def test_every_method_is_tested(bench: Any) -> None:
    assert set(bench.METHODS) == set(SIZES)


@pytest.mark.parametrize("method", SIZES)
def test_every_row_takes_a_step(bench: Any, method: str) -> None:
    peer, run, batch = small(bench, method)
    for row in bench.row_names(peer):
        step = bench.build(row, peer, run, [batch], seed=0)
        before, after = step(batch), step(batch)
        assert before.isfinite(), row
        assert after != before, row


@pytest.mark.parametrize("method", SIZES)
def test_operations_are_those_of_our_step(bench: Any, method: str) -> None:
    """PyTorch counts the products that our step runs, there and back, features aside; a little of them is waste."""
    peer, run, batch = small(bench, method)
    model = run.build().train()
    model.prepare(cycle([batch]))
    with FlopCounterMode(display=False, depth=3, custom_mapping=OPERATORS) as counter:
        model(batch).loss.backward()
    counts = {name: sum(flops.values()) for name, flops in counter.get_flop_counts().items()}
    aside = sum(flops for name, flops in counts.items() if name.endswith((".front_end", ".quantizer", ".clusters")))
    found = peer.operations(run, batch.lengths.numpy()) / (counts["Global"] - aside)
    assert 0.8 < found < 1.1


@pytest.fixture
def hubert(script: Callable[[str], Any]) -> Any:
    """The embedding benchmark with transformers' network of few weights and ours with the same."""
    transformers = pytest.importorskip("transformers")
    bench = script("hubert_embedding")
    config = transformers.HubertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, conv_dim=(16,) * 7
    )
    bench.peer, bench.encoder = bench.twins(config, seed=0)
    return bench


def embedding_errors(bench: Any, letters: str, seconds: tuple[float, float]) -> dict[str, dict[str, float]]:
    batches = bench.draw(4, 2, seconds, 0, torch.device("cpu"))
    exact = bench.build("S", bench.peer, bench.encoder)
    rows = {letter: bench.build(letter, bench.peer, bench.encoder) for letter in letters}
    for row in rows.values():
        assert [vectors.shape for vectors in bench.embed(row, batches)] == [(2, 32)] * 2
    return {letter: bench.errors_of(row, exact, batches) for letter, row in rows.items()}


def test_both_embed_clips_of_one_length_alike(hubert: Any) -> None:
    errors = embedding_errors(hubert, "TUVCD", (0.5, 0.5))
    for letter, error in errors.items():
        assert error["frames"] < (1e-4 if letter in "TC" else 0.05), letter
        assert (error["frames"] > 1e-4) == (letter in "UVD"), letter  # those in bfloat16 are so indeed


def test_clips_of_several_lengths_are_exact_but_in_padded_transformers(hubert: Any) -> None:
    errors = embedding_errors(hubert, "TSRCD", (0.3, 0.9))
    assert errors["T"]["frames"] > 0.02
    assert max(errors["S"]["frames"], errors["C"]["frames"]) < 1e-4
    assert max(errors["R"]["frames"], errors["D"]["frames"]) < 0.02


def test_operations_of_an_embedding_are_those_of_its_forward_pass(hubert: Any) -> None:
    ((waveforms, lengths),) = hubert.draw(2, 2, (0.5, 0.5), 0, torch.device("cpu"))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        hubert.peer(waveforms)
    assert hubert.operations(hubert.encoder, lengths.numpy()) == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_any_encoder_has_a_row_in_the_embedding_benchmark(tmp_path: Path) -> None:
    figures = run("embedding.py", tmp_path, "fbank", "apc-tiny", "--clips=2", "--rounds=1", "--threads=1")
    assert set(figures["encoders"]) == {"fbank", "apc-tiny"}
    for found in figures["encoders"].values():
        assert found["audio_s"] > 4
        assert all(times[0] > 0 for times in found["times_s"].values())


@pytest.mark.slow
def test_embedding_memory_is_that_of_a_process_of_its_own(tmp_path: Path) -> None:
    figures = run("embedding.py", tmp_path, "fbank", "--memory-clips", "3", "--threads=1")
    assert 50 < figures["encoders"]["fbank"]["3"] < 5000


@pytest.mark.parametrize("name", ["mockingjay-tiny", "hubert-tiny", "mae-ast-tiny", "audio-mae-tiny"])
def test_windows_are_compared_for_any_encoder_that_has_them(script: Callable[[str], Any], name: str) -> None:
    bench = script("long_audio")
    encoder = preset(name).build().encoder.eval()
    seconds = 3 * bench.window(encoder.config) * encoder.hop / encoder.sample_rate
    whole = bench.seeing(encoder, seconds)
    waveform = 0.1 * torch.randn(1, int(seconds * encoder.sample_rate))
    for length, same in ((waveform.shape[1] // 4, True), (waveform.shape[1], False)):
        batch = waveform[:, :length], torch.tensor([length])
        with torch.inference_mode():
            one, other = (each(*batch, [len(each.dims) - 1]).hidden_states[0] for each in (encoder, whole))
        assert torch.allclose(one, other, atol=1e-4) == same


def test_the_tiny_music_configurations_differ_in_what_the_published_ones_do(script: Callable[[str], Any]) -> None:
    grid = script("music_grid")
    tiny = {name: grid.tiny(name) for name in (*grid.MUSIC2VEC, *grid.MUSICHUBERT)}
    published = {name: preset(name) for name in tiny}
    listed = {name.replace("_", "-") for name in PRESETS if name.startswith(("music2vec", "musichubert"))}
    assert set(tiny) == {name for name in listed if "tiny" not in name}
    for first in ("music2vec-vanilla", "musichubert-k500"):
        for name in tiny:
            if name.startswith(first[:8]):
                changed = told(tiny[first], tiny[name]) - {"objective.quantizer_encoder"}
                assert changed == told(published[first], published[name]), name
    assert tiny["music2vec-800k"].train.steps == 2 * tiny["music2vec-vanilla"].train.steps
    assert [tiny[f"music2vec-{name}"].objective.top_layers for name in ("vanilla", "target12")] == [2, 3]
    assert 6 * tiny["music2vec-crop5s"].objective.crop_s == pytest.approx(tiny["music2vec-vanilla"].objective.crop_s)
    assert tiny["musichubert-k500-mfcc60"].build().labels.quantizer.dim == 60


def test_one_untrained_twin_stands_for_a_family_of_music_configurations(script: Callable[[str], Any]) -> None:
    grid = script("music_grid")
    for names in grid.TWINS.values():
        prints = set()
        for name in names:
            torch.manual_seed(0)
            prints.add(grid.tiny(name).build().encoder.fingerprint())
        assert len(prints) == 1


def test_music_tables_mark_the_best_configuration_and_what_cannot_be_told_from_it(
    script: Callable[[str], Any], tmp_path: Path
) -> None:
    tables, clips = script("music_tables"), loudness.manifest(loudness.write_clips(tmp_path))
    deaf, keen = (
        loudness.run(loudness.Loudness(), clips, "loud", tmp_path / str(layer), layers=(layer,)) for layer in (0, 1)
    )
    rows = {"deaf": {"loud": deaf}, "other": {"loud": deaf}, "keen": {"loud": keen}, "both": {"loud": deaf + keen}}
    figures, text = tables.score_table(rows, ["deaf", "other"])
    assert {name: row["loud"].get("to_best") for name, row in figures.items()} == {
        "deaf": "best",
        "other": "no different",
        "keen": "better",
        "both": "better",
        "chance": None,
    }
    assert "| keen | 100.0 (100.0 to 100.0) + |" in text
    assert "| other |" in text
    assert tables.score_table(rows, ["keen", "deaf"])[0]["deaf"]["loud"]["to_best"] == "worse"
    gains, _ = tables.twin_table(rows, {"keen": "deaf", "deaf": "keen", "other": "deaf"})
    assert [row["loud"]["verdict"] for row in gains.values()] == ["better", "worse", "no different"]
    assert gains["keen"]["loud"]["mean"] == pytest.approx(keen[0].score - deaf[0].score)


def test_published_scores_of_music_tasks_stand_in_their_columns(script: Callable[[str], Any]) -> None:
    tables = script("music_tables")
    assert all(len(text.split()) == len(tables.MARBLE_TASKS) for text in tables.MARBLE.values())
    told = tables.published_table(["nsynth-pitch", "giantsteps-key"])
    assert "| music2vec-v1 | 50.6 | 93.1 |" in told


def told(old: RunConfig, new: RunConfig) -> set[str]:
    """The options in which two runs differ, names aside."""
    return {name for name, *_ in differences(old.model_dump(), new.model_dump())} - {"preset"}


def run(name: str, folder: Path, *arguments: str) -> Any:
    """The figures that a benchmark writes, run as a script."""
    command = [sys.executable, str(SCRIPTS / name), *arguments, "--json", str(folder / "figures.json")]
    subprocess.run(command, check=True, capture_output=True)
    return json.loads((folder / "figures.json").read_text())
