"""Beats planted in frames return; the decoder's path is that of a slow Viterbi; F is mir_eval's."""

import itertools
import time

import mir_eval
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from auricle.encoders.waveform import WaveformConfig, WaveformEncoder
from auricle.errors import EvaluationError
from auricle.evaluation.beats import (
    BEAT_METRICS,
    BarPointer,
    BeatF1,
    applicable,
    beat_score,
    frame_targets,
    log_observations,
    pick_peaks,
)

POINTER = BarPointer()


def clock(rate, duration_s=30.0, start_s=0.0125):
    return start_s + np.arange(int((duration_s - start_s) * rate)) / rate


def steady(bpm, duration_s=30.0, first_s=0.3):
    return np.arange(first_s, duration_s, 60 / bpm)


def heard(beats, downbeats, times, noise=0.0, seed=0):
    """Probabilities (T, 2) of an imperfect encoder: peaks of 0.8 on a floor of 0.01."""
    peaks = np.stack([frame_targets(beats, times), frame_targets(downbeats, times)], 1)
    return np.clip(0.8 * peaks + 0.01 + noise * np.abs(np.random.default_rng(seed).normal(size=peaks.shape)), 0, 1)


def f1(reference, estimated):
    return BeatF1(pooled=True, skip_s=0.0)(reference, estimated)


def score(reference, estimated):
    return beat_score("beat_f1_marble", [reference], [estimated])


@pytest.mark.parametrize("rate", [31.25, 50.0, 75.0, 86.1328125, 100.0])
@pytest.mark.parametrize("bar", [3, 4])
def test_steady_beats_and_bars_return_at_any_frame_rate(rate, bar):
    for seed, bpm in enumerate([57, 208] if rate > 60 else [73, 120, 151.7]):
        beats, times = steady(bpm), clock(rate)
        downbeats = beats[seed % bar :: bar]
        found = POINTER.track(heard(beats, downbeats, times, 0.02, seed), times)
        assert score(beats, found.times) > 0.97
        assert score(downbeats, found.downbeats) > 0.95
        places = np.unique(found.place)
        np.testing.assert_array_equal(places, np.arange(bar) + 1)
        assert (np.diff(found.place) % bar == 1).all()
        alone = POINTER.track(heard(beats, downbeats, times, 0.02, seed)[:, 0], times)
        assert score(beats, alone.times) > 0.97
        assert not alone.place.any()
        assert not len(alone.downbeats)


@pytest.mark.parametrize("rate", [12.5, 16.0])
def test_frames_as_coarse_as_the_window_still_hold_moderate_tempi(rate):
    for bpm in (60, 90, 120):
        beats, times = steady(bpm), clock(rate, start_s=0.04)
        found = POINTER.track(heard(beats, beats[::4], times), times)
        assert score(beats, found.times) > 0.97


def test_times_are_exact_to_half_a_frame():
    for rate in (50.0, 100.0):
        beats, times = steady(113), clock(rate)
        found = POINTER.track(heard(beats, beats[::4], times), times).times
        assert np.abs(found[:, None] - beats).min(1).max() <= 0.5 / rate + 1e-9


def test_a_tempo_that_changes_is_followed():
    drift = np.cumsum(60 / np.linspace(85, 150, 55))
    jump = np.concatenate([steady(90, 15), steady(140, 30, first_s=15.3)])
    for beats in (drift[drift < 30], jump):
        times = clock(50)
        found = POINTER.track(heard(beats, beats[::4], times, 0.01), times)
        assert score(beats, found.times) > 0.93


def test_missing_beats_are_filled_in_and_spurious_ones_left_out_which_peaks_cannot_do():
    rng = np.random.default_rng(3)
    beats, times = steady(112), clock(50)
    kept = beats[rng.random(len(beats)) > 0.35]
    strays = rng.uniform(0, 30, 12)
    probabilities = np.maximum(heard(kept, kept[:0], times)[:, 0], 0.6 * frame_targets(strays, times))
    model, peaks = POINTER.track(probabilities, times).times, pick_peaks(probabilities, times)
    assert score(beats, model) > 0.97
    assert score(beats, peaks) < 0.85


def test_noise_lowers_the_score_by_and_by_and_alone_scores_as_little_as_wrong_beats():
    beats, times = steady(100), clock(50)
    scores = [
        np.mean(
            [
                score(beats, POINTER.track(heard(beats, beats[::4], times, noise, seed), times).times)
                for seed in range(2)
            ]
        )
        for noise in (0.02, 0.3, 2.0)
    ]
    assert scores[0] > 0.97
    assert scores[0] >= scores[1] > scores[2]
    assert scores[2] < 0.6  # 140 ms of 600 are hit by chance, and more by more beats


def test_silence_has_no_beats_and_music_may_begin_late_and_end_early():
    times = clock(50)
    assert not len(POINTER.track(np.full((len(times), 2), 0.01), times).times)
    assert not len(pick_peaks(np.full(len(times), 0.01), times))
    beats = steady(120, 22, first_s=8)
    found = POINTER.track(heard(beats, beats[::4], times), times)
    np.testing.assert_allclose(found.times, beats, atol=0.0101)
    np.testing.assert_array_equal(found.place, np.arange(len(beats)) % 4 + 1)


@pytest.mark.parametrize("frames", [1, 2, 3, 10, 40])
def test_clips_shorter_than_a_beat_or_a_bar(frames):
    times = 0.01 + np.arange(frames) / 50
    probabilities = np.full((frames, 2), 0.01)
    probabilities[frames // 2] = 0.9
    found = POINTER.track(probabilities, times)
    np.testing.assert_allclose(found.times, times[frames // 2 :][:1])
    assert found.place.tolist() == [1]
    np.testing.assert_allclose(pick_peaks(probabilities[:, 0], times), times[frames // 2 :][:1])


class Slow:
    """The same model state by state, in float64: a state is (beats in the bar, beat, period, frame of the beat)."""

    def __init__(self, model, observations):
        self.model, self.observations = model, observations
        self.periods = [int(period) for period in model.periods()]
        bars = model.bars if len(observations) == 3 else (1,)
        self.states = [(bar, b, p, k) for bar in bars for b in range(bar) for p in self.periods for k in range(p)]

    def emit(self, state, frame):
        _, beat, period, step = state
        heard = step < period / self.model.beat_share
        return self.observations[heard * (2 if beat == 0 and len(self.observations) == 3 else 1), frame]

    def moves(self, state):
        """States that may come before, and the log-probabilities that they do."""
        bar, beat, period, step = state
        if step:
            return {(bar, beat, period, step - 1): 0.0}
        inertia = self.model.tempo_inertia
        weights = {old: [np.exp(-inertia * abs(new / old - 1)) for new in self.periods] for old in self.periods}
        place = self.periods.index(period)
        return {
            (bar, (beat - 1) % bar, old, old - 1): np.log(weights[old][place] / sum(weights[old])) for old in weights
        }

    def best(self):
        before = {state: self.moves(state) for state in self.states}
        score = {state: self.emit(state, 0) - np.log(len(self.states)) for state in self.states}
        for frame in range(1, self.observations.shape[1]):
            score = {
                state: max(score[old] + move for old, move in before[state].items()) + self.emit(state, frame)
                for state in self.states
            }
        return max(score.values())

    def score(self, starts, periods, places):
        """Of a path of beats."""
        bars = {bar for bar in self.model.bars if bar >= max(places)} if len(self.observations) == 3 else {1}
        path = [(int(p), int(n) - 1, k) for p, n in zip(periods, places, strict=True) for k in range(p)]
        path = path[-starts[0] :][: self.observations.shape[1]]
        scores = []
        for bar in bars:
            states = [(bar, beat, period, step) for period, beat, step in path]
            total = self.emit(states[0], 0) - np.log(len(self.states))
            for frame, (old, new) in enumerate(itertools.pairwise(states), 1):
                total += self.moves(new).get(old, -np.inf) + self.emit(new, frame)
            scores.append(total)
        return max(scores)


@given(st.integers(0, 10_000), st.integers(1, 30), st.booleans())
@settings(max_examples=15, deadline=None)
def test_the_path_is_that_of_a_viterbi_state_by_state(seed, frames, downbeats):
    rng = np.random.default_rng(seed)
    model = BarPointer(
        slowest_bpm=60 / 0.7, fastest_bpm=200, rate=10, tempo_inertia=rng.uniform(0, 20), beat_share=4, bars=(2, 3)
    )
    np.testing.assert_array_equal(model.periods(), [3, 4, 5, 6, 7])
    np.testing.assert_allclose(np.exp(model.log_transitions()).sum(1), 1)
    probabilities = np.sort(rng.random((1 + downbeats, frames)) ** 2, axis=0)[::-1]
    observations = log_observations(probabilities, model.beat_share)
    slow = Slow(model, observations)
    starts, periods, places, found = model.decode(observations)
    assert found == pytest.approx(slow.best(), abs=1e-9)
    assert found == pytest.approx(slow.score(starts, periods, places), abs=1e-9)
    np.testing.assert_array_equal(np.diff(starts), periods[:-1])


def test_observations_by_hand():
    got = np.exp(log_observations(np.array([[0.5, 0.9, 0.2], [0.1, 0.9, 0.3]]), 16))
    np.testing.assert_allclose(got, [[0.5 / 15, 0.1 / 15, 0.7 / 15], [0.4, 1e-5, 1e-5], [0.1, 0.9, 0.3]])


def test_downbeats_alone_are_beats_of_slow_tempi():
    times, downbeats = clock(50), steady(31)
    slow = BarPointer(slowest_bpm=18, fastest_bpm=72)
    assert score(downbeats, slow.track(heard(downbeats, downbeats, times, 0.01)[:, 1], times).times) > 0.95


def test_targets_are_one_at_the_nearest_frame_and_half_beside():
    times = 0.01 + 0.02 * np.arange(8)
    np.testing.assert_array_equal(frame_targets([0.047, 0.095], times), [0, 0.5, 1, 0.5, 1, 0.5, 0, 0])
    np.testing.assert_array_equal(frame_targets([0.0, 0.168], times), [1, 0.5, 0, 0, 0, 0, 0, 0.5])
    np.testing.assert_array_equal(frame_targets([-0.009, 0.3], times), [0.5, 0, 0, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(frame_targets([0.07], times, (0.25,))[2:5], [0.25, 1, 0.25])
    assert not frame_targets([], times).any()
    assert frame_targets([0.5], [0.01]).tolist() == [1]
    assert frame_targets([0.5], times).dtype == np.float32


def test_peaks_of_both_ends_and_the_higher_of_two_too_close():
    times = np.arange(50) / 50
    probabilities = np.zeros(50)
    probabilities[[0, 16, 20, 34, 49]] = [0.9, 0.6, 0.8, 0.4, 0.7]
    np.testing.assert_allclose(pick_peaks(probabilities, times), times[[0, 20, 49]])
    np.testing.assert_allclose(pick_peaks(probabilities, times, 0.3), times[[0, 20, 34, 49]])


def test_f1_by_hand():
    assert f1([1.0, 2, 3], [1.07, 2.071, 2.95, 7]) == (4, 7)  # 70 ms is within the window, 71 ms is not
    assert f1([1.0, 1.05], [1.02]) == (2, 3)  # a beat is found once
    assert f1([1.0], [1.0, 1.02]) == (2, 3)
    assert BeatF1(pooled=True)([1.0, 4.99, 5.0], [1.0, 5.0]) == (2, 2)
    assert BeatF1(pooled=False)([6.0, 7.0], [6.0]) == (pytest.approx(2 / 3), 1)


times_s = st.lists(st.integers(0, 300).map(lambda step: step * 0.035), max_size=40, unique=True).map(sorted)


@pytest.mark.filterwarnings("ignore:.*beats are empty")
@given(st.lists(st.tuples(times_s, times_s), min_size=1, max_size=4), st.booleans())
@settings(max_examples=150, deadline=None)
def test_f1_is_mir_evals(clips, jitter):
    rng = np.random.default_rng(len(clips))
    clips = [[np.sort(np.abs(side + jitter * rng.normal(0, 0.03, len(side)))) for side in clip] for clip in clips]
    reference, estimated = zip(*clips, strict=True)
    trimmed = [[mir_eval.beat.trim_beats(side) for side in clip] for clip in clips]
    mean = np.mean([mir_eval.beat.f_measure(one, two) for one, two in trimmed])
    assert beat_score("beat_f1_mean", reference, estimated) == pytest.approx(mean)
    for name, sides in (("beat_f1_pooled", trimmed), ("downbeat_f1_marble", clips)):
        hits = sum(len(mir_eval.util.match_events(one, two, 0.07)) for one, two in sides)
        total = sum(len(one) + len(two) for one, two in sides)
        assert beat_score(name, reference, estimated) == pytest.approx(2 * hits / total if total else 0)


def test_means_and_pools_differ_where_clips_do():
    reference, estimated = [np.arange(5.0, 10), np.arange(5.0, 6)], [np.arange(5.0, 10), np.array([5.5])]
    assert beat_score("beat_f1_mean", reference, estimated) == 0.5
    assert beat_score("beat_f1_pooled", reference, estimated) == pytest.approx(10 / 12)
    assert len(BEAT_METRICS) == 6


def test_f_says_nothing_of_frames_further_apart_than_the_window():
    assert applicable(0.02)
    assert applicable(0.07)
    assert not applicable(0.08)


@pytest.mark.parametrize(
    ("probabilities", "times", "words"),
    [
        (np.zeros((4, 3)), np.arange(4), r"\(T, 2\)"),
        (np.zeros(4), np.arange(5), r"\(T, 2\)"),
        (np.zeros(0), np.zeros(0), r"\(T, 2\)"),
        (np.array([0.5, np.nan]), np.arange(2), "NaN"),
        (np.array([0.5, 1.5]), np.arange(2), "above 1"),
    ],
)
def test_what_is_not_probabilities_is_refused(probabilities, times, words):
    with pytest.raises(EvaluationError, match=words):
        POINTER.track(probabilities, times)


def test_what_cannot_be_tracked_is_refused():
    with pytest.raises(EvaluationError, match="tempo"):
        BarPointer(slowest_bpm=100, fastest_bpm=50).periods()
    with pytest.raises(EvaluationError, match=r"\(T,\) at"):
        pick_peaks(np.zeros((4, 2)), np.arange(4))


@pytest.mark.slow
def test_decoding_costs_less_than_a_tenth_of_encoding():
    """Processor time, which other programs do not change, of one clip of 30 s with HuBERT BASE's network."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    encoder, times = WaveformEncoder(WaveformConfig()).eval(), clock(50)
    probabilities = heard(steady(120), steady(120)[::4], times, 0.05)
    start = time.process_time()
    with torch.inference_mode():
        encoder(torch.randn(1, 480_000), torch.tensor([480_000]))
    encoded = time.process_time()
    POINTER.track(probabilities, times)
    decoding = time.process_time() - encoded
    torch.set_num_threads(threads)
    assert decoding < (encoded - start) / 10
