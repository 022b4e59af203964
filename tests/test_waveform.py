"""The waveform encoder against transformers' models with the same weights, and against definitions in float64."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import auricle.nn.conv
from auricle.config import edit
from auricle.encoders.base import join_stretches
from auricle.encoders.checkpoint import load, save
from auricle.encoders.waveform import WaveformConfig, WaveformEncoder
from auricle.errors import ConfigError
from auricle.nn.conv import WaveformConvolutions
from auricle.nn.positional import PositionalConvolution, PositionalConvolutions

SMALL = WaveformConfig(
    channels=12, dim=32, layers=3, heads=4, ffn=48, position_kernel=8, position_groups=4, chunk_frames=1500
)
DATA2VEC = {"conv_norm": "layer", "normalize": True, "position_style": "stacked", "position_layers": 3}
VARIANTS = {
    "hubert": SMALL,
    "data2vec": edit(SMALL, **DATA2VEC, position_kernel=5),
    "large": edit(SMALL, conv_norm="layer", conv_bias=True, norm="pre", normalize=True),
    "batch_norm": edit(SMALL, position_style="batch_norm", conv_bias=True),
}


def shaken(model: nn.Module) -> nn.Module:
    """Every weight and statistic a little off its initial value, so that leaving one out shows."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if value.is_floating_point():
                value.add_(torch.rand_like(value) * 0.2 + 0.1 if "var" in name else torch.randn_like(value) * 0.1)
    return model


def encoder(config: WaveformConfig, **changes: object) -> WaveformEncoder:
    torch.manual_seed(0)
    return shaken(WaveformEncoder(edit(config, **changes))).eval()


def clips(*lengths: int) -> tuple[Tensor, Tensor]:
    """Noise of these lengths (samples) with different levels and offsets, zero-padded."""
    torch.manual_seed(1)
    waveforms = torch.zeros(len(lengths), max(lengths))
    for row, length in enumerate(lengths):
        waveforms[row, :length] = torch.randn(length) * 0.1 * (row + 1) + 0.02 * row
    return waveforms, torch.tensor(lengths)


def states_of(other: nn.Module, waveforms: Tensor, mask: Tensor | None) -> list[Tensor]:
    """All hidden states of a transformers model, the last behind a final norm (which newer versions leave off)."""
    output = other(waveforms, attention_mask=mask, output_hidden_states=True)
    return [*output.hidden_states[:-1], output.last_hidden_state]


def difference(ours: list[Tensor], theirs: list[Tensor], counts: list[int]) -> float:
    """Largest, over all hidden states (B, T, D), of true frames."""
    assert len(ours) == len(theirs)
    pairs = [
        (one[row, :n], two[row, :n]) for one, two in zip(ours, theirs, strict=True) for row, n in enumerate(counts)
    ]
    return max((one - two).abs().max().item() for one, two in pairs)


def theirs(config: WaveformConfig) -> nn.Module:
    """The transformers model of this config."""
    transformers = pytest.importorskip("transformers")
    stacked = config.position_style == "stacked"
    options = {
        "hidden_size": config.dim,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.ffn,
        "conv_dim": [config.channels] * 7,
        "conv_bias": config.conv_bias,
        "num_conv_pos_embedding_groups": config.position_groups,
        "num_conv_pos_embeddings": config.position_layers if stacked else config.position_kernel,
        "layer_norm_eps": config.norm_eps,
    }
    torch.manual_seed(2)
    if stacked:
        options |= {"conv_pos_kernel_size": config.position_kernel}
        return transformers.Data2VecAudioModel(transformers.Data2VecAudioConfig(**options)).eval()
    options |= {"feat_extract_norm": config.conv_norm, "do_stable_layer_norm": config.norm == "pre"}
    if config.norm == "pre":
        return transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**options)).eval()
    options |= {"conv_pos_batch_norm": config.position_style == "batch_norm"}
    return transformers.HubertModel(transformers.HubertConfig(**options)).eval()


RENAMED = [  # ours → theirs
    (r"^mask_vector$", "masked_spec_embed"),
    (r"^convolutions\.layers\.(\d+)\.conv\.", r"feature_extractor.conv_layers.\1.conv."),
    (r"^convolutions\.layers\.(\d+)\.norm\.", r"feature_extractor.conv_layers.\1.layer_norm."),
    (r"^projection\.0\.", "feature_projection.layer_norm."),
    (r"^projection\.1\.", "feature_projection.projection."),
    (r"^context\.positions\.layers\.(\d+)\.conv\.", r"encoder.pos_conv_embed.layers.\1.conv."),
    (
        r"^context\.positions\.layers\.0\.gain$",
        "encoder.pos_conv_embed.layers.0.conv.parametrizations.weight.original0",
    ),
    (r"^context\.positions\.layers\.0\.norm\.", "encoder.pos_conv_embed.batch_norm."),
    (r"^context\.(norm|transformer\.final_norm)\.", "encoder.layer_norm."),
    (r"^context\.transformer\.blocks\.(\d+)\.", r"encoder.layers.\1."),
    (r"\.attention_out\.", ".attention.out_proj."),
    (r"\.attention_norm\.", ".layer_norm."),
    (r"\.ffn_in\.", ".feed_forward.intermediate_dense."),
    (r"\.ffn_out\.", ".feed_forward.output_dense."),
    (r"\.ffn_norm\.", ".final_layer_norm."),
]


def copy_weights(model: WaveformEncoder, other: nn.Module) -> None:
    """Ours into theirs; every tensor of theirs has to be filled."""
    style, state = model.config.position_style, {}
    for name, value in model.state_dict().items():
        for pattern, new in RENAMED:
            name = re.sub(pattern, new, name)
        if style != "stacked":
            name = name.replace("pos_conv_embed.layers.0.", "pos_conv_embed.")
        if style == "weight_norm":
            name = name.replace("pos_conv_embed.conv.weight", "pos_conv_embed.conv.parametrizations.weight.original1")
        if ".qkv." in name:
            for part, rows in zip("qkv", value.chunk(3), strict=True):
                state[name.replace("qkv", f"attention.{part}_proj")] = rows
        else:
            state[name] = value
    other.load_state_dict(state)  # strict


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_all_hidden_states_are_those_of_transformers(config):
    model, other = encoder(config), theirs(config)
    copy_weights(model, other)
    waveforms, lengths = clips(4000, 4000)
    with torch.no_grad():
        frames = model(waveforms, lengths)
        expected = states_of(other, model._normalized(waveforms, lengths), None)
    assert frames.lengths.tolist() == [12, 12]
    assert difference(frames.hidden_states, expected, [12, 12]) < 1e-5


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_padding_as_in_transformers_on_request(config):
    model, other = encoder(config, padding="transformers"), theirs(config)
    copy_weights(model, other)
    waveforms, lengths = clips(4000, 2900, 1800)
    mask = torch.arange(4000) < lengths[:, None]
    with torch.no_grad():
        frames = model(waveforms, lengths)
        expected = states_of(other, model._normalized(waveforms, lengths), mask)
        exact = encoder(config)(waveforms, lengths)
    counts = frames.lengths.tolist()
    assert difference(frames.hidden_states, expected, counts) < 1e-5
    if config.norm == "post" and config.position_style != "batch_norm":  # where the two differ, they differ a lot
        assert difference(exact.hidden_states, expected, counts) > 1e-2


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_a_clip_is_the_same_alone_and_in_any_batch(config):
    model = encoder(config)
    waveforms, lengths = clips(4000, 2900, 401, 200)
    waveforms += torch.randn_like(waveforms) * (torch.arange(4000) >= lengths[:, None])  # padding that would be heard
    with torch.no_grad():
        together = model(waveforms, lengths)
        assert together.lengths.tolist() == [12, 8, 1, 0]
        for row, count in enumerate(together.lengths.tolist()[:3]):
            alone = model(waveforms[row : row + 1, : lengths[row]], lengths[row : row + 1])
            states = [state[row : row + 1] for state in together.hidden_states]
            assert difference(alone.hidden_states, states, [count]) < 1e-5
    assert all(state.isfinite().all() for state in together.hidden_states)


def group_norm(model: WaveformConvolutions, waveform: Tensor) -> Tensor:
    """First convolution, GroupNorm and GELU of one clip (S,), by PyTorch in float64: (1, T, C)."""
    layer = model.layers[0]
    bias = None if layer.conv.bias is None else layer.conv.bias.double()
    x = F.conv1d(waveform.double()[None, None], layer.conv.weight.double(), bias, layer.stride)
    x = F.group_norm(x, x.shape[1], layer.norm.weight.double(), layer.norm.bias.double(), layer.norm.eps)
    return F.gelu(x).mT


def hum(samples: int) -> Tensor:
    """A bass note far off zero: neighbouring samples hardly differ, and nor do many channels from a constant."""
    return 0.5 + 0.3 * torch.sin(2 * torch.pi * 50 * torch.arange(samples) / 16000)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "waveform",
    [torch.randn(3000), 1e-3 * torch.randn(3000), torch.zeros(3000), torch.full((3000,), 0.7), hum(3000)],
    ids=["noise", "quiet", "silent", "constant", "hum"],
)
def test_group_norm_in_the_weights_is_group_norm(waveform, bias):
    torch.manual_seed(3)
    model = shaken(WaveformConvolutions([64], [10], [5], [0], bias=bias, norm="group", activation=F.gelu))
    found, _ = model(waveform[None], None)
    exact = group_norm(model, waveform)
    plain = F.group_norm(F.conv1d(waveform[None, None], model.layers[0].conv.weight, None, 5), 64)
    plain = F.gelu(plain * model.layers[0].norm.weight[:, None] + model.layers[0].norm.bias[:, None]).mT
    error, plain_error = (found - exact).abs().max(), (plain - exact).abs().max()
    assert error < max(2e-5, 0.5 * plain_error)  # better than float32 where float32 is bad
    leaves = list(model.parameters())
    ours = torch.autograd.grad(found.square().sum(), leaves, allow_unused=True)
    wanted = torch.autograd.grad(exact.square().sum(), leaves, allow_unused=True)
    for name, one, two in zip(dict(model.named_parameters()), ours, wanted, strict=True):
        if name.endswith("conv.bias"):
            assert not one.any()
        else:
            torch.testing.assert_close(one, two.to(one.dtype), atol=1e-4 * two.abs().max().item() + 1e-6, rtol=1e-3)


def test_group_norm_sees_the_clip_alone(monkeypatch):
    torch.manual_seed(3)
    model = shaken(WaveformConvolutions([16], [10], [5], [0], norm="group"))
    waveforms, lengths = clips(3000, 1234, 11)
    monkeypatch.setattr(auricle.nn.conv, "_WINDOWS_AT_ONCE", 100)
    moments = model.moments(waveforms, lengths)
    for row, length in enumerate(lengths.tolist()):
        windows = waveforms[row, :length].double().unfold(0, 10, 5)
        torch.testing.assert_close(moments.mean[row], windows.mean(0))
        centred = windows - windows.mean(0)
        torch.testing.assert_close(moments.covariance[row], centred.T @ centred / len(windows))


@pytest.mark.parametrize(
    ("config", "tensors", "count"),
    [
        ({}, 211, 94_371_712),
        ({**DATA2VEC, "position_layers": 5, "position_kernel": 19}, 230, 93_164_288),
    ],
    ids=["hubert", "data2vec"],
)
def test_sizes_are_the_originals(config, tensors, count):
    with torch.device("meta"):
        model = WaveformEncoder(edit(WaveformConfig(), **config))
    parameters = list(model.parameters())
    assert sum(parameter.numel() for parameter in parameters) == count
    assert len(parameters) + 2 * 2 * 12 == tensors  # theirs have q, k and v apart


@pytest.mark.parametrize(
    ("rate", "seconds", "count"),
    [(16000, 5, 249), (16000, 15, 749), (16000, 20, 999), (16000, 30, 1499), (24000, 5, 374)],
)
def test_frames_of_so_many_seconds(rate, seconds, count):
    model = WaveformEncoder(edit(SMALL, sample_rate=rate))
    assert model.convolutions.frames(torch.tensor(rate * seconds)) == count
    assert (model.sample_rate, model.hop, model.offset) == (rate, 320, 199.5)


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("autocast", [False, True])
def test_gradient_reaches_every_weight(config, autocast):
    torch.manual_seed(0)
    model = WaveformEncoder(config).train()
    waveforms, lengths = clips(4000, 2900)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        x, counts = model.features(waveforms, lengths)
        mask = torch.arange(x.shape[1]) % 3 == 0
        frames = model.encode(x, counts, mask=mask.expand(2, -1), layers=[1, 3])
    sum(state[0].float().pow(3).sum() for state in frames.hidden_states).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        void = config.conv_bias and config.conv_norm == "group" and name == "convolutions.layers.0.conv.bias"
        assert parameter.grad.any() != void, name


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_feed_forward_taps_are_what_a_hook_sees(config):
    model = encoder(config)
    waveforms, lengths = clips(4000, 2900)
    seen: list[Tensor] = []
    for block in model.context.transformer.blocks:
        block.ffn_out.register_forward_hook(lambda *call: seen.append(call[-1]))
    with torch.no_grad():
        x, counts = model.features(waveforms, lengths)
        blocks = model.encode(x, counts)
        seen.clear()
        taps = model.encode(x, counts, taps="ffn")
    assert torch.equal(taps.hidden_states[0], blocks.hidden_states[0])
    for state, packed in zip(taps.hidden_states[1:], seen, strict=True):  # on the CPU true frames are packed
        assert torch.equal(torch.cat([state[0, :12], state[1, :8]]), packed)
    with torch.no_grad():
        top = model.encode(x, counts, taps="ffn", layers=[3, 2])
    assert torch.equal(top.hidden_states[0], taps.hidden_states[3])
    assert torch.equal(top.hidden_states[1], taps.hidden_states[2])


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_a_dropped_layer_passes_its_input_on(config):
    model = encoder(config)
    waveforms, lengths = clips(4000, 2900)
    x, counts = model.features(waveforms, lengths)
    every = model.encode(x, counts, keep=torch.tensor([True, True, True])).hidden_states
    assert all(map(torch.equal, every, model.encode(x, counts).hidden_states))
    some = model.encode(x, counts, keep=torch.tensor([True, False, True])).hidden_states
    assert torch.equal(some[2][0], some[1][0])
    without = encoder(config)
    del without.context.transformer.blocks[1]
    without.context.transformer.layers = 2
    assert torch.equal(without.encode(x, counts, layers=[2]).hidden_states[0], some[3])
    some[3][0].square().mean().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (name == "mask_vector"), name
        if ".blocks." in name:
            assert parameter.grad.any() != (".blocks.1." in name), name


def test_masked_frames_are_not_heard():
    model = encoder(SMALL)
    x = torch.randn(2, 20, 12)
    mask, counts = torch.rand(2, 20) < 0.5, torch.tensor([20, 20])
    other = torch.where(mask[..., None], torch.randn(2, 20, 12), x)
    one, two = (model.encode(each, counts, mask=mask).hidden_states for each in (x, other))
    assert all(map(torch.equal, one, two))
    shown = model.hidden(model.project(x), mask)
    assert torch.equal(shown[mask], model.mask_vector.expand(int(mask.sum()), -1))


def test_positions_are_plain_convolutions():
    torch.manual_seed(0)
    for style, kernel in (("weight_norm", 8), ("weight_norm", 7), ("stacked", 5), ("batch_norm", 8)):
        layer = shaken(PositionalConvolution(16, kernel, 4, style)).double().eval()
        plain = nn.Conv1d(16, 16, kernel, padding=kernel // 2, groups=4).double()
        plain.load_state_dict(layer.conv.state_dict())
        if style == "weight_norm":
            plain = nn.utils.parametrizations.weight_norm(plain, dim=2)
            plain.parametrizations.weight.original0.data.copy_(layer.gain)
        x = torch.randn(2, 11, 16, dtype=torch.float64, requires_grad=True)
        wanted = plain(layer.norm(x.mT) if style == "batch_norm" else x.mT)[..., :11].mT
        wanted = F.gelu(F.layer_norm(wanted, (16,)) if style == "stacked" else wanted)
        found = layer(x, None)
        torch.testing.assert_close(found, wanted)
        ours = torch.autograd.grad(found.pow(3).sum(), [x, layer.conv.weight, layer.conv.bias])
        direction = plain.parametrizations.weight.original1 if style == "weight_norm" else plain.weight
        for one, two in zip(ours, torch.autograd.grad(wanted.pow(3).sum(), [x, direction, plain.bias]), strict=True):
            torch.testing.assert_close(one, two)


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("rate", [16000, 24000])
def test_long_clips_in_stretches_are_the_whole_in_windows(config, rate):
    model = encoder(config, chunk_frames=40, sample_rate=rate)
    whole = encoder(config, sample_rate=rate)
    waveforms, lengths = clips(70_000, 9000, 30_000, 300)
    with torch.no_grad():
        x, counts = model.features(waveforms, lengths)
        expected, _ = whole.features(waveforms, lengths)
        for row, count in enumerate(counts.tolist()):
            torch.testing.assert_close(x[row, :count], expected[row, :count], atol=1e-5, rtol=0)
        together = model(waveforms, lengths)
        joined, found = join_stretches(model.stretches(waveforms, lengths, [0, 3]), 4)
    assert found.tolist() == together.lengths.tolist() == counts.tolist()
    for layer, states in zip((0, 3), joined, strict=True):
        for row, count in enumerate(found.tolist()[:3]):
            other = together.hidden_states[layer][row, :count].numpy()
            np.testing.assert_allclose(states[row], other, atol=1e-5)


def test_depths_are_the_blocks():
    depths = WaveformEncoder(edit(SMALL, norm="pre")).depths()
    assert {depth for name, depth in depths.items() if ".blocks." not in name and "final_norm" not in name} == {0}
    assert {name: depths[f"context.transformer.{name}.weight"] for name in ("blocks.0.qkv", "blocks.2.qkv")} == {
        "blocks.0.qkv": 1,
        "blocks.2.qkv": 3,
    }
    assert depths["context.transformer.final_norm.weight"] == 3


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_saved_and_loaded_it_is_the_same(config, tmp_path):
    model = encoder(config)
    save(model, tmp_path / "it", seed=0)
    batch = clips(4000, 2900)
    for one, two in zip(load(tmp_path / "it")(*batch).hidden_states, model(*batch).hidden_states, strict=True):
        assert torch.equal(one, two)


def test_initial_weights_are_fairseqs():
    torch.manual_seed(0)
    config = edit(SMALL, channels=256, dim=128, position_kernel=32)
    model = WaveformEncoder(config)
    deviations = {name: weight.std().item() for name, weight in model.named_parameters()}
    assert deviations["convolutions.layers.0.conv.weight"] == pytest.approx((2 / 10) ** 0.5, rel=0.1)
    assert deviations["convolutions.layers.2.conv.weight"] == pytest.approx((2 / (3 * 256)) ** 0.5, rel=0.02)
    assert deviations["context.positions.layers.0.conv.weight"] == pytest.approx((4 / (32 * 128)) ** 0.5, rel=0.02)
    assert deviations["context.transformer.blocks.0.qkv.weight"] == pytest.approx(0.02, rel=0.02)
    effective = model.context.positions.layers[0]
    torch.testing.assert_close(effective._weight(), effective.conv.weight)
    stacked = PositionalConvolutions(128, 1, 19, 4, "stacked").layers[0].conv.weight
    assert stacked.std().item() == pytest.approx((1 / (3 * 32 * 19)) ** 0.5, rel=0.02)
    assert 0 <= model.mask_vector.min() < 0.1 < 0.9 < model.mask_vector.max() <= 1


def test_bfloat16_follows_float32():
    for config in VARIANTS.values():
        model = encoder(config)
        waveforms, lengths = clips(4000, 2900)
        with torch.no_grad():
            exact = model(waveforms, lengths)
            with torch.autocast("cpu", torch.bfloat16):
                rough = model(waveforms, lengths)
        one, two = (frames.hidden_states[-1][0].float() for frames in (rough, exact))
        assert (one - two).norm() / two.norm() < 0.03


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 34}, "dim"),
        ({"position_layers": 2}, "position_layers"),
        ({"strides": (5, 2)}, "kernels"),
        ({"kernels": (4, 3, 3, 3, 3, 2, 2)}, "strides"),
        ({"padding": "none"}, "padding"),
    ],
)
def test_impossible_networks_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        edit(SMALL, **changes)


@pytest.mark.slow
@pytest.mark.parametrize("config", [VARIANTS["hubert"], VARIANTS["data2vec"]], ids=["hubert", "data2vec"])
def test_compiled_once_for_all_shapes_it_equals_eager(config):
    torch.manual_seed(0)
    torch._dynamo.reset()
    off = {"input_dropout": 0.0, "dropout": 0.0, "attention_dropout": 0.0}
    off |= {"kernels": (10, 3, 2), "strides": (5, 2, 2), "layers": 2}  # fewer to compile
    model, plain = WaveformEncoder(edit(config, **off)).train(), WaveformEncoder(edit(config, **off)).train()
    plain.load_state_dict(model.state_dict())
    features = torch.compile(model.features, dynamic=True, fullgraph=True)
    encode = torch.compile(model.encode, dynamic=True, fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for lengths in ((600, 500, 480), (650, 640, 540, 333), (450, 400)):
            batch = clips(*lengths)
            keep = torch.rand(2) < 0.5
            x, counts = features(*batch)
            mask = torch.rand(x.shape[:2]) < 0.3
            states = encode(x, counts, layers=[0, 2], mask=mask, keep=keep).hidden_states
            y, _ = plain.features(*batch)
            wanted = plain.encode(y, counts, layers=[0, 2], mask=mask, keep=keep).hidden_states
            assert difference(states, wanted, counts.tolist()) < 1e-4
            for one, parameters in ((states, model), (wanted, plain)):
                loss = sum(state[row, :n].pow(3).mean() for state in one for row, n in enumerate(counts.tolist()))
                parameters.zero_grad()
                loss.backward()
            for (name, one), two in zip(model.named_parameters(), plain.parameters(), strict=True):
                assert one.grad is not None, name
                torch.testing.assert_close(one.grad, two.grad, atol=1e-3 * two.grad.abs().max().item(), rtol=1e-3)
