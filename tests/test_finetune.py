"""Fine-tuning from files to predictions: planted labels, what moves and how fast, augmentation, resume, refusals."""

import csv
import json
import math
import os
import signal
from itertools import pairwise

import numpy as np
import pytest
import soundfile as sf
import torch
from safetensors.torch import load_file

import auricle
from auricle import cli
from auricle.config import edit
from auricle.data.manifest import Manifest
from auricle.encoders.checkpoint import save
from auricle.encoders.mel_transformer import MelTransformer, MelTransformerConfig
from auricle.encoders.vit import Vit, VitConfig
from auricle.errors import AuricleError, TooManySkipsError
from auricle.evaluation.finetuning import loop
from auricle.evaluation.finetuning.augment import (
    add_noise,
    balanced_weights,
    draws,
    mask_features,
    mix_waveforms,
    roll_frames,
)
from auricle.evaluation.finetuning.config import RECIPES, FinetuneConfig, recipe
from auricle.evaluation.finetuning.drop_path import Clips, DropPath
from auricle.evaluation.finetuning.folder import best
from auricle.evaluation.finetuning.loop import finetune
from auricle.evaluation.finetuning.model import Tuned
from auricle.evaluation.finetuning.predict import predict
from auricle.evaluation.results import read_results, table
from auricle.features.frontend import FrontEndConfig
from auricle.nn.patches import Tokens
from auricle.training import optim

RATE = 16_000
CLIPS = 48
TONES = {"low": 400, "mid": 1200, "high": 3200}
FAST = {
    "epochs": 20,
    "layer_decay": 1.0,
    "batch": 8,
    "lr": 1e-2,
    "warmup": 0.0,
    "precision": "fp32",
    "device": "cpu",
    "patience": 50,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """48 clips: one tone for 0.4 s, another for 0.15 to 0.2 s; the first says the class, both the intervals."""
    folder, rng = tmp_path_factory.mktemp("tones"), np.random.default_rng(0)
    names = list(TONES)
    rows = {name: [] for name in ("path", "split", "tone", "tones", "pitch", "spans", "noise")}
    for clip in range(CLIPS):
        pair = names[clip % 3], names[(clip % 3 + 1 + clip // 3 % 2) % 3]
        ends = 0.4, 0.4 + rng.uniform(0.15, 0.2)
        time = np.arange(round(ends[1] * RATE)) / RATE
        hertz = np.where(time < ends[0], TONES[pair[0]], TONES[pair[1]])
        level = rng.uniform(0.02, 0.4)
        wave = level * np.sin(2 * np.pi * hertz * time) + 0.002 * rng.standard_normal(len(time))
        sf.write(folder / f"{clip:02}.wav", wave, RATE, subtype="FLOAT")
        spans = [{"start_s": a, "end_s": b, "label": name} for a, b, name in zip((0, 0.4), ends, pair, strict=True)]
        values = f"{clip:02}.wav", ("train", "train", "dev", "test")[clip // 3 % 4], pair[0], ";".join(sorted(pair))
        for name, value in zip(
            rows, (*values, math.log10(TONES[pair[0]]) + rng.uniform(0, 0.1), spans, str(rng.integers(2))), strict=True
        ):
            rows[name].append(value)
    manifest = Manifest.from_columns(rows, folder)
    manifest.save(folder / "labels.parquet")
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A checkpoint of two small blocks with fresh weights, with dropout so that draws matter."""
    torch.manual_seed(0)
    front_end = FrontEndConfig(n_mels=24, normalize="none")
    config = MelTransformerConfig(front_end=front_end, dim=16, layers=2, heads=2, ffn=32, chunk_frames=100, norm="pre")
    folder = tmp_path_factory.mktemp("encoder")
    network = MelTransformer(config)
    torch.nn.init.normal_(network.project.weight, std=0.3)  # or positions would drown what is heard
    save(network, folder)
    return str(folder)


def run(encoder, corpus, output, target="tone", **options):
    return finetune(
        encoder, corpus / "labels.parquet", target=target, output=output, progress=False, **(FAST | options)
    )


@pytest.fixture(scope="module")
def tuned(encoder, corpus, tmp_path_factory):
    """A finished run on the tones."""
    folder = tmp_path_factory.mktemp("runs") / "ft"
    return folder, run(encoder, corpus, folder)


def weights(folder):
    return load_file(next(folder.glob("checkpoints/step-*/model.safetensors")))


# --------------------------------------------------------------------------------------------- planted answers


def test_a_learnable_label_is_learned(tuned):
    _, result = tuned
    assert result.score > 0.9
    assert result.chance == pytest.approx(1 / 3)
    assert (result.protocol, result.n_train, result.n_dev, result.n_test) == ("finetune", 24, 12, 12)
    assert result.low <= result.score <= result.high


@pytest.mark.parametrize(
    ("target", "kind", "metric", "least"),
    [("tones", "labels", "map", 0.9), ("pitch", "values", "r2", 0.8), ("spans", "classes", "accuracy", 0.85)],
)
def test_so_are_labels_values_and_intervals(encoder, corpus, tmp_path, target, kind, metric, least):
    result = run(encoder, corpus, tmp_path / "ft", target)
    assert (result.kind, result.metric) == (kind, metric)
    assert result.level == ("frame" if target == "spans" else "clip")
    assert result.score > least > result.chance
    assert read_results(tmp_path / "ft") == [result]


def test_labels_of_nothing_score_chance(encoder, corpus, tmp_path):
    result = run(encoder, corpus, tmp_path / "ft", "noise", epochs=3)
    assert result.low <= 0.5 <= result.high


def test_results_stand_in_tables_and_reports(tuned, tmp_path):
    folder, result = tuned
    assert f"{100 * result.score:.1f}" in table(read_results(folder))
    page = auricle.build_report([folder], tmp_path / "page.html")
    assert "tone" in page.read_text(encoding="utf-8")


def test_evaluating_on_clips_that_were_trained_on_is_marked(tuned, corpus, tmp_path):
    folder, _ = tuned
    data = Manifest.open(corpus / "labels.parquet")
    swapped = {"train": "test", "test": "train", "dev": "dev"}
    for split, marked in ((data.column("split"), False), ([swapped[part] for part in data.column("split")], True)):
        (result,) = auricle.evaluate(
            folder, data=data.with_column("split", split), target="tone", output=tmp_path, lrs=(1e-2,), progress=False
        )
        assert result.transductive == marked


# ------------------------------------------------------------------------------------------------ what is trained


def test_the_head_alone_leaves_the_encoder_as_it_was(encoder, corpus, tmp_path):
    run(encoder, corpus, tmp_path / "ft", blocks=0, head="mlp", hidden=8, epochs=2)
    before, after = load_file(f"{encoder}/model.safetensors"), weights(tmp_path / "ft")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert auricle.load(tmp_path / "ft").fingerprint() == auricle.load(encoder).fingerprint()


def test_the_last_block_moves_alone(encoder, corpus, tmp_path):
    run(encoder, corpus, tmp_path / "ft", blocks=1, epochs=2, time_mask=10, frequency_mask=4)
    before, after = load_file(f"{encoder}/model.safetensors"), weights(tmp_path / "ft")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    above = {name for name in before if "blocks.1." in name or "final_norm" in name}
    assert moved == above


def test_rates_fall_by_layer_in_closed_form(encoder):
    config = FinetuneConfig(layer_decay=0.5, lr=1e-2, warmup=0.0, schedule="linear")
    model = Tuned(auricle.load(encoder), config, "classes", "clip", 3)
    train = config.train(steps=10)
    optimizer = optim.build_optimizer(model, train, model.scales())
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    optim.update(optimizer, 3, train, torch.tensor(1.0), torch.tensor(1.0))
    rates = {id(weight): group["lr"] for group in optimizer.param_groups for weight in group["params"]}
    wanted = {"project": 0.5**3, "blocks.0.": 0.5**2, "blocks.1.": 0.5, "final_norm": 0.5, "head": 1.0}
    for name, weight in model.named_parameters():
        scale = next((wanted[part] for part in wanted if part in name), 0.5**3)
        assert rates[id(weight)] == pytest.approx(1e-2 * (1 - 2 / 10) * scale), name


def test_what_is_not_trained_has_no_dropout(encoder):
    model = Tuned(auricle.load(encoder), FinetuneConfig(blocks=1), "classes", "clip", 3).train()
    blocks = model.encoder.transformer.blocks
    assert (blocks[0].training, blocks[1].training, blocks[0].dropout.training) == (False, True, False)
    assert not any(module.training for module in model.eval().modules())


# -------------------------------------------------------------------------------------------------- augmentation


def test_mixtures_are_what_their_targets_say():
    torch.manual_seed(0)
    lengths = torch.randint(500, 1000, (64,))
    waves = torch.randn(64, 1000, dtype=torch.float64) + 0.3
    waves[torch.arange(1000) >= lengths[:, None]] = 0
    mixed, targets = mix_waveforms(waves, lengths, torch.eye(64, dtype=torch.float64), 0.5, 10.0)
    for row in range(64):
        wanted = targets[row] @ waves
        wanted[lengths[row] :] = 0
        if targets[row, row] < 1:
            wanted[: lengths[row]] -= wanted[: lengths[row]].mean()
        torch.testing.assert_close(mixed[row], wanted)
    assert 16 <= (targets.diagonal() < 1).sum() <= 48  # about half
    torch.testing.assert_close(targets.sum(1), torch.ones(64, dtype=torch.float64))


def test_shares_follow_beta_and_no_probability_changes_nothing():
    waves, lengths, eye = torch.randn(4000, 4), torch.full((4000,), 4), torch.eye(4000)
    share = mix_waveforms(waves, lengths, eye, 1.0, 10.0)[1].diagonal()
    share = share[share < 1]
    assert share.mean() == pytest.approx(0.5, abs=0.01)
    assert share.var() == pytest.approx(1 / (4 * 21), rel=0.1)  # of Beta(10, 10)
    assert torch.equal(mix_waveforms(waves, lengths, eye, 0.0, 10.0)[0], waves)


def test_masks_are_stretches_of_uniform_width_inside_the_clip():
    torch.manual_seed(0)
    lengths = torch.tensor([40, 100]).repeat(2000)
    x = mask_features(torch.ones(4000, 100, 16), lengths, 30, 6)
    time, frequency = (x == 0).all(2), (x == 0).all(1)
    assert torch.equal(x == 0, time[:, :, None] | frequency[:, None, :])
    for mask, widest in ((time[::2], 20), (time[1::2], 30), (frequency, 6)):
        widths = mask.sum(1)
        assert ((mask[:, 1:] & ~mask[:, :-1]).sum(1) + mask[:, 0] <= 1).all()  # one stretch each
        assert torch.bincount(widths).shape == (widest + 1,)
        assert torch.allclose(torch.bincount(widths) / len(widths), torch.tensor(1 / (widest + 1)), atol=0.02)
    assert not time[::2, 40:].any()


def test_noise_is_uniform_up_to_a_bound_that_is_itself_uniform():
    torch.manual_seed(0)
    noise = add_noise(torch.full((3000, 40, 16), 5.0), 0.1) - 5
    assert noise.min() >= -1e-6
    bound = 2 * noise.mean((1, 2))  # of each clip, about
    assert bound.max() < 0.11
    assert bound.mean() == pytest.approx(0.05, rel=0.03)
    assert bound.std() == pytest.approx(0.1 / 12**0.5, rel=0.05)
    assert (noise / bound[:, None, None]).std() == pytest.approx(1 / 12**0.5, rel=0.02)


def test_frames_are_rolled_within_their_clip():
    torch.manual_seed(0)
    lengths = torch.tensor([7, 10, 0]).repeat(1000)
    x = torch.arange(10.0).expand(3000, 10)[:, :, None] + torch.tensor([0, 100])
    rolled = roll_frames(x, lengths, 3)
    shifts = []
    for row, length in zip(rolled, lengths.tolist(), strict=True):
        assert torch.equal(row[length:], x[0, length:])
        shifts.append(next(s for s in range(-3, 4) if torch.equal(row[:length], x[0, :length].roll(s, 0))))
    counts = torch.bincount(torch.tensor(shifts)[lengths > 0] + 3) / 2000
    assert torch.allclose(counts, torch.tensor(1 / 7), atol=0.03)


def test_every_epoch_hears_every_clip_once_and_begins_anywhere():
    clips = np.array([3, 5, 8, 9, 11])
    stream = draws(clips, 2, seed=1)
    first = [next(stream) for _ in range(7)]
    assert sorted(np.concatenate([rows for rows, _ in first[:3]])) == clips.tolist()
    assert sorted(np.concatenate([rows for rows, _ in first[3:6]])) == clips.tolist()
    for start in (0, 2, 4):
        rows, places = next(draws(clips, 2, seed=1, start=start))
        assert np.array_equal(rows, first[start][0])
        assert np.array_equal(places, first[start][1])
        assert ((places >= 0) & (places < 1)).all()


def test_balanced_draws_hear_classes_alike():
    hits = np.eye(3)[[0] * 80 + [1] * 15 + [2] * 5]
    stream = draws(np.arange(100), 100, 0, weights=balanced_weights(hits))
    heard = np.concatenate([next(stream)[0] for _ in range(60)])
    assert np.allclose(hits[heard].mean(0), 1 / 3, atol=0.03)
    several = balanced_weights(np.array([[1, 0], [1, 1], [0, 0]]))
    assert several.tolist() == [0.5, 1.5, 0.5]


def vit(**options):
    torch.manual_seed(0)
    return Vit(VitConfig(**{"dim": 16, "layers": 2, "heads": 2, "ffn": 32, **options}))


def test_dropped_tokens_leave_whole_steps_and_bands():
    model = Tuned(vit(), FinetuneConfig(drop_time=0.5, drop_frequency=0.25), "classes", "clip", 2)
    x, lengths = model.encoder.features(torch.randn(3, 20_000), torch.tensor([20_000, 9_000, 20_000]))
    visible = model._visible(x, lengths)
    steps = model.encoder.encode(x, lengths, layers=[2]).lengths
    assert visible.counts.tolist() == [int(count * 0.5) * 6 for count in steps.tolist()]
    for row, count in zip(visible.index, visible.counts.tolist(), strict=True):
        kept = {(token // 8, token % 8) for token in row[:count].tolist()}
        assert kept == {(step, band) for step in {t for t, _ in kept} for band in {f for _, f in kept}}


def test_pooling_all_tokens_is_pooling_all_frames():
    encoder = vit().eval()
    x, lengths = encoder.features(torch.randn(2, 20_000), torch.tensor([20_000, 20_000]))
    frames = encoder.encode(x, lengths, layers=[2])
    total = int(frames.lengths[0]) * 8
    every = Tokens(torch.arange(total).expand(2, -1), torch.full((2,), total))
    tokens = encoder.encode(x, lengths, layers=[2], visible=every)
    pooled = [auricle.encoders.base.pool_frames(found.hidden_states[0], found.lengths) for found in (frames, tokens)]
    torch.testing.assert_close(pooled[0], pooled[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("packed", [True, False])
def test_drop_path_drops_whole_clips_and_keeps_the_mean(packed):
    torch.manual_seed(0)
    sizes, clips = torch.tensor([2, 1, 3]).repeat(4000), Clips()
    clips.note(None, (torch.zeros(len(sizes), 3, 1), sizes))
    x = torch.ones(int(sizes.sum()), 2) if packed else torch.ones(len(sizes), 3, 2)
    path = DropPath(0.3, clips)
    kept = path(x) if not packed else torch.stack([part[:1].expand(3, 2) for part in path(x).split(sizes.tolist())])
    if packed:
        assert all(len(part.unique()) == 1 for part in path(x).split(sizes.tolist()))
    assert (kept == kept[:, :1, :1]).all()
    assert torch.isin(kept, torch.tensor([0.0, 1 / 0.7])).all()
    assert kept[:, 0, 0].mean() == pytest.approx(1, abs=0.02)
    assert path.eval()(x) is x


def test_drop_path_grows_to_the_last_block_and_passes_it_by(monkeypatch):
    encoder = vit(layers=3, final_norm=False).train()
    x, lengths = encoder.features(torch.randn(2, 20_000), torch.tensor([20_000, 9_000]))
    first, last = encoder.encode(x, lengths, layers=[1, 3]).hidden_states
    model = Tuned(encoder, FinetuneConfig(drop_path=0.2), "classes", "clip", 2).train()
    paths = [module for module in encoder.modules() if isinstance(module, DropPath)]
    assert [path.p for path in paths] == pytest.approx([0, 0.1, 0.2])
    with monkeypatch.context() as patched:
        patched.setattr(torch, "rand", torch.zeros)  # every branch that may be dropped is
        assert torch.equal(encoder.encode(x, lengths, layers=[3]).hidden_states[0], first)
    assert not torch.equal(first, last)
    model.eval()
    assert torch.equal(encoder.encode(x, lengths, layers=[3]).hidden_states[0], last)
    with pytest.raises(AuricleError, match=r"drop_path: .* no Transformer of several blocks"):
        Tuned(vit(layers=1), FinetuneConfig(drop_path=0.1), "classes", "clip", 2)


def test_classes_each_by_itself_in_closed_form():
    config = FinetuneConfig(loss="sigmoid")
    logits, targets = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0]]), torch.tensor([[1.0, 0, 0], [0, 0.7, 0.3]])
    model = Tuned(vit(), config, "classes", "clip", 3).eval()
    p = 1 / (1 + np.exp(-logits.double().numpy()))
    wanted = -(targets.numpy() * np.log(p) + (1 - targets.numpy()) * np.log(1 - p)).mean(1)
    np.testing.assert_allclose(model._errors(logits, targets), wanted, rtol=1e-5)
    torch.nn.init.normal_(model.head.out.weight)
    x = torch.randn(5, 16)
    found = model.predict({2: x})[0]
    p = 1 / (1 + np.exp(-model.head(x).detach().double().numpy()))
    np.testing.assert_allclose(found, p / p.sum(1, keepdims=True), rtol=1e-5)


def test_a_patch_encoder_learns_with_everything_on(corpus, tmp_path):
    result = run(vit(), corpus, tmp_path / "ft", drop_time=0.2, drop_frequency=0.2, mixup=0.2, balanced=True,
                 frequency_mask=8, lr=3e-3, drop_path=0.1, noise=0.1, roll=3, loss="sigmoid", epochs=40,
                 valid_every=30)  # fmt: skip
    assert result.score > 0.6


# -------------------------------------------------------------------------------------------- kills and refusals


class Crash(Exception):
    pass


@pytest.mark.parametrize("stop", ["crash", "signal"])
def test_a_stopped_run_goes_on_bit_for_bit(encoder, corpus, tmp_path, monkeypatch, stop):
    options = {"epochs": 3, "mixup": 0.5, "time_mask": 8, "drop_path": 0.2, "noise": 0.1, "roll": 3, "valid_every": 2}
    whole = run(encoder, corpus, tmp_path / "whole", **options)
    update = loop._Loop._update

    def stopped(self, rows, batch):
        update(self, rows, batch)
        if self.step == 5:
            if stop == "crash":
                raise Crash
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(loop._Loop, "_update", stopped)
        with pytest.raises(Crash if stop == "crash" else loop.TrainingInterrupted):
            run(encoder, corpus, tmp_path / "ft", **options)
    assert auricle.load(tmp_path / "ft").dims == (16, 16, 16)  # loadable meanwhile
    result = run(encoder, corpus, tmp_path / "ft", resume=True, **options)
    for key in ("score", "low", "high", "dev", "chosen", "settings"):
        assert getattr(result, key) == getattr(whole, key)
    folders = [tmp_path / "whole", tmp_path / "ft"]
    for name in ("model", "objective"):
        first, second = (next(folder.glob(f"checkpoints/*/{name}.safetensors")).read_bytes() for folder in folders)
        assert first == second
    lines = [(folder / "metrics.jsonl").read_text().splitlines() for folder in folders]
    assert [line for line in lines[0] if "session" not in line] == [line for line in lines[1] if "session" not in line]
    assert loop.resume(tmp_path / "ft").score == whole.score  # a finished run resumes to nothing


def test_early_stopping_keeps_the_best(encoder, corpus, tmp_path):
    run(encoder, corpus, tmp_path / "ft", "noise", epochs=40, patience=2, lr=0.03)
    lines = [json.loads(line) for line in (tmp_path / "ft" / "metrics.jsonl").read_text().splitlines()]
    dev = [(line["accuracy"], -line["loss"], -line["step"]) for line in lines if line["split"] == "valid"]
    assert len(dev) < 41
    assert max(dev[-2:]) < max(dev)
    (kept,) = (tmp_path / "ft" / "checkpoints").glob("step-*")
    assert int(kept.name[5:]) == -max(dev)[2]


def test_another_run_or_folder_is_refused(encoder, corpus, tuned, tmp_path):
    folder, _ = tuned
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    for output, options, words in (
        (tmp_path / "full", {}, "not an empty folder"),
        (tmp_path / "full", {"resume": True}, "not an empty folder"),
        (folder, {}, "holds a fine-tuning run already"),
        (folder, {"resume": True, "lr": 0.5}, r"config.lr = 0.01, not 0.5"),
        (folder, {"resume": True, "target": "noise"}, "not"),
    ):
        with pytest.raises(AuricleError, match=words) as caught:
            run(encoder, corpus, output, **options)
        assert "\n" not in str(caught.value)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"encoder": "fbank"}, "fbank: has no weights"),
        ({"target": "tune"}, "did you mean 'tone'"),
        ({"config": "audio-may"}, "did you mean 'audio-mae'"),
        ({"blocks": 3}, "has 2 blocks"),
        ({"drop_time": 0.2}, "has no patches"),
        ({"target": "spans", "mixup": 0.5}, "mixup: is not for classes by frame"),
        ({"target": "spans", "roll": 2}, "roll: is not for classes by frame"),
        ({"target": "pitch", "balanced": True}, "balanced: is not for values"),
        ({"target": "pitch", "loss": "sigmoid"}, "loss: is not for values by clip; set it to softmax"),
        ({"target": "spans", "metric": "onset_f1_50ms"}, "onset_f1_50ms: is of probes on frozen encoders"),
        ({"target": "spans", "metric": "beat_f1_mean"}, "beat_f1_mean: is of probes on frozen encoders"),
        ({"metric": "weighted_key"}, "weighted_key: is of probes on frozen encoders"),
        ({"fold": 2}, "no fold 2"),
        ({"epoch": 3}, "did you mean 'epochs'"),
    ],
)
def test_what_cannot_be_is_one_line_and_leaves_nothing(encoder, corpus, tmp_path, options, words):
    with pytest.raises(AuricleError, match=words) as caught:
        run(**{"encoder": encoder, "corpus": corpus, "output": tmp_path / "ft", **options})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ft" / "finetune.yaml").exists()


def test_folds_are_tested_on_one_at_a_time(encoder, corpus, tmp_path):
    numbers = {}
    for fold in (0, 1):
        result = run(encoder, corpus, tmp_path / str(fold), split="folds", fold=fold, epochs=1)
        assert f"fold {fold} of" in result.split
        numbers[fold] = set(Manifest.open(tmp_path / str(fold) / "test.parquet").column("clip_id"))
    assert not numbers[0] & numbers[1]


def test_bad_clips_are_skipped_up_to_a_share(encoder, corpus, tmp_path):
    folder = tmp_path / "audio"
    folder.mkdir()
    for path in corpus.glob("*.wav"):
        (folder / path.name).write_bytes(path.read_bytes())
    rows = Manifest.open(corpus / "labels.parquet").table.select(["clip_id", "split", "tone"]).to_pylist()
    lines = [f"{row['clip_id']},{row['split']},{row['tone']}" for row in rows]
    (folder / "labels.csv").write_text("\n".join(["path,split,tone", *lines]))
    sf.write(folder / "00.wav", np.full(8000, np.nan), RATE, subtype="FLOAT")  # train
    sf.write(folder / "09.wav", np.zeros(8000), RATE, subtype="FLOAT")  # test
    options = {"target": "tone", "progress": False, **FAST, "epochs": 1}
    with pytest.raises(TooManySkipsError, match=r"00\.wav"):
        finetune(encoder, folder / "labels.csv", output=tmp_path / "few", **options)
    result = finetune(encoder, folder / "labels.csv", output=tmp_path / "ft", max_skipped=0.1, **options)
    assert result.skipped == 2
    assert result.n_test == 12
    assert "00.wav" in (tmp_path / "ft" / "skipped.jsonl").read_text()


# ------------------------------------------------------------------------------------------------------- predict


def test_probabilities_are_the_models_own(tuned, corpus, tmp_path):
    folder, _ = tuned
    rows = predict(folder, corpus, tmp_path / "out.csv", progress=False).to_pylist()
    assert rows == [
        row | {key: float(value) for key, value in row.items() if key == "start_s" or key.startswith("p_")}
        for row in map(dict, csv.DictReader((tmp_path / "out.csv").open(encoding="utf-8")))
    ]
    assert len(rows) == CLIPS
    assert list(rows[0]) == ["clip_id", "path", "start_s", "prediction", "p_high", "p_low", "p_mid"]
    head = {
        name.removeprefix("head."): value.double().numpy()
        for name, value in load_file(next(folder.glob("checkpoints/*/objective.safetensors"))).items()
    }
    encoder = auricle.load(folder)
    for row in rows[::7]:
        x = encoder.clip(row["path"]).double().numpy()
        x = (x - x.mean()) / np.sqrt(x.var() + 1e-6) * head["norm.weight"] + head["norm.bias"]
        logits = head["out.weight"] @ x + head["out.bias"]
        wanted = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        found = [row["p_high"], row["p_low"], row["p_mid"]]
        assert found == pytest.approx(wanted.tolist(), abs=1e-5)
        assert sum(found) == pytest.approx(1)
        assert row["prediction"] == ["high", "low", "mid"][int(np.argmax(found))]


def test_predictions_on_test_are_those_that_were_scored(tuned, corpus):
    folder, result = tuned
    told = {row["clip_id"]: row["prediction"] for row in predict(folder, corpus, progress=False).to_pylist()}
    test = [row for row in result.predictions().to_pylist() if row["split"] == "test"]
    assert [told[row["clip_id"]] for row in test] == [row["prediction"] for row in test]


def test_frames_become_intervals_that_tile_the_clips(encoder, corpus, tmp_path):
    run(encoder, corpus, tmp_path / "ft", "spans", epochs=8)
    rows = predict(tmp_path / "ft", corpus, progress=False).to_pylist()
    about, model = best(tmp_path / "ft")
    for clip in ("00.wav", "13.wav"):
        mine = [row for row in rows if row["clip_id"] == clip]
        assert mine[0]["start_s"] == 0
        assert mine[-1]["end_s"] == pytest.approx(sf.info(corpus / clip).duration)
        for one, after in pairwise(mine):
            assert one["end_s"] == after["start_s"]
            assert one["prediction"] != after["prediction"]
        frames = model.encoder.frames(corpus / clip)
        with torch.inference_mode():
            logits = model.head(frames)
        for row in mine:  # a frame well inside an interval answers as it says
            middle = (row["start_s"] + row["end_s"]) / 2 * RATE
            nearest = min(
                len(frames) - 1, max(0, math.floor((middle - model.encoder.offset) / model.encoder.hop + 0.5))
            )
            if row["end_s"] - row["start_s"] > 0.05:
                assert about.classes[int(logits[nearest].argmax())] == row["prediction"]
        assert all(sum(row[f"p_{name}"] for name in TONES) == pytest.approx(1) for row in mine)


def test_values_and_labels_are_told_as_such(encoder, corpus, tmp_path):
    run(encoder, corpus, tmp_path / "pitch", "pitch", epochs=1)
    run(encoder, corpus, tmp_path / "tones", "tones", epochs=1)
    (row, *_) = predict(tmp_path / "pitch", corpus / "00.wav", progress=False).to_pylist()
    assert list(row) == ["clip_id", "path", "start_s", "prediction", "value"]
    assert float(row["prediction"]) == pytest.approx(row["value"], rel=1e-5)
    (row, *_) = predict(tmp_path / "tones", corpus / "00.wav", progress=False).to_pylist()
    assert row["prediction"] == ";".join(name for name in sorted(TONES) if row[f"p_{name}"] > 0.5)


def test_bad_recordings_are_listed_and_stop_nothing(tuned, corpus, tmp_path):
    folder, _ = tuned
    new = tmp_path / "new"
    new.mkdir()
    (new / "good.wav").write_bytes((corpus / "01.wav").read_bytes())
    (new / "text.wav").write_text("no audio")
    sf.write(new / "short.wav", np.full(50, 0.1), RATE, subtype="FLOAT")
    rows = predict(folder, new, tmp_path / "out.csv", progress=False).to_pylist()
    assert [row["clip_id"] for row in rows] == ["good.wav"]
    told = json.loads((tmp_path / "out.json").read_text())
    assert {os.path.basename(skip["path"]) for skip in told["skipped"]} == {"text.wav", "short.wav"}
    assert (told["format"], told["auricle"], told["classes"]) == (1, auricle.__version__, ["high", "low", "mid"])


def test_folders_that_are_none_and_newer_ones_are_one_line(tuned, encoder, corpus, tmp_path):
    folder, _ = tuned
    with pytest.raises(AuricleError, match="holds no fine-tuning run"):
        predict(encoder, corpus)
    with pytest.raises(AuricleError, match=r"ends in \.csv"):
        predict(folder, corpus, tmp_path / "out.parquet")
    newer = tmp_path / "newer"
    newer.mkdir()
    text = (folder / "finetune.yaml").read_text().replace("format: 1", "format: 9")
    (newer / "finetune.yaml").write_text(text)
    with pytest.raises(AuricleError, match="newer auricle"):
        predict(newer, corpus)


# --------------------------------------------------------------------------------------- recipes and command line


def test_recipes_hold_the_papers_numbers():
    assert all(recipe(name).recipe == name for name in RECIPES)
    two = recipe("mockingjay-two-epochs")
    assert (two.epochs, two.batch, two.lr, two.warmup, two.schedule) == (2, 12, 4e-3, 0.07, "linear")
    small, audioset, keywords = recipe("audio-mae"), recipe("audio-mae-as20k"), recipe("audio-mae-keywords")
    assert {one.drop_path for one in (small, audioset, keywords)} == {0.1}
    assert (small.loss, audioset.loss, keywords.loss) == ("softmax", "sigmoid", "sigmoid")
    assert (small.noise, audioset.noise, keywords.noise, keywords.roll) == (0, 0, 0.1, 10)
    assert (small.epochs, small.batch, small.lr, small.mixup) == (60, 64, 2.5e-4, 0)
    assert (small.time_mask, small.frequency_mask, small.betas, small.weight_decay) == (96, 24, (0.9, 0.95), 1e-4)
    assert (audioset.lr, audioset.mixup, audioset.time_mask, audioset.layer_decay) == (1.25e-4, 0.5, 192, 0.75)
    assert edit(small, lr=1.0).recipe == "audio-mae"


def test_from_the_command_line_to_predictions(encoder, corpus, tmp_path, capsys):
    folder, out = str(tmp_path / "ft"), str(tmp_path / "out.csv")
    args = ["--data", str(corpus / "labels.parquet"), "--target", "tone", "--output", folder, "--recipe", "noss"]
    assert cli.main(["finetune", encoder, *args, "--epochs", "2", "--precision", "fp32", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["encoder"], told["n_test"]) == (encoder, 12)
    stored = auricle.config.read_yaml(f"{folder}/finetune.yaml")["config"]
    assert (stored["recipe"], stored["epochs"], stored["schedule"]) == ("noss", 2, "constant")
    assert cli.main(["finetune", "--resume", folder]) == 0
    assert "chance" in capsys.readouterr().out
    assert cli.main(["predict", folder, "--data", str(corpus), "--output", out]) == 0
    assert "48 rows" in capsys.readouterr().out
    assert cli.main(["finetune", encoder, *args]) == 2
    assert "holds a fine-tuning run already" in capsys.readouterr().err
