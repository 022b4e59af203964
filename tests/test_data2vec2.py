"""data2vec 2.0 against its definition, written out in float64 clip by clip and copy by copy; its masks; its teacher."""

from __future__ import annotations

import math

import numpy as np
import pytest
import soundfile
import torch
from tiny import loads_as_saved, resumes_as_one, two_processes_are_one
from torch import Tensor, nn
from torch.nn import functional as F

import auricle.methods.data2vec2 as module
from auricle.config import edit
from auricle.data.batching import Batch
from auricle.encoders.waveform import Context, WaveformEncoder
from auricle.errors import ConfigError
from auricle.methods import preset, run_from_yaml
from auricle.methods.data2vec2 import Data2Vec2, Data2Vec2Run
from auricle.nn.blocks import block_mask

SMALL = {
    "channels": 16,
    "dim": 32,
    "heads": 4,
    "ffn": 48,
    "layers": 3,
    "position_groups": 4,
    "position_layers": 2,
    "position_kernel": 5,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}
TOY = {
    "copies": 3,
    "top_layers": 2,
    "decoder_dim": 24,
    "decoder_groups": 4,
    "decoder_kernel": 5,
    "decoder_layers": 3,
    "decoder_dropout": 0.0,
    "layer_drop": 0.0,
}


def small(encoder: dict | None = None, **objective: object) -> Data2Vec2Run:
    """BASE at toy size, without dropout."""
    run = edit(preset("data2vec2_base"), encoder=SMALL, objective=TOY)
    return edit(run, encoder=encoder or {}, objective=objective)  # type: ignore[return-value]


def batch_of(*seconds: float, seed: int = 0) -> Batch:
    """Clips of noise whose level goes up and down."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([int(16000 * s) for s in seconds])
    waveforms = torch.zeros(len(seconds), int(lengths.max()))
    for row, length in enumerate(lengths.tolist()):
        level = 1 + 0.9 * torch.sin(2 * math.pi * 3 * torch.arange(length) / 16000 + torch.rand(1, generator=generator))
        waveforms[row, :length] = 0.05 * level * torch.randn(length, generator=generator)
    return Batch(waveforms, lengths, [str(i) for i in range(len(seconds))], torch.zeros(len(seconds)))


def rows(batch: Batch, which: list[int]) -> Batch:
    return Batch(batch.waveforms[which], batch.lengths[which], [], batch.starts[which])


def stir(model: Data2Vec2) -> None:
    """Weights away from where they begin, so that biases and norms have a say, and a teacher unlike its student."""
    for weight in model.parameters():
        weight.data.add_(0.1 * torch.randn_like(weight))


def upper(teacher: nn.Module) -> Context:
    """What of a teacher follows the projection."""
    return teacher.context if isinstance(teacher, WaveformEncoder) else teacher


# --------------------------------------------------------------------------------------------------------------- masks


def slow_mask(length: int, fraction: float, span: int, extra: float, rng: np.random.Generator) -> np.ndarray:
    """One clip's mask, frame by frame."""
    mask = np.zeros(length, bool)
    for centre in rng.integers(0, length, int(length * (fraction + extra) / span)):
        mask[max(0, centre - span // 2) : centre + span // 2 + 1] = True
    wanted = int(length * fraction)
    spare = mask.sum() - wanted
    if spare > 0:
        mask[rng.choice(np.flatnonzero(mask), spare, replace=False)] = False
    else:
        mask[rng.choice(np.flatnonzero(~mask), -spare, replace=False)] = True
    return mask


def runs(mask: np.ndarray) -> list[int]:
    """How long the runs of hidden frames are."""
    return [len(run) for run in "".join("01"[int(value)] for value in mask).split("0") if run]


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize(("fraction", "span", "extra"), [(0.5, 5, 0.05), (0.6, 3, 0.0), (0.3, 7, 0.4)])
def test_masks_are_blocks_and_exactly_so_many_frames(fraction, span, extra, inverse):
    torch.manual_seed(0)
    sizes = [200, 137, 61, 9, 2, 1, 0] * 100
    lengths = torch.tensor(sizes)
    masks = block_mask(lengths, 200, fraction=fraction, span=span, extra=extra, inverse=inverse)
    assert masks.sum(1).tolist() == [int(length * fraction) for length in sizes]
    assert not masks[torch.arange(200) >= lengths[:, None]].any()
    rng = np.random.default_rng(0)
    share = 1 - fraction if inverse else fraction
    wanted = [length for _ in range(300) for length in runs(slow_mask(200, share, span, extra, rng))]
    blocks = masks[::7].numpy()
    found = [length for mask in blocks for length in runs(~mask if inverse else mask)]
    assert np.mean(found) == pytest.approx(np.mean(wanted), rel=0.06)
    assert np.mean(np.array(found) >= span) == pytest.approx(np.mean(np.array(wanted) >= span), abs=0.05)


def test_every_frame_is_hidden_as_often():
    torch.manual_seed(0)
    share = block_mask(torch.full((4000,), 50), 60, fraction=0.5, span=5, extra=0.05)[:, :50].float().mean(0)
    assert (share[5:45] - share[5:45].mean()).abs().max() < 5 * math.sqrt(0.25 / 4000)
    assert (share - 0.5).abs().max() < 0.12  # fewer blocks reach the ends


# ------------------------------------------------------------------------------------------------------------ the loss


def plain_blocks(context: Context, x: Tensor, norm: str) -> tuple[Tensor, list[Tensor]]:
    """The Transformer on one clip x (T, D), head by head: its output, and every feed-forward part's."""
    parts = []
    for block in context.transformer.blocks:
        y = block.attention_norm(x) if norm == "pre" else x
        heads = []
        for q, k, v in zip(*(part.chunk(block.heads, 1) for part in block.qkv(y).chunk(3, 1)), strict=True):
            heads.append((q @ k.T / math.sqrt(q.shape[1])).softmax(1) @ v)
        mixed = x + block.attention_out(torch.cat(heads, 1))
        x = mixed if norm == "pre" else block.attention_norm(mixed)
        y = block.ffn_norm(x) if norm == "pre" else x
        parts.append(block.ffn_out(F.gelu(block.ffn_in(y))))
        x = x + parts[-1] if norm == "pre" else block.ffn_norm(x + parts[-1])
    return context.transformer.final_norm(x), parts


def reference(model: Data2Vec2, batch: Batch, hidden: Tensor) -> dict[str, float]:
    """Each copy alone, in float64, with the hidden frames taken out of the sequence; hidden (B M, T)."""
    model, config = model.double(), model.config
    teacher = upper(model.teacher.module)
    norm = model.encoder.config.norm
    features, projected, layers = [], [], []
    for row, samples in enumerate(batch.lengths.tolist()):
        waveform, length = batch.waveforms[row : row + 1, :samples].double(), batch.lengths[row : row + 1]
        features.append(model.encoder.features(waveform, length)[0][0])
        projected.append(model.encoder.project(features[-1]))  # (T, D)
        y = projected[-1]
        if config.own_convolutions:
            y = model.teacher.module.project(model.teacher.module.features(waveform, length)[0])[0]
        y = teacher.norm(y + teacher.positions(y[None], None)[0])
        layers.append(torch.stack(plain_blocks(teacher, y, norm)[1][-config.top_layers :]))  # (K, T, D)
    costs, trivials, wanted_frames, predicted_frames = [], [], [], []
    for row, x in enumerate(projected):
        pool = layers[row] if config.targets_over == "clip" else torch.cat(layers, 1)
        deviation = (pool.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        targets = ((layers[row] - pool.mean(1, keepdim=True)) / deviation).mean(0)
        for copy in range(config.copies):
            mask = hidden[row * config.copies + copy, : len(x)]
            z = x.clone()
            z[mask] = 0
            z = z + model.encoder.context.positions(z[None], None)[0]
            z, _ = plain_blocks(model.encoder.context, model.encoder.context.norm(z[~mask]), norm)
            whole = torch.zeros_like(x)
            whole[~mask] = z
            for conv in model.decoder.convolutions:
                out = F.gelu(F.layer_norm(conv(whole.T[None])[0].T, (conv.out_channels,)))
                whole = out + whole if out.shape == whole.shape else out
            predicted = model.head(whole[mask])
            costs += ((predicted - targets[mask]) ** 2).sum(1).tolist()
            trivials += (targets[mask] ** 2).sum(1).tolist()
            wanted_frames.append(targets[mask])
            predicted_frames.append(predicted)
    root = math.sqrt(model.encoder.config.dim)
    found = {"loss": np.mean(costs) / root, "trivial": np.mean(trivials) / root, "count": len(costs)}
    found["r2"] = 1 - found["loss"] / found["trivial"]
    found["masked"] = len(costs) / (sum(map(len, projected)) * config.copies)
    found["target_std"] = torch.cat(wanted_frames).std(0, correction=0).mean().item()
    found["prediction_std"] = torch.cat(predicted_frames).std(0, correction=0).mean().item()
    found["features_std"] = torch.cat(features).std(0, correction=0).mean().item()
    found["ema_decay"] = config.ema_decay
    return found


CASES = {
    "base": small(),
    "teacher with convolutions of its own": small(own_convolutions=True),
    "pre-norm": small({"norm": "pre"}),
    "targets over the batch": small(targets_over="batch"),
    "inverse, all layers": small(inverse=True, top_layers=3, mask_fraction=0.4),
    "one copy, decoder as wide": small(copies=1, decoder_dim=32, span=3),
    "HuBERT's network": small(
        {"conv_norm": "group", "position_style": "weight_norm", "position_layers": 1, "position_kernel": 8}
    ),
}
every = pytest.mark.parametrize("run", CASES.values(), ids=CASES)


def recorded(monkeypatch: pytest.MonkeyPatch, target: object, name: str) -> list:
    """What this function or method returns from now on."""
    function, results = getattr(target, name), []

    def spy(*args, **kwargs):
        results.append(function(*args, **kwargs))
        return results[-1]

    monkeypatch.setattr(target, name, spy)
    return results


@every
def test_loss_is_the_reference(run, monkeypatch):
    torch.manual_seed(0)
    model, batch = edit(run, objective={"noise_std": 0.0}).build().eval(), batch_of(1.0, 0.7, 0.31)
    with torch.no_grad():
        stir(model)
        masks = recorded(monkeypatch, module, "block_mask")
        step = model(batch)
        wanted = reference(model, batch, masks[0])
    got = {"loss": step.loss, "count": step.count, **step.metrics}
    assert got.keys() == wanted.keys()
    for name, value in got.items():
        assert value.item() == pytest.approx(wanted[name], rel=1e-4, abs=1e-5), name


@every
def test_only_visible_frames_are_computed_and_the_teacher_is_asked_once(run):
    torch.manual_seed(0)
    model, batch = run.build().train(), batch_of(1.0, 0.7, 0.31)
    student, asked = [], []
    for block in model.encoder.context.transformer.blocks:
        block.ffn_in.register_forward_hook(lambda _, args, __: student.append(args[0].shape[:-1].numel()))
    upper(model.teacher.module).transformer.blocks[0].ffn_in.register_forward_hook(
        lambda _, args, __: asked.append(args[0].shape[:-1].numel())
    )
    projected = []
    model.encoder.projection.register_forward_hook(lambda _, args, __: projected.append(args[0].shape[0]))
    step = model(batch)
    frames = [49, 34, 15]
    hidden = [int(n * run.objective.mask_fraction) for n in frames]
    copies = run.objective.copies
    assert step.count == copies * sum(hidden)
    assert student == [copies * (sum(frames) - sum(hidden))] * 3
    assert asked == [sum(frames)]
    assert projected == [3]


@every
def test_gradients_reach_every_trained_weight_and_no_teacher(run):
    torch.manual_seed(0)
    model = run.build().train()
    step = model(batch_of(1.0, 0.7))
    step.loss.backward()
    for name, weight in model.named_parameters():
        if name.startswith("teacher.") or name == "encoder.mask_vector":
            assert weight.grad is None, name
            assert not weight.requires_grad, name
        else:
            assert weight.grad is not None, name
            assert weight.grad.any(), name


def test_what_is_hidden_is_not_heard():
    """But by the teacher."""
    torch.manual_seed(0)
    model, batch = small().build().eval(), batch_of(1.0, 0.7)
    x, lengths = model.encoder.features(batch.waveforms, batch.lengths)
    mask = block_mask(lengths, x.shape[1], fraction=0.5, span=5)

    def guess(x: Tensor) -> module._Guess:
        model.encoder.features = lambda *_: (x, lengths)  # type: ignore[method-assign]
        with pytest.MonkeyPatch.context() as patch, torch.no_grad():
            patch.setattr(module, "block_mask", lambda *_, **__: mask.repeat_interleave(3, 0))
            torch.manual_seed(1)
            return model._guess(batch)

    first = guess(x)
    second = guess(torch.where(mask[:, :, None], torch.randn_like(x), x))
    assert torch.equal(first.prediction, second.prediction)
    assert not torch.allclose(first.targets, second.targets)
    seen = x.clone()
    seen[0, int(first.seen.index[0, 0])] += 1
    assert not torch.allclose(first.prediction, guess(seen).prediction)


def test_hidden_frames_reach_the_decoder_as_noise():
    torch.manual_seed(0)
    model, batch = small(noise_std=0.3, mask_fraction=0.8).build().eval(), batch_of(2.0, 2.0)
    given = []
    model.decoder.register_forward_hook(lambda _, args, __: given.append(args[0]))
    guess = model._guess(batch)
    hidden = zip(given[0], guess.hidden.index, guess.hidden.counts, strict=True)
    noise = torch.cat([x[index[:count]] for x, index, count in hidden])
    assert len(noise) == 6 * int(0.8 * 99)
    assert noise.std().item() == pytest.approx(0.3, rel=0.03)
    assert noise.mean().abs() < 0.01


def test_copies_have_masks_of_their_own_and_the_same_targets():
    torch.manual_seed(0)
    model, batch = small().build().eval(), batch_of(1.0, 0.7)
    guess = model._guess(batch)
    assert len({tuple(row.tolist()) for row in guess.hidden.index}) == 6
    for row, (index, count) in enumerate(zip(guess.hidden.index, guess.hidden.counts, strict=True)):
        assert torch.equal(guess.wanted[row, :count], guess.targets[row // 3, index[:count]])
    true = torch.arange(49) < guess.lengths[:, None]
    assert guess.targets.sum(1).abs().max() < 1e-3  # every channel's mean is 0
    assert not guess.targets[~true].any()


def test_a_clip_too_short_to_hide_anything_has_no_say():
    model = small().build().eval()
    step = model(batch_of(0.03))
    assert (step.loss, step.count) == (0, 0)


def test_collapse_shows():
    torch.manual_seed(0)
    model, batch = small().build().eval(), batch_of(1.0, 0.7)
    healthy = model(batch).metrics
    model.head.weight.data.zero_()
    for block in upper(model.teacher.module).transformer.blocks:
        block.ffn_out.weight.data.zero_()
    collapsed = model(batch).metrics
    assert healthy["target_std"] > 0.3
    assert healthy["prediction_std"] > 0.03
    assert collapsed["target_std"] < 0.01
    assert collapsed["prediction_std"] < 0.01
    assert not model.alarms({name: value.item() for name, value in collapsed.items()})  # too early
    model.step.fill_(5000)
    assert not model.alarms({name: value.item() for name, value in healthy.items()})
    rung = model.alarms({name: value.item() for name, value in collapsed.items()})
    assert sorted(rung) == ["collapse of predictions", "collapse of targets"]
    assert all("objective.least_" in line and "\n" not in line for line in rung.values())


# --------------------------------------------------------------------------------------------------------- the teacher


@pytest.mark.parametrize("own", [False, True])
def test_the_teacher_begins_as_the_student_and_follows(own):
    torch.manual_seed(0)
    model = small(ema_decay=0.9, ema_end_decay=0.99, ema_steps=4, own_convolutions=own).build().train()
    student = model.encoder if own else model.encoder.context
    stir(model)
    model.prepare([])
    wanted = {name: weight.double().clone() for name, weight in student.named_parameters()}
    for name, weight in model.teacher.module.named_parameters():
        assert torch.equal(weight, wanted[name].float())
    for step, decay in enumerate([0.9225, 0.945, 0.9675, 0.99, 0.99], 1):
        for name, weight in student.named_parameters():
            weight.data.add_(torch.randn_like(weight))
            wanted[name] = decay * wanted[name] + (1 - decay) * weight.double()
        model.on_optimizer_step(step)
        assert model.step == step
        assert model.decay.item() == pytest.approx(decay, rel=1e-6)
    for name, weight in model.teacher.module.named_parameters():
        torch.testing.assert_close(weight.double(), wanted[name], rtol=1e-5, atol=1e-5)


def test_dropout_and_layer_drop_are_the_students_alone():
    torch.manual_seed(0)
    model, batch = small({"dropout": 0.5, "attention_dropout": 0.5}, layer_drop=0.9).build().train(), batch_of(1.0)
    one, other = model._guess(batch), model._guess(batch)
    assert torch.equal(one.targets, other.targets)
    kept = []
    model.encoder.context.transformer.register_forward_pre_hook(
        lambda _, __, kwargs: kept.append(kwargs["keep"]), with_kwargs=True
    )
    for step in range(40):
        model.on_optimizer_step(step)
        model(batch)
        model(batch)
    assert all(torch.equal(a, b) for a, b in zip(kept[::2], kept[1::2], strict=True))  # a step's micro-batches agree
    assert torch.stack(kept).float().mean().item() == pytest.approx(0.1, abs=0.1)
    model.eval()(batch)
    assert kept[-1] is None


# ---------------------------------------------------------------------------------------- precision, files, processes


def test_bfloat16_follows_float32():
    torch.manual_seed(0)
    model, batch = small().build().train(), batch_of(1.0, 0.8)
    torch.manual_seed(1)
    exact = model(batch)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        step = model(batch)
    assert step.loss.dtype == torch.float32
    assert step.count == exact.count
    assert step.loss.item() == pytest.approx(exact.loss.item(), rel=0.02)


def test_pictures():
    torch.manual_seed(0)
    pictures = small().build().eval().visualize(batch_of(0.7, 1.0))
    assert set(pictures) == {"target", "hidden", "prediction"}
    assert all(picture.shape == (34, 32) and picture.isfinite().all() for picture in pictures.values())
    hidden = pictures["hidden"].any(1)
    assert hidden.sum() == 17
    assert torch.equal(pictures["hidden"][hidden], pictures["target"][hidden])
    assert torch.equal(pictures["prediction"].any(1), hidden)


def test_saved_and_loaded_it_is_the_same(tmp_path):
    loads_as_saved(small().build().encoder, batch_of(0.5, 0.3), tmp_path)


def test_a_run_goes_on_bit_for_bit_with_its_teacher(tmp_path):
    (tmp_path / "audio").mkdir()
    for i, clip in enumerate(batch_of(*[0.5 + 0.05 * i for i in range(10)]).waveforms):
        soundfile.write(tmp_path / f"audio/{i}.wav", clip.numpy(), 16000)
    train = {"steps": 4, "valid_every": 4, "checkpoint_every": 2, "log_every": 2, "precision": "fp32", "device": "cpu"}
    run = edit(small(min_s=0.4, layer_drop=0.3), data={"batch_seconds": 3.0}, train=train | {"accumulate": 1})
    resumes_as_one(run, [tmp_path / "audio"], tmp_path)


def fix_masks(patch: pytest.MonkeyPatch) -> None:
    """Masks are drawn for a batch at once: here they depend on the frame alone."""

    def block_mask(lengths: Tensor, frames: int, **_: object) -> Tensor:
        place = torch.arange(frames)
        return (place % 4 < 2) & (place < lengths[:, None] // 4 * 4)

    patch.setattr(module, "block_mask", block_mask)


def gradient(model: Data2Vec2, batches: list[Batch], wrapped: nn.Module | None = None) -> Tensor:
    for batch in batches:
        step = (wrapped or model)(batch)
        (step.loss * step.count).backward()
    return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.requires_grad])


def test_losses_of_micro_batches_add_up(monkeypatch):
    fix_masks(monkeypatch)
    torch.manual_seed(0)
    model, batch = small(noise_std=0.0).build().train(), batch_of(1.0, 0.9, 0.6)
    whole = gradient(model, [batch])
    model.zero_grad()
    parts = gradient(model, [rows(batch, [0]), rows(batch, [1, 2])])
    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-4 * whole.abs().max().item())


def part_of_two(patch: pytest.MonkeyPatch, rank: int) -> tuple[Data2Vec2, Batch]:
    fix_masks(patch)
    torch.manual_seed(rank)  # rank 0's weights are all that counts, its teacher's too
    model = small(noise_std=0.0, layer_drop=0.5).build().train()
    return model, rows(batch_of(1.0, 0.9, 0.6), [[0], [1, 2]][rank])


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_one(tmp_path):
    two_processes_are_one(part_of_two, tmp_path, rtol=1e-3)


def swells(count: int, seed: int) -> Batch:
    """A second each of noise that swells five times, from a random phase on."""
    generator = torch.Generator().manual_seed(seed)
    phase = 2 * math.pi * torch.rand(count, 1, generator=generator)
    level = torch.exp(2 * torch.sin(2 * math.pi * 5 * torch.arange(16000) / 16000 + phase) - 2)
    waveforms = 0.3 * level * torch.randn(count, 16000, generator=generator)
    return Batch(waveforms, torch.full((count,), 16000), [""] * count, torch.zeros(count))


def test_training_learns_more_than_the_mean():
    torch.manual_seed(0)
    model = small(ema_decay=0.99, ema_end_decay=0.99).build().train()
    model.prepare([])
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=4e-3)
    for number in range(1, 61):
        optimizer.zero_grad()
        model(swells(4, seed=number)).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        model.on_optimizer_step(number)
    with torch.no_grad():
        metrics = model.eval()(swells(8, seed=1000)).metrics
    assert metrics["r2"] > 0.3
    assert metrics["target_std"] > 0.1


@pytest.mark.parametrize("name", ["data2vec2_base", "data2vec2_music_tiny"])
def test_presets_go_through_yaml(name):
    run = preset(name)
    values = {"format": 1, "auricle": "0.1.0", "method": run.method} | run.model_dump(mode="json")
    assert run_from_yaml(values) == run


def test_the_base_network_is_data2vecs():
    with torch.device("meta"):
        model = preset("data2vec2_base").build()
    assert sum(weight.numel() for weight in model.encoder.parameters()) == 93_164_288
    assert sum(weight.numel() for weight in model.decoder.parameters()) == 384 * 7 * (768 + 3 * 384) // 16 + 4 * 384


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"objective": {"top_layers": 13}}, "objective.top_layers: the encoder has 12"),
        ({"objective": {"decoder_dim": 100}}, "decoder_dim: 100"),
        ({"objective": {"decoder_kernel": 6}}, "decoder_kernel: 6"),
        ({"objective": {"decoder_groups": 5, "decoder_dim": 100}}, "objective.decoder_groups"),
        ({"objective": {"copie": 2}}, "did you mean 'objective.copies'"),
    ],
)
def test_bad_yaml_is_refused_in_one_line(values, message):
    with pytest.raises(ConfigError, match=message) as error:
        run_from_yaml({"method": "data2vec2"} | values, "config.yaml")
    assert "\n" not in str(error.value)
