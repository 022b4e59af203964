"""Alarms: each planted cause rings its own bell, and health rings none."""

from __future__ import annotations

import json
import math
import os

import numpy as np
import pytest
import soundfile
import torch

from auricle.config import edit
from auricle.data.manifest import Manifest
from auricle.encoders.mel_transformer import MelTransformer, MelTransformerConfig
from auricle.errors import ConfigError
from auricle.methods import preset
from auricle.methods.mockingjay import Mockingjay
from auricle.training.health import Monitor, Vitals, effective_rank, spread
from auricle.training.loop import pretrain
from auricle.training.probe import OnlineProbe


@pytest.mark.parametrize("rank", [1, 3, 10])
def test_effective_rank_counts_equal_directions(rank):
    torch.manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(64, 20, dtype=torch.float64))
    left = torch.linalg.qr(left - left.mean(0))[0][:, :rank]
    left = left - left.mean(0)
    right, _ = torch.linalg.qr(torch.randn(20, 20, dtype=torch.float64))
    assert effective_rank(left @ right[:rank] + 5) == pytest.approx(rank, rel=0.02)


def test_collapsed_embeddings_have_rank_and_spread_zero():
    same = torch.full((10, 4), 3.3)
    assert effective_rank(same) == 0
    assert spread(same) == pytest.approx(0, abs=1e-12)
    assert spread(torch.tensor([[1.0], [-1.0]])) == pytest.approx(1)
    assert spread(torch.tensor([[3.0], [1.0]])) == pytest.approx(1 / 5)  # variance 1, mean square 5


HEALTHY = {
    "done": 0.1,
    "loss": 1.0,
    "trivial": 2.0,
    "ranks": [8.0, 8.0],
    "spreads": [0.5, 1e-5],
    "clips": 64,
    "attention_entropy": 0.6,
    "speed": 100.0,
}


@pytest.mark.parametrize(
    ("name", "history", "sick"),
    [
        ("divergence", [{"loss": 1.0}, {"loss": 0.5}], {"loss": 0.8}),
        ("divergence", [{"loss": -1.0}, {"loss": -9.0}], {"loss": -4.0}),
        ("divergence", [{}], {"loss": math.nan}),
        ("trivial", [{"loss": 3.0}], {"done": 0.6}),
        ("collapse of layer 1", [{}], {"ranks": [8.0, 1.5]}),
        ("collapse of layer 0", [{}], {"spreads": [1e-3, 1e-5]}),
        ("collapse of layer 1", [{}], {"ranks": [8.0, 1.5], "spreads": [0.5, 0.3]}),  # clips apart, on a line
        ("collapse of targets", [{}], {"own": {"collapse of targets": "their spread fell"}}),
        ("attention", [{}], {"attention_entropy": 0.01}),
        ("attention", [{}], {"attention_entropy": 0.999}),
        ("stalled data", [{}], {"waiting": 0.7}),
        ("throughput", [{}, {"speed": 120.0}], {"speed": 50.0}),
        ("probe phones", [{"probe": {"phones": 0.64}}], {"probe": {"phones": 0.36}}),
    ],
)
def test_each_alarm_rings_once_for_its_cause_alone(name, history, sick):
    monitor = Monitor()
    for vitals in history:
        assert monitor.check(Vitals(**HEALTHY | vitals)) == {}
    healthy = Vitals(**HEALTHY | history[-1])
    assert monitor.check(healthy) == {}
    resumed = Monitor(**json.loads(json.dumps(vars(monitor))))
    assert list(monitor.check(Vitals(**HEALTHY | history[-1] | sick))) == [name]
    assert monitor.check(Vitals(**HEALTHY | history[-1] | sick)) == {}  # goes on: not repeated
    assert monitor.check(healthy) == {}
    assert list(monitor.check(Vitals(**HEALTHY | history[-1] | sick))) == [name]  # anew
    assert list(resumed.check(Vitals(**HEALTHY | history[-1] | sick))) == [name]


def test_what_proves_nothing_rings_nothing():
    ruined = {"ranks": [0.0, 0.0], "spreads": [0.0, 0.0], "probe": {"phones": 0.1}}
    assert Monitor().check(Vitals(**HEALTHY | ruined | {"loss": 9.0, "done": 1.0})) == {}  # before any training
    few = Monitor()
    few.check(Vitals(**HEALTHY | {"clips": 7, "probe": {"phones": 0.9}}))
    assert few.check(Vitals(**HEALTHY | ruined | {"clips": 7})) == {}  # no more clips than these
    for ranks, spreads in (
        ([2.3, 2.4], [1.4e-2, 7.9e-2]),  # contrastive learning: fewer dimensions, in which clips differ far more
        ([3.3, 3.4], [5.7e-4, 7.5e-4]),  # not so few
    ):
        learning = Monitor()
        learning.check(Vitals(**HEALTHY | {"ranks": [12.2, 12.8], "spreads": [5.7e-4, 7.5e-4]}))
        assert learning.check(Vitals(**HEALTHY | {"ranks": ranks, "spreads": spreads})) == {}
    untrained = Monitor()
    for _ in range(3):  # attention begins by looking at all alike
        assert untrained.check(Vitals(**HEALTHY | {"attention_entropy": 0.999})) == {}
    noisy = Monitor()
    noisy.check(Vitals(**HEALTHY | {"clips": 10, "probe": {"phones": 0.8}}))
    assert noisy.check(Vitals(**HEALTHY | {"clips": 10, "probe": {"phones": 0.5}})) == {}  # 3 of 10 clips, by chance


# ------------------------------------------------------------------------------------------------ attention entropy


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_attention_entropy_is_that_of_the_weights_attention_uses(norm):
    torch.manual_seed(0)
    encoder = MelTransformer(MelTransformerConfig(dim=8, layers=2, heads=2, ffn=8, norm=norm)).double().eval()
    for block in encoder.transformer.blocks:
        torch.nn.init.normal_(block.qkv.weight)  # far from uniform
    x, lengths = torch.randn(3, 12, 80, dtype=torch.float64), torch.tensor([12, 7, 1])
    frames = encoder.encode(x, lengths)
    wanted = []
    for block, state in zip(encoder.transformer.blocks, frames.hidden_states, strict=False):
        for clip, length in ((0, 12), (1, 7)):  # one frame alone has nowhere to look
            seen = state[clip, :length] if norm == "post" else block.attention_norm(state[clip, :length])
            q, k, _ = block.qkv(seen).chunk(3, dim=-1)
            for head in (slice(0, 4), slice(4, 8)):
                for frame in range(length):
                    weights = torch.softmax(k[:, head] @ q[frame, head] / 2, 0)
                    entropy = -(weights * weights.log()).sum() / math.log(length)
                    wanted.append((float(entropy.detach()), 1 / length))
    values, shares = torch.tensor(wanted, dtype=torch.float64).T
    found = encoder.attention_entropy(frames)
    assert float(found) == pytest.approx(float((values * shares).sum() / shares.sum()), abs=1e-5)
    assert 0.1 < found < 0.9


def test_attention_entropy_reaches_its_ends():
    encoder = MelTransformer(MelTransformerConfig(dim=8, layers=1, heads=2, ffn=8)).eval()
    frames = encoder.encode(torch.randn(2, 300, 80), torch.tensor([300, 200]))
    qkv = encoder.transformer.blocks[0].qkv
    torch.nn.init.zeros_(qkv.weight)
    assert float(encoder.attention_entropy(frames)) == pytest.approx(1)
    with torch.no_grad():
        qkv.weight[:16] = 1000 * torch.randn(16, 8)
    assert float(encoder.attention_entropy(frames)) < 0.01


# --------------------------------------------------------------------------------------------------- online probe


def held_out(tmp_path, labels) -> Manifest:
    soundfile.write(tmp_path / "a.wav", np.ones(800) * 0.1, 8000)
    rows = [f"{tmp_path}/{i}.wav" for i in range(len(labels))]
    for row in rows:
        os.link(tmp_path / "a.wav", row)
    return Manifest.from_columns(
        {"path": rows, "clip_id": [f"c{i}" for i in range(len(labels))], "kind": labels}, tmp_path
    )


def test_the_probe_finds_planted_classes_and_chance_elsewhere(tmp_path):
    labels = ["a", "b", "c", None] * 30 + ["alone"]
    probe = OnlineProbe(held_out(tmp_path, labels), "kind")
    torch.manual_seed(0)
    goal = torch.tensor([("a", "b", "c", None, "alone").index(label) for label in labels])
    planted = torch.nn.functional.one_hot(goal, 20).float() + 0.2 * torch.randn(len(labels), 20) + 50
    noise, dead = torch.randn(len(labels), 20), torch.ones(len(labels), 20)
    order = torch.randperm(len(labels))
    clip_ids = [f"c{i}" for i in order.tolist()]
    scores = probe.scores(clip_ids, [planted[order], noise[order], dead[order]])
    assert list(scores) == ["kind_0", "kind_1", "kind_2"]
    assert scores["kind_0"] > 0.98
    assert abs(scores["kind_1"] - 1 / 3) < 0.15
    assert scores["kind_2"] == pytest.approx(1 / 3)
    assert probe.scores([], []) == probe.scores(clip_ids[:1], [planted[order[:1]]]) == {}  # the others unreadable


@pytest.mark.parametrize(
    ("labels", "column", "words"),
    [
        (["a", "b"] * 6, "kinds", "did you mean 'kind'"),
        (["a", "b"] * 3, "kind", "raise data.valid_fraction"),
        ([str(i) for i in range(12)], "kind", "raise data.valid_fraction"),
        (["a"] * 12, "kind", "in 1 classes"),
        ([["a", "b"]] * 12, "kind", "no single label"),
    ],
)
def test_a_probe_that_cannot_score_says_so(tmp_path, labels, column, words):
    with pytest.raises(ConfigError, match=words) as error:
        OnlineProbe(held_out(tmp_path, labels), column)
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------- a falling loss, and nothing learned


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    """48 clips of a second: eight tones of changing loudness, out of the six pitches of their clip."""
    folder = tmp_path_factory.mktemp("tones")
    rng = np.random.default_rng(0)
    lines = ["path,register"]
    for i in range(48):
        pitches = rng.uniform(150, 700, 6) * (4 if i % 2 else 1)
        hz = np.repeat(rng.choice(pitches, 8), 2000)
        loudness = np.repeat(rng.uniform(0.05, 0.2, 8), 2000)
        wave = loudness * np.sin(2 * np.pi * np.cumsum(hz) / 16000) + 0.01 * rng.standard_normal(16000)
        soundfile.write(folder / f"{i:02d}.wav", wave, 16000)
        lines.append(f"{i:02d}.wav,{'high' if i % 2 else 'low'}")
    (folder / "tones.csv").write_text("\n".join(lines))
    return folder / "tones.csv"


def small_mockingjay(tones, output, monkeypatch, **train) -> list[dict]:
    monkeypatch.setattr(Mockingjay, "visualize", lambda self, batch: {})  # pictures take longer than these steps
    run = edit(
        preset("mockingjay-tiny"),
        encoder={"dim": 32, "layers": 2, "heads": 4, "ffn": 64, "norm": "post", "position_jitter": 0},
        objective={"crop_s": 1.0},
        data={"batch_seconds": 16.0, "valid_fraction": 0.33},
        train={"steps": 30, "valid_every": 10, "warmup": 0.0, "clip_norm": 100.0, "precision": "fp32"},
    )
    pretrain(run, tones, output, progress=False, train={"probe": "register", **train})
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def test_silent_collapse_rings_while_the_loss_falls(tones, tmp_path, monkeypatch):
    lines = small_mockingjay(tones, tmp_path / "run", monkeypatch, lr=0.1)
    valid = [line for line in lines if line["split"] == "valid"]
    losses = [line["loss"] for line in valid]
    assert losses[1] > losses[2] > losses[3]  # the loss alone looks well: it falls,
    assert losses[3] < losses[0] < valid[0]["trivial"]  # and beats the untrained twin and the trivial level
    assert valid[3]["rank_2"] < valid[0]["rank_2"] / 3
    alarms = {line["name"]: line["step"] for line in lines if line["split"] == "alarm"}
    assert {"collapse of layer 1", "collapse of layer 2"} <= alarms.keys()
    assert min(alarms.values()) > 0


def test_a_sane_run_rings_nothing(tones, tmp_path, monkeypatch):
    lines = small_mockingjay(tones, tmp_path / "run", monkeypatch, lr=0.002)
    valid = [line for line in lines if line["split"] == "valid"]
    assert valid[-1]["loss"] < valid[0]["loss"]
    clocks = ("throughput", "stalled data")  # may ring on a busy machine
    assert [line for line in lines if line["split"] == "alarm" and line["name"] not in clocks] == []
    assert all(0.9 < line["attention_entropy"] <= 1.000001 for line in valid)
    assert all(0 <= line[f"probe_register_{layer}"] <= 1 for line in valid for layer in range(3))
