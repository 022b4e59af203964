from __future__ import annotations

import importlib
import math
import subprocess
import sys

import pytest
import torch
from tiny import beats, learn
from torch import Tensor

from auricle.config import edit
from auricle.data.batching import Batch
from auricle.encoders.mel_transformer import MelTransformer, MelTransformerConfig
from auricle.errors import ConfigError
from auricle.features.frontend import FrontEndConfig
from auricle.methods import METHODS, PRESETS, preset, preset_names, run_from_yaml
from auricle.methods.mockingjay import Mockingjay, MockingjayConfig, MockingjayRun
from auricle.nn.masking import Masked, Spans

SMALL = {"dim": 32, "heads": 4, "ffn": 64, "layers": 2, "front_end": {"n_mels": 20}}


def batch_of(*seconds: float, seed: int = 0) -> Batch:
    """Clips of noise whose level goes up and down, so that frames have something to tell of their neighbours."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([int(16000 * s) for s in seconds])
    waveforms = torch.zeros(len(seconds), int(lengths.max()))
    for row, length in enumerate(lengths.tolist()):
        time = torch.arange(length) / 16000
        level = 1 + 0.9 * torch.sin(2 * math.pi * 3 * time + torch.rand(1, generator=generator) * 6)
        waveforms[row, :length] = 0.05 * level * torch.randn(length, generator=generator)
    return Batch(waveforms, lengths, [str(i) for i in range(len(seconds))], torch.zeros(len(seconds)))


def small(name: str = "mockingjay_base", encoder: dict | None = None, **objective: object) -> MockingjayRun:
    """A preset at toy size."""
    run = edit(preset(name), encoder=SMALL)
    return edit(run, encoder=encoder or {}, objective=objective)  # type: ignore[return-value]


def reference(model: Mockingjay, batch: Batch, masked: Masked, spans: Spans) -> tuple[Tensor, int]:
    """The loss a second way, in float64: head on all frames, a boolean mask (B, T, F), `masked_select`."""
    config = model.config
    model = model.double()
    features, lengths = model.encoder.features(batch.waveforms.double(), batch.lengths)
    target = features if model.target is None else model.target(batch.waveforms.double(), batch.lengths)[0]
    prediction = model.head(model.encoder.encode(masked.x.double(), lengths).hidden_states[-1])
    chosen = torch.zeros_like(target, dtype=torch.bool)
    for row, length in enumerate(lengths.tolist()):
        size = 1 if config.loss_positions == "starts" else int(spans.length[row])
        for start in spans.starts[row, spans.valid[row]].tolist():
            chosen[row, start : start + size] = True
        if masked.bands is not None:
            chosen[row, :length, masked.bands[row]] = True
    error = prediction.masked_select(chosen) - target.masked_select(chosen)
    return (error.abs() if config.loss == "l1" else error**2).mean(), int(chosen.sum())


CASES = {
    "base": small(),
    "pre-norm": small("mockingjay_tiny"),
    "mse, spans of 3 to 9": small(loss="mse", span_min=3, span_max=9, overlap=True),
    "first code": small("mockingjay_paper_base", {"front_end": {"n_fft": 1024}}),
    "decibels": small("mockingjay_paper_large"),
    "log-linear": small("mockingjay_large", {"layers": 2}),
    "tera": small("tera_base"),
    "shared": small("audio_albert_base"),
}


def recorded(monkeypatch: pytest.MonkeyPatch, name: str) -> list:
    """What the function of this name returns from now on."""
    module, _, attribute = name.rpartition(".")
    function, results = getattr(importlib.import_module(module), attribute), []

    def spy(*args, **kwargs):
        results.append(function(*args, **kwargs))
        return results[-1]

    monkeypatch.setattr(name, spy)
    return results


@pytest.mark.parametrize("run", CASES.values(), ids=CASES)
def test_loss_is_the_reference(run, monkeypatch):
    torch.manual_seed(0)
    model = run.build().eval()
    batch = batch_of(1.5, 1.0, 0.4)
    masked = recorded(monkeypatch, "auricle.methods.mockingjay.mask_frames")
    spans = recorded(monkeypatch, "auricle.nn.masking.draw_spans")
    step = model(batch)
    loss, count = reference(model, batch, masked[0], spans[0])
    assert step.count == count > 0
    torch.testing.assert_close(step.loss.double(), loss, atol=1e-5, rtol=1e-5)
    assert step.metrics["trivial"] > 0


@pytest.mark.parametrize("run", CASES.values(), ids=CASES)
def test_gradients_reach_every_parameter(run):
    torch.manual_seed(0)
    model = run.build().train()
    step = model(batch_of(1.5, 1.0))
    assert not step.metrics
    step.loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "encoder", "head"),
    [
        ("mockingjay_paper_base", 21_388_800, 715_168),
        ("mockingjay_paper_large", 85_425_408, 2_956_803),
        ("mockingjay_base", 21_327_360, 653_648),
        ("mockingjay_large", 85_118_208, 746_697),
        ("tera_base", 21_327_360, 653_648),
        ("audio_albert_base", 7_151_616, 653_648),
    ],
)
def test_sizes_are_the_originals(name, encoder, head):
    model = preset(name).build()
    assert sum(p.numel() for p in model.encoder.parameters()) == encoder
    assert sum(p.numel() for p in model.head.parameters()) == head


@pytest.mark.parametrize("run", [CASES["base"], CASES["pre-norm"], CASES["first code"], CASES["decibels"]])
def test_a_clip_alone_is_the_same_in_a_batch(run):
    torch.manual_seed(0)
    encoder = edit(run.encoder, chunk_frames=60)
    model = MelTransformer(encoder).eval()
    batch = batch_of(2.3, 0.03, 0.9, 0.61)
    with torch.no_grad():
        together = model(batch.waveforms, batch.lengths)
        for row, samples in enumerate(batch.lengths.tolist()):
            alone = model(batch.waveforms[row : row + 1, :samples], batch.lengths[row : row + 1])
            count = int(alone.lengths[0])
            assert together.lengths[row] == count
            assert len(alone.hidden_states) == len(model.dims)
            for one, many in zip(alone.hidden_states, together.hidden_states, strict=True):
                torch.testing.assert_close(one[0, :count], many[row, :count], atol=1e-4, rtol=0)


def test_chosen_layers_are_those_of_all():
    torch.manual_seed(0)
    model = CASES["pre-norm"].build().encoder.eval()
    batch = batch_of(0.5)
    every, some = model(batch.waveforms, batch.lengths), model(batch.waveforms, batch.lengths, layers=[2, 0])
    assert torch.equal(some.hidden_states[0], every.hidden_states[2])
    assert torch.equal(some.hidden_states[1], every.hidden_states[0])
    assert model.hop == 320  # two frames of 160 samples, the first centred on sample 0, make a step
    assert model.offset == 80


def test_chunks_equal_the_whole_below_their_size_and_see_their_window_above():
    torch.manual_seed(0)
    config = edit(CASES["base"].encoder, chunk_frames=80)
    model, whole = MelTransformer(config).eval(), MelTransformer(edit(config, chunk_frames=500)).eval()
    whole.load_state_dict(model.state_dict())
    x, lengths = torch.randn(1, 200, 20), torch.tensor([200])
    with torch.no_grad():
        short = torch.tensor([80])
        assert torch.equal(
            model.encode(x[:, :80], short).hidden_states[-1], whole.encode(x[:, :80], short).hidden_states[-1]
        )
        chunked = model.encode(x, lengths).hidden_states[-1]
        for start, stop, keep, until in ((0, 80, 0, 60), (40, 120, 60, 100), (80, 160, 100, 140), (120, 200, 140, 200)):
            window = whole.encode(x[:, start:stop], torch.tensor([stop - start])).hidden_states[-1]
            torch.testing.assert_close(
                chunked[:, keep:until], window[:, keep - start : until - start], atol=1e-5, rtol=0
            )


def test_trivial_level_of_planted_signals():
    model = Mockingjay(MelTransformerConfig(**SMALL), MockingjayConfig(mask_fraction=0.5)).eval()
    lengths = torch.tensor([100, 70])
    ramp = torch.arange(100.0)[None, :, None] * torch.randn(2, 1, 20) + torch.randn(2, 1, 20)
    zigzag = (torch.arange(100) % 2 * 2.0 - 1)[None, :, None].expand(2, 100, 20)
    batch = batch_of(1.0, 0.7)

    def trivial(x: Tensor, **options: object) -> float:
        model.config = edit(model.config, **options)
        model.encoder.features = lambda *_: (x, lengths)  # type: ignore[method-assign]
        torch.manual_seed(3)
        return model(batch).metrics["trivial"].item()

    # Spans of one frame between known neighbours: a ramp is guessed exactly, ±1 in turn is missed by 2 everywhere.
    inside = {"mask_fraction": 0.05, "span_min": 1, "span_max": 1}
    assert trivial(ramp, **inside) < 1e-4
    assert trivial(zigzag, **inside) == pytest.approx(2.0, abs=1e-6)
    # A whole clip hidden is guessed as 0.
    assert trivial(zigzag, mask_fraction=1.0) == pytest.approx(1.0, abs=1e-6)
    # Bands too, whatever stands beside them in time.
    band = edit(model.config, mask_fraction=0.001, frequency_mask=1.0)
    assert 0.9 < trivial(zigzag, **band.model_dump()) < 1.1


def test_masks_are_drawn_anew_and_follow_the_seed():
    torch.manual_seed(0)
    model, batch = CASES["base"].build().eval(), batch_of(1.0, 0.8)
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(model(batch).loss)
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("run", CASES.values(), ids=CASES)
def test_pictures(run):
    torch.manual_seed(0)
    pictures = run.build().eval().visualize(batch_of(0.7, 1.0))
    stack = run.encoder.front_end.stack
    frames = (1 + 11200 // 160 if run.encoder.front_end.hop_ms == 10 else 1 + 11200 // 200) // stack * stack
    assert set(pictures) == {"target", "masked", "reconstruction"}
    assert all(picture.shape[0] == frames and picture.isfinite().all() for picture in pictures.values())
    assert pictures["target"].shape == pictures["reconstruction"].shape


def test_bfloat16_follows_float32():
    model = small(encoder={"dropout": 0.0, "attention_dropout": 0.0}).build().train()
    batch = batch_of(1.0, 0.8)
    torch.manual_seed(1)
    exact = model(batch).loss
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        step = model(batch)
    assert step.loss.dtype == torch.float32
    assert step.loss.item() == pytest.approx(exact.item(), rel=0.01)


def test_a_clip_too_short_to_mask_has_no_say():
    torch.manual_seed(0)
    model = CASES["base"].build().eval()
    step = model(batch_of(0.02))
    assert (step.loss, step.count) == (0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mockingjay_tiny", "apc_tiny"])
def test_one_compiled_graph_serves_every_batch_and_equals_eager(name):
    torch.manual_seed(0)
    encoder = preset(name).build().encoder.eval()
    last = [len(encoder.dims) - 1]
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(encoder.encode, dynamic=True, fullgraph=True)
    for clips, frames in ((3, 90), (4, 75), (5, 60), (3, 90)):
        x = torch.randn(clips, frames, encoder.features(torch.randn(1, 16_000), torch.tensor([16_000]))[0].shape[2])
        lengths = torch.randint(frames // 2, frames + 1, (clips,))
        lengths[0] = frames
        found, wanted = (encode(x, lengths, layers=last).hidden_states[0] for encode in (compiled, encoder.encode))
        for one, other, length in zip(found, wanted, lengths, strict=True):
            torch.testing.assert_close(one[:length], other[:length], rtol=1e-4, atol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_training_learns_what_interpolation_cannot_know():
    """Spans of 15 frames hide most of a 20-frame beat: it has to be carried over from the rest of the clip."""
    torch.manual_seed(0)
    objective = {"span_min": 15, "span_max": 15, "mask_fraction": 0.3}
    encoder = {"norm": "pre", "dropout": 0.0, "attention_dropout": 0.0, "dim": 64, "ffn": 128}
    model = small(encoder=encoder, **objective).build()
    held_out = learn(model, beats, 100, 2e-3)
    assert held_out.loss < 0.4 * held_out.metrics["trivial"]


def test_every_preset_goes_through_yaml():
    for name in preset_names():
        run = preset(name)
        assert run.preset == name.replace("-", "_")
        values = {"format": 1, "auricle": "0.1.0", "method": run.method} | run.model_dump(mode="json")
        assert run_from_yaml(values) == run
    assert preset("tera-base") == preset("tera_base")
    assert set(METHODS) == {preset(name).method for name in PRESETS}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "method: missing"),
        ({"method": "mokingjay", "preset": "x"}, "did you mean 'mockingjay'"),
        ({"method": "mockingjay", "format": 2, "auricle": "9.0"}, "auricle 9.0"),
        ({"method": "mockingjay", "objective": {"mask_fractoin": 0.1}}, "mask_fraction"),
        ({"method": "mockingjay", "objective": {"zero": 0.8, "replace": 0.3}}, "sum to more than 1"),
        ({"method": "mockingjay", "objective": {"span_min": 9}}, "span_max"),
        ({"method": "mockingjay", "objective": {"target": "linear_db", "frequency_mask": 0.1}}, "frequency_mask"),
        (
            {"method": "mockingjay", "objective": {"target": "linear_db"}, "encoder": {"front_end": {"kind": "kaldi"}}},
            "'stft'",
        ),
        ({"method": "mockingjay", "encoder": {"dim": 100}}, "multiple of heads"),
    ],
)
def test_bad_yaml_is_refused_in_one_line(values, message):
    with pytest.raises(ConfigError, match=message) as error:
        run_from_yaml(values, "config.yaml")
    assert str(error.value).startswith("config.yaml: ")
    assert "\n" not in str(error.value)


def test_unknown_preset_names_the_near_miss():
    with pytest.raises(ConfigError, match="did you mean 'mockingjay-base'"):
        preset("mockingjay-bse")


def test_listing_presets_imports_no_torch():
    code = "import sys, auricle.methods as m; m.preset_names(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_kaldi_front_end_of_240_channels_has_s3prls_size():
    front_end = FrontEndConfig(kind="kaldi", deltas=2)
    model = Mockingjay(MelTransformerConfig(front_end=front_end), MockingjayConfig())
    assert sum(p.numel() for p in model.encoder.parameters()) == 21_450_240
    assert sum(p.numel() for p in model.head.parameters()) == 776_688
