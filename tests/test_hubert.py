"""HuBERT's loss against its definition in float64, its labels against kaldi-native-fbank, two iterations end to end."""

from __future__ import annotations

import itertools
import math
import shutil
from pathlib import Path

import kaldi_native_fbank as knf
import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file
from tiny import two_processes_are_one
from torch import Tensor, nn

from auricle import cli
from auricle.config import edit
from auricle.data.batching import Batch
from auricle.encoders.checkpoint import load, save
from auricle.encoders.waveform import WaveformConfig, WaveformEncoder
from auricle.errors import CheckpointError, ConfigError, TrainingError
from auricle.features.aligned import AlignedMfcc
from auricle.methods import preset, run_from_yaml
from auricle.methods.hubert import Hubert, HubertRun
from auricle.methods.labels import FrozenLayer
from auricle.training.loop import pretrain, resume

RATE = 16_000
SMALL = {"channels": 8, "dim": 16, "layers": 3, "heads": 2, "ffn": 32, "position_kernel": 8, "position_groups": 4}
QUIET = {"input_dropout": 0.0, "dropout": 0.0, "attention_dropout": 0.0}
KMEANS = {"clusters": 6, "rows": 100, "batches": 5, "inits": 2}
PRESETS = (
    *("hubert_tiny", "hubert_base", "hubert_base_iter2", "musichubert_tiny", "musichubert_tiny_iter2"),
    *("musichubert_k500", "musichubert_k500_mfcc60", "musichubert_k2000_iter1", "musichubert_k2000_iter2"),
)


def small(encoder: dict | None = None, **objective: object) -> HubertRun:
    """Toy size, without dropout; six clusters."""
    run = edit(preset("hubert_base"), encoder=SMALL | QUIET, objective={"kmeans": KMEANS, "head_dim": 12})
    return edit(run, encoder=encoder or {}, objective={"layer_drop": 0.0, **objective})  # type: ignore[return-value]


def batch_of(*seconds: float, seed: int = 0) -> Batch:
    """Clips of noise whose colour and loudness change every 100 ms."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([round(RATE * s) for s in seconds])
    waveforms = torch.randn(len(seconds), int(lengths.max()), generator=generator) * 0.1
    blocks = -(-waveforms.shape[1] // 1600)
    loudness = torch.rand(len(seconds), blocks, generator=generator).repeat_interleave(1600, 1)[:, : waveforms.shape[1]]
    dull = torch.rand(len(seconds), blocks, generator=generator).repeat_interleave(1600, 1)[:, : waveforms.shape[1]]
    waveforms = loudness * (waveforms + (dull > 0.5) * waveforms.roll(1, 1))
    waveforms *= torch.arange(waveforms.shape[1]) < lengths[:, None]
    return Batch(waveforms, lengths, [str(i) for i in range(len(seconds))], torch.zeros(len(seconds)), seed=5)


def endless():
    return (batch_of(2.0, 1.7, 1.2, seed=seed) for seed in itertools.count())


def prepared(run: HubertRun) -> Hubert:
    torch.manual_seed(0)
    model = run.build()
    with torch.no_grad():
        model.head.weight *= 3  # predictions that tell clusters apart
    torch.manual_seed(1)
    model.prepare(endless())
    return model


def drawn_mask(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The masks drawn from now on."""
    import auricle.methods.hubert as module

    drawn, draw = [], module.span_mask
    monkeypatch.setattr(module, "span_mask", lambda *args: drawn.append(draw(*args)) or drawn[-1])
    return drawn


# ------------------------------------------------------------------------------------------------------ the loss


def explicit_nce(said: Tensor, embeddings: Tensor, label: int, temperature: float) -> Tensor:
    """As fairseq computes it for one frame: the true cluster in front of all, in which it stands a second time."""
    candidates = torch.cat([embeddings[label][None], embeddings])
    logits = torch.cosine_similarity(said[None], candidates, dim=1) / temperature
    twice = torch.tensor([False, *(embeddings[i].equal(embeddings[label]) for i in range(len(embeddings)))])
    return F.cross_entropy(logits.masked_fill(twice, -torch.inf)[None], torch.tensor([0]))


@pytest.mark.parametrize("unmasked", [0.0, 0.3])
@pytest.mark.parametrize("conv_norm", ["group", "layer"])
def test_loss_is_the_explicit_nce(unmasked, conv_norm, monkeypatch):
    model = prepared(small({"conv_norm": conv_norm}, unmasked_weight=unmasked)).eval()
    batch, masks = batch_of(1.6, 0.9, 0.03), drawn_mask(monkeypatch)
    step = model(batch)
    labels = model.labels(batch)
    model = model.double()
    x, frames = model.encoder.features(batch.waveforms.double(), batch.lengths)
    assert frames.tolist() == [79, 44, 1]
    hidden = model.encoder.encode(x, frames, mask=masks[0]).hidden_states[-1]
    terms, hits, surprises, squares = [], {True: [], False: []}, [], []
    counts = model.labels.clusters.counts + 1
    for clip, t in [(row, t) for row in range(3) for t in range(frames[row])]:
        squares.append(x[clip, t].square().mean())
        masked, label = bool(masks[0][clip, t]), int(labels[clip, t])
        weight = 1.0 if masked else unmasked
        if weight:
            said = model.head(hidden[clip, t])
            terms.append(weight * explicit_nce(said, model.embeddings, label, 0.1))
            scores = torch.cosine_similarity(said[None], model.embeddings)
            hits[masked].append(float(scores.argmax() == label))
            surprises.append(-weight * math.log(counts[label] / counts.sum()))
    wanted = torch.stack(terms).mean() + 10 * torch.stack(squares).mean()
    assert step.count == len(terms)
    assert step.loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert step.metrics["trivial"].item() == pytest.approx(np.mean(surprises), rel=1e-5)
    assert step.metrics["penalty"].item() == pytest.approx(torch.stack(squares).mean().item(), rel=1e-4)
    assert step.metrics["masked_accuracy"].item() == pytest.approx(np.mean(hits[True]), abs=1e-6)
    assert step.metrics["masked"].item() == pytest.approx(int(masks[0].sum()) / 124, abs=1e-6)
    assert ("unmasked_accuracy" in step.metrics) == (unmasked > 0)
    if unmasked:
        assert step.metrics["unmasked_accuracy"].item() == pytest.approx(np.mean(hits[False]), abs=1e-6)
        assert step.count == 124


def test_gradients_are_those_of_the_explicit_nce(monkeypatch):
    model = prepared(small(gradient_scale=1.0)).eval()
    batch, masks = batch_of(0.9, 0.7), drawn_mask(monkeypatch)
    model(batch).loss.backward()
    found = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    labels = model.labels(batch)
    x, frames = model.encoder.features(batch.waveforms, batch.lengths)
    hidden = model.encoder.encode(x, frames, mask=masks[0]).hidden_states[-1]
    terms = [
        explicit_nce(model.head(hidden[clip, t]), model.embeddings, int(labels[clip, t]), 0.1)
        for clip, t in masks[0].nonzero().tolist()
    ]
    true = torch.cat([clip[:count] for clip, count in zip(x, frames, strict=True)])
    (torch.stack(terms).mean() + 10 * true.square().mean()).backward()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(found[name], weight.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_the_convolutions_get_a_tenth_of_the_gradient():
    found = {}
    for scale in (1.0, 0.1):
        model = prepared(small(gradient_scale=scale)).train()
        torch.manual_seed(2)
        model(batch_of(0.9, 0.7)).loss.backward()
        found[scale] = {name: weight.grad for name, weight in model.named_parameters()}
    for name, gradient in found[1.0].items():
        factor = 0.1 if name.startswith("encoder.convolutions") else 1.0
        torch.testing.assert_close(found[0.1][name], factor * gradient, rtol=1e-4, atol=1e-7)


def test_hidden_frames_are_as_many_as_published():
    """57 % of frames at probability .80 and spans of 10, hidden from the network and from nobody else."""
    batch = batch_of(*[5.0] * 8)
    for equalize, wanted in (("none", 0.57), ("fairseq", 0.51)):
        model = small({"channels": 4}, mask={"equalize": equalize}).build()
        shares = [model(batch).metrics["masked"].item() for _ in range(4)]
        assert abs(np.mean(shares) - wanted) < 0.02


def test_a_hidden_frame_does_not_tell_its_label():
    """What a masked frame sounded like has no bearing on the network's answer there; an open frame's has."""
    torch.manual_seed(0)
    encoder = WaveformEncoder(WaveformConfig(**SMALL, **QUIET)).eval()
    x, frames = torch.randn(1, 40, 8), torch.tensor([40])
    mask = torch.zeros(1, 40, dtype=torch.bool)
    mask[0, 10:20] = True

    def answer(x: Tensor) -> Tensor:
        return encoder.encode(x, frames, mask=mask).hidden_states[-1]

    other = x.clone()
    other[0, 12, 0] += 5
    assert torch.equal(answer(x), answer(other))
    other[0, 25, 0] += 5
    assert not torch.allclose(answer(x), answer(other))


# ---------------------------------------------------------------------------------------------------- the labels


@pytest.mark.parametrize(("cepstra", "bands"), [(13, 23), (20, 23), (40, 80)])
def test_label_features_are_every_second_of_kaldis(cepstra, bands):
    torch.manual_seed(0)
    options = knf.MfccOptions()
    options.frame_opts.dither, options.num_ceps, options.use_energy = 0.0, cepstra, False
    options.energy_floor, options.mel_opts.num_bins = 0.0, bands
    for seconds in (1.0, 1.015, 0.4312):
        wave = batch_of(seconds).waveforms[0] + 0.01 * torch.randn(round(RATE * seconds))
        kaldi = knf.OnlineMfcc(options)
        kaldi.accept_waveform(RATE, wave.tolist())
        kaldi.input_finished()
        plain = np.stack([kaldi.get_frame(i) for i in range(kaldi.num_frames_ready)])
        found, frames = AlignedMfcc(RATE, 320, 400, cepstra, bands)(wave[None], torch.tensor([len(wave)]))

        def slopes(x: np.ndarray) -> np.ndarray:
            edge = np.concatenate([x[:1], x[:1], x, x[-1:], x[-1:]])
            return sum(n * (edge[2 + n : len(x) + 2 + n] - edge[2 - n : len(x) + 2 - n]) for n in (1, 2)) / 10

        wanted = np.concatenate([plain, slopes(plain), slopes(slopes(plain))], 1)[::2]
        assert frames.tolist() == [len(wanted)] == [(len(wave) - 400) // 320 + 1]
        assert found.shape == (1, len(wanted), 3 * cepstra)
        np.testing.assert_allclose(found[0].numpy(), wanted, atol=0.02, rtol=1e-3)


@pytest.mark.parametrize("place", [5 * 320, 5 * 320 + 79, 5 * 320 + 80, 5 * 320 + 319, 7 * 320 - 1])
def test_an_impulse_reaches_the_same_frames_of_features_and_labels(place):
    """Frame i of the convolutions and of the cepstra both hear samples 320 i to 320 i + 399."""
    torch.manual_seed(0)
    encoder = WaveformEncoder(WaveformConfig(**SMALL, conv_norm="layer", conv_bias=True)).eval()
    mfcc = AlignedMfcc(RATE, encoder.hop, encoder.convolutions.reach, 13)
    lengths = torch.tensor([6400])
    silent, click = torch.zeros(1, 6400), torch.zeros(1, 6400)
    click[0, place] = 1.0
    heard = {}
    with torch.no_grad():
        for name, describe in {"network": encoder.features, "cepstra": mfcc}.items():
            quiet, loud = describe(silent, lengths)[0][0], describe(click, lengths)[0][0]
            heard[name] = ((loud - quiet)[:, :13].abs().amax(1) > 1e-6).nonzero()[:, 0].tolist()  # without slopes
    assert heard["network"] == [i for i in range(19) if 320 * i <= place < 320 * i + 400]
    # The window is 0 at its ends, and pre-emphasis makes what comes before felt one sample later.
    inner = [i for i in range(19) if 320 * i < place < 320 * i + 399]
    assert set(inner) <= set(heard["cepstra"]) <= set(heard["network"])


def test_at_24_khz_labels_come_as_often_as_frames_and_share_their_centres():
    encoder = WaveformEncoder(WaveformConfig(**SMALL, sample_rate=24_000))
    mfcc = AlignedMfcc(24_000, encoder.hop, encoder.convolutions.reach, 13)
    assert (mfcc.every, mfcc.mfcc.fbank.hop, mfcc.mfcc.fbank.window_size) == (1, 320, 600)
    for samples in (400, 719, 720, 24_000, 12_345):
        lengths = torch.tensor([samples])
        wave = torch.randn(1, samples)
        x, frames = mfcc(wave, lengths)
        assert torch.equal(frames, encoder.convolutions.frames(lengths))
        assert x.shape[1] == encoder.features(wave, lengths)[0].shape[1]
    heard = []
    for place in range(2000, 2640, 10):
        click = torch.zeros(1, 6400)
        click[0, place] = 1.0
        x, base = (mfcc(wave, torch.tensor([6400]))[0][0, :, 0] for wave in (click, torch.zeros(1, 6400)))
        heard.append([place - (320 * i + 200) for i in ((x - base).abs() > 1e-4).nonzero()[:, 0].tolist()])
    distances = np.array(list(itertools.chain(*heard)))
    assert abs(distances.min() + distances.max()) <= 10  # as far to the left of frames' centres as to the right
    assert distances.max() > 250


def test_a_crop_has_the_labels_of_its_clip():
    """Since it starts at a multiple of the hop; but for the slopes at its ends."""
    model = prepared(small())
    assert model.needs.align == 320
    whole = batch_of(2.0)
    labels = model.labels(whole)[0]
    for start in (320, 960, 3200):
        crop = whole.waveforms[:, start : start + RATE]
        found = model.labels.clusters(model.labels.quantizer(crop, torch.tensor([RATE]))[0])[0]
        assert torch.equal(found[2:-2], labels[start // 320 :][: len(found)][2:-2])


def test_training_labels_are_those_of_the_network_in_any_precision():
    model, batch = prepared(small()), batch_of(1.0)
    labels = model._guess(batch).labels
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model._guess(batch).labels, labels)


def test_silence_is_refused_before_training():
    model = small().build()
    silence = Batch(torch.zeros(2, RATE), torch.tensor([RATE, RATE]), ["a", "b"], torch.zeros(2))
    with pytest.raises(TrainingError, match="100% of the frames are of one of 6 clusters"):
        model.prepare(itertools.repeat(silence))


def test_bfloat16_follows_float32():
    model, batch = prepared(small()).train(), batch_of(1.5, 1.2)
    torch.manual_seed(3)
    exact = model(batch)
    torch.manual_seed(3)
    with torch.autocast("cpu", torch.bfloat16):
        step = model(batch)
    assert step.loss.dtype == torch.float32
    assert step.loss.item() == pytest.approx(exact.loss.item(), rel=0.02)
    assert step.count == exact.count


# ---------------------------------------------------------------------------------------------- training, layers


def test_layers_are_dropped_alike_for_a_seed_and_a_step():
    model, batch = prepared(small(layer_drop=0.5)).train(), batch_of(0.8, 0.8)

    def loss(step: int) -> float:
        model.on_optimizer_step(step)
        torch.manual_seed(0)  # masks
        return model(batch).loss.item()

    losses = {step: loss(step) for step in range(20)}
    assert all(loss(step) == losses[step] for step in (3, 7))
    assert 4 <= len(set(losses.values())) <= 8  # sets of three blocks
    model.eval()
    assert len({loss(step) for step in range(6)}) == 1


def test_gradients_reach_every_parameter():
    model = prepared(small(layer_drop=0.3)).train()
    model(batch_of(0.9, 0.7)).loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())
    model.on_optimizer_step(2)
    plain = prepared(small()).train()
    plain(batch_of(0.9, 0.7)).loss.backward()
    assert all(weight.grad.any() for weight in plain.parameters())


def notes(count: int, seed: int) -> Batch:
    """Clips of 1.5 s, each one of five tones throughout: a hidden frame sounds as its neighbours do."""
    generator = torch.Generator().manual_seed(seed)
    hertz = 220 * 1.6 ** torch.randint(5, (count, 1), generator=generator)
    waveforms = 0.3 * torch.sin(2 * math.pi * hertz * torch.arange(24_000) / RATE)
    waveforms += 0.003 * torch.randn(count, 24_000, generator=generator)
    return Batch(waveforms, torch.full((count,), 24_000), [""] * count, torch.zeros(count), seed=seed)


def test_training_beats_the_unigram():
    torch.manual_seed(0)
    model = small({"channels": 16, "dim": 32, "norm": "pre", "ffn": 64}, gradient_scale=1.0).build().train()
    model.prepare(notes(4, seed) for seed in itertools.count(1000))
    assert len(set(model.labels(notes(8, 0)).flatten())) > 1
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for number in range(60):
        loss = model(notes(8, number)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        step = model.eval()(notes(16, 500))
    assert step.loss < 0.8 * step.metrics["trivial"]
    assert step.metrics["masked_accuracy"] > 0.6


def test_pictures():
    model = prepared(small()).eval()
    pictures = model.visualize(batch_of(1.0, 0.5))
    assert {name: tuple(picture.shape) for name, picture in pictures.items()} == {
        "log_mel": (49, 80),
        "labels": (49, 6),
        "probability": (49, 6),
    }
    assert set(pictures["labels"].unique().tolist()) == {0.0, 0.5, 1.0}
    assert (pictures["labels"] > 0).sum(1).eq(1).all()
    torch.testing.assert_close(pictures["probability"].sum(1), torch.ones(49))
    assert 0 <= pictures["log_mel"].min() < pictures["log_mel"].max() <= 1


# ----------------------------------------------------------------------------------------------- second iteration


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_a_frozen_layer_is_the_encoders(norm):
    torch.manual_seed(0)
    encoder = WaveformEncoder(WaveformConfig(**SMALL, norm=norm)).eval()
    batch = batch_of(0.8, 0.5)
    whole = encoder(batch.waveforms, batch.lengths)
    for layer in (1, 2, 3):
        torch.manual_seed(layer)
        frozen = FrozenLayer(encoder.config, layer).train()
        assert len(frozen.encoder.context.transformer.blocks) == layer
        frozen.take(encoder)
        found, frames = frozen(batch.waveforms, batch.lengths)
        assert torch.equal(frames, whole.lengths)
        torch.testing.assert_close(found, whole.hidden_states[layer])
        assert not found.requires_grad
        assert not any(module.training for module in frozen.modules())


@pytest.fixture
def first(tmp_path):
    """A trained encoder of the first iteration."""
    torch.manual_seed(7)
    encoder = WaveformEncoder(WaveformConfig(**SMALL))
    for weight in encoder.parameters():
        nn.init.normal_(weight, std=0.2)
    save(encoder, tmp_path / "first", seed=7)
    return tmp_path / "first", encoder.eval()


def second(folder: Path, layer: int = 2, **objective: object) -> HubertRun:
    return small(quantizer=str(folder), quantizer_layer=layer, **objective)


def test_the_second_iteration_learns_the_layers_clusters(first):
    folder, encoder = first
    model = prepared(second(folder)).train()
    batch = batch_of(0.9, 0.6)
    states = encoder(batch.waveforms, batch.lengths).hidden_states[2].detach()
    distances = (states[:, :, None] - model.labels.clusters.centroids).square().sum(3)
    for row, count in enumerate((44, 29)):
        assert torch.equal(model._guess(batch).labels[row, :count], distances[row, :count].argmin(-1))
    before = {name: value.clone() for name, value in model.labels.quantizer.state_dict().items()}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    model(batch).loss.backward()
    optimizer.step()
    assert all(weight.grad is None for weight in model.labels.quantizer.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.labels.quantizer.state_dict().items())
    assert all(weight.grad.any() for name, weight in model.named_parameters() if not name.startswith("labels"))


def test_a_quantizer_that_does_not_fit_is_refused(first, tmp_path):
    folder, _ = first
    with pytest.raises(ConfigError, match=r"objective\.quantizer: missing"):
        preset("musichubert_tiny_iter2").build()
    soundfile.write(tmp_path / "clip.wav", np.random.default_rng(0).uniform(-0.1, 0.1, 48_000), 16_000)
    with pytest.raises(ConfigError, match=r"objective\.quantizer: missing"):
        pretrain("musichubert-tiny-iter2", tmp_path, tmp_path / "run")
    assert not (tmp_path / "run").exists()  # the same command with a quantizer is not refused for it
    with pytest.raises(ConfigError, match="quantizer_layer: 4 is none of the blocks 1 to 3"):
        second(folder, layer=4)
    with pytest.raises(ConfigError, match="quantizer_layer: 0 is none"):
        second(folder, layer=0)
    with pytest.raises(CheckpointError, match="holds neither"):
        second(tmp_path)
    with pytest.raises(ConfigError, match="no encoder of waveforms"):
        small(quantizer="fbank", quantizer_layer=1)
    with pytest.raises(ConfigError, match=r"encoder\.sample_rate: 24000 is not the quantizer's, 16000"):
        edit(second(folder), encoder={"sample_rate": 24_000})
    other = second(folder)
    save(WaveformEncoder(WaveformConfig(**SMALL | {"layers": 2})), folder, seed=1)
    with pytest.raises(ConfigError, match="leave that option out"):
        other.build().prepare(endless())


@pytest.fixture
def audio(tmp_path):
    (tmp_path / "audio").mkdir()
    for i in range(12):
        soundfile.write(tmp_path / f"audio/{i}.wav", batch_of(1.0 + 0.05 * i, seed=i).waveforms[0].numpy(), RATE)
    return tmp_path / "audio"


TRAIN = {
    **{"steps": 6, "valid_every": 6, "checkpoint_every": 3, "log_every": 3},
    **{"accumulate": 2, "precision": "fp32", "device": "cpu"},
}


def test_two_iterations_end_to_end(audio, tmp_path, monkeypatch):
    """And bit for bit after a kill, without the first one's folder: checkpoints hold clusters, quantizer, steps."""
    monkeypatch.setattr(Hubert, "visualize", lambda *_: {})  # which takes longer than the rest
    shared = {"data": {"batch_seconds": 4.0}, "train": TRAIN}
    one = edit(small({"dropout": 0.1}, min_s=0.5, layer_drop=0.4), **shared)
    pretrain(one, [audio], tmp_path / "one", progress=False)
    two = edit(one, objective={"quantizer": str(tmp_path / "one"), "quantizer_layer": 2})
    pretrain(two, [audio], tmp_path / "two", progress=False)
    shutil.copytree(tmp_path / "two", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut/checkpoints/step-00000006")
    weights = load_file(tmp_path / "one/checkpoints/step-00000006/model.safetensors")
    shutil.rmtree(tmp_path / "one")
    resume(tmp_path / "cut", progress=False)
    for name in ("model.safetensors", "objective.safetensors", "optimizer.safetensors"):
        whole, cut = (tmp_path / run / "checkpoints/step-00000006" / name for run in ("two", "cut"))
        assert whole.read_bytes() == cut.read_bytes()
    stored = load_file(tmp_path / "two/checkpoints/step-00000006/objective.safetensors")
    assert stored["step"] == 6
    assert stored["labels.clusters.centroids"].shape == (6, 16)
    assert stored["labels.clusters.counts"].sum() >= 1000
    name = "context.transformer.blocks.1.qkv.weight"
    assert torch.equal(stored[f"labels.quantizer.encoder.{name}"], weights[name])
    assert not any("blocks.2." in name for name in stored)
    assert load(tmp_path / "two").clip(audio / "0.wav").shape == (16,)


def test_command_line_names_the_first_run(first, audio, tmp_path, capsys):
    folder, _ = first
    flags = [f"--encoder.{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    flags += [f"--objective.kmeans.{name}={value}" for name, value in KMEANS.items()]
    flags += ["--train.steps=2", "--train.device=cpu", "--data.batch-seconds=4", "--objective.min-s=0.5"]
    command = ["pretrain", "musichubert-tiny", "--data", str(audio), *flags, "--output"]
    assert cli.main([*command, str(tmp_path / "run"), "--quantizer", str(folder), "--layer", "2"]) == 0
    stored = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["objective"]
    assert (stored["quantizer"], stored["quantizer_layer"]) == (str(folder), 2)
    assert WaveformConfig(**stored["quantizer_encoder"]) == WaveformConfig(**SMALL)
    capsys.readouterr()
    assert cli.main([*command, str(tmp_path / "not"), "--quantizer", "/no/such", "--layer", "2"]) == 2
    assert capsys.readouterr().err.strip().count("\n") == 0
    assert not (tmp_path / "not").exists()


# --------------------------------------------------------------------------------------------- presets and disk


@pytest.mark.parametrize("name", PRESETS)
def test_presets_go_through_yaml(name):
    run = preset(name)
    assert run.preset == name
    values = yaml.safe_load(yaml.safe_dump({"format": 1, "method": "hubert", **run.model_dump(mode="json")}))
    assert run_from_yaml(values) == run
    needs_folder = name.endswith("iter2")
    assert (run.objective.quantizer_layer > 0) == needs_folder


def test_presets_are_those_published():
    base, iter2 = preset("hubert_base"), preset("hubert_base_iter2")
    encoder = WaveformEncoder(base.encoder)
    assert sum(weight.numel() for weight in encoder.parameters()) == 94_371_712
    assert (base.objective.kmeans.clusters, iter2.objective.kmeans.clusters) == (100, 500)
    assert (iter2.objective.quantizer_layer, iter2.train.steps) == (6, 400_000)
    minutes = base.data.batch_seconds * base.train.accumulate / 60
    assert minutes == pytest.approx(46.7, abs=0.1)
    clusters = {name: preset(f"musichubert_{name}").objective for name in ("k500", "k500_mfcc60", "k2000_iter1", "k2000_iter2")}  # fmt: skip  # noqa: E501
    assert [objective.kmeans.clusters for objective in clusters.values()] == [500, 500, 2000, 2000]
    assert [objective.cepstra for objective in clusters.values()] == [13, 20, 13, 13]
    assert [objective.quantizer_layer for objective in clusters.values()] == [0, 0, 0, 6]
    assert base.objective.mask.model_dump() == {"probability": 0.8, "span": 10, "min_spans": 2, "equalize": "none"}


def test_head_and_embeddings_begin_as_in_fairseq():
    torch.manual_seed(0)
    model = small().build()
    assert model.embeddings.shape == (6, 12)
    assert 0 <= model.embeddings.min() < 0.1
    assert 0.9 < model.embeddings.max() <= 1
    torch.manual_seed(0)
    twin = WaveformEncoder(small().encoder)  # the encoder is drawn first
    assert all(torch.equal(a, b) for a, b in zip(twin.parameters(), model.encoder.parameters(), strict=True))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"objective": {"kmeans": {"cluster": 3}}}, "objective.kmeans.cluster"),
        ({"objective": {"kmeans": {"clusters": 1}}}, "objective.kmeans.clusters"),
        ({"objective": {"cepstra": 24}}, "cepstra: 24 cannot come of 23 mel_bands"),
        ({"objective": {"masked_weight": 0}}, "objective.masked_weight"),
    ],
)
def test_bad_yaml_is_refused_in_one_line(values, message):
    with pytest.raises(ConfigError, match=message) as error:
        run_from_yaml({"method": "hubert"} | values, "config.yaml")
    assert "\n" not in str(error.value)


def part_of_two(_: pytest.MonkeyPatch, rank: int) -> tuple[Hubert, Batch]:
    return prepared(small(layer_drop=0.4)).train(), batch_of(1.2, seed=rank)


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_one(tmp_path):
    two_processes_are_one(part_of_two, tmp_path)
