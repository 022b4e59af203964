"""Features against kaldi-native-fbank, slow float64 references, scipy, transformers, and themselves in a batch."""

from __future__ import annotations

import itertools
import math

import kaldi_native_fbank as knf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.audio_utils import mel_filter_bank, spectrogram
from transformers.audio_utils import window_function as hf_window

from auricle.config import edit
from auricle.errors import ConfigError
from auricle.features.chroma import Chromagram
from auricle.features.deltas import add_deltas, replicate_edges
from auricle.features.fbank import EPSILON, KaldiFbank
from auricle.features.frontend import FrontEnd, FrontEndConfig
from auricle.features.melspec import DecibelSpectrogram, LogSpectrogram, reflect_edges
from auricle.features.mfcc import KaldiMfcc
from auricle.features.normalize import level_gain, normalize_utterance
from auricle.features.spectrum import mel_filters

KALDI_WINDOWS = {"povey": "povey", "hann": "hanning", "hamming": "hamming"}


def signal(samples: int, seed: int = 0, offset: float = 0.0) -> np.ndarray:
    """Tones over noise 23 dB below them, in [-1, 1]."""
    rng = np.random.default_rng(seed)
    t = np.arange(samples) / 16000
    tones = 0.2 * np.sin(2 * np.pi * 440 * t) + 0.05 * np.sin(2 * np.pi * 3100 * t + 1)
    return (tones + 1e-2 * rng.standard_normal(samples) + offset).astype(np.float32)


def batch_of(*clips: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = torch.tensor([len(clip) for clip in clips])
    waveforms = torch.zeros(len(clips), int(lengths.max()))
    for row, clip in zip(waveforms, clips, strict=True):
        row[: len(clip)] = torch.from_numpy(clip)
    return waveforms, lengths


def collect(online: knf.OnlineFbank | knf.OnlineMfcc, waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    online.accept_waveform(sample_rate, waveform)
    online.input_finished()
    return np.stack([online.get_frame(i) for i in range(online.num_frames_ready)])


def kaldi_options(options, sample_rate: int, n_mels: int, window: str):
    options.frame_opts.dither = 0
    options.frame_opts.samp_freq = sample_rate
    options.frame_opts.window_type = KALDI_WINDOWS[window]
    options.mel_opts.num_bins = n_mels
    return options


# Kaldi


@pytest.mark.parametrize("sample_rate", [8000, 16000])
@pytest.mark.parametrize("n_mels", [23, 64, 80, 128])
@pytest.mark.parametrize("window", KALDI_WINDOWS)
@pytest.mark.parametrize("scale", ["int16", "unit"])
def test_fbank_equals_kaldi(sample_rate: int, n_mels: int, window: str, scale: str) -> None:
    waveform = signal(sample_rate, offset=0.05)
    gain = 32768 if scale == "int16" else 1
    online = knf.OnlineFbank(kaldi_options(knf.FbankOptions(), sample_rate, n_mels, window))
    theirs = collect(online, waveform * gain, sample_rate)
    front_end = FrontEnd(
        FrontEndConfig(sample_rate=sample_rate, n_mels=n_mels, window=window, scale=scale, normalize="none")
    )
    ours, lengths = front_end(*batch_of(waveform))
    assert ours.shape == (1, *theirs.shape)
    assert lengths.tolist() == [len(theirs)]
    heard = theirs > math.log(EPSILON) + 1
    assert heard.mean() > 0.9 or scale == "unit"
    np.testing.assert_allclose(ours[0].numpy()[heard], theirs[heard], rtol=0, atol=1e-3)
    np.testing.assert_allclose(ours[0].numpy()[~heard], theirs[~heard], rtol=0, atol=1)


@pytest.mark.parametrize("offset", [0.0, 0.05, 0.5])
def test_a_large_offset_costs_a_faint_signal_no_precision(offset: float) -> None:
    """In float32 the mean of samples near 0.5 is rounded by as much as the low bands of such noise hold."""
    waveforms = torch.from_numpy(1e-3 * np.random.default_rng(0).standard_normal((1, 16000)) + offset).float()
    single, lengths = KaldiFbank()(waveforms, torch.tensor([16000]))
    double, _ = KaldiFbank()(waveforms.double(), lengths)
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, atol=5e-4, rtol=0)


def test_scales_are_20_794_apart_above_the_floor() -> None:
    batch = batch_of(signal(16000))
    loud, _ = KaldiFbank(scale="int16")(*batch)
    soft, _ = KaldiFbank(scale="unit")(*batch)
    heard = soft > math.log(EPSILON) + 1
    assert heard.float().mean() > 0.2
    torch.testing.assert_close((loud - soft)[heard], torch.full_like(loud[heard], 20.794415), atol=2e-4, rtol=0)


def test_digital_silence_equals_kaldi_exactly() -> None:
    online = knf.OnlineFbank(kaldi_options(knf.FbankOptions(), 16000, 80, "povey"))
    theirs = collect(online, np.zeros(8000, np.float32), 16000)
    ours, _ = KaldiFbank()(torch.zeros(1, 8000), torch.tensor([8000]))
    np.testing.assert_array_equal(ours[0].numpy(), theirs)


@pytest.mark.parametrize("use_energy", [False, True])
@pytest.mark.parametrize("sample_rate", [8000, 16000])
@pytest.mark.parametrize("scale", ["int16", "unit"])
def test_mfcc_equals_kaldi(use_energy: bool, sample_rate: int, scale: str) -> None:
    waveform = signal(sample_rate) * 0.5
    options = kaldi_options(knf.MfccOptions(), sample_rate, 23, "povey")
    options.use_energy = use_energy
    theirs = collect(knf.OnlineMfcc(options), waveform * (32768 if scale == "int16" else 1), sample_rate)
    config = FrontEndConfig(
        kind="mfcc", sample_rate=sample_rate, n_mels=23, use_energy=use_energy, scale=scale, normalize="none"
    )
    ours, _ = FrontEnd(config)(*batch_of(waveform))
    assert ours.shape[-1] == 13
    np.testing.assert_allclose(ours[0].numpy(), theirs, rtol=0, atol=5e-3)


def test_mfcc_without_lifter_is_the_orthonormal_dct() -> None:
    from scipy.fft import dct

    fbank = KaldiFbank(n_mels=40)
    batch = batch_of(signal(4000))
    ours, _ = KaldiMfcc(fbank, n_ceps=40, lifter=0)(*batch)
    np.testing.assert_allclose(ours.numpy(), dct(fbank(*batch)[0].numpy(), norm="ortho"), atol=1e-4)


# Centred STFT


def slow_log_spectrogram(
    x: np.ndarray, n_fft: int, window: np.ndarray, hop: int, filters: np.ndarray, power: float, floor: float
) -> np.ndarray:
    """The definition, in float64: a DFT by its matrix, a frame at a time."""
    left = (n_fft - len(window)) // 2
    window = np.pad(window, (left, n_fft - len(window) - left))
    padded = np.pad(x.astype(np.float64), n_fft // 2, mode="reflect")
    turn = np.exp(-2j * np.pi * np.outer(np.arange(n_fft), np.arange(n_fft // 2 + 1)) / n_fft)
    frames = [padded[t * hop : t * hop + n_fft] * window for t in range(1 + len(x) // hop)]
    return np.log((np.abs(np.stack(frames) @ turn) ** power) @ filters + floor)


def assert_same_amplitudes(ours: torch.Tensor, expected: np.ndarray, power: float, atol: float) -> None:
    """Log sums of magnitudes or powers agree as amplitudes: a bin in a null is as uncertain as any other."""
    np.testing.assert_allclose(np.exp(ours.numpy() / power), np.exp(expected / power), rtol=1e-4, atol=atol)


def hann(size: int) -> np.ndarray:
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)


@pytest.mark.parametrize(
    "config",
    [
        FrontEndConfig(kind="stft", normalize="none"),
        FrontEndConfig(kind="stft", n_mels=0, normalize="none"),
        FrontEndConfig(kind="stft", n_mels=0, power=1, normalize="none"),
        FrontEndConfig(kind="stft", power=1, low_hz=60, high_hz=7800, n_mels=64, normalize="none"),
        FrontEndConfig(
            kind="stft",
            window_ms=50,
            hop_ms=12.5,
            n_fft=2048,
            mel_scale="slaney",
            mel_norm="slaney",
            log_floor=1e-6,
            normalize="none",
        ),
    ],
    ids=["s3prl", "linear", "magnitude-linear", "magnitude-mel", "librosa"],
)
@pytest.mark.parametrize("samples", [4000, 70, 1])
def test_stft_equals_its_definition(config: FrontEndConfig, samples: int) -> None:
    n_fft = config.n_fft or config.window_size
    filters = np.eye(n_fft // 2 + 1)
    if config.n_mels:
        filters = mel_filter_bank(
            n_fft // 2 + 1,
            config.n_mels,
            config.lowest_hz,
            config.high_hz or 8000,
            16000,
            norm="slaney" if config.mel_norm == "slaney" else None,
            mel_scale=config.mel_scale,
        )
    waveform = signal(samples)
    expected = slow_log_spectrogram(
        waveform, n_fft, hann(config.window_size), config.hop_size, filters, config.power, config.log_floor
    )
    ours, lengths = FrontEnd(config)(*batch_of(waveform))
    assert lengths.tolist() == [len(expected)]
    assert_same_amplitudes(ours[0], expected, config.power, 1e-7 * n_fft)
    exact, _ = FrontEnd(config)(torch.from_numpy(waveform)[None].double(), torch.tensor([samples]))
    assert exact.dtype == torch.float64
    assert_same_amplitudes(exact[0], expected, config.power, 1e-8 * n_fft)


def test_stft_equals_transformers() -> None:
    waveform = signal(8000)
    theirs = spectrogram(
        waveform,
        hf_window(400, "hann"),
        400,
        160,
        power=2.0,
        mel_filters=mel_filter_bank(201, 80, 0, 8000, 16000, mel_scale="htk"),
        mel_floor=0.0,
    )
    ours, _ = LogSpectrogram(log_floor=1e-10)(*batch_of(waveform))
    np.testing.assert_allclose(ours[0].numpy(), np.log(theirs.T + 1e-10), atol=2e-3)


@pytest.mark.parametrize(("scale", "norm"), [("htk", "none"), ("htk", "slaney"), ("slaney", "slaney")])
def test_mel_filters_equal_transformers(scale: str, norm: str) -> None:
    theirs = mel_filter_bank(201, 40, 50, 7000, 16000, norm=None if norm == "none" else norm, mel_scale=scale)
    np.testing.assert_allclose(mel_filters(scale, 16000, 400, 40, 50, 7000, norm).numpy(), theirs, atol=1e-12)


def slow_chroma_filters(n_fft: int, low: int, high: int) -> np.ndarray:
    """Bin by bin and pitch by pitch: a triangle reaches from one semitone to the next on either side."""
    filters = np.zeros((n_fft // 2 + 1, 12))
    for number, pitch in itertools.product(range(1, n_fft // 2 + 1), range(low, high + 1)):
        semitones = 12 * math.log2(number * 16000 / n_fft / 440) + 69 - pitch
        filters[number, pitch % 12] += max(0.0, 1 - abs(semitones))
    return filters


@pytest.mark.parametrize("samples", [16000, 70, 1])
def test_chroma_equals_its_definition(samples: int) -> None:
    waveform = signal(samples)
    expected = slow_log_spectrogram(waveform, 8192, hann(4096), 640, slow_chroma_filters(8192, 33, 105), 2.0, 100.0)
    ours, lengths = Chromagram()(*batch_of(waveform))
    assert lengths.tolist() == [len(expected)]
    assert_same_amplitudes(ours[0], expected, 2.0, 1e-3)
    config = FrontEndConfig(
        kind="chroma", window_ms=100, hop_ms=20, n_fft=2048, low_hz=100, power=1, log_floor=0.1, normalize="none"
    )
    expected = slow_log_spectrogram(waveform, 2048, hann(1600), 320, slow_chroma_filters(2048, 44, 119), 1.0, 0.1)
    ours, _ = FrontEnd(config)(*batch_of(waveform))  # Ab2 is 103.8 Hz, and B8 7902 Hz
    assert_same_amplitudes(ours[0], expected, 1.0, 1e-3)


def test_decibel_spectrogram_equals_its_definition() -> None:
    waveform = signal(3000)
    emphasised = waveform.astype(np.float64).copy()
    emphasised[1:] -= 0.97 * waveform[:-1]
    log_magnitude = slow_log_spectrogram(emphasised, 2048, hann(800), 200, np.eye(1025), 1.0, 0.0)
    decibels = 20 * np.maximum(log_magnitude / math.log(10), -5) - 20
    ours, lengths = DecibelSpectrogram()(*batch_of(waveform))
    assert ours.shape == (1, 16, 1025)
    assert lengths.tolist() == [16]
    np.testing.assert_allclose(ours[0].numpy(), np.clip((decibels + 100) / 100, 0, 1), atol=1e-4)
    assert 0.1 < ours.mean() < 0.9


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    before=st.integers(1, 40),
    after=st.integers(1, 40),
)
def test_reflection_equals_numpys(lengths: list[int], before: int, after: int) -> None:
    clips = [np.random.default_rng(n).standard_normal(n).astype(np.float32) for n in lengths]
    padded = reflect_edges(*batch_of(*clips), before, after)
    for row, clip in zip(padded.numpy(), clips, strict=True):
        np.testing.assert_array_equal(row[: before + len(clip) + after], np.pad(clip, (before, after), mode="reflect"))
        assert not row[before + len(clip) + after :].any()


# Level, deltas, normalisation, stacking


def test_level_is_that_of_the_true_samples_and_silence_stays_silent() -> None:
    waveforms, lengths = batch_of(signal(1000), signal(16000, 1), np.zeros(500, np.float32))
    scaled = waveforms * level_gain(waveforms, lengths, -25.0)
    for row, length in zip(scaled[:2], lengths[:2], strict=True):
        assert 20 * math.log10(row[:length].square().mean().sqrt()) == pytest.approx(-25, abs=1e-4)
    assert not scaled[2].any()


def test_level_does_not_depend_on_padding_by_a_single_bit() -> None:
    """Bands far below the loudest hold the rounding of every sample, so the gain must not differ at all."""
    clips = [signal(1000 + 37 * seed, seed) for seed in range(40)]
    together = level_gain(*batch_of(*clips), -25.0)
    assert torch.equal(together, torch.cat([level_gain(*batch_of(clip), -25.0) for clip in clips]))


def test_deltas_are_regression_slopes_and_replicate_the_true_ends() -> None:
    x = torch.randn(2, 12, 3, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([12, 7])
    ours = add_deltas(x, lengths, 2)
    assert ours.shape == (2, 12, 9)
    for row, length, out in zip(x.numpy(), lengths.tolist(), ours.numpy(), strict=True):
        static = row[:length]
        for order in (1, 2):
            padded = np.pad(static, ((2, 2), (0, 0)), mode="edge")
            static = np.stack([np.polyfit(range(5), padded[t : t + 5], 1)[0] for t in range(length)])
            np.testing.assert_allclose(out[:length, 3 * order : 3 * order + 3], static, atol=1e-5)


def test_edges_repeat_each_clips_own_frames() -> None:
    x = torch.arange(10.0).reshape(2, 5, 1)
    padded = replicate_edges(x, torch.tensor([5, 2]), 2)[..., 0]
    assert padded.tolist() == [[0, 0, 0, 1, 2, 3, 4, 4, 4], [5, 5, 5, 6, 6, 6, 6, 6, 6]]


def test_normalisation_is_over_true_frames_and_padding_becomes_zero() -> None:
    x = 5 + 3 * torch.randn(2, 50, 4, generator=torch.Generator().manual_seed(0))
    x[1, 20:] = 1e6
    x[:, :, 3] = -15.9424
    out = normalize_utterance(x, torch.tensor([50, 20]))
    for row, true, length in zip(out, x, (50, 20), strict=True):
        reference = (true[:length] - true[:length].mean(0)) / true[:length].std(0, correction=0)
        torch.testing.assert_close(row[:length, :3], reference[:, :3], atol=1e-4, rtol=0)
    assert not out[1, 20:].any()
    assert not out[..., 3].any()  # a constant channel carries nothing, not amplified rounding


def test_stacking_joins_frames_in_time_order_and_drops_the_tail() -> None:
    config = FrontEndConfig(kind="stft", n_mels=8, normalize="none")
    batch = batch_of(signal(3300), signal(1700))
    x, lengths = FrontEnd(config)(*batch)
    stacked, steps = FrontEnd(edit(config, stack=3))(*batch)
    assert lengths.tolist() == [21, 11]
    assert steps.tolist() == [7, 3]
    torch.testing.assert_close(stacked[0], x[0].reshape(7, 24))
    torch.testing.assert_close(stacked[1, :3], x[1, :9].reshape(3, 24))
    assert not stacked[1, 3:].any()


# The whole front end

FRONT_ENDS = {
    "kaldi": FrontEndConfig(normalize="none"),
    "kaldi-240": FrontEndConfig(deltas=2, scale="unit"),
    "mfcc": FrontEndConfig(kind="mfcc", n_mels=23, deltas=2, use_energy=True),
    "s3prl": FrontEndConfig(kind="stft", level_db=-25),
    "paper-base": FrontEndConfig(
        kind="stft", window_ms=50, hop_ms=12.5, n_fft=2048, mel_scale="slaney", mel_norm="slaney", deltas=1
    ),
    "paper-large": FrontEndConfig(kind="linear", window_ms=50, hop_ms=12.5, n_fft=2048, stack=3),
    "chroma": FrontEndConfig(kind="chroma", window_ms=50, hop_ms=12.5, n_fft=1024, low_hz=220, high_hz=3520),
}


@pytest.mark.parametrize("name", FRONT_ENDS)
@given(seconds=st.lists(st.floats(0.00001, 0.3), min_size=1, max_size=4), data=st.data())
@settings(max_examples=15, deadline=None)
def test_a_clip_is_the_same_alone_and_in_any_batch(name: str, seconds: list[float], data: st.DataObject) -> None:
    front_end = FrontEnd(FRONT_ENDS[name])
    one_frame = data.draw(st.sampled_from([400, 560, 3, 6000]))
    clips = [signal(max(1, int(s * 16000)), seed) for seed, s in enumerate(seconds)] + [signal(one_frame, 9)]
    x, lengths = front_end(*batch_of(*clips))
    assert x.shape[-1] == front_end.dim
    assert torch.isfinite(x).all()
    for row, length, clip in zip(x, lengths.tolist(), clips, strict=True):
        alone, (count,) = front_end(*batch_of(clip))
        assert length == int(count)
        torch.testing.assert_close(row[:length], alone[0, :length], atol=1e-4, rtol=0)
        assert not row[length:].any()


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_features_move_with_the_waveform(name: str) -> None:
    """Frame t + n of a clip is frame t of the clip n hops later, away from its ends; what is far does not matter."""
    config = edit(FRONT_ENDS[name], normalize="none", level_db=None, stack=1)
    front_end = FrontEnd(config)
    waveform = signal(16000)
    x, _ = front_end(*batch_of(waveform))
    later, _ = front_end(*batch_of(waveform[10 * front_end.hop :]))
    torch.testing.assert_close(x[0, 20:40], later[0, 10:30], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_offset_and_hop_say_where_a_click_is_heard(name: str) -> None:
    front_end = FrontEnd(edit(FRONT_ENDS[name], normalize="none", level_db=None, deltas=0, use_energy=False))
    waveform = np.zeros(16000, np.float32)
    waveform[8000] = 0.5
    x, (count,) = front_end(*batch_of(waveform))
    quiet = x[0, 0]
    loudness = (x[0, :count] - quiet).abs().sum(-1).double()
    centre = (loudness * torch.arange(int(count))).sum() / loudness.sum()
    heard_at = front_end.offset + float(centre) * front_end.hop
    assert abs(heard_at - 8000.5) <= front_end.hop / 2


@pytest.mark.parametrize(
    ("config", "hop", "offset"),
    [
        (FrontEndConfig(), 160, 200.0),
        (FrontEndConfig(sample_rate=8000, stack=4), 320, 100.0 + 1.5 * 80),
        (FrontEndConfig(kind="stft"), 160, 0.0),
        (FrontEndConfig(kind="linear", window_ms=50, hop_ms=12.5, n_fft=2048, stack=3), 600, 200.0),
    ],
)
def test_hop_and_offset_in_closed_form(config: FrontEndConfig, hop: int, offset: float) -> None:
    front_end = FrontEnd(config)
    assert (front_end.hop, front_end.offset, front_end.sample_rate) == (hop, offset, config.sample_rate)


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_gradients_reach_the_waveform(name: str) -> None:
    front_end = FrontEnd(FRONT_ENDS[name])
    waveforms, lengths = batch_of(signal(3000), signal(2000, 1), np.zeros(1500, np.float32))
    waveforms.requires_grad_()
    x, _ = front_end(waveforms, lengths)
    (x * torch.linspace(-1, 1, x.numel()).view_as(x)).sum().backward()
    assert waveforms.grad is not None
    assert torch.isfinite(waveforms.grad).all()
    assert (waveforms.grad[0, :2900] != 0).float().mean() > 0.9


@pytest.mark.parametrize(
    "module",
    [
        KaldiFbank(8000, 5, 40, 20),
        LogSpectrogram(8000, 5, 40, 40, 20),
        LogSpectrogram(8000, 0, 40, 40, 20, power=1.0),
        Chromagram(8000, 40, 40, 20, low_hz=880, log_floor=1e-3),
    ],
    ids=["fbank", "mel", "linear", "chroma"],
)
def test_gradients_equal_finite_differences(module: torch.nn.Module) -> None:
    waveforms = torch.from_numpy(signal(100)).double()[None].requires_grad_()
    assert torch.autograd.gradcheck(lambda w: module(w, torch.tensor([100]))[0], waveforms, eps=1e-7, atol=1e-4)


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_autocast_changes_nothing(name: str) -> None:
    front_end, batch = FrontEnd(FRONT_ENDS[name]), batch_of(signal(3000))
    with torch.autocast("cpu", torch.bfloat16):
        inside, _ = front_end(*batch)
    outside, _ = front_end(*batch)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, outside)


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_long_clips_are_worked_through_in_pieces(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    front_end, batch = FrontEnd(FRONT_ENDS[name]), batch_of(signal(9000), signal(5000, 1), signal(8000, 2))
    whole, _ = front_end(*batch)
    monkeypatch.setattr("auricle.features.spectrum.CPU_FRAMES", 7)
    pieces, _ = front_end(*batch)
    torch.testing.assert_close(pieces, whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_long_clips_are_transformed_in_stretches(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends of clips fall before, on, and just past the ends of stretches of 20 frames."""
    front_end = FrontEnd(FRONT_ENDS[name])
    hop = front_end.config.hop_size
    sizes = (70 * hop + 5, 20 * hop, 40 * hop + 401, 39 * hop, 3)
    batch = batch_of(*(signal(samples, seed) for seed, samples in enumerate(sizes)))
    whole, lengths = front_end(*batch)
    monkeypatch.setattr("auricle.features.frontend.STRETCH", 20)
    stretches, counts = front_end(*batch)
    assert torch.equal(counts, lengths)
    torch.testing.assert_close(stretches, whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_an_empty_clip_and_one_too_short_have_no_frames_unless_centred(name: str) -> None:
    front_end = FrontEnd(FRONT_ENDS[name])
    x, lengths = front_end(torch.zeros(2, 0), torch.tensor([0, 0]))
    assert x.shape == (2, 1, front_end.dim)
    assert lengths.tolist() == [0, 0]
    assert not x.any()
    _, lengths = front_end(torch.ones(1, 399), torch.tensor([399]))
    expected = {"kaldi": 0, "mfcc": 0, "linear": (399 // 200 + 1) // 3}.get(
        front_end.config.kind, 399 // front_end.hop + 1
    )
    assert lengths.tolist() == [expected]


def test_a_front_end_has_no_weights_and_moves_as_a_module() -> None:
    front_end = FrontEnd(FRONT_ENDS["mfcc"])
    assert not front_end.state_dict()
    assert all(buffer.device.type == "meta" for buffer in front_end.to("meta").buffers())


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"n_fft": 512}, "n_fft"),
        ({"kind": "stft", "n_fft": 256}, "n_fft"),
        ({"kind": "stft", "window": "povey"}, "povey"),
        ({"n_mels": 0}, "n_mels"),
        ({"high_hz": 9000}, "high_hz"),
        ({"low_hz": 500, "high_hz": 400}, "low_hz"),
        ({"hop_ms": 0.01}, "hop_ms"),
        ({"window_ms": 5000}, "window_ms"),
        ({"kind": "mfcc", "n_mels": 12}, "n_ceps"),
        ({"kind": "chroma", "low_hz": 0}, "lowest pitch"),
        ({"deltas": 3}, "deltas"),
        ({"mels": 40}, "mels"),
    ],
)
def test_impossible_configs_are_refused_in_one_line(values: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigError, match=word) as caught:
        FrontEndConfig.parse(values)
    assert "\n" not in str(caught.value)
