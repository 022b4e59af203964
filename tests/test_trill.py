from __future__ import annotations

import math
import shutil

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import learn
from torch import Tensor, nn

import auricle.methods.trill as trill
import auricle.nn.resnet as resnet
from auricle import cli
from auricle.config import edit
from auricle.data.batching import Batch
from auricle.encoders.checkpoint import load, save
from auricle.encoders.trill import Trill, TrillConfig
from auricle.errors import CheckpointError, ConfigError
from auricle.methods import preset, run_from_yaml
from auricle.methods.trill_distilled import TrillDistilledRun
from auricle.nn.gather import gather_rows
from auricle.nn.resnet import Resnetish
from auricle.nn.triplets import mine, squared_distances
from auricle.training import health
from auricle.training.loop import pretrain, resume

RATE = 16000
SMALL = {"width": 8, "blocks": (1, 1, 1, 1), "embedding": 24}
STUDENT = {"network": "mobilenet", "alpha": 0.25, "embedding": 16, "patch_hop": 17}


def small(**encoder: object) -> TrillConfig:
    return TrillConfig(**(SMALL | encoder))


def batch_of(*seconds: float, seed: int = 0) -> Batch:
    """Clips of noise, each with a tilt of its own."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([round(RATE * s) for s in seconds])
    waveforms = torch.zeros(len(seconds), int(lengths.max()))
    for row, length in enumerate(lengths.tolist()):
        noise = torch.randn(length + 1, generator=generator)
        waveforms[row, :length] = 0.05 * (noise[1:] + math.sin(row) * noise[:-1])
    return Batch(waveforms, lengths, [str(i) for i in range(len(seconds))], torch.zeros(len(seconds)))


def noted(count: int, seed: int, seconds: float = 2.0) -> Batch:
    """Clips, each a chord of its own that sounds throughout, at a loudness that changes from second to second."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(round(seconds * RATE)) / RATE
    pitches = 200 + 3000 * torch.rand(count, 3, 1, generator=generator)
    level = (0.01 + 0.2 * torch.rand(count, math.ceil(seconds), generator=generator)).repeat_interleave(RATE, 1)
    chords = torch.sin(2 * math.pi * pitches * time).sum(1) + 0.1 * torch.randn(count, len(time), generator=generator)
    waveforms = chords * level[:, : len(time)]
    lengths = torch.full((count,), len(time))
    return Batch(waveforms, lengths, [str(i) for i in range(count)], torch.zeros(count))


# --------------------------------------------------------------------------------------------- front end


def hertz_to_mel(hz):
    return 1127.0 * np.log(1.0 + hz / 700.0)


def reference_patches(waveform: np.ndarray) -> np.ndarray:
    """The released front end in float64, filter by filter: (P, 96, 64)."""
    waveform = np.pad(waveform.astype(np.float64), (0, max(0, 16000 - len(waveform))))
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    frames = np.stack([waveform[i * 160 : i * 160 + 400] for i in range(1 + (len(waveform) - 400) // 160)])
    magnitudes = np.abs(np.fft.rfft(frames * window, 512))  # (T, 257)
    bins, edges = hertz_to_mel(np.arange(257) * 16000 / 512), np.linspace(*hertz_to_mel(np.array([125, 7500])), 66)
    mel = np.zeros((len(frames), 64))
    for band in range(64):
        for column in range(257):
            rising = (bins[column] - edges[band]) / (edges[band + 1] - edges[band])
            falling = (edges[band + 2] - bins[column]) / (edges[band + 2] - edges[band + 1])
            mel[:, band] += max(0.0, min(rising, falling)) * magnitudes[:, column]
    log_mel = np.log(np.maximum(mel, 1e-12) + 0.001)
    return np.stack([log_mel[i : i + 96] for i in range(0, len(log_mel) - 95, 17)])


@pytest.mark.parametrize(("samples", "patches"), [(16000, 1), (9000, 1), (1, 1), (18319, 1), (18320, 2), (32000, 7)])
def test_patches_are_those_of_the_released_front_end(samples, patches):
    rng = np.random.default_rng(samples)
    waveform = np.clip(rng.standard_normal(samples) * rng.choice([1e-4, 0.1]), -1, 1).astype(np.float32)
    encoder = Trill(small())
    x, lengths = encoder.features(torch.from_numpy(waveform)[None], torch.tensor([samples]))
    found, counts = encoder._patches(x, lengths)
    wanted = reference_patches(waveform)
    assert len(wanted) == patches == int(counts[0]) == found.shape[1]
    np.testing.assert_allclose(found[0].numpy(), wanted, atol=1e-4)


def test_times_are_those_of_the_patches():
    encoder = Trill(small())
    assert encoder.hop == 17 * 160
    assert encoder.offset == (95 * 160 + 400) / 2  # the middle of the samples that patch 0 sees


# ----------------------------------------------------------------------------------------------- networks


def test_sizes_are_the_published_ones():
    """98.1 MB of float32 for TRILL; ResNet-50 has 23,508,032 weights in its trunk, its stem reads three channels."""
    network = preset("trill_base").build().encoder
    assert network.dims == (4 * 64, 4 * 256, 4 * 512, 4 * 1024, 6 * 4 * 512, 512)
    assert dict(network.outputs) == {"layer19": 4, "embedding": 5}
    trunk = sum(p.numel() for p in network.network.parameters())
    assert trunk == 23_508_032 - 2 * 64 * 7 * 7
    assert 4 * sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(98.1, abs=0.15)
    student = preset("trill_distilled").build().encoder
    assert student.dims == (2048,)
    assert dict(student.outputs) == {"embedding": 0}
    # MobileNetV3-Small: 927,008 before its classifier.
    assert sum(p.numel() for p in student.network.parameters()) == 927_008 - 2 * 16 * 3 * 3


def test_resnetish_is_transformers_resnet_without_the_stems_stride(monkeypatch):
    """With batch norms for group norms, and the same weights."""
    transformers = pytest.importorskip("transformers")
    monkeypatch.setattr(resnet, "group_norm", nn.BatchNorm2d)
    torch.manual_seed(0)
    ours = Resnetish(16, (1, 2, 1, 1)).eval()
    config = transformers.ResNetConfig(
        num_channels=1, embedding_size=16, hidden_sizes=[64, 128, 256, 512], depths=[1, 2, 1, 1]
    )
    theirs = transformers.ResNetModel(config).eval()
    theirs.embedder.embedder.convolution.stride = (1, 1)
    norms = [module for module in ours.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        for value in (norm.weight, norm.bias, norm.running_mean):
            value.data.normal_()
        norm.running_var.uniform_(0.5, 2)

    def copy(target, convolution, norm):
        target.convolution.load_state_dict(convolution.state_dict())
        target.normalization.load_state_dict(norm.state_dict())

    copy(theirs.embedder.embedder, ours.stem, ours.stem_norm)
    layers = [layer for stage in theirs.encoder.stages for layer in stage.layers]
    for block, layer in zip(ours.blocks, layers, strict=True):
        copy(layer.layer[0], block.reduce, block.reduce_norm)
        copy(layer.layer[1], block.spread, block.spread_norm)
        copy(layer.layer[2], block.expand, block.expand_norm)
        if isinstance(block.shortcut, nn.Sequential):
            copy(layer.shortcut, *block.shortcut)
    inner = []
    layers[-1].layer[1].normalization.register_forward_hook(lambda _, __, out: inner.append(out))
    x = torch.randn(2, 1, 96, 64)
    with torch.no_grad():
        found = ours(x)
        wanted = theirs(x).last_hidden_state
    torch.testing.assert_close(found[0][-1], wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1], inner[0], rtol=1e-4, atol=1e-4)
    assert found[1].shape == (2, 128, 6, 4)
    assert [stage.shape[1] for stage in found[0]] == ours.channels == [16, 64, 128, 256, 512]


def plain_resnetish(network: Resnetish, x: Tensor) -> tuple[list[Tensor], Tensor]:
    """What `network` computes, nothing of it in place."""
    x = nn.functional.max_pool2d(network.stem_norm(network.stem(x)).relu(), 3, 2, 1)
    stages, inner = [x], x
    for number, block in enumerate(network.blocks, 1):
        inner = block.spread_norm(block.spread(block.reduce_norm(block.reduce(x)).relu()))
        x = (block.expand_norm(block.expand(inner.relu())) + block.shortcut(x)).relu()
        if number in network.ends:
            stages.append(x)
    return stages, inner


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_working_in_place_changes_neither_outputs_nor_gradients(dtype):
    torch.manual_seed(0)
    network = Resnetish(8, (1, 2, 1, 1)).to(memory_format=torch.channels_last)
    for norm in (module for module in network.modules() if isinstance(module, nn.GroupNorm)):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = torch.randn(3, 1, 40, 32)
    found = []
    for run in (network, lambda x: plain_resnetish(network, x)):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            stages, inner = run(x)
        outputs = [*stages, inner]
        assert {output.dtype for output in outputs} == {dtype}
        sum((output.float() * torch.linspace(-1, 1, output.shape[3])).sum() for output in outputs).backward()
        found.append([*outputs, *(weight.grad.clone() for weight in network.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("config", [small(), TrillConfig(**STUDENT)], ids=["resnetish", "mobilenet"])
def test_a_clip_alone_is_the_same_in_a_batch_and_in_stretches(config):
    torch.manual_seed(0)
    encoder = Trill(config).eval()
    batch = batch_of(2.3, 0.03, 1.2, 12.9)
    with torch.no_grad():
        together = encoder(batch.waveforms, batch.lengths)
        for row, samples in enumerate(batch.lengths.tolist()):
            alone = encoder(batch.waveforms[row : row + 1, :samples], batch.lengths[row : row + 1])
            count = int(alone.lengths[0])
            assert together.lengths[row] == count
            for one, many in zip(alone.hidden_states, together.hidden_states, strict=True):
                torch.testing.assert_close(one[0, :count], many[row, :count], atol=1e-4, rtol=1e-4)
        pieces: dict[int, list[Tensor]] = {}
        for rows, frames in encoder.stretches(batch.waveforms, batch.lengths):
            assert frames.hidden_states[0].shape[1] <= 64
            pieces.setdefault(int(rows[0]), []).append(frames.hidden_states[-1][0])
        assert len(pieces[3]) > 1
        for row, parts in pieces.items():
            whole = together.hidden_states[-1][row, : int(together.lengths[row])]
            torch.testing.assert_close(torch.cat(parts), whole, atol=1e-4, rtol=1e-4)


def test_patches_of_padding_are_not_computed():
    encoder = Trill(small()).eval()
    computed = []
    encoder.network.register_forward_pre_hook(lambda _, inputs: computed.append(len(inputs[0])))
    batch = batch_of(3.0, 0.5, 1.3)
    frames = encoder(batch.waveforms, batch.lengths)
    assert frames.lengths.tolist() == [1 + (298 - 96) // 17, 1, 1 + (128 - 96) // 17]
    assert sum(computed) == int(frames.lengths.sum()) < frames.lengths.numel() * int(frames.lengths.max())
    assert encoder(torch.zeros(1, 0), torch.tensor([0])).lengths.tolist() == [0]


def test_a_patch_depends_on_no_other_in_training_either():
    torch.manual_seed(0)
    encoder = Trill(small()).train()
    waveforms = torch.randn(4, 16000)
    lengths = torch.full((4,), 16000)
    with torch.no_grad():
        torch.testing.assert_close(
            encoder(waveforms, lengths).hidden_states[-1][:1],
            encoder(waveforms[:1], lengths[:1]).hidden_states[-1],
            atol=1e-5,
            rtol=1e-4,
        )


def test_early_layers_are_means_over_time_in_four_bands():
    torch.manual_seed(0)
    encoder = Trill(small()).eval()
    waveforms, lengths = torch.randn(1, 16000), torch.tensor([16000])
    with torch.no_grad():
        states = encoder(waveforms, lengths).hidden_states
        stages, inner = encoder.network(encoder.features(waveforms, lengths)[0][:, None, :96])
    for stage, state in zip(stages, states[:4], strict=False):  # (1, C, T, F)
        bands = stage[0].unflatten(2, (4, -1)).mean((1, 3))  # (C, 4)
        torch.testing.assert_close(state[0, 0], bands.T.flatten(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(states[4][0, 0], inner[0].permute(1, 2, 0).flatten(), atol=1e-4, rtol=1e-4)


def test_outputs_have_names_everywhere(tmp_path, capsys):
    torch.manual_seed(0)
    encoder = Trill(small()).eval()
    save(encoder, tmp_path / "run", seed=0)
    waveform = batch_of(2.0).waveforms[0].numpy()
    loaded = load(tmp_path / "run")
    for name, dim in (("layer19", 6 * 4 * 64), ("embedding", 24)):
        frames = loaded.frames(waveform, RATE, layers=name)
        assert frames.shape == (7, dim)
        torch.testing.assert_close(frames, encoder.frames(waveform, RATE, layers=[encoder.outputs[name]])[0])
        torch.testing.assert_close(loaded.clip(waveform, RATE, layers=name), frames.mean(0), atol=1e-5, rtol=1e-4)
    with pytest.raises(ConfigError, match="did you mean 'layer19'"):
        loaded.clip(waveform, RATE, layers="layer9")
    (tmp_path / "audio").mkdir()
    soundfile.write(tmp_path / "audio/a.wav", waveform, RATE)
    command = ["embed", str(tmp_path / "run"), "--data", str(tmp_path / "audio"), "--output"]
    assert cli.main([*command, str(tmp_path / "e"), "--layers", "layer19"]) == 0
    assert cli.main([*command, str(tmp_path / "f"), "--layers", "leyer19"]) == 2
    assert "did you mean 'layer19'" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ triplets


def brute_force(z: np.ndarray, clips: list[int], margin: float) -> list[dict]:
    """Each anchor's triplet, by looking at all of them."""
    distance = [[float(((a - b) ** 2).sum()) for b in z] for a in z]
    out = []
    for a in range(len(z)):
        (p,) = [i for i in range(len(z)) if clips[i] == clips[a] and i != a]
        negatives = [i for i in range(len(z)) if clips[i] != clips[a]]
        farther = [n for n in negatives if distance[a][n] > distance[a][p]]
        n = min(farther or negatives, key=lambda n: distance[a][n])
        won = [1.0 if distance[a][k] > distance[a][p] else 0.5 * (distance[a][k] == distance[a][p]) for k in negatives]
        loss = max(0.0, distance[a][p] - distance[a][n] + margin)
        out.append({"loss": loss, "n": n, "fallback": not farther, "accuracy": sum(won) / len(won)})
    return out


@settings(max_examples=12)
@given(st.integers(2, 5), st.integers(1, 4), st.integers(0, 2**16), st.floats(0.1, 3))
def test_mining_is_brute_force(clips, dim, seed, noise):
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((clips, dim))
    z = np.concatenate([centres, centres + noise * rng.standard_normal((clips, dim))])
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    distances = torch.tensor([[((a - b) ** 2).sum() for b in z] for a in z])
    numbers = list(range(clips)) * 2
    triplets = mine(distances, torch.tensor(numbers))
    wanted = brute_force(z, numbers, 0.1)
    assert triplets.mined.tolist() == [w["n"] for w in wanted]
    assert triplets.is_fallback.tolist() == [w["fallback"] for w in wanted]
    assert triplets.usable.all()
    losses = (triplets.positive - triplets.negative + 0.1).relu()
    np.testing.assert_allclose(losses.numpy(), [w["loss"] for w in wanted], atol=1e-12)
    np.testing.assert_allclose(triplets.accuracy.numpy(), [w["accuracy"] for w in wanted], atol=1e-6)
    torch.testing.assert_close(squared_distances(torch.tensor(z), torch.tensor(z)), distances, atol=1e-6, rtol=0)


def test_the_loss_is_brute_force_over_the_windows(monkeypatch):
    torch.manual_seed(0)
    model = edit(preset("trill_tiny"), encoder=SMALL).build().eval()
    batch, cut = batch_of(3.0, 1.3, 2.0, 2.5, 1.4), []
    monkeypatch.setattr(trill, "cut_windows", lambda *args: cut.append(original(*args)) or cut[-1])
    with torch.no_grad():
        step = model(batch)
        rows = [model.encoder.clip(window.numpy(), RATE, layers="embedding") for window in cut[0]]
    z = torch.stack(rows).double().numpy()
    wanted = brute_force(z / np.linalg.norm(z, axis=1, keepdims=True), [*range(5)] * 2, 0.1)
    assert step.count == 10
    assert float(step.loss) == pytest.approx(np.mean([w["loss"] for w in wanted]), abs=1e-5)
    assert float(step.metrics["fallback"]) == pytest.approx(np.mean([w["fallback"] for w in wanted]))
    assert float(step.metrics["accuracy"]) == pytest.approx(np.mean([w["accuracy"] for w in wanted]), abs=1e-6)
    spectra = np.stack([reference_patches(window.numpy())[0].mean(0) for window in cut[0]])
    plain = np.mean([w["accuracy"] for w in brute_force(spectra, [*range(5)] * 2, 0.1)])
    assert float(step.metrics["accuracy_log_mel"]) == pytest.approx(plain, abs=1e-6)
    assert float(step.metrics["trivial"]) == pytest.approx(0.1)


original = trill.cut_windows


def test_a_clip_alone_has_no_say():
    model = edit(preset("trill_tiny"), encoder=SMALL).build().train()
    step = model(batch_of(2.0))
    assert (step.loss, step.count) == (0, 0)
    step.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@given(st.lists(st.integers(1, 500), min_size=1, max_size=5), st.integers(0, 99))
def test_windows_lie_in_their_clip_apart_if_they_can(lengths, seed):
    size = 100
    torch.manual_seed(seed)
    waveforms = torch.zeros(len(lengths), max(lengths))
    for row, length in enumerate(lengths):
        waveforms[row, :length] = torch.arange(1.0, length + 1) + 1000 * row
    windows = original(waveforms, torch.tensor(lengths), size)
    assert windows.shape == (2 * len(lengths), size)
    for row, length in enumerate(lengths):
        first, second = windows[row], windows[len(lengths) + row]
        starts = [int(window[0]) - 1 - 1000 * row for window in (first, second)]
        for start, window in zip(starts, (first, second), strict=True):
            expected = torch.zeros(size)
            held = min(size, length - start)
            expected[:held] = torch.arange(start + 1.0, start + held + 1) + 1000 * row
            assert torch.equal(window, expected)
        slack = max(0, length - size)
        assert 0 <= starts[0] <= starts[1] <= slack
        assert starts[1] - starts[0] >= min(slack, size)


def test_windows_may_lie_anywhere():
    torch.manual_seed(0)
    waveforms = torch.arange(1.0, 301).expand(4000, 300)
    starts = original(waveforms, torch.full((4000,), 300), 100)[:, 0].view(2, -1) - 1
    assert (starts.amin(), starts.amax()) == (0, 200)
    assert starts[0].mean() == pytest.approx(100 / 3, abs=2)  # the lesser of two in 0..100
    assert (starts[1] - starts[0]).mean() == pytest.approx(100 + 100 / 3, abs=2)


def test_collapse_shows_and_alarms():
    """A network that says the same of everything loses the margin, and the alarm rings."""
    torch.manual_seed(0)
    model = edit(preset("trill_tiny"), encoder=SMALL).build()
    batches = [noted(12, seed=0)]
    monitor = health.Monitor()

    def measured() -> tuple[health.Measurement, dict[str, str]]:
        found = health.measure(model, batches, 0, lambda: torch.autocast("cpu", enabled=False))
        return found, monitor.check(found.vitals(0.6, {}, 0.0, 1.0, 0.0))

    assert not measured()[1]
    with torch.no_grad():
        model.encoder.project.weight.zero_()
        model.encoder.project.bias.fill_(1.0)
    found, alarms = measured()
    assert found.values["loss"] == found.values["trivial"] == pytest.approx(0.1)
    assert found.values["accuracy"] == 0.5
    assert (found.values["fallback"], found.values["active"]) == (1, 1)
    assert found.values["embedding_std"] == pytest.approx(0, abs=1e-7)
    assert {"trivial", "collapse of layer 5"} <= set(alarms)


def test_gradients_reach_every_parameter():
    torch.manual_seed(0)
    model = edit(preset("trill_tiny"), encoder=SMALL).build().train()
    step = model(noted(6, seed=0))
    assert "accuracy" not in step.metrics
    step.loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_bfloat16_follows_float32():
    torch.manual_seed(0)
    model = edit(preset("trill_tiny"), encoder=SMALL).build().train()
    batch = noted(6, seed=0)
    torch.manual_seed(1)
    exact = model(batch).loss
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        step = model(batch)
    assert step.loss.dtype == torch.float32
    assert step.loss.item() == pytest.approx(exact.item(), rel=0.05)


def test_training_tells_unheard_clips_apart():
    torch.manual_seed(0)
    model = edit(preset("trill_tiny"), encoder=SMALL).build()
    held_out = learn(model, noted, 30, 3e-3)
    assert held_out.loss < 0.5 * held_out.metrics["trivial"]
    assert held_out.metrics["accuracy"] > max(0.95, float(held_out.metrics["accuracy_log_mel"]))


def test_pictures_are_of_a_triplet():
    model = edit(preset("trill_tiny"), encoder=SMALL).build().eval()
    pictures = model.visualize(batch_of(2.0, 1.5, 3.0))
    assert list(pictures) == ["anchor", "positive", "negative"]
    assert all(picture.shape == (96, 64) and picture.isfinite().all() for picture in pictures.values())


# ------------------------------------------------------------------------------------------ several processes


def part_of_the_loss(rank: int, folder: str, sizes: list[int]) -> None:
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=len(sizes))
    z = planted(sizes)[rank].requires_grad_()
    model = edit(preset("trill_tiny"), encoder=SMALL).build().train()
    triplets = model._mine(nn.functional.normalize(z))
    (triplets.positive - triplets.negative + 0.1).relu().sum().backward()
    torch.save([z.grad, triplets.accuracy], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def planted(sizes: list[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2 * size, 4, generator=generator) for size in sizes]


@pytest.mark.slow
def test_processes_mine_in_the_batch_of_all(tmp_path):
    sizes = [3, 5]
    torch.multiprocessing.spawn(part_of_the_loss, (str(tmp_path), sizes), nprocs=len(sizes))
    parts = planted(sizes)
    whole = [part.clone().requires_grad_() for part in parts]
    z = nn.functional.normalize(torch.cat(whole)).double()
    numbers = [0, 1, 2] * 2 + [3, 4, 5, 6, 7] * 2
    wanted = brute_force(z.detach().numpy(), numbers, 0.1)
    total = torch.zeros((), dtype=torch.float64)
    for a, (number, found) in enumerate(zip(numbers, wanted, strict=True)):
        p = next(i for i, other in enumerate(numbers) if other == number and i != a)
        total = total + ((z[a] - z[p]).square().sum() - (z[a] - z[found["n"]]).square().sum() + 0.1).relu()
    total.backward()
    accuracies = []
    for rank, part in enumerate(whole):
        gradient, accuracy = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(gradient, part.grad, atol=1e-5, rtol=1e-4)
        accuracies += accuracy.tolist()
    np.testing.assert_allclose(accuracies, [w["accuracy"] for w in wanted], atol=1e-6)


def test_one_process_gathers_itself():
    x = torch.randn(3, 2)
    assert gather_rows(x) == ([x], 0)


# ---------------------------------------------------------------------------------------------- distillation


def student_run(**changes: object) -> TrillDistilledRun:
    teacher = SMALL | {"patch_hop": 17}
    run = edit(preset("trill_distilled_tiny"), encoder=STUDENT, objective={"teacher_encoder": teacher})
    return edit(run, **changes)  # type: ignore[return-value]


@pytest.fixture
def teacher(tmp_path):
    torch.manual_seed(7)
    encoder = Trill(small())
    save(encoder, tmp_path / "teacher", seed=7)
    return tmp_path / "teacher", encoder.eval()


def test_students_regress_to_layer19(teacher):
    folder, encoder = teacher
    torch.manual_seed(0)
    model = student_run(objective={"teacher": str(folder), "crop_s": 2.0}).build()
    model.prepare([])
    batch = batch_of(0.4, 1.7, 1.0)
    step = model.train()(batch)
    step.loss.backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in model.encoder.parameters())
    assert all(weight.grad is None for weight in model.teacher.parameters())
    with torch.no_grad():
        held_out = model.eval()(batch)
        wanted, guess = [], []
        for waveform, length in zip(batch.waveforms, batch.lengths, strict=True):
            clip = waveform[:length].numpy()
            wanted.append(encoder.frames(clip, RATE, layers="layer19"))
            guess.append(model.head(model.encoder.frames(clip, RATE)))
    wanted, guess = torch.cat(wanted).double(), torch.cat(guess).double()
    assert held_out.count == len(wanted) == 1 + 5 + 1
    assert float(held_out.loss) == pytest.approx(float((guess - wanted).square().mean()), rel=1e-4)
    assert step.loss.item() == pytest.approx(held_out.loss.item(), rel=1e-4)
    assert float(held_out.metrics["trivial"]) == pytest.approx(float(wanted.var(0, correction=0).mean()), rel=1e-4)
    pictures = model.visualize(batch)
    assert pictures["teacher"].shape == pictures["student"].shape == (6, 4 * 64)
    torch.testing.assert_close(pictures["teacher"].flatten(), wanted[0].float(), atol=1e-4, rtol=1e-4)


def test_a_teacher_that_does_not_fit_is_refused(teacher):
    folder, _ = teacher
    with pytest.raises(ConfigError, match=r"objective\.teacher: missing"):
        student_run().check_ready()
    with pytest.raises(ConfigError, match=r"objective\.teacher_encoder"):
        student_run(objective={"teacher": str(folder), "teacher_encoder": {"width": 16}}).build().prepare([])
    with pytest.raises(CheckpointError, match="holds neither"):
        student_run(objective={"teacher": str(folder.parent)}).build().prepare([])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "trill", "encoder": {"patch_frames": 200}}, "min_samples: 16000 is shorter than a patch of 32240"),
        ({"method": "trill", "encoder": {"blocks": [1, 1, 0, 1]}}, "blocks"),
        ({"method": "trill", "encoder": {"network": "mobilnet"}}, "'resnetish' or 'mobilenet'"),
        ({"method": "trill", "objective": {"marigin": 1}}, "did you mean 'margin'|objective.margin"),
        ({"method": "trill_distilled", "encoder": {"patch_hop": 96}}, "encoder.patch_hop: student and teacher"),
        ({"method": "trill_distilled", "objective": {"teacher_encoder": {"network": "mobilenet"}}}, "layer19"),
    ],
)
def test_bad_yaml_is_refused_in_one_line(values, message):
    with pytest.raises(ConfigError, match=message) as error:
        run_from_yaml(values, "config.yaml")
    assert "\n" not in str(error.value)


def test_a_distilled_run_goes_on_without_its_teachers_folder(teacher, tmp_path):
    """Bit for bit, since the teacher is in the checkpoint."""
    folder, _ = teacher
    (tmp_path / "audio").mkdir()
    for i, clip in enumerate(batch_of(*[1.0 + 0.05 * i for i in range(10)]).waveforms):
        soundfile.write(tmp_path / f"audio/{i}.wav", clip.numpy(), RATE)
    train = {"steps": 6, "valid_every": 6, "checkpoint_every": 3, "log_every": 3, "precision": "fp32", "device": "cpu"}
    run = student_run(objective={"teacher": str(folder)}, data={"batch_seconds": 4.0}, train=train)
    pretrain(run, [tmp_path / "audio"], tmp_path / "whole", progress=False)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut/checkpoints/step-00000006")
    shutil.rmtree(folder)
    resume(tmp_path / "cut", progress=False)
    for name in ("model.safetensors", "objective.safetensors", "optimizer.safetensors"):
        whole, cut = (tmp_path / run / "checkpoints/step-00000006" / name for run in ("whole", "cut"))
        assert whole.read_bytes() == cut.read_bytes()
    student = load(tmp_path / "whole")
    assert student.clip(tmp_path / "audio/0.wav").shape == (16,)
