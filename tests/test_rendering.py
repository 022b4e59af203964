"""What the renderer says it plays is what is heard: by spectra, autocorrelation, envelopes and onsets."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import hilbert

from auricle.audio.rendering import (
    INSTRUMENTS,
    KEYS,
    LEVEL,
    TECHNIQUES,
    TONICS,
    Hit,
    Note,
    Timbre,
    compose,
    frequency,
    harmonics,
    render,
    singer,
)
from auricle.errors import AudioError
from auricle.evaluation.beats import BarPointer, beat_score

RATE = 16_000
SINE = Timbre(tilt_db=-200.0)
PROFILES = {  # Krumhansl and Kessler 1982, from the tonic
    "major": [6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88],
    "minor": [6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17],
}


def heard_hz(waveform):
    """The period by autocorrelation, then the fundamental's peak in a finely sampled spectrum."""
    power = np.abs(np.fft.rfft(waveform, 2 * len(waveform))) ** 2
    echo = np.fft.irfft(power)[: RATE // 25]
    shortest = int(np.flatnonzero(echo < 0)[0])  # past the peak at 0
    close = np.flatnonzero(echo >= 0.8 * echo[shortest:].max())
    first = close[close >= shortest][0]
    lag = first + int(echo[first : first + max(2, first // 4)].argmax())
    size = 2**20
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform)), size))
    hz = np.fft.rfftfreq(size, 1 / RATE)
    near = np.flatnonzero(np.abs(12 * np.log2(np.maximum(hz, 1) * lag / RATE)) < 1.1)
    return hz[near[spectrum[near].argmax()]]


@pytest.mark.parametrize("name", sorted(INSTRUMENTS))
def test_the_fundamental_is_that_of_the_note_asked_for(name):
    rng = np.random.default_rng(len(name))
    for pitch in [36, 60.5, 84, *rng.uniform(36, 88, 3)]:
        note = Note(0, 1.0, pitch, timbre=replace(INSTRUMENTS[name], decay_s=None))
        found = heard_hz(render([note], 1.0, RATE))
        assert abs(1200 * np.log2(found / frequency(pitch))) < 5


def test_frequencies_are_of_equal_temperament():
    assert frequency(69) == 440
    assert frequency(60) == pytest.approx(261.6256, abs=1e-4)
    assert frequency(81) == 880


@given(st.integers(0, 1000), st.integers(1, 40))
@settings(max_examples=20, deadline=None)
def test_a_tone_is_its_harmonics_one_by_one(seed, count):
    rng = np.random.default_rng(seed)
    phase, gains = np.cumsum(rng.uniform(0, 0.3, 500)), rng.normal(size=count)
    slow = sum(gain * np.sin(k * phase) for k, gain in enumerate(gains, 1))
    np.testing.assert_allclose(harmonics(gains, phase), slow, atol=1e-9)


def test_nothing_is_heard_between_or_above_the_harmonics():
    spectrum = np.abs(np.fft.rfft(render([Note(0, 1.0, 69, timbre=INSTRUMENTS["synth_lead"])], 1.0) * np.hanning(RATE)))
    distance = np.abs((np.arange(len(spectrum)) + 220) % 440 - 220)
    assert spectrum[distance > 20].max() < 2e-3 * spectrum.max()


def analytic(name):
    """Instantaneous pitch (semitones from the note's) and level of a sine sung so for two seconds, edges cut."""
    sung = Note(0, 2.0, 60, 1.0, SINE, replace(TECHNIQUES[name], noise=0.0))
    signal = hilbert(render([sung], 2.0, RATE).astype(np.float64))[2000:-2000]
    semitones = 12 * np.log2(np.maximum(np.diff(np.unwrap(np.angle(signal))) * RATE / (2 * np.pi), 1) / frequency(60))
    return semitones, np.abs(signal)


def strongest_hz(track):
    spectrum = np.abs(np.fft.rfft((track - track.mean()) * np.hanning(len(track)), 2**18))
    return np.fft.rfftfreq(2**18, 1 / RATE)[spectrum.argmax()]


def test_singing_techniques_bend_pitch_and_level_as_planted():
    still, level = analytic("straight")
    assert np.abs(still).max() < 0.05
    assert level.std() < 0.01 * level.mean()
    vibrato, _ = analytic("vibrato")
    assert strongest_hz(vibrato) == pytest.approx(5.5, abs=0.2)
    assert vibrato.max() == pytest.approx(0.6, abs=0.05)
    assert vibrato.min() == pytest.approx(-0.6, abs=0.05)
    trill, _ = analytic("trill")
    assert strongest_hz(trill) == pytest.approx(6, abs=0.2)
    np.testing.assert_allclose(np.percentile(trill, [20, 80]), [0, 2], atol=0.05)
    for name, rate in (("trillo", 7), ("lip_trill", 25)):
        _, level = analytic(name)
        assert strongest_hz(level) == pytest.approx(rate, abs=0.3)
        assert level.min() < 0.25 * level.max()
    spoken, _ = analytic("spoken")
    assert spoken[-4000:].mean() < spoken[:4000].mean() - 2
    fry, _ = analytic("vocal_fry")
    assert np.median(fry) == pytest.approx(-24, abs=1)


def test_breath_lies_between_the_harmonics():
    def breath(name):
        sung = Note(0, 1.0, 69, 0.7, singer(3), TECHNIQUES[name])
        power = np.abs(np.fft.rfft(render([sung], 1.0) * np.hanning(RATE))) ** 2
        distance = np.abs((np.arange(len(power)) + 220) % 440 - 220)
        return power[distance > 100].sum() / power.sum()

    straight, breathy, inhaled = (breath(name) for name in ("straight", "breathy", "inhaled"))
    assert straight < 0.01 < 0.1 < breathy < inhaled


def test_singers_differ_and_stay_themselves():
    assert singer(1) == singer(1)
    assert len({singer(seed) for seed in range(20)}) == 20
    assert all(60 < frequency(48) < singer(seed).formants[0] for seed in range(20))


def test_levels_follow_velocity_and_never_leave_the_range():
    for name, timbre in INSTRUMENTS.items():
        steady = render([Note(0, 1.0, 57, 0.5, replace(timbre, decay_s=None))], 1.0)[4000:]
        assert np.sqrt(np.square(steady).mean()) == pytest.approx(0.5 * LEVEL, rel=0.06), name
    quiet, loud = (render([Note(0, 0.5, 57, velocity)], 0.5) for velocity in (0.2, 0.8))
    np.testing.assert_allclose(4 * quiet, loud, rtol=1e-4, atol=1e-6)
    crowd = render([Note(0, 1.0, pitch, 1.0, INSTRUMENTS["synth_lead"]) for pitch in range(40, 80)], 1.0)
    assert np.abs(crowd).max() == pytest.approx(1)
    for seed in range(4):
        piece = compose(seed, 4.0, voices=5, arousal=seed / 3).render()
        assert 0.02 < np.sqrt(np.square(piece).mean()) < 0.4
        assert np.abs(piece).max() <= 1


def test_notes_begin_and_end_where_they_say():
    waveform = np.abs(render([Note(0.5, 0.4, 69, 0.7, INSTRUMENTS["organ"])], 2.0))
    loud = np.flatnonzero(waveform > 0.05 * waveform.max()) / RATE
    assert 0.5 <= loud[0] < 0.51
    assert 0.9 < loud[-1] < 0.945
    assert len(render([Note(0.9, 5.0, 69)], 1.0)) == RATE
    assert not render([Note(3.0, 1.0, 69)], 1.0).any()
    assert not render([], 1.0).any()
    plucked = np.abs(render([Note(0, 2.0, 57, timbre=INSTRUMENTS["mallet"])], 2.0))
    assert plucked[8000:9000].max() == pytest.approx(plucked[4000:5000].max() * np.exp(-1), rel=0.03)


def test_the_same_seed_gives_the_same_samples_at_any_rate_of_sampling():
    one, same, other = (compose(seed, 3.0).render() for seed in (5, 5, 6))
    np.testing.assert_array_equal(one, same)
    assert one.dtype == np.float32
    assert np.abs(one - other).max() > 0.01
    assert len(compose(5, 3.0).render(22_050)) == 3 * 22_050
    assert compose(5, 3.0).notes == compose(5, 3.0).notes


def chroma(waveform):
    """(12,) energy by pitch class, from C, 60 Hz to 2 kHz."""
    power = np.abs(np.fft.rfft(waveform)) ** 2
    hz = np.fft.rfftfreq(len(waveform), 1 / RATE)
    kept = (hz > 60) & (hz < 2000)
    pitch = 69 + 12 * np.log2(hz[kept] / 440)
    return np.bincount(np.rint(pitch).astype(int) % 12, power[kept], 12)


def guess_key(histogram):
    fits = {
        f"{tonic} {mode}": np.corrcoef(np.roll(profile, shift), histogram)[0, 1]
        for mode, profile in PROFILES.items()
        for shift, tonic in enumerate(TONICS)
    }
    return max(fits, key=fits.get)


def test_all_keys_are_heard():
    pieces = [
        compose(seed, 16.0, key=key, bpm=120, drums=False, instruments=["organ"]) for seed, key in enumerate(KEYS)
    ]
    assert [piece.key for piece in pieces] == list(KEYS)
    right = [guess_key(np.sqrt(chroma(piece.render()))) == piece.key for piece in pieces]
    assert np.mean(right) >= 0.9


@pytest.mark.parametrize("key", KEYS)
def test_notes_are_of_the_scale_and_chords_of_their_notes(key):
    tonic, mode = key.split()
    scale = {"major": {0, 2, 4, 5, 7, 9, 11}, "minor": {0, 2, 3, 5, 7, 8, 10, 11}}[mode]
    piece = compose(7, 20.0, key=key)
    assert {round(note.pitch - TONICS.index(tonic)) % 12 for note in piece.notes} <= scale
    assert piece.chords[-1].label == piece.chords[0].label == key
    for start, end, label in piece.chords:
        root, quality = label.split()
        tones = {(TONICS.index(root) + step) % 12 for step in (0, 4 if quality == "major" else 3, 7)}
        sounding = {round(note.pitch) % 12 for note in piece.notes if start <= note.start_s < end}
        assert sounding == tones
        low = min((note for note in piece.notes if start <= note.start_s < end), key=lambda note: note.pitch)
        assert low.pitch % 12 == TONICS.index(root)


def onsets(waveform, hop):
    """Rise of the level from frame to frame, in decibels, with the frames' starts."""
    frames = waveform[: len(waveform) // hop * hop].reshape(-1, hop).astype(np.float64)
    level = 10 * np.log10(np.square(frames).mean(1) + 1e-5)
    return np.maximum(0, np.diff(level, prepend=level[0])), np.arange(len(frames)) * hop / RATE


@pytest.mark.parametrize(("bpm", "bar"), [(60, 4), (97.3, 3), (140, 4), (180, 3)])
def test_beats_land_where_the_labels_say(bpm, bar):
    piece = compose(int(bpm), 20.0, bpm=bpm, bar=bar, voices=2, instruments=["mallet"])
    np.testing.assert_allclose(np.diff(piece.beats), 60 / bpm)
    np.testing.assert_array_equal(piece.downbeats, piece.beats[piece.place == 1])
    rise, times = onsets(piece.render(), 80)
    near = np.abs(times[:, None] - piece.beats).min(1) <= 0.01
    assert rise[near].max() > 3
    share = np.square(rise)[near].sum() / np.square(rise).sum()
    assert share > 0.7
    assert near.mean() < 0.15  # so that the share is no accident
    rise, times = onsets(piece.render(), 320)
    probabilities = np.clip(rise / np.sort(rise)[-len(piece.beats) :].mean(), 0.01, 0.9)
    found = BarPointer().track(probabilities, times).times
    assert beat_score("beat_f1_mean", [piece.beats], [found]) > 0.95


def test_mood_is_heard_as_mode_brightness_tempo_and_loudness():
    def centroid(piece):
        power = np.abs(np.fft.rfft(piece.render())) ** 2
        return (power * np.fft.rfftfreq(round(piece.duration_s * RATE), 1 / RATE)).sum() / power.sum()

    dark, bright = (compose(3, 6.0, valence=valence, drums=False) for valence in (0.1, 0.9))
    assert dark.key.endswith("minor")
    assert bright.key.endswith("major")
    assert centroid(bright) > 1.2 * centroid(dark)
    calm, excited = (compose(3, 6.0, arousal=arousal) for arousal in (0.0, 1.0))
    assert (calm.bpm, excited.bpm) == (60, pytest.approx(180))
    assert np.square(excited.render()).mean() > 4 * np.square(calm.render()).mean()
    assert calm.key == excited.key
    for seed in range(10):  # what is asked for is planted in the labels too
        major, minor = (compose(seed, 2.0, key=key, bpm=120) for key in ("C major", "C minor"))
        assert minor.valence < 0.5 <= major.valence
        assert major.arousal == pytest.approx(np.log(2) / np.log(3))


def test_voices_are_added_to_the_same_piece():
    pieces = [compose(11, 8.0, voices=voices) for voices in range(1, 6)]
    for fewer, more in pairwise(pieces):
        assert set(fewer.notes) < set(more.notes)
        assert more.instruments[: len(fewer.instruments)] == fewer.instruments
        assert (fewer.key, fewer.bpm, fewer.chords, fewer.hits) == (more.key, more.bpm, more.chords, more.hits)
    for voices, piece in enumerate(pieces, 1):
        start = piece.downbeats[0]
        assert sum(note.start_s == start for note in piece.notes) == voices


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"voices": 6}, "1 to 5"),
        ({"key": "H major"}, "key"),
        ({"instruments": ["kazoo"]}, "instrument"),
        ({"bar": 0}, "bar"),
        ({"bpm": -3.0}, "bpm"),
        ({"valence": 1.5}, "valence"),
    ],
)
def test_what_cannot_be_played_is_refused(asked, words):
    with pytest.raises(AudioError, match=words):
        compose(0, **asked)


def test_pitches_and_drums_that_cannot_be_rendered_are_refused():
    with pytest.raises(AudioError, match="too high"):
        render([Note(0, 1, 125)], 1.0, 16_000)
    with pytest.raises(AudioError, match="0 or later"):
        render([Note(-0.1, 1, 60)], 1.0)
    with pytest.raises(AudioError, match="drum"):
        render([], 1.0, hits=[Hit(0.0, "gong")])
