"""Audio in and out, against soxr on whole files, and against files that lie."""

import os
import struct

import numpy as np
import pytest
import soundfile
import soxr
import torch
from hypothesis import given
from hypothesis import strategies as st

from auricle.audio.io import BLOCK, as_waveform, probe, read, resampled_length, write
from auricle.errors import AudioError

PCM = ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT"]
STEP = {"PCM_U8": 2**-7, "PCM_16": 2**-15, "PCM_24": 2**-22, "PCM_32": 2**-22, "FLOAT": 1e-7}


def noise(samples, channels=1, seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (samples, channels)).astype(np.float32)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("new_rate", [16_000, 44_100])
def test_a_crop_is_the_slice_of_the_whole_resampled_file(tmp_path, rate, new_rate):
    audio = noise(2 * rate + 77, 2)
    soundfile.write(tmp_path / "a.flac", audio, rate, subtype="PCM_24")
    expected = audio.mean(1) if rate == new_rate else soxr.resample(audio.mean(1), rate, new_rate, quality="HQ")
    whole = read(tmp_path / "a.flac", new_rate)
    assert whole.dtype == np.float32
    assert len(whole) == len(expected) == resampled_length(len(audio), rate, new_rate)
    np.testing.assert_allclose(whole, expected, atol=1e-5)
    for start in [0, 1, 999, new_rate, 2 * new_rate - 50]:
        for length in [1, 40, new_rate // 2]:
            crop = read(tmp_path / "a.flac", new_rate, start, length)
            np.testing.assert_allclose(crop, whole[start : start + length], atol=1e-4)
    np.testing.assert_allclose(read(tmp_path / "a.flac", new_rate, 12_345), whole[12_345:], atol=1e-4)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_a_crop_of_ogg_is_exact(tmp_path, subtype):
    """libsndfile's own seeks in Ogg are not; chirps and pauses keep the decoder's state moving."""
    time = np.arange(6 * 48_000) / 48_000
    audio = 0.4 * np.sin(2 * np.pi * (200 + 300 * time) * time) * (np.sin(9 * time) > 0)
    soundfile.write(tmp_path / "a.ogg", audio, 48_000, format="OGG", subtype=subtype)
    whole = read(tmp_path / "a.ogg", 16_000)
    for start in range(500, 90_000, 7_000):
        crop = read(tmp_path / "a.ogg", 16_000, start, 4_000)
        np.testing.assert_allclose(crop, whole[start : start + 4_000], atol=1e-4)


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3"])
def test_a_crop_decodes_only_what_it_needs(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"long.{suffix}"
    soundfile.write(path, noise(30 * 44_100), 44_100)
    whole = read(path, 16_000)
    decoded = []
    original = soundfile.SoundFile.read

    def counted(self, *args, **kwargs):
        block = original(self, *args, **kwargs)
        decoded.append(len(block))
        return block

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    crop = read(path, 16_000, 20 * 16_000, 16_000)
    np.testing.assert_allclose(crop, whole[20 * 16_000 : 21 * 16_000], atol=1e-4)
    assert sum(decoded) < 1.1 * 44_100


@given(
    st.sampled_from(["wav", "flac", "ogg", "mp3"]),
    st.sampled_from(PCM),
    st.integers(1, 8),
    st.sampled_from([8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000, 192_000]),
    st.integers(1, 3_000),
    st.data(),
)
def test_any_format_width_channels_and_rate(tmp_path_factory, suffix, subtype, channels, rate, samples, data):
    if suffix == "flac":
        subtype = {"PCM_U8": "PCM_S8"}.get(subtype, "PCM_24" if subtype in ("PCM_32", "FLOAT") else subtype)
    lossy = suffix in ("ogg", "mp3")
    if suffix == "mp3":
        channels, rate = min(channels, 2), min(rate, 48_000)
    path = tmp_path_factory.mktemp("x") / f"ünï cødé.{suffix}"
    audio = noise(samples, channels)
    soundfile.write(path, audio, rate, subtype=None if lossy else subtype)
    info = probe(path)
    assert (info.num_samples, info.sample_rate, info.channels) == (samples, rate, channels)
    assert info.duration_s == samples / rate
    waveform = read(path)
    assert waveform.shape == (samples,)
    if not lossy:
        np.testing.assert_allclose(waveform, audio.mean(1), atol=STEP.get(subtype, 2**-7))
    expected = resampled_length(samples, rate, 16_000)
    if not expected:
        with pytest.raises(AudioError, match="no samples"):
            read(path, 16_000)
        return
    whole = read(path, 16_000)
    assert len(whole) == expected
    start = data.draw(st.integers(0, expected - 1))
    length = data.draw(st.integers(1, expected))
    np.testing.assert_allclose(read(path, 16_000, start, length), whole[start : start + length], atol=1e-4)


def wav_claiming(samples, held):
    """A 16-bit mono WAV at 8 kHz whose header claims more samples than the file holds."""
    fmt = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 8_000, 16_000, 2, 16)
    body = (noise(held)[:, 0] * 2**15).astype("<i2").tobytes()
    return (
        struct.pack("<4sI4s", b"RIFF", 36 + 2 * samples, b"WAVE")
        + fmt
        + struct.pack("<4sI", b"data", 2 * samples)
        + body
    )


def test_a_lying_header_gives_what_is_there(tmp_path):
    (tmp_path / "a.wav").write_bytes(wav_claiming(1_000_000, held=500))
    assert read(tmp_path / "a.wav").shape == (500,)
    assert read(tmp_path / "a.wav", 16_000, 900, 10_000).shape == (100,)
    with pytest.raises(AudioError, match="from sample 1000: there are no samples"):
        read(tmp_path / "a.wav", 16_000, 1_000, 10)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_a_truncated_file_reads_up_to_the_damage_or_says_so(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, noise(80_000), 16_000)
    whole = read(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    np.testing.assert_allclose(read(path, start=100, length=8_000), whole[100:8_100], atol=1e-4)
    with pytest.raises(AudioError, match=r"a\.(wav|flac|ogg|mp3): (is damaged near|from sample)"):
        read(path, start=79_000, length=500)
    if suffix == "flac":  # a decoder that reports damage is believed
        with pytest.raises(AudioError, match="is damaged near"):
            read(path)
    else:
        assert 10_000 < len(read(path)) < 70_000


def test_a_decoder_that_loses_its_place_is_not_believed(tmp_path, monkeypatch):
    """Damaged mp3 can throw it back; what follows would be heard twice."""
    soundfile.write(tmp_path / "a.mp3", noise(20_000), 16_000)
    monkeypatch.setattr("auricle.audio.io.BLOCK", 4_000)
    assert len(read(tmp_path / "a.mp3")) == 20_000
    tell = soundfile.SoundFile.tell
    monkeypatch.setattr(soundfile.SoundFile, "tell", lambda self: min(8_000, tell(self)))
    assert len(read(tmp_path / "a.mp3", length=8_000)) == 8_000
    with pytest.raises(AudioError, match=r"a\.mp3: is damaged near 0\.8 s \(decoder lost its place\)"):
        read(tmp_path / "a.mp3")


def test_many_channels_cost_no_more_memory_than_few(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", noise(5_000, 1_000), 16_000, subtype="FLOAT")
    held = []
    original = soundfile.SoundFile.read

    def counted(self, *args, **kwargs):
        block = original(self, *args, **kwargs)
        held.append(block.size)
        return block

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    np.testing.assert_allclose(read(tmp_path / "a.wav"), noise(5_000, 1_000).mean(1), atol=1e-6)
    assert max(held) <= BLOCK
    assert sum(held) == 5_000_000


@pytest.mark.filterwarnings("error")
def test_infinities_that_cancel_are_refused_without_a_warning(tmp_path):
    audio = noise(100, 2)
    audio[50] = np.inf, -np.inf
    soundfile.write(tmp_path / "a.wav", audio, 16_000, subtype="FLOAT")
    for source in (tmp_path / "a.wav", audio.T):
        with pytest.raises(AudioError, match="NaN or infinite"):
            as_waveform(source, 16_000, 16_000)


def test_what_is_no_audio_is_refused_in_one_line(tmp_path):
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.mp3").write_text("this is no music\n" * 500)
    (tmp_path / "text.wav").write_text("RIFF or not")
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "a.m4a").write_bytes(b"\0\0\0\x20ftypM4A ")
    (tmp_path / "a.raw").write_bytes(b"\0" * 100)
    os.mkfifo(tmp_path / "pipe.wav")
    os.symlink(tmp_path / "loop.wav", tmp_path / "loop.wav")
    soundfile.write(tmp_path / "none.wav", noise(0), 16_000)
    reasons = {
        "missing.wav": "No such file",
        "empty.wav": "empty",
        "text.mp3": "not audio",
        "text.wav": "not audio",
        "folder.wav": "is a folder",
        "a.m4a": "not supported",
        "a.raw": "not supported",
        "pipe.wav": "special file",
        "loop.wav": "cannot be opened",
        "none.wav": "holds no samples",
        "nul\0.wav": "cannot be opened",
    }
    for name, reason in reasons.items():
        for function in (probe, read):
            with pytest.raises(AudioError, match=reason) as caught:
                function(tmp_path / name)
            assert str(tmp_path / name) in str(caught.value)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("value", "reason"), [(np.nan, "NaN"), (np.inf, "infinite"), (300.0, "expected in")])
def test_samples_that_are_no_audio_are_refused(tmp_path, value, reason):
    audio = noise(4_000)
    audio[2_000] = value
    soundfile.write(tmp_path / "a.wav", audio, 8_000, subtype="FLOAT")
    with pytest.raises(AudioError, match=reason):
        read(tmp_path / "a.wav", 16_000)
    with pytest.raises(AudioError, match=reason):
        as_waveform(audio[:, 0], 8_000, 8_000)
    assert len(read(tmp_path / "a.wav", length=1_000)) == 1_000


@given(st.binary(max_size=600), st.integers(0, 5_000), st.sampled_from(["wav", "flac", "ogg", "mp3"]))
def test_damage_gives_audio_or_an_audio_error(tmp_path_factory, junk, place, suffix):
    path = tmp_path_factory.mktemp("x") / f"a.{suffix}"
    soundfile.write(path, noise(4_000), 16_000)
    content = path.read_bytes()
    path.write_bytes(content[:place] + junk + content[place + len(junk) :])
    for start in (0, 1_000):
        try:
            waveform = read(path, 22_050, start, 2_000)
        except AudioError:
            continue
        assert 1 <= len(waveform) <= 2_000
        assert np.isfinite(waveform).all()


def test_arrays_tensors_and_rows_are_the_same_audio():
    audio = noise(800, 2).T
    expected = soxr.resample(audio.mean(0), 8_000, 16_000, quality="HQ")
    whole_numbers = (audio * 2**15).astype(np.int16)
    kinds = [
        audio,
        audio.astype(np.float64),
        torch.from_numpy(audio).requires_grad_(),
        whole_numbers,
        torch.from_numpy(whole_numbers),
        (whole_numbers.astype(np.int32)) << 16,
        (whole_numbers.astype(np.int32) + 2**15).astype(np.uint16),
    ]
    for kind in kinds:
        np.testing.assert_allclose(as_waveform(kind, 8_000, 16_000), expected, atol=1e-4)
    row = {"array": audio.astype(np.float64), "sampling_rate": 8_000, "path": None}
    np.testing.assert_allclose(as_waveform(row, None, 16_000), expected, atol=1e-5)
    assert as_waveform(np.array([0, 128, 255], np.uint8), 8_000, 8_000) == pytest.approx([-1, 0, 127 / 128])
    assert as_waveform(torch.ones(5, dtype=torch.bfloat16), 8_000, 8_000) == pytest.approx(np.ones(5))


@pytest.mark.parametrize(
    ("audio", "rate", "reason"),
    [
        (np.zeros(10), None, "sample_rate"),
        (np.zeros(10), 0, "sample rate of 0"),
        (np.zeros(0), 8_000, "no samples"),
        (np.zeros((100, 2)), 8_000, "shape"),
        (np.zeros((1, 1, 5)), 8_000, "shape"),
        (np.zeros(10, np.int64), 8_000, "int64"),
        (np.zeros(10, bool), 8_000, "bool"),
        (np.zeros(10, complex), 8_000, "complex"),
        ([0.0, 1.0], 8_000, "list"),
        ({"bytes": b""}, None, "sampling_rate"),
    ],
)
def test_bad_arrays_are_refused(audio, rate, reason):
    with pytest.raises(AudioError, match=reason):
        as_waveform(audio, rate, 16_000)


def test_what_is_written_is_read(tmp_path):
    audio = noise(500, 2).T
    for waveform in (audio, torch.from_numpy(audio)):
        write(tmp_path / "a.wav", waveform, 8_000)
        np.testing.assert_allclose(as_waveform(tmp_path / "a.wav", None, 8_000), audio.mean(0), atol=2**-15)
    for path in (tmp_path / "missing" / "a.wav", tmp_path / "a.xyz"):
        with pytest.raises(AudioError, match="cannot be written"):
            write(path, audio, 8_000)


@given(st.integers(0, 10**9), st.integers(1_000, 200_000), st.integers(1_000, 200_000))
def test_lengths_are_rounded_half_up(samples, rate, new_rate):
    length = resampled_length(samples, rate, new_rate)
    assert -rate < 2 * (length * rate - samples * new_rate) <= rate
    assert resampled_length(samples, rate, rate) == samples
