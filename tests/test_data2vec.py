"""data2vec against its definition in float64; its teacher, its guards, and what its options change."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from tiny import resumes_as_one, two_processes_are_one
from torch import Tensor, nn

import auricle.methods.data2vec as module
from auricle.config import edit
from auricle.data.batching import Batch
from auricle.encoders.checkpoint import load, save
from auricle.encoders.waveform import WaveformEncoder
from auricle.errors import ConfigError
from auricle.methods import preset, run_from_yaml
from auricle.methods.base import TrainConfig
from auricle.methods.data2vec import Data2Vec, Data2VecRun
from auricle.training import optim

RATE = 16_000
SMALL = {"channels": 8, "dim": 16, "layers": 3, "heads": 2, "ffn": 32, "position_layers": 2, "position_groups": 4}
QUIET = {"dropout": 0.0, "attention_dropout": 0.0}


def small(encoder: dict | None = None, **objective: object) -> Data2VecRun:
    """Toy size, without dropout; targets of the upper two of three layers."""
    run = edit(preset("data2vec_base"), encoder=SMALL | QUIET, objective={"top_layers": 2, "layer_drop": 0.0})
    return edit(run, encoder=encoder or {}, objective=objective)  # type: ignore[return-value]


def batch_of(*seconds: float, seed: int = 0) -> Batch:
    """Clips of noise whose loudness changes every 100 ms."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([round(RATE * s) for s in seconds])
    waveforms = torch.randn(len(seconds), int(lengths.max()), generator=generator) * 0.1
    loudness = torch.rand(len(seconds), -(-waveforms.shape[1] // 1600), generator=generator)
    waveforms *= loudness.repeat_interleave(1600, 1)[:, : waveforms.shape[1]]
    waveforms *= torch.arange(waveforms.shape[1]) < lengths[:, None]
    return Batch(waveforms, lengths, [str(i) for i in range(len(seconds))], torch.zeros(len(seconds)), seed=5)


def built(run: Data2VecRun, seed: int = 0) -> Data2Vec:
    """The method, its teacher another network than its student."""
    torch.manual_seed(seed)
    model = run.build()
    with torch.no_grad():
        for weight in model.teacher.parameters():
            weight += 0.05 * torch.randn_like(weight)
    return model


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The masks of this test."""
    masks, draw = [], module.span_mask

    def spy(*args):
        masks.append(draw(*args))
        return masks[-1]

    monkeypatch.setattr(module, "span_mask", spy)
    return masks


def hide(monkeypatch: pytest.MonkeyPatch, mask: Tensor) -> None:
    monkeypatch.setattr(module, "span_mask", lambda *args: mask)


# ---------------------------------------------------------------------------------------------- loss and targets


def heard(model: Data2Vec, waveform: Tensor) -> Tensor:
    """What a clip (S,), alone, gives after the projection: (1, T, D)."""
    x, _ = model.encoder.features(waveform[None], torch.tensor([len(waveform)]))
    return model.encoder.project(x)


def hooked_targets(model: Data2Vec, projected: Tensor) -> np.ndarray:
    """Targets (T, D) of a clip from what hooks catch, instance norm over time."""
    return np.mean([(x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) for x in hooked_outputs(model, projected)], axis=0)


def hooked_outputs(model: Data2Vec, projected: Tensor) -> list[np.ndarray]:
    """What the teacher's last feed-forward parts give of a clip, each (T, D), from forward hooks on them."""
    caught: list[Tensor] = []
    blocks = model.teacher.module.transformer.blocks[-model.config.top_layers :]
    hooks = [block.ffn_out.register_forward_hook(lambda *call: caught.append(call[2])) for block in blocks]
    model.teacher.module(projected, torch.tensor([projected.shape[1]]))
    for hook in hooks:
        hook.remove()
    outputs = [np.asarray(output.detach().reshape(projected.shape[1:]), np.float64) for output in caught]
    assert len(outputs) == model.config.top_layers
    return outputs


def test_targets_may_be_normalised_over_the_batch():
    """What is constant in a clip then stays in its targets."""
    model = built(small(targets_over="batch")).double().eval()
    batch = batch_of(1.3, 0.7, 1.0)
    x, frames = model.encoder.features(batch.waveforms.double(), batch.lengths)
    targets = model.targets(model.teacher, model.encoder.project(x), frames).numpy()
    clips = [heard(model, batch.waveforms[i, :length].double()) for i, length in enumerate(batch.lengths)]
    outputs = [hooked_outputs(model, clip) for clip in clips]
    pools = [np.concatenate(layer) for layer in zip(*outputs, strict=True)]
    for i, clip in enumerate(outputs):
        scaled = [(x - pool.mean(0)) / np.sqrt(pool.var(0) + 1e-5) for x, pool in zip(clip, pools, strict=True)]
        np.testing.assert_allclose(targets[i, : frames[i]], np.mean(scaled, axis=0), atol=1e-4)
        assert np.abs(targets[i, : frames[i]].mean(0)).max() > 0.05
        assert not targets[i, frames[i] :].any()


@pytest.mark.parametrize("beta", [0.0, 0.7])
@pytest.mark.parametrize("norm", ["post", "pre"])
def test_loss_is_the_definitions(norm, beta, drawn):
    model = built(small({"norm": norm}, beta=beta)).double().train()  # dropouts are 0; the teacher never trains
    batch = batch_of(1.3, 0.7, 1.0)
    batch = Batch(batch.waveforms.double(), batch.lengths, batch.clip_ids, batch.starts)
    step = model(batch)
    (mask,) = drawn
    sums, squares, powers, targets, predictions = 0.0, 0.0, 0.0, [], []
    for clip in range(3):
        projected = heard(model, batch.waveforms[clip, : batch.lengths[clip]])
        chosen = mask[clip, : projected.shape[1]].numpy()
        target = hooked_targets(model, projected)[chosen]
        hidden = torch.where(torch.from_numpy(chosen)[:, None], model.encoder.mask_vector, projected)
        said = model.head(model.encoder.context(hidden, None)[-1])[0].detach().numpy()[chosen]
        error = np.abs(said - target)
        cost = error**2 if beta == 0 else np.where(error < beta, 0.5 * error**2 / beta, error - beta / 2)
        sums, squares, powers = sums + cost.sum(), squares + (error**2).sum(), powers + (target**2).sum()
        targets, predictions = [*targets, target], [*predictions, said]
    count = int(mask.sum())
    assert step.count == count > 0
    assert step.loss.item() == pytest.approx(sums / count / math.sqrt(16), rel=1e-5)
    assert step.metrics["r2"].item() == pytest.approx(1 - squares / powers, abs=1e-5)
    assert step.metrics["target_std"].item() == pytest.approx(np.concatenate(targets).std(0).mean(), rel=1e-5)
    assert step.metrics["prediction_std"].item() == pytest.approx(np.concatenate(predictions).std(0).mean(), rel=1e-5)
    frames = model.encoder.convolutions.frames(batch.lengths)
    assert step.metrics["masked"].item() == pytest.approx(count / int(frames.sum()))
    assert "trivial" not in step.metrics


def test_the_trivial_level_is_the_targets_variance(monkeypatch):
    """With all frames hidden and one layer told, each channel's is 1."""
    model = built(small(top_layers=1)).eval()
    model.teacher.module.transformer.blocks[-1].ffn_out.weight.mul_(30)  # far above the epsilon of the norm
    batch = batch_of(1.3, 0.7)
    frames = model.encoder.convolutions.frames(batch.lengths)
    hide(monkeypatch, torch.arange(int(frames.max())) < frames[:, None])
    metrics = model(batch).metrics
    assert metrics["trivial"].item() == pytest.approx(math.sqrt(16), rel=1e-3)  # D · 1 / √D
    assert metrics["target_std"].item() == pytest.approx(1, rel=1e-3)
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)  # the predictor that knows nothing
    step = model(batch)
    assert step.loss.item() == pytest.approx(step.metrics["trivial"].item())
    assert step.metrics["r2"].item() == pytest.approx(0, abs=1e-6)
    assert step.metrics["prediction_std"] == 0


@torch.no_grad()
def test_a_clip_has_the_same_targets_and_predictions_alone_and_in_a_batch(monkeypatch):
    model = built(small()).eval()
    batch = batch_of(0.6, 1.4)
    frames = model.encoder.convolutions.frames(batch.lengths)
    torch.manual_seed(1)
    mask = (torch.rand(2, int(frames.max())) < 0.5) & (torch.arange(int(frames.max())) < frames[:, None])
    hide(monkeypatch, mask)
    both = model._guess(batch)
    first = int(frames[0])
    hide(monkeypatch, mask[:1, :first])
    samples = int(batch.lengths[0])
    alone = model._guess(Batch(batch.waveforms[:1, :samples], batch.lengths[:1], ["0"], batch.starts[:1]))
    torch.testing.assert_close(both.targets[:1, :first], alone.targets, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(both.predictions[:1, :first], alone.predictions, rtol=1e-4, atol=1e-4)
    assert not both.targets[0, first:].any()


def test_targets_are_of_what_is_not_hidden():
    model = built(small(mask={"probability": 0.2})).eval()
    batch = batch_of(1.0)
    guesses = [model._guess(batch) for _ in range(2)]
    assert not torch.equal(guesses[0].mask, guesses[1].mask)
    assert torch.equal(guesses[0].targets, guesses[1].targets)
    assert not torch.equal(guesses[0].predictions, guesses[1].predictions)


# -------------------------------------------------------------------------------------------------------- teacher


def test_gradients_reach_all_but_the_teacher():
    model = built(small()).train()
    model(batch_of(1.3, 0.7)).loss.backward()
    for name, weight in model.named_parameters():
        if name.startswith("teacher."):
            assert not weight.requires_grad
            assert weight.grad is None
        else:
            assert weight.grad is not None, name
            assert weight.grad.any(), name
    assert not any(part.training for part in model.teacher.module.modules())
    noisy = built(small({"dropout": 0.5, "attention_dropout": 0.5}, layer_drop=0.9)).train()
    one, two = (noisy._guess(batch_of(1.0)) for _ in range(2))
    assert torch.equal(one.targets, two.targets)  # it drops nothing


def test_the_teacher_begins_as_the_student_and_follows_it():
    model = built(small(ema_decay=0.9, ema_end_decay=0.6, ema_steps=3))
    model.prepare(iter(()))
    student = model.encoder.context
    states = [{name: value.double().clone() for name, value in student.state_dict().items()}]
    assert all(
        torch.equal(value, student.state_dict()[name]) for name, value in model.teacher.module.state_dict().items()
    )
    for step in (1, 2, 3):
        with torch.no_grad():
            for weight in model.parameters():
                if weight.requires_grad:
                    weight += torch.randn_like(weight)
        model.on_optimizer_step(step)
        states.append({name: value.double().clone() for name, value in student.state_dict().items()})
        assert model.decay.item() == pytest.approx(0.9 - 0.1 * step)
    assert model.step == 3
    shares = (0.8 * 0.7 * 0.6, 0.2 * 0.7 * 0.6, 0.3 * 0.6, 0.4)  # decays .8, .7, .6
    for name, value in model.teacher.module.state_dict().items():
        wanted = sum(share * state[name] for share, state in zip(shares, states, strict=True))
        if name.startswith("positions."):
            wanted = states[-1][name]
        torch.testing.assert_close(value.double(), wanted, rtol=2e-6, atol=2e-6, msg=name)
    assert {name.split(".")[0] for name in student.state_dict()} == {"positions", "norm", "transformer"}


def test_the_decay_is_that_of_fairseq():
    model = small().build()
    assert model.decay.item() == pytest.approx(0.999)
    for step, decay in ((15_000, 0.99945), (30_000, 0.9999), (400_000, 0.9999)):
        model.on_optimizer_step(step)
        assert model.decay.item() == pytest.approx(decay, abs=1e-7)
        assert model(batch_of(0.5)).metrics["ema_decay"].item() == pytest.approx(decay, abs=1e-7)


def test_the_encoder_is_drawn_first():
    torch.manual_seed(3)
    model = small().build()
    torch.manual_seed(3)
    twin = WaveformEncoder(small().encoder)
    assert all(torch.equal(a, b) for a, b in zip(twin.parameters(), model.encoder.parameters(), strict=True))


# ---------------------------------------------------------------------------------------- options change what they say


@torch.no_grad()
def test_spans_and_layers_change_what_they_say(drawn):
    batch = batch_of(*[5.0] * 4)
    shares = {}
    for name in ("vanilla", "prob50", "prob80", "span5", "span15"):
        mask = preset(f"music2vec_{name}").objective.mask.model_dump()
        torch.manual_seed(0)
        shares[name] = built(small(mask=mask)).eval()(batch).metrics["masked"].item()
    assert 0.35 < shares["prob50"] < shares["vanilla"] - 0.03 < shares["prob80"] - 0.08 < 0.6
    runs = [
        np.diff(np.flatnonzero(np.diff(np.r_[0, *row, 0])))[::2].mean() for mask in drawn[-2:] for row in mask.int()
    ]
    assert max(runs[:4]) < min(runs[4:])  # spans of 5 make shorter stretches than spans of 15
    equal = built(small(mask={"equalize": "fairseq"})).eval()
    equal(batch)
    assert len(set(drawn[-1].sum(1).tolist())) == 1
    torch.manual_seed(0)
    targets = [built(small(top_layers=top)).eval()._guess(batch).targets for top in (1, 2, 3)]
    assert not torch.allclose(targets[0], targets[1])
    assert not torch.allclose(targets[1], targets[2])
    assert targets[0].var() > targets[1].var() > targets[2].var()  # a mean of more layers varies less


def test_layers_are_dropped_in_training_alone_alike_for_a_step():
    model = built(small(layer_drop=0.5)).train()
    batch = batch_of(0.8)

    def loss(step: int) -> float:
        torch.manual_seed(0)
        model.step.fill_(step)
        return model(batch).loss.item()

    losses = [loss(step) for step in range(20)]
    assert losses == [loss(step) for step in range(20)]
    assert 4 <= len(set(losses)) <= 8  # the subsets of three blocks
    model.eval()
    assert len({loss(step) for step in range(20)}) == 1


def test_the_convolutions_learn_at_their_own_rate():
    model = small(convolution_rate=0.1).build()
    train = TrainConfig(lr=1e-2, warmup=0.0, schedule="constant", weight_decay=0.0)
    optimizer = optim.build_optimizer(model, train, model.rates())
    before = {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight) if weight.requires_grad else None
    optim.update(optimizer, 1, train, torch.tensor(1.0), torch.tensor(1.0))
    for name, weight in model.named_parameters():
        if weight.requires_grad:  # Adam's first step is the learning rate
            step = (before[name] - weight.detach()).mean().item()
            assert step == pytest.approx(1e-3 if "convolutions" in name else 1e-2, rel=1e-2), name


def test_bfloat16_follows_float32():
    """Gradients too: a weight that the teacher's pass has cast must not lose the student's."""
    found = []
    for enabled in (False, True):
        model = built(small()).train()
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            step = model(batch_of(1.3, 0.7))
        step.loss.backward()
        assert step.loss.dtype == torch.float32
        found.append((step.loss.item(), {name: w.grad for name, w in model.named_parameters() if w.requires_grad}))
    (plain, wanted), (cast, gradients) = found
    assert cast == pytest.approx(plain, rel=0.02)
    for name in wanted:
        cosine = torch.cosine_similarity(wanted[name].flatten(), gradients[name].flatten(), 0)
        assert cosine > 0.9, name


# --------------------------------------------------------------------------------------------------------- guards


def test_collapse_rings_by_its_name_and_not_before_its_time():
    model = small(guard_after=10).build()
    well = {"target_std": 0.5, "prediction_std": 0.1}
    flat = {"target_std": 0.05, "prediction_std": 0.005}
    assert model.alarms(flat) == {}  # step 0
    model.step.fill_(10)
    assert model.alarms(well) == {} == model.alarms({})
    assert list(model.alarms(well | {"target_std": 0.05})) == ["collapse of targets"]
    assert list(model.alarms(well | {"prediction_std": 0.005})) == ["collapse of predictions"]
    lines = model.alarms(flat)
    assert len(lines) == 2
    assert all("\n" not in line and "train.lr" in line for line in lines.values())


def notes(count: int, seed: int) -> Batch:
    """Clips of 1.5 s, each three tones of half a second, with overtones."""
    generator = torch.Generator().manual_seed(seed)
    hertz = 220 * 1.6 ** torch.randint(5, (count, 3), generator=generator).repeat_interleave(8000, 1)
    phase = 2 * math.pi * torch.cumsum(hertz, 1) / RATE
    waveforms = 0.2 * torch.sin(phase) + 0.1 * torch.sin(3 * phase)
    waveforms += 0.003 * torch.randn(count, 24_000, generator=generator)
    return Batch(waveforms, torch.full((count,), 24_000), [""] * count, torch.zeros(count), seed=seed)


def test_training_beats_the_targets_variance_and_a_collapse_shows():
    torch.manual_seed(0)
    run = small({"channels": 16, "dim": 32, "ffn": 64}, ema_decay=0.99, ema_end_decay=0.99, guard_after=60)
    model = run.build().train()
    model.prepare(iter(()))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for number in range(60):
        loss = model(notes(6, number)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.on_optimizer_step(number + 1)
    with torch.no_grad():
        metrics = model.eval()(notes(16, 500)).metrics
        assert metrics["r2"] > 0.2
        assert model.alarms({name: float(value) for name, value in metrics.items()}) == {}
        for block in model.teacher.module.transformer.blocks:  # planted: the teacher says the same at all times
            block.ffn_out.weight.zero_()
        metrics = model(notes(16, 500)).metrics
    assert list(model.alarms({name: float(value) for name, value in metrics.items()})) == ["collapse of targets"]


# ----------------------------------------------------------------------------------------------- runs and presets


@pytest.fixture
def audio(tmp_path):
    (tmp_path / "audio").mkdir()
    for i in range(12):
        soundfile.write(tmp_path / f"audio/{i}.wav", batch_of(1.0 + 0.05 * i, seed=i).waveforms[0].numpy(), RATE)
    return tmp_path / "audio"


def test_a_resumed_run_ends_bit_for_bit_with_teacher_and_step(audio, tmp_path, monkeypatch):
    monkeypatch.setattr(Data2Vec, "visualize", lambda *_: {})  # which takes longer than the rest
    run = edit(
        small({"dropout": 0.1}, min_s=0.5, layer_drop=0.4, ema_decay=0.9),
        data={"batch_seconds": 4.0},
        train={
            "steps": 6,
            "valid_every": 6,
            "checkpoint_every": 3,
            "accumulate": 2,
            "precision": "fp32",
            "device": "cpu",
            "seed": 1,
        },
    )
    checkpoint = resumes_as_one(run, [audio], tmp_path)
    stored = load_file(checkpoint / "objective.safetensors")
    assert stored["step"] == 6
    name = "transformer.blocks.1.qkv.weight"
    student = load_file(checkpoint / "model.safetensors")[f"context.{name}"]
    assert not torch.equal(stored[f"teacher.module.{name}"], student)
    assert load(tmp_path / "whole").clip(audio / "0.wav").shape == (16,)


def test_save_and_load_give_the_same_numbers(audio, tmp_path):
    model = built(small()).eval()
    save(model.encoder, tmp_path / "saved", seed=0)
    assert torch.equal(load(tmp_path / "saved").clip(audio / "3.wav"), model.encoder.clip(audio / "3.wav"))


def test_pictures():
    model = built(small()).eval()
    pictures = model.visualize(batch_of(1.0, 1.4))
    assert {name: picture.shape for name, picture in pictures.items()} == dict.fromkeys(pictures, (49, 16))
    assert list(pictures) == ["target", "hidden", "prediction"]
    shown = pictures["hidden"].any(1)
    assert 0 < shown.sum() < 49
    assert torch.equal(pictures["hidden"][shown], pictures["target"][shown])
    assert torch.equal(pictures["prediction"].any(1), shown)


PUBLISHED = {
    "vanilla": {},
    "800k": {"train.steps": 800_000},
    "crop5s": {"objective.crop_s": 5.0},
    "prob50": {"objective.mask.probability": 0.5},
    "prob80": {"objective.mask.probability": 0.8},
    "span5": {"objective.mask.span": 5},
    "span15": {"objective.mask.span": 15},
    "target12": {"objective.top_layers": 12},
}


def flat(values: dict, place: str = "") -> dict:
    return {
        key: value
        for name, part in values.items()
        for key, value in (flat(part, f"{place}{name}.") if isinstance(part, dict) else {place + name: part}).items()
    }


def test_presets_are_the_published_grid():
    base, vanilla = flat(preset("data2vec_base").model_dump()), flat(preset("music2vec_vanilla").model_dump())
    assert {key for key in base if base[key] != vanilla[key]} == {"preset", "objective.crop_s"}
    for name, changes in PUBLISHED.items():
        found = flat(preset(f"music2vec_{name}").model_dump())
        assert {key: found[key] for key in found if found[key] != vanilla[key]} == {
            **({"preset": f"music2vec_{name}"} if changes else {}),
            **changes,
        }
    train, objective = preset("music2vec_vanilla").train, preset("music2vec_vanilla").objective
    assert (train.steps, train.lr, train.schedule, train.warmup, train.hold) == (400_000, 5e-4, "tri_stage", 0.03, 0.9)
    assert (train.betas, train.eps, train.weight_decay, train.clip_norm) == ((0.9, 0.98), 1e-6, 0.01, None)
    assert (objective.mask.probability, objective.mask.span, objective.top_layers) == (0.65, 10, 8)
    assert (objective.crop_s, objective.layer_drop, objective.beta) == (30.0, 0.05, 0.0)
    seconds = preset("music2vec_vanilla").data.batch_seconds * train.accumulate
    assert seconds / 60 == pytest.approx(63, abs=0.5)


def test_the_encoder_is_as_large_as_published():
    with torch.device("meta"):
        model = preset("data2vec_base").build()
    assert sum(weight.numel() for weight in model.encoder.parameters()) == 93_164_288
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert trained == 93_164_288 + 768 * 769  # and the head


@pytest.mark.parametrize("name", ["data2vec_base", "music2vec_tiny", *(f"music2vec_{name}" for name in PUBLISHED)])
def test_presets_go_through_yaml(name):
    run = preset(name)
    assert run.preset == name
    assert run_from_yaml({"format": 1, "method": "data2vec"} | run.model_dump(mode="json")) == run


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"objective": {"top_layers": 13}}, "top_layers: 13 are more than encoder.layers, 12"),
        ({"objective": {"mask": {"spans": 3}}}, "objective.mask.spans"),
        ({"objective": {"ema_decay": 1.5}}, "objective.ema_decay"),
        ({"train": {"schedule": "tristage"}}, "train.schedule"),
    ],
)
def test_bad_yaml_is_refused_in_one_line(values, message):
    with pytest.raises(ConfigError, match=message) as error:
        run_from_yaml({"method": "data2vec"} | values, "config.yaml")
    assert "\n" not in str(error.value)


def part_of_two(_: pytest.MonkeyPatch, rank: int) -> tuple[Data2Vec, Batch]:
    return built(small(layer_drop=0.4)).train(), batch_of(1.2, seed=rank)


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_one(tmp_path):
    two_processes_are_one(part_of_two, tmp_path)


@pytest.mark.slow
def test_compiled_training_follows_eager(monkeypatch):
    """Traced and differentiated by the compiler; what its code generator makes of the networks is tested with them."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    found = []
    for compiled in (False, True):
        model = built(small({"layers": 2, "kernels": (10, 8), "strides": (5, 8)})).train()
        if compiled:
            model.compile_networks()
        torch.manual_seed(1)
        step = model(batch_of(0.3, 0.2))
        step.loss.backward()
        found.append((step.loss.item(), {name: w.grad for name, w in model.named_parameters() if w.requires_grad}))
    (plain, wanted), (traced, gradients) = found
    assert traced == pytest.approx(plain, rel=1e-4)
    for name in wanted:
        torch.testing.assert_close(gradients[name], wanted[name], rtol=1e-2, atol=1e-5, msg=name)
