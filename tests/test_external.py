"""Python callables as encoders, and what `check` finds in broken ones."""

import re
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from auricle.config import Config
from auricle.encoders import BASELINES
from auricle.encoders.base import Encoder, Frames
from auricle.encoders.check import check
from auricle.encoders.checkpoint import load, save
from auricle.encoders.external import wrap
from auricle.errors import AuricleError, CheckpointError, ConfigError


class Energies:
    """Log energies of ten ranges of 64 samples' spectrum, a frame every 64 samples: as plain as an object can be."""

    sample_rate, hop, min_samples = 1000, 64, 64

    def __init__(self, scale: float = 1.0):
        self.scale = scale
        self.mix = nn.Linear(10, 3)
        nn.init.eye_(self.mix.weight)

    def __call__(self, waveforms: Tensor) -> Tensor:
        frames = waveforms.unfold(1, 64, 64)
        spectrum = torch.fft.rfft(self.scale * frames).abs()[..., :30].unflatten(-1, (10, 3)).sum(-1)
        return self.mix((spectrum + 1e-3).log())


class Layered(nn.Module):
    """Takes lengths, gives two layers and says how many frames each clip has."""

    sample_rate, hop, offset, pads_safely = 1000, 50, 25, True

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0]))

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Frames:
        padded = nn.functional.pad(waveforms, (0, -waveforms.shape[1] % 50))
        first = padded.unflatten(1, (-1, 50)).square().mean(2, keepdim=True).sqrt()
        return Frames([first, first * self.weight], -(-lengths // 50))


def problems(thing):
    report = check(wrap(thing, "thing") if not isinstance(thing, Encoder) else thing)
    assert report.ok == (not any(not finding.ok for finding in report.findings))
    return {finding.name: finding.message for finding in report.findings if not finding.ok}


def test_a_plain_object_is_an_encoder():
    encoder = wrap(Energies, "mine:Energies")
    assert (encoder.sample_rate, encoder.hop, encoder.offset, encoder.dims) == (1000, 64, 32.0, (3,))
    assert not encoder.pads_safely
    clip = np.random.default_rng(0).normal(0, 0.1, 1000).astype(np.float32)
    frames = encoder.frames(clip, 1000)
    np.testing.assert_allclose(frames, encoder.thing(torch.from_numpy(clip)[None])[0].detach(), rtol=1e-6)
    assert not problems(encoder)


def test_several_layers_and_lengths():
    encoder = wrap(Layered(), "mine")
    assert encoder.dims == (1, 2)
    assert encoder.pads_safely
    out = encoder(torch.ones(2, 200), torch.tensor([200, 101]), [1])
    assert len(out.hidden_states) == 1
    assert out.hidden_states[0].shape == (2, 4, 2)
    assert out.lengths.tolist() == [4, 3]
    assert not problems(encoder)


def test_weights_move_with_the_wrapper_and_stay_out_of_training_mode():
    for thing in (Energies(), Layered()):
        encoder = wrap(thing, "mine")
        assert not any(module.training for module in encoder.modules())
        encoder.to(torch.float64)
        assert {weight.dtype for weight in encoder.parameters()} == {torch.float64}


def test_the_fingerprint_follows_weights_numbers_and_arrays():
    torch.manual_seed(0)
    first = Energies()
    prints = [wrap(first, "a").fingerprint(), wrap(Layered(), "a").fingerprint()]
    assert wrap(first, "b").fingerprint() == prints[0]
    first.scale = 2.0
    prints.append(wrap(first, "a").fingerprint())
    first.table = np.arange(3)
    prints.append(wrap(first, "a").fingerprint())
    with torch.no_grad():
        first.mix.weight[0, 0] = 7
    prints.append(wrap(first, "a").fingerprint())
    assert len(set(prints)) == len(prints)
    first.fingerprint = "mine-v2"
    assert wrap(first, "a").fingerprint() == "mine-v2"


MODULE = """
import torch

class Mine:
    sample_rate, hop = 8000, 80
    def __call__(self, waveforms):
        return waveforms[:, : waveforms.shape[1] // 80 * 80].unflatten(1, (-1, 80)) * {gain}

def small():
    return Mine()

def needs(size):
    return Mine()

made = Mine()
number = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module in the working directory, importable by name only from there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = f"encoder_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(MODULE.format(gain=1)))
    yield name
    sys.modules.pop(name, None)


@pytest.mark.parametrize("attribute", ["Mine", "small", "made"])
def test_module_attribute_finds_class_factory_and_object_in_the_working_directory(module, attribute):
    encoder = load(f"{module}:{attribute}")
    assert encoder.name == f"{module}:{attribute}"
    assert encoder.dims == (80,)
    assert not encoder.training


def test_the_fingerprint_follows_the_source(module, tmp_path):
    before = load(f"{module}:Mine").fingerprint()
    assert load(f"{module}:small").fingerprint() == before
    sys.modules.pop(module)
    (tmp_path / f"{module}.py").write_text(MODULE.format(gain=10))
    import importlib
    import linecache

    importlib.invalidate_caches()
    linecache.checkcache()
    assert load(f"{module}:Mine").fingerprint() != before


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("Mien", "unknown attribute 'Mien'; did you mean 'Mine'"),
        ("needs", "without arguments"),
        ("number", "not callable"),
    ],
)
def test_mistakes_in_the_name_are_explained(module, attribute, message):
    with pytest.raises(ConfigError, match=message) as error:
        load(f"{module}:{attribute}")
    assert "\n" not in str(error.value)


def test_modules_that_are_missing_or_broken_are_explained(module, tmp_path):
    (tmp_path / "broken_encoder.py").write_text("def (:\n")
    for name in ("no_such_module_here:X", "broken_encoder:X"):
        with pytest.raises(ConfigError, match="cannot be imported") as error:
            load(name)
        assert "\n" not in str(error.value)


def plain(call, **attributes):
    return type("Plain", (), {"sample_rate": 1000, "hop": 50, "__call__": staticmethod(call), **attributes})()


def frames_of(waveforms, size=50, hop=50):
    return waveforms.unfold(1, size, hop)


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (plain(frames_of, sample_rate=None), "`sample_rate` .Hz"),
        (plain(frames_of, hop=2.5), "`hop` .samples between frames"),
        (plain(lambda waveforms: waveforms), r"returned shape \(1, 1000\); expected a tensor \(1, T, D\)"),
        (plain(lambda waveforms: frames_of(waveforms).numpy()), "returned ndarray"),
        (plain(lambda waveforms: []), "empty list"),
        (plain(lambda waveforms, sizes: frames_of(waveforms)), r"with .waveforms. it raised .*'sizes'"),
    ],
)
def test_mistakes_of_an_object_are_explained(thing, message):
    with pytest.raises(ConfigError, match=message) as error:
        wrap(thing, "mine")
    assert "\n" not in str(error.value)


def test_unequal_lengths_need_frame_counts():
    with pytest.raises(ConfigError, match="frame count"):
        wrap(plain(frames_of, pads_safely=True), "mine")(torch.zeros(2, 100), torch.tensor([100, 60]))


def test_code_cannot_be_saved(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be saved"):
        save(wrap(Energies(), "mine:Energies"), tmp_path)


# ------------------------------------------------------------------------------- check: planted faults


def test_baselines_keep_every_promise():
    for name in BASELINES:
        report = check(load(name))
        assert report.ok, str(report)
        assert "keeps every promise" in str(report)


def level(waveforms):
    """(B, T, 1) level of frames of 50 samples, the last one padded."""
    padded = nn.functional.pad(waveforms, (0, -waveforms.shape[1] % 50))
    return padded.unflatten(1, (-1, 50)).square().mean(2, keepdim=True).sqrt()


def test_a_sound_object_passes_and_its_report_is_printed():
    report = check(wrap(plain(level), "mine"))
    assert report.ok, str(report)
    assert str(report).count("\n") == len(report.findings)


def test_planted_faults_are_found_by_name():
    def noisy(waveforms):
        return level(waveforms) + torch.rand(1)

    def deaf_to_silence(waveforms):
        return level(waveforms).log()

    def across_the_batch(waveforms):
        return level(waveforms) - level(waveforms).mean()

    def fixed_length(waveforms):
        return level(nn.functional.pad(waveforms, (0, 60_000))[:, :30_000])[:, : -(-waveforms.shape[1] // 50)]

    def picky(waveforms):
        return level(waveforms) if waveforms.shape[1] > 70 else waveforms.reshape(-1, 7, 11)

    planted = {
        "determinism": plain(noisy),
        "silence": plain(deaf_to_silence),
        "batch": plain(across_the_batch),
        "long": plain(fixed_length),
        "short": plain(picky),
        "hop": plain(level, hop=60),
        "offset": plain(level, offset=250),
        "loud": plain(lambda waveforms: level(waveforms) / (waveforms.abs().amax() < 1)),
    }
    for name, thing in planted.items():
        found = problems(thing)
        assert name in found, f"{name}: {found}"
        assert "\n" not in found[name]
    nan = problems(plain(lambda waveforms: level(waveforms) * torch.nan))
    assert {"silence", "loud", "long"} <= nan.keys()
    assert nan.keys().isdisjoint({"shapes", "determinism", "batch"})  # which NaN in every place does not break
    assert "set hop to about 50" in problems(planted["hop"])["hop"]
    told = float(re.search(r"at sample (-?\d+),", problems(planted["offset"])["offset"])[1])
    assert abs(told - 25) <= 4  # eight phases of a hop of 50
    assert "min_samples" in problems(planted["short"])["short"]


class Leaky(Encoder):
    """Normalises over the padded clip, and promises that padding is safe."""

    family = "leaky"

    def __init__(self) -> None:
        super().__init__()
        self.config, self.sample_rate, self.hop, self.offset, self.dims = Config(), 1000, 50, 25.0, (1,)

    def forward(self, waveforms, lengths, layers=None):
        x = level(waveforms)
        return Frames([x - x.mean(1, keepdim=True)], -(-lengths // 50))


class Miscounting(Leaky):
    def forward(self, waveforms, lengths, layers=None):
        return Frames([level(waveforms)], torch.full_like(lengths, -(-waveforms.shape[1] // 50)))


class WrongWidth(Leaky):
    def __init__(self) -> None:
        super().__init__()
        self.dims = (2,)


def test_faults_of_our_own_kind_are_found():
    assert "mask padding" in problems(Leaky())["batch"]
    assert "count frames" in problems(Miscounting())["batch"]
    assert "dims" in problems(WrongWidth())["shapes"]


def test_check_leaves_the_mode_alone():
    encoder = Leaky().train()
    check(encoder)
    assert encoder.training
    assert issubclass(ConfigError, AuricleError)
