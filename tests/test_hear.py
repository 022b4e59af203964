"""The HEAR API in and out, MTEB's protocol, HEAR's grid of networks, and its folders of tasks."""

import inspect
import json
import logging
import random
import sys
import textwrap
import types
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from sklearn.metrics import average_precision_score
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.model_selection import ParameterGrid
from torch import nn

import auricle.hear
from auricle.config import Config, edit
from auricle.encoders.base import Encoder, Frames
from auricle.encoders.check import check
from auricle.encoders.checkpoint import load, save
from auricle.encoders.mel_transformer import MelTransformer, MelTransformerConfig
from auricle.errors import AudioError, ConfigError, EvaluationError, ManifestError, MissingDependencyError
from auricle.evaluation.answers import answer
from auricle.evaluation.embedder import Embedder
from auricle.evaluation.prepare import prepare
from auricle.evaluation.probes.heads import Examples, ProbeConfig
from auricle.evaluation.probes.hear import HearConfig, HearProber, Point, build, minibatches, train_network
from auricle.evaluation.probes.protocols import prober
from auricle.evaluation.results import read_results, table
from auricle.evaluation.run import evaluate
from auricle.evaluation.tasks.hear import hear_tasks
from auricle.mteb import MtebEncoder


def noise(samples, seed=0, clips=1):
    return 0.1 * torch.randn(clips, samples, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------------------------- ours through the API


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small transformer as a checkpoint."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("runs") / "small"
    save(MelTransformer(MelTransformerConfig(dim=16, heads=2, layers=2, ffn=32)), folder)
    return str(folder)


@pytest.mark.parametrize("name", ["fbank", "mfcc", "RUN"])
def test_a_round_trip_gives_the_same_frames_and_scenes(name, run):
    ours = load(run if name == "RUN" else name)
    theirs = load(f"hear:auricle.hear:{run if name == 'RUN' else name}")
    assert (theirs.sample_rate, theirs.hop, theirs.offset) == (ours.sample_rate, ours.hop, ours.offset)
    assert theirs.dims == (ours.dims[-1], ours.dims[-1])
    for samples in (16_000, 5_555, 403):
        clip = noise(samples)[0].numpy()
        torch.testing.assert_close(theirs.frames(clip, 16_000), ours.frames(clip, 16_000), rtol=0, atol=1e-5)
        torch.testing.assert_close(theirs.clip(clip, 16_000, "scene"), ours.clip(clip, 16_000), rtol=0, atol=1e-5)
    assert check(theirs).ok, str(check(theirs))


def test_timestamps_are_centres_in_milliseconds_and_batches_are_clips(run):
    model = auricle.hear.load_model(run)
    audio = noise(20_000, clips=3)
    frames, times = auricle.hear.get_timestamp_embeddings(audio, model)
    scenes = auricle.hear.get_scene_embeddings(audio, model)
    assert frames.shape == (3, times.shape[1], model.timestamp_embedding_size)
    assert scenes.shape == (3, model.scene_embedding_size)
    assert {frames.dtype, scenes.dtype, times.dtype} == {torch.float32}
    np.testing.assert_allclose(times[2], (model.encoder.offset + 160 * np.arange(times.shape[1])) / 16, rtol=1e-6)
    torch.testing.assert_close(scenes, frames.mean(1), rtol=0, atol=1e-5)
    for row in range(3):
        alone = auricle.hear.get_timestamp_embeddings(audio[row : row + 1], model)[0]
        torch.testing.assert_close(alone[0], frames[row], rtol=0, atol=1e-5)
    assert not frames.requires_grad
    assert not model.training


def test_layers_and_pooling_are_options(run):
    audio, encoder = noise(9_000), load(run)
    model = auricle.hear.load_model(run, layers=[0, -1], pool="meanstd")
    frames, _ = auricle.hear.get_timestamp_embeddings(audio, model)
    assert frames.shape[2] == model.timestamp_embedding_size == encoder.dims[0] + encoder.dims[-1]
    states = encoder(audio, torch.tensor([9_000])).hidden_states
    torch.testing.assert_close(frames, torch.cat([states[0], states[-1]], 2), rtol=0, atol=1e-5)
    scene = auricle.hear.get_scene_embeddings(audio, model)
    assert scene.shape == (1, model.scene_embedding_size)
    mean = auricle.hear.load_model(run, layers="mean")
    assert mean.timestamp_embedding_size == encoder.dims[-1]
    assert len({model.fingerprint, mean.fingerprint, auricle.hear.load_model(run).fingerprint}) == 3


def test_mistakes_with_ours_are_explained():
    with pytest.raises(ConfigError, match="needs a run folder"):
        load("hear:auricle.hear")
    with pytest.raises(ConfigError, match="unknown encoder 'fbnk'; did you mean 'fbank'"):
        load("hear:auricle.hear:fbnk")
    model = auricle.hear.load_model("fbank")
    for function in (auricle.hear.get_scene_embeddings, auricle.hear.get_timestamp_embeddings):
        with pytest.raises(AudioError, match="shorter than one frame"):
            function(noise(100), model)


# ------------------------------------------------------------------------------------------------- theirs through it

MODULE = """
import torch

class Model(torch.nn.Module):
    sample_rate, scene_embedding_size, timestamp_embedding_size = 22050, 5, 3

    def __init__(self, gain):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(gain))

def load_model(model_file_path="", **options):
    return Model(float(open(model_file_path).read()) if model_file_path else 1.0)

def get_timestamp_embeddings(audio, model):
    windows = audio.unfold(1, 882, 441)  # 40 ms every 20 ms
    embeddings = model.gain * torch.stack([windows.mean(2), windows.abs().mean(2), windows.std(2)], 2)
    times = 20 + 20 * torch.arange(windows.shape[1]).float()
    return embeddings, times.repeat(len(audio), 1)

def get_scene_embeddings(audio, model):
    return model.gain * torch.stack([audio.amax(1), audio.amin(1), audio.std(1), audio.mean(1), audio[:, 0]], 1)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module into the working directory, with changes; returns its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    made = []

    def write(*changes):
        source = MODULE
        for old, new in changes:
            assert old in source
            source = source.replace(old, new)
        name = f"hear_{abs(hash((tmp_path, changes)))}"
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
        made.append(name)
        return name

    yield write
    for name in made:
        sys.modules.pop(name, None)


def test_a_strangers_module_is_an_encoder(module, tmp_path):
    (tmp_path / "weights.txt").write_text("2.5")
    name = f"hear:{module()}:weights.txt"
    encoder = load(name)
    assert (encoder.name, encoder.sample_rate, encoder.hop, encoder.offset) == (name, 22_050, 441, 441.0)
    assert (encoder.dims, encoder.shortest) == ((5, 3), 882)
    clip = noise(22_050)
    times, scene = encoder.frames(clip[0].numpy(), 22_050), encoder.clip(clip[0].numpy(), 22_050, "scene")
    windows = clip.unfold(1, 882, 441)
    torch.testing.assert_close(times[:, 1], 2.5 * windows.abs().mean(2)[0])
    torch.testing.assert_close(scene[3], 2.5 * clip.mean(1)[0], rtol=1e-5, atol=1e-8)
    both = encoder(clip, torch.tensor([22_050]))
    assert [state.shape for state in both.hidden_states] == [(1, 49, 5), (1, 49, 3)]
    assert encoder(clip[:, :881], torch.tensor([881])).lengths.tolist() == [0]
    assert check(encoder).ok, str(check(encoder))


def test_the_fingerprint_follows_the_file_the_weights_and_the_source(module, tmp_path):
    for gain in ("1", "1.0", "2"):
        (tmp_path / f"{gain}.txt").write_text(gain)
    prints = [load(f"hear:{module()}:{gain}.txt").fingerprint() for gain in ("1", "1.0", "2")]
    assert load(f"hear:{module()}:1.txt").fingerprint() == prints[0]
    prints.append(load(f"hear:{module(('# 40 ms', '# forty ms'))}:1.txt").fingerprint())
    assert len(set(prints)) == 4


def test_timestamps_that_stretch_over_the_clip_are_brought_back_to_the_grid(module):
    # a frame's first channel is where it claims to lie; the hop is 20 ms in 4 s, and nearly 40 in others
    stretch = (
        "times = 20 + 20 * torch.arange(windows.shape[1]).float()\n",
        "times = 20 + (20 if audio.shape[1] == 88200 else 38) * torch.arange(windows.shape[1]).float()\n"
        "    embeddings = times[None, :, None].expand(len(audio), -1, 3)\n",
    )
    encoder = load(f"hear:{module(stretch)}")
    found = encoder.frames(noise(44_100)[0].numpy(), 22_050)[:, 0].numpy()
    wanted = 20 + 20 * np.arange(len(found))
    there = 20 + 38 * np.arange(99)
    np.testing.assert_allclose(np.abs(found - wanted), np.abs(there[:, None] - wanted).min(0), atol=1e-3)
    assert abs(wanted[-1] - there[-1]) <= 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("def get_scene_embeddings", "def get_scenes"), "has no function get_scene_embeddings"),
        (("sample_rate, scene", "rate, scene"), "positive integer `sample_rate`, found None"),
        (("= 22050, 5, 3", "= 22050, 5.0, 3"), "positive integer `scene_embedding_size`, found 5.0"),
        (("return Model(float", "return Model(1 / 0 + float"), "load_model failed .ZeroDivisionError"),
        (("return embeddings, times.repeat(len(audio), 1)", "return embeddings"), "must return embeddings and timest"),
        (("return embeddings, ", "return embeddings.detach().numpy(), "), "torch tensor .1, T, D., found ndarray"),
        (("return embeddings, ", "return embeddings[0], "), r"found shape \(199, 3\)"),
        (("times.repeat(len(audio), 1)", "times"), r"timestamps as a torch tensor \(1, 199\), found shape \(199,\)"),
        (("times.repeat(", "(times / 1000).repeat("), "last timestamp of 4 s is 3.98; give milliseconds"),
        (("times.repeat(", "times.sort(descending=True)[0].repeat("), "ascend by a regular hop"),
        (("times.repeat(", "(times + 9 * (times == 60)).repeat("), "number 2 .* by 29 ms, others by 20 ms"),
        (("audio.unfold(1, 882, 441)", "audio.unfold(1, 50000, 50000)"), "1 timestamps for 4 s"),
        (("model.gain * torch.stack([audio.amax", "audio.nothing + torch.stack([audio.amax"), "4 s of noise failed"),
    ],
)
def test_mistakes_of_a_module_are_explained(module, change, message):
    name = module(change, ("float(open(model_file_path).read()) if model_file_path else 1.0", "1.0"))
    with pytest.raises(ConfigError, match=message) as error:
        load(f"hear:{name}")
    assert "\n" not in str(error.value)
    assert name in str(error.value)


def test_a_module_or_file_that_is_not_there(module):
    with pytest.raises(ConfigError, match="no_such_hear_module cannot be imported"):
        load("hear:no_such_hear_module")
    with pytest.raises(ConfigError, match=r"load_model failed .FileNotFoundError"):
        load(f"hear:{module()}:nowhere.txt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("= 22050, 5, 3", "= 20000, 5, 3"), "sample_rate is 20000; HEAR keeps its tasks at 16000, 22050"),
        (("= 22050, 5, 3", "= 22050, 6, 3"), "scene_embedding_size says 6, the embeddings have 5"),
        (("return embeddings, ", "return embeddings.double(), "), "get_timestamp_embeddings gives torch.float64"),
        (("times.repeat(len(audio), 1)", "times + torch.arange(len(audio))[:, None]"), "differ between clips of one"),
        (("times = 20 + 20", "times = 60 + 20"), "reach from 60 to 2020 ms"),
    ],
)
def test_check_knows_what_the_api_asks(module, change, message):
    report = check(load(f"hear:{module(change)}"))
    found = {finding.name: finding for finding in report.findings}["hear"]
    assert not found.ok
    assert message in found.message


# ------------------------------------------------------------------------------------------------------------- MTEB


class Fed(Encoder):
    """Mean and peak of windows of 100 samples; says how it was fed."""

    family = "fed"

    def __init__(self, pads_safely):
        super().__init__()
        self.config, self.sample_rate, self.hop, self.offset, self.dims = Config(), 8000, 100, 50.0, (1, 2)
        self.pads_safely, self.name, self.fed = pads_safely, "fed", []

    def forward(self, waveforms, lengths, layers=None):
        self.fed.append(sorted(lengths.tolist()))
        windows = waveforms.unfold(1, 100, 100)
        states = [windows.mean(2, keepdim=True), torch.stack([windows.mean(2), windows.amax(2)], 2)]
        return Frames([states[i] for i in (range(2) if layers is None else layers)], lengths // 100)

    def fingerprint(self):
        return "0123456789abcdef"


def batches(*sizes, rate=8000):
    """Batches as MTEB's data loader gives them: columns, of which `audio` is a list of rows."""
    clips = [{"array": noise(size, seed=size)[0].numpy(), "sampling_rate": rate} for size in sizes]
    return [{"audio": clips[:3], "id": list(range(3))}, {"audio": clips[3:]}]


@pytest.mark.parametrize(("safely", "fed"), [(True, [[300, 900, 900], [550]]), (False, [[300], [900, 900], [550]])])
def test_mteb_gets_a_row_a_clip_in_order(safely, fed):
    encoder = Fed(safely)
    model = MtebEncoder(encoder)
    given = batches(900, 300, 900, 550)
    found = model.encode(given, task_metadata=None, hf_split="test", hf_subset="default", batch_size=3)
    assert (found.dtype, found.shape) == (np.float32, (4, 2))
    assert sorted(encoder.fed) == sorted(fed)
    clips = [clip["array"] for batch in given for clip in batch["audio"]]
    np.testing.assert_allclose(found, [encoder.clip(clip, 8000) for clip in clips], rtol=1e-5, atol=1e-7)
    assert MtebEncoder(encoder, layers="all", pool="meanstd").encode(given).shape == (4, 6)


def test_mteb_audio_is_resampled_and_short_clips_are_told(caplog):
    encoder = Fed(True)
    model = MtebEncoder(encoder)
    (fast,) = model.encode(batches(4000, rate=16_000)[:1])
    clip = batches(4000, rate=16_000)[0]["audio"][0]["array"]
    np.testing.assert_allclose(fast, encoder.clip(clip, 16_000), rtol=1e-5, atol=1e-7)
    with caplog.at_level(logging.WARNING, "auricle"):
        found = model.encode(batches(50, 400, 99))
    assert found.any(1).tolist() == [False, True, False]
    assert "2 clips are shorter than one frame" in caplog.text
    assert model.encode([]).shape == (0, 2)


def test_mteb_similarity_is_the_cosine():
    model, rng = MtebEncoder(Fed(True)), np.random.default_rng(0)
    a, b = rng.standard_normal((4, 7)), rng.standard_normal((3, 7))
    np.testing.assert_allclose(model.similarity(a, torch.from_numpy(b)), cosine_similarity(a, b), atol=1e-6)
    np.testing.assert_allclose(model.similarity(a[0], b), cosine_similarity(a[:1], b), atol=1e-6)
    np.testing.assert_allclose(model.similarity_pairwise(a[:3], b), np.diag(cosine_similarity(a[:3], b)), atol=1e-6)


class EncoderProtocol:
    """The signatures of mteb 2.26's `EncoderProtocol`, for want of mteb itself, which brings half the hub with it."""

    def __init__(self, model_name, revision, *, device=None, **kwargs): ...
    def encode(self, inputs, *, task_metadata, hf_split, hf_subset, prompt_type=None, **kwargs): ...
    def similarity(self, embeddings1, embeddings2): ...
    def similarity_pairwise(self, embeddings1, embeddings2): ...


@pytest.mark.parametrize("method", ["__init__", "encode", "similarity", "similarity_pairwise"])
def test_mteb_can_call_every_method_of_its_protocol(method):
    theirs, ours = (inspect.signature(getattr(kind, method)).parameters for kind in (EncoderProtocol, MtebEncoder))
    for name, parameter in theirs.items():
        assert name in ours
        assert ours[name].kind == parameter.kind
    assert all(
        ours[name].default is not inspect.Parameter.empty or ours[name].kind == inspect.Parameter.VAR_KEYWORD
        for name in ours.keys() - theirs.keys()
    )


def test_mteb_files_results_under_a_name_and_a_fingerprint(monkeypatch):
    class ModelMeta:
        create_empty = staticmethod(lambda overwrites: types.SimpleNamespace(**overwrites))

    monkeypatch.setitem(sys.modules, "mteb", types.ModuleType("mteb"))
    monkeypatch.setitem(sys.modules, "mteb.models", types.SimpleNamespace(ModelMeta=ModelMeta))
    encoder = Fed(True)
    encoder.name = "runs/my run"
    meta = MtebEncoder(encoder, layers="all").mteb_model_meta
    assert (meta.name, meta.revision, meta.embed_dim) == ("auricle/runs-my-run", "0123456789abcdef", 3)
    assert meta.modalities == ["audio"]
    monkeypatch.setitem(sys.modules, "mteb.models", None)
    with pytest.raises(MissingDependencyError, match="pip install 'mteb"):
        MtebEncoder(encoder).mteb_model_meta  # noqa: B018


def test_mteb_mistakes_are_explained():
    with pytest.raises(ConfigError, match="unknown option 'layer'"):
        MtebEncoder(Fed(True), layer="last")
    with pytest.raises(ConfigError, match="layers: 7"):
        MtebEncoder(Fed(True), layers=[7])
    with pytest.raises(AudioError, match="no column 'audio'"):
        MtebEncoder(Fed(True)).encode([{"text": ["hello"]}])


# ------------------------------------------------------------------------------------------------------ HEAR's grid

TINY = HearConfig(hidden=16, max_epochs=60, batch=32, lrs=(1e-2, 1e-4))


def tiny(layers="all", seeds=(0,), **changes):
    return HearProber(edit(TINY, **changes), ProbeConfig(layers=layers, seeds=seeds))


def clusters(count, seed, classes=3):
    """Layer 0 is noise, layer 1 noise around a corner for each class."""
    rng = np.random.default_rng(seed)
    target = np.arange(count) % classes
    seen = 0.3 * rng.standard_normal((count, 6)) + 2 * np.eye(6)[target]
    layers = {0: torch.from_numpy(rng.standard_normal((count, 4))).float(), 1: torch.from_numpy(seen).float()}
    return Examples(layers, torch.from_numpy(target))


def test_the_grid_is_the_first_eight_of_scikit_learns_shuffled():
    values = {"hidden_layers": [1, 2], "lr": [3.2e-3, 1e-3, 3.2e-4, 1e-4], "initialization": ["uniform", "normal"]}
    points = list(ParameterGrid(values))
    state = random.getstate()
    random.seed(42)
    random.shuffle(points)
    random.setstate(state)
    expected = [Point(point["hidden_layers"], point["initialization"], point["lr"]) for point in points[:8]]
    assert HearConfig().grid() == expected
    assert len(HearConfig(points=16).grid()) == 16


@pytest.mark.parametrize("init", ["uniform", "normal"])
def test_networks_are_hears(init):
    torch.manual_seed(0)
    network = build(Point(2, init, 1e-3), 300, 10, HearConfig())
    kinds = [nn.Linear, nn.BatchNorm1d, nn.Dropout, nn.ReLU]
    assert [type(part) for part in network] == [*kinds, *kinds, nn.Linear]
    sizes = [(300, 1024), (1024, 1024), (1024, 10)]
    for linear, (fan_in, fan_out), gain in zip(network[::4], sizes, (1.0, 2**0.5, 2**0.5), strict=True):
        assert (linear.in_features, linear.out_features) == (fan_in, fan_out)
        assert float(linear.weight.detach().std()) == pytest.approx(gain * (2 / (fan_in + fan_out)) ** 0.5, rel=0.03)
        bounded = float(linear.weight.detach().abs().max()) <= gain * (6 / (fan_in + fan_out)) ** 0.5
        assert bounded == (init == "uniform")
    assert {part.p for part in network if isinstance(part, nn.Dropout)} == {0.1}


def test_compat_keeps_one_order_and_ours_draws_anew():
    def orders(compat):
        epochs = minibatches(100, HearConfig(batch=32, hear_compat=compat), 42)
        return [torch.cat(next(epochs)) for _ in range(3)]

    for compat in (True, False):
        for order in orders(compat):
            assert sorted(order.tolist()) == list(range(100))
    first, second, third = orders(True)
    assert torch.equal(first, second) and torch.equal(second, third)  # noqa: PT018
    first, second, third = orders(False)
    assert not torch.equal(first, second) and not torch.equal(second, third)  # noqa: PT018
    assert [len(part) for part in next(minibatches(65, HearConfig(batch=32), 0))] == [32, 33]


def test_a_planted_layer_is_chosen_and_a_leak_scores_one():
    train, dev, test = (clusters(count, seed) for count, seed in ((90, 0), (30, 1), (30, 2)))
    fitted = tiny(seeds=(0, 1), max_epochs=15).fit("classes", train, dev, balanced=False, device="cpu")
    assert fitted.layers == (1,)
    assert len(fitted.trials) == 2 * len(TINY.grid())
    outputs = fitted.predict(test.layers)
    assert outputs.shape == (2, 30, 3)
    np.testing.assert_allclose(outputs.sum(2), 1, atol=1e-5)
    assert (outputs.argmax(2) == test.targets).float().mean() == 1
    # dev scores are those of the networks that answer
    for network_outputs, said in zip(fitted.predict(dev.layers), fitted.choice.dev, strict=True):
        assert float((network_outputs.argmax(1) == dev.targets).float().mean()) == said
    assert torch.equal(fitted.view(test.layers), test.layers[1])


def test_a_layer_that_hears_nothing_scores_chance():
    train, dev, test = (clusters(count, seed) for count, seed in ((150, 0), (60, 1), (600, 2)))
    fitted = tiny((0,), max_epochs=6).fit("classes", train, dev, balanced=False, device="cpu")
    score = float((fitted.predict(test.layers)[0].argmax(1) == test.targets).float().mean())
    assert abs(score - 1 / 3) < 0.08  # four standard deviations


def test_further_folds_train_the_choice_alone_and_a_fit_repeats():
    one = tiny((1,), max_epochs=6)
    folds = [one.fit("classes", clusters(60, n), clusters(30, 9), balanced=False, device="cpu") for n in range(3)]
    assert [len(fold.trials) for fold in folds] == [len(TINY.grid()), 1, 1]
    assert {(fold.choice.lr, fold.choice.detail, fold.choice.head) for fold in folds} == {
        (folds[0].choice.lr, folds[0].choice.detail, folds[0].choice.head)
    }
    state = torch.get_rng_state()
    again = tiny((1,), max_epochs=6).fit("classes", clusters(60, 0), clusters(30, 9), balanced=False, device="cpu")
    assert torch.equal(state, torch.get_rng_state())
    test = clusters(20, 5).layers
    assert torch.equal(again.predict(test), folds[0].predict(test))


def test_labels_are_chosen_by_mean_average_precision_and_exclude_each_other_where_they_do():
    train, dev = clusters(90, 0), clusters(30, 1)
    hot = [nn.functional.one_hot(part.targets, 3).float() for part in (train, dev)]
    one = tiny((1,), max_epochs=6)
    fitted = one.fit(
        "labels", replace(train, targets=hot[0]), replace(dev, targets=hot[1]), balanced=False, device="cpu"
    )
    outputs = fitted.predict(dev.layers)[0]
    np.testing.assert_allclose(outputs.sum(1), 1, atol=1e-5)
    assert fitted.choice.dev[0] == pytest.approx(average_precision_score(hot[1], outputs, average="macro"))
    two = [torch.cat([part, 1 - part[:, :1]], 1) for part in hot]  # a fourth label: not the first
    fitted = tiny((1,)).fit(
        "labels", replace(train, targets=two[0]), replace(dev, targets=two[1]), balanced=False, device="cpu"
    )
    outputs = fitted.predict(dev.layers)[0]
    assert float((outputs.sum(1) - 1).abs().max()) > 0.2
    assert ((outputs > 0.5) == (two[1] > 0)).float().mean() > 0.95


def test_a_network_stops_after_patience_and_stays_at_its_best():
    asked = []

    def measure(_):
        asked.append(1)
        return [0.1, 0.5, 0.5, 0.3, 0.4][len(asked) - 1] if len(asked) < 6 else 0.0

    train = clusters(40, 0)
    config = edit(TINY, patience=4, max_epochs=500, check_every=2)
    point = Point(1, "uniform", 1e-3)
    network, best = train_network(point, train.layers[1], train.targets, train.layers[1], 3, True, measure, config, 0)
    assert (best, len(asked)) == (0.5, 6)  # the second is the best, and four after it are no better
    asked.clear()
    shorter = edit(config, max_epochs=4)
    same, _ = train_network(point, train.layers[1], train.targets, train.layers[1], 3, True, measure, shorter, 0)
    for kept, other in zip(network.state_dict().values(), same.state_dict().values(), strict=True):
        assert torch.equal(kept, other)


def test_hears_mistakes_are_explained():
    train = clusters(30, 0)
    with pytest.raises(EvaluationError, match="knows classes and labels"):
        tiny().fit("values", train, train, balanced=False, device="cpu")
    with pytest.raises(ConfigError, match="layers: sum"):
        tiny(("sum",)).fit("classes", train, train, balanced=False, device="cpu")
    sick = replace(train, layers={0: torch.full((30, 4), torch.inf)})
    with pytest.raises(EvaluationError, match="finite dev score"):
        tiny(max_epochs=3).fit("classes", sick, sick, balanced=False, device="cpu")


def test_protocols_make_both():
    ours, theirs = (prober(name, ProbeConfig(seeds=(3, 4))) for name in ("hear", "hear-compat"))
    assert (ours.config.hear_compat, ours.probe.seeds) == (False, (3, 4))
    assert (theirs.config.hear_compat, theirs.probe.seeds) == (True, (3,))


# -------------------------------------------------------------------------------------------------- folders of tasks

RATE = 16_000


def write_task(folder, splits, vocabulary, **about):
    """A task in HEAR's layout, at two rates: `splits` are clips by name, with their labels."""
    folder.mkdir(parents=True)
    metadata = {
        "task_name": "tiny",
        "version": "v1",
        "embedding_type": "scene",
        "prediction_type": "multiclass",
        "split_mode": "trainvaltest",
        "sample_duration": 0.5,
        "evaluation": ["top1_acc"],
        "splits": list(splits),
        "mode": "full",
    }
    (folder / "task_metadata.json").write_text(json.dumps(metadata | about))
    rows = [f"{number},{label}" for number, label in enumerate(vocabulary)]
    (folder / "labelvocabulary.csv").write_text("\n".join(["idx,label", *rows]) + "\n")
    for split, clips in splits.items():
        (folder / f"{split}.json").write_text(json.dumps(clips))
        for rate in (8000, RATE):
            (folder / str(rate) / split).mkdir(parents=True)
            for number, name in enumerate(clips):
                time = np.arange(rate // 2) / rate
                wave = 0.3 * np.sin(2 * np.pi * 400 * (1 + number % 2) * time)
                soundfile.write(folder / str(rate) / split / name, wave, rate)
    return folder


SCENES = {"train": {"a.wav": ["007"]}, "valid": {"b.wav": ["1.50"]}, "test": {"c.wav": ["true"]}}


def test_a_scene_task_of_three_files(tmp_path):
    folder = write_task(tmp_path / "tiny-v1-full", SCENES, ["007", "1.50", "true"])
    ((task, manifest),) = hear_tasks(folder)
    assert (task.name, task.target, task.kind, task.level) == ("hear-tiny-v1-full", "label", "classes", "clip")
    assert (task.scored_by, task.split, task.protocol) == ("accuracy", "split", "hear")
    assert manifest.column("label") == ["007", "1.50", "true"]  # text, whatever it looks like
    assert manifest.column("split") == ["train", "valid", "test"]
    assert manifest.column("clip_id") == ["train/a.wav", "valid/b.wav", "test/c.wav"]
    assert manifest.column("path") == [str(folder / "16000" / name) for name in manifest.column("clip_id")]
    assert set(manifest.column("sample_rate")) == {RATE}
    np.testing.assert_allclose(manifest.durations, 0.5)


def test_an_event_task_of_three_files(tmp_path):
    splits = {
        "train": {"a.wav": [{"label": "knock", "start": 250.0, "end": 400}, {"label": "7", "start": 10, "end": 300.5}]},
        "valid": {"b.wav": []},
        "test": {"c.wav": [{"label": 7, "start": 0, "end": 500}]},
    }
    folder = write_task(
        tmp_path / "bells-v2-5h", splits, ["7", "knock"], embedding_type="event", prediction_type="multilabel",
        evaluation=["event_onset_200ms_fms", "segment_1s_er", "unheard_of"], task_name="dcase2016_task2",
    )  # fmt: skip
    ((task, manifest),) = hear_tasks(tmp_path)
    assert (task.name, task.target, task.level, task.scored_by) == (
        "hear-bells-v2-5h", "events", "frame", "onset_f1_200ms",
    )  # fmt: skip
    assert manifest.column("events") == [
        [{"start_s": 0.01, "end_s": 0.3005, "label": "7"}, {"start_s": 0.25, "end_s": 0.4, "label": "knock"}],
        [],
        [{"start_s": 0.0, "end_s": 0.5, "label": "7"}],
    ]
    assert task.options == {"events": {"by_loss": False, "check_every": 10, "also": ("segment_error_rate",)}}
    assert folder.is_dir()


def test_what_an_event_task_says_of_its_probe(tmp_path, caplog):
    params = {
        "event_postprocessing_grid": {"median_filter_ms": [150], "min_duration": [50]},
        "task_specific_param_grid": {"max_epochs": [50], "check_val_every_n_epoch": [1], "dropout": [0.2]},
    }
    write_task(
        tmp_path / "maestro-v3-5h", {f"fold{n:02}": {"a.wav": []} for n in range(3)}, ["60"], embedding_type="event",
        prediction_type="multilabel", evaluation=["event_onset_50ms_fms"], split_mode="new_split_kfold",
        evaluation_params=params, use_scoring_for_early_stopping=False,
    )  # fmt: skip
    ((task, _),) = hear_tasks(tmp_path)
    assert task.options["events"] == {
        "by_loss": True, "median_s": (0.15,), "shortest_s": (0.05,), "max_epochs": 50, "check_every": 1,
    }  # fmt: skip
    assert (task.scored_by, task.split) == ("onset_f1_50ms", "folds")
    assert "its own values of dropout are not used" in caplog.text


@pytest.mark.parametrize("mode", ["presplit_kfold", "new_split_kfold"])
def test_fold_i_is_tested_on_and_the_next_is_dev(tmp_path, mode):
    clips = {f"fold{n:02}": {f"{n}{c}.wav": ["xy"[c]] for c in range(2)} for n in (2, 0, 3, 1)}
    write_task(tmp_path / "folds", clips, ["x", "y"], split_mode=mode, nfolds=4)
    ((task, manifest),) = hear_tasks(tmp_path)
    ready = prepare(task, manifest)
    fold = np.array([int(name[4:6]) for name in ready.manifest.column("clip_id")])
    assert len(ready.assignments) == 4
    for number, parts in enumerate(ready.assignments):
        np.testing.assert_array_equal(parts == "test", fold == number)
        np.testing.assert_array_equal(parts == "dev", fold == (number + 1) % 4)
        assert ((parts == "train") == ~np.isin(fold, [number, (number + 1) % 4])).all()


@pytest.mark.parametrize(
    ("about", "kind", "metric"),
    [
        ({"prediction_type": "multilabel", "evaluation": ["mAP"]}, "labels", "map"),
        ({"prediction_type": "multiclass", "evaluation": ["mAP", "top1_acc"]}, "labels", "map"),
        ({"prediction_type": "multiclass", "evaluation": ["aucroc"]}, "labels", "roc_auc"),
        ({"prediction_type": "multiclass", "evaluation": ["pitch_acc", "chroma_acc"]}, "classes", "accuracy"),
    ],
)
def test_metrics_by_their_names(tmp_path, about, kind, metric):
    write_task(tmp_path / "one", SCENES, ["007", "1.50", "true"], **about)
    ((task, manifest),) = hear_tasks(tmp_path)
    assert (task.kind, task.scored_by) == (kind, metric)
    assert manifest.column("label")[0] == (["007"] if kind == "labels" else "007")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "16000" / "test" / "c.wav").unlink(), r"1 of 3 of the clips are missing .test/c.wav"),
        (lambda folder: (folder / "valid.json").unlink(), "valid.json: cannot be read"),
        (lambda folder: (folder / "valid.json").write_text('{"b.wav": ["nobody"]}'), "label 'nobody' is not in"),
        (lambda folder: (folder / "valid.json").write_text('{"b.wav": []}'), "needs one label a clip, found 0"),
        (lambda folder: (folder / "valid.json").write_text("[]"), "no record of clips"),
        (lambda folder: (folder / "labelvocabulary.csv").write_text("idx,label\n1,007\n2,x\n"), "count from 0 to 1"),
        (lambda folder: (folder / "labelvocabulary.csv").write_text("label\n007\n"), "columns idx and label"),
        (lambda folder: (folder / "task_metadata.json").write_text("{}"), "unknown embedding_type 'None'"),
        (lambda folder: (folder / "task_metadata.json").write_text("{"), "task_metadata.json: cannot be read"),
    ],
)
def test_damage_is_told(tmp_path, spoil, message):
    folder = write_task(tmp_path / "one", SCENES, ["007", "1.50", "true"])
    spoil(folder)
    with pytest.raises(ManifestError, match=message) as error:
        hear_tasks(tmp_path)
    assert "\n" not in str(error.value)


def test_what_is_not_known_is_refused(tmp_path):
    with pytest.raises(ManifestError, match="holds no task of HEAR"):
        hear_tasks(tmp_path)
    for number, (about, message) in enumerate(
        [
            ({"evaluation": ["d_prime"]}, "unknown metric 'd_prime'"),
            ({"evaluation": ["event_onset_200ms_fms"]}, "no metric of a task of type scene"),
            ({"split_mode": "kfold"}, "unknown split_mode 'kfold'"),
            ({"prediction_type": "seld"}, "unknown prediction_type 'seld'"),
        ]
    ):
        write_task(tmp_path / str(number), SCENES, ["007", "1.50", "true"], **about)
        with pytest.raises(ManifestError, match=message):
            hear_tasks(tmp_path / str(number))


def test_a_folder_is_learned_from_end_to_end(tmp_path):
    """Clips of two pitches in three folds: an encoder that hears pitch scores 1, on every fold."""
    clips = {f"fold{n:02}": {f"{c}.wav": [["low", "high"][c % 2]] for c in range(8)} for n in range(3)}
    write_task(tmp_path / "pitch", clips, ["low", "high"], split_mode="presplit_kfold")
    ((task, manifest),) = hear_tasks(tmp_path)
    ready = prepare(task, manifest)
    folds = answer(Embedder(load("hear:auricle.hear:fbank"), "mean", 60.0), ready, tiny(max_epochs=10))
    assert sorted(np.concatenate([fold.test.rows for fold in folds]).tolist()) == list(range(24))
    assert all(fold.test.correct.mean() == 1 for fold in folds)
    assert [len(fold.fitted.trials) for fold in folds] == [2 * len(TINY.grid()), 1, 1]


def test_a_suite_of_folders_is_evaluated_and_told(tmp_path, monkeypatch):
    """Scenes and events, by an encoder that comes in through the API, from files to a table."""
    scenes = {split: {f"{c}.wav": [["low", "high"][c % 2]] for c in range(4)} for split in ("train", "valid", "test")}
    write_task(tmp_path / "tasks" / "pitch", scenes, ["low", "high"])
    heard = {
        split: {name: [{"label": labels[0], "start": 0, "end": 500}] for name, labels in clips.items()}
        for split, clips in scenes.items()
    }
    write_task(
        tmp_path / "tasks" / "spans", heard, ["low", "high"], embedding_type="event", prediction_type="multilabel",
        evaluation=["event_onset_50ms_fms"],
    )  # fmt: skip
    monkeypatch.setattr("auricle.evaluation.probes.hear.hear", lambda config: HearProber(edit(TINY, points=2), config))
    ours = {"suite": f"hear:{tmp_path / 'tasks'}", "output": tmp_path / "results", "seeds": (0,), "progress": False}
    results = evaluate("hear:auricle.hear:fbank", **ours)
    assert [(result.name, result.metric, result.score) for result in results] == [
        ("hear-pitch@hear-v1", "accuracy", 1.0),
        ("hear-spans@hear-v1", "onset_f1_50ms", 1.0),
    ]
    assert results[1].chance == 0.0
    assert results[1].chosen[0].layer == 1  # timestamps, not the scene at every frame
    assert table(results).count("100.0 ±") == 2
    assert read_results(tmp_path / "results") == evaluate("hear:auricle.hear:fbank", **ours)
    with pytest.raises(EvaluationError, match="a ready-made task: knows no metric and no unit"):
        evaluate("fbank", **ours, unit="label", metric="accuracy")
    with pytest.raises(EvaluationError, match="hear-spans: protocol auricle knows no events"):
        evaluate("fbank", **ours, protocol="auricle")
