from __future__ import annotations

import math

import kaldi_native_fbank
import numpy as np
import pytest
import torch
from tiny import learn, loads_as_saved
from torch import Tensor, nn
from torch.nn import functional as F

from auricle.config import edit
from auricle.data.batching import Batch
from auricle.encoders.vit import Vit, VitConfig
from auricle.errors import ConfigError
from auricle.methods import preset, run_from_yaml
from auricle.methods.audio_mae import AudioMae, AudioMaeRun
from auricle.nn.patches import Tokens, patchify

ENCODER = {"dim": 32, "heads": 4, "ffn": 64, "layers": 2, "front_end": {"n_mels": 64}}
DECODER = {"decoder_dim": 16, "decoder_layers": 2, "decoder_heads": 4}


def small(name: str = "audio_mae_base", encoder: dict | None = None, **objective: object) -> AudioMaeRun:
    """A preset at toy size."""
    run = edit(preset(name), encoder=ENCODER, objective=DECODER)
    return edit(run, encoder=encoder or {}, objective=objective)  # type: ignore[return-value]


def vit(**changes: object) -> Vit:
    """A small encoder."""
    return Vit(edit(edit(VitConfig(), **ENCODER), **changes)).eval()


def batch_of(*seconds: float, seed: int = 0) -> Batch:
    """Clips of noise, padded with zeros."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([int(16000 * s) for s in seconds])
    waveforms = 0.05 * torch.randn(len(seconds), int(lengths.max()), generator=generator)
    waveforms *= torch.arange(waveforms.shape[1]) < lengths[:, None]
    return Batch(waveforms, lengths, [str(i) for i in range(len(seconds))], torch.zeros(len(seconds)))


CASES = {
    "local": small(),
    "global": small("audio_mae_base_global"),
    "time": small(masking="time"),
    "frequency": small(masking="frequency"),
    "both, plain target": small("audio_mae_base_global", masking="time+frequency", normalize_target=False),
    "released": small("audio_mae_released", {"fixed_frames": 256, "chunk_frames": 256}, crop_s=2.0),
    "patches of 8 x 16": small("audio_mae_base", {"patch_frames": 8, "join": "concat"}),
    "patches of 4 x 64": small("audio_mae_tiny"),
}


def attend(block, x: Tensor) -> Tensor:
    """Plain self-attention of one clip's tokens (N, D)."""
    parts = block.qkv(x).view(len(x), 3, block.heads, -1).permute(1, 2, 0, 3)
    q, k, v = parts  # (heads, N, d)
    weights = (q @ k.transpose(1, 2) / math.sqrt(q.shape[2])).softmax(-1)
    return block.attention_out((weights @ v).transpose(0, 1).flatten(1))


def transformer(stack, x: Tensor) -> Tensor:
    for block in stack.blocks:
        x = x + attend(block, block.attention_norm(x))
        x = x + block.ffn_out(F.gelu(block.ffn_in(block.ffn_norm(x))))
    return stack.final_norm(x)


def reference(model: AudioMae, x: Tensor, steps: list[int], seen: list[list[int]]) -> tuple[Tensor, int]:
    """The loss a second way, in float64: clip by clip, all patches projected, decoded and predicted, then chosen."""
    encoder, config = model.encoder, model.config
    height, (length, mels) = encoder.config.bands, encoder.config.patch
    errors = []
    for clip, visible in enumerate(seen):
        total = steps[clip] * height
        patches = torch.stack(
            [
                x[clip, k // height * length :, k % height * mels :][:length, :mels].flatten()
                for k in range(total)
            ]
        )  # fmt: skip
        tokens = encoder.project(patches) + encoder.positions.table[:total]
        latent = model.embed(transformer(encoder.transformer, torch.cat([encoder.class_token[0], tokens[visible]])))
        everything = [latent[1:][visible.index(k)] if k in visible else model.mask_token[0, 0] for k in range(total)]
        decoded = torch.stack(everything) + model.positions.table[:total]
        if config.decoder == "local":
            decoded = model.decoder(decoded[None], torch.tensor([steps[clip]]))[0]  # itself tested in test_patches
        else:
            decoded = transformer(model.decoder, torch.cat([latent[:1], decoded]))[1:]
        target = patches
        if config.normalize_target:
            target = (patches - patches.mean(1, True)) / (patches.var(1, keepdim=True) + 1e-6).sqrt()
        hidden = [k for k in range(total) if k not in visible]
        errors.append((model.predict(decoded) - target)[hidden].square().flatten())
    return torch.cat(errors).mean(), sum(map(len, errors))


def drawn(model: AudioMae, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tokens, Tokens]]:
    """The tokens that `model` draws from now on."""
    draw, results = model._draw, []

    def spy(steps, x):
        results.append(draw(steps, x))
        return results[-1]

    monkeypatch.setattr(model, "_draw", spy)
    return results


@pytest.mark.parametrize("run", CASES.values(), ids=CASES)
def test_loss_is_the_reference(run, monkeypatch):
    torch.manual_seed(0)
    model = run.build().eval()
    batch, tokens = batch_of(1.5, 1.0, 0.5), drawn(model, monkeypatch)
    with torch.no_grad():
        step = model(batch)
        x, lengths = model.encoder.features(batch.waveforms, batch.lengths)
        steps = model.encoder.seen_steps(lengths).tolist()
        visible = tokens[0][0]
        seen = [row[:count].tolist() for row, count in zip(visible.index, visible.counts.tolist(), strict=True)]
        loss, count = reference(model.double(), x.double(), steps, seen)
    assert step.count == count > 0
    torch.testing.assert_close(step.loss.double(), loss, atol=1e-5, rtol=1e-5)


def test_global_decoder_is_transformers_vit_mae():
    """ViTMAE of Hugging Face with our weights, on a picture of 8 x 4 patches, under the same noise."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    torch.manual_seed(0)
    model = small("audio_mae_base_global", mask_ratio=0.75).build().eval()
    theirs = ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0, layer_norm_eps=1e-6, image_size=128, patch_size=16, num_channels=1,
            qkv_bias=True, decoder_num_attention_heads=4, decoder_hidden_size=16, decoder_num_hidden_layers=2,
            decoder_intermediate_size=64, mask_ratio=0.75,
        )
    ).eval()  # fmt: skip
    theirs.vit.embeddings.image_size = (128, 64)  # it is built for square pictures only
    theirs.vit.embeddings.position_embeddings = nn.Parameter(torch.zeros(1, 33, 32))
    theirs.decoder.decoder_pos_embed = nn.Parameter(torch.zeros(1, 33, 16))
    weights = {
        "vit.embeddings.cls_token": model.encoder.class_token,
        "vit.embeddings.position_embeddings": F.pad(model.encoder.positions(32), (0, 0, 1, 0))[None],
        "vit.embeddings.patch_embeddings.projection.weight": model.encoder.project.weight.view(32, 1, 16, 16),
        "vit.embeddings.patch_embeddings.projection.bias": model.encoder.project.bias,
        "decoder.mask_token": model.mask_token,
        "decoder.decoder_pos_embed": F.pad(model.positions(32), (0, 0, 1, 0))[None],
    }
    layers = {"vit.layers": model.encoder.transformer, "decoder.decoder_layers": model.decoder}
    linear = {"vit.layernorm": model.encoder.transformer.final_norm, "decoder.decoder_norm": model.decoder.final_norm}
    linear |= {"decoder.decoder_embed": model.embed, "decoder.decoder_pred": model.predict}
    for prefix, stack in layers.items():
        for number, block in enumerate(stack.blocks):
            own = f"{prefix}.{number}"
            q, k, v = zip(block.qkv.weight.chunk(3), block.qkv.bias.chunk(3), strict=True)
            for name, (weight, bias) in {"q": q, "k": k, "v": v}.items():
                weights |= {f"{own}.attention.{name}_proj.weight": weight, f"{own}.attention.{name}_proj.bias": bias}
            linear |= {
                f"{own}.attention.o_proj": block.attention_out,
                f"{own}.layernorm_before": block.attention_norm,
                f"{own}.layernorm_after": block.ffn_norm,
                f"{own}.mlp.fc1": block.ffn_in,
                f"{own}.mlp.fc2": block.ffn_out,
            }
    for name, part in linear.items():
        weights |= {f"{name}.weight": part.weight, f"{name}.bias": part.bias}
    theirs.load_state_dict(weights)

    x, noise = torch.randn(3, 128, 64), torch.rand(3, 32)
    order = noise.argsort(1)
    visible = Tokens(order[:, :8].sort(1).values, torch.full((3,), 8))
    hidden = Tokens(order[:, 8:].sort(1).values, torch.full((3,), 24))
    model.encoder.features = lambda *_: (x, torch.full((3,), 128))  # type: ignore[method-assign]
    model._draw = lambda *_: (visible, hidden)  # type: ignore[method-assign]
    with torch.no_grad():
        seen = theirs.vit(x[:, None], noise=noise)
        prediction = theirs.decoder(seen.last_hidden_state, seen.ids_restore).logits
        patches = theirs.patchify(x[:, None], interpolate_pos_encoding=True)
        target = (patches - patches.mean(-1, True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
        wanted = ((prediction - target).square().mean(-1) * seen.mask).sum() / seen.mask.sum()
        torch.testing.assert_close(model(batch_of(1.0)).loss, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("run", CASES.values(), ids=CASES)
def test_gradients_reach_every_parameter(run):
    torch.manual_seed(0)
    model = run.build().train()
    step = model(batch_of(1.5, 1.0))
    assert not step.metrics
    step.loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def sizes(run: AudioMaeRun) -> tuple[int, int]:
    """Parameters of encoder and decoder, from models of one and two layers."""
    found = []
    for layers in (1, 2):
        model = edit(run, encoder={"layers": layers}, objective={"decoder_layers": layers}).build()
        encoder = sum(p.numel() for p in model.encoder.parameters())
        found.append((encoder, sum(p.numel() for p in model.parameters()) - encoder))
    depths = run.encoder.layers, run.objective.decoder_layers
    encoder, decoder = (a + (b - a) * (n - 1) for a, b, n in zip(*found, depths, strict=True))
    return encoder, decoder


@pytest.mark.parametrize(
    ("name", "encoder", "decoder"),
    [
        ("audio_mae_small", 21_393_408, None),
        ("audio_mae_base", 85_659_407 - (768 * 527 + 527), 51.1e6),  # 85.66 M with AudioSet's head
        ("audio_mae_large", 302_575_616, 51.2e6),
        ("audio_mae_base_global", 85_254_144, 25_746_688),
    ],
)
def test_sizes_are_the_originals(name, encoder, decoder):
    found = sizes(preset(name))
    assert found[0] == encoder
    assert decoder is None or found[1] == pytest.approx(decoder, abs=0.05e6)


def test_features_are_kaldis_scaled():
    batch, encoder = batch_of(0.5), vit(front_end={"n_mels": 128})
    x, lengths = encoder.features(batch.waveforms, batch.lengths)
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither, options.frame_opts.window_type = 0.0, "hanning"
    options.mel_opts.num_bins = 128
    fbank = kaldi_native_fbank.OnlineFbank(options)
    wave = batch.waveforms[0] - batch.waveforms[0].mean()  # as the original does, to no effect
    fbank.accept_waveform(16000, wave.tolist())
    wanted = np.stack([fbank.get_frame(i) for i in range(fbank.num_frames_ready)])
    assert lengths.tolist() == [48] == [len(wanted)]
    np.testing.assert_allclose(x[0, :48], (wanted + 4.2677393) / (2 * 4.5689974), atol=2e-3)


def test_padding_is_silent_or_loud():
    batch = batch_of(0.62, 0.3)  # 60 and 28 frames
    for fixed, frames, level in ((None, 64, -1.2777), (100, 112, 0.4670)):
        encoder = vit(fixed_frames=fixed)
        x, lengths = encoder.features(batch.waveforms, batch.lengths)
        assert lengths.tolist() == [60, 28]
        assert x.shape == (2, frames, 64)
        for row, length in enumerate(lengths.tolist()):
            assert x[row, length:].unique().item() == pytest.approx(level, abs=1e-3)
    silence = encoder.front_end(torch.zeros(1, 8000), torch.tensor([8000]))[0]
    assert (silence[0, 0, 0].item() - encoder.config.mean) / (2 * encoder.config.std) == pytest.approx(
        -1.2777, abs=1e-3
    )


INVARIANT = {
    "grid": {"chunk_frames": 64},
    "concat": {"chunk_frames": 64, "join": "concat"},
    "audiomae": {"chunk_frames": 64, "positions": "audiomae"},
    "fixed": {"chunk_frames": 128, "fixed_frames": 128, "final_norm": False},
}


@pytest.mark.parametrize("changes", INVARIANT.values(), ids=INVARIANT)
def test_a_clip_alone_is_the_same_in_a_batch(changes):
    torch.manual_seed(0)
    model = vit(**changes)
    assert model.hop == 2560
    assert model.offset == 1400  # frames 0 to 15, of which the first fills samples 0 to 399
    batch = batch_of(2.9, 0.03, 0.9, 0.61, 0.01)
    with torch.no_grad():
        together = model(batch.waveforms, batch.lengths)
        for row, samples in enumerate(batch.lengths.tolist()):
            waveform, length = batch.waveforms[row : row + 1, :samples], batch.lengths[row : row + 1]
            alone = model(waveform, length)
            count = int(alone.lengths[0])
            assert together.lengths[row] == count == math.ceil(max(0, 1 + (samples - 400) // 160) / 16)
            assert [state.shape[2] for state in alone.hidden_states] == list(model.dims)
            parts = [
                frames.hidden_states[-1][0, : int(frames.lengths[0])] for _, frames in model.stretches(waveform, length)
            ]
            torch.testing.assert_close(torch.cat(parts), alone.hidden_states[-1][0, :count], atol=1e-5, rtol=0)
            for one, many in zip(alone.hidden_states, together.hidden_states, strict=True):
                torch.testing.assert_close(one[0, :count], many[row, :count], atol=1e-4, rtol=0)


def test_frames_are_means_over_frequency():
    torch.manual_seed(0)
    mean = vit()
    every = vit(join="concat")
    every.load_state_dict(mean.state_dict())
    batch = batch_of(0.7)
    with torch.no_grad():
        one, many = (model(batch.waveforms, batch.lengths, layers=[2]).hidden_states[0] for model in (mean, every))
    torch.testing.assert_close(one, many.view(1, 5, 4, 32).mean(2))


def test_visible_patches_are_computed_alone():
    torch.manual_seed(0)
    model = vit(join="concat")
    batch = batch_of(0.7, 0.5)
    with torch.no_grad():
        x, lengths = model.features(batch.waveforms, batch.lengths)
        every = Tokens(torch.arange(20).expand(2, 20), torch.tensor([20, 12]))
        whole, all_visible = model.encode(x, lengths), model.encode(x, lengths, visible=every)
        for a, b in zip(whole.hidden_states, all_visible.hidden_states, strict=True):
            torch.testing.assert_close(a.view(2, 20, 32)[0], b[0], atol=1e-5, rtol=0)
            torch.testing.assert_close(a.view(2, 20, 32)[1, :12], b[1, :12], atol=1e-5, rtol=0)
        some = Tokens(torch.tensor([[3, 7, 11], [2, 5, 0]]), torch.tensor([3, 2]))
        few = model.encode(x, lengths, visible=some, layers=[2]).hidden_states[0]
        changed = x.clone()
        steps = patchify(torch.arange(80.0 * 64).view(1, 80, 64))[0]
        unseen = [k for k in range(20) if k not in (3, 7, 11)]
        changed[0].view(-1)[steps[unseen].flatten().long()] = math.nan
        again = model.encode(changed, lengths, visible=some, layers=[2]).hidden_states[0]
        assert torch.equal(few[0, :3], again[0, :3])
        assert not torch.equal(few[0, 0], all_visible.hidden_states[2][0, 3])


def test_masks_hide_steps_and_bands():
    x, steps = torch.zeros(2, 10 * 16, 64), torch.tensor([10, 5])
    for masking in ("random", "time", "frequency", "time+frequency"):
        torch.manual_seed(0)
        visible, hidden = small(masking=masking).build()._draw(steps, x)
        for row, total in enumerate((40, 20)):
            seen = visible.index[row, : visible.counts[row]].tolist()
            missing = hidden.index[row, : hidden.counts[row]].tolist()
            assert sorted(seen + missing) == list(range(total))
            in_time, in_frequency = {k // 4 for k in seen}, {k % 4 for k in seen}
            if masking == "random":
                assert len(seen) == int(total * (1 - 0.8))
                continue
            assert len(in_time) == (int(total / 4 * (1 - 0.7)) if "time" in masking else total / 4)
            assert len(in_frequency) == (int(4 * (1 - 0.3)) if "frequency" in masking else 4)
            assert len(seen) == len(in_time) * len(in_frequency)


def test_trivial_level():
    torch.manual_seed(0)
    model = small(mask_ratio=0.5).build().eval()
    trivial = lambda batch: model(batch).metrics["trivial"].item()  # noqa: E731
    assert trivial(batch_of(1.975)) == pytest.approx(255 / 256, abs=1e-3)  # 196 frames: four of the last patches' lack
    silent = Batch(torch.zeros(1, 16000), torch.tensor([16000]), ["a"], torch.zeros(1))
    assert trivial(silent) == 0
    loud = small("audio_mae_released", {"fixed_frames": 256, "chunk_frames": 256}, crop_s=2.0).build().eval()
    torch.manual_seed(0)
    assert loud(batch_of(0.5)).metrics["trivial"].item() < 0.4  # most of what is hidden is the constant padding
    plain = small(mask_ratio=0.5, normalize_target=False).build().eval()
    plain.encoder.features = lambda *_: (torch.full((1, 64, 64), 3.0), torch.tensor([64]))  # type: ignore[method-assign]
    assert plain(batch_of(0.6)).metrics["trivial"] == 9.0


def test_crops_are_rotated_and_amplified():
    batch = batch_of(0.5, 0.3)
    model = small(gain="none").build().train()
    torch.manual_seed(0)
    rotated = model._augment(batch)
    for row, length in enumerate(batch.lengths.tolist()):
        clip = batch.waveforms[row, :length]
        start = int((clip == rotated[row, 0]).nonzero())
        assert start > 0
        assert torch.equal(rotated[row, :length], clip.roll(-start))
        assert not rotated[row, length:].any()
    assert torch.equal(model.eval()._augment(batch), batch.waveforms)
    plain = small("audio_mae_released", {"chunk_frames": 1024}, gain="none").build().train()
    assert torch.equal(plain._augment(batch), batch.waveforms)
    many = batch_of(*[0.1] * 500)
    for kind, least, most, centre in (("beta", 0.5, 1.5, 1.0), ("decibels", 10**-0.3, 10**0.3, 1.055)):
        loud = small(gain=kind, roll=False).build().train()
        gain = (loud._augment(many) / many.waveforms)[:, 0]
        assert least <= gain.min() < gain.max() <= most
        assert gain.mean() == pytest.approx(centre, abs=0.06)
    assert gain.log10().std() * 20 == pytest.approx(12 / math.sqrt(12), rel=0.1)


def test_bfloat16_follows_float32():
    for name in ("audio_mae_base", "audio_mae_base_global"):
        model, batch = small(name).build().train(), batch_of(1.0, 0.8)
        torch.manual_seed(1)
        exact = model(batch).loss
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16):
            step = model(batch)
        assert step.loss.dtype == torch.float32
        assert step.loss.item() == pytest.approx(exact.item(), rel=0.01)


@pytest.mark.slow
def test_compiled_once_for_all_shapes_it_equals_eager():
    torch.manual_seed(0)
    model, compiled = (CASES["local"].build().eval() for _ in range(2))
    compiled.load_state_dict(model.state_dict())
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    compiled.compile_networks()
    for clips in ((1.0, 2.3, 1.7), (2.0, 0.9, 1.1, 1.4)):
        losses = []
        for each in (model, compiled):
            torch.manual_seed(1)
            losses.append(each(batch_of(*clips)).loss)
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=0)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # encoder and decoder


@pytest.mark.parametrize("run", CASES.values(), ids=CASES)
def test_pictures(run):
    torch.manual_seed(0)
    model = run.build().eval()
    batch = batch_of(0.7, 1.0)
    pictures = model.visualize(batch)
    target = model.encoder.features(batch.waveforms[:1], batch.lengths[:1])[0][0, :68]
    assert set(pictures) == {"target", "masked", "reconstruction"}
    assert torch.equal(pictures["target"], target)
    hidden = pictures["masked"] != target
    assert 0.2 < hidden.float().mean() < 0.99
    assert torch.equal(pictures["reconstruction"][~hidden], target[~hidden])
    assert pictures["reconstruction"].isfinite().all()


def tones(count: int, seed: int) -> Batch:
    """One second each of a steady chord of four random tones in a little noise: any patch tells of its whole row."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(16000) / 16000
    hz = 200 + 5000 * torch.rand(count, 4, 1, generator=generator)
    waveforms = torch.sin(2 * math.pi * hz * time).sum(1) * 0.1
    waveforms += 0.001 * torch.randn(count, 16000, generator=generator)
    return Batch(waveforms, torch.full((count,), 16000), [str(i) for i in range(count)], torch.zeros(count))


def test_training_beats_the_trivial_level():
    torch.manual_seed(0)
    size = {"dim": 64, "ffn": 128, "patch_frames": 8}
    model = small("audio_mae_base_global", size, decoder_dim=64, mask_ratio=0.6).build()
    held_out = learn(model, tones, 80, 3e-3)
    assert held_out.metrics["trivial"] == pytest.approx(127 / 128, abs=2e-3)
    assert held_out.loss < 0.8 * held_out.metrics["trivial"]


@pytest.mark.parametrize("layout", ["grid", "audiomae"])
def test_saved_and_loaded(tmp_path, layout):
    loads_as_saved(vit(positions=layout), batch_of(0.7), tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"encoder": {"front_end": {"stack": 2}}}, "stack 1"),
        ({"encoder": {"patch_mels": 24}}, "no multiple of 24"),
        ({"encoder": {"dim": 100}}, "multiple of 4 and of heads"),
        ({"encoder": {"chunk_frames": 100}}, "multiple of patch_frames"),
        ({"encoder": {"patch_mels": 64}}, "'local' needs a multiple of 4 patches"),
        ({"objective": {"decoder_heads": 5}}, "5 heads"),
        ({"encoder": {"positions": "audiomae"}, "objective": {"crop_s": 11}}, "end after 1024"),
    ],
)
def test_bad_configs_are_refused_in_one_line(values, message):
    with pytest.raises(ConfigError, match=message) as error:
        run_from_yaml({"method": "audio_mae"} | values)
    assert "\n" not in str(error.value)
