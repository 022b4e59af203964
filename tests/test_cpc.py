"""CPC against its definition, written out in float64; whence its negatives come; its encoder over long audio."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import soundfile
import torch
import torch.nn.functional as F
from tiny import learn, loads_as_saved
from torch import Tensor

import auricle.encoders.cpc
from auricle import cli
from auricle.config import edit
from auricle.data.batching import Batch
from auricle.encoders.base import join_stretches
from auricle.encoders.checkpoint import save
from auricle.encoders.cpc import CpcEncoder, CpcEncoderConfig
from auricle.errors import ConfigError
from auricle.evaluation.finetuning.config import FinetuneConfig
from auricle.evaluation.finetuning.model import Tuned
from auricle.methods import preset
from auricle.methods.cpc import Cpc, CpcRun
from auricle.nn.prediction import TransformerPredictors

SMALL = {"channels": (4, 6, 8, 8, 8), "context_dim": 8}


def small(encoder: dict | None = None, **objective: object) -> CpcRun:
    """Toy size: windows of 30 frames, 3 steps ahead, 7 negatives."""
    toy = {"window_s": 0.3, "crop_s": 0.6, "steps": 3, "num_negatives": 7, "heads": 2, "ffn": 16, "dropout": 0.0}
    run = edit(preset("cpc_base"), encoder=SMALL, objective=toy)
    return edit(run, encoder=encoder or {}, objective=objective)  # type: ignore[return-value]


def batch_of(*seconds: float, speakers: list[int] | None = None) -> Batch:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([round(16000 * s) for s in seconds])
    waveforms = torch.randn(len(seconds), int(lengths.max()), generator=generator)
    waveforms *= torch.arange(waveforms.shape[1]) < lengths[:, None]
    labels = {} if speakers is None else {"speaker": torch.tensor(speakers)}
    return Batch(waveforms, lengths, [str(i) for i in range(len(seconds))], torch.zeros(len(seconds)), labels)


def recorded(monkeypatch: pytest.MonkeyPatch, name: str) -> list:
    """What this method of `Cpc` returns from now on."""
    method, results = getattr(Cpc, name), []

    def spy(*args):
        results.append(method(*args))
        return results[-1]

    monkeypatch.setattr(Cpc, name, spy)
    return results


def reference(model: Cpc, windows: Tensor, valid: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each step (K,) and accuracy (K,) in float64, one position after another, as CPC_audio does."""
    model = model.double()
    frames = model.encoder.convolutions(windows.double(), None)[0]
    everything = frames.flatten(0, 1)
    losses, hits = [], []
    for number in range(len(frames)):
        if not valid.flatten()[number]:
            continue
        past = frames[number, : model.positions]
        predictions = model.predictors(model.encoder.context(past[None])[0])[0]
        for t in range(model.positions):
            negatives = everything[drawn[number, t]]
            row, hit = [], []
            for k in range(model.config.steps):
                candidates = torch.cat([frames[number, t + k + 1][None], negatives])
                products = predictions[t, k] * candidates
                scores = products.mean(-1) if model.config.score == "mean" else products.sum(-1)
                row.append(F.cross_entropy(scores[None], torch.tensor([0])))
                hit.append(float(all(scores[0] > other for other in scores[1:])))
            losses.append(torch.stack(row))
            hits.append(torch.tensor(hit))
    return torch.stack(losses).mean(0), torch.stack(hits).mean(0)


CASES = {
    "recording": small(negatives="recording"),
    "speaker": small(negatives="speaker"),
    "batch": small(negatives="batch"),
    "paper": small(
        {"context": "gru", "context_dim": 5}, predictor="linear", score="dot", negatives="batch", spare_positives=False
    ),
    "summed": small(negatives="recording", over_steps="sum"),
}


@pytest.mark.parametrize("run", CASES.values(), ids=CASES)
def test_loss_is_the_reference(run, monkeypatch):
    torch.manual_seed(0)
    model = run.build().eval()
    for parameter in model.predictors.parameters():  # scores that tell frames apart
        parameter.data *= 3
    windows, drawn = recorded(monkeypatch, "_windows"), recorded(monkeypatch, "_draw")
    step = model(batch_of(0.7, 0.35, 0.6, speakers=[4, 2, 4]))
    losses, accuracy = reference(model, *windows[0], drawn[0])
    assert windows[0][1].tolist() == [[True, True], [True, False], [True, True]]
    assert step.count == 5 * 27
    wanted = losses.sum() if run.objective.over_steps == "sum" else losses.mean()
    assert step.loss.item() == pytest.approx(wanted.item(), abs=1e-5)
    for k, share in enumerate(accuracy.tolist(), 1):
        assert step.metrics[f"accuracy_{k}"].item() == pytest.approx(share, abs=1e-6)
    scale = 3 if run.objective.over_steps == "sum" else 1
    assert step.metrics["trivial"].item() == pytest.approx(scale * math.log(8), abs=1e-6)


@pytest.mark.parametrize("run", CASES.values(), ids=CASES)
def test_gradients_reach_every_parameter(run):
    torch.manual_seed(0)
    model = run.build().train()
    model(batch_of(0.7, 0.35, speakers=[1, 1])).loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_frames_that_are_all_alike_give_chance():
    torch.manual_seed(0)
    model = edit(preset("cpc_tiny"), encoder=SMALL).build().eval()
    silence = batch_of(1.28, 1.28)
    model.encoder.convolutions.layers[-1].norm.weight.data.zero_()  # so that zeros at the edges do not tell
    model.encoder.convolutions.layers[-1].norm.bias.data.fill_(1.0)
    step = model(silence)
    assert step.loss.item() == pytest.approx(math.log(129), abs=1e-5)
    assert step.metrics["trivial"].item() == pytest.approx(math.log(129), abs=1e-6)
    assert all(step.metrics[f"accuracy_{k}"] == 0 for k in range(1, 13))  # a tie is no hit


def explicit_transformer(model: TransformerPredictors, k: int, context: Tensor) -> Tensor:
    """The k-th predictor of context (T, D), position by position."""
    dim, heads = context.shape[1], model.heads
    width = dim // heads
    q, k_, v = (context @ model.qkv[k]).split(dim, 1)
    mixed = torch.zeros_like(context)
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        for t in range(len(context)):
            back = [q[t, part] @ (k_[s, part] + model.distances[k, :, t - s]) for s in range(t + 1)]
            weights = (torch.stack(back) / math.sqrt(width)).softmax(0)
            mixed[t, part] = weights @ v[: t + 1, part]
    one, two = (
        (norm.weight.view(-1, dim)[k], norm.bias.view(-1, dim)[k]) for norm in (model.attention_norm, model.ffn_norm)
    )
    x = F.layer_norm(context + mixed @ model.attention_out[k], (dim,), *one)
    hidden = (x @ model.ffn_in[k] + model.ffn_in_bias[k]).relu()
    return F.layer_norm(x + hidden @ model.ffn_out[k] + model.ffn_out_bias[k], (dim,), *two)


def test_transformer_predictors_are_those_of_the_definition():
    torch.manual_seed(0)
    model = TransformerPredictors(8, steps=3, frames=11, heads=2, ffn=12, dropout=0.1).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    for frames in (11, 6):
        context = torch.randn(2, frames, 8, dtype=torch.float64)
        found = model(context)
        for row in range(2):
            for k in range(3):
                torch.testing.assert_close(found[row, :, k], explicit_transformer(model, k, context[row]))


@pytest.mark.parametrize("run", [CASES["recording"], CASES["paper"]])
def test_predictions_do_not_hear_what_they_predict(run):
    torch.manual_seed(0)
    model = run.build().double().eval()
    z = torch.randn(1, 20, 8, dtype=torch.float64, requires_grad=True)
    context = model.encoder.encode(z, torch.tensor([20]), layers=[1]).hidden_states[0]
    (gradient,) = torch.autograd.grad(model.predictors(context)[0, 9].square().sum(), z)
    assert gradient[0, :10].any(1).all()
    assert not gradient[0, 10:].any()


@pytest.mark.parametrize(
    ("negatives", "speakers", "groups"),
    [
        ("recording", [5, 5, 9, -1, -1], [{0}, {1}, {2}, {3}, {4}]),
        ("speaker", [5, 5, 9, -1, -1], [{0, 1}, {0, 1}, {2}, {3}, {4}]),
        ("speaker", None, [{0}, {1}, {2}, {3}, {4}]),
        ("batch", None, [{0, 1, 2, 3, 4}] * 5),
    ],
)
@pytest.mark.parametrize("spare", [True, False])
def test_negatives_come_from_where_they_should(negatives, speakers, groups, spare):
    torch.manual_seed(0)
    model = small(negatives=negatives, spare_positives=spare, num_negatives=400).build()
    held = [2, 1, 2, 1, 2]
    valid = torch.arange(2) < torch.tensor(held)[:, None]
    drawn = model._draw(batch_of(*[0.6] * 5, speakers=speakers), valid)
    assert drawn.shape == (10, 27, 400)
    for window in valid.flatten().nonzero()[:, 0].tolist():
        wanted = {2 * clip + i for clip in groups[window // 2] for i in range(held[clip])}
        counts = (drawn[window] // 30).flatten().bincount(minlength=10)
        assert set(counts.nonzero()[:, 0].tolist()) == wanted
        share = counts[counts > 0] / counts.sum()
        assert (share * len(wanted) - 1).abs().max() < 0.1  # windows are equally likely
        for t in range(27):
            left_out = {t, t + 1, t + 2, t + 3} if spare else {t}
            assert set((drawn[window, t] % 30).tolist()) == set(range(30)) - left_out


def test_windows_are_stretches_of_the_clips():
    torch.manual_seed(0)
    model, batch = small().build(), batch_of(0.75, 0.3, 0.6, 0.95)
    size, starts = 4800, set()
    for training in [True] * 20 + [False]:
        windows, valid = model.train(training)._windows(batch)
        assert valid.tolist() == [[i < n for i in range(3)] for n in (2, 1, 2, 3)]
        for row, length in enumerate(batch.lengths.tolist()):
            held = windows.view(4, 3, size)[row, valid[row]].flatten()
            start = int((batch.waveforms[row] == held[0]).nonzero()[0])
            assert start + len(held) <= length
            assert torch.equal(held, batch.waveforms[row, start : start + len(held)])
            starts.add((row, start))
    assert {row for row, start in starts if start > 0} == {0, 3}  # those with time to spare
    assert (0, (12000 - 2 * size) // 2) in starts  # held out, the centre


def test_a_clip_too_short_has_no_say():
    model = small().build().eval()
    step = model(batch_of(0.2))
    assert (step.loss, step.count) == (0, 0)


@pytest.mark.parametrize(
    ("name", "convolutions", "context"), [("cpc_base", 1_317_120, 526_336), ("cpc_paper", 5_255_680, 591_360)]
)
def test_sizes_are_the_originals(name, convolutions, context):
    encoder = preset(name).build().encoder
    assert sum(p.numel() for p in encoder.convolutions.parameters()) == convolutions
    assert sum(p.numel() for p in encoder.context.parameters()) == context
    assert (encoder.hop, encoder.convolutions.frames(torch.tensor(20480))) == (160, 128)


@pytest.mark.parametrize("context", ["lstm", "gru"])
def test_a_clip_alone_is_the_same_in_a_batch_in_any_stretches(context, monkeypatch):
    torch.manual_seed(0)
    model = CpcEncoder(CpcEncoderConfig(**SMALL, context=context, context_layers=2)).eval()
    batch = batch_of(2.3, 0.01, 0.9, 0.005, 0.613)
    with torch.no_grad():
        z, _ = model.convolutions(batch.waveforms, batch.lengths)
        together = model(batch.waveforms, batch.lengths)
        torch.testing.assert_close(together.hidden_states[0], z)
        assert together.lengths.tolist() == [230, 1, 90, 0, 61]
        monkeypatch.setattr(auricle.encoders.cpc, "_STRETCH", 50)
        short = model(batch.waveforms, batch.lengths)
        pieces = list(model.stretches(batch.waveforms, batch.lengths))
        assert [frames.hidden_states[1].shape[1] for _, frames in pieces] == [50, 50, 50, 50, 30]
        joined, counts = join_stretches(pieces, 5)
        assert torch.equal(counts, together.lengths)
        for row, samples in enumerate(batch.lengths.tolist()):
            count = int(together.lengths[row])
            alone = model(batch.waveforms[row : row + 1, :samples], batch.lengths[row : row + 1])
            for layer, state in enumerate(together.hidden_states):
                wanted = state[row, :count]
                for other in (alone.hidden_states[layer][0], short.hidden_states[layer][row]):
                    torch.testing.assert_close(other[:count], wanted, atol=1e-5, rtol=0)
                torch.testing.assert_close(torch.tensor(joined[layer][row]), wanted, atol=1e-5, rtol=0)


def test_layers_are_given_in_the_order_asked():
    model = small().build().encoder.eval()
    batch = batch_of(0.5)
    every, some = model(batch.waveforms, batch.lengths), model(batch.waveforms, batch.lengths, layers=[1, 0])
    assert torch.equal(some.hidden_states[0], every.hidden_states[1])
    assert torch.equal(some.hidden_states[1], every.hidden_states[0])
    assert [state.shape[2] for state in every.hidden_states] == [8, 8]


def test_layers_of_unequal_widths_have_no_mean(tmp_path, capsys):
    encoder = edit(preset("cpc_paper"), encoder={"channels": (4, 6, 8, 8, 12), "context_dim": 8}).build().encoder
    save(encoder, tmp_path / "cpc")
    soundfile.write(tmp_path / "clip.wav", 0.1 * torch.randn(4000).numpy(), 16000)
    told = r"widths \[12, 8\], which have no mean"
    with pytest.raises(ConfigError, match=told):
        encoder.clip(tmp_path / "clip.wav", layers="mean")
    command = ["embed", str(tmp_path / "cpc"), "--data", str(tmp_path / "clip.wav"), "--output", str(tmp_path / "e")]
    assert cli.main([*command, "--layers", "mean"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(told, line)


@pytest.mark.parametrize("context", ["lstm", "gru"])
def test_blocks_are_the_layers_of_the_context(context):
    encoder = CpcEncoder(CpcEncoderConfig(**SMALL, context=context, context_layers=2))
    depths = encoder.depths()
    assert set(depths) == {name for name, _ in encoder.named_parameters()}
    assert {depth for name, depth in depths.items() if "convolutions" in name} == {0}
    assert {name: depths[f"context.{name}"] for name in ("weight_ih_l0", "bias_hh_l0", "weight_hh_l1")} == {
        "weight_ih_l0": 1,
        "bias_hh_l0": 1,
        "weight_hh_l1": 2,
    }
    model = Tuned(encoder, FinetuneConfig(blocks=1, layer_decay=0.5), "classes", "clip", 2)
    trained = {name for name, weight in encoder.named_parameters() if weight.requires_grad}
    assert trained == {f"context.{kind}_{side}_l1" for kind in ("weight", "bias") for side in ("ih", "hh")}
    assert model.scales()["encoder.context.weight_ih_l1"] == 0.5
    assert model.scales()["encoder.convolutions.layers.0.conv.weight"] == 0.125


def test_saved_and_loaded_it_is_the_same(tmp_path):
    loads_as_saved(small({"context": "gru"}).build().encoder, batch_of(0.5, 0.3), tmp_path)


def test_bfloat16_follows_float32():
    torch.manual_seed(0)
    model, batch = small(negatives="batch").build().train(), batch_of(0.6, 0.6)
    torch.manual_seed(1)
    exact = model(batch).loss
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        step = model(batch)
    assert step.loss.dtype == torch.float32
    assert step.loss.item() == pytest.approx(exact.item(), rel=0.01)


def test_pictures():
    model = small(negatives="speaker").build().eval()
    pictures = model.visualize(batch_of(0.7, 0.35, speakers=[0, 0]))
    assert {name: tuple(picture.shape) for name, picture in pictures.items()} == {
        "frames": (30, 8),
        "context": (30, 8),
        "probability": (27, 3),
    }
    assert ((pictures["probability"] > 0) & (pictures["probability"] < 1)).all()


def steps_up(count: int, seed: int) -> Batch:
    """Windows of ten tones of 30 ms, each higher than the one before it and after the last the first again."""
    generator = torch.Generator().manual_seed(seed)
    tone = (torch.arange(4800) // 480 + torch.randint(10, (count, 1), generator=generator)) % 10
    waveforms = 0.3 * torch.sin(2 * math.pi * (200 * 1.4**tone * torch.arange(4800) / 16000))
    waveforms += 0.01 * torch.randn(count, 4800, generator=generator)
    return Batch(waveforms, torch.full((count,), 4800), [""] * count, torch.zeros(count))


def test_training_learns_which_frames_come_next():
    torch.manual_seed(0)
    toy = {"channels": (16, 16, 32, 32, 32), "context_dim": 32}
    model = small(toy, negatives="recording", num_negatives=32, predictor="linear").build().train()
    step = learn(model, steps_up, 100, 5e-3)
    assert step.loss < 0.6 * step.metrics["trivial"]
    assert step.metrics["accuracy_1"] > 0.5


def test_speakers_are_asked_for_when_needed():
    needs = small(negatives="speaker", speaker_column="voice", without_speaker="error").build().needs
    assert (needs.columns, needs.group_by, needs.columns_optional) == (("voice",), "voice", False)
    assert small(negatives="speaker", without_speaker="recording").build().needs.columns_optional
    assert small(negatives="batch").build().needs.columns == ()
    needs = preset("cpc_paper").build().needs
    assert (needs.sample_rate, needs.crop_s, needs.min_s) == (16000, 1.28, 1.28)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": {"window_s": 0.1}}, "hold no 12 steps"),
        ({"objective": {"crop_s": 1.0}}, "hold no window of 1.28 s"),
        ({"encoder": {"context_dim": 128}}, r"context_dim \(128\)"),
        ({"objective": {"heads": 7}}, r"objective.heads \(7\)"),
        ({"encoder": {"channels": (256, 256)}}, "channels"),
        ({"objective": {"negatives": "speakers"}}, "negatives"),
    ],
)
def test_impossible_runs_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        edit(preset("cpc_base"), **changes)


def test_label_of_unknown_speakers_is_not_a_speaker():
    torch.manual_seed(0)
    model = small(negatives="speaker").build().eval()
    batch = batch_of(0.3, 0.3, speakers=[-1, -1])
    torch.manual_seed(1)
    together = model(batch).loss
    torch.manual_seed(1)
    same = model(replace(batch, labels={})).loss
    assert together == same
