"""Baseline encoders: the contract, and features that are what they say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from auricle.audio.rendering import INSTRUMENTS, Note, compose, render
from auricle.encoders.base import Encoder
from auricle.encoders.baselines import (
    Chroma,
    ChromaConfig,
    Fbank,
    FbankConfig,
    FbankContext,
    FbankContextConfig,
    Mfcc,
    MfccConfig,
)
from auricle.features.frontend import FrontEnd, FrontEndConfig

SNIPPED = (160, 200.0, lambda samples: 1 + (samples - 400) // 160)
"""Hop, offset and frames of Kaldi's framing."""
CENTRED = (640, 0.0, lambda samples: 1 + samples // 640)
BASELINES = {
    "fbank": (lambda: Fbank(FbankConfig()), 80, SNIPPED),
    "fbank-context": (lambda: FbankContext(FbankContextConfig()), 21 * 80, SNIPPED),
    "mfcc": (lambda: Mfcc(MfccConfig()), 39, SNIPPED),
    "chroma": (lambda: Chroma(ChromaConfig()), 12, CENTRED),
}
LOWEST, HIGHEST = 33, 105
"""MIDI numbers of A1 and A7."""


def noise(samples: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=BASELINES)
def encoder(request: pytest.FixtureRequest) -> Encoder:
    return BASELINES[request.param][0]()


@pytest.mark.parametrize("name", BASELINES)
def test_geometry(name: str) -> None:
    build, dim, (hop, offset, frames_of) = BASELINES[name]
    encoder = build()
    assert (encoder.family, encoder.name) == (name, name)
    assert (encoder.sample_rate, encoder.hop, encoder.offset, encoder.dims) == (16000, hop, offset, (dim,))
    assert not encoder.state_dict()
    frames = encoder(noise(16000)[None], torch.tensor([16000]))
    assert [tuple(state.shape) for state in frames.hidden_states] == [(1, frames_of(16000), dim)]
    assert frames.lengths.tolist() == [frames_of(16000)]


@given(lengths=st.lists(st.integers(400, 8000), min_size=1, max_size=4))
@settings(max_examples=10, deadline=None)
@pytest.mark.parametrize("name", BASELINES)
def test_a_clip_is_the_same_alone_and_in_any_batch(name: str, lengths: list[int]) -> None:
    build, _, (_, _, frames_of) = BASELINES[name]
    encoder = build()
    clips = [noise(length, seed) for seed, length in enumerate([*lengths, 400])]
    padded = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    together = encoder(padded, torch.tensor([len(clip) for clip in clips]))
    for row, count, clip in zip(together.hidden_states[0], together.lengths.tolist(), clips, strict=True):
        alone = encoder(clip[None], torch.tensor([len(clip)]))
        assert alone.lengths.tolist() == [count] == [frames_of(len(clip))]
        torch.testing.assert_close(row[:count], alone.hidden_states[0][0, :count], atol=1e-4, rtol=0)


def test_layers_are_honoured_in_the_order_asked(encoder: Encoder) -> None:
    waveforms, lengths = noise(2000)[None], torch.tensor([2000])
    (only,) = encoder(waveforms, lengths).hidden_states
    twice = encoder(waveforms, lengths, layers=[0, 0]).hidden_states
    assert len(twice) == 2
    assert all(torch.equal(state, only) for state in twice)
    assert encoder(waveforms, lengths, layers=[]).hidden_states == []


def test_encode_takes_what_features_gives(encoder: Encoder) -> None:
    waveforms, lengths = noise(2000)[None], torch.tensor([2000])
    x, counts = encoder.features(waveforms, lengths)
    frames = encoder.encode(x, counts)
    assert torch.equal(frames.hidden_states[0], encoder(waveforms, lengths).hidden_states[0])


@pytest.mark.parametrize("name", ["fbank", "fbank-context"])
def test_loudness_is_kept(name: str) -> None:
    """Twice the amplitude is 2 ln 2 more in every band: nothing was normalised away."""
    encoder = BASELINES[name][0]()
    waveforms, lengths = noise(2000)[None], torch.tensor([2000])
    loud, soft = (encoder(gain * waveforms, lengths).hidden_states[0] for gain in (2, 1))
    torch.testing.assert_close(loud - soft, torch.full_like(soft, 2 * np.log(2)), atol=1e-3, rtol=0)


def test_mfcc_holds_loudness_in_its_first_coefficient() -> None:
    encoder = Mfcc(MfccConfig())
    waveforms, lengths = noise(2000)[None], torch.tensor([2000])
    loud, soft = (encoder(gain * waveforms, lengths).hidden_states[0] for gain in (2, 1))
    expected = torch.zeros_like(soft)
    expected[..., 0] = 2 * np.log(2) * np.sqrt(23)
    torch.testing.assert_close(loud - soft, expected, atol=1e-2, rtol=0)


def test_context_is_the_neighbours_with_each_clips_own_ends_repeated() -> None:
    waveforms = torch.nn.utils.rnn.pad_sequence([noise(4000), noise(1000, 1)], batch_first=True)
    lengths = torch.tensor([4000, 1000])
    x, counts = Fbank(FbankConfig()).features(waveforms, lengths)
    stacked = FbankContext(FbankContextConfig(context=3))(waveforms, lengths).hidden_states[0]
    assert counts.tolist() == [23, 4]
    for row, features, count in zip(stacked, x, counts.tolist(), strict=True):
        padded = np.pad(features[:count].numpy(), ((3, 3), (0, 0)), mode="edge")
        expected = np.stack([padded[t : t + 7].ravel() for t in range(count)])
        np.testing.assert_array_equal(row[:count].numpy(), expected)


def test_a_config_of_its_own_is_obeyed() -> None:
    front_end = FrontEndConfig(kind="stft", sample_rate=8000, n_mels=40, deltas=1)
    encoder = Fbank(FbankConfig(front_end=front_end))
    assert (encoder.sample_rate, encoder.hop, encoder.offset, encoder.dims) == (8000, 80, 0.0, (80,))
    batch = noise(1000)[None], torch.tensor([1000])
    assert torch.equal(encoder(*batch).hidden_states[0], FrontEnd(front_end)(*batch)[0])
    assert encoder.fingerprint() != Fbank(FbankConfig()).fingerprint()


def test_it_knows_where_it_lies(encoder: Encoder) -> None:
    assert encoder.device == torch.device("cpu")
    assert encoder.to("meta").device == torch.device("meta")


# -------------------------------------------------------------------------------------------------------------- chroma


def chroma(clips: list[np.ndarray]) -> torch.Tensor:
    """(N, 12) means over time of clips of one length."""
    waveforms = torch.from_numpy(np.stack(clips)).float()
    frames = Chroma(ChromaConfig())(waveforms, torch.full((len(clips),), waveforms.shape[1]))
    assert len(set(frames.lengths.tolist())) == 1
    return frames.hidden_states[0].mean(1)


def sine(pitch: float, seconds: float = 0.5) -> np.ndarray:
    return 0.1 * np.sin(2 * np.pi * 440 * 2 ** ((pitch - 69) / 12) * np.arange(round(16000 * seconds)) / 16000)


@pytest.mark.parametrize("cents", [-30, 0, 30])
@pytest.mark.parametrize("sound", ["sine", "keyboard", "guitar", "organ"])
def test_every_pitch_is_of_its_class_in_every_octave(sound: str, cents: int) -> None:
    pitches = [pitch + cents / 100 for pitch in range(LOWEST, HIGHEST + 1)]
    if sound == "sine":
        clips = [sine(pitch) for pitch in pitches]
    else:
        clips = [render([Note(0.0, 1.0, pitch, timbre=INSTRUMENTS[sound])], 0.5) for pitch in pitches]
    assert chroma(clips).argmax(1).tolist() == [pitch % 12 for pitch in range(LOWEST, HIGHEST + 1)]


def test_pitches_out_of_range_are_unheard() -> None:
    floor = np.log(100.0)
    quiet, lowest, below, highest, above = chroma([0 * sine(69), *map(sine, (LOWEST, 26, HIGHEST, 112))])
    torch.testing.assert_close(quiet, torch.full((12,), floor, dtype=torch.float32))
    assert min(lowest.max(), highest.max()) > floor + 4
    assert max(below.max(), above.max()) < floor + 1


def test_a_triad_is_its_three_classes() -> None:
    for root in range(45, 80):
        (x,) = chroma([sine(root) + sine(root + 3) + sine(root + 7)])
        assert set(x.topk(3).indices.tolist()) == {(root + step) % 12 for step in (0, 3, 7)}


def test_transposed_music_is_rolled() -> None:
    """A piece, and the same with every note a semitone higher: a twelfth of a turn, and no other turn is as near."""
    piece = compose(3, 4.0, key="C major", drums=False)
    semitone = [replace(note, pitch=note.pitch + 1) for note in piece.notes]
    x, higher = chroma([piece.render(), render(semitone, 4.0)])
    distances = [float((higher - x.roll(turn)).norm()) for turn in range(12)]
    assert np.argmin(distances) == 1
    assert distances[1] < 0.2 * sorted(distances)[1]


def test_energies_of_a_sine_are_as_told() -> None:
    """3/32 a² window n_fft, of a high pitch almost all in its own class."""
    (x,) = chroma([sine(HIGHEST, 1.0)])
    assert float(x[9].exp()) == pytest.approx(3 / 32 * 0.1**2 * 4096 * 8192, rel=0.05)
