"""Other projects' checkpoints: files of random weights in their layouts, against plain networks in their naming."""

import argparse
import json
import math
import os
import pathlib
import random
import shlex
import warnings

import kaldi_native_fbank
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig
from transformers.audio_utils import mel_filter_bank
from transformers.models.bert.modeling_bert import BertEncoder
from waveform_models import NAMESPACE, VARIANTS, built, fairseq

from auricle import cli
from auricle.encoders import FAMILIES
from auricle.encoders.check import check
from auricle.encoders.checkpoint import load, save
from auricle.encoders.foreign import PROJECTS
from auricle.errors import CheckpointError

SECONDS = (0.5, 1.0, 1.77)


def randomize(module, seed=0):
    """Every weight at random, the norms' too, so that no mapping can be wrong unseen."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.state_dict().items():
        if value.is_floating_point() and "running" not in name:
            centre = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
            scale = 0.2 if value.dim() < 2 else value[0].numel() ** -0.5
            value.copy_(centre + scale * torch.randn(value.shape, generator=generator))
    return module.eval()


def noise(seconds, seed=0):
    """Noise (S,) whose level swells, float64."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(round(16000 * seconds), dtype=torch.float64) / 16000
    return 0.1 * (1 + 0.9 * torch.sin(9 * time)) * torch.randn(len(time), generator=generator, dtype=torch.float64)


def attend(q, k, v, heads):
    """Attention of (T, D), head by head."""
    mixed = [
        (a @ b.T / math.sqrt(a.shape[1])).softmax(-1) @ c
        for a, b, c in zip(*(x.chunk(heads, dim=1) for x in (q, k, v)), strict=True)
    ]
    return torch.cat(mixed, dim=1)


def sinusoids(length, dim):
    table = torch.empty(length, dim, dtype=torch.float64)
    for channel in range(dim):
        angle = torch.arange(length, dtype=torch.float64) / 10000 ** (2 * (channel // 2) / dim)
        table[:, channel] = angle.cos() if channel % 2 else angle.sin()
    return table


def tree(**modules):
    return nn.ModuleDict(modules)


def stored(path, entries):
    torch.save(entries, path)
    return path


@torch.inference_mode()
def agree(encoder, reference, inputs, tolerance=1e-5):
    """Features (T, F) float64 one by one, and all in one batch, through both; float32 against float64."""
    lengths = torch.tensor([len(x) for x in inputs])
    batch = nn.utils.rnn.pad_sequence([x.float() for x in inputs], batch_first=True)
    together = encoder.encode(batch, lengths).hidden_states
    assert len(together) == len(encoder.dims)
    for row, x in enumerate(inputs):
        wanted = reference(x)
        alone = encoder.encode(x[None].float(), lengths[row : row + 1]).hidden_states
        for layer, state in enumerate(wanted):
            torch.testing.assert_close(alone[layer][0].double(), state, atol=tolerance, rtol=tolerance)
            found = together[layer][row, : len(state)].double()
            torch.testing.assert_close(found, state, atol=tolerance, rtol=tolerance)
        assert len(wanted) == len(encoder.dims)


@torch.inference_mode()
def hears(encoder, reference, front_end, tolerance):
    """The same from waveforms, through a front end written a second way."""
    encoder.double()
    for seconds in SECONDS:
        waveform = noise(seconds)
        frames = encoder(waveform[None], torch.tensor([len(waveform)]))
        wanted = reference(front_end(waveform))
        assert int(frames.lengths[0]) == len(wanted[0])
        for state, found in zip(wanted, frames.hidden_states, strict=True):
            torch.testing.assert_close(found[0], state, atol=tolerance, rtol=tolerance)


# S3PRL's Transformers


class Bert(nn.Module):
    """Mockingjay, TERA and AudioALBERT, in S3PRL's naming: features (T, D_in) to all hidden states."""

    def __init__(self, width, dim=32, layers=3, heads=4, ffn=48, pre=False, shared=False):
        super().__init__()
        self.heads, self.pre = heads, pre
        norm = lambda: nn.LayerNorm(dim, eps=1e-12)  # noqa: E731

        def block():
            made = tree(
                attention=tree(
                    self=tree(query=nn.Linear(dim, dim), key=nn.Linear(dim, dim), value=nn.Linear(dim, dim)),
                    output=tree(dense=nn.Linear(dim, dim), LayerNorm=norm()),
                ),
                intermediate=tree(dense=nn.Linear(dim, ffn)),
                output=tree(dense=nn.Linear(ffn, dim), LayerNorm=norm()),
            )
            if pre:  # second names, as S3PRL has them
                made["attention"]["LayerNorm"] = made["attention"]["output"]["LayerNorm"]
                made["LayerNorm"] = made["output"]["LayerNorm"]
            return made

        self.input_representations = tree(spec_transform=nn.Linear(width, dim), LayerNorm=norm())
        blocks = [block()] * layers if shared else [block() for _ in range(layers)]
        self.encoder = tree(layer=nn.ModuleList(blocks))
        if pre:
            self.encoder["LayerNorm"] = nn.ModuleList(norm() for _ in range(layers + 1))

    def forward(self, x):
        embed = self.input_representations
        x = embed["LayerNorm"](embed["spec_transform"](x) + sinusoids(len(x), embed["spec_transform"].out_features))
        states = [x]
        for block in self.encoder["layer"]:
            attention, own = block["attention"], block["attention"]["self"]
            y = attention["output"]["LayerNorm"](x) if self.pre else x
            x = x + attention["output"]["dense"](attend(own["query"](y), own["key"](y), own["value"](y), self.heads))
            x = x if self.pre else attention["output"]["LayerNorm"](x)
            y = block["output"]["LayerNorm"](x) if self.pre else x
            x = x + block["output"]["dense"](F.gelu(block["intermediate"]["dense"](y)))
            x = x if self.pre else block["output"]["LayerNorm"](x)
            states.append(x)
        if self.pre:
            states = [norm(state) for norm, state in zip(self.encoder["LayerNorm"], states, strict=True)]
        return states


ONLINE = {"target_level": -25, "win_ms": 25, "hop_ms": 10, "n_freq": 201, "n_mels": 80, "n_mfcc": 13,
          "input": {"feat_type": "mel", "channel": 0, "log": True, "delta": 0, "cmvn": True}}  # fmt: skip
KALDI = {"kaldi": {"feat_type": "fbank", "fbank": {"num_mel_bins": 80, "frame_length": 25.0, "frame_shift": 10.0,
                                                   "use_log_fbank": True}},
         "delta": {"order": 2, "win_length": 5}, "cmvn": {"use_cmvn": True}}  # fmt: skip
BERTS = {
    "tera": ({"width": 80}, {"audio": ONLINE}, {}),
    "one delta": ({"width": 160}, {"audio": ONLINE | {"input": ONLINE["input"] | {"delta": 1}}}, {}),
    "kaldi": ({"width": 240}, {"audio": KALDI}, {}),
    "2019": ({"width": 160}, {}, {}),
    "2019, stacked": ({"width": 480, "layers": 12}, {}, {"downsample_rate": 3}),
    "large": ({"width": 80, "layers": 12}, {"audio": ONLINE}, {}),
    "pre-norm": ({"width": 80, "pre": True}, {"audio": ONLINE}, {}),
    "shared": ({"width": 80, "shared": True}, {"audio": ONLINE}, {}),
    "shared, pre-norm": ({"width": 80, "shared": True, "pre": True}, {"audio": ONLINE}, {}),
}


def bert(path, sizes, config=None, model=None, key="Upstream_Config", **other):
    """A `states-N.ckpt` and the network in it."""
    network = randomize(Bert(**sizes))
    dim = network.input_representations["spec_transform"].out_features
    options = {
        "hidden_size": dim, "num_hidden_layers": len(network.encoder["layer"]), "num_attention_heads": network.heads,
        "hidden_act": "gelu", "intermediate_size": 48, "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1, "initializer_range": 0.02, "layer_norm_eps": "1e-12",
        "share_layer": sizes.get("shared", False), "pre_layer_norm": network.pre,
    }  # fmt: skip
    entries = {
        "Transformer": network.state_dict(),
        "SpecHead": nn.Linear(dim, 80).state_dict(),
        key: {"transformer": options | (model or {}), "task": {"sequence_length": 1500}, **(config or {})},
        "Optimizer": torch.optim.Adam(network.parameters()).state_dict(),
        "Step": 7,
        "Args": argparse.Namespace(upstream="tera", seed=1337),
    }
    return stored(path, entries | other), network.double()


@pytest.mark.parametrize("case", BERTS.values(), ids=BERTS)
def test_s3prl_transformers_have_the_same_hidden_states(case, tmp_path):
    path, network = bert(tmp_path / "states-7.ckpt", *case)
    encoder = load(f"s3prl:{path}")
    assert encoder.family == "mel_transformer"
    assert encoder.front_end.dim == case[0]["width"]
    generator = torch.Generator().manual_seed(1)
    frames = [torch.randn(t, case[0]["width"], generator=generator, dtype=torch.float64) for t in (1, 33, 120)]
    agree(encoder, network, frames)


def online(waveform):
    """S3PRL's online features (T, 80), float64."""
    waveform = waveform * 10 ** (-25 / 20) / waveform.square().mean().sqrt()
    window = torch.hann_window(400, dtype=torch.float64)
    power = torch.stft(waveform, 400, 160, window=window, center=True, return_complex=True).abs() ** 2  # (201, T)
    mel = mel_filter_bank(201, 80, 0.0, 8000.0, 16000, norm=None, mel_scale="htk")  # (201, 80)
    x = (power.T @ torch.from_numpy(mel) + 1e-10).log()
    return (x - x.mean(0)) / (x.std(0) + 1e-10)


def kaldi(waveform, bands=80, window="povey"):
    """Kaldi's filter bank (T, bands) of samples as they are, by kaldi-native-fbank: float32 inside."""
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither = 0
    options.frame_opts.window_type = window
    options.mel_opts.num_bins = bands
    fbank = kaldi_native_fbank.OnlineFbank(options)
    fbank.accept_waveform(16000, waveform.tolist())
    frames = [torch.from_numpy(fbank.get_frame(i)).double() for i in range(fbank.num_frames_ready)]
    return torch.stack(frames)


def with_deltas(x, order=2):
    """Regression over five frames, edges repeated, then mean and (sample) variance of each channel."""
    parts = [x]
    for _ in range(order):
        y = parts[-1]
        at = lambda t, y=y: y[min(max(t, 0), len(y) - 1)]  # noqa: E731
        slopes = [sum(n * (at(t + n) - at(t - n)) for n in (1, 2)) / 10 for t in range(len(y))]
        parts.append(torch.stack(slopes))
    x = torch.cat(parts, dim=1)
    return (x - x.mean(0)) / (x.std(0) + 1e-10)


@pytest.mark.parametrize(
    ("name", "front_end", "tolerance"),
    [("tera", online, 1e-5), ("pre-norm", online, 1e-5), ("kaldi", lambda x: with_deltas(kaldi(x)), 1e-3)],
)
def test_s3prl_transformers_hear_the_same(name, front_end, tolerance, tmp_path):
    path, network = bert(tmp_path / "x.ckpt", *BERTS[name])
    hears(load(f"s3prl:{path}"), network, front_end, tolerance)


def test_s3prl_blocks_are_those_of_bert(tmp_path):
    """S3PRL took its blocks from transformers' BERT, names and all."""
    path, network = bert(tmp_path / "x.ckpt", *BERTS["tera"])
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    config = BertConfig(**sizes, layer_norm_eps=1e-12, attn_implementation="eager")
    blocks = BertEncoder(config).eval().double()
    blocks.load_state_dict(network.encoder.state_dict())
    encoder = load(f"s3prl:{path}").double()
    with torch.inference_mode():
        states = encoder.encode(torch.randn(1, 50, 80, dtype=torch.float64), torch.tensor([50])).hidden_states
        torch.testing.assert_close(states[-1], blocks(states[0]).last_hidden_state, atol=1e-9, rtol=1e-9)


def test_older_s3prl_files_say_config(tmp_path):
    path, network = bert(tmp_path / "x.ckpt", *BERTS["tera"], key="Config")
    agree(load(f"s3prl:{path}"), network, [torch.randn(9, 80, dtype=torch.float64)])


# APC


class Apc(nn.Module):
    """APC's GRUs, in S3PRL's naming or its authors': features (T, F) to them and all layers' outputs."""

    def __init__(self, name, residual, vq=False, bands=80, dim=24, layers=3):
        super().__init__()
        self.name, self.residual = name, residual
        grus = [nn.GRU(dim if i else bands, dim, batch_first=True) for i in range(layers)]
        setattr(self, name, nn.ModuleList(grus))
        if name == "rnn_layers":
            self.postnet = nn.Linear(dim, bands)
            if vq:
                self.vq_layers = nn.ModuleList([nn.Linear(dim, 7)])
        else:
            self.final_linear = nn.Conv1d(dim, bands, 1)

    def forward(self, x):
        states = [x]
        for number, gru in enumerate(getattr(self, self.name)):
            w, u, b, c = gru.weight_ih_l0, gru.weight_hh_l0, gru.bias_ih_l0, gru.bias_hh_l0
            h, outputs = torch.zeros(gru.hidden_size, dtype=x.dtype), []
            for frame in x:
                (r, z, n), (hr, hz, hn) = (w @ frame + b).chunk(3), (u @ h + c).chunk(3)
                z = (z + hz).sigmoid()
                h = (1 - z) * (n + (r + hr).sigmoid() * hn).tanh() + z * h
                outputs.append(h)
            y = torch.stack(outputs)
            x = x + y if self.residual and number else y
            states.append(x)
        return states


def s3prl_apc(path, residual=True, cmvn=True, **sizes):
    network = randomize(Apc("rnn_layers", residual, **sizes))
    audio = {"feat_type": "fbank", "feat_dim": 80, "frame_length": 25, "frame_shift": 10, "decode_wav": False}
    paras = {"hidden_size": 24, "num_layers": 3, "dropout": 0.1, "residual": residual}
    config = {"data": {"audio": audio | {"cmvn": cmvn}}, "model": {"paras": paras}}
    return stored(path, {"model": network.state_dict(), "config": config}), network.double()


@pytest.mark.parametrize("options", [{}, {"residual": False}, {"cmvn": False}, {"vq": True}, {"layers": 4}])
def test_s3prl_apc_has_the_same_hidden_states(options, tmp_path):
    path, network = s3prl_apc(tmp_path / "apc.ckpt", **options)
    encoder = load(f"s3prl:{path}")
    assert encoder.family == "apc"
    agree(encoder, network, [torch.randn(t, 80, dtype=torch.float64) for t in (1, 20, 75)])


@pytest.mark.parametrize("cmvn", [True, False])
def test_s3prl_apc_hears_the_same(cmvn, tmp_path):
    path, network = s3prl_apc(tmp_path / "apc.ckpt", cmvn=cmvn)

    def front_end(waveform):
        x = kaldi(waveform, window="hamming")
        return (x - x.mean(0)) / (x.std(0) + 1e-10) if cmvn else x

    hears(load(f"s3prl:{path}"), network, front_end, 1e-3)


def test_the_authors_apc_has_the_same_hidden_states(tmp_path):
    network = randomize(Apc("rnns", True))
    path = stored(tmp_path / "bs32-rhl3-rhs512-rd0-adam-res-ts3.pt", network.state_dict())
    agree(load(f"s3prl:{path}"), network.double(), [torch.randn(t, 80, dtype=torch.float64) for t in (5, 50)])


# CPC_audio


class ChannelNorm(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, channels, 1))
        self.bias = nn.Parameter(torch.zeros(1, channels, 1))

    def forward(self, x):
        x = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1e-5).sqrt()
        return x * self.weight + self.bias


class Cpc(nn.Module):
    """CPC_audio's model: waveform (S,) to z and c, each (T, C)."""

    def __init__(self, kind=nn.LSTM, channels=16, dim=12, layers=1):
        super().__init__()
        self.gEncoder = tree()
        for layer, kernel in enumerate((10, 8, 4, 4, 4)):
            self.gEncoder[f"conv{layer}"] = nn.Conv1d(channels if layer else 1, channels, kernel)
            self.gEncoder[f"batchNorm{layer}"] = ChannelNorm(channels)
        self.gAR = tree(baseNet=kind(channels, dim, layers, batch_first=True))

    def forward(self, waveform):
        x = waveform[None, None]
        for layer, (stride, padding) in enumerate(zip((5, 4, 2, 2, 2), (3, 2, 1, 1, 1), strict=True)):
            conv = self.gEncoder[f"conv{layer}"]
            x = F.conv1d(F.pad(x, (padding, padding)), conv.weight, conv.bias, stride)
            x = self.gEncoder[f"batchNorm{layer}"](x).relu()
        z = x.transpose(1, 2)
        return [z[0], self.gAR["baseNet"](z)[0][0]]


def cpc(path, **sizes):
    network = randomize(Cpc(**sizes))
    criterion = nn.Linear(3, 3).state_dict()
    entries = {"gEncoder": network.state_dict(), "cpcCriterion": criterion, "optimizer": {}, "best": None}
    return stored(path, entries), network.double()


@pytest.mark.parametrize("sizes", [{}, {"kind": nn.GRU}, {"dim": 16}, {"layers": 2, "channels": 32}])
def test_cpc_hears_the_same(sizes, tmp_path):
    path, network = cpc(tmp_path / "checkpoint_30.pt", **sizes)
    hears(load(f"cpc:{path}"), network, lambda waveform: waveform, 1e-5)


# Audio-MAE


class AudioMae(nn.Module):
    """Audio-MAE's encoder in timm's naming: an image (T, 128) to the hidden states (1 + N, D) of all tokens."""

    def __init__(self, frames=512, dim=128, layers=2, tuned=False):
        super().__init__()
        norm = lambda: nn.LayerNorm(dim, eps=1e-6)  # noqa: E731
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + frames // 2, dim))
        self.patch_embed = tree(proj=nn.Conv2d(1, dim, 16, 16))
        self.blocks = nn.ModuleList(
            tree(
                norm1=norm(), attn=tree(qkv=nn.Linear(dim, 3 * dim), proj=nn.Linear(dim, dim)),
                norm2=norm(), mlp=tree(fc1=nn.Linear(dim, 2 * dim), fc2=nn.Linear(2 * dim, dim)),
            )
            for _ in range(layers)
        )  # fmt: skip
        if tuned:
            self.fc_norm, self.head = norm(), nn.Linear(dim, 50)
        else:
            self.norm, self.decoder_embed = norm(), nn.Linear(dim, 16)
            self.mask_token = nn.Parameter(torch.empty(1, 1, 16))
            self.decoder_blocks = nn.ModuleList([tree(attn=tree(qkv=nn.Linear(16, 48)))])
            self.decoder_blocks[0]["attn"].tau = nn.Parameter(torch.ones(16))

    def forward(self, x):
        x = self.patch_embed["proj"](x[None, None])[0].flatten(1).T  # (N, D), time-major
        x = torch.cat([self.cls_token[0] + self.pos_embed[0, :1], x + self.pos_embed[0, 1:]])
        states = [x]
        for block in self.blocks:
            q, k, v = block["attn"]["qkv"](block["norm1"](x)).chunk(3, dim=1)
            x = x + block["attn"]["proj"](attend(q, k, v, x.shape[1] // 64))
            x = x + block["mlp"]["fc2"](F.gelu(block["mlp"]["fc1"](block["norm2"](x))))
            states.append(x)
        if hasattr(self, "norm"):
            states[-1] = self.norm(x)
        return states


def audiomae(path, args=None, **sizes):
    network = randomize(AudioMae(**sizes))
    entries = {"model": network.state_dict(), "epoch": 32, "optimizer": {"state": {}}, "scaler": {"scale": 65536.0}}
    entries |= {"args": argparse.Namespace(**args)} if args else {}
    return stored(path, entries), network.double()


@pytest.mark.parametrize(
    ("sizes", "args", "statistics"),
    [
        ({"frames": 1024}, {"dataset": "audioset", "lr": 2e-4}, (-4.2677393, 4.5689974)),
        ({"frames": 512}, None, (-6.6268077, 5.358466)),
        ({"frames": 128}, None, (-6.845978, 5.5654526)),
        ({"frames": 512, "tuned": True, "layers": 3}, {"dataset": "audioset"}, (-4.2677393, 4.5689974)),
    ],
)
def test_audiomae_hears_the_same(sizes, args, statistics, tmp_path):
    path, network = audiomae(tmp_path / "pretrained.pth", args, **sizes)
    encoder = load(f"audiomae:{path}").double()
    mean, std = statistics
    for seconds in SECONDS if sizes["frames"] > 128 else (0.5, 1.2):
        waveform = noise(seconds)
        x = kaldi(waveform - waveform.mean(), 128, "hanning")
        steps = math.ceil(len(x) / 16)
        image = (F.pad(x, (0, 0, 0, sizes["frames"] - len(x))) - mean) / (2 * std)
        with torch.inference_mode():
            wanted = network(image)
            features, lengths = encoder.features(waveform[None], torch.tensor([len(waveform)]))
            tokens = encoder.encode_tokens(image[None], torch.tensor([len(wanted[0]) - 1]), range(len(wanted)))
            frames = encoder.encode(image[None], lengths).hidden_states
            heard = encoder(waveform[None], torch.tensor([len(waveform)]))
        torch.testing.assert_close(features[0], image, atol=1e-3, rtol=0)
        assert heard.lengths.tolist() == [steps]
        for layer, state in enumerate(wanted):
            torch.testing.assert_close(tokens[layer][0], state, atol=1e-5, rtol=1e-5)
            means = state[1:].view(-1, 8, state.shape[1]).mean(1)
            torch.testing.assert_close(frames[layer][0], means, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(heard.hidden_states[layer][0, :steps], means[:steps], atol=1e-3, rtol=1e-3)


# MAE-AST


class MaeAst(nn.Module):
    """MAE-AST in fairseq's naming: filter bank (T, 128) to the hidden states (N, D) of all tokens."""

    def __init__(self, patch, dim=64, layers=2, heads=1, ffn=96):
        super().__init__()
        self.patch, self.heads = patch, heads

        def stack(count):
            return tree(
                layers=nn.ModuleList(
                    tree(
                        self_attn=tree(**{f"{name}_proj": nn.Linear(dim, dim) for name in ("q", "k", "v", "out")}),
                        self_attn_layer_norm=nn.LayerNorm(dim), fc1=nn.Linear(dim, ffn), fc2=nn.Linear(ffn, dim),
                        final_layer_norm=nn.LayerNorm(dim),
                    )
                    for _ in range(count)
                ),
                layer_norm=nn.LayerNorm(dim),
            )  # fmt: skip

        self.post_extract_proj = nn.Linear(256, dim)
        self.batch_norm = nn.BatchNorm2d(1, affine=False)
        self.batch_norm.running_mean.fill_(-4.0)
        self.batch_norm.running_var.fill_(19.0)
        self.layer_norm = nn.LayerNorm(128)
        self.encoder_mask_emb, self.decoder_mask_emb = nn.Parameter(torch.empty(dim)), nn.Parameter(torch.empty(dim))
        self.encoder, self.decoder = stack(layers), stack(1)
        self.final_proj_reconstruction, self.final_proj_classification = nn.Linear(dim, 256), nn.Linear(dim, 256)
        self.enc_sine_pos_embed = nn.Module()
        self.enc_sine_pos_embed.register_buffer("pe", torch.zeros(1, 10, dim))

    def forward(self, x):
        x = self.batch_norm(x[None, None]) * 0.5
        x = self.post_extract_proj(F.unfold(x, self.patch, stride=self.patch)[0].T)
        x = self.encoder["layer_norm"](x + sinusoids(len(x), x.shape[1]))
        states = [x]
        for block in self.encoder["layers"]:
            own = block["self_attn"]
            mixed = attend(own["q_proj"](x), own["k_proj"](x), own["v_proj"](x), self.heads)
            x = block["self_attn_layer_norm"](x + own["out_proj"](mixed))
            x = block["final_layer_norm"](x + block["fc2"](F.gelu(block["fc1"](x))))
            states.append(x)
        return states


def mae_ast(path, patch=(16, 16), cfg=True, heads=1, **sizes):
    network = randomize(MaeAst(patch, heads=heads, **sizes))
    model = {"ast_kernel_size_chan": patch[1], "ast_kernel_size_time": patch[0], "encoder_attention_heads": heads}
    entries = {"model": network.state_dict()} | ({"cfg": {"model": model, "task": {}}} if cfg else {})
    return stored(path, entries), network.double()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("checkpoint.pt", {"heads": 4}),
        ("checkpoint.pt", {"patch": (2, 128), "heads": 2}),
        ("chunk_patch_75_12LayerEncoder.pt", {"cfg": False, "layers": 3}),
        ("random_frame_75_6LayerEncoder.pt", {"cfg": False, "patch": (2, 128)}),
    ],
)
def test_mae_ast_hears_the_same(name, options, tmp_path):
    path, network = mae_ast(tmp_path / name, **options)
    encoder = load(f"mae-ast:{path}").double()
    bands = 128 // network.patch[1]
    for seconds in SECONDS:
        waveform = noise(seconds)
        x = kaldi(waveform, 128)
        with torch.inference_mode():
            wanted = network(x)
            whole = x[: len(wanted[0]) // bands * network.patch[0]].reshape(-1, network.patch[0] * 128)
            features = (whole + 4.0) * 0.5 / math.sqrt(19.0 + 1e-5)
            frames = encoder.encode(features[None], torch.tensor([len(features)])).hidden_states
            heard = encoder(waveform[None], torch.tensor([len(waveform)]))
        assert heard.lengths.tolist() == [len(features)]
        for layer, state in enumerate(wanted):
            means = state.view(-1, bands, state.shape[1]).mean(1)
            torch.testing.assert_close(frames[layer][0], means, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(heard.hidden_states[layer][0], means, atol=1e-3, rtol=1e-3)


# All of them


def small(project, folder):
    """A file of each project, in order of `PROJECTS`."""
    if project == "s3prl":
        return bert(folder / "states-7.ckpt", *BERTS["tera"])[0]
    if project == "cpc":
        return cpc(folder / "checkpoint_30.pt")[0]
    if project == "audiomae":
        return audiomae(folder / "pretrained.pth")[0]
    if project == "fairseq":
        return fairseq(built(*VARIANTS["hubert base"]), folder / "hubert.pt", args=argparse.Namespace(**NAMESPACE))
    return mae_ast(folder / "patch.pt")[0]


@torch.inference_mode()
def heard(encoder):
    waveforms = noise(1.0).float()[None]
    return encoder(waveforms, torch.tensor([16000])).hidden_states


@pytest.mark.parametrize("project", PROJECTS)
def test_converted_encoders_are_encoders_of_ours(project, tmp_path):
    name = f"{project}:{small(project, tmp_path)}"
    before = torch.random.get_rng_state()
    encoder = load(name)
    assert torch.equal(before, torch.random.get_rng_state())
    assert encoder.name == name
    assert encoder.family in FAMILIES
    assert not encoder.training
    save(encoder, tmp_path / "ours", seed=0)
    again = load(tmp_path / "ours")
    assert again.fingerprint() == encoder.fingerprint() == load(name).fingerprint()
    for one, other in zip(heard(encoder), heard(again), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("project", PROJECTS)
def test_converted_encoders_keep_every_promise(project, tmp_path):
    report = check(load(f"{project}:{small(project, tmp_path)}"))
    assert report.ok, str(report)


@pytest.mark.parametrize("project", PROJECTS)
def test_half_precision_and_old_files_are_read(project, tmp_path):
    path = small(project, tmp_path)
    encoder = load(f"{project}:{path}")
    entries = torch.load(path, weights_only=False)
    key = {"s3prl": "Transformer", "cpc": "gEncoder"}.get(project, "model")
    entries[key] = {name: value.half() if value.is_floating_point() else value for name, value in entries[key].items()}
    torch.save(entries, path, _use_new_zipfile_serialization=False)
    halved = load(f"{project}:{path}")
    assert {value.dtype for value in halved.state_dict().values()} == {torch.float32}
    for one, other in zip(encoder.state_dict().values(), halved.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("project", PROJECTS)
def test_files_that_need_classes_say_how_to_save_them_again(project, tmp_path):
    path = small(project, tmp_path)
    plain = load(f"{project}:{path}").fingerprint()
    changed(path, lambda entries: entries.update(task_state=pathlib.Path("x")))
    told = refused(f"{project}:{path}")
    assert "pathlib.PosixPath" in told
    command = shlex.split(told[told.index("TORCH_FORCE") :])
    assert command[:3] == ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1", "python", "-c"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(command[0].split("=")[0], "1")
        patch.chdir(tmp_path)
        exec(command[3], {})
    (tmp_path / "plain.pt").rename(again := tmp_path / f"again-{path.name}")
    assert load(f"{project}:{again}").fingerprint() == plain


class Trap:
    """Somebody's class: who unpickles it makes a folder."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


@pytest.mark.parametrize("zipped", [True, False])
def test_no_code_in_a_file_is_run(zipped, tmp_path):
    entries = {"model": {}, "args": Trap(tmp_path / "trapped")}
    torch.save(entries, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    assert "mkdir" in refused(f"audiomae:{tmp_path / 'x.pth'}")
    assert not (tmp_path / "trapped").exists()
    torch.load(tmp_path / "x.pth", weights_only=False)
    assert (tmp_path / "trapped").exists()  # the trap works


def refused(name):
    with pytest.raises(CheckpointError) as error:
        load(name)
    assert "\n" not in str(error.value)
    return str(error.value)


def changed(path, change):
    entries = torch.load(path, weights_only=False)
    change(entries)
    torch.save(entries, path)


def audio(**options):
    return lambda entries: entries["Upstream_Config"]["audio"].update(options)


def model(**options):
    return lambda entries: entries["Upstream_Config"]["transformer"].update(options)


def drop(key, name):
    return lambda entries: entries[key].pop(name)


def put(key, name, value):
    return lambda entries: entries[key].update({name: value})


MEL = {"feat_type": "mel", "log": True}
REFUSED = {
    "a weight is missing": ("s3prl", drop("Transformer", "encoder.layer.1.output.dense.bias"), "1.output.dense.bias"),
    "a weight has another shape": (
        "s3prl", put("Transformer", "encoder.layer.2.attention.self.key.weight", torch.ones(32, 31)), "(32, 31)"),
    "a weight is unknown": ("s3prl", put("Transformer", "encoder.rotary.weight", torch.ones(2)), "encoder.rotary"),
    "a layer is missing": (
        "s3prl", lambda e: e.update(Transformer={k: v for k, v in e["Transformer"].items() if ".layer.1." not in k}),
        "encoder.layer.1"),
    "no layers": ("s3prl", lambda e: e.update(Transformer={}), "encoder"),
    "no number": ("s3prl", model(num_attention_heads=math.inf), "infinity"),
    "names that are none": ("s3prl", put("Transformer", 3, torch.ones(1)), "'3'"),
    "no weights": ("s3prl", lambda e: e.update(Transformer=3), "Transformer"),
    "another model": ("s3prl", lambda e: e.pop("Transformer"), "'model'"),
    "another activation": ("s3prl", model(hidden_act="relu"), "relu"),
    "heads that do not divide": ("s3prl", model(num_attention_heads=5), "heads"),
    "an option of another kind": ("s3prl", model(num_attention_heads="many"), "many"),
    "options that are none": ("s3prl", lambda e: e.update(Upstream_Config=[1]), "Upstream_Config"),
    "layers that are not shared": ("s3prl", model(share_layer=True), "share_layer"),
    "cepstra": ("s3prl", audio(input={"feat_type": "mfcc"}), "mfcc"),
    "no logarithm": ("s3prl", audio(input=MEL | {"log": False}), "log"),
    "another width": ("s3prl", audio(input=MEL | {"delta": 2}), "240"),
    "Kaldi's cepstra": ("s3prl", audio(kaldi={"feat_type": "mfcc"}), "mfcc"),
    "dither": ("s3prl", audio(kaldi={"fbank": {"dither": 1.0}}), "dither"),
    "a window of its own": ("s3prl", audio(kaldi={"fbank": {"window_type": "blackman"}}), "window"),
    "features of their own": ("s3prl", lambda e: e["Upstream_Config"].pop("audio"), "160"),
    "batch norms": ("cpc", put("gEncoder", "gEncoder.batchNorm0.running_mean", torch.ones(16)), "batch norm"),
    "no norms": ("cpc", drop("gEncoder", "gEncoder.batchNorm0.weight"), "batchNorm0"),
    "a plain recurrent network": ("cpc", put("gEncoder", "gAR.baseNet.weight_hh_l0", torch.ones(12, 12)), "LSTM"),
    "a network over both directions": (
        "cpc", put("gEncoder", "gAR.baseNet.weight_hh_l0_reverse", torch.ones(48, 12)), "reverse"),
    "overlapping patches": ("audiomae", put("model", "pos_embed", torch.ones(1, 1213, 128)), "1212"),
    "another length": ("audiomae", put("model", "pos_embed", torch.ones(1, 129, 128)), "128 tokens"),
    "another patch": ("audiomae", put("model", "patch_embed.proj.weight", torch.ones(128, 1, 14, 14)), "196"),
    "no last norm": ("audiomae", drop("model", "norm.weight"), "norm.weight"),
    "pre-norm": ("mae-ast", lambda e: e["cfg"]["model"].update(layer_norm_first=True), "layer_norm_first"),
    "convolved positions": ("mae-ast", put("model", "enc_conv_pos_embed.x", torch.ones(2)), "enc_conv_pos_embed"),
    "tokens of another size": ("mae-ast", lambda e: e["cfg"]["model"].update(ast_kernel_size_chan=24), "24"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_layouts_we_do_not_know_are_refused_in_one_line(case, tmp_path):
    project, change, words = case
    changed(path := small(project, tmp_path), change)
    told = refused(f"{project}:{path}")
    assert words in told
    assert str(path) in told


def test_mae_ast_must_say_what_its_tokens_are(tmp_path):
    path, _ = mae_ast(tmp_path / "checkpoint_best.pt", cfg=False)
    assert "'patch' or 'frame'" in refused(f"mae-ast:{path}")


def test_what_is_no_checkpoint_is_refused_in_one_line(tmp_path):
    whole = small("cpc", tmp_path)
    path = tmp_path / "x.pt"
    assert "no such file" in refused(f"cpc:{path}")
    assert "directory" in refused(f"cpc:{tmp_path}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        script = torch.jit.script(nn.Linear(2, 2))
    for content in (b"", b"hello", b"PK\x03\x04 and more", b"\x80\x02}q\x00.", whole.read_bytes()[:500]):
        path.write_bytes(content)
        assert "not a checkpoint" in refused(f"cpc:{path}")
    script.save(path)
    assert "not a checkpoint" in refused(f"cpc:{path}")
    torch.save([1, 2], path)
    assert "list" in refused(f"cpc:{path}")


@pytest.mark.parametrize("zipped", [True, False])
def test_damage_is_never_more_than_one_line(zipped, tmp_path, capsys):
    path = small("cpc", tmp_path)
    torch.save(torch.load(path), path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    draw = random.Random(0)
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(draw.randint(1, 20)):
            damaged[draw.randrange(min(4000, len(whole))) * draw.choice((1, -1))] = draw.randrange(256)
        (tmp_path / "x.pt").write_bytes(damaged)
        code = cli.main(["check", f"cpc:{tmp_path / 'x.pt'}"])  # a traceback would come through
        told = capsys.readouterr().err.splitlines()
        assert code == 0 or (code == 2 and len(told) <= 1)


def test_the_command_line_takes_them(tmp_path, capsys):
    path = small("cpc", tmp_path)
    assert cli.main(["check", f"cpc:{path}"]) == 0
    assert cli.main(["check", f"s3prl:{path}"]) == 2
    assert str(path) in capsys.readouterr().err
    assert cli.main(["list", "encoders", "--json"]) == 0
    assert {f"{project}:FILE" for project in PROJECTS} <= json.loads(capsys.readouterr().out).keys()
