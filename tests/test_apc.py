from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from test_distributed import launch_command, noise, weights  # noqa: F401 -- `noise` is a fixture
from tiny import beats, learn
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from auricle.config import edit
from auricle.data.batching import Batch
from auricle.encoders.apc import ApcEncoder
from auricle.encoders.base import join_stretches
from auricle.encoders.check import check
from auricle.encoders.checkpoint import load, save
from auricle.errors import ConfigError
from auricle.methods import preset, preset_names, run_from_yaml
from auricle.methods.apc import Apc, ApcRun

GRU = {"dim": 24, "layers": 3, "front_end": {"n_mels": 20}}
TRANSFORMER = {"dim": 32, "heads": 4, "ffn": 64, "layers": 2, "front_end": {"n_mels": 20}, "chunk_frames": 60}


def small(name: str = "apc_base", encoder: dict | None = None, **objective: object) -> ApcRun:
    """A preset at toy size."""
    run = edit(preset(name), encoder=TRANSFORMER if name == "apc_tiny" else GRU)
    return edit(run, encoder=encoder or {}, objective=objective)  # type: ignore[return-value]


CASES = {
    "gru": small(),
    "s3prl": small("apc_s3prl"),
    "mockingjay's": small("apc_mockingjay_paper", {"front_end": {"n_fft": 1024}}),
    "no residual, mse": small(encoder={"residual": False, "layers": 2}, loss="mse", ahead=1),
    "transformer": small("apc_tiny"),
    "unnormalised": small("apc_tiny", {"front_end": {"normalize": "none", "level_db": None}}),
}


def batch_of(*seconds: float, seed: int = 0) -> Batch:
    """Clips of noise whose level goes up and down."""
    generator = torch.Generator().manual_seed(seed)
    clips = []
    for length in (int(16000 * s) for s in seconds):
        level = 1 + 0.9 * torch.sin(2 * math.pi * 3 * torch.arange(length) / 16000)
        clips.append(0.05 * level * torch.randn(length, generator=generator))
    lengths = torch.tensor([len(clip) for clip in clips])
    ids = [str(number) for number in range(len(clips))]
    return Batch(pad_sequence(clips, batch_first=True), lengths, ids, torch.zeros(len(clips)))


def reference(model: Apc, batch: Batch) -> tuple[float, float, int]:
    """Loss, trivial level and count a second way, in float64: clip by clip, and of GRUs PyTorch's own."""
    model, config = model.double(), model.config
    errors, copies = [], []
    for waveform, samples in zip(batch.waveforms.double(), batch.lengths, strict=True):
        x, lengths = model.encoder.features(waveform[None, :samples], samples[None])
        x = x[:, : lengths[0]]
        hidden = x
        if model.encoder.config.core == "gru":
            for number, gru in enumerate(model.encoder.core.grus):
                plain = nn.GRU(gru.input_size, gru.hidden_size, batch_first=True).double()
                plain.load_state_dict(gru.state_dict())
                out = plain(hidden)[0]
                hidden = out + hidden if number and model.encoder.config.residual else out
        else:
            core = model.encoder.core
            hidden = core.norm(core.positions(core.project(x)))
            mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=torch.float64)
            for block in core.transformer.blocks:
                q, k, v = block.qkv(block.attention_norm(hidden)).unflatten(2, (3, block.heads, -1)).unbind(2)
                scores = torch.einsum("bthd,bshd->bhts", q, k) / q.shape[-1] ** 0.5 + mask
                mixed = torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v).flatten(2)
                hidden = hidden + block.attention_out(mixed)
                hidden = hidden + block.ffn_out(nn.functional.gelu(block.ffn_in(block.ffn_norm(hidden))))
            hidden = core.transformer.final_norm(hidden)
        prediction = model.head(hidden)
        errors.append(prediction[0, : -config.ahead] - x[0, config.ahead :])
        copies.append(x[0, : -config.ahead] - x[0, config.ahead :])
    error, copy = torch.cat(errors), torch.cat(copies)
    if config.loss == "mse":
        return error.square().mean().item(), copy.square().mean().item(), error.numel()
    return error.abs().mean().item(), copy.abs().mean().item(), error.numel()


@pytest.mark.parametrize("run", CASES.values(), ids=CASES)
def test_loss_is_the_reference_without_padding(run):
    torch.manual_seed(0)
    model = run.build().eval()
    batch = batch_of(1.1, 0.7, 0.4)
    step = model(batch)
    loss, trivial, count = reference(model, batch)
    assert step.count == count
    assert step.loss.item() == pytest.approx(loss, abs=1e-5)
    assert step.metrics["trivial"].item() == pytest.approx(trivial, abs=1e-5)


@pytest.mark.parametrize("run", CASES.values(), ids=CASES)
def test_gradients_reach_every_parameter(run):
    torch.manual_seed(0)
    model = run.build().train()
    step = model(batch_of(1.1, 0.7))
    assert not step.metrics
    step.loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("run", CASES.values(), ids=CASES)
def test_no_future_frame_leaks(run, training):
    """Features of frame t and later changed: every hidden state before t stays the same, and that of t does not."""
    encoder = edit(run.encoder, dropout=0.0, position_jitter=0)
    torch.manual_seed(0)
    model = ApcEncoder(encoder).train(training)
    x, lengths = torch.randn(2, 200, model.front_end.dim), torch.tensor([200, 173])
    before = model.encode(x, lengths).hidden_states
    for t in (1, 29, 30, 31, 89, 172):
        changed = x.clone()
        changed[:, t:] = torch.randn_like(changed[:, t:])
        after = model.encode(changed, lengths).hidden_states
        for one, other in zip(before, after, strict=True):
            torch.testing.assert_close(one[:, :t], other[:, :t], atol=1e-6, rtol=0)
            assert not torch.allclose(one[:, t], other[:, t], atol=1e-3)


def test_without_utterance_normalisation_no_future_sample_leaks_either():
    torch.manual_seed(0)
    for normalize, same in (("none", True), ("utterance", False)):
        front_end = {"normalize": normalize, "level_db": None, "stack": 1}
        model = ApcEncoder(small("apc_tiny", {"front_end": front_end}).encoder).eval()
        batch = batch_of(0.9)
        changed = batch.waveforms.clone()
        changed[:, 8000:] *= 3
        before, after = (model(x, batch.lengths).hidden_states[-1] for x in (batch.waveforms, changed))
        seen = (8000 - 200) // 160  # the last frame whose window, 200 samples to either side, ends before the change
        assert torch.allclose(before[:, :seen], after[:, :seen], atol=1e-6) == same


def test_prepare_normalises_each_channel_over_the_data():
    torch.manual_seed(0)
    model = small(encoder={"front_end": {"normalize": "none"}}).build()
    batches = [batch_of(1.0, 0.7, seed=1), batch_of(0.9, seed=2)]
    model.prepare(iter(batches))
    frames = []
    for batch in batches:
        x, lengths = model.encoder.features(batch.waveforms, batch.lengths)
        frames += [row[:length] for row, length in zip(x, lengths.tolist(), strict=True)]
        assert all(not row[length:].any() for row, length in zip(x, lengths.tolist(), strict=True))
    every = torch.cat(frames).double()
    torch.testing.assert_close(every.mean(0), torch.zeros(20).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(every.std(0, correction=0), torch.ones(20).double(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("run", CASES.values(), ids=CASES)
def test_a_clip_alone_is_the_same_in_a_batch_and_in_stretches(run, monkeypatch):
    monkeypatch.setattr("auricle.encoders.apc.STRETCH", 70)
    torch.manual_seed(0)
    model = ApcEncoder(run.encoder).eval()
    batch = batch_of(2.3, 0.05, 0.9, 0.61)
    with torch.no_grad():
        together = model(batch.waveforms, batch.lengths)
        pieces, counts = join_stretches(model.stretches(batch.waveforms, batch.lengths), 4)
        assert torch.equal(counts, together.lengths)
        for row, samples in enumerate(batch.lengths.tolist()):
            alone = model(batch.waveforms[row : row + 1, :samples], batch.lengths[row : row + 1])
            count = int(alone.lengths[0])
            assert together.lengths[row] == count > 0
            for layer, dim in enumerate(model.dims):
                one = alone.hidden_states[layer][0, :count]
                assert one.shape == (count, dim)
                torch.testing.assert_close(one, together.hidden_states[layer][row, :count], atol=1e-5, rtol=0)
                torch.testing.assert_close(one, torch.from_numpy(pieces[layer][row]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("core", ["gru", "transformer"])
def test_chosen_layers_are_those_of_all_and_every_promise_is_kept(core):
    torch.manual_seed(0)
    model = ApcEncoder(CASES[core].encoder).eval()
    batch = batch_of(0.5)
    every, some = (model(batch.waveforms, batch.lengths, layers=layers).hidden_states for layers in (None, [2, 0]))
    assert torch.equal(some[0], every[2])
    assert torch.equal(some[1], every[0])
    report = check(model)
    assert report.ok, str(report)


def test_windows_of_a_long_clip_keep_their_second_halves():
    torch.manual_seed(0)
    config = edit(CASES["transformer"].encoder, chunk_frames=80)
    model, whole = ApcEncoder(config).eval(), ApcEncoder(edit(config, chunk_frames=500)).eval()
    whole.load_state_dict(model.state_dict())
    x, lengths = torch.randn(1, 200, model.front_end.dim), torch.tensor([200])
    with torch.no_grad():
        chunked = model.encode(x, lengths).hidden_states[-1]
        for start, keep in ((0, 0), (40, 80), (80, 120), (120, 160)):
            window = whole.encode(x[:, start : start + 80], torch.tensor([80])).hidden_states[-1]
            torch.testing.assert_close(chunked[:, keep : start + 80], window[:, keep - start :], atol=1e-5, rtol=0)


def test_attention_entropy_counts_what_a_frame_may_look_at():
    torch.manual_seed(0)
    model = ApcEncoder(CASES["transformer"].encoder).eval()
    for block in model.core.transformer.blocks:
        nn.init.zeros_(block.qkv.weight)  # all scores alike
    frames = model.encode(torch.randn(1, 40, model.front_end.dim), torch.tensor([40]))
    assert model.attention_entropy(frames).item() == pytest.approx(1.0, abs=1e-5)
    for block in model.core.transformer.blocks:
        nn.init.normal_(block.qkv.weight, std=30.0)
    frames = model.encode(torch.randn(1, 40, model.front_end.dim), torch.tensor([40]))
    assert 0 <= model.attention_entropy(frames).item() < 0.3
    assert ApcEncoder(CASES["gru"].encoder).attention_entropy(frames) is None


@pytest.mark.parametrize(
    ("name", "core", "head"),
    [
        ("apc_base", 4_064_256, 41_040),
        ("apc_s3prl", 4_064_256, 41_040),
        ("apc_mockingjay_paper", 9_229_824, 123_040),
    ],
)
def test_sizes_are_the_originals(name, core, head):
    model = preset(name).build()
    assert sum(p.numel() for p in model.encoder.parameters()) == core
    assert sum(p.numel() for p in model.head.parameters()) == head


def test_trivial_level_of_planted_signals():
    model, batch = small(ahead=3).build().eval(), batch_of(0.5, 0.3)
    lengths = torch.tensor([40, 25])
    ramp = 0.25 * torch.arange(40.0)[None, :, None].expand(2, 40, 20)
    zigzag = (torch.arange(40) % 2 * 2.0 - 1)[None, :, None].expand(2, 40, 20)
    for x, expected in ((ramp, 0.75), (zigzag, 2.0), (torch.ones(2, 40, 20), 0.0)):
        model.encoder.features = lambda *_, x=x: (x, lengths)  # type: ignore[method-assign]
        step = model(batch)
        assert step.metrics["trivial"].item() == pytest.approx(expected)
        assert step.count == (37 + 22) * 20


def test_clips_without_a_frame_to_predict_have_no_say():
    torch.manual_seed(0)
    model = small(ahead=20).build().eval()
    assert model(batch_of(0.1)).count == 0
    assert model(batch_of(0.1)).loss == 0
    both, alone = model(batch_of(0.5, 0.1)), model(batch_of(0.5))
    assert both.count == alone.count
    torch.testing.assert_close(both.loss, alone.loss)


@pytest.mark.parametrize("run", CASES.values(), ids=CASES)
def test_pictures_stand_where_their_targets_do(run):
    torch.manual_seed(0)
    model, batch = run.build().eval(), batch_of(0.7, 1.0)
    pictures = model.visualize(batch)
    target, prediction = pictures["target"], pictures["prediction"]
    assert target.shape == prediction.shape
    assert target.isfinite().all()
    ahead = model.config.ahead * model.encoder.config.front_end.stack
    assert not prediction[:ahead].any()
    one = model(Batch(batch.waveforms[:1, :11200], batch.lengths[:1], ["0"], torch.zeros(1)))
    error = prediction[ahead:] - target[ahead:]
    expected = error.square().mean() if model.config.loss == "mse" else error.abs().mean()
    torch.testing.assert_close(expected, one.loss)


@pytest.mark.parametrize("name", ["apc_base", "apc_tiny"])
def test_bfloat16_follows_float32(name):
    torch.manual_seed(0)
    model, batch = small(name, {"position_jitter": 0}).build().train(), batch_of(1.0, 0.8)
    exact = model(batch).loss
    exact.backward()
    wanted = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        step = model(batch)
    step.loss.backward()
    assert step.loss.dtype == torch.float32
    assert step.loss.item() == pytest.approx(exact.item(), rel=0.01)
    for parameter, gradient in zip(model.parameters(), wanted, strict=True):
        assert (parameter.grad - gradient).norm() < 0.05 * gradient.norm()


@pytest.mark.parametrize("run", CASES.values(), ids=CASES)
def test_saved_and_loaded_it_gives_the_same(run, tmp_path):
    torch.manual_seed(3)
    model = run.build()
    model.prepare(iter([batch_of(0.5)]))
    encoder = model.encoder.eval()
    save(encoder, tmp_path, seed=3)
    batch = batch_of(0.6, 0.4)
    before, after = (net(batch.waveforms, batch.lengths) for net in (encoder, load(tmp_path)))
    assert all(torch.equal(one, two) for one, two in zip(before.hidden_states, after.hidden_states, strict=True))
    torch.manual_seed(3)
    fresh = dict(run.build().encoder.named_parameters())
    twin = load(f"untrained:{tmp_path}")
    assert all(torch.equal(weight, fresh[name]) for name, weight in twin.named_parameters())


@pytest.mark.parametrize("name", ["apc_base", "apc_tiny"])
def test_training_learns_what_a_copy_cannot_know(name):
    torch.manual_seed(0)
    model = small(name, {"front_end": {"stack": 1}}, ahead=5).build()
    held_out = learn(model, beats, 60, 3e-3)
    assert held_out.loss < 0.5 * held_out.metrics["trivial"]


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_two_processes_train_as_one_with_twice_the_micro_batches(noise, tmp_path, sharding):  # noqa: F811
    """The encoder with GRUs, whose weights are used by a function of its own."""
    options = ["apc-base", f"--data={noise}", "--encoder.dim=16", "--encoder.layers=2", "--data.batch-seconds=4"]
    options += ["--data.valid-fraction=0.2", "--train.steps=4", "--train.precision=fp32", "--train.device=cpu"]
    one, two = tmp_path / "one", tmp_path / "two"
    command = ["-m", "auricle", "pretrain", *options]
    done = launch_command("torchrun", *command, f"--output={two}", f"--train.sharding={sharding}")
    assert done.returncode == 0, done.stderr
    alone = [sys.executable, *command, f"--output={one}", "--train.accumulate=2"]
    subprocess.run(alone, check=True, capture_output=True, timeout=300)
    wanted, found = weights(one), weights(two)
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-5)


def test_every_preset_goes_through_yaml():
    names = [name for name in preset_names() if name.startswith("apc-")]
    assert len(names) == 4
    for name in names:
        run = preset(name)
        assert run.preset == name.replace("-", "_")
        assert run_from_yaml({"format": 1, "method": "apc"} | run.model_dump(mode="json")) == run


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"objective": {"ahead": 0}}, "ahead"),
        ({"encoder": {"core": "lstm"}}, "core"),
        ({"encoder": {"core": "causal_transformer", "dim": 100}}, "multiple of heads"),
    ],
)
def test_bad_yaml_is_refused_in_one_line(values, message):
    with pytest.raises(ConfigError, match=message) as error:
        run_from_yaml({"method": "apc"} | values)
    assert "\n" not in str(error.value)
