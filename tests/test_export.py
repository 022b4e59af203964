"""Exports against the tools they are for: transformers opens the folders, onnxruntime runs the graphs."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file

import auricle
from auricle import cli
from auricle.encoders.apc import ApcEncoder, ApcEncoderConfig
from auricle.encoders.base import Encoder
from auricle.encoders.baselines import Chroma, ChromaConfig, Fbank, FbankConfig, FbankContext, FbankContextConfig
from auricle.encoders.checkpoint import load, save
from auricle.encoders.cpc import CpcEncoder, CpcEncoderConfig
from auricle.encoders.mae_ast import MaeAstEncoder, MaeAstEncoderConfig
from auricle.encoders.mel_transformer import MelTransformer, MelTransformerConfig
from auricle.encoders.trill import Trill, TrillConfig
from auricle.encoders.vit import Vit, VitConfig
from auricle.encoders.waveform import WaveformConfig, WaveformEncoder
from auricle.errors import ConfigError, MissingDependencyError
from auricle.exporting import onnx as onnx_room
from auricle.features.frontend import FrontEndConfig

pytestmark = pytest.mark.skipif(
    not hasattr(torch.compiler, "is_exporting"), reason="needs the exporter of a later torch"
)

SMALL = {"dim": 16, "layers": 2, "heads": 2, "ffn": 32}
WAVEFORM = SMALL | {"channels": 16, "position_kernel": 16, "position_groups": 4}
STFT = FrontEndConfig(kind="stft", n_mels=20, normalize="none")
DECIBELS = FrontEndConfig(kind="linear", window_ms=50, hop_ms=12.5, n_fft=2048)
CHROMA = FrontEndConfig(kind="chroma", window_ms=64, low_hz=220, log_floor=1.0, normalize="none")
STACKED = FrontEndConfig(kind="mfcc", deltas=2, stack=3, normalize="unbiased", use_energy=True)
ENCODERS = {
    "fbank-context": lambda: FbankContext(FbankContextConfig(context=2)),
    "chroma": lambda: Chroma(ChromaConfig(front_end=CHROMA)),
    "mel-pre-linear": lambda: MelTransformer(
        MelTransformerConfig(**SMALL, norm="pre", state_norms=True, front_end=DECIBELS)
    ),
    "mel-shared-mfcc": lambda: MelTransformer(MelTransformerConfig(**SMALL, shared_layers=True, front_end=STACKED)),
    "apc-gru": lambda: ApcEncoder(ApcEncoderConfig(dim=16)),
    "apc-causal": lambda: ApcEncoder(ApcEncoderConfig(**SMALL, core="causal_transformer", front_end=STFT)),
    "cpc": lambda: CpcEncoder(CpcEncoderConfig(channels=(8, 8, 8, 8, 16), context_dim=16, context_layers=2)),
    "vit-released": lambda: Vit(VitConfig(**SMALL, fixed_frames=256, positions="audiomae", join="concat")),
    "mae-ast": lambda: MaeAstEncoder(MaeAstEncoderConfig(**SMALL)),
    "trill": lambda: Trill(TrillConfig(width=8, blocks=(1, 1, 1, 1), embedding=16)),
    "trill-mobilenet": lambda: Trill(TrillConfig(network="mobilenet", alpha=0.25, embedding=16)),
    "waveform": lambda: WaveformEncoder(WaveformConfig(**WAVEFORM)),
    "waveform-stacked": lambda: WaveformEncoder(
        WaveformConfig(
            **WAVEFORM,
            conv_norm="layer",
            conv_bias=True,
            normalize=True,
            norm="pre",
            position_style="stacked",
            position_layers=3,
        )
    ),
}


def build(name: str) -> Encoder:
    """With weights of a trained network's size: fresh ones would let mistakes in attention pass."""
    torch.manual_seed(0)
    encoder = ENCODERS[name]().eval()
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    return encoder


def noise(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips that get louder, zero past their ends."""
    sizes = torch.tensor(lengths)
    place = torch.arange(max(lengths))
    waveforms = torch.randn(len(lengths), max(lengths), generator=torch.Generator().manual_seed(sum(lengths)))
    return torch.where(place < sizes[:, None], waveforms * (0.02 + place / 1e5), 0), sizes


def run(session, waveforms, lengths):
    *states, counts = session.run(None, {"waveforms": waveforms.numpy(), "lengths": lengths.numpy()})
    return [[row[:count] for row, count in zip(state, counts, strict=True)] for state in states]


@torch.no_grad()
def run_torch(encoder, waveforms, lengths, layers=None):
    """In float64 where the encoder is: its own rounding would hide that of the graph in faint spectral bins."""
    dtype = next(encoder.parameters(), waveforms).dtype
    frames = encoder(waveforms.to(dtype), lengths, layers)
    return [
        [row[:count].numpy() for row, count in zip(state, frames.lengths.tolist(), strict=True)]
        for state in frames.hidden_states
    ]


def assert_same(ours, theirs):
    for state, other in zip(ours, theirs, strict=True):
        for row, right in zip(state, other, strict=True):
            np.testing.assert_allclose(row, right, rtol=1e-4, atol=1e-4)


def opened(folder):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(folder / "model.onnx", options)


# --------------------------------------------------------------------------------------------------------- onnx


@pytest.fixture(scope="module")
def fbank(tmp_path_factory):
    """A front end alone: quick to export."""
    folder = tmp_path_factory.mktemp("onnx") / "fbank"
    encoder = Fbank(FbankConfig(front_end=STFT)).eval()
    return encoder, auricle.export(encoder, folder, format="onnx")


def test_a_front_end_runs_on_any_batch_and_length(fbank):
    encoder, folder = fbank
    session = opened(folder)
    for lengths in [(16000,), (7,), (40001, 12345, 160, 1)]:
        waveforms, sizes = noise(*lengths)
        assert_same(run(session, waveforms, sizes), run_torch(encoder, waveforms, sizes))
    waveforms, sizes = noise(40001, 12345)
    alone = [run(session, *noise_of) for noise_of in ((waveforms[:1], sizes[:1]), (waveforms[1:, :12345], sizes[1:]))]
    assert_same(run(session, waveforms, sizes), [[clip[0][0] for clip in alone]])


def test_silence_stays_finite(fbank):
    """The exporter's optimiser would drop the floor under the logarithm."""
    encoder, folder = fbank
    silence = torch.zeros(1, 8000), torch.tensor([8000])
    assert_same(run(opened(folder), *silence), run_torch(encoder, *silence))


def test_a_graph_says_what_it_is(fbank):
    encoder, folder = fbank
    model = onnx.load(folder / "model.onnx")
    onnx.checker.check_model(model)
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert said["auricle"] == auricle.__version__
    assert json.loads(said["format"]) == 1
    assert [json.loads(said[key]) for key in ("sample_rate", "hop", "offset", "layers")] == [16000, 160, 0.0, [0]]
    assert json.loads(said["config"]) == encoder.config.model_dump(mode="json")
    assert [value.name for value in model.graph.input] == ["waveforms", "lengths"]
    assert [value.name for value in model.graph.output] == ["layer_0", "frames"]
    shapes = [[size.dim_param for size in value.type.tensor_type.shape.dim] for value in model.graph.input]
    assert all(name for shape in shapes for name in shape)  # no size is fixed


def test_a_graph_that_differs_is_refused(fbank):
    _, folder = fbank
    other = Fbank(FbankConfig(front_end=STFT.model_copy(update={"log_floor": 1.0})))
    with pytest.raises(ConfigError, match="differs from PyTorch by"):
        onnx_room._check(onnx_room._Graph(other, [0], False), folder / "model.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODERS)
def test_a_network_runs_on_any_batch_and_length(name, tmp_path):
    encoder = build(name)
    session = opened(auricle.export(encoder, tmp_path / "out", format="onnx", layers="all"))
    encoder.double()
    for lengths in [(24000,), (300,), (50001, 16000, 33333)]:
        waveforms, sizes = noise(*lengths)
        assert_same(run(session, waveforms, sizes), run_torch(encoder, waveforms, sizes))
        for clip, size in enumerate(lengths):
            alone = run(session, waveforms[clip : clip + 1, :size], sizes[clip : clip + 1])
            assert_same(alone, [[state[clip]] for state in run(session, waveforms, sizes)])


@pytest.mark.slow
def test_layers_are_chosen_and_long_clips_are_one_pass(tmp_path, capsys):
    def build_mel(chunk_frames):
        torch.manual_seed(0)
        return MelTransformer(MelTransformerConfig(**SMALL, chunk_frames=chunk_frames)).eval()

    save(build_mel(chunk_frames=50), tmp_path / "mel")  # auricle itself takes longer clips in windows
    for layers, names in {"mean": ["mean"], "2,0": ["layer_2", "layer_0"]}.items():
        out = tmp_path / layers
        args = ["export", str(tmp_path / "mel"), "--format", "onnx", "--output", str(out), "--layers", layers]
        assert cli.main(args) == 0
        assert "model.onnx" in capsys.readouterr().out
        session, clips = opened(out), noise(50001, 20000)
        assert [value.name for value in session.get_outputs()] == [*names, "frames"]
        first, middle, last = run_torch(build_mel(chunk_frames=1500), *clips)
        mean = [np.mean(rows, axis=0) for rows in zip(first, middle, last, strict=True)]
        assert_same(run(session, *clips), [mean] if layers == "mean" else [last, first])
        with pytest.raises(AssertionError):  # windows differ: the oracle above can fail
            assert_same([last], run_torch(load(tmp_path / "mel"), *clips, layers=[2]))


def test_what_has_no_graph_is_told_in_a_line(tmp_path, monkeypatch):
    class Somebodys(Fbank):
        family = "somebodys"

    with pytest.raises(ConfigError, match="somebody else's code"):
        auricle.export(Somebodys(FbankConfig()), tmp_path / "out", format="onnx")
    with pytest.raises(ConfigError, match="layer"):
        auricle.export("fbank", tmp_path / "out", format="onnx", layers=[3])
    with pytest.raises(ConfigError, match="each layer once"):
        auricle.export("fbank", tmp_path / "out", format="onnx", layers=[0, 0])
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else found(name))
    with pytest.raises(
        MissingDependencyError, match=r"needs onnxruntime; install it with: pip install 'auricle\[onnx\]'"
    ):
        auricle.export("fbank", tmp_path / "out", format="onnx")
    assert not (tmp_path / "out").exists()


# ----------------------------------------------------------------------------------------------------------- hf


def test_a_run_becomes_a_folder_that_transformers_opens(tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    encoder = build("waveform")
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000007"
    save(encoder, checkpoint, seed=3, step=7, method="hubert", preset="tiny")
    save_file({"centroids": torch.arange(6.0).view(2, 3)}, checkpoint / "objective.safetensors")
    args = ["export", str(tmp_path / "run"), "--format", "hf", "--output", str(tmp_path / "out")]
    assert cli.main(args) == 0
    assert "objective.safetensors" in capsys.readouterr().out
    assert load_file(tmp_path / "out" / "objective.safetensors")["centroids"].tolist() == [[0, 1, 2], [3, 4, 5]]
    model = transformers.HubertModel.from_pretrained(tmp_path / "out").eval()
    waveforms, lengths = noise(8000)
    with torch.no_grad():
        theirs = model(waveforms, output_hidden_states=True).hidden_states
    assert_same(run_torch(encoder, waveforms, lengths), [state.numpy() for state in theirs])
    again = load(f"hf:{tmp_path / 'out'}")
    assert again.config == encoder.config
    assert_same(run_torch(again, waveforms, lengths), run_torch(encoder, waveforms, lengths))


def test_other_families_and_full_folders_are_refused(tmp_path, capsys):
    args = ["export", "fbank", "--format", "hf", "--output"]
    assert cli.main([*args, str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert "family 'fbank'" in told
    assert "save_pretrained" in told
    (tmp_path / "file").write_text("mine")
    assert cli.main([*args, str(tmp_path)]) == 2
    assert "not an empty folder" in capsys.readouterr().err
